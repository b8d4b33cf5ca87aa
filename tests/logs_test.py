import json
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from vlmx import logs


def rows(folder):
    return [(r["run"], r["tag"], r["seed"], r["step"], r.get("loss", r.get("accuracy"))) for r in logs.read(folder)]


def events(folder):
    """[(folder, tag, step, value)] of all TensorBoard events under `folder`. A record: length 8, crc 4, data, crc 4."""
    found = []
    for path in sorted(folder.rglob("events.out.*")):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + size])
            found += [
                (path.parent.relative_to(folder).as_posix(), v.tag, event.step, v.simple_value)
                for v in event.summary.value
            ]
            data = data[16 + size :]
    return found


def test_a_line_a_write_and_tensorboard_events(tmp_path):
    with logs.Logs(tmp_path) as log:
        log.begin("coop-few_shot")
        log.write(10, {"loss": np.float32(0.5)}, seed=np.int64(1))
        log.write(10, {"accuracy": 80}, tag="test")
    assert rows(tmp_path) == [("coop-few_shot", "train", 1, 10, 0.5), ("coop-few_shot", "test", None, 10, 80.0)]
    assert set(events(tmp_path / "tensorboard")) == {
        ("coop-few_shot/seed1", "train/loss", 10, 0.5),
        ("coop-few_shot", "test/accuracy", 10, 80.0),
    }


def test_a_resumed_run_repeats_no_line(tmp_path):
    with logs.Logs(tmp_path) as log:
        log.begin("a")
        log.write(1, {"loss": 9})
        log.begin("b")
        for step in (1, 2, 3):
            log.write(step, {"loss": step})
    with logs.Logs(tmp_path) as log:
        log.begin("b", step=1)  # the checkpoint was of step 1
        for step in (1, 2):  # step 1 again: a test after the checkpoint, for one
            log.write(step, {"loss": 10 * step})
    assert rows(tmp_path) == [("a", "train", None, 1, 9.0), ("b", "train", None, 1, 1.0), ("b", "train", None, 2, 20.0)]


def test_a_run_begun_anew_drops_all_of_its_own_rows_only(tmp_path):
    with logs.Logs(tmp_path) as log:
        for run in "ab":
            log.begin(run)
            log.write(0, {"loss": 1})
    logs.Logs(tmp_path).begin("b")
    assert rows(tmp_path) == [("a", "train", None, 0, 1.0)]


def test_seeds_that_run_one_after_the_other_keep_each_others_rows(tmp_path):
    log = logs.Logs(tmp_path)
    for seed in (1, 2):
        log.begin("a", seeds=[seed])
        log.write(5, {"loss": seed}, seed=seed)
    log.close()
    assert logs.curve(tmp_path, "a") == {"step": [5], "seeds": [1, 2], "loss": [[1, 2]]}


def test_a_line_cut_short_is_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"run": "a", "tag": "train", "seed": null, "step": 0, "loss": 1.0}\n{"run": "a", "ta'
    )
    with logs.Logs(tmp_path) as log:
        log.begin("a", step=0)
        log.write(1, {"loss": 2})
    assert rows(tmp_path) == [("a", "train", None, 0, 1.0), ("a", "train", None, 1, 2.0)]


def test_killed_after_a_write_the_line_is_there(tmp_path):
    code = (
        "import os, signal, sys; from vlmx import logs; log = logs.Logs(sys.argv[1]);"
        "log.begin('a'); log.write(0, {'loss': 1}); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path]).returncode == -signal.SIGKILL
    assert rows(tmp_path) == [("a", "train", None, 0, 1.0)]


def test_what_is_not_finite_is_null(tmp_path):
    with logs.Logs(tmp_path) as log:
        log.begin("a")
        log.write(0, {"loss": float("nan")})
    assert json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)["loss"] is None


def test_curve_of_seeds(tmp_path):
    with logs.Logs(tmp_path) as log:
        log.begin("a")
        for step in (5, 10):
            for seed in (1, 2):
                log.write(step, {"loss": step + seed}, seed=seed)
        log.write(10, {"accuracy": 50}, tag="test", seed=1)
    assert logs.curve(tmp_path, "a") == {"step": [5, 10], "seeds": [1, 2], "loss": [[6, 7], [11, 12]]}
    assert logs.curve(tmp_path, "nothing") == {"step": [], "seeds": []}


def test_only_the_first_process_writes_and_speaks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with logs.Logs(tmp_path / "w") as log:
        log.begin("a")
        log.write(0, {"loss": 1})
    logs.say("hello")
    with logs.progress(3, "coop") as bar:
        bar.update(3)
    assert not (tmp_path / "w").exists() and "".join(capsys.readouterr()) == ""


def test_say_and_a_bar_without_a_terminal(capsys):
    logs.say("loading", "tiny_clip")
    with logs.progress(4, "coop", start=1) as bar:
        bar.update(3)
        bar.refresh()
    out, err = capsys.readouterr()
    assert out.endswith("  loading tiny_clip\n")
    assert "coop: 100%" in err and "4/4" in err and "step" in err and "\r" not in err


def test_tensorboards_writer_is_opened_without_torch(tmp_path):
    code = (
        "import sys\n"
        "from vlmx import logs\n"
        "with logs.Logs(sys.argv[1]) as logger:\n"
        "    logger.begin('r')\n"
        "    logger.write(1, {'loss': 2.0})\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert list((tmp_path / "tensorboard").rglob("events*"))
