"""Pairs of images and captions for contrastive pre-training: scenes drawn once, then gone through again and again.

Imported by the drawing processes, so nothing heavy is imported here.
"""

import functools
import multiprocessing
import random

import numpy as np

from vlmx.data import scenes

CHUNK = 500


def views(seed: int, count: int, captions: int, glyphs: float, workers: int):
    """Yields `count` scenes in parts: images uint8 `(n, 64, 64, 3)`, captions str `(n, captions)`, glyph or not `(n,)`.

    The same for any number of workers; 0 draws in this process.
    """
    part = functools.partial(_part, seed, captions, glyphs)
    spans = [(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    if not workers:
        yield from map(part, spans)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(part, spans)


def _part(seed, captions, glyphs, span):
    images, said, glyph = [], [], []
    for i in range(*span):
        rng = random.Random(f"pretrain/{seed}/{i}")
        scene = scenes.sample(rng, glyphs)
        images.append(scenes.draw(scene))
        said.append([scenes.caption(scene, rng) for _ in range(captions)])
        glyph.append(scene.glyph is not None)
    return np.stack(images), np.array(said), np.array(glyph)


def batches(images, ids, group, size, steps, seed):
    """`steps` batches, in a new order each epoch; each time with any of an image's captions, moved by a few pixels.

    A batch is of one `group` `(n,)`: telling a digit from a star teaches nothing, telling it from other digits does.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    epoch = []
    for _ in range(steps):
        if not epoch:
            for g in np.unique(group):
                rows = rng.permutation(np.flatnonzero(group == g))
                epoch += np.split(rows[: len(rows) // size * size], len(rows) // size)
            epoch = [epoch[i] for i in rng.permutation(len(epoch))]
        rows = epoch.pop()
        said = rng.integers(0, ids.shape[1], size)
        yield {"image": _moved(images[rows], rng), "ids": ids[rows, said]}


def _moved(images, rng, most=3):
    padded = np.pad(images, ((0, 0), (most, most), (most, most), (0, 0)), mode="edge")
    side = images.shape[1]
    dy, dx = rng.integers(0, 2 * most + 1, (2, len(images)))
    return np.stack([p[y : y + side, x : x + side] for p, y, x in zip(padded, dy, dx)])
