"""Visual features by the name of their image or video, read when asked for.

`where(path)` finds out what lies there: HDF5 as VL-T5 and VL-Adapter have it, one file or one for each image, with a
group per image; or a folder of .npz or .npy files, one a video, as the VALUE benchmark distributes them. A source has
`name in source`, `source[name]` -> float32 `(N, F)` and `source.read(name)` -> Rows; it can be pickled, and read by
several threads. `align` brings those of all images to one shape.

Shape letters: N rows of an image, cells of a grid or regions of a detector; F their width.
"""

import itertools
import math
import os
import threading
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from vlmx.data.image_files import normalize_name
from vlmx.errors import UserError

HDF5 = (".h5", ".hdf5")
ARRAYS = (".npz", ".npy")
ROWS = 64  # to which the features of each video are brought
DETECTED = (36, 100)  # the usual numbers of regions of a detector; squares, as those of grids
FORMS = """Expected one of
  FILE.h5          with a dataset (N, F) named IMAGE/features, or IMAGE, for each image
  FOLDER/IMAGE.h5  one such file for each image
  FOLDER/VIDEO.npz with an array `features` (N, F), or FOLDER/VIDEO.npy
Of regions: beside `features` either `normalized_boxes` (N, 4), or `boxes` (N, 4) with `img_w` and `img_h`, each box
(x1, y1, x2, y2)."""


class Rows(NamedTuple):
    """The features `(N, F)` of an image, float32. boxes: of regions `(N, 4)` as (x1, x2, y1, y2), shares of the image's
    width and height; None: it has none. grid: the file says that the rows are the cells of a square grid."""

    features: np.ndarray
    boxes: np.ndarray | None = None
    grid: bool = False


class Outline(NamedTuple):
    """The shape of an image's features, whether it has boxes, and whether its file says that it is a grid."""

    rows: int
    width: int
    boxes: bool = False
    grid: bool = False


class Hdf5:
    """One HDF5 file of many images."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._open()

    def _open(self):
        self.lock, self.file = threading.Lock(), _opened(self.path)

    def __getstate__(self):
        return self.path

    def __setstate__(self, path):
        self.path = path
        self._open()

    def __contains__(self, name):
        with self.lock:
            return _is_in(self.file, _spelled(self.file, name))

    def __getitem__(self, name):
        return self.read(name).features

    def read(self, name):
        """The Rows of an image."""
        with self.lock:
            return _read(self.file, name, self.path, _rows)

    def outline(self, name):
        """The Outline of an image, without its features."""
        with self.lock:
            return _read(self.file, name, self.path, _outline)

    def place(self, name):
        """Where an image's features lie, in words."""
        return f"{self.path}, {name!r}"


class Folder:
    """A folder with a file for each image or video. Its names are listed once."""

    def __init__(self, path: str | os.PathLike):
        self.path, self.files = Path(path), {}
        try:
            listed = sorted(os.listdir(self.path))
        except OSError as e:
            raise UserError(f"{self.path} cannot be listed: {e.strerror}") from e
        for end in (*HDF5, *ARRAYS):
            for file in listed:
                if file.endswith(end) and not file.startswith("."):
                    name = normalize_name(file.removesuffix(end))
                    if name in self.files:
                        raise UserError(f"{self.path} holds features of {name!r} twice: {self.files[name]}, {file}.")
                    self.files[name] = file
        if not self.files:
            raise UserError(f"{self.path} holds no features.\n{FORMS}")

    def __contains__(self, name):
        return normalize_name(name) in self.files

    def __getitem__(self, name):
        return self.read(name).features

    def read(self, name):
        """The Rows of an image or a video."""
        return self._with(name, _rows)

    def outline(self, name):
        """The Outline of an image or a video."""
        return self._with(name, _outline)

    def _with(self, name, use):
        if name not in self:
            raise UserError(f"{self.path}: no features of {name!r}. It has those of {_some(self.files)}.")
        path = self.path / self.files[normalize_name(name)]
        if path.suffix in HDF5:
            with _opened(path) as file:
                return _read(file, name, path, use)
        return _from_arrays(path, use)

    def place(self, name):
        """Where an image's features lie, in words."""
        return str(self.path / self.files[normalize_name(name)])


class Joined:
    """Several sources as one; the first that has a name counts."""

    def __init__(self, sources: Sequence):
        self.sources = list(sources)

    def __contains__(self, name):
        return any(name in s for s in self.sources)

    def __getitem__(self, name):
        return self._source(name)[name]

    def read(self, name):
        """The Rows of an image."""
        source = self._source(name)
        return source.read(name) if hasattr(source, "read") else Rows(np.asarray(source[name]))

    def outline(self, name):
        """The Outline of an image."""
        source = self._source(name)
        return source.outline(name) if hasattr(source, "outline") else Outline(*source[name].shape)

    def place(self, name):
        """Where an image's features lie, in words."""
        source = self._source(name)
        return source.place(name) if hasattr(source, "place") else repr(name)

    def _source(self, name):
        for source in self.sources:
            if name in source:
                return source
        paths = ", ".join(str(s.path) for s in self.sources if hasattr(s, "path"))
        raise UserError(f"there are no features of {name!r} in {paths or 'what was encoded'}")


class Resampled:
    """A source of videos brought to `rows` rows each, as `resampled` does."""

    def __init__(self, source, rows: int):
        self.source, self.rows = source, rows

    def __contains__(self, name):
        return name in self.source

    def __getitem__(self, name):
        return resampled(self.source[name], self.rows)

    def read(self, name):
        """The Rows of a video."""
        return Rows(self[name], grid=True)

    def outline(self, name):
        """The Outline of a video."""
        return Outline(self.rows, self.source.outline(name).width, grid=True)

    def place(self, name):
        """Where a video's features lie, in words."""
        return self.source.place(name)


class Regions:
    """A source of which all images have `rows` rows: the first ones, with rows of zeros behind fewer.

    most: the largest number of rows that an image has.
    """

    def __init__(self, source, rows: int, like: Outline, most: int):
        self.source, self.rows, self.like, self.most = source, rows, like, most

    def __contains__(self, name):
        return name in self.source

    def __getitem__(self, name):
        return self.regions(name)[0]

    def regions(self, name):
        """(features `(rows, F)`, boxes `(rows, 4)`, which rows are real `(rows,)` bool) of an image."""
        features, boxes, _ = self.source.read(name)
        _refuse_other(self.source, name, Outline(*features.shape, boxes is not None), self.like)
        n = min(len(features), self.rows)
        filled, places = np.zeros((self.rows, self.like.width), np.float32), np.zeros((self.rows, 4), np.float32)
        filled[:n] = features[:n]
        if boxes is not None:
            places[:n] = boxes[:n]
        return filled, places, np.arange(self.rows) < n


class Grids:
    """A source of which all images have one shape."""

    def __init__(self, source, like: Outline):
        self.source, self.like = source, like

    def __contains__(self, name):
        return name in self.source

    def __getitem__(self, name):
        features = self.source[name]
        if features.shape != self.like[:2]:
            has, others = (f"{n} rows of {width}" for n, width in (features.shape, self.like[:2]))
            raise UserError(f"{self.source.place(name)}: features of {has}; those of the other images: {others}.")
        return features


def align(source, names: Iterable[str], tokens: int = 0):
    """Return a source of which all images have one shape: Grids, which the model pools to `tokens` rows, or Regions.

    Rows are regions where they have boxes, where their number differs from image to image, and where it is no square.
    Of these the first `tokens` are kept; 0: all. Raises UserError where widths differ, where some images have boxes
    and others not, and where it cannot be known whether rows that would be pooled are a grid.
    """
    outlines = {}
    for name in names:
        outline = source.outline(name)
        if outline not in outlines:
            outlines[outline] = name
            _refuse_other(source, name, outline, next(iter(outlines)))
    first, counts = next(iter(outlines)), {o.rows for o in outlines}
    most, side = max(counts), math.isqrt(first.rows)
    if any(o.grid for o in outlines) and len(counts) > 1:
        (a, one), (b, other) = list(outlines.items())[:2]
        raise UserError(
            f"{source.place(other)}: {b.rows} rows, {source.place(one)}: {a.rows}. Grids need to be of one size."
        )
    if first.boxes or len(counts) > 1 or side**2 != most:
        return Regions(source, min(tokens or most, most), first, most)
    if tokens and tokens < most:
        if most in DETECTED and not first.grid:
            raise UserError(
                f"{source.place(outlines[first])}: {most} rows without boxes: a grid of {side} x {side}, or regions "
                f"of a detector? Give the array of a grid the shape ({side}, {side}, F). Add boxes to regions, or take "
                "all of them with --config.model.visual_tokens=0."
            )
        if math.isqrt(tokens) ** 2 != tokens:
            raise UserError(f"model.visual_tokens: a grid of {most} cells is not pooled to {tokens}, no square number.")
    return Grids(source, first)


def _refuse_other(source, name, outline, like):
    if outline.width != like.width:
        raise UserError(
            f"{source.place(name)}: features of width {outline.width}; those of the other images: {like.width}."
        )
    if outline.boxes != like.boxes:
        raise UserError(
            f"{source.place(name)}: features with{'' if outline.boxes else 'out'} boxes; the other images have "
            f"{'them' if like.boxes else 'none'}."
        )


def where(*paths: str | os.PathLike, rows: int | None = None):
    """The source at these paths, the first that has a name counts; rows: see Resampled. UserError for none there."""
    sources = []
    for path in map(Path, paths):
        path = path.expanduser()
        if not path.exists():
            raise UserError(f"there are no features at {path}.\n{FORMS}")
        sources.append(Folder(path) if path.is_dir() else Hdf5(path))
    source = sources[0] if len(sources) == 1 else Joined(sources)
    return Resampled(source, rows) if rows else source


def rows(source, name: str) -> int:
    """How many rows the features of `name` have before they are resampled."""
    while isinstance(source, Joined | Grids):
        source = source.source if isinstance(source, Grids) else next(s for s in source.sources if name in s)
    return len((source.source if isinstance(source, Resampled) else source)[name])


def resampled(features: np.ndarray, rows: int) -> np.ndarray:
    """Frames `(N, F)` as `(rows, F)`: zero rows at the end where there are fewer, the maxima of overlapping windows
    floor(i N / rows) .. ceil((i + 1) N / rows) where there are more (adaptive max pooling)."""
    n, width = features.shape
    if n <= rows:
        return np.concatenate([features, np.zeros((rows - n, width), features.dtype)])
    return np.stack([features[i * n // rows : -(-(i + 1) * n // rows)].max(axis=0) for i in range(rows)])


LARGEST = 2**30  # bytes of one image's features: more would be a mistake, or a trap


def _opened(path):
    """An HDF5 file for reading; UserError where it is none, is damaged, or another program writes to it."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is no file.\n{FORMS}")
    try:
        return h5py.File(path, "r")
    except OSError as e:
        if isinstance(e, BlockingIOError) or "unable to lock" in str(e) or "already open" in str(e):
            raise UserError(
                f"{path}: another program has this file open for writing ({e}). End that program, or give a copy."
            ) from e
        raise UserError(f"{path} is no whole HDF5 file: {e}\n{FORMS}") from e


def _is_in(file, name):
    """Whether an HDF5 file holds `name`; "." or "/" are the file itself."""
    try:
        return bool(name.strip("/.")) and name in file
    except (ValueError, RuntimeError, OSError):  # a zero byte, a damaged index
        return False


def _spelled(file, name):
    """`name` as an HDF5 file spells it, its accents composed (NFC) or decomposed (NFD); else as it is."""
    spellings = (name,) if name.isascii() else (name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD")))
    return next((spelling for spelling in spellings if _is_in(file, spelling)), name)


def _read(file, name, path, use):
    """use(arrays by key, place) of one image in an open HDF5 file."""
    name = _spelled(file, name)
    where = f"{path}, {name!r}"
    try:
        if not _is_in(file, name):
            raise UserError(f"{path}: no features of {name!r}; it has those of {_some(file)}.\n{FORMS}")
        node = file[name]
        arrays = node if isinstance(node, h5py.Group) else {"features": node}
        if not isinstance(arrays.get("features"), h5py.Dataset):
            but = "but that is a link to nothing or a group, " if "features" in list(arrays) else ""
            raise UserError(f"{where} has {_some(arrays)}, {but}no array 'features'.\n{FORMS}")
        return use(arrays, where)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as e:
        if isinstance(e, UserError):
            raise
        raise UserError(f"{where} cannot be read: {e}") from e


def _from_arrays(path, use):
    """use(arrays by key, place) of an .npz or .npy file."""
    if not path.is_file():
        raise UserError(f"{path} is no file.\n{FORMS}")
    try:
        content = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(content, np.ndarray):
            return use({"features": content}, path)
        with content as arrays:
            if "features" not in arrays:
                raise UserError(f"{path} has {_some(arrays)}, no array 'features'.\n{FORMS}")
            if (size := max(info.file_size for info in arrays.zip.infolist())) > LARGEST:
                raise UserError(f"{path}: an array of {size:,} bytes. Expected at most {LARGEST:,} of one image.")
            return use(arrays, path)
    except UserError:
        raise
    except Exception as e:  # NumPy, zipfile and zlib raise errors of many kinds on broken files
        problem = str(e)
        if "Object arrays" in problem or "Python objects" in problem:
            problem = "it holds Python objects, which could run code. Save arrays of numbers."
        elif "pickle" in problem:  # what NumPy takes every other file for
            problem = "it is no .npy or .npz file."
        raise UserError(f"{path} cannot be read: {problem}\n{FORMS}") from e


def _some(names):
    """A few of some names, in words."""
    first = list(itertools.islice(names, 6))
    return ", ".join(map(repr, first[:5])) + ", ..." * (len(first) > 5) if first else "nothing"


def _outline(arrays, where):
    features = arrays["features"]
    if features.ndim < 2 or not features.size or features.dtype.kind != "f" or features.nbytes > LARGEST:
        raise UserError(
            f"{where}: an array {features.dtype} {list(features.shape)}. Expected floating-point (N, F), at most "
            f"{LARGEST:,} bytes."
        )
    *rows, width = features.shape
    has = "boxes" in arrays or "normalized_boxes" in arrays
    encoded = isinstance(arrays, h5py.Group) and arrays.file.attrs.get("what") in (b"grid", "grid")
    return Outline(math.prod(rows), width, has, encoded or len(rows) == 2 and rows[0] == rows[1])


def _rows(arrays, where):
    outline = _outline(arrays, where)
    with np.errstate(over="ignore"):
        features = np.asarray(arrays["features"][()]).reshape(outline[:2]).astype(np.float32)
    if not np.isfinite(features).all():
        row = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
        raise UserError(f"{where}: features that are not finite, the first in row {row}.")
    return Rows(features, _boxes(arrays, outline.rows, where) if outline.boxes else None, outline.grid)


def _boxes(arrays, n, where):
    """The boxes (x1, y1, x2, y2) of n regions as (x1, x2, y1, y2), shares of the image's width and height."""
    key = "normalized_boxes" if "normalized_boxes" in arrays else "boxes"
    boxes = arrays[key]
    if not hasattr(boxes, "shape") or boxes.shape != (n, 4) or boxes.dtype.kind not in "fiu":
        kind = f"{boxes.dtype} {list(boxes.shape)}" if hasattr(boxes, "shape") else "no array"
        raise UserError(f"{where}: {key!r} is {kind}. Expected numbers ({n}, 4), a box (x1, y1, x2, y2) for each row.")
    boxes = np.asarray(boxes[()], np.float64)
    if (boxes > 1 + 1e-5).any():  # pixels
        if "img_w" not in arrays or "img_h" not in arrays:
            raise UserError(f"{where}: {key!r} in pixels, which need the image's 'img_w' and 'img_h' beside them.")
        w, h = (np.asarray(arrays[k][()]).reshape(-1) for k in ("img_w", "img_h"))
        if any(size.shape != (1,) or size.dtype.kind not in "fiu" or not size > 0 for size in (w, h)):
            sizes = f"'img_w' is {w.tolist()[:3]} and 'img_h' {h.tolist()[:3]}"
            raise UserError(f"{where}: {sizes}. Expected two positive numbers.")
        boxes = boxes / np.concatenate([w, h, w, h])
    inside = (boxes > -0.05) & (boxes < 1.05)  # detectors' boxes may reach a little beyond the image
    if not inside.all() or (boxes[:, 2:] < boxes[:, :2]).any():
        row = int(np.flatnonzero(~inside.all(axis=1) | (boxes[:, 2:] < boxes[:, :2]).any(axis=1))[0])
        raise UserError(
            f"{where}: row {row} of {key!r} is no box (x1, y1, x2, y2) within the image: "
            f"{np.asarray(arrays[key][row]).tolist()}."
        )
    return boxes.clip(0, 1)[:, (0, 2, 1, 3)].astype(np.float32)
