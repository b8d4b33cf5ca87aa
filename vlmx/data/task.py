"""A classification task as everything else sees it: class names, templates, three splits of (image reference, label).

`load` finds the reader by the name in the config; no reader knows a model, a method or a device.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlmx import fields
from vlmx.errors import UserError, unknown


class Split(NamedTuple):
    """`images[i]` is a path (str), encoded bytes, or a uint8 array [H, W] or [H, W, 3]; picklable, lazy.

    Where it takes work to make an image, `images.identity(i)` may say in a text what it is, without making it.
    """

    images: Sequence
    labels: np.ndarray  # [n] int32
    names: Sequence[str]  # stable name of each image: a relative path, or "test/17"


class Dataset(NamedTuple):
    """A classification task: its classes in words and its three splits."""

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


def identity(images: Sequence, i: int) -> str:
    """A text that no other image has, and image i no more once it has changed: of a file its path, size and times, of
    bytes or an array their SHA-256, unless `images` has an `identity(i)` of its own."""
    if hasattr(images, "identity"):
        return images.identity(i)
    image = images[i]
    if isinstance(image, (str, os.PathLike)):
        path = os.path.abspath(image)
        try:
            s = os.stat(path)
        except OSError:
            return path  # it cannot be read, so nothing will be found under this
        return f"{path}\n{s.st_size} {s.st_mtime_ns} {s.st_ctime_ns}"
    if isinstance(image, np.ndarray):
        return f"{image.shape} {image.dtype} {hashlib.sha256(np.ascontiguousarray(image)).hexdigest()}"
    return hashlib.sha256(image).hexdigest()


def split(root: str | os.PathLike, names: Sequence[str], labels: Sequence[int]) -> Split:
    """A split of image files `root/name`."""
    names = list(names)
    return Split(Files(os.fspath(root), names), np.asarray(labels, np.int32).reshape(-1), names)


def record(path: Path, text: str) -> None:
    """Write what a run rests on, once: the same text again is fine, another one is an error."""
    content = text.encode(errors="surrogateescape")  # file names that are not UTF-8 stay the bytes that they are
    if path.exists():
        if path.read_bytes() != content:
            raise UserError(
                f"{path} was written by an earlier run on other data; use another workdir, or remove the file."
            )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(content)
    draft.replace(path)  # at once: other processes of the same run read it


def known() -> tuple[str, ...]:
    """Every name `load` understands."""
    from vlmx.data import classification, embedded, tfds

    return (*embedded.NAMES, *classification.BENCHMARKS, *(f"tfds:{n}" for n in tfds.BUILDERS), "folder", "csv")


def load(data, workdir: str | os.PathLike) -> Dataset:
    """The dataset `data.name`; `data` is a config or a dict.

    Readers use `data.root`, `data.split_file` (published ones and folder), `data.file` (csv). For every dataset
    `data.templates` replaces the templates and `data.classnames` names a file with other class names. Splits that have
    to be made are written to `workdir`. Raises UserError for an unknown name, and for files that are missing or not as
    expected.
    """
    from vlmx.data import own

    dataset = _read(data, workdir)
    if data.get("templates"):
        dataset = dataset._replace(templates=check_templates(data["templates"]))
    return own.rename(dataset, data["classnames"]) if data.get("classnames") else dataset


def check_templates(templates: str | Sequence[str]) -> tuple[str, ...]:
    """Return `data.templates` as a tuple of texts. UserError unless each holds {} once, and no other brace."""
    fields.refuse("data.templates", templates, fields.TEMPLATES)
    return (templates,) if isinstance(templates, str) else tuple(templates)


def _read(data, workdir) -> Dataset:
    from vlmx.data import classification, embedded, own, tfds

    name = data["name"]
    if name not in known():
        raise unknown("data set (data.name)", name, known())
    if name in embedded.NAMES:
        if data.get("split_file"):
            raise UserError(f"data.split_file: {name} is part of the package and has fixed splits; leave it out.")
        return embedded.load(name)
    if not data.get("root"):
        raise UserError(f"data.root: {name} needs the folder of the images, for instance --config.data.root=/data.")
    if name == "folder":
        return own.folder(data, workdir)
    if name == "csv":
        return own.table(data, workdir)
    return tfds.load(data, workdir) if name.startswith("tfds:") else classification.load(data, workdir)


def ensemble(dataset: Dataset) -> tuple[str, ...]:
    """The seven templates selected on ImageNet; for other datasets than the ImageNets their own come behind them."""
    from vlmx.data.classification import IMAGENET_7

    imagenet = dataset.name.removeprefix("tfds:").startswith("imagenet")
    return IMAGENET_7 if imagenet else (*IMAGENET_7, *dataset.templates)
