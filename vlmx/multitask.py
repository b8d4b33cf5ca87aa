"""Training several tasks at once, a task per batch: losses as weights of tokens, the optimiser, a step.

Optimiser, clipping and schedule are those of VL-Adapter's code (Sung et al. 2022, arXiv 2112.06825). What belongs to
other tasks is left entirely alone in a step, its moments, decay and count of steps too: the step works on what the
task at hand trains (`variant.pick`) and writes it back, whatever the task, in one program.

Shape letters: B examples, T target tokens.
"""

import random
import re

import jax
import jax.numpy as jnp
import optax

from vlmx import finite, partition
from vlmx.variant import dressed, forward, pick, put

# In the published code a name with "bias" in it, and the norm of Hyperformer's network, are not decayed.
NO_DECAY = re.compile(r".*(bias|task_norm/scale).*")


# -------------------------------------------------------------------- mixing
def task_order(batches, epoch, temperature=1.0):
    """The task of each step of an epoch, a list of names: every batch of every task once, shuffled (the reference's
    order, for the same epoch).

    Args: batches: name -> number of batches, in the order of the tasks. temperature: tasks in proportion to
    batches ** (1 / temperature), as many steps in all; towards infinity all alike.
    """
    total, powers = sum(batches.values()), {k: n ** (1 / temperature) for k, n in batches.items()}
    share = total / sum(powers.values())
    names = [name for name, power in powers.items() for _ in range(max(round(share * power), 1))]
    random.Random(epoch).shuffle(names)
    return names[::-1]


# -------------------------------------------------------------------- losses
def token_losses(logits, labels):
    """Cross-entropies `(B, T)` of labels `(B, T)`, 0 where the label is -100."""
    ce = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    return jnp.where(labels < 0, 0.0, ce)


def token_weights(labels, score=None, by_token=False):
    """Weights `(B, T)` with which token losses sum up to a task's loss.

    The mean over an example's tokens, times its score `(B,)` if there is one, averaged over examples; or, by_token, the
    mean over all tokens of the batch.
    """
    real = (labels >= 0).astype(jnp.float32)
    if by_token:
        return real / jnp.maximum(real.sum(), 1)
    mean = real / jnp.maximum(real.sum(-1, keepdims=True), 1) / len(labels)
    return mean if score is None else mean * score[:, None]


# -------------------------------------------------------------------- the optimiser
def linear(lr, total, warmup):
    """The schedule step -> rate: from 0 up to `lr` over `warmup` steps, then down to 0 at step `total`."""

    def schedule(step):
        down = (total - step) / max(total - warmup, 1)
        return lr * jnp.clip(jnp.where(step < warmup, step / max(warmup, 1), down), 0, 1)

    return schedule


def moments(train, tasks):
    """The optimiser's state for a tree of `variant.start`: moments, and counts of steps, of each task where its own."""

    def part(tree, count):
        m, v = (jax.tree.map(jnp.zeros_like, tree) for _ in "mv")  # arrays of their own: a step may donate them
        return {"m": m, "v": v, "t": jnp.zeros(count, jnp.int32)}

    return {name: part(tree, (tasks,) if name == "own" else ()) for name, tree in train.items()}


def update(one, state, grads, rate, wd=0.01, b1=0.9, b2=0.999, eps=1e-6, clip=5.0):
    """One step of Adam with decoupled decay for what one task trains: (one, state, norm of the gradients).

    Two things differ from the usual form: eps is added before the correction of the second moment, and decay takes the
    updated value. Gradients are clipped to the norm `clip` together.
    """
    norm = optax.tree.norm(grads)
    grads = jax.tree.map(lambda g: g * jnp.minimum(1.0, clip / (norm + 1e-6)), grads)

    def part(tree, state, grads):
        t = state["t"] + 1
        m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state["m"], grads)
        v = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state["v"], grads)
        scale = rate * jnp.sqrt(1 - b2**t) / (1 - b1**t)
        names = jax.tree.unflatten(jax.tree.structure(tree), partition.paths(tree))

        def leaf(name, p, m, v):
            p = p - scale * m / (jnp.sqrt(v) + eps)
            return p if NO_DECAY.fullmatch(name) else p - rate * wd * p

        return jax.tree.map(leaf, names, tree, m, v), {"m": m, "v": v, "t": t}

    parts = {name: part(one[name], state[name], grads[name]) for name in one}
    return {k: p[0] for k, p in parts.items()}, {k: p[1] for k, p in parts.items()}, norm


def make_step(variant, schedule, skip=False, **settings):
    """The step `(state, model, batch, key) -> (state, metrics)`, pure; settings are those of `update`.

    skip: where the loss or a gradient is not finite, parameters and moments stay as they are, and only counts of steps
    go on; "bad" of the metrics says so, as finite.first does.

    state: {"train", "fixed" (variant.start), "opt" (moments), "step"}. batch: "task", a scalar; "ids" `(B, L)`;
    "labels" `(B, T)` and their "weight" `(B, T)`; where there are, "features" and "boxes" as VLSeq.visual takes them,
    and "real" as VLSeq.encode does. Batches of one shape share a program, whatever their task.
    """

    def step(state, model, batch, key):
        one, opt = pick(state["train"], batch["task"]), pick(state["opt"], batch["task"])
        k_model, k_own = (None, None) if key is None else jax.random.split(key)

        def objective(one):
            worn, into = dressed(variant, model, one, state["fixed"], k_own)
            vis = worn.visual(batch["features"], batch.get("boxes")) if "features" in batch else None
            logits = forward(worn, into, batch["ids"], vis, batch["labels"], k_model, batch.get("real"))
            return (token_losses(logits, batch["labels"]) * batch["weight"]).sum()

        loss, grads = jax.value_and_grad(objective)(one)
        bad, before = finite.first(loss, grads), (one, opt)
        one, opt, norm = update(one, opt, grads, schedule(state["step"]), **settings)
        if skip:
            one, opt = finite.kept(bad, before, (one, opt))
        train, opt = put(state["train"], one, batch["task"]), put(state["opt"], opt, batch["task"])
        state = {"train": train, "fixed": state["fixed"], "opt": opt, "step": state["step"] + 1}
        return state, {"loss": loss, "grad_norm": norm, "task": batch["task"], "bad": bad}

    return step
