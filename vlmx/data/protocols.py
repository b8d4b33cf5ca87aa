"""Evaluation protocols of few-shot transfer: which images are trained on, which classes they are tested among.

A protocol is a function `(dataset, shots, seeds) -> Problem`; it moves indices, never images.
"""

from typing import NamedTuple

import numpy as np

from vlmx.data import fewshot
from vlmx.errors import UserError


class Part(NamedTuple):
    """A test set among some classes: `labels`, the classes in order; `index` (n,), rows of the test split."""

    labels: tuple[int, ...]
    index: np.ndarray


class Problem(NamedTuple):
    """One training problem per seed and its tests. `labels`: the classes trained on; `train` and `val`: for each seed,
    rows of the data set's train and val splits; `parts`: name -> Part."""

    labels: tuple[int, ...]
    train: list[np.ndarray]
    val: list[np.ndarray]
    parts: dict[str, Part]


def few_shot(dataset, shots, seeds):
    """All classes, `shots` images of each (CoOp, arXiv 2109.01134)."""
    train, val = _sample(dataset, shots, seeds)
    labels = tuple(range(len(dataset.classnames)))
    return Problem(labels, train, val, {"all": _part(dataset, labels)})


def base_to_new(dataset, shots, seeds):
    """Train on the first half of the classes, test on both halves apart (CoCoOp, arXiv 2203.05557).

    The base images of a seed are those of its few_shot run.
    """
    train, val = _sample(dataset, shots, seeds)
    base, new = fewshot.halves(dataset.train.labels)
    if not new:
        raise UserError(
            f"base_to_new halves the classes, and {dataset.name!r} has {len(base)}. Use protocols=('few_shot',)."
        )

    def keep(split, rows):
        return [r[np.isin(split.labels[r], base)] for r in rows]

    parts = {"base": _part(dataset, base), "new": _part(dataset, new)}
    return Problem(tuple(base), keep(dataset.train, train), keep(dataset.val, val), parts)


PROTOCOLS = {f.__name__: f for f in (few_shot, base_to_new)}


def _sample(dataset, shots, seeds):
    pairs = [fewshot.sample(dataset.train.labels, dataset.val.labels, shots, seed) for seed in seeds]
    return [train for train, _ in pairs], [val for _, val in pairs]


def _part(dataset, labels):
    return Part(tuple(labels), np.flatnonzero(np.isin(dataset.test.labels, labels)))


def relabel(labels, classes):
    """`labels` (n,) as positions in `classes`, int32."""
    position = {c: i for i, c in enumerate(classes)}
    return np.array([position[label] for label in np.asarray(labels).tolist()], np.int32)
