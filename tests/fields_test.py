"""Every field of every config has a rule; what breaks it is refused by name before anything is read."""

import importlib
import inspect
import math
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import recipes
from vlmx import ensemble, fields, main, method, plan, pretrain, settings, sweep, variant, vl
from vlmx.errors import UserError

ROOT = Path(__file__).parent.parent
CHECKS = {
    "classification": settings.check,
    "vl": vl.check,
    "pretrain": lambda config: pretrain.check(config, ("vision", "text")),
    "pretrain_text": lambda config: pretrain.check(config, ()),
}
# Configs that have, together, every field of every family.
EVERY = [f"dtd:{','.join([*recipes.RECIPES, *recipes.PARTS])},protocols=few_shot+base_to_new"]
EVERY += ["digits:coop+adapters+ensemble", "image_text:all", "scenes_image_text:all", "scenes_vl:all", "video_text:all"]
EVERY += ["pretrain_clip", "pretrain_t5", "pretrain_bart", "pretrain_vl"]


def load(named):
    name, _, arg = named.partition(":")
    return importlib.import_module(f"configs.{name}").get_config(*([arg] if arg else []))


def leaves(group, prefix=""):
    for key, value in group.items():
        if isinstance(value, ConfigDict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def broken(value):
    """Values of a wrong type, and of the right type out of every range."""
    wrong = {bool: [2, "yes"], int: [-7, 1.5, True, None], float: [-7.0, math.nan, math.inf, "1"], str: ["\0", (b"x",)]}
    wrong |= {tuple: [(b"x",), 5, {"a": 1}], ConfigDict: [5, "x"]}
    return [b"x", *next(bad for kind, bad in wrong.items() if isinstance(value, kind))]


def put(config, field, value):
    *groups, name = field.split(".")
    for group in groups:
        config = config[group]
    with config.unlocked(), config.ignore_type():
        config[name] = value


@pytest.mark.parametrize("named", EVERY)
def test_every_field_is_refused_by_name_where_its_value_cannot_be(named):
    config, every, outcomes = load(named), list(leaves(load(named))), []
    for field, value in every:
        for bad in broken(value):
            put(config, field, bad)
            try:
                outcomes.append((field, bad, fields.check(config)))
            except UserError as e:
                outcomes.append((field, bad, str(e)))
        put(config, field, value)
    fields.check(config)
    assert len(every) > 20
    assert [one for one in outcomes if f"config.{one[0]}" not in (one[2] or "")] == []


@pytest.mark.parametrize("named", EVERY)
def test_a_field_that_nobody_reads_is_refused_and_one_that_is_missing_named(named):
    config = load(named)
    put(config, "eval_bacth", 5)
    with pytest.raises(UserError, match="unknown field config.eval_bacth"):
        fields.check(config)
    config = load(named)
    with config.unlocked():
        del config.checkpoint_every
    with pytest.raises(UserError, match="config.checkpoint_every is missing: expected a whole number, at least 1"):
        fields.check(config)


def test_every_hyper_parameter_of_the_package_has_a_rule():
    makes = [importlib.import_module(f"vlmx.methods.{name}").make for name in method.names()]
    makes += [importlib.import_module(f"vlmx.variants.{name}").make for name in variant.files()]
    names = {name for make in makes for name in inspect.signature(make).parameters}
    names |= set(inspect.signature(ensemble.make).parameters) - {"method"}
    assert names <= fields.HYPER.keys()


def test_a_method_from_outside_has_hyper_parameters_of_its_own():
    config = load("digits")
    recipe = {"method": "my_pkg.my_method", "hyper": {"alpha": -1.0, "anything": None}, "epochs": 1}
    config.recipe.mine = ConfigDict(recipe)
    fields.check(config)
    config.recipe.mine.epochs = -1
    with pytest.raises(UserError, match="config.recipe.mine.epochs: expected a whole number, at least 0"):
        fields.check(config)


@pytest.mark.parametrize(
    ("named", "field", "value", "words"),
    [
        ("digits:coop", "recipe.coop.epochs", -5, "a whole number, at least 0; got -5"),
        ("digits:coop", "recipe.coop.batch", 0, "at least 1; got 0"),
        ("digits:coop", "seeds", (), "a tuple of different numbers, at least one"),
        ("digits:coop", "seeds", (1, 1), "different numbers"),
        ("digits:coop", "seeds", (-1,), "each whole and at least 0"),
        ("digits:coop", "methods", ("coop", "coop"), "different values"),
        ("digits:coop", "methods", ("cop",), "unknown method 'cop'. Did you mean 'coop'"),
        ("digits:coop", "methods", ("denoising",), "config.recipe has nothing for 'denoising'"),
        ("digits:coop", "data.templates", ("{} {}",), "one {} for the class"),
        ("digits:coop", "data.templates", ("{:>999999999}",), "one {} for the class"),
        ("digits:coop", "data.crop_scale", (0.5, 0.1), "0 < least <= most <= 1"),
        ("digits:coop", "data.name", "digit", "Did you mean 'digits'"),
        ("digits:coop", "reference", "coop", "config.reference: expected a method that is not trained"),
        ("digits:coop", "recipe.coop.hyper.class_token_position", "behind", "class_token_position 'behind'"),
        ("digits:coop", "recipe.coop.optimizer.rho", 0.9, "recipe.coop.optimizer: unknown option of optimiser sgd"),
        ("digits:coop", "recipe.coop.optimizer", ConfigDict(), "config.recipe.coop.optimizer: the optimiser's config"),
        ("pretrain_clip", "vision.patch", 7, "config.vision.patch: expected a divisor of 64"),
        ("digits:full", "recipe.full.optimizer.schedule.warmup", "100 percent", "recipe.full.optimizer: schedule"),
        ("digits:coop", "mesh.data", 0, "at least 1, or -1; got 0"),
        ("digits:coop", "shardings", (("model/(", "-"),), "a regular expression"),
        ("scenes_vl", "methods", ("single_lora",), "name the variant behind the colon, configs/...:single_lora"),
        ("scenes_vl", "methods", ("singel_adapter",), "Did you mean 'single_adapter'"),
        ("scenes_vl", "tasks", ("scenes_vq",), "Did you mean 'scenes_vqa'"),
        ("image_text", "batches.vqa2", 5, "Did you mean 'vqa'"),
        ("image_text", "data.hidden", ("tvqa",), "config.data.hidden: expected some of the tasks vqa, gqa"),
        ("pretrain_clip", "vision.heads", 3, "config.vision.heads: expected a divisor of the width, 128; got 3"),
        ("pretrain_t5", "optimizer.schedule.warmup", 20_000, "warmup of 20000 steps leaves nothing"),
    ],
)
def test_fields_that_do_not_go_together(named, field, value, words):
    config = load(named)
    CHECKS[config.family](config)
    put(config, field, value)
    with pytest.raises(UserError) as e:
        CHECKS[config.family](config)
    assert words in str(e.value)


def test_epochs_by_shots_without_an_optimizer_are_refused():
    config = load("digits:coop")
    with config.unlocked():
        del config.recipe.coop.optimizer
    with pytest.raises(UserError, match="config.recipe.coop: expected an optimizer"):
        settings.check(config)


def test_a_learning_rate_holds_for_methods_that_are_joined():
    for methods, rates in (("coop+ensemble", [0.5]), ("coop,vpt+clip_lora", [0.5, 0.5]), ("zero_shot,coop", [0.5])):
        config = load(f"digits:{methods},lr=0.5")
        recipes_of = [settings.recipe_of(config, name, "few_shot") for name in config.methods]
        assert [recipe.optimizer.lr for recipe in recipes_of if "optimizer" in recipe] == rates


def test_a_warm_up_in_steps_may_be_longer_than_there_are_epochs():
    config = load("digits:full")
    put(config, "recipe.full.optimizer.schedule.warmup", 50)  # of 10 epochs, of some steps each
    settings.check(config)


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("digits:coop,epochs=-5", "unknown setting behind the colon of --config 'epochs'"),
        ("digits:coop,lr=nan", "lr=nan: expected a number, at least 0"),
        ("digits:coop,lr=()", "lr=(): expected a number, at least 0"),
        ("digits:zero_shot,lr=0.1", "lr=0.1: none of the methods takes gradient steps"),
        ("digits:coop+ensemble,lr=(0.1,0.2)", "coop+ensemble is trained with one rate; got 2"),
        ("digits:coop,seeds=0", "config.seeds: expected how many seeds"),
        ("digits:coop,seeds=10000000000", "config.seeds: expected how many seeds, at most 10,000"),
        ("digits:coop,seeds=a", "config.seeds: expected how many seeds"),
        ("digits:coop,n_ctx=-1", "config.recipe.coop.hyper.n_ctx: expected a whole number"),
        ("digits:coop,shots=(1,1)", "config.shots: expected"),
        ("digits:coop,shots=" + "(" * 500, "config.shots: expected"),
        ("digits:coop,protocols=5", "unknown value of config.protocols '5'"),
        ("pretrain_clip:smoke,x", "unknown setting behind the colon of --config 'smoke,x'"),
        ("pretrain_bart:smok", "Did you mean 'smoke'"),
        ("pretrain_vl:tasks=vqa", "unknown setting behind the colon of this config 'tasks'"),
        ("scenes_vl:single_adapter,root=x", "unknown setting behind the colon of this config 'root'"),
        ("scenes_vl:single_adapter,epochs=a", "epochs=a: expected float, got 'a'"),
        ("scenes_vl:single_adapter,epochs=0", "config.recipe.single_adapter.epochs: expected a number, more than 0"),
        ("scenes_vl:single_adapter,batch=a", "batch=a: expected int, got 'a'"),
        ("scenes_vl:single_adapter,lr=-1", "config.recipe.single_adapter.optimizer.lr: expected a number, at least 0"),
        ("scenes_vl:single_adapter,reduction=0", "config.recipe.single_adapter.hyper.reduction: expected"),
    ],
)
def test_values_behind_the_colon(named, words):
    name, _, arg = named.partition(":")
    with pytest.raises(UserError) as e:
        config = main.load(f"{ROOT}/configs/{name}.py:{arg}")
        CHECKS[config.family](config)
    assert words in str(e.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("eval_batch=1e3", "--config.eval_batch=1e3: expected a whole number, at least 1"),
        ("eval_batch 1e3", "--config.eval_batch=1e3: expected a whole number, at least 1"),
        ("eval_batch", "--config.eval_batch: expected a value, as in --config.eval_batch=VALUE"),
        ("eval_batch=65537", "config.eval_batch: expected a whole number, at least 1 and at most 65,536; got 65537."),
        ("checkpoint_every=9999999999", "expected a whole number, at least 1, at most 2,147,483,647; got 9999999999."),
        ("seeds=(9999999999,)", "as in (1, 2, 3), at most 2,147,483,647; got (9999999999,)."),
        ("seeds=3", "For 3 seeds, 1 to 3, write seeds=3 behind the colon"),
        ("seeds 3", "for the seed 3 alone --config.seeds='(3,)'"),
        ("seeds=abc", "config.seeds: expected a tuple of different numbers"),
        ("seeds=(1,2", "--config.seeds=(1,2: expected a tuple of different numbers"),
        ("seeds[0]=4", "--config.seeds[0]=4: an entry alone cannot be set; set all of seeds."),
        ("shots=(1,2)", "expected a whole number; several behind the colon"),
        ("model.dtype=5", "unknown value of config.model.dtype '5'. Valid: bfloat16, float32."),
        ("model=5", "--config.model=5: expected a field of this group, as --config.model.<name of the field>=VALUE."),
        ("checkpoint_best=5", "--config.checkpoint_best=5: expected True or False."),
        ("recipe.coop.optimizer.lr=fast", "optimizer.lr=fast: expected a number, at least 0."),
        ("recipe.coop.optimizer.schedule.warmup=x", "expected a number of steps, or a text as '2 epochs'"),
        ("recipe.coop.optimizer.schedule.warmup=10 percent", "warmup=10 percent: expected a whole number."),
        ("modle.name=x", "unknown field config.modle.name: 'modle'. Did you mean 'model'?"),
        ("eval_batch=1 --wrokdir=x", "unknown flag '--wrokdir'"),
    ],
)
def test_what_the_command_line_cannot_set(words, message):
    head, *more = f"--config.{words}".split(" --")
    arguments = [head, *(f"--{one}" for one in more)]
    if "=" not in head:
        arguments = [*head.split(" "), *arguments[1:]]
    with pytest.raises(UserError) as e:
        config = load("digits:coop")
        fields.set_fields(config, arguments)
        settings.check(config)
    assert message in str(e.value) and "\n" not in str(e.value)


def test_the_command_line_sets_texts_and_tuples_as_they_are_written():
    config = load("digits:coop")
    words = ("data.root=2024", "methods=coop", "seeds=(3,)", "checkpoint_best=true", "recipe.coop.optimizer.lr=1")
    fields.set_fields(config, [f"--config.{word}" for word in words])
    assert (config.data.root, config.methods, config.seeds) == ("2024", ("coop",), (3,))
    assert config.checkpoint_best is True and config.recipe.coop.optimizer.lr == 1.0


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.py", "def get_config(:\n", "a.py, line 1: SyntaxError"),
        ("b.py", "x = 1\n", "it defines no get_config()"),
        ("c.py", "def get_config(arg=None):\n    return {}[arg]\n", "c.py, line 2: KeyError: None"),
        ("d.py", "def get_config():\n    pass\n", "expected a ConfigDict of get_config(); got NoneType"),
        ("e.py", "import no_such_module\n", "e.py, line 1: ModuleNotFoundError"),
        ("f.py", "raise SystemExit(0)\n", "f.py, line 1: SystemExit: 0"),
        ("g.py", "\0", "SyntaxError"),
        ("h.json", "{}", "no .py file; a config is a Python file"),
        ("i.py/x", "", "a folder; a config is a Python file"),
    ],
)
def test_files_that_are_no_config(tmp_path, name, text, words):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    with pytest.raises(UserError) as e:
        main.load(str(tmp_path / name.split("/")[0]))
    assert words in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("c.family = 'nonsense'", "unknown value of config.family 'nonsense'"),
        ("del c.family", "config.family: expected one of"),
        ("c.title = 'a/b'", "config.title: expected a name for a folder"),
        ("c.eval_bacth = 3", "unknown field config.eval_bacth: 'eval_bacth'. Did you mean 'eval_batch'"),
        ("del c.eval_batch", "config.eval_batch is missing"),
        ("c.data = 5", "config.data: expected a group of fields; got 5"),
        ("c.recipe.coop = 5", "config.recipe.coop: expected a group of fields; got 5"),
        ("del c.recipe.coop.hyper", "config.recipe.coop.hyper is missing"),
        ("c.recipe.coop.optimizer.lr = 'fast'", "config.recipe.coop.optimizer.lr: expected a number"),
        ("c.seeds = 3", "config.seeds: expected a tuple"),
        ("c.seeds = [2**40]", "config.seeds: expected a tuple"),
        ("c.eval_batch = 10**5000", "config.eval_batch: expected a whole number"),
    ],
)
def test_a_config_of_the_persons_own(tmp_path, text, words):
    (tmp_path / "mine.py").write_text(
        "from configs import common\n\n\ndef get_config(arg=None):\n    c = common.benchmark('digits', 'coop')\n"
        f"    with c.unlocked(), c.ignore_type():\n        {text}\n    return c\n"
    )
    config = main.load(str(tmp_path / "mine.py"))
    with pytest.raises(UserError) as e:
        fields.check_top(config, "family", "title")
        settings.check(config)
    assert words in str(e.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--configs", "configs/digits.py", "--seeds", "0"], "config.seeds: expected how many seeds"),
        (["--configs", "configs/digits.py", "--shots", "a"], "config.shots: expected"),
        (["--configs", "configs/digits.py", "--methods", ","], "--methods: expected at least one name; got ','"),
        (["--configs", "", "--methods", "coop"], "--configs: expected at least one name; got ''"),
        (["--configs", "configs/scenes_vl.py", "--methods", "single_adapter"], "no benchmark of classification"),
        (["--configs", "configs/digits.py", "--config.eval_batch=-1"], "config.eval_batch: expected a whole number"),
        (
            ["--configs", "configs/digits.py", "--config.model.heads=12"],
            "config.model.heads: expected the numbers of attention heads of the image tower and the text tower, as in "
            "(12,8), or (); got (12,)",
        ),
        (["--configs", "configs/digits.py", "--config.data=5"], "--config.data=5"),
        (["--configs", "configs/digits.py", "--config.mesh.data=0"], "config.mesh.data: expected a whole number"),
    ],
)
def test_arguments_of_a_sweep(arguments, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError) as e:
        sweep.plan(*sweep.arguments(arguments))
    assert words in str(e.value)


def test_arguments_of_a_plan(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for field, named in (("eval_batch=-1", "digits.py:coop"), ("batch=0", "scenes_vl.py:single_adapter")):
        with pytest.raises(UserError, match="expected a whole number, at least 1"):
            plan.configured(f"configs/{named}", [f"--config.{field}"])
    config = ["--config", "configs/digits.py:coop"]
    for more in (["--topology", ","], ["--topology", "cpu:1", "--batch=-1"], ["--topology", "cpu:1", "--batch=x"]):
        with pytest.raises(SystemExit):
            plan.arguments([*config, *more])
    assert "Traceback" not in capsys.readouterr().err
