"""Whole runs on the embedded digits: what they leave, how they resume, what they compile, what they refuse."""

import functools
import importlib
import json
import os
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from vlmx import checkpoint, fit, logs, settings, train
from vlmx.data import fewshot, pipeline
from vlmx.errors import UserError
from vlmx.methods import coop


def config(arg="coop,seeds=2,n_ctx=2", name="digits", **fields):
    c = importlib.import_module(f"configs.{name}").get_config(arg)
    c.protocols = ("few_shot",)
    c.shots = 2
    c.eval_batch = 128
    if "coop" in c.recipe:
        c.recipe.coop.update(epochs=4, batch=8)
    c.steps_per_call, c.checkpoint_every = 2, 2
    for path, value in fields.items():
        node, _, leaf = path.rpartition("__")
        (c[node] if node else c)[leaf] = value
    return c


def tuned(workdir):
    return {p.relative_to(workdir): p.read_bytes() for p in sorted(workdir.rglob("tuned.safetensors"))}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of all methods under both protocols."""
    workdir = tmp_path_factory.mktemp("run")
    c = config("zero_shot,linear_probe,coop,seeds=2,n_ctx=2")
    c.protocols = ("few_shot", "base_to_new")
    return c, workdir, train.run(c, workdir)


def test_what_a_run_leaves(finished):
    _, workdir, results = finished
    assert json.loads((workdir / "results.json").read_text()) == json.loads(json.dumps(results))
    cells = [(r["method"], r["protocol"]) for r in results["runs"]]
    assert cells == [(m, p) for m in ("zero_shot", "linear_probe", "coop") for p in ("few_shot", "base_to_new")]
    zero, _, probe, probe_new, coop, coop_new = results["runs"]
    assert zero["summary"]["accuracy"]["mean"] == results["reference"]["accuracy"]
    assert zero["trained_params"] == 0 and [s["seed"] for s in zero["seeds"]] == [None]
    assert "new" not in probe_new["summary"] and "cannot be carried" in probe_new["notes"][0]
    assert set(coop_new["summary"]) >= {"base", "new", "hm", "base_macro_f1"}
    for run in (probe, coop):
        assert [s["seed"] for s in run["seeds"]] == [1, 2] and run["summary"]["accuracy"]["n"] == 2
    assert coop["trained_params"] == 2 * 128 and coop["curve"]["step"] and coop["images"] == "features"
    for s in coop_new["seeds"]:
        b, n = s["metrics"]["base"], s["metrics"]["new"]
        assert s["metrics"]["hm"] == pytest.approx(2 * b * n / (b + n))
        assert (
            sum(map(sum, s["confusion"]["base"])) + sum(map(sum, s["confusion"]["new"])) == results["dataset"]["n_test"]
        )
    for name in ("report.html", "config.json", "metrics.jsonl", "few_shot/few_shot-seed_1.json"):
        assert (workdir / name).stat().st_size > 0
    assert list(workdir.glob("tensorboard/coop-few_shot/seed1/events*"))
    assert list(workdir.glob("coop-few_shot/steps/*"))
    assert len(tuned(workdir)) == 2 * 2 * 2
    lists = json.loads((workdir / "few_shot/few_shot-seed_2.json").read_text())
    assert len(lists["train"]) == 20 and len(lists["val"]) == 20


def test_the_base_images_of_a_seed_are_those_of_its_run_on_all_classes(finished):
    _, workdir, _ = finished
    everything, base = (
        json.loads((workdir / f"few_shot/{p}-seed_1.json").read_text())["train"] for p in ("few_shot", "base_to_new")
    )
    assert len(base) == 10 and [name for name in everything if name in base] == base


def test_shared_checkpoint_loads_and_names_what_it_is(finished):
    _, workdir, results = finished
    like = {"train": {"ctx": jax.ShapeDtypeStruct((2, 128), np.float32)}, "fixed": {}}
    v, meta = checkpoint.load(workdir / "coop-few_shot/seed_1", like)
    assert v["train"]["ctx"].shape == (2, 128)
    assert meta["method"] == "coop" and meta["backbone"] == results["model"]["digest"] and len(meta["classes"]) == 10
    like["train"]["ctx"] = jax.ShapeDtypeStruct((4, 128), np.float32)
    with pytest.raises(UserError, match=r"train/ctx: the file has \(2, 128\), the method needs \(4, 128\)"):
        checkpoint.load(workdir / "coop-few_shot/seed_1", like)


def test_a_finished_run_says_so_and_stops(finished, capsys):
    c, workdir, results = finished
    before = (workdir / "results.json").stat().st_mtime_ns
    (workdir / "report.html").unlink()
    assert train.run(c, workdir) == json.loads(json.dumps(results))
    assert "finished" in capsys.readouterr().out
    assert (workdir / "results.json").stat().st_mtime_ns == before and (workdir / "report.html").exists()


def test_a_workdir_of_another_config_is_refused(finished):
    c, workdir, _ = finished
    other = c.copy_and_resolve_references()
    other.shots = 4
    with pytest.raises(UserError, match="another config:\n  shots: there 2, now 4"):
        train.run(other, workdir)


DAMAGE = {
    "empty": b"",
    "cut": b'{"runs": [',
    "binary": b"\xff\xfe\x00",
    "a list": b"[]",
    "another kind": b'{"recipe": 3, "run": []}',
}


@pytest.mark.parametrize("damage", [*DAMAGE, "a folder"])
@pytest.mark.parametrize("name", ["config.json", "results.json", "coop-few_shot/result.json", "metrics.jsonl"])
def test_a_damaged_file_of_a_workdir_is_one_error_with_its_name(finished, tmp_path, name, damage):
    c, workdir, _ = finished
    copy = shutil.copytree(workdir, tmp_path / "run")
    (copy / name).unlink()
    if damage == "a folder":
        (copy / name).mkdir()
    else:
        (copy / name).write_bytes(DAMAGE[damage] + b"\n" * (name == "metrics.jsonl"))
    with pytest.raises(UserError, match=f"{name}.*[Rr]emove") as error:
        if name == "metrics.jsonl":
            logs.read(copy)
        elif "/" in name:
            train.cell(
                SimpleNamespace(config=c, workdir=copy),
                "coop",
                "few_shot",
                settings.make(c, "coop", "few_shot"),
                SimpleNamespace(draws=[]),
            )
        else:
            train.run(c, copy)
    assert "\n" not in str(error.value)


def test_what_was_trained_with_another_optimizer_is_refused_although_the_config_is_lost(finished, tmp_path):
    c, workdir, _ = finished
    copy = shutil.copytree(workdir, tmp_path / "run")
    for name in ("config.json", "results.json"):
        (copy / name).unlink()
    other = c.copy_and_resolve_references()
    other.recipe.coop.optimizer.lr = 0.5
    message = (
        "of another run:\n  recipe.optimizer.lr: the checkpoint has 0.002, this run asks for 0.5\nUse another --workdir"
    )
    with pytest.raises(UserError, match=message):  # of what is finished
        train.run(other, copy)
    (copy / "coop-few_shot/result.json").unlink()
    (copy / "config.json").unlink()
    with pytest.raises(UserError, match=message):  # of the checkpoint of its steps
        train.run(other, copy)


@pytest.fixture
def saved(monkeypatch):
    """The tuned prompts of each checkpoint by its step, and how to have the run end there: saved["die"] = step."""
    real, saved = checkpoint.save, {}

    def save(checkpoints, step, state, meta):
        real(checkpoints, step, state, meta)
        saved[step] = np.array(state["train"]["ctx"])
        if step == saved.get("die"):
            checkpoints.wait_until_finished()
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", save)
    return saved


# Two steps are an epoch: 3 is in the middle of one, in which images are drawn and augmented as they were.
@pytest.mark.parametrize("at, fields", [(2, {}), (6, {}), (3, {"data__augment": "crop", "checkpoint_every": 1})])
def test_an_interrupted_run_goes_on_to_the_same_numbers(tmp_path, saved, at, fields):
    whole = train.run(config(**fields), tmp_path / "whole")
    saved["die"] = at
    with pytest.raises(KeyboardInterrupt):
        train.run(config(**fields), tmp_path / "cut")
    assert not (tmp_path / "cut/results.json").exists()
    del saved["die"]
    again = train.run(config(**fields), tmp_path / "cut")
    assert again["runs"][0]["seeds"] == whole["runs"][0]["seeds"]
    assert again["runs"][0]["curve"] == whole["runs"][0]["curve"]
    assert tuned(tmp_path / "cut") == tuned(tmp_path / "whole")


def test_a_session_whose_calls_were_of_fewer_steps_is_gone_on_from(tmp_path, saved, monkeypatch):
    monkeypatch.setattr(settings, "FREE", (*settings.FREE, "steps_per_call"))  # else it follows from the devices
    fields, saved["die"] = {"checkpoint_every": 1}, 3
    with pytest.raises(KeyboardInterrupt):
        train.run(config(**fields, steps_per_call=1), tmp_path)
    del saved["die"]
    train.run(config(**fields, steps_per_call=2), tmp_path)
    assert max(saved) == 8


def test_each_seed_ends_with_its_best_on_validation_also_after_an_interruption(tmp_path, saved):
    c = config(checkpoint_best=True)
    c.recipe.coop.epochs, c.recipe.coop.optimizer.lr = 8, 0.005
    train.run(c, tmp_path / "whole")
    rows = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    best = []
    for i, seed in enumerate(c.seeds):
        found = {r["step"]: r["accuracy"] for r in rows if r["tag"] == "val" and r["seed"] == seed}
        assert list(found) == [2, 4, 6, 8, 10, 12, 14, 16] and len(set(found.values())) > 1
        best.append(max(found, key=found.get))  # the first of several
        v, _ = checkpoint.load(
            tmp_path / f"whole/coop-few_shot/seed_{seed}", {"train": {"ctx": saved[2][i]}, "fixed": {}}
        )
        assert (np.asarray(v["train"]["ctx"]) == saved[best[-1]][i]).all()
    assert best[0] != best[1]
    saved["die"] = 10
    with pytest.raises(KeyboardInterrupt):
        train.run(c, tmp_path / "cut")
    del saved["die"]
    train.run(c, tmp_path / "cut")
    assert tuned(tmp_path / "cut") == tuned(tmp_path / "whole")


def test_the_best_on_validation_needs_validation_images(tmp_path, monkeypatch):
    real = train.task.load
    without = lambda dataset: dataset._replace(val=fewshot.take(dataset.val, np.arange(0)))
    monkeypatch.setattr(train.task, "load", lambda *args: without(real(*args)))
    with pytest.raises(UserError, match="checkpoint_best chooses on validation images, and digits has none"):
        train.run(config(checkpoint_best=True), tmp_path)


def test_a_checkpoint_of_another_method_is_refused_with_both_values(tmp_path):
    checkpoints = checkpoint.manager(tmp_path)
    state = {"train": {"a": np.ones(2, np.float32)}}
    checkpoint.save(checkpoints, 1, state, {"method": "coop", "backbone": "abc"})
    checkpoints.wait_until_finished()
    assert checkpoint.restore(checkpoints, state, {"method": "coop", "backbone": "abc"})["train"]["a"].tolist() == [
        1,
        1,
    ]
    with pytest.raises(UserError, match="backbone: the checkpoint has 'abc', this run asks for 'abd'"):
        checkpoint.restore(checkpoints, state, {"method": "coop", "backbone": "abd"})


def compilations(c, workdir):
    """How often the training call and the test call were compiled in a run."""
    names = []
    listener = lambda event, duration, **kw: names.append(kw.get("fun_name")) if "backend_compile" in event else None
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        train.run(c, workdir)
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    return tuple(names.count(f"jit({name})") for name in ("call", "_predict", "_encode"))


def test_nothing_is_compiled_again_between_epochs_splits_and_seeds(tmp_path):
    few = compilations(config(), tmp_path / "few")
    c = config("coop,seeds=3,n_ctx=2")
    c.recipe.coop.epochs = 8
    assert compilations(c, tmp_path / "many")[0] == few[0] == 1
    assert few[1] == 2  # zero-shot before training, and the method itself; the last batch is padded to the same shape
    assert few[2] <= 3  # a batch size for each split that is smaller than eval_batch


def test_images_on_the_device_train_as_images_read_again_and_again(tmp_path, monkeypatch):
    c = config("vpt,seeds=2,n_ctx=2")
    c.recipe.vpt.update(epochs=1, batch=8)
    stays = train.run(c, tmp_path / "stays")
    monkeypatch.setattr(fit, "ON_DEVICE", 0)
    streamed = train.run(c, tmp_path / "streamed")
    a, b = (tuned(tmp_path / name) for name in ("stays", "streamed"))
    assert a.keys() == b.keys() and len(a) == 2
    a, b = (safetensors.numpy.load(next(iter(files.values())))["train/vision"] for files in (a, b))
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert stays["runs"][0]["images"] == streamed["runs"][0]["images"] == "pixels"


def test_alpha_its_distances_and_the_difficulty_are_in_results_and_report(tmp_path):
    c = config("coop+ensemble,seeds=1,n_ctx=2")
    c.protocols, c.recipe.ensemble.hyper.beta = ("base_to_new",), 2.0
    results = train.run(c, tmp_path)
    assert results["reference"]["difficulty"] == pytest.approx(10 / results["reference"]["accuracy"])
    (run,) = results["runs"]
    assert run["settings"] == {
        "coop": dict(c.recipe.coop.hyper, ctx_init=""),
        "ensemble": dict(c.recipe.ensemble.hyper),
    }
    base, new = run["adaptation"]["base"], run["adaptation"]["new"]
    assert base["alpha"] == [1] * 5 and base["diff_nn"] == pytest.approx([0] * 5, abs=1e-6)
    assert new["alpha"] == pytest.approx(np.exp(-2 * np.array(new["diff_avg"])), rel=1e-5)  # all beyond the threshold
    assert new["classes"] == results["dataset"]["classnames"][5:]
    assert new["difficulty"] == pytest.approx(20 / new["reference"])
    page = (tmp_path / "report.html").read_text()
    assert "How far the tuning is trusted" in page and "relative transfer difficulty" in page


def test_images_augmented_in_each_epoch_train_too(tmp_path):
    c = config(data__augment="crop")
    c.recipe.coop.epochs = 2
    run = train.run(c, tmp_path)["runs"][0]
    assert run["images"] == "pixels" and all(np.isfinite(x) for row in run["curve"]["loss"] for x in row)


def folder(root, broken=0):
    """Two classes of people's own images, five each, `broken` of them unreadable."""
    rng = np.random.default_rng(0)
    for name in ("red", "blue"):
        os.makedirs(root / name)
        for i in range(10):
            image = rng.integers(0, 60, (70, 80, 3), np.uint8)
            image[..., 0 if name == "red" else 2] += 180
            Image.fromarray(image).save(root / name / f"{i}.png")
    for i in range(broken):
        (root / "red" / f"{i}.png").write_bytes(b"")
    return root


def own(root, **fields):
    c = config("zero_shot,coop,seeds=1,n_ctx=2", name="folder", data__root=str(root), model__name="tiny_clip", **fields)
    return c


def test_a_folder_of_ones_own_images(tmp_path):
    results = train.run(own(folder(tmp_path / "images")), tmp_path / "run")
    assert results["dataset"]["classnames"] == ["blue", "red"]
    assert results["dataset"]["notes"] and list((tmp_path / "run").glob("*.csv"))


def test_a_data_set_with_test_images_only_can_be_tested_on(tmp_path):
    for wnid in ("n01443537", "n02007558", "n02123394"):
        os.makedirs(tmp_path / "imagenet-adversarial/imagenet-a" / wnid)
        Image.new("RGB", (70, 80), "red").save(tmp_path / "imagenet-adversarial/imagenet-a" / wnid / "0.jpg")
    c = config(None, name="imagenet_a", data__root=str(tmp_path), model__name="tiny_clip")
    results = train.run(c, tmp_path / "run")
    assert results["dataset"]["classnames"] == ["goldfish", "flamingo", "Persian cat"]
    assert results["dataset"]["n_train"] == 0 and results["runs"][0]["summary"]["accuracy"]["n"] == 1
    c = config("coop", name="imagenet_a", data__root=str(tmp_path), model__name="tiny_clip")
    with pytest.raises(UserError, match="no training images"):
        train.run(c, tmp_path / "coop")


def test_unreadable_images_stop_the_run_with_their_list_or_are_counted(tmp_path):
    root = folder(tmp_path / "images", broken=10)
    with pytest.raises(UserError, match=r"\d\.png: the file is empty"):
        train.run(own(root), tmp_path / "stop")
    for i in range(4, 10):  # a class needs images that can be read
        (root / "red" / f"{i}.png").write_bytes((root / "blue" / f"{i}.png").read_bytes())
    results = train.run(own(root, data__bad_images="skip", shots=-1), tmp_path / "skip")
    assert results["dataset"]["unreadable"] == 4
    assert sum("left out" in note for note in results["dataset"]["notes"]) == 4


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path):
    c = config()
    c.recipe.coop.optimizer.lr = 1e38
    with pytest.raises(UserError, match="not finite for seed"):
        train.run(c, tmp_path)
    assert not (tmp_path / "results.json").exists()


def broken_loss(value, out, hit):
    return jnp.where(hit, jnp.nan, value)


def broken_gradient(value, out, hit):
    return value + jnp.sqrt(jnp.where(hit, 0 * out["logits"].sum(), 1))  # a root has no slope at 0


@pytest.fixture
def breaks(monkeypatch):
    """`breaks(how)`: from then on CoOp's step 5 is broken for seed 1, alone."""
    index = pipeline.epoch_order(20, 8, 1, 2)[0]  # steps 5 and 6 are the third epoch's
    real = coop.make

    def breaks(how):
        @functools.wraps(real)
        def make(**hyper):
            method = real(**hyper)

            def loss(out, batch):
                value, metrics = method.loss(out, batch)
                return how(value, out, (batch["index"] == index).all()), metrics

            return method._replace(loss=loss)

        monkeypatch.setattr(coop, "make", make)

    return breaks


ONE_BY_ONE = {"steps_per_call": 1, "checkpoint_every": 1}


@pytest.mark.parametrize("how, what", [(broken_loss, "loss"), (broken_gradient, "the gradient of ctx")])
def test_a_step_that_is_not_finite_is_named_and_the_checkpoint_before_it_goes_on(tmp_path, breaks, capsys, how, what):
    breaks(how)
    with pytest.raises(UserError, match=rf"coop-few_shot: {what} is not finite for seed\(s\) \[1\] at step 5\."):
        train.run(config(**ONE_BY_ONE), tmp_path)
    breaks(lambda value, out, hit: value)
    train.run(config(**ONE_BY_ONE), tmp_path)
    assert "going on after step 4 of 8" in capsys.readouterr().out


def test_a_step_that_is_not_finite_can_be_left_out_and_is_counted(tmp_path, breaks, saved):
    breaks(broken_gradient)
    run = train.run(config(**ONE_BY_ONE, nonfinite="skip"), tmp_path)["runs"][0]
    curve = dict(zip(run["curve"]["step"], zip(run["curve"]["skipped"], run["curve"]["loss"])))
    assert list(curve) == [2, 4, 5, 6, 8]  # the ends of the epochs, and it
    skipped, loss = curve.pop(5)
    assert skipped == [1, 0] and loss[0] is None and np.isfinite(loss[1])
    assert all(skipped == [None, None] and np.isfinite(loss).all() for skipped, loss in curve.values())
    assert run["notes"] == ["steps left out, since a loss or gradient was not finite: 1, of all seeds together"]
    moved = {step: (saved[step] != saved[step - 1]).any(axis=(1, 2)).tolist() for step in range(2, 9)}
    assert moved.pop(5) == [False, True] and all(both == [True, True] for both in moved.values())


@pytest.mark.parametrize(
    "change, said",
    [
        ({"protocols": ("few_shots",)}, "Did you mean 'few_shot'"),
        ({"methods": ("coopp",)}, "Did you mean 'coop'"),
        ({"data__name": "digit"}, "Did you mean 'digits'"),
        ({"data__augment": "crops"}, "Did you mean 'crop'"),
        ({"model__dtype": "float16"}, "Valid: bfloat16, float32"),
        ({"seeds": (1, 1)}, "different numbers"),
        ({"shots": 0}, "positive number"),
    ],
)
def test_a_wrong_value_is_refused_before_any_weight_is_loaded(tmp_path, monkeypatch, change, said):
    monkeypatch.setattr("vlmx.models.zoo.load", None)
    with pytest.raises(UserError, match=said):
        train.run(config(**change), tmp_path)


def test_a_wrong_optimiser_option_or_hyper_parameter_is_refused_by_name(tmp_path):
    c = config()
    c.recipe.coop.optimizer.momentun = 0.9
    with pytest.raises(UserError, match="Did you mean 'momentum'"):
        train.run(c, tmp_path)
    c = config()
    c.recipe.coop.hyper.n_ctxt = 4
    with pytest.raises(UserError, match="Did you mean 'n_ctx'"):
        train.run(c, tmp_path)
