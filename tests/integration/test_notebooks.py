"""The notebooks run from their first to their last cell, and show what they say."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="the notebooks need nbformat, nbclient and ipykernel")
nbclient = pytest.importorskip("nbclient", reason="the notebooks need nbformat, nbclient and ipykernel")
pytest.importorskip("ipykernel", reason="the notebooks need nbformat, nbclient and ipykernel")

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))
SOLVED = "7+5*3= 5*3=15; 7+15=22. 22"
pytestmark = pytest.mark.slow


def outputs_of(path, folder, environment):
    """All that the cells show, by MIME type: `[{"text/plain": ...}, ...]`."""
    book = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}})
    client.execute(env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment})
    shown = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output.get("data", {"text/plain": output.get("text", "")}) for output in shown]


def run(name, folder, environment=None):
    [path] = [path for path in NOTEBOOKS if path.name.startswith(name)]
    return outputs_of(path, folder, environment or {"HF_HUB_OFFLINE": "1"})


def texts(shown):
    return "\n".join(str(data.get("text/plain", "")) for data in shown)


def test_there_are_no_stored_outputs():
    for path in NOTEBOOKS:
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        assert all(not cell.outputs and cell.execution_count is None for cell in cells), path.name


def test_ensemble(tmp_path):
    shown = run("1-", tmp_path)
    assert SOLVED in texts(shown)
    assert sum("image/png" in data for data in shown) == 1
    assert any("text/html" in data and "subtraction-" in data["text/html"] for data in shown)


def test_training(tmp_path):
    shown = run("2-", tmp_path)
    [line] = [line for line in texts(shown).splitlines() if line.startswith("right answers")]
    before, after = (float(word) for word in line.replace(",", "").split() if word.startswith(("0.", "1.")))
    assert after > before + 0.2
    assert any("text/html" in data and "<progress" in data["text/html"] for data in shown)
    assert any("image/png" in data for data in shown)


def test_subclasses(tmp_path):
    shown = texts(run("3-", tmp_path))
    assert "'agent-1': (16, " in shown
    assert "'agent-1': 'observer'" in shown


def test_hub(hub, tmp_path):
    shown = texts(run("4-", tmp_path, hub.environment()))
    assert SOLVED in shown
    assert "model.safetensors" in shown
    assert "# arithmetic-policy" in shown
