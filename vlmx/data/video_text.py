"""TVQA, How2QA, TVC and YC2C from the annotations of the VALUE benchmark (Li et al. 2021, arXiv 2106.04632).

Text, targets and lengths are those of VL-Adapter (Sung et al. 2022, arXiv 2112.06825): the whole video's subtitles
first, so that a long video's question is cut off. The test is the release's test part where it comes with answers, else
its val part: answers of the others are known to the leaderboard alone (`hidden`, submission.py).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

from vlmx.data.vl import Example, Task
from vlmx.data.vl_files import Checks, LineRows, Lines, find
from vlmx.data.vl_forms import FORMS
from vlmx.errors import UserError, unknown
from vlmx.metrics import caption, vqa

ENDINGS = {"train": ("train_release", "train"), "val": ("val_release", "val"),
           "test": ("test_release", "test_public_release", "test")}  # fmt: skip
SUBTITLES = 'lines {"vid_name", "sub": [{"text", "start", "end"}, ...]}'


class Subtitles:
    """All that is said in each video, by the video's name, read when asked for."""

    def __init__(self, root, show: str, checks: Checks):
        path = find(root, (f"{show}_subtitles.jsonl",), f"the subtitles {show}_subtitles.jsonl, {SUBTITLES}")
        self.lines, self.offsets = Lines(path), {}
        for offset, where, row in self.lines.scan(checks, ("vid_name", "sub"), SUBTITLES):
            usable = checks.each(where, row["sub"], "text", SUBTITLES)
            if usable and checks.entry(where, row["vid_name"], part="subtitles"):
                self.offsets[row["vid_name"]] = offset

    def __getitem__(self, video):
        """The lines, stripped and joined by blanks; nothing for a video of which there are none."""
        if video not in self.offsets:
            return ""
        return " ".join(line["text"].strip() for line in self.lines.at(self.offsets[video])["sub"])


# ------------------------------------------------------------------------------------------------ questions


def _question(choices, said, row, part=0):
    answers = " ".join(f"a{i}: {row[f'a{i}'].strip(' .')}." for i in range(choices))
    text = f"[Subs] {said[row['vid_name']]} [Q] {row['q'].strip()} [TS] ({row['ts']}) [Choices] {answers} "
    targets = ((f"a{row['answer_idx']}", 1.0),) if _answered(row) else ()
    return Example(str(row["qid"]), (row["vid_name"],), text, targets, {"show": str(row.get("show_name") or "")})


def _answered(row):
    return int(row.get("answer_idx") is not None)


def _right(choices, row):
    """What is the matter with a question's answer, or None."""
    right = row.get("answer_idx")
    if right is not None and (type(right) is not int or right not in range(choices)):
        return f"'answer_idx' is {repr(right)[:40]}, not a number from 0 to {choices - 1}"


def score_choices(predictions, examples, java=None):
    """Share of answers that are exactly right, over all and over each show."""
    answers = [e.targets[0][0] for e in examples]
    scores = {"accuracy": vqa.exact(predictions, answers)}
    for show in sorted({e.about["show"] for e in examples if e.about["show"]}):
        rows = [i for i, e in enumerate(examples) if e.about["show"] == show]
        scores[show] = vqa.exact([predictions[i] for i in rows], [answers[i] for i in rows])
    return scores


# ------------------------------------------------------------------------------------------------ descriptions


def _description(stamped, said, row, part=0):
    text = f"[Subs] {said[row['vid_name']]} " + (f"[TS] ({row['ts']}) " if stamped else "")
    descriptions = tuple(d["desc"] for d in row.get("descs") or ())
    about = {"clip": row["clip_id"], "descriptions": descriptions}
    targets = ((descriptions[part], 1.0),) if descriptions else ()
    return Example(f"{row['clip_id']}/{part}", (row["vid_name"],), text, targets, about)


def _described(row):
    return len(row.get("descs") or ())


def _texts(row):
    """What is the matter with a clip's descriptions, or None."""
    rows = [] if row.get("descs") is None else row["descs"]
    if not isinstance(rows, list) or not all(isinstance(d, dict) and isinstance(d.get("desc"), str) for d in rows):
        return f"'descs' is {str(rows)[:40]}, not a list of objects with a text 'desc'"


def score_descriptions(predictions, examples, java=True):
    """The COCO tool's metrics of every description against itself alone, as VL-Adapter was measured; and CIDEr with all
    descriptions of a clip as references, as the benchmark's leaderboard does."""
    scores = caption.captions(predictions, [[t for t, _ in e.targets] for e in examples], java)
    clips = {e.about["clip"]: i for i, e in reversed(list(enumerate(examples)))}  # the first of each
    references = [examples[i].about["descriptions"] for i in clips.values()]
    every = caption.captions([predictions[i] for i in clips.values()], references, java=False)
    return scores | {"CIDEr, all references": every["CIDEr"]}


# ------------------------------------------------------------------------------------------------ tasks


class Form(NamedTuple):
    """What a row of a task's jsonl files is: whose subtitles go with it, the keys it must have (its id first), what is
    the matter with its answers, how many examples it holds (0: its answer is not public), and how one is made."""

    subtitles: str
    keys: tuple[str, ...]
    wrong: Callable
    count: Callable
    example: Callable
    score: Callable


def _choices(subtitles, n):
    keys = ("qid", "vid_name", "q", "ts", *(f"a{i}" for i in range(n)))
    wrong, example = functools.partial(_right, n), functools.partial(_question, n)
    return Form(subtitles, keys, wrong, _answered, example, score_choices)


def _clips(subtitles, stamped):
    keys = ("clip_id", "vid_name") + (("ts",) if stamped else ())
    return Form(subtitles, keys, _texts, _described, functools.partial(_description, stamped), score_descriptions)


READERS = {
    "tvqa": _choices("tv", 5),
    "how2qa": _choices("how2", 4),
    "tvc": _clips("tv", True),
    "yc2c": _clips("yc2", False),
}


def load(name: str, root, images=None, bad="stop", java=True) -> Task:
    """The task `name`, one of READERS, from the folder of the release's annotations: tvqa/tvqa_train.jsonl and so on,
    tv_subtitles.jsonl.

    images: what says which videos there are, `video in images`; None: unchecked. bad: "stop": an entry that cannot be
    used is an error; "skip": it is left out and counted in Task.notes. java: METEOR and SPICE, where they can be had.
    Raises UserError for another name, and for files that are missing or not as they should be.
    """
    if name not in READERS:
        raise unknown("video-text task", name, READERS)
    form, checks = READERS[name], Checks(name, bad, images)
    lines = {part: _lines(root, name, part) for part in ENDINGS}
    said = Subtitles(root, form.subtitles, checks)
    parts = {part: _part(name, part, lines[part], checks, said) for part in ENDINGS}
    notes = caption.notes() if java and form.score is score_descriptions else ()
    if not parts["test"]:
        parts |= {"val": (), "test": parts["val"]}
        notes += ("the answers of the test part are not public: the val part is the test here",)
    score = functools.partial(form.score, java=java)
    return FORMS[name].filled(parts.values(), score, (*checks.notes(), *notes))


def hidden(name: str, root, images=None, bad="stop"):
    """The rows of a task's test part, answered or not, one example each: for its submission file."""
    form, lines = READERS[name], _lines(root, name, "test")
    checks = Checks(name, bad, images)
    rows = lines.scan(checks, form.keys, _expected(form))
    places = [(at, 0) for at, where, row in rows if checks.entry(where, row[form.keys[0]], (row["vid_name"],))]
    return LineRows(lines, places, functools.partial(form.example, Subtitles(root, form.subtitles, checks)))


def _part(name, part, lines, checks, said):
    form, places = READERS[name], []

    def check(row, where):
        if complaint := form.wrong(row):
            raise UserError(f"{where}: {complaint}. Expected {_expected(form)}")

    rows = [
        (offset, where, row[form.keys[0]], row["vid_name"], form.count(row))
        for offset, where, row in lines.scan(checks, form.keys, _expected(form), check)
    ]
    if part == "test" and not any(n for *_, n in rows):
        return ()  # the leaderboard keeps the answers
    for offset, where, id, video, n in rows:
        if checks.entry(where, id, (video,), range(n), part):
            places += [(offset, i) for i in range(n)]
    return LineRows(lines, places, functools.partial(form.example, said))


def _lines(root, name, part):
    files = [f"{folder}{name}_{end}.jsonl" for folder in (f"{name}/", "") for end in ENDINGS[part]]
    return Lines(find(root, files, f"the {part} part of {name} in the VALUE release, {_expected(READERS[name])}"))


def _expected(form):
    answer = "answer_idx" if form.count is _answered else "descs"
    return f"lines {{{', '.join(repr(k) for k in (*form.keys, answer))}}}"
