"""What a config asks for, checked before any data or weight is read.

A *cell* is a method under a protocol: (name, protocol). Its *recipe* is config.recipe.<name>.
"""

import json
import sys
import time
from importlib.metadata import version
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from vlmx import fields, optim, shard
from vlmx import method as methods
from vlmx.data import protocols, task
from vlmx.data.image_files import is_text, printable
from vlmx.errors import UserError, unknown
from vlmx.files import read_json, write_json

# What may change from one session of a run to the next: no number depends on it.
FREE = ("methods", "protocols", "mesh", "shardings", "data.workers", "features.", "checkpoint_keep")
FREE += ("steps_per_call", "seeds_per_program", "data.bad_images")  # the last: a run stops before it has numbers
# What a training rests on beside its images, its recipe and what a checkpoint says by itself.
TRAINING = ("nonfinite", "batch", "batches", "temperature", "data.augment", "data.crop_scale", "data.templates")
TRAINING += ("model.dtype", "model.param_dtype", "model.image_size", "model.act", "model.heads", "model.arch")
TRAINING += ("model.truncate", "model.dropout", "tower.what", "tower.act", "tower.heads", "tower.arch")
# Fields that older versions of vlmx did not write into config.json, with the values that mean what those versions did.
LATER = {"model.act": "", "model.heads": [], "model.arch": "", "tower.act": "", "tower.heads": [], "tower.arch": ""}
AGAIN = "Remove it and run the same command: what is finished is read back."


def check(config):
    """Return the cells of a config, everything checked that can be before data or weights are read.

    Raises:
        UserError: a field that is missing, unknown or not as vlmx/fields.py says, or fields that do not go together.
    """
    fields.check(config)
    if config.data.name not in task.known():
        raise unknown("data set", config.data.name, task.known())
    if not methods.make(config.reference).untrained:
        raise UserError(f"config.reference: expected a method that is not trained; got {config.reference!r}.")
    shard.check(config.shardings, ("model", *config.methods))
    cells = [(name, protocol) for name in config.methods for protocol in config.protocols]
    for name, protocol in cells:
        if prior := make(config, name, protocol).prior:
            make(config, prior, protocol)
        targets(config, protocol)
        check_training(config, name, protocol)
    return cells


def check_training(config, name, protocol):
    """Raise a UserError where the optimizer of a cell lacks an option, has one that it does not know, or is missing."""
    recipe = recipe_of(config, name, protocol)
    epochs = max(epochs_of(recipe, n) for n in shots(config))
    if "optimizer" not in recipe:
        if epochs or recipe.get("steps_per_shot"):
            raise UserError(f"config.recipe.{name}: expected an optimizer, for there are steps; it has none.")
        return
    per_epoch = 10**6  # not known yet; so many that no warm-up in steps is longer than the training
    check_optimizer(f"recipe.{name}.optimizer", recipe.optimizer, per_epoch, per_epoch * max(epochs, 1))


def check_optimizer(field, optimizer, per_epoch, total):
    """Raise a UserError with the name of the field where an optimizer or its schedule cannot be made."""
    options = {k: v for k, v in optimizer.items() if k != "groups"}  # these need the method's parameters
    try:
        optim.make(options, per_epoch, total, {})
    except UserError as e:
        raise UserError(f"config.{field}: {e}") from e


def shots(config):
    """The numbers of training images a class, as a tuple: config.shots is one or several."""
    return tuple(config.shots) if isinstance(config.shots, (tuple, list)) else (config.shots,)


def label(config, n):
    """What is put behind the name of a cell at n shots in files and logs: "" where the config has one number alone."""
    return f"-{n}_shots" if isinstance(config.shots, (tuple, list)) and n else ""


def make(config, name, protocol):
    """The method of a cell with its hyper-parameters. A recipe of another name says in `method` whose it is."""
    recipe = config.recipe.get(name) or {}
    return methods.make(recipe.get("method", name), **hyper(config, name, protocol))


def hyper(config, name, protocol):
    """A method's hyper-parameters under a protocol: the recipe's, with what that protocol replaces."""
    return recipe_of(config, name, protocol).hyper.to_dict()


def targets(config, protocol):
    """The names of the data sets that a protocol tests on, beside that trained on. UserError: none, or unknown ones."""
    if protocol not in protocols.TRANSFER:
        return ()
    names = tuple(config.targets[protocol])
    if not names:
        raise UserError(
            f'{protocol} needs data sets to test on: --config.targets.{protocol}=\'("...", "...")\', names as in '
            "config.data.name."
        )
    for name in names:
        if name not in task.known():
            raise unknown(f"data set in targets.{protocol}", name, task.known())
        if name == config.data.name:
            raise UserError(f"config.targets.{protocol}: {name} is what is trained on; expected other data sets.")
    return names


def trained_as(config, name, protocol):
    """The protocol whose training serves this one: cross_dataset's serves domain_generalization too, if it is alike."""
    other = "cross_dataset"
    alike = protocol in protocols.TRANSFER and recipe_of(config, name, protocol) == recipe_of(config, name, other)
    return other if alike else protocol


def recipe_of(config, name, protocol=None):
    """The recipe of a method, with what `protocol` replaces: of its hyper-parameters or of its other fields.

    "a+b" is trained as a is, with the hyper-parameters {"a": a's, "b": b's}. A method of the package without one in
    this config is an error that says what to do.
    """
    if "+" in name:
        recipes = {one: recipe_of(config, one, protocol) for one in name.split("+")}
        first = recipes[name.split("+")[0]].copy_and_resolve_references()
        first.hyper = ConfigDict({one: recipe.hyper for one, recipe in recipes.items()})
        return first
    if name not in config.recipe:
        methods.make(name)  # an unknown name says so first
        raise UserError(
            f"config.recipe has nothing for {name!r}. For a method with published settings (configs/recipes.py), "
            f"name the method behind the colon, configs/...:{name}; give any other its own in config.recipe."
        )
    recipe = config.recipe[name]
    if replaced := recipe.get(protocol or ""):
        recipe = recipe.copy_and_resolve_references()
        for field, value in replaced.items():
            owner = recipe if field in recipe else recipe.hyper
            owner.update({field: value})
    return recipe


def alike(config, name, protocol):
    """The methods of the config, `name` among them, whose recipes differ from its own in the learning rate alone."""

    def but_rate(name):
        recipe = recipe_of(config, name, protocol).to_dict()
        optimizer = {k: v for k, v in recipe.get("optimizer", {}).items() if k != "lr"}
        return {"method": name, **recipe, "optimizer": optimizer}

    return [other for other in config.methods if but_rate(other) == but_rate(name)]


def epochs_of(recipe, shots):
    """Passes over the training set: `epochs`, or, where that is 0, the published number for so many shots."""
    if recipe.get("epochs"):
        return recipe.epochs
    pairs = recipe.get("epochs_by_shots") or ((1, 0),)
    return next((epochs for most, epochs in pairs if 0 < shots <= most), pairs[-1][1])


def steps_of(recipe, shots, per_epoch):
    """Training steps: of the recipe's epochs, or, where these are 0, `steps_per_shot` for each image of a class."""
    return epochs_of(recipe, shots) * per_epoch or recipe.get("steps_per_shot", 0) * max(shots, 1)


class Length(NamedTuple):
    """How long one training is: images of a step, steps of an epoch, steps in all."""

    batch: int
    per_epoch: int
    total: int


def length(recipe, draw):
    """The Length of the training on a draw (data/protocols.py)."""
    M = len(draw.train)
    batch = min(recipe.get("batch", M), M)
    per_epoch = max(M // batch, 1)
    return Length(batch, per_epoch, steps_of(recipe, draw.shots, per_epoch))


def together(recipe, draws, pixels):
    """Which draws are trained in one program, lists of their places: those of one length and, where it reads pixels,
    of one number of images."""
    groups = {}
    for s, draw in enumerate(draws):
        like = length(recipe, draw)[1:] + ((len(draw.train),) if pixels else ())
        groups.setdefault(like, []).append(s)
    return list(groups.values())


def uses_pixels(config, method, recipe):
    """Whether a training step reads images: the method needs them, or they are augmented anew in each epoch."""
    epochs = epochs_of(recipe, shots(config)[0])
    return method.needs == "pixels" or (config.data.augment != "none" and epochs > 0)


def plain(config):
    """The config as json data."""
    return json.loads(config.to_json_best_effort())


def device():
    """What this run computes on, in words."""
    found = jax.devices()
    return f"{len(found)} x {found[0].device_kind} ({jax.default_backend()})"


def head(config):
    """What every results.json begins with: what was asked for, when and where."""
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "numpy", "transformers")
    return {
        "title": config.title,
        "family": config.family,
        "created": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": " ".join(["python -m vlmx.main", *sys.argv[1:]]),
        "config": plain(config),
        "versions": {package: version(package) for package in packages},
        "device": device(),
    }


def finished(config, workdir, write=True):
    """results.json of this very run, or None where it is still to be made, or a part of it failed.

    A workdir of another config is refused, but for what is `FREE`; methods, protocols and, of several, numbers of shots
    that are there already stay. Where the run ended before it computed anything, only the data have to be the same: of
    them a splits.csv may be there. So a person can mend the command and give it again.
    """
    if not is_text(str(workdir)):  # orbax would fail there, after the training
        raise UserError(f"--workdir={printable(workdir)}: the name is not UTF-8, where no checkpoint can be written.")
    path = workdir / "config.json"
    asked, saved = plain(config), None
    if path.exists():
        advice = "Remove it: what the checkpoints say of themselves is compared too."
        saved = read_json(path, advice, {"recipe": dict})
        both = saved["recipe"].keys() & asked["recipe"].keys()
        same = [c | {"recipe": {m: c["recipe"][m] for m in both}} for c in (saved, asked)]
        flat = [LATER | dict(flatten(c)) for c in same]
        differ = [k for k in dict.fromkeys([*flat[0], *flat[1]]) if flat[0].get(k) != flat[1].get(k)]
        free = FREE + (("shots",) if all(isinstance(c.get("shots"), list) for c in (saved, asked)) else ())
        begun = (workdir / "results.json").exists() or any(p.is_dir() for p in workdir.iterdir())
        keys = [k for k in differ if not k.startswith(free) and (begun or k.startswith("data."))]
        if keys:
            lines = [f"  {k}: there {flat[0].get(k)!r}, now {flat[1].get(k)!r}" for k in keys[:20]]
            raise UserError(
                "\n".join([f"{workdir} is of a run with another config:", *lines, "Use another --workdir."])
            )
        asked["recipe"] = saved["recipe"] | asked["recipe"]
    if write and asked != saved:
        write_json(path, asked)
    if not (workdir / "results.json").exists():
        return None
    results = read_json(workdir / "results.json", AGAIN, {"config": dict})
    whole = all(results["config"].get(key) == asked.get(key) for key in ("methods", "protocols", "shots"))
    return results if whole and not results.get("failed") else None


def training(config, recipe):
    """Return the settings that a training rests on, as its checkpoints say them: {dotted field: value}."""
    recipe = {k: v for k, v in plain(recipe).items() if k != "hyper"}
    values = dict(flatten(plain(config)))
    values = {k: v for k, v in values.items() if k in TRAINING or k.startswith("batches.")}
    return values | dict(flatten(recipe, "recipe."))


def flatten(tree, prefix=""):
    """(dotted path, value) of every leaf of nested dicts."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
