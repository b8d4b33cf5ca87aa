"""COCO captions in Karpathy's split, from dataset_coco.json, which divides the images of VQAv2 too."""

import functools
from pathlib import Path

from vlmx.data.vl import Example, Task
from vlmx.data.vl_files import Checks, find, needed, read_json, rows_of
from vlmx.data.vl_forms import FORMS
from vlmx.errors import UserError
from vlmx.metrics import caption

PARTS = ("train", "val", "test")
COCO = 'Karpathy\'s {"images": [{"filename", "split", "sentences": [{"raw"}, ...]}, ...]}'


def load(root, images=None, bad="stop", java=True) -> Task:
    """COCO captions (Chen et al. 2015, arXiv 1504.00325) in Karpathy's split: train + restval, val, test.

    Each caption of a training image is an example; images of the other parts are one each, with all captions.
    java: METEOR and SPICE, where they can be had.
    """
    checks = Checks("caption", bad, images)
    path, parts = _file(root), {part: [] for part in PARTS}
    for i, (name, part, said) in enumerate(images_of(root)):
        if part in parts and checks.entry(f"{path}, images[{i}]", name, (name,), said):
            parts[part] += [(name, (s,)) for s in said] if part == "train" else [(name, said)]
    splits = [rows_of(_example, rows) for rows in parts.values()]
    scored = functools.partial(score, java=java)
    notes = (*checks.notes(), *(caption.notes() if java else ()))
    return FORMS["caption"].filled(splits, scored, notes)


def score(predictions, examples, java=True):
    """The COCO tool's metrics, against all captions of each image."""
    return caption.captions(predictions, [[t for t, _ in e.targets] for e in examples], java)


def _example(image, said):
    return Example(image, (image,), "", tuple((s, 1.0) for s in said))


def _file(root):
    names = ("COCO/dataset_coco.json", "coco/dataset_coco.json", "dataset_coco.json")
    return find(root, names, f"Karpathy's split of COCO: dataset_coco.json, {COCO}")


def images_of(root):
    """(image, part, captions) of each image of Karpathy's file; restval is of train."""
    path = _file(root)
    content = read_json(path, COCO, lambda row: row["raw"] if "sentid" in row and "raw" in row else row, dict)
    if not isinstance(content.get("images"), list):
        raise UserError(f"{path}: no list 'images'. Expected {COCO}")
    for i, row in enumerate(content["images"]):
        needed(row, ("filename", "split", "sentences"), f"{path}, images[{i}]", COCO)
        part = "train" if row["split"] == "restval" else row["split"]
        if odd := [s for s in row["sentences"] if not isinstance(s, str)]:
            raise UserError(f"{path}, images[{i}]: a sentence {str(odd[0])[:40]}. Expected {COCO}")
        yield Path(row["filename"]).stem, part, tuple(s.strip() for s in row["sentences"] if s.strip())
