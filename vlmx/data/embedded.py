"""Benchmarks that need no download: real handwritten digits, and classification on scenes, plain and shifted.

The images of a scene benchmark are drawn when asked for, from a seed that is the benchmark, the split and the position.
"""

import functools
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

from vlmx.data import glyphs, scenes
from vlmx.data.task import Dataset, Split

# A grid of colours by kinds: every class shares its colour with some classes and its kind with others.
# Kinds that the tiny CLIP can tell apart, given some examples: of a circle and a hexagon nothing could be learned.
_OBJECT_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple")
_OBJECT_KINDS = ("cross", "arrow", "heart", "triangle")
_OBJECTS = tuple((colour, kind) for kind in _OBJECT_KINDS for colour in _OBJECT_COLOURS)
_TEXTURES = tuple(scenes.FILLS)

CLASSNAMES = {
    "digits": scenes.WORDS,
    "objects": tuple(f"{colour} {kind}" for colour, kind in _OBJECTS),
    "textures": tuple(f"{fill} white circle" for fill in _TEXTURES),
}
TEMPLATES = {
    "digits": ("a photo of the digit {}.",),
    "objects": ("a photo of a {}.",),
    "textures": ("a photo of a {}.",),
}
SHIFTS = ("sketch", "noise", "inverted", "lowres")
NAMES = (*CLASSNAMES, *(f"objects_{shift}" for shift in SHIFTS))

TRAIN, VAL, TEST = 40, 15, 40  # images of each class of a scene benchmark


@functools.cache
def _handwriting():
    """UCI optical digits (Alpaydin and Kaynak 1998) as scikit-learn ships them: uint8 [1797, 8, 8], labels [1797]."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.minimum(digits.images * 16, 255).astype(np.uint8), digits.target.astype(np.int32)


@functools.cache
def drawn_by(*more):
    """What decides the pixels beside the description: the code, with that of `more` files, and the libraries that
    draw."""
    code = b"".join(Path(file).read_bytes() for file in (__file__, scenes.__file__, glyphs.__file__, *more))
    return f"{hashlib.sha256(code).hexdigest()} {[version(p) for p in ('pillow', 'numpy', 'matplotlib')]}"


@dataclass(frozen=True)
class Handwriting(Sequence):
    """Images of `index`, white on black, enlarged to 64x64."""

    index: tuple[int, ...]

    def __len__(self):
        return len(self.index)

    def __getitem__(self, i):
        image = Image.fromarray(_handwriting()[0][self.index[i]])
        return np.asarray(image.resize((scenes.SIDE, scenes.SIDE), Image.Resampling.BICUBIC))

    def identity(self, i):
        return f"handwriting {_handwriting()[0][self.index[i]].tobytes().hex()} {drawn_by()}"


@dataclass(frozen=True)
class Drawn(Sequence):
    """`count` images of a scene benchmark; image i is of class i % classes."""

    benchmark: str
    shift: str
    part: str
    count: int

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if not -self.count <= i < self.count:
            raise IndexError(i)
        i %= self.count
        return _shifted(self.shift, scene(self.benchmark, self.part, i), i)

    def identity(self, i):
        return f"{self.benchmark} {self.shift} {self.part} {i} {drawn_by()}"


def scene(benchmark: str, part: str, i: int) -> scenes.Scene:
    """Scene i of a split: one object of class i % classes, all else drawn freely."""
    rng, label = random.Random(f"{benchmark}/{part}/{i}"), i % len(CLASSNAMES[benchmark])
    if benchmark == "objects":
        colour, kind = _OBJECTS[label]
        thing, background = scenes.an_object(rng, kind, colour, radius=(13, 26)), None
    else:
        thing, background = scenes.an_object(rng, "circle", "white", _TEXTURES[label], radius=(18, 27)), "black"
    return scenes.scene_of(rng, [thing], background)


def _shifted(shift, scene, seed):
    """Another domain of the same scene: uint8 [64, 64, 3]."""
    if not shift:
        return scenes.draw(scene)
    if shift == "noise":
        return scenes.grainy(scenes.draw(scene), 30, seed)
    if shift == "inverted":  # light becomes dark, the hue stays: the classes are still true
        pixels = scenes.draw(scene).astype(int)
        return (pixels + 255 - pixels.max(-1, keepdims=True) - pixels.min(-1, keepdims=True)).astype(np.uint8)
    if shift == "lowres":
        small = Image.fromarray(scenes.draw(scene)).resize((9, 9), Image.Resampling.BOX)
        return np.asarray(small.resize((scenes.SIDE, scenes.SIDE), Image.Resampling.BICUBIC))
    paper = (250, 250, 245)
    contours = tuple(o._replace(fill="outlined", ground=paper) for o in scene.objects)
    return scenes.draw(scene._replace(objects=contours, rgb=paper, grain=0))


def _digits() -> tuple[Split, Split, Split]:
    """50 / 20 / 30 % of each digit, in a fixed random order."""
    labels = _handwriting()[1]
    parts = ([], [], [])
    for digit in range(10):
        mine = np.flatnonzero(labels == digit).tolist()
        random.Random(digit).shuffle(mine)
        cuts = (0, len(mine) // 2, len(mine) * 7 // 10, len(mine))
        for part, start, stop in zip(parts, cuts, cuts[1:]):
            part += mine[start:stop]
    return tuple(
        Split(Handwriting(tuple(part)), labels[part], tuple(f"digits/{i:04d}" for i in part)) for part in parts
    )


def write(name: str, folder) -> None:
    """The benchmark's images as people's own lie: folder/{train,val,test}/CLASS/0012.png. Files that exist stay."""
    dataset = load(name)
    for part in ("train", "val", "test"):
        split = getattr(dataset, part)
        for i, label in enumerate(split.labels):
            path = Path(folder, part, dataset.classnames[label], f"{i:04d}.png")
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(split.images[i]).save(path)


def load(name: str) -> Dataset:
    """The benchmark `name`, one of NAMES."""
    benchmark, _, shift = name.partition("_")
    if benchmark == "digits":
        train, val, test = _digits()
    else:
        classes = len(CLASSNAMES[benchmark])
        train, val, test = (
            Split(
                Drawn(benchmark, shift, part, each * classes),
                np.arange(each * classes, dtype=np.int32) % classes,
                tuple(f"{name}/{part}/{i:04d}" for i in range(each * classes)),
            )
            for part, each in (("train", TRAIN), ("val", VAL), ("test", TEST))
        )
    return Dataset(name, CLASSNAMES[benchmark], TEMPLATES[benchmark], train, val, test)
