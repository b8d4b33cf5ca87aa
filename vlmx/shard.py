"""Which device holds what: the only file that knows meshes, and processes behind them.

Axes: "seed" (independent runs side by side), "data" (images of a batch), "fsdp" (frozen weights in pieces; images of a
batch too) and "tensor" (heads and hidden units).

Every tensor's place follows from ordered rules (regex of its whole path, layout); the first that matches decides. A
layout names the mesh axis of each dimension: "-" is none, "rows" is data and fsdp together, "..." stands for the
dimensions not named. An axis that does not divide its dimension is left out there.
"""

import functools
import json
import math

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vlmx import partition
from vlmx.errors import UserError, unknown

AXES = ("seed", "data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # images of a batch go over both

# The frozen model, paths as in "vision/blocks/attn/q/kernel". On one axis of size 1 nothing is cut.
MODEL = (
    (r".*/((attn|cross)/[qkv]|mlp/(fc|gate))/kernel", "... fsdp tensor"),
    (r".*/((attn|cross)/o|mlp/proj)/kernel", "... tensor fsdp"),
    (r".*/((attn|cross)/[qkv]|mlp/(fc|gate))/bias", "... tensor"),
    (r".*(kernel|embed|proj|conv\d?)", "... fsdp"),
    (r".*", ""),
)
# What belongs to a method: its state, the constants of its classes, the training sets, a step's batches, a test batch.
METHOD = (
    (r"(train|fixed|opt)/(.*/)?keys", "seed tensor ..."),  # of a cache
    (r"(train|fixed|opt|support|keys).*", "seed ..."),
    (r"steps/.*", "- seed rows ..."),
    (r"batch/.*", "rows ..."),
    (r".*", ""),
)
# What belongs to several tasks trained at once: weights of the backbone that are tuned lie as the frozen ones do.
SEVERAL = (
    (r"steps/task", ""),
    (r"steps/.*", "- rows ..."),
    (r"batch/task", ""),
    (r"batch/.*", "rows ..."),
    *((rf"(train|opt)/backbone/{regex}", layout) for regex, layout in MODEL),
    (r".*", ""),
)


# -------------------------------------------------------------------- the mesh
def make_mesh(sizes=None, devices=None):
    """A mesh over all devices. `sizes`: axis -> size, -1 (at one axis) for the rest; by default all are on "data"."""
    devices = jax.devices() if devices is None else devices
    sizes = {"seed": 1, "data": -1, "fsdp": 1, "tensor": 1} | dict(sizes or {})
    if wrong := [axis for axis in sizes if axis not in AXES]:
        raise unknown("axis of config.mesh", wrong[0], AXES)
    shape = [int(sizes[axis]) for axis in AXES]
    rest = [i for i, n in enumerate(shape) if n == -1]
    known = math.prod(n for n in shape if n != -1)
    if len(rest) == 1 and known > 0 and len(devices) % known == 0:
        shape[rest[0]] = len(devices) // known
    if len(rest) > 1 or min(shape) < 1 or math.prod(shape) != len(devices):
        raise UserError(
            f"config.mesh {sizes} does not cover {len(devices)} devices: expected sizes whose product is that number, "
            "or one of them -1, for the rest."
        )
    # make_mesh's default, Explicit axes, would ask every operation for its sharding; the compiler finds them here.
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def rows(mesh):
    """Into how many pieces the images of a batch are cut."""
    return math.prod(mesh.shape[axis] for axis in ROWS)


def up(mesh, n):
    """The smallest batch of at least `n` images that the mesh divides."""
    return -(-n // rows(mesh)) * rows(mesh)


def refuse_uneven(mesh, seeds, batches):
    """UserError where the mesh does not divide the number of seeds or a batch, with the nearest sizes that fit.

    Args: seeds: their number. batches: the config's field -> images of a step. A training set or a last batch that is
    smaller than these is filled up with rows of weight 0 instead.
    """
    for field, n, pieces, axes in [("seeds", seeds, mesh.shape["seed"], "mesh.seed")] + [
        (field, n, rows(mesh), "mesh.data x mesh.fsdp") for field, n in batches.items()
    ]:
        if n % pieces:
            below, above = n // pieces * pieces, -(-n // pieces) * pieces
            fit = f"{below} or {above}" if below else f"{above}"
            raise UserError(
                f"{field}: {axes} = {pieces} does not divide {n}. Nearest that fit: {fit}; or another mesh "
                "(--config.mesh.seed, .data, .fsdp, .tensor)."
            )


# -------------------------------------------------------------------- rules
def rules_of(shardings, who):
    """Of config.shardings, (regex, layout) with regex as in "model/text/.*", those of `who`, without that word."""
    return tuple((regex.partition("/")[2], layout) for regex, layout in shardings if regex.partition("/")[0] == who)


def check(shardings, known):
    """UserError for a rule of config.shardings that belongs to none of `known`, or whose layout cannot be read."""
    for regex, layout in shardings:
        if regex.partition("/")[0] not in known:
            raise unknown("first word of a rule of config.shardings,", regex.partition("/")[0], known)
        for word in layout.split():
            if word not in (*AXES, "rows", "-", "..."):
                raise unknown(f"word in the layout of config.shardings, {layout!r}:", word, (*AXES, "rows", "-", "..."))


def refuse_unused(tree, rules):
    """UserError for a rule that decides no leaf of `tree` (arrays or shapes)."""
    partition.match(tree, rules, defaults=[(".*", "")])


def on(mesh: Mesh, *axes):
    """The sharding with these mesh axes on an array's leading dimensions; nothing: a copy on every device."""
    return NamedSharding(mesh, P(*axes))


def sharding(mesh, path, shape, rules):
    """The sharding of one leaf, by the first rule whose regex matches `path`."""
    layout = next(layout for regex, layout in partition.compiled(rules) if regex.fullmatch(path)).split()
    if "..." in layout:
        i = layout.index("...")
        layout[i : i + 1] = ["-"] * (len(shape) - len(layout) + 1)
    axes = [{"-": (), "rows": ROWS}.get(word, (word,)) for word in layout][: len(shape)]
    fits = [a if n % math.prod(mesh.shape[x] for x in a) == 0 else () for a, n in zip(axes, shape)]
    while fits and not fits[-1]:
        fits.pop()
    return on(mesh, *(a or None for a in fits))


def shardings(mesh, tree, rules):
    """The shardings of a tree of arrays (or shapes), in the same structure."""
    leaves = zip(partition.paths(tree), jax.tree.leaves(tree), strict=True)
    return jax.tree.unflatten(
        jax.tree.structure(tree), [sharding(mesh, path, leaf.shape, rules) for path, leaf in leaves]
    )


def of_step(mesh, state, consts, support, model, rules=()):
    """The in_shardings and out_shardings of a step `(state, model, consts, support, xs, keys) -> (state, metrics)`.

    Args: arrays or their shapes, the model's with shardings. rules: the method's own, that come before METHOD. Raises
    UserError for one that decides nothing.
    """
    tree = {**state, "consts": consts, "support": support}
    refuse_unused(tree, rules)
    where = shardings(mesh, tree, (*rules, *METHOD))
    consts, support = where.pop("consts"), where.pop("support")
    model = jax.tree.map(lambda a: a.sharding, model)
    steps, keys = _whole(mesh, "steps/"), _whole(mesh, "keys")
    return {
        "in_shardings": (where, model, consts, support, steps, keys),
        "out_shardings": (where, on(mesh, None, "seed")),
    }


def lay_out(mesh, state, consts, support, model, rules=()):
    """State and constants where a step wants them, and the shardings of that step: (state, consts, `of_step`)."""
    where = of_step(mesh, state, consts, support, model, rules)
    return place(state, where["in_shardings"][0]), place(consts, where["in_shardings"][2]), where


def batch(mesh):
    """The sharding of a test batch."""
    return _whole(mesh, "batch/")


def _whole(mesh, path):
    """The sharding of arrays that the mesh divides, whatever their shape."""
    return sharding(mesh, path, (0,) * len(AXES), METHOD)


# -------------------------------------------------------------------- arrays
def place(tree, shardings):
    """Arrays that every process has, or global ones, where `shardings` (the same structure, or one for all) says."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    return jax.jit(lambda tree: tree, out_shardings=shardings)(tree)


def put(mesh, what, tree, rules=METHOD):
    """Host arrays that every process has whole, as global arrays; `what` ("support", "steps") is put before paths."""

    def one(a, where):
        return jax.make_array_from_callback(a.shape, where, lambda index: a[index])

    tree = jax.tree.map(np.asarray, tree)
    return jax.tree.map(one, tree, shardings(mesh, {what: tree}, rules)[what])


def join(mesh, what, tree):
    """Host arrays of which each process gives the part that it holds (see `share`), as global arrays."""
    where = _whole(mesh, f"{what}/")
    return jax.tree.map(lambda a: jax.make_array_from_process_local_data(where, np.asarray(a)), tree)


def gather(mesh, tree):
    """Global arrays as host arrays, whole on every process."""
    if jax.process_count() > 1:
        tree = _copy(mesh)(tree)
    return jax.tree.map(np.asarray, tree)


@functools.cache
def _copy(mesh):
    return jax.jit(lambda tree: tree, out_shardings=on(mesh))


def pad(batch, axis, multiple):
    """A batch of host arrays filled up along `axis` to a multiple, so that the mesh divides it; new rows are zero,
    and so is their weight."""

    def fill(a):
        width = [(0, 0)] * a.ndim
        width[axis] = (0, -a.shape[axis] % multiple)
        return np.pad(a, width)

    return {key: fill(np.asarray(a)) for key, a in batch.items()}


# -------------------------------------------------------------------- processes
def share(mesh):
    """What of a batch `[seeds, images]` is this process's to make: ((i, n) of the seeds, (i, n) of the images).

    The i-th of n parts. Processes that hold the same images, since an axis of the model lies across them, have the
    same part.
    """
    held = {}
    for (s, d, f, _), device in np.ndenumerate(mesh.devices):
        seeds, images = held.setdefault(device.process_index, (set(), set()))
        seeds.add(s)
        images.add((d, f))
    parts = []
    for own, all_of in zip(held[jax.process_index()], zip(*held.values())):
        different = sorted({tuple(sorted(part)) for part in all_of})
        parts.append((different.index(tuple(sorted(own))), len(different)))
    return tuple(parts)


def own(items):
    """This process's part of a sequence that all processes have, where the work on it can be done by any of them."""
    return items[jax.process_index() :: jax.process_count()]


def everyone(items):
    """A list of json data from every process, concatenated in the order of the processes; the same on all of them."""
    if jax.process_count() == 1:
        return list(items)
    text = np.frombuffer(json.dumps(list(items)).encode(), np.uint8)
    longest = int(multihost_utils.process_allgather(np.array(len(text))).max())
    texts = multihost_utils.process_allgather(np.pad(text, (0, longest - len(text)), constant_values=32))
    return [item for row in texts for item in json.loads(row.tobytes())]


def agreed(values):
    """Where every process has the same of int32 `(n,)`: bool `(n,)`, the same on all of them."""
    if jax.process_count() == 1:
        return np.ones(len(values), bool)
    every = multihost_utils.process_allgather(values)
    return (every == every[0]).all(0)
