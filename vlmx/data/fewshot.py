"""Few-shot subsets and base/new halves, image by image those of CoOp and Dassl.

The order of the lists and every draw of Python's `random` matter: the same seed has to name the papers' images.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlmx.data import task
from vlmx.data.task import Dataset, Split
from vlmx.errors import UserError, unknown

RULES = ("coop", "tip_adapter", "clip_lora")


def draw(labels: Sequence[int], shots: int, rng: random.Random, repeat: bool = False) -> np.ndarray:
    """Positions of `shots` items per class, classes in order of first appearance: int64 [n].

    A class with fewer items gives all of them, drawing nothing (Dassl), or is filled up by repeated draws (`repeat`).
    """
    members = {}
    for i, label in enumerate(np.asarray(labels).tolist()):
        members.setdefault(label, []).append(i)
    picked = []
    for items in members.values():
        if len(items) >= shots:
            picked += rng.sample(items, shots)
        else:
            picked += rng.choices(items, k=shots) if repeat else items
    return np.asarray(picked, np.int64)


def sample(
    train_labels: Sequence[int], val_labels: Sequence[int], shots: int, seed: int, rule: str = "coop"
) -> tuple[np.ndarray, np.ndarray]:
    """Positions (train, val) of a few-shot subset; `shots` = -1 keeps everything.

    rule "coop": train, then at most 4 shots of val from the same generator (so too MaPLe, PromptSRC, APEX, TaskRes).
    rule "tip_adapter": small classes are filled by repeats; val is kept whole.
    rule "clip_lora": at most 4 shots of val are drawn first, then train, both with repeats.
    """
    if shots == -1:
        return np.arange(len(train_labels)), np.arange(len(val_labels))
    if shots < 1:
        raise UserError(f"shots = {shots}: expected a positive number of images per class, or -1 for all of them.")
    rng = random.Random(seed)
    if rule == "coop":
        return draw(train_labels, shots, rng), draw(val_labels, min(shots, 4), rng)
    if rule == "tip_adapter":
        return draw(train_labels, shots, rng, repeat=True), np.arange(len(val_labels))
    if rule == "clip_lora":
        val = draw(val_labels, min(shots, 4), rng, repeat=True)
        return draw(train_labels, shots, rng, repeat=True), val
    raise unknown("sampling rule", rule, RULES)


def halves(labels: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(base, new) labels: the labels that occur in the training list, sorted; base is the first half, rounded up."""
    found = np.unique(np.asarray(labels)).tolist()
    middle = math.ceil(len(found) / 2)
    return tuple(found[:middle]), tuple(found[middle:])


@dataclass(frozen=True)
class Picked(Sequence):
    """`of[index[i]]`, looked up when asked for."""

    of: Sequence
    index: np.ndarray

    def __len__(self):
        return len(self.index)

    def __getitem__(self, i):
        return self.of[int(self.index[i])]

    def identity(self, i):
        return task.identity(self.of, int(self.index[i]))


def take(split: Split, index: Sequence[int]) -> Split:
    """The items of `split` at the positions `index`, in that order."""
    index = np.asarray(index, np.int64)
    return Split(Picked(split.images, index), split.labels[index], Picked(split.names, index))


def select(dataset: Dataset, labels: Sequence[int]) -> Dataset:
    """The classes `labels` of a dataset: their items of all splits, in order, labels renumbered 0.. as in `labels`."""
    new = np.full(len(dataset.classnames), -1, np.int32)
    new[list(labels)] = np.arange(len(labels), dtype=np.int32)

    def part(split):
        kept = take(split, np.flatnonzero(new[split.labels] >= 0))
        return kept._replace(labels=new[kept.labels])

    return dataset._replace(
        classnames=tuple(dataset.classnames[i] for i in labels),
        train=part(dataset.train),
        val=part(dataset.val),
        test=part(dataset.test),
    )
