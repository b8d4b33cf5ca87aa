"""The embedded world's vision-and-language tasks: questions about scenes, in the form of the published data sets, and
passages to pre-train on.

A scene has a name, "train/17", and is drawn from it; so are the questions about it.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlmx.data import scene_text, scenes
from vlmx.data.embedded import drawn_by
from vlmx.data.vl import Example, Task
from vlmx.errors import UserError


def load(name, config) -> Task:
    """scenes_vqa: config.scenes {"train", "val", "test"} scenes, config.questions about each; or scenes_told: so many
    passages about each, to be told from the picture and what is left of their words. UserError for the config of other
    tasks."""
    if "questions" not in config:
        raise UserError(f"config.tasks: {name} is drawn, by configs such as scenes_vl.py and pretrain_vl.py alone.")
    if name == "scenes_told":
        splits = {part: _told(part, n, config.questions) for part, n in config.scenes.items()}
        return Task(name, "tell: ", **splits, score=score, length=26, target_length=28, loss="token", answer_length=28)
    splits = {part: _examples(part, n, config.questions) for part, n in config.scenes.items()}
    return Task(name, "vqa: ", **splits, score=score, length=20, target_length=6, answer_length=8)


def _examples(part, scenes_of_it, each):
    found = []
    for i in range(scenes_of_it):
        image = f"{part}/{i}"
        scene, rng = _scene(image)
        for k, q in enumerate(scene_text.questions(scene, rng, each)):
            found.append(Example(f"{image}/{k}", (image,), q.text, ((q.answer, 1.0),), q.kind))
    return found


LEFT_OUT = (0.3, 0.5, 1.0)  # of a passage's words: BART's deletion of tokens (arXiv 1910.13461), up to a caption
WORDS = 18  # of a passage, at most


def _told(part, scenes_of_it, each):
    found = []
    for i in range(scenes_of_it):
        image = f"told/{part}/{i}"  # other scenes than the questions are about
        scene, rng = _scene(image)
        for k in range(each):
            while len(words := scene_text.passage(scene, rng).lower().split()) > WORDS:
                pass
            share = rng.choice(LEFT_OUT)
            left = " ".join(w for w in words if rng.random() >= share)
            found.append(Example(f"{image}/{k}", (image,), left, ((" ".join(words), 1.0),)))
    return found


def _scene(image):
    rng = random.Random(f"scenes/{image}")
    return scene_text.scene(rng), rng


def score(said, examples):
    """Answers that are right to the letter, in per cent; then those to each kind of question."""
    right = np.array([x == e.targets[0][0] for x, e in zip(said, examples, strict=True)], float)
    kinds = np.array([e.about for e in examples])
    return {"accuracy": 100 * float(right.mean())} | {
        kind: 100 * float(right[kinds == kind].mean()) for kind in scene_text.KINDS_OF_QUESTION if kind in kinds
    }


@dataclass(frozen=True)
class Pictures(Sequence):
    """The pictures of scenes by name, uint8 [64, 64, 3], drawn when asked for."""

    names: tuple[str, ...]

    def __len__(self):
        return len(self.names)

    def __getitem__(self, i):
        return scenes.draw(_scene(self.names[i])[0])

    def identity(self, i):
        return f"scene {self.names[i]} {drawn_by(__file__, scene_text.__file__)}"
