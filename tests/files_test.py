"""Reading json from a person's disk: the content, or one sentence with the file."""

import csv
import os

import pytest
from PIL import Image

from vlmx import files, tables
from vlmx.data import own, scene_files
from vlmx.errors import UserError


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b'{"a": 1', "no valid json"),
        (b'{"a": 1}\n{"b": 2}', "no valid json (Extra data at line 2, column 1)"),
        (b"\xff\xfe{\x00", "not UTF-8 text"),
        (b"\x89PNG\r\n", "not UTF-8 text"),
        (b"[]", "a list, not an object"),
        (b"3.5", "a number, not an object"),
        (b"null", "null, not an object"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "too many digits"),
    ],
)
def test_damaged_json_is_refused_in_one_sentence_with_the_file(tmp_path, content, problem):
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="results.json") as error:
        files.read_json(path, "Run the command again.")
    assert problem in str(error.value) and str(error.value).endswith(". Run the command again.")
    assert "\n" not in str(error.value)


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, problem in [
        (tmp_path / "missing", "no such file"),
        (tmp_path, "a folder"),
        (tmp_path / "pipe", "a pipe or device"),
        ("/dev/zero", "a pipe or device"),
        (tmp_path / ("x" * 300), "cannot be read"),
        ("a\0b", "no "),
    ]:
        with pytest.raises(UserError, match=problem):
            files.read_json(path)


def test_a_file_above_the_limit_is_not_read(tmp_path):
    with open(tmp_path / "large.json", "wb") as f:
        f.truncate(2**40)  # a hole, which takes no room on the disk
    with pytest.raises(UserError, match="1,099,511,627,776 bytes"):
        files.read_json(tmp_path / "large.json")


def test_whole_json_is_read(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b'\xef\xbb\xbf{"name": "caf\xc3\xa9"}')
    assert files.read_json(path) == {"name": "café"}
    path.write_text("[1]")
    assert files.read_json(path, kind=list) == [1] and files.read_json(path, kind=(list, dict)) == [1]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "=cmd|' /C calc'!A0"])
def test_no_text_of_a_table_is_a_formula(text):
    assert files.csv_cell(text) == "'" + text and files.plain_cell("'" + text) == text


@pytest.mark.parametrize("value", [-1, -1.5, 0, 2.5, "coop", "a=b", "", "'quoted'", None])
def test_numbers_and_other_texts_of_a_table_stay_what_they_are(value):
    assert files.csv_cell(value) == value and (not isinstance(value, str) or files.plain_cell(value) == value)


def test_results_of_runs_hold_no_formula():
    cell = {"benchmark": "=HYPERLINK(1)", "backbone": "@x", "protocol": "few_shot", "shots": -1, "method": "+a"}
    metrics = {"-metric": -1.5}
    cell |= {"seeds": [{"seed": 1, "metrics": metrics}], "trained_params": 3, "seconds": 1.0}
    _, row = csv.reader(tables.table_csv([cell]).splitlines())
    assert row == ["'=HYPERLINK(1)", "'@x", "few_shot", "-1", "'+a", "1", "'-metric", "-1.5", "3", "1.0"]


def test_names_of_classes_and_images_in_splits_are_no_formulas_and_are_read_back(tmp_path):
    for name in ("=1+1", "-x"):
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.new("RGB", (8, 8), (50 * i, 9, 9)).save(tmp_path / name / f"{i}.png")
    made = own.folder({"name": "folder", "root": str(tmp_path)}, tmp_path / "work")
    rows = list(csv.reader((tmp_path / "work/splits.csv").read_text().splitlines()))[1:]
    assert len(rows) == 10 and not any(cell.startswith(files.FORMULA) for row in rows for cell in row)
    again = own.table(
        {"name": "csv", "root": str(tmp_path), "file": str(tmp_path / "work/splits.csv")}, tmp_path / "more"
    )
    assert again.classnames == made.classnames == ("-x", "=1+1")
    assert again.train.labels.tolist() == made.train.labels.tolist()


def test_a_damaged_note_on_drawn_scenes_is_an_error_for_a_person(tmp_path):
    for content in (b"", b"[1]", b"{", b"\xff"):
        (tmp_path / "scenes.json").write_bytes(content)
        with pytest.raises(UserError, match="scenes.json: .* Remove this file: the scenes are written again"):
            scene_files.write(tmp_path)


def test_a_folder_in_place_of_a_file_that_is_written_is_an_error_for_a_person(tmp_path):
    (tmp_path / "few_shot").write_text("x")
    (tmp_path / "results.json").mkdir()
    for path in ("few_shot/seed_1.json", "results.json"):
        with pytest.raises(UserError, match="cannot be written.*Move away the file"):
            files.write_json(tmp_path / path, {})
