"""Losses and gradients that are not numbers: found inside the step, named outside. K steps, S seeds."""

import jax
import jax.numpy as jnp
import numpy as np

from vlmx import partition
from vlmx.errors import UserError


def first(loss, grads):
    """0 where all is finite, 1 where the loss is not, else 2 + the number of the first leaf of `grads` that is not."""
    broken = jnp.stack([~jnp.isfinite(a).all() for a in (loss, *jax.tree.leaves(grads))])
    return jnp.where(broken.any(), 1 + broken.argmax(), 0)


def kept(bad, before, after):
    """A state after a step, or where that was `bad` its arrays of numbers `before` it; counts (integers) go on."""
    return jax.tree.map(lambda a, b: jnp.where(bad, a, b) if jnp.issubdtype(b.dtype, jnp.inexact) else b, before, after)


def refuse(run, done, seeds, bad, train):
    """UserError for the first step after `done` that `first` found bad `[K, S]`; `train`: the tuned tree."""
    if not bad.any():
        return
    k = int((bad > 0).any(axis=1).argmax())
    names = ["", "loss", *(f"the gradient of {path}" for path in partition.paths(train))]
    which = {i: [seed for seed, j in zip(seeds, bad[k].tolist()) if j == i] for i in sorted({*bad[k].tolist()} - {0})}
    said = ", ".join(f"{names[i]} is not finite for seed(s) {found}" for i, found in which.items())
    raise UserError(
        f"{run}: {said} at step {done + k + 1}. The last checkpoint is kept. A lower learning rate or "
        "model.dtype=float32 usually helps; --config.nonfinite=skip leaves such steps out and counts them."
    )


def means(metrics, bad):
    """The metrics `[K, S]` averaged over the steps that were not bad -> `[S]`, NaN where all were; and how many were
    left out, if any."""
    fine = (bad == 0).sum(axis=0)
    sums = {name: np.where(bad == 0, values, 0).sum(axis=0) for name, values in metrics.items()}
    out = {name: np.where(fine, total / np.maximum(fine, 1), np.nan) for name, total in sums.items()}
    return out | ({"skipped": (bad > 0).sum(axis=0)} if bad.any() else {})
