"""Reading json from a person's disk: the content, or one sentence with the file."""

import os

import pytest

from vlmx import files
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
        (b"[" * 100_000, "too many brackets"),
        (b'{"a": ' * 100_000 + b"1" + b"}" * 100_000, "too many brackets"),
        (b'{"a": ' + b"9" * 5000 + b"}", "no usable json"),
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
