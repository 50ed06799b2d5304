"""The study of rivals: its table, and what it keeps."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from hf_rlae.evaluation.results import EvaluationReport, MethodResult
from tests.studies import rivals as study


def report(scores: dict[str, list[float]]) -> EvaluationReport:
    results = [
        MethodResult("task", name, "accuracy", sum(own) / len(own), 0.0, 1.0, p_value=0.5, time_ratio=1.5)
        for name, own in scores.items()
    ]
    records = {("task", name): [{"score": score} for score in own] for name, own in scores.items()}
    return EvaluationReport(
        tuple(results), ("task: the best member is two, chosen on 3 validation questions.",), {}, records
    )


def test_seeds_of_a_method_are_one_row_and_compared_with_the_best_member():
    found = {"one": [0.0] * 4, "two": [1.0, 0.0] * 2, "RLAE ppo seed 0": [1.0] * 4, "RLAE ppo seed 3": [1.0, 0.0] * 2}
    rows = {row[0]: row for row in study.summary(report(found)).rows}
    assert list(rows) == ["one", "two", "RLAE ppo"]
    assert rows["RLAE ppo"][1] == "0.750 (0.500 to 1.000)"
    assert rows["RLAE ppo"][3] == "+0.250"
    assert rows["one"][3] == "-0.500"
    assert rows["two"][3] == ""


def test_what_was_trained_is_not_trained_again(tmp_path):
    made = []

    def make():
        made.append(1)
        return SimpleNamespace(save_pretrained=lambda folder: folder.mkdir(parents=True))

    (tmp_path / "policy.part").mkdir()  # of a run that was stopped
    assert study._kept(tmp_path / "policy", make) == study._kept(tmp_path / "policy", make)
    assert made == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stories"], "needs --models and --data"),  # nothing to score
        (["embedded", "--questions", "0"], "--questions 0: at least 1"),
        (["chess"], "invalid choice"),
    ],
)
def test_wrong_options_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        study.parse([*arguments, "--output", "folder"])
    assert message in capsys.readouterr().err
