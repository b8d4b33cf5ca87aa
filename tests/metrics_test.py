import numpy as np
import pytest
from golden_cases import load

from vlmx.errors import UserError
from vlmx.metrics import accuracy


@pytest.mark.golden("evaluator*.json")
def test_golden_evaluator(golden):
    table = load(golden)
    for case in table.get("cases", ()):
        labels, said, want = np.array(case["labels"]), accuracy.predicted(case["logits"]), case["results"]
        got = accuracy.scores(labels, said)
        assert got["accuracy"] == pytest.approx(want["accuracy"], rel=0, abs=1e-9), case["name"]
        assert 100 - got["accuracy"] == pytest.approx(want["error_rate"], rel=0, abs=1e-9), case["name"]
        assert got["macro_f1"] == pytest.approx(want["macro_f1"], rel=0, abs=1e-9), case["name"]
        assert got["mean_per_class"] == pytest.approx(want["perclass_accuracy"], rel=0, abs=1e-9), case["name"]
        classes = accuracy.per_class(accuracy.confusion(labels, said, case["num_classes"]))
        assert np.nanmean(classes) == pytest.approx(want["perclass_accuracy"], rel=0, abs=1e-9), case["name"]


@pytest.mark.golden("evaluator*.json")
def test_golden_harmonic_mean(golden):
    table = load(golden)
    for pair in table.get("harmonic_mean", {}).get("pairs", ()):
        assert accuracy.harmonic_mean(pair["base"], pair["new"]) == pytest.approx(pair["hm"], rel=0, abs=1e-9)
    if not (over := table.get("averages_over_datasets")):
        return
    base, new = [row["base"] for row in over["rows"]], [row["new"] for row in over["rows"]]
    assert accuracy.hm_of_means(base, new) == pytest.approx(over["hm_of_the_means"], rel=0, abs=1e-9)
    assert accuracy.mean_of_hms(base, new) == pytest.approx(over["mean_of_the_hms"], rel=0, abs=1e-9)


@pytest.mark.golden("evaluator*.json")
def test_golden_seeds(golden):
    for case in (v for v in load(golden).get("seed_aggregation", {}).values() if isinstance(v, dict)):
        got = accuracy.summary(case["values"])
        assert got["mean"] == pytest.approx(case["mean"], rel=0, abs=1e-9)
        assert got["std"] == pytest.approx(case["std_population"], rel=0, abs=1e-9)
        assert 1.96 * got["std"] / np.sqrt(got["n"]) == pytest.approx(case["ci95_half_width"], rel=0, abs=1e-9)


def test_ties_go_to_the_first_maximum():
    assert accuracy.predicted([[1, 1, 1], [0, 3, 3]]).tolist() == [0, 1]


def test_nan_is_an_error_not_a_low_score():
    with pytest.raises(UserError, match="1 of 2 rows of logits hold NaN .*row 1"):
        accuracy.predicted([[0.0, 1.0], [np.nan, 0.0]])


def test_rows_of_weight_zero_do_not_count():
    labels, said, weight = np.array([0, 1, 1, 2]), np.array([0, 1, 0, 0]), np.array([1.0, 1.0, 1.0, 0.0])
    assert accuracy.scores(labels, said, weight) == accuracy.scores(labels[:3], said[:3])
    assert accuracy.confusion(labels, said, 3, weight).tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    with pytest.raises(UserError, match="nothing to score"):
        accuracy.scores(labels, said, np.zeros(4))


def test_per_class_of_an_absent_class_is_nan():
    got = accuracy.per_class([[3, 1], [0, 0]])
    assert got[0] == 75 and np.isnan(got[1])


def test_harmonic_mean_of_zeros():
    assert accuracy.harmonic_mean(0, 0) == 0 and accuracy.harmonic_mean(0, 50) == 0


def test_summary():
    got = accuracy.summary([90, 92, 94])
    assert got["mean"] == 92 and got["stderr"] == pytest.approx(2 / np.sqrt(3)) and got["n"] == 3
    assert accuracy.summary([90])["stderr"] is None


@pytest.mark.filterwarnings("error")
def test_confusion_counts_pairs_and_a_single_class_is_no_warning():
    matrix = accuracy.confusion([0, 0, 1, 2, 2], [0, 1, 1, 0, 2], 4, weight=[1, 1, 1, 1, 0])
    assert matrix.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert accuracy.confusion([0, 0], [0, 0], 1).tolist() == [[2]]
    assert accuracy.scores([0, 0], [0, 0])["macro_f1"] == 100
