"""The command: `python -m vlmx.main --config configs/<benchmark>.py[:method,...][,key=value,...] [--workdir DIR]`.

Any field of the config can be set: --config.shots=4, --config.recipe.coop.optimizer.lr=0.01.
"""

import inspect
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from vlmx.errors import UserError

flags.DEFINE_string("workdir", None, "Folder of the run; default runs/<the config's title>.")
flags.DEFINE_bool("list", False, "Show the benchmarks and the methods, and stop.")
config_flags.DEFINE_config_file("config", None, "configs/<benchmark>.py[:method,...][,key=value,...]", lock_config=True)


def main(argv):
    """Run what the flags ask for; exit status 2 with one message for an error of the person's."""
    if len(argv) > 1:
        print(f"unexpected argument {argv[1]!r}: flags start with --, as in --workdir={argv[1]}", file=sys.stderr)
        return 2
    if flags.FLAGS.list:
        print(listing())
        return 0
    config = flags.FLAGS.config
    if config is None:
        print("--config is missing, as in --config configs/digits.py; --list shows what there is.", file=sys.stderr)
        return 2
    logging.set_verbosity(logging.WARNING)  # orbax reports each of its threads at INFO
    from vlmx import pretrain, train  # jax starts here: --help and --list need not wait for it

    workdir = flags.FLAGS.workdir or Path("runs") / config.title
    try:
        (pretrain if config.family == "pretrain" else train).run(config, workdir)
    except UserError as e:
        print(f"\nerror: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\ninterrupted; the same command goes on from the last checkpoint in {workdir}", file=sys.stderr)
        return 130
    return 0


def listing():
    """The benchmarks (configs/*.py) and the methods (vlmx/methods/*.py), each with the first line of its docstring."""
    from vlmx import method

    lines = ["benchmarks (configs/*.py):"]
    for path in sorted(Path("configs").glob("*.py")):
        doc = inspect.cleandoc(path.read_text().split('"""')[1]) if '"""' in path.read_text() else ""
        if path.stem not in ("common", "recipes"):
            lines.append(f"  {path.stem:18s} {doc.splitlines()[0] if doc else ''}")
    lines.append("methods:")
    for name in method.names():
        doc = inspect.getdoc(__import__(f"vlmx.methods.{name}", fromlist=[name])) or ""
        lines.append(f"  {name:18s} {doc.splitlines()[0] if doc else ''}")
    return "\n".join(lines)


def command():
    """Entry of `python -m vlmx.main`: errors in the flags themselves are told in a line, too."""
    sys.path.insert(0, str(Path.cwd()))  # configs import configs/common.py
    try:
        app.run(main)
    except UserError as e:
        print(f"\nerror: {e}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    command()
