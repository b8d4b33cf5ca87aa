"""The golden harness itself, run on made-up cases."""

import json
import shutil
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TESTS = """
import pytest
from golden_cases import load

@pytest.mark.golden("clip/dance")
def test_golden_dance(golden):
    assert golden.is_dir() and (golden / "case.json").exists()

@pytest.mark.golden("steps*.json", "turns*.json")
def test_golden_steps(golden):
    assert load(golden)["right"]

@pytest.mark.golden("vl/*")
def test_golden_vl(golden):
    raise AssertionError("there is no such case here")

def test_plain():
    import jax, os
    assert jax.device_count() == 8 and jax.config.jax_default_matmul_precision == "highest"
    assert os.path.isdir(jax.config.jax_compilation_cache_dir)
"""


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def repo(pytester, monkeypatch):
    """A small repository with this harness, three tests and one case of its own."""
    monkeypatch.setenv("PYTHONPATH", str(HERE.parent))  # for vlmx, wherever it is installed or not
    (pytester.path / "tests").mkdir()
    (pytester.path / "pytest.ini").write_text("[pytest]\ntestpaths = tests\n")
    for name in ("conftest.py", "golden_cases.py"):
        shutil.copy(HERE / name, pytester.path / "tests")
    (pytester.path / "tests" / "some_test.py").write_text(TESTS)
    write(pytester.path / "tests/goldens/clip/dance/slow/case.json", {"format": "clip 1", "method": "dance"})
    more = pytester.path / "more"
    write(more / "clip/dance/slow/case.json", {"format": "clip 1", "method": "dance", "seed": 2})
    write(more / "copy/dance/slow/case.json", {"format": "clip 1", "method": "dance"})  # of the repository's own
    write(more / "clip/song/loud/case.json", {"format": "clip 1", "method": "song"})
    write(more / "clip/song/loud/inner.json", {})  # inside a case: none of its own
    write(more / "clip/vocab.json", {})  # a companion
    write(more / "protocol/steps_a.json", {"right": True})
    write(more / "protocol/other.json", {})
    return pytester


def run(repo, *args):
    return repo.runpytest_subprocess("-p", "no:cacheprovider", "-v", *args)


def test_own_cases_always_run_and_nothing_is_skipped(repo):
    result = run(repo)
    result.assert_outcomes(passed=2, deselected=2)
    result.stdout.fnmatch_lines(["*test_golden_dance?dance/slow? PASSED*"])
    result.stdout.no_fnmatch_line("*not built yet*")


def test_a_directory_adds_its_cases_and_lists_the_kinds_nobody_claims(repo):
    result = run(repo, "--goldens=more", "-k", "golden")
    result.assert_outcomes(passed=3, deselected=2)
    result.stdout.fnmatch_lines(
        ["*test_golden_dance?dance/slow-other2? PASSED*", "*test_golden_steps?protocol/steps_a? PASSED*",
         "*golden cases of a kind not built yet*", "clip/song: song/loud", "other.json: protocol/other", "2 cases*"]
    )


def test_a_directory_apart_from_its_option_is_not_taken_for_tests(repo, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (repo.path / "more").rename(elsewhere / "more")
    result = run(repo, "-p", "vlmx.pytest_goldens", "--goldens", str(elsewhere / "more"), "-k", "dance")
    result.assert_outcomes(passed=2, deselected=3)
    result.stdout.fnmatch_lines([f"rootdir: {repo.path}", "configfile: pytest.ini"])


def test_the_same_directory_twice_or_a_part_of_it_runs_once(repo):
    result = run(repo, "--goldens=more", "--goldens=more/clip/dance/slow", "--goldens=more/../more/protocol")
    result.assert_outcomes(passed=4, deselected=1)


def test_read_only_folders_links_that_lead_back_and_cases_that_say_their_kind(repo):
    more = repo.path / "more"
    write(more / "backbones/eva/case.json", {"format": "clip 1", "kind": "backbone", "family": "eva02"})
    write(more / "backbones/eva/checkpoint/config.json", {})
    (more / "clip" / "loop").symlink_to(more)
    for path in (more, *more.rglob("*")):
        path.chmod(0o555)
    result = run(repo, "--goldens=./more", "--goldens=tests/../more", "-k", "golden")
    result.assert_outcomes(passed=3, deselected=2)
    result.stdout.fnmatch_lines(["backbone/eva02: backbones/eva", "clip/song: song/loud", "3 cases*"])
    for path in (more, *more.rglob("*")):
        path.chmod(0o755)


def test_a_failing_case_fails(repo):
    write(repo.path / "more/turns.json", {"right": False})
    run(repo, "--goldens=more").assert_outcomes(passed=4, failed=1, deselected=1)


def test_workers_of_xdist_report_what_is_claimed(repo):
    result = run(repo, "--goldens=more", "-n1")
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(["clip/song: song/loud"])
    result.stdout.no_fnmatch_line("clip/dance: *")


@pytest.mark.parametrize("content, said", [
    (None, "*nowhere: no such directory*"), ({}, "*holds no golden case*"), ({"case.json": "[]"}, "*not a golden case*")
])  # fmt: skip
def test_a_directory_without_cases_is_a_usage_error(repo, content, said):
    if content is not None:
        (repo.path / "nowhere").mkdir()
        for name, text in content.items():
            (repo.path / "nowhere" / name).write_text(text)
    result = run(repo, "--goldens=nowhere")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([said])


def test_a_golden_test_must_say_so_in_its_name(repo):
    (repo.path / "tests" / "bad_test.py").write_text(TESTS.replace("test_golden_dance", "test_dance"))
    result = run(repo)
    assert result.ret != 0
    result.stdout.fnmatch_lines(["*bad_test.py::test_dance*has golden in its name*"])
