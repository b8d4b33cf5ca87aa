"""Metrics of questions and captions: fixtures of the official tools, and their corners."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from golden_cases import load

from vlmx.metrics import caption, ptb, vqa


@pytest.mark.golden("vqa_accuracy*.json")
def test_golden_vqa(golden):
    case = load(golden)
    for text in case.get("normalisation", ()):
        assert vqa.unpunctuated(text["raw"]) == text["after_punctuation"]
        assert vqa.normalised(text["raw"]) == text["normalised"]
    questions = case["questions"]
    for q in questions:
        assert 100 * vqa.vqa_accuracy(q["prediction"], q["answers"]) == pytest.approx(q["accuracy_percent"], abs=1e-9)
    if "overall" not in case:
        return
    scores = vqa.vqa([q["prediction"] for q in questions], questions)
    assert scores["accuracy"] == case["overall"]["overall"]
    for key, group in (("answers", "perAnswerType"), ("questions", "perQuestionType")):
        assert {k: v for k, v in scores.items() if k.startswith(key)} == {
            f"{key}: {k}": v for k, v in case["overall"][group].items()
        }


@pytest.mark.golden("captions*.json")
def test_golden_captions(golden):
    case = load(golden)
    assert [" ".join(ptb.words(p)) for p in case["predictions"]] == case["tokenized_predictions"]
    said = [[" ".join(ptb.words(r)) for r in each] for each in case["references"]]
    assert said == case["tokenized_references"]
    scores = caption.captions(case["predictions"], case["references"])
    assert ("METEOR" in scores) == ("METEOR" not in caption.lacking())
    expected = {"CIDEr": case["scores"]["CIDEr"], "ROUGE-L": case["scores"]["ROUGE_L"]}
    expected |= {"METEOR": case["scores"]["METEOR"]} if "METEOR" in scores else {}
    expected |= {f"BLEU-{n}": s for n, s in enumerate(case["scores"]["Bleu"], 1)}
    for name, value in expected.items():
        assert scores[name] == pytest.approx(100 * value, abs=1e-9), name


# What Stanford's tokenizer says of texts that the fixture has none of, punctuation left out.
TEXTS = {
    'He says, "Hi!" -- and isn\'t here...': "he says hi and is n't here",
    "The U.S. flag at 3:30 p.m. near St. Louis, Mo.": "the u.s. flag at 3:30 p.m. near st. louis mo.",
    "I'd've cannot gonna they're 'til rock 'n' roll": "i 'd 've can not gon na they 're 'til rock 'n' roll",
    "a man/woman (two of them) at 10:30am": "a man/woman -lrb- two of them -rrb- at 10:30 am",
    "$5.50 is 50% of it, isn't it, o'clock?": "$ 5.50 is 50 % of it is n't it o'clock",
    "the car's/truck's light, the dogs' bowl": "the car 's / truck 's light the dogs bowl",
    "the AT&T store, ham & eggs wow!!": "the at&t store ham & eggs wow !!",
    "a picture of the letter n.": "a picture of the letter n.",
    "no. 7 but no. of dogs": "no. 7 but no of dogs",
    "a 1,000 lbs. bull it.It is": "a 1,000 lbs bull it.it is",
    "": "",
}  # fmt: skip


# The same of 600 awkward captions: fractions, currencies, emoji, quotes, URLs, entities, abbreviations, other scripts.
AWKWARD = json.loads((Path(__file__).parent / "ptb_captions.json").read_text())


def test_words():
    assert {text: " ".join(ptb.words(text)) for text in TEXTS | AWKWARD} == TEXTS | AWKWARD


@pytest.mark.skipif(not shutil.which("java"), reason="Stanford's tokenizer needs Java")
def test_words_are_stanfords(tmp_path):
    """The tables above are the tool's own answer."""
    texts = TEXTS | AWKWARD
    (tmp_path / "texts").write_text("\n".join(texts))
    jar = caption.FOLDER / "tokenizer/stanford-corenlp-3.4.1.jar"
    command = ["java", "-cp", jar, "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    lines = subprocess.run([*command, tmp_path / "texts"], capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    left_out = ["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
    said = [" ".join(w for w in line.rstrip().split(" ") if w not in left_out) for line in lines]  # as the tool does
    assert said[: len(texts)] == list(texts.values())


def test_captions_of_which_no_reference_has_a_word():
    """The tool fails there; a run that has trained would end without its numbers."""
    scores = caption.captions(["a cat", ""], [["\U0001f600"], ["", "."]], java=False)
    assert scores["CIDEr"] == 0 and all(0 <= score <= 100 for score in scores.values())


def test_captions_without_java(monkeypatch):
    monkeypatch.setattr(caption.shutil, "which", lambda name: None)
    caption.lacking.cache_clear()
    try:
        scores = caption.captions(["a red cat", ""], [["a red cat", "the cat"], ["a dog"]])
        assert list(scores) == ["CIDEr", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L"]
        assert any("METEOR" in note and "java" in note for note in caption.notes())
    finally:
        caption.lacking.cache_clear()
    with pytest.raises(ValueError, match="1 predictions for the references of 2"):
        caption.captions(["a"], [["a"], ["b"]])


def test_metrics_whose_programs_fail_are_left_out(monkeypatch, tmp_path):
    """A java that ends at once: no metric, no waiting for it, neither the second time."""
    (tmp_path / "java").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(caption, "lacking", dict)
    monkeypatch.setattr("pycocoevalcap.spice.spice.get_stanford_models", lambda: None)
    caption._running.cache_clear()
    programs = []
    for _ in range(2):
        programs.append(caption._running())
        scores = caption.captions(["a cat"], [["a cat"]])
        assert "METEOR" not in scores and "SPICE" not in scores and "CIDEr" in scores
    assert programs[0] is not programs[1] and all(p.meteor_p.wait(10) == 1 for p in programs)


def test_choices_and_statements():
    assert vqa.soft(["red", "blue"], [{"red": 1.0}, {"red": 0.3}]) == 50
    assert vqa.exact(["a1", "a2 "], ["a1", "a2"]) == 50
    said, true = ["true", "false", "true"], ["true", "false", "false"]
    assert vqa.consistency(said, true, ["s", "s", "t"]) == 50
    assert vqa.vqa_accuracy("red", ["red"] * 3 + ["blue"] * 7) == pytest.approx((3 * 2 / 3 + 7) / 10)


# What the official code since March 2021 (GT-Vision-Lab/VQA) says, found by running it.
CASES_2021 = [
    ("none", ["none"] * 10, 100.0), ("none", ["0"] * 2 + ["none"] * 8, 100.0),
    ("dog", ["a dog"] * 7 + ["dog"] * 2 + ["cat"], 100.0), ("the dog", ["the dog"] * 10, 100.0),
    ("on left", ["on the left"] * 8 + ["left"] * 2, 100.0), ("Yes", ["yes"] * 10, 0.0),
    ("2", ["2"] * 4 + ["two"] * 6, 100.0), ("red", ["red"] * 2 + ["blue"] * 8, 60.0),
    ("a\ncat ", ["a cat"] * 10, 100.0),
]  # fmt: skip


def test_both_official_rules_of_vqa():
    for said, people, expected in CASES_2021:
        question = {"answers": people, "question_type": None, "answer_type": None}
        assert vqa.vqa([said], [question])["accuracy_2021"] == expected, (said, people)
    before = [100 * vqa.vqa_accuracy(said, people) for said, people, _ in CASES_2021]
    assert before == pytest.approx([0, 60, 60, 0, 0, 100, 100, 60, 0])
