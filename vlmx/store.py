"""Rows of arrays on disk, each found by the identity of what it was made of: written once, read by every later run.

A store is a folder of *kinds*, a kind being all that was computed in one way, named by the digest of its description
(`kind.json`). In it lie immutable *segments*, folders with `features.npy` `(n, ...)` float32, `ids.npy` `(n, 16)` uint8
and `segment.json`, which has the SHA-256 of both. A segment is written under another name and renamed when it is whole,
so half of one is never seen, and any number of runs may write at once: a row that lies in two segments does no harm.
"""

import hashlib
import json
import math
import os
import shutil
import time
import uuid
import zlib
from pathlib import Path

import numpy as np

from vlmx import files
from vlmx.logs import say

DRAFT = ".tmp-"  # begins the name of what is being written or removed
LEFT = 3600  # seconds after which that belongs to nobody any more


class Rows:
    """Rows `(n, ...)` float32 that lie in several arrays, in memory or on disk; zeros where there is none.

    Read by an index, as those of an array are, or all at once by np.asarray: without a copy where they lie in one array
    in their order.
    """

    def __init__(self, n, shape):
        self.shape, self.dtype = (n, *shape), np.dtype(np.float32)
        self.pieces, self.where = [], np.full((n, 2), -1)

    def __len__(self):
        return len(self.where)

    @property
    def missing(self):
        """Positions of the rows that lie nowhere."""
        return np.flatnonzero(self.where[:, 0] < 0)

    def put(self, at, piece, rows):
        """The rows at the positions `at` are the rows `rows` of the array `piece`."""
        self.where[at] = np.stack([np.full(len(at), len(self.pieces)), rows], axis=1)
        self.pieces.append(piece)

    def __getitem__(self, index):
        at = np.arange(len(self))[index]
        piece, row = np.moveaxis(self.where[at], -1, 0)
        out = np.zeros((*at.shape, *self.shape[1:]), self.dtype)
        for i in np.unique(piece[piece >= 0]):
            out[piece == i] = self.pieces[i][row[piece == i]]
        return out

    def __array__(self, dtype=None, copy=None):
        piece, row = self.where.T
        if not copy and len(self) and piece[0] >= 0 and (piece == piece[0]).all() and (np.diff(row) == 1).all():
            out = self.pieces[piece[0]][row[0] : row[-1] + 1]
        else:
            out = self[:]
        return out if dtype is None else out.astype(dtype, copy=False)

    def stamps(self):
        """A number of what each row says, int32 `(n,)`; -1 where there is none."""
        said = (zlib.crc32(self.pieces[p][i]) & 0x7FFFFFFF if p >= 0 else -1 for p, i in self.where.tolist())
        return np.fromiter(said, np.int32, len(self))


class Store:
    """The rows under `folder`, at most `limit` bytes of them; None: a store that has nothing and keeps nothing.

    What this store has read or written stays when room is made. A folder that cannot be written, or is too small, costs
    the work of the next run, never this one: a line says so. `kind`: json that describes what the rows are.
    """

    def __init__(self, folder=None, limit=math.inf):
        self.folder, self.limit = folder and Path(folder).expanduser().absolute(), limit
        self.opened, self.writes = {}, bool(folder)  # segment -> its rows
        for draft in self.folder.glob(f"*/{DRAFT}*") if folder else ():
            if (draft.parent / "kind.json").exists() and time.time() - _modified(draft) > LEFT:
                shutil.rmtree(draft, ignore_errors=True)  # of a run that was killed

    def find(self, kind, ids, shape):
        """The `Rows` `(n, *shape)` of `ids` `(n, 16)` uint8, as far as they are here."""
        rows, asked = Rows(len(ids), shape), _keys(ids)
        for segment in sorted(_segments(self._of(kind), "*")) if self.folder else ():
            missing = rows.missing
            if not len(missing):
                break
            keys = self._checked(segment, "ids.npy", np.uint8, (None, 16))
            if keys is None:
                continue
            keys = _keys(keys)
            order = np.argsort(keys)
            near = order[np.searchsorted(keys, asked[missing], sorter=order).clip(max=len(keys) - 1)]
            hit = keys[near] == asked[missing]
            if hit.any() and (piece := self._rows(segment, (len(keys), *shape))) is not None:
                rows.put(missing[hit], piece, near[hit])
        return rows

    def add(self, kind, ids, rows):
        """Keep `rows` `(n, ...)` under `ids` `(n, 16)`, as a segment; returns them as they now lie on disk, or as they
        are where they could not be kept."""
        if not self.writes or not len(ids):
            return rows
        folder, name = self._of(kind), f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:12]}"
        draft = folder / f"{DRAFT}{name}"
        try:
            if not self._make_room(rows.nbytes + ids.nbytes + 1024):
                return self._give_up(f"features.limit, {self.limit / 2**30:.3g} GiB, is less than this run reads", rows)
            draft.mkdir(parents=True)
            arrays = {"features.npy": np.asarray(rows, np.float32), "ids.npy": ids}
            about = {"rows": len(ids), "sha256": {file: _save(draft / file, a) for file, a in arrays.items()}}
            _write(draft / "segment.json", about)
            if not (folder / "kind.json").exists():
                fresh = folder / f"kind.{uuid.uuid4().hex}"
                _write(fresh, kind)
                fresh.replace(folder / "kind.json")
            draft.rename(folder / name)
            self.opened[folder / name] = _load(folder / name / "features.npy")
        except OSError as e:
            shutil.rmtree(draft, ignore_errors=True)
            return self._give_up(e.strerror or e, rows)
        return self.opened[folder / name]

    def _of(self, kind):
        return self.folder / hashlib.sha256(json.dumps(kind, sort_keys=True).encode()).hexdigest()[:32]

    def _give_up(self, reason, rows):
        self.writes = False
        say(f"features are no longer stored in {self.folder}: {reason}")
        return rows

    def _rows(self, segment, shape):
        """The rows of a segment, mapped into memory; None where they are gone or not what they were."""
        if segment not in self.opened:
            found = self._checked(segment, "features.npy", np.float32, shape)
            if found is None:
                return None
            self.opened[segment] = found
            _touch(segment)
        return self.opened[segment]

    def _checked(self, segment, file, dtype, shape):
        """An array of a segment; None in `shape`: any number of rows.

        Of a segment whose bytes are not those that were written, or that is nothing that `add` writes, nothing is read
        again.
        """
        try:
            for part in (segment / "segment.json", segment / file):
                if part.exists() and not part.is_file():  # a FIFO would be waited for
                    raise ValueError("no file")
            about = (segment / "segment.json").read_bytes()
            asked = files.parse_json(about, "segment.json", kind={"sha256": {file: str}})["sha256"][file]
            with open(segment / file, "rb") as f:
                if hashlib.file_digest(f, "sha256").hexdigest() != asked:
                    raise ValueError("its checksum is not what was written")
            array = _load(segment / file)
            expected = shape if shape[0] is not None else (*array.shape[:1], *shape[1:])
            if array.dtype != dtype or array.shape != expected or not array.size:
                raise ValueError(f"it is {array.dtype} {array.shape}, expected {np.dtype(dtype)} {expected}")
            if not np.isfinite([array.min(), array.max()]).all():
                raise ValueError("it holds numbers that are not finite")
            return array
        except (FileNotFoundError, PermissionError) as e:
            if isinstance(e, PermissionError) or not segment.exists():  # else a file of it is gone
                return None
            reason = "it is gone"
        except Exception as e:  # json and numpy raise errors of many kinds for damaged files
            reason = e
        say(f"features: {segment / file} is corrupt ({reason}); it is dropped, and what it held is encoded again")
        _remove(segment)
        return None

    def _make_room(self, size):
        """Remove the segments that were not read for the longest time, until `size` bytes more are within the limit;
        False where those that this store reads are in the way."""
        sizes = {s: sum(_size(f) for f in s.glob("*")) for s in _segments(self.folder, "*/*")}
        total = sum(sizes.values()) + size
        for segment in sorted(sizes.keys() - self.opened.keys(), key=_modified):
            if total <= self.limit:
                break
            _remove(segment)
            total -= sizes[segment]
        return total <= self.limit


# -------------------------------------------------------------------- files
def _segments(folder, pattern):
    found = [file.parent for file in folder.glob(f"{pattern}/segment.json")]
    return [segment for segment in found if not segment.name.startswith(DRAFT)]


def _keys(ids):
    return np.ascontiguousarray(ids).view("S16")[:, 0]  # 16 bytes each: all of them count when two are compared


def _save(path, array):
    """Write an array so that it is on the disk; its SHA-256."""
    with open(path, "wb+") as f:
        np.save(f, array, allow_pickle=False)
        f.flush()
        os.fsync(f.fileno())
        f.seek(0)
        return hashlib.file_digest(f, "sha256").hexdigest()


def _write(path, data):
    with open(path, "w") as f:
        json.dump(data, f, indent=1)
        f.flush()
        os.fsync(f.fileno())


def _load(path):
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def _remove(segment):
    """Another run that has it open still reads it; none sees a part of it."""
    gone = segment.with_name(f"{DRAFT}{uuid.uuid4().hex}")
    try:
        segment.rename(gone)
    except OSError:
        return  # another one was first, or may not
    shutil.rmtree(gone, ignore_errors=True)
    if not any(segment.parent.glob("*/")):  # nothing but its description
        try:
            (segment.parent / "kind.json").unlink()
            segment.parent.rmdir()
        except OSError:
            pass  # another run has begun to write there


def _touch(segment):
    try:
        os.utime(segment)
    except OSError:
        pass  # a store that may only be read


def _modified(path):
    try:
        return path.stat().st_mtime
    except OSError:
        return time.time()


def _size(path):
    try:
        return path.stat().st_size
    except OSError:
        return 0
