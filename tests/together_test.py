"""Many trainings in one program: every number of shots and every seed at once, to the numbers of one at a time.

Parameters are compared after steps of SGD, in which roundings stay as small as they are. Adam divides by the root of
the second moment: where a gradient is near zero, a rounding of it turns a whole step around. After Adam, losses are
compared.
"""

import importlib
import json

import contract_test as contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from golden_cases import assert_close
from ml_collections import ConfigDict

from vlmx import fit, train

METHODS = "tip_adapter,tip_adapter_f,taskres,xmadapter,coop,linear_probe"
NEAREST = {"tip_adapter": 4, "tip_adapter_f": 7, "xmadapter": 12}  # fewer entries are read than there are, or more
SGD = {"name": "sgd", "lr": 0.02, "wd": 5e-4, "momentum": 0.9, "schedule": {"name": "cosine"}}


def config(methods=METHODS, seeds=2, sgd=True, **fields):
    """The methods with small sizes; those with a cache once more, reading their nearest entries alone."""
    c = importlib.import_module("configs.digits").get_config(f"{methods},shots=(1,3),seeds={seeds}")
    c.protocols, c.eval_batch = ("few_shot",), 544
    for name, k in NEAREST.items() if sgd else ():
        if name in c.methods:
            near = c.recipe[name].copy_and_resolve_references()
            near.hyper.k, near.method = k, name
            c.recipe[f"{name}_near"], c.methods = near, (*c.methods, f"{name}_near")
    for recipe in c.recipe.values():
        if sgd and "optimizer" in recipe:
            recipe.optimizer = ConfigDict(SGD)
        recipe.update({"epochs": 4, "batch": 16} if "batch" in recipe else {})
        recipe.hyper.update({k: v for k, v in {"n_ctx": 2, "search_step": (20, 5)}.items() if k in recipe.hyper})
    c.update(fields)
    return c


def tuned(workdir):
    files = sorted(workdir.rglob("tuned.safetensors"))
    return {str(p.parent.relative_to(workdir)): safetensors.numpy.load_file(p) for p in files}


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("together")
    return workdir, train.run(config(), workdir)


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].keys() == b[name].keys()
        for leaf, value in a[name].items():
            assert_close(value, b[name][leaf], 1e-4, f"{name} {leaf}")


def same_losses(a, b):
    """Whether the losses of all steps are equal of the runs in `a` and `b`, of the seeds that both have."""
    for one, other in zip(a, b, strict=True):
        assert one["curve"]["step"] == other["curve"]["step"]
        seeds = min(len(one["seeds"]), len(other["seeds"]))
        losses = [np.array(run["curve"].get("loss", []), float)[..., :seeds] for run in (one, other)]
        assert_close(*losses, 1e-4, one["method"])


def test_all_shots_and_seeds_at_once_are_each_of_them_alone(together, tmp_path):
    """10 and 30 images, batches of 10 and 16: one program is filled up, the other runs each training by itself."""
    workdir, results = together
    alone = train.run(config(seeds=1, seeds_per_program=1), tmp_path)
    found = tuned(workdir)
    same({name: v for name, v in found.items() if name.endswith("seed_1")}, tuned(tmp_path))
    assert len(found) == len(results["runs"]) * 2 == 9 * 2 * 2
    assert found["tip_adapter_f-few_shot-1_shots/seed_2"]["train/keys"].shape == (10, 128)
    assert found["tip_adapter_f-few_shot-3_shots/seed_2"]["train/keys"].shape == (30, 128)
    for a, b in zip(results["runs"], alone["runs"]):
        assert all(a[key] == b[key] for key in ("method", "shots", "settings")) and a["seeds"][0] == b["seeds"][0]
    same_losses(results["runs"], alone["runs"])


def test_with_the_published_optimisers_each_loss_is_that_of_one_alone(tmp_path):
    several, alone = (
        train.run(config("tip_adapter_f,taskres", **more, sgd=False, steps_per_call=1), tmp_path / name)
        for name, more in (("several", {}), ("alone", {"seeds": 1, "seeds_per_program": 1}))
    )
    same_losses(several["runs"], alone["runs"])
    assert [len(run["curve"]["step"]) for run in several["runs"]] == [4, 4, 4, 4]


def test_each_number_of_shots_has_a_line_its_images_and_its_files(together):
    workdir, results = together
    names = [*METHODS.split(","), *(f"{name}_near" for name in NEAREST)]
    assert [(r["method"], r["shots"]) for r in results["runs"]] == [(m, n) for m in names for n in (1, 3)]
    lists = json.loads((workdir / "few_shot/few_shot-3_shots-seed_2.json").read_text())
    assert (len(lists["train"]), len(lists["val"])) == (30, 30)
    meta = json.loads((workdir / "coop-few_shot-3_shots/seed_2/tuned.json").read_text())
    assert (meta["shots"], meta["seed"]) == (3, 2)
    assert {row["run"] for row in results["mistakes"]} <= {*range(1, 18, 2)}  # pictures are of the most shots alone


def test_trainings_that_do_not_fit_into_the_memory_are_halved(together, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fit, "memory", lambda: 100)
    train.run(config("taskres"), tmp_path)
    said = capsys.readouterr().out
    assert "4 trainings at once need" in said and "2 at a time" in said and "1 at a time" in said
    same(tuned(tmp_path), {k: v for k, v in tuned(together[0]).items() if k.startswith("taskres")})


def test_learning_rates_side_by_side_are_each_of_them_alone(tmp_path):
    several = config("coop,taskres,lr=(0.001,0.02)", sgd=False, steps_per_call=1)
    assert several.methods == ("coop_lr0_001", "coop_lr0_02", "taskres_lr0_001", "taskres_lr0_02")
    one = config("coop,taskres,lr=0.02", sgd=False, steps_per_call=1)
    for c in (several, one):
        c.methods = tuple(name for name in c.methods if "taskres" in name)
    results, alone = train.run(several, tmp_path / "several")["runs"], train.run(one, tmp_path / "one")["runs"]
    assert [run["curve"]["lr"] for run in alone] == [run["curve"]["lr"] for run in results[2:]]
    assert len(tuned(tmp_path / "several")) == 2 * 4
    assert len(list((tmp_path / "several").glob("*/steps"))) == 1  # one program
    same_losses(results[2:], alone)
    assert np.abs(np.subtract(results[0]["curve"]["loss"], alone[0]["curve"]["loss"])).max() > 1e-3


def test_a_call_has_fewer_steps_where_they_are_dear(together, tmp_path, monkeypatch):
    monkeypatch.setitem(fit.CALL, "cpu", 1)
    results = train.run(config("taskres"), tmp_path)
    assert results["runs"][0]["curve"]["step"] == [1, 2, 3, 4] and together[1]["runs"][4]["curve"]["step"] == [4]
    same(tuned(tmp_path), {k: v for k, v in tuned(together[0]).items() if k.startswith("taskres")})


def test_texts_that_begin_alike_are_encoded_with_one_beginning():
    model, rng = contract.backbone("vit"), np.random.default_rng(0)
    D, C, P, T = model.config.text.width, 5, 3, 4  # two rows of computation, the second filled up
    prefix, emb = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((P, D), (C, T, D)))
    eot = jnp.asarray(rng.integers(1, T, C))

    def whole(prefix, emb):
        return model.text(jnp.concatenate([jnp.broadcast_to(prefix, (C, P, D)), emb], axis=1), eot + P)

    def behind(prefix, emb):
        return model.text_behind(prefix, emb, eot, most=3)

    def slopes(f):
        return jax.jit(jax.value_and_grad(lambda *x: (f(*x) ** 2).sum(), argnums=(0, 1)))(prefix, emb)

    assert_close(jax.jit(behind)(prefix, emb), jax.jit(whole)(prefix, emb), 2e-6)
    for a, b in zip(*(jax.tree.leaves(slopes(f)) for f in (behind, whole))):
        assert_close(a, b, 1e-5)
