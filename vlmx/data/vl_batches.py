"""Batches of several vision-and-language tasks in one shape, a task per batch; each follows from its step alone.

Shape letters: K steps of one call, B examples, L input tokens, T target tokens, I images of an example, n rows of
features of an image, F their width.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from vlmx import streams
from vlmx.data.vl import Example, Task
from vlmx.multitask import task_order, token_weights


class Mix(NamedTuple):
    """The tasks of a run, and how they become batches.

    words: texts to ids, seq_tokenizer.Words. features: name of an image -> `(n, F)`. sizes: examples of a batch of each
    task. prefixes: whether a task's prefix is put before (or behind) its texts. temperature: see multitask.task_order.
    """

    tasks: tuple[Task, ...]
    words: Callable
    features: Mapping
    sizes: tuple[int, ...]
    seed: int
    prefixes: bool = True
    temperature: float = 1.0

    @property
    def batches(self):
        """Batches of each task in one pass over it: name -> at least 1. A last one that is not full is left out."""
        return {t.name: max(len(t.train) // size, 1) for t, size in zip(self.tasks, self.sizes)}

    def order(self, epoch):
        """The tasks of an epoch's steps, by number."""
        return _order(tuple(self.batches.items()), epoch, self.temperature)

    def before(self, step):
        """How many batches of each task come before a step: a list of numbers."""
        epoch, i = divmod(step, len(self.order(0)))
        return [epoch * self.order(0).count(t) + self.order(epoch)[:i].count(t) for t in range(len(self.tasks))]

    def examples(self, step):
        """How many examples of each task were seen before a step: name -> number."""
        sizes = (min(size, len(t.train)) for t, size in zip(self.tasks, self.sizes))
        return {t.name: n * size for t, n, size in zip(self.tasks, self.before(step), sizes)}


@functools.lru_cache(4)
def _order(batches, epoch, temperature):
    names = [name for name, _ in batches]
    return tuple(names.index(name) for name in task_order(dict(batches), epoch, temperature))


@functools.lru_cache(16)
def _permutation(seed, task, turn, n):
    return streams.generator("order of examples", seed, task, turn).permutation(n)


def prefixed(task: Task, text: str, prefixes: bool) -> str:
    """What the encoder reads. Video tasks, whose prefix is a suffix, have it with every method (VL-Adapter's code)."""
    if task.suffix:
        return text + task.prefix
    return task.prefix + text if prefixes else text


def drawn(example: Example, rng) -> tuple[str, float]:
    """(answer, its score), drawn in proportion to the scores; ("", 0) where none has a positive one."""
    scores = np.array([max(score, 0) for _, score in example.targets])
    if not scores.sum():
        return "", 0.0
    return example.targets[rng.choice(len(scores), p=scores / scores.sum())]


def inputs(mix: Mix, number: int, examples, rows: int):
    """{"task", "ids" `(rows, L)`, "features" `(rows, I, n, F)`, "real" `(rows, I)`} of examples of the task `number`,
    at most `rows` of them. Of regions (vl_features.Regions) "boxes" `(rows, I, n, 4)` too, and "real" `(rows, I n)`."""
    task, length = mix.tasks[number], max(t.length for t in mix.tasks)
    ids = np.full((rows, length), mix.words.pad, np.int32)
    texts = [prefixed(task, e.text, mix.prefixes) for e in examples]
    ids[: len(texts), : task.length] = mix.words(texts, task.length)
    images = max(len(_first(t).images) for t in mix.tasks)
    regions = getattr(mix.features, "regions", None)
    read = regions or (lambda name: (np.asarray(mix.features[name], np.float32),))
    found = [[read(name) for name in e.images] for e in examples]
    features, real = np.zeros((rows, images, *found[0][0][0].shape), np.float32), np.zeros((rows, images), bool)
    boxes, filled = np.zeros((*features.shape[:3], 4), np.float32), np.zeros(features.shape[:3], bool)
    for i, arrays in enumerate(found):
        real[i, : len(arrays)] = True
        for j, (of_image, *more) in enumerate(arrays):
            features[i, j] = of_image
            if more:
                boxes[i, j], filled[i, j] = more
    batch = {"task": np.int32(number), "ids": ids, "features": features, "real": real}
    return batch | ({"boxes": boxes, "real": filled.reshape(rows, -1)} if regions else {})


def _first(task):
    return next(split[0] for split in (task.train, task.val, task.test) if len(split))


def batch(mix: Mix, step: int):
    """The training batch of a step: `inputs` with "labels" `(B, T)` and their "weight" `(B, T)`, whose sum with the
    losses of the tokens is the task's loss. B is the largest of mix.sizes."""
    epoch, i = divmod(step, len(mix.order(0)))
    number = mix.order(epoch)[i]
    task, rows, length = mix.tasks[number], max(mix.sizes), max(t.target_length for t in mix.tasks)
    turn, k = divmod(mix.before(step)[number], mix.batches[task.name])
    size = mix.sizes[number]
    order = _permutation(mix.seed, number, turn, len(task.train))
    examples = [task.train[int(row)] for row in order[k * size : (k + 1) * size]]
    rng = streams.generator("answers", mix.seed, step)
    answers, scores = zip(*(drawn(e, rng) for e in examples))
    scores = np.float32(scores)
    said = np.where((scores > 0)[:, None], mix.words.labels(answers, task.target_length), -100)
    score = scores if task.loss == "score" else None
    labels, weight = np.full((rows, length), -100, np.int32), np.zeros((rows, length), np.float32)
    labels[: len(said), : task.target_length] = said
    weight[: len(said), : task.target_length] = token_weights(said, score, by_token=task.loss == "token")
    return inputs(mix, number, examples, rows) | {"labels": labels, "weight": weight}


def stream(mix: Mix, first: int, total: int, K: int):
    """The batches of the steps `first` to `total`, K at a time, stacked `[K, ...]`; the last may be fewer."""
    for start in range(first, total, K):
        several = [batch(mix, step) for step in range(start, min(start + K, total))]
        yield {name: np.stack([b[name] for b in several]) for name in several[0]}
