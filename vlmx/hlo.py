"""What a compiled program does, counted from the text of its optimised HLO: operations, bytes of memory, collectives.

XLA's own cost analysis counts the body of a loop once, however often it runs. Here a loop counts its body as often as
its condition lets it run at most; the limit is read where the compiler wrote it, or from the comparison itself.

FLOPs are those of matrix products and convolutions, 2 for each product that meets a real element (padding and the holes
of dilation do not count, which is how XLA writes batched products for TPUs). Bytes are what instructions read and write
in the chip's main memory (memory space 0), with the padding of tiles; a fusion that reads a slice of an operand counts
the slice. Caches, and traffic that overlaps, are not modelled.
"""

import functools
import math
import re
from collections import Counter
from typing import NamedTuple

import numpy as np

BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4}
BYTES |= {"f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
COLLECTIVE = re.compile(rf"({'|'.join(COLLECTIVES)})(-start)?")
# Instructions that move nothing: names of what is there, and the ends of what began elsewhere.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
FREE |= {"opt-barrier", "iota", "domain", "rng-get-and-update-state", "async-update"}
SLICES = ("dynamic-slice", "slice", "gather")
# Custom calls that only name or arrange memory.
BOOKKEEPING = re.compile(r"AllocateBuffer|ConcatBitcast|Sharding|SPMD\w*|\w*Gather\w*Indices\w*|\w*Pragma\w*")
# Passes of the matrix unit, which multiplies bfloat16, for a product of float32 in this precision.
PASSES = {"highest": 6, "high": 3}
ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^{}]*)\})?")


class Op(NamedTuple):
    """An instruction: its name, result (text of its type), operation, operands by name, and the rest of its line."""

    name: str
    type: str
    op: str
    operands: tuple[str, ...]
    rest: str
    root: bool


class Cost(NamedTuple):
    """Of a program on one chip. flops; passes: of the matrix unit's bfloat16 operations, more than flops where float32
    is multiplied precisely; bytes; collectives: (operation, chips in a group) -> bytes that it carries, and times:
    (operation, chips) -> how often; unknown: what could not be counted, by name -> how often."""

    flops: float = 0
    passes: float = 0
    bytes: float = 0
    collectives: Counter = Counter()
    times: Counter = Counter()
    unknown: Counter = Counter()

    def __add__(self, other):
        return Cost(*(a + b if a and b else a or b for a, b in zip(self, other)))

    def scaled(self, n):
        """This cost n times."""
        return Cost(*(Counter({k: v * n for k, v in a.items()}) if isinstance(a, Counter) else a * n for a in self))


def read(text):
    """The computations of a module's text: (name -> {instruction's name: Op}, name of the entry)."""
    found, entry, here = {}, None, None
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            here = found.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif line == "}":
            here = None
        elif here is not None and (m := re.match(r"\s+(ROOT )?%?([\w.\-]+) = (.*)", line)):
            of, body = _take(m[3])
            op, _, rest = body.strip().partition("(")
            inside, rest = _take("(" + rest)
            operands = () if op in ("constant", "parameter") else tuple(re.findall(r"%([\w.\-]+)", inside))
            rest = inside if op in ("constant", "parameter") else rest
            here[m[2]] = Op(m[2], of, op, operands, rest, bool(m[1]))
    return found, entry


def _take(text):
    """(the type or bracket that `text` begins with, what follows)."""
    if not text.startswith("("):
        head, _, rest = text.partition(" ")
        return head, rest
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if not depth:
            return text[: i + 1], text[i + 1 :]
    return text, ""


def arrays(of):
    """[(dtype, dims, layout)] of the arrays in a type's text."""
    return [(t, tuple(int(n) for n in d.split(",") if n), layout) for t, d, layout in ARRAY.findall(of) if t in BYTES]


def size(of, everywhere=False):
    """Bytes of a type in main memory, tiles padded; everywhere: in any memory, as they are."""
    total = 0
    for dtype, dims, layout in arrays(of):
        if everywhere or not re.search(r"S\([1-9]", layout):
            total += BYTES[dtype] * math.prod(dims if everywhere else padded(dims, layout))
    return total


def padded(dims, layout):
    """`dims` with the innermost ones rounded up to the layout's tile, {2,1,0:T(8,128)...}."""
    order, _, rest = layout.partition(":")
    tile = re.match(r"T\(([\d,]+)\)", rest)
    if not tile or not dims:
        return dims
    dims = list(dims)
    for axis, n in zip(order.split(","), reversed(tile[1].split(","))):
        dims[int(axis)] = -(-dims[int(axis)] // int(n)) * int(n)
    return dims


def cost(text):
    """The Cost of a compiled program's text, on one of its chips."""
    return _Count(*read(text)).whole()


class _Count:
    def __init__(self, computations, entry):
        self.computations, self.entry = computations, entry

    def whole(self):
        return self.of(self.entry)

    @functools.cache  # noqa: B019  (it lives as long as one count)
    def of(self, name, fused=False):
        """Of a computation; fused: its instructions touch no memory of their own."""
        return sum((self.one(op, name, fused) for op in self.computations[name].values()), Cost())

    def one(self, op, where, fused):
        if op.op == "while":
            body, limit = _attribute(op, "body"), self.trips(op, where)
            n, unknown = (1, Counter({f"length of the loop {op.name}": 1})) if limit is None else (limit, Counter())
            return self.of(body).scaled(n) + Cost(unknown=unknown)
        if op.op == "conditional":
            branches = re.findall(r"(?:true_computation|false_computation)=%?([\w.\-]+)", op.rest)
            listed = re.search(r"branch_computations=\{([^}]*)\}", op.rest)
            branches += re.findall(r"%?([\w.\-]+)", listed[1]) if listed else []
            return max((self.of(b) for b in branches), key=lambda c: (c.flops, c.bytes))
        if op.op == "async-start" and self.root(_attribute(op, "calls")).op == "slice":
            op = op._replace(op="slice-start")  # which is how jax writes it
        if op.op in ("call", "async-start"):
            return self.of(_attribute(op, "to_apply") or _attribute(op, "calls"))
        inner = self.of(_attribute(op, "calls"), True) if op.op == "fusion" else Cost()
        moved = 0 if fused else self.moved(op, where)
        if op.op in ("convolution", "dot"):
            n = self.products(op, where)
            precise = re.search(r"operand_precision=\{(\w+)", op.rest)
            return Cost(n, n * PASSES.get(precise[1], 1) if precise else n, moved)
        if m := COLLECTIVE.fullmatch(op.op):
            carried = sum(size(self.type(o, where), True) for o in op.operands)
            key = m[1], group(op.rest)
            return Cost(0, 0, moved, Counter({key: carried}), Counter({key: 1}))
        if op.op == "custom-call":
            if inner := re.search(r"called_computations=\{%?([\w.\-]+)\}", op.rest):
                return self.of(inner[1])
            target = re.search(r'custom_call_target="([^"]*)"', op.rest)[1]
            if BOOKKEEPING.fullmatch(target):
                return Cost()
            if target.startswith("__onednn$matmul") or "matmul" in target.lower():
                n = self.matmul(op, where)
                return Cost(n, n, moved)
            return Cost(bytes=moved, unknown=Counter({f"custom call {target}": 1}))
        return inner + Cost(bytes=moved)

    # ---------------------------------------------------------------- loops
    def trips(self, op, where):
        """How often a loop runs at most: told by the compiler, or from `counter < limit` with a counter in steps of 1,
        as jax writes loops; None where there is no such comparison."""
        if told := re.search(r'known_trip_count":\{"n":"(\d+)"', op.rest):
            return int(told[1])
        name = _attribute(op, "condition")
        for compare, at, outer in self.comparisons(self.root(name), name):
            if "direction=LT" in compare.rest:
                start, limit = (self.value(o, at, outer, op, where) for o in compare.operands)
                return None if limit is None else limit - (start or 0)
        return None

    def root(self, name):
        return next(op for op in self.computations[name].values() if op.root)

    def comparisons(self, op, name, outer=None):
        """What a condition's root rests on: itself, or those that it joins with "and", as (a comparison, its
        computation, (the fusion around it, that one's computation) or None)."""
        if op.op == "fusion":
            inner = _attribute(op, "calls")
            yield from self.comparisons(self.root(inner), inner, (op, name))
        elif op.op == "parameter" and outer:
            fusion, name = outer
            yield from self.comparisons(self.computations[name][fusion.operands[_number(op)]], name)
        elif op.op == "and":
            for operand in op.operands:
                yield from self.comparisons(self.computations[name][operand], name, outer)
        elif op.op == "compare":
            yield op, name, outer

    def value(self, name, at, outer, loop, where):
        """A number in a loop's condition: a constant, a sum, or what the loop's state begins with in the computation
        `where`; None where it is none of these."""
        op = self.computations[at][name]
        if op.op == "constant":
            return _number(op)
        if op.op in ("copy", "bitcast"):
            return self.value(op.operands[0], at, outer, loop, where)
        if op.op == "add":
            parts = [self.value(o, at, outer, loop, where) for o in op.operands]
            return None if None in parts else sum(parts)
        if op.op == "parameter" and outer:
            return self.value(outer[0].operands[_number(op)], outer[1], None, loop, where)
        if op.op == "get-tuple-element" and loop:
            start = self.computations[where][loop.operands[0]]
            place = int(re.search(r"index=(\d+)", op.rest)[1])
            return self.value(start.operands[place], where, None, None, where) if start.op == "tuple" else None
        return None

    # ---------------------------------------------------------------- products
    def type(self, name, where):
        return self.computations[where][name].type

    def products(self, op, where):
        """FLOPs of a matrix product or convolution."""
        (_, lhs, _), (_, rhs, _) = (arrays(self.type(o, where))[0] for o in op.operands[:2])
        (_, out, _) = arrays(op.type)[0]
        if op.op == "dot":
            contracted = _numbers(op.rest, "lhs_contracting_dims")
            return 2 * math.prod(out) * math.prod(lhs[i] for i in contracted)
        names = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", op.rest)
        lhs, rhs, out = ({c: n for c, n in zip(labels, dims)} for labels, dims in zip(names.groups(), (lhs, rhs, out)))
        window = re.search(r"window=\{([^}]*)\}", op.rest)
        window = dict(part.split("=") for part in window[1].split()) if window else {}
        batch_groups = int((re.search(r"batch_group_count=(\d+)", op.rest) or (0, 1))[1])
        total = 2 * lhs["b"] // batch_groups * rhs["i"] * rhs["o"]
        for i, axis in enumerate(sorted(c for c in lhs if c.isdigit())):
            given = {k: v.split("x")[i] for k, v in window.items()}
            low = int(given.get("pad", "0_0").split("_")[0])
            stride, holes, step = (int(given.get(k, 1)) for k in ("stride", "lhs_dilate", "rhs_dilate"))
            o, k = np.arange(out[axis])[:, None], np.arange(rhs[axis])
            at = o * stride + k * step - low
            total *= int(((at >= 0) & (at <= (lhs[axis] - 1) * holes) & (at % holes == 0)).sum())
        return total

    def matmul(self, op, where):
        """FLOPs of a library's matrix product `(..., m, k) x (..., k, n)`, either transposed: 2 x out x k."""
        (_, lhs, _), (_, out, _) = arrays(self.type(op.operands[0], where))[0], arrays(op.type)[0]
        m = out[-2] if len(out) > 1 else 1
        return 2 * math.prod(out) * (math.prod(lhs[-2:]) // m)

    # ---------------------------------------------------------------- memory
    def moved(self, op, where):
        """Bytes that an instruction reads and writes in main memory."""
        if op.op in FREE or op.op.endswith("-done") or op.op == "custom-call" and "AllocateBuffer" in op.rest:
            return 0
        if op.op.endswith("-start") and op.op in ("copy-start", "slice-start"):
            parts = [a for a in ARRAY.finditer(op.type) if a[1] in BYTES]
            whole = [size(self.type(o, where)) for o in op.operands[:1]]
            new = parts[0] if op.op == "copy-start" else parts[1]
            n = size(new[0], True)
            return size(new[0]) + (n if whole[0] else 0)
        sizes = [size(self.type(o, where)) for o in op.operands]
        if op.op in SLICES:
            return size(op.type) + min(size(op.type), sizes[0])
        if op.op == "dynamic-update-slice":
            return 2 * sizes[1]
        if op.op == "fusion":
            inner = _attribute(op, "calls")
            reads = [min(n, self.reads(inner, i)) if n else 0 for i, n in enumerate(sizes)]
            return sum(reads) + min(size(op.type), self.writes(inner))
        return sum(sizes) + size(op.type)

    @functools.cache  # noqa: B019
    def reads(self, name, i):
        """Bytes that a fused computation reads of its parameter i: only slices, where slices are all it takes."""
        ops = self.computations[name]
        given = next(o for o in ops.values() if o.op == "parameter" and o.rest.strip("() ") == str(i))
        total, names = 0, [given.name]
        while names:
            one = names.pop()
            for user in (o for o in ops.values() if one in o.operands):
                if user.op == "bitcast":
                    names.append(user.name)
                elif user.op in SLICES and user.operands[0] == one:
                    total += size(user.type, True)
                elif user.op == "dynamic-update-slice" and user.operands[0] == one:
                    continue  # written in place
                elif user.op == "fusion":
                    inner = _attribute(user, "calls")
                    total += sum(self.reads(inner, j) for j, o in enumerate(user.operands) if o == one)
                else:
                    return math.inf
        return total

    @functools.cache  # noqa: B019
    def writes(self, name):
        """Bytes that a fused computation writes: of an update in place, the update."""
        ops = self.computations[name]
        return self.written(next(o for o in ops.values() if o.root), ops)

    def written(self, op, ops):
        if op.op == "bitcast":
            return self.written(ops[op.operands[0]], ops)
        if op.op == "tuple":
            return sum(self.written(ops[o], ops) for o in op.operands)
        if op.op == "dynamic-update-slice":
            return size(ops[op.operands[1]].type, True)
        if op.op == "fusion":
            return self.writes(_attribute(op, "calls"))
        return math.inf if size(op.type) else 0


def group(rest):
    """How many chips exchange something in one group of a collective; 0: all of them."""
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes.get(axis, 1)) for axis in re.findall(r"'([^']+)'", mesh[2]))
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", rest):
        return int(iota[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return listed[1].count(",") + 1
    return 0


def _attribute(op, name):
    found = re.search(rf"{name}=%?([\w.\-]+)", op.rest)
    return found and found[1]


def _number(op):
    """What stands in the brackets of a constant or a parameter, an int, or None."""
    found = re.match(r"\((-?\d+)\)", op.rest)
    return int(found[1]) if found else None


def _numbers(rest, name):
    return [int(n) for n in re.search(rf"{name}=\{{([\d,]*)\}}", rest)[1].split(",") if n]
