"""What a tuned checkpoint says of pictures.

    python -m vlmx.predict --checkpoint runs/digits/coop-few_shot/seed_1 --image x.jpg [more.jpg ...]
    python -m vlmx.predict --checkpoint runs/digits/coop-few_shot/seed_1 --image x.jpg --classes cat,dog
    python -m vlmx.predict --checkpoint runs/scenes_vl/single_adapter/tuned --image x.jpg --text "vqa: what colour is it?"

Of a method for CLIP: the likeliest classes with their probabilities. Of a variant of VL-T5 or VL-BART: its answer to
the text, of which the task's name is the beginning. Many at once: --jsonl FILE, lines {"image": path} or {"images":
[two paths], "text"}; the lines come back with "classes" or "answer" on standard output, or in --out.
"""

import argparse
import functools
import json
import sys
from pathlib import Path

import jax
import numpy as np

from vlmx import checkpoint, files, features, shard
from vlmx import main as command
from vlmx import method as methods
from vlmx.data import pipeline, transforms
from vlmx.data.task import split
from vlmx.errors import UserError
from vlmx.logs import say
from vlmx.models import zoo


# -------------------------------------------------------------------- methods for CLIP
class Classifier:
    """A tuned CLIP method, ready to say which class pictures are of.

    folder: .../seed_N of a run, with tuned.safetensors and tuned.json. classes: other names than those tuned on, for
    methods that can be carried to them. model: where the backbone lies, if not where the run found it.
    Raises UserError: no checkpoint there, another backbone, classes that the method has nothing for.
    """

    def __init__(self, folder, classes=(), model=None):
        v, meta = checkpoint.read(folder)
        meta = _of_the_run(Path(folder)) | meta
        if "model" not in meta and not model:
            raise UserError(f"{folder}/tuned.json does not say which CLIP it was tuned on: name it with --model.")
        loaded = zoo.load(model or meta["model"], image_size=meta.get("image_size") or None)
        if loaded.digest != meta["backbone"]:
            raise UserError(
                f"{folder} was tuned on the backbone with SHA-256 {meta['backbone']}; {model or meta['model']} has "
                f"{loaded.digest}. Name the one it was tuned on with --model."
            )
        method = methods.make(meta["method"], **meta["hyper"])
        task = functools.partial(
            methods.Task, templates=tuple(meta.get("templates") or (methods.PHOTO,)),
            ensemble=tuple(meta.get("ensemble") or (methods.PHOTO,)), tokenize=loaded.tokenizer,
        )  # fmt: skip
        learnt, self.classes = tuple(meta["classes"]), tuple(classes) or tuple(meta["classes"])
        if self.classes != learnt and not method.carries:
            if odd := [c for c in self.classes if c not in learnt]:
                raise UserError(
                    f"{meta['method']} has nothing for classes it was not tuned on: {', '.join(odd)}. It knows "
                    f"{', '.join(learnt)}."
                )
            consts = method.setup(loaded.model, task(learnt))
            method = methods.only(method, [learnt.index(c) for c in self.classes])
        else:
            consts = method.setup(loaded.model, task(self.classes))
        self.v, self.model, self.consts, self.upright = v, loaded.model, consts, meta.get("upright", False)
        self.apply = jax.jit(functools.partial(_probabilities, method.apply))
        size = loaded.model.config.vision.image_size
        self.transform = functools.partial(transforms.center, size=size)
        try:
            jax.eval_shape(self.apply, v, loaded.model, consts, np.zeros((1, size, size, 3), np.uint8))
        except (KeyError, TypeError, ValueError) as e:
            raise UserError(f"{folder}/tuned.safetensors does not fit {meta['method']}: {e}") from e

    def __call__(self, paths, batch=32):
        """Probabilities `(n, C)` float32 of picture files, NaN for those that cannot be read, and why: [Bad]."""
        p, bad = np.full((len(paths), len(self.classes)), np.nan, np.float32), []
        batch = min(batch, len(paths))
        part = split("", list(map(str, paths)), [0] * len(paths))
        for b in pipeline.eval_batches(part, self.transform, batch, upright=self.upright, bad=bad):
            real = b["weight"] > 0
            p[b["index"][real]] = np.asarray(self.apply(self.v, self.model, self.consts, b["image"]))[real]
        return p, bad


def _probabilities(apply, v, model, consts, images):
    logits = apply(v, methods.tuned(model, v), consts, {"image": images}, None, False)["logits"]
    return jax.nn.softmax(logits)


def _of_the_run(folder):
    """What the run's own files say that older checkpoints do not: the model's name, the data set's templates."""
    root = folder.absolute().parent.parent
    if not ((root / "config.json").exists() and (root / "results.json").exists()):
        return {}
    config, results = (json.loads((root / f"{name}.json").read_text()) for name in ("config", "results"))
    if config.get("family") != "classification":
        return {}
    about = {"model": config["model"]["name"], "image_size": config["model"]["image_size"]}
    return about | {"templates": results["dataset"]["templates"]}
