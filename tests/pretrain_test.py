"""Contrastive pre-training: the loss is CLIP's, the data are fixed by their seed, and what is written can be read."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import pretrain_clip
from vlmx import method, pretrain
from vlmx.data import pairs, tokenizer
from vlmx.errors import UserError
from vlmx.methods import contrastive
from vlmx.models import convert
from vlmx.models.clip import Clip


def test_loss_is_symmetric_infonce():
    logits = np.array([[2.0, 0.0], [1.0, 3.0]], np.float32)
    log_softmax = [x - np.log(np.exp(x).sum(1, keepdims=True)) for x in (logits, logits.T)]
    expected = -np.mean([np.mean(np.diag(x)) for x in log_softmax])
    loss, metrics = contrastive.loss({"logits": jnp.asarray(logits)}, {})
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    assert float(metrics["accuracy"]) == 100


def test_temperature_stays_below_its_limit():
    after = method.make("contrastive").after
    v = {"train": {"logit_scale": jnp.asarray(9.0), "w": jnp.ones(2)}, "fixed": {}}
    assert float(jnp.exp(after(v, 0, 1, 1)["train"]["logit_scale"])) == pytest.approx(100, rel=1e-5)
    v["train"]["logit_scale"] = jnp.asarray(2.0)
    assert float(after(v, 0, 1, 1)["train"]["logit_scale"]) == 2


def test_batches_depend_on_the_seed_alone_stay_in_a_group_and_go_through_all_images():
    images = np.arange(16, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    ids, group = np.arange(32).reshape(16, 2, 1), np.arange(16) % 4 // 2 + np.arange(16) % 2  # groups of 4, 8 and 4
    a, b, other = (list(pairs.batches(images, ids, group, 4, 11, 3, seed)) for seed in (0, 0, 1))
    assert all((x["image"] == y["image"]).all() and (x["ids"] == y["ids"]).all() for x, y in zip(a, b))
    assert any((x["ids"] != y["ids"]).any() for x, y in zip(a, other))
    rows = [x["image"][:, 0, 0, 0] for x in a]
    for r, x in zip(rows, a):
        assert len(set(group[r])) == 1
        assert (r == x["ids"][:, 0] // 2).all()  # an image keeps its own captions
    assert {*group[np.concatenate(rows[:3])]} == {0, 1}  # the first steps leave out group 2
    assert sorted(np.concatenate(rows[:3])) == np.flatnonzero(group < 2).tolist()
    assert np.bincount(np.concatenate(rows[3:]), minlength=16).tolist() == [2] * 16  # then 8 batches of 4: two epochs


def test_too_few_views_are_said_to_be_too_few():
    with pytest.raises(UserError, match=r"3 views.*batch of 4.*data\.views"):
        next(pairs.batches(np.zeros((3, 8, 8, 3), np.uint8), np.zeros((3, 1, 1), int), np.zeros(3, int), 4, 1, 0, 0))


def test_pairs_are_the_same_from_any_number_of_workers(monkeypatch):
    monkeypatch.setattr(pairs, "CHUNK", 4)
    here, there = (list(pairs.views(0, 10, 2, (0.4, 0.3), workers)) for workers in (0, 2))
    assert [len(images) for images, *_ in here] == [4, 4, 2]
    for one, other in zip(here, there, strict=True):
        assert all((a == b).all() for a, b in zip(one, other, strict=True))


def small():
    config = pretrain_clip.get_config("smoke")
    config.vision.width, config.vision.layers, config.data.views = 64, 1, 150
    return config


def test_an_interrupted_run_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain.embedded, "NAMES", ())
    pretrain.run(small(), tmp_path / "whole")
    real = pairs.batches

    def cut(*args):
        yield from itertools.islice(real(*args), 3)
        raise KeyboardInterrupt

    monkeypatch.setattr(pairs, "batches", cut)
    with pytest.raises(KeyboardInterrupt):
        pretrain.run(small(), tmp_path / "cut")
    monkeypatch.setattr(pairs, "batches", real)
    pretrain.run(small(), tmp_path / "cut")
    whole, cut = (tmp_path / name / "clip/model.safetensors" for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()


def test_a_run_ends_in_a_checkpoint_with_tokenizer_and_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain.embedded, "NAMES", ("textures",))
    config = pretrain_clip.get_config("smoke")
    config.vision.layers, config.text.layers, config.data.views = 1, 1, 150
    made = pretrain.run(config, tmp_path)
    shape, params = convert.read(tmp_path / "clip")
    words = tokenizer.load(tmp_path / "clip", shape.text.context, shape.text.vocab)
    model = Clip(params, shape)
    features = model.encode_text(jnp.asarray(words(["a red circle", "Käse 日本"])))
    assert features.shape == (2, config.embed_dim) and jnp.isfinite(features).all()
    assert sum(p.size for p in jax.tree.leaves(params)) == made["parameters"]
    assert json.loads((tmp_path / "clip" / "pretrain.json").read_text()) == made
    assert pretrain.run(config, tmp_path) == made  # finished: not trained again
