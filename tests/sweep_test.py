"""The sweep: a cell that fails leaves the others, what is missing is made later, and one report shows it all."""

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from configs import common, recipes
from vlmx import report, sweep, tables, train
from vlmx.errors import UserError
from vlmx.metrics import accuracy

ROOT = Path(__file__).parent.parent
ONE = ("--configs", f"{ROOT}/configs/digits.py", "--protocols", "few_shot", "--shots", "1,2", "--seeds", "2")
QUICK = ("--config.recipe.coop.epochs=2", "--config.recipe.coop.hyper.n_ctx=2")


def go(workdir, *more, methods="zero_shot,coop"):
    quick = QUICK if "coop" in methods else ()
    return sweep.main([*ONE, *quick, "--methods", methods, "--workdir", str(workdir), *more])


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep in which coop fails, as its loss would if it were not finite."""
    workdir = tmp_path_factory.mktemp("sweep")

    def fit(world, run, *args):
        raise UserError("the loss of coop is not finite")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "fit", fit)
        return workdir, go(workdir)


def cells(workdir):
    found = json.loads((workdir / "results.json").read_text())["cells"]
    return {(cell["shots"], cell["method"]): cell for cell in found}


def test_a_cell_that_fails_is_told_and_the_others_run(swept, capsys):
    workdir, status = swept
    found = cells(workdir)
    assert status == 1 and list(found) == [(1, "zero_shot"), (1, "coop"), (2, "zero_shot"), (2, "coop")]
    assert [cell.get("failed") for cell in found.values()] == [None, "the loss of coop is not finite"] * 2
    assert report.main([str(workdir)]) == 0
    said = capsys.readouterr().out
    assert said.startswith((workdir / "tables.md").read_text())
    for text in ("## digits · few-shot · tiny_clip", "- digits, few_shot, 2 shots: coop: the loss of coop is not"):
        assert text in said
    assert "the loss of coop is not finite" in (workdir / "digits/report.html").read_text()
    page = (workdir / "report.html").read_text()
    assert "2 of 4 finished, 2 failed" in page and 'href="digits/report.html"' in page and page.count("<svg") == 1
    assert Image.open(workdir / "curves.png").size[0] > 400


def test_the_next_run_tries_what_failed_and_adds_a_method_and_shots(swept, monkeypatch):
    workdir, _ = swept
    before, made, real = cells(workdir), [], train.fit

    def fit(world, runs, *args):
        made.append((runs[0], [(draw.shots, draw.seed) for draw in args[4]]))
        return real(world, runs, *args)

    monkeypatch.setattr(train, "fit", fit)
    assert go(workdir, methods="zero_shot,coop,linear_probe") == 0
    every = [(1, 1), (1, 2), (2, 1), (2, 2)]  # one program for both numbers of shots
    assert made == [("coop-few_shot", every), ("linear_probe-few_shot", every)]
    after = cells(workdir)
    assert len(after) == 6 and not any("failed" in cell for cell in after.values())
    assert after[1, "zero_shot"] == before[1, "zero_shot"]
    made.clear()
    assert go(workdir, methods="zero_shot,coop,linear_probe") == 0 and not made
    assert go(workdir, "--shots", "1,2,4", methods="zero_shot,coop") == 0
    assert made == [("coop-few_shot", [(4, 1), (4, 2)])] and cells(workdir)[1, "coop"] == after[1, "coop"]


def test_every_seed_is_in_the_csv(swept):
    workdir, _ = swept  # as the test before has left it
    rows = list(csv.DictReader(open(workdir / "results.csv")))
    coop = [row for row in rows if (row["method"], row["shots"]) == ("coop", "1")]
    assert {(row["seed"], row["metric"]) for row in coop} == {(s, m) for s in "12" for m in ("accuracy", "macro_f1")}
    seeds = cells(workdir)[1, "coop"]["seeds"]
    assert float(coop[0]["value"]) == seeds[0]["metrics"]["accuracy"] and coop[0]["trained_params"] == "256"


def test_a_sweep_of_another_config_is_refused_before_anything_runs(swept, monkeypatch, capsys):
    monkeypatch.setattr(train, "run", None)
    before = (swept[0] / "results.json").read_bytes()
    with pytest.raises(SystemExit) as left:
        go(swept[0], "--config.recipe.coop.epochs=3")
    assert left.value.code == 2 and "recipe.coop.epochs: there 2, now 3" in capsys.readouterr().err
    assert (swept[0] / "results.json").read_bytes() == before


def cell(benchmark, method, values, **more):
    """A cell of ViT-B/16 with a base and a new accuracy for each of its seeds."""
    seeds = [
        {"seed": i, "metrics": {"base": b, "new": n, "hm": 2 * b * n / (b + n)}} for i, (b, n) in enumerate(values)
    ]
    summary = {k: accuracy.summary([s["metrics"][k] for s in seeds]) for k in ("base", "new", "hm")}
    key = {"run": benchmark, "benchmark": benchmark, "backbone": "ViT-B/16", "protocol": "base_to_new", "shots": 16}
    measured = {"summary": summary, "seeds": seeds, "trained_params": 512, "seconds": 1, "n_test": 100}
    return key | {"method": method} | measured | {"published_split": True} | more


def rows(table):
    return {row.name: [tables.shown(row.figures[c], 2)[0] for c in table.columns] for row in table.rows}


def test_an_average_is_taken_seed_by_seed_and_over_all_benchmarks_or_none():
    a = [cell("dtd", "coop", [(80, 40), (60, 60)]), cell("eurosat", "coop", [(40, 40), (60, 60)])]
    a += [cell("dtd", "zero_shot", [(50, 50)]), cell("eurosat", "zero_shot", [(70, 70)])]
    lost = {"run": "eurosat", "failed": "it broke", **{k: a[1][k] for k in tables.KEYS}, "method": "maple"}
    average, dtd, _ = tables.make([*a, cell("dtd", "maple", [(50, 50)]), lost])
    assert average.title() == "average over dtd, eurosat · base-to-new · 16 shots · ViT-B/16"
    assert average.columns == ("base", "new", "HM", "HM of averages")
    found = rows(average)
    assert found["coop"] == ["60.00", "50.00", "53.33", "54.55"]
    assert average.rows[0].figures["base"]["stderr"] == 0 and average.rows[0].figures["new"]["stderr"] == 10
    assert found["zero_shot"] == ["60.00"] * 4 and found["maple"] == ["failed", "failed", "failed", "–"]
    assert average.best("base") == average.best("new") == set(), "no difference exceeds its error"
    assert rows(dtd)["maple"] == ["50.00"] * 3


def test_difficulty_and_alpha_are_told_of_every_benchmark(tmp_path):
    before = {"classes": 4, "before": {"accuracy": 50.0, "difficulty": 0.5}}
    alpha = {"adaptation": {"base": {"difficulty": 0.4, "alpha": 1.0}, "new": {"difficulty": None, "alpha": 0.25}}}
    found = [cell("dtd", "apex", [(80, 40)], **before, **alpha), cell("dtd", "coop", [(80, 40)], **before)]
    results = {"title": "t", "command": "c", "created": "now", "cells": found}
    assert tables.difficulties(found) == [
        [
            ["benchmark", "classes", "chance", "zero-shot", "transfer difficulty"],
            ["dtd · ViT-B/16", "4", "25.0", "50.0", "0.500"],
        ],
        [
            ["method", "test", "difficulty", "alpha"],
            ["apex", "dtd · base-to-new · 16 shots · base", "0.400", "1.000"],
            ["apex", "dtd · base-to-new · 16 shots · new", "–", "0.250"],
        ],
    ]
    assert "| dtd · ViT-B/16 |       4 |" in tables.text(results)
    (tmp_path / "results.json").write_text(json.dumps(results))
    page = report.write(tmp_path).read_text()
    assert "dtd, base" in page and "dtd, new" not in page[page.index("<svg") :][: page.index("</svg>")]


def test_published_numbers_stand_beside_ours_where_all_is_the_same():
    def published(name="dtd", **changed):
        (table,) = tables.make([cell(name, "coop", [(80, 40)], **changed)])
        return rows(table).get("coop, published")

    assert published() == ["79.44", "41.18", "54.24"]
    assert not published(backbone="tiny_clip") and not published(shots=8) and not published(published_split=False)
    assert not published("textures")
    shifted = {"source": 70.0, "imagenet_v2": 60.0, "imagenet_sketch": 50.0, "imagenet_a": 50.0, "imagenet_r": 70.0}
    for metrics, average in ((shifted | {"average": 57.5}, "59.28"), ({"source": 70.0, "average": 57.5}, "")):
        seeds = [{"seed": 1, "metrics": metrics}]
        summary = {k: accuracy.summary([v]) for k, v in metrics.items()}
        changed = {"protocol": "domain_generalization", "seeds": seeds, "summary": summary}
        assert published("imagenet", **changed)[-1] == average
    eleven = [cell(b, "apex", [(80, 40)]) for b in ("imagenet", *common.TEN)]
    average = tables.make(eleven)[0]
    assert rows(average)["apex, published"] == ["83.99", "76.76", "80.04", ""]
    assert average.where == "average over 11 benchmarks" and "20 seeds" in tables.sources([average])[0]
    assert "apex, published" not in rows(tables.make(eleven[1:])[0])


def test_shots_protocols_seeds_and_fields_make_the_plan():
    args, fields = sweep.arguments(
        ["--configs", f"{ROOT}/configs/dtd.py:root=here,{ROOT}/configs/textures.py", "--methods", "coop,zero_shot"]
        + ["--protocols", "few_shot,domain_generalization", "--shots", "1,16", "--seeds", "5"]
        + ["--config.targets.domain_generalization=('digits',)", "--config.recipe.coop.optimizer.lr=1"]
    )
    runs = sweep.plan(args, fields)
    assert list(runs) == ["dtd", "textures"]
    c = runs["dtd"]
    assert (c.methods, c.protocols) == (("coop", "zero_shot"), ("few_shot", "domain_generalization"))
    assert (c.shots, c.seeds, c.data.root, c.recipe.coop.optimizer.lr) == ((1, 16), (1, 2, 3, 4, 5), "here", 1.0)
    assert runs["textures"].data.root == "" and runs["textures"].targets.domain_generalization == ("digits",)
    args, _ = sweep.arguments(["--configs", f"{ROOT}/configs/dtd.py"])
    (c,) = sweep.plan(args).values()
    assert c.methods == tuple(recipes.RECIPES) and (c.shots, c.seeds) == (16, (1, 2, 3))


def test_an_interrupted_sweep_goes_on(tmp_path, monkeypatch):
    real, two = train.run, ("--configs", f"{ROOT}/configs/digits.py,{ROOT}/configs/textures.py")

    def stopped(config, workdir, go_on):
        if config.title == "textures":
            raise KeyboardInterrupt
        return real(config, workdir, go_on)

    monkeypatch.setattr(train, "run", stopped)
    with pytest.raises(SystemExit) as left:
        go(tmp_path, *two, methods="zero_shot")
    assert left.value.code == 130
    said = json.loads((tmp_path / "results.json").read_text())["cells"]
    assert [cell.get("failed") for cell in said] == [None, None, "", ""]
    assert "not run" in (tmp_path / "tables.md").read_text()
    monkeypatch.setattr(train, "run", real)
    assert go(tmp_path, *two, methods="zero_shot") == 0
    assert not any("failed" in cell for cell in cells(tmp_path).values())


@pytest.mark.parametrize(
    "more, said",
    [
        (("--config.recipe.coop.epoch=3",), "Did you mean 'epochs'"),
        (("--config.shots=four",), "shots"),
        (("--methods", "cop"), "Did you mean 'coop'"),
        (("--protocols", "few_shots"), "Did you mean 'few_shot'"),
        (("--configs", f"{ROOT}/configs/digit.py"), "Did you mean"),
        (("--configs", f"{ROOT}/configs/digits.py,{ROOT}/configs/digits.py"), "make the same run, digits"),
        (("--shot", "4"), "unexpected argument '--shot'"),
    ],
)
def test_wrong_words_end_it_before_anything_runs(tmp_path, monkeypatch, capsys, more, said):
    monkeypatch.setattr(train, "run", None)
    with pytest.raises(SystemExit) as left:
        go(tmp_path, *more)
    assert left.value.code == 2 and said in capsys.readouterr().err
