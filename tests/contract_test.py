"""What every method gets tested on: one table, a row per method. A new method adds a row.

Backbones are small and random, of different widths and depths; data are random; what is held is the machinery.
"""

import dataclasses
import functools
import math
import os
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_tools import tokenizer

from vlmx import checkpoint, evaluate, partition, shard
from vlmx import method as methods
from vlmx.errors import UserError
from vlmx.fit import train_steps
from vlmx.models.clip import Clip, ClipConfig, ResNet, Text, ViT, param_shapes

METHODS = {
    "zero_shot": ("zero_shot", {}),
    "zero_shot_ensemble": ("zero_shot", {"templates": "ensemble"}),
    "linear_probe": ("linear_probe", {"max_iter": 50}),
    "coop": ("coop", {"n_ctx": 3}),
    "coop_words": ("coop", {"ctx_init": "a photo of a", "class_token_position": "middle"}),
    "coop_csc": ("coop", {"n_ctx": 3, "csc": True, "class_token_position": "front"}),
    "cocoop": ("cocoop", {"microbatch": 8}),
    "clip_adapter": ("clip_adapter", {}),
    "taskres": ("taskres", {}),
    "tip_adapter": ("tip_adapter", {"search_step": (5, 4)}),
    "tip_adapter_f": ("tip_adapter_f", {"search_step": (5, 4)}),
    "xmadapter": ("xmadapter", {"text_cache": "templates", "search_step": (5, 4)}),
    "vpt": ("vpt", {"n_ctx": 3}),
    "ivlp": ("ivlp", {"n_ctx_text": 5, "depth_text": 1}),
    "maple": ("maple", {}),
    "clip_lora": ("clip_lora", {}),
    "promptsrc": ("promptsrc", {"teacher_templates": 3}),
    "apex": ("apex", {}),
    "full": ("full", {}),
    "coop_ensemble": ("coop+ensemble", {"coop": {"n_ctx": 3}}),
    "parts": ("vpt+clip_lora+text_adapter", {"vpt": {"n_ctx": 2}, "clip_lora": {"dropout": 0.0}}),
}
TEXT = {"context": 20, "vocab": 512, "bos": 510, "eot": 511}
CONFIGS = {
    "vit": ClipConfig(24, ViT(32, 2, 1, 64, image_size=16, patch=8), Text(32, 2, 1, 64, **TEXT)),
    "vit_deep": ClipConfig(40, ViT(48, 3, 2, 96, image_size=24, patch=6), Text(24, 4, 2, 48, act="gelu", **TEXT)),
    "resnet": ClipConfig(16, ResNet(32, 4, (1, 1, 1, 1), 2), Text(32, 2, 1, 64, **TEXT)),
}
CLASSES = ("cat", "oak tree", "sports_car", "dog")
OTHERS = ("red bird", "boat", "clock")
SEEDS = (1, 2)
ONE = {"seed": 1, "data": 1, "fsdp": 1, "tensor": 1}
MESHES = {
    "8x1": {"data": 8},
    "4x2": {"data": 4, "fsdp": 2},
    "2x2x2": {"data": 2, "fsdp": 2, "tensor": 2},
    "seeds": {"seed": 2, "data": 4},
}
# Of these 2x2x2 has every axis of 4x2 and one more, so 4x2 is for one method of a kind: vectors in the text tower, rows
# of training images, both towers, the backbone itself. An axis of seeds is the loop's affair, not the method's: two
# stand for all. VLMX_TEST_ALL=1 runs every method on every mesh.
ON_MESH = {"4x2": ("coop", "tip_adapter_f", "maple", "full"), "seeds": ("coop", "apex")}
M, B = 8, 8  # training images of a seed, images of a batch
SCALARS = 4  # that a step reduces beside gradients: weight of the batch, loss, accuracy, and room for one more


@functools.cache
def backbone(name, **changes):
    """A random backbone, of CONFIGS or of a config; filled with numpy, as its own initialisation is long to compile."""
    config, rng = dataclasses.replace(CONFIGS.get(name, name), **changes), np.random.default_rng(7)
    shapes = param_shapes(config)

    def fill(path, leaf):
        if path.endswith(("scale", "var")):
            return jnp.asarray(rng.uniform(0.8, 1.2, leaf.shape), leaf.dtype)
        return jnp.asarray(rng.normal(0, max(leaf.shape[-2:-1], default=64) ** -0.5, leaf.shape), leaf.dtype)

    leaves = [fill(path, leaf) for path, leaf in zip(partition.paths(shapes), jax.tree.leaves(shapes), strict=True)]
    params = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
    return Clip({**params, "logit_scale": jnp.asarray(2.0)}, config)


def task(classnames=CLASSES, context=20):
    templates = ("a photo of a {}.",)
    words = tokenizer(__file__.rsplit("/", 1)[0] + "/goldens/clip/case", context)
    return methods.Task(classnames, templates, ("art of the {}.", *templates), words)


def pictures(model, seeds=SEEDS):
    """Training images and labels of each seed: uint8 (S, M, H, W, 3), (S, M)."""
    side = model.config.vision.image_size
    rng = [np.random.default_rng(seed) for seed in seeds]
    images = np.stack([r.integers(0, 256, (M, side, side, 3), np.uint8) for r in rng])
    return images, np.stack([np.arange(M, dtype=np.int32) % len(CLASSES) for _ in seeds])


@functools.cache
def encoded(model_name, seeds=SEEDS):
    model = backbone(model_name)
    images, _ = pictures(model, seeds)
    return np.stack([np.asarray(jax.jit(lambda m, x: m.image(x))(model, x)) for x in images])


def collectives(text):
    """(operation, bytes it carries) of every collective in a compiled program's text."""
    found = []
    for line in text.splitlines():
        m = re.search(r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\(", line)
        if m:
            arrays = re.findall(r"(f32|s32|u32|bf16|pred)\[([\d,]*)\]", m[1])
            size = {"bf16": 2, "pred": 1}
            found.append((m[2], sum(size.get(t, 4) * math.prod(int(n) for n in d.split(",") if n) for t, d in arrays)))
    return found


class Fit(NamedTuple):
    """What K steps of a method for all seeds at once gave."""

    method: methods.Method
    model: Clip
    consts: Any
    start: Any
    end: Any
    losses: np.ndarray = np.zeros(1)
    opt: Any = ()  # the optimiser's state: SGD's momentum, a sum of all gradients
    collectives: tuple = ()
    warned: tuple = ()


made = functools.cache(lambda row: methods.make(METHODS[row][0], **METHODS[row][1]))
TX = optax.sgd(0.002, 0.9)  # with larger steps some runs are chaotic: a rounding error grows a thousandfold in 20
PROGRAMS = {}  # compiled steps, by all that they depend on


@functools.partial(jax.jit, static_argnums=0)
def begin(row, keys, model, consts, support):
    """The start of all seeds: (v, the optimiser's state)."""
    v = jax.vmap(lambda key, support: methods.start(made(row), key, model, consts, support))(keys, support)
    return v, jax.vmap(TX.init)(v["train"]) if jax.tree.leaves(v["train"]) else ()


def batches(images, label, K, live):
    """The same batch for K steps: rows of what is stored, or the images themselves."""
    S = len(label)
    xs = {
        "index": np.tile(np.arange(B, dtype=np.int32), (K, S, 1)),
        "weight": np.ones((K, S, B), np.float32),
    }
    return xs | ({k: np.tile(a, (K, *[1] * a.ndim)) for k, a in (("image", images), ("label", label))} if live else {})


@functools.cache
def fit(row, seeds=SEEDS, mesh=None, K=20, live=False, remat=False):
    """The Fit of a row of METHODS, once. live: images are encoded as they come; remat: layers are recomputed."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        found = _fit(row, seeds, mesh, K, live, remat)
    return found._replace(warned=tuple(str(w.message) for w in warned))


def _fit(row, seeds, on, K, live, remat):
    method, model = made(row), backbone("vit", remat=remat)
    mesh = shard.make_mesh(ONE | MESHES.get(on, {}), jax.devices()[: 8 if on else 1])
    model = model.replace(params=shard.place(model.params, shard.shardings(mesh, model.params, shard.MODEL)))
    consts = method.setup(model, task())
    images, label = pictures(model, seeds)
    support = shard.put(mesh, "support", {"features": encoded("vit", seeds), "label": label})
    keys = jnp.stack([jax.random.key(s) for s in seeds])
    start, opt = begin(row, keys, model, consts, support)
    if not jax.tree.leaves(start["train"]):
        return Fit(method, model, consts, start, start)
    live = live or method.needs == "pixels"
    xs, support = shard.join(mesh, "steps", batches(images, label, K, live)), None if live else support
    state = jax.tree.map(jnp.copy, {**start, "opt": opt, "step": jnp.zeros((), jnp.int32)})  # it is donated
    state, placed, where = shard.lay_out(mesh, state, consts, support, model)
    args = state, model, placed, support, xs, keys
    program = row, len(seeds), on, K, live, remat
    if program not in PROGRAMS:
        PROGRAMS[program] = train_steps(method, TX, K, where=where).lower(*args).compile()
    state, metrics = PROGRAMS[program](*args)
    end, losses = {k: state[k] for k in ("train", "fixed")}, np.asarray(metrics["loss"])
    return Fit(method, model, placed, start, end, losses, state["opt"], collectives(PROGRAMS[program].as_text()))


@functools.partial(jax.jit, static_argnums=0)
def say(apply, v, model, consts, batch):
    return apply(v, methods.tuned(model, v), consts, batch, None, False)["logits"]


def logits(method, v, model, consts, s=0):
    """What the first seed says of its own images, from pixels."""
    images, _ = pictures(model)
    one = jax.tree.map(lambda a: np.asarray(a[s]), v)
    return np.asarray(say(method.apply, one, model, consts, {"image": images[s], "weight": np.ones(M, np.float32)}))


def close(a, b, tol=1e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
        assert np.abs(x - y).max() <= tol * max(np.abs(y).max(), 1e-3)


RESNET = ("resnet", True)
TUNED = [row for row, (name, _) in METHODS.items() if name not in ("zero_shot", "linear_probe", "tip_adapter")]
NEEDS_VIT = [row for row, (name, hyper) in METHODS.items() if methods.make(name, **hyper).taps]


@pytest.mark.parametrize("row", METHODS)
def test_frozen_weights_are_bitwise_unchanged_and_the_tuned_part_moves(row):
    before = jax.tree.map(np.asarray, backbone("vit").params)
    _, model, _, start, end, losses, *_ = fit(row)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(model.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.isfinite(losses).all()
    if row in TUNED:
        assert losses[-1].mean() < losses[0].mean()
        same = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), start["train"], end["train"])
        still = [path for path, x in zip(partition.paths(same), jax.tree.leaves(same), strict=True) if x]
        assert all(path.endswith("attn/k/bias") for path in still)  # the softmax takes no notice of it


@pytest.mark.parametrize("row", TUNED)
def test_every_tuned_parameter_gets_a_finite_gradient(row):
    opt = fit(row).opt  # of all steps: LoRA's A has no gradient while B is zero
    assert len(jax.tree.leaves(opt)) == len(jax.tree.leaves(fit(row).end["train"]))
    for g in jax.tree.leaves(opt):
        assert np.isfinite(g).all() and np.abs(g).max() > 0


@pytest.mark.parametrize("row", METHODS)
def test_a_seed_alone_with_live_encoding_and_recomputed_layers_ends_where_it_does_beside_another(row):
    both = fit(row).end
    for s, seed in enumerate(SEEDS):
        one = fit(row, seeds=(seed,), live=row in TUNED, remat=True).end
        close(jax.tree.map(lambda a, s=s: a[s], both), jax.tree.map(lambda a: a[0], one))


@pytest.mark.parametrize(
    ("row", "mesh"),
    [
        (row, mesh)
        for row in TUNED
        for mesh in MESHES
        if row in ON_MESH.get(mesh, TUNED) or os.environ.get("VLMX_TEST_ALL")
    ],
)
def test_the_mesh_changes_no_number_in_twenty_steps(row, mesh):
    one, many = fit(row), fit(row, mesh=mesh)
    close((many.end, many.losses), (one.end, one.losses))
    if mesh in ("8x1", "seeds"):  # the backbone is on every device: tuned gradients and metrics are all that is sent
        found = many.collectives
        seeds, text_features = 1 if mesh == "seeds" else len(SEEDS), len(CLASSES) * backbone("vit").config.embed_dim
        assert {kind for kind, _ in found} == {"all-reduce"}
        tuned = partition.count(one.end["train"]) // len(SEEDS)
        assert sum(n for _, n in found) <= 4 * seeds * (tuned + text_features + SCALARS)


@pytest.mark.parametrize("row", METHODS)
def test_other_classes(row):
    method, model, consts, _, end, *_ = fit(row)
    assert logits(method, end, model, consts).shape == (M, len(CLASSES))
    if method.carries:
        assert logits(method, end, model, method.setup(model, task(OTHERS))).shape == (M, len(OTHERS))


@pytest.mark.parametrize(
    ("row", "name"), [(r, n) for r in METHODS for n in CONFIGS if n != "vit" and (n, r in NEEDS_VIT) != RESNET]
)
def test_backbones_of_other_sizes(row, name):
    """The shapes of a step and of what is said after it; nothing is compiled for them."""
    method, model = made(row), backbone(name)
    images, label = pictures(model)
    support = {"features": np.zeros((*label.shape, model.config.embed_dim), np.float32), "label": label}
    live = method.needs == "pixels"
    xs = batches(images, label, 1, live)

    def run(model, support, xs):
        consts, keys = method.setup(model, task()), jax.random.split(jax.random.key(0), len(SEEDS))
        v, opt = begin(row, keys, model, consts, support)
        state = {**v, "opt": opt, "step": jnp.zeros((), jnp.int32)}
        if jax.tree.leaves(v["train"]):
            state, _ = train_steps(method, TX, 1)(state, model, consts, None if live else support, xs, keys)
        one = jax.tree.map(lambda a: a[0], {k: state[k] for k in v})
        batch = {"image": images[0], "weight": np.ones(M, np.float32)}
        others = [method.setup(model, task(OTHERS))] if method.carries else []
        return v, {k: state[k] for k in v}, [say(method.apply, one, model, c, batch) for c in (consts, *others)]

    start, end, (said, *other) = jax.eval_shape(run, model, support, xs)
    kinds = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype), tree)
    assert kinds(end) == kinds(start)
    assert said.shape == (M, len(CLASSES)) and all(a.shape == (M, len(OTHERS)) for a in other)


@pytest.mark.parametrize("row", NEEDS_VIT)
def test_a_method_inside_the_image_tower_refuses_a_resnet_by_name(row):
    name, hyper = METHODS[row]
    method = methods.make(name, **hyper)
    with pytest.raises(UserError, match=f"^{re.escape(name)} needs a ViT image tower; RN50 offers: pooled.$"):
        methods.refuse_tower(name, method, backbone("resnet"), "RN50")
    methods.refuse_tower(name, method, backbone("vit"), "ViT-B/16")


def test_a_method_from_outside_the_package_as_the_readme_shows_it(tmp_path, monkeypatch):
    text = (Path(__file__).parent.parent / "vlmx" / "methods" / "README.md").read_text()
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "scales.py").write_text(text.split("```python\n")[1].split("```")[0])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(METHODS, "scales", ("lab.scales", {"start": 0.5}))
    _, model, _, start, _, losses, *_ = fit("scales")
    assert (np.asarray(start["train"]["scale"]) == 0.5).all() and losses[-1].mean() < losses[0].mean()
    with pytest.raises(UserError, match="hyper-parameter of lab.scales"):
        methods.make("lab.scales", begin=1.0)


@pytest.mark.parametrize(("row", "factor"), [("taskres", 1), ("clip_lora", 1e-2), ("full", 1)])
def test_at_the_start_it_is_the_zero_shot_model(row, factor):
    method, model, consts, start, *_ = fit(row)
    zero = methods.make("zero_shot")
    want = logits(zero, {"train": {}, "fixed": {}}, model, zero.setup(model, task()))
    scale = np.exp(2.0) if factor != 1 else 1  # CLIP-LoRA's factor of the cosines is 100, this backbone's e^2
    close(logits(method, start, model, consts) * factor * scale, want)


@pytest.mark.parametrize("row", METHODS)
def test_saved_and_loaded_it_says_the_same(row, tmp_path):
    method, model, consts, _, end, *_ = fit(row)
    one = jax.tree.map(lambda a: a[0], end)
    checkpoint.export(tmp_path, one, {"method": row})
    loaded, meta = checkpoint.load(tmp_path, jax.eval_shape(lambda: one))
    assert meta == {"method": row}
    assert partition.paths(checkpoint.read(tmp_path)[0]) == partition.paths(one)
    stacked = jax.tree.map(lambda a: a[None], loaded)
    np.testing.assert_array_equal(logits(method, stacked, model, consts), logits(method, end, model, consts))


@pytest.mark.parametrize("row", METHODS)
def test_bfloat16_is_close_to_float32(row):
    method, model, consts, _, end, *_ = fit(row)
    half = backbone("vit", dtype="bfloat16", param_dtype="bfloat16")
    got = logits(method, end, half, method.setup(half, task()))
    want = logits(method, end, model, consts)
    assert got.dtype == np.float32 and np.abs(got - want).max() <= 0.05 * max(np.abs(want).max(), 1)


@pytest.mark.parametrize("row", METHODS)
def test_scanned_layers_equal_a_loop(row):
    method, model, consts, _, end, *_ = fit(row)
    want = logits(method, end, model, consts)
    other = backbone("vit", unroll=True)
    np.testing.assert_allclose(logits(method, end, other, method.setup(other, task())), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("row", METHODS)
def test_no_warnings(row):
    method, model, consts, start, *_, warned = fit(row)
    assert not warned
    if method.finalize:
        images, label = pictures(model)
        one = jax.tree.map(lambda a: a[0], start)
        with warnings.catch_warnings(action="error"):
            method.finalize(one, model, consts, {"features": encoded("vit")[0], "label": label[0]})


@pytest.mark.parametrize("row", METHODS)
def test_padded_rows_change_neither_training_nor_predictions(row):
    method, model, consts, _, end, *_ = fit(row)
    mesh, images = shard.make_mesh(devices=jax.devices()[:1]), pictures(model)[0][0]
    key, x = ("image", images) if method.needs == "pixels" else ("features", encoded("vit")[0])

    def said(batch):
        batches = evaluate.feature_batches(x, np.ones(M, np.float32), batch)
        batches = ({key: b.pop("features"), **b} for b in batches)
        return evaluate.predict(method, end, model, consts, batches, M, mesh)

    for a, b in zip(said(M), said(3), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)

    one, key = jax.tree.map(lambda a: a[0], end), jax.random.key(5)

    @jax.jit
    def loss(batch):  # in training, with dropout: what a row draws does not depend on how many there are
        return method.loss(method.apply(one, methods.tuned(model, one), consts, batch, key, True), batch)

    full = {"image": images, "label": np.arange(M) % len(CLASSES), "weight": np.ones(M, np.float32)}
    close(loss(shard.pad(full, 0, M + 3)), loss(full))


def compiled_step(method, model, tx, train, fixed=None):
    """One compiled step of one seed on B images read as pixels: (its FLOPs, the state it keeps)."""
    consts = method.setup(model, task())
    images, label = pictures(model, (1,))
    state = {"train": train, "fixed": fixed or {}, "opt": jax.vmap(tx.init)(train), "step": jnp.zeros((), jnp.int32)}
    xs = {"image": images[None], "label": label[None], "weight": np.ones((1, 1, M), np.float32)}
    keys = jnp.stack([jax.random.key(1)])
    lowered = train_steps(method, tx, 1).lower(state, model, consts, None, xs, keys)
    return lowered.compile().cost_analysis()["flops"], state


def test_frozen_weights_cost_no_gradient_and_no_optimiser_state():
    # Unrolled, because the compiler's cost analysis counts the body of a loop once.
    config = ClipConfig(32, ViT(64, 2, 1, 256, image_size=48, patch=8), Text(32, 2, 1, 128, **TEXT), unroll=True)
    model = backbone(config)
    tx = optax.adam(1e-3)
    method = methods.make("coop", n_ctx=4)
    v = method.init(jax.random.key(0), model, method.setup(model, task()), {})
    tuned = jax.tree.map(lambda a: a[None], v["train"])
    coop_flops, state = compiled_step(method, model, tx, tuned)
    everything = methods.start(methods.make("full"), jax.random.key(0), model, {}, {})["train"]
    full, _ = compiled_step(methods.make("full"), model, tx, jax.tree.map(lambda a: a[None], everything))
    assert coop_flops <= 0.55 * full, f"CoOp {coop_flops:.3g} of {full:.3g} FLOPs: {coop_flops / full:.2f}"
    moments = partition.count(state["opt"]) - 1  # Adam's step counter
    assert moments == 2 * partition.count(tuned) == 2 * 4 * 32
