"""Benchmarks prepared by tensorflow-datasets as array_record: read with no tensorflow, images left encoded.

CoOp's items are selected by file name where its split file is there; else the builder's own splits, in CoOp's labels.
UCF101 (videos) and FGVC-Aircraft have no builder of use.
"""

import functools
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlmx.data import annotations, classification, task
from vlmx.data.annotations import Item
from vlmx.data.task import Dataset, Split
from vlmx.errors import UserError


def _same(name: str) -> str:
    return name


class Builder(NamedTuple):
    """How a benchmark is found in tensorflow-datasets, and its records in CoOp's lists."""

    name: str  # of the builder, with its config
    version: str
    key: str  # {field of the record}, {label}: its class, {part}: its split -> CoOp's path without ending
    rename: Callable[[str], str] = _same  # class of the builder -> class name of CoOp


def _caltech(name: str) -> str:
    """TFDS lower-cases the folders."""
    return {k.lower(): v for k, v in annotations.CALTECH.items()}.get(name, name)


BUILDERS = {
    "imagenet": Builder("imagenet2012", "5.1.0", "{file_name}"),
    "caltech101": Builder("caltech101", "3.0.2", "{label}/{image/file_name}", _caltech),
    "oxford_pets": Builder("oxford_iiit_pet", "4.0.0", "{file_name}", str.lower),
    "stanford_cars": Builder("cars196", "2.1.0", "cars_{part}/{id}", annotations.cars_name),
    "oxford_flowers": Builder("oxford_flowers102", "2.1.1", "{file_name}", lambda c: c.rstrip("?")),
    "food101": Builder("food101", "2.1.0", "{id}"),
    "sun397": Builder("sun397/standard-part1-120k", "4.0.0", "{file_name}", annotations.sun_name),
    "dtd": Builder("dtd", "3.0.1", "{file_name}"),
    "eurosat": Builder("eurosat/rgb", "2.0.0", "{label}/{filename}", lambda c: annotations.EUROSAT.get(c, c)),
    "imagenet_v2": Builder("imagenet_v2/matched-frequency", "3.0.0", "{file_name}"),
    "imagenet_sketch": Builder("imagenet_sketch", "1.0.0", "{file_name}"),
    "imagenet_a": Builder("imagenet_a", "0.1.0", "{file_name}"),
    "imagenet_r": Builder("imagenet_r", "0.2.0", "{file_name}"),
}
UNLIKE = {
    "sun397": "TFDS has shrunk the images of SUN397 to 120,000 pixels and encoded them again: not the published pixels",
    "oxford_pets": "TFDS has encoded 12 images of OxfordPets again: not the published pixels",
}


@dataclass(frozen=True)
class Records(Sequence):
    """The encoded images of the records `rows` = [(source, row), ...] of some tfds data sources."""

    sources: tuple
    rows: np.ndarray  # [n, 2]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        source, row = self.rows[i].tolist()
        return self.sources[source][row]["image"]

    def identity(self, i):
        source, row = self.rows[i].tolist()
        return f"{self._files[source]}\n{row}"

    @functools.cached_property
    def _files(self):
        """Of each source: its part, and a digest of the files of its data set, by name, size and times."""
        folders = [sorted(map(str, Path(source.dataset_info.data_dir).iterdir())) for source in self.sources]
        files = ["\n".join(task.identity(folder, i) for i in range(len(folder))) for folder in folders]
        digests = [hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest() for text in files]
        return [f"{s.split} {digest}" for s, digest in zip(self.sources, digests)]


def load(data, workdir: str | os.PathLike) -> Dataset:
    """`tfds:BENCHMARK` below `data.root` (TFDS's data_dir); `data.split_file`: CoOp's split file, if it is not there.

    Reads every record once for its name and label. Raises UserError for data not prepared, or not as array_record.
    """
    name = data["name"].removeprefix("tfds:")
    bench, builder = classification.BENCHMARKS[name], BUILDERS[name]
    root = Path(data["root"]).expanduser()
    opened = open_builder(root, name)
    classes = opened.info.features["label"].names
    sources, index = [], {}  # index: part of the builder -> [(key, class)]
    for part in sorted(opened.info.splits):
        if (name, part) == ("imagenet", "test"):
            continue  # it has no labels
        sources.append(opened.as_data_source(split=part, decoders=_encoded(opened.info.features)))
        index[part] = list(_index(sources[-1], classes, builder.key, part))
    where = {key: (i, row) for i, rows in enumerate(index.values()) for row, (key, _) in enumerate(rows)}
    path = _split_file(data, root, bench)
    if path:
        parts, notes = classification.read_split(path, data.get("bad_images") == "skip")
        parts, repeated = classification.count_once(path, parts, _stem, not data.get("split_file"))
        notes += repeated
        classnames = classification.names_of(name, parts)
    else:
        parts, classnames = _own_parts(name, index, classes)
        parts, notes = classification.made(name, parts, workdir)
    gone = [i[0] for items in parts.values() for i in items if _stem(i[0]) not in where]
    if gone:
        what = f"{len(gone)} images of {path} are not among the records of {opened.data_path}"
        if data.get("bad_images") != "skip":
            raise UserError(
                f"tfds:{name}: {what}, for instance {', '.join(map(_stem, gone[:5]))}. Prepared with another version "
                f"or config? Expected {builder.name}:{builder.version}."
            )
        lost = {c: f"{p} is not there." for items in parts.values() for p, _, c in items if _stem(p) not in where}
        parts = {p: [i for i in items if _stem(i[0]) in where] for p, items in parts.items()}
        classification.refuse_lost_classes(path, lost, parts)
        notes = [*notes, f"left out: {what}, for instance {gone[0]}"]
    keys = {p: [_stem(i[0]) for i in items] for p, items in parts.items()}
    notes = [UNLIKE[name], *notes] if name in UNLIKE else notes
    dataset = classification.dataset(name, root, classnames, parts, notes)

    def records(part: str) -> Split:
        rows = np.asarray([where[k] for k in keys.get(part, ())], np.int64).reshape(-1, 2)
        return getattr(dataset, part)._replace(images=Records(tuple(sources), rows))

    return dataset._replace(name=data["name"], train=records("train"), val=records("val"), test=records("test"))


def open_builder(root: Path, name: str):
    """The prepared builder of a benchmark below `root`, its highest version; tensorflow is not needed."""
    import tensorflow_datasets as tfds

    builder = BUILDERS[name]
    found = sorted((root / builder.name).glob("*/dataset_info.json"), key=lambda p: _version(p.parent.name))
    how = (
        "Prepare it once, where tensorflow may be installed:\n"
        "  pip install 'vlmx[prepare]'\n"
        f"  python -c \"import tensorflow_datasets as tfds; tfds.builder('{builder.name}:{builder.version}', "
        f"data_dir='{root}').download_and_prepare(file_format='array_record')\""
    )
    if not found:
        raise UserError(f"tfds:{name}: {root / builder.name} holds no prepared data set. {how}")
    try:
        opened = tfds.builder_from_directory(str(found[-1].parent))
    except Exception as e:  # whatever its readers stumble over in damaged files
        raise UserError(f"tfds:{name}: {found[-1].parent} cannot be read ({type(e).__name__}: {e}). {how}") from e
    if opened.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(f"tfds:{name}: {found[-1].parent} is in the format {opened.info.file_format.value}. {how}")
    return opened


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text))


def _encoded(features) -> dict:
    """Decoders that leave every image as the bytes it was prepared from: how to decode is vlmx's own affair."""
    import tensorflow_datasets as tfds

    return {k: tfds.decode.SkipDecoding() for k, f in features.items() if isinstance(f, tfds.features.Image)}


def _index(source, classes: list[str], key: str, part: str):
    """(key, class) of every record."""
    fields = [f for f in re.findall(r"\{(.*?)\}", key) if f not in ("label", "part")]
    for record in source:
        lacks = [f for f in fields if f not in record]
        if lacks:
            raise UserError(
                f"tfds: the records of {source.dataset_info.full_name} have no field {lacks[0]!r}: too old a version."
            )
        label = classes[int(record["label"])]
        values = {"label": label, "part": part} | {f: record[f].decode() for f in fields}
        yield _stem(re.sub(r"\{(.*?)\}", lambda m: values[m[1]], key)), label  # noqa: B023


def _stem(path: str) -> str:
    """What file names are compared by: TFDS lower-cases some folders and drops some endings."""
    path = path.strip("/").lower()
    return path.rsplit(".", 1)[0] if re.search(r"\.(jpe?g|png)$", path) else path


def _split_file(data, root: Path, bench) -> Path | None:
    if data.get("split_file"):
        return root / Path(data["split_file"]).expanduser()
    name = f"split_zhou_{bench.split}.json"
    return next((p for p in (root / name, root / bench.folder / name) if bench.split and p.exists()), None)


def labels_of(name: str, classes: Sequence[str], present: Sequence[str] | None = None) -> dict[str, tuple[int, str]]:
    """Class of the builder -> (CoOp's label, CoOp's class name); classes that CoOp leaves out are not in it.

    For the ImageNets classes are WNIDs; ImageNet-A and -R number only those `present`, in sorted order.
    """
    if name.startswith("imagenet"):
        names = annotations.wnid_names()
        kept = sorted(present) if name in ("imagenet_a", "imagenet_r") else sorted(classes)
        return {c: (i, names[c]) for i, c in enumerate(kept)}
    kept = list(classes)
    if name == "caltech101":  # ranks of the folders in their own spelling: capital letters come first
        spelt = {f.lower(): f for f in annotations.CALTECH}
        ignored = [f.lower() for f in annotations.CALTECH_IGNORED]
        kept = sorted((c for c in classes if c not in ignored), key=lambda c: spelt.get(c, c))
    if name == "food101":
        kept.sort()  # TFDS has cheesecake before cheese_plate
    return {c: (i, BUILDERS[name].rename(c)) for i, c in enumerate(kept)}


def _own_parts(name, index, classes) -> tuple[dict[str, list[Item]], tuple[str, ...]]:
    """The builder's splits as items in CoOp's labels, and the class names."""
    labels = labels_of(name, classes, {c for rows in index.values() for _, c in rows})
    parts = {p: sorted((key, *labels[c]) for key, c in rows if c in labels) for p, rows in index.items()}
    if "validation" in parts:
        parts["val" if "test" in parts else "test"] = parts.pop("validation")
    if set(parts) == {"train"}:
        parts = {"all": parts["train"]}
    return parts, tuple(c for _, c in sorted(labels.values()))
