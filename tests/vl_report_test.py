"""The report of vision-and-language tasks from results alone: what it marks, colors and says is true."""

import json

import numpy as np
import pytest
from PIL import Image

from vlmx import report, vl_examples, vl_report
from vlmx.data import vl_forms
from vlmx.data.vl import Example
from vlmx.metrics import vqa


def run(name, **tested):
    tasks = {task: {"test": numbers} for task, numbers in tested.items()}
    return {"method": name, "trained_params": 10, "trained_percent": 1.0, "seconds": 1.0, "tasks": tasks,
            "settings": {}, "examples_seen": {}, "curve": {}}  # fmt: skip


def task(name, metric, base, n_test=400, notes=()):
    baseline = {"name": "majority answer", "answer": "yes", "test": {metric: base}}
    return {"name": name, "n_train": 9, "n_val": 9, "n_test": n_test, "metric": metric, "baseline": baseline,
            "notes": list(notes)}  # fmt: skip


@pytest.fixture
def results():
    tasks = [task("vqa", "accuracy", 20.0, notes=["3 entries are left out"]), task("caption", "CIDEr", 30.0)]
    runs = [
        run("single_adapter", vqa={"accuracy": 60.0}, caption={"CIDEr": 90.0}),
        run("single_lora", vqa={"accuracy": 59.0}, caption={"CIDEr": 80.0}),
    ]
    model = {"name": "tiny_bart", "digest": "a" * 64, "params": 100, "tower": {"name": "tiny_clip", "digest": ""}}
    return {"title": "t", "family": "vl", "tasks": tasks, "runs": runs, "model": model, "examples": [], "config": {},
            "versions": {}, "device": "cpu", "seconds": 1.0, "created": "now", "command": "c"}  # fmt: skip


def best(results):
    return vl_report.best_of(results, *vl_report.rows_of(results))


def write(folder, results):
    (folder / "results.json").write_text(json.dumps(results))
    return report.write(folder).read_text()


def test_a_best_value_is_marked_where_the_difference_exceeds_its_error(tmp_path, results):
    assert best(results) == {"vqa accuracy": set(), "caption CIDEr": set(), "average": set()}
    assert 'class="best"' not in write(tmp_path, results)
    results["runs"][0]["tasks"]["vqa"]["test"]["accuracy"] = 70.0
    assert best(results) == {"vqa accuracy": {"single_adapter"}, "caption CIDEr": set(), "average": set()}
    assert write(tmp_path, results).count('class="best"') == 1


def test_an_average_of_shares_has_an_error(results):
    results["tasks"][1] = task("gqa", "accuracy", 20.0)
    for one, value in zip(results["runs"], (90.0, 70.0)):
        one["tasks"]["gqa"] = {"test": {"accuracy": value}}
    assert best(results) == {"vqa accuracy": set(), "gqa accuracy": {"single_adapter"}, "average": {"single_adapter"}}


def test_a_task_without_a_test_has_no_baseline_of_it_and_no_average(tmp_path, results):
    results["tasks"][0]["n_test"] = 0
    for one in results["runs"]:
        one["tasks"]["vqa"] = {"val": {"accuracy": 50.0}}
    _, rows = vl_report.rows_of(results)
    assert [row["cells"] for row in rows][0] == {"vqa accuracy": None, "caption CIDEr": 30.0, "average": None}
    write(tmp_path, results)


def test_a_metric_that_is_no_number_is_a_dash(tmp_path, results):
    results["runs"][0]["tasks"]["caption"]["test"]["CIDEr"] = float("nan")
    assert "nan" not in vl_report.table(results)
    assert "nan" not in write(tmp_path, results)[-6000:].replace("finance", "")


def test_what_is_left_out_is_said_on_the_terminal_and_on_the_page(tmp_path, results):
    assert "note: vqa: 3 entries are left out" in vl_report.table(results)
    assert "vqa: 3 entries are left out" in write(tmp_path, results)


def test_answers_are_colored_by_their_score(tmp_path, results):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    row = {"run": 0, "seed": None, "part": "vqa", "question": "q", "reference": "bar / pub", "image": "a.png"}
    scores = {"bar": 100.0, "pub": 30.0, "inn": 0.0, "old": None}
    results["examples"] = [row | {"said": said, "score": score} for said, score in scores.items()]
    results["examples"] += [row | {"said": "older"}, row | {"said": "blank", "reference": "", "score": None}]
    page = write(tmp_path, results)
    for said, outcome in (("bar", "right"), ("pub", "partly right"), ("inn", "wrong")):
        assert f'<span class="answered {outcome}" title="{outcome}">{said}</span>' in page
    for said in ("old", "older"):
        assert f'<span class="answered ">{said}</span>' in page
    assert '<span class="answered ">blank</span> <span class="soft">(no reference)</span>' in page


def test_the_score_of_an_example_is_its_tasks_first_metric():
    form = vl_forms.FORMS["vqa"].filled(((), (), ()), lambda said, examples: vqa.vqa(said, [e.about for e in examples]))
    people = {"answers": ["bar"] * 7 + ["pub"] * 3}
    e = Example("1", (), "where?", (), people)
    assert vl_examples.right(e) == "bar / pub"
    scores = [vl_examples.score_of(form, e, said) for said in ("bar", "The bar.", "pub", "inn")]
    assert scores == [100.0, 100.0, 90.0, 0.0]
    assert vl_examples.score_of(vl_forms.FORMS["caption"], e, "bar") is None
    assert vl_examples.score_of(form, e._replace(about=None), "bar") is None
    assert vl_examples.right(e._replace(about={"descriptions": ["a", "b"]})) == "a / b"
    assert vl_examples.right(e._replace(about="kind")) == ""


@pytest.mark.parametrize("n", [0, 1, 11, 12, 13, 23, 1000])
def test_examples_are_spread_over_the_whole_test(n):
    rows = vl_examples.spread(n)
    assert len(rows) == len(set(rows)) == min(n, 12)
    assert n == 0 or (rows[0], rows[-1]) == (0, n - 1) and max(np.diff(rows), default=0) <= -(-n // 11)
