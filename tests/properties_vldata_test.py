"""For any content of annotation and feature files the result is data or an error for people, with bad=skip too."""

import io
import json
import zipfile

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import settings
from vl_readers_test import write_coco, write_gqa, write_nlvr, write_value, write_vqa

from vlmx.data import image_text, submission, video_text, vl_features
from vlmx.errors import UserError
from vlmx.metrics import ptb

WRITERS = {"vqa": write_vqa, "caption": write_coco, "gqa": write_gqa, "nlvr": write_nlvr}
SUBTITLES = {"tvqa": "tv_", "tvc": "tv_", "how2qa": "how2_", "yc2c": "yc2_"}
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([]), st.just({}),
    st.just(10**30), st.just("\ud800"), st.just(["x", None]), st.just({"answer": 3}), st.just([[[]]]), st.just("\0"),
)  # fmt: skip
LINES = st.one_of(
    st.binary(max_size=30), st.sampled_from([b"[" * 5000, b"9" * 5000, b"{}", b"null", b"\xff\xfe", b'{"a": NaN}', b""])
)


def task_of(name, root, bad):
    """Read a task as a run does, with all its examples, its score and its submission."""
    if name in image_text.READERS:
        more = {"java": False} if name == "caption" else {}
        task = image_text.load(name, root, bad=bad, **more)
    else:
        task = video_text.load(name, root, bad=bad, java=False)
    for e in (e for part in (task.train, task.val, task.test) for e in part):
        texts = (e.id, e.text, *e.images, *(answer for answer, _ in e.targets))
        assert all(isinstance(t, str) for t in texts)
        "".join(texts).encode()  # whatever is read can be written
    if len(task.test):
        answers = [e.targets[0][0] if e.targets else "" for e in task.test]
        task.score(answers, task.test)
        submission.submission(name, task.test, answers).encode()
    return task


def paths_of(name, root):
    """The files that a task reads."""
    own = name in image_text.READERS
    return sorted(
        p for p in root.rglob("*.json*") if own or p.parent.name == name or p.name.startswith(SUBTITLES[name])
    )


def changed_within(data, content):
    """Json content with one value somewhere in it replaced, removed or repeated, as `data` draws."""
    if isinstance(content, (dict, list)) and content and data.draw(st.integers(0, 9)) > 1:
        key = data.draw(st.sampled_from(sorted(content) if isinstance(content, dict) else range(len(content))))
        kind = data.draw(st.integers(0, 9))
        if isinstance(content, dict) and kind == 0:
            return {k: v for k, v in content.items() if k != key}
        if isinstance(content, list) and kind == 0:
            return [*content, content[key]]
        content = content.copy()
        content[key] = changed_within(data, content[key])
        return content
    return data.draw(VALUES)


@pytest.mark.parametrize("name", [*image_text.READERS, *video_text.READERS])
def test_annotations(tmp_path, name):
    WRITERS.get(name, write_value)(tmp_path)
    originals = {path: path.read_bytes() for path in paths_of(name, tmp_path)}

    @settings()
    @given(st.data())
    def check(data):
        for path, content in originals.items():
            path.write_bytes(content)
        path = data.draw(st.sampled_from(list(originals)))
        lines = originals[path].splitlines(keepends=True)
        if data.draw(st.booleans()):  # bytes: cut short, or something in them
            at = data.draw(st.integers(0, len(originals[path])))
            rest = originals[path][data.draw(st.sampled_from((at, len(originals[path])))) :]
            path.write_bytes(originals[path][:at] + data.draw(LINES) + rest)
        else:
            row = data.draw(st.integers(0, len(lines) - 1))
            content = changed_within(data, json.loads(lines[row]))
            lines[row] = json.dumps(content).encode() + b"\n"
            path.write_bytes(b"".join(lines))
        try:
            task_of(name, tmp_path, data.draw(st.sampled_from(("stop", "skip"))))
        except UserError as e:
            assert str(e)

    check()


def arrays():
    """Arrays as people store them, and others."""
    shapes = st.sampled_from([(4, 3), (36, 3), (2, 2, 3), (0, 3), (3,), (), (5, 4), (5, 0), (1, 1, 1, 3)])
    kinds = st.sampled_from(["f2", "f4", "f8", ">f4", "i4", "u1", "c8", "b1", "S3"])
    fills = st.sampled_from([0.0, 0.5, 1.0, np.nan, np.inf, -1.0, 300.0, 1e300])

    def make(shape, kind, fill):
        with np.errstate(all="ignore"):
            return np.full(shape, fill if kind != "S3" else 1).astype(kind)

    return st.builds(make, shapes, kinds, fills)


def read(path):
    """Read every image of a source as a run does."""
    source = vl_features.where(path)
    for name in ("x", "y", "", ".", "/", "\0", "a/b", "\ud800"):
        if name in source:
            source.outline(name)
            rows = source.read(name)
            assert rows.features.dtype == np.float32 and np.isfinite(rows.features).all() and rows.features.ndim == 2
            if rows.boxes is not None:
                assert rows.boxes.shape == (len(rows.features), 4)
                assert ((rows.boxes >= 0) & (rows.boxes <= 1)).all()
            vl_features.align(source, [name], 4)[name]


KEYS = st.sampled_from(["features", "boxes", "normalized_boxes", "img_w", "img_h", "arr_0", "obj_id"])


@settings()
@given(st.dictionaries(KEYS, arrays(), max_size=5), st.sampled_from(["h5", "npz", "npy", "each"]), st.data())
def test_features(tmp_path_factory, content, form, data):
    folder = tmp_path_factory.mktemp("features")
    path = folder / {"h5": "all.h5", "each": "x.h5"}.get(form, f"x.{form}")
    if form in ("h5", "each"):
        with h5py.File(path, "w") as file:
            for key, array in content.items():
                file[f"x/{key}"] = array
            file["y"] = np.zeros((2, 3), np.float32)
    elif form == "npz":
        np.savez(path, **content)
    else:
        np.save(path, next(iter(content.values()), np.zeros((2, 3), np.float32)))
    if data.draw(st.booleans()):  # damaged
        whole = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(whole[: data.draw(st.sampled_from((len(whole), len(whole) // 2)))])
    try:
        read(path if form == "h5" else folder)
    except UserError as e:
        assert str(folder) in str(e)


@settings()
@given(st.binary(max_size=200), st.sampled_from(["x.h5", "x.npz", "x.npy"]))
def test_features_of_any_bytes(tmp_path_factory, content, name):
    folder = tmp_path_factory.mktemp("features")
    (folder / name).write_bytes(content)
    for path in (folder, folder / name):
        try:
            read(path)
        except UserError as e:
            assert str(folder) in str(e)


def test_an_array_that_unpacks_to_gigabytes_is_refused(tmp_path):
    """A zip of a few kilobytes whose array says that it is 8 GiB."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**20, 2048)})
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("features.npy", header.getvalue())
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file.create_dataset("x/features", (2**20, 2048), "f4", chunks=(1, 2048))
    for path in (tmp_path / "all.h5", tmp_path):
        with pytest.raises(UserError, match=r"cannot be read|at most 1,073,741,824 bytes"):
            vl_features.where(path)["x"]
        (tmp_path / "all.h5").unlink(missing_ok=True)


@settings()
@given(st.text(max_size=60))
def test_captions_become_words(caption):
    words = ptb.words(caption)
    assert all(word and not word.isspace() and " " not in word for word in words)
