"""The sweep: benchmarks x shots x methods x protocols x seeds in one command, ending in one report.

    python -m vlmx.sweep --configs configs/objects.py,configs/digits.py --protocols base_to_new --workdir DIR

A *cell* is a method under a protocol on a benchmark at one number of shots. Each benchmark is a run of its own
(vlmx/train.py) in DIR/<benchmark>, with one model and one set of features for all its methods; where its trainings are
alike, all numbers of shots and all seeds are one program. The same command again goes on with the cells that are
missing or have failed. Any field of the configs can be set in all of them: --config.recipe.coop.epochs=50.
"""

import argparse
import re
import sys
import time
from pathlib import Path

from vlmx import main as command
from vlmx.errors import UserError
from vlmx.fields import set_fields


def words(text):
    """`a,b,(1,2)` -> ["a", "b", "(1,2)"]."""
    return [w for w in re.split(r",(?![^(\[]*[)\]])", text) if w]


def arguments(argv):
    """The command line -> (what argparse found, the --config.<field>=<value> among the rest)."""
    about, _, more = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        "python -m vlmx.sweep", None, about, more, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--configs", required=True, help="configs/<benchmark>.py[:key=value,...], with commas between")
    parser.add_argument("--methods", default="all", help="with commas between; all: those of configs/recipes.py")
    parser.add_argument("--protocols", default="", help="with commas between; default: the configs'")
    parser.add_argument("--shots", default="", help="one number or several, as in 1,2,4,8,16; default: the configs'")
    parser.add_argument("--seeds", default="", help="how many, 1 to n; default: the configs'")
    parser.add_argument("--workdir", default="runs/sweep", help="folder of the sweep; default: %(default)s")
    parser.add_argument("--coordinator", help="several processes: as in vlmx.main")
    parser.add_argument("--process", type=int, help="several processes: the number of this one")
    parser.add_argument("--processes", type=int, help="several processes: how many there are")
    args, rest = parser.parse_known_args(argv)
    if wrong := [word for word in rest if not re.match(r"--config\.[\w.]+=", word)]:
        parser.error(f"unexpected argument {wrong[0]!r}; a field of the configs is set by --config.<field>=<value>")
    return args, rest


def plan(args, fields=()):
    """{name of the run: its config}, everything checked that can be before data or weights are read."""
    sys.path.insert(0, str(Path(args.configs.partition(":")[0]).resolve().parent.parent))  # configs/ is a package there
    from configs import recipes
    from vlmx import settings

    methods = [*recipes.RECIPES] if args.methods == "all" else words(args.methods)
    for flag in ("configs", "methods"):
        if not words(getattr(args, flag)):
            raise UserError(f"--{flag}: expected at least one name; got {getattr(args, flag)!r}.")
    runs = {}
    for named in words(args.configs):
        path, _, given = named.partition(":")
        asked = {"protocols": "+".join(words(args.protocols)), "seeds": args.seeds}
        keys = [f"{key}={value}" for key, value in asked.items() if value]
        keys += [f"shots=({','.join(words(args.shots))},)"] if args.shots else []
        config = command.load(f"{path}:{','.join([*methods, *keys, *filter(None, [given])])}")
        if config.get("family") != "classification":
            raise UserError(f"--configs: {named} is no benchmark of classification, and a sweep is made of these.")
        for method in methods:
            settings.recipe_of(config, method)  # an unknown one is told before a field of its recipe is missed
        set_fields(config, fields)
        settings.check(config)
        if config.title in runs:
            raise UserError(
                f"--configs: {named} and another make the same run, {config.title}; use a second sweep for it."
            )
        runs[config.title] = config
    return runs


def run(runs, workdir):
    """Make every run of `runs`, {name: config}, in a folder of `workdir`; returns what it writes to results.json."""
    from vlmx import report, settings, tables, train
    from vlmx.files import reading, write_json
    from vlmx.logs import first_process, say

    began, workdir = time.monotonic(), Path(workdir).absolute()
    found = {name: tables.missing(name, config, settings.check(config)) for name, config in runs.items()}
    for name, config in runs.items():
        if done := settings.finished(config, workdir / name, write=False):  # or it is of another config: refused now
            with reading(workdir / name / "results.json", settings.AGAIN):
                found[name] = tables.cells(name, done)
    results = {"title": workdir.name, "command": " ".join(["python -m vlmx.sweep", *sys.argv[1:]])}
    for i, (name, config) in enumerate(runs.items(), 1):
        say(f"---- {name}: {i} of {len(runs)} runs")
        try:
            one = train.run(config, workdir / name, go_on=True)
            found[name] = tables.cells(name, one)
            results |= {"device": one["device"], "versions": one["versions"]}
        except Exception as e:
            if train.stops_all(e):
                raise
            found[name] = tables.missing(name, config, settings.check(config), failed=train.told(e))
            say(f"{name}: failed, the others go on. {found[name][0]['failed']}")
        results["created"] = time.strftime("%Y-%m-%d %H:%M:%S")
        results["seconds"] = round(time.monotonic() - began, 1)
        results["cells"] = [cell for cells in found.values() for cell in cells]
        write_json(workdir / "results.json", results)
        if first_process():
            report.write(workdir)
    if first_process():
        print("\n" + tables.text(results) + f"\nreport: {workdir / 'report.html'}", flush=True)
    return results


def main(argv):
    """The command; returns the exit status: 1 where a cell has failed."""
    args, fields = arguments(argv)
    failed = []

    def work():
        results = run(plan(args, fields), args.workdir)
        failed.extend(cell for cell in results["cells"] if "failed" in cell)

    command.guarded(work, args.workdir, args.coordinator, args.process, args.processes)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
