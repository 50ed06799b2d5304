"""The further experiments of the study of `RLAETrainer`: their parts, in small."""

from __future__ import annotations

import numpy as np
import pytest
from rich.console import Console

from tests.studies import chain_policies as chains
from tests.studies.rlae_full import BASELINES, EXPERIMENTS, Variation, do_full, plan_full, variation_table
from tests.studies.rlae_tables import accuracy_cells

SETTINGS = {"questions": 8, "validation_questions": 4, "resolution": 2, "rollouts": 1}


def test_no_share_is_told_of_hardly_any_way_to_the_oracle():
    ones, none = np.ones((2, 40)), np.zeros((1, 40))
    few = np.array([[1.0] * 3 + [0.0] * 37])
    assert accuracy_cells(few, none, ones[:1], False)[2].startswith("0.07 [")
    assert accuracy_cells(few, none, few, False)[1:] == ["+0.075 [+0.000, +0.175]", ""]


def test_the_plan_has_every_experiment_with_its_baselines():
    runs = plan_full(seeds=2)
    assert len({run.name for run in runs}) == len(runs)
    for experiment in EXPERIMENTS:
        methods = [run.method for run in runs if run.experiment == experiment]
        assert set(methods) == {*BASELINES, *chains.TRAINED}
        for method in chains.TRAINED:
            assert methods.count(method) == 2 * max(len(EXPERIMENTS[experiment]), 1)


def test_two_members_are_asked_what_they_can_do():
    (questions,) = Variation("two members", "uniform weights").tests(30).values()
    assert len(questions) == 30
    assert {operator for question in questions for operator in question.operators} == {"+", "-"}
    assert all(question.is_held_out and len(set(question.operators)) > 1 for question in questions)


def test_what_is_learned_is_carried_to_longer_chains_and_the_other_form():
    tests = Variation("transfer", "mixture").tests(20)
    for name, questions in tests.items():
        assert {question.form for question in questions} == {"worded" if "worded" in name else "symbolic"}
        lengths = {len(question.operators) for question in questions}
        assert lengths == ({4} if name.startswith("4") else {2, 3})
        assert all(question.is_held_out for question in questions)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.slow
def test_a_policy_is_trained_and_tested(experiment, monkeypatch):
    seen = []

    def record(members, span_length, settings, seed, *, questions=None, **options):
        seen.append((len(members), settings, questions))
        return chains.new_policy(members, span_length, settings, seed), [0.0]

    monkeypatch.setattr(chains, "train_policy", record)
    value = {"training questions": "64", "observation": "both"}.get(experiment, "")
    Variation("observation", "mixture", 0, "members, newest token").measure(SETTINGS)
    assert (seen[0][1].observation, seen.pop()[1].policy) == ("members", {"pooled_tokens": 1})
    found = Variation(experiment, "ppo (gae)", 1, value).measure(SETTINGS)
    assert {len(digits) for digits in found["right"].values()} == {8}
    members, settings, questions = seen[0]
    assert (members, settings.objective) == (2 if experiment == "two members" else 3, "ppo")
    assert settings.num_questions == (64 if value == "64" else None)
    assert settings.observation == (value if experiment == "observation" else "members")
    assert settings.policy == {}
    assert settings.forms == (("symbolic",) if experiment == "transfer" else ("symbolic", "worded"))
    assert settings.stages == chains.TRAINED["ppo (gae)"].stages
    if experiment == "two members":
        assert len(questions) == settings.rollouts * settings.texts // settings.generations
        assert not any("*" in question.operators or question.is_held_out for question in questions)
    else:
        assert questions is None


@pytest.mark.slow
def test_every_experiment_has_its_folder_and_table(tmp_path, monkeypatch):
    monkeypatch.setattr(Variation, "measure", lambda self, settings: {"right": {"a": "10", "b": "11"}, "accuracy": 0.5})
    do_full(tmp_path, SETTINGS, 2, 1, Console(quiet=True))
    for experiment in EXPERIMENTS:
        lines = (tmp_path / experiment.replace(" ", "_") / "table.md").read_text().splitlines()
        for value in EXPERIMENTS[experiment]:
            assert sum(line.startswith(f"| mixture, {value} |") for line in lines) == 1


def test_the_table_compares_with_the_best_fixed_weights_of_every_test():
    entries = [
        (Variation("transfer", "uniform weights"), {"right": {"a": "0000", "b": "1000"}}),
        (Variation("transfer", "best fixed weights"), {"right": {"a": "1000", "b": "1000"}}),
        (Variation("transfer", "oracle switching"), {"right": {"a": "1110", "b": "1111"}}),
        (Variation("transfer", "mixture", 0), {"right": {"a": "1100", "b": "1000"}}),
        (Variation("transfer", "mixture", 1), {"right": {"a": "1100", "b": "1110"}}),
    ]
    table = variation_table(entries)
    assert table.headings[:4] == ("weights", "a: right", "above best fixed", "headroom")
    row = next(row for row in table.rows if row[0] == "mixture")
    assert row[1] == "0.500 ± 0.000"
    assert row[3].startswith("0.50 [")
    assert row[4] == "0.500 ± 0.354"
