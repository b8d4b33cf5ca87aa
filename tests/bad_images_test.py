"""data.bad_images: the run stops with the unreadable images of all splits, or its numbers are those without them."""

import csv
import importlib
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vlmx import train
from vlmx.data import task
from vlmx.errors import UserError

CLASSES, WNIDS = ("red", "green", "blue"), ("n01443537", "n02007558")
TARGET = "imagenet-adversarial/imagenet-a"  # where the reader of imagenet_a looks


def paint(path, color, seed):
    pixels = np.random.default_rng(seed).integers(0, 60, (70, 80, 3), np.uint8)
    pixels[..., color] += 180
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """clean.csv and broken.csv, the same with an unreadable image in each split; the target has one more."""
    root, rows, bad = tmp_path_factory.mktemp("data"), [], []
    for s, (split, n) in enumerate((("train", 4), ("val", 2), ("test", 3))):
        for c, name in enumerate(CLASSES):
            for i in range(n):
                rows.append((f"{split}/{name}/{i}.png", name, split))
                paint(root / rows[-1][0], c, [s, c, i])
        bad.append((len(rows) - n - 1, (f"{split}/green/bad.png", "green", split)))  # between the others
    for path, *_ in (row for _, row in bad):
        (root / path).write_bytes(b"<html>not found</html>")
    Image.new("RGB", (2, 60_000)).save(root / "train/green/bad.png")  # readable, but too thin for the test transform
    for c, wnid in enumerate(WNIDS):
        for i in range(3):
            paint(root / TARGET / wnid / f"{i}.jpg", c, [9, c, i])
    broken = list(rows)
    for at, row in reversed(bad):
        broken.insert(at, row)
    for name, table in (("clean", rows), ("broken", broken)):
        with open(root / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([("path", "label", "split"), *table])
    return root


def config(root, table, arg="zero_shot,coop,vpt,seeds=1,smoke", protocols=("few_shot", "base_to_new"), **fields):
    c = importlib.import_module("configs.csv").get_config(arg)
    c.data.update(root=str(root), file=str(root / f"{table}.csv"), **fields)
    c.model.name, c.protocols, c.shots = "tiny_clip", protocols, -1
    c.targets.cross_dataset = ("imagenet_a",)
    return c


@pytest.fixture
def broken_target(root):
    path = root / TARGET / WNIDS[0] / "1a.jpg"  # between the others
    path.write_bytes(b"")
    yield path
    path.unlink()


def test_the_first_message_lists_the_unreadable_images_of_every_split_and_target(root, broken_target, tmp_path):
    with pytest.raises(UserError) as error:
        train.run(config(root, "broken", protocols=("cross_dataset",)), tmp_path / "broken")
    for line in (
        "1 of 13 train images cannot be read",
        "train/green/bad.png: 64 x 1920000 pixels",
        "1 of 7 val images cannot be read",
        "val/green/bad.png: not an image",
        "1 of 10 test images cannot be read",
        "test/green/bad.png: not an image",
        "1 of 7 imagenet_a test images cannot be read",
        "1a.jpg: the file is empty",
        "bad_images=skip",
    ):
        assert line in str(error.value)
    with pytest.raises(UserError) as error:  # nothing is wrong with what is trained on
        train.run(config(root, "clean", protocols=("cross_dataset",)), tmp_path / "clean")
    assert str(error.value).startswith("1 of 7 imagenet_a test images cannot be read")


def test_skipped_images_are_in_no_number(root, tmp_path):
    """All numbers, subsets and pictures are those of the data without the unreadable images."""
    both = ("few_shot", "cross_dataset")
    clean = train.run(config(root, "clean", protocols=both), tmp_path / "clean")
    extra = root / TARGET / WNIDS[0] / "1a.jpg"
    os.mkfifo(extra)
    try:
        with pytest.raises(UserError, match="bad_images=skip"):
            train.run(config(root, "broken", protocols=both), tmp_path / "skipped")
        c = config(root, "broken", protocols=both, bad_images="skip")
        skipped = train.run(c, tmp_path / "skipped")  # in the workdir of the run that stopped
    finally:
        extra.unlink()

    def numbers(results):
        runs = [
            [{k: s[k] for k in ("metrics", "per_class", "confusion")} for s in run["seeds"]] for run in results["runs"]
        ]
        counts = {k: v for k, v in results["dataset"].items() if k.startswith("n_")}
        mistakes = [{k: v for k, v in row.items() if k != "image"} for row in results["mistakes"]]
        return runs, counts, results["targets"], results["reference"], mistakes

    assert numbers(skipped) == numbers(clean)
    assert len(skipped["runs"]) == 6 and skipped["targets"] == {"imagenet_a": {"n_test": 6}}
    assert skipped["dataset"]["n_test"] == 9 and skipped["dataset"]["unreadable"] == 4
    notes = " ".join(skipped["dataset"]["notes"])
    assert notes.count("left out") == 4 and "1a.jpg (not a regular file, but a FIFO" in notes
    for path in (tmp_path / "clean/few_shot").iterdir():
        assert json.loads((tmp_path / "skipped/few_shot" / path.name).read_text()) == json.loads(path.read_text())
    assert "9 test images that could be read (4 images" in (tmp_path / "skipped/report.html").read_text()


def test_a_class_or_a_test_without_a_readable_image_is_refused_before_training(root, tmp_path):
    rows = list(csv.reader(open(root / "clean.csv")))
    (root / "gone.png").write_bytes(b"")
    for i in range(2):
        paint(root / f"yellow{i}.png", 0, i)
    table = [
        *rows,
        ["gone.png", "yellow", "train"],
        ["yellow0.png", "yellow", "val"],
        ["yellow1.png", "yellow", "test"],
    ]
    with open(root / "gone.csv", "w", newline="") as file:
        csv.writer(file).writerows(table)
    with pytest.raises(UserError, match="no training image of 'yellow' is left"):
        train.run(config(root, "gone", bad_images="skip"), tmp_path / "train")
    with open(root / "gone.csv", "w", newline="") as file:
        rows = [row for row in rows if row[1:] != ["red", "test"]]  # red and yellow are the new classes
        csv.writer(file).writerows([*rows, ["yellow0.png", "yellow", "train"], ["gone.png", "yellow", "test"]])
    with pytest.raises(UserError, match="base_to_new: none of the 1 test images of 'new' can be read"):
        train.run(config(root, "gone", protocols=("base_to_new",), bad_images="skip"), tmp_path / "test")


def test_no_checkpoint_is_best_without_a_readable_validation_image(root, tmp_path):
    rows = [row for row in csv.reader(open(root / "clean.csv")) if row[2] != "val"]
    (root / "gone.png").write_bytes(b"")
    with open(root / "gone.csv", "w", newline="") as file:
        csv.writer(file).writerows([*rows, ["gone.png", "red", "val"]])
    c = config(root, "gone", protocols=("few_shot",), bad_images="skip")
    c.checkpoint_best = True
    with pytest.raises(UserError, match="none of the 1 of few_shot, seed 1, can be read"):
        train.run(c, tmp_path)


def test_a_mistake_whose_picture_is_gone_is_no_end(tmp_path):
    """The file was removed after its image was encoded, when all methods had been trained."""
    paint(tmp_path / "0.png", 0, 0)
    images = task.split(tmp_path, ["0.png", "gone.png"], [0, 0])
    dataset = task.Dataset("x", ("red", "blue"), ("a {}",), images, images, images)
    world = SimpleNamespace(dataset=dataset, workdir=tmp_path)
    part, classes = SimpleNamespace(index=np.arange(2)), SimpleNamespace(classnames=("red", "blue"))
    wrong = np.array([1, 1]), np.array([0.6, 0.9]), np.array([0, 0]), np.ones(2)
    (row,) = train.save_mistakes(world, part, classes, *wrong, ("run", 1, "all"))
    assert row["p"] == pytest.approx(0.6) and (tmp_path / row["image"]).exists()
