"""Predictions as the leaderboards take them."""

import csv
import io
import json
import re
from collections.abc import Sequence

from vlmx.data.vl import Example
from vlmx.errors import unknown

# Names of COCO's images, whose leaderboard knows them by number: COCO_val2014_000000000042, 000000000042.
IMAGE_ID = re.compile(r"(?:COCO_[a-z]+[0-9]{4}_)?([0-9]{1,18})")
NUMBER = re.compile(r"0|-?[1-9][0-9]{0,17}")


def submission(task: str, examples: Sequence[Example], predictions: Sequence[str]) -> str:
    """The content of the file that the leaderboard of `task` asks for; one prediction an example.

    VQAv2 (EvalAI), GQA (EvalAI) and COCO captions (CodaLab): a json list; NLVR2: a csv `identifier,label`; questions of
    VALUE (CodaLab): a json object, its captions: lines of json. UserError for a task of no leaderboard.
    """
    if task not in FORMS:
        raise unknown("task with a leaderboard", task, FORMS)
    return FORMS[task](list(zip(examples, predictions, strict=True)))


def _vqa(rows):
    """Ids of digits are numbers, as the leaderboard's; others stay texts."""
    return json.dumps([{"question_id": int(e.id) if NUMBER.fullmatch(e.id) else e.id, "answer": p} for e, p in rows])


def _gqa(rows):
    return json.dumps([{"questionId": e.id, "prediction": p} for e, p in rows])


def _nlvr(rows):
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows((e.id, p.capitalize()) for e, p in rows)
    return lines.getvalue()


def _coco(rows):
    """Names of images that are not COCO's stay texts: their digits alone need not tell them apart."""
    matches = [IMAGE_ID.fullmatch(e.id) for e, _ in rows]
    ids = [int(m[1]) for m in matches] if all(matches) else []
    if len(set(ids)) < len(rows):
        ids = [e.id for e, _ in rows]
    return json.dumps([{"image_id": id, "caption": p} for id, (_, p) in zip(ids, rows)])


def _choices(rows):
    """The digit behind the first letter is the answer; 0 where there is none."""
    return json.dumps({e.id: int(p[1:2]) if p[1:2].isdecimal() else 0 for e, p in rows})


def _clips(rows):
    """One line a clip: of the same clip twice the first prediction counts."""
    lines = {}
    for e, p in rows:
        lines.setdefault(e.about["clip"], {"video_id": e.images[0], "clip_id": e.about["clip"], "descs": [{"desc": p}]})
    return "".join(json.dumps(line) + "\n" for line in lines.values())


FORMS = {"vqa": _vqa, "gqa": _gqa, "nlvr": _nlvr, "caption": _coco, "tvqa": _choices, "how2qa": _choices,
         "tvc": _clips, "yc2c": _clips}  # fmt: skip
