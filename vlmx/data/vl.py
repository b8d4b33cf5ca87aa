"""A vision-and-language task as everything else sees it: examples in words, how its answers are made and scored.

Readers of the published data sets and of the embedded world give `Task`s; none knows a model, a method or a device.
Features of the images and videos that examples name are looked up elsewhere, by name.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from vlmx.errors import unknown

# The reader of a task: a module with `load(name, config.data) -> Task` and, where it has images and not their features
# alone, `Pictures(names)`, a sequence of what data/transforms.py decodes. One whose features lie in files has instead
# `source(name, config)`, features by name, and `shown(name, images, config.data)`, the PIL pictures of one example for
# the report, of a video its frames; [] where there are none.
READERS = dict.fromkeys(("scenes_vqa", "scenes_told"), "vlmx.data.scene_tasks")
READERS |= dict.fromkeys(("vqa", "gqa", "nlvr", "caption", "tvqa", "how2qa", "tvc", "yc2c"), "vlmx.data.published")


class Example(NamedTuple):
    """What is asked about which images, and the texts that answer it.

    images: names of one image, of a pair, or of one video, as the source of features knows them. text: what the encoder
    reads, without the task's prefix. targets: (text, score); training draws one in proportion to its score, (): none is
    known. about: what the evaluator needs beside these (the ten answers, the sentence that a pair belongs to, ...).
    """

    id: str
    images: tuple[str, ...]
    text: str
    targets: tuple[tuple[str, float], ...] = ()
    about: Any = None


class Task(NamedTuple):
    """A task: VL-Adapter (Sung et al. 2022, arXiv 2112.06825), section 4 and appendix.

    prefix: of the text, for methods without parameters of each task; `suffix`: it stands behind the text instead (video
    tasks). images: of an example, 2 of a pair. kind: of the answers, free ("answer"), one of a few ("choice") or a
    "caption". length, target_length: tokens of input and of target in training, their ends included. loss: how token
    losses become a batch's: "example" (mean over each example's tokens, then over examples), "score" (times the drawn
    target's score) or "token" (mean over the batch's tokens). choices: the answer is one of these words, by one decoder
    step; (): it is generated, with `beams` beams and at most `answer_length` tokens. score: (predicted texts, examples)
    -> {metric: per cent}, the first of which counts. Splits may be lazy sequences, and empty.
    """

    name: str
    prefix: str
    train: Sequence[Example]
    val: Sequence[Example]
    test: Sequence[Example]
    score: Callable[[Sequence[str], Sequence[Example]], dict[str, float]]
    length: int = 20
    target_length: int = 20
    suffix: bool = False
    images: int = 1
    kind: str = "answer"
    loss: str = "example"
    choices: tuple[str, ...] = ()
    beams: int = 1
    answer_length: int = 20
    explained: Mapping[str, str] = {}  # metrics whose names do not say what they are
    notes: tuple[str, ...] = ()  # what a person should know: examples left out, metrics that need Java

    def filled(self, splits, score, notes=()):
        """The task with its data: (train, val, test) examples, the score, notes."""
        train, val, test = splits
        return self._replace(train=train, val=val, test=test, score=score, notes=tuple(notes))


def reader(name):
    """The module that reads a task. UserError for one that no reader knows."""
    if name not in READERS:
        raise unknown("task", name, READERS)
    return importlib.import_module(READERS[name])
