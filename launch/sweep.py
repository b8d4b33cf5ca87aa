"""A sweep over several machines: a run for each benchmark (or each method of one), on hosts or as a Slurm array.

    python launch/sweep.py --configs configs/dtd.py,configs/eurosat.py --workdir /shared/sweep --hosts a,b
    python launch/sweep.py --configs ... --workdir /shared/sweep --slurm '--gpus 1 --time 8:00:00'

All options but these are those of `python -m vlmx.sweep`, which every run is. Runs that are finished are left out, so
that the same command again does what is missing. Without --hosts or --slurm the commands are printed. --hosts: over
ssh, a host's runs one after the other, in this folder, which the hosts share as they share --workdir; their output is
in <workdir>/<run>.log. `python launch/table.py <workdir>/*` then makes one table of all.
"""

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # behind an installed vlmx

from vlmx import sweep  # noqa: E402
from vlmx.errors import WRONG, UserError  # noqa: E402


def arguments(argv):
    """(own options, those of vlmx.sweep as argparse found them, the --config.<field>=<value>)."""
    parser = argparse.ArgumentParser(
        "launch/sweep.py", None, __doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--hosts", default="", help="names for ssh, with commas between")
    parser.add_argument("--slurm", help="options of launch/slurm.sh for each run, in one word")
    parser.add_argument("--split", choices=["benchmarks", "methods"], default="benchmarks", help="what is a run")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done")
    own, rest = parser.parse_known_args(argv)
    args, fields = sweep.arguments(rest)
    return own, args, fields


def expand(split, args, fields):
    """{name: command} of the runs that are not finished; everything checked that can be before one starts."""
    from configs import recipes
    from vlmx import settings

    methods = [*recipes.RECIPES] if args.methods == "all" else sweep.words(args.methods)
    left = {}
    for named in sweep.words(args.configs):
        for some in [methods] if split == "benchmarks" else [[m] for m in methods]:
            one = argparse.Namespace(**vars(args) | {"configs": named, "methods": ",".join(some)})
            runs = sweep.plan(one, fields)
            title = next(iter(runs.values())).title
            name = title if split == "benchmarks" else f"{title}-{some[0]}"
            folder = Path(args.workdir) / name
            if name in left:
                raise UserError(f"--configs: {named} and another make the same run, {name}; use a second sweep for it.")
            if all(settings.finished(config, folder / run, write=False) for run, config in runs.items()):
                print(f"{name}: finished", file=sys.stderr)
                continue
            command = [sys.executable, "-m", "vlmx.sweep", "--configs", named, "--methods", one.methods]
            for key in ("protocols", "shots", "seeds"):
                command += [f"--{key}", getattr(args, key)] if getattr(args, key) else []
            left[name] = [*command, "--workdir", str(folder), *fields]
    return left


def checked(own):
    """Return (host names, words of --slurm). UserError for what is neither."""
    hosts = [host.strip() for host in own.hosts.split(",")] if own.hosts else []
    if odd := [host for host in hosts if not re.fullmatch(r"[A-Za-z0-9_\[][A-Za-z0-9_.@:%\[\]-]*", host)]:
        raise UserError(f"--hosts: {odd[0]!r} is no name of a host; expected names with commas between, as in a,b.")
    try:
        options = shlex.split(own.slurm or "")
    except ValueError as e:
        raise UserError(f"--slurm {own.slurm!r}: {e}; expected options of launch/slurm.sh in one word.") from e
    if "--" in options:
        raise UserError(f"--slurm {own.slurm!r}: options of launch/slurm.sh alone; the runs are told by --configs.")
    return hosts, options


def refuse_control_characters(left):
    """UserError for a word of a run's command that a line of array.txt, or of a terminal, cannot hold."""
    for word in [word for command in left.values() for word in command]:
        if re.search(r"[\x00-\x1f\x7f]", word):
            raise UserError(f"{word!r}: a line break or another control character; leave it out.")


def on_hosts(hosts, left, workdir):
    """The ssh command of each host that has something to do: its share of the runs, one after the other."""
    start = shlex.quote(str(ROOT / "launch" / "start.sh"))
    for i, host in enumerate(hosts):
        own = [
            f"{start} {shlex.join(command)} > {shlex.quote(str(Path(workdir) / f'{name}.log'))} 2>&1"
            for name, command in list(left.items())[i :: len(hosts)]
        ]
        if own:
            yield ["ssh", "--", host, f"cd {shlex.quote(str(Path.cwd()))} && {{ {'; '.join(own)}; }}"]


def array(options, left, workdir):
    """The command of a Slurm array, a task for each run, and the list of commands that its tasks read."""
    path = Path(workdir) / "array.txt"
    number = 'case $SLURM_ARRAY_TASK_ID in "" | *[!0-9]*) exit 2 ;; esac'
    pick = f'{number}; eval "$(sed -n "$((10#$SLURM_ARRAY_TASK_ID + 1))p" {shlex.quote(str(path.resolve()))})"'
    submit = [str(ROOT / "launch" / "slurm.sh"), *options, "--array", f"0-{len(left) - 1}"]
    return [*submit, "--", "bash", "-c", pick], path, "".join(f"exec {shlex.join(c)}\n" for c in left.values())


def main(argv):
    """The command; returns the exit status."""
    own, args, fields = arguments(argv)
    try:
        hosts, options = checked(own)
        left = expand(own.split, args, fields)
        refuse_control_characters(left)
    except UserError as e:
        print(f"\nerror: {e}", file=sys.stderr)
        return WRONG
    if not left:
        return 0
    if own.slurm is not None:
        command, path, text = array(options, left, args.workdir)
        if own.dry_run:
            print(f"{path}:\n{text}\n{shlex.join(command)}")
            return 0
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return subprocess.run(command).returncode
    if hosts and not own.dry_run:
        Path(args.workdir).mkdir(parents=True, exist_ok=True)
        began = [subprocess.Popen(command) for command in on_hosts(hosts, left, args.workdir)]
        return max(process.wait() for process in began)
    commands = on_hosts(hosts, left, args.workdir) if hosts else left.values()
    print("\n".join(map(shlex.join, commands)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
