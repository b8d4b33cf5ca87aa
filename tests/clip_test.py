"""The backbone: what a tap sees, that unused ones change nothing, and the exact tree of parameters."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract_test import CONFIGS, backbone

from vlmx.models.clip import Clip, param_shapes
from vlmx.models.layers import no_tap
from vlmx.partition import paths

POINTS = ["attn", "attn/k", "attn/o", "attn/q", "attn/v", "block", "mlp", "mlp/fc", "mlp/proj", "pooled", "tokens"]


@functools.partial(jax.jit, static_argnums=2)
def encode(model, images, tap=no_tap, theta=None):
    return model.image(images, tap, theta)


def images(model, n=2):
    side = model.config.vision.image_size
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, (n, side, side, 3), np.uint8))


def test_taps_see_every_point_with_the_layers_own_theta():
    model, seen = backbone("vit_deep"), {}
    vision = model.config.vision
    theta = {"shift": jnp.arange(vision.layers, dtype=jnp.float32)}

    def tap(point, y, x, theta):
        seen[point] = (y.shape, None if x is None else x.shape, theta["shift"].shape)
        return y

    out = encode(model, images(model), tap, theta)
    np.testing.assert_array_equal(out, encode(model, images(model)))
    T, D = 1 + (vision.image_size // vision.patch) ** 2, vision.width
    assert sorted(seen) == POINTS
    assert seen["attn/q"] == ((2, T, D), (2, T, D), ())
    assert seen["mlp/fc"] == ((2, T, vision.mlp), (2, T, D), ())
    assert seen["block"] == ((2, T, D), None, ())
    assert seen["tokens"] == ((2, T, D), None, (vision.layers,))
    assert seen["pooled"] == ((2, model.config.embed_dim), (2, D), (vision.layers,))


@pytest.mark.parametrize("tower", ["image", "text"])
def test_what_a_tap_inserts_reaches_its_layer_and_has_a_gradient(tower):
    model = backbone("vit_deep")
    layers = getattr(model.config, "vision" if tower == "image" else "text").layers
    ids = jnp.asarray([[510, 7, 9, 511, 0], [510, 8, 511, 0, 0]])

    def tap(point, y, x, theta):
        return y + theta["bias"] if point == "attn/v" else y

    @jax.jit
    def features(theta):
        if tower == "image":
            return model.image(images(model), tap, theta)
        return model.text(model.tokens(ids), model.eot(ids), tap, theta)

    rows = {"bias": jnp.zeros((layers, 1))}
    np.testing.assert_array_equal(features(rows), features(rows))
    for layer in range(layers):
        moved = features({"bias": rows["bias"].at[layer].set(1.0)})
        assert np.abs(moved - features(rows)).max() > 1e-5
    grads = jax.jit(jax.grad(lambda theta: (features(theta) ** 2).sum()))({"bias": rows["bias"] + 0.1})
    assert (np.abs(grads["bias"]) > 0).all()


def test_tokens_added_by_a_tap_go_through_every_block():
    """Visual prompts: appended before the first layer norm."""
    model = backbone("vit")
    L, D = model.config.vision.layers, model.config.vision.width

    def tap(point, y, x, theta):
        if point != "tokens":
            return y
        prompt = jnp.broadcast_to(theta["prompt"][0], (len(y), *theta["prompt"].shape[1:]))
        return jnp.concatenate([y, prompt], axis=1)

    @jax.jit
    def features(prompt):
        return model.image(images(model), tap, {"prompt": prompt})

    prompt = jax.random.normal(jax.random.key(0), (L, 3, D))
    assert features(prompt).shape == (2, model.config.embed_dim)
    grads = jax.jit(jax.grad(lambda p: (features(p) ** 2).sum()))(prompt)
    assert (np.abs(grads[0]) > 0).all() and not grads[1:].any()


def test_text_behind_the_end_token_changes_nothing():
    model = backbone("vit")
    short = jnp.asarray([[510, 7, 9, 511], [510, 8, 511, 0]])
    long = jnp.pad(short, ((0, 0), (0, 16)))
    text = jax.jit(lambda ids: model.encode_text(ids))
    np.testing.assert_allclose(text(short), text(long), atol=1e-6)


def test_end_token_by_its_id_or_as_the_highest():
    model = backbone("vit")
    ids = jnp.asarray([[510, 511, 511, 0], [510, 9, 8, 511]])
    np.testing.assert_array_equal(model.eot(ids), [1, 3])
    text = dataclasses.replace(model.config.text, eot=None)
    highest = Clip(model.params, dataclasses.replace(model.config, text=text))
    np.testing.assert_array_equal(highest.eot(ids), [1, 3])
    eight = Clip(model.params, dataclasses.replace(model.config, text=dataclasses.replace(text, eot=8)))
    np.testing.assert_array_equal(eight.eot(ids[1:]), [2])


@pytest.mark.parametrize("name", CONFIGS)
def test_uint8_images_are_normalised_by_the_model(name):
    model = backbone(name)
    x = images(model)
    floats = (x / 255.0 - np.array(model.config.mean)) / np.array(model.config.std)
    np.testing.assert_allclose(encode(model, x), encode(model, floats), rtol=1e-4, atol=1e-5)


def test_parameter_tree():
    """The tree that checkpoints must fill, by path and shape, for a small ViT."""
    shapes = param_shapes(CONFIGS["vit"])
    found = dict(zip(paths(shapes), (s.shape for s in jax.tree.leaves(shapes)), strict=True))
    assert found["vision/patch_embed/kernel"] == (8, 8, 3, 32)
    assert found["vision/blocks/attn/q/kernel"] == (2, 32, 32)
    assert found["vision/blocks/mlp/fc/bias"] == (2, 64)
    assert found["text/token_embed"] == (512, 32)
    assert found["logit_scale"] == ()
    assert len(found) == 2 * 16 + 8 + 5 + 1
    assert jax.tree.map(jnp.shape, backbone("vit").params) == jax.tree.map(lambda s: s.shape, shapes)
