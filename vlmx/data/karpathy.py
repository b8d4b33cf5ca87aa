"""COCO captions in Karpathy's split, from dataset_coco.json, which divides the images of VQAv2 too."""

import functools
from pathlib import Path

from vlmx.data.vl import Example, Task
from vlmx.data.vl_files import Checks, find, read_json, rows_of
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
    parts = {part: [] for part in PARTS}
    for where, name, part, captions in images_of(root, checks):
        if checks.entry(where, name, (name,), captions):
            parts[part] += [(name, (s,)) for s in captions] if part == "train" else [(name, captions)]
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


def images_of(root, checks):
    """(place, image, part, captions) of each image of Karpathy's file; restval is of train."""
    path = _file(root)
    content = read_json(path, COCO, lambda row: row["raw"] if "sentid" in row and "raw" in row else row, dict)
    rows = content.get("images")
    if not isinstance(rows, list):
        raise UserError(f"{path}: no list 'images'. Expected {COCO}")
    keys = ("filename", "split", "sentences")
    for where, row in checks.entries(lambda i: f"{path}, images[{i}]", rows, keys, COCO, _check_image):
        part = "train" if row["split"] == "restval" else row["split"]
        yield where, Path(row["filename"]).stem, part, tuple(filter(None, map(str.strip, _sentences(row))))


def _check_image(row, where):
    """UserError for a split that is none, or a sentence that is no text."""
    if row["split"] not in (*PARTS, "restval"):
        raise UserError(f"{where}: 'split' is {row['split'][:40]!r}. Expected train, restval, val or test.")
    if odd := [s for s in _sentences(row) if not isinstance(s, str)]:
        raise UserError(f"{where}: a sentence {str(odd[0])[:40]}. Expected {COCO}")


def _sentences(row):
    return [s.get("raw") if isinstance(s, dict) else s for s in row["sentences"]]
