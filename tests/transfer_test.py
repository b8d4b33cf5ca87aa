"""cross_dataset and domain_generalization: trained on one data set, tested on others."""

import importlib
import json

import numpy as np
import pytest
from golden_cases import OWN

from vlmx import features, logs, report, settings, train, world
from vlmx.data import annotations, embedded, fewshot, protocols, task
from vlmx.errors import UserError


def tiny(name, classnames, per_class=3):
    labels = np.arange(per_class * len(classnames), dtype=np.int32) % len(classnames)
    images = np.zeros((len(labels), 8, 8), np.uint8)
    split = task.Split(images, labels, [f"{name}/{i}" for i in range(len(labels))])
    return task.Dataset(name, tuple(classnames), ("a photo of a {}.",), split, split, split)


def test_a_target_is_tested_on_whole_among_its_own_classes():
    animals = tiny("animals", ["cat", "dog", "cow"])
    targets = {"cars": tiny("cars", ["red car", "blue car"]), "sketches": tiny("sketches", ["cow", "cat"])}
    problem = protocols.cross_dataset(animals, 2, (1, 2), targets)
    alike = protocols.few_shot(animals, 2, (1, 2))
    assert problem.labels == (0, 1, 2)
    assert [draw.train.tolist() for draw in problem.draws] == [draw.train.tolist() for draw in alike.draws]
    found = {name: (part.of, part.labels, len(part.index)) for name, part in problem.parts.items()}
    assert found == {
        "source": ("", (0, 1, 2), 9),
        "cars": ("cars", (0, 1), 6),
        "sketches": ("sketches", (0, 1), 6),
    }


def test_domain_generalization_keeps_to_the_classes_trained_on():
    animals = tiny("animals", ["cat", "dog", "cow"])
    shifted = {"sketches": tiny("sketches", ["cow", "cat"])}
    problem = protocols.domain_generalization(animals, 1, (1,), shifted)
    assert problem.parts.keys() == {"source", "sketches"}
    with pytest.raises(UserError, match="cars has others than animals: red car. For other classes .* cross_dataset"):
        protocols.domain_generalization(animals, 1, (1,), {"cars": tiny("cars", ["cat", "red car"])})


def config(arg, **targets):
    c = importlib.import_module("configs.digits").get_config(f"{arg},shots=1,seeds=2")
    c.targets.update(targets)
    c.eval_batch = 128
    if "coop" in c.recipe:
        c.recipe.coop.update(epochs=2, batch=8)
        c.recipe.coop.hyper.n_ctx = 2
    return c


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trained on the digits; tested on them again (under another name), on five of them, and on things."""
    digits = embedded.load("digits")
    things = fewshot.select(embedded.load("objects"), range(4))
    five = fewshot.select(digits, range(5))
    others = {
        "objects_noise": digits._replace(name="objects_noise", notes=("these are the digits again",)),
        "objects_sketch": five._replace(name="objects_sketch"),
        "objects": things._replace(test=fewshot.take(things.test, range(8))),
    }
    c = config("zero_shot,linear_probe,coop", cross_dataset=tuple(others), domain_generalization=tuple(others)[:2])
    c.protocols = ("cross_dataset", "domain_generalization")
    encoded, real, workdir = [], features.encode, tmp_path_factory.mktemp("transfer")

    def encode(model, split, *args, what, **more):
        encoded.append(what)
        return real(model, split, *args, what=what, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "load_target", lambda config, name, workdir: others[name])
        patch.setattr(features, "encode", encode)
        return workdir, train.run(c, workdir), encoded


def of(results, method, protocol):
    return next(r for r in results["runs"] if (r["method"], r["protocol"]) == (method, protocol))


def test_each_target_has_its_metric_and_the_average_is_theirs(run, tmp_path):
    _, results, _ = run
    for method in ("zero_shot", "coop"):
        for seed in of(results, method, "cross_dataset")["seeds"]:
            m = seed["metrics"]
            assert m["average"] == pytest.approx((m["objects_noise"] + m["objects_sketch"] + m["objects"]) / 3)
            assert m["objects_noise"] == m["source"]  # the same images and classes
    zero = of(results, "zero_shot", "cross_dataset")["summary"]
    assert zero["source"]["mean"] == pytest.approx(results["reference"]["accuracy"])
    # five of the classes among themselves, as ImageNet-A is: the base half of the digits, by another way
    halves = train.run(config("zero_shot,protocols=base_to_new"), tmp_path)
    assert zero["objects_sketch"]["mean"] == pytest.approx(halves["runs"][0]["summary"]["base"]["mean"])


def test_a_method_that_cannot_be_carried_says_where(run):
    _, results, _ = run
    probe = of(results, "linear_probe", "cross_dataset")
    assert probe["summary"]["objects_noise"]["mean"] == probe["summary"]["source"]["mean"]
    assert "objects" not in probe["summary"] and "average" not in probe["summary"]
    assert probe["notes"] == ["linear_probe cannot be carried to classes it was not trained on: no objects accuracy"]


def test_of_a_method_that_cannot_be_carried_the_weights_of_the_targets_classes_are_picked(run):
    """Five of ten classes: no answer is taken for one of the others, so none of the right ones is lost."""
    _, results, _ = run
    for seed in of(results, "linear_probe", "domain_generalization")["seeds"]:
        matrix = np.array(seed["confusion"]["source"])
        among_ten = 100 * matrix.diagonal()[:5].sum() / matrix[:5].sum()
        assert seed["metrics"]["objects_sketch"] > among_ten
        assert seed["metrics"]["average"] == (seed["metrics"]["objects_sketch"] + seed["metrics"]["objects_noise"]) / 2


def test_imagenets_classes_are_picked_by_name():
    """The rows of the 1000 that the published code picks for ImageNet-A and ImageNet-R, two names twice and all."""
    names = list(annotations.wnid_names().values())
    for table in json.loads((OWN / "protocol" / "label_maps.json").read_text()).values():
        if "imagenet_1k_label" in table:
            assert [names.index(c) for c in table["classnames"]] == table["imagenet_1k_label"]


def test_the_images_of_a_target_are_encoded_once(run):
    _, _, encoded = run
    parts = ("test", "objects_noise test", "objects_sketch test", "objects test", "train", "val")
    assert encoded == [f"{part} images" for part in parts]


def test_both_protocols_are_trained_once(run):
    workdir, results, _ = run
    assert {row["run"] for row in logs.read(workdir)} == {"coop-cross_dataset"}
    once, again = of(results, "coop", "cross_dataset"), of(results, "coop", "domain_generalization")
    assert once["summary"]["source"] == again["summary"]["source"] and once["curve"] == again["curve"]
    files = [workdir / f"coop-{p}/seed_1/tuned.safetensors" for p in ("cross_dataset", "domain_generalization")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_report_shows_the_targets(run):
    workdir, results, _ = run
    page, text = (workdir / "report.html").read_text(), report.table(results)
    assert '<section id="transfer">' in page and "objects_noise: these are the digits again" in page
    assert "digits · cross-dataset · 1 shot · tiny_clip" in text and "| source | objects_noise |" in text.replace(
        "  ", ""
    )
    assert json.loads((workdir / "results.json").read_text())["targets"]["objects"] == {"n_test": 8}


def test_targets_are_read_as_the_configs_own_data_is():
    c = config("coop,root=somewhere")
    c.data.templates = ("a {}.",)
    assert world.load_target(c, "textures", "").templates == embedded.TEMPLATES["textures"]
    with pytest.raises(UserError, match="dtd: somewhere/dtd/images is not there"):
        world.load_target(c, "dtd", "")


@pytest.mark.parametrize(
    "targets, said",
    [
        ((), "cross_dataset needs data sets to test on"),
        (("texture",), "Did you mean 'textures'"),
        (("objects", "digits"), "digits is what is trained on"),
    ],
)
def test_targets_that_are_missing_or_unknown_are_refused(targets, said):
    c = config("zero_shot,protocols=cross_dataset", cross_dataset=targets)
    with pytest.raises(UserError, match=said):
        settings.check(c)
