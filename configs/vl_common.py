"""What the configs of the eight published vision-and-language tasks have in common: fields, and the argument behind the
colon of --config."""

import importlib
import inspect
from collections.abc import Callable
from typing import NamedTuple

from ml_collections import ConfigDict, FieldReference

from configs.common import features, literal, parse
from vlmx.errors import UserError, unknown
from vlmx.variant import PUBLISHED


class Published(int):
    """A published batch size, which nobody has set."""


class Op(NamedTuple):
    """What a FieldReference computes from the value that it refers to."""

    fn: Callable
    args: tuple = ()


TOP = ("backbone", "batch", "epochs", "lr", "root", "seed", "tasks")


def run(title, arg, tasks, recipe, *, epochs, batch, backbone, tower, what="grid", batches=None, **data):
    """A config of these tasks. recipe: name of a variant -> its recipe. batches: of single tasks. data: of config.data.

    arg: `variant[,variant...][,key=value...]`: names of vlmx.variant.PUBLISHED, or `all`; hyper-parameters of these, or
    TOP, tasks joined by "+"; `smoke` makes everything small.
    """
    names, given, smoke = parse(arg)
    names = tuple(PUBLISHED) if "all" in names else names or ("single_adapter",)
    if odd := [name for name in names if name not in PUBLISHED]:
        raise unknown("variant", odd[0], [*PUBLISHED, "all"])
    config = ConfigDict({"title": title, "family": "vl", "methods": names, "protocols": (), "seed": 1})
    config.tasks = tuple(tasks)

    config.data = ConfigDict()
    config.data.root = ""  # the folder of the annotation files
    config.data.features = ()  # files or folders of visual features; (): the pictures are encoded by `tower`
    config.data.pictures = ""  # their folder; "": images or videos below the root
    config.data.bad = "stop"  # at an entry that cannot be used; or "skip" and count it
    config.data.java = True  # METEOR and SPICE, where they can be had
    config.data.hidden = ()  # of these tasks the test whose answers the leaderboard keeps is answered too
    config.data.length, config.data.target_length = 0, 0  # at most so many tokens; 0: as published
    config.data.options = ConfigDict()  # of single readers: {"vqa": {"split": "official"}}
    config.data.scenes = 0.0  # share of the embedded world's sizes that is written below the root; 0: nothing is
    config.data.workers = 0
    config.data.update(data)

    config.tower = ConfigDict({"name": tower, "what": what, "dtype": "float32", "param_dtype": "float32"})
    config.tower.act, config.tower.heads, config.tower.arch = "", (), ""  # as config.model's of configs/common.py
    config.model = ConfigDict({"name": backbone})  # bart-base, t5-base, tiny_bart, a hub id, a directory, ...
    config.model.start = ""  # .../full/tuned of another run: its weights in place of the checkpoint's, visual ones too
    config.model.visual_tokens = 0  # a square number to which grids are pooled; of regions the first so many; 0: all
    config.model.dropout = -1.0  # in training; -1: the checkpoint's
    config.model.dtype = "float32"  # of the computation: float32 or bfloat16
    config.model.param_dtype = "float32"  # of the frozen weights
    config.model.remat = False

    config.features = features()
    config.batch = FieldReference(Published(batch), field_type=int)
    # Of single tasks, each as published until `batch`, which holds for all tasks, or the task's own is set.
    config.batches = ConfigDict({task: _size(config.get_ref("batch"), n) for task, n in (batches or {}).items()})
    config.temperature = 1.0  # of the mixing of tasks: 1 in proportion to their sizes, large: all alike
    config.eval_batch = 250
    config.steps_per_call = 10
    config.checkpoint_every, config.checkpoint_keep = 500, 1
    config.nonfinite = "stop"  # at a loss or gradient that is not finite; or "skip" the step
    config.mesh = ConfigDict({"seed": 1, "data": -1, "fsdp": 1, "tensor": 1})
    config.shardings = ()  # rules that go before those of vlmx/shard.py: ("model/...", layout), ("tuned/...", layout)
    config.recipe = ConfigDict({name: recipe(name) for name in names})
    for r in config.recipe.values():
        r.epochs = float(epochs)
    if smoke:
        config.batch, config.eval_batch, config.steps_per_call = 16, 20, 2
        config.batches, config.data.java = ConfigDict(), False
        config.data.scenes = min(config.data.scenes, 0.01)
        for r in config.recipe.values():
            r.epochs = 1.0
    for key, value in given.items():
        _set(config, key, literal(value) if isinstance(value, str) else value)
    return config


def _size(batch, published):
    """A reference to the size of a task's batches: `published` until the reference `batch` is set, then that."""
    choose = lambda n: published if isinstance(n, Published) else n
    return FieldReference(batch, op=Op(choose))


def refuse_settings(arg, *keys):
    """Raise a UserError for keys behind the colon that would change nothing in a config."""
    for key in keys:
        if key in parse(arg)[1]:
            raise unknown("setting behind the colon of this config", key, set(TOP) - {*keys})


def published(rates, usual):
    """name of a variant -> its published recipe (VL-Adapter, appendix): its own learning rate, or the usual one."""

    def recipe(name):
        optimizer = {"lr": rates.get(name, usual), "wd": 0.01, "b1": 0.9, "b2": 0.999, "eps": 1e-6, "clip": 5.0}
        return ConfigDict({"hyper": PUBLISHED[name][1], "warmup": "10 percent", "optimizer": optimizer})

    return recipe


def _set(config, key, value):
    makes = {n: importlib.import_module(f"vlmx.variants.{PUBLISHED[n][0]}").make for n in config.recipe}
    owners = [config.recipe[n] for n, make in makes.items() if key in inspect.signature(make).parameters]
    if key == "backbone":
        config.model.name = str(value)
    elif key == "root":
        config.data.root = str(value)
    elif key == "tasks":
        config.tasks = tuple(str(value).split("+"))
    elif key in ("batch", "seed"):
        _update(config, key, value)
    elif key in ("epochs", "lr"):
        for r in config.recipe.values():
            _update(r if key == "epochs" else r.optimizer, key, value)
    elif owners:
        for r in owners:
            _update(r.hyper, key, value)
    else:
        known = {k for make in makes.values() for k in inspect.signature(make).parameters}
        raise unknown("setting behind the colon of --config", key, {*TOP, *known})


def _update(group, key, value):
    try:
        group.update({key: value})
    except (TypeError, ValueError, OverflowError):
        kind = group.get_type(key).__name__
        raise UserError(f"--config ...:{key}={value}: expected {kind}, got {value!r}.") from None
