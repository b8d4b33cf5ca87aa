"""Every config resolves, and its methods, recipes and data set exist; no data needed."""

import importlib
import inspect
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import recipes
from vlmx import settings
from vlmx.data import classification, protocols
from vlmx.errors import UserError

FILES = sorted(p.stem for p in (Path(__file__).parent.parent / "configs").glob("*.py"))
OTHERS = ("common", "recipes", "vl_common", "scenes_vl", "image_text", "video_text")
BENCHMARKS = [name for name in FILES if name not in OTHERS and not name.startswith(("pretrain_", "scenes_"))]


def config(name, arg=None):
    return importlib.import_module(f"configs.{name}").get_config(arg)


def test_every_published_benchmark_has_a_config():
    assert set(classification.BENCHMARKS) < set(BENCHMARKS)


@pytest.mark.parametrize("name", BENCHMARKS)
@pytest.mark.parametrize("arg", [None, "smoke", "coop,shots=4,seeds=20", "zero_shot,templates=ensemble"])
def test_config(name, arg):
    c = config(name, arg)
    assert c.title == name and c.data.name == name
    cells = settings.check(c)
    if arg and arg.startswith("coop"):
        assert {m for m, _ in cells} == {"coop"} and c.shots == 4 and c.seeds == tuple(range(1, 21))
    if arg and arg.startswith("zero_shot"):
        assert settings.hyper(c, "zero_shot", "few_shot") == {"templates": "ensemble"}


def test_coop_has_its_published_settings():
    c = config("dtd")
    recipe = settings.recipe_of(c, "coop")
    assert [settings.epochs_of(recipe, k) for k in (1, 2, 4, 8, 16, -1)] == [50, 100, 100, 200, 200, 200]
    assert (recipe.batch, recipe.optimizer.lr, recipe.optimizer.wd, recipe.optimizer.momentum) == (32, 0.002, 5e-4, 0.9)
    assert settings.hyper(c, "coop", "few_shot")["n_ctx"] == 16
    assert settings.hyper(c, "coop", "base_to_new")["ctx_init"] == "a photo of a"
    c = config("imagenet", "coop,apex,taskres")
    assert c.recipe.coop.epochs == 50 and c.recipe.apex.epochs == 5 and config("dtd", "apex").recipe.apex.epochs == 15
    assert c.recipe.taskres.optimizer.lr == 2e-4 and c.recipe.taskres.optimizer.wd == 5e-4
    assert c.recipe.taskres.hyper.templates == "ensemble" and c.recipe.taskres.hyper.alpha == 0.5
    assert config("oxford_flowers", "taskres").recipe.taskres.hyper.alpha == 1.0
    assert config("oxford_flowers", "taskres,alpha=0.7").recipe.taskres.hyper.alpha == 0.7
    recipe = settings.recipe_of(config("dtd", "promptsrc"), "promptsrc", "few_shot")
    assert (recipe.epochs, recipe.hyper.gpa_mean, recipe.hyper.gpa_std) == (50, 30.0, 30.0)
    asked = config("dtd", "coop,n_ctx=4")
    assert settings.hyper(asked, "coop", "base_to_new") == settings.hyper(asked, "coop", "few_shot")
    assert c.data.augment == "crop" and tuple(c.data.crop_scale) == (0.08, 1.0) and c.seeds == (1, 2, 3)


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_has_the_methods_own_hyper_parameters(name):
    c = config("dtd", name)
    make = importlib.import_module(f"vlmx.methods.{name}").make
    assert set(c.recipe[name].hyper) == set(inspect.signature(make).parameters)
    assert settings.check(c) == [(name, "few_shot"), (name, "base_to_new")]


@pytest.mark.parametrize(
    ("name", "shots", "steps", "rate", "batch"),
    [  # of 20 steps an epoch
        ("cocoop", 16, 200, 0.002, 1),
        ("vpt", 16, 100, 0.0025, 4),
        ("ivlp", 16, 100, 0.0035, 4),
        ("maple", 16, 100, 0.0035, 4),
        ("promptsrc", 16, 400, 0.0025, 4),
        ("apex", 16, 300, 0.15, 16),
        ("taskres", 4, 2000, 0.002, 256),
        ("taskres", 16, 4000, 0.002, 256),
        ("clip_lora", 4, 2000, 2e-4, 32),
    ],
)
def test_published_settings(name, shots, steps, rate, batch):
    recipe = config("dtd", name).recipe[name]
    assert (settings.steps_of(recipe, shots, 20), recipe.optimizer.lr, recipe.batch) == (steps, rate, batch)


def test_transfer_has_its_published_targets_and_settings():
    c = config("imagenet", "maple,promptsrc,apex,protocols=cross_dataset+domain_generalization")
    cells = settings.check(c)
    assert {protocol for _, protocol in cells} == {"cross_dataset", "domain_generalization"}
    assert len(c.targets.cross_dataset) == 10 and "imagenet" not in c.targets.cross_dataset
    assert c.targets.domain_generalization == ("imagenet_v2", "imagenet_sketch", "imagenet_a", "imagenet_r")
    for protocol in ("cross_dataset", "domain_generalization"):
        maple, promptsrc, apex = (settings.recipe_of(c, m, protocol) for m in ("maple", "promptsrc", "apex"))
        assert (maple.epochs, maple.optimizer.lr, maple.hyper.depth, maple.optimizer.momentum) == (2, 0.0026, 3, 0.9)
        assert (promptsrc.epochs, promptsrc.hyper.gpa_mean, promptsrc.hyper.gpa_std) == (20, 6, 10)
        assert (apex.epochs, apex.batch, apex.optimizer.lr, apex.hyper.depth_vision) == (6, 32, 0.02, 3)
        assert dict(apex.optimizer.schedule) == {"name": "dassl", "warmup": 1, "kind": "linear", "first": 1e-3}
        assert settings.trained_as(c, "apex", protocol) == "cross_dataset"
    assert settings.trained_as(c, "apex", "few_shot") == "few_shot"
    assert settings.recipe_of(c, "maple", "few_shot").epochs == c.recipe.maple.epochs == 5
    asked = config("objects", "maple,depth=2,protocols=cross_dataset")
    assert settings.hyper(asked, "maple", "cross_dataset")["depth"] == 2
    assert asked.targets.cross_dataset == ("textures", "digits") and len(asked.targets.domain_generalization) == 4
    assert settings.recipe_of(config("objects", "apex,smoke"), "apex", "cross_dataset").epochs == 2


@pytest.mark.parametrize("name", BENCHMARKS)
@pytest.mark.parametrize("protocol", protocols.TRANSFER)
def test_every_config_tests_on_others_or_says_how(name, protocol):
    c = config(name, f"zero_shot,protocols={protocol}")
    if c.targets[protocol]:
        assert settings.check(c) == [("zero_shot", protocol)] and name not in c.targets[protocol]
    else:
        with pytest.raises(UserError, match=f"--config.targets.{protocol}="):
            settings.check(c)


def test_seeds_as_published():
    assert config("dtd", "apex").seeds == tuple(range(1, 21))
    assert config("dtd", "coop,apex").seeds == config("dtd").seeds == (1, 2, 3)


def test_keys_behind_the_colon():
    c = config("digits", "coop,shots=2,seeds=(5,),protocols=base_to_new,root=here,model=there")
    assert (c.shots, c.seeds, c.protocols, c.data.root, c.model.name) == (2, (5,), ("base_to_new",), "here", "there")
    c = config("digits", "coop,smoke,shots=(1,2),seeds=2")
    assert (c.shots, c.seeds, c.recipe.coop.epochs) == ((1, 2), (1, 2), 2), "what a person sets holds"
    with pytest.raises(UserError, match="Did you mean 'shots'"):
        config("digits", "coop,shot=2")


def test_a_method_without_a_recipe_says_what_to_do():
    c = config("digits", "coop")
    c.methods = ("zero_shot",)
    with pytest.raises(UserError, match="name the method behind the colon"):
        settings.check(c)
    c.recipe.zero_shot = ConfigDict({"hyper": {}})
    settings.check(c)
