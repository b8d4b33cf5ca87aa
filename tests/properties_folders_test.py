"""Folders, tables, split files and class-name files of any kind: a data set whose images are each there once, or one
UserError."""

import json
import os
import tempfile
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from properties import settings

from vlmx.data import task
from vlmx.data.image_files import file_id, is_system
from vlmx.errors import UserError

NAMES = st.sampled_from(
    [
        "a",
        "b",
        "A",
        "1",
        "01",
        "2.0",
        "train",
        "test",
        "val",
        "Training",
        "seg_train",
        "seg_test",
        "@eaDir",
        ".x",
        "x y",
    ]
    + ["caf\u00e9", "cafe\u0301", "caf\udce9", "\n", "a~", "x.jpg"]
)
# what stands at a path: an image, other bytes, a link to another path, a pipe, an empty folder
LEAVES = st.sampled_from(["image", "image", "image", "text", "link", "pipe", "folder"])
PATHS = st.lists(
    st.tuples(st.lists(NAMES, min_size=1, max_size=4), LEAVES, st.integers(0, 30)), min_size=1, max_size=24
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
IMAGE = ("a/0.png", "a/1.png", "./a/0.png", "b/0.png", "b/1.png", "b/2.png", "c.png", "a", "a/\0.png")


def build(root, paths):
    """Make a tree of folders as far as the file system allows it."""
    for names, leaf, number in paths:
        path = os.path.join(root, *names, f"{number}{'.png' if number % 2 else ''}")
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if leaf == "image":
                with open(path, "xb") as f:
                    Image.new("RGB", (2, 2)).save(f, "PNG")
            elif leaf == "text":
                Path(path).write_text("P6 no image")
            elif leaf == "link":
                other = paths[number % len(paths)][0]
                os.symlink(os.path.join(root, *other[: number % 4]), path)
            elif leaf == "pipe":
                os.mkfifo(path)
            else:
                os.mkdir(path)
        except OSError:
            pass  # the path is taken


def load_or_refuse(root, **config):
    """Return the data set with its promises checked, or None where it is refused."""
    with tempfile.TemporaryDirectory() as workdir:
        try:
            dataset = task.load({"root": str(root), **config}, workdir)
        except UserError as e:
            str(e).encode()  # can be printed
            return None
        parts = (dataset.train, dataset.val, dataset.test)
        assert len(set(dataset.classnames)) == len(dataset.classnames) >= 2
        images = [file_id(path) for part in parts for path in part.images]
        assert len(set(images)) == len(images), "each image counts once"
        assert all(0 <= label < len(dataset.classnames) for part in parts for label in part.labels)
        assert set(dataset.train.labels) == set(range(len(dataset.classnames)))
        "".join((*dataset.notes, *dataset.classnames)).encode()
        return dataset


@settings()
@given(PATHS)
def test_any_folder(paths):
    with tempfile.TemporaryDirectory() as root:
        build(root, paths)
        dataset = load_or_refuse(root, name="folder")
        if dataset:
            names = [name for part in (dataset.train, dataset.val, dataset.test) for name in part.names]
            assert not any(is_system(part) for name in names for part in name.split("/"))


def two_classes(root):
    for c, n in (("a", 4), ("b", 4)):
        for i in range(n):
            path = Path(root, c, f"{i}.png")
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (2, 2)).save(path)
    return root


CELLS = st.sampled_from(
    [*IMAGE, "cat", "dog", "1", "1.0", "01", "train", "test", "", '"', '"x', "caf\u00e9", "cafe\u0301"]
)
ROWS = st.lists(st.lists(CELLS, max_size=4).map(",".join), max_size=12)
HEADERS = st.sampled_from(["path,label", "path,label,split", "label,path,x", "path", "path,label,label", ""])


@settings()
@given(
    st.binary(max_size=200) | st.tuples(HEADERS, ROWS).map(lambda t: "\n".join([t[0], *t[1]]).encode()), st.booleans()
)
@example(b"\xff\xfep\0", False)
@example(b"path,label\na/0.png," + b"9" * 5000 + b"\nb/0.png,1", True)
def test_any_table(content, skip):
    with tempfile.TemporaryDirectory() as root:
        file = Path(two_classes(root), "list.csv")
        file.write_bytes(content)
        load_or_refuse(root, name="csv", file=str(file), bad_images="skip" if skip else "stop")


LABELS = st.integers(-1, 3) | st.sampled_from([10**9, 10**12, True, 1.0, "1"])
ITEMS = st.tuples(st.sampled_from(IMAGE), LABELS, st.sampled_from(["cat", "dog", "", "caf\u00e9", "cafe\u0301"])).map(
    list
)
SPLITS = st.fixed_dictionaries({part: st.lists(ITEMS | JSON, max_size=5) | JSON for part in ("train", "val", "test")})


@settings()
@given(st.binary(max_size=100) | (SPLITS | JSON).map(lambda content: json.dumps(content).encode()), st.booleans())
@example(b"[" * 100_000, True)
@example(b'{"train": [["a/0.png", ' + b"9" * 5000 + b', "cat"]], "val": [], "test": []}', True)
def test_any_split_file(content, skip):
    with tempfile.TemporaryDirectory() as root:
        file = Path(two_classes(root), "split.json")
        file.write_bytes(content)
        load_or_refuse(root, name="folder", split_file=str(file), bad_images="skip" if skip else "stop")


LINES = st.lists(st.sampled_from(["a\tcat", "b dog", "a", "b\t", "c x", "\ta", "a\tdog\t", ""]), max_size=4)


@settings()
@given(
    st.binary(max_size=60)
    | st.text(max_size=60).map(lambda text: text.encode(errors="surrogatepass"))
    | LINES.map(lambda lines: "\n".join(lines).encode())
    | (JSON | st.dictionaries(st.sampled_from("abc"), JSON)).map(lambda content: json.dumps(content).encode()),
    st.sampled_from(["json", "txt"]),
)
def test_any_file_of_class_names(content, ending):
    with tempfile.TemporaryDirectory() as root:
        two_classes(root)
        with tempfile.NamedTemporaryFile(suffix=f".{ending}") as file:
            Path(file.name).write_bytes(content)
            load_or_refuse(root, name="folder", classnames=file.name)
