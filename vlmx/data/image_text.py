"""VQAv2, GQA, NLVR2 and COCO captions from their official files, or from those that VL-T5 and VL-Adapter were run on.

Text, targets, lengths and splits are those of VL-Adapter (Sung et al. 2022, arXiv 2112.06825). Every reader takes
    root    the folder of the files, or one with a folder for each data set (vqa, GQA, nlvr, COCO) in it;
    images  what says which images there are: a source of features (vl_features.py), or None: unchecked;
    bad     "stop": an entry that cannot be used is an error; "skip": it is left out and counted in Task.notes.
"""

from typing import Any, NamedTuple

from vlmx.data import karpathy, vl_files, vqav2
from vlmx.data.vl import Example, Task
from vlmx.data.vl_files import (
    Checks,
    LineRows,
    Lines,
    Repeated,
    Rows,
    find,
    needed,
    object_of,
    read_json,
    rows_of,
    soft,
)  # fmt: skip
from vlmx.data.vl_forms import FORMS
from vlmx.errors import UserError, unknown
from vlmx.metrics import vqa


def load(name: str, root, **options) -> Task:
    """The task `name`, one of READERS. Raises UserError for another name or option, and for files that are missing or
    not as they should be."""
    return vl_files.load("image-text task", READERS, name, root, options)


# ------------------------------------------------------------------------------------------------ GQA

GQA_ENTRY = """the official {id: {"imageId", "question", "answer", ...}, ...},
or VL-T5's list of {"question_id", "img_id", "sent", "label"}"""
GQA_FILES = {
    "train": ("train_balanced_questions.json", "train.json"),
    "val": ("val_balanced_questions.json", "valid.json"),
    "testdev": ("testdev_balanced_questions.json", "testdev.json"),
}


def gqa(root, train=("train", "val"), images=None, bad="stop") -> Task:
    """GQA, balanced (Hudson and Manning 2019, arXiv 1902.09506).

    train: the parts that are trained on, by default train and val as published; val is empty unless it is left out.
    The test is testdev.
    """
    checks = Checks("gqa", bad, images)
    train = tuple(train) if isinstance(train, (tuple, list)) else (train,)
    if odd := [p for p in train if p not in ("train", "val")]:
        raise unknown("part of gqa to train on", odd[0], ("train", "val"))
    parts = {part: _gqa_rows(root, part, checks) for part in GQA_FILES}
    trained = [row for part in train for row in parts[part]]
    held = parts["val"] if "val" not in train else []
    splits = [rows_of(_gqa_example, rows) for rows in (trained, held, parts["testdev"])]
    return FORMS["gqa"].filled(splits, score_gqa, checks.notes())


def score_gqa(predictions, examples):
    """Accuracy, and of each structural type of question where the files name it."""
    labels = [dict(e.targets) for e in examples]
    scores = {"accuracy": vqa.soft(predictions, labels)}
    for kind in sorted({e.about["type"] for e in examples if e.about}):
        rows = [i for i, e in enumerate(examples) if e.about and e.about["type"] == kind]
        scores[kind] = vqa.soft([predictions[i] for i in rows], [labels[i] for i in rows])
    return scores


def _gqa_example(id, image, question, label, kind):
    return Example(id, (image,), question, label, {"type": kind} if kind else None)


class Official(NamedTuple):
    """What is needed of an entry of GQA's files; None where it is missing."""

    image: Any
    question: Any
    answer: Any
    kind: Any


def _gqa_keep(pairs):
    """Of the file's objects what is needed: official entries as an Official, the whole as pairs."""
    if any(isinstance(v, Official) for _, v in pairs):
        return pairs  # pairs, not a dict: an id that is there twice is to be seen
    row, inner = object_of(pairs), [v for _, v in pairs if isinstance(v, Repeated)]
    if isinstance(row, Repeated):
        return row
    if "imageId" in row or isinstance(row.get("question"), str):
        return inner[0] if inner else Official(*(row.get(k) for k in ("imageId", "question", "answer", "types")))
    if "structural" in row:
        return row["structural"]
    if "question_id" in row or "sent" in row:
        return row
    if inner:
        return pairs
    return row if all(isinstance(v, (int, float)) for v in row.values()) else None


def _gqa_rows(root, part, checks):
    names = [f"{folder}{name}" for name in GQA_FILES[part] for folder in ("GQA/", "gqa/", "")]
    path = find(root, names, f"GQA's balanced questions: {GQA_FILES[part][0]}")
    entries = read_json(path, GQA_ENTRY, kind=object, pairs=_gqa_keep)
    if not isinstance(entries, list):
        raise UserError(f"{path}: no entry with 'imageId' or 'question_id' in it. Expected {GQA_ENTRY}")
    official = [isinstance(e, tuple) and not isinstance(e, Official) for e in entries]  # (id, Official) of an object

    def place(i):
        return f"{path}, {entries[i][0]!r}" if official[i] else f"{path}, entry {i}"

    def row_of(i):
        if not official[i]:
            return entries[i]
        id, content = entries[i]
        if isinstance(content, Repeated):
            return content
        content = content if isinstance(content, Official) else Official(None, None, None, None)
        return {"id": id} | content._asdict()

    def check(row, where):
        if "id" not in row:
            needed(row, ("question_id", "img_id", "sent"), where, GQA_ENTRY)
            soft(row.get("label"), where, GQA_ENTRY)
        elif not (isinstance(row["image"], str) and isinstance(row["question"], str)):
            raise UserError(f"{where}: no 'imageId' or no 'question'. Expected {GQA_ENTRY}")
        elif not isinstance(row["answer"], str | None):
            raise UserError(f"{where}: 'answer' is {str(row['answer'])[:40]}, not a text. Expected {GQA_ENTRY}")

    rows = []
    for where, row in checks.entries(place, [row_of(i) for i in range(len(entries))], (), GQA_ENTRY, check):
        if "id" in row:
            id, image, question, kind = row["id"], row["image"], row["question"], row["kind"]
            label = ((row["answer"], 1.0),) if (row["answer"] or "").strip() else ()
        else:
            id, image, question, kind = row["question_id"], row["img_id"], row["sent"], None
            label = soft(row.get("label"), where, GQA_ENTRY)
        if checks.entry(where, id, (image,), [score for _, score in label if score]):
            rows.append((str(id), image, question, label, kind if isinstance(kind, str) else None))
    return rows


# ------------------------------------------------------------------------------------------------ NLVR2

NLVR_LINE = 'the official lines {"identifier": "dev-850-0-0", "sentence", "label": "True"}'
NLVR_ROWS = 'VL-T5\'s list of {"identifier", "img0", "img1", "sent", "label": 0 or 1}'
NLVR_FILES = {"train": ("train.json",), "val": ("dev.json", "valid.json"), "test": ("test1.json", "test.json")}


def nlvr2(root, images=None, bad="stop") -> Task:
    """NLVR2 (Suhr et al. 2019, arXiv 1811.00491): is a sentence true of two images; train, dev, test-P."""
    checks = Checks("nlvr", bad, images)
    splits = [_nlvr_rows(root, part, checks) for part in NLVR_FILES]
    return FORMS["nlvr"].filled(splits, score_nlvr2, checks.notes())


def score_nlvr2(predictions, examples):
    """Accuracy, and consistency over sentences: the same one is said of several pairs, the third part of the id."""
    answers = [e.targets[0][0] for e in examples]
    sentences = [(*e.id.split("-")[:2], *e.id.split("-")[3:]) for e in examples]
    return {
        "accuracy": vqa.exact(predictions, answers),
        "consistency": vqa.consistency(predictions, answers, sentences),
    }


def nlvr_images(row):
    """The names of the two images of an official entry: dev-850-0-0 is about dev-850-0-img0 and dev-850-0-img1."""
    pair = row["identifier"].rsplit("-", 1)[0]
    return row.get("img0", f"{pair}-img0"), row.get("img1", f"{pair}-img1")


def _nlvr_label(row):
    said = str(row.get("label")).lower()
    return {"true": "true", "1": "true", "false": "false", "0": "false"}.get(said)


def _nlvr_example(row, part=0):
    label = _nlvr_label(row)
    text = row["sentence"] if "sentence" in row else row["sent"]
    return Example(row["identifier"], nlvr_images(row), text, ((label, 1.0),) if label else ())


def _nlvr_rows(root, part, checks):
    names = [f"{f}{n}" for n in NLVR_FILES[part] for f in ("nlvr/", "nlvr2/data/", "nlvr2/", "")]
    path = find(root, names, f"NLVR2's {NLVR_FILES[part][0]}, {NLVR_LINE}; or {NLVR_ROWS}")
    lines = Lines(path)
    if not lines.begin_with(b"["):
        found = lines.scan(checks, ("identifier", "sentence"), NLVR_LINE, _check_pair)
        return LineRows(lines, [(at, 0) for at, where, row in found if _nlvr_fits(checks, where, row)], _nlvr_example)
    keys, place = ("identifier", "img0", "img1", "sent"), lambda i: f"{path}, entry {i}"
    rows = checks.entries(place, read_json(path, NLVR_ROWS), keys, NLVR_ROWS, _check_pair)
    return Rows(_nlvr_example, [row for where, row in rows if _nlvr_fits(checks, where, row)])


def _check_pair(row, where):
    """UserError where the name of an image, which an official line may leave out, is no text, or the label is none."""
    if row.get("label") is not None and _nlvr_label(row) is None:
        raise UserError(f"{where}: 'label' is {repr(row['label'])[:40]}. Expected \"True\" or \"False\", or 1 or 0.")
    if not all(isinstance(name, str) for name in nlvr_images(row)):
        raise UserError(f"{where}: 'img0' or 'img1' is not a text. Expected {NLVR_LINE}")


def _nlvr_fits(checks, where, row):
    return checks.entry(where, row["identifier"], nlvr_images(row), [v for v in (_nlvr_label(row),) if v])


READERS = {"vqa": vqav2.load, "gqa": gqa, "nlvr": nlvr2, "caption": karpathy.load}
