import copy
import json
import re

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from vlmx import charts, evaluate, report
from vlmx.data import protocols
from vlmx.errors import UserError
from vlmx.metrics import accuracy

NAMES = ["<b>cat</b>", "$dog_1$", "ж", "cow"]
CONFUSION = [[9, 1, 0, 0], [2, 8, 0, 0], [0, 0, 10, 0], [0, 0, 4, 6]]


def run(method, protocol, values, **more):
    metrics = ("accuracy", "macro_f1") if protocol == "few_shot" else ("base", "new", "hm")
    part = "all" if protocol == "few_shot" else "base"
    names = NAMES if part == "all" else NAMES[:2]
    confusion = np.array(CONFUSION)[: len(names), : len(names)]
    per_class = {part: dict(zip(names, accuracy.per_class(confusion)))}
    seeds = [
        {"seed": s, "metrics": dict(zip(metrics, v)), "per_class": per_class, "confusion": {part: confusion.tolist()}}
        for s, v in enumerate(values, 1)
    ]
    summary = {name: accuracy.summary([v[i] for v in values]) for i, name in enumerate(metrics)}
    return {
        "method": method,
        "protocol": protocol,
        "shots": 16,
        "images": "pixels",
        "trained_params": 8192,
        "trained_percent": 0.0066,
        "seconds": 71.2,
        "settings": {"lr": 0.002},
        "notes": [f"a note of {method}"],
        "seeds": seeds,
        "summary": summary,
        **more,
    }


@pytest.fixture
def results(tmp_path):
    curve = {"step": [0, 10, 20], "seeds": [1, 2, 3], "accuracy": [10, 20, 30], "grad_norm": [1, 1, 1]}
    curve["loss"] = [[2, 2.1, 1.9], [1, None, 1.1], [0.5, 0.4, 0.6]]
    images = [np.full((8, 8, 3), 200, np.uint8), Image.new("L", (400, 300))]
    rows = [{"run": 1, "seed": 1, "part": "all", "true": NAMES[0], "said": said, "p": 0.83} for said in NAMES[1:3]]
    return {
        "title": "Pets & <script>alert(1)</script>",
        "created": "2026-01-02 03:04",
        "command": "python -m vlmx.main --config 'a b'",
        "config": {"data": {"name": "pets"}},
        "versions": {"jax": "0.10.2"},
        "device": "2 x cpu",
        "seconds": 134.2,
        "dataset": {
            "name": "pets",
            "classnames": NAMES,
            "n_train": 64,
            "n_val": 16,
            "n_test": 40,
            "notes": ["split made with seed 0"],
        },
        "reference": {"method": "zero_shot", "accuracy": 70.04},
        "model": {"name": "tiny_clip", "digest": "ab" * 32, "params": 2_500_000},
        "runs": [
            run("zero_shot", "few_shot", [(70.0, 65)] * 3, trained_params=0, trained_percent=0.0),
            run("coop", "few_shot", [(82.0, 79), (83, 80), (84, 81)], curve=curve),
            run("coop", "base_to_new", [(90.0, 60, 72), (91, 50, 64.5), (92, 40, 55.8)]),
        ],
        "mistakes": report.save_mistakes(tmp_path, images, rows),
    }


def write(folder, results):
    (folder / "results.json").write_text(json.dumps(results))
    return report.write(folder).read_text()


def test_the_page_has_every_section_and_the_numbers(tmp_path, results):
    page = write(tmp_path, results)
    for section in ("results", "curves", "classes", "confusion", "mistakes", "protocol", "config"):
        assert f'<section id="{section}">' in page
    for text in (
        "83.0",
        "± 0.6",
        "0.0066 %",
        "8,192",
        "2.5 M",
        "2 min 14 s",
        "seeds 1, 2, 3",
        "split made with seed 0",
        "a note of coop",
        "python -m vlmx.main",
        "0.10.2",
        "coop 64.5",
        "83\u00a0%",
        "64 / 16 / 40",
        "Before any training, zero_shot gets 70.0.",
    ):
        assert text in page, text
    assert re.findall(r"few-shot · (loss|accuracy|grad norm)<", page) == ["loss", "accuracy"]
    assert (
        page.count("<svg") == 2
        and page.count('<img class="tiny" src="data:image/png') == 1
        and "data:image/jpeg" in page
    )
    assert re.search(r'class="best">83.0', page) and not re.search(r'class="best">70.0', page)


def test_nothing_is_loaded_from_elsewhere(tmp_path, results):
    page = write(tmp_path, results)
    assert not re.search(r"""\b(?:src|href|data|action)=["'](?!data:|#)""", page)
    assert not re.search(r"url\((?!#)|@import|<script|<link|<iframe", page)


def test_names_are_escaped_and_never_read_as_formulas(tmp_path, results):
    page = write(tmp_path, results)
    assert "<b>cat" not in page and "&lt;b&gt;cat&lt;/b&gt;" in page and "<script" not in page
    assert "$dog_1$" in page and "ж" in page


def test_pictures_with_captions(tmp_path):
    Image.new("RGB", (8, 4), "red").save(tmp_path / "a.png")
    captions = ["$_ is no formula", "a line that is longer than its picture is wide", "two\nlines"]
    figure = charts.gallery([tmp_path / "a.png", np.zeros((4, 4), np.uint8), Image.new("RGB", (4, 4))], captions, 2)
    assert [bool(axes.images) for axes in figure.axes] == [True, True, True, False]
    assert tuple(figure.axes[0].images[0].get_array()[0, 0]) == (255, 0, 0)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0] == captions[0] and titles[1].replace("\n", " ") == captions[1] and titles[1].count("\n") == 2
    figure.savefig(tmp_path / "drawn.png")


def test_alpha_of_classes_with_their_names():
    part = {"classes": ["cat", "dog", "cow"], "alpha": [1.0, 0.5, 0.2], "diff_avg": [0.1, 0.2, 0.3]}
    part |= {"per_class": [50.0, 25.0, 0.0], "difficulty": 0.8}
    found = {}
    for against in charts.AGAINST:
        axes = Figure().subplots()
        charts.alpha_dots(axes, {"new": part}, against, names=True)
        found[against] = {text.get_text(): tuple(np.round(text.xy, 3)) for text in axes.texts}
    assert found["distance"] == {"cat": (0.1, 1.0), "dog": (0.2, 0.5), "cow": (0.3, 0.2)}
    assert found["difficulty"] == {"cat": (0.667, 1.0), "dog": (1.333, 0.5)}, "of no accuracy there is no difficulty"


def test_ids_of_drawings_do_not_clash(tmp_path, results):
    results["runs"][2]["curve"] = results["runs"][1]["curve"]
    page = write(tmp_path, results)
    ids = re.findall(r'\bid="((?:p|m)[0-9a-f]{10})"', page)
    assert len(ids) >= 2 and len(ids) == len(set(ids))


@pytest.mark.parametrize(
    "path",
    [
        ["title"],
        ["created"],
        ["command"],
        ["config"],
        ["versions"],
        ["device"],
        ["dataset"],
        ["model"],
        ["seconds"],
        ["mistakes"],
        ["dataset", "classnames"],
        ["dataset", "n_test"],
        ["model", "digest"],
        ["runs"],
        *(
            ["runs", 1, key]
            for key in (
                "shots",
                "images",
                "trained_params",
                "trained_percent",
                "seconds",
                "settings",
                "notes",
                "seeds",
                "summary",
                "curve",
            )
        ),
        *(["runs", 1, "seeds", 0, key] for key in ("per_class", "confusion", "metrics")),
    ],
    ids=lambda p: "-".join(map(str, p)),
)
def test_a_missing_part_does_not_matter(tmp_path, results, path):
    results = copy.deepcopy(results)
    *to, last = path
    place = results
    for key in to:
        place = place[key]
    del place[last]
    assert "</html>" in write(tmp_path, results)
    report.table(results)


def test_pretraining_has_no_table_but_its_figures_and_curve(tmp_path):
    page = write(
        tmp_path,
        {
            "title": "pretraining",
            "runs": [],
            "summary": {"objects": {"mean": 88.125, "stderr": None, "n": 1}, "loss": 0.5},
            "curve": {"step": [0, 1], "loss": [2, 1]},
        },
    )
    assert (
        '<section id="figures">' in page
        and "88.12" in page
        and page.count("<svg") == 1
        and '<section id="results">' not in page
    )
    assert report.table({"summary": {"loss": 0.5}}) == "training: loss 0.50"
    assert "</html>" in write(tmp_path, {}) and report.table({}) == ""


def test_one_seed_has_no_error(tmp_path, results):
    for one in results["runs"]:
        one["seeds"] = one["seeds"][:1]
        del one["summary"]
    page = write(tmp_path, results)
    assert "no error can be given" in page and "±" not in re.sub(r"<style.*?</style>", "", page, flags=re.S)
    assert "+-" not in report.table(results) and report.table(results).endswith("per cent; seed 1")


def test_what_depends_on_no_seed_has_none_and_a_protocol_may_train_another_number(tmp_path, results):
    results["runs"][0]["seeds"] = [results["runs"][0]["seeds"][0] | {"seed": None}]
    results["runs"][2].update(trained_params=512, trained_percent=0.0004)
    page = write(tmp_path, results)
    assert "seeds 1, 2, 3 ±" in page and "None" not in page
    assert "8,192 / 512</td><td>0.0066 / 0.0004 %" in page and "few-shot / base-to-new" in page
    text = report.table(results)
    assert "seeds 1, 2, 3" in text and "8,192 (0.0066 %) / 512 (0.0004 %)" in text


def test_many_classes_show_the_hardest_and_a_picture(tmp_path, results):
    names = [f"class {i}" for i in range(100)]
    matrix = np.diag(np.arange(1, 101))
    matrix[7, 3] = 50
    per_class = dict(zip(names, accuracy.per_class(matrix)))
    results["dataset"]["classnames"] = names
    results["runs"] = [run("coop", "few_shot", [(1.0, 1.0)])]
    results["runs"][0]["seeds"][0].update(per_class={"all": per_class}, confusion={"all": matrix.tolist()})
    page = write(tmp_path, results)
    assert "the 15 hardest of 100" in page and 'class="heat"' in page and '<table class="matrix">' not in page
    assert 'class 7 → class 3 <span class="soft">50&nbsp;times&nbsp;(86\u00a0%)' in page


def test_the_table_for_the_terminal(results):
    assert report.table(results).splitlines() == [
        "method     shots     few-shot         base          new           HM  trained parameters",
        "----------------------------------------------------------------------------------------",
        "zero_shot     16  70.0 +- 0.0                                                    0 (0 %)",
        "coop          16  83.0 +- 0.6  91.0 +- 0.6  50.0 +- 5.8  64.1 +- 4.7    8,192 (0.0066 %)",
        "per cent; mean +- standard error over seeds 1, 2, 3",
    ]


def test_runs_of_one_method_are_told_apart_by_what_differs(results):
    results["runs"] = [
        run("coop", "few_shot", [(80.0, 80)], settings={"lr": 0.1, "ctx": n}, shots=shots)
        for n, shots in ((4, 1), (4, 16), (16, 16))
    ]
    lines = report.table(results).splitlines()[2:-1]
    assert [line.split()[:3] for line in lines] == [
        ["coop", "1", "80.0"],
        ["coop", "ctx=4", "16"],
        ["coop", "ctx=16", "16"],
    ]


def test_of_several_numbers_of_shots_the_page_says_which_it_shows(results):
    runs = [run("coop", "few_shot", [(80.0, 80)], shots=n) for n in (-1, 1, 16)]
    runs += [run("coop", "base_to_new", [(90.0, 60, 72)], shots=1)]
    assert [r["shots"] for _, r in charts.largest(runs, ["coop"] * 4)] == [-1, 1]
    write = lambda runs: " ".join(report.page(results | {"runs": runs}, "").split())
    page = write(results["runs"])
    assert "Of several numbers of shots" not in page and "coop 64.5." in page
    page = write([*results["runs"], *(r | {"shots": 1} for r in results["runs"][1:])])
    assert page.count("Of several numbers of shots, those of the largest.") == 3
    assert "coop (16 shots) 64.5; coop (1 shot) 64.5." in page


def test_mistakes_are_the_surest_and_of_all_classes():
    said, p, labels = [0, 1, 1, 1, 1, 1], [0.9, 0.9, 0.8, 0.7, 0.6, 1.0], [0, 0, 0, 0, 2, 2]
    assert report.pick_mistakes(said, p, labels, 3, weight=[1, 1, 1, 1, 1, 0]).tolist() == [1, 4, 2]


def test_saved_mistakes_are_small_and_relative(tmp_path, results):
    images = [row["image"] for row in results["mistakes"]]
    assert images == ["mistakes/1-1-all-000.png", "mistakes/1-1-all-001.png"]
    assert [Image.open(tmp_path / name).size for name in images] == [(8, 8), (224, 168)]


def test_a_picture_that_is_gone_or_outside_is_said(tmp_path, results):
    folder = tmp_path / "w"
    folder.mkdir()
    (folder / "bad.png").write_bytes(b"")
    results["mistakes"] = [
        {"run": 0, "image": name, "true": "a", "said": "b"}
        for name in ("gone.png", "bad.png", "../" + results["mistakes"][0]["image"])
    ]
    assert write(folder, results).count("picture not found") == 3


def test_errors_say_what_to_do(tmp_path):
    with pytest.raises(UserError, match="results.json does not exist: give the --workdir"):
        report.write(tmp_path)
    (tmp_path / "results.json").write_text('{"runs": [')
    with pytest.raises(UserError, match="no valid json .*run the command again"):
        report.write(tmp_path)
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(UserError, match="results.json: a list, not an object"):
        report.write(tmp_path)


def test_the_command(tmp_path, results, capsys):
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert (
        report.main([str(tmp_path)]) == 0 and "coop" in capsys.readouterr().out and (tmp_path / "report.html").exists()
    )
    assert report.main([]) == 2 and report.main([str(tmp_path / "no")]) == 2
    assert "does not exist" in capsys.readouterr().err


# ---------------------------------------------------------------- what is said is true
def same_draws(one, least=15, most=15, different=1):
    one["draws"] = {"least": least, "most": most, "different": different}
    return one


def page_text(page):
    body = re.sub(r"<style.*?</style>", "", page, flags=re.S)
    return " ".join(re.sub(r"<[^>]*>", " ", body).split())


def test_classes_with_fewer_images_and_seeds_that_draw_the_same(tmp_path, results):
    for one in results["runs"][1:]:
        same_draws(one)
    text = page_text(write(tmp_path, results))
    assert "15 labelled images of each class, for not every class has 16; the same for every seed (1, 2, 3)" in text
    assert "since no class has more (few-shot, 16 shots; base-to-new, 16 shots)" in text
    assert "83.0 ± 0.6" not in text and "83.0 [68.6, 91.6]" in text  # Wilson's of 83 % of 40 images
    lines = report.table(results).splitlines()
    assert "83.0 [68.6, 91.6]" in lines[3] and "+-" not in lines[3] and report.tables.SAME_DRAWS in lines


def test_where_no_error_over_seeds_is_shown_the_page_explains_none(tmp_path, results):
    shown = lambda: page_text(write(tmp_path, results))
    assert "mean over seeds 1, 2, 3 ± standard error" in shown() and "± is the standard error over" in shown()
    results["runs"] = [same_draws(one) for one in results["runs"]]
    assert "mean over seeds 1, 2, 3." in shown() and "±" not in shown()
    assert "per cent; mean over seeds 1, 2, 3" in report.table(results).splitlines()


def test_what_was_drawn(results):
    coop = results["runs"][1]
    assert report.drawn({"runs": [coop]}) == [
        "at most 16 labelled images of each class; drawn with seeds 1, 2, 3 (few-shot, 16 shots)"
    ]
    assert report.drawn({"runs": [same_draws(coop, 3, 16, 3)]}) == [
        "3 to 16 labelled images of a class, for not every class has 16; drawn with seeds 1, 2, 3 (few-shot, 16 shots)"
    ]
    one = same_draws(coop | {"shots": 1}, 1, 1, 3)
    assert report.drawn({"runs": [one]}) == [
        "1 labelled image of each class; drawn with seeds 1, 2, 3 (few-shot, 1 shot)"
    ]
    everything = same_draws(coop | {"shots": -1}, 7, 9, 1)
    assert report.drawn({"runs": [everything]}) == [
        "7 to 9 labelled images of a class; all that there are (few-shot, all images)"
    ]
    assert report.drawn({"runs": [coop | {"shots": 0}]}) == []


def test_all_images_are_not_called_minus_one(tmp_path, results):
    for one in results["runs"]:
        one["shots"] = -1
    text = page_text(write(tmp_path, results))
    assert "-1" not in text and "all" in report.table(results).splitlines()[3].split()


def test_the_draws_of_a_run_are_counted():
    labels = np.array([0, 0, 0, 1, 1, 2])
    draw = lambda seed, *rows: protocols.Draw(2, seed, np.array(rows), np.array([], int))
    draws = [draw(1, 0, 1, 3, 4, 5), draw(2, 1, 0, 4, 3, 5)]
    assert evaluate.count_drawn(draws, labels, (0, 1, 2)) == {"least": 1, "most": 2, "different": 1}
    assert evaluate.count_drawn([*draws, draw(3, 0, 2, 3, 4)], labels, (0, 1)) == {
        "least": 2,
        "most": 2,
        "different": 2,
    }


def test_wilsons_interval():
    assert accuracy.wilson(50, 100) == pytest.approx((40.383, 59.617), abs=1e-3)
    assert accuracy.wilson(100, 10) == pytest.approx((72.246, 100), abs=1e-3)
    assert accuracy.wilson(0, 1) == pytest.approx((0, 79.346), abs=1e-3)
    assert accuracy.wilson_error(100, 10) > 5


@pytest.mark.parametrize(
    ("figures", "best"),
    [
        ({"a": (80, 1), "b": (78, 1)}, {"a"}),
        ({"a": (80, 2), "b": (78, 1)}, set()),
        ({"a": (80, 0), "b": (80, 0)}, set()),
        ({"a": (80, None), "b": (70, 1)}, set()),
        ({"a": (80, 1), "b": (None, None)}, set()),
        ({"a": (80, 1)}, set()),
        ({"a": (80, 1), "b": (float("nan"), 1), "c": (70, 1)}, {"a"}),
        ({"a": (80, 1), "b": (79.5, 1), "c": (70, 1)}, set()),
        ({}, set()),
    ],
)
def test_a_value_is_best_where_the_difference_exceeds_its_error(figures, best):
    assert report.tables.best_of({k: {"mean": mean, "error": error} for k, (mean, error) in figures.items()}) == best


def test_two_methods_within_their_errors_have_no_best(tmp_path, results):
    results["runs"] = [
        run("coop", "few_shot", [(82.0, 79), (83, 80), (84, 81)]),
        run("vpt", "few_shot", [(82.5, 79), (83.5, 80), (84.5, 81)]),
    ]
    assert 'class="best"' not in write(tmp_path, results)
    results["runs"][1] = run("vpt", "few_shot", [(72.5, 79), (73.5, 80), (74.5, 81)])
    assert 'class="best">83.0' in write(tmp_path, results)


def test_one_seed_is_compared_by_the_error_over_test_images(tmp_path, results):
    for values, best in (((90.0, 50.0), True), ((90.0, 88.0), False)):
        results["runs"] = [run(name, "few_shot", [(v, v)]) for name, v in zip(("coop", "vpt"), values)]
        assert ('class="best">90.0' in write(tmp_path, results)) == best


def test_the_order_of_protocols_decides_whose_parameters_are_named_first(tmp_path, results):
    results["runs"] = [results["runs"][2] | {"trained_params": 512}, results["runs"][1]]
    text = page_text(write(tmp_path, results))
    assert "512 / 8,192" in text and "Two numbers of trained parameters: base-to-new / few-shot." in text


def test_matrices_and_mistakes_name_their_seeds(tmp_path, results):
    for seed in results["runs"][1]["seeds"][1:]:
        del seed["confusion"]  # as of many classes
    text = page_text(write(tmp_path, results))
    assert "coop · all classes · seed 1 " in text and "coop · base classes · seeds 1, 2, 3" in text
    assert "coop · all classes · seed 1" in text.partition("What it got wrong")[2]


def test_images_that_are_left_out_are_said(tmp_path, results):
    results["dataset"]["unreadable"] = 2
    assert "left out, for they cannot be read: 2 images" in report.table(results)
    assert "2 images, of all splits, could not" in page_text(write(tmp_path, results))


def test_figures_that_are_no_numbers_are_dashes(tmp_path, results):
    nan = float("nan")
    results["runs"][2]["summary"] = {k: {"mean": nan, "stderr": nan, "n": 0} for k in ("base", "new", "hm")}
    page, text = write(tmp_path, results), report.table(results)
    assert "nan" not in page_text(page).lower().replace("finance", "") and "nan" not in text and "–" in text


@pytest.mark.parametrize(
    "content",
    [
        '{"runs": 5}',
        '{"runs": [5]}',
        '{"runs": [{"protocol": "few_shot", "seeds": "x"}]}',
        '{"cells": 5}',
        '{"cells": [{}]}',
        '{"family": "vl"}',
        '{"family": "vl", "tasks": [], "runs": [{}]}',
        '{"runs": [{"method": "a", "protocol": "few_shot", "shots": [1], "seeds": []}]}',
        '{"runs": [{"protocol": "few_shot", "seeds": [{"confusion": {"all": [[1], [2, 3]]}, "metrics": {}}]}]}',
        '{"mistakes": [5]}',
        '{"seconds": "long"}',
        '{"model": [1]}',
        "\x00",
        "[" * 100_000,
    ],
)
def test_results_that_no_run_writes_end_in_a_sentence(tmp_path, content, capsys):
    (tmp_path / "results.json").write_text(content)
    assert report.main([str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "results.json: " in err and "Traceback" not in err and "run the command again to write it" in err
