"""People's own images, with no code: a folder per class, or a csv `path,label[,split]`.

Splits that are missing are made by a seeded rule and written to the workdir as `splits.csv`.
"""

import csv
import difflib
import io
import json
import os
import random
import re
import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path

from vlmx import files
from vlmx.data import classification
from vlmx.data.annotations import Item, group
from vlmx.data.image_files import (
    IMAGES,
    Entry,
    describe_left_out,
    file_id,
    find_file,
    is_image,
    is_name,
    is_text,
    list_folder,
    list_images,
    normalize_name,
    printable,
    refuse_conflicts,
    select_images,
    split_repeats,
)
from vlmx.data.task import Dataset, record, split
from vlmx.errors import UserError

TEMPLATES = ("a photo of a {}.",)
PARTS = ("train", "val", "test")
ALSO = {
    "training": "train",
    "trainval": "train",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "testing": "test",
}
SPLIT_WORD = re.compile(rf"(?<![a-z])({'|'.join((*PARTS, *ALSO))})(?:set)?(?![a-z])")
SKIP = "leave such entries out: --config.data.bad_images=skip"
LONGEST = 4096  # characters of a path or a label
SHARES = {"test": 0.3, "val": 0.2}  # of each class, where the split is missing; the same shares as CoOp's


# ---- a folder per class


def folder(data, workdir: str | os.PathLike) -> Dataset:
    """Read `data.root`/CLASS/*.jpg or `data.root`/{train,val,test}/CLASS/*.jpg, with all that is in a class's folder.

    `data.split_file` names a file in CoOp's format instead, with paths below `data.root`. Raises UserError for a
    folder that can be understood in more than one way; what was understood or left out is in the notes.
    """
    root = Path(os.path.expanduser(data["root"]))
    if not os.path.isdir(root):
        raise UserError(f"data.root: there is no folder {printable(root)}.\n{LAYOUT}")
    if data.get("split_file"):
        return _from_split_file(data, root, workdir)
    parts, notes = find_splits(root)
    left_out = Counter()
    for above in dict.fromkeys(root / p for f in parts.values() if f for p in Path(f).parents):
        _class_folders(above, left_out)  # only for what lies beside the splits
    folders = {part: _class_folders(root / f, left_out) for part, f in parts.items()}
    classes = sort_classes(folders["train"], root)
    if unnamed := [c for c in classes if not is_name(c)]:
        name = folders["train"][unnamed[0]][0]
        raise UserError(f"{printable(root / parts['train'])}: a class folder is called {name!r}; rename it.")
    _refuse_classes_without_training(root, parts, folders, classes)
    entries = [
        Entry(os.path.join(f, name, path), c, part, "")
        for part, f in parts.items()
        for c in classes
        for name in folders[part].get(c, ())
        for path in list_images(root / f / name, left_out)
    ]
    entries, repeats = split_repeats(entries, lambda path: file_id(os.path.join(root, path)))
    refuse_conflicts(root, repeats)
    if repeats:
        left_out["paths that lead to an image once more"] += len(repeats)
    trained = {e.label for e in entries if e.part == "train"}
    empty = [c for c in classes if c not in trained]
    if len(classes) < 2 or empty:
        _refuse_layout(root, parts, classes, empty, left_out)
    notes += [f"the name of the folder {f!r} is not UTF-8; it is read as Latin-1: class {c!r}"
              for c, names in folders["train"].items() for f in names if not is_text(f)]  # fmt: skip
    notes += describe_left_out(root, left_out)
    return _dataset("folder", root, classes, entries, workdir, notes)


LAYOUT = f"""Expected one folder per class, named as the class:
  ROOT/golden retriever/*.jpg
  ROOT/tabby cat/*.jpg
or the same below ROOT/train, ROOT/val and ROOT/test (val and test may be missing). Images: {" ".join(IMAGES)}, or any
other file that begins as an image does."""


def find_splits(root: Path) -> tuple[dict[str, str], list[str]]:
    """Return ({split: its folder below `root`}, notes); {"train": ""} where `root` itself holds the class folders.

    Raises:
        UserError: it is not clear which folders are splits and which are classes.
    """
    names = _folders(root)
    named = _split_folders(root, names)
    if not named:
        return {"train": ""}, _nested_alike(root, names)
    parts = {part: _unwrap(root / f, f) for part, f in named.items()}
    classes = {part: {class_name(c) for c in _folders(root / f)} for part, f in parts.items()}
    others = {n: len(list_images(root / n, Counter())) for n in names if n not in named.values()}
    listed = ", ".join(map(repr, parts.values()))
    images_beside = [n for n, count in others.items() if count]
    if not any(classes.values()):  # images without class folders
        if len(parts) > 1:
            raise UserError(
                f"{printable(root)}: {listed} look like splits, but hold no class folders. Put the images of each "
                f"class into a folder of its own below them, or list them in a csv (configs/csv.py); or, if these are "
                f"classes, rename them.\n{LAYOUT}"
            )
        return {"train": ""}, [f"the folder {listed} is read as a class, as it holds no class folders"]
    if not classes.get("train"):
        raise UserError(
            f"{printable(root)}: {listed} look like splits, but none is a train folder with class folders. Name the "
            f"folder of the training images train; or, if these are classes, rename them.\n{LAYOUT}"
        )
    if images_beside and not any(classes["train"] & c for part, c in classes.items() if part != "train"):
        raise UserError(
            f"{printable(root)}: is {parts['train']!r} a split or a class? It holds folders "
            f"({', '.join(map(repr, sorted(classes['train'])[:3]))}), and there are images in "
            f"{', '.join(map(repr, images_beside[:3]))} beside it. If it is a split, move the others away; if it is a "
            f"class, rename it, for instance to '{parts['train']} class', and give its name by data.classnames."
        )
    notes = []
    if any(f.lower() not in (*PARTS, *ALSO) for f in parts.values()):
        notes += [f"read as splits: {', '.join(f'{f!r} as {part}' for part, f in parts.items())}"]
    if others:
        counts = ", ".join(f"{n!r} ({count} images)" for n, count in list(others.items())[:5])
        notes += [f"left out, folders beside the splits: {counts}{' ...' if len(others) > 5 else ''}"]
    return parts, notes


def _split_folders(root: Path, names: list[str]) -> dict[str, str]:
    """Return {split: folder} for names that say so: `train`, several that differ in this word alone (seg_train and
    seg_test), or one for each split and nothing else (train_data and test1)."""
    patterns = {}
    for name in names:
        words = list(SPLIT_WORD.finditer(name.lower()))
        if len(words) == 1:
            pattern = name.lower()[: words[0].start()], name.lower()[words[0].end() :]
            patterns.setdefault(pattern, []).append((_part(words[0][1]), name))
    splits = {part: name for pairs in patterns.values() for part, name in pairs}
    if len(splits) == len(names) > 1:
        return splits
    groups = [pairs for pairs in patterns.values() if len({part for part, _ in pairs}) > 1]
    if ("", "") in patterns:
        groups = [patterns["", ""]]
    if not groups:
        return {}
    splits = dict(groups[0])
    if len(groups) > 1 or len(splits) < len(groups[0]):
        listed = ", ".join(repr(name) for pairs in groups for _, name in pairs)
        raise UserError(
            f"{printable(root)}: {listed} look like splits, but two of them are the same one. Keep one folder for each "
            f"of train, val and test.\n{LAYOUT}"
        )
    return splits


def _unwrap(path: Path, name: str) -> str:
    """Return seg_train/seg_train for seg_train, where this holds one folder alone that is named as a split again."""
    inner = _folders(path)
    word, again = (SPLIT_WORD.search(n.lower()) for n in (name, inner[0] if len(inner) == 1 else ""))
    return f"{name}/{inner[0]}" if again and _part(word[1]) == _part(again[1]) else name


def _nested_alike(root: Path, names: list[str]) -> list[str]:
    """Return a note where all class folders hold the same folders. UserError where these are splits."""
    inner = []
    for name in names:
        folders, inside = list_folder(root / name, Counter())
        if not folders or any(is_image(os.path.join(root, name, f)) for f in inside):
            return []
        inner.append(folders)
    if len(names) < 2:
        return []
    splits = [set(_split_folders(root / name, folders).values()) for name, folders in zip(names, inner)]
    most = max(inner, key=len)
    if len(most) > 1 and all(s == set(folders) for s, folders in zip(splits, inner)):
        raise UserError(
            f"{printable(root)}: each class folder holds splits ({', '.join(most)}). Turn them round: "
            f"ROOT/{most[0]}/CLASS instead of ROOT/CLASS/{most[0]}."
        )
    if len(inner[0]) > 1 and all(folders == inner[0] for folders in inner):
        listed = ", ".join(map(repr, names[:3])), ", ".join(map(repr, inner[0][:3]))
        return [f"read as classes: {listed[0]} ...; each of them holds the same folders, {listed[1]} ...: if these are "
                "the classes, name one of the upper folders as data.root"]  # fmt: skip
    return []


def _part(name: str) -> str:
    return ALSO.get(name.lower(), name.lower())


def _folders(path: Path) -> list[str]:
    return list_folder(path, Counter())[0]


def _class_folders(path: Path, left_out: Counter) -> dict[str, list[str]]:
    """Return {class: names of its folders}; it has two where one name is spelled with NFC and with NFD."""
    folders, inside = list_folder(path, left_out)
    if strays := select_images(path, inside, left_out):
        left_out["images that lie in no class folder"] += len(strays)
    classes = {}
    for f in folders:
        classes.setdefault(class_name(f), []).append(f)
    return classes


def class_name(folder: str) -> str:
    """Return the name of a class folder as text: NFC, no spaces around it, bytes that are not UTF-8 as Latin-1."""
    return normalize_name(folder if is_text(folder) else os.fsencode(folder).decode("latin-1")).strip()


def sort_classes(names: Iterable[str], source: str | os.PathLike) -> tuple[str, ...]:
    """Return the class names in order: numbers by value, then all others as text.

    Raises:
        UserError: two names are one number, written in two ways.
    """
    number = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?", re.IGNORECASE)  # Decimal also reads "nan" and "1_0"
    values = {name: Decimal(name) for name in names if number.fullmatch(name)}
    first = {}
    for name, value in sorted(values.items()):
        if first.setdefault(value, name) != name:
            raise UserError(
                f"{printable(source)}: the classes {first[value]!r} and {name!r} are the same number, written in two "
                "ways. Write it in one way, or give the classes different names."
            )
    return tuple(sorted(names, key=lambda name: (name not in values, values.get(name, 0), name)))


def _refuse_classes_without_training(root: Path, parts, folders, classes) -> None:
    for part, f in parts.items():
        unknown = sorted(set(folders[part]) - set(classes))
        if unknown:
            raise UserError(
                f"{printable(root / f)}: {len(unknown)} classes have no training images: {', '.join(unknown[:5])}. "
                f"{_near(unknown[0], classes)}"
            )


def _refuse_layout(root: Path, parts, classes, empty, left_out: Counter) -> None:
    below = path = root / parts["train"]
    while len(inner := _folders(path)) == 1:  # as in a zip of a folder
        path /= inner[0]
    if path != below and len(inner) > 1:
        there = printable(path)
        if parts["train"]:
            raise UserError(f"{printable(below)} holds one folder, of {len(inner)}: move what is in {there} up to it.")
        raise UserError(f"{printable(root)} holds one folder, of {len(inner)}: did you mean data.root={there}?")
    what = f"{len(classes)} class folders, at least 2 are needed"
    if empty:
        what = f"no images in {', '.join(map(printable, empty[:5]))}"
    raise UserError("\n".join([f"{printable(below)}: {what}.", *describe_left_out(root, left_out), LAYOUT]))


# ---- a split file


def _from_split_file(data, root: Path, workdir) -> Dataset:
    """Read the images below `root` that a split file in CoOp's format lists."""
    file = Path(os.path.expanduser(data["split_file"]))
    file = next((f for f in (root / file, file) if os.path.exists(f)), root / file)
    skip = data.get("bad_images") == "skip"
    parts, notes = classification.read_split(file, skip)
    classes = classification.names_of(printable(file), parts)
    twice = next((c for c, n in Counter(classes).items() if n > 1), None)
    if twice:
        raise UserError(f"{printable(file)}: two labels have the class name {twice!r}; classes need different names.")
    entries, missing = [], []
    for part, items in parts.items():
        for i, (path, _, c) in enumerate(items):
            spelling = find_file(root, path)
            if spelling is None:
                missing.append(f"{part}[{i}]: {printable(root / path)}")
            else:
                entries.append(Entry(spelling, c, part, f"{part}[{i}]"))
    if missing:
        what = f"{len(missing)} of {len(entries) + len(missing)} images of {printable(file)} do not exist, for instance"
        if not skip:
            raise UserError("\n  ".join([what, *missing[:5]]) + f"\nCorrect the paths, or {SKIP}")
        notes.append(f"left out: {what} {missing[0]}")
    entries, repeats = split_repeats(entries, lambda path: file_id(os.path.join(root, path)))
    refuse_conflicts(file, repeats)
    if repeats:
        notes.append(f"{printable(file)} lists {len(repeats)} images once more; each counts once")
    _refuse_labels_without_training(file, classes, entries)
    return _dataset("folder", root, classes, entries, workdir, notes)


# ---- a table


def table(data, workdir: str | os.PathLike) -> Dataset:
    """Read a csv with a header `path,label[,split]` (`data.file`, else `data.root`); other columns are ignored.

    Paths are absolute, or below `data.root` if that is a folder, else below the csv's folder. Splits: train, val, test.
    """
    root = Path(os.path.expanduser(data["root"]))
    file = Path(os.path.expanduser(data.get("file") or root))
    how = "Name a csv `path,label[,split]` by data.root or data.file."
    if not os.path.exists(file):
        raise UserError(f"data.name=csv: there is no file {printable(file)}. {how}")
    if data.get("split_file"):
        raise UserError("data.split_file: a csv names the split of each image in its own column `split`.")
    root = root if os.path.isdir(root) else file.parent
    text = files.read_text(file, how, errors="surrogateescape")
    entries, notes = _rows(file, root, text, data.get("bad_images") == "skip")
    entries, repeats = split_repeats(entries, lambda path: file_id(os.path.join(root, path)))
    refuse_conflicts(file, repeats)
    if repeats:
        notes.append(f"{len(repeats)} rows of {printable(file)} name an image once more; each counts once")
    named = sort_classes({e.label for e in entries}, file)
    _refuse_labels_without_training(file, named, entries)
    return _dataset("csv", root, named, entries, workdir, notes)


def _refuse_labels_without_training(file: Path, classes: tuple[str, ...], entries: list[Entry]) -> None:
    trained = {e.label for e in entries if e.part == "train"}
    alone = [c for c in classes if c not in trained]
    if alone:
        raise UserError(f"{printable(file)}: {len(alone)} labels have no training rows: {', '.join(alone[:5])}.")
    if len(classes) < 2:
        raise UserError(f"{printable(file)}: {len(classes)} labels; at least 2 are needed.")


def _rows(file: Path, root: Path, text: str, skip: bool) -> tuple[list[Entry], list[str]]:
    """Return the rows of a table, and a note on those that were left out (`skip`); else a wrong row is an error with
    its line. An error too: no row of a class is left."""
    rows = _numbered_rows(file, text)
    line, columns = next(rows, (1, []))
    columns = [c.strip() for c in columns]
    if not is_text("".join(columns)):
        raise UserError(f"{printable(file)}: not UTF-8 text (line {line}); save the table as UTF-8.")
    if not {"path", "label"} <= set(columns):
        raise UserError(
            f"{printable(file)}, line {line}: expected the columns path,label[,split] with commas, "
            f"found {','.join(columns)[:200] or 'nothing'}."
        )
    if twice := [c for c in ("path", "label", "split") if columns.count(c) > 1]:
        raise UserError(f"{printable(file)}, line {line}: there are two columns called {twice[0]!r}.")
    entries, wrong, lost = [], [], {}
    for line, row in rows:
        try:
            entries.append(_read_row(file, root, columns, line, row))
        except UserError as e:
            if not skip:
                raise UserError(f"{e} Correct the row, or {SKIP}") from None
            wrong.append(str(e))
            label = _label(row[columns.index("label")]) if len(row) == len(columns) else ""
            if is_name(label) and len(label) <= LONGEST:
                lost.setdefault(label, str(e))
    trained = [(e.path, 0, e.label) for e in entries if e.part == "train"]
    classification.refuse_lost_classes(file, lost, {"train": trained})
    total = len(entries) + len(wrong)
    return entries, [f"{len(wrong)} of {total} rows are left out, for instance {wrong[0]}"] if wrong else []


def _numbered_rows(file: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line at which it begins, values) of each row that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as e:
            raise UserError(
                f"{printable(file)}, line {line}: the row that begins here cannot be read ({e}). Is a quote not closed?"
            ) from e
        if row is None:
            return
        if any(map(str.strip, row)):
            yield line, row


def _label(cell: str) -> str:
    return normalize_name(files.plain_cell(cell.strip()))


def _read_row(file: Path, root: Path, columns: list[str], line: int, row: list[str]) -> Entry:
    where = f"{printable(file)}, line {line}"
    values = dict(zip(columns, map(str.strip, row)))
    path, label = values.get("path"), _label(values.get("label", ""))
    if len(row) != len(columns) or not path or not label:
        raise UserError(
            f"{where}: expected {len(columns)} values with a path and a label (quote a value with a comma)."
        )
    if longest := max((v for v in (path, label) if len(v) > LONGEST), key=len, default=""):
        raise UserError(f"{where}: {longest[:80]!r} ... has {len(longest)} characters. Is a quote not closed?")
    spelling = find_file(root, path)
    if not is_text(label) or spelling is None and not is_text(path):
        raise UserError(f"{printable(file)}: not UTF-8 text (line {line}); save the table as UTF-8.")
    if not is_name(label):
        raise UserError(f"{where}: the label {label[:80]!r} goes over several lines or holds a control character.")
    part = _part(values.get("split") or "train")
    if part not in PARTS:
        raise UserError(f"{where}: split is {values['split']!r}; expected train, val or test.")
    if spelling is None:
        raise UserError(f"{where}: there is no image {printable(root / path)}.")
    return Entry(spelling, label, part, f"line {line}")


# ---- the data set


def _dataset(name: str, root: Path, classes: tuple[str, ...], entries: list[Entry], workdir, notes) -> Dataset:
    """The Dataset, missing splits made."""
    labels = {c: i for i, c in enumerate(classes)}
    parts = {p: [(e.path, labels[e.label], e.label) for e in entries if e.part == p] for p in PARTS}
    lacking = [p for p in SHARES if not parts[p]]
    if lacking:
        parts.update(make(parts["train"], lacking))
        file = Path(workdir) / "splits.csv"
        record(file, _csv(parts))
        shares = " and ".join(f"{SHARES[p]:.0%} of each class as {p}".replace("%", " %") for p in lacking)
        rule = f"{shares}, taken from train by a rule with seed 0, written to {printable(file)}"
        notes = [f"no {' and no '.join(lacking)} split: {rule}", *notes]
    splits = {p: split(root, [i[0] for i in parts[p]], [i[1] for i in parts[p]]) for p in PARTS}
    tested = {c for _, _, c in parts["test"]}
    lone = [c for c in classes if c not in tested]
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
    rows = [(path, files.csv_cell(c), part) for part in PARTS for path, _, c in parts[part]]
    # Where a path looks like a formula or begins with a space, ./ in front of it makes the same path.
    plain = [files.csv_cell(path) == path.lstrip() for path, _, _ in rows]
    writer.writerows((path if p else f"./{path}", *row) for p, (path, *row) in zip(plain, rows))
    return text.getvalue()


# ---- other class names


def rename(dataset: Dataset, file: str | os.PathLike) -> Dataset:
    """Other class names, from a json object {"folder": "name"}, a json list of all names, or lines `folder<tab>name`.

    Without a tab the first space divides. Classes that the file does not name keep their names. A list is in the order
    of `dataset.classnames`: numbers by value, all others as text.
    """
    file = Path(os.path.expanduser(file))
    if not os.path.exists(file):
        raise UserError(f"data.classnames: there is no file {printable(file)}.")
    text = files.read_text(file, "Expected the class names as UTF-8 text.")
    pairs = _json_names(dataset, file, text) if file.suffix == ".json" else _name_lines(file, text)
    names = {}
    for folder, name in pairs:
        folder = normalize_name(folder).strip()
        if not is_name(name):
            raise UserError(
                f"{printable(file)}: the name of class {folder!r} is {reprlib.repr(name)}; expected a text of one line."
            )
        if folder not in dataset.classnames:
            near = _near(folder, dataset.classnames)
            raise UserError(f"{printable(file)}: there is no class {folder[:200]!r} to rename. {near}")
        name = normalize_name(name.strip())
        if names.setdefault(folder, name) != name:
            raise UserError(f"{printable(file)}: class {folder!r} has two names, {names[folder]!r} and {name!r}.")
    classes = tuple(names.get(c, c) for c in dataset.classnames)
    for folder, name in names.items():
        if classes.count(name) > 1 and dataset.classnames.count(folder) == 1:
            same = [c for c, n in zip(dataset.classnames, classes) if n == name]
            raise UserError(
                f"{printable(file)}: the classes {', '.join(map(repr, same[:5]))} all get the name {name!r}; "
                "classes need different names."
            )
    return dataset._replace(classnames=classes)


def _json_names(dataset: Dataset, file: Path, text: str) -> list[tuple[str, object]]:
    names = files.parse_json(text, printable(file), 'Expected {"folder": "name"}, or a list of names.', (dict, list))
    if isinstance(names, dict):
        return json.loads(text, object_pairs_hook=list)  # a dict would hide a folder that stands twice
    if len(names) != len(dataset.classnames):
        raise UserError(f"{printable(file)}: {len(names)} names for {len(dataset.classnames)} classes.")
    return list(zip(dataset.classnames, names, strict=True))


def _name_lines(file: Path, text: str) -> list[tuple[str, str]]:
    pairs = [line.split("\t" if "\t" in line else None, 1) for line in text.splitlines() if line.strip()]
    wrong = next((i for i, p in enumerate(pairs, 1) if len(p) < 2), None)
    if wrong:
        raise UserError(f"{printable(file)}, entry {wrong}: expected `folder<tab>class name`.")
    return [(folder.strip(), name) for folder, name in pairs]


def _near(name: str, known) -> str:
    short = [k for k in known if len(k) < 200]  # comparing takes the square of the length
    near = difflib.get_close_matches(name[:200], short, n=3) or short[:5]
    return f"Did you mean {', '.join(map(repr, near))}?"
