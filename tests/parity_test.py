"""Every method held against its official implementation: features, logits, gradients and optimiser steps, in float32.

Tolerances are those of the reference vectors: 2e-5 of a tensor's largest value, 1e-4 for gradients. Adam divides a
gradient by its own size: where it is near zero a rounding of it turns the step around, on one processor and not on
another. After its steps each number has, beside that tolerance, what such a rounding can make of its own steps.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_cases import assert_close
from golden_tools import load_case, tokenizer

from vlmx import method as methods
from vlmx import optim, partition
from vlmx.errors import UserError
from vlmx.methods import clip_lora, coop, zero_shot
from vlmx.models.clip import Clip, cosine, normalize
from vlmx.modules import lora, prompts

FORWARD, GRADIENT = 2e-5, 1e-4


def task(case, model, path, templates=()):
    """The classes of a case as a method sees them, read by the cases' word-level tokenizer."""
    tokenize = tokenizer(path, model.config.text.context)
    return methods.Task(tuple(case["hyperparameters"]["classes"]), tuple(templates), (), tokenize)


def position(h, tensors, model):
    """A case's position by its name, or by the numbers of its layers, where the released code's lists (of 12 layers)
    were taken for a tower of another depth."""
    found = [m.groups() for name in tensors if (m := re.match(r"param/(vision|text)\.(\d+)\.", name))]
    here = {tower: sorted({int(i) for t, i in found if t == tower}) for tower in {t for t, _ in found}}
    try:
        if all(clip_lora.layers(h["position"], getattr(model.config, t).layers, t) == n for t, n in here.items()):
            return h["position"]
    except UserError:
        pass
    return tuple(sorted({i for numbers in here.values() for i in numbers}))


def batch_of(tensors):
    images = jnp.asarray(tensors["in/pixel_values"])
    label = jnp.asarray(tensors["in/labels"])
    return {"image": images, "label": label, "weight": jnp.ones(len(label))}


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


# -------------------------------------------------------------------- methods with tuned parameters
def prompts_in_both(h):
    return {
        "n_ctx_text": h.get("n_ctx_text", 0),
        "n_ctx_vision": h.get("n_ctx_vision", 0),
        "depth_text": h.get("prompt_depth_text", 0),
        "depth_vision": h.get("prompt_depth_vision", 0),
        "ctx_init": h["ctx_init"].removesuffix(" #."),
    }


# What a case's hyper-parameters are called in our make().
HYPER = {
    "coop": lambda h: {
        "n_ctx": h["n_ctx"],
        "ctx_init": h["ctx_init"],
        "class_token_position": h["class_token_position"],
        "csc": h["class_specific_context"],
    },
    "cocoop": lambda h: {"n_ctx": h["n_ctx"], "ctx_init": h["ctx_init"]},
    "clip_adapter": lambda h: {"ratio": h["ratio"], "reduction": h["reduction"]},
    "taskres": lambda h: {"alpha": h["residual_scale"]},
    "vpt": lambda h: {"n_ctx": h["n_ctx_vision"], "depth": h["prompt_depth_vision"]},
    "ivlp": prompts_in_both,
    "maple": lambda h: {"n_ctx": h["n_ctx"], "depth": h["prompt_depth"], "ctx_init": h["ctx_init"]},
    "clip_lora": lambda h: {
        "rank": h["rank"],
        "alpha": h["alpha"],
        "dropout": h["dropout_rate"],
        "maps": "".join(h["params"]),
        "towers": h["encoder"],
        "position": h["position"],
    },
    "promptsrc": lambda h: {
        **prompts_in_both(h),
        **{k: h[k] for k in ("gpa_mean", "gpa_std", "teacher_templates")},
        "text_weight": h["text_loss_weight"],
        "image_weight": h["image_loss_weight"],
    },
    "apex": lambda h: {**prompts_in_both(h), "beta": h["beta"], "threshold": h["threshold"]},
}

# Where a case's parameter lies in our tuned tree; {0} is a group of the regex, the group "layer" the slice of a stack.
PLACES = [
    (r"ctx", "ctx"),
    (r"meta_net\.linear1\.(weight|bias)", "meta_net/down/{0}"),
    (r"meta_net\.linear2\.(weight|bias)", "meta_net/up/{0}"),
    (r"adapter\.(down|up)\.weight", "{0}/weight"),
    (r"residual", "x"),
    (r"(text|vision)_prompt\.(?P<layer>\d+)", "{0}"),
    (r"vision_proj\.(?P<layer>\d+)\.(weight|bias)", "F/{1}"),
    (r"(vision|text)\.(?P<layer>\d+)\.([qkvo])\.([AB])", "{0}/{2}_{3}"),
    (r"text_adapter\.matrix", "adapter/W"),
    (r"text_adapter\.bias", "adapter/b"),
]


def place(name):
    """(path in our tree, layer or None, whether a matrix is stored transposed) of a case's parameter."""
    for regex, path in PLACES:
        if m := re.fullmatch(regex, name):
            layer = m.groupdict().get("layer")
            path = path.format(*m.groups()).replace("weight", "kernel")
            return path, layer and int(layer), name.endswith((".weight", ".A", ".B"))
    raise AssertionError(f"no place for the case's parameter {name}")


def ours(tensors, prefix, like):
    """Our tuned tree, of the structure and shapes of `like`, with the case's tensors `prefix/<name>`."""
    found = {}
    for name in (n.removeprefix(prefix) for n in tensors if n.startswith(prefix)):
        path, layer, turned = place(name)
        value = tensors[prefix + name]
        if not value.size:  # 0 vectors: ours has no such branch
            continue
        found.setdefault(path, {})[layer] = value.T if turned else value
    names, leaves = partition.paths(like), jax.tree.leaves(like)
    assert sorted(names) == sorted(found)
    stacks = [found[n][None] if None in found[n] else np.stack([found[n][i] for i in sorted(found[n])]) for n in names]
    filled = [jnp.asarray(a.reshape(b.shape)) for a, b in zip(stacks, leaves, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(like), filled)


class Reference:
    """A case's tensors, and which of them nothing has been compared with yet."""

    def __init__(self, tensors):
        self.tensors = tensors
        self.left = {n for n, a in tensors.items() if a.size and not n.startswith(("in/", "param/", "frozen/"))}

    def close(self, got, name, tol=FORWARD, slack=0):
        """Hold `got` to a tensor of the case, where it has it; slack: what each number may be off beyond `tol`."""
        if name not in self.tensors:
            return
        self.left.remove(name)
        want = self.tensors[name]
        got = np.reshape(got, want.shape)
        assert_close(got + np.clip(want - got, -slack, slack), want, tol, name)

    def tree(self, tree, prefix, tol=FORWARD, slack=None):
        """Our tuned tree against every parameter under `prefix`, in the case's own layout; slack: a tree of it."""
        if not any(n.startswith(prefix) for n in self.tensors):
            return
        leaves = dict(zip(partition.paths(tree), jax.tree.leaves(tree), strict=True))
        slack = slack or jax.tree.map(jnp.zeros_like, tree)
        slacks = dict(zip(partition.paths(tree), jax.tree.leaves(slack), strict=True))
        parameters = [n.removeprefix("param/") for n, a in self.tensors.items() if n.startswith("param/") and a.size]
        stacked = {}  # path -> the layers of its stack, in order
        for name in parameters:
            path, layer, _ = place(name)
            stacked[path] = sorted([*stacked.get(path, []), layer], key=lambda i: i or 0)
        for name in parameters:
            path, layer, turned = place(name)
            part = () if layer is None else stacked[path].index(layer)
            got, beyond = leaves[path][part], slacks[path][part]
            got, beyond = (got.T, beyond.T) if turned else (got, beyond)
            full = prefix + name
            if full not in self.tensors:  # only the first rows are kept of a large one, or (start values) nothing
                first = [n for n in self.left if n.startswith(full + ".rows_0_")]
                assert first or prefix == "init/", f"{full} is missing"
                for n in first:
                    rows = slice(int(n.rsplit("_", 1)[1]))
                    self.close(got[rows], n, tol, beyond[rows])
            else:
                self.close(got, full, tol, beyond)

    def outputs(self, out, prefix):
        """Everything under `prefix` that the method returns by the same name."""
        for name in [n for n in sorted(self.left) if n.startswith(prefix)]:
            if (key := name.removeprefix(prefix)) in out:
                self.close(out[key], name)


def official(h):
    """The optimiser of a case at its base rate, None where the case has none."""
    if "official" in h:  # CLIP-LoRA: a cosine per step to 1e-6
        o = h["official"]
        b1, b2 = o["betas"]
        cosine = {"name": "cosine", "end": 1e-6}
        return {"name": "adamw", "lr": o["lr"], "wd": o["weight_decay"], "b1": b1, "b2": b2, "schedule": cosine}
    if "optimizer" not in h:
        return None
    momentum = {} if h.get("momentum") is None else {"momentum": h["momentum"]}
    return {"name": h["optimizer"], "lr": h["lr"], "wd": h["weight_decay"]} | momentum | h.get("adadelta", {})


def turned_around(grad):
    """The share of a step of Adam that a rounding of the gradient can make; 2: the step goes the other way."""
    rounding = FORWARD * jnp.abs(grad).max()
    return jnp.minimum(2, rounding / jnp.maximum(jnp.abs(grad), 1e-30))


def moved(tx):
    """(parameters, state, gradients) -> (parameters, state) after a step of an optimiser."""

    def update(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return update


class Held(NamedTuple):
    """What the extra checks of a method may need."""

    method: methods.Method
    model: Clip
    task: methods.Task
    consts: dict
    v: dict
    batch: dict
    step: Callable  # (params, batch) -> (outputs in training, in evaluation, gradients)


@pytest.mark.golden(*(f"clip/{name}" for name in HYPER))
def test_golden_method(golden):
    case, tensors, model = load_case(golden)
    name, h, batch, ref = case["method"], case["hyperparameters"], batch_of(tensors), Reference(tensors)
    if name == "clip_lora":
        h = h | {"position": position(h, tensors, model)}
    method = methods.make(name, **HYPER[name](h))
    t = methods.Task(
        tuple(h.get("classes") or h["train_classes"]),
        tuple(h.get("templates") or [h.get("template") or "a photo of a {}."]),
        (),
        tokenizer(golden, model.config.text.context),
    )
    if name == "taskres":  # the released code keeps the "_" of class names, we do not: it gives the token ids
        ids = tensors["in/tokens"].swapaxes(0, 1).reshape(-1, model.config.text.context)
        t = t._replace(tokenize=lambda texts, what: ids)
    consts = method.setup(model, t)
    start = method.init(jax.random.key(0), model, consts, {})
    ref.tree(start["train"], "init/")
    v = {"train": ours(tensors, "param/", start["train"]), "fixed": start["fixed"]}

    def forward(params, batch, train):
        return method.apply({**v, "train": params}, model, consts, batch, None, train)

    @jax.jit
    def step(params, batch):
        def objective(params):
            out = forward(params, batch, True)
            loss, metrics = method.loss(out, batch)
            return loss, out | metrics | {"loss": loss}

        grads, out = jax.grad(objective, has_aux=True)(params)
        return out, forward(params, batch, False), grads

    out, out_eval, grads = step(v["train"], batch)
    ref.outputs(out, "out/train/")
    ref.outputs(out_eval, "out/eval/")
    ref.tree(grads, "grad/", GRADIENT)

    optimisers, steps = {"sgd3": optax.sgd(0.002)}, len(tensors.get("opt3/losses", range(3)))
    if official(h):
        optimisers["opt3"], schedule = optim.make(official(h), 1, steps, v["train"])
    for run, tx in optimisers.items():
        params, state, losses, update = v["train"], tx.init(v["train"]), [], jax.jit(moved(tx))
        slack = jax.tree.map(jnp.zeros_like, params)
        for _ in tensors.get(f"{run}/losses", range(steps)):
            out, _, grads = step(params, batch)
            params, state = update(params, state, grads)
            losses.append(out["loss"])
            if run == "opt3" and official(h)["name"].startswith("adam"):
                slack = jax.tree.map(lambda a, g: a + official(h)["lr"] * turned_around(g), slack, grads)
        ref.tree(params, f"{run}/", slack=slack)
        ref.close(jnp.stack(losses), f"{run}/losses")
    if "opt3/learning_rates" in tensors:
        ref.close(schedule(jnp.arange(steps)), "opt3/learning_rates")

    if name in MORE:
        MORE[name](ref, case, Held(method, model, t, consts, v, batch, step))
    assert not ref.left, f"nothing was compared with {sorted(ref.left)}"


# -------------------------------------------------------------------- what only one method's cases hold
def more_coop(ref, case, held):
    prompts = coop.assemble(held.v["train"]["ctx"], held.consts)
    name = "out/eval/prompts"
    if name in ref.tensors:
        ref.tensors[name] = ref.tensors[name][:, : prompts.shape[1]]  # ours end with the longest prompt
    ref.close(prompts, name)


def more_clip_lora(ref, case, held):
    h, model, train = case["hyperparameters"], held.model, held.v["train"]
    where, params = position(h, ref.tensors, model), dict(model.params)
    for tower, pairs in train.items():
        c = getattr(model.config, tower)
        layers = clip_lora.layers(where, c.layers, tower)
        updates = lora.LowRank(len(layers), c.width, h["rank"], tuple(h["params"])).apply({"params": pairs})
        scale = h["alpha"] / h["rank"] ** 0.5
        params[tower] = lora.merged(params[tower], lora.in_layers(updates, layers, c.layers), scale)
    plain = model.replace(params=params)
    consts = held.consts
    txt = consts["text"] if "text" in consts else plain.text(consts["emb"], consts["eot"])
    ref.close(cosine(plain.image(held.batch["image"]), txt), "out/eval/cosine")


def more_taskres(ref, case, held):
    ref.close(held.consts["base"], "out/base_text_features")


def more_promptsrc(ref, case, held):
    """The run with aggregation: some epochs of the same batches; the average takes the prompts' place at the end."""
    if "in/gpa_pixel_values" not in ref.tensors:
        return
    h, images = case["hyperparameters"], jnp.asarray(ref.tensors["in/gpa_pixel_values"].transpose(0, 1, 3, 4, 2))
    epochs, per_epoch = h["gpa_epochs"], len(images)
    ref.close(optim.gaussian_weights(epochs, h["gpa_mean"], h["gpa_std"]), "gpa/weights")
    plan = {"name": "dassl", "warmup": h["warmup_epoch"], "kind": h["warmup_type"], "first": h["warmup_cons_lr"]}
    total = epochs * per_epoch
    tx, schedule = optim.make(official(h) | {"schedule": plan}, per_epoch, total, held.v["train"])
    ref.close(schedule(per_epoch * jnp.arange(epochs)), "gpa/learning_rates")

    after = jax.jit(held.method.after, static_argnums=(2, 3))
    v, state, losses, ends, update = held.v, tx.init(held.v["train"]), [], [], jax.jit(moved(tx))
    for n in range(total):
        out, _, grads = held.step(v["train"], held.batch | {"image": images[n % per_epoch]})
        params, state = update(v["train"], state, grads)
        losses.append(out["loss"])
        if (n + 1) % per_epoch == 0:
            ends.append(params)
        v = after({**v, "train": params}, n, total, per_epoch)
    ref.close(jnp.stack(losses), "gpa/losses")
    for name in [n.removeprefix("param/") for n in ref.tensors if n.startswith("param/")]:
        path, layer, _ = place(name)
        ref.close(jnp.stack([end[path][layer] for end in ends]), f"gpa/trajectory/{name}")
    ref.tree(v["train"], "gpa/final/")
    ref.close(held.step(v["train"], held.batch)[1]["logits"], "gpa/eval_logits")


def more_apex(ref, case, held):
    """Evaluation on the training classes and on new ones, with the plain pre-trained model (ours) and with the released
    code's second copy, which carries random prompts: its features take the place of the pre-trained model's."""
    h, model, method, v = case["hyperparameters"], held.model, held.method, held.v

    def vectors(tower):
        names = [n for n in ref.tensors if n.startswith(f"frozen/temp_{tower}_prompt.")]
        names.sort(key=lambda n: int(n.rsplit(".", 1)[1]))
        return jnp.stack([ref.tensors[n] for n in names]) if names else None

    def copy_text(consts, tokens):  # deep prompts of the copy; its input embeddings are the hand-written words
        deep, ids = vectors("text"), jnp.asarray(tokens)
        if deep is None:
            return consts["plain"]
        theta = prompts.by_layer(jnp.concatenate([deep[:1], deep]), model.config.text.layers)
        return model.text(model.tokens(ids), model.eot(ids), prompts.behind_start, theta)

    copy_image = prompts.encode_image(model, held.batch["image"], vectors("vision"))
    new = held.task._replace(classnames=tuple(h["new_classes"]))
    consts_new = method.setup(model, new)
    trained = copy_text(held.consts, ref.tensors["in/tokens"])
    situations = {
        "eval_train": (held.consts, "in/tokens", copy_image),
        "eval_new": (consts_new, "in/new_tokens", copy_image),
        "eval_new_plain_temp": (consts_new, None, model.image(held.batch["image"])),
    }
    for prefix, (consts, tokens, images) in situations.items():
        prefix = f"out/{prefix}/"
        test, seen = consts["plain"], held.consts["plain"]
        if tokens:
            test, seen = copy_text(consts, ref.tensors[tokens]), trained
        if prefix + "distance_test_text_features" in ref.left:
            ref.close(test, prefix + "distance_test_text_features")
            ref.close(seen, prefix + "distance_train_text_features")
        ref.close(images, prefix + "image_features_temp")
        fed = held.batch | ({"features": images} if tokens else {})  # without, the method encodes the images itself
        tree = {**v, "fixed": {"trained_classes": seen}}
        out = jax.jit(method.apply, static_argnums=5)(tree, model, consts | {"plain": test}, fed, None, False)
        for side in ("image", "text"):
            out[f"final_{side}_features"] = normalize(out[f"final_{side}_features"])
        for name in ("diff_nn", "diff_avg"):  # 1 - cosine cancels: held absolutely
            if prefix + name not in ref.tensors:
                continue
            ref.left.remove(prefix + name)
            np.testing.assert_allclose(out[name], ref.tensors[prefix + name], rtol=0, atol=FORWARD)
        ref.outputs(out, prefix)


MORE = {
    "coop": more_coop,
    "taskres": more_taskres,
    "clip_lora": more_clip_lora,
    "promptsrc": more_promptsrc,
    "apex": more_apex,
}
