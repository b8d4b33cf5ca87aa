"""vlmx.predict: what tuned checkpoints say of pictures, and what is refused."""

import dataclasses
import functools
import importlib
import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vlmx import attention, checkpoint, method, predict, variant, vl
from vlmx.data import scene_text, scenes, video
from vlmx.errors import UserError
from vlmx.models import zoo
from vlmx.models.vlseq import Visual
from vlmx.modules import retrieval

CLASSES = ("red circle", "blue star", "green cross")
HYPER = {"coop": {"n_ctx": 2}, "linear_probe": {}, "clip_adapter": {}}


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
    with pytest.raises(UserError, match="none.jsonl: no such file"):
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
    exported(tmp_path / "d", "coop", model="epoch_1.pt")
    with pytest.raises(UserError, match="d was tuned on this model; name it with --model where it lies elsewhere: unk"):
        run("--checkpoint", tmp_path / "d", "--image", pictures[0])
    run("--checkpoint", tmp_path / "d", "--image", pictures[0], "--model", "tiny_clip")


# -------------------------------------------------------------------- what a checkpoint may do
def note(folder, **fields):
    """Change fields of tuned.json."""
    path = folder / "tuned.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


METHOD = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
from vlmx.methods.coop import make
"""


def test_a_module_of_a_checkpoint_runs_only_where_the_person_allows_it(tmp_path, pictures, monkeypatch):
    folder = tmp_path / "download" / "seed_1"
    exported(folder, "coop")
    (tmp_path / "download" / "evil.py").write_text(METHOD)
    (tmp_path / "evil.py").write_text(METHOD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for fields in (
        {"method": "download.evil"}, {"make": "download.evil"}, {"method": "download.evil+ensemble"},
        {"method": "evil"}, {"method": "coop+evil"}, {"method": "..evil"}, {"method": "vlmx.main"}, {"method": "os"},
        {"method": "adapters", "hyper": {"source": "download.evil"}},
        {"method": "adapters+ensemble", "hyper": {"adapters": {"source": "download.evil"}}},
    ):  # fmt: skip
        exported(folder, "coop", **fields)
        with pytest.raises(UserError, match="no method of vlmx|value of adapters.source"):
            run("--checkpoint", folder, "--image", pictures[0])
    exported(folder, "coop", method="download.evil")
    with pytest.raises(UserError, match="--allow-methods download.evil"):
        run("--checkpoint", folder, "--image", pictures[0], "--allow-methods", "my.other")
    assert not list(tmp_path.rglob("ran"))
    (row,) = run("--checkpoint", folder, "--image", pictures[0], "--allow-methods", "my.other,download.evil")
    assert set(row["classes"]) == set(CLASSES) and (tmp_path / "download" / "ran").exists()
    (tmp_path / "download" / "ran").unlink()
    p, _ = predict.Classifier(folder, allow_methods=["download.evil"])(pictures)
    assert p.shape == (3, 3)


def test_a_variant_from_outside_runs_only_where_the_person_allows_it(variants, tmp_path, monkeypatch):
    (tmp_path / "evil_variant.py").write_text(METHOD.replace("methods.coop", "variants.adapter"))
    monkeypatch.syspath_prepend(str(tmp_path))
    note(variants, variant="evil_variant.x")
    with pytest.raises(UserError, match="--allow-methods evil_variant.x"):
        predict.Answerer(variants)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("hyper", "problem"),
    [
        *(({"n_ctx": n}, "hyper-parameter n_ctx of coop: expected a whole number, at least 1 and at most 65,536; got")
          for n in (10**9, -1, 0, True, 2.0, [2], None, "2")),
        ({"n_ctx": 1000}, "n_ctx"),
        ({"csc": 1}, "hyper-parameter csc of coop: expected True or False"),
        ({"ctx_init": {"a": 1}}, "hyper-parameter ctx_init of coop: expected a text"),
        ({"ctx_init": "x " * 10**5}, "ctx_init|too long"),
        ({"n_context": 2}, "unknown hyper-parameter of coop 'n_context'. Did you mean 'n_ctx'"),
        ({"n_ctx": 3}, r"train/ctx: the file has \(2, 128\), the method needs \(3, 128\)"),
        ({"n_ctx": 2, "csc": True}, r"train/ctx: the file has \(2, 128\), the method needs \(3, 2, 128\)"),
    ],
)  # fmt: skip
def test_hyper_parameters_of_a_checkpoint_are_bounded(tmp_path, hyper, problem):
    exported(tmp_path / "c", "coop", hyper=hyper)
    with pytest.raises(UserError, match=problem) as error:
        predict.Classifier(tmp_path / "c")
    assert len(str(error.value)) < 2000


@pytest.mark.parametrize(
    ("name", "hyper", "problem"),
    [
        ("vpt", {"depth": -1}, "depth of vpt: expected a whole number"),
        ("coop+ensemble", {"coop": {"n_ctx": 2}, "ensemble": {"beta": "x"}}, "beta of ensemble: expected a number"),
        ("clip_lora", {"dropout": float("nan")}, "dropout of clip_lora: expected a number"),
        ("tip_adapter", {"search_step": [10**40, 3]}, "search_step of tip_adapter: expected"),
        ("single_adapter", {"trains": ["(a+)+$"]}, "trains of single_adapter: .*without groups that repeat"),
        ("adapters", {"options": {"trains": ["(a|a)*"]}}, "options of adapters"),
    ],
)
def test_hyper_parameters_of_a_checkpoint_obey_the_rules_of_a_config(name, hyper, problem):
    with pytest.raises(UserError, match=f"^c/tuned.json: .*{problem}"):
        predict._make("c", (variant if "single" in name else method).make, name, hyper)


def test_what_a_config_may_be_a_checkpoint_may_be():
    predict._make("c", method.make, "tip_adapter", {"search_step": [0, 0], "k": 0, "alpha": 1})
    predict._make("c", variant.make, "single_compacter", {"rank": None})
    assert method.build("my.method", lambda n_ctx: n_ctx, {"n_ctx": "what it likes"}) == "what it likes"
    assert method.build("mine", lambda n_ctx: n_ctx, {"n_ctx": np.int64(3)}) == 3
    for name, (file, hyper) in variant.PUBLISHED.items():
        trains = variant.make(file, **hyper).trains
        predict._make("c", variant.make, name, hyper | ({"trains": list(trains)} if file != "full" else {}))


def test_hyper_parameters_of_a_part_are_by_name(tmp_path):
    exported(tmp_path / "c", "coop", method="coop+ensemble", hyper={"coop": [1]})
    with pytest.raises(UserError, match="hyper-parameters of coop: expected"):
        predict.Classifier(tmp_path / "c")


def rewritten(folder, change):
    """Change the arrays of tuned.safetensors."""
    from safetensors.numpy import load_file, save_file

    arrays = load_file(folder / "tuned.safetensors")
    save_file(change(arrays), folder / "tuned.safetensors")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda a: {"train/ctx": a["train/ctx"][:1]}, "train/ctx: the file has .1, 128., the method needs .2, 128."),
        (lambda a: {"train/ctx": a["train/ctx"].astype(np.int32)}, "train/ctx: the file has .2, 128. int32"),
        (lambda a: {}, "train/ctx: the file has nothing"),
        (lambda a: a | {"train/more": a["train/ctx"]}, "train/more: .* the method needs nothing"),
        (lambda a: a | {"fixed/more": a["train/ctx"]}, "fixed/more: .* the method needs nothing"),
        (lambda a: {"train/ctx/inner": a["train/ctx"]}, "train/ctx/inner"),
        (lambda a: {"train/ctx": a["train/ctx"] * np.nan}, "'train/ctx' has numbers that are not finite"),
        (lambda a: {"train/ctx": np.full_like(a["train/ctx"], 3e38)}, "logits that are not finite"),
    ],
)
def test_arrays_that_are_not_the_methods_give_no_probabilities(tmp_path, pictures, change, problem):
    exported(tmp_path / "c", "coop")
    rewritten(tmp_path / "c", change)
    with pytest.raises(UserError, match=problem):
        predict.Classifier(tmp_path / "c")(pictures[:1])


def test_labels_of_a_cache_are_classes(tmp_path):
    m, loaded = method.make("tip_adapter"), tiny()
    task = method.Task(CLASSES, ("a photo of a {}.",), ("a photo of a {}.",), loaded.tokenizer)
    support = {"features": jnp.ones((5, 128)), "label": jnp.array([0, 1, 2, 2, 3])}
    v = m.init(jax.random.key(0), loaded.model, m.setup(loaded.model, task), support)
    of = {"method": "tip_adapter", "hyper": {}, "backbone": loaded.digest, "classes": list(CLASSES)}
    checkpoint.export(tmp_path / "c", jax.tree.map(np.asarray, v), of | {"model": "tiny_clip"})
    with pytest.raises(UserError, match="'fixed/label' numbers classes beyond the 3"):
        predict.Classifier(tmp_path / "c")
    rewritten(tmp_path / "c", lambda a: a | {"fixed/label": np.array([0, 1, 2, 2], np.int32)})
    with pytest.raises(UserError, match="does not fit the method"):
        predict.Classifier(tmp_path / "c")


def test_the_config_above_a_checkpoint_is_checked_or_of_something_else(tmp_path):
    folder, config = tmp_path / "coop-few_shot/seed_1", tmp_path / "config.json"
    exported(folder, "coop")
    for content, problem in {
        '{"model": {"name": 3}}': "config.json: 'model' is 3; expected a text",
        '{"model": {"name": "tiny_clip", "truncate": "no"}}': "config.json: 'truncate' is 'no'",
        '{"model"': "config.json: no valid json",
    }.items():
        config.write_text(content)
        with pytest.raises(UserError, match=problem):
            predict.Classifier(folder)
    config.write_text('{"architectures": ["CLIPModel"]}')
    predict.Classifier(folder)


# -------------------------------------------------------------------- what is asked
def test_texts_that_are_cut_are_cut_again(tmp_path, pictures):
    long = "green " + "and many more words " * 12
    exported(tmp_path / "c", "clip_adapter", classes=["red", long])
    with pytest.raises(UserError, match="text too long"):
        predict.Classifier(tmp_path / "c")
    note(tmp_path / "c", truncate=True)
    (row,) = run("--checkpoint", tmp_path / "c", "--image", pictures[0])
    assert set(row["classes"]) == {"red", long}


def test_names_of_classes():
    assert predict.class_names("") == []
    assert predict.class_names('"cat, domestic",dog') == ["cat, domestic", "dog"]
    assert predict.class_names(' red   circle ,  "a ""b""" , ') == ["red circle", 'a "b"']
    assert predict.class_names('5" disk,dog') == ['5" disk', "dog"]
    for text in (",", " , ", '"cat, dog', '"cat" x,dog'):
        with pytest.raises(UserError, match="--classes"):
            predict.class_names(text)


def test_classes_are_spelled_as_those_that_were_tuned_on(tmp_path):
    exported(tmp_path / "c", "linear_probe", classes=["a  b", "caf\u00e9", "dog"])
    assert predict.Classifier(tmp_path / "c", ["cafe\u0301", "a b"]).classes == ("caf\u00e9", "a  b")
    for classes, problem in (
        (["caf\u00e9", "cafe\u0301"], "is named twice"),
        (["cat\udcff"], "no name of a class"),
        ([""], "no name of a class"),
        ([7], "no name of a class"),
    ):
        with pytest.raises(UserError, match=problem):
            predict.Classifier(tmp_path / "c", classes)


def test_classes_with_the_same_prompt_are_refused(tmp_path):
    exported(tmp_path / "c", "coop")
    for same in (("Cat", "cat"), ("red_fox", "red fox")):
        with pytest.raises(UserError, match=f"{same[0]!r} and {same[1]!r} have the same prompt"):
            predict.Classifier(tmp_path / "c", ["dog", *same])


def test_a_folder_to_write_into_is_refused_before_a_model_is_loaded(tmp_path, pictures, monkeypatch):
    exported(tmp_path / "c", "coop")
    monkeypatch.setattr(zoo, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(UserError, match="a folder; expected the name of a file"):
        run("--checkpoint", tmp_path / "c", "--image", pictures[0], "--out", tmp_path)


def test_what_a_checkpoint_says_sends_no_command_to_the_terminal(tmp_path, pictures, capsys):
    exported(tmp_path / "c", "coop", classes=["red\x1b[2J", "a\nb"])
    run("--checkpoint", tmp_path / "c", "--image", pictures[0])
    said = capsys.readouterr().out
    assert "red\\x1b[2J" in said and "a\\nb" in said and "\x1b" not in said and len(said.splitlines()) == 3
    assert predict.describe_row({"image": "x", "answer": "a\x1b[2J"}) == "x: a\\x1b[2J"


def test_a_config_above_a_checkpoint_that_is_wrong_is_told_apart_from_the_checkpoint(tmp_path, pictures):
    exported(tmp_path / "run/m/seed_1", "coop")
    (tmp_path / "run/config.json").write_text('{"model": {"name": "tiny_clip", "act": 3}}')
    with pytest.raises(UserError, match="config.json: 'act' is 3; expected a text. Repair it, or move"):
        predict.Classifier(tmp_path / "run/m/seed_1")


def test_a_folder_among_images_is_said_to_be_one(tmp_path, pictures):
    exported(tmp_path / "c", "coop")
    lines = [{"image": str(tmp_path)}, {"image": "\ud800.png"}, {"image": pictures[0]}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder, name, _ = run("--checkpoint", tmp_path / "c", "--jsonl", tmp_path / "in.jsonl")
    assert folder["error"] == "Is a directory" and name["error"] == "no name that a file can have"


def test_requests_from_a_pipe_are_refused_and_names_that_are_not_utf8_are_read(tmp_path, pictures):
    exported(tmp_path / "c", "coop")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="a pipe or device, not a file"):
        run("--checkpoint", tmp_path / "c", "--jsonl", tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe: not a regular file"):
        run("--checkpoint", tmp_path / "c", "--image", tmp_path / "pipe")
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    os.link(pictures[0], odd)
    (row,) = run("--checkpoint", tmp_path / "c", "--image", odd, "--out", tmp_path / "rows.jsonl")
    (again,) = run("--checkpoint", tmp_path / "c", "--jsonl", tmp_path / "rows.jsonl")
    assert again == row and set(row["classes"]) == set(CLASSES)


def test_names_of_classes_in_a_file(tmp_path, pictures):
    (tmp_path / "names.txt").write_bytes("\ufeffcat, domestic\r\n\r\n  red   circle \n".encode())
    for text in (str(tmp_path / "names.txt"), f"@{tmp_path / 'names.txt'}"):
        assert predict.class_names(text) == ["cat, domestic", "red circle"]
    exported(tmp_path / "c", "coop")
    (row,) = run("--checkpoint", tmp_path / "c", "--image", pictures[0], "--classes", tmp_path / "names.txt")
    assert set(row["classes"]) == {"cat, domestic", "red circle"}
    (tmp_path / "empty.txt").write_text("\n")
    for text, problem in (
        (f"@{tmp_path / 'none.txt'}", "no such file"),
        (str(tmp_path / "empty.txt"), "no name in it"),
    ):
        with pytest.raises(UserError, match=problem):
            predict.class_names(text)
    with pytest.raises(UserError, match="'cat' is named twice"):
        run("--checkpoint", tmp_path / "c", "--image", pictures[0], "--classes", "cat,dog, cat")


def test_images_of_folders_and_tables(tmp_path, pictures, monkeypatch):
    (tmp_path / "all/inner").mkdir(parents=True)
    Image.open(pictures[0]).save(tmp_path / "all/inner/b.png")
    Image.open(pictures[1]).save(tmp_path / "all/a.JPG", format="JPEG")
    (tmp_path / "all/notes.txt").write_text("x")
    (tmp_path / "all/.hidden.png").write_bytes(b"x")
    (tmp_path / "t.csv").write_text('label,path\n"a, b",all/a.JPG\n,all/inner/b.png\n')
    a, b = str(tmp_path / "all/a.JPG"), str(tmp_path / "all/inner/b.png")
    assert predict.list_files([str(tmp_path / "all"), pictures[2]]) == [a, b, pictures[2]]
    assert predict.list_files([str(tmp_path / "t.csv")]) == [a, b]
    exported(tmp_path / "c", "coop")
    rows = run("--checkpoint", tmp_path / "c", "--image", tmp_path / "all", tmp_path / "t.csv")
    assert [row["image"] for row in rows] == [a, b, a, b] and rows[0] == rows[2]
    (tmp_path / "none").mkdir()
    for content, problem in {b"": "not such a table", b"x,y\n1,2\n": "not such a table", b"path\n": "no rows",
                             b"path,x\n,1\n": "a row without a path", b"\xff": "not UTF-8"}.items():  # fmt: skip
        (tmp_path / "t.csv").write_bytes(content)
        with pytest.raises(UserError, match=problem):
            predict.list_files([str(tmp_path / "t.csv")])
    with pytest.raises(UserError, match="a folder without images"):
        predict.list_files([str(tmp_path / "none")])


def test_files_are_looked_for_before_a_model_is_loaded(tmp_path, pictures, monkeypatch):
    exported(tmp_path / "c", "coop")
    monkeypatch.setattr(zoo, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    for images in (("none.png",), ("none.png", "gone.png"), (str(tmp_path / "none"),)):
        with pytest.raises(UserError, match="no such image file"):
            run("--checkpoint", tmp_path / "c", "--image", *images)
    (tmp_path / "in.jsonl").write_text('{"image": "none.png"}\n')
    with pytest.raises(UserError, match="no such image file"):
        run("--checkpoint", tmp_path / "c", "--jsonl", tmp_path / "in.jsonl")
    (tmp_path / "in.jsonl").write_text("\n")
    with pytest.raises(UserError, match="no line in it"):
        run("--checkpoint", tmp_path / "c", "--jsonl", tmp_path / "in.jsonl")
    with pytest.raises(UserError, match="--batch 0"):
        run("--checkpoint", tmp_path / "c", "--image", pictures[0], "--batch", 0)
    note(tmp_path / "c", method=None)
    with pytest.raises(UserError, match="tuned.json: 'method' is None"):
        run("--checkpoint", tmp_path / "c", "--image", pictures[0])


def test_the_status_says_whether_any_image_could_be_read(tmp_path, pictures, capsys):
    exported(tmp_path / "c", "coop")
    (tmp_path / "bad.png").write_bytes(b"")
    words = ["--checkpoint", str(tmp_path / "c"), "--image", str(tmp_path / "bad.png")]
    assert predict.main(words) == 2
    out, err = capsys.readouterr()
    assert "bad.png: cannot be read: the file is empty" in out and "no image could be read" in err
    assert predict.main([*words, pictures[0]]) == 0


def test_file_names_that_are_not_utf8_are_printed_and_written(tmp_path, pictures, capsys):
    exported(tmp_path / "c", "coop")
    folder = os.fsencode(tmp_path / "all")
    os.mkdir(folder)
    os.link(pictures[0], os.path.join(folder, b"caf\xe9.png"))
    (row,) = run("--checkpoint", tmp_path / "c", "--image", tmp_path / "all")
    assert "caf\\udce9.png\n  " in capsys.readouterr().out
    run("--checkpoint", tmp_path / "c", "--image", tmp_path / "all", "--out", tmp_path / "out.jsonl")
    assert json.loads((tmp_path / "out.jsonl").read_text()) == row


def test_what_a_classifier_takes(tmp_path, pictures):
    exported(tmp_path / "c", "coop")
    model = predict.Classifier(tmp_path / "c")
    p, bad = model([])
    assert p.shape == (0, 3) and p.dtype == np.float32 and bad == []
    assert model.outputs([], ("logits",))[0]["logits"].shape == (0, 3)
    expected, _ = model(pictures)
    array = np.asarray(Image.open(pictures[0]).convert("RGB"))
    for one in (pictures[0], tmp_path / "p0.png", array, Image.open(pictures[0])):
        p, bad = model(one)
        assert p.shape == (1, 3) and not bad
        np.testing.assert_allclose(p, expected[:1], atol=1e-5)
    mixed = [pictures[0], tmp_path / "p1.png", np.asarray(Image.open(pictures[2]).convert("RGB"))]
    np.testing.assert_allclose(model(mixed)[0], expected, atol=1e-5)
    np.testing.assert_allclose(model(np.stack([array, array]))[0], expected[[0, 0]], atol=1e-5)
    p, (bad,) = model([pictures[0], np.zeros((4, 4), np.float32)])
    assert bad.index == 1 and bad.name == "image 1" and np.isnan(p[1]).all() and "uint8" in bad.reason
    assert predict.Classifier(tmp_path / "c", "cat").classes == ("cat",)


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


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"visual": {"width": 10**9}}, "'visual' is"),
        ({"visual": {"breadth": 4}}, "do not fit the method .TypeError"),
        ({"hyper": {"reduction": 0}}, "reduction of single_adapter: expected a whole number"),
        ({"hyper": {"reduction": 16}}, "does not fit the method"),
        ({"hyper": {"length": 3}}, "unknown hyper-parameter"),
        ({"hyper": {"trains": ["(.*)*x"]}}, "without groups that repeat"),
        ({"tasks": [1]}, "'tasks' is"),
        ({"variant": "os"}, "no method of vlmx"),
        ({"variant": "single_lora"}, "unknown hyper-parameter|does not fit"),
        ({"backbone": "0" * 64}, "was tuned on the backbone"),
    ],
)
def test_what_a_variants_checkpoint_says_is_checked(variants, fields, problem):
    note(variants, **fields)
    with pytest.raises(UserError, match=problem):
        predict.Answerer(variants)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: {k: v * np.nan for k, v in a.items()},
        lambda a: {k: v[:1] for k, v in a.items()},
        lambda a: {k: v.astype(np.int32) for k, v in a.items()},
        lambda a: dict(list(a.items())[1:]),
    ],
)
def test_arrays_that_are_not_the_variants_are_refused(variants, change):
    rewritten(variants, change)
    with pytest.raises(UserError, match="tuned.safetensors"):
        predict.Answerer(variants)


def test_a_tower_with_features_of_another_width(variants, pictures):
    model = predict.Answerer(variants)
    model.model = model.model.replace(config=dataclasses.replace(model.model.config, visual=Visual(64, 16)))
    with pytest.raises(UserError, match="of width 128; the variant was tuned on features of width 64. .*--tower"):
        model([("vqa: what is it?", pictures[:1])])


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


def test_a_variant_that_was_copied_away_from_its_run_knows_its_models(variants, tmp_path, pictures):
    asked = "--image", pictures[0], "--text", "vqa: what colour is the circle?"
    (row,) = run("--checkpoint", variants, *asked)
    above = variants.parents[1] / "config.json"
    tower = {"name": "tiny_clip", "act": "quick_gelu", "heads": [2, 2], "arch": ""}
    above.write_text(json.dumps(json.loads(above.read_text()) | {"tower": tower}))
    assert run("--checkpoint", variants, *asked) == [row]
    config = importlib.import_module("configs.scenes_vl").get_config()
    config.seed, config.tower.heads = 1, (2, 2)
    note(variants, **vl.backbones(config))
    folder = shutil.copytree(variants, tmp_path / "copy")
    assert run("--checkpoint", folder, *asked) == [row]
    note(folder, tower_heads=[4, 4])
    with pytest.raises(UserError, match="2 in the image tower, 2 in the text tower"):
        run("--checkpoint", folder, *asked)
    note(folder, tower="epoch_1.pt")
    with pytest.raises(UserError, match="copy was tuned on this model; name it with --tower where it"):
        run("--checkpoint", folder, *asked)


def test_pictures_of_any_kind_are_asked_about(variants, pictures):
    model, text = predict.Answerer(variants), "vqa: what colour is the circle?"
    opened = Image.open(pictures[0])
    kinds = ([pictures[0]], pictures[0], pathlib.Path(pictures[0]), opened, np.asarray(opened), [opened])
    assert len(set(model([(text, kind) for kind in kinds]))) == 1
    assert model([]) == []


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
    by_path = attention.attend(model, pathlib.Path(clip), film.question)
    np.testing.assert_array_equal(film.weights, by_path.weights)
    with pytest.raises(UserError, match="picture.* cannot|no such file"):
        attention.attend(model, str(tmp_path / "none.png"), "vqa: what?")
    out = tmp_path / "out.png"
    run("--checkpoint", variants, "--image", *pictures[:2], "--text", "nlvr: a circle.", "--attention", out)
    assert Image.open(out).width > 100
    (tmp_path / "in.jsonl").write_text(2 * (json.dumps({"image": pictures[0], "text": "vqa: a?"}) + "\n"))
    with pytest.raises(UserError, match="--attention draws one question"):
        run("--checkpoint", variants, "--jsonl", tmp_path / "in.jsonl", "--attention", out)
