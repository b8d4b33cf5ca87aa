"""One table and one csv of many workdirs, of runs and of sweeps: `python launch/table.py WORKDIR... [--out DIR]`.

Prints the tables in the papers' layout; writes tables.md, results.csv and report.html into DIR (default: runs/table). A
cell that several workdirs have is taken from the last one, one that has failed or not run only if no other has it.
"""

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))  # behind an installed vlmx

from vlmx import tables  # noqa: E402
from vlmx.errors import WRONG, UserError  # noqa: E402
from vlmx.files import read_json, reading, write_json  # noqa: E402
from vlmx.settings import AGAIN  # noqa: E402


def collect(workdirs, out):
    """The cells of every workdir, each once; "run" is the folder of its run as seen from `out`."""
    found = {}
    for workdir in map(Path, workdirs):
        path = workdir / "results.json"
        if not path.exists():
            print(f"{workdir}: no results.json, left out", file=sys.stderr)
            continue
        results = read_json(path, AGAIN)
        with reading(path, AGAIN):
            cells = results["cells"] if "cells" in results else tables.cells("", results)
            tables.text(summary(cells))  # what is no number fails here, where its file is known
            for cell in cells:
                cell |= {"run": os.path.relpath(workdir / cell["run"], out)}
                key = tuple(cell[k] for k in tables.KEYS)
                if "failed" not in cell or "failed" in found.get(key, {"failed": ""}):
                    found[key] = cell
    if not found:
        raise UserError("no workdir of these holds results.json: nothing is finished, or these are not workdirs.")
    return list(found.values())


def summary(cells, title="", command=""):
    """What results.json says of cells."""
    return {"title": title, "command": command, "cells": cells, "seconds": sum(c.get("seconds", 0) for c in cells)}


def main(argv):
    """The command; returns the exit status."""
    about, _, more = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser("launch/table.py", None, about, more)
    parser.add_argument("workdirs", nargs="+")
    parser.add_argument("--out", default="runs/table", help="folder of what is written; default: %(default)s")
    args = parser.parse_args(argv)
    from vlmx import report

    out = Path(args.out)
    try:
        command = " ".join(["python launch/table.py", *argv])
        results = summary(collect(args.workdirs, args.out), out.name, command)
        write_json(out / "results.json", results | {"created": time.strftime("%Y-%m-%d %H:%M:%S")})
        report.write(out)
    except UserError as e:
        print(f"\nerror: {e}", file=sys.stderr)
        return WRONG
    print(tables.text(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
