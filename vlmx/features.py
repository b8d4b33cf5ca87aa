"""Features of frozen towers: every image is encoded once in its life, and read by every method, seed and later run.

n images, V views (random crops), E feature size.
"""

import functools
import hashlib
import os
import time
from dataclasses import asdict
from importlib.metadata import version
from inspect import getsourcefile
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from vlmx import shard
from vlmx.data import fewshot, pipeline, task, transforms
from vlmx.errors import UserError
from vlmx.logs import progress, say
from vlmx.models import clip, convert, files, layers, resnet
from vlmx.models.clip import Clip
from vlmx.store import Rows, Store

BYTES, SECONDS = 2**28, 60  # encoded features are stored once they are so many, or so old: a killed run loses no more


class Features(NamedTuple):
    """Features `(n, ...)` float32 of a split, in its order, to be indexed or made an array by np.asarray: they may lie
    on disk. `weight` `(n,)` is 0 where the image could not be read."""

    features: Rows | np.ndarray
    weight: np.ndarray


def open_store(settings):
    """The store of `config.features`."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if settings.dir == "off" or not settings.dir and cache.startswith("~"):  # a user without a home has none
        return Store()
    return Store(settings.dir or Path(cache, "vlmx", "features"), settings.limit * 2**30)


# -------------------------------------------------------------------- what decides a feature
def kind(model, digest, of, transform, upright, views):
    """Everything that decides the features of an image, as json; the rounding of batches and meshes aside.

    Args: digest: of the weight files. of: (model, images) -> features. views: whether the transform is random.
    """
    c = model.config
    sources = [m.__file__ for m in (clip, convert, files, layers, resnet, transforms)]
    sources += [getsourcefile(f.func if isinstance(f, functools.partial) else f) for f in (of, transform)]
    code = b"".join(Path(file).read_bytes() for file in dict.fromkeys(sources))
    return {
        "weights": digest,
        "tower": {type(c.vision).__name__: asdict(c.vision), "embed_dim": c.embed_dim, "mean": c.mean, "std": c.std},
        "dtype": c.dtype,
        "param_dtype": c.param_dtype,
        "output": _named(of),
        "transform": _named(transform) | {"upright": upright, "random": views},
        "code": hashlib.sha256(code).hexdigest(),
        "versions": {p: version(p) for p in ("jax", "jaxlib", "flax", "numpy", "pillow")},
        "device": jax.devices()[0].device_kind,
        "precision": jax.config.jax_default_matmul_precision,
    }


def _named(function):
    """A function of a module, or one with some arguments given, as json."""
    if isinstance(function, functools.partial):
        more = [repr(a) for a in function.args] + [f"{k}={v!r}" for k, v in sorted(function.keywords.items())]
        return {"name": _named(function.func)["name"], "given": more}
    return {"name": f"{function.__module__}.{function.__qualname__}"}


def identities(split, views=0):
    """16 bytes that stand for each image, uint8 `(n, 16)`; of each view, `(V n, 16)`, and the words of its random key.

    A view is drawn from its number and the image's name, so that it is the same in every subset and on every machine.
    """
    names = [task.identity(split.images, i) for i in range(len(split.labels))]
    if not views:
        return _hashed(names), None
    drawn = [f"view {view} {split.names[i]}" for view in range(views) for i in range(len(names))]
    return _hashed(f"{a}\n{b}" for a, b in zip(drawn, names * views)), _hashed(drawn).view(np.uint32)


def _hashed(texts):
    digests = b"".join(hashlib.sha256(text.encode(errors="surrogateescape")).digest()[:16] for text in texts)
    return np.frombuffer(digests, np.uint8).reshape(-1, 16)


# -------------------------------------------------------------------- encoding
@functools.cache
def _encoder(mesh, of):
    """(model, images, index, weight) of the mesh -> features, index, weight on every device."""

    def _encode(model, images, index, weight):
        return of(model, images).astype(np.float32), index, weight

    rows = shard.batch(mesh)
    return jax.jit(_encode, in_shardings=(None, rows, rows, rows), out_shardings=shard.on(mesh))


def encode(
    model, split, transform, *, batch, mesh, store=None, digest="", of=Clip.image, views=0, workers=0, upright=False,
    bad=None, what="images",
):  # fmt: skip
    """Image features of a split: what the store has is read, all else is encoded and stored. Every process of several
    encodes and stores its share, and gets all.

    Args: split: data.task.Split. transform: image -> uint8 [S, S, 3]. batch: images a step, over the whole mesh.
    digest: of the model's weight files. of: a function of a module, (model, images `(B, S, S, 3)` uint8) ->
    `(B, ...)`. views: 0, or V: the features are `(V, n, ...)`, of views 0 to V - 1 of each image, and the transform
    takes `rng`, a numpy Generator. bad: a list that unreadable images are appended to; without it they end the pass in
    a UserError that lists them.
    """
    n, size = len(split.labels), model.config.vision.image_size
    pixels = jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)
    shape = jax.eval_shape(of, model, pixels).shape[1:]
    store = store or Store()
    about = kind(model, digest, of, transform, upright, bool(views))
    ids, draws = identities(split, views)
    rows = store.find(about, ids, shape)
    lacks = rows.missing if jax.process_count() == 1 or not n else _disputed(rows.stamps())
    began, found = time.monotonic(), []
    if len(lacks):
        # One shape however many are missing, so that roundings are the same after a kill; few shapes, to compile few.
        batch = shard.up(mesh, min(batch, 1 << (len(ids) - 1).bit_length()))
        own = {"workers": workers, "upright": upright, "process": shard.share(mesh)[1], "bad": found}
        left = fewshot.take(split, lacks % n)
        batches = pipeline.eval_batches(left, transform, batch, draws=None if draws is None else draws[lacks], **own)
        with progress(len(lacks), f"encoding {what}", unit="image") as bar:
            for index, mine, out in _gathered(_outputs(_encoder(mesh, of), mesh, model, batches, bar)):
                at = lacks[index]
                _refuse_nonfinite(out, split, at % n, what)
                kept = store.add(about, ids[at[mine]], out[mine])
                rows.put(at, kept if mine.all() else out, np.arange(len(at)))
        found = sorted({pipeline.Bad(int(lacks[i] % n), *why) for i, *why in shard.everyone(found)})
        _store_all(store, about, ids, rows, lacks)
    seconds = time.monotonic() - began
    said = f"{len(ids)} {what}{f' ({views} views)' if views else ''}: {len(ids) - len(lacks)} from the store"
    new = f", {len(lacks)} encoded in {seconds:.1f} s ({len(lacks) / seconds:.0f} images/s)" if len(lacks) else ""
    if n:
        say(said + new)
    if found and bad is None:
        raise UserError(pipeline.stop_message(found, n))
    if bad is not None:
        bad += found
    weight = np.ones(n, np.float32)
    weight[[b.index for b in found]] = 0
    return Features(np.asarray(rows).reshape(views, n, *shape) if views else rows, weight)


def _refuse_nonfinite(features, split, rows, what):
    """UserError for features that are not finite, of the images at `rows` of the split: no image is to blame."""
    bad = rows[~np.isfinite(features).all(axis=tuple(range(1, features.ndim)))]
    if len(bad):
        raise UserError(
            f"features of {len(bad)} of {len(rows)} {what} are not finite, of {split.names[int(bad[0])]} for instance: "
            "a weight of the model is damaged, or --config.model.dtype has too small a range for it (float32 has not)."
        )


def _disputed(stamps):
    """Positions of the rows that some process lacks, or has otherwise."""
    return np.flatnonzero((stamps < 0) | ~shard.agreed(stamps))


def _outputs(encoder, mesh, model, batches, bar):
    """(index (b,), whether this process made it (b,), features (b, ...)) of each batch's images that could be read.

    The next batch is on its way while the last one is read; but not on several CPU devices, where two programs under
    way with collectives can wait for each other for ever.
    """
    ahead, waiting = int(mesh.size == 1 or jax.default_backend() != "cpu"), []
    for b in batches:
        own = b["index"][b["weight"] > 0]
        b = shard.join(mesh, "batch", {k: b[k] for k in ("image", "index", "weight")})
        waiting.append((own, encoder(model, b["image"], b["index"], b["weight"])))
        if len(waiting) > ahead:
            yield _read(*waiting.pop(0), bar)
    for last in waiting:
        yield _read(*last, bar)


def _read(own, out, bar):
    out, index, weight = map(np.asarray, out)
    bar.update(int((index >= 0).sum()))
    real = weight > 0
    return index[real], np.isin(index[real], own), out[real]


def _gathered(outputs):
    """The same, of many batches at once."""
    parts, size, began = [], 0, time.monotonic()
    for part in outputs:
        parts.append(part)
        size += part[-1].nbytes
        if size >= BYTES or time.monotonic() - began >= SECONDS:
            yield tuple(map(np.concatenate, zip(*parts)))
            parts, size, began = [], 0, time.monotonic()
    if parts:
        yield tuple(map(np.concatenate, zip(*parts)))


def _store_all(store, about, ids, rows, new):
    """Where processes do not share the folder of the store, each keeps what the others have encoded too."""
    if jax.process_count() > 1:
        new = new[rows.where[new, 0] >= 0]
        new = new[store.find(about, ids[new], rows.shape[1:]).missing]
        store.add(about, ids[new], rows[new])
