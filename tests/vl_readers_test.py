"""Readers of the official files of vision-and-language tasks: what they make of good entries and of bad ones."""

import json
import pickle
import re
import subprocess
import sys
import unicodedata

import h5py
import numpy as np
import pytest
from golden_cases import load
from ml_collections import ConfigDict
from PIL import Image

from vlmx.data import image_text, published, submission, video_text, vl_features, vqav2
from vlmx.data.vl import Example
from vlmx.errors import UserError

TEN = ["net"] * 6 + ["netting", "the net", "mesh", "a net"]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def lines(path, rows):
    write(path, "".join(json.dumps(row) + "\n" for row in rows))


# ------------------------------------------------------------------------------------------------ official files


def write_vqa(root, bad=()):
    """Questions 1 to 4 about images 1 (train), 2 (restval) and 3 (test)."""
    rows = {"train2014": [(1, 1, "What is this?"), (2, 1, "Is it red?")], "val2014": [(3, 2, "Why?"), (4, 3, "Who?")]}
    for year, questions in rows.items():
        questions = [{"question_id": q, "image_id": i, "question": t} for q, i, t in questions]
        answers = [
            {
                "question_id": q["question_id"],
                "image_id": q["image_id"],
                "question_type": "what",
                "answer_type": "other",
                "multiple_choice_answer": "net",
                "answers": [{"answer": a, "answer_confidence": "yes", "answer_id": n} for n, a in enumerate(TEN, 1)],
            }
            for q in questions
        ]
        if year == "train2014" and "twice" in bad:
            questions.append(questions[0])
        if year == "train2014" and "unanswered" in bad:
            questions.append({"question_id": 9, "image_id": 1, "question": "?"})
        write(root / f"vqa/v2_OpenEnded_mscoco_{year}_questions.json", {"data_subtype": year, "questions": questions})
        write(root / f"vqa/v2_mscoco_{year}_annotations.json", {"annotations": answers})
    write_coco(root)


def write_coco(root):
    names = [("train2014", 1, "train"), ("val2014", 2, "restval"), ("val2014", 3, "test"), ("val2014", 4, "val")]
    images = [
        {
            "filename": f"COCO_{year}_{i:012d}.jpg", "filepath": year, "cocoid": i, "split": part,
            "sentences": [{"raw": f" {part} {n}. ", "tokens": [part], "sentid": n} for n in range(2)],
        }
        for year, i, part in names
    ]  # fmt: skip
    write(root / "COCO/dataset_coco.json", {"images": images, "dataset": "coco"})


def write_gqa(root):
    def entry(image, question, answer):
        semantic = [{"operation": "select", "dependencies": [], "argument": "net (1)"}]
        return {
            "imageId": image, "question": question, "answer": answer, "fullAnswer": "It is.", "isBalanced": True,
            "semantic": semantic, "types": {"structural": "query", "semantic": "rel", "detailed": "relS"},
            "annotations": {"question": {"2": "9"}, "answer": {}, "fullAnswer": {}},
            "groups": {"global": None, "local": "x"},
        }  # fmt: skip

    for part, id in (("train", "07"), ("val", "08"), ("testdev", "09")):
        write(root / f"GQA/{part}_balanced_questions.json", {id: entry(f"n{id}", f"What of {id}?", "pipe")})


def write_nlvr(root):
    for part in ("train", "dev", "test1"):
        rows = [
            {"identifier": f"{part}-5-{pair}-0", "sentence": "Two dogs.", "label": label}
            for pair, label in enumerate(("True", "False"))
        ]
        lines(root / f"nlvr/{part}.json", rows)


def write_value(root):
    def question(id, n, **more):
        answers = {f"a{i}": f" Answer {i}.. " for i in range(n)}
        return answers | {"qid": id, "q": " Why? ", "ts": "1.5-2.5", "vid_name": "v1", "show_name": "House"} | more

    for name, n in (("tvqa", 5), ("how2qa", 4)):
        lines(root / f"{name}/{name}_train{'_release' * (n == 4)}.jsonl", [question(1, n, answer_idx=2)])
        lines(root / f"{name}/{name}_val{'_release' * (n == 4)}.jsonl", [question(2, n, answer_idx=0)])
        lines(root / f"{name}/{name}_test_release.jsonl", [question(3, n)])
    for name in ("tvc", "yc2c"):
        for i, part in enumerate(("train", "val", "test")):
            said = [{"desc": f"{part} {n}", "desc_id": n} for n in range(2)]
            row = {"clip_id": i, "vid_name": "v1", "duration": 9.5, "ts": [5.1, 9.8], "descs": said}
            lines(root / f"{name}/{name}_{part}_release.jsonl", [row])
    said = [{"text": " Hello.", "start": 0, "end": 1}, {"text": "You! ", "start": 1, "end": 2}]
    for show in ("tv", "how2", "yc2"):
        lines(root / f"{show}_subtitles.jsonl", [{"vid_name": "v1", "sub": said}])


# ------------------------------------------------------------------------------------------------ good entries


def test_vqa_in_karpathys_split(tmp_path):
    write_vqa(tmp_path)
    task = image_text.load("vqa", tmp_path, least=1)
    assert [[e.id for e in part] for part in (task.train, task.val, task.test)] == [["1", "2", "3"], [], ["4"]]
    e = task.train[0]
    assert (e.images, e.text, e.targets) == (("COCO_train2014_000000000001",), "What is this?", (("net", 1.0),))
    assert e.about == {"answers": tuple(TEN), "question_type": "what", "answer_type": "other"}
    assert (task.prefix, task.length, task.target_length, task.loss, task.suffix) == ("vqa: ", 20, 10, "score", False)
    assert image_text.load("vqa", tmp_path).train[0].targets == (("net", 1.0),)  # so few questions are not VQAv2
    with pytest.raises(UserError, match=r"none of the 3 training questions has a target.*least=9.*least\": 1"):
        image_text.load("vqa", tmp_path, least=9)
    scores = task.score(["net"], task.test)
    assert scores["accuracy"] == scores["answers: other"] == scores["answer in list"] == 100
    assert submission.submission("vqa", task.test, ["net"]) == '[{"question_id": 4, "answer": "net"}]'
    assert pickle.loads(pickle.dumps(task.train))[2] == task.train[2]


def test_vqa_in_its_own_split(tmp_path):
    write_vqa(tmp_path)
    task = image_text.load("vqa", tmp_path, split="official")
    assert [[e.id for e in part] for part in (task.train, task.val, task.test)] == [["1", "2"], [], ["3", "4"]]


def test_vqa_soft_targets():
    assert vqav2.soft_label(["a dog", "dog", "Cat", "two"], {"dog", "cat", "2"}) == (
        ("dog", 0.6), ("cat", 0.3), ("2", 0.3),
    )  # fmt: skip


def test_vqa_of_vl_t5(tmp_path):
    row = {"question_id": 1, "img_id": "COCO_val2014_1", "sent": "Who?", "label": {"net": 1, "mesh": 0.3}}
    answers = {"answers": [{"answer": a, "answer_id": 1} for a in TEN], "is_topk_optimal": False}
    write(tmp_path / "karpathy_train.json", [row, row | {"question_id": 2, "label": {}}])
    write(tmp_path / "karpathy_val.json", [])
    write(tmp_path / "karpathy_test.json", [row | answers | {"question_id": 3}])
    task = image_text.load("vqa", tmp_path, min_score=0.5)
    assert [e.targets for e in task.train] == [(("net", 1.0),), ()]
    assert task.test[0].about["answers"] == tuple(TEN)
    assert task.score(["net"], task.test)["answer not in list"] == 100


def test_vqa_hidden_questions(tmp_path):
    question = {"question_id": 7, "image_id": 1, "question": "Who?"}
    write(tmp_path / "v2_OpenEnded_mscoco_test2015_questions.json", {"questions": [question]})
    hidden = vqav2.hidden(tmp_path)
    assert hidden[0].images == ("COCO_test2015_000000000001",)
    with pytest.raises(UserError, match="cannot be scored"):
        vqav2.score(["x"], hidden)


def test_gqa(tmp_path):
    write_gqa(tmp_path)
    task = image_text.load("gqa", tmp_path)
    assert [e.id for e in task.train] == ["07", "08"] and len(task.val) == 0
    assert task.test[0] == Example("09", ("n09",), "What of 09?", (("pipe", 1.0),), {"type": "query"})
    assert task.prefix == "gpa: "
    assert task.score(["pipe"], task.test) == {"accuracy": 100, "query": 100}
    assert submission.submission("gqa", task.test, ["x"]) == '[{"questionId": "09", "prediction": "x"}]'
    assert [e.id for e in image_text.load("gqa", tmp_path, train=("train",)).val] == ["08"]


def test_gqa_of_vl_t5(tmp_path):
    for part in ("train", "valid", "testdev"):
        write(tmp_path / f"{part}.json", [{"question_id": part, "img_id": "1", "sent": "?", "label": {"pipe": 1.0}}])
    task = image_text.load("gqa", tmp_path)
    assert task.test[0] == Example("testdev", ("1",), "?", (("pipe", 1.0),), None)


def test_nlvr2(tmp_path):
    write_nlvr(tmp_path)
    task = image_text.load("nlvr", tmp_path)
    e = task.test[1]
    assert e == Example("test1-5-1-0", ("test1-5-1-img0", "test1-5-1-img1"), "Two dogs.", (("false", 1.0),))
    assert task.score(["true", "true"], task.test) == {"accuracy": 50, "consistency": 0}
    assert submission.submission("nlvr", task.test, ["true", "false"]) == "test1-5-0-0,True\ntest1-5-1-0,False\n"
    assert pickle.loads(pickle.dumps(task.train))[1] == task.train[1]


def test_nlvr2_of_vl_t5(tmp_path):
    row = {"identifier": "dev-5-0-0", "img0": "a", "img1": "b", "sent": "Two.", "label": 1, "uid": "x"}
    for part in ("train", "valid", "test"):
        write(tmp_path / f"{part}.json", [row | {"identifier": f"{part}-5-0-0"}])
    assert image_text.load("nlvr", tmp_path).val[0] == Example("valid-5-0-0", ("a", "b"), "Two.", (("true", 1.0),))


def test_coco_captions(tmp_path):
    write_coco(tmp_path)
    task = image_text.load("caption", tmp_path, java=False)
    assert [e.targets[0][0] for e in task.train] == ["train 0.", "train 1.", "restval 0.", "restval 1."]
    assert task.test[0].targets == (("test 0.", 1.0), ("test 1.", 1.0)) and task.test[0].text == ""
    assert (task.loss, task.beams, task.length, task.target_length) == ("token", 5, 40, 40)
    assert task.score(["test 1"], task.test)["BLEU-2"] == pytest.approx(100)
    assert submission.submission("caption", task.test, ["x"]) == '[{"image_id": 3, "caption": "x"}]'


@pytest.mark.parametrize("name, n", [("tvqa", 5), ("how2qa", 4)])
def test_questions_about_videos(tmp_path, name, n):
    write_value(tmp_path)
    task = video_text.load(name, tmp_path)
    answers = " ".join(f"a{i}: Answer {i}." for i in range(n))
    text = f"[Subs] Hello. You! [Q] Why? [TS] (1.5-2.5) [Choices] {answers} "
    assert task.train[0] == Example("1", ("v1",), text, (("a2", 1.0),), {"show": "House"})
    assert [e.id for e in task.test] == ["2"] and len(task.val) == 0 and "val part is the test" in task.notes[0]
    assert (task.prefix, task.suffix, task.length, task.beams) == (f"{name}: ", True, 600, 5)
    assert task.score(["a1"], task.test) == {"accuracy": 0, "House": 0}
    hidden = video_text.hidden(name, tmp_path)
    assert hidden[0].targets == ()
    assert submission.submission(name, hidden, ["a3"]) == '{"3": 3}'
    assert submission.submission(name, hidden, ["no"]) == '{"3": 0}'
    assert pickle.loads(pickle.dumps(task.train))[0] == task.train[0]


@pytest.mark.parametrize("name, stamp", [("tvc", "[TS] ([5.1, 9.8]) "), ("yc2c", "")])
def test_descriptions_of_videos(tmp_path, name, stamp):
    write_value(tmp_path)
    task = video_text.load(name, tmp_path, java=False)
    assert [e.targets for e in task.train] == [(("train 0", 1.0),), (("train 1", 1.0),)]
    assert task.test[1].text == f"[Subs] Hello. You! {stamp}"
    scores = task.score(["test 0", "test 0"], task.test)
    assert scores["BLEU-1"] == pytest.approx(75) and "CIDEr, all references" in scores
    said = json.loads(submission.submission(name, task.test, ["x", "x"]))
    assert said == {"video_id": "v1", "clip_id": 2, "descs": [{"desc": "x"}]}


def test_a_video_without_subtitles(tmp_path):
    write_value(tmp_path)
    lines(tmp_path / "tv_subtitles.jsonl", [{"vid_name": "other", "sub": []}])
    assert video_text.load("tvc", tmp_path, java=False).train[0].text == "[Subs]  [TS] ([5.1, 9.8]) "


# ------------------------------------------------------------------------------------------------ bad ones


@pytest.mark.parametrize("name", image_text.READERS)
def test_missing_files_are_named(tmp_path, name):
    with pytest.raises(UserError, match=r"missing: .*json[\s\S]*looked for:\n  .*json"):
        image_text.load(name, tmp_path)


@pytest.mark.parametrize("name", video_text.READERS)
def test_missing_video_files_are_named(tmp_path, name):
    with pytest.raises(UserError, match=rf"missing: the train part of {name}[\s\S]*{name}_train_release.jsonl"):
        video_text.load(name, tmp_path)


@pytest.mark.parametrize("kind, said", [("twice", "with the id of another"), ("unanswered", "without an answer")])
def test_vqa_bad_entries(tmp_path, kind, said):
    write_vqa(tmp_path, bad=(kind,))
    with pytest.raises(UserError, match=r"train2014_questions.json, questions\[2\].*bad=skip"):
        image_text.load("vqa", tmp_path)
    task = image_text.load("vqa", tmp_path, bad="skip")
    assert len(task.train) == 3 and f"1 left out {said}" in task.notes[0] and "questions[2]" in task.notes[0]


def test_missing_images(tmp_path):
    write_nlvr(tmp_path)
    there = {f"{p}-5-{i}-img{j}" for p in ("train", "dev", "test1") for i in (0, 1) for j in (0, 1)} - {"dev-5-1-img1"}
    with pytest.raises(UserError, match=r"dev.json, line 2: there are no features of 'dev-5-1-img1'"):
        image_text.load("nlvr", tmp_path, images=there)
    task = image_text.load("nlvr", tmp_path, images=there, bad="skip")
    assert [len(p) for p in (task.train, task.val, task.test)] == [2, 1, 2]
    assert "1 left out without their image" in task.notes[0]


BAD_LINES = {
    b'{"identifier": "a"}\n': ("no 'sentence'; it has identifier", "not as expected"),
    b"[1]\n": ("a list, not an object", "not as expected"),
    b'{"identifier": \n': ("no valid json", "not json"),
    b'{"identifier": "dev-1-0-0", "sentence": "\xff"}\n': ("not UTF-8", "not UTF-8"),
    b'{"identifier": "dev-1-0-0", "sentence": "Two."}\n': ("has no answer", "without an answer"),
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_bad_lines(tmp_path, line):
    write_nlvr(tmp_path)
    path = tmp_path / "nlvr/dev.json"
    path.write_bytes(path.read_bytes() + line)
    message, note = BAD_LINES[line]
    with pytest.raises(UserError, match=f"dev.json, line 3.*{message}"):
        image_text.load("nlvr", tmp_path)
    task = image_text.load("nlvr", tmp_path, bad="skip")
    assert len(task.val) == 2 and f"1 left out {note}" in task.notes[0]


BAD_FILES = {
    b"{": "no valid json .* at column 2",
    b"\xff\xfe": "not UTF-8",
    b"[]": "a list, not an object",
    b'{"question": 1}': "no list 'questions'",
    b'{"questions": [{"question_id": 1}]}': r"questions\[0\]: no 'image_id' and no 'question'",
    b'{"questions": [{"question_id": 1, "image_id": "x", "question": ""}]}': "'image_id' is 'x'",
}


@pytest.mark.parametrize("content", BAD_FILES)
def test_files_of_another_kind(tmp_path, content):
    write_vqa(tmp_path)
    (tmp_path / "vqa/v2_OpenEnded_mscoco_train2014_questions.json").write_bytes(content)
    with pytest.raises(UserError, match=BAD_FILES[content]):
        image_text.load("vqa", tmp_path, bad="skip")


def change(path, text, other):
    """Replace a text everywhere in a file."""
    content = path.read_text()
    assert text in content
    path.write_text(content.replace(text, other))


def test_ids_that_are_texts_in_one_of_two_files(tmp_path):
    write_vqa(tmp_path)
    for year in ("train2014", "val2014"):
        path = tmp_path / f"vqa/v2_mscoco_{year}_annotations.json"
        path.write_text(re.sub(r'"question_id": (\d)', r'"question_id": "\1"', path.read_text()))
    task = image_text.load("vqa", tmp_path)
    assert [e.targets for e in task.train] == [(("net", 1.0),)] * 3
    assert json.loads(submission.submission("vqa", task.test, ["a"])) == [{"question_id": 4, "answer": "a"}]


def test_blank_answers_are_none(tmp_path):
    write_vqa(tmp_path), write_gqa(tmp_path)
    for answer in ("net", "netting", "the net", "mesh", "a net"):
        for year in ("train2014", "val2014"):
            change(tmp_path / f"vqa/v2_mscoco_{year}_annotations.json", f'"{answer}"', '" "')
    with pytest.raises(UserError, match="none of the 3 training questions has a target, .* and not blank"):
        image_text.load("vqa", tmp_path)
    path = tmp_path / "GQA/train_balanced_questions.json"
    path.write_text(re.sub('"answer": "[^"]*"', '"answer": " "', path.read_text()))
    with pytest.raises(UserError, match="train_balanced_questions.json, '07': '07' has no answer"):
        image_text.load("gqa", tmp_path)


@pytest.mark.parametrize("label", [2, "yes", 1.0, [1]])
def test_labels_that_are_neither_true_nor_false(tmp_path, label):
    write_nlvr(tmp_path)
    path = tmp_path / "nlvr/train.json"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    lines(path, [rows[0] | {"label": label}, *rows[1:]])
    message = f"line 1: 'label' is {label!r}. Expected \"True\" or \"False\""
    with pytest.raises(UserError, match=re.escape(message)):
        image_text.load("nlvr", tmp_path)
    assert len(image_text.load("nlvr", tmp_path, bad="skip").train) == len(rows) - 1


@pytest.mark.parametrize(
    "task, file, text, repeated, key",
    [
        ("vqa", "vqa/v2_mscoco_train2014_annotations.json", '"answer": "a', '"answer": "x", "answer": "a', "answer"),
        ("vqa", "vqa/v2_OpenEnded_mscoco_train2014_questions.json", '"image', '"image_id": 9, "image', "image_id"),
        ("caption", "COCO/dataset_coco.json", '"sentid": 0', '"sentid": 0, "raw": "x"', "raw"),
        ("gqa", "GQA/train_balanced_questions.json", '"answer":', '"answer": "x", "answer":', "answer"),
        ("gqa", "GQA/train_balanced_questions.json", '"structural":', '"structural": "x", "structural":', "structural"),
        ("nlvr", "nlvr/train.json", '"label":', '"label": "False", "label":', "label"),
        ("tvc", "tvc/tvc_train_release.jsonl", '"desc":', '"desc": "x", "desc":', "desc"),
        ("tvqa", "tv_subtitles.jsonl", '"text":', '"text": "x", "text":', "text"),
    ],
)
def test_an_entry_with_a_key_twice(tmp_path, task, file, text, repeated, key):
    """Which of the two values counts is not known: the entry is refused, or left out and counted."""
    for make in (write_vqa, write_gqa, write_nlvr, write_value):
        make(tmp_path)
    content = (tmp_path / file).read_text()
    assert text in content
    (tmp_path / file).write_text(content.replace(text, repeated, 1))
    load = video_text.load if task in video_text.READERS else image_text.load
    with pytest.raises(UserError, match=f"{file}, .*: the key {key!r} stands twice in one object"):
        load(task, tmp_path)
    try:
        assert "left out not as expected" in load(task, tmp_path, bad="skip").notes[0]
    except UserError as e:  # where it was the only one
        assert "can be used. The first: " in str(e)


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"1": {"imageId": "n"}}', "'1': no 'imageId' or no 'question'"),
        ('{"1": {"imageId": "n", "question": "?", "answer": "a"},'
         ' "1": {"imageId": "n", "question": "?", "answer": "b"}}', "the id '1' was there before"),
        ('[{"question_id": "1"}]', "entry 0: no 'img_id' and no 'sent'"),
        ('{"1": {"x": "y"}}', "no entry with 'imageId' or 'question_id' in it"),
        ("{}", "no entry with 'imageId' or 'question_id' in it"),
    ],
)  # fmt: skip
def test_bad_gqa(tmp_path, content, message):
    write_gqa(tmp_path)
    write(tmp_path / "GQA/train_balanced_questions.json", content)
    with pytest.raises(UserError, match=message):
        image_text.load("gqa", tmp_path)


def changed(content):
    """Copies of json content with one key gone, or one value of another kind."""
    for k in content if isinstance(content, dict) else range(min(len(content), 1)):
        if isinstance(content, dict):
            yield {key: v for key, v in content.items() if key != k}
        for value in (None, 3, "x", [], {}):
            yield content | {k: value} if isinstance(content, dict) else [value, *content[1:]]
        if isinstance(content[k], dict | list):
            for inner in changed(content[k]):
                yield content | {k: inner} if isinstance(content, dict) else [inner, *content[1:]]


def used(name, root, bad):
    """All of a task, as a run uses it; each text a text."""
    if name in image_text.READERS:
        options = {"vqa": {"least": 1}, "caption": {"java": False}}.get(name, {})
        task = image_text.load(name, root, bad=bad, **options)
    else:
        task = video_text.load(name, root, bad=bad, java=False)
    for e in (e for part in (task.train, task.val, task.test) for e in part):
        assert all(isinstance(t, str) for t in (e.id, e.text, *e.images, *(answer for answer, _ in e.targets)))
    if task.test:
        task.score([e.targets[0][0] if e.targets else "" for e in task.test], task.test)


@pytest.mark.parametrize("name", [*image_text.READERS, *video_text.READERS])
def test_whatever_is_wrong_in_a_file_is_told_in_words(tmp_path, name):
    """Each value of each file in turn is missing or of another kind: the entry is used, counted, or an error for
    people; nothing else comes out of it, and no text that is none."""
    {"vqa": write_vqa, "caption": write_coco, "gqa": write_gqa, "nlvr": write_nlvr}.get(name, write_value)(tmp_path)
    own = {"tvqa": "tv_", "tvc": "tv_", "how2qa": "how2_", "yc2c": "yc2_"}.get(name, "")
    told = 0
    for path in sorted(p for p in tmp_path.rglob("*.json*") if name in image_text.READERS or p.parent.name == name
                       or p.name.startswith(own)):  # fmt: skip
        text = path.read_text()
        by_line = name == "nlvr" or path.suffix == ".jsonl"
        first, *rest = text.splitlines() if by_line else [text]
        for i, content in enumerate(changed(json.loads(first))):
            path.write_text("\n".join([json.dumps(content), *rest]))
            try:
                used(name, tmp_path, ("stop", "skip")[i % 2])
            except UserError:
                told += 1
        path.write_text(text)
    assert told > 20
    used(name, tmp_path, "stop")


def test_bad_entries_about_videos(tmp_path):
    write_value(tmp_path)
    path = tmp_path / "tvqa/tvqa_val.jsonl"
    good = json.loads(path.read_text())
    bad = [good, good | {"qid": 5, "answer_idx": 5}, good | {"qid": 6, "vid_name": "v2"}]
    lines(path, [good, *bad, good | {"qid": 7}])
    with path.open("ab") as stream:
        stream.write(b'{"qid": "\xff"}\n')
    said = [{"vid_name": "v1", "sub": [{"text": "Hi."}]}, {"vid_name": "v0", "sub": [{}]}]
    lines(tmp_path / "tv_subtitles.jsonl", said)
    with pytest.raises(UserError, match="subtitles.jsonl, line 2: 0: no 'text'"):
        video_text.load("tvqa", tmp_path)
    task = video_text.load("tvqa", tmp_path, images={"v1"}, bad="skip")
    assert [e.id for e in task.test] == ["2", "7"]
    said = ("1 left out with the id of another", "2 left out not as expected", "1 left out without their image",
            "1 left out not UTF-8")  # fmt: skip
    assert all(any(note.startswith(words) for note in task.notes) for words in said)


def test_names_and_options():
    with pytest.raises(UserError, match="Did you mean 'nlvr'"):
        image_text.load("nlvr2", ".")
    with pytest.raises(UserError, match="Did you mean 'bad'"):
        image_text.load("nlvr", ".", bed="skip")
    with pytest.raises(UserError, match="part of gqa to train on 3"):
        image_text.load("gqa", ".", train=3)
    with pytest.raises(UserError, match="unknown value of bad 'leave'"):
        image_text.load("nlvr", ".", bad="leave")
    with pytest.raises(UserError, match="video-text task"):
        video_text.load("tvr", ".")
    with pytest.raises(UserError, match="leaderboard"):
        submission.submission("tvr", [], [])


def test_one_bad_entry_is_left_out_in_every_reader(tmp_path):
    """With bad="skip" an entry of each json file that cannot be used is counted, and named without it."""

    def spoil(path, change):
        content = json.loads(path.read_text())
        change(content)
        write(path, content)

    write_vqa(tmp_path)
    write_gqa(tmp_path)
    bad = {"question_id": 8, "image_id": "x", "question": "?"}
    spoil(tmp_path / "vqa/v2_OpenEnded_mscoco_train2014_questions.json", lambda c: c["questions"].insert(0, bad))
    spoil(tmp_path / "vqa/v2_mscoco_val2014_annotations.json", lambda c: c["annotations"].append({"question_id": []}))
    spoil(tmp_path / "GQA/testdev_balanced_questions.json", lambda c: c.update({"9": {"imageId": 3, "question": "?"}}))
    odd = {"filename": "x.jpg", "split": "tset", "sentences": []}
    spoil(tmp_path / "COCO/dataset_coco.json", lambda c: c["images"].append(odd))
    places = {"vqa": r"annotations\[2\]: no 'answers'", "gqa": "'9': no 'imageId'", "caption": r"images\[4\].*'tset'"}
    for name, place in places.items():
        more = {"java": False} if name == "caption" else {}
        with pytest.raises(UserError, match=place):
            image_text.load(name, tmp_path, **more)
        task = image_text.load(name, tmp_path, bad="skip", **more)
        assert len(task.train) and len(task.test)
        assert task.notes[0].startswith(("1 left out not as expected", "3 left out not as expected"))
    row = {"question_id": 1, "img_id": "i", "sent": "Who?", "label": {"net": 1}, "answers": ["net"]}
    for part in ("train", "val", "test"):
        rows = [row | {"question_id": part}, row | {"question_id": f"{part}2", "label": {"net": 1e400}}]
        write(tmp_path / f"vl_t5/karpathy_{part}.json", rows)
    assert len(image_text.load("vqa", tmp_path / "vl_t5", bad="skip").train) == 1


def test_ids_that_stand_twice_are_named_with_both_places(tmp_path):
    write_nlvr(tmp_path)
    path = tmp_path / "nlvr/dev.json"
    path.write_text(path.read_text() + path.read_text().splitlines()[0])
    with pytest.raises(UserError, match=r"dev.json, line 3: the id 'dev-5-0-0' was there before: .*dev.json, line 1"):
        image_text.load("nlvr", tmp_path)
    write_vqa(tmp_path)
    path = tmp_path / "vqa/v2_OpenEnded_mscoco_val2014_questions.json"
    content = json.loads(path.read_text())
    content["questions"][1] |= {"question_id": "3"}  # 3 and "3" would be one in the submission
    write(path, content)
    with pytest.raises(UserError, match=r"questions\[1\]: the id '3' was there before: .*questions\[0\]"):
        image_text.load("vqa", tmp_path, split="official")
    path = tmp_path / "vqa/v2_mscoco_val2014_annotations.json"
    content = json.loads(path.read_text())
    content["annotations"] *= 2
    write(path, content)
    with pytest.raises(UserError, match=r"annotations\[2\]: the id 3 was there before: .*annotations\[0\]"):
        image_text.load("vqa", tmp_path, split="official")


def test_subtitles_that_stand_twice(tmp_path):
    write_value(tmp_path)
    path = tmp_path / "tv_subtitles.jsonl"
    path.write_text(path.read_text() * 2)
    with pytest.raises(UserError, match="line 2: the id 'v1' was there before: .*line 1"):
        video_text.load("tvqa", tmp_path)
    task = video_text.load("tvqa", tmp_path, bad="skip")
    assert task.train[0].text.startswith("[Subs] Hello. You! ") and task.notes[0].startswith("1 left out")


def test_targets_of_data_of_ones_own(tmp_path):
    write_vqa(tmp_path)
    path = tmp_path / "vqa/v2_mscoco_train2014_annotations.json"
    content = json.loads(path.read_text())
    content["annotations"][0] |= {"multiple_choice_answer": "mesh", "answers": [{"answer": "mesh"}] * 3}
    write(path, content)
    with pytest.raises(UserError, match="none of the 2 training questions has a target.*least=9"):
        image_text.load("vqa", tmp_path, split="official", least=9)
    task = image_text.load("vqa", tmp_path, split="official", least=2)
    assert [e.targets for e in task.train] == [(), (("net", 1.0),)]
    assert any(note.startswith("1 of 2 training questions have no target") for note in task.notes)
    task = image_text.load("vqa", tmp_path, split="official")
    assert task.train[0].targets == (("mesh", 0.9),) and not task.notes
    for options in ({"least": 0}, {"least": "9"}, {"min_score": 2}):
        with pytest.raises(UserError, match="vqa: (least|min_score) is"):
            image_text.load("vqa", tmp_path, **options)


def test_few_answers_a_question_are_noted(tmp_path):
    write_vqa(tmp_path)
    path = tmp_path / "vqa/v2_mscoco_val2014_annotations.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["answers"] = content["annotations"][0]["answers"][:1]
    write(path, content)
    task = image_text.load("vqa", tmp_path, split="official")
    assert any(note.startswith("1 test questions have fewer than 4 answers") for note in task.notes)


def test_ids_that_are_texts_are_written_as_texts():
    def written(task, *ids, answer="a2", **about):
        return submission.submission(task, [Example(i, ("v",), "", (), about) for i in ids], [answer] * len(ids))

    assert json.loads(written("vqa", "7", "q17", "007", "-3", "9" * 30)) == [
        {"question_id": i, "answer": "a2"} for i in (7, "q17", "007", -3, "9" * 30)
    ]
    numbered = json.loads(written("caption", "COCO_val2014_000000000042", "000000000007"))
    assert [row["image_id"] for row in numbered] == [42, 7]
    for names in (("cat7", "dog7"), ("COCO_val2014_000000000042", "mine"), ("7", "007"), ("x",)):
        assert [row["image_id"] for row in json.loads(written("caption", *names))] == list(names)
    assert written("nlvr", 'a,"b"-0-0', answer="true") == '"a,""b""-0-0",True\n'
    assert json.loads(written("gqa", "x-1"))[0]["questionId"] == "x-1"
    for name in ("tvqa", "how2qa"):
        assert json.loads(written(name, "q,1")) == {"q,1": 2}
    for name in ("tvc", "yc2c"):
        assert json.loads(written(name, "c/0", clip="c"))["clip_id"] == "c"


def test_a_video_test_that_is_partly_answered(tmp_path):
    write_value(tmp_path)
    path = tmp_path / "tvqa/tvqa_test_release.jsonl"
    row = json.loads(path.read_text())
    lines(path, [row | {"answer_idx": 1}, row | {"qid": 4}])
    with pytest.raises(UserError, match="line 2: 4 has no answer"):
        video_text.load("tvqa", tmp_path)
    assert [e.id for e in video_text.load("tvqa", tmp_path, bad="skip").test] == ["3"]


UNPARSED = {
    "[" * 100_000: "nested too deeply", '{"questions": ' + "9" * 5000 + "}": "too many digits", "": "empty",
}  # fmt: skip


@pytest.mark.parametrize("content, message", UNPARSED.items(), ids=UNPARSED.values())
def test_json_that_cannot_be_parsed(tmp_path, content, message):
    write_vqa(tmp_path)
    write(tmp_path / "vqa/v2_OpenEnded_mscoco_train2014_questions.json", content)
    with pytest.raises(UserError, match=f"train2014_questions.json.*{message}"):
        image_text.load("vqa", tmp_path)


def test_half_characters_and_byte_order_marks(tmp_path):
    """A text that no file could be written with is found when it is read; what Windows puts in front is no text."""
    write_nlvr(tmp_path)
    path = tmp_path / "nlvr/train.json"
    text = path.read_text()
    path.write_text(text.replace("Two dogs.", "Two \\ud83d dogs.", 1))
    with pytest.raises(UserError, match="train.json, line 1.*half of a surrogate pair"):
        image_text.load("nlvr", tmp_path)
    assert len(image_text.load("nlvr", tmp_path, bad="skip").train) == 1
    path.write_text("\ufeff" + text.replace("Two dogs.", "Two \\ud83d\\ude00 dogs.", 1))
    assert image_text.load("nlvr", tmp_path).train[0].text == "Two \U0001f600 dogs."


# ------------------------------------------------------------------------------------------------ features


def test_hdf5_features(tmp_path):
    features = np.arange(12, dtype=np.float16).reshape(4, 3)
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file.create_dataset("a/features", data=features)
        file["flat"], file["wrong"] = features, np.arange(3)
    (tmp_path / "each").mkdir()
    with h5py.File(tmp_path / "each/b.h5", "w") as file:
        file.create_dataset("b/features", data=features.reshape(2, 2, 3))
    source = vl_features.where(tmp_path / "each", tmp_path / "all.h5")
    assert "a" in source and "b" in source and "c" not in source
    source = pickle.loads(pickle.dumps(source))
    for name in ("a", "b", "flat"):
        assert source[name].dtype == np.float32
        np.testing.assert_array_equal(source[name], features)
    with pytest.raises(UserError, match="'wrong': an array int"):
        source["wrong"]


def test_video_features(tmp_path):
    frames = np.random.default_rng(0).normal(size=(70, 3)).astype(np.float32)
    np.savez(tmp_path / "long.npz", features=frames)
    np.save(tmp_path / "short.npy", frames[:5])
    source = vl_features.where(tmp_path, rows=64)
    np.testing.assert_array_equal(source["short"], np.concatenate([frames[:5], np.zeros((59, 3))]))
    assert source["long"].shape == (64, 3)
    np.testing.assert_array_equal(source["long"][1], frames[1:3].max(0))


def test_bad_features(tmp_path):
    with pytest.raises(UserError, match="no features at"):
        vl_features.where(tmp_path / "none.h5")
    with pytest.raises(UserError, match="holds no features"):
        vl_features.where(tmp_path)
    (tmp_path / "x.h5").write_bytes(b"text")
    with pytest.raises(UserError, match="no whole HDF5 file"):
        vl_features.where(tmp_path / "x.h5")
    np.save(tmp_path / "y.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"y.npy cannot be read[\s\S]*Expected one of"):
        vl_features.where(tmp_path)["y"]


def write_features(path, content, **attributes):
    """One group for each image: {image: {key: array}}."""
    with h5py.File(path, "w") as file:
        file.attrs.update(attributes)
        for name, arrays in content.items():
            for key, array in arrays.items():
                file[f"{name}/{key}"] = array
    return vl_features.where(path)


def rows(n, width=3):
    return np.random.default_rng(n).normal(size=(n, width)).astype(np.float32)


BOXES = np.array([[0, 0, 320, 120], [64, 120, 640, 240]], np.float32)  # of an image of 640 x 240 pixels
SHARES = [[0, 0.5, 0, 0.5], [0.1, 1, 0.5, 1]]  # x1, x2, y1, y2


@pytest.mark.parametrize(
    "boxes",
    [
        {"boxes": BOXES, "img_w": 640, "img_h": 240},
        {"boxes": BOXES.astype(int), "img_w": np.array([640]), "img_h": np.array([240.0]), "obj_id": np.array([3, 4])},
        {"boxes": BOXES / [640, 240, 640, 240]},
        {"boxes": BOXES, "normalized_boxes": BOXES / [640, 240, 640, 240]},
        {"boxes": BOXES + [-3, 0, 0, 2], "img_w": 640, "img_h": 240},  # a little beyond the image
    ],
)
def test_boxes_of_regions(tmp_path, boxes):
    source = write_features(tmp_path / "f.h5", {"a": {"features": rows(2)} | boxes, "b": {"features": rows(1),
                            "boxes": BOXES[:1], "img_w": 640, "img_h": 240}})  # fmt: skip
    regions = vl_features.align(source, ["a", "b"], 4)
    features, places, real = regions.regions("a")
    np.testing.assert_array_equal(features, rows(2))
    np.testing.assert_allclose(places, SHARES, atol=0.01)
    features, places, real = regions.regions("b")
    assert real.tolist() == [True, False] and features.shape == (2, 3) and not features[1].any() and not places[1].any()
    assert vl_features.align(source, ["a", "b"], 1)["a"].shape == (1, 3)  # the first ones
    np.savez(tmp_path / "a.npz", features=rows(2), **boxes)
    (tmp_path / "f.h5").unlink()
    np.testing.assert_allclose(vl_features.where(tmp_path).read("a").boxes, SHARES, atol=0.01)


BAD_BOXES = {
    "which need the image's 'img_w' and 'img_h'": {"boxes": BOXES},
    r"'boxes' is float32 \[1, 4\]. Expected numbers \(2, 4\)": {"boxes": BOXES[:1]},
    "row 1 of 'boxes' is no box": {"boxes": BOXES[:, (0, 1, 2, 3)] * [1, 1, 1, 2], "img_w": 640, "img_h": 240},
    "row 0 of 'boxes' is no box": {"boxes": BOXES[:, (2, 3, 0, 1)], "img_w": 640, "img_h": 240},
    "'img_w' is ": {"boxes": BOXES, "img_w": 0, "img_h": 240},
    "is no box": {"boxes": BOXES * np.nan},
}


@pytest.mark.parametrize("message", BAD_BOXES)
def test_boxes_that_cannot_be_used(tmp_path, message):
    source = write_features(tmp_path / "f.h5", {"a": {"features": rows(2)} | BAD_BOXES[message]})
    with pytest.raises(UserError, match=rf"f.h5, 'a'.*{message}"):
        source.read("a")


def test_rows_that_are_no_grid_are_not_pooled_as_one(tmp_path):
    content = {f"r{n}": {"features": rows(n)} for n in (4, 9, 5, 100, 49)}
    content["g"] = {"features": rows(100).reshape(10, 10, 3)}
    source = write_features(tmp_path / "f.h5", content)
    regions = vl_features.align(source, ["r4", "r9", "r5"])  # 4 and 9 alone could be grids
    assert regions.regions("r4")[2].sum() == 4 and regions["r4"].shape == (9, 3)
    np.testing.assert_array_equal(regions["r5"][:5], rows(5))
    with pytest.raises(UserError, match="100 rows without boxes: a grid of 10 x 10, or regions"):
        vl_features.align(source, ["r100"], 36)
    assert vl_features.align(source, ["r100"], 0)["r100"].shape == (100, 3)  # as they are
    for name in ("r49", "g"):
        assert isinstance(vl_features.align(source, [name], 36), vl_features.Grids)
    boxes = {"boxes": np.tile([0.0, 0.0, 0.5, 0.5], (36, 1))}
    source = write_features(tmp_path / "b.h5", {"a": {"features": rows(36)} | boxes})
    assert isinstance(vl_features.align(source, ["a"], 4), vl_features.Regions)
    source = write_features(tmp_path / "e.h5", {"a": {"features": rows(100)}}, what="grid")  # as vlmx.extract says
    assert isinstance(vl_features.align(source, ["a"], 36), vl_features.Grids)
    with pytest.raises(UserError, match="visual_tokens: a grid of 100 cells is not pooled to 30"):
        vl_features.align(source, ["a"], 30)


def test_images_that_differ_are_named(tmp_path):
    boxes = np.tile([0.0, 0.0, 0.5, 0.5], (5, 1))
    content = {"a": {"features": rows(5)}, "b": {"features": rows(5, 4)}, "c": {"features": rows(5), "boxes": boxes}}
    source = write_features(tmp_path / "f.h5", content)
    with pytest.raises(UserError, match="f.h5, 'b': features of width 4; those of the other images: 3"):
        vl_features.align(source, ["a", "b"])
    with pytest.raises(UserError, match="f.h5, 'c': features with boxes; the other images have none"):
        vl_features.align(source, ["a", "c"])
    source = write_features(tmp_path / "g.h5", {"a": {"features": rows(4)}, "b": {"features": rows(9)}})
    grids = vl_features.align(source, ["a"])
    with pytest.raises(UserError, match="g.h5, 'b': features of 9 rows of 3; those of the other images: 4 rows of 3"):
        grids["b"]


def test_feature_files_that_cannot_be_used(tmp_path):
    bad = rows(4)
    bad[2, 1] = np.inf
    content = {"a": {"features": bad}, "b": {"x": rows(2)}, "c": {"features": rows(2)}}
    write_features(tmp_path / "f.h5", content)
    with h5py.File(tmp_path / "f.h5", "a") as file:
        file["link/features"] = h5py.ExternalLink("elsewhere.h5", "x")
    source = vl_features.where(tmp_path / "f.h5")
    for name, message in {
        "a": "f.h5, 'a': features that are not finite, the first in row 2",
        "b": r"f.h5, 'b' has 'x', no array 'features'",
        "d": r"f.h5: no features of 'd'; it has those of 'a', 'b', 'c', 'link'",
        "link": "f.h5, 'link' has 'features', but that is a link to nothing or a group",
    }.items():
        with pytest.raises(UserError, match=message):
            source[name]
    assert "." not in source and "\0" not in source and "" not in source
    writing = "import h5py, sys; f = h5py.File(sys.argv[1], 'w'); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", writing, tmp_path / "open.h5"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match="open.h5: another program has this file open for writing"):
            vl_features.where(tmp_path / "open.h5")
        other.stdin.close()
    folder = tmp_path / "each"
    folder.mkdir()
    np.savez(folder / "a.npz", x=rows(2), bbox=BOXES)
    np.savez(folder / "b.npz", rows(2))
    (folder / "c.npz").write_bytes((folder / "a.npz").read_bytes()[:-30])
    np.save(folder / "d.npy", rows(2) * np.nan)
    (folder / "f.npy").write_text("no array")
    np.savez(folder / "g.npz", features=np.array([{}]))
    np.save(folder / "h.npy", np.array([{}]))
    for name, message in {
        "a": "a.npz has 'x', 'bbox', no array 'features'", "b": "b.npz has 'arr_0', no array",
        "c": "c.npz cannot be read", "d": "d.npy: features that are not finite", "e": "no features of 'e'",
        "f": "f.npy cannot be read: it is no .npy", "g": "g.npz cannot be read: it holds Python objects",
        "h": "h.npy cannot be read: it holds Python objects",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=message):
            vl_features.where(folder)[name]
    np.save(folder / "a.npy", rows(2))
    with pytest.raises(UserError, match="features of 'a' twice: a.npz, a.npy"):
        vl_features.where(folder)


def test_names_are_the_same_with_composed_and_decomposed_accents(tmp_path):
    """As Linux and macOS write them: features in one file, in a folder, and pictures."""
    names = [unicodedata.normalize(form, "caf\u00e9 1") for form in ("NFC", "NFD")]
    for name, other in (names, names[::-1]):
        folder = tmp_path / str(len(name))
        (folder / "images").mkdir(parents=True)
        np.save(folder / f"{name}.npy", rows(2))
        Image.new("RGB", (8, 8), "red").save(folder / f"images/{name}.png")
        one = write_features(folder / "images/f.h5", {name: {"features": rows(2)}})
        for source in (one, vl_features.where(folder)):
            assert other in source and source.outline(other).rows == 2 and source.place(other)
            np.testing.assert_array_equal(source[other], rows(2))
        pictures = published.Pictures(folder / "images", False)
        assert other in pictures and pictures[other].shape == (8, 8, 3)
        shown = published.shown("vqa", (other,), ConfigDict({"root": str(folder)}))
        assert [picture.size for picture in shown] == [(8, 8)]


def test_bad_features_are_left_out(tmp_path):
    write_nlvr(tmp_path)
    names = [f"{p}-5-{i}-img{j}" for p in ("train", "dev", "test1") for i in (0, 1) for j in (0, 1)]
    content = {name: {"features": rows(4)} for name in names}
    content["train-5-1-img0"] = {"features": rows(4) * np.nan}
    content["dev-5-0-img1"] = {"features": rows(4, 5)}
    content["test1-5-0-img1"] = {"x": rows(4)}
    source = write_features(tmp_path / "f.h5", content)
    task = image_text.load("nlvr", tmp_path, images=source, bad="skip")
    assert [len(part) for part in (task.train, task.val, task.test)] == [1, 1, 1]
    assert task.notes[0].startswith("3 left out without features that can be used, the first: ")


def test_pictures_that_cannot_be_encoded_are_left_out(tmp_path):
    write_nlvr(tmp_path)
    (tmp_path / "images").mkdir()
    for name in [f"{p}-5-{i}-img{j}" for p in ("train", "dev", "test1") for i in (0, 1) for j in (0, 1)]:
        Image.new("RGB", (8, 8)).save(tmp_path / f"images/{name}.png")
    (tmp_path / "images/train-5-0-img0.png").write_bytes(b"no picture")
    (tmp_path / "images/dev-5-1-img1.png").unlink()
    task = published.load("nlvr", ConfigDict({"root": str(tmp_path), "bad": "skip"}))
    assert [len(part) for part in (task.train, task.val, task.test)] == [1, 1, 2]
    assert len(task.notes) == 2


# ------------------------------------------------------------------------------------------ the reference's scores


@pytest.mark.golden("vl/units")
def test_golden_scores(golden):
    case, tensors = load(golden)
    unit = case["units"]["vqa_score"]
    ids = list(unit["predictions"])
    said = [unit["predictions"][i] for i in ids]
    examples = []
    for i in ids:
        q, datum = unit["ground_truth"][i], unit["data"][i]
        about = {k: q[k] for k in ("question_type", "answer_type")} | {"in_list": datum["is_topk_optimal"]}
        about["answers"] = [a["answer"] for a in q["answers"]]
        examples.append(Example(i, ("x",), "", tuple(datum["label"].items()), about))
    scores = vqav2.score(said, examples)
    assert scores["accuracy"] == unit["raw_all"]["overall"]
    assert {k: scores[f"answers: {k}"] for k in unit["raw_all"]["perAnswerType"]} == unit["raw_all"]["perAnswerType"]
    assert scores["answer in list"] == unit["raw_topk_optimal"]["overall"]
    assert scores["answer not in list"] == unit["raw_not_topk_optimal"]["overall"]
    assert scores["soft"] == pytest.approx(100 * unit["topk_score"])

    unit = case["units"]["gqa_score"]
    examples = [Example(i, (), "", tuple(label.items())) for i, label in unit["data"].items()]
    said = [unit["predictions"][e.id] for e in examples]
    assert image_text.score_gqa(said, examples)["accuracy"] == pytest.approx(100 * unit["score"])

    unit, word = case["units"]["nlvr_score"], ["false", "true"]
    examples = [Example(d["identifier"], (), "", ((word[d["label"]], 1.0),)) for d in unit["data"]]
    said = [word[unit["predictions"][d["uid"]]] for d in unit["data"]]
    scores = image_text.score_nlvr2(said, examples)
    assert scores == pytest.approx({k: 100 * v for k, v in unit["scores"].items()})

    unit = case["units"]["video_qa_score"]
    examples = [Example("", (), "", ((d["answer"], 1.0),), {"show": d["type"]}) for d in unit["data"]]
    scores = video_text.score_choices([p["answer"] for p in unit["predictions"]], examples)
    wanted = {"accuracy" if k == "all_type_accuracy" else k: 100 * v for k, v in unit["scores"].items()}
    assert scores == pytest.approx(wanted)

    for name, want in ((n, want) for n, want in tensors.items() if re.fullmatch(r"video_resize/\w+_out", n)):
        frames = tensors[name.removesuffix("_out")]
        np.testing.assert_array_equal(vl_features.resampled(frames, len(want)), want)
