"""People's own images: folders and tables, splits that are made, other class names, and every way to get them wrong."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from vlmx.data import own, task
from vlmx.errors import UserError


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


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
        "files that are no images (.txt): 1",
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


# ---- tables


def table(tmp_path, text, files=("a.jpg", "b.jpg", "c.jpg", "d.jpg")):
    for f in files:
        image(tmp_path / "data" / f)
    write(tmp_path / "data/list.csv", text)
    return task.load({"name": "csv", "root": tmp_path / "data/list.csv"}, tmp_path / "work")


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
    }.items(),
)  # fmt: skip
def test_wrong_tables(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        table(tmp_path, text)


def test_table_in_another_encoding(tmp_path):
    (tmp_path / "list.csv").write_bytes("path,label\na.jpg,Kätzchen\n".encode("latin-1"))
    with pytest.raises(UserError, match="list.csv: not UTF-8 text .* save the table as UTF-8"):
        task.load({"name": "csv", "root": tmp_path / "list.csv"}, tmp_path)


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
        ("x.json", '{"n02": "a",\n}', "x.json: no whole json .*line 2"),
        ("x.json", '["a"]', "1 names for 2 classes"),
        ("x.txt", "n01 a\nn02", "x.txt, entry 2: expected `folder<tab>class name`"),
        ("x.txt", "n03 a", "there is no class 'n03' to rename. Did you mean 'n0"),
    ],
)
def test_wrong_class_names(tmp_path, name, text, message):
    folders(tmp_path / "data", {"n01": 4, "n02": 4})
    with pytest.raises(UserError, match=message):
        load(tmp_path, classnames=write(tmp_path / name, text))
    with pytest.raises(UserError, match=re.escape(f"data.classnames: there is no file {tmp_path / 'none.txt'}")):
        load(tmp_path, classnames=tmp_path / "none.txt")
