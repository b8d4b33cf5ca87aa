"""Annotation files of vision-and-language tasks, from the disk to rows: found, checked, and never whole in memory.

What is wrong with an entry ends the reading with an error for people, or with bad="skip" leaves it out and is counted.
"""

import codecs
import inspect
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlmx import files
from vlmx.data.vl import Example
from vlmx.errors import UserError, unknown

LARGEST = 2**33  # bytes of an annotation file


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

    bad: "stop" or "skip". images: which names there are, as `name in images`; None: unchecked. With "skip" the features
    of each image are read once, `images[name]`, so that one that cannot be used is found before anything is trained.
    """

    def __init__(self, task: str, bad: str = "stop", images=None):
        if bad not in ("stop", "skip"):
            raise unknown("value of bad", bad, ("stop", "skip"))
        self.task, self.skip, self.images = task, bad == "skip", images
        self.left_out, self.first = Counter(), {}
        self.places, self.faults, self.width = {}, {}, None

    def wrong(self, where: str, kind: str, detail: str) -> None:
        """An entry that cannot be used: UserError, or counted under `kind`."""
        if not self.skip:
            raise UserError(f"{self.task}: {where}: {detail} (To leave such entries out and count them: bad=skip.)")
        self.left_out[kind] += 1
        self.first.setdefault(kind, where)

    def entry(self, where: str, id, images: Sequence[str] = (), answers: Sequence = (True,), part: str = "") -> bool:
        """Whether an entry can be used: its id is new (in its part), its images are there, somebody answered.

        Ids are compared as texts, which is what examples have: 1 and "1" are the same.
        """
        key = (part, str(id))
        fault = next((fault for fault in map(self._fault, images) if fault), None)
        if key in self.places:
            self.wrong(where, "with the id of another", f"the id {id!r} was there before: {self.places[key]}.")
        elif fault:
            self.wrong(where, fault[0], f"{fault[1]}, which {id!r} is about.")
        elif not len(answers):
            self.wrong(where, "without an answer", f"{id!r} has no answer.")
        else:
            self.places[key] = where
            return True
        return False

    def _fault(self, name):
        """(kind, what is the matter) of an image without features that can be used, else None."""
        if self.images is None:
            return None
        if name not in self.faults:
            self.faults[name] = self._read(name)
        return self.faults[name]

    def _read(self, name):
        if name not in self.images:
            return "without their image", f"there are no features of {name!r}"
        if self.skip and hasattr(self.images, "__getitem__"):
            kind = "without features that can be used"
            try:
                width = self.images[name].shape[-1]
            except UserError as e:
                return kind, str(e)
            self.width = self.width or width
            if width != self.width:
                return kind, f"the features of {name!r} have the width {width}, the first ones {self.width}"

    def entries(self, place: Callable[[int], str], rows: Sequence, keys: Sequence[str], what: str, check=None):
        """Yield (place in words, row) of the rows that are objects with `keys`; of others `wrong` hears.

        check(row, where): raises UserError for what else is the matter. UserError, whatever `bad` is, where not a
        single row can be used: a file of another kind.
        """
        usable, first = 0, None
        for i, row in enumerate(rows):
            try:
                needed(row, keys, where := place(i), what)
                if check is not None:
                    check(row, where)
            except UserError as e:
                self.wrong(where, "not as expected", str(e).removeprefix(f"{where}: "))
                first = first or e
            else:
                usable += 1
                yield where, row
        if first and not usable:
            raise UserError(f"{self.task}: no entry can be used. The first: {first}")

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
    """The first of the files `names` that is below `root`; UserError that says what was looked for."""
    root = Path(root).expanduser()
    for name in names:
        if (root / name).is_file():
            return root / name
    looked = "\n".join(f"  {root / name}" for name in names)
    raise UserError(f"missing: {what}\nlooked for:\n{looked}")


def has(root: str | os.PathLike, names: Sequence[str]) -> bool:
    """Whether one of the files `names` is below `root`."""
    return any((Path(root).expanduser() / name).is_file() for name in names)


class Repeated:
    """What is read in place of a json object that has a key twice: which of the two values counts is not known.

    problem: what is the matter, in words.
    """

    def __init__(self, key: str):
        self.problem = f"the key {key[:40]!r} stands twice in one object"


def object_of(pairs: list[tuple[str, Any]]) -> dict | Repeated:
    """A json object as json.loads' object_pairs_hook makes it, or Repeated."""
    row = dict(pairs)
    return row if len(row) == len(pairs) else Repeated(Counter(key for key, _ in pairs).most_common(1)[0][0])


def read_json(path: Path, what: str, hook: Callable | None = None, kind: type = list, pairs=None) -> Any:
    """The content of a json file. hook, pairs: as json.load's object_hook and object_pairs_hook, which keep of each
    object what is needed while it is read.

    UserError where it is no UTF-8, no json, or not of this `kind`; `what` says what it should be.
    """

    def keep(pairs):
        row = object_of(pairs)
        return row if hook is None or isinstance(row, Repeated) else hook(row)

    advice = f"Expected {what}"
    text = files.read_text(path, advice, limit=LARGEST)
    content = files.parse_json(text, path, advice, None, object_pairs_hook=pairs or keep)
    problem = content.problem if isinstance(content, Repeated) else files.describe_problem(content, kind)
    if problem:
        raise UserError(f"{path}: {problem}. {advice}")
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
    if isinstance(row, Repeated):
        raise UserError(f"{where}: {row.problem}.")
    if not isinstance(row, dict):
        raise UserError(f"{where}: {files.describe_kind(row)}, not an object. Expected {what}")
    lacking = [k for k in keys if k not in row]
    if lacking:
        raise UserError(
            f"{where}: no {' and no '.join(map(repr, lacking))}; it has {', '.join(row)[:200]}. Expected {what}"
        )
    refuse_unwritable(row, where)
    for k in keys:
        if k in KINDS and (isinstance(row[k], bool) or not isinstance(row[k], KINDS[k])):
            kinds = " or ".join({str: "a text", int: "a number", list: "a list"}[kind] for kind in KINDS[k])
            raise UserError(f"{where}: {k!r} is {repr(row[k])[:40]}, not {kinds}. Expected {what}")


def refuse_unwritable(row, where: str) -> None:
    """UserError where a row holds half of a surrogate pair, which no file could be written with later, or an object
    with a key twice."""

    def refuse(repeated):
        raise UserError(f"{where}: {repeated.problem}.")

    try:
        json.dumps(row, ensure_ascii=False, default=refuse).encode()
    except UnicodeEncodeError as e:
        half = f"\\u{ord(e.object[e.start]):04x}"
        raise UserError(f"{where}: a text holds {half}, half of a surrogate pair: no character.") from e
    except RecursionError as e:
        raise UserError(f"{where}: nested too deeply.") from e


def soft(label, where: str, what: str) -> tuple[tuple[str, float], ...]:
    """Targets of VL-T5's {answer: score}, scores from 0 to 1; none for None."""
    label = {} if label is None else label
    if not isinstance(label, dict) or not all(type(s) in (int, float) and 0 <= s <= 1 for s in label.values()):
        raise UserError(f"{where}: 'label' is {str(label)[:40]}, not {{answer: score from 0 to 1}}. Expected {what}")
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
        try:
            self.stream, self.lock = open(self.path, "rb"), threading.Lock()
        except OSError as e:
            raise UserError(f"{self.path} cannot be read: {e.strerror}") from e

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
        return files.parse_json(line, self.path, kind=None)

    def begin_with(self, sign: bytes) -> bool:
        """Whether the first letter of the file is `sign`."""
        with open(self.path, "rb") as stream:
            return stream.read(64).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == sign

    def scan(self, checks: Checks, keys: Sequence[str], what: str, check=None) -> Iterator[tuple[int, str, dict]]:
        """(byte, place in words, object) of every line that is an object with `keys`; of others `checks` hears.

        check(row, where): raises UserError for what else is the matter. UserError, whatever bad is, where not a single
        line can be used.
        """
        usable, first = 0, None
        with open(self.path, "rb") as stream:
            offset = 0
            for number, line in enumerate(stream, 1):
                begin, offset = offset, offset + len(line)
                where = f"{self.path}, line {number}"
                if number == 1 and line.startswith(codecs.BOM_UTF8):  # as Windows' editors write it
                    begin, line = len(codecs.BOM_UTF8), line.removeprefix(codecs.BOM_UTF8)
                if not line.strip():
                    continue
                kind = "not json"
                try:
                    row = files.parse_json(line, where, kind=None, object_pairs_hook=object_of)
                    kind = "not as expected"
                    needed(row, keys, where, what)
                    if check is not None:
                        check(row, where)
                except UserError as e:
                    kind = "not UTF-8" if isinstance(e.__cause__, UnicodeDecodeError) else kind
                    detail = str(e).removeprefix(f"{where}: ")
                    checks.wrong(where, kind, detail if "Expected" in detail else f"{detail} Expected {what}")
                    first = first or f"{where}: {detail}"
                else:
                    usable += 1
                    yield begin, where, row
        if first and not usable:
            raise UserError(f"{checks.task}: no line can be used. The first: {first}")


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
