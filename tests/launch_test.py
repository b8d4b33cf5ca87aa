"""The scripts of launch/: what they would do, word for word, and, where this machine can, what they do."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vlmx import errors

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
RUN = ("--", "python", "-m", "vlmx.main", "--config", "configs/dtd.py:coop", "--config.data.templates=('a {}.',)")
QUOTED = "python -m vlmx.main --config configs/dtd.py:coop '--config.data.templates=('\\''a {}.'\\'',)'"


def call(script, *args, **environment):
    """A script's result."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)} | environment
    return subprocess.run([LAUNCH / script, *map(str, args)], env=env, capture_output=True, text=True, cwd=ROOT)


def dry(script, *args):
    """What a script says that it would do; nothing that it could do it with is on the path."""
    result = call(script, *args[: args.index("--")] if "--" in args else args, "--dry-run",
                  *args[args.index("--"):] if "--" in args else (), PATH="/usr/bin:/bin")  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


# -------------------------------------------------------------------- what would be done
GCLOUD = "gcloud compute tpus"
ZONE = ("--zone", "us-west4-a")


def test_renting_and_giving_back_a_tpu_slice():
    asked = ("--type", "v5litepod-16", *ZONE, "--spot")
    common = "--zone us-west4-a --spot --accelerator-type v5litepod-16"
    assert (
        dry("tpu.sh", "create", "pod", *asked) == f"{GCLOUD} tpu-vm create pod {common} --version v2-alpha-tpuv5-lite\n"
    )
    assert dry("tpu.sh", "queue", "pod", *asked, "--project", "mine") == (
        f"{GCLOUD} queued-resources create pod --node-id pod --zone us-west4-a --project mine --spot "
        "--accelerator-type v5litepod-16 --runtime-version v2-alpha-tpuv5-lite\n"
    )
    assert dry("tpu.sh", "status", "pod", *ZONE) == f"{GCLOUD} queued-resources describe pod --zone us-west4-a\n"
    assert dry("tpu.sh", "delete", "pod", *ZONE).splitlines() == [
        f"{GCLOUD} queued-resources delete pod --zone us-west4-a --force --quiet",
        f"{GCLOUD} tpu-vm delete pod --zone us-west4-a --quiet",
    ]


def test_all_workers_of_a_tpu_slice_get_the_same_command():
    pack, copy, install = dry("tpu.sh", "setup", "pod", *ZONE).splitlines()
    assert pack.startswith("git -C ") and pack.endswith("--output /tmp/vlmx.tar.gz HEAD")
    assert copy == f"{GCLOUD} tpu-vm scp /tmp/vlmx.tar.gz pod: --zone us-west4-a --worker all"
    assert "--worker all" in install and "jax[tpu]" in install
    words = dry("tpu.sh", "run", "pod", *ZONE, "--", "python", "-m", "vlmx.main", "--list")
    assert words == (
        f"{GCLOUD} tpu-vm ssh pod --zone us-west4-a --worker all --command "
        "'cd vlmx && PATH=~/env/bin:$PATH launch/start.sh python -m vlmx.main --list --coordinator auto'\n"
    )


def test_gke_gets_a_pod_for_each_host():
    import yaml

    for topology, hosts, chips, kind in (
        ("v5e:4x4", 4, 4, "tpu-v5-lite-podslice"),
        ("v6e:1x1", 1, 1, "tpu-v6e-slice"),
        ("v5p:2x2x2", 2, 4, "tpu-v5p-slice"),
    ):
        job = yaml.safe_load(dry("gke.sh", "--topology", topology, "--image", "r/vlmx:tpu", "--name", "mine", *RUN))
        assert (job["kind"], job["metadata"]["name"]) == ("JobSet", "mine")
        template = job["spec"]["replicatedJobs"][0]["template"]["spec"]
        assert template["parallelism"] == template["completions"] == hosts
        pod = template["template"]["spec"]
        assert pod["nodeSelector"] == {
            "cloud.google.com/gke-tpu-accelerator": kind,
            "cloud.google.com/gke-tpu-topology": topology[4:],
        }
        (container,) = pod["containers"]
        auto = ["--coordinator", "auto"] if hosts > 1 else []
        assert container["command"] == ["launch/start.sh", *RUN[1:], *auto]
        assert container["resources"]["limits"] == {"google.com/tpu": chips}


def test_slurm_gets_a_task_for_each_gpu():
    script = dry("slurm.sh", "--nodes", "2", "--gpus", "8", "--partition", "a100", "--time", "1:00:00", *RUN)
    assert script.splitlines()[:6] == [
        "#!/usr/bin/env bash",
        "#SBATCH --job-name=vlmx --nodes=2 --time=1:00:00 --requeue --open-mode=append --signal=B:TERM@120",
        "#SBATCH --ntasks-per-node=8 --gpus-per-node=8",
        "#SBATCH --partition=a100",
        "export RETRIES=0",
        f"srun --kill-on-bad-exit=0 {LAUNCH}/start.sh {QUOTED} --coordinator auto &",
    ]
    assert 'scontrol requeue "$SLURM_JOB_ID"' in script


def test_one_box_needs_one_process_and_can_have_more():
    assert dry("box.sh", *RUN) == f"{LAUNCH}/start.sh {QUOTED}\n"
    assert dry("box.sh", "--processes", "2", "--port", "9", "--", "python", "x.py") == "".join(
        f"env CUDA_VISIBLE_DEVICES={i} {LAUNCH}/start.sh python x.py --coordinator localhost:9 --processes 2 "
        f"--process {i} '>'./box.{i}.log 2>&1 &\n".replace("'>'", ">")
        for i in range(2)
    )


@pytest.mark.parametrize(
    "script, args, said",
    [
        ("box.sh", ("--proceses", "2", *RUN), "unknown option --proceses; there are: --processes --port --dry-run"),
        ("box.sh", ("--processes", "2"), "the run's command is missing"),
        ("box.sh", ("python",), "unexpected python"),
        ("slurm.sh", ("--nodes",), "--nodes: a value is missing"),
        ("tpu.sh", ("create", "pod"), "--zone is missing"),
        ("tpu.sh", ("create", "pod", *ZONE), "--type is missing"),
        ("tpu.sh", ("create", "pod", *ZONE, "--type", "v9-8"), "give --version"),
        ("tpu.sh", (), "launch/tpu.sh create NAME"),
        ("gke.sh", ("--topology", "h100:8", "--image", "i", *RUN), "expected v4, v5e, v5p or v6e"),
        ("gke.sh", ("--topology", "v5e:4x4", *RUN), "--image is missing"),
        ("start.sh", (), "the one way in which"),
    ],
)
def test_what_is_wrong_with_the_words_is_said(script, args, said):
    result = call(script, *args)
    assert result.returncode == 2 and said.lower() in result.stderr.lower(), result.stderr


NEWLINE, EVALUATED = "x\ntouch ran", "a[$(touch ran)0]"  # a line of its own; a command, where arithmetic reads it
SLICE = ("--topology", "v5e:4x4", "--image", "i")


@pytest.mark.parametrize(
    "script, args",
    [
        *(("box.sh", ("--processes", word, *RUN)) for word in (EVALUATED, "x", "-1", "0", "08", "9" * 30, "", "1\n2")),
        ("box.sh", ("--port", EVALUATED, *RUN)),
        ("box.sh", ("--processes port", "2", *RUN)),
        *(("gke.sh", (*SLICE, option, word, *RUN)) for option, word in (
            ("--chips-a-host", EVALUATED), ("--chips-a-host", "0"), ("--name", "x\nkind: Pod"), ("--name", "-x"),
            ("--namespace", "x: y"), ("--image", "i\n    hostNetwork: true"), ("--topology", "v5e:08x4"),
            ("--topology", "v5e:0x4"), ("--topology", f"v5e:4x{EVALUATED}"), ("--topology", "v5e:4x4x4x4"),
        )),
        *(("slurm.sh", (option, word, *RUN))
          for option in ("--name", "--partition", "--account", "--time", "--array")
          for word in (NEWLINE, "x --wrap=date", "-x", "$(touch ran)")),
        *(("slurm.sh", (option, EVALUATED, *RUN)) for option in ("--nodes", "--gpus")),
        ("tpu.sh", ("status", "pod;touch ran", *ZONE)),
        ("tpu.sh", ("status", NEWLINE, *ZONE)),
        *(("tpu.sh", ("create", "pod", *ZONE, "--type", "v4-8", option, word))
          for option in ("--zone", "--project", "--type", "--version") for word in (NEWLINE, "--x=1", "a b")),
    ],
)  # fmt: skip
def test_words_are_data(script, args, tmp_path):
    """No word is evaluated, or becomes a line or an option of what a script writes."""
    shutil.copytree(LAUNCH, tmp_path / "launch")
    where = {"cwd": tmp_path, "env": os.environ | {"PATH": "/usr/bin:/bin"}, "timeout": 20}
    before, behind = (args[: args.index("--")], args[args.index("--") :]) if "--" in args else (args, ())
    command = [tmp_path / "launch" / script, *before, "--dry-run", *behind]
    result = subprocess.run(command, capture_output=True, text=True, **where)
    assert result.returncode == 2 and result.stderr.startswith(f"{script}: ") and not result.stdout
    assert not list(tmp_path.glob("**/ran"))


def test_words_of_the_run_reach_gke_as_they_are():
    import yaml

    words = ("python", "-c", "print(\"a\")\n\tprint('b')", "$(touch ran)", "$(HOME)", "$$(HOME) $x", "- x: y", "\\n")
    job = yaml.safe_load(dry("gke.sh", "--topology", "v5e:2x2", "--image", "r/vlmx:tpu", "--", *words))
    pod = job["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    command = pod["containers"][0]["command"]
    assert not any("$" in word.replace("$$", "") for word in command), "Kubernetes would put a variable in its place"
    assert [word.replace("$$", "$") for word in command] == ["launch/start.sh", *words]


@pytest.mark.parametrize("word", ("true", "null", "12", "1e5", "no", "0x1f"))
def test_names_that_yaml_takes_for_something_else_stay_texts(word):
    import yaml

    job = yaml.safe_load(dry("gke.sh", *SLICE[:2], "--image", word, "--name", word, "--namespace", word, *RUN))
    pod = job["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert job["metadata"]["name"] == job["metadata"]["namespace"] == pod["containers"][0]["image"] == word


def test_words_of_the_run_reach_slurm_tasks_as_they_are(tmp_path):
    words = ("python", "$(touch ran)", "a\ntouch ran #", "it's", "", "*", "~", "`touch ran`", "-n")
    job = dry("slurm.sh", "--gpus", "0", "--array", "0-1", "--", *words)
    srun = tmp_path / "srun"
    srun.write_text("#!/bin/bash\nshift 2; printf '%s\\0' \"$@\"\n")
    srun.chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    result = subprocess.run(["bash", "-c", job], env=env, capture_output=True, text=True, cwd=tmp_path, timeout=20)
    assert tuple(result.stdout.split("\0")[:-1]) == words and not (tmp_path / "ran").exists()


def test_the_folder_of_the_plans_is_data(tmp_path):
    """And each plan is made as one command, whatever is in its words."""
    shutil.copytree(LAUNCH, tmp_path / "launch")
    python, folder = tmp_path / "python", "a b$(touch ran)`touch ran`'\n;touch ran"
    python.write_text(f"#!/bin/bash\n[ $1 = -m ] && printf '%s|' \"$@\" >>{tmp_path}/calls\nexit 0\n")
    python.chmod(0o755)
    env = os.environ | {"PYTHON": str(python), "JOBS": "1"}
    result = subprocess.run([tmp_path / "launch/plans.sh", folder], env=env, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    calls = [call.split("|")[:-1] for call in (tmp_path / "calls").read_text().split("-m|vlmx.plan|")[1:]]
    assert [len(call) for call in calls] == [12] * 12 and not list(tmp_path.glob("**/ran"))
    assert {tuple(call[:2]) for call in calls} == {
        ("--workdir", f"{folder}/{name}") for name in ("vit_b16", "vit_l14", "bart_base", "t5_base")
    }


@pytest.mark.parametrize("name", ("RETRIES", "PAUSE"))
@pytest.mark.parametrize("value", ("a[$(touch ran)0]", "-1", "x", "1e9", "1\n2", "1.5.5"))
def test_how_often_and_how_late_a_command_starts_again_are_numbers(name, value):
    result = call("start.sh", "bash", "-c", "exit 75", **{"RETRIES": "0", "PAUSE": "0", name: value})
    assert result.returncode == 2 and "is a whole number" in result.stderr


def test_a_command_starts_again_a_whole_number_of_times():
    result = call("start.sh", "bash", "-c", "exit 75", RETRIES="1.5", PAUSE="0")
    assert result.returncode == 2 and "RETRIES is a whole number" in result.stderr


def test_the_scripts_are_clean():
    shellcheck = Path(sys.executable).parent / "shellcheck"
    shellcheck = shellcheck if shellcheck.exists() else shutil.which("shellcheck")
    if not shellcheck:
        pytest.skip("shellcheck is not on this platform")
    result = subprocess.run([shellcheck, "-x", *LAUNCH.glob("*.sh")], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


# -------------------------------------------------------------------- what is done
# A run of the real kind of process, without its work: all of them sum their numbers over the network; process 0 has its
# first life ended as a preemption does.
PROGRAM = """
import sys
from pathlib import Path
from absl import app, flags
flags.DEFINE_string("workdir", None, "")
flags.DEFINE_string("coordinator", None, "")
flags.DEFINE_integer("process", None, "")
flags.DEFINE_integer("processes", None, "")
flags.FLAGS(sys.argv)
F, lived = flags.FLAGS, None
from vlmx import processes
processes.begin(F.coordinator, F.process, F.processes)
import jax
from jax.experimental import multihost_utils
total = int(multihost_utils.process_allgather(jax.numpy.array(1 + jax.process_index())).sum())
lived = Path(F.workdir, f"life-{jax.process_index()}")
lives = len(lived.read_text()) if lived.exists() else 0
lived.write_text("x" * (lives + 1))
multihost_utils.sync_global_devices("all were here")
if not lives:
    sys.exit(75)
Path(F.workdir, f"sum-{jax.process_index()}").write_text(f"{total} of {jax.process_count()}")
"""


@pytest.fixture
def program(tmp_path):
    (tmp_path / "run.py").write_text(PROGRAM)
    return [sys.executable, tmp_path / "run.py", "--workdir", tmp_path]


def one_device(**more):
    return {"XLA_FLAGS": "", "PAUSE": "0", **more}


def sums(folder):
    return {p.name: p.read_text() for p in folder.glob("sum-*")}


BOTH = {"sum-0": "3 of 2", "sum-1": "3 of 2"}


def test_a_process_that_was_preempted_is_started_again_and_others_are_not(tmp_path):
    count = f"echo x >> {tmp_path}/lives; exit $(( $(wc -l < {tmp_path}/lives) < 3 ? 75 : 5 ))"
    result = call("start.sh", "bash", "-c", count, PAUSE="0")
    assert result.returncode == 5 and (tmp_path / "lives").read_text() == "x\n" * 3
    assert result.stderr.count("exit status 75") == 2
    assert call("start.sh", "bash", "-c", f"exit {errors.LOST}", PAUSE="0", RETRIES="1").returncode == errors.LOST


@pytest.mark.parametrize("turn", range(5))  # on a busy machine it came before the process was known, or as it ended
def test_a_signal_reaches_the_process_and_ends_the_starting(turn, tmp_path):
    wait = f"trap 'exit 75' TERM; touch {tmp_path}/up; while true; do sleep 0.01; done"
    process = subprocess.Popen([LAUNCH / "start.sh", "bash", "-c", wait], env=os.environ | {"PAUSE": "0"})
    while not (tmp_path / "up").exists():
        assert process.poll() is None
    process.terminate()
    assert process.wait(60) == errors.PREEMPTED


def test_one_box_starts_several_processes_that_find_each_other(program, tmp_path):
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    given = ("--processes", 2, "--port", port, "--", *program)
    result = call("box.sh", *given, **one_device(LOGS=str(tmp_path)))
    assert result.returncode == 0, result.stderr
    assert sums(tmp_path) == BOTH


# In place of Slurm, which is not on this machine: what it gives to tasks, and what it does where a job asks for itself
# again.
SBATCH = "#!/bin/bash\ncat > $JOB; export SLURM_JOB_ID=$ID SLURM_RESTARTS=0; exec bash $JOB\n"
SRUN = """#!/bin/bash
[[ $1 = --kill* ]] && shift
export SLURM_NTASKS=2 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NODELIST=localhost SLURM_STEP_NUM_NODES=1
export SLURM_NODELIST=localhost SLURM_JOB_NUM_NODES=1
for i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & all+=($!); done
worst=0; for p in ${all[@]}; do wait $p; s=$?; (( s > worst )) && worst=$s; done
exit $worst
"""
SCONTROL = "#!/bin/bash\necho $@ >> $JOB.asked; unset RETRIES; exec bash $JOB\n"


def test_the_slurm_job_starts_its_tasks_and_queues_itself_again_when_preempted(program, tmp_path):
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "scontrol": SCONTROL}.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    job = str(tmp_path / "job.sh")
    path = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "JOB": job, "ID": str(50000 + os.getpid() % 5000)}
    result = call("slurm.sh", "--nodes", 2, "--gpus", 0, "--", *program, **one_device(**path))
    assert sums(tmp_path) == BOTH, result.stderr
    assert Path(job + ".asked").read_text() == f"requeue {path['ID']}\n"


# -------------------------------------------------------------------- sweeps and tables
SWEEP = (
    "--configs", "configs/digits.py,configs/textures.py", "--methods", "coop", "--shots", "1,2", "--seeds", "1",
    "--protocols", "few_shot", "--config.recipe.coop.epochs=2",
)  # fmt: skip


def sweep(*args):
    result = subprocess.run(
        [sys.executable, LAUNCH / "sweep.py", *map(str, args)], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_sweep_becomes_a_command_for_each_benchmark(tmp_path):
    lines = sweep(*SWEEP, "--workdir", tmp_path).splitlines()
    start = f"{sys.executable} -m vlmx.sweep --configs"
    rest = "--methods coop --protocols few_shot --shots 1,2 --seeds 1 --workdir"
    assert lines == [
        f"{start} configs/{name}.py {rest} {tmp_path}/{name} --config.recipe.coop.epochs=2"
        for name in ("digits", "textures")
    ]


def test_a_sweep_goes_to_hosts_or_becomes_a_slurm_array(tmp_path):
    on_a, on_b = sweep(*SWEEP, "--workdir", tmp_path, "--hosts", "a,b", "--dry-run").splitlines()
    assert on_a.startswith("ssh -- a ") and "digits.py" in on_a and "textures.py" not in on_a
    assert on_b.startswith("ssh -- b ") and "textures.py" in on_b and f"> {tmp_path}/textures.log 2>&1" in on_b
    said = sweep(*SWEEP, "--workdir", tmp_path, "--slurm", "--gpus 1", "--dry-run")
    assert "--gpus 1 --array 0-1 -- bash -c" in said and said.count("exec ") == 2


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (("--workdir", "sweep\ntouch ran #", "--slurm", ""), "control character"),
        (("--workdir", "sweep\ntouch ran #", "--hosts", "a"), "control character"),
        (("--hosts", "-oProxyCommand=touch ran"), "no name of a host"),
        (("--hosts", "a,,b"), "no name of a host"),
        (("--hosts", "a b"), "no name of a host"),
        (("--slurm", "--gpus 1 -- touch ran"), "options of launch/slurm.sh alone"),
        (("--slurm", "--name 'x"), "No closing quotation"),
    ],
)
def test_words_of_a_sweep_are_data(more, problem, tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(LAUNCH))
    monkeypatch.chdir(ROOT)
    import sweep as sweeps

    words = [f"{option}={word}" for option, word in zip(more[::2], more[1::2], strict=True)]
    assert sweeps.main([*SWEEP, f"--workdir={tmp_path}", *words]) == errors.WRONG
    assert problem in capsys.readouterr().err and not list(tmp_path.iterdir())


def results(title, accuracy, **more):
    cell = {
        "run": title, "benchmark": "digits", "backbone": "tiny_clip", "protocol": "few_shot", "shots": 4,
        "method": title, "summary": {"accuracy": {"mean": accuracy, "stderr": None}}, "seconds": 1.0, "notes": [],
        "seeds": [{"seed": 1, "metrics": {"accuracy": accuracy}}], "trained_params": 3, "trained_percent": 0.1,
        "classes": 10, "before": {"accuracy": 70.0}, "n_test": 10, "published_split": True,
    }  # fmt: skip
    return {"title": title, "command": "", "cells": [cell | more]}


def test_many_workdirs_become_one_table_and_one_csv(tmp_path, capsys):
    sys.path.insert(0, str(LAUNCH))
    import table

    failed = results("coop", 0.0)
    failed["cells"] = [{k: failed["cells"][0][k] for k in table.tables.KEYS} | {"run": "coop", "failed": "no room"}]
    for folder, content in {"a": results("coop", 81.0), "b": results("maple", 85.0), "c": failed}.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "results.json").write_text(json.dumps(content))
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    assert table.main([*(str(tmp_path / f) for f in ("a", "b", "c", "empty")), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "empty: no results.json" in said.err
    lines = (out / "results.csv").read_text().splitlines()
    assert [line.split(",")[4:8] for line in lines[1:]] == [
        ["coop", "1", "accuracy", "81.0"],
        ["maple", "1", "accuracy", "85.0"],
    ]
    assert "maple" in (out / "tables.md").read_text() and "../a/coop" in (out / "report.html").read_text()
    assert table.main([str(tmp_path / "empty"), "--out", str(out)]) == 2


@pytest.mark.parametrize("odd", ({"seconds": "x"}, {"summary": None}, {"n_test": "x"}, {"before": 3}, {"seeds": [{}]}))
def test_a_damaged_workdir_is_named(odd, tmp_path, capsys):
    sys.path.insert(0, str(LAUNCH))
    import table

    for folder, more in {"whole": {}, "damaged": odd}.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "results.json").write_text(json.dumps(results("coop", 81.0, **more)))
    folders = [str(tmp_path / "whole"), str(tmp_path / "damaged")]
    assert table.main([*folders, "--out", str(tmp_path / "out")]) == 2
    assert "damaged/results.json: not as vlmx wrote it" in capsys.readouterr().err


# -------------------------------------------------------------------- images of containers
@pytest.mark.parametrize("name", ("Dockerfile.gpu", "Dockerfile.tpu"))
def test_an_image_holds_what_its_command_needs(name, tmp_path):
    lines = [line.split(maxsplit=1) for line in (LAUNCH / name).read_text().splitlines() if not line.startswith("#")]
    for *sources, to in [rest.split() for word, rest in lines if word == "COPY"]:
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, tmp_path / to, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, tmp_path / to)
    (installs,) = [rest for word, rest in lines if word == "RUN"]
    extra = re.search(r'^pip install --no-cache-dir \. "jax\[(\w+)\]"$', installs)[1]
    assert extra in importlib.metadata.metadata("jax").get_all("Provides-Extra")
    made = "import setuptools; setuptools.setup = lambda **how: print(*how['packages']); import setup"
    packages = subprocess.run([sys.executable, "-c", made], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert {"vlmx", "vlmx.data", "vlmx.methods"} <= set(packages.stdout.split())
    (command,) = [json.loads(rest) for word, rest in lines if word == "CMD"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.returncode == 0 and "digits" in result.stdout, result.stderr
