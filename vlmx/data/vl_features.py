"""Visual features by the name of their image or video, read when asked for.

`where(path)` finds out what lies there: HDF5 as VL-T5 and VL-Adapter have it, one file or one for each image, with a
group per image; or a folder of .npz or .npy files, one a video, as the VALUE benchmark distributes them. A source has
`name in source` and `source[name]` -> float32 `(N, F)`; it can be pickled, and read by several threads.
"""

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from vlmx.errors import UserError

HDF5 = (".h5", ".hdf5")
ARRAYS = (".npz", ".npy")
ROWS = 64  # to which the features of each video are brought
FORMS = """Expected one of
  FILE.h5          with a dataset (N, F) named IMAGE/features, or IMAGE, for each image
  FOLDER/IMAGE.h5  one such file for each image
  FOLDER/VIDEO.npz with an array `features` (N, F), or FOLDER/VIDEO.npy"""


class Hdf5:
    """One HDF5 file of many images."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._open()

    def _open(self):
        self.lock = threading.Lock()
        try:
            self.file = h5py.File(self.path, "r")
        except OSError as e:
            raise UserError(f"{self.path} is no whole HDF5 file: {e}\n{FORMS}") from e

    def __getstate__(self):
        return self.path

    def __setstate__(self, path):
        self.path = path
        self._open()

    def __contains__(self, name):
        with self.lock:
            return name in self.file

    def __getitem__(self, name):
        with self.lock:
            return _read(self.file, name, self.path)


class Folder:
    """A folder with a file for each image or video. Its names are listed once."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.files = {f[: -len(end)]: f for f in os.listdir(self.path) for end in (*HDF5, *ARRAYS) if f.endswith(end)}
        if not self.files:
            raise UserError(f"{self.path} holds no features.\n{FORMS}")

    def __contains__(self, name):
        return name in self.files

    def __getitem__(self, name):
        path = self.path / self.files[name]
        try:
            if path.suffix in HDF5:
                with h5py.File(path, "r") as file:
                    return _read(file, name, path)
            found = np.load(path, allow_pickle=False)
            if path.suffix == ".npz":
                found = found["features"] if "features" in found else found[found.files[0]]
        except (OSError, ValueError, IndexError) as e:
            raise UserError(f"{path} cannot be read: {e}\n{FORMS}") from e
        return _checked(found, path)


class Joined:
    """Several sources as one; the first that has a name counts."""

    def __init__(self, sources: Sequence):
        self.sources = list(sources)

    def __contains__(self, name):
        return any(name in s for s in self.sources)

    def __getitem__(self, name):
        for source in self.sources:
            if name in source:
                return source[name]
        raise KeyError(name)


class Resampled:
    """A source of videos brought to `rows` rows each, as `resampled` does."""

    def __init__(self, source, rows: int):
        self.source, self.rows = source, rows

    def __contains__(self, name):
        return name in self.source

    def __getitem__(self, name):
        return resampled(self.source[name], self.rows)


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
    while isinstance(source, Joined):
        source = next(s for s in source.sources if name in s)
    return len((source.source if isinstance(source, Resampled) else source)[name])


def resampled(features: np.ndarray, rows: int) -> np.ndarray:
    """Frames `(N, F)` as `(rows, F)`: zero rows at the end where there are fewer, the maxima of overlapping windows
    floor(i N / rows) .. ceil((i + 1) N / rows) where there are more (adaptive max pooling)."""
    n, width = features.shape
    if n <= rows:
        return np.concatenate([features, np.zeros((rows - n, width), features.dtype)])
    return np.stack([features[i * n // rows : -(-(i + 1) * n // rows)].max(axis=0) for i in range(rows)])


def _read(file, name, path):
    if name not in file:
        raise UserError(f"{path}: no features of {name!r}.\n{FORMS}")
    found = file[name]
    if isinstance(found, h5py.Group):
        if "features" not in found:
            raise UserError(f"{path}: {name!r} has {', '.join(found) or 'nothing'}, no 'features'.\n{FORMS}")
        found = found["features"]
    return _checked(found[()], f"{path}, {name!r}")


def _checked(features, where):
    if features.ndim > 2:  # a grid of rows and columns, say
        features = features.reshape(-1, features.shape[-1])
    if features.ndim != 2 or not features.size or features.dtype.kind != "f":
        raise UserError(f"{where}: an array {features.dtype} {list(features.shape)}. Expected floating-point (N, F).")
    return features.astype(np.float32)
