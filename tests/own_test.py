"""People's own images: folders and tables, splits that are made, other class names, and every way to get them wrong."""

import json
import os
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from vlmx import features, files, method, settings, world
from vlmx.data import fewshot, image_files, own, task, tokenizer
from vlmx.errors import UserError

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def image(path, form=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path, form)


def folders(root, counts, part=""):
    for c, n in counts.items():
        for i in range(n):
            image(root / part / c / f"{i:02d}.jpg")
    return root


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def load(tmp_path, **config):
    return task.load({"name": "folder", "root": tmp_path / "data", **config}, tmp_path / "work")


def sizes(dataset):
    return [np.bincount(s.labels, minlength=len(dataset.classnames)).tolist() for s in dataset[3:6]]


# ---- folders


def test_class_folders_and_made_splits(tmp_path):
    folders(tmp_path / "data", {"tabby_cat": 10, "dog": 20})
    image(tmp_path / "data/dog/puppies/a.PNG")
    image(tmp_path / "data/dog/.thumbs/a.png")
    image(tmp_path / "data/dog/._00.jpg")
    write(tmp_path / "data/dog/notes.txt", "not an image")
    write(tmp_path / "data/.cache/x.txt", "hidden")
    got = load(tmp_path)
    assert got.classnames == ("dog", "tabby_cat") and got.templates == ("a photo of a {}.",) and got.upright
    assert sizes(got) == [[11, 5], [4, 2], [6, 3]]
    everything = [n for s in got[3:6] for n in s.names]
    assert len(set(everything)) == 31 and "dog/puppies/a.PNG" in everything
    assert list(got.train.names) == sorted(got.train.names), "the splits are in the order of the listing"
    assert all(Image.open(path).size == (4, 4) for s in got[3:6] for path in s.images)
    file = tmp_path / "work/splits.csv"
    assert got.notes == (
        f"no test and no val split: 30 % of each class as test and 20 % of each class as val, "
        f"taken from train by a rule with seed 0, written to {file}",
        f"left out below {tmp_path / 'data'}: hidden or system files and folders: 3; "
        "files that are not read as images (.txt): 1",
    )
    again = task.load({"name": "folder", "root": tmp_path / "data"}, tmp_path / "other")
    assert all(list(a.names) == list(b.names) for a, b in zip(got[3:6], again[3:6]))

    table = load(tmp_path, name="csv", file=file)  # the file that was written is a table to be read
    assert [list(s.images) for s in table[3:6]] == [list(s.images) for s in got[3:6]] and table.notes == ()
    assert all(a.labels.tolist() == b.labels.tolist() for a, b in zip(got[3:6], table[3:6]))
    image(tmp_path / "data/dog/99.jpg")
    with pytest.raises(UserError, match="splits.csv was written by an earlier run on other data"):
        load(tmp_path)


def test_split_folders(tmp_path):
    for part, n in {"Train": 10, "valid": 3, "test": 4}.items():
        folders(tmp_path / "data", {"a": n, "b": n}, part)
    got = load(tmp_path)
    assert sizes(got) == [[10, 10], [3, 3], [4, 4]] and got.notes == () and not (tmp_path / "work").exists()
    assert got.val.names[0] == "valid/a/00.jpg"


def test_only_val_is_missing(tmp_path):
    folders(tmp_path / "data", {"a": 10, "b": 1}, "train")
    folders(tmp_path / "data", {"a": 4}, "test")
    got = load(tmp_path)
    assert sizes(got) == [[8, 1], [2, 0], [4, 0]]
    assert "no val split: 20 % of each class as val" in got.notes[0]
    assert got.notes[1] == "classes without test images: b (1)"


def test_small_classes_keep_a_training_image():
    for n in range(1, 30):
        parts = own.make([(f"{i}.jpg", 0, "a") for i in range(n)], ["test", "val"])
        assert parts["train"] and sum(map(len, parts.values())) == n


def test_a_class_may_be_called_train(tmp_path):
    assert load(folders(tmp_path / "data", {"train": 5, "bus": 5}).parent).classnames == ("bus", "train")


def test_wrong_folders(tmp_path):
    with pytest.raises(UserError, match=r"data.root: there is no folder .*data.(.|\n)*ROOT/golden retriever/\*.jpg"):
        load(tmp_path)
    image(tmp_path / "data/a.jpg")
    with pytest.raises(UserError, match="0 class folders, at least 2 are needed(.|\n)*one folder per class"):
        load(tmp_path)
    folders(tmp_path / "data", {"a": 2, "b": 2})
    (tmp_path / "data/empty").mkdir()
    with pytest.raises(UserError, match="no images in empty"):
        load(tmp_path)


def test_what_is_in_a_zip_of_a_folder(tmp_path):
    folders(tmp_path / "data/my images", {"a": 3, "b": 3})
    (tmp_path / "data/__MACOSX/my images").mkdir(parents=True)
    with pytest.raises(UserError, match="holds one folder, of 2: did you mean data.root=.*data/my images?"):
        load(tmp_path)


def test_classes_that_are_only_in_test(tmp_path):
    folders(tmp_path / "data", {"cat": 2, "dog": 2}, "train")
    folders(tmp_path / "data", {"cat": 2, "dogs": 2}, "test")
    with pytest.raises(UserError, match="data/test: 1 classes have no training images: dogs. Did you mean 'dog'"):
        load(tmp_path)


def tree(root, *names, n=4):
    """Folders with n images each."""
    for name in names:
        folders(root, {name: n})
    return root


@pytest.mark.parametrize(
    ("names", "classes", "counts", "note"),
    [
        (
            (*(f"seg_{part}/seg_{part}/{c}" for part in ("train", "test") for c in "ab"), "seg_pred/x"),
            ("a", "b"), [6, 2, 8], "left out, folders beside the splits: 'seg_pred' (4 images)",
        ),
        (
            ("train_images/a", "train_images/b", "test_images/a", "test_images/b"),
            ("a", "b"), [6, 2, 8], "read as splits: 'test_images' as test, 'train_images' as train",
        ),
        (
            ("train/train/a", "train/train/b", "test/test/a"),
            ("a", "b"), [6, 2, 4], "read as splits: 'test/test' as test, 'train/train' as train",
        ),
        (
            ("train/a", "train/b", "test"),
            ("a", "b"), [4, 2, 2], "left out below ROOT: images that lie in no class folder: 4",
        ),
        (
            ("train", "bus"),
            ("bus", "train"), [4, 2, 2], "the folder 'train' is read as a class, as it holds no class folders",
        ),
        (
            ("train_data/a", "train_data/b", "test1/a", "test1/b"),
            ("a", "b"), [6, 2, 8], "read as splits: 'test1' as test, 'train_data' as train",
        ),
        (("bullet train", "steam train", "test tube"), ("bullet train", "steam train", "test tube"), [6, 3, 3], None),
        (
            ("fold1/cat", "fold1/dog", "fold2/cat", "fold2/dog"), ("fold1", "fold2"), [8, 4, 4],
            "read as classes: 'fold1', 'fold2' ...; each of them holds the same folders, 'cat', 'dog' ...: if these "
            "are the classes, name one of the upper folders as data.root",
        ),
    ],
)  # fmt: skip
def test_what_was_understood_is_said(tmp_path, names, classes, counts, note):
    tree(tmp_path / "data", *names)
    got = load(tmp_path)
    assert got.classnames == classes and [len(s.labels) for s in got[3:6]] == counts
    notes = [n.replace(str(tmp_path / "data"), "ROOT") for n in got.notes if "written to" not in n]
    assert notes[:1] == ([note] if note else []) or note in notes


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("val/a", "val/b", "test/a", "test/b"), "'test', 'val' look like splits, but none is a train folder"),
        (("bus", "car", "train/freight", "train/passenger"), "is 'train' a split or a class.*'freight', 'passenger'"),
        (("train", "test"), "'test', 'train' look like splits, but hold no class folders"),
        (("train", "test1"), "'test1', 'train' look like splits, but hold no class folders"),
        (("a", "b", " "), "a class folder is called ' '; rename it"),
        (("train/a", "train/b", "Train/a"), "'Train', 'train' look like splits, but two of them are the same one"),
        (("train/a", "train/b", "training/a"), "two of them are the same one"),
        (("images_train/a", "images_test/a", "masks_train/a", "masks_test/a"), "two of them are the same one"),
        (("cat/train", "cat/test", "dog/train", "dog/test"), "each class folder holds splits.*ROOT/test/CLASS"),
        (("cat/train", "cat/test", "dog/train"), r"each class folder holds splits \(test, train\)"),
        (("a/b/x", "a/b/y"), "holds one folder, of 2: did you mean data.root=.*data/a/b?"),
        (("a", "b\x1b[31m"), r"a class folder is called 'b\\x1b\[31m'; rename it"),
        (("train/images/a", "train/images/b"), "data/train holds one folder, of 2: move what is in .*train/images up"),
        (("1", "01", "2"), "the classes '01' and '1' are the same number"),
    ],
)
def test_what_is_ambiguous_is_refused(tmp_path, names, message):
    tree(tmp_path / "data", *names)
    with pytest.raises(UserError, match=message):
        load(tmp_path)


def test_numbers_are_sorted_by_value(tmp_path):
    numbers = [str(i) for i in range(-1, 12)]
    tree(tmp_path / "data", *numbers)
    names = write(tmp_path / "names.json", json.dumps([f"name {i}" for i in numbers]))
    got = load(tmp_path, classnames=names)
    assert all(
        got.classnames[label] == f"name {f.split('/')[0]}" for f, label in zip(got.train.names, got.train.labels)
    )
    (tmp_path / "work/splits.csv").unlink()
    rows = [f"{i}/{k:02d}.jpg,{float(i)}" for i in numbers for k in range(4)]
    file = write(tmp_path / "data/t.csv", "path,label\n" + "\n".join(rows))
    got = load(tmp_path, name="csv", file=file, classnames=names)
    assert all(
        got.classnames[label] == f"name {f.split('/')[0]}" for f, label in zip(got.train.names, got.train.labels)
    )
    assert own.sort_classes({"b", "10", "9.5", "nan", "1" * 5000}, "x") == ("9.5", "10", "1" * 5000, "b", "nan")
    for same in ("01", "1.0", "+1", "1.", "1e0", "\uff11"):
        with pytest.raises(UserError, match="are the same number, written in two ways"):
            own.sort_classes({"1", same}, "x")


def test_every_file_that_is_an_image_is_read_and_all_others_are_counted(tmp_path):
    tree(tmp_path / "data", "a", "b", n=2)
    a = tmp_path / "data/a"
    forms = {"1.jfif": "JPEG", "2.avif": "AVIF", "3": "PNG", "4.JPG": "JPEG", "5.img": "WEBP", "6.pcx": "PCX"}
    for name, form in forms.items():
        image(a / name, form)
    image(a / "7.dng", "TIFF")
    image(a / "8.eps", "EPS")
    write(a / "P5 text", "P5 is no image")
    write(a / "empty", "")
    os.mkfifo(a / "pipe")
    (a / "zero").symlink_to("/dev/zero")
    (a / "broken link").symlink_to("nowhere")
    for name in ("@eaDir/1.jpg/thumb.jpg", ".ipynb_checkpoints/1.jpg", "._1.jpg", "__MACOSX/1.jpg", "1.jpg~"):
        image(a / name, "JPEG")
    write(a / "Thumbs.db", "")
    got = load(tmp_path)
    listed = sorted(n for s in got[3:6] for n in s.names if n.startswith("a/"))
    assert listed == ["a/00.jpg", "a/01.jpg", *(f"a/{n}" for n in forms)]
    assert got.notes[1] == (
        f"left out below {tmp_path / 'data'}: hidden or system files and folders: 6; "
        "files that are not read as images (no ending): 5; files that are not read as images (.dng): 1; "
        "files that are not read as images (.eps): 1"
    )


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    tree(tmp_path / "data", "a", "b")
    scandir = os.scandir

    def locked(folder):
        if Path(folder).name == "b":
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(UserError, match="data/b.* cannot be listed .Permission denied.*Make it readable"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("link", "to"), [("a/up", ".."), ("a/x/self", "."), ("loop", "."), ("a/all", "/"), ("a/self.txt", "self.txt")]
)
def test_links_that_lead_back_add_no_images(tmp_path, link, to):
    tree(tmp_path / "data", "a", "a/x", "b")
    (tmp_path / "data" / link).symlink_to(to)
    got = load(tmp_path)
    assert got.classnames == ("a", "b") and sum(len(s.labels) for s in got[3:6]) == 12
    assert "left out" in got.notes[1] and ": 1" in got.notes[1]


def test_each_image_counts_once(tmp_path):
    tree(tmp_path / "data", "a", "b")
    (tmp_path / "data/a/again").symlink_to(tmp_path / "data/a/00.jpg")
    (tmp_path / "data/a/again.jpg").hardlink_to(tmp_path / "data/a/01.jpg")
    got = load(tmp_path)
    assert sum(len(s.labels) for s in got[3:6]) == 8
    assert got.notes[1].endswith("paths that lead to an image once more: 2")


def test_links_are_read_where_they_lead_elsewhere(tmp_path):
    tree(tmp_path / "elsewhere", "a")
    tree(tmp_path / "data", "b")
    (tmp_path / "data/a").symlink_to(tmp_path / "elsewhere/a")
    (tmp_path / "linked").symlink_to("data")
    got = task.load({"name": "folder", "root": tmp_path / "linked"}, tmp_path / "work")
    assert got.classnames == ("a", "b") and sum(len(s.labels) for s in got[3:6]) == 8


def test_one_image_in_two_places_is_refused_and_both_are_named(tmp_path):
    tree(tmp_path / "data", "train/a", "train/b", "test/a", "test/b")
    (tmp_path / "data/train/a/more").symlink_to("../../test/a")
    with pytest.raises(UserError, match="train/a/more/00.jpg .the same file as test/a/00.jpg. is 'a' in train, .*test"):
        load(tmp_path)
    (tmp_path / "data/train/a/more").unlink()
    (tmp_path / "data/train/a/more.jpg").hardlink_to(tmp_path / "data/train/b/00.jpg")
    with pytest.raises(UserError, match="train/b/00.jpg .the same file as train/a/more.jpg. is 'b' in .* but 'a' in"):
        load(tmp_path)


def test_composed_and_decomposed_accents_are_one_class(tmp_path):
    for part, name in (("train", NFC), ("test", NFD)):
        tree(tmp_path / "data", f"{part}/{name}", f"{part}/tea")
    tree(tmp_path / "data", f"train/{NFD}", n=2)
    names = write(tmp_path / "names.json", json.dumps({NFD: "coffee"}))
    got = load(tmp_path, classnames=names)
    assert got.classnames == ("coffee", "tea") and sizes(got) == [[5, 3], [1, 1], [4, 4]]


def test_names_that_are_no_utf8_work(tmp_path):
    tree(tmp_path / "data", "train/tea", "test/tea")
    for part in ("train", "test"):
        folder = os.path.join(os.fsencode(tmp_path), b"data", part.encode(), b"caf\xe9")
        os.mkdir(folder)
        for i in range(4):
            image(Path(os.fsdecode(os.path.join(folder, b"%d\xff.jpg" % i))))
    got = load(tmp_path)
    assert got.classnames == (NFC, "tea") and sizes(got)[0] == [3, 3]
    assert any("'caf\\udce9' is not UTF-8; it is read as Latin-1: class 'café'" in note for note in got.notes)
    "\n".join(got.notes).encode()  # can be printed
    read = load(tmp_path, name="csv", file=tmp_path / "work/splits.csv")  # with the bytes of the names as they are
    assert [list(s.names) for s in read[3:6]] == [list(s.names) for s in got[3:6]]
    assert [s.labels.tolist() for s in read[3:6]] == [s.labels.tolist() for s in got[3:6]]
    with pytest.raises(UserError, match="the name is not UTF-8, where no checkpoint can be written"):
        settings.finished(None, Path("caf\udce9"))
    again = load(tmp_path)  # the same splits.csv
    assert len(np.unique(features.identities(again.train)[0], axis=0)) == len(again.train.labels)
    files.write_json(tmp_path / "list.json", list(got.train.names))
    assert json.loads((tmp_path / "list.json").read_text()) == list(got.train.names)


# ---- split files


def split_file(tmp_path, parts, **config):
    tree(tmp_path / "data", "a", "b")
    file = tmp_path / "split.json"
    file.write_bytes(parts if isinstance(parts, bytes) else json.dumps(parts).encode())
    return load(tmp_path, split_file=str(file), **config)


TRAIN = [["a/00.jpg", 0, "first"], ["b/00.jpg", 1, "second"]]
SPLIT = {"train": TRAIN, "val": [["a/01.jpg", 0, "first"]], "test": [["b/01.jpg", 1, "second"]]}


def test_split_file_of_own_folders(tmp_path):
    got = split_file(tmp_path, SPLIT)
    assert got.classnames == ("first", "second") and got.upright and sizes(got) == [[1, 1], [1, 0], [0, 1]]
    assert list(got.train.names) == ["a/00.jpg", "b/00.jpg"] and not (tmp_path / "work").exists()
    assert got.notes == ("classes without test images: first (1)",)
    write(tmp_path / "data/mine.json", json.dumps(SPLIT))
    assert sizes(load(tmp_path, split_file="mine.json")) == sizes(got), "below data.root"
    image(tmp_path / "data" / NFD / "x.jpg")
    got = split_file(tmp_path, SPLIT | {"val": [[f"./{NFC}/x.jpg", 0, "first"], [f"{NFD}/x.jpg", 0, "first"]]})
    assert list(got.val.names) == [f"./{NFD}/x.jpg"] and all(os.path.exists(path) for path in got.val.images)
    assert any("lists 1 images once more; each counts once" in note for note in got.notes)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(
    "entry",
    [
        ["a/02.jpg", True, "first"], ["a/02.jpg", 0.0, "first"], ["a/02.jpg", "0", "first"], ["a/02.jpg", -1, "first"],
        ["a/02.jpg", float("nan"), "first"], ["a/02.jpg", None, "first"], ["a/02.jpg", [0], "first"], ["a/02.jpg", 0],
        ["a/02.jpg", 0, "first", 1], ["a/02.jpg", 0, ""], ["a/02.jpg", 0, "\ud800"], ["a/02.jpg", 0, 5],
        ["", 0, "first"], [3, 0, "first"], "a/02.jpg", {"path": "a/02.jpg"}, None,
        ["a/99.jpg", 0, "first"], ["a/\0.jpg", 0, "first"],
        ["a/\ud800.jpg", 0, "first"], ["a", 0, "first"],
    ],
)  # fmt: skip
def test_a_wrong_entry_of_a_split_file_is_refused_or_left_out(tmp_path, entry, skip):
    parts = SPLIT | {"test": [["b/01.jpg", 1, "second"], entry]}
    if skip:
        got = split_file(tmp_path, parts, bad_images="skip")
        assert sizes(got) == [[1, 1], [1, 0], [0, 1]] and any("left out" in n and "test[1]" in n for n in got.notes)
    else:
        with pytest.raises(UserError, match=r"split.json(.|\n)*test\[1\]"):
            split_file(tmp_path, parts)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (SPLIT | {"test": [["b/01.jpg", 10**12, "second"]]}, "b/01.jpg has label 1000000000000 and class 'second'"),
        (SPLIT | {"train": [["a/00.jpg", 10**9, "first"], *TRAIN[1:]]}, r"missing: \[0\], the largest is 1,000,000,0"),
        (dict.fromkeys(SPLIT, []), "split.json: there are no training images"),
        (SPLIT | {"test": [["./a/00.jpg", 0, "first"]]}, r"test\[0\]: ./a/00.jpg .*'first' in test, .* at train\[0\]"),
        (SPLIT | {"train": [*TRAIN, ["a/00.jpg", 1, "second"]]}, "a/00.jpg is 'second' in train, but 'first' in train"),
        (SPLIT | {"train": [["a/00.jpg", 0, "x"], ["b/00.jpg", 1, "x"]], "val": [], "test": []}, "class name 'x'"),
        (SPLIT | {"train": []}, "the labels of the training images must be 0, 1, 2, ...; missing: .0., the largest"),
        ({"train": TRAIN[:1], "val": [], "test": []}, "split.json: 1 labels; at least 2 are needed"),
        ({"train": TRAIN}, "no list under the key 'val'"),
        (b'{"train": NaN}', "no list under the key 'train'"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"train": [[1' + b"0" * 5000 + b"]]}", "too many digits"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[]", "is no split file: a list, not an object"),
    ],
)
def test_wrong_split_files(tmp_path, parts, message):
    with pytest.raises(UserError, match=message):
        split_file(tmp_path, parts)


def test_split_files_that_cannot_be_used(tmp_path):
    tree(tmp_path / "data", "a", "b")
    os.mkfifo(tmp_path / "pipe")
    for file, message in (("none.json", "is not there"), ("a", "a folder, not a file"), (tmp_path / "pipe", "a pipe")):
        with pytest.raises(UserError, match=message):
            load(tmp_path, split_file=file)
    with pytest.raises(UserError, match="data.split_file: digits is part of the package"):
        task.load({"name": "digits", "split_file": "x.json"}, tmp_path)
    write(tmp_path / "t.csv", "path,label\n")
    with pytest.raises(UserError, match="data.split_file: a csv names the split of each image"):
        load(tmp_path, name="csv", file=tmp_path / "t.csv", split_file="x.json")


# ---- tables


def table(tmp_path, text, files=("a.jpg", "b.jpg", "c.jpg", "d.jpg"), **config):
    for f in files:
        image(tmp_path / "data" / f)
    write(tmp_path / "data/list.csv", text)
    return task.load({"name": "csv", "root": tmp_path / "data/list.csv", **config}, tmp_path / "work")


def test_table(tmp_path):
    rows = [
        "path,label,split,who",
        "a.jpg,cat,train,me",
        'b.jpg,"dog, wild",train,',
        "c.jpg,cat,validation,",
        "d.jpg,cat,test,x",
    ]
    text = "\ufeff" + "\n".join(rows)
    got = table(tmp_path, text)
    assert got.classnames == ("cat", "dog, wild") and got.upright and sizes(got) == [[1, 1], [1, 0], [1, 0]]
    assert list(got.train.images) == [str(tmp_path / "data/a.jpg"), str(tmp_path / "data/b.jpg")]
    assert got.notes == ("classes without test images: dog, wild (1)",)


def test_table_without_splits_and_with_paths_elsewhere(tmp_path):
    for i in range(20):
        image(tmp_path / f"pictures/{i}.png")
    rows = [f"{i}.png,{(2, 10)[i % 2]}" for i in range(19)] + [f"{tmp_path}/pictures/19.png,10"]
    write(tmp_path / "list.csv", "path,label\n" + "\n".join(rows))
    got = task.load({"name": "csv", "file": tmp_path / "list.csv", "root": tmp_path / "pictures"}, tmp_path / "work")
    assert got.classnames == ("2", "10"), "numbers are sorted as numbers"
    assert sizes(got) == [[5, 5], [2, 2], [3, 3]]
    assert (tmp_path / "work/splits.csv").read_text().startswith("path,label,split\n")


@pytest.mark.parametrize(
    ("text", "message"),
    {
        "image,class\na.jpg,cat": r"list.csv, line 1: expected .* path,label\[,split\] with commas, found image,class",
        "": "line 1: expected the columns .* found nothing",
        "path,label\na.jpg,cat\nb.jpg,": "line 3: expected 2 values with a path and a label",
        "path,label\na.jpg,dog, wild": "line 2: expected 2 values .*quote a value with a comma",
        "path,label,split\na.jpg,cat,trian": "line 2: split is 'trian'; expected train, val or test",
        "path,label\na.jpg,cat\nz.jpg,dog": "line 3: there is no image .*data/z.jpg",
        "path,label,split\na.jpg,cat,train\na.jpg,cat,test": "line 3: a.jpg is 'cat' in test, .* in train at line 2",
        "path,label\na.jpg,cat\na.jpg,dog": "line 3: a.jpg is 'dog' in train, but 'cat' in train at line 2",
        "path,label,split\na.jpg,cat,train\nb.jpg,dog,train\nc.jpg,fox,test": "1 labels have no training rows: fox",
        "path,label\na.jpg,cat": "list.csv: 1 labels; at least 2 are needed",
        "path,label,split\na.jpg,cat": "line 2: expected 3 values with a path and a label",
        'path,label\n\na.jpg,"cat\nb.jpg,dog\n': "line 3: the row that begins here cannot be read .*a quote not closed",
        'path,label\na.jpg,"cat\nb.jpg,"dog"': "line 2: the row that begins here cannot be read",
        'path,label\na.jpg,"cat\nb.jpg,dog"': "line 2: the label 'cat.nb.jpg,dog' goes over several lines",
        "path,label\na.jpg," + "x" * 200_000: "line 2: .*field larger than field limit",
        "path,label\na.jpg," + "x" * 10_000: "line 2: .* has 10000 characters",
        "path,label,label\na.jpg,cat,dog": "line 1: there are two columns called 'label'",
        "path,label\na\0.jpg,cat": "line 2: there is no image .*a.x00.jpg",
        "path,label\na.jpg,c\0at": "line 2: the label .* control character",
        "path,label\n.,cat": "line 2: there is no image",
        "path,label,split\na.jpg,cat,train\n./a.jpg,cat,test": "line 3: ./a.jpg .the same file as a.jpg. .* at line 2",
        "path,label\na.jpg,1\nb.jpg,01": "the classes '01' and '1' are the same number",
        "path,label\na.jpg,1\nb.jpg,1.0": "the classes '1' and '1.0' are the same number",
    }.items(),
)  # fmt: skip
def test_wrong_tables(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        table(tmp_path, text)


def test_table_in_another_encoding(tmp_path):
    (tmp_path / "list.csv").write_bytes("path,label\na.jpg,Kätzchen\n".encode("latin-1"))
    with pytest.raises(UserError, match="list.csv: not UTF-8 text .* save the table as UTF-8"):
        task.load({"name": "csv", "root": tmp_path / "list.csv"}, tmp_path)


def test_rows_that_name_an_image_again_count_once(tmp_path):
    again = f"a.jpg,cat\n./a.jpg,cat\n{tmp_path}/data/a.jpg,cat\nb.jpg,dog\n"
    got = table(tmp_path, f"path,label\n{again}")
    assert sum(len(s.labels) for s in got[3:6]) == 2
    assert f"2 rows of {tmp_path / 'data/list.csv'} name an image once more; each counts once" in got.notes


def test_wrong_rows_are_left_out_and_counted(tmp_path):
    rows = ["a.jpg,cat", "b.jpg,dog", "z.jpg,cat", "c.jpg", ",dog"]
    write(tmp_path / "data/list.csv", "path,label\n" + "\n".join(rows))
    tree(tmp_path, "data")
    for name in "ab":
        image(tmp_path / f"data/{name}.jpg")
    config = {"name": "csv", "root": tmp_path / "data/list.csv", "bad_images": "skip"}
    got = task.load(config, tmp_path / "work")
    assert got.classnames == ("cat", "dog") and sum(len(s.labels) for s in got[3:6]) == 2
    assert any(re.search("3 of 5 rows are left out, for instance .*line 4: there is no image", n) for n in got.notes)


def test_a_class_is_not_lost_where_wrong_rows_are_left_out(tmp_path):
    text = "path,label,split\na.jpg,cat,train\nb.jpg,dog,train\nz.jpg,fox,train\nc.jpg,fox,west\n,owl,train\n"
    with pytest.raises(UserError, match="line 4: there is no .* Correct the row, or leave .*=skip$"):
        table(tmp_path, text)
    with pytest.raises(UserError, match="no training image of the class 'fox' and of 1 more, .* line 4: there is"):
        table(tmp_path, text, bad_images="skip")
    parts = SPLIT | {"train": [*TRAIN, ["", 2, "third"]]}
    with pytest.raises(UserError, match=r"image of the class 'third', for instance train\[2\] is \['', 2, 'third'\]"):
        split_file(tmp_path, parts, bad_images="skip")


def test_tables_as_windows_and_spreadsheets_write_them(tmp_path):
    rows = ["path,label,split", r"x\a.jpg,cat,train", r'.\x\b.jpg, "dog", train', ",,", "   ", r"x\c.jpg , dog ,test"]
    files = ("x/a.jpg", "x/b.jpg", "x/c.jpg")
    got = table(tmp_path, "\ufeff" + "\r\n".join(rows), files=files)
    assert got.classnames == ("cat", "dog") and list(got.test.names) == ["x/c.jpg"]
    assert sum(len(s.labels) for s in got[3:6]) == 3 and all(os.path.exists(p) for s in got[3:6] for p in s.images)
    backslashes = {part: [[path.replace("/", "\\"), *rest] for path, *rest in SPLIT[part]] for part in SPLIT}
    assert list(split_file(tmp_path, backslashes).train.names) == ["a/00.jpg", "b/00.jpg"]


def test_spaces_around_the_name_of_a_class_folder(tmp_path):
    tree(tmp_path / "data", "train/ dog", "train/cat ", "test/dog", "test/cat")
    got = load(tmp_path)
    assert got.classnames == ("cat", "dog") and sizes(got)[2] == [4, 4]
    tree(tmp_path / "flat", " dog", "cat ")
    got = task.load({"name": "folder", "root": tmp_path / "flat"}, tmp_path / "spaces")
    again = task.load({"name": "csv", "root": tmp_path / "flat", "file": tmp_path / "spaces/splits.csv"}, tmp_path)
    assert got.classnames == again.classnames and sizes(got) == sizes(again)


def test_accents_of_tables(tmp_path):
    text = f"path,label\n{NFC}.jpg,{NFC}\nb.jpg,{NFD}\nc.jpg,tea"
    got = table(tmp_path, text, files=(f"{NFD}.jpg", "b.jpg", "c.jpg"))
    assert got.classnames == (NFC, "tea") and all(os.path.exists(p) for s in got[3:6] for p in s.images)


def test_what_is_no_table(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    for file, message in (("pipe.csv", "a pipe or device, not a file"), ("", "a folder, not a file")):
        with pytest.raises(UserError, match=message):
            task.load({"name": "csv", "root": tmp_path / file}, tmp_path)
    (tmp_path / "utf16.csv").write_bytes("path,label\na.jpg,b".encode("utf-16"))
    with pytest.raises(UserError, match="utf16.csv: not UTF-8 text .*save the table as UTF-8"):
        task.load({"name": "csv", "root": tmp_path / "utf16.csv"}, tmp_path)


def test_missing_table(tmp_path):
    with pytest.raises(UserError, match="there is no file .*nothing.csv. Name a csv `path,label"):
        task.load({"name": "csv", "root": tmp_path / "nothing.csv"}, tmp_path)


# ---- class names from a file


def test_class_names_from_a_file(tmp_path):
    folders(tmp_path / "data", {"n01": 4, "n02": 4, "odd name": 4})
    cases = {
        "names.json": json.dumps({"n02": "great white shark"}),
        "list.json": json.dumps(["n01", "great white shark", "odd name"]),
        "names.txt": "n02 great white shark\n\n",
        "tabs.txt": "n02\tgreat white shark\nodd name\todd name\n",
    }
    for name, text in cases.items():
        got = load(tmp_path, classnames=write(tmp_path / name, text))
        assert got.classnames == ("n01", "great white shark", "odd name"), name


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.json", '{"n02": "a",\n}', "x.json: no valid json .*line 2"),
        ("x.json", '["a"]', "1 names for 2 classes"),
        ("x.txt", "n01 a\nn02", "x.txt, entry 2: expected `folder<tab>class name`"),
        ("x.txt", "n03 a", "there is no class 'n03' to rename. Did you mean 'n0"),
        ("x.json", "5", "a number, not an object or a list"),
        ("x.json", '"n01"', "a text, not an object or a list"),
        ("x.json", "", "x.json: empty"),
        ("x.json", "[" * 100_000, "nested too deeply"),
        ("x.json", '{"n01": 5}', "the name of class 'n01' is 5; expected a text of one line"),
        ("x.json", '{"n01": {"n02": "a"}}', "the name of class 'n01' is .*expected a text of one line"),
        (
            "x.json",
            '{"n01": ' + "[" * 900 + "]" * 900 + "}",
            "the name of class 'n01' is .*expected a text of one line",
        ),
        ("x.json", '{"n01": " "}', "the name of class 'n01' is ' '; expected a text of one line"),
        ("x.json", '{"n01": "\\ud800"}', "expected a text of one line"),
        ("x.json", '{"n01": "a", "n01": "b"}', "class 'n01' has two names, 'a' and 'b'"),
        ("x.json", '["a", "a"]', "the classes 'n01', 'n02' all get the name 'a'"),
        ("x.json", '{"n01": "n02"}', "the classes 'n01', 'n02' all get the name 'n02'"),
        ("x.txt", "n01\t\nn02\tb", "the name of class 'n01' is ''; expected a text of one line"),
        ("x.txt", "n01 a\nn01 b", "class 'n01' has two names, 'a' and 'b'"),
    ],
)
def test_wrong_class_names(tmp_path, name, text, message):
    folders(tmp_path / "data", {"n01": 4, "n02": 4})
    with pytest.raises(UserError, match=message):
        load(tmp_path, classnames=write(tmp_path / name, text))
    with pytest.raises(UserError, match=re.escape(f"data.classnames: there is no file {tmp_path / 'none.txt'}")):
        load(tmp_path, classnames=tmp_path / "none.txt")


def test_what_is_no_file_of_class_names(tmp_path):
    folders(tmp_path / "data", {"n01": 4, "n02": 4})
    (tmp_path / "latin.txt").write_bytes("n01 Kätzchen".encode("latin-1"))
    os.mkfifo(tmp_path / "pipe")
    wrong = {"latin.txt": "not UTF-8 text", "pipe": "a pipe or device", "data": "a folder, not a file"}
    for file, message in wrong.items():
        with pytest.raises(UserError, match=message):
            load(tmp_path, classnames=tmp_path / file)


# ---- prompts


@pytest.mark.parametrize(
    "templates",
    [
        *(5, [5], [None], {"a": 1}, "a photo", ["{}", "x"], "\ud800{}", "\0{}", "{} {}", "{{}} {}"),
        *("a {nice} photo of {}.", "{{x}} {}", "a {0} of {}", "{ {}", "{}}"),
    ],
)
def test_templates_that_are_none(tmp_path, templates):
    with pytest.raises(UserError, match="data.templates: "):
        task.load({"name": "digits", "templates": templates}, tmp_path)


def test_braces_of_a_class_name_are_text(tmp_path):
    dataset = task.load({"name": "digits", "templates": "a photo of {}."}, tmp_path)
    texts, _ = method.prompts(method.Task(("a_{b}", "{}"), dataset.templates, (), None), dataset.templates)
    assert texts == ["a photo of a {b}.", "a photo of {}."]


def test_classes_with_the_same_prompt_are_noted():
    names = ("Cat", "tea", "cat", "golden_retriever", NFC, "golden  retriever", NFD)
    tokens = tokenizer.load(Path(own.__file__).parent.parent / "assets/tiny_clip", 32, 1536)
    dataset = task.load({"name": "digits"}, ".")._replace(classnames=names)
    config = ConfigDict({"model": {"truncate": False}})
    (note,) = world.find_same_prompts(config, dataset, tokens)
    assert note.endswith(f"names: 'Cat' = 'cat'; 'golden_retriever' = 'golden  retriever'; {NFC!r} = {NFD!r}")
    assert world.find_same_prompts(config, dataset._replace(classnames=("cat", "dog")), tokens) == []
    long = dataset._replace(classnames=("cat " * 30 + "a", "cat " * 30 + "b", "dog"))
    config.model.truncate = True
    assert len(world.find_same_prompts(config, long, tokens)) == 1, "they differ in what is cut off alone"


# ---- helpers


def test_paths_can_be_printed():
    assert image_files.printable("a/caf\udce9\n\x1b[0m.jpg") == "a/caf\\udce9\\n\\x1b[0m.jpg"
    assert image_files.printable(Path("café.jpg")) == "café.jpg"


def test_few_shot_lists_hold_each_image_once(tmp_path):
    tree(tmp_path / "data", "a", "b", n=10)
    (tmp_path / "data/a/loop").symlink_to("..")
    train = load(tmp_path).train
    rows, _ = fewshot.sample(train.labels, [], 16, 1)
    names = [train.names[i] for i in rows]
    assert len(set(names)) == len(names) == 10
