"""Optimisers and learning-rate schedules, with the numbers of the methods' published PyTorch code.

The rules come from optax; what is ours is the order in which they are chained (torch adds weight decay to the gradient
of SGD, Adam and Adadelta, and the rate multiplies the momentum buffer) and the published schedules. A schedule is a
pure function of the step, counted from 0.
"""

import inspect
import re

import jax.numpy as jnp
import numpy as np
import optax
from absl import logging

from vlmx import partition
from vlmx.errors import UserError, unknown


# ---- rules: gradient -> direction; `wd` is weight decay ----
def sgd(wd=5e-4, momentum=0.9):
    """torch.optim.SGD without dampening: buffer = momentum * buffer + (gradient + wd * parameter)."""
    return optax.chain(optax.add_decayed_weights(wd), optax.trace(momentum) if momentum else optax.identity())


def adadelta(wd=5e-4, rho=0.9, eps=1e-6):
    """torch.optim.Adadelta: eps inside both roots, decay added to the gradient."""
    return optax.chain(optax.add_decayed_weights(wd), optax.scale_by_adadelta(rho, eps))


def adam(wd=5e-4, b1=0.9, b2=0.999, eps=1e-8):
    """torch.optim.Adam: decay added to the gradient."""
    return optax.chain(optax.add_decayed_weights(wd), optax.scale_by_adam(b1, b2, eps))


def adamw(wd=0.01, b1=0.9, b2=0.999, eps=1e-8):
    """torch.optim.AdamW: decoupled decay (Loshchilov & Hutter, arXiv 1711.05101)."""
    return optax.chain(optax.scale_by_adam(b1, b2, eps), optax.add_decayed_weights(wd))


# ---- schedules: step -> rate ----
def dassl(lr, total, per_epoch, warmup=1, kind="constant", first=1e-5, recount=True, every=None, at=None, gamma=0.1):
    """Dassl's schedule: the rate changes once per epoch (Zhou et al.'s Dassl.pytorch; CoOp and its successors).

    Epoch e < `warmup`: `first` (kind "constant"), or `first` in epoch 0 and then lr * e / warmup (kind "linear").
    Afterwards, with t = e - warmup: lr / 2 * (1 + cos(pi * t / E)), over all E epochs: cut off before it reaches 0.
    Instead of the cosine, `every` n epochs or `at` a list of epochs the rate is multiplied by `gamma`.
    recount=False: t = e, scaled so that the decay still starts at lr.
    """
    if kind not in ("constant", "linear"):
        raise unknown("kind of warm-up", kind, ("constant", "linear"))
    epochs = -(-total // per_epoch)

    def decay(t):
        if every:
            return gamma ** (t // every)
        if at:
            return gamma ** (t >= jnp.asarray(at)).sum()
        return jnp.cos(jnp.pi / 2 * t / epochs) ** 2  # = (1 + cos(pi t / E)) / 2, and exact near 0

    def schedule(step):
        e = jnp.asarray(step) // per_epoch
        early = jnp.where(e == 0, first, lr * e / warmup) if kind == "linear" and warmup else first
        late = lr * (decay(e - warmup) if recount else decay(e) / decay(jnp.asarray(warmup)))
        return jnp.where(e < warmup, early, late)

    return schedule


def cosine(lr, total, per_epoch, warmup=0, end=0.0):
    """A cosine per step from `lr` to `end` at step `total` (Tip-Adapter-F to 0, CLIP-LoRA to 1e-6), after a linear
    rise over `warmup` steps (or "2 percent", "1 epoch": see `steps`) for pre-training."""
    warmup = steps(warmup, per_epoch, total=total)
    if warmup >= total:
        raise UserError(f"schedule cosine: warmup of {warmup} steps leaves nothing of the {total} steps")

    def schedule(step):
        t = jnp.clip((jnp.asarray(step) - warmup) / (total - warmup), 0, 1)
        rate = end + (lr - end) * jnp.cos(jnp.pi / 2 * t) ** 2
        return jnp.where(step < warmup, lr * (step + 1) / max(warmup, 1), rate)

    return schedule


def constant(lr, total, per_epoch):
    """The same rate at every step."""
    return lambda step: jnp.full(jnp.shape(step), lr)


OPTIMISERS = {f.__name__: f for f in (sgd, adadelta, adam, adamw)}
SCHEDULES = {f.__name__: f for f in (dassl, cosine, constant)}


def make(config, steps_per_epoch, total_steps, params):
    """The optimiser of a config, for one tree of trained parameters.

    Args:
      config: a mapping with `name` (sgd, adadelta, adam, adamw), `lr`, and optionally the options of that rule above
        (`wd`, `momentum`, ...), `schedule`: {"name": dassl | cosine | constant, its options}, default constant;
        `groups`: ordered rules (regex, {"lr": factor, any option of the rule}), with False for a part that stays as it
        is; `clip`: largest norm of the gradient of all groups together.
      steps_per_epoch, total_steps: int. params: the tree that the rules of `groups` are matched with.
    Returns: (optax transformation, schedule of the base rate). What each group took is logged.
    Raises: UserError for an unknown or missing name or option, and for rules that do not fit the parameters.
    """
    options = dict(config)
    if absent := {"name", "lr"} - options.keys():
        there = ", ".join(sorted(options)) or "nothing"
        raise UserError(f"the optimiser's config lacks {' and '.join(sorted(absent))}; it has {there}")
    name, lr, clip, groups = (options.pop(key, None) for key in ("name", "lr", "clip", "groups"))
    plan = dict(options.pop("schedule", None) or {"name": "constant"})
    kind = plan.pop("name", None)
    if name not in OPTIMISERS:
        raise unknown("optimiser", name, OPTIMISERS)
    if kind not in SCHEDULES:
        raise unknown("schedule", kind, SCHEDULES)
    _check(f"schedule {kind}", plan, SCHEDULES[kind], hidden=("lr", "total", "per_epoch"))
    _check(f"optimiser {name}", options, OPTIMISERS[name], extra=("name", "lr", "schedule", "groups", "clip"))
    schedule = SCHEDULES[kind](lr, total_steps, steps_per_epoch, **plan)

    def rule(over):
        if over is False:
            return optax.set_to_zero()
        over = dict(over)
        factor = over.pop("lr", 1.0)
        _check(f"a group of optimiser {name}", over, OPTIMISERS[name], extra=("lr",))
        direction = OPTIMISERS[name](**options | over)
        return optax.chain(direction, optax.scale_by_learning_rate(lambda step: factor * schedule(step)))

    if groups:
        labels, summary = partition.match(params, groups)
        logging.info("Groups of the optimiser:\n%s", summary)
        tx = optax.multi_transform({i: rule(over) for i, (_, over) in enumerate(groups)}, labels)
    else:
        tx = rule({})
    return (optax.chain(optax.clip_by_global_norm(clip), tx) if clip else tx), schedule


def rated(config, steps_per_epoch, total_steps, params):
    """`make`, for trainings that are one program and differ in their rate: a transformation, `init` of which takes
    (params, rate). The rate is a part of the state, where vmap finds each training's own.
    """

    def of(rate):
        return make({**config, "lr": rate}, steps_per_epoch, total_steps, params)[0]

    def init(params, rate):
        return {"rate": rate, "inner": of(rate).init(params)}

    def update(grads, state, params=None):
        updates, inner = of(state["rate"]).update(grads, state["inner"], params)
        return updates, {"rate": state["rate"], "inner": inner}

    return optax.GradientTransformation(init, update)


def steps(duration, per_epoch, batch=None, total=None):
    """A duration in steps: "20 epochs", "500 steps" (or a bare number), "100000 examples" (needs `batch`), "2 percent"
    (of `total` steps) -> int, rounded. UserError for anything else."""
    found = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*(epoch|step|example|percent|%|$)s?\s*", str(duration))
    size = {"epoch": per_epoch, "step": 1, "": 1, "example": batch and 1 / batch, "percent": total and total / 100}
    unit = found and size.get(found[2].replace("%", "percent"))
    if unit is None:
        raise UserError(f"{duration!r}: expected a number of steps, epochs, examples or percent, as in '20 epochs'")
    return round(float(found[1]) * unit)


def gaussian_weights(epochs, mean, std):
    """PromptSRC's weights of the parameters after each epoch (arXiv 2307.06948, section 3.2): a Gaussian over 1..E,
    divided by its sum -> [E] float64."""
    exponent = -0.5 * ((np.arange(1, epochs + 1) - mean) / std) ** 2
    density = np.exp(exponent - exponent.max())  # far from the mean all of them would be 0
    return density / density.sum()


def _check(what, options, function, hidden=(), extra=()):
    """UserError for the first option that is no argument of the function."""
    valid = [*(p for p in inspect.signature(function).parameters if p not in hidden), *extra]
    for option in options:
        if option not in valid:
            raise unknown(f"option of {what}", option, valid)
