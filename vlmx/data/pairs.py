"""Pairs of images and captions for contrastive pre-training: scenes drawn once, then gone through again and again.

Imported by the drawing processes, so nothing heavy is imported here.
"""

import functools
import multiprocessing
import random

import numpy as np

from vlmx import streams
from vlmx.data import scenes
from vlmx.errors import UserError

CHUNK = 500


def views(seed: int, count: int, captions: int, shares: tuple[float, float], workers: int):
    """Yields `count` scenes in parts: images uint8 `(n, 64, 64, 3)`, captions str `(n, captions)`, groups `(n,)`.

    `shares`: of glyphs and of silhouettes, as in scenes.sample.
    The same for any number of workers; 0 draws in this process.
    """
    part = functools.partial(_part, seed, captions, tuple(shares))
    spans = [(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    if not workers:
        yield from map(part, spans)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(part, spans)


def _part(seed, captions, shares, span):
    images, said, group = [], [], []
    for i in range(*span):
        rng = random.Random(f"pretrain/{seed}/{i}")
        scene = scenes.sample(rng, *shares)
        images.append(scenes.draw(scene))
        said.append([scenes.caption(scene, rng) for _ in range(captions)])
        group.append(_group(scene))
    return np.stack(images), np.array(said), np.array(group)


def _group(scene):
    """0 glyph, 1 silhouette, 2 anything: in the first two, shape is all there is to tell apart."""
    if scene.glyph:
        return 0
    return 1 if scene.background == "black" and {o.colour for o in scene.objects} == {"white"} else 2


def batches(images, ids, group, size, steps, first, seed):
    """`steps` batches, in a new order each epoch; each time with any of an image's captions, moved by a few pixels.

    A batch is of one `group` `(n,)`, and the `first` steps leave out group 2: where colour tells scenes apart, shape is
    learnt late (measured: 1,300 mixed steps left digits near chance that 350 steps of digits alone took to 44 %).
    """
    rng = streams.generator("pairs", seed)
    epoch = []
    for step in range(steps):
        if not epoch or step == first:
            epoch = []
            for g in (0, 1, 2) if step >= first else (0, 1):
                rows = rng.permutation(np.flatnonzero(group == g))
                epoch += list(rows[: len(rows) // size * size].reshape(-1, size))
            if not epoch:
                raise UserError(f"no group of the {len(images)} views fills a batch of {size}: draw more (data.views)")
            epoch = [epoch[i] for i in rng.permutation(len(epoch))]
        rows = epoch.pop()
        said = rng.integers(0, ids.shape[1], size)
        yield {"image": _moved(images[rows], rng), "ids": ids[rows, said]}


def _moved(images, rng, most=3):
    padded = np.pad(images, ((0, 0), (most, most), (most, most), (0, 0)), mode="edge")
    side = images.shape[1]
    dy, dx = rng.integers(0, 2 * most + 1, (2, len(images)))
    return np.stack([p[y : y + side, x : x + side] for p, y, x in zip(padded, dy, dx)])
