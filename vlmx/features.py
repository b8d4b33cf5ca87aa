"""Features of frozen towers: every image is encoded once and read by every method and seed."""

from typing import NamedTuple

import jax
import numpy as np

from vlmx import shard
from vlmx.data import pipeline
from vlmx.logs import progress


class Features(NamedTuple):
    """Features `(n, E)` float32 of a split, in its order; `weight` `(n,)` is 0 where the image could not be read."""

    features: np.ndarray
    weight: np.ndarray


@jax.jit
def _encode(model, images):
    return model.image(images)


def encode(model, split, transform, *, batch, mesh, workers=0, upright=False, bad=None, what="images"):
    """Image features of a split, each image once.

    Args: split: data.task.Split. transform: image -> uint8 [S, S, 3]. batch: images a step, over the whole mesh.
    bad: a list that unreadable images are appended to; without it they end the pass in a UserError that lists them.
    """
    n = len(split.labels)
    batch = -(-min(batch, max(n, 1)) // shard.rows(mesh)) * shard.rows(mesh)
    features = np.zeros((n, model.config.embed_dim), np.float32)
    weight = np.zeros(n, np.float32)
    with progress(n, f"encoding {what}", unit="image") as bar:
        for b in pipeline.eval_batches(split, transform, batch, workers=workers, upright=upright, bad=bad):
            out = np.asarray(_encode(model, shard.put(mesh, b["image"], shard.ROWS)))
            real = b["index"] >= 0
            features[b["index"][real]], weight[b["index"][real]] = out[real], b["weight"][real]
            bar.update(int(real.sum()))
    return Features(features, weight)
