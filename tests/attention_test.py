"""vlmx.attention: the weights are those that the model computes with, at the right cells of the right pictures."""

import dataclasses
import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vlmx import attention
from vlmx.errors import UserError
from vlmx.models import zoo
from vlmx.models.layers import no_tap
from vlmx.models.vlseq import Visual, VLSeq, param_shapes


def tiny(name, layers=2, **more):
    c = zoo.SEQ_MODELS[name].config
    sizes = {"width": 16, "heads": 2, "head_dim": 8, "mlp": 16, "vocab": 40, "layers": (1, layers), "positions": 32}
    more = {"visual": Visual(6, 4), "added": 8, "end": 2, "begin": 2, "pad": 1} | more
    c = dataclasses.replace(c, **sizes | more)
    rng = np.random.default_rng(0)
    return VLSeq(jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.3, s.shape), s.dtype), param_shapes(c)), c)


def inputs(model, images=2):
    rng = np.random.default_rng(0)
    ids = np.array([[5, 6, 7, 2], [9, 2, 1, 1]], np.int32)
    features = rng.normal(size=(2, images, 4, 6)).astype("f4")
    real = np.array([[True] * images, [True] + [False] * (images - 1)])
    return jax.jit(lambda m: m.encode(ids, m.visual(features), real=real))(model)


@pytest.mark.parametrize("name", ["bart-base", "t5-base"])
def test_weights_are_those_that_the_model_computes_with(name):
    model = tiny(name, layers=1)
    memory, seen = inputs(model)
    ids, values = np.array([[2, 4, 5], [2, 8, 1]], np.int32), {}

    def tap(point, y, x, theta):
        if point in ("cross/v", "cross/o"):
            jax.debug.callback(lambda a: values.__setitem__(point, np.asarray(a)), y if point == "cross/v" else x)
        return y

    w = np.asarray(jax.jit(lambda m: m.cross_attention(ids, memory, seen, tap))(model))
    jax.effects_barrier()
    assert w.shape == (1, 2, 2, 3, 12)  # layers, examples, heads, tokens, text and two images
    v = values["cross/v"].reshape(2, 12, 2, 8)
    mixed = np.einsum("BNTM,BMNH->BTNH", w[0], v).reshape(2, 3, 16)
    np.testing.assert_allclose(mixed, values["cross/o"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(w.sum(-1), 1, rtol=1e-5)
    assert (w[:, 1][..., [2, 3, 8, 9, 10, 11]] == 0).all()  # padding, and the picture that is not there


def test_nothing_is_kept_where_nobody_asks():
    model = tiny("bart-base")
    memory, seen = inputs(model)
    ids = np.array([[2, 4], [2, 8]], np.int32)
    unrolled = model.replace(config=dataclasses.replace(model.config, unroll=True, remat=True))
    look = jax.jit(lambda m, cache=None: m.cross_attention(ids, memory, seen, cache=cache))
    w = [look(m) for m in (model, unrolled)]
    np.testing.assert_allclose(*w, rtol=0, atol=1e-6)
    jaxpr = jax.make_jaxpr(lambda m: model.decode(ids, m, seen, no_tap))(memory)
    (scan,) = [e for e in jaxpr.eqns if e.primitive.name == "scan"]
    assert len(scan.outvars) == 1
    assert look(model, model.prefill(jnp.ones((3, 16)), 2)).shape == (2, 2, 2, 2, 12)


def test_cells_of_pictures_and_of_frames():
    w = np.arange(16, dtype=np.float32).reshape(2, 2, 4)
    np.testing.assert_array_equal(attention.cells(w, 2)[1, 1], [[12, 13], [14, 15]])
    w = np.arange(1, 9, dtype=np.float32).reshape(2, 1, 4)
    clip = functools.partial(attention.cells, w, filled=4)
    np.testing.assert_array_equal(clip(3, rows=3)[..., 0, 0], w[:, 0, :3])  # the rest was filled up
    found = clip(2, rows=8)  # of 8 rows each token is the maximum of two
    assert found.shape == (2, 2, 2, 2) and found[0, 1].tolist() == [[1.5, 1.5], [2, 2]]
    np.testing.assert_allclose(clip(3, rows=6).sum((1, 2, 3)), w.sum((1, 2)))
    assert clip(2, rows=6).shape == (2, 2, 1, 1)  # three rows a frame are no square
    found = attention.cells(w, 16, rows=16, filled=16)  # four tokens, each the maximum of a quarter of a square
    np.testing.assert_array_equal(found[0].reshape(4, 4)[[0, 3], :2], [[0.25, 0.25], [0.75, 0.75]])
    with pytest.raises(UserError, match="7 rows are not those of 2 frames"):
        clip(2, rows=7)


def test_the_heat_is_where_the_weight_is():
    pictures = [Image.new("RGB", (40, 20), "white")] * 9
    weights = np.full((14, 9, 2, 2), 1e-3, np.float32)
    weights[:, 3:, 0, 1] = 0.1
    seen = attention.Attended("vqa: what?", "said", tuple("abcdefghijklmn"), weights, pictures)
    figure = seen.figure()
    shown = [[axis for axis in figure.axes if axis.get_subplotspec().rowspan.start == r] for r in range(6)]
    assert len(figure.axes) == 6 * 13 and all(len(row) == 13 for row in shown)  # six of nine pictures, twelve tokens
    assert shown[0][1].get_title().startswith("a\n") and not shown[1][1].get_title()
    pixels = np.asarray(Image.open(io.BytesIO(attention.png(figure))).convert("RGB")).astype(int)
    box = shown[2][4].get_window_extent()
    scale = pixels.shape[0] / figure.bbox.height

    def colour(x, y):
        return pixels[
            pixels.shape[0] - round(scale * (box.y0 + y * box.height)), round(scale * (box.x0 + x * box.width))
        ]

    hot, cold = colour(0.75, 0.75), colour(0.25, 0.25)
    assert hot[0] - hot[2] > 150 and abs(cold[0] - cold[2]) < 10


def test_an_answer_of_no_words_is_its_picture_alone():
    found = attention.cells(np.zeros((0, 1, 16), np.float32), 1)
    assert found.shape == (0, 1, 4, 4)
    picture = Image.new("RGB", (8, 8))
    assert len(attention.Attended("vqa: what?", "", (), found, [picture]).figure().axes) == 1
