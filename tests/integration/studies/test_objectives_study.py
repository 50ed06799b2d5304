"""The study of several objectives: its parts, in small."""

from __future__ import annotations

import pytest
from rich.console import Console

from hf_rlae import load_demo_members
from tests.studies.objectives import NUMBERS, QUICK, plan, write_results
from tests.studies.objectives_runs import (
    CORY,
    FAMILIES,
    JUDGES,
    RLAE,
    Combination,
    FrontierRun,
    PairRun,
    combinations,
    knows_the_answer,
    small,
    steps,
)
from tests.studies.objectives_tables import KINDS, frontier_table, kind_of
from tests.studies.pair_classifier import labelled_pairs
from tests.studies.parallel_runs import do_runs
from tests.studies.results import ResultFolder

SETTINGS = {**NUMBERS, **QUICK, "rollouts": 1, "questions": 4}


def test_the_plan_has_every_kind_of_run_with_a_name_of_its_own():
    runs = plan(seeds=2)
    assert (
        len({run.name for run in runs}) == len(runs) == 2 * (len(JUDGES) + sum(len(combinations(f)) for f in FAMILIES))
    )
    for family in FAMILIES:
        options = [combination.options(20.0) for combination in combinations(family)]
        assert {"reward_weights", "reward_constraints"} <= set().union(*options)
        assert any(each.get("multi_objective_aggregation") == "normalize_then_sum" for each in options)


def test_the_rewards_and_the_judge():
    assert small([" 5+3=8. 8", " 90+9=99. 99", "", " 5-5=0. 0"]) == pytest.approx([1 - 8 / 99, 0.0, 0.0, 1.0])
    texts = [" 5+3=8. 8", " 5+3=2. 2"]
    assert knows_the_answer(["?"] * 3, [texts[0], texts[1], texts[0]], [texts[1], texts[0], texts[0]], [8] * 3) == [
        1.0,
        0.0,
        0.5,
    ]


def test_questions_are_held_out_or_not():
    train, test = steps(40, 0, False), steps(40, 0, True, ("-",))
    assert not any(question.is_held_out for question in train)
    assert all(question.is_held_out and question.operators == ("-",) for question in test)
    assert len({question.operators for question in train}) == 3


def test_pairs_have_a_right_and_a_wrong_answer():
    pairs = labelled_pairs(load_demo_members("shared"), steps(6, 0, False))
    assert pairs
    for (prompt, first, second, label), (_, *others, other_label) in zip(pairs[::2], pairs[1::2], strict=True):
        assert [second, first] == others
        assert (label, other_label) == (1.0, 0.0)
        assert prompt


@pytest.mark.slow
def test_runs_and_tables(tmp_path):
    runs = [
        FrontierRun(RLAE, Combination((0.5, 0.5), is_normalized=True), 0),
        FrontierRun(RLAE, Combination((1.0, 0.0)), 0),
        FrontierRun(RLAE, Combination(constraint=("right", 0.9)), 0),
        FrontierRun(CORY, Combination(constraint=("small", 0.9)), 0),
        PairRun("without training", 0),
        PairRun("pairs, judged by a classifier", 0),
    ]
    results = ResultFolder(tmp_path, SETTINGS)
    do_runs(runs, results, 1, Console(quiet=True))
    write_results(runs, results, Console(quiet=True))
    entries = [results.read(run.name) for run in runs[:3]]
    assert [kind_of(entry) for entry in entries] == [KINDS[1], KINDS[0], KINDS[2]]
    assert entries[2]["multiplier"] == 10.0  # at its maximum: one rollout is far below the least mean
    assert [row[0] for row in frontier_table(entries).rows] == [entry["combination"] for entry in entries]
    assert (tmp_path / "frontier.png").stat().st_size > 1000
    assert "judged by a classifier" in (tmp_path / "pairs.md").read_text()
