"""The study of rivals from start to end, in small."""

from __future__ import annotations

import pytest

from hf_rlae import list_baselines
from tests.studies import rivals as study

SMALL = ["--questions", "2", "--seeds", "0", "--rollouts", "1", "--judge-questions", "24", "--judge-epochs", "1"]


@pytest.mark.slow
def test_all_baselines_and_objectives_are_on_one_table(tmp_path):
    study.main(["embedded", "--output", str(tmp_path), *SMALL])
    lines = (tmp_path / "summary.md").read_text().splitlines()
    names = {line.split("|")[1].strip() for line in lines if line.startswith("|")}
    assert {*list_baselines(), *study.LEARNED} - {"ensemble"} <= names
