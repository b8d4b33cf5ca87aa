"""The command as a person types it: help, lists, wrong words, and one small run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from configs import recipes
from vlmx import main, method, variant
from vlmx.errors import IN_THE_WAY, unwritable

ROOT = Path(__file__).parent.parent


def vlmx(*args, cwd=ROOT):
    env = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.run([sys.executable, "-m", "vlmx.main", *args], cwd=cwd, env=env, capture_output=True, text=True)


def test_list_shows_benchmarks_and_methods():
    out = vlmx("--list")
    assert out.returncode == 0
    for word in ("digits", "imagenet_a", "folder", "zero_shot", "linear_probe", "coop", "arXiv 2109.01134"):
        assert word in out.stdout


def test_list_offers_only_what_can_be_run(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    for name, text in (
        ("whole", '"""Whole."""\n'),
        ("broken", "import no_such_module\n"),
        ("cut", "def get_config(:\n"),
    ):
        body = "def get_config(arg=None):\n    return __import__('ml_collections').ConfigDict()\n"
        (tmp_path / f"configs/{name}.py").write_text(text + body)
    monkeypatch.chdir(tmp_path)
    lines = main.listing().splitlines()
    configs = lines[1 : lines.index("methods (vlmx/methods/*.py):")]
    assert configs == ["  whole                Whole."]
    offered = {line.split()[0] for line in lines if line.startswith("  ")}
    assert offered - {"whole"} == {*method.names(), *variant.PUBLISHED}
    assert set(recipes.RECIPES) <= offered and not offered & {"denoising", "contrastive", "adapter"}
    monkeypatch.chdir(tmp_path / "configs")
    assert f"none in {tmp_path / 'configs/configs'}: start where configs/ is" in main.listing()


def test_modules_in_the_current_folder_take_no_place_of_installed_ones(tmp_path):
    for name in ("json", "numpy", "transformers", "absl", "argparse", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    for command in ("main", "predict"):
        args = [sys.executable, "-m", f"vlmx.{command}", "--help"]
        assert subprocess.run(args, cwd=tmp_path, env=env, capture_output=True).returncode in (0, 1)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("error", (NotADirectoryError(20, "Not a directory", "x/tensorboard"),
                                   FileExistsError(17, "File exists", "x/tensorboard"),
                                   OSError(40, "Too many levels of symbolic links", "x/tensorboard")))  # fmt: skip
def test_a_file_in_place_of_a_folder_is_one_error(error):
    problem = str(unwritable(error, "x"))
    assert problem == f"x/tensorboard cannot be written: {error.strerror}. {IN_THE_WAY}"
    assert unwritable(OSError(5, "Input/output error"), "x") is None


def test_help_shows_the_flags():
    out = vlmx("--help")
    assert "--config" in out.stdout and "--workdir" in out.stdout and "vlmx.main --config" in out.stdout


@pytest.mark.parametrize(
    "args, said",
    [
        ((), "--config is missing"),
        (("--config", "configs/digit.py"), "Did you mean 'configs/digits.py'"),
        (("--config", "configs/digits.py:cop"), "Did you mean 'coop'"),
        (("--config", "configs/digits.py:coop,n_ctz=4"), "Did you mean 'n_ctx'"),
        (("--config", "configs/digits.py:coop,n_ctx=four"), "expected int, got 'four'"),
        (("--config", "configs/digits.py", "--config.shotz=4"), "Did you mean 'shots'"),
        (("--config", "configs/digits.py", "--config.recipe.coop.hyper.nctx=4"), "Did you mean 'n_ctx'"),
        (("--config", "configs/digits.py", "--config.shots=four"), "shots"),
        (("--config", "configs/digits.py", "--workdirr=x"), "workdir"),
        (("--config.shots=4", "--config", "configs/digits.py"), "--config.shots: expected behind --config"),
        (("--config", "configs/digits.py", "--processes=two"), "--processes=two: expected a whole number."),
        (("--config", "configs/digits.py", "--coordinator=a:1", "--process=0"), "got --processes=None --process=0"),
        (("--config", "configs/recipe.py"), "Valid: configs/caltech101.py, configs/csv.py"),
        (("--config", "configs/digits.py", "--nolist=3"), "--nolist=3 does not take an argument"),
        (("--config", "configs/digits.py", "extra"), "unexpected argument 'extra'"),
        (("--config", "configs/folder.py"), "data.root"),
        (("--config", "configs/digits.py", "--config.model.name=tiny_clp"), "Did you mean 'tiny_clip'"),
    ],
)
def test_wrong_words_get_one_message_and_no_traceback(args, said, tmp_path):
    out = vlmx(*args, "--workdir", str(tmp_path / "run"))
    assert out.returncode == 2
    assert said in out.stderr + out.stdout
    assert "Traceback" not in out.stderr + out.stdout


def test_a_small_run_ends_in_a_table_and_a_report(tmp_path):
    out = vlmx("--config", "configs/digits.py:zero_shot", "--workdir", str(tmp_path / "run"))
    assert out.returncode == 0, out.stderr
    assert "zero_shot before training" in out.stdout and "devices: 1 x cpu" in out.stdout
    assert "HM" in out.stdout and (tmp_path / "run/report.html").exists()
    again = vlmx("--config", "configs/digits.py:zero_shot", "--workdir", str(tmp_path / "run"))
    assert again.returncode == 0 and "finished" in again.stdout


def test_a_run_on_a_persons_folders_with_unusual_names(tmp_path):
    for c in (b"Cat", b"cat", b"caf\xe9"):
        folder = os.path.join(os.fsencode(tmp_path), b"data", c)
        os.makedirs(folder)
        for i in range(4):
            with open(os.path.join(folder, b"\xff%d.png" % i), "wb") as f:
                Image.new("RGB", (8, 8), (60 * i, 0, 0)).save(f, "PNG")
    with open(os.path.join(folder, b"broken\xe9.jpg"), "wb") as f:
        f.write(b"no image")
    config = {"data.root": tmp_path / "data", "data.bad_images": "skip", "model.name": "tiny_clip"}
    fields = [f"--config.{key}={value}" for key, value in config.items()]
    run = vlmx("--config=configs/folder.py:zero_shot,protocols=few_shot", f"--workdir={tmp_path / 'run'}", *fields)
    assert run.returncode == 0, run.stderr
    note = "classes with the same prompt, which this model cannot tell apart by their names: 'Cat' = 'cat'"
    assert note in run.stdout and run.stdout.index(note) < run.stdout.index("before training")
    dataset = json.loads((tmp_path / "run/results.json").read_text())["dataset"]
    assert note in dataset["notes"] and dataset["classnames"] == ["Cat", "café", "cat"]
    assert any("broken\udce9.jpg" in text for text in dataset["notes"])
    report = (tmp_path / "run/report.html").read_text()
    assert "cannot tell apart" in report and "is not UTF-8; it is read as Latin-1" in report
