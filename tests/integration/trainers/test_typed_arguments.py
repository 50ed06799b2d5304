"""What a type checker says about a user's script."""

from __future__ import annotations

from pathlib import Path

import pytest

SCRIPT = """
from hf_rlae import EnsembleConfig
from hf_rlae.trainers import RLAEConfig

RLAEConfig("out", objective="mixture", advantages="gae")
EnsembleConfig(mixing="log")
RLAEConfig("out", objective="mixtur")
RLAEConfig("out", advantages="gea")
EnsembleConfig(mixing="lgo")
"""


@pytest.mark.slow
def test_mistyped_names_are_errors_of_types(tmp_path, monkeypatch):
    api = pytest.importorskip("mypy.api")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    monkeypatch.setenv("MYPYPATH", str(Path(__file__).parents[3]))
    options = ["--strict", "--follow-imports=silent", "--ignore-missing-imports", f"--cache-dir={tmp_path / 'cache'}"]
    output, faults, _ = api.run([*options, str(script)])
    assert not faults
    lines = [line.split("script.py:")[1] for line in output.splitlines() if "script.py" in line]
    assert [line.split(":")[0] for line in lines] == ["7", "8", "9"]
    assert "expected \"Literal['ppo', 'mappo', 'mixture']\"" in lines[0]
