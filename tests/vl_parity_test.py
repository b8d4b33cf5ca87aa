"""T5 and BART with visual tokens, and every variant on them, held against the reference implementation, in float32.

Tolerances are those of the reference vectors' README.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import OWN, load
from safetensors.numpy import save_file
from vl_golden_tools import close, pad, read

from vlmx import multitask, partition, variant
from vlmx.generate import generate, which
from vlmx.models import convert_seq, vlseq
from vlmx.models.vlseq import Generation, VLSeq

FORWARD = (2e-5, 2e-5)
LOSS = (5e-6, 5e-6)
TRAINED = (3e-6, 3e-6)
RATE, NORM = (0, 1e-6), (0, 1e-4)
VARIANTS = ("full", "*adapter*", "half_*", "hyperformer*", "*compacter*", "*lora", "*prompt*")


@pytest.mark.golden("vl/text_only")
def test_golden_text_only(golden):
    case, t = load(golden)
    config, params = convert_seq.read(golden)
    model = VLSeq(params, config)
    memory, seen = model.encode(jnp.asarray(t["in.input_ids"]))
    if "in.target_ids" in t:
        labels = jnp.asarray(t["in.target_ids"])
        states, _ = model.step(model.tokens(model.shift(labels)), memory, seen)
        logits, weights = model.logits(states), multitask.token_weights(labels, by_token=True)
        loss = (multitask.token_losses(logits, labels) * weights).sum()
        outputs = {"decoder_last_hidden_state": states, "logits": logits, "loss": loss}
    else:
        outputs = {}
    outputs["encoder_last_hidden_state"] = memory
    for name in outputs.keys() & {k.removeprefix("out.") for k in t}:
        close(outputs[name], t[f"out.{name}"], *(LOSS if name == "loss" else FORWARD), name)
    for name, plan in case.get("generation", {}).items():
        ids, score = generate(model, jnp.asarray(t["in.input_ids"]), how=how(model, plan))
        np.testing.assert_array_equal(ids, pad(t[f"gen.{name}"], plan["max_length"], config.pad), name)
        assert "scores" not in plan or close(score, plan["scores"], *FORWARD, name) is None


def how(model, plan):
    """The Generation of a case. With beams, the reference forces BART's end token at the last position."""
    options = {"length_penalty": "length_penalty", "early_stopping": "early_stopping"}
    options |= {"no_repeat_ngram": "no_repeat_ngram_size", "beams": "num_beams", "max_length": "max_length"}
    options = {ours: plan[theirs] for ours, theirs in options.items() if theirs in plan}
    return Generation(**options, force_end=model.config.family == "bart" and plan["num_beams"] > 1)


@functools.partial(jax.jit, static_argnums=0)
def measure(tap, model, arrays, batch):
    """Outputs, and gradients of the loss by all weights of the backbone and by all that is inserted; compiled once for
    all variants that insert the same arrays."""

    def objective(params, arrays):
        worn = model.replace(params=params)
        into = variant.Insert(tap, *arrays)
        vis = worn.visual(batch["features"], batch["boxes"])
        logits = variant.forward(worn, into, batch["ids"], vis, batch["labels"], None, batch["real"])
        memory, _ = worn.encode(batch["ids"], vis, into.prompt, tap, into.theta.get("encoder"), None, batch["real"])
        tokens = multitask.token_losses(logits, batch["labels"])
        return (tokens * batch["weight"]).sum(), (vis, memory, logits, tokens)

    (loss, out), grads = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)(model.params, arrays)
    return loss, out, grads


def measured(c, one, batch):
    """(loss, outputs, gradients by the parts of v["train"]) for what one task trains."""
    model, into = variant.dressed(c.variant, c.model, one, c.v["fixed"])

    parts = one["own"], one["shared"]
    made = _insert(c.variant.insert, model, parts)
    loss, out, (by_params, by_arrays) = measure(into.tap, model, made, batch)
    own, shared = _insert_back(c.variant.insert, model, parts, by_arrays)
    return loss, out, {"own": own, "shared": shared, "backbone": by_params}


def _insert(insert, model, parts):
    return insert(partition.merge(*parts), model)[1:]


_insert = jax.jit(_insert, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def _insert_back(insert, model, parts, cotangents):
    return jax.vjp(lambda parts: _insert(insert, model, parts), parts)[1](cotangents)[0]


@pytest.mark.golden(*(f"vl/{name}" for name in VARIANTS))
def test_golden_variant(golden):
    c = read(golden)
    case, t = c.case, c.tensors
    trained = partition.count(c.v["train"])
    assert trained == case.get("trainable_parameters", trained)
    total = vlseq.count(c.model.params) + partition.count([c.v["train"]["own"], c.v["train"]["shared"]])
    assert total == case.get("total_parameters", total)

    for task in case["tasks"]:
        batch, T = c.batch(task)
        loss, (vis, memory, logits, tokens), grads = measured(c, c.one(task), batch)
        visual = memory.shape[1] - vis.shape[1]  # where prompts and text, which is padded, end
        padding = batch["ids"].shape[1] - t[f"in.{task}.input_ids"].shape[1]
        memory = jnp.delete(memory, slice(visual - padding, visual), axis=1)
        outputs = {"loss": loss, "logits": logits[:, :T], "token_loss": tokens[:, :T], "vis_embeds": vis}
        outputs["encoder_last_hidden_state"] = memory
        for name, got in outputs.items():
            want = t.get(f"out.{task}.{name}")
            if want is not None:
                got = got.reshape(want.shape) if "loss" in name else got[:, : want.shape[1]]
                close(got, want, *(LOSS if "loss" in name else FORWARD), f"{task}: {name}")
        if (want := t.get(f"out.{task}.pred_true")) is not None:
            at = logits[:, 0 if c.model.config.family == "t5" else 1]
            np.testing.assert_array_equal(at[:, case["true_id"]] > at[:, case["false_id"]], want)
        names = [name for name in t if name.startswith(f"grad.{task}.")]
        assert bool(names) == case.get("per_task", {}).get(task, {}).get("grad", bool(names))
        for name in names:
            got = c.take(grads, name.removeprefix(f"grad.{task}."))
            close(got, t[name], 5e-6 + 5e-5 * np.abs(t[name]).max(), 0, name)

    train, state = c.v["train"], multitask.moments(c.v["train"], len(case["tasks"]))
    plan = case.get("train_steps", {"steps": (), "lr": 0.0, "total_steps": 1, "warmup_steps": 0})
    schedule = multitask.linear(plan["lr"], plan["total_steps"], plan["warmup_steps"])
    rule = {"wd": "weight_decay", "eps": "adam_eps", "clip": "clip_grad_norm"}
    rule = {"clip": 1.0} | {ours: plan[theirs] for ours, theirs in rule.items() if theirs in plan}
    rule |= dict(zip(("b1", "b2"), plan.get("betas", ())))
    for n, step in enumerate(plan["steps"]):
        number = case["tasks"].index(step["task"])
        one = variant.pick(train, number)
        loss, _, grads = measured(c, one, c.batch(step["task"])[0])
        grads["backbone"], _ = variant.split(grads["backbone"], c.variant.trains)
        # op by op: the cases have the same shapes but for few, so that this compiles less than a program for each
        one, opt, norm = multitask.update(one, variant.pick(state, number), grads, schedule(n), **rule)
        for name, got, tol in (("loss", loss, LOSS), ("lr", schedule(n), RATE), ("grad_norm_before_clip", norm, NORM)):
            assert name not in step or close(got, step[name], *tol, f"step {n}: {name}") is None
        train, state = variant.put(train, one, number), variant.put(state, opt, number)
    for name in (name for name in t if name.startswith("train.")):
        close(c.take(train, name.removeprefix("train.")), t[name], *TRAINED, name)

    for name, plan in case.get("generation", {}).items():
        if name.endswith(".beam5") and f"{name}_checkpoint_settings" in case["generation"] and case["method"] != "full":
            continue  # the same search with fewer rules
        task = name.split(".")[0]
        model, into = variant.dressed(c.variant, c.model, c.one(task), c.v["fixed"])
        batch, _ = c.batch(task)
        vis = model.visual(batch["features"], batch["boxes"])
        ids, score = generate(model, batch["ids"], vis, how(model, plan), into, real=batch["real"])
        want = pad(t[f"gen.{name}"], plan["max_length"], model.config.pad)
        np.testing.assert_array_equal(ids, want, name)
        assert "scores" not in plan or close(score, plan["scores"], *FORWARD, name) is None
    if case["method"] == "full" and "out.nlvr.pred_true" in t:  # two images, and a choice between two words
        batch, _ = c.batch("nlvr")
        vis, words = c.model.visual(batch["features"], batch["boxes"]), (case["false_id"], case["true_id"])
        given = () if c.model.config.family == "t5" else (case["config"]["bos_token_id"],)
        np.testing.assert_array_equal(which(c.model, batch["ids"], vis, words, given), t["out.nlvr.pred_true"])


def test_batches_are_as_long_as_the_longest_texts_of_a_case(tmp_path):
    """Of a golden case with longer texts and answers, and without what not every case has."""
    folder = OWN / "vl" / "t5_video_single_adapter"
    case, tensors = load(folder)
    for name in [n for n in tensors if n.startswith("in.")]:
        if name.endswith(("input_ids", "target_ids")):
            tensors[name] = np.concatenate([tensors[name]] * (2 if "tvqa" in name else 1), axis=1)
        elif name.endswith("boxes"):
            del tensors[name]
    for key in ("trainable_parameters", "total_parameters", "per_task", "generation", "add_adapter_cross_attn"):
        case.pop(key, None)
    (tmp_path / "case.json").write_text(json.dumps(case))
    save_file(tensors, tmp_path / "tensors.safetensors")
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    c = read(tmp_path)
    for task in case["tasks"]:
        batch, length = c.batch(task)
        assert batch["ids"].shape == (3, 14) and batch["labels"].shape == (3, 10) and batch["boxes"] is None
        assert length == tensors[f"in.{task}.target_ids"].shape[1]
        assert (batch["labels"][:, length:] == -100).all()
