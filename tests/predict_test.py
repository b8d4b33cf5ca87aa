"""vlmx.predict: what tuned checkpoints say of pictures, and what is refused."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vlmx import attention, checkpoint, method, predict, variant
from vlmx.data import scene_text, scenes, video
from vlmx.errors import UserError
from vlmx.models import zoo
from vlmx.models.vlseq import Visual
from vlmx.modules import retrieval

CLASSES = ("red circle", "blue star", "green cross")
HYPER = {"coop": {"n_ctx": 2}, "linear_probe": {}}


@functools.cache
def tiny():
    return zoo.load("tiny_clip")


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch):
    """Models are loaded once for all commands."""
    for name in ("load", "load_seq"):
        monkeypatch.setattr(zoo, name, CACHED[name])


CACHED = {name: functools.cache(getattr(zoo, name)) for name in ("load", "load_seq")}


def exported(folder, name, **more):
    """A checkpoint of an untrained method, as a run leaves it."""
    loaded, m = tiny(), method.make(name, **HYPER[name])
    task = method.Task(CLASSES, ("a photo of a {}.",), ("a photo of a {}.",), loaded.tokenizer)
    consts = m.setup(loaded.model, task)
    rng = np.random.default_rng(0)
    support = {"features": rng.normal(size=(6, 128)).astype("f4"), "label": jnp.arange(6) % 3}
    v = jax.tree.map(np.asarray, m.init(jax.random.key(0), loaded.model, consts, support))
    if name == "linear_probe":
        v["train"]["W"], v["fixed"] = rng.normal(size=v["train"]["W"].shape).astype("f4"), {}
    about = {"model": "tiny_clip", "templates": ["a photo of a {}."], "ensemble": [], "upright": False}
    of = {"method": name, "hyper": HYPER[name], "backbone": loaded.digest, "classes": list(CLASSES)}
    checkpoint.export(folder, v, of | about | more)
    return m, v, consts


@pytest.fixture
def pictures(tmp_path):
    paths = []
    for i in range(3):
        paths.append(str(tmp_path / f"p{i}.png"))
        rng = scenes.random.Random(i)
        Image.fromarray(scenes.draw(scene_text.scene(rng))).save(paths[-1])
    return paths


def run(*argv):
    return predict.run(predict.arguments(list(map(str, argv))))


def test_probabilities_are_the_methods_own(tmp_path, pictures, capsys):
    m, v, consts = exported(tmp_path / "c", "coop")
    rows = run("--checkpoint", tmp_path / "c", "--image", *pictures)
    images = np.stack([np.asarray(Image.open(p)) for p in pictures])
    logits = jax.jit(m.apply, static_argnums=5)(v, tiny().model, consts, {"image": images}, None, False)["logits"]
    for row, p, path in zip(rows, jax.nn.softmax(logits), pictures, strict=True):
        assert row["image"] == path
        best = np.argsort(-p)
        assert list(row["classes"]) == [CLASSES[c] for c in best]
        np.testing.assert_allclose(list(row["classes"].values()), p[best], atol=2e-5)
    out = capsys.readouterr().out
    assert f"{pictures[0]}\n  " in out and " %  red circle" in out


def test_other_classes(tmp_path, pictures):
    exported(tmp_path / "c", "coop")
    (row,) = run("--checkpoint", tmp_path / "c", "--image", pictures[0], "--classes", "cat, red circle")
    assert set(row["classes"]) == {"cat", "red circle"} and sum(row["classes"].values()) == pytest.approx(1, abs=1e-4)
    exported(tmp_path / "l", "linear_probe")
    (all_three,) = run("--checkpoint", tmp_path / "l", "--image", pictures[0])
    (two,) = run("--checkpoint", tmp_path / "l", "--image", pictures[0], "--classes", "blue star,red circle")
    odds = all_three["classes"]["blue star"] / all_three["classes"]["red circle"]
    assert two["classes"]["blue star"] / two["classes"]["red circle"] == pytest.approx(odds, rel=1e-2)
    with pytest.raises(UserError, match="linear_probe has nothing for classes it was not tuned on: cat"):
        run("--checkpoint", tmp_path / "l", "--image", pictures[0], "--classes", "cat,red circle")


def test_what_a_method_computes_on_the_way(tmp_path, pictures):
    loaded, m = tiny(), method.make("tip_adapter", search_step=(0, 0))
    task = method.Task(CLASSES, ("a photo of a {}.",), ("a photo of a {}.",), loaded.tokenizer)
    images = np.stack([np.asarray(Image.open(p)) for p in pictures])
    keys = np.asarray(jax.jit(loaded.model.image)(images))
    v = m.init(jax.random.key(0), loaded.model, m.setup(loaded.model, task), {"features": keys, "label": jnp.arange(3)})
    of = {"method": "tip_adapter", "hyper": {}, "backbone": loaded.digest, "classes": list(CLASSES)}
    about = {"model": "tiny_clip", "templates": ["a photo of a {}."], "ensemble": [], "upright": False}
    checkpoint.export(tmp_path / "c", jax.tree.map(np.asarray, v), of | about)
    (tmp_path / "bad.png").write_bytes(b"")
    model = predict.Classifier(tmp_path / "c")
    assert set(model.says) == {"logits", "zero", "affinity_image"}
    paths = [*pictures, tmp_path / "bad.png"]
    said, bad = model.outputs(paths, model.says, batch=3)
    assert [b.index for b in bad] == [3] and all(np.isnan(a[3]).all() for a in said.values())
    np.testing.assert_allclose(np.diag(said["affinity_image"][:3]), 1, rtol=1e-5)  # each is its own key
    cache = retrieval.read(said["affinity_image"][:3], v["fixed"]["label"], v["fixed"]["beta"], 3)
    want = said["zero"][:3] + v["fixed"]["alpha"] * cache
    np.testing.assert_allclose(said["logits"][:3], want, rtol=1e-5)
    p, _ = model(paths)
    np.testing.assert_allclose(p[:3], jax.nn.softmax(want), atol=1e-6)
    with pytest.raises(UserError, match="output of this method"):
        model.outputs(paths, ("affinity",))
    exported(tmp_path / "coop", "coop")
    assert "logits" in (says := predict.Classifier(tmp_path / "coop").says) and "text_features" not in says


def test_many_pictures_from_a_file(tmp_path, pictures):
    exported(tmp_path / "c", "coop")
    (tmp_path / "bad.png").write_bytes(b"")
    lines = [{"image": pictures[0]}, {"image": str(tmp_path / "bad.png")}, {"image": [pictures[1]]}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    run("--checkpoint", tmp_path / "c", "--jsonl", tmp_path / "in.jsonl", "--out", tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert ["classes" in row for row in rows] == [True, False, True] and rows[1]["error"] == "the file is empty"
    good = b'{"image": "x"}\n'
    wrong = {good + b'{"picture": "y"}': "line 2: expected", b"{": "line 1: no valid json", b"\xff": "not UTF-8"}
    wrong |= {b'{"image": []}': "line 1: expected", b'{"image": "x", "text": 3}': "line 1: expected"}
    for content, message in wrong.items():
        (tmp_path / "in.jsonl").write_bytes(content)
        with pytest.raises(UserError, match=message):
            run("--checkpoint", tmp_path / "c", "--jsonl", tmp_path / "in.jsonl")
    with pytest.raises(UserError, match="none.jsonl: No such file"):
        run("--checkpoint", tmp_path / "c", "--jsonl", tmp_path / "none.jsonl")


def test_what_is_refused(tmp_path, pictures):
    with pytest.raises(UserError, match="holds no tuned.safetensors"):
        run("--checkpoint", tmp_path, "--image", pictures[0])
    exported(tmp_path / "c", "coop", backbone="0" * 64)
    with pytest.raises(UserError, match="was tuned on the backbone with SHA-256 0000"):
        run("--checkpoint", tmp_path / "c", "--image", pictures[0])
    exported(tmp_path / "c", "coop")
    with pytest.raises(UserError, match="classifies pictures one by one"):
        run("--checkpoint", tmp_path / "c", "--image", pictures[0], "--text", "vqa: what is it?")
    note = json.loads((tmp_path / "c/tuned.json").read_text())
    del note["model"]
    (tmp_path / "c/tuned.json").write_text(json.dumps(note))
    with pytest.raises(UserError, match="name it with --model"):
        run("--checkpoint", tmp_path / "c", "--image", pictures[0])
    run("--checkpoint", tmp_path / "c", "--image", pictures[0], "--model", "tiny_clip")


@pytest.fixture
def variants(tmp_path):
    """The checkpoint of an untrained variant, as a run leaves it."""
    visual = Visual(width=128, tokens=16)
    loaded = zoo.load_seq("tiny_bart", visual=visual, seed=1)
    chosen = variant.make("single_adapter", reduction=32)
    v = variant.start(chosen, jax.random.key(0), loaded.model, tasks=3)
    folder = tmp_path / "run/single_adapter/tuned"
    about = {"variant": "single_adapter", "hyper": {"reduction": 32}, "visual": dataclasses.asdict(visual)}
    variant.save(folder, jax.tree.map(np.asarray, v), loaded.digest, ("vqa", "nlvr", "tvqa"), about)
    config = {"model": {"name": "tiny_bart"}, "tower": {"name": "tiny_clip"}, "seed": 1}
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    return folder


def test_answers_to_texts(variants, tmp_path, pictures):
    folder = variants
    rows = run("--checkpoint", folder, "--image", *pictures[:2], "--text", "nlvr: there is a circle.")
    assert rows[0]["answer"] in ("true", "false") and rows[0]["image"] == pictures[:2]
    (row,) = run("--checkpoint", folder, "--image", pictures[0], "--text", "vqa: what colour is the circle?")
    assert isinstance(row["answer"], str)
    with pytest.raises(UserError, match="has to begin with one of 'vqa: ', 'nlvr: ', 'tvqa: ' .at its end."):
        run("--checkpoint", folder, "--image", pictures[0], "--text", "what is it?")
    with pytest.raises(UserError, match="say what is asked"):
        run("--checkpoint", folder, "--image", pictures[0])
    for text, images, what in (("nlvr: a.", pictures[:1], "2 pictures"), ("vqa: a?", pictures[:2], "1 picture")):
        with pytest.raises(UserError, match=f"asked about {len(images)} pictures; .* is about {what}"):
            run("--checkpoint", folder, "--image", *images, "--text", text)
    with pytest.raises(UserError, match="--classes are for methods of CLIP"):
        run("--checkpoint", folder, "--image", pictures[0], "--text", "vqa: a?", "--classes", "a,b")
    (tmp_path / "bad.png").write_bytes(b"")
    lines = [
        {"image": pictures[0], "text": "vqa: what colour is the circle?"},
        {"image": [pictures[0], str(tmp_path / "bad.png")], "text": "nlvr: there is a circle."},
        {"image": pictures[:2], "text": "nlvr: there is a circle."},
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = run("--checkpoint", folder, "--jsonl", tmp_path / "in.jsonl", "--out", tmp_path / "out.jsonl")
    assert [found[0]["answer"], found[2]["answer"]] == [row["answer"], rows[0]["answer"]]
    assert found[1]["error"] == f"{tmp_path / 'bad.png'}: the file is empty"
    config = json.loads((folder.parents[1] / "config.json").read_text())
    (folder.parents[1] / "config.json").write_text(json.dumps(config | {"model": {"name": "tiny_t5"}}))
    with pytest.raises(UserError, match="does not fit|was tuned on the backbone"):
        run("--checkpoint", folder, "--image", pictures[0], "--text", "vqa: what?")


def test_where_it_looks(variants, tmp_path, pictures):
    model = predict.Answerer(variants)
    plain = model([("vqa: what colour is the circle?", pictures[:1])])
    opened = Image.open(pictures[0])
    seen = attention.attend(model, opened, "vqa: what colour is the circle?")
    assert seen.answer == plain[0] and seen.weights.shape == (len(seen.tokens), 1, 4, 4)
    assert "".join(seen.tokens) == seen.answer.replace(" ", "")
    assert (seen.weights > 0).all() and (seen.weights.sum((1, 2, 3)) < 1).all()
    pair = attention.attend(model, pictures[:2], "nlvr: there is a circle.")
    assert pair.weights.shape == (1, 2, 4, 4) and pair.tokens == (pair.answer,)
    back = attention.attend(model, pictures[1::-1], "nlvr: there is a circle.")
    assert not np.allclose(pair.weights, back.weights)
    clip, (first, *rest) = str(tmp_path / "clip.gif"), (Image.open(p).convert("RGB") for p in pictures)
    first.save(clip, save_all=True, append_images=rest, duration=1500)
    film = attention.attend(model, clip, "[Subs] Hello. [Q] What? tvqa: ")
    frames = attention.attend(model, [np.asarray(f) for f in video.frames(clip, video.RATE)], film.question)
    assert film.weights.shape == (len(film.tokens), 3, 4, 4) and len(film.pictures) == 3
    np.testing.assert_array_equal(film.weights, frames.weights)
    with pytest.raises(UserError, match="picture.* cannot|no such file"):
        attention.attend(model, str(tmp_path / "none.png"), "vqa: what?")
    out = tmp_path / "out.png"
    run("--checkpoint", variants, "--image", *pictures[:2], "--text", "nlvr: a circle.", "--attention", out)
    assert Image.open(out).width > 100
    (tmp_path / "in.jsonl").write_text(2 * (json.dumps({"image": pictures[0], "text": "vqa: a?"}) + "\n"))
    with pytest.raises(UserError, match="--attention draws one question"):
        run("--checkpoint", variants, "--jsonl", tmp_path / "in.jsonl", "--attention", out)
