"""Parts that combine, the adaptive ensemble on any method, and work that is done once."""

import contract_test as contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract_test import TUNED, backbone, pictures, task

from vlmx import ensemble, partition
from vlmx import method as methods
from vlmx.errors import UserError
from vlmx.methods import apex
from vlmx.models import zoo
from vlmx.models.clip import Clip, ClipConfig, Text, ViT, param_shapes


def batch(model, features=True):
    images, label = pictures(model, (1,))
    found = {"image": jnp.asarray(images[0]), "label": jnp.asarray(label[0]), "weight": jnp.ones(len(label[0]))}
    return found | ({"features": model.image(found["image"])} if features else {})


def made(name, **hyper):
    """(method, model, consts, v), all of it started from other numbers than its own, so that every part counts."""
    method, model = methods.make(name, **hyper), backbone("vit")
    consts = method.setup(model, task())
    v = method.init(jax.random.key(0), model, consts, {})
    rng = np.random.default_rng(0)
    moved = jax.tree.map(lambda a: a + jnp.asarray(rng.normal(0, 0.05, a.shape), a.dtype), v["train"])
    return method, model, consts, {**v, "train": moved}


def say(method, model, consts, v, train=False):
    return jax.jit(method.apply, static_argnums=5)(v, model, consts, batch(model), None, train)


# -------------------------------------------------------------------- parts
def test_apex_is_the_combination_that_it_is_in_the_paper():
    method, model, consts, v = made("apex")
    prompts = {"n_ctx_text": 2, "n_ctx_vision": 2, "depth_text": 1, "depth_vision": 12}
    same = methods.make("ivlp+text_adapter+ensemble", ivlp=prompts, ensemble={"beta": 4.0, "threshold": 0.05})
    names = {"text": "ivlp_text", "vision": "ivlp_vision", "adapter": "text_adapter_adapter"}
    assert same.init(jax.random.key(0), model, consts, {})["train"].keys() == set(names.values())
    its = {**v, "train": {names[k]: p for k, p in v["train"].items()}}
    for classes in (contract.CLASSES, contract.OTHERS):
        facts, its_facts = (m.setup(model, task(classes)) for m in (method, same))
        for train in (True, False):
            want, got = say(method, model, facts, v, train), say(same, model, its_facts, its, train)
            np.testing.assert_array_equal(got["logits"], want["logits"])


@pytest.mark.parametrize("left_out", ["vpt", "clip_lora", "text_adapter"])
def test_every_part_of_a_combination_counts(left_out):
    names = ["vpt", "clip_lora", "text_adapter"]
    method, model, consts, v = made("+".join(names), clip_lora={"dropout": 0.0})
    rest = "+".join(name for name in names if name != left_out)
    without = methods.make(rest, clip_lora={"dropout": 0.0})
    branches = {k: p for k, p in v["train"].items() if not k.startswith(left_out)}
    if len(rest.split("+")) > 1:
        a, b = (say(m, model, m.setup(model, task()), {**v, "train": t})["logits"] for m, t in
                ((method, v["train"]), (without, branches)))  # fmt: skip
        assert np.abs(a - b).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vpt+ivlp", "vpt_vision and ivlp_vision both put vectors among the tokens of the image tower"),
        ("coop+vpt", "coop is not made of parts"),
        ("full+ensemble", "this method changes it"),
        ("coop+ensembel", "ensembel"),
    ],
)
def test_what_does_not_combine_is_refused_by_name(name, said):
    with pytest.raises(UserError, match=said):
        methods.make(name)


def test_a_hyper_parameter_of_one_of_several_is_refused_by_name():
    with pytest.raises(UserError, match="hyper-parameter of ensemble.*beta"):
        methods.make("coop+ensemble", ensemble={"betta": 1.0})
    with pytest.raises(UserError, match="hyper-parameter of coop"):
        methods.make("coop+ensemble", coop={"ctx": 1})


# -------------------------------------------------------------------- the ensemble
@pytest.mark.parametrize("name", ["coop", "cocoop", "maple", "clip_adapter"])
def test_on_the_classes_trained_on_the_ensemble_changes_nothing(name):
    hyper = {"n_ctx": 3} if name == "coop" else {}
    method, model, consts, v = made(f"{name}+ensemble", **{name: hyper})
    plain = methods.make(name, **hyper)
    want = say(plain, model, plain.setup(model, task()), v)["logits"]
    got = say(method, model, consts, v)
    np.testing.assert_array_equal(got["alpha"], 1)
    if name != "clip_adapter":  # it adapts image features behind what it calls by that name
        np.testing.assert_allclose(got["logits"], want, rtol=1e-5, atol=1e-5)


def test_alpha_follows_the_distance_of_a_class_from_those_trained_on():
    trained = jnp.eye(4)[:2]  # unit features of two classes
    test = jnp.asarray([[1, 0, 0, 0], [0, 0, 1, 0], [1, 1, 0, 0]], jnp.float32)
    facts = ensemble.distances(test, trained)
    half = 1 - 0.5**0.5
    np.testing.assert_allclose(facts["diff_nn"], [0, 1, half], atol=1e-6)
    np.testing.assert_allclose(facts["diff_avg"], [0.5, 1, half], atol=1e-6)
    method = ensemble.make(methods.make("coop"), beta=2.0, threshold=0.05)
    v = {"train": {}, "fixed": {"trained_classes": trained}}
    alpha = method.describe(v, {"plain": test})["alpha"]
    np.testing.assert_allclose(alpha, [1, np.exp(-2), np.exp(-2 * half)], rtol=1e-6)
    far = ensemble.make(methods.make("coop"), beta=2.0, threshold=0.3).describe(v, {"plain": test})["alpha"]
    np.testing.assert_allclose(far, [1, np.exp(-2), 1], rtol=1e-6)


def test_far_from_all_classes_the_pre_trained_model_speaks():
    method, model, _, v = made("coop+ensemble", coop={"n_ctx": 3}, ensemble={"beta": 1e6, "threshold": 0.0})
    facts = method.setup(model, task(contract.OTHERS))
    zero = model.logits(model.image(batch(model)["image"]), facts["plain"])
    np.testing.assert_allclose(say(method, model, facts, v)["logits"], zero, rtol=1e-5, atol=1e-5)


# -------------------------------------------------------------------- work that is done once
def encodings(row, train, monkeypatch):
    """How often a step, or a test batch, of a method goes through (the image tower, the text tower), where the frozen
    model's features are stored."""
    method, model = contract.made(row), backbone("vit")
    consts = jax.eval_shape(lambda model: method.setup(model, task()), model)
    support = {"label": jnp.zeros(4, jnp.int32), "features": jnp.ones((4, model.config.embed_dim))}
    start = lambda key, model, consts: methods.start(method, key, model, consts, support)
    key = jax.random.key(0)
    v = jax.eval_shape(start, key, model, consts)
    count = {"image": 0, "text": 0}
    for name in ("image", "text", "text_behind"):
        real, tower = getattr(Clip, name), name.partition("_")[0]

        def counted(*args, real=real, tower=tower, **kwargs):
            count[tower] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(Clip, name, counted)
    apply = lambda v, c, b: method.apply(v, methods.tuned(model, v), c, b, key, train)
    jax.eval_shape(apply, v, consts, batch_shapes(model))
    return count["image"], count["text"]


def batch_shapes(model):
    side = model.config.vision.image_size
    of = jax.ShapeDtypeStruct
    images, features = of((4, side, side, 3), jnp.uint8), of((4, model.config.embed_dim), jnp.float32)
    return {"image": images, "features": features, "label": of((4,), jnp.int32), "weight": of((4,), jnp.float32)}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("row", TUNED)
def test_only_towers_with_something_tuned_in_them_are_gone_through(row, train, monkeypatch):
    in_image = {"vpt", "ivlp", "maple", "clip_lora", "promptsrc", "apex", "full", "parts"}
    fixed_text = {"vpt", "clip_adapter", "taskres", "tip_adapter_f", "xmadapter"}
    assert encodings(row, train, monkeypatch) == (int(row in in_image), int(row not in fixed_text))


def test_a_step_of_apex_costs_little_more_than_two_forwards():
    # Unrolled, because the compiler's cost analysis counts the body of a loop once.
    towers = ViT(64, 3, 2, 256, image_size=48, patch=8), Text(64, 3, 2, 256, **contract.TEXT)
    model = backbone(ClipConfig(32, *towers, unroll=True))
    method = apex.make()
    consts, images = method.setup(model, task()), pictures(model, (1,))[0][0]
    v = methods.start(method, jax.random.key(0), model, consts, {})
    tree = jax.tree.map(lambda a: a[None], v)
    step, _ = contract.compiled_step(method, model, contract.optax.adadelta(0.15), tree["train"], tree["fixed"])

    def forward(model, images, emb, eot):
        return model.image(images), model.text(emb, eot)

    cost = jax.jit(forward).lower(model, images, consts["emb"], consts["eot"]).compile().cost_analysis()["flops"]
    assert step <= 2.2 * cost, f"{step:.3g} of {cost:.3g}: {step / cost:.2f}"


# -------------------------------------------------------------------- sizes
# Tuned numbers with ViT-B/16 and 100 classes, as the official code makes them: vectors and linear maps, written out.
OFFICIAL = {
    "coop": 16 * 512,
    "cocoop": 4 * 512 + (512 * 32 + 32) + (32 * 512 + 512),
    "vpt": 12 * 8 * 768,
    "ivlp": 12 * 2 * (512 + 768),
    "maple": 9 * 2 * 512 + 9 * (512 * 768 + 768),
    "promptsrc": 9 * 4 * (512 + 768),
    "clip_adapter": 512 * 128 + 128 * 512,
    "taskres": 100 * 512,
    "tip_adapter": 0,
    "tip_adapter_f": 16 * 100 * 512,
    "xmadapter": 16 * 100 * 512 + 2 * 512 * 128 + 1,
    "clip_lora": 12 * 3 * 2 * (2 * 512 + 2 * 768),
    "apex": 2 * 512 + 12 * 2 * 768 + (512 * 512 + 512),
    "linear_probe": 100 * (512 + 1),
}


@pytest.mark.parametrize("name", [*OFFICIAL, "full"])
def test_tuned_numbers_at_vit_b_16(name):
    from configs import recipes

    config = zoo.MODELS["ViT-B/16"].config
    model, method = Clip(param_shapes(config), config), methods.make(name, **recipes.RECIPES[name]().hyper)
    words = zoo.load("tiny_clip").tokenizer._replace(context=config.text.context)
    hundred = task(contract.CLASSES * 25)._replace(tokenize=words)
    consts = jax.eval_shape(lambda model: method.setup(model, hundred), model)
    of = jax.ShapeDtypeStruct
    support = {"label": of((1600,), jnp.int32), "features": of((1600, 512), "f4")}
    support["prior"] = {"text_features": of((100, 512), "f4")}
    start = lambda model, consts, support: methods.start(method, jax.random.key(0), model, consts, support)
    count = partition.count(jax.eval_shape(start, model, consts, support)["train"])
    everything = partition.count(param_shapes(config)) - 1  # but for the factor of the cosines
    assert count == OFFICIAL.get(name, everything)
