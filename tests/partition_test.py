"""Rules over parameter trees: first match wins, nothing passes in silence."""

import jax
import numpy as np
import pytest

from vlmx import partition
from vlmx.errors import UserError

TREE = {"a": {"kernel": np.ones((2, 3)), "bias": np.zeros(3)}, "b": {"bias": np.ones(4)}}


def test_the_first_rule_that_matches_the_whole_path_decides():
    numbers, summary = partition.match(TREE, [("a/.*", 1), (".*bias", 2)])
    assert numbers == {"a": {"kernel": 0, "bias": 0}, "b": {"bias": 1}}
    assert summary.splitlines() == ["a/.* -> 1: a/bias, a/kernel", ".*bias -> 2: b/bias"]


@pytest.mark.parametrize("rules, said", [
    ([("a", 1), (".*", 2)], "'a' decides no parameter"),          # not a whole path
    ([(".*", 1), ("b/bias", 2)], "'b/bias' decides no parameter"),  # an earlier rule took it
    ([("a/.*", 1)], "no rule matches b/bias"),
    ([("a(", 1)], "'a\\(' is not a regular expression"),
])  # fmt: skip
def test_rules_that_do_not_fit_are_named(rules, said):
    with pytest.raises(UserError, match=said):
        partition.match(TREE, rules)


def test_split_and_merge_are_inverse_and_frozen_leaves_are_no_leaves():
    trained, frozen = partition.split(TREE, [(".*bias", True), (".*", False)])
    assert partition.paths(trained) == ["a/bias", "b/bias"] and partition.paths(frozen) == ["a/kernel"]
    for whole in (partition.merge(trained, frozen), partition.merge(frozen, trained)):
        assert jax.tree.structure(whole) == jax.tree.structure(TREE)
        assert all(x is y for x, y in zip(jax.tree.leaves(whole), jax.tree.leaves(TREE)))
    assert jax.tree.leaves(jax.grad(lambda t: t["b"]["bias"].sum())(trained))[1].sum() == 4


def test_count_counts_arrays_and_shapes():
    assert partition.count(TREE) == 13 == partition.count(jax.eval_shape(lambda: TREE))
    assert partition.count({}) == 0
