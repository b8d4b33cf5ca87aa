"""What every method gets tested on: one table, a row per method. A new method adds a row.

Backbones are small and random, of different widths and depths; data are random; what is held is the machinery.
"""

import dataclasses
import functools
import math
import re
from pathlib import Path

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


@functools.cache
def fit(row, model_name="vit", seeds=SEEDS, mesh=None, K=20, live=False, remat=False):
    """K steps of a method for all seeds at once, once: (method, model, consts, start, end, losses, collectives)."""
    model = backbone(model_name, remat=remat)
    name, hyper = METHODS[row]
    method = methods.make(name, **hyper)
    mesh = shard.make_mesh(ONE | MESHES.get(mesh, {}), jax.devices()[: 8 if mesh else 1])
    model = model.replace(params=shard.place(model.params, shard.shardings(mesh, model.params, shard.MODEL)))
    consts = method.setup(model, task())
    images, label = pictures(model, seeds)
    support = shard.put(mesh, "support", {"features": encoded(model_name, seeds), "label": label})
    keys = jnp.stack([jax.random.key(s) for s in seeds])
    start = jax.jit(jax.vmap(lambda k, s: methods.start(method, k, model, consts, s)))(keys, support)
    if not jax.tree.leaves(start["train"]):
        return method, model, consts, start, start, np.zeros(1), []
    tx = optax.sgd(0.005, 0.9)  # at 0.05 some runs are chaotic, and a rounding error grows a thousandfold in 20 steps
    state = {**start, "opt": jax.vmap(tx.init)(start["train"]), "step": jnp.zeros((), jnp.int32)}
    xs = {
        "index": np.tile(np.arange(B, dtype=np.int32), (K, len(seeds), 1)),
        "weight": np.ones((K, len(seeds), B), np.float32),
    }
    live = live or method.needs == "pixels"
    if live:
        xs |= {"image": np.tile(images[None], (K, 1, 1, 1, 1, 1)), "label": np.tile(label[None], (K, 1, 1))}
    xs, support = shard.join(mesh, "steps", xs), None if live else support
    state = jax.tree.map(jnp.copy, state)  # it is donated
    state, consts, where = shard.lay_out(mesh, state, consts, support, model)
    call = train_steps(method, tx, K, where=where).lower(state, model, consts, support, xs, keys).compile()
    state, metrics = call(state, model, consts, support, xs, keys)
    end, losses = {k: state[k] for k in ("train", "fixed")}, np.asarray(metrics["loss"])
    return method, model, consts, start, end, losses, collectives(call.as_text())


def logits(method, v, model, consts, s=0):
    """What the first seed says of its own images, from pixels."""
    images, _ = pictures(model)
    one = jax.tree.map(lambda a: a[s], v)
    batch = {"image": jnp.asarray(images[s]), "weight": jnp.ones(M)}

    @jax.jit
    def say(v, model, consts, batch):
        return method.apply(v, methods.tuned(model, v), consts, batch, None, False)["logits"]

    return np.asarray(say(one, model, consts, batch))


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
    _, model, _, start, end, losses, _ = fit(row)
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
    method, model, consts, _, end, *_ = fit(row)  # not the start: LoRA's A has no gradient while B is zero
    images, label = pictures(model)
    batch = {"image": jnp.asarray(images[0]), "label": jnp.asarray(label[0]), "weight": jnp.ones(M)}
    one = jax.tree.map(lambda a: a[0], end)

    def loss(train):
        v = {**one, "train": train}
        return method.loss(method.apply(v, methods.tuned(model, v), consts, batch, jax.random.key(0), True), batch)[0]

    for g in jax.tree.leaves(jax.jit(jax.grad(loss))(one["train"])):
        assert np.isfinite(g).all() and np.abs(g).max() > 0


@pytest.mark.parametrize("row", TUNED)
def test_seeds_side_by_side_equal_separate_runs(row):
    both = fit(row)[4]
    for s, seed in enumerate(SEEDS):
        close(jax.tree.map(lambda a, s=s: a[s], both), jax.tree.map(lambda a: a[0], fit(row, seeds=(seed,))[4]))


@pytest.mark.parametrize(
    ("row", "mesh"),  # an axis of seeds is the loop's affair, not the method's: two methods stand for all
    [(row, mesh) for row in TUNED for mesh in MESHES if mesh != "seeds" or row in ("coop", "apex")],
)
def test_the_mesh_changes_no_number_in_twenty_steps(row, mesh):
    (*_, one, losses, _), (*_, many, its_losses, found) = (fit(row, mesh=m) for m in (None, mesh))
    close((many, its_losses), (one, losses))
    if mesh in ("8x1", "seeds"):  # the backbone is on every device: tuned gradients and metrics are all that is sent
        seeds, text_features = 1 if mesh == "seeds" else len(SEEDS), len(CLASSES) * backbone("vit").config.embed_dim
        assert {kind for kind, _ in found} == {"all-reduce"}
        tuned = partition.count(one["train"]) // len(SEEDS)
        assert sum(n for _, n in found) <= 4 * seeds * (tuned + text_features + SCALARS)


@pytest.mark.parametrize("row", [r for r in TUNED if methods.make(METHODS[r][0], **METHODS[r][1]).needs == "features"])
def test_stored_features_equal_live_encoding(row):
    close(fit(row, live=True)[4], fit(row)[4])


@pytest.mark.parametrize(("row", "name"), [(r, n) for r in METHODS for n in CONFIGS if (n, r in NEEDS_VIT) != RESNET])
def test_backbones_of_other_sizes_and_other_classes(row, name):
    method, model, consts, _, end, *_ = fit(row, name) if name == "vit" else fit(row, name, K=1)
    assert logits(method, end, model, consts).shape == (M, len(CLASSES))
    if method.carries:
        assert logits(method, end, model, method.setup(model, task(OTHERS))).shape == (M, len(OTHERS))


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
    _, model, _, start, _, losses, _ = fit("scales")
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
    assert jax.tree.structure(checkpoint.read(tmp_path)[0]) == jax.tree.structure(one)
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
def test_scanned_layers_equal_a_loop_and_remat_changes_nothing(row):
    method, model, consts, _, end, *_ = fit(row)
    want = logits(method, end, model, consts)
    for change in ({"unroll": True}, {"remat": True}):
        other = backbone("vit", **change)
        np.testing.assert_allclose(logits(method, end, other, method.setup(other, task())), want, rtol=1e-5, atol=1e-5)
    close(fit(row, remat=True)[4], end)


@pytest.mark.parametrize("row", METHODS)
@pytest.mark.filterwarnings("error")
def test_no_warnings(row):
    method, model, consts, start, end, *_ = fit.__wrapped__(row, K=2)
    if method.finalize:
        images, label = pictures(model)
        one = jax.tree.map(lambda a: a[0], start)
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

    name, hyper = METHODS[row]
    if name == "clip_lora":  # without dropout, which draws for every row at once
        method = methods.make(name, **hyper, dropout=0.0)
    one = jax.tree.map(lambda a: a[0], end)

    @jax.jit
    def loss(batch):
        return method.loss(method.apply(one, methods.tuned(model, one), consts, batch, None, True), batch)

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
