"""What a run writes while it runs: lines for people, a progress bar, metrics.jsonl and TensorBoard events.

In a run of several processes only the first one says or writes anything (call `jax.distributed.initialize` before).
"""

import json
import math
import os
import sys
import time
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from vlmx import files
from vlmx.errors import UserError

_START = time.monotonic()


def first_process():
    """Whether this process is the one that says and writes things."""
    return jax.process_index() == 0


def say(*what):
    """Print what is being done, after the minutes and seconds since the start, without tearing a progress bar."""
    if first_process():
        minutes, seconds = divmod(int(time.monotonic() - _START), 60)
        tqdm.write(f"{minutes:3d}:{seconds:02d}  {' '.join(map(str, what))}", file=sys.stdout)
        sys.stdout.flush()


class _Lines:
    """A stream for tqdm where there is no terminal: each drawing of the bar becomes a line of its own."""

    def write(self, text):
        text = text.strip()
        if text:
            sys.stderr.write(text + "\n")

    def flush(self):
        sys.stderr.flush()


def progress(total, what, *, start=0, unit="step"):
    """A tqdm bar with rate and time left: `.update(n)`, `.set_postfix(loss=...)`, `.close()`, or a `with` block.

    `start`: steps an earlier session has done, not counted in the rate. Without a terminal: a line every 20 s.
    """
    terminal = sys.stderr.isatty()
    every = 0.2 if terminal else 20.0
    bar = tqdm(
        total=total,
        initial=start,
        desc=what,
        unit=unit,
        mininterval=every,
        maxinterval=max(every, 10.0),
        file=sys.stderr if terminal else _Lines(),
        dynamic_ncols=terminal,
        ncols=None if terminal else 100,
        disable=not first_process(),
        leave=False,
    )
    return bar


def _key(row):
    return row.get("run"), row.get("tag"), row.get("seed"), row.get("step")


def read(workdir):
    """Rows of metrics.jsonl, oldest first; a last line cut short when the process was killed is left out."""
    path = Path(workdir) / "metrics.jsonl"
    if not os.path.lexists(path):
        return []
    advice = "Remove this line, or the whole file: it holds curves of trainings, which nothing rests on."
    lines = files.read_text(path, advice).split("\n")[:-1]  # what follows the last newline is not whole
    kind = {"run": (str, type(None)), "tag": str, "step": int, "seed": (int, type(None))}
    rows = [files.parse_json(line, f"{path}, line {n}", advice, kind) for n, line in enumerate(lines, 1)]
    for n, row in enumerate(rows, 1):
        odd = [name for name, value in row.items() if not isinstance(value, kind.get(name, (int, float, type(None))))]
        if odd:
            raise UserError(f"{path}, line {n}: {odd[0]!r} is {row[odd[0]]!r}, no number. {advice}")
    return rows


def curve(workdir, run, tag="train"):
    """Curve of `run` for results.json: {"step": [n], "seeds": [...], metric: [n][seeds]}; None: no value."""
    rows = [row for row in read(workdir) if row["run"] == run and row["tag"] == tag]
    steps = sorted({row["step"] for row in rows})
    seeds = sorted({row["seed"] for row in rows}, key=lambda seed: (seed is not None, seed))
    metrics = list(dict.fromkeys(name for row in rows for name in row if name not in ("run", "tag", "seed", "step")))
    at = {(row["step"], row["seed"]): row for row in rows}
    values = {name: [[at.get((step, seed), {}).get(name) for seed in seeds] for step in steps] for name in metrics}
    return {"step": steps, "seeds": seeds, **values}


def _writer_class():
    """tensorboardX's SummaryWriter, loaded without torch: where that is installed, it would be loaded for pictures of
    its graphs, which takes longer than everything else here."""
    other = sys.modules.get("torch", "not loaded")
    sys.modules["torch"] = None  # as if it were not installed
    try:
        from tensorboardX import SummaryWriter
    finally:
        del sys.modules["torch"]
        if other != "not loaded":
            sys.modules["torch"] = other
    return SummaryWriter


class Logs:
    """metrics.jsonl and TensorBoard events under `workdir`; a line: {"run", "tag", "seed", "step", name: value, ...}.

    A line is written whole and flushed, so killing the process loses nothing before it. A resumed run writes each
    (run, tag, seed, step) once: `begin` drops the rows after the step it goes on from.
    """

    def __init__(self, workdir):
        self.workdir, self.run, self.done, self.writers = Path(workdir), None, -1, {}
        self.first = first_process()
        if not self.first:
            return
        self.workdir.mkdir(parents=True, exist_ok=True)
        self._rewrite(read(workdir))

    def _rewrite(self, rows):
        self.written = {_key(row) for row in rows}
        files.write(self.workdir / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def begin(self, run, step=-1, seeds=None):
        """Start writing `run` (a name such as "coop-base_to_new"), going on after the rows of `step`.

        Its later rows are dropped; -1: all of them. `seeds`: only these go on, the others' rows stay.
        """
        self.close()
        self.run, self.done = run, step
        if self.first:
            redone = lambda row: row["run"] == run and row["step"] > step and (seeds is None or row["seed"] in seeds)
            self._rewrite([row for row in read(self.workdir) if not redone(row)])

    def write(self, step, values, *, tag="train", seed=None, run=None):
        """Log `values` (name -> scalar) at `step`. A value that is not finite is written as null: JSON has no NaN.

        `run`: of several that were begun, which one; None: the last.
        """
        run = run or self.run
        row = {"run": run, "tag": tag, "seed": None if seed is None else int(seed), "step": int(step)}
        if not self.first or _key(row) in self.written:
            return
        self.written.add(_key(row))
        values = {name: float(np.asarray(value)) for name, value in values.items()}
        line = json.dumps(row | {name: value if math.isfinite(value) else None for name, value in values.items()})
        with open(self.workdir / "metrics.jsonl", "a") as file:
            file.write(line + "\n")
        writer = self._writer(run, seed)
        for name, value in values.items():
            writer.add_scalar(f"{tag}/{name}", value, int(step))

    def _writer(self, run, seed):
        # A TensorBoard "run" per seed, so that its own smoothing and overlay work; purge_step hides what is redone.
        if (run, seed) not in self.writers:
            folder = self.workdir / "tensorboard" / str(run) / ("" if seed is None else f"seed{seed}")
            self.writers[run, seed] = _writer_class()(str(folder), purge_step=self.done + 1 if self.done >= 0 else None)
        return self.writers[run, seed]

    def close(self):
        for writer in self.writers.values():
            writer.close()
        self.writers = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
