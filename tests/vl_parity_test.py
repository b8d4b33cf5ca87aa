"""T5 and BART with visual tokens, and every variant on them, held against the reference implementation, in float32.

Tolerances are those of the reference vectors' README.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import load
from vl_golden_tools import close, read

from vlmx import multitask, partition, variant
from vlmx.models import convert_seq, vlseq
from vlmx.models.vlseq import VLSeq

FORWARD = (2e-5, 2e-5)
LOSS = (5e-6, 5e-6)
TRAINED = (3e-6, 3e-6)


@pytest.mark.golden("vl/text_only")
def test_golden_text_only(golden):
    case, t = load(golden)
    config, params = convert_seq.read(golden)
    model = VLSeq(params, config)
    labels = jnp.asarray(t["in.target_ids"])
    memory, seen = model.encode(jnp.asarray(t["in.input_ids"]))
    states, _ = model.step(model.tokens(model.shift(labels)), memory, seen)
    close(memory, t["out.encoder_last_hidden_state"], *FORWARD, "encoder")
    close(states, t["out.decoder_last_hidden_state"], *FORWARD, "decoder")
    close(model.logits(states), t["out.logits"], *FORWARD, "logits")
    weights = multitask.token_weights(labels, by_token=True)
    loss = (multitask.token_losses(model.logits(states), labels) * weights).sum()
    close(loss, t["out.loss"], *LOSS, "loss")


@functools.partial(jax.jit, static_argnums=0)
def measure(tap, model, arrays, batch):
    """Outputs, and gradients of the loss by all weights of the backbone and by all that is inserted; compiled once for
    all variants that insert the same arrays."""

    def objective(params, arrays):
        worn = model.replace(params=params)
        into = variant.Insert(tap, *arrays)
        vis = worn.visual(batch["features"], batch["boxes"])
        logits = variant.forward(worn, into, batch["ids"], vis, batch["labels"])
        memory, _ = worn.encode(batch["ids"], vis, into.prompt, tap, into.theta.get("encoder"))
        tokens = multitask.token_losses(logits, batch["labels"])
        return (tokens * batch["weight"]).sum(), (vis, memory, logits, tokens)

    (loss, out), grads = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)(model.params, arrays)
    return loss, out, grads


def measured(c, one, batch):
    """(loss, outputs, gradients by the parts of v["train"]) for what one task trains."""
    model, into = variant.dressed(c.variant, c.model, one, c.v["fixed"])

    def arrays(parts):
        return c.variant.insert(partition.merge(*parts), model)[1:]

    made, back = jax.vjp(arrays, (one["own"], one["shared"]))
    loss, out, (by_params, by_arrays) = measure(into.tap, model, made, batch)
    ((own, shared),) = back(by_arrays)
    return loss, out, {"own": own, "shared": shared, "backbone": by_params}


update = jax.jit(functools.partial(multitask.update, clip=1.0))


VARIANTS = ("full", "*adapter*", "half_*", "hyperformer*", "*compacter*", "*lora", "*prompt*")


@pytest.mark.golden(*(f"vl/{name}" for name in VARIANTS))
def test_golden_variant(golden):
    c = read(golden)
    adapted = c.case["backbone"] == "t5" and "adapter" in str(c.case["trainable"])
    if adapted:  # the reference means to train T5's norms too, but does not
        c = read(golden, trains=(variant.VISUAL,))
    case, t = c.case, c.tensors
    trained = partition.count(c.v["train"])
    assert trained == case["trainable_parameters"]
    own = partition.count([c.v["train"]["own"], c.v["train"]["shared"]])
    assert vlseq.count(c.model.params) + own == case["total_parameters"]

    for number, task in enumerate(case["tasks"]):
        batch, T = c.batch(task)
        loss, (vis, memory, logits, tokens), grads = measured(c, variant.pick(c.v["train"], number), batch)
        close(loss, t[f"out.{task}.loss"], *LOSS, f"{task}: loss")
        close(logits[:, :T], t[f"out.{task}.logits"], *FORWARD, f"{task}: logits")
        for name, got in (("vis_embeds", vis), ("encoder_last_hidden_state", memory), ("token_loss", tokens[:, :T])):
            want = t.get(f"out.{task}.{name}")
            if want is not None:
                close(got.reshape(want.shape), want, *(LOSS if "loss" in name else FORWARD), f"{task}: {name}")
        if (want := t.get(f"out.{task}.pred_true")) is not None:
            at = logits[:, 0 if c.model.config.family == "t5" else 1]
            np.testing.assert_array_equal(at[:, case["true_id"]] > at[:, case["false_id"]], want)
        names = [name for name in t if name.startswith(f"grad.{task}.")]
        assert bool(names) == case["per_task"][task]["grad"]
        for name in names:
            got = c.take(grads, name.removeprefix(f"grad.{task}."))
            close(got, t[name], 5e-6 + 5e-5 * np.abs(t[name]).max(), 0, name)

    train, state = c.v["train"], multitask.moments(c.v["train"], len(case["tasks"]))
    plan = case["train_steps"]
    schedule = multitask.linear(plan["lr"], plan["total_steps"], plan["warmup_steps"])
    for n, step in enumerate(plan["steps"]):
        number = case["tasks"].index(step["task"])
        one = variant.pick(train, number)
        loss, _, grads = measured(c, one, c.batch(step["task"])[0])
        grads["backbone"], _ = variant.split(grads["backbone"], c.variant.trains)
        close(loss, step["loss"], 2e-5, 2e-5, f"step {n}: loss")
        close(schedule(n), step["lr"], 0, 1e-6, f"step {n}: rate")
        one, opt, norm = update(one, variant.pick(state, number), grads, schedule(n))
        close(norm, step["grad_norm_before_clip"], 0, 1e-4, f"step {n}: norm")
        train, state = variant.put(train, one, number), variant.put(state, opt, number)
    for name in (name for name in t if name.startswith("train.")):
        close(c.take(train, name.removeprefix("train.")), t[name], *TRAINED, name)
