"""Benchmarks that need no download, and the tiny CLIP that is shipped for them."""

import importlib.resources
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from vlmx.data import embedded, task, tokenizer
from vlmx.models import convert
from vlmx.models.clip import Clip
from vlmx.pretrain import zero_shot

ASSET = importlib.resources.files("vlmx") / "assets" / "tiny_clip"


@pytest.mark.parametrize("name", embedded.NAMES)
def test_splits_are_a_dataset(name):
    dataset = embedded.load(name)
    names = [n for split in (dataset.train, dataset.val, dataset.test) for n in split.names]
    assert len(set(names)) == len(names)
    for split in (dataset.train, dataset.val, dataset.test):
        assert len(split.images) == len(split.labels) == len(split.names)
        assert split.labels.dtype == np.int32
        assert set(split.labels.tolist()) == set(range(len(dataset.classnames)))
        assert np.bincount(split.labels).min() >= 15
    images = dataset.test.images
    first = images[0]
    assert first.dtype == np.uint8 and first.shape[:2] == (64, 64)
    assert (pickle.loads(pickle.dumps(images))[3] == images[3]).all()  # workers get a copy, and draw the same
    assert (images[-1] == images[len(images) - 1]).all()
    with pytest.raises(IndexError):
        images[len(images)]


def test_digits_are_all_of_the_real_ones_once():
    dataset = embedded.load("digits")
    index = [i for split in (dataset.train, dataset.val, dataset.test) for i in split.images.index]
    assert sorted(index) == list(range(1797))
    assert [len(s.images) for s in (dataset.train, dataset.val, dataset.test)] == [896, 357, 544]


def test_written_as_peoples_own_images(tmp_path):
    embedded.write("digits", tmp_path / "d")
    dataset = embedded.load("digits")
    got = task.load({"name": "folder", "root": tmp_path / "d"}, tmp_path / "work")
    assert sorted(got.classnames) == sorted(dataset.classnames)
    for part in ("train", "val", "test"):
        mine, his = getattr(got, part), getattr(dataset, part)
        path = tmp_path / "d" / part / dataset.classnames[his.labels[5]] / "0005.png"
        np.testing.assert_array_equal(np.asarray(Image.open(path)), his.images[5])
        assert len(mine.labels) == len(his.labels) and str(path) in list(mine.images)
    path.write_bytes(b"mine")
    embedded.write("digits", tmp_path / "d")
    assert path.read_bytes() == b"mine", "files that exist stay"


def test_images_of_different_splits_differ():
    dataset = embedded.load("objects")
    drawn = [split.images[i].tobytes() for split in (dataset.train, dataset.val, dataset.test) for i in range(10)]
    assert len(set(drawn)) == len(drawn)


def test_a_scene_shows_its_class():
    for name in ("objects", "textures"):
        for i in range(60):
            scene = embedded.scene(name, "test", i)
            thing, said = scene.objects[0], embedded.CLASSNAMES[name][i % len(embedded.CLASSNAMES[name])]
            assert said == (f"{thing.colour} {thing.kind}" if name == "objects" else f"{thing.fill} white circle")


@pytest.mark.parametrize("shift", embedded.SHIFTS)
def test_shifts_change_the_look_of_the_same_scenes(shift):
    plain, shifted = embedded.load("objects"), embedded.load(f"objects_{shift}")
    assert plain.classnames == shifted.classnames
    assert (plain.test.labels == shifted.test.labels).all()
    difference = np.abs(plain.test.images[5].astype(int) - shifted.test.images[5]).mean()
    assert difference > 2


# ------------------------------------------------------------------------------------------------ tiny CLIP


@pytest.fixture(scope="module")
def shipped():
    config, params = convert.read(ASSET)
    words = tokenizer.load(ASSET, config.text.context, config.text.vocab)
    return Clip(params, config), words, json.loads((ASSET / "pretrain.json").read_text())


def test_the_asset_is_small():
    assert sum(f.stat().st_size for f in ASSET.iterdir()) <= 8e6


@pytest.mark.parametrize("name", ["digits", "objects", "textures"])
def test_zero_shot_is_what_was_recorded_neither_chance_nor_saturated(shipped, name):
    model, words, made = shipped
    recorded = made["zero_shot_accuracy"][name]
    assert 40 <= recorded <= 75
    assert zero_shot(model, embedded.load(name), words) == pytest.approx(recorded, abs=0.5)


def test_unseen_words_of_any_script_become_tokens(shipped):
    _, words, _ = shipped
    ids = words(["a photo of a golden retriever.", "Käse", "日本", "x-ray #7"])
    assert (ids[:, 0] == words.hf.bos_token_id).all()
    assert all(words.hf.eos_token_id in row for row in ids)
    assert len({tuple(row) for row in ids}) == 4
