"""Runs of several processes, and runs that are told to stop: the command itself, on a small problem."""

import json
import os
import re
import shutil
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
    "--config", "configs/digits.py:coop,seeds=2,n_ctx=2,protocols=few_shot,shots=2", "--config.recipe.coop.batch=8",
    "--config.steps_per_call=2",
)  # fmt: skip
# 300 steps, so that there is time to stop it, and small ones, so that roundings do not grow.
LONG = ("--config.recipe.coop.epochs=150", "--config.recipe.coop.optimizer.lr=0.0002", "--config.checkpoint_every=50")
PIXELS = (
    "--config", "configs/digits.py:vpt,seeds=2,protocols=few_shot,shots=1", "--config.data.augment=crop",
    "--config.recipe.vpt.epochs=1", "--config.recipe.vpt.batch=4",
)  # fmt: skip


def start(workdir, *args, devices=1, log=None, before=None, **environment):
    """The command on `devices` fake devices, in a process of its own which calls `before` first."""
    env = os.environ | environment | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }  # fmt: skip
    command = [sys.executable, "-m", "vlmx.main", *args, "--workdir", str(workdir)]
    log = open(log or f"{workdir}.log", "w")
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT, preexec_fn=before)


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


def same(workdir, other):
    """Whether two runs of different devices agree: what is counted, and the losses to float tolerance."""
    (reference, metrics, loss), (reference_2, metrics_2, loss_2) = numbers(workdir), numbers(other)
    close = [a == pytest.approx(b, rel=1e-4) for a, b in zip(loss, loss_2, strict=True)]
    return reference == reference_2 and metrics == metrics_2 and all(close)


def tuned(workdir):
    return {p.relative_to(workdir): p.read_bytes() for p in sorted(workdir.rglob("tuned.safetensors"))}


def steps(workdir):
    """The checkpoints that are whole."""
    return sorted(int(path.name) for path in workdir.glob("*/steps/*") if path.name.isdigit())


def wait_for(condition, process, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "it ended before"
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def trained(workdir):
    """Whether a run has come to its steps."""
    return (workdir / "metrics.jsonl").exists() and (workdir / "metrics.jsonl").stat().st_size


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of one process on four devices."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    assert start(workdir, *SMALL, *LONG, devices=4).wait() == 0, open(f"{workdir}.log").read()
    return workdir


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The same, told to stop on its way: its folder and the step after which it was saved."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    process = start(run, *SMALL, *LONG, devices=4)
    wait_for(lambda: trained(run), process)
    process.send_signal(signal.SIGTERM)
    text = lambda: open(f"{run}.log").read()
    assert process.wait() == errors.PREEMPTED, text()
    step = int(re.search(r"told to stop, saved after step (\d+) of 300", text())[1])
    assert steps(run)[-1] == step and not (run / "results.json").exists()
    return run, step


def test_told_to_stop_it_goes_on_to_the_same_numbers_bit_for_bit(whole, stopped, tmp_path):
    run = shutil.copytree(stopped[0], tmp_path / "run")
    assert start(run, *SMALL, *LONG, devices=4).wait() == 0
    assert f"going on after step {stopped[1]} of" in (tmp_path / "run.log").read_text()
    assert numbers(run) == numbers(whole) and tuned(run) == tuned(whole)


def test_it_goes_on_with_other_devices_on_another_mesh(whole, stopped, tmp_path):
    run = shutil.copytree(stopped[0], tmp_path / "run")
    mesh = ("--config.mesh.data=1", "--config.mesh.fsdp=2")
    assert start(run, *SMALL, *LONG, *mesh, devices=2).wait() == 0, (tmp_path / "run.log").read_text()
    assert f"going on after step {stopped[1]} of" in (tmp_path / "run.log").read_text()
    assert same(run, whole)


def test_two_processes_give_the_numbers_of_one(whole, tmp_path):
    for process in pair(tmp_path / "run", *SMALL, *LONG):
        assert process.wait() == 0, (tmp_path / "run.0.log").read_text() + (tmp_path / "run.1.log").read_text()
    first, second = ((tmp_path / f"run.{i}.log").read_text() for i in range(2))
    assert "devices: 4 x cpu" in first and "devices" not in second
    assert same(tmp_path / "run", whole)


def test_pixels_of_two_processes_give_the_numbers_of_one(tmp_path):
    assert start(tmp_path / "one", *PIXELS, devices=4).wait() == 0, (tmp_path / "one.log").read_text()
    for process in pair(tmp_path / "two", *PIXELS):
        assert process.wait() == 0, (tmp_path / "two.0.log").read_text() + (tmp_path / "two.1.log").read_text()
    assert same(tmp_path / "two", tmp_path / "one")


def gone(process, workdir, i):
    """What process i of two says when the other one has just been killed: within a minute, and who it was."""
    assert process.wait(timeout=60) == errors.LOST
    said = open(f"{workdir}.{i}.log").read()
    return re.search(r"\nerror: process (\d) of 2 \((.*), pid (\d+)\) is gone\.", said).groups()


def test_a_process_that_dies_stops_the_other_and_one_alone_goes_on(whole, tmp_path):
    run = tmp_path / "run"
    first, second = pair(run, *SMALL, *LONG)
    wait_for(lambda: steps(run), first)
    second.kill()
    assert gone(first, run, 0) == ("1", socket.gethostname(), str(second.pid))
    step = steps(run)[-1]
    assert start(run, *SMALL, *LONG, devices=4).wait() == 0
    assert f"going on after step {step} of" in (tmp_path / "run.log").read_text()
    assert same(run, whole)


def test_the_death_of_process_0_stops_the_others(tmp_path):
    run = tmp_path / "run"
    first, second = pair(run, *SMALL, "--config.recipe.coop.epochs=100000")
    wait_for(lambda: trained(run), first)
    first.kill()
    assert gone(second, run, 1) == ("0", socket.gethostname(), str(first.pid))
