"""Few-shot subsets and base/new halves: the images that CoOp, Tip-Adapter and CLIP-LoRA take, one by one."""

import pickle
import random
import re

import numpy as np
import pytest
from golden_cases import beside, load

from vlmx.data import fewshot, task
from vlmx.errors import UserError


def labels(items):
    return [i[1] for i in items]


def dataset(split, train=None, val=None):
    """The Dataset of a split file's content, of the items `train` and `val` only."""
    names = {label: c for items in split.values() for _, label, c in items}
    parts = {p: task.split("/data", [i[0] for i in split[p]], labels(split[p])) for p in ("train", "val", "test")}
    whole = task.Dataset("synth", tuple(names[i] for i in range(len(names))), ("{}",), **parts)
    if train is None:
        return whole
    return whole._replace(train=fewshot.take(whole.train, train), val=fewshot.take(whole.val, val))


def split_of(golden):
    name = re.search(r"synth[^.]*", golden.name)[0]
    return load(beside(golden, f"{name}_split_zhou.json"))


@pytest.mark.golden("fewshot_synth*.json")
def test_golden_few_shot(golden):
    want, split = load(golden), split_of(golden)
    whole = dataset(split)
    cases, whole_split = list(want["cases"]), want.get("no_sampling(num_shots=-1)")
    cases += [{"seed": 1, "num_shots": -1, **whole_split}] if whole_split else []
    for case in cases:
        picked = fewshot.sample(whole.train.labels, whole.val.labels, case["num_shots"], case["seed"])
        drawn = dataset(split, *picked)
        base, new = fewshot.halves(drawn.train.labels)
        parts = {"all": drawn, "base": fewshot.select(drawn, base), "new": fewshot.select(drawn, new)}
        for subset, got in parts.items():
            assert list(got.classnames) == want["classes"][subset]["classnames"]
            for part in ("train", "val", "test"):
                expected = want["test"][subset] if part == "test" else case[subset][part]
                split_part = getattr(got, part)
                assert list(split_part.names) == [split[part][i][0] for i in expected["indices"]], (case["seed"], part)
                assert split_part.labels.tolist() == expected["labels"]


@pytest.mark.golden("fewshot_synth*.json")
def test_golden_sampler(golden):
    split = split_of(golden)
    for call in load(golden).get("dassl_api_calls", ()):
        shots, rng = call["num_shots"], random.Random(call["seed"])
        repeated = fewshot.draw(labels(split["train"]), shots, random.Random(call["seed"]), repeat=True)
        assert repeated.tolist() == call["repeat_true_train_indices"]
        assert fewshot.draw(labels(split["train"]), shots, rng).tolist() == call["two_sources_train_indices"]
        assert fewshot.draw(labels(split["val"]), shots, rng).tolist() == call["two_sources_val_indices"]


@pytest.mark.golden("fewshot_other_repos_*.json")
def test_golden_other_samplers(golden):
    want, split = load(golden), split_of(golden)
    for rule in ("tip_adapter", "clip_lora"):
        for case in want.get(rule, {}).get("cases", ()):
            train, val = fewshot.sample(
                labels(split["train"]), labels(split["val"]), case["num_shots"], case["seed"], rule
            )
            assert train.tolist() == case["train_indices"]
            everything = list(range(len(split["val"])))
            assert val.tolist() == (everything if isinstance(case["val_indices"], str) else case["val_indices"])


@pytest.mark.golden("real_splits*.json")
def test_golden_halves(golden):
    for want in load(golden)["datasets"].values():
        base, new = fewshot.halves(range(want["num_classes"]) if "num_classes" in want else range(len(want["wnids"])))
        for part, kept in {"base": base, "new": new}.items():
            if part in want:
                assert len(kept) == want[part]["num_classes"]
                assert want["classnames"][kept[0]] == want[part]["first_class"]
                assert want["classnames"][kept[-1]] == want[part]["last_class"]


def test_small_classes_draw_nothing():
    """A class with too few images gives all of them and leaves the generator alone."""
    few, many = [0, 0], [1] * 30
    with_few = fewshot.draw(few + many, 4, random.Random(5))
    assert with_few.tolist() == [0, 1, *(2 + fewshot.draw(many, 4, random.Random(5)))]


def test_sample_edges():
    none = fewshot.sample([0, 1, 0], [], 1, seed=3)
    assert len(none[0]) == 2 and none[1].tolist() == []
    assert [i.tolist() for i in fewshot.sample([0, 1, 0], [1], -1, seed=3)] == [[0, 1, 2], [0]]
    assert len(fewshot.sample([0] * 40, [0] * 40, 16, seed=1)[1]) == 4
    with pytest.raises(UserError, match="shots = 0: expected a positive number"):
        fewshot.sample([0], [0], 0, seed=1)
    with pytest.raises(UserError, match="'coopp'.*coop"):
        fewshot.sample([0], [0], 1, seed=1, rule="coopp")


def test_halves_rounds_up_and_counts_what_occurs():
    assert fewshot.halves([7, 7, 2, 9]) == ((2, 7), (9,))


def test_select_and_take_are_lazy_and_picklable():
    images = [np.full((2, 2), i, np.uint8) for i in range(6)]
    split = task.Split(images, np.array([0, 1, 2, 0, 1, 2], np.int32), [f"train/{i}" for i in range(6)])
    whole = task.Dataset("x", ("a", "b", "c"), ("{}",), split, split, split)
    got = pickle.loads(pickle.dumps(fewshot.select(whole, (2, 1)))).train
    assert got.labels.tolist() == [1, 0, 1, 0] and got.labels.dtype == np.int32
    assert list(got.names) == ["train/1", "train/2", "train/4", "train/5"]
    assert [int(i[0, 0]) for i in got.images] == [1, 2, 4, 5]
    again = fewshot.take(got, [3, 0])
    assert again.labels.tolist() == [0, 1] and int(again.images[0][0, 0]) == 5 and len(again.images) == 2
