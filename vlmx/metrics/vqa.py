"""How answers to questions about images and videos are scored, in per cent.

The first part is the official VQA v2 evaluation (Antol et al. 2015, arXiv 1505.00468; Goyal et al. 2017, 1612.00837),
held to vectors of the official code, what it does unexpectedly included. That code changed in March 2021
(GT-Vision-Lab/VQA, "Fixed processing answers bug"): both versions are here.
"""

import re
from collections import defaultdict
from collections.abc import Sequence

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
COMMA_IN_NUMBER = re.compile(r"\d,\d")
PERIOD = re.compile(r"\.(?!\d)")  # one within a number stays
MOST_PERIODS = int(re.UNICODE)  # the official code hands this flag to `sub` as the number of periods to remove
NUMBERS = {w: str(n) for n, w in enumerate("zero one two three four five six seven eight nine ten".split())}
NUMBERS["none"] = "0"
ARTICLES = ("a", "an", "the")

# Words whose apostrophes people leave out; a word with two is known without either of them.
_ONE = """ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's
I'm I've isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've
shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're
there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's
where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've"""
_TWO = """couldn't've hadn't've he'd've I'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've
something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll you'd've"""


def _contractions():
    """What is looked up -> what stands in its place."""
    known = {word.replace("'", ""): word for word in _ONE.split()}
    for word in _TWO.split():
        first, middle, last = word.split("'")
        known |= {f"{first}{middle}'{last}": word, f"{first}'{middle}{last}": word}
    for short in ("yall'd've", "y'alld've", "y'all'dve"):
        known[short] = "y'all'd've"
    for short in ("ow's'at", "'ows'at", "'ow'sat"):
        known[short] = "'ow's'at"
    return known | {"somebody'd": "somebodyd"}


CONTRACTIONS = _contractions()


def unpunctuated(answer: str) -> str:
    """`answer` without punctuation: gone where it stands beside a blank anywhere or a comma divides digits, else a
    blank in its place. The result may begin or end with blanks."""
    out = answer
    for p in PUNCTUATION:
        gone = p + " " in answer or " " + p in answer or COMMA_IN_NUMBER.search(answer)
        out = out.replace(p, "" if gone else " ")
    return PERIOD.sub("", out, count=MOST_PERIODS)


def normalised(answer: str) -> str:
    """A predicted answer as it is compared: no punctuation, lower case, numbers as digits, no articles, apostrophes."""
    words = unpunctuated(answer.replace("\n", " ").replace("\t", " ").strip()).lower().split()
    words = [NUMBERS.get(w, w) for w in words]
    return " ".join(CONTRACTIONS.get(w, w) for w in words if w not in ARTICLES)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """VQA v2's accuracy of one answer, 0..1: min(1, matches / 3), averaged over the people left out in turn.

    `answers`, one a person, lose their punctuation only where they are not all the same, as in the official code.
    """
    said = normalised(prediction)
    if len(set(answers)) > 1:
        answers = [unpunctuated(a) for a in answers]
    return _leave_one_out([a == said for a in answers])


def vqa_accuracy_2021(prediction: str, answers: Sequence[str]) -> float:
    """VQA v2's accuracy of one answer, 0..1, by the official code since March 2021.

    Prediction and answers are cleaned alike, and only where the answers are not all the same.
    """
    said, *answers = (a.replace("\n", " ").replace("\t", " ").strip() for a in (prediction, *answers))
    if len(set(answers)) > 1:
        said, answers = normalised(said), [normalised(a) for a in answers]
    return _leave_one_out([a == said for a in answers])


def _leave_one_out(same):
    """The mean of min(1, matches / 3) over the people left out in turn; `same`: whose answer is the prediction."""
    return sum(min(1, (sum(same) - s) / 3) for s in same) / len(same)


def vqa(predictions: Sequence[str], questions: Sequence[dict]) -> dict[str, float]:
    """VQA v2 of predictions, in per cent rounded to 2 digits as the official code does.

    questions: {"answers": texts, one a person; "question_type", "answer_type": str or None}.
    Returns: {"accuracy", "accuracy_2021", "answers: <answer type>", "questions: <question type>"}; the second by the
    official rules since March 2021, all others by those before, which the published results were computed by.
    """
    groups = defaultdict(list)
    for prediction, q in zip(predictions, questions, strict=True):
        value = round(100 * vqa_accuracy(prediction, q["answers"]), 2)  # of one answer too, as the official code
        groups["accuracy"].append(value)
        groups["accuracy_2021"].append(round(100 * vqa_accuracy_2021(prediction, q["answers"]), 2))
        for key, kind in (("answers", q.get("answer_type")), ("questions", q.get("question_type"))):
            if kind:
                groups[f"{key}: {kind}"].append(value)
    return {key: round(sum(values) / len(values), 2) for key, values in groups.items()}


def soft(predictions: Sequence[str], labels: Sequence[dict[str, float]]) -> float:
    """Mean of label[prediction], texts compared as they are, in per cent: GQA's accuracy, VQA's soft score."""
    return 100 * _mean([label.get(p, 0.0) for p, label in zip(predictions, labels, strict=True)])


def exact(predictions: Sequence[str], answers: Sequence[str]) -> float:
    """Share of predictions that are the answer, in per cent: multiple choice, NLVR2's accuracy."""
    return 100 * _mean([p == a for p, a in zip(predictions, answers, strict=True)])


def consistency(predictions: Sequence[str], answers: Sequence[str], sentences: Sequence) -> float:
    """NLVR2's consistency (Suhr et al. 2019, arXiv 1811.00491): share of sentences right about all their images."""
    right = defaultdict(lambda: True)
    for p, a, sentence in zip(predictions, answers, sentences, strict=True):
        right[sentence] &= p == a
    return 100 * _mean(list(right.values()))


def _mean(values):
    return sum(values) / len(values) if values else float("nan")
