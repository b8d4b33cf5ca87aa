"""What a method's settings say: templates, layers, sizes of nothing, names that are too long, numbers that are none."""

import functools
import re

import contract_test as contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract_test import METHODS, backbone, task

from vlmx import method as methods
from vlmx import optim
from vlmx.errors import UserError
from vlmx.method import PHOTO, class_texts
from vlmx.methods import clip_lora, promptsrc
from vlmx.modules import prompts

PET = "a photo of a {}, a type of pet."
LONG = "red " + "old tree " * 30


def of_pets(**changed):
    return task()._replace(templates=(PET, PHOTO), **changed)


def start(name, t=None, **hyper):
    """(method, model, consts, v), moved off its start, so that every part counts."""
    hyper = {"teacher_templates": 3} | hyper if name == "promptsrc" else hyper  # those of words that it knows
    method, model, t = methods.make(name, **hyper), backbone("vit_deep"), t or of_pets()
    consts, rng = method.setup(model, t), np.random.default_rng(0)
    support = {"features": jnp.ones((8, model.config.embed_dim)), "label": jnp.arange(8) % len(t.classnames)}
    v = method.init(jax.random.key(0), model, consts, support)
    moved = jax.tree.map(lambda a: a + jnp.asarray(rng.normal(0, 0.05, a.shape), a.dtype), v["train"])
    return method, model, consts, {**v, "train": moved}


def outputs(method, model, consts, v):
    images, label = contract.pictures(model, (1,))
    batch = {"image": jnp.asarray(images[0]), "label": label[0], "weight": jnp.ones(8)}
    return jax.jit(method.apply, static_argnums=5)(v, model, consts, batch, None, False)


def words_of(model, template, t=None):
    ids, eot = class_texts(model, t or of_pets(), template)
    return model.tokens(ids), eot


# -------------------------------------------------------------------- CLIP-LoRA
OFFICIAL = {  # the lists in loralib/utils.py of the released code, for towers of 12 layers
    "top": [11], "top1": [11], "top2": [10, 11], "top3": [9, 10, 11], "bottom": [0, 1, 2, 3], "mid": [4, 5, 6, 7],
    "up": [8, 9, 10, 11], "half-up": [6, 7, 8, 9, 10, 11], "half-bottom": [0, 1, 2, 3, 4, 5], "all": [*range(12)],
}  # fmt: skip


def test_positions_are_those_of_the_released_code():
    assert clip_lora.POSITIONS.keys() | clip_lora.TOP.keys() == OFFICIAL.keys()
    for name, want in OFFICIAL.items():
        assert clip_lora.layers(name, 12, "text") == want
    halves = {"half-up": [*range(12, 24)], "half-bottom": [*range(12)], "all": [*range(24)]}
    assert {name: clip_lora.layers(name, 24, "vision") for name in halves} == halves
    for L in range(3, 40):  # every layer of a tower is in one third and in one half
        for names in (("bottom", "mid", "up"), ("half-bottom", "half-up")):
            assert [i for name in names for i in clip_lora.layers(name, L, "text")] == [*range(L)]
    assert clip_lora.layers((0, 2, 7), 3, "text") == [0, 2]
    with pytest.raises(UserError, match="'bottom' is none of the 2 layers of the text tower"):
        clip_lora.layers("bottom", 2, "text")


@pytest.mark.parametrize("position", ["all", "half-up", "top", (0, 2)])
@pytest.mark.parametrize("towers", ["both", "vision", "text"])
def test_clip_lora_updates_the_layers_of_its_position_and_no_other(position, towers):
    method, model, consts, v = start("clip_lora", position=position, towers=towers, maps="qo", rank=3, alpha=2.0)
    params = dict(model.params)
    for tower, pairs in v["train"].items():
        L = getattr(model.config, tower).layers
        layers = clip_lora.layers(position, L, tower)
        assert {a.shape[0] for a in pairs.values()} == {len(layers)}
        for i, layer in enumerate(layers):  # by hand, a layer at a time
            for name in "qo":
                update = 2 / 3**0.5 * pairs[f"{name}_A"][i] @ pairs[f"{name}_B"][i]
                attention = dict(params[tower]["blocks"]["attn"])
                kernel = attention[name]["kernel"].at[layer].add(update)
                attention[name] = {**attention[name], "kernel": kernel}
                blocks = {**params[tower]["blocks"], "attn": attention}
                params[tower] = {**params[tower], "blocks": blocks}
    merged = model.replace(params=params)
    emb, eot = words_of(model, PET)
    txt = merged.text(emb, eot)
    images = contract.pictures(model, (1,))[0][0]
    out = outputs(method, model, consts, v)
    np.testing.assert_allclose(out["text_features"], txt, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(out["image_features"], merged.image(jnp.asarray(images)), rtol=1e-4, atol=1e-4)
    assert set(v["train"]) == set(clip_lora.TOWERS[towers])


@pytest.mark.parametrize("name", ["clip_lora", "vpt+clip_lora", "clip_lora+text_adapter", "clip_lora+ensemble"])
def test_clip_lora_reads_the_first_of_the_data_sets_own_templates(name):
    _, model, consts, _ = start(name)
    emb, eot = words_of(model, PET)
    np.testing.assert_array_equal(consts["emb"], emb)
    np.testing.assert_array_equal(consts["eot"], eot)


@pytest.mark.parametrize("name", ["vpt", "text_adapter", "adapters", "ivlp", "apex", "promptsrc", "maple", "coop"])
def test_other_methods_read_the_same_words_on_every_data_set(name):
    hyper = {"ctx_init": "a photo of a"} if name == "coop" else {}
    a, b = (start(name, t, **hyper)[2] for t in (of_pets(), task()))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


# -------------------------------------------------------------------- vectors in one tower alone
NO_TEXT = [{"n_ctx_text": 0}, {"depth_text": 0}]
NO_VISION = [{"n_ctx_vision": 0}, {"depth_vision": 0}]
more = {"ivlp": set(), "promptsrc": set(), "apex": {"adapter"}}


@pytest.mark.parametrize("name", more)
@pytest.mark.parametrize("sizes", NO_TEXT)
def test_without_text_vectors_the_text_is_the_words_and_the_class(name, sizes):
    method, model, consts, v = start(name, **sizes, ctx_init="art_of the", depth_vision=2)
    assert set(v["train"]) == {"vision"} | more[name] and all(a.size for a in jax.tree.leaves(v["train"]))
    out = outputs(method, model, consts, v)
    emb, eot = words_of(model, "art of the {}.")
    np.testing.assert_allclose(out["text_features"], model.text(emb, eot), rtol=1e-4, atol=1e-4)
    images = jnp.asarray(contract.pictures(model, (1,))[0][0])
    want = prompts.encode_image(model, images, v["train"]["vision"])
    np.testing.assert_allclose(out["image_features"], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", more)
@pytest.mark.parametrize("sizes", NO_VISION)
def test_without_image_vectors_the_image_tower_is_the_pre_trained_one(name, sizes):
    method, model, consts, v = start(name, **sizes, n_ctx_text=3, depth_text=2)
    assert set(v["train"]) == {"text"} | more[name] and v["train"]["text"].shape == (2, 3, 24)
    assert method.needs == "features" and not method.taps
    out = outputs(method, model, consts, v)
    images = jnp.asarray(contract.pictures(model, (1,))[0][0])
    np.testing.assert_allclose(out["image_features"], model.image(images), rtol=1e-5, atol=1e-5)
    emb, eot = words_of(model, PHOTO)
    vectors = v["train"]["text"]
    theta = prompts.by_layer(vectors, model.config.text.layers)
    want = model.text(prompts.write(emb, vectors[0], 1), eot, prompts.behind_start, theta)
    np.testing.assert_allclose(out["text_features"], want, rtol=1e-5, atol=1e-5)


def test_more_than_four_vectors_start_from_noise_however_many_words_there_are():
    _, _, four, _ = start("ivlp", n_ctx_text=4, ctx_init="a photo of the red cat")
    _, model, five, _ = start("ivlp", n_ctx_text=5, ctx_init="a photo of the red cat")
    assert "words" in four and "words" not in five
    np.testing.assert_array_equal(five["emb"], words_of(model, "a a a a a {}.")[0])
    _, _, apex, _ = start("apex", n_ctx_text=5, ctx_init="a photo of the red cat")  # whose code has another limit
    assert apex["words"].shape[0] == 5


def test_the_pre_trained_model_of_apex_reads_the_words_that_its_vectors_start_from():
    _, model, consts, _ = start("apex", ctx_init="art of the")
    emb, eot = words_of(model, "art of the {}.")
    np.testing.assert_allclose(consts["plain"], model.text(emb, eot), rtol=1e-4, atol=1e-5)


# -------------------------------------------------------------------- sizes that are none
@pytest.mark.parametrize(
    ("name", "hyper", "message"),
    [
        ("coop", {"n_ctx": 0}, "n_ctx of coop: expected a whole number, at least 1 .*; got 0"),
        ("coop", {"n_ctx": -3}, "coop.n_ctx"),
        ("coop", {"n_ctx": 2.5}, "coop.n_ctx"),
        ("coop", {"n_ctx": True}, "coop.n_ctx"),
        ("cocoop", {"reduction": 0}, "cocoop.reduction"),
        ("cocoop", {"microbatch": 0}, "cocoop.microbatch"),
        ("vpt", {"n_ctx": 0}, "vpt.n_ctx"),
        ("vpt", {"depth": 0}, "vpt.depth"),
        ("maple", {"n_ctx": 0}, "maple.n_ctx"),
        ("maple", {"depth": -1}, "maple.depth"),
        ("ivlp", {"n_ctx_text": -1}, "ivlp.n_ctx_text"),
        ("ivlp", {"n_ctx_text": 0, "depth_vision": 0}, "nothing to train"),
        ("promptsrc", {"depth_text": 0, "n_ctx_vision": 0}, "nothing to train"),
        ("promptsrc", {"gpa_std": 0.0}, "promptsrc.gpa_std"),
        ("promptsrc", {"teacher_templates": 0}, f"at most {len(promptsrc.TEMPLATES)}; got 0"),
        ("promptsrc", {"teacher_templates": 61}, "promptsrc.teacher_templates"),
        ("apex", {"depth_vision": -1}, "apex.depth_vision"),
        ("apex", {"beta": float("nan")}, "ensemble.beta"),
        ("clip_adapter", {"ratio": 1.5}, "clip_adapter.ratio"),
        ("clip_adapter", {"reduction": 0}, "clip_adapter.reduction"),
        ("taskres", {"alpha": float("inf")}, "taskres.alpha"),
        ("tip_adapter", {"k": -1}, "tip_adapter.k"),
        ("tip_adapter_f", {"search_step": (200,)}, "search_step of tip_adapter_f: expected a tuple of 2"),
        ("tip_adapter", {"search_step": (2.5, 3)}, "tip_adapter.search_step"),
        ("xmadapter", {"gamma": 2}, "gamma of xmadapter: expected a number, at least 0 and at most 1; got 2"),
        ("xmadapter", {"reduction": -4}, "xmadapter.reduction"),
        ("linear_probe", {"max_iter": 0}, "linear_probe.max_iter"),
        ("clip_lora", {"rank": 0}, "clip_lora.rank"),
        ("clip_lora", {"dropout": 1.0}, "clip_lora.dropout"),
        ("clip_lora", {"maps": ""}, "clip_lora.maps"),
        ("clip_lora", {"maps": "qq"}, "clip_lora.maps"),
        ("clip_lora", {"position": "half_up"}, "Did you mean 'half-up'"),
        ("clip_lora", {"position": (-1,)}, "clip_lora.position"),
        ("clip_lora", {"position": 3}, "clip_lora.position"),
    ],
)
def test_sizes_that_are_none_are_refused_by_name(name, hyper, message):
    if re.fullmatch(r"\w+\.\w+", message):  # by the table of all methods, or by the method
        message = f"{message}|hyper-parameter {message.partition('.')[2]} of {name}"
    with pytest.raises(UserError, match=message):
        methods.make(name, **hyper)


@pytest.mark.parametrize("name", ["coop", "cocoop", "maple", "ivlp", "promptsrc", "apex"])
def test_more_vectors_than_the_text_tower_has_places_are_refused(name):
    size = "n_ctx" if name in ("coop", "cocoop", "maple") else "n_ctx_text"
    context = backbone("vit").config.text.context
    more = {"ctx_init": ""} if "coop" in name else {"teacher_templates": 1} if name == "promptsrc" else {}
    method = methods.make(name, **{size: context - 2}, **more)
    with pytest.raises(UserError, match=f"{context - 2} vectors do not fit.*at most {context - 3} vectors"):
        method.setup(backbone("vit"), task())
    with pytest.raises(UserError, match="too long for this model"):  # they fit, the names behind them do not
        methods.make(name, **{size: context - 3}, **more).setup(backbone("vit"), task())


def test_a_depth_is_cut_to_the_layers_of_the_tower():
    for name, size in (("vpt", {"depth": 99}), ("maple", {"depth": 99}), ("ivlp", {"depth_text": 99})):
        method, model, consts, v = start(name, **size)
        deepest = max(a.shape[0] for a in jax.tree.leaves(v["train"]))
        assert deepest <= 4 and np.isfinite(outputs(method, model, consts, v)["logits"]).all()


def test_the_weights_of_the_epochs_are_finite_far_from_their_mean():
    weights = optim.gaussian_weights(3, 200.0, 1.0)
    np.testing.assert_allclose(weights, [0, 0, 1], atol=1e-12)


# -------------------------------------------------------------------- names that are too long
def cutting(classnames):
    t = task(classnames)
    return t._replace(tokenize=functools.partial(t.tokenize, truncate=True))


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("n", [1, 8, 17])
def test_coop_with_names_that_are_cut(position, n):
    names = ("cat", LONG, "red " * 9 + "car")
    method, model = methods.make("coop", n_ctx=n, class_token_position=position), backbone("vit")
    consts = method.setup(model, cutting(names))
    context = model.config.text.context
    T, order = consts["emb"].shape[1], np.asarray(consts["order"])
    assert T == context
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(T), (3, 1)))  # each place once
    short = methods.make("coop", n_ctx=n, class_token_position=position).setup(model, cutting(("cat",)))
    if n < 17:
        np.testing.assert_array_equal(short["order"][0], order[0, : short["order"].shape[1]])


@pytest.mark.parametrize("row", METHODS)
def test_every_method_reads_names_that_are_cut(row):
    name, hyper = METHODS[row]
    method, model = methods.make(name, **hyper), backbone("vit")
    images, label = contract.pictures(model, (1,))
    batch = {"image": images[0], "weight": jnp.ones(8), "label": label[0] % 2, "index": jnp.arange(8)}
    support = {"features": jnp.ones((8, model.config.embed_dim)), "label": batch["label"]}

    def loss(model, train):
        consts = method.setup(model, cutting(("cat", LONG)))
        v = methods.start(method, jax.random.key(0), model, consts, support)
        out = method.apply(v, methods.tuned(model, v), consts, batch, None, train)
        others = method.setup(model, cutting((LONG, "boat", LONG + "cat"))) if method.carries else consts
        other = method.apply(v, methods.tuned(model, v), others, batch, None, False)
        return method.loss(out, batch)[0], other["logits"]

    found = loss(model, train=True)
    assert found[1].shape == (8, 3 if method.carries else 2)
    assert all(np.isfinite(np.asarray(x)).all() for x in found)
    if name != "linear_probe":  # which reads no text
        with pytest.raises(UserError, match="too long for this model"):
            method.setup(model, task(("cat", LONG)))
