"""Whatever the files of a checkpoint or a workdir hold: data, or one UserError, in bounded time and memory."""

import contextlib
import csv
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import hypothesis.strategies as st
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from properties import settings

from vlmx import checkpoint, files, logs, predict, report, train
from vlmx import method as methods
from vlmx import settings as run_settings
from vlmx.errors import UserError
from vlmx.models import zoo

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


JSON_BYTES = JSON.map(lambda value: json.dumps(value).encode())
NAME = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)


@st.composite
def damaged(draw, content):
    """The bytes `content` with some of them flipped, left out, put in, or cut off."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        kind = draw(st.sampled_from(["flip", "cut", "insert", "delete"]))
        if kind == "flip" and content:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del content[at:]
        elif kind == "insert":
            content[at:at] = draw(st.binary(min_size=1, max_size=8))
        else:
            del content[at : at + 4]
    return bytes(content)


@contextlib.contextmanager
def one_error():
    """A UserError of bounded length in place of any other end."""
    try:
        yield
    except UserError as e:
        assert 0 < len(str(e)) < 5000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("folder")


# -------------------------------------------------------------------- exported folders
META = {"method": "coop", "hyper": {"n_ctx": 4}, "backbone": "0" * 64, "classes": ["a", "b"], "model": "tiny_clip"}
META |= {"templates": ["a photo of a {}."], "ensemble": [], "upright": True, "truncate": False, "image_size": None}
ARRAYS = {"train/ctx": np.ones((4, 128), np.float32), "fixed/label": np.arange(3, dtype=np.int32)}


def write(folder, text=None, arrays=None):
    text = json.dumps(META).encode() if text is None else text
    (folder / "tuned.json").write_bytes(text)
    (folder / "tuned.safetensors").write_bytes(safetensors.numpy.save(ARRAYS) if arrays is None else arrays)
    return folder


@settings()
@given(st.binary(max_size=200) | JSON_BYTES | damaged(json.dumps(META).encode()))
def test_any_tuned_json(folder, content):
    with one_error():
        _, meta = checkpoint.read(write(folder, content))
        assert isinstance(meta, dict)


@settings()
@given(st.binary(max_size=200) | damaged(safetensors.numpy.save(ARRAYS)))
def test_any_tuned_safetensors(folder, content):
    with one_error():
        v, _ = checkpoint.read(write(folder, arrays=content))
        assert set(v) == {"train", "fixed"}


@settings()
@given(st.sampled_from(sorted(checkpoint.FIELDS)), JSON)
def test_any_value_of_a_field(folder, field, value):
    with one_error():
        _, meta = checkpoint.read(write(folder, json.dumps(META | {field: value}).encode()))
        is_right, _ = checkpoint.FIELDS[field]
        assert is_right(meta[field])


@pytest.fixture(scope="module")
def loaded_once():
    with pytest.MonkeyPatch.context() as patch:
        loaded = zoo.load("tiny_clip")
        patch.setattr(zoo, "load", lambda name, **_: loaded)
        yield loaded


HYPER = st.dictionaries(
    st.sampled_from(["n_ctx", "ctx_init", "class_token_position", "csc", "depth", "x"]),
    JSON | st.sampled_from([10**9, -1, 4, 2.5, "end", "a photo of a", 10**30]), max_size=3,
)  # fmt: skip


@settings(0.5)
@given(st.sampled_from([*methods.names(), "coop+ensemble", "vpt+text_adapter"]), HYPER)
def test_any_method_and_hyper_parameters(folder, loaded_once, name, hyper):
    """A method that the arrays are not of is refused, whatever it is asked to be built of."""
    meta = META | {"method": name, "hyper": hyper, "backbone": loaded_once.digest}
    with one_error():
        predict.Classifier(write(folder, json.dumps(meta).encode()))
        assert name == "coop"


@settings()
@given(st.text(max_size=30) | st.from_regex(r"[a-z_.+]{1,12}(ensemble)?", fullmatch=True))
def test_no_name_imports_a_module(name):
    before = set(sys.modules)
    with one_error():
        checkpoint.refuse_outside("c", name, methods.names(), ())
        assert all(part in methods.names() for part in name.removesuffix("+ensemble").split("+"))
    assert set(sys.modules) == before


# -------------------------------------------------------------------- what is asked
@settings()
@given(st.lists(st.binary(max_size=40) | JSON_BYTES, max_size=4))
def test_any_lines_of_requests(folder, lines):
    (folder / "in.jsonl").write_bytes(b"\n".join(lines))
    with one_error():
        for request in predict._lines_of(SimpleNamespace(jsonl=str(folder / "in.jsonl"), text="")):
            assert all(isinstance(path, str) and path for path in request["image"]) and isinstance(request["text"], str)


@settings()
@given(st.text(max_size=60))
def test_any_text_of_class_names(text):
    with one_error():
        names = predict.class_names(text)
        assert all(name == " ".join(name.split()) and name for name in names)


@settings()
@given(st.lists(NAME, min_size=1, max_size=4))
def test_quoted_class_names_come_back(names):
    names = [" ".join(name.split()) or "x" for name in names]
    line = io.StringIO()
    csv.writer(line, quoting=csv.QUOTE_ALL).writerow(names)
    assert predict.class_names(line.getvalue()) == names


@settings()
@given(st.binary(max_size=100))
def test_any_table_of_images(folder, content):
    (folder / "table.csv").write_bytes(content)
    with one_error():
        assert predict.list_files([str(folder / "table.csv")])


# -------------------------------------------------------------------- workdirs
RUN = {
    "method": "coop", "protocol": "few_shot", "shots": 1, "trained_params": 3, "trained_percent": 0.1, "seconds": 1.0,
    "notes": [], "settings": {}, "seeds": [{"seed": 1, "metrics": {"accuracy": 50.0}}], "curve": {},
    "summary": {"accuracy": {"mean": 50.0, "stderr": None}},
}  # fmt: skip
CELL = {
    "run": "digits", "benchmark": "digits", "backbone": "tiny_clip", "protocol": "few_shot", "shots": 4,
    "method": "coop", "summary": {"accuracy": {"mean": 50.0, "stderr": None}}, "seconds": 1.0, "notes": [],
    "trained_params": 3, "trained_percent": 0.1, "seeds": [{"seed": 1, "metrics": {"accuracy": 50.0}}], "classes": 10,
    "before": {"accuracy": 70.0}, "n_test": 10, "published_split": True,
}  # fmt: skip
SWEEP = {"title": "x", "command": "", "cells": [CELL], "created": "", "seconds": 1.0}
ROW = {"run": "coop-few_shot", "tag": "train", "seed": 1, "step": 1, "loss": 1.5}


def json_like(value):
    """Any bytes, any json, the json of `value` with some bytes changed, or with another value somewhere in it."""
    plain = json.dumps(value).encode()
    other = st.tuples(st.sampled_from(sorted(value)), JSON).map(lambda item: json.dumps(value | dict([item])).encode())
    return st.binary(max_size=100) | JSON_BYTES | damaged(plain) | other


@settings()
@given(json_like({"run": RUN, "mistakes": []}))
def test_any_result_of_a_method(folder, content):
    (folder / "result.json").write_bytes(content)
    with one_error():
        files.read_json(folder / "result.json", train.TESTED, {"run": train.RUN, "mistakes": [dict]})


@settings()
@given(json_like(SWEEP))
def test_any_results_of_a_sweep_become_a_page_or_an_error(folder, content):
    (folder / "results.json").write_bytes(content)
    with one_error(), files.reading(folder / "results.json"):
        report.write(folder)


@settings()
@given(st.lists(json_like(ROW), max_size=3))
def test_any_metrics(folder, lines):
    (folder / "metrics.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    with one_error():
        logs.curve(folder, "coop-few_shot")


@settings()
@given(json_like({"recipe": {}, "model": {"name": "tiny_clip"}, "shots": 1}), json_like({"config": {}}))
def test_any_config_and_results_of_a_workdir(folder, config, results):
    from ml_collections import ConfigDict

    (folder / "config.json").write_bytes(config)
    (folder / "results.json").write_bytes(results)
    asked = ConfigDict({"recipe": {}, "model": {"name": "tiny_clip"}, "shots": 1})
    with one_error():
        run_settings.finished(asked, Path(folder), write=False)


# -------------------------------------------------------------------- tables for spreadsheets
@settings()
@given(st.text(max_size=20) | st.integers() | st.floats(allow_nan=False))
def test_no_cell_is_a_formula_and_numbers_stay_numbers(value):
    cell = files.csv_cell(value)
    if isinstance(value, str):
        assert not cell.strip(" ").startswith(files.FORMULA)
        assert files.plain_cell(cell) == value or cell == value
    else:
        assert cell is value
