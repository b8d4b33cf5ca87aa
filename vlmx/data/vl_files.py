"""Annotation files of vision-and-language tasks, from the disk to rows: found, checked, and never whole in memory.

What is wrong with an entry ends the reading with an error for people, or with bad="skip" leaves it out and is counted.
"""

import inspect
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlmx.data.vl import Example
from vlmx.errors import UserError, unknown


def load(what: str, readers: dict, name: str, root, options: dict):
    """The Task that readers[name] reads below `root`; UserError for a name or an option that is none."""
    if name not in readers:
        raise unknown(what, name, readers)
    known = [k for k in inspect.signature(readers[name]).parameters if k != "root"]
    for key in options:
        if key not in known:
            raise unknown(f"option of {name}", key, known)
    return readers[name](root, **options)


class Checks:
    """What is the matter with the entries of a task's files.

    bad: "stop" or "skip". images: which names there are, as `name in images`; None: unchecked.
    """

    def __init__(self, task: str, bad: str = "stop", images=None):
        if bad not in ("stop", "skip"):
            raise unknown("value of bad", bad, ("stop", "skip"))
        self.task, self.skip, self.images = task, bad == "skip", images
        self.seen, self.left_out, self.first = set(), Counter(), {}

    def wrong(self, where: str, kind: str, detail: str) -> None:
        """An entry that cannot be used: UserError, or counted under `kind`."""
        if not self.skip:
            raise UserError(f"{self.task}: {where}: {detail} (To leave such entries out and count them: bad=skip.)")
        self.left_out[kind] += 1
        self.first.setdefault(kind, where)

    def entry(self, where: str, id, images: Sequence[str] = (), answers: Sequence = (True,)) -> bool:
        """Whether an entry can be used: its id is new, its images are there, somebody answered."""
        gone = next((i for i in images if self.images is not None and i not in self.images), None)
        if id in self.seen:
            self.wrong(where, "with the id of another", f"the id {id!r} was there before.")
        elif gone is not None:
            self.wrong(where, "without their image", f"there are no features of {gone!r}, which {id!r} is about.")
        elif not len(answers):
            self.wrong(where, "without an answer", f"{id!r} has no answer.")
        else:
            self.seen.add(id)
            return True
        return False

    def each(self, where: str, rows: Sequence, key: str, what: str) -> bool:
        """Whether all of an entry's own rows can be used: objects with a text `key`."""
        try:
            for i, row in enumerate(rows):
                needed(row, (key,), f"{where}, {i}", what)
        except UserError as e:
            self.wrong(where, "not as expected", str(e).removeprefix(f"{where}, "))
            return False
        return True

    def notes(self) -> tuple[str, ...]:
        """Sentences for Task.notes: what was left out, with the place of the first of each kind."""
        return tuple(f"{n:,} left out {kind}, the first: {self.first[kind]}" for kind, n in self.left_out.items())


def find(root: str | os.PathLike, names: Sequence[str], what: str) -> Path:
    """The first of the files or folders `names` that is below `root`; UserError that says what was looked for."""
    root = Path(root).expanduser()
    for name in names:
        if (root / name).exists():
            return root / name
    looked = "\n".join(f"  {root / name}" for name in names)
    raise UserError(f"missing: {what}\nlooked for:\n{looked}")


def has(root: str | os.PathLike, names: Sequence[str]) -> bool:
    """Whether one of the files `names` is below `root`."""
    return any((Path(root).expanduser() / name).exists() for name in names)


def read_json(path: Path, what: str, hook: Callable | None = None, kind: type = list, pairs=None) -> Any:
    """The content of a json file. hook, pairs: as json.load's object_hook and object_pairs_hook, which keep of each
    object what is needed while it is read.

    UserError where it is no UTF-8, no json, or not of this `kind`; `what` says what it should be.
    """
    try:
        with open(path, encoding="utf-8-sig") as stream:
            content = json.load(stream, object_hook=hook, object_pairs_hook=pairs)
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: not UTF-8 text ({e.reason} at byte {e.start}). Expected {what}") from e
    except json.JSONDecodeError as e:
        raise UserError(f"{path}, line {e.lineno}, column {e.colno}: no valid json ({e.msg}). Expected {what}") from e
    if not isinstance(content, kind):
        raise UserError(f"{path}: json, but of something else. Expected {what}")
    return content


TEXT, NUMBER, ID = (str,), (int,), (int, str)
# What the official files have there; a key that is not here may be anything.
KINDS = dict.fromkeys(("identifier", "sentence", "sent", "img0", "img1", "img_id", "imageId"), TEXT)
KINDS |= dict.fromkeys(("question", "filename", "split", "vid_name", "q", "raw", "text", "desc", "answer"), TEXT)
KINDS |= dict.fromkeys(("a0", "a1", "a2", "a3", "a4"), TEXT)
KINDS |= dict.fromkeys(("question_id", "qid", "clip_id"), ID) | {"image_id": NUMBER, "ts": (str, list)}
KINDS |= dict.fromkeys(("sentences", "answers", "sub"), (list,))


def needed(row, keys: Sequence[str], where: str, what: str):
    """UserError where a row is no object with these keys, or has something of another kind there."""
    if not isinstance(row, dict):
        raise UserError(f"{where}: a json {type(row).__name__}. Expected {what}")
    lacking = [k for k in keys if k not in row]
    if lacking:
        raise UserError(f"{where}: no {' and no '.join(map(repr, lacking))}; it has {', '.join(row)}. Expected {what}")
    for k in keys:
        if k in KINDS and (isinstance(row[k], bool) or not isinstance(row[k], KINDS[k])):
            kinds = " or ".join({str: "a text", int: "a number", list: "a list"}[kind] for kind in KINDS[k])
            raise UserError(f"{where}: {k!r} is {repr(row[k])[:40]}, not {kinds}. Expected {what}")


def soft(label, where: str, what: str) -> tuple[tuple[str, float], ...]:
    """Targets of VL-T5's {answer: score}; none for None."""
    label = label or {}
    if not isinstance(label, dict) or any(type(s) not in (int, float) for s in label.values()):
        raise UserError(f"{where}: 'label' is {str(label)[:40]}, not {{answer: score}}. Expected {what}")
    return tuple((a, float(s)) for a, s in label.items())


class Rows(Sequence):
    """Examples made when asked for, of columns of equal length: `make(*row) -> Example`."""

    def __init__(self, make: Callable[..., Example], *columns: Sequence):
        self.make, self.columns = make, columns

    def __len__(self):
        return len(self.columns[0])

    def __getitem__(self, i):
        return self.make(*(column[i] for column in self.columns))


def rows_of(make: Callable[..., Example], rows: Sequence[tuple]) -> Sequence[Example]:
    """The Rows of tuples, one an example; () for none."""
    return Rows(make, *map(list, zip(*rows))) if rows else ()


class Lines:
    """The objects of a jsonl file, by line, read when asked for. Thread-safe, picklable."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self._open()

    def _open(self):
        self.stream, self.lock = open(self.path, "rb"), threading.Lock()

    def __getstate__(self):
        return self.path

    def __setstate__(self, path):
        self.path = path
        self._open()

    def __del__(self):
        if hasattr(self, "stream"):
            self.stream.close()

    def at(self, offset: int) -> Any:
        """The object of the line that begins at a byte."""
        with self.lock:
            self.stream.seek(offset)
            line = self.stream.readline()
        return json.loads(line)

    def scan(self, checks: Checks, keys: Sequence[str], what: str) -> Iterator[tuple[int, str, dict]]:
        """(byte, place in words, object) of every line that is an object with `keys`; of others `checks` hears."""
        with open(self.path, "rb") as stream:
            offset = 0
            for number, line in enumerate(stream, 1):
                begin, offset = offset, offset + len(line)
                where = f"{self.path}, line {number}"
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    needed(row, keys, where, what)
                except UnicodeDecodeError as e:
                    checks.wrong(where, "not UTF-8", f"not UTF-8 text ({e.reason}). Expected {what}")
                except json.JSONDecodeError as e:
                    checks.wrong(where, "not json", f"no valid json ({e.msg}). Expected {what}")
                except UserError as e:
                    checks.wrong(where, "not as expected", str(e).removeprefix(f"{where}: "))
                else:
                    yield begin, where, row


class LineRows(Sequence):
    """Examples of a jsonl file, made when asked for: `make(object, part) -> Example` of byte and part of each."""

    def __init__(self, lines: Lines, places: Sequence[tuple[int, int]], make: Callable[[dict, int], Example]):
        self.lines, self.make = lines, make
        self.places = np.array(places, np.int64).reshape(-1, 2)

    def __len__(self):
        return len(self.places)

    def __getitem__(self, i):
        offset, part = self.places[i].tolist()
        return self.make(self.lines.at(offset), part)
