"""Runs that are killed, or whose folder cannot be written: nothing is lost, and they go on to the same numbers."""

import ctypes
import functools
import os
import random
import resource
import shutil
import sys
import time
from types import SimpleNamespace

import pytest
from processes_test import SMALL, numbers, start, steps, tuned, wait_for

from vlmx import checkpoint, errors

OFTEN = (
    *SMALL, "--config.recipe.coop.hyper.n_ctx=16", "--config.recipe.coop.epochs=50", "--config.checkpoint_every=10",
)  # fmt: skip
KILLS = int(os.environ.get("VLMX_KILLS", 4))  # in a row


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    assert start(workdir, *OFTEN).wait() == 0, open(f"{workdir}.log").read()
    return workdir


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """A run killed soon after its first checkpoint."""
    workdir = tmp_path_factory.mktemp("cut") / "run"
    process = start(workdir, *OFTEN)
    wait_for(lambda: steps(workdir), process)
    process.kill()
    process.wait()
    return workdir


def test_killed_at_random_moments_it_goes_on_to_the_same_numbers(whole, tmp_path):
    run, moments, killed = tmp_path / "run", random.Random(0), 0
    for i in range(KILLS):
        process, before = start(run, *OFTEN), steps(run)
        if i % 2:  # wherever it is by then
            time.sleep(moments.uniform(0, 6))
        else:  # in the steps, where checkpoints are being written
            while process.poll() is None and steps(run) == before:
                time.sleep(0.005)
            time.sleep(moments.uniform(0, 0.3))
        process.kill()
        killed += process.wait() < 0
    assert killed > KILLS // 2
    assert start(run, *OFTEN).wait() == 0, (tmp_path / "run.log").read_text()
    assert numbers(run) == numbers(whole) and tuned(run) == tuned(whole)
    assert not list(run.glob("*/steps/*tmp*"))


SWEEP = (
    "--configs", "configs/digits.py", "--methods", "tip_adapter,taskres", "--shots", "1,2",
    "--seeds", "2", "--protocols", "few_shot", "--config.recipe.taskres.epochs=6", "--config.checkpoint_every=2",
)  # fmt: skip


def test_a_sweep_killed_at_random_moments_goes_on_to_the_same_numbers(tmp_path):
    """From an empty store of features each time: the encoder is killed too."""
    figures = []
    for name in ("whole", "cut"):
        run, moments = tmp_path / name, random.Random(1)
        go = functools.partial(start, run, *SWEEP, verb="sweep", XDG_CACHE_HOME=str(tmp_path / f"{name}-cache"))
        for _ in range(KILLS // 2 if name == "cut" else 0):  # there are fewer kinds of moments than in a training
            process = go()
            time.sleep(moments.uniform(3, 12))
            process.kill()
            process.wait()
        assert go().wait() == 0, (tmp_path / f"{name}.log").read_text()
        rows = [line.rpartition(",")[0] for line in (run / "results.csv").read_text().splitlines()]  # without seconds
        figures.append((rows, tuned(run)))
    assert figures[0] == figures[1] and len(figures[0][1]) == 2 * 2 * 2


def small_files_only():
    """Files that may not grow: to a writer that is what a full disk is, and needs no rights to mount a small one."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))


def test_a_full_disk_ends_in_one_error_and_the_run_goes_on_elsewhere(whole, cut, tmp_path):
    run = shutil.copytree(cut, tmp_path / "run")
    step = steps(run)[-1]
    process = start(run, *OFTEN, before=small_files_only, JAX_ENABLE_COMPILATION_CACHE="false")
    assert process.wait() == errors.WRONG
    said = (tmp_path / "run.log").read_text()
    assert f"going on after step {step} of" in said and "Traceback" not in said and said.count("error:") == 1
    assert "/steps cannot be written: File too large. The last checkpoint is whole" in said.splitlines()[-1]
    assert steps(run)[-1] == step
    there = shutil.copytree(run, tmp_path / "there")
    assert start(there, *OFTEN).wait() == 0, (tmp_path / "there.log").read_text()
    assert f"going on after step {step} of" in (tmp_path / "there.log").read_text()
    assert numbers(there) == numbers(whole) and tuned(there) == tuned(whole)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("Error writing 'a': RESOURCE_EXHAUSTED: File too large [os_error_code='27'] [path='x']", "File too large"),
        ("{'shape': [2] true}']: writing \"x\": File too large [os_error_code='27']", "File too large"),
        ("[Errno 27] File too large", "File too large"),
    ],
)
def test_why_a_checkpoint_could_not_be_written(said, reason, tmp_path):
    with pytest.raises(errors.Unwritable, match=f"cannot be written: {reason}"):
        with checkpoint._written(SimpleNamespace(directory=tmp_path)):
            raise ValueError(said)


def as_anyone():
    """Root too keeps to what chmod says: the right to pass over it is dropped for what is executed next."""
    if os.geteuid() == 0 and sys.platform == "linux":
        assert ctypes.CDLL(None).prctl(24, 1, 0, 0, 0) == 0  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_read_only_folder_is_one_error_and_is_left_as_it_was(cut, tmp_path):
    run = shutil.copytree(cut, tmp_path / "run")
    before, folders = content(run), [folder for folder, _, _ in os.walk(run)]
    for folder in folders:
        os.chmod(folder, 0o555)
    try:
        assert start(run, *OFTEN, before=as_anyone).wait() == errors.WRONG
    finally:
        for folder in folders:
            os.chmod(folder, 0o755)
    said = (tmp_path / "run.log").read_text()
    assert "Traceback" not in said and said.count("error:") == 1
    assert "cannot be written: Permission denied. The last checkpoint is whole" in said.splitlines()[-1]
    assert content(run) == before
