"""A program that encodes, for store_test to start and to kill: FOLDERS OUT [COORDINATOR PROCESS PROCESSES].

It encodes 96 and then 200 images with a store in each of the folders (joined by ":"), a segment for each batch, and
saves the last features to OUT.
"""

import sys
from functools import partial

import numpy as np

from vlmx import features, processes, shard, store
from vlmx.data import embedded, fewshot, transforms
from vlmx.models import clip

CENTER = partial(transforms.center, size=64)
MODEL = clip.Clip({}, clip.ClipConfig(128, clip.ViT(128, 2, 2, 512, image_size=64, patch=8), None))


def patches(model, images):
    """A tower of no cost: the mean colours of 4 x 4 patches, `(B, 16, 3)`."""
    return (images.reshape(-1, 4, 16, 4, 16, 3) / 255).mean((2, 4)).reshape(-1, 16, 3)


def objects(n):
    return fewshot.take(embedded.load("objects").train, range(n))


def main(folders, out, *told):
    if told:
        processes.begin(told[0], int(told[1]), int(told[2]))
    features.BYTES = 1
    mesh, given = shard.make_mesh(), {"batch": 8, "digest": "abc", "of": patches}
    for folder in folders.split(":"):
        for n in (96, 200):
            found = features.encode(MODEL, objects(n), CENTER, mesh=mesh, store=store.Store(folder), **given)
    np.save(out, np.asarray(found.features))


if __name__ == "__main__":
    from encode_child import main  # under this name, so that `patches` has one in every process

    main(*sys.argv[1:])
