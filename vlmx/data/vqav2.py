"""VQAv2 from its official files, in Karpathy's split or its own, or from the files that VL-T5 was run on."""

import functools
from collections import Counter

from vlmx.data.karpathy import PARTS, images_of
from vlmx.data.vl import Example, Task
from vlmx.data.vl_files import Checks, find, has, read_json, rows_of, soft
from vlmx.data.vl_forms import FORMS
from vlmx.errors import UserError, unknown
from vlmx.metrics import vqa

QUESTIONS = 'the official {"questions": [{"question_id", "image_id", "question"}, ...]}'
ANNOTATIONS = 'the official {"annotations": [{"question_id", "answers": [{"answer"}, ...], ...}, ...]}'
VQA_ROWS = 'a list of {"question_id", "img_id", "sent", "label": {answer: score}}, as VL-T5 is run on'


# Targets are answers that most people gave to at least so many questions: 9 leaves VQAv2's usual 3,129. It has 658,111
# answered questions; files with fewer than half of them are data of one's own, of which every answer is a target.
LEAST, LARGE = 9, 300_000


def load(root, split="karpathy", images=None, bad="stop", least=None, min_score=0.0) -> Task:
    """VQAv2 (Goyal et al. 2017, arXiv 1612.00837), or data of one's own in the form of its files.

    split: "karpathy", the published one: questions about the images of Karpathy's train + restval, val and test, from
    VL-T5's vqa/karpathy_{train,val,test}.json or, where they are not, from the official files and dataset_coco.json.
    "official": train2014 and val2014, the latter as test.
    least: a target is an answer most people gave to at least so many questions. None: 9 as published (3,129 answers)
    where there are 300,000 answered questions or more, as in VQAv2; 1 where there are fewer.
    min_score: targets with a lower soft score are left out.
    Raises UserError where no training question keeps a target; where some do not, Task.notes says how many.
    """
    if split not in ("karpathy", "official"):
        raise unknown("split of vqa", split, ("karpathy", "official"))
    if least is not None and (type(least) is not int or least < 1):
        raise UserError(f"vqa: least is {least!r}. Expected a number of questions, 1 or more.")
    if type(min_score) not in (int, float) or not 0 <= min_score <= 1:
        raise UserError(f"vqa: min_score is {min_score!r}. Expected a score from 0 to 1.")
    checks = Checks("vqa", bad, images)
    labelled = split == "karpathy" and has(root, ("vqa/karpathy_train.json", "karpathy_train.json"))
    if labelled:
        parts, kept = _reference(root, checks), "a 'label' in VL-T5's files"
    else:
        parts, least = _parts(root, checks, least, split)
        kept = f"an answer that most people gave to at least {least} questions (least={least})"
    notes = (*checks.notes(), *_notes(parts, min_score, kept))
    splits = [rows_of(functools.partial(_example, min_score), rows) for rows in parts]
    return FORMS["vqa"].filled(splits, score, notes)


def _notes(parts, min_score, kept):
    """Sentences about questions that train nothing or cannot be answered fully right; UserError: none trains."""
    train, _, test = parts
    kept += f" and a score of at least {min_score}" * bool(min_score)
    bare = sum(not any(s > 0 and s >= min_score for _, s in row[3]) for row in train)
    if train and bare == len(train):
        raise UserError(
            f"vqa: none of the {bare:,} training questions has a target, which is {kept}, and not blank. For data of "
            'your own set --config.data.options=\'{"vqa": {"least": 1}}\', and min_score no higher than the best score.'
        )
    if bare:
        yield f"{bare:,} of {len(train):,} training questions have no target and train nothing: a target is {kept}"
    if few := sum(0 < len(row[4]) < 4 for row in test):
        yield f"{few:,} test questions have fewer than 4 answers: VQA's accuracy is below 100 there for any prediction"


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


def _answer_texts(row, where, what):
    """The answers of a row, a list of texts or of {"answer"}, as a tuple of texts."""
    answers = tuple(a.get("answer") if isinstance(a, dict) else a for a in row["answers"])
    if odd := [a for a in answers if not isinstance(a, str)]:
        raise UserError(f"{where}: an answer {str(odd[0])[:40]} that is no text. Expected {what}")
    return answers


def _check_kinds(row, where, what):
    """UserError where an answer or a type is no text."""
    if "answers" in row:
        if not isinstance(row["answers"], list):
            raise UserError(f"{where}: 'answers' is {str(row['answers'])[:40]}, not a list. Expected {what}")
        _answer_texts(row, where, what)
    for key in ("multiple_choice_answer", "question_type", "answer_type"):
        if not isinstance(row.get(key), str | None):
            raise UserError(f"{where}: {key!r} is {str(row[key])[:40]}, not a text. Expected {what}")


def _annotations(path, checks):
    """question id, as a text -> (answers, question type, answer type, the answer most people gave)."""
    rows = read_json(path, ANNOTATIONS, _answer, dict).get("annotations")
    if not isinstance(rows, list):
        raise UserError(f"{path}: no list 'annotations'. Expected {ANNOTATIONS}")
    annotations, places, same = {}, {}, {}  # texts and tuples of texts are few: one copy of each
    usable = checks.entries(
        lambda i: f"{path}, annotations[{i}]", rows, ("question_id", "answers"), ANNOTATIONS,
        lambda row, where: _check_kinds(row, where, ANNOTATIONS),
    )  # fmt: skip
    for where, row in usable:
        id = str(row["question_id"])  # some tools write ids as texts in one of the two files
        if id in annotations:
            before = f"the id {row['question_id']!r} was there before: {places[id]}."
            checks.wrong(where, "with the id of another", before)
            continue
        answers = tuple(same.setdefault(t, t) for t in _answer_texts(row, where, ANNOTATIONS))
        most = row.get("multiple_choice_answer") or (Counter(answers).most_common(1)[0][0] if answers else None)
        kinds = (same.setdefault(t, t) for t in (row.get("question_type"), row.get("answer_type"), most))
        annotations[id], places[id] = (answers, *kinds), where
    return annotations


def _questions(path, year, checks):
    """(place, id, image, question) of an official questions file."""
    content = read_json(path, QUESTIONS, None, dict)
    rows, folder = content.get("questions"), content.get("data_subtype", year)
    if not isinstance(rows, list):
        raise UserError(f"{path}: no list 'questions'. Expected {QUESTIONS}")
    if not isinstance(folder, str):
        raise UserError(f"{path}: 'data_subtype' is {str(folder)[:40]}, not a text such as {year!r}.")
    keys = ("question_id", "image_id", "question")
    for where, q in checks.entries(lambda i: f"{path}, questions[{i}]", rows, keys, QUESTIONS):
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
    """(rows of (train, val, test) of the official files, least)."""
    known = {year: _annotations(_official(root, "annotations", year), checks) for year in ("train2014", "val2014")}
    least = least or (LEAST if sum(map(len, known.values())) >= LARGE else 1)
    often = Counter(_target(most) for year in known.values() for *_, most in year.values() if most and most.strip())
    allowed = {a for a, n in often.items() if n >= least}
    home = {name: part for _, name, part, _ in images_of(root, checks)} if split == "karpathy" else None
    parts = {part: [] for part in PARTS}
    for year, annotations in known.items():
        for where, id, image, question in _questions(_official(root, "questions", year), year, checks):
            answers, kind, of, _ = annotations.get(str(id), ((), None, None, None))
            part = home.get(image) if home is not None else {"train2014": "train", "val2014": "test"}[year]
            if part is None:
                about = f"dataset_coco.json has no image {image!r}. Without Karpathy's split: split=official."
                checks.wrong(where, "about an image that Karpathy's split does not have", about)
            elif checks.entry(where, id, (image,), answers):
                parts[part].append((id, image, question, soft_label(answers, allowed), answers, kind, of, None))
    return [parts[part] for part in PARTS], least


def _reference(root, checks):
    """Rows of (train, val, test) of VL-T5's files; people's answers are in them, or in the official ones."""
    known, parts = None, []

    def check(row, where):
        _check_kinds(row, where, VQA_ROWS)
        soft(row.get("label"), where, VQA_ROWS)

    for part in PARTS:
        path = find(root, (f"vqa/karpathy_{part}.json", f"karpathy_{part}.json"), f"VL-T5's karpathy_{part}.json")
        rows, entries = [], read_json(path, VQA_ROWS, _answer)
        keys, place = ("question_id", "img_id", "sent"), lambda i: f"{path}, entry {i}"  # noqa: B023
        for where, q in checks.entries(place, entries, keys, VQA_ROWS, check):
            if "answers" in q:
                people = (_answer_texts(q, where, VQA_ROWS), q.get("question_type"), q.get("answer_type"))
            elif part == "train":
                people = ((), q.get("question_type"), q.get("answer_type"))
            else:  # val2014 is where Karpathy's are from
                known = _annotations(_official(root, "annotations", "val2014"), checks) if known is None else known
                people = known.get(str(q["question_id"]), ((), None, None))[:3]
            label = soft(q.get("label"), where, VQA_ROWS)
            answered = people[0] or (["label"] * ("label" in q) if part == "train" else [])
            if checks.entry(where, q["question_id"], (q["img_id"],), answered):
                rows.append((q["question_id"], q["img_id"], q["sent"], label, *people, q.get("is_topk_optimal")))
        parts.append(rows)
    return parts


def hidden(root, images=None, bad="stop"):
    """The questions of VQAv2's test part, whose answers the leaderboard keeps: examples for its submission file."""
    checks = Checks("vqa", bad, images)
    rows = _questions(_official(root, "questions", "test2015"), "test2015", checks)
    rows = [(id, image, text) for where, id, image, text in rows if checks.entry(where, id, (image,))]
    return rows_of(_hidden_example, rows)


def _hidden_example(id, image, question):
    return Example(str(id), (image,), question, (), {"answers": ()})
