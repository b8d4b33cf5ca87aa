"""The golden harness, and the settings under which every test runs.

`pytest --goldens DIR` (repeatable) checks the cases under DIR beside those of tests/goldens, which always run.
To claim kinds of cases, mark a test that has "golden" in its name with patterns of kinds (see golden_cases.py); it runs
once per case and gets the case's folder, or its file, as a Path:

    from golden_cases import assert_close, beside, load

    @pytest.mark.golden("clip/coop")                 # folders whose case.json says method coop;  "vl/*" works too
    def test_golden_coop(golden):
        case, tensors = load(golden)
        model = read(beside(golden, case["backbone"]["folder"]))

    @pytest.mark.golden("fewshot_synth*.json", "fewshot_other_repos_*.json")      # files, by name
    def test_golden_few_shot(golden):
        table = load(golden)

Cases that no collected test claims are listed at the end of the run; they count as nothing.
"""

import atexit
import functools
import gc
import itertools
import os
import re
import shutil
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

# Before jax is imported, and inherited by the processes that tests start: fake devices, full float32, no network, and
# one compilation cache per run.
os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling is most of the time. Without optimisation, and with the older code for fusions, it takes half as long.
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 " + QUICK + os.environ.get("XLA_FLAGS", "")
os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
if "VLMX_TEST_CACHE" not in os.environ:  # the first process of the run owns it
    os.environ["VLMX_TEST_CACHE"] = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="vlmx-tests-")
    atexit.register(shutil.rmtree, os.environ["VLMX_TEST_CACHE"], ignore_errors=True)
os.environ["XDG_CACHE_HOME"] = os.environ["VLMX_TEST_CACHE"]  # features are stored there, never in a person's cache

# Last on the path: `configs` is found, and an installed vlmx still goes before the clone's.
sys.path.append(str(Path(__file__).parent.parent))

import golden_cases  # noqa: E402
import pytest  # noqa: E402

from vlmx import pytest_goldens  # noqa: E402

pytest_plugins = ["pytester"]
CASES, CLAIMED = pytest.StashKey(), pytest.StashKey()
FINISHED = itertools.count(1)  # tests of this process


def pytest_addoption(parser, pluginmanager):
    if not pluginmanager.is_registered(pytest_goldens):  # vlmx is not installed: only --goldens=DIR will be understood
        pluginmanager.register(pytest_goldens)


def pytest_report_header():
    return f"vlmx: {Path(pytest_goldens.__file__).parent}"


def pytest_configure(config):
    config.addinivalue_line("markers", "golden(*kinds): runs once per golden case of these kinds")
    folders = [Path(config.invocation_params.dir, d) for d in config.getoption("goldens")]
    try:
        for folder in folders:
            if not folder.is_dir():
                raise ValueError(f"{folder}: no such directory")
            if not golden_cases.find(folder):
                raise ValueError(f"{folder}: holds no golden case (a folder with case.json, or a JSON file)")
        config.stash[CASES] = golden_cases.gather([golden_cases.OWN, *folders])
    except ValueError as e:
        raise pytest.UsageError(f"--goldens {e}") from e
    config.stash[CLAIMED] = set()


def pytest_generate_tests(metafunc):
    marks = list(metafunc.definition.iter_markers("golden"))
    if not marks and "golden" not in metafunc.fixturenames:
        return
    name = metafunc.function.__name__
    if not marks or "golden" not in name or "golden" not in metafunc.fixturenames:
        raise pytest.UsageError(
            f"{metafunc.definition.nodeid}: a golden test has golden in its name, the argument `golden` and the mark"
        )
    patterns = [pattern for mark in marks for pattern in mark.args]
    cases = [c for c in metafunc.config.stash[CASES] if golden_cases.claimed(c, patterns)]
    metafunc.config.stash[CLAIMED].update(str(c.path) for c in cases)
    metafunc.parametrize("golden", [c.path for c in cases] or [None], ids=[c.id for c in cases] or ["none"])


def pytest_collection_modifyitems(config, items):
    """A claimed kind of which there is no case here: its test is deselected, for nothing was skipped."""
    empty = [i for i in items if getattr(i, "callspec", None) and i.callspec.params.get("golden", i) is None]
    if empty:
        config.hook.pytest_deselected(items=empty)
        items[:] = [i for i in items if i not in empty]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Tests that share what is dear to make go to one worker."""
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return together(config.rootpath, nodeid)

    return Together(config, log) if config.getoption("dist") == "load" else None


def together(root, nodeid):
    """What a test shares: a fixture of its module, or the programs of a method (a row of contract_test); or nothing."""
    file, _, test = nodeid.partition("::")
    if 'scope="module"' in source(root / file):
        return file
    row = re.match(r"\w+\[(\w+)", test)
    return f"{file} {row[1]}" if row and file.endswith("contract_test.py") else nodeid


@functools.cache
def source(path):
    return path.read_text() if path.is_file() else ""


def pytest_runtest_teardown():
    """Drop compiled programs before they use up the process's memory maps, of which Linux allows 65,530.

    A program takes some ten maps; where none is left, compiling ends in a segmentation fault.
    """
    maps = Path("/proc/self/maps")
    if next(FINISHED) % 16 == 0 and maps.exists() and maps.read_bytes().count(b"\n") > 30_000:
        import jax  # not at the top: the header of a run needs none of it

        jax.clear_caches()
        gc.collect()


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):  # under pytest-xdist only the workers collect
        session.config.workeroutput["claimed"] = sorted(session.config.stash[CLAIMED])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    node.config.stash[CLAIMED].update(getattr(node, "workeroutput", {}).get("claimed", ()))


def pytest_terminal_summary(terminalreporter, config):
    unclaimed = defaultdict(list)
    for case in config.stash[CASES]:
        if str(case.path) not in config.stash[CLAIMED]:
            unclaimed[case.kind].append(case.id)
    if unclaimed:
        terminalreporter.section("golden cases of a kind not built yet")
        for kind, ids in sorted(unclaimed.items()):
            terminalreporter.line(f"{kind}: {' '.join(ids)}")
        n = sum(map(len, unclaimed.values()))
        terminalreporter.line(f"{n} cases that no collected test claims: not run, counted as nothing")
