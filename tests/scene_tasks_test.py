"""The embedded vision-and-language tasks: written in the official formats, true, read back by the official readers."""

import hashlib
import importlib
import random
import re
from collections import Counter, defaultdict

import h5py
import numpy as np
import pytest
from PIL import Image

from vlmx import extract
from vlmx.data import (
    image_text,
    published,
    scene_clips,
    scene_files,
    scene_reasoning,
    scene_text,
    scenes,
    video_text,
    vl_forms,
)  # fmt: skip
from vlmx.errors import UserError


@pytest.fixture(scope="module")
def image_root(tmp_path_factory):
    return scene_files.write(tmp_path_factory.mktemp("scenes"), "image", scale=0.01)


@pytest.fixture(scope="module")
def video_root(tmp_path_factory):
    return scene_files.write(tmp_path_factory.mktemp("clips"), "video", scale=0.01)


def digest(root):
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_the_same_files_from_one_seed(image_root, video_root, tmp_path):
    assert digest(scene_files.write(tmp_path / "v", "video", scale=0.01)) == digest(video_root)
    before = digest(image_root)
    assert digest(scene_files.write(image_root, "image", scale=0.01)) == before  # nothing is written again
    with pytest.raises(UserError, match="use another folder"):
        scene_files.write(image_root, "image", scale=0.01, seed=1)
    other = digest(scene_files.write(tmp_path / "i", "image", scale=0.002, seed=1))
    assert not {d for f, d in other.items() if f.endswith(".png")} & set(before.values())


@pytest.mark.parametrize("name", image_text.READERS)
def test_image_tasks_are_read(image_root, name):
    pictures = {p.stem for p in (image_root / "images").glob("*.png")}
    more = {"java": False} if name == "caption" else {}
    task = image_text.load(name, image_root, images=pictures, **more)
    assert len(task.train) > 15 and len(task.test) and task.notes == ()
    assert all(e.text.endswith(("?", ".")) for e in task.train) or name == "caption"
    if name == "vqa":
        best = [Counter(e.about["answers"]).most_common(1)[0][0] for e in task.test]
    else:
        best = [e.targets[0][0] for e in task.test]
    assert next(iter(task.score(best, task.test).values())) > 99


@pytest.mark.parametrize("name", video_text.READERS)
def test_video_tasks_are_read(video_root, name):
    clips = {p.stem for p in (video_root / "videos").glob("*.png")}
    task = video_text.load(name, video_root, images=clips, java=False)
    assert len(task.train) >= 8 and len(task.val) and len(task.test)
    assert next(iter(task.score([e.targets[0][0] for e in task.test], task.test).values())) > 99


def test_pictures(image_root, video_root):
    with Image.open(next((image_root / "images").glob("*.png"))) as image:
        assert image.size == (64, 64) and image.mode == "RGB"
    with Image.open(next((video_root / "videos").glob("*.png"))) as clip:
        assert clip.n_frames == scene_clips.FRAMES


def test_sentences_divide_their_pairs(image_root):
    """Neither the sentence nor the pair alone says whether it is true."""
    task = image_text.load("nlvr", image_root)
    said = defaultdict(list)
    for e in task.train:
        said["-".join(e.id.split("-")[:2]), e.text].append(e.targets[0][0])
    assert {tuple(sorted(v)) for v in said.values()} == {("false", "true")}


def test_sentences_are_about_the_scenes():
    rng = random.Random(0)
    looks = {"fill": "solid"}
    red = scenes.scene_of(rng, [scenes.an_object(rng, "circle", "red", **looks)], "white")
    two = scenes.scene_of(rng, [scenes.an_object(rng, k, "blue", **looks) for k in ("star", "star")], "black")
    seen = Counter()
    for _ in range(4000):
        said = scene_reasoning.sentence(red, two, rng)
        seen[said.text] = said.true(red, two), said.true(two, red), said.true(red, red)
    assert seen["the left picture shows more shapes than the right one."] == (False, True, False)
    assert seen["there are three shapes in all."] == (True, True, False)
    assert seen["both pictures show a circle."] == (False, False, True)
    assert seen["only one of the pictures shows a red circle."] == (True, True, False)
    assert seen["the left picture shows a circle and the right one a star."][:2] == (True, False)
    assert seen["at least one background is white."] == (True, True, True)
    assert seen["the left background is white."] == (True, False, True)
    assert seen["both backgrounds are white."] == (False, False, True)
    assert seen["no background is black."] == (False, False, True)


def test_composed_questions():
    """Their answers follow from the scene; of yes and no neither is the safe guess."""
    found = defaultdict(Counter)
    for i in range(300):
        rng = random.Random(i)
        scene = scene_text.scene(rng)
        for q in scene_reasoning.composed(scene, rng, 5):
            found[q.structure][q.answer] += 1
            if q.structure == "choose":
                assert q.answer in q.text
            if named := re.fullmatch(r"is the background (\w+)(?: or (\w+))?\?", q.text):
                assert q.answer == ("yes" if scene.background in named.groups() else "no")
            if q.structure == "query" and q.text.startswith("what colour"):
                assert q.answer in {o.colour for o in scene.objects}
    assert set(found) == set(scene_reasoning.STRUCTURES)
    for structure in ("verify", "logical"):
        yes, no = found[structure]["yes"], found[structure]["no"]
        assert 0.4 < yes / (yes + no) < 0.6


def test_clips():
    events = Counter()
    for i in range(120):
        rng = random.Random(i)
        clip = scene_clips.a_clip(rng)
        events[clip.event] += 1
        if i < 24:
            frames = scene_clips.frames(clip)
            assert frames.shape == (scene_clips.FRAMES, 64, 64, 3) and (frames[0] != frames[-1]).any()
        for text, answers, right in scene_clips.questions(clip, rng, 2, 5):
            assert len(set(answers)) == 5
            if "who" in text:
                assert answers[right] in clip.speakers
        said = " ".join(line["text"] for line in scene_clips.subtitles(clip, rng))
        assert clip.subject.kind in said and all(p in said for p in clip.speakers)
        assert len(set(scene_clips.descriptions(clip, rng, 4))) == 4
    assert set(events) == set(scene_clips.EVENTS)


def test_a_clip_shows_its_event():
    clip = next(c for i in range(99) if (c := scene_clips.a_clip(random.Random(i))).event == "right")
    clip = clip._replace(scene=clip.scene._replace(objects=clip.scene.objects[:1], grain=0))
    frames = scene_clips.frames(clip).astype(int)
    x = [np.abs(f - clip.scene.rgb).sum((0, 2)) @ np.arange(64) / np.abs(f - clip.scene.rgb).sum() for f in frames]
    assert all(b - a > 8 for a, b in zip(x, x[1:]))


# ------------------------------------------------------------------------------------------------ as runs ask for them


@pytest.mark.parametrize("name", ["image_text", "video_text", "scenes_image_text", "scenes_video_text"])
def test_configs(name):
    make = importlib.import_module(f"configs.{name}").get_config
    config = make("single_adapter,full,tasks=nlvr+vqa,lr=0.5,epochs=3,reduction=4,backbone=t5-base,root=there")
    assert config.title == name and config.tasks == ("nlvr", "vqa") and config.model.name == "t5-base"
    assert [r.optimizer.lr for r in config.recipe.values()] == [0.5, 0.5] and config.data.root == "there"
    assert config.recipe.full.epochs == 3 and config.recipe.single_adapter.hyper.reduction == 4
    assert set(make().tasks) == set(vl_forms.VIDEO_TEXT if "video" in name else vl_forms.IMAGE_TEXT)
    with pytest.raises(UserError, match="single_adapter"):
        make("single_adaptor")
    with pytest.raises(UserError, match="setting behind the colon"):
        make("single_adapter,epoch=3")


def test_published_settings():
    c = importlib.import_module("configs.image_text").get_config("full,multiple_adapters,single_lora")
    assert [c.recipe[n].optimizer.lr for n in c.methods] == [1e-4, 3e-4, 1e-3] and c.recipe.full.epochs == 20
    assert c.batches.to_dict() == {"vqa": 500, "gqa": 833, "nlvr": 166, "caption": 416} and c.model.visual_tokens == 36
    c = importlib.import_module("configs.image_text").get_config("full,backbone=t5-base")
    assert c.batches.to_dict() == {"vqa": 300, "gqa": 500, "nlvr": 100, "caption": 250} and c.batch == 500
    c = importlib.import_module("configs.video_text").get_config("full,single_prompt")
    assert [c.recipe[n].optimizer.lr for n in c.methods] == [3e-5, 3e-4] and (c.batch, c.recipe.full.epochs) == (50, 7)


def test_tasks_and_features_of_a_run(image_root, monkeypatch):
    """Scenes are written where they are not, encoded once into a file below the root, and checked against it."""
    config = importlib.import_module("configs.scenes_image_text").get_config("single_adapter,smoke")
    config.data.root = str(image_root)
    config.data.length = config.data.target_length = 0
    task = published.load("nlvr", config.data)
    config.data.length, config.data.target_length = 24, 30
    shorter = published.load("nlvr", config.data)
    assert (task.length, task.target_length, shorter.length, shorter.target_length) == (100, 20, 24, 20)
    encoded = []

    def run(args):
        encoded.append((args.images, args.what, args.model, args.transform))
        with h5py.File(args.out, "w") as file:
            for path in sorted((image_root / "images").glob("*.png"))[1:]:
                file.create_dataset(f"{path.stem}/features", data=np.zeros((16, 8), "f2"))

    monkeypatch.setattr(extract, "run", run)
    source = published.source("nlvr", config)
    assert encoded == [(str(image_root / "images"), "grid", "tiny_clip", "squash")]
    assert source[task.train[0].images[1]].shape == (16, 8)
    config.data.features = (str(image_root / "images-tiny_clip-grid.h5"),)
    with pytest.raises(UserError, match="there are no features of '2000001'"):
        published.load("gqa", config.data)
    first = task.train[0].images
    assert [picture.size for picture in published.shown("nlvr", first, config.data)] == [(64, 64)] * 2
    assert published.shown("nlvr", ("none", first[0]), config.data) == []
    config.data.root = ""
    with pytest.raises(UserError, match="data.root: gqa needs the folder"):
        published.load("gqa", config.data)
