"""The notebooks of launch/colab: run from top to bottom, as they are, on what comes in the package."""

import os
import re
from pathlib import Path

import conftest
import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "launch" / "colab"
# What each promises: pictures, and words that its outputs hold.
PROMISED = {
    "1_few_shot": (5, (r"zero_shot +- +[\d.]+", r"apex +4 +[\d.]+ \+- [\d.]+", r"new +difficulty 0\.\d+, mean alpha")),
    "2_cache": (8, (r"xmadapter +16 +[\d.]+ \+-", r"gamma 0\.\d+; zero-shot", r"right only with Tip-Adapter: \d+ of")),
    "3_vl_adapter": (8, (r"single_adapter +[\d,]+ +\d", r"how many shapes are there\? -> \w+", r"vqa: .+ -> \w+")),
}


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_all_of_them_are_tested():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == PROMISED.keys()


@pytest.mark.parametrize("name", PROMISED)
def test_as_they_lie_in_git(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in code(notebook)), "outputs are cleared"
    first, rest = code(notebook)[0].source, "\n".join(cell.source for cell in code(notebook)[1:])
    assert "pip install" in first and 'if not find_spec("vlmx")' in first
    assert not re.search(r"^[!%]", rest, re.M), "all that is not Python stands in the first cell"
    assert len(re.findall(r"^MODEL = ", rest, re.M)) == 1, "one variable switches to real weights"


def test_a_persons_error_is_a_line_in_a_notebook(tmp_path):
    wrong = "from vlmx.data import own\nown.folder({'root': 'my_images'}, '.')"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(wrong)])
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, allow_errors=True, kernel_name="python3", resources=where).execute()
    (output,) = notebook.cells[0].outputs
    assert "\n".join(output.traceback).startswith("error: data.root: there is no folder my_images.")


@pytest.mark.parametrize("name", PROMISED)
def test_runs_from_top_to_bottom(name, tmp_path, monkeypatch):
    # As a person's session, with one device. Programs that are not optimised are sooner there, but for those that run
    # for long.
    monkeypatch.setenv("XLA_FLAGS", "" if name == "3_vl_adapter" else conftest.QUICK)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))  # for configs/
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    notebook, where = read(name), {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    pictures, words = PROMISED[name]
    said = "".join(output.text for output in outputs if output.output_type == "stream")
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= pictures
    for pattern in words:
        assert re.search(pattern, said), (pattern, said)
    assert list(tmp_path.glob("runs/*/*/report.html"))
