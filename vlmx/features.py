"""Features of frozen towers: every image is encoded once and read by every method and seed."""

import functools
from typing import NamedTuple

import jax
import numpy as np

from vlmx import shard
from vlmx.data import pipeline
from vlmx.errors import UserError
from vlmx.logs import progress
from vlmx.models.clip import Clip


class Features(NamedTuple):
    """Features `(n, E)` float32 of a split, in its order (or `(n, ...)`, where the tower gives others); `weight` `(n,)`
    is 0 where the image could not be read."""

    features: np.ndarray
    weight: np.ndarray


@functools.cache
def _encoder(mesh, tower):
    """(model, images, index, weight) of the mesh -> features, index, weight on every device."""

    def _encode(model, images, index, weight):
        return tower(model, images), index, weight

    rows = shard.batch(mesh)
    return jax.jit(_encode, in_shardings=(None, rows, rows, rows), out_shardings=shard.on(mesh))


def encode(
    model, split, transform, *, batch, mesh, workers=0, upright=False, bad=None, what="images", tower=Clip.image
):  # fmt: skip
    """Image features of a split, each image once; every process encodes its share and gets all.

    Args: split: data.task.Split. transform: image -> uint8 [S, S, 3]. batch: images a step, over the whole mesh.
    tower: (model, images `(B, S, S, 3)`) -> features `(B, ...)`, such as Clip.grid.
    bad: a list that unreadable images are appended to; without it they end the pass in a UserError that lists them.
    """
    n = len(split.labels)
    batch = shard.up(mesh, min(batch, max(n, 1)))
    size = model.config.vision.image_size
    shape = jax.eval_shape(tower, model, jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)).shape[1:]
    features = np.zeros((n, *shape), np.float32)
    weight = np.zeros(n, np.float32)
    found, own = [], {"workers": workers, "upright": upright, "process": shard.share(mesh)[1]}
    with progress(n, f"encoding {what}", unit="image") as bar:
        for b in pipeline.eval_batches(split, transform, batch, bad=found, **own):
            b = shard.join(mesh, "batch", {k: b[k] for k in ("image", "index", "weight")})
            out, index, w = map(np.asarray, _encoder(mesh, tower)(model, b["image"], b["index"], b["weight"]))
            real = index >= 0
            features[index[real]], weight[index[real]] = out[real], w[real]
            bar.update(int(real.sum()))
    found = sorted({pipeline.Bad(*b) for b in shard.everyone(found)})
    if found and bad is None:
        raise UserError(pipeline.stop_message(found, n))
    if bad is not None:
        bad += found
    return Features(features, weight)
