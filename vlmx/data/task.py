"""A classification task as everything else sees it: class names, templates, three splits of (image reference, label).

`load` finds the reader by the name in the config; no reader knows a model, a method or a device.
"""

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vlmx.errors import UserError


class Split(NamedTuple):
    """`images[i]` is a path (str), encoded bytes, or a uint8 array [H, W] or [H, W, 3]; picklable, lazy."""

    images: Sequence
    labels: np.ndarray  # [n] int32
    names: Sequence[str]  # stable name of each image: a relative path, or "test/17"


class Dataset(NamedTuple):
    name: str
    classnames: tuple[str, ...]
    templates: tuple[str, ...]
    train: Split  # each of the three may be empty
    val: Split
    test: Split
    upright: bool = False  # people's own photos: the EXIF orientation is applied
    notes: tuple[str, ...] = ()  # what a person should know ("no val split: 20 % of train, seed 0, written to ...")


@dataclass(frozen=True)
class Files(Sequence):
    """The paths of `names` under `root`, joined when asked for (ImageNet has 1.3 million)."""

    root: str
    names: Sequence[str]

    def __len__(self):
        return len(self.names)

    def __getitem__(self, i):
        return os.path.join(self.root, self.names[i])


def split(root: str | os.PathLike, names: Sequence[str], labels: Sequence[int]) -> Split:
    """A split of image files `root/name`."""
    return Split(Files(os.fspath(root), list(names)), np.asarray(labels, np.int32).reshape(-1), list(names))


def known() -> tuple[str, ...]:
    """Every name `load` understands."""
    from vlmx.data import classification, embedded, tfds

    return (*embedded.NAMES, *classification.BENCHMARKS, *(f"tfds:{n}" for n in tfds.BUILDERS), "folder", "csv")


def load(data, workdir: str | os.PathLike) -> Dataset:
    """The dataset `data.name` (a config or dict; the readers say which other fields they use: `root`, ...).

    Splits that have to be made are written to `workdir`. Raises UserError for an unknown name or files not as expected.
    """
    from vlmx.data import classification, embedded, own, tfds

    name = data["name"]
    if name not in known():
        near = difflib.get_close_matches(name, known(), n=3)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise UserError(f"data.name: there is no data set {name!r}.{hint} Known names: {', '.join(known())}.")
    if name == "folder":
        return own.folder(data, workdir)
    if name == "csv":
        return own.table(data, workdir)
    if name.startswith("tfds:"):
        return tfds.load(data, workdir)
    if name in classification.BENCHMARKS:
        return classification.load(data, workdir)
    return embedded.load(name)
