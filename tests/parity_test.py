"""Every method held against its official implementation: features, logits, gradients and optimiser steps, in float32.

Tolerances are those of the reference vectors: 2e-5 of a tensor's largest value, 1e-4 for gradients.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_cases import assert_close
from golden_tools import load_case, tokenizer

from vlmx import method as methods
from vlmx import optim
from vlmx.methods import coop, zero_shot

FORWARD, GRADIENT = 2e-5, 1e-4


def task(case, model, path, templates=()):
    """The classes of a case as a method sees them, read by the cases' word-level tokenizer."""
    tokenize = tokenizer(path, model.config.text.context)
    return methods.Task(tuple(case["hyperparameters"]["classes"]), tuple(templates), (), tokenize)


def batch_of(tensors):
    images = jnp.asarray(tensors["in/pixel_values"])
    label = jnp.asarray(tensors["in/labels"])
    return {"image": images, "label": label, "weight": jnp.ones(len(label))}


def descend(objective, params, tx, steps=3):
    """Parameters after some steps and the losses before each."""
    state, losses = tx.init(params), []
    for _ in range(steps):
        loss, grads = jax.value_and_grad(objective)(params)
        updates, state = tx.update(grads, state, params)
        params, losses = optax.apply_updates(params, updates), [*losses, loss]
    return params, jnp.stack(losses)


@pytest.mark.golden("clip/zero_shot", "clip/zero_shot_rn")
def test_golden_zero_shot(golden):
    case, tensors, model = load_case(golden)
    templates = case["hyperparameters"]["templates"]
    t = task(case, model, golden, templates)
    texts, what = methods.prompts(t, templates)
    ids = t.tokenize(texts, what).reshape(len(t.classnames), len(templates), -1).swapaxes(0, 1)
    np.testing.assert_array_equal(ids, tensors["in/tokens"])
    batch = batch_of(tensors)

    weights = zero_shot.class_weights(model, t, templates)
    assert_close(weights, tensors["out/eval/class_weights"], FORWARD, "class weights")
    per_template = jnp.stack([model.encode_text(jnp.asarray(rows)) for rows in ids])
    assert_close(per_template, tensors["out/eval/text_features_per_template"], FORWARD, "text features")
    assert_close(model.image(batch["image"]), tensors["out/eval/image_features"], FORWARD, "image features")

    method = zero_shot.make()
    out = method.apply({"train": {}, "fixed": {}}, model, method.setup(model, t), batch)
    assert_close(out["logits"], tensors["out/eval/logits"], FORWARD, "logits")
    assert_close(method.loss(out, batch)[0], tensors["out/eval/loss"], FORWARD, "loss")


@pytest.mark.golden("clip/coop")
def test_golden_coop(golden):
    case, tensors, model = load_case(golden)
    h, batch = case["hyperparameters"], batch_of(tensors)
    method = coop.make(
        n_ctx=h["n_ctx"],
        ctx_init=h["ctx_init"],
        class_token_position=h["class_token_position"],
        csc=h["class_specific_context"],
    )
    consts = method.setup(model, task(case, model, golden))
    v = method.init(jax.random.key(0), model, consts, {})
    assert v["train"]["ctx"].shape == tensors["param/ctx"].shape
    if "init/ctx" in tensors:
        assert_close(v["train"]["ctx"], tensors["init/ctx"], FORWARD, "start")
    params = {"ctx": jnp.asarray(tensors["param/ctx"])}

    @jax.jit
    def forward(params):
        return method.apply({"train": params, "fixed": {}}, model, consts, batch, None, True)

    def objective(params):
        return method.loss(forward(params), batch)[0]

    T = consts["emb"].shape[1]
    assembled = coop.assemble(params["ctx"], consts)
    assert_close(assembled, tensors["out/eval/prompts"][:, :T], FORWARD, "prompts")
    out = forward(params)
    for mode in ("train", "eval"):
        for name in ("logits", "image_features", "text_features"):
            assert_close(out[name], tensors[f"out/{mode}/{name}"], FORWARD, f"{mode} {name}")
    assert_close(objective(params), tensors["out/train/loss"], FORWARD, "loss")
    assert_close(jax.grad(objective)(params)["ctx"], tensors["grad/ctx"], GRADIENT, "gradient")

    official = {"name": h["optimizer"], "lr": h["lr"], "wd": h["weight_decay"], "momentum": h["momentum"]}
    for name, tx in (("sgd3", optax.sgd(h["lr"])), ("opt3", optim.make(official, 1, 3, params)[0])):
        after, losses = descend(objective, params, tx)
        assert_close(after["ctx"], tensors[f"{name}/ctx"], FORWARD, name)
        assert_close(losses, tensors[f"{name}/losses"], FORWARD, f"{name} losses")
