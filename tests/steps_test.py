"""What a step changes: one whose gradient is not finite leaves parameters and moments alone, and nothing else."""

import contract_test as contract
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vlmx import method as methods
from vlmx import optim
from vlmx.fit import train_steps
from vlmx.methods import promptsrc

TOTAL, PER_EPOCH, E = 6, 2, 3
PLAN = {"name": "dassl", "warmup": 1, "kind": "constant", "first": 0.01}


def averaged():
    """A linear method with PromptSRC's average of the epochs."""

    def init(key, model, consts, support):
        W = jnp.asarray(np.random.default_rng(0).normal(size=(E, 2)), jnp.float32)
        return {"train": {"W": W}, "fixed": {"average": {"W": jnp.zeros((E, 2))}}}

    def apply(v, model, consts, batch, rng, train):
        return {"logits": batch["features"] @ v["train"]["W"]}

    after = promptsrc.make(gpa_mean=2.0, gpa_std=1.0).after
    return methods.Method(apply=apply, init=init, after=after)


def xs(bad):
    """The batches of all steps, `[K, S, B, ...]` of one seed; those of the steps `bad` hold an infinity."""
    rng = np.random.default_rng(1)
    features = rng.normal(size=(TOTAL, 1, 4, E)).astype(np.float32)
    features[list(bad)] = np.inf
    label = rng.integers(0, 2, (TOTAL, 1, 4)).astype(np.int32)
    return {"features": features, "label": label, "weight": np.ones((TOTAL, 1, 4), np.float32)}


def trained(tx, bad, skip=True):
    """(the state after all steps, their metrics)."""
    method, model = averaged(), contract.backbone("vit")
    v = jax.tree.map(lambda a: a[None], method.init(None, model, {}, {}))
    state = {**v, "opt": jax.vmap(tx.init)(v["train"]), "step": jnp.zeros((), jnp.int32)}
    steps = train_steps(method, tx, TOTAL, PER_EPOCH, skip=skip)
    keys = jax.random.key(0)[None]
    return steps(state, model, {}, None, xs(bad), keys)


@pytest.mark.parametrize("bad", [(), (1,), (0, 1), (5,), (1, 3, 5)])
def test_the_average_of_the_epochs_goes_on_over_a_step_that_is_skipped(bad):
    """By hand: the gradient's steps but for those that are bad, an average that counts every epoch."""
    state, metrics = trained(optax.sgd(0.1), bad)
    assert (np.asarray(metrics["bad"])[:, 0] > 0).tolist() == [n in bad for n in range(TOTAL)]
    x, weights = xs(bad), optim.gaussian_weights(TOTAL // PER_EPOCH, 2.0, 1.0)
    W, average = averaged().init(None, None, {}, {})["train"]["W"], 0
    for n in range(TOTAL):

        def loss(W, n=n):
            logits = x["features"][n, 0] @ W
            return optax.softmax_cross_entropy_with_integer_labels(logits, x["label"][n, 0]).mean()

        W = W if n in bad else W - 0.1 * jax.grad(loss)(W)
        average += weights[n // PER_EPOCH] * W if (n + 1) % PER_EPOCH == 0 else 0
    np.testing.assert_allclose(state["train"]["W"][0], average, rtol=1e-5, atol=1e-6)


def test_the_rate_of_a_step_is_that_of_its_number_whatever_was_skipped():
    """What the log says, schedule(step), is what the step takes."""
    W = averaged().init(None, None, {}, {})["train"]
    tx, schedule = optim.make({"name": "sgd", "lr": 0.5, "wd": 0.0, "momentum": 0, "schedule": PLAN}, 2, TOTAL, W)
    grads, state, rates = jax.tree.map(jnp.ones_like, W), tx.init(W), []
    state_after = trained(tx, (0, 2))[0]["opt"]
    for _ in range(TOTAL):
        updates, state = tx.update(grads, state, W)
        rates.append(-float(updates["W"][0, 0]))
    np.testing.assert_allclose(rates, schedule(jnp.arange(TOTAL)), rtol=1e-6)
    counts = [int(a[0]) for a in jax.tree.leaves(state_after) if jnp.issubdtype(a.dtype, jnp.integer)]
    assert counts == [TOTAL]


@pytest.mark.parametrize("name", optim.OPTIMISERS)
def test_parameters_and_moments_are_those_before_a_skipped_step(name):
    W = averaged().init(None, None, {}, {})["train"]
    tx, _ = optim.make({"name": name, "lr": 0.1, "schedule": PLAN}, PER_EPOCH, 10 * TOTAL, W)
    model, method = contract.backbone("vit"), averaged()._replace(after=None)
    v = jax.tree.map(lambda a: a[None], method.init(None, model, {}, {}))
    state = {**v, "opt": jax.vmap(tx.init)(v["train"]), "step": jnp.zeros((), jnp.int32)}
    steps = train_steps(method, tx, TOTAL, PER_EPOCH, skip=True)
    run = lambda state, first, bad: steps(
        jax.tree.map(jnp.copy, state), model, {}, None, jax.tree.map(lambda a: a[first : first + 1], xs(bad)),
        jax.random.key(0)[None],
    )[0]  # fmt: skip
    before = run(state, 0, ())
    after = run(before, 1, (1,))
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        change = 1 if jnp.issubdtype(a.dtype, jnp.integer) else 0  # counts go on
        np.testing.assert_array_equal(np.asarray(a) + change, b)
    assert int(after["step"]) == 2
