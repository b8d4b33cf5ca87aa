"""VQAv2 from its official files, in Karpathy's split or its own, or from the files that VL-T5 was run on."""

import functools
from collections import Counter

from vlmx.data.karpathy import PARTS, images_of
from vlmx.data.vl import Example, Task
from vlmx.data.vl_files import Checks, find, has, needed, read_json, rows_of, soft
from vlmx.data.vl_forms import FORMS
from vlmx.errors import UserError, unknown
from vlmx.metrics import vqa

QUESTIONS = 'the official {"questions": [{"question_id", "image_id", "question"}, ...]}'
ANNOTATIONS = 'the official {"annotations": [{"question_id", "answers": [{"answer"}, ...], ...}, ...]}'
VQA_ROWS = 'a list of {"question_id", "img_id", "sent", "label": {answer: score}}, as VL-T5 is run on'


def load(root, split="karpathy", images=None, bad="stop", least=9, min_score=0.0) -> Task:
    """VQAv2 (Goyal et al. 2017, arXiv 1612.00837).

    split: "karpathy", the published one: questions about the images of Karpathy's train + restval, val and test, from
    VL-T5's vqa/karpathy_{train,val,test}.json or, where they are not, from the official files and dataset_coco.json.
    "official": train2014 and val2014, the latter as test.
    least: a target is an answer most people gave to at least so many questions (9: the usual 3,129 answers).
    min_score: targets with a lower soft score are left out.
    """
    if split not in ("karpathy", "official"):
        raise unknown("split of vqa", split, ("karpathy", "official"))
    checks = Checks("vqa", bad, images)
    if split == "karpathy" and has(root, ("vqa/karpathy_train.json", "karpathy_train.json")):
        parts = _reference(root, checks)
    else:
        parts = _parts(root, checks, least, split)
    splits = [rows_of(functools.partial(_example, min_score), rows) for rows in parts]
    return FORMS["vqa"].filled(splits, score, checks.notes())


def score(predictions, examples):
    """The official accuracy, by type of answer too; "soft": the mean soft score of the very strings; with and without
    an answer among the targets, where the soft score can be had and where not."""
    abouts = [e.about for e in examples]
    if any(not a["answers"] for a in abouts):
        raise UserError("vqa: questions without people's answers cannot be scored; write a submission file.")
    official = vqa.vqa(predictions, abouts)
    scores = {k: v for k, v in official.items() if not k.startswith("questions: ")}
    scores["soft"] = vqa.soft(predictions, [dict(e.targets) for e in examples])
    for name, within in (("answer in list", True), ("answer not in list", False)):
        rows = [i for i, e in enumerate(examples) if e.about.get("in_list", bool(e.targets)) == within]
        if rows:
            scores[name] = vqa.vqa([predictions[i] for i in rows], [abouts[i] for i in rows])["accuracy"]
    return scores


def _example(min_score, id, image, question, label, answers, question_type, answer_type, in_list):
    targets = tuple((a, s) for a, s in label if s >= min_score)
    about = {"answers": answers, "question_type": question_type, "answer_type": answer_type}
    return Example(str(id), (image,), question, targets, about | ({} if in_list is None else {"in_list": in_list}))


def _answer(row):
    """Of {"answer", "answer_confidence", "answer_id"} the answer alone; anything else as it is."""
    return row["answer"] if "answer_id" in row and "answer" in row else row


def _annotations(path):
    """question id -> (answers, question type, answer type, the answer most people gave)."""
    rows = read_json(path, ANNOTATIONS, _answer, dict).get("annotations")
    if not isinstance(rows, list):
        raise UserError(f"{path}: no list 'annotations'. Expected {ANNOTATIONS}")
    found, same = {}, {}  # texts and tuples of texts are few: one copy of each
    for i, a in enumerate(rows):
        needed(a, ("question_id", "answers"), f"{path}, annotations[{i}]", ANNOTATIONS)
        kinds = [a.get(k) for k in ("multiple_choice_answer", "question_type", "answer_type")]
        if not all(isinstance(t, str) for t in (*a["answers"], *(k for k in kinds if k is not None))):
            raise UserError(f"{path}, annotations[{i}]: an answer or a type that is no text. Expected {ANNOTATIONS}")
        answers = tuple(same.setdefault(t, t) for t in a["answers"])
        most = a.get("multiple_choice_answer") or (Counter(answers).most_common(1)[0][0] if answers else None)
        kinds = (same.setdefault(t, t) for t in (a.get("question_type"), a.get("answer_type"), most))
        found[a["question_id"]] = (answers, *kinds)
    return found


def _questions(path, year):
    """(place, id, image, question) of an official questions file."""
    content = read_json(path, QUESTIONS, None, dict)
    rows, folder = content.get("questions"), content.get("data_subtype", year)
    if not isinstance(rows, list):
        raise UserError(f"{path}: no list 'questions'. Expected {QUESTIONS}")
    for i, q in enumerate(rows):
        where = f"{path}, questions[{i}]"
        needed(q, ("question_id", "image_id", "question"), where, QUESTIONS)
        yield where, q["question_id"], f"COCO_{folder}_{q['image_id']:012d}", q["question"]


def _official(root, part, year):
    name = f"v2_{'OpenEnded_' if part == 'questions' else ''}mscoco_{year}_{part}.json"
    return find(root, (f"vqa/{name}", name), f"VQAv2's {part} of {year}: {name}")


@functools.lru_cache(1 << 20)
def _target(answer):
    return vqa.normalised(answer).replace(",", "")


def soft_label(answers, allowed):
    """The soft scores of people's answers: 0.3 for each one who gave it, at most 1; those in `allowed` alone."""
    counts = Counter(_target(a) for a in answers)
    return tuple((a, min(1.0, round(0.3 * n, 1))) for a, n in counts.items() if a in allowed)


def _parts(root, checks, least, split):
    """Rows of (train, val, test) of the official files."""
    known = {year: _annotations(_official(root, "annotations", year)) for year in ("train2014", "val2014")}
    often = Counter(_target(most) for year in known.values() for *_, most in year.values() if most)
    allowed = {a for a, n in often.items() if n >= least}
    home = {name: part for name, part, _ in images_of(root)} if split == "karpathy" else None
    parts = {part: [] for part in PARTS}
    for year, annotations in known.items():
        for where, id, image, question in _questions(_official(root, "questions", year), year):
            answers, kind, of, _ = annotations.get(id, ((), None, None, None))
            part = home.get(image) if home is not None else {"train2014": "train", "val2014": "test"}[year]
            if part in parts and checks.entry(where, id, (image,), answers):
                parts[part].append((id, image, question, soft_label(answers, allowed), answers, kind, of, None))
    return [parts[part] for part in PARTS]


def _reference(root, checks):
    """Rows of (train, val, test) of VL-T5's files; people's answers are in them, or in the official ones."""
    known, parts = None, []
    for part in PARTS:
        path = find(root, (f"vqa/karpathy_{part}.json", f"karpathy_{part}.json"), f"VL-T5's karpathy_{part}.json")
        rows = []
        for i, q in enumerate(read_json(path, VQA_ROWS, _answer)):
            where = f"{path}, entry {i}"
            needed(q, ("question_id", "img_id", "sent"), where, VQA_ROWS)
            if "answers" in q:
                if not isinstance(q["answers"], list) or not all(isinstance(a, str) for a in q["answers"]):
                    raise UserError(f"{where}: 'answers' that are no texts. Expected {VQA_ROWS}")
                given = (tuple(q["answers"]), q.get("question_type"), q.get("answer_type"))
            elif part == "train":
                given = ((), q.get("question_type"), q.get("answer_type"))
            else:
                known = known or _annotations(_official(root, "annotations", "val2014"))  # where Karpathy's are from
                given = known.get(q["question_id"], ((), None, None))[:3]
            label = soft(q.get("label"), where, VQA_ROWS)
            if checks.entry(where, q["question_id"], (q["img_id"],), given[0] or ["label"] * ("label" in q)):
                rows.append((q["question_id"], q["img_id"], q["sent"], label, *given, q.get("is_topk_optimal")))
        parts.append(rows)
    return parts


def hidden(root):
    """The questions of VQAv2's test part, whose answers the leaderboard keeps: examples for its submission file."""
    found = _questions(_official(root, "questions", "test2015"), "test2015")
    return rows_of(_hidden_example, [(id, image, question) for _, id, image, question in found])


def _hidden_example(id, image, question):
    return Example(str(id), (image,), question, (), {"answers": ()})
