"""People's own images, with no code: a folder per class, or a csv `path,label[,split]`.

Splits that are missing are made by a seeded rule and written to the workdir as `splits.csv`.
"""

import csv
import difflib
import io
import json
import os
import random
from pathlib import Path

from vlmx.data.annotations import Item, group
from vlmx.data.task import Dataset, record, split
from vlmx.errors import UserError

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
TEMPLATES = ("a photo of a {}.",)
PARTS = ("train", "val", "test")
ALSO = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}
SHARES = {"test": 0.3, "val": 0.2}  # of each class, where the split is missing; the same shares as CoOp's


def folder(data, workdir: str | os.PathLike) -> Dataset:
    """`data.root`/CLASS/*.jpg or `data.root`/{train,val,test}/CLASS/*.jpg, with all that is inside a class's folder."""
    root = Path(data["root"]).expanduser()
    if not root.is_dir():
        raise UserError(f"data.root: there is no folder {root}.\n{LAYOUT}")
    parts = {_part(f): f for f in _folders(root) if _part(f) in PARTS}
    if "train" in parts and _folders(root / parts["train"]):
        classes = _folders(root / parts["train"])
        found = {p: _walk(root, f, classes) for p, f in parts.items()}
    else:
        classes = _folders(root)
        found = {"train": _walk(root, "", classes)}
    empty = sorted(set(classes) - {c for _, _, c in found["train"]})
    if len(classes) < 2 or empty:
        what = (
            f"no images in {', '.join(empty[:5])}" if empty else f"{len(classes)} class folders, at least 2 are needed"
        )
        if len(classes) == 1 and len(inner := _folders(root / classes[0])) > 1:  # as in a zip of a folder
            raise UserError(f"{root} holds one folder, of {len(inner)}: did you mean data.root={root / classes[0]}?")
        raise UserError(f"{root}: {what}.\n{LAYOUT}")
    return _dataset("folder", root, tuple(classes), found, workdir)


LAYOUT = f"""Expected one folder per class, named as the class:
  ROOT/golden retriever/*.jpg
  ROOT/tabby cat/*.jpg
or the same below ROOT/train, ROOT/val and ROOT/test (val and test may be missing). Images: {" ".join(IMAGES)}"""


def _part(name: str) -> str:
    return ALSO.get(name.lower(), name.lower())


def _folders(path: Path) -> list[str]:
    return sorted(f.name for f in path.iterdir() if f.is_dir() and not f.name.startswith((".", "__MACOSX")))


def _walk(root: Path, part: str, classes: list[str]) -> list[Item]:
    items = []
    unknown = sorted(set(_folders(root / part)) - set(classes))
    if unknown:
        raise UserError(
            f"{root / part}: {len(unknown)} classes have no training images: {', '.join(unknown[:5])}. "
            f"{_near(unknown[0], classes)}"
        )
    for label, c in enumerate(classes):
        for here, below, files in os.walk(root / part / c, followlinks=True):
            below[:] = sorted(f for f in below if not f.startswith("."))
            kept = sorted(f for f in files if f.lower().endswith(IMAGES) and not f.startswith("."))
            items += [(os.path.relpath(os.path.join(here, f), root), label, c) for f in kept]
    return items


def table(data, workdir: str | os.PathLike) -> Dataset:
    """A csv with a header `path,label[,split]` (`data.file`, else `data.root`); other columns are ignored.

    Paths are absolute, or below `data.root` if that is a folder, else below the csv's folder. Splits: train, val, test.
    """
    root = Path(data["root"]).expanduser()
    file = Path(data.get("file") or root).expanduser()
    if not file.is_file():
        raise UserError(
            f"data.name=csv: there is no file {file}. Name a csv `path,label[,split]` by data.root or data.file."
        )
    root = root if root.is_dir() else file.parent
    rows = _rows(file, root)
    named = sorted({label for _, _, label, _ in rows}, key=lambda c: (0, int(c), "") if c.isdecimal() else (1, 0, c))
    labels = {c: i for i, c in enumerate(named)}
    found = {}
    for _, path, c, part in rows:
        found.setdefault(part, []).append((path, labels[c], c))
    alone = sorted(set(named) - {c for _, _, c in found.get("train", ())})
    if alone:
        raise UserError(f"{file}: {len(alone)} labels have no training rows: {', '.join(alone[:5])}.")
    if len(named) < 2:
        raise UserError(f"{file}: {len(named)} labels; at least 2 are needed.")
    return _dataset("csv", root, tuple(named), found, workdir)


def _rows(file: Path, root: Path) -> list[tuple[int, str, str, str]]:
    """(line, path, label, part) of each row; every wrong row is an error that names its line."""
    rows, seen = [], {}
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise UserError(f"{file}: not UTF-8 text ({e.reason} at byte {e.start}); save the table as UTF-8.") from e
    with io.StringIO(text, newline="") as f:
        reader = csv.DictReader(f)
        columns = reader.fieldnames or []
        if not {"path", "label"} <= set(columns):
            raise UserError(
                f"{file}, line 1: expected the columns path,label[,split] with commas, "
                f"found {','.join(columns) or 'nothing'}."
            )
        for row in reader:
            where = f"{file}, line {reader.line_num}"
            path, label = ((row[k] or "").strip() for k in ("path", "label"))
            part = _part((row.get("split") or "train").strip())
            if not path or not label or None in row:
                raise UserError(
                    f"{where}: expected {len(columns)} values with a path and a label (quote a value with a comma)."
                )
            if part not in PARTS:
                raise UserError(f"{where}: split is {row['split']!r}; expected train, val or test.")
            if not (root / path).is_file():
                raise UserError(f"{where}: there is no image {root / path}.")
            line, *before = seen.setdefault(path, (reader.line_num, label, part))
            if before != [label, part]:
                raise UserError(
                    f"{where}: {path} is {label!r} in {part}, but {before[0]!r} in {before[1]} at line {line}; "
                    "an image belongs to one class and to one split."
                )
            rows.append((reader.line_num, path, label, part))
    return rows


def _dataset(name: str, root: Path, classes: tuple[str, ...], found: dict[str, list[Item]], workdir) -> Dataset:
    """The Dataset, missing splits made."""
    parts, notes = dict(found), []
    lacking = [p for p in SHARES if not found.get(p)]
    if lacking:
        parts.update(make(found["train"], lacking))
        file = Path(workdir) / "splits.csv"
        record(file, _csv(parts))
        shares = " and ".join(f"{SHARES[p]:.0%} of each class as {p}".replace("%", " %") for p in lacking)
        notes = [
            f"no {' and no '.join(lacking)} split: {shares}, taken from train by a rule with seed 0, written to {file}"
        ]
    splits = {p: split(root, [i[0] for i in parts[p]], [i[1] for i in parts[p]]) for p in PARTS}
    lone = sorted(set(classes) - {c for _, _, c in parts["test"]})
    if lone:
        notes += [f"classes without test images: {', '.join(lone[:5])}{' ...' if len(lone) > 5 else ''} ({len(lone)})"]
    return Dataset(name, classes, TEMPLATES, **splits, upright=True, notes=tuple(notes))


def make(items: list[Item], lacking: list[str]) -> dict[str, list[Item]]:
    """Train items -> train and the lacking splits, in the order of the items; a class keeps at least one in train."""
    rng, place = random.Random(0), {}
    for members in group(items).values():
        rng.shuffle(members)
        size = len(members)
        for part in lacking:
            n = round(SHARES[part] * size)
            place.update((i[0], part) for i in members[:n])
            members = members[n:]
    return {p: [i for i in items if place.get(i[0], "train") == p] for p in ("train", *lacking)}


def _csv(parts: dict[str, list[Item]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "label", "split"))
    writer.writerows((path, c, part) for part in PARTS for path, _, c in parts[part])
    return text.getvalue()


def rename(dataset: Dataset, file: str | os.PathLike) -> Dataset:
    """Other class names, from a json object {"folder": "name"}, a json list of all names, or lines `folder<tab>name`.

    Without a tab the first space divides. Classes that the file does not name keep their names.
    """
    file = Path(file).expanduser()
    if not file.is_file():
        raise UserError(f"data.classnames: there is no file {file}.")
    text = file.read_text(encoding="utf-8-sig")
    if file.suffix == ".json":
        try:
            names = json.loads(text)
        except json.JSONDecodeError as e:
            raise UserError(f"{file}, line {e.lineno}: no valid JSON ({e.msg}).") from e
        if isinstance(names, list):
            if len(names) != len(dataset.classnames):
                raise UserError(f"{file}: {len(names)} names for {len(dataset.classnames)} classes.")
            names = dict(zip(dataset.classnames, names, strict=True))
    else:
        pairs = [line.split("\t" if "\t" in line else None, 1) for line in text.splitlines() if line.strip()]
        wrong = next((i for i, p in enumerate(pairs, 1) if len(p) < 2), None)
        if wrong:
            raise UserError(f"{file}, entry {wrong}: expected `folder<tab>class name`.")
        names = {a.strip(): b.strip() for a, b in pairs}
    odd = sorted(set(names) - set(dataset.classnames))
    if odd:
        raise UserError(f"{file}: there is no class {odd[0]!r} to rename. {_near(odd[0], dataset.classnames)}")
    return dataset._replace(classnames=tuple(str(names.get(c, c)) for c in dataset.classnames))


def _near(name: str, known) -> str:
    near = difflib.get_close_matches(name, known, n=3) or list(known)[:5]
    return f"Did you mean {', '.join(map(repr, near))}?"
