"""Evaluation protocols of few-shot transfer: which images are trained on, which classes they are tested among.

A protocol is a function `(dataset, shots, seeds, targets) -> Problem`; it moves indices, never images. `shots`: one
number of training images a class, or several. `targets`: the other data sets that are tested on, name -> Dataset.
"""

from typing import NamedTuple

import numpy as np

from vlmx.data import fewshot
from vlmx.errors import UserError


class Part(NamedTuple):
    """A test set among some classes: `labels`, the classes in order; `index` (n,), rows of the test split; `of`: the
    target whose classes and images these are, "" for the data set trained on."""

    labels: tuple[int, ...]
    index: np.ndarray
    of: str = ""


class Draw(NamedTuple):
    """The images of one training, `shots` of each class, drawn with `seed`: rows of the train and of the val split."""

    shots: int
    seed: int
    train: np.ndarray
    val: np.ndarray


class Problem(NamedTuple):
    """Training problems of one kind and their tests. `labels`: the classes trained on; `draws`: one for each number of
    shots and each seed, in this order; `parts`: name -> Part."""

    labels: tuple[int, ...]
    draws: list[Draw]
    parts: dict[str, Part]


def few_shot(dataset, shots, seeds, targets=()):
    """All classes, `shots` images of each (CoOp, arXiv 2109.01134)."""
    labels = tuple(range(len(dataset.classnames)))
    return Problem(labels, _sample(dataset, shots, seeds), {"all": _part(dataset, labels)})


def base_to_new(dataset, shots, seeds, targets=()):
    """Train on the first half of the classes, test on both halves apart (CoCoOp, arXiv 2203.05557).

    The base images of a seed are those of its few_shot run.
    """
    base, new = fewshot.halves(dataset.train.labels)
    if not new:
        raise UserError(
            f"base_to_new halves the classes, and {dataset.name!r} has {len(base)}. Use protocols=('few_shot',)."
        )

    def keep(draw):
        train, val = (r[np.isin(s.labels[r], base)] for s, r in ((dataset.train, draw.train), (dataset.val, draw.val)))
        return draw._replace(train=train, val=val)

    parts = {"base": _part(dataset, base), "new": _part(dataset, new)}
    return Problem(tuple(base), [keep(draw) for draw in _sample(dataset, shots, seeds)], parts)


def cross_dataset(dataset, shots, seeds, targets):
    """Train on all classes, test on other data sets, each among its own classes (CoCoOp, arXiv 2203.05557)."""
    labels = tuple(range(len(dataset.classnames)))
    parts = {"source": _part(dataset, labels)}
    for name, target in targets.items():
        parts[name] = _part(target, range(len(target.classnames)), name)
    return Problem(labels, _sample(dataset, shots, seeds), parts)


def domain_generalization(dataset, shots, seeds, targets):
    """Train on all classes, test on other pictures of them (CoOp, arXiv 2109.01134).

    A target with a part of the classes, as ImageNet-A and ImageNet-R, is tested among these alone.
    """
    for name, target in targets.items():
        if other := [c for c in target.classnames if c not in dataset.classnames]:
            raise UserError(
                f"domain_generalization tests on the classes trained on, and {name} has others than {dataset.name}: "
                f"{', '.join(other[:3])}{', ...' if other[3:] else ''}. For other classes there is cross_dataset."
            )
    return cross_dataset(dataset, shots, seeds, targets)


TRANSFER = (cross_dataset.__name__, domain_generalization.__name__)  # those that need targets
PROTOCOLS = {f.__name__: f for f in (few_shot, base_to_new, cross_dataset, domain_generalization)}


def _sample(dataset, shots, seeds):
    pairs = [(n, seed) for n in np.atleast_1d(shots).tolist() for seed in seeds]
    return [Draw(*pair, *fewshot.sample(dataset.train.labels, dataset.val.labels, *pair)) for pair in pairs]


def _part(dataset, labels, of=""):
    return Part(tuple(labels), np.flatnonzero(np.isin(dataset.test.labels, tuple(labels))), of)


def relabel(labels, classes):
    """`labels` (n,) as positions in `classes`, int32."""
    position = {c: i for i, c in enumerate(classes)}
    return np.array([position[label] for label in np.asarray(labels).tolist()], np.int32)
