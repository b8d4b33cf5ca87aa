"""The 15 published classification benchmarks in CoOp's layout: one table, one reader.

Labels, class names and splits come from `split_zhou_NAME.json` where the benchmark has one, else from its folders or
official lists (vlmx/data/annotations.py). What a person has to know about the result is in `Dataset.notes`.
"""

import json
import os
import random
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from vlmx import files
from vlmx.data import annotations
from vlmx.data.annotations import Item
from vlmx.data.image_files import (
    Entry,
    file_id,
    find_file,
    is_name,
    normalize_name,
    printable,
    refuse_conflicts,
    split_repeats,
)
from vlmx.data.task import Dataset, record, split
from vlmx.errors import UserError

PHOTO = "a photo of a {}."
IMAGENET_7 = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)


class Benchmark(NamedTuple):
    """Where a published benchmark lies, how its prompts read, what is expected, and where it comes from."""

    folder: str  # under data.root
    images: str  # under folder; the paths of the items start below it
    split: str | None  # NAME of split_zhou_NAME.json
    template: str
    counts: tuple  # published: classes, train, val, test images; None where there is no such split
    tree: tuple[str, ...]  # files needed, below folder
    fallback: tuple[str, ...]  # files needed instead of the split file
    source: str  # where the images come from


VGG = "www.robots.ox.ac.uk/~vgg/data"
WNID = "classnames.txt is optional: vlmx has CLIP's names"
BENCHMARKS = {
    "imagenet": Benchmark(
        "imagenet", "images", None, PHOTO, (1000, 1281167, None, 50000),
        ("images/train/WNID/*.JPEG", "images/val/WNID/*.JPEG"), (),
        "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from image-net.org (account needed), one folder per WNID "
        f"in both; {WNID}"),
    "caltech101": Benchmark(
        "caltech-101", "101_ObjectCategories", "Caltech101", PHOTO, (100, 4128, 1649, 2465),
        ("101_ObjectCategories/CLASS/*.jpg",), (),
        "caltech-101.zip from data.caltech.edu (record mzrjq-6wc02), which holds 101_ObjectCategories.tar.gz"),
    "oxford_pets": Benchmark(
        "oxford_pets", "images", "OxfordPets", "a photo of a {}, a type of pet.", (37, 2944, 736, 3669),
        ("images/*.jpg",), ("annotations/trainval.txt", "annotations/test.txt"),
        f"images.tar.gz and annotations.tar.gz from {VGG}/pets"),
    "stanford_cars": Benchmark(
        "stanford_cars", "", "StanfordCars", PHOTO, (196, 6509, 1635, 8041),
        ("cars_train/*.jpg", "cars_test/*.jpg"),
        ("devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat"),
        "cars_train.tgz, cars_test.tgz, car_devkit.tgz and cars_test_annos_withlabels.mat; the authors' page "
        "(ai.stanford.edu/~jkrause/cars) no longer serves them, mirrors are listed in pytorch/vision issue 7545"),
    "oxford_flowers": Benchmark(
        "oxford_flowers", "jpg", "OxfordFlowers", "a photo of a {}, a type of flower.", (102, 4093, 1633, 2463),
        ("jpg/image_*.jpg",), ("imagelabels.mat", "cat_to_name.json"),
        f"102flowers.tgz and imagelabels.mat from {VGG}/flowers/102"),
    "food101": Benchmark(
        "food-101", "images", "Food101", "a photo of {}, a type of food.", (101, 50500, 20200, 30300),
        ("images/CLASS/*.jpg",), (),
        "food-101.tar.gz from data.vision.ee.ethz.ch/cvl/datasets_extra/food-101"),
    "fgvc_aircraft": Benchmark(
        "fgvc_aircraft", "images", None, "a photo of a {}, a type of aircraft.", (100, 3334, 3333, 3333),
        ("images/*.jpg", "variants.txt", "images_variant_train.txt", "images_variant_val.txt",
         "images_variant_test.txt"), (),
        f"fgvc-aircraft-2013b.tar.gz from {VGG}/fgvc-aircraft; its folder data/ becomes fgvc_aircraft/"),
    "sun397": Benchmark(
        "sun397", "SUN397", "SUN397", PHOTO, (397, 15880, 3970, 19850),
        ("SUN397/LETTER/CLASS/*.jpg",), ("ClassName.txt", "Training_01.txt", "Testing_01.txt"),
        "SUN397.tar.gz and Partitions.zip from vision.princeton.edu/projects/2010/SUN"),
    "dtd": Benchmark(
        "dtd", "images", "DescribableTextures", "{} texture.", (47, 2820, 1128, 1692),
        ("images/CLASS/*.jpg",), (), f"dtd-r1.0.1.tar.gz from {VGG}/dtd"),
    "eurosat": Benchmark(
        "eurosat", "2750", "EuroSAT", "a centered satellite photo of {}.", (10, 13500, 5400, 8100),
        ("2750/CLASS/*.jpg",), (), "EuroSAT.zip (RGB) from github.com/phelber/EuroSAT"),
    "ucf101": Benchmark(
        "ucf101", "UCF-101-midframes", "UCF101", "a photo of a person doing {}.", (101, 7639, 1898, 3783),
        ("UCF-101-midframes/Action_Name/*.jpg",),
        ("ucfTrainTestlist/classInd.txt", "ucfTrainTestlist/trainlist01.txt", "ucfTrainTestlist/testlist01.txt"),
        "UCF-101-midframes.zip (the middle frame of each video) of CoOp's authors; videos and lists from "
        "www.crcv.ucf.edu/data/UCF101.php"),
    "imagenet_v2": Benchmark(
        "imagenetv2", "imagenetv2-matched-frequency-format-val", None, PHOTO, (1000, None, None, 10000),
        ("imagenetv2-matched-frequency-format-val/0..999/*.jpeg",), (),
        f"imagenetv2-matched-frequency.tar.gz from github.com/modestyachts/ImageNetV2; {WNID}"),
    "imagenet_sketch": Benchmark(
        "imagenet-sketch", "images", None, PHOTO, (1000, None, None, 50889),
        ("images/WNID/*.JPEG",), (), f"ImageNet-Sketch from github.com/HaohanWang/ImageNet-Sketch; {WNID}"),
    "imagenet_a": Benchmark(
        "imagenet-adversarial", "imagenet-a", None, PHOTO, (200, None, None, 7500),
        ("imagenet-a/WNID/*.jpg",), (), f"imagenet-a.tar from github.com/hendrycks/natural-adv-examples; {WNID}"),
    "imagenet_r": Benchmark(
        "imagenet-rendition", "imagenet-r", None, PHOTO, (200, None, None, 30000),
        ("imagenet-r/WNID/*.jpg",), (), f"imagenet-r.tar from github.com/hendrycks/imagenet-r; {WNID}"),
}  # fmt: skip

UNSORTED = "image files are taken in sorted order; the published few-shot subsets follow the order of a file system"
NO_VAL = "no val split: the published protocol uses the test images as val, which vlmx does not"


def load(data, workdir: str | os.PathLike) -> Dataset:
    """The benchmark `data.name` under `data.root`; `data.split_file` names another split file in CoOp's format.

    A split that has to be made is written to `workdir`. Raises UserError for files that are missing or not as expected.
    """
    name = data["name"]
    bench = BENCHMARKS[name]
    root = Path(data["root"]).expanduser()
    home = root / bench.folder
    if not home.is_dir() and (root / (bench.images or "cars_train")).is_dir():
        home = root  # data.root may also be the benchmark's own folder
    if not (home / bench.images).is_dir():
        raise UserError(missing(name, root, home / bench.images))
    try:
        parts, notes = published_or_made(name, bench, home, data, workdir)
    except FileNotFoundError as e:
        raise UserError(missing(name, root, e.filename)) from e
    except UserError:
        raise
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as e:
        raise UserError(f"{name}: a line of the official lists under {home} is not as expected ({e!r}).") from e
    parts, missing_files = check_files(name, home / bench.images, parts, data.get("bad_images") == "skip")
    notes = [*notes, *missing_files]
    if name == "imagenet_v2":
        classnames = tuple(annotations.wnid_names(home).values())
    else:
        classnames = names_of(name, parts)
    return dataset(name, home / bench.images, classnames, parts, notes)


def dataset(name: str, root: Path, classnames: tuple[str, ...], parts: dict[str, list[Item]], notes=()) -> Dataset:
    """Items (path below `root`, label, class name) of the parts that there are -> Dataset, with its counts checked."""
    bench = BENCHMARKS[name]
    if wrong := next((c for c in classnames if not is_name(c)), None):
        raise UserError(f"{name}: a class is called {wrong!r}; expected a text of one line, in UTF-8.")
    splits = {p: split(root, [i[0] for i in parts.get(p, ())], [i[1] for i in parts.get(p, ())])
              for p in ("train", "val", "test")}  # fmt: skip
    found = (len(classnames), *(len(s.labels) or None for s in splits.values()))
    if found != bench.counts:
        notes = (*notes, f"not the published {name}: {_counts(bench.counts)} expected, {_counts(found)} found")
    return Dataset(name, classnames, (bench.template,), **splits, notes=tuple(notes))


def _counts(counts: tuple) -> str:
    classes, *images = counts
    return f"{classes} classes, {' / '.join(str(n or '-') for n in images)} images"


def published_or_made(name, bench: Benchmark, home: Path, data, workdir) -> tuple[dict[str, list[Item]], list[str]]:
    """({"train": items, "val": ..., "test": ...} or fewer, notes)."""
    split_file = data.get("split_file")
    if split_file and not bench.split:
        raise UserError(f"data.split_file: {name} has no split file; its splits come from its folders or lists.")
    path = home / os.path.expanduser(split_file or f"split_zhou_{bench.split}.json")  # an absolute one stays as it is
    if bench.split and (split_file or path.exists()):
        parts, notes = read_split(path, data.get("bad_images") == "skip")
        parts, repeated = count_once(path, parts, lambda p: file_id(home / bench.images / p), not split_file)
        return parts, notes + repeated
    return made(name, annotations.READERS[name](home), workdir)


def made(name: str, parts: dict[str, list[Item]], workdir) -> tuple[dict[str, list[Item]], list[str]]:
    """(all splits, notes) from the official parts, by CoOp's own rule for data without a split file, with seed 0."""
    if not BENCHMARKS[name].split:
        return parts, [NO_VAL, UNSORTED] if name == "imagenet" else []
    parts = complete(parts)
    file = Path(workdir) / f"split_{name}.json"
    record(file, json.dumps(parts, indent=0))
    note = f"no split file split_zhou_{BENCHMARKS[name].split}.json: a split was made (seed 0) and written to {file}; "
    return parts, [note + "it is not the published one, so the numbers do not compare with published ones"]


def complete(parts: dict[str, list[Item]]) -> dict[str, list[Item]]:
    """The rules of the official code with seed 0: "all" is split 50/20/30, a missing val is 20 % of train."""
    rng = random.Random(0)
    if "all" in parts:
        return annotations.split_all(parts["all"], rng)
    if "val" not in parts:
        train, val = annotations.split_train(parts["train"], rng)
        return {"train": train, "val": val, "test": parts["test"]}
    return parts


SPLIT_FORMAT = (
    "Expected a JSON object with the keys train, val and test, each a list of [image path, label, class name], with "
    "labels 0, 1, 2, ...; was it downloaded as a web page instead?"
)


def read_split(path: Path, skip: bool = False) -> tuple[dict[str, list[Item]], list[str]]:
    """Read a file {"train": [[path, label, class name], ...], "val": ..., "test": ...}.

    Args:
        path: of the file.
        skip: leave out the entries that are no [path, label, class name], instead of raising.

    Returns:
        ({split: items}, notes).

    Raises:
        UserError: the file is missing, or not as above.
    """
    if not os.path.exists(path):
        raise UserError(f"data.split_file: {printable(path)} is not there.")
    content = files.parse_json(files.read_text(path, SPLIT_FORMAT), f"{printable(path)} is no split file", SPLIT_FORMAT)
    parts, wrong, lost = {}, [], {}
    for part in ("train", "val", "test"):
        if not isinstance(content.get(part), list):
            raise UserError(f"{printable(path)} is no split file: no list under the key {part!r}. {SPLIT_FORMAT}")
        parts[part] = []
        for i, entry in enumerate(content[part]):
            if is_item(entry):
                parts[part].append((entry[0], entry[1], normalize_name(entry[2])))
            else:
                wrong.append(f"{part}[{i}] is {reprlib.repr(entry)}")
                if isinstance(entry, list) and len(entry) == 3 and is_name(entry[2]):
                    lost.setdefault(normalize_name(entry[2]), f"{wrong[-1]}.")
    if wrong and not skip:
        raise UserError(f"{printable(path)} is no split file: {wrong[0]}. {SPLIT_FORMAT}")
    refuse_lost_classes(path, lost, parts)
    note = f"{len(wrong)} entries of {printable(path)} are left out, as they are no [image path, label, class name]"
    return parts, [f"{note}: {wrong[0]}"] if wrong else []


def refuse_lost_classes(source: str | os.PathLike, lost: dict[str, str], parts: dict[str, list[Item]]) -> None:
    """Raise a UserError where leaving out bad entries leaves no training image of a class.

    Args:
        source: the file or folder of the entries.
        lost: {class of an entry that was left out: what is wrong with that entry}.
        parts: {split: the other items}; where there is no "train", test images count.
    """
    part, items = ("training", parts["train"]) if "train" in parts else ("test", parts["test"])
    if gone := sorted(lost.keys() - {c for _, _, c in items}):
        raise UserError(
            f"{printable(source)}: data.bad_images=skip would leave no {part} image of the class "
            f"{reprlib.repr(gone[0])}{f' and of {len(gone) - 1} more' if gone[1:] else ''}, for instance "
            f"{lost[gone[0]]} Repair these entries, or remove the class."
        )


def is_item(entry) -> bool:
    """Return whether an entry of a split file is [image path, label, class name]."""
    if not isinstance(entry, list) or len(entry) != 3:
        return False
    path, label, name = entry
    return isinstance(path, str) and bool(path) and type(label) is int and label >= 0 and is_name(name)  # no True


def count_once(source: Path, parts: dict[str, list[Item]], identify: Callable, published: bool):
    """Leave out later mentions of an image.

    Args:
        source: the split file.
        parts: {split: items}.
        identify: path of an item -> what the image is.
        published: whether it is the benchmark's official file, which stays as it is, with a note.

    Returns:
        (parts, notes).

    Raises:
        UserError: an image has two classes or is in two splits.
    """
    entries = [Entry(path, c, part, f"{part}[{i}]") for part in parts for i, (path, _, c) in enumerate(parts[part])]
    _, repeats = split_repeats(entries, identify)
    if not repeats:
        return parts, []
    what = f"{printable(source)} lists {len(repeats)} images more than once"
    if published:
        places = " and ".join(f"{e.label!r} in {e.part}" for e in repeats[0])
        return parts, [
            f"{what} in train, val and test, which is left as published; {printable(repeats[0][1].path)} is {places}"
        ]
    refuse_conflicts(source, repeats)
    again = {entry.place for _, entry in repeats}
    kept = {part: [item for i, item in enumerate(items) if f"{part}[{i}]" not in again]
            for part, items in parts.items()}  # fmt: skip
    return kept, [f"{what}; each counts once"]


def names_of(name: str, parts: dict[str, list[Item]]) -> tuple[str, ...]:
    """Class names by label, from the training items (from the test items where there is no training part)."""
    names = {label: c for _, label, c in parts.get("train") or parts["test"]}
    if not names:
        raise UserError(f"{name}: there are no training images.")
    if gaps := [i for i in range(len(names)) if i not in names]:
        raise UserError(
            f"{name}: the labels of the training images must be 0, 1, 2, ...; "
            f"missing: {gaps[:5]}, the largest is {max(names):,}."
        )
    for part, items in parts.items():
        odd = next((i for i in items if names.get(i[1]) != i[2]), None)
        if odd:
            raise UserError(
                f"{name}: in {part}, {odd[0]} has label {odd[1]} and class {odd[2]!r}, but the training images of "
                f"this label have class {names.get(odd[1], 'none')!r}. The same classes are needed in every split."
            )
    return tuple(names[i] for i in range(len(names)))


def check_files(name: str, root: Path, parts: dict[str, list[Item]], skip: bool = False) -> tuple[dict, list[str]]:
    """Check that every image file is there, by one listing per folder instead of one look per file.

    Args:
        name: of the benchmark.
        root: folder of the images.
        parts: {split: items}.
        skip: leave out missing files instead of raising.

    Returns:
        (parts with the paths as they are spelled on disk, notes).
    """
    paths = [i[0] for items in parts.values() for i in items]
    there = {}
    for folder in {os.path.dirname(p) for p in paths}:
        try:
            there[folder] = set(os.listdir(root / folder)) if os.path.isdir(root / folder) else set()
        except OSError as e:
            raise UserError(f"{name}: the folder {root / folder} cannot be listed: {e.strerror}.") from e
    unlisted = {p for p in paths if os.path.basename(p) not in there[os.path.dirname(p)]}
    spelling = {p: find_file(root, p) for p in unlisted}
    gone = dict.fromkeys(p for p in paths if p in spelling and spelling[p] is None)
    if not unlisted:
        return parts, []
    what = f"{len(gone)} of {len(paths)} image files are not under {printable(root)}"
    if gone and not skip:
        raise UserError(
            f"{name}: {what}, for instance\n"
            + "".join(f"  {printable(p)}\n" for p in list(gone)[:5])
            + f"Was the archive unpacked completely and into this place? Source: {BENCHMARKS[name].source}."
        )
    respelled = {part: [(spelling.get(p, p), label, c) for p, label, c in items] for part, items in parts.items()}
    kept = {part: [item for item in items if item[0] is not None] for part, items in respelled.items()}
    lost = {c: f"there is no {printable(p)}." for items in parts.values() for p, _, c in items if p in gone}
    refuse_lost_classes(root, lost, kept)
    return kept, [f"left out: {what}, for instance {printable(next(iter(gone)))}"] if gone else []


def missing(name: str, root: Path, path) -> str:
    """What is expected where, and where it comes from."""
    from vlmx.data import tfds  # which builds on this file

    bench = BENCHMARKS[name]
    lines = [f"{name}: {path} is not there. Expected under data.root = {root}:"]
    lines += [f"  {bench.folder}/{f}" for f in bench.tree]
    if bench.split:
        lines += [f"  {bench.folder}/split_zhou_{bench.split}.json   (the published split: CoOp's DATASETS.md;"]
        lines += ["    also in github.com/linzhiqiu/cross_modal_adaptation, splits/, but for food101 and sun397)"]
        needs = "; this needs" if bench.fallback else "."
        lines += [f"Without the split file a split is made, which is not the published one{needs}"]
        lines += [f"  {bench.folder}/{f}" for f in bench.fallback]
    lines += [f"Source: {bench.source}."]
    if name in tfds.BUILDERS:
        lines += [f"Or let tensorflow-datasets prepare it: --config.data.name=tfds:{name} says how."]
    return "\n".join(lines)
