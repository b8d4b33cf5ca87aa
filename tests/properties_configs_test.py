"""For any value in any field of a config, any text behind the colon, and any results.json: accepted, or a UserError."""

import copy
import functools
import json
import time

import numpy as np
import pytest
from fields_test import CHECKS, EVERY, leaves, put
from hypothesis import given
from hypothesis import strategies as st
from properties import settings

from configs import common, digits, scenes_vl
from vlmx import fields, report
from vlmx.errors import UserError

SECONDS = 20  # far more than a check takes, far less than a training or a download

numbers = st.one_of(
    st.integers(-(2**70), 2**70), st.integers(-3, 20), st.floats(), st.sampled_from([10**400, -(10**400), np.int64(3)])
)
texts = st.one_of(st.text(max_size=8), st.sampled_from(["", "\0", "{}", "a {} {}", "{:>99999999}", "(", "../x", "1e9"]))
atoms = st.one_of(st.none(), st.booleans(), numbers, texts, st.binary(max_size=3))
values = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.sampled_from(["name", "lr", "wd", "hyper", "x", "1"]), inner, max_size=3),
    ),
    max_leaves=6,
)


@functools.cache
def whole(named):
    """A config, and the names of its fields and groups."""
    from fields_test import load

    config = load(named)
    names = {field for field, _ in leaves(config)}
    groups = {".".join(field.split(".")[:n]) for field in names for n in range(1, field.count(".") + 1)}
    return config, sorted(names | groups)


def accepted_or_refused(call):
    """What `call()` returns, or None where it raises a UserError; within bounded time."""
    began = time.monotonic()
    try:
        result = call()
    except UserError as e:
        assert str(e) and "\n" not in str(e)[:1]
        result = None
    assert time.monotonic() - began < SECONDS
    return result


@settings()
@given(data=st.data(), named=st.sampled_from(["digits:coop+adapters+ensemble", *EVERY[1:]]))
def test_any_value_in_any_field(data, named):
    config, names = whole(named)
    config = copy.deepcopy(config)
    for field in data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=2)):
        if field.split(".")[0] == "family":
            continue  # the next test
        try:
            put(config, field, data.draw(values))
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError):  # not even a ConfigDict can hold it
            pass
    accepted_or_refused(lambda: CHECKS[whole(named)[0].family](config))


@settings(0.5)
@given(values)
def test_any_family_and_title(value):
    config = copy.deepcopy(whole("digits:coop+adapters+ensemble")[0])
    for field in ("family", "title"):
        put(config, field, value)
        accepted_or_refused(lambda: fields.check_top(config, "family", "title"))
        accepted_or_refused(lambda: fields.check(config))


words = st.one_of(
    st.sampled_from(["coop", "zero_shot", "smoke", "coop+vpt", "+", "coop+", "all", "single_adapter", "my.method", ""]),
    st.tuples(
        st.sampled_from([*common.TOP, "n_ctx", "epochs", "batch", "tasks", "backbone", "seed", "reduction", "zz"]),
        st.one_of(
            st.sampled_from(
                ["1", "-1", "0", "(1,2)", "()", "nan", "1e999", "None", "True", "10**9", "[1", "{}", "'a'"]
            ),
            st.text(st.characters(blacklist_characters="=", blacklist_categories=["Cs"]), max_size=6),
        ),
    ).map("=".join),
)


@settings()
@given(st.lists(words, max_size=4), st.sampled_from([digits, scenes_vl]))
def test_any_words_behind_the_colon(arguments, config_file):
    def call():
        config = config_file.get_config(",".join(arguments))
        return CHECKS[config.family](config)

    accepted_or_refused(call)


@settings()
@given(st.data())
def test_any_field_that_the_command_line_sets(data):
    config, names = whole("digits:coop+adapters+ensemble")
    config = copy.deepcopy(config)
    key = data.draw(st.one_of(st.sampled_from(names), st.text("abc._[]0", max_size=8)))
    value = data.draw(st.one_of(texts, values.map(repr)))

    def call():
        arguments = [f"--config.{key}={value}"]
        fields.set_fields(config, arguments)
        return CHECKS["classification"](config)

    accepted_or_refused(call)


# ---------------------------------------------------------------- results
def of_a_run():
    seed = {"seed": 1, "metrics": {"accuracy": 50.0}, "per_class": {"all": {"a": 50.0, "b": 50.0}}}
    seed |= {"confusion": {"all": [[1, 1], [1, 1]]}}
    run = {"method": "coop", "protocol": "few_shot", "shots": 2, "trained_params": 3, "trained_percent": 1.0}
    run |= {"seconds": 1.0, "notes": ["n"], "settings": {"lr": 1}, "seeds": [seed, seed | {"seed": 2}]}
    run |= {"draws": {"least": 1, "most": 2, "different": 1}, "summary": {"accuracy": {"mean": 50.0, "stderr": 0.1}}}
    run |= {"curve": {"step": [1, 2], "loss": [[1.0], [2.0]]}, "images": "features"}
    mistake = {"run": 0, "seed": 1, "part": "all", "true": "a", "said": "b", "p": 0.5, "image": "mistakes/a.png"}
    dataset = {
        "name": "d",
        "classnames": ["a", "b"],
        "n_train": 4,
        "n_val": 0,
        "n_test": 4,
        "unreadable": 1,
        "notes": [],
    }
    return {"title": "t", "runs": [run], "mistakes": [mistake], "dataset": dataset, "seconds": 1, "config": {},
            "model": {"name": "m", "params": 5, "digest": "ab"}, "failed": []}  # fmt: skip


def of_a_sweep():
    seeds = [{"seed": s, "metrics": {"base": 50.0, "new": 40.0, "hm": 44.4}} for s in (1, 2)]
    cell = {"run": "d", "benchmark": "d", "backbone": "m", "protocol": "base_to_new", "shots": 2, "method": "coop"}
    cell |= {"summary": {k: {"mean": 50.0, "stderr": 1.0} for k in ("base", "new", "hm")}, "seeds": seeds, "notes": []}
    cell |= {"trained_params": 3, "trained_percent": 1.0, "seconds": 1, "n_test": 9, "tested": {"base": 4, "new": 5}}
    lost = {k: cell[k] for k in ("run", "benchmark", "backbone", "protocol", "shots")} | {
        "method": "vpt",
        "failed": "x",
    }
    return {"title": "t", "command": "c", "created": "now", "cells": [cell, lost]}


def of_vl():
    baseline = {"name": "majority answer", "answer": "yes", "test": {"accuracy": 1.0}}
    task = {
        "name": "vqa",
        "n_train": 1,
        "n_val": 1,
        "n_test": 1,
        "metric": "accuracy",
        "baseline": baseline,
        "notes": [],
    }
    run = {"method": "full", "trained_params": 3, "trained_percent": 1.0, "seconds": 1.0, "settings": {}, "curve": {},
           "tasks": {"vqa": {"test": {"accuracy": 5.0}}}, "examples_seen": {}}  # fmt: skip
    row = {"run": 0, "part": "vqa", "question": "q", "said": "a", "reference": "b", "score": 5.0, "image": "a.png"}
    model = {"name": "m", "params": 1, "digest": "ab", "tower": {"name": "c", "digest": "d"}}
    return {"title": "t", "family": "vl", "tasks": [task], "runs": [run], "examples": [row], "model": model,
            "config": {}, "seconds": 1, "versions": {}, "device": "cpu", "created": "now", "command": "c"}  # fmt: skip


def places(tree, path=()):
    """The paths of all entries of nested dicts and lists."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in pairs:
        yield (*path, key)
        yield from places(value, (*path, key))


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 10**12), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)


@pytest.mark.parametrize("make", [of_a_run, of_a_sweep, of_vl])
def test_whole_results_make_a_report(tmp_path, make):
    (tmp_path / "results.json").write_text(json.dumps(make()))
    assert report.main([str(tmp_path)]) == 0


@pytest.mark.filterwarnings("ignore")  # of numpy, for numbers that are none
@settings(0.5)
@given(st.data(), st.sampled_from([of_a_run, of_a_sweep, of_vl]))
def test_any_results(tmp_path_factory, data, make):
    results, folder = make(), tmp_path_factory.mktemp("results")
    for *groups, last in data.draw(st.lists(st.sampled_from(list(places(results))), min_size=1, max_size=2)):
        place = results
        try:
            for key in groups:
                place = place[key]
            place[last] = data.draw(json_values)
        except (LookupError, TypeError):  # replaced above
            continue
    (folder / "results.json").write_text(json.dumps(results))
    began = time.monotonic()
    assert report.main([str(folder)]) in (0, 2)
    assert time.monotonic() - began < SECONDS


@settings(0.3)
@given(content=st.one_of(st.binary(max_size=30), json_values.map(lambda x: json.dumps(x).encode())))
def test_any_bytes_as_results(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("results")
    (folder / "results.json").write_bytes(content)
    assert report.main([str(folder)]) in (0, 2)
