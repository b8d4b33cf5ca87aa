"""The command: `python -m vlmx.main --config configs/<benchmark>.py[:method,...][,key=value,...] [--workdir DIR]`.

Any field of the config can be set: --config.shots=4, --config.recipe.coop.optimizer.lr=0.01.
"""

import ast
import importlib
import importlib.util
import os
import signal
import sys
import traceback
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from vlmx import fields
from vlmx.errors import PREEMPTED, WRONG, Unwritable, UserError, unknown, unwritable

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
    fields.check_top(config, "family", "title")
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
    try:
        processes.begin(coordinator, process, many)
    except UserError as e:
        print(f"\nerror: {e}", file=sys.stderr)
        sys.exit(WRONG)
    if not coordinator:  # else jax listens to it, on behalf of all processes
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(PREEMPTED))  # the steps save before they leave
    with processes.guard():
        try:
            work()
        except (Unwritable, OSError) as e:
            problem = unwritable(e, workdir) if isinstance(e, OSError) else e
            if problem is None:
                raise
            print(f"\nerror: {problem}", file=sys.stderr, flush=True)
            os._exit(WRONG)  # what still waits to be written would fail too, with a traceback each
        except UserError as e:
            print(f"\nerror: {e}", file=sys.stderr)
            sys.exit(WRONG)
        except KeyboardInterrupt:
            print(f"\ninterrupted; the same command goes on from the last checkpoint in {workdir}", file=sys.stderr)
            sys.exit(130)


def listing():
    """Return what can be run, a line each: the configs that load, the methods and the variants that they can name."""
    from vlmx import method, variant  # jax starts here

    def docline(path):
        return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]

    folder, package = Path("configs"), Path(__file__).parent
    paths = sorted(path for path in folder.glob("*.py") if is_config(path))
    lines = [f"  {path.stem:20s} {docline(path)}" for path in paths]
    if not lines:
        lines = [f"  none in {folder.resolve()}: start where configs/ is, or name a config by its path."]
    lines = ["configs (configs/*.py):", *lines, "methods (vlmx/methods/*.py):"]
    lines += [f"  {name:20s} {docline(package / 'methods' / f'{name}.py')}" for name in method.names()]
    lines += ["variants of the vision-and-language configs (vlmx/variants/*.py):"]
    for name, (file, hyper) in variant.PUBLISHED.items():
        settings = "".join(f"{key}={value}: " for key, value in hyper.items())
        lines += [f"  {name:20s} {settings}{docline(package / 'variants' / f'{file}.py')}"]
    return "\n".join(lines)


def is_config(path):
    """Whether a file is a config that loads."""
    try:
        if "def get_config" in path.read_text():
            load(str(path))
            return True
    except (UserError, OSError, UnicodeDecodeError):
        pass
    return False


def parse(argv):
    """Return what is no flag; a look at --config goes before, for its errors would end in a traceback."""
    config = None
    for name, value in fields.pairs(argv):
        if name == "config":
            config = load(value)
            fields.check_names(config, argv)
        elif name.startswith("config.") and config is None:
            raise UserError(f"--{name}: expected behind --config, as in --config configs/digits.py --{name}=VALUE.")
    return fields.parse(flags.FLAGS, argv, config)


def load(named):
    """Return the config of `configs/<benchmark>.py[:...]`.

    Raises:
        UserError: there is no such file, it is no config, its code fails, or it refuses what stands behind the colon.
    """
    name, colon, arg = named.partition(":")
    path = Path(name)
    if not name:
        raise UserError("--config: expected a file, as in --config configs/digits.py; --list shows what there is.")
    if path.is_dir() or not path.suffix == ".py" and path.exists():
        what = "a folder" if path.is_dir() else "no .py file"
        raise UserError(f"--config {name}: {what}; a config is a Python file with get_config(), as configs/digits.py.")
    if not path.is_file():
        beside = sorted(path.parent.glob("*.py")) if path.parent != Path() else Path("configs").glob("*.py")
        raise unknown("config", name, [other for other in beside if b"def get_config" in other.read_bytes()])
    sys.path.insert(0, str(path.resolve().parent.parent))  # configs import configs/common.py
    spec = importlib.util.spec_from_file_location("config", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not callable(getattr(module, "get_config", None)):
            raise UserError(f"--config {name}: it defines no get_config(), which returns the config.")
        config = module.get_config(*([arg] if colon else []))
    except UserError:
        raise
    except (Exception, SystemExit) as e:  # the code of a config is the person's
        raise UserError(f"--config {named}: {place_of(e, path)}{type(e).__name__}: {e}".rstrip(": ")) from e
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config {name}: expected a ConfigDict of get_config(); got {type(config).__name__}.")
    return config


def place_of(error, path):
    """Return "FILE, line N: " of an error in a config's code: the last line of that file, or of what it read."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: "
    frames = traceback.extract_tb(error.__traceback__)
    of_config = [frame for frame in frames if Path(frame.filename).resolve() == path.resolve()]
    return "".join(f"{frame.filename}, line {frame.lineno}: " for frame in of_config[-1:])


def command():
    """Entry of `python -m vlmx.main`: errors of the person's are told in a line, without a traceback."""
    try:
        if {arg.lstrip("-") for arg in sys.argv[1:]} & {"help", "helpshort", "h", "?", "helpfull"}:
            sys.modules["__main__"].__doc__ += "\n" + listing()
        app.run(main, flags_parser=parse)
    except UserError as e:
        print(f"\nerror: {e}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    command()
