"""The command: `python -m vlmx.main --config configs/<benchmark>.py[:method,...][,key=value,...] [--workdir DIR]`.

Any field of the config can be set: --config.shots=4, --config.recipe.coop.optimizer.lr=0.01.
"""

import ast
import errno
import importlib
import importlib.util
import os
import signal
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from vlmx.errors import PREEMPTED, WRONG, Unwritable, UserError, unknown

# config.family -> the module whose `run` makes it
RUNS = {"classification": "train", "vl": "vl", "pretrain": "pretrain", "pretrain_text": "pretrain_text"}

flags.DEFINE_string("workdir", None, "Folder of the run; default runs/<the config's title>.")
flags.DEFINE_string("coordinator", None, "Several processes: host:port of the first; 'auto' on a TPU pod, under Slurm.")
flags.DEFINE_integer("process", None, "Several processes, not 'auto': the number of this one, from 0.")
flags.DEFINE_integer("processes", None, "Several processes, not 'auto': how many there are.")
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
    let_batch_hold(config, config_flags.get_override_values(flags.FLAGS["config"]))
    workdir = flags.FLAGS.workdir or Path("runs") / config.title

    def work():
        importlib.import_module(f"vlmx.{RUNS[config.family]}").run(config, workdir)

    guarded(work, workdir, flags.FLAGS.coordinator, flags.FLAGS.process, flags.FLAGS.processes)
    return 0


def guarded(work, workdir, coordinator=None, process=None, many=None):
    """`work()` as one of `many` processes, or alone; what ends it early ends in a message and an exit code."""
    for stream in (sys.stdout, sys.stderr):  # names of files and classes may hold what the terminal cannot show
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    logging.set_verbosity(logging.WARNING)  # orbax reports each of its threads at INFO
    from vlmx import processes  # jax starts here: --help and --list need not wait for it

    # Where one of tensorstore's files cannot be written, the others find that orbax waits for them no more.
    other = sys.unraisablehook
    sys.unraisablehook = lambda args: None if str(args.exc_value) == "Event loop is closed" else other(args)
    processes.begin(coordinator, process, many)
    if not coordinator:  # else jax listens to it, on behalf of all processes
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(PREEMPTED))  # the steps save before they leave
    with processes.guard():
        try:
            work()
        except (Unwritable, OSError) as e:
            if isinstance(e, OSError):
                if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM):
                    raise
                e = Unwritable(e.filename or workdir, e.strerror)
            print(f"\nerror: {e}", file=sys.stderr, flush=True)
            os._exit(WRONG)  # what still waits to be written would fail too, with a traceback each
        except UserError as e:
            print(f"\nerror: {e}", file=sys.stderr)
            sys.exit(WRONG)
        except KeyboardInterrupt:
            print(f"\ninterrupted; the same command goes on from the last checkpoint in {workdir}", file=sys.stderr)
            sys.exit(130)


def listing():
    """The benchmarks (configs/*.py) and the methods (vlmx/methods/*.py), each with the first line of its docstring."""

    def lines(folder, hidden=()):
        for path in sorted(folder.glob("*.py")):
            doc = ast.get_docstring(ast.parse(path.read_text())) or ""
            if path.stem not in hidden and doc:
                yield f"  {path.stem:18s} {doc.splitlines()[0]}"

    benchmarks = lines(Path("configs"), hidden=("common", "recipes", "vl_common"))
    found = ["configs (configs/*.py):", *benchmarks]
    for folder, what in (("methods", "methods"), ("variants", "variants of the vision-and-language configs")):
        found += [f"{what} (vlmx/{folder}/*.py):", *lines(Path(__file__).parent / folder, hidden=("__init__",))]
    return "\n".join(found)


def parse(argv):
    """absl's parsing of the flags, after a look at --config whose errors absl would tell in a traceback."""
    for i, arg in enumerate(argv):
        name, equals, value = arg.lstrip("-").partition("=")
        if name == "config" and arg.startswith("-"):
            check_fields(load(value if equals else " ".join(argv[i + 1 : i + 2])), argv)
    return app.parse_flags_with_usage(argv)


def load(named):
    """The config of `configs/<benchmark>.py[:...]`. UserError where there is no such file or it refuses the rest."""
    path, colon, arg = named.partition(":")
    path = Path(path)
    if not path.is_file():
        beside = sorted(path.parent.glob("*.py")) or Path("configs").glob("*.py")
        raise unknown("config", str(path), beside)
    sys.path.insert(0, str(path.resolve().parent.parent))  # configs import configs/common.py
    spec = importlib.util.spec_from_file_location("config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*([arg] if colon else []))


def let_batch_hold(config, changed):
    """Let a batch that a person sets hold for all tasks: sizes of single tasks stay only where they are set as well.

    Args:
        config: changed in place, where it has `batches`.
        changed: names of the fields that the command line sets.
    """
    if "batches" in config and "batch" in changed and "batches" not in changed:
        config.batches = {task: n for task, n in config.batches.items() if f"batches.{task}" in changed}


def check_fields(config, argv):
    """UserError for a --config.<field> that the config does not have, naming the nearest."""
    for arg in argv:
        if arg.startswith(("--config.", "-config.")):
            node, path = config, arg.partition("=")[0].partition("config.")[2]
            for field in path.split("."):
                field = field.partition("[")[0]
                if field not in node:
                    raise unknown(f"field config.{path}:", field, node.keys())
                node = node[field] if hasattr(node[field], "keys") else {}


def command():
    """Entry of `python -m vlmx.main`: errors of the person's are told in a line, without a traceback."""
    sys.modules["__main__"].__doc__ += "\n" + listing()  # for --help
    try:
        app.run(main, flags_parser=parse)
    except UserError as e:
        print(f"\nerror: {e}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    command()
