"""What all methods of a run share: data sets, the frozen model, stored features; and what a method says of a test."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from vlmx import evaluate, features, settings, shard
from vlmx import method as methods
from vlmx.data import fewshot, pipeline, task
from vlmx.errors import UserError
from vlmx.files import write_json
from vlmx.logs import say
from vlmx.models import zoo
from vlmx.models.clip import Clip


class World(NamedTuple):
    """What all methods of a run share."""

    config: ConfigDict
    workdir: Path
    mesh: jax.sharding.Mesh
    dataset: task.Dataset
    model: Clip
    tokenizer: Callable
    digest: str
    transform: Callable  # image -> uint8 [S, S, 3], as in testing
    reading: dict  # how images are read: the arguments of data/pipeline.py
    stored: dict  # "train", "val": row of the split -> feature (E,); "views": row of "train" -> its crops' (V, E)
    tests: dict  # "" and the names of the targets -> Test
    learnt: dict  # (method, protocol, draws...) -> trees trained beside another method's, until it is their turn


class Test(NamedTuple):
    """A data set that is tested on, and the features of its test images."""

    dataset: task.Dataset
    features: features.Features


def words(world, labels, of=""):
    """The classes `labels` of the data set trained on, or of a target, as a method sees them."""
    dataset = world.tests[of].dataset
    tokenize = functools.partial(world.tokenizer, truncate=world.config.model.truncate)
    names = tuple(dataset.classnames[c] for c in labels)
    return methods.Task(names, dataset.templates, task.ensemble(dataset), tokenize)


def predict(world, method, v, consts, part, rules=shard.METHOD):
    """(said (S, n), p (S, n), weight (n,)) of a part of a test split; `said` are positions in the part's classes."""
    batch, process = shard.up(world.mesh, world.config.eval_batch), shard.share(world.mesh)[1]
    dataset, test = world.tests[part.of]
    if method.needs == "features":
        batches = evaluate.feature_batches(test.features[part.index], test.weight[part.index], batch, process)
    else:
        reading = world.reading | {"upright": dataset.upright, "process": process}
        split, frozen = fewshot.take(dataset.test, part.index), test and test.features[part.index]
        batches = evaluate.image_batches(split, world.transform, batch, frozen, **reading, bad=[])
    return evaluate.predict(method, v, world.model, consts, batches, len(part.index), world.mesh, rules)


# -------------------------------------------------------------------- model, data and files
def target_data(config, name):
    """config.data for another data set to test on; what names files of the config's own does not hold for it."""
    own = {"name": name, "file": "", "split_file": "", "templates": (), "classnames": ""}
    return config.data.to_dict() | own


def load_target(config, name, workdir):
    """Another data set to test on, read as the config's own is."""
    target = task.load(target_data(config, name), workdir)
    say(f"target: {name}, {len(target.classnames)} classes, {len(target.test.labels)} test images")
    return target


def load_model(config, mesh):
    """(Clip, tokenizer, digest) placed on the mesh."""
    m = config.model
    rules = shard.rules_of(config.shardings, "model")
    loaded = zoo.load(
        m.name, **zoo.overrides(m), dtype=m.dtype, param_dtype=m.param_dtype,
        place=lambda path, shape: shard.sharding(mesh, path, shape, rules + shard.MODEL),
    )  # fmt: skip
    shard.refuse_unused(loaded.model.params, rules)
    model = loaded.model.replace(config=dataclasses.replace(loaded.model.config, remat=m.remat))
    return model, loaded.tokenizer, loaded.digest


def used_rows(problems, part):
    """The rows of a split, "train" or "val", that any draw of any problem has, sorted."""
    every = [getattr(draw, part) for problem in problems.values() for draw in problem.draws]
    return np.unique(np.concatenate(every).astype(int))


def drop_unreadable(config, dataset, problems):
    """Unreadable training and validation images: the run stops with their list or, if asked, goes on without them."""
    bad = []
    for part in ("train", "val"):
        split, used = getattr(dataset, part), used_rows(problems, part)
        mine = shard.own(used)
        found = pipeline.check(fewshot.take(split, mine), dataset.upright, config.data.workers)
        found = shard.everyone([b._replace(index=int(mine[b.index])) for b in found])
        found = sorted(pipeline.Bad(*b) for b in found)
        if found and config.data.bad_images == "stop":
            raise UserError(pipeline.stop_message(found, len(used)))
        for problem in problems.values() if found else ():
            kept = lambda rows: rows[~np.isin(rows, [b.index for b in found])]  # noqa: B023
            problem.draws[:] = [draw._replace(**{part: kept(getattr(draw, part))}) for draw in problem.draws]
        bad += found
    return bad


def write_lists(config, workdir, dataset, problems):
    """The training and validation images of each draw, by name, in workdir/few_shot."""
    for protocol, problem in problems.items():
        for draw in problem.draws:
            lists = {
                part: [getattr(dataset, part).names[i] for i in getattr(draw, part).tolist()]
                for part in ("train", "val")
            }
            name = f"{protocol}{settings.label(config, draw.shots)}-seed_{draw.seed}.json"
            write_json(workdir / "few_shot" / name, lists)
