"""What a run needs of a machine, before there is one: its real steps, compiled for TPUs on a machine without any.

    python -m vlmx.plan --config configs/imagenet.py:maple,apex --topology v5e-8,v5e-256 --config.model.dtype=bfloat16
    python -m vlmx.plan --config configs/image_text.py:single_adapter,single_lora --topology v5e-8

For each step on each topology, per chip: memory by what takes it, and whether it fits; floating-point operations, bytes
of memory, collectives; the time of a step at best (the roofline) and what bounds it; images a second, time and
chip-hours of the whole config. Memory is the compiler's own account; its machine code, which takes most of its time to
write, is left out, but with --whole. Times are estimates: lower bounds, from the chips' published peaks, which no step
reaches. No weight is read; nothing is computed.

Topologies: v4, v5e, v5p, v6e as v5e:16x16 or v5e-256 (v4-N and v5p-N count cores, two a chip), and cpu:N. Any field of
the config can be set: --config.recipe.maple.batch=64.
"""

import argparse
import functools
import re
import sys
import time
from pathlib import Path

import jax

from vlmx import abstract, aot, charts, chips, files, hlo, settings
from vlmx import main as command
from vlmx.chips import GIB
from vlmx.errors import WRONG, UserError
from vlmx.fields import set_fields

ESTIMATE = "Times are estimates: lower bounds from the chips' published peaks; no step reaches them."
NO_CODE = "memory is without the machine code, which --whole writes: 0.01 to 0.06 GiB in the programs that were tried"
BOUNDS = {"compute": "compute", "memory": "memory bandwidth", "network": "interconnect"}


def arguments(argv):
    """The command line -> (what argparse found, the --config.<field>=<value> among the rest)."""
    about, _, more = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        "python -m vlmx.plan", None, about, more, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--topology", required=True, help="with commas between, as in v5e-8,v5p:2x2x1,cpu:8")
    parser.add_argument("--config", required=True, help="configs/<benchmark>.py[:method,...][,key=value,...]")
    parser.add_argument("--batch", type=int, default=0, help="of a step, all chips together; default: the recipes'")
    parser.add_argument("--batch-a-chip", type=int, default=0, help="the same for each chip")
    parser.add_argument("--train-only", action="store_true", help="leave out what tests and encodes")
    parser.add_argument("--twins", action="store_true", help="compile once what a chip does alike on several slices")
    parser.add_argument("--whole", action="store_true", help="compile to machine code too, ten times slower")
    parser.add_argument("--fit", choices=["batch", "slice"], help="the largest batch, or the smallest slice, that fits")
    parser.add_argument("--workdir", help="write plan.json, plan.md, memory.svg, roofline.svg; what is there stays")
    args, rest = parser.parse_known_args(argv)
    if wrong := [word for word in rest if not re.match(r"--config\.[\w.]+=", word)]:
        parser.error(f"unexpected argument {wrong[0]!r}; a field of the config is set by --config.<field>=<value>")
    if not any(map(str.strip, args.topology.split(","))):
        parser.error("--topology: expected one or several, with commas between, as in v5e-8,cpu:8")
    if min(args.batch, args.batch_a_chip) < 0 or args.batch and args.batch_a_chip:
        parser.error("--batch, --batch-a-chip: expected one of them, a positive number")
    return args, rest


# -------------------------------------------------------------------- what is planned
def planner(named, fields):
    """(title, `(slice, batch, name of the only step that is wanted) -> its Steps`)."""
    config, steps = configured(named, fields), abstract.classify
    if config.family == "vl":
        from vlmx import vl_abstract  # readers and metrics of many tasks

        steps = vl_abstract.steps
    return f"{config.title}, {config.model.name}", lambda slice, *more: steps(config, chips.devices(slice), *more)


def configured(named, fields=()):
    """The config of `configs/<benchmark>.py[:...]` with the fields that the command line sets, checked."""
    config = command.load(named)
    if config.get("family") not in ("classification", "vl"):
        raise UserError(f"{named}: plans are made of classification and of vision-and-language configs")
    set_fields(config, fields)
    if config.family == "vl":
        from vlmx import vl  # readers and metrics of many tasks

        vl.check(config)
    else:
        settings.check(config)
    return config


# -------------------------------------------------------------------- one step on one slice
def compiled(args, fields, step, slice, batch):
    """The plan of a step: of those of a batch on a slice, the one of its name and kind; see `measure`."""
    if slice.chip is None:
        found = measure(step, slice)
    else:
        found = aot.apart(_compiled, args.config, fields, step.name, step.kind, slice, batch, args.whole)
    gib, took = found["peak"] / GIB, found["seconds_to_compile"]
    said = f"{found['step']}, {slice.name}, batch {found['examples']:,}: {gib:.2f} GiB a chip, compiled in {took} s"
    print(said, file=sys.stderr, flush=True)
    return found


def _compiled(named, fields, name, kind, slice, batch, whole):
    """In the process that `apart` makes, where nothing is there yet."""
    chips.prepare([slice])
    _, steps = planner(named, fields)
    step = next(s for s in steps(slice, batch, name) if (s.name, s.kind) == (name, kind))
    return measure(step, slice, aot.whole if whole else aot.early)


def measure(step, slice, program_of=aot.whole):
    """A step compiled for a slice, as json data: what a chip holds, does and sends in a step, and how long at best.
    program_of: how far it is compiled, see vlmx/aot.py."""
    began = time.monotonic()
    found = {
        "step": step.name,
        "kind": step.kind,
        "topology": slice.name,
        "chips": slice.size,
        "notes": list(step.notes),
    }
    held = {name: abstract.bytes_of(tree) for name, tree in step.held.items()}
    K, lowered = step.program()
    found |= {"examples": step.examples, "steps_a_call": K, "calls": -(-step.total // K)}
    took = lambda: {"seconds_to_compile": round(time.monotonic() - began, 1)}
    try:
        program = program_of(lowered)
    except jax.errors.JaxRuntimeError as e:
        if not (wants := exceeded(str(e), sum(held.values()))):
            raise
        peak, limit = wants
        memory = held | {"everything else": peak - sum(held.values())}
        return found | {"memory": memory, "peak": peak, "limit": limit, "fits": False} | took()
    known = {id(a) for a in jax.tree.leaves(step.held)}
    arguments = jax.tree.leaves(step.arguments)
    idle = abstract.bytes_of([a for i, a in enumerate(arguments) if i not in program.kept and id(a) in known])
    rest = program.arguments - (sum(held.values()) - idle)
    memory = held | {"batches, constants": rest, "results": program.results, "temporaries": program.temporaries}
    memory |= {} if program.code is None else {"code": program.code}
    peak, limit = sum(memory.values()), slice.chip.usable if slice.chip else None
    found |= {"memory": memory, "idle": idle, "peak": peak, "limit": limit, "fits": peak <= limit if limit else None}
    if program.text is None:
        found["not_counted"] = ["the operations: this jaxlib cannot read what libtpu has made"]
        return found | took()
    cost = hlo.cost(program.text).scaled(1 / K)
    found |= {"flops": cost.flops, "passes": cost.passes, "bytes": cost.bytes, "not_counted": list(cost.unknown)}
    found["collectives"] = [
        {"kind": kind, "chips": n or slice.size, "bytes": carried, "times": cost.times[kind, n]}
        for (kind, n), carried in cost.collectives.items()
    ]
    return timed(found | took(), slice)


def exceeded(message, held):
    """(bytes that a program needs, bytes that there are), of the compiler's message that it does not fit; None for
    another. held: bytes of what it is given, which one of the two kinds of message leaves out."""
    sizes = r"([\d.]+)([KMGT])\)? (?:of|exceeds available HBM) \(?([\d.]+)([KMGT])"
    if not (m := re.search(sizes, message)):
        return None
    needs, limit = (float(m[i]) * 1024 ** ("KMGT".index(m[i + 1]) + 1) for i in (1, 3))
    return needs + (held if "for HLO temporaries" in message else 0), limit


def timed(found, slice):
    """A plan with the times that follow from what a chip does: of a step, at best, and of the whole run."""
    carried = {(c["kind"], c["chips"]): c["bytes"] for c in found["collectives"]}
    took = chips.times(hlo.Cost(found["flops"], found["passes"], found["bytes"], carried), slice)
    if not took:
        return found
    second = max(took.values())
    hours = second * found["steps_a_call"] * found["calls"] / 3600
    found = found | {"seconds": took, "bound": max(took, key=took.get), "step_seconds": second}
    found |= {"examples_a_second": found["examples"] / second if second else None}
    return found | {"hours": hours, "chip_hours": hours * slice.size}


def twin(step, slice, plans):
    """The plan of a step whose program a chip of another slice runs too: same kind of chip, several of them, and the
    same work and arrays for each; only how many exchange differs. None where no plan is such a one."""
    held = {name: abstract.bytes_of(tree) for name, tree in step.held.items()}
    for p in plans:
        same = p["step"] == step.name and p["examples"] * slice.size == step.examples * p["chips"]
        same = (
            same and p["topology"].partition(":")[0] == slice.name.partition(":")[0] and min(p["chips"], slice.size) > 1
        )
        if same and "flops" in p and not step.total % p["steps_a_call"] and held.items() <= p["memory"].items():
            told = [c | {"chips": slice.size if c["chips"] == p["chips"] else c["chips"]} for c in p["collectives"]]
            own = {"topology": slice.name, "chips": slice.size, "collectives": told, "seconds_to_compile": 0}
            own |= {"examples": step.examples, "calls": step.total // p["steps_a_call"]}
            own["notes"] = [*step.notes, f"{slice.name}: a chip's program is that compiled for {p['topology']}"]
            return timed(p | own, slice)
    return None


# -------------------------------------------------------------------- what fits
def largest(plan_of, unit):
    """The plan of the largest batch that fits, to a sixteenth; None where not even the smallest does.

    Args: batch -> its plan; what all batches are a multiple of. Memory grows about as a line does: two small batches
    tell where to look."""
    points, best, low, high, at = [], None, 0, None, 1
    while high is None or high - low > max(1, high // 16):
        found = plan_of(at * unit)
        if best and found["fits"] and found["examples"] <= best["examples"]:
            return best  # the training set is no larger
        points.append((at, found["peak"]))
        if found["fits"]:
            best, low = found, at
        else:
            high = at
        if at == 1:
            at = 8
            continue
        (n, peak), (other, less) = points[-1], points[-2]
        aim = n + int((found["limit"] - peak) * (n - other) / (peak - less or 1))
        step = max(1, (high or low) // 16)
        at = max(aim, low + step) if high is None else min(max(aim, low + step), high - step)
    return best


def smallest(plan_of, slice):
    """The plan for the smallest slice of a chip's kind that fits, or None. plan_of: slice -> its plan."""
    plans = (plan_of(chips.parse(f"{slice.chip.name}:{shape}")) for shape in slice.chip.slices)
    return next((found for found in plans if found["fits"]), None)


# -------------------------------------------------------------------- showing it
HEAD = ("step", "topology", "batch", "GiB a chip", "fits", "TFLOP", "GB", "sent MB", "ms", "bound by", "examples/s")
HEAD += ("hours", "chip-hours")


def row(found):
    """A line of the table: of one chip and one step, but for the last three, which are the whole run's."""
    gib = f"{found['peak'] / GIB:.2f}" + (f" of {found['limit'] / GIB:.4g}" if found["limit"] else "")
    start = [
        found["step"],
        found["topology"],
        f"{found['examples']:,}",
        gib,
        {True: "yes", False: "NO"}.get(found["fits"], "?"),
    ]
    if "flops" not in found:
        return [*start, *["-"] * (len(HEAD) - len(start))]
    sent = sum(c["bytes"] for c in found["collectives"])
    start += [f"{found['flops'] / 1e12:.3f}", f"{found['bytes'] / 1e9:.2f}", f"{sent / 1e6:.2f}"]
    if "step_seconds" not in found:
        return [*start, *["-"] * (len(HEAD) - len(start))]
    times = [f"{1e3 * found['step_seconds']:.2f}", BOUNDS[found["bound"]], f"{found['examples_a_second']:,.0f}"]
    return [*start, *times, f"{found['hours']:.2g}", f"{found['chip_hours']:.2g}"]


def table(plans):
    """The plans as text, a line for each, with what has to be known below."""
    rows = [HEAD, *map(row, plans)]
    widths = [max(len(r[i]) for r in rows) for i in range(len(HEAD))]
    lines = ["  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths))) for r in rows]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join([*lines, *footnotes(plans)])


def markdown(plans, title):
    """The plans as a table in Markdown."""
    lines = ["| " + " | ".join(HEAD) + " |", "|---|---|" + "---:|" * (len(HEAD) - 2)]
    lines += ["| " + " | ".join(row(p)) + " |" for p in plans]
    return "\n".join([f"### {title}", "", *lines, "", *(f"- {note}" for note in footnotes(plans))]) + "\n"


def footnotes(plans):
    """What was assumed, changed, not counted; and the totals of a topology."""
    notes = list(dict.fromkeys(note for p in plans for note in p["notes"]))
    for name in dict.fromkeys(p["topology"] for p in plans):
        mine = [p for p in plans if p["topology"] == name]
        if all("hours" in p for p in mine):
            hours = sum(p["hours"] for p in mine)
            notes.append(f"{name}: the whole config takes {hours:.2g} hours, {hours * mine[0]['chips']:.2g} chip-hours")
    unknown = {f"{what} ({p['step']})" for p in plans for what in p.get("not_counted", ())}
    notes += [f"not counted: {what}" for what in sorted(unknown)]
    if any("code" not in p["memory"] for p in plans if p["fits"] is not None):
        notes.append(NO_CODE)
    sources = {p["topology"].partition(":")[0] for p in plans} & chips.CHIPS.keys()
    notes += [f"peaks of {k}: {chips.CHIPS[k].source}" for k in sorted(sources)]
    return [*notes, ESTIMATE] if any("seconds" in p for p in plans) else notes


def write(workdir, title, plans):
    """plan.json, plan.md and the pictures of some plans."""
    files.write_json(workdir / "plan.json", {"title": title, "estimate": ESTIMATE, "plans": plans})
    files.write(workdir / "plan.md", markdown(plans, title))
    shown = [p for p in plans if p["kind"] == "train"] or plans
    files.write(workdir / "memory.svg", charts.alone(charts.memory(shown)))
    if any("seconds" in p for p in shown):
        files.write(workdir / "roofline.svg", charts.alone(charts.roofline(shown)))


def read_plans(path):
    """The plans of a plan.json. UserError where it is damaged."""
    advice = "Remove it, or give another --workdir."
    plans = files.read_json(path, advice, {"plans": [dict]})["plans"]
    with files.reading(path, advice):
        table(plans)
    return plans


# -------------------------------------------------------------------- the command
def run(args, fields):
    """Plans of every step on every topology; printed, and written where there is a workdir, as they are made."""
    slices = [chips.parse(text) for text in args.topology.split(",") if text.strip()]
    chips.prepare(slices)
    title, steps = planner(args.config, fields)
    path = Path(args.workdir) / "plan.json" if args.workdir else None
    plans = read_plans(path) if path and path.exists() else []
    of = lambda p: (p["step"], p["topology"], p["examples"])
    done = {of(p) for p in plans}
    for slice in slices:
        batch = args.batch_a_chip * slice.size or args.batch
        for step in steps(slice, batch):
            if args.train_only and step.kind != "train" or (step.name, slice.name, step.examples) in done:
                continue
            plan_of = functools.partial(compiled, args, fields, step)
            if args.fit:
                if step.kind != "train":
                    continue
                if not slice.chip:
                    raise UserError(f"--fit: how much memory {slice.name} has is not known; give a TPU's topology.")
                if args.fit == "batch":
                    found = largest(functools.partial(plan_of, slice), slice.size)
                else:
                    found = smallest(lambda one, of=plan_of, batch=batch: of(one, batch), slice)
                found = found or plan_of(slice, batch)
            else:
                found = (args.twins and twin(step, slice, plans)) or plan_of(slice, batch)
            plans.append(found)
            names = list(dict.fromkeys(p["topology"] for p in plans))
            plans.sort(key=lambda p, names=names: names.index(p["topology"]))
            if path:
                write(path.parent, title, plans)
    print(f"{title}\n{table(plans)}", flush=True)
    return plans


def main(argv):
    """The command; returns the exit status: 1 where something does not fit."""
    args, fields = arguments(argv)
    try:
        plans = run(args, fields)
    except UserError as e:
        print(f"\nerror: {e}", file=sys.stderr)
        return WRONG
    return 1 if any(p["fits"] is False for p in plans) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
