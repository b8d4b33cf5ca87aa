"""Where a vision-and-language model looks while it answers: attention over the visual tokens, drawn over the pictures.

    seen = attention.attend("runs/scenes_image_text/single_adapter/tuned", "x.jpg", "vqa: what colour is the circle?")
    seen.answer, seen.tokens, seen.weights.shape, seen.figure()      # in a notebook `seen` alone shows the figure

Shown is the decoder's cross-attention (Vaswani et al. 2017, arXiv 1706.03762, section 3.2.3) in its last layer, the one
that a word is read from, averaged over heads, for each token of the answer.

Shape letters: B examples, T tokens of an answer, M encoder positions, I images of an example, N visual tokens of each.
"""

import functools
import io
import math
import os
from typing import NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from vlmx import shard, vl_predict
from vlmx.data import vl_batches, vl_features
from vlmx.data.video import shrink
from vlmx.errors import UserError

ROWS, COLUMNS = 6, 12  # pictures and tokens of a figure, at most
HEAT = (1.0, 0.35, 0.0)


class Attended(NamedTuple):
    """An answer and where the model looked. weights `(tokens, pictures, side, side)` float32: of all that the decoder
    attends to, text and pictures, which sums to 1, the share of each cell. pictures: PIL images, a video's frames."""

    question: str
    answer: str
    tokens: tuple[str, ...]
    weights: np.ndarray
    pictures: list

    def figure(self, inches=1.1):
        """A matplotlib figure: a row for each picture, a column for each token, cells the more coloured the more
        weight they have; each column to its own maximum, with the share of all pictures above it."""
        return drawn(self, inches)

    def _repr_png_(self):
        return png(self.figure())


def attend(checkpoint, images, text):
    """What a tuned variant of VL-T5 or VL-BART answers to a text about pictures, and where it looks: an Attended.

    checkpoint: its folder, or a predict.Answerer. images: a path, a PIL image, a uint8 array, or several of them (two
    of a pair; of a video its file or its frames). text: with the task's prefix. Raises UserError as the Answerer does,
    and for pictures that cannot be read.
    """
    from vlmx.predict import Answerer

    model = Answerer(checkpoint) if isinstance(checkpoint, str | os.PathLike) else checkpoint
    images = list(images) if isinstance(images, list | tuple) else [images]
    images = [np.asarray(i.convert("RGB")) if isinstance(i, Image.Image) else i for i in images]
    by_task, features, bad = model.read([(text, images)])
    if bad:
        raise UserError(str(bad[0]))
    ((number, ((_, example),)),) = by_task.items()
    world, mix = model.world(number, [example], features)
    (answer,) = vl_predict.predict(world, mix, model.chosen, model.v, number, [example])
    ((tokens, found),) = weights(world, mix, model.chosen, model.v, number, [example], [answer])
    video = model.tasks[number].suffix
    pictures = [shrink(picture) if video else picture for picture in model.pictures(video, images)]
    rows = len(features[example.images[0]]) if video else None
    return Attended(text, answer, tokens, cells(found, len(pictures), rows), pictures)


def weights(world, mix, chosen, v, number, examples, answers):
    """[(tokens of the answer, weights `(T, I, N)`)] of examples of the task `number`, while these answers are given."""
    task, length = mix.tasks[number], max(task.answer_length for task in mix.tasks)
    labels = mix.words.labels(answers, length)
    v = shard.place(v, shard.on(world.mesh))
    rows = shard.up(world.mesh, len(examples))
    batch = vl_batches.inputs(mix, number, examples, rows)
    batch["labels"] = np.concatenate([labels, np.full((rows - len(labels), length), -100, labels.dtype)])
    batch = shard.put(world.mesh, "batch", batch, shard.SEVERAL)
    found = shard.gather(world.mesh, _weights(chosen, world.model, v, batch))
    images, N = batch["features"].shape[1], world.model.config.visual.tokens
    special, said = [-100, *mix.words.hf.all_special_ids], []
    for example, answer, w, ids in zip(examples, answers, found, labels):
        own = np.flatnonzero(~np.isin(ids, special))
        own = own[:1] if task.choices else own  # the first alone decides
        w = w[own][:, -N * images :].reshape(len(own), images, N)
        tokens = (answer,) if task.choices else tuple(mix.words.hf.decode([i]).strip() for i in ids[own])
        said.append((tokens, np.asarray(w[:, : len(example.images)], np.float32)))
    return said


@functools.partial(jax.jit, static_argnums=0)
def _weights(chosen, model, v, batch):
    """`(B, T, M)`: of the last layer, averaged over heads."""
    model, into, vis = vl_predict.dressed(chosen, model, v, batch)
    memory, seen = model.encode(
        batch["ids"], vis, into.prompt, into.tap, into.theta.get("encoder"), real=batch["real"]
    )  # fmt: skip
    cache = None if into.decoder_prompt is None else model.prefill(into.decoder_prompt, len(memory))
    ids = model.shift(batch["labels"])
    return model.cross_attention(ids, memory, seen, into.tap, into.theta.get("decoder"), cache)[-1].mean(1)


def cells(weights, pictures, rows=None, filled=vl_features.ROWS):
    """Weights `(T, I, N)` as `(T, pictures, side, side)`.

    rows: of a video, those that all its frames have together, before they are brought to `filled` ones and these to N.
    Raises UserError where rows are not so many frames'.
    """
    T, _, N = weights.shape
    if rows is not None:
        side, whole = math.isqrt(N), math.isqrt(filled)
        if N < filled:  # a model with fewer tokens pools the rows as if they were a square
            weights = spread(spread(weights.reshape(T, side, side), whole).swapaxes(1, 2), whole).swapaxes(1, 2)
        weights = weights.reshape(T, filled)
        weights = weights[:, :rows] if rows <= filled else spread(weights, rows)
        if rows % pictures:
            raise UserError(f"features of {rows} rows are not those of {pictures} frames")
    weights = weights.reshape(T, pictures, math.prod(weights.shape[1:]) // pictures)  # T is 0 where nothing was said
    side = math.isqrt(weights.shape[-1])
    if side**2 != weights.shape[-1]:
        weights, side = weights.sum(-1), 1
    return weights.reshape(T, pictures, side, side)


def spread(weights, n):
    """Weights `(..., N)` of the results of adaptive max pooling over n as `(..., n)`: each cell's, in equal shares."""
    N = weights.shape[-1]
    found = np.zeros((*weights.shape[:-1], n), np.float32)
    for i in range(N):
        begin, end = i * n // N, -(-(i + 1) * n // N)
        found[..., begin:end] += weights[..., i, None] / (end - begin)
    return found


# -------------------------------------------------------------------- pictures
def drawn(seen, inches):
    """The figure of an Attended. Of many pictures those with the most weight, in their order; of many tokens the
    first."""
    tokens, by_picture = seen.tokens[:COLUMNS], seen.weights.sum((0, 2, 3))
    shown = sorted(np.argsort(-by_picture, kind="stable")[:ROWS])
    aspect = np.mean([seen.pictures[p].height / seen.pictures[p].width for p in shown])
    size = (inches * (1 + len(tokens)), len(shown) * inches * aspect + 0.35)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(shown), 1 + len(tokens), squeeze=False)
    for row, p in zip(axes, shown):
        picture = np.asarray(seen.pictures[p].convert("RGB"))
        grey = np.repeat(np.asarray(seen.pictures[p].convert("L"))[..., None], 3, axis=-1)
        row[0].imshow(picture)
        for t, axis in enumerate(row[1:]):
            heat = np.zeros((*seen.weights.shape[2:], 4), np.float32)
            heat[..., :3] = HEAT
            heat[..., 3] = 0.85 * seen.weights[t, p] / max(seen.weights[t].max(), 1e-12)
            axis.imshow(grey)
            axis.imshow(heat, extent=(-0.5, grey.shape[1] - 0.5, grey.shape[0] - 0.5, -0.5), interpolation="nearest")
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, token, w in zip(axes[0, 1:], tokens, seen.weights):
        axis.set_title(f"{token}\n{100 * w.sum():.0f} %", fontsize=8, parse_math=False)
    return figure


def png(figure, dpi=110):
    """A figure as the bytes of a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()
