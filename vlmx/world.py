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


def find_same_prompts(config, dataset, tokenizer):
    """Return a note on the classes whose prompts have the same token ids, or no note: no method tells them apart."""
    tokenize = functools.partial(tokenizer, truncate=config.model.truncate)
    groups = methods.same_prompts(methods.Task(dataset.classnames, dataset.templates, (), tokenize))
    if not groups:
        return []
    listed = "; ".join(" = ".join(map(repr, names[:5])) for names in groups[:5]) + "; ..." * (len(groups) > 5)
    return [f"classes with the same prompt, which this model cannot tell apart by their names: {listed}"]


# -------------------------------------------------------------------- model, data and files
def target_data(config, name):
    """config.data for another data set to test on; what names files of the config's own does not hold for it."""
    own = {"name": name, "file": "", "split_file": "", "templates": (), "classnames": ""}
    return config.data.to_dict() | own


def load_target(config, name, workdir):
    """Another data set to test on, read as the config's own is."""
    target = task.load(target_data(config, name), workdir)
    say(f"target: {name}, {len(target.classnames)} classes, {len(target.test.labels)} test images")
    for note in target.notes:
        say(f"  note: {note}")
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


def drop_unreadable(config, dataset, targets, problems, transform):
    """Leave unreadable training and validation images out of the draws, or stop with the list of all splits.

    Args:
        targets: {name: Dataset}, which are tested on too.
        transform: the test transform, image -> uint8 [S, S, 3].

    Returns:
        {"train": [Bad], "val": [Bad]}.

    Raises:
        UserError: images are unreadable and config.data.bad_images is "stop": it lists those of the test splits too;
            or it is "skip" and a class has no training image left.
    """
    rows = {part: used_rows(problems, part) for part in ("train", "val")}
    bad = {part: _find_unreadable(config, dataset, part, rows[part], transform) for part in rows}
    if any(bad.values()) and config.data.bad_images == "stop":
        sizes = {part: len(used) for part, used in rows.items()}
        for of, data in {"": dataset, **targets}.items():
            split, every = name_test_split(of), np.arange(len(data.test.labels))
            sizes[split], bad[split] = len(every), _find_unreadable(config, data, "test", every, transform)
        raise UserError(pipeline.splits_stop_message(bad, sizes))
    for protocol, problem in problems.items():
        for i, draw in enumerate(problem.draws):
            left = {part: getattr(draw, part) for part in bad}
            left = {part: r[~np.isin(r, [b.index for b in bad[part]])] for part, r in left.items()}
            _refuse_emptied_classes(protocol, dataset, draw, left["train"])
            if config.checkpoint_best and len(draw.val) > len(left["val"]) == 0:
                raise UserError(
                    f"checkpoint_best chooses on validation images, and none of the {len(draw.val)} of {protocol}, "
                    f"seed {draw.seed}, can be read."
                )
            problem.draws[i] = draw._replace(**left)
    return bad


def name_test_split(target):
    """What messages call the test split of a target, or of the data set trained on: ""."""
    return f"{target} test".strip()


def _find_unreadable(config, dataset, part, rows, transform):
    """The images at `rows` of a split that cannot be read, [Bad] with rows of the split; each process reads a share."""
    mine = shard.own(rows)
    images = fewshot.take(getattr(dataset, part), mine)
    bad = pipeline.check(images, transform, dataset.upright, config.data.workers)
    return sorted(pipeline.Bad(*b) for b in shard.everyone([b._replace(index=int(mine[b.index])) for b in bad]))


def _refuse_emptied_classes(protocol, dataset, draw, rows):
    """UserError where of a draw's training images the `rows` are left, and none of some class."""
    before, after = (set(dataset.train.labels[r].tolist()) for r in (draw.train, rows))
    if empty := sorted(before - after):
        raise UserError(
            f"{protocol}, {draw.shots} shots, seed {draw.seed}: without the unreadable images no training image of "
            f"{', '.join(repr(dataset.classnames[label]) for label in empty[:5])} is left. Repair or replace them "
            "(--config.data.bad_images=stop lists them), or use more shots."
        )


def refuse_unreadable_tests(problems, tests):
    """UserError where none of the images of a test can be read, before anything is trained."""
    for protocol, problem in problems.items():
        for name, part in problem.parts.items():
            if len(part.index) and not tests[part.of].features.weight[part.index].any():
                raise UserError(f"{protocol}: none of the {len(part.index)} test images of {name!r} can be read.")


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
