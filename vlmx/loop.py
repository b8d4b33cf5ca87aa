"""The loop around compiled steps: batches in, metrics out, checkpoints, an end in good order when told to stop."""

from collections.abc import Callable
from typing import Any, NamedTuple

from vlmx import checkpoint, finite, logs, shard
from vlmx.errors import PREEMPTED
from vlmx.logs import say


class Steps(NamedTuple):
    """The training of `run`, of which `done` steps of `total` are done, K in each call.

    call: (state, batches) -> (state, metrics `[K, S]`), compiled. note: (step, metrics `[K, S]`) -> None writes them
    down. seeds: what stands for each of the S columns in an error. every: steps between checkpoints; meta: what these
    say of themselves. skip: go on after a step whose loss or gradient is not finite, and which left the parameters
    alone. keep: (step, state, whether a checkpoint is due or only the end came) -> what the checkpoint holds.
    """

    run: str
    total: int
    K: int
    call: Callable
    note: Callable
    seeds: tuple
    checkpoints: Any
    every: int
    meta: dict
    skip: bool
    keep: Callable = lambda done, state, due: state


def divisor(total, most, done=0):
    """Steps of one call: the most, up to `most`, that divide both the steps `total` and those that are done."""
    return max(k for k in range(1, min(total, most) + 1) if total % k == done % k == 0)


def at_once(total, most, done=0):
    """Steps of one call, about `most`, where the last call may be shorter: a program of its own is compiled for that
    only where no divisor lies between half of `most` and twice as many."""
    near = [divisor(total, m, done) for m in (most, 2 * most)]
    return next((k for k in near if 2 * k >= most), min(total, most))


def go(steps, state, batches, done, mesh):
    """The state after all steps. UserError for a loss that is not finite; SystemExit where it is told to stop, with
    everything saved."""
    run, total, K, checkpoints = steps.run, steps.total, steps.K, steps.checkpoints
    with checkpoint.preemption() as told, logs.progress(total, run, start=done) as bar:
        for batch in batches:
            state, metrics = steps.call(state, batch)
            metrics = shard.gather(mesh, metrics)
            if metrics["bad"].any() and not steps.skip:
                checkpoint.finish(checkpoints)
                finite.refuse(run, done, steps.seeds, metrics["bad"], state["train"])
            made = len(metrics["bad"])
            done += made
            steps.note(done, metrics)
            bar.set_postfix(loss=f"{metrics['loss'].mean():.3f}", refresh=False)
            bar.update(made)
            leave = told(done // K) and done < total
            due = done % steps.every < K or done == total  # at the same steps however often it was stopped
            if due or leave:
                checkpoint.save(checkpoints, done, steps.keep(done, state, due), steps.meta)
            if leave:
                checkpoint.finish(checkpoints)
                say(f"{run}: told to stop, saved after step {done} of {total}; the same command goes on from there")
                raise SystemExit(PREEMPTED)
    checkpoint.finish(checkpoints)
    return state
