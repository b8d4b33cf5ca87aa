"""Runs of several processes, and runs that are told to stop: the command itself, on a small problem."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vlmx import errors

ROOT = Path(__file__).parent.parent
SMALL = (
    "--config", "configs/digits.py:coop,seeds=2,n_ctx=2,protocols=few_shot,shots=2", "--config.recipe.coop.epochs=8",
    "--config.recipe.coop.batch=8", "--config.steps_per_call=2", "--config.checkpoint_every=2",
)  # fmt: skip


def start(workdir, *args, devices=1, log=None):
    """The command on `devices` fake devices, in a process of its own."""
    env = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    command = [sys.executable, "-m", "vlmx.main", *SMALL, "--workdir", str(workdir), *args]
    log = open(log or f"{workdir}.log", "w")
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)


def pair(workdir, *args):
    """Two processes of two devices each."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    told = ("--coordinator", f"127.0.0.1:{port}", "--processes", "2")
    return [
        start(workdir, *told, "--process", str(i), *args, devices=2, log=f"{workdir}.{i}.log") for i in range(2)
    ]  # fmt: skip


def numbers(workdir):
    results = json.loads((workdir / "results.json").read_text())
    run = results["runs"][0]
    return results["reference"], [seed["metrics"] for seed in run["seeds"]], run["curve"]["loss"]


def tuned(workdir):
    return {p.relative_to(workdir): p.read_bytes() for p in sorted(workdir.rglob("tuned.safetensors"))}


def wait_for(condition, process, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "it ended before"
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of one process on four devices."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    assert start(workdir, devices=4).wait() == 0, open(f"{workdir}.log").read()
    return workdir


def test_two_processes_give_the_numbers_of_one(whole, tmp_path):
    for process in pair(tmp_path / "run"):
        assert process.wait() == 0, (tmp_path / "run.0.log").read_text() + (tmp_path / "run.1.log").read_text()
    first, second = ((tmp_path / f"run.{i}.log").read_text() for i in range(2))
    assert "devices: 4 x cpu" in first and "devices" not in second
    (reference, metrics, loss), (reference_2, metrics_2, loss_2) = numbers(whole), numbers(tmp_path / "run")
    assert reference == reference_2 and metrics == metrics_2
    for a, b in zip(loss, loss_2, strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_told_to_stop_it_saves_and_goes_on_to_the_same_numbers_bit_for_bit(whole, tmp_path):
    run = tmp_path / "run"
    process = start(run, "--config.checkpoint_every=1000", devices=4)
    wait_for(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == errors.PREEMPTED, (tmp_path / "run.log").read_text()
    assert "told to stop, saved after step" in (tmp_path / "run.log").read_text()
    assert list(run.glob("coop-few_shot/steps/*")) and not (run / "results.json").exists()
    assert start(run, "--config.checkpoint_every=1000", devices=4).wait() == 0
    assert "going on after step" in (tmp_path / "run.log").read_text()
    assert numbers(run) == numbers(whole) and tuned(run) == tuned(whole)


def test_a_process_that_dies_stops_the_others_with_its_name(tmp_path):
    run = tmp_path / "run"
    first, second = pair(run, "--config.recipe.coop.epochs=100000")
    wait_for(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size, first)
    second.kill()
    assert first.wait(timeout=60) == errors.LOST
    assert f"process 1 of 2 ({socket.gethostname()}, pid {second.pid}) is gone" in (tmp_path / "run.0.log").read_text()
