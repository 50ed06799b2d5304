"""The study of costs on the embedded specialists: its parts, in small."""

from __future__ import annotations

import json

import pytest
import torch

from hf_rlae import EnsembleForCausalLM, PolicyState, StaticPolicy, load_demo_members
from tests.studies.cost import routers
from tests.studies.cost.__main__ import main
from tests.studies.cost.run import FREE, KINDS, RELATIVE_PRICES, CostRun, plan
from tests.studies.cost.tables import cost_picture, cost_table, points_of

SETTINGS = {
    "questions": 6,
    "router_rollouts": 1,
    "picker_rollouts": 1,
    "supervised_epochs": 1,
    "supervised_questions": 8,
}


@pytest.mark.parametrize(
    ("text", "member"),
    [
        ("7+5*3=", 0),  # a copy of the question comes next
        ("7+5*3= 5*3", 0),
        ("7+5*3= 5*3=", 2),  # a digit of a result
        ("7+5*3= 5*3=1", 2),
        ("7+5*3= 5*3=15; 7+15", 0),
        ("9-5*1= 5*1=5; 9-5=", 1),
        ("7+5*3= 5*3=15; 7+15=22. ", 0),
        ("What is 7 minus 5?", 0),
        ("What is 7 minus 5? 7 minus 5 is ", 1),
        ("What is 7 minus 5? 7 minus 5 is 2. So ", 0),
    ],
)
def test_the_thrifty_oracle_runs_a_specialist_for_results_alone(text, member):
    state = PolicyState(3, torch.zeros(1), torch.device("cpu"), lambda: [text], list)
    assert routers.ThriftyOracle()(state).argmax(1).tolist() == [member]


def test_questions_of_one_operator():
    questions = routers.questions_of("one operator", 12, "test")
    assert [set(question.operators) for question in questions[:3]] == [{"+"}, {"-"}, {"*"}]
    assert len(questions) == 12
    training = routers.RouterTraining((0.0,) * 3, 0, 0, ((1, 0.5), (2, 0.5)), 1, texts=48, generations=2)
    asked = routers.training_questions("one operator", training, 0, 24)
    assert len(asked) >= 24
    assert all(len(set(question.operators)) == 1 for question in asked)
    assert not any(question.is_held_out for question in asked)


def test_what_answers_cost():
    members = load_demo_members("shared")
    questions = routers.questions_of("one operator", 6, "test")
    dense, alone = (
        routers.answers(EnsembleForCausalLM.from_members(members, StaticPolicy(weights)), questions, None)
        for weights in ([1, 1, 1], [1, 0, 0])
    )
    assert len(dense["right"]) == len(alone["right"]) == 6
    assert dense["tokens"][0] == dense["tokens"][1] == dense["tokens"][2]
    assert alone["tokens"][0] > 5
    assert alone["tokens"][1:] == [0, 0]


def test_plan_and_tables(tmp_path):
    runs = plan(2, (0.0, 0.01))
    assert len({run.name for run in runs}) == len(runs) == len(FREE) + 2 * (2 + 1 + 2)
    assert CostRun("router", 0.01).training(SETTINGS).prices == (0.01, 0.01, 0.1)
    answered = {"right": "110", "tokens": [2.0, 1.0, 3.0]}
    entries = [
        (run, {"answers": {kind: dict.fromkeys(("", "mixed", "largest weight"), answered) for kind in KINDS}})
        for run in runs
    ]
    point = points_of(entries, "mixed")["router", 0.01, "mixed"]
    assert point.right.shape == (2, 3)
    assert point.cost(RELATIVE_PRICES).tolist() == [33.0, 33.0]
    rows = {row[0]: row[1:] for row in cost_table(entries, "mixed", RELATIVE_PRICES).rows}
    assert rows["router, price 0.01, all members mixed"][1:] == ("6.0", "2.0 1.0 3.0", "33.0")
    cost_picture(entries, KINDS, RELATIVE_PRICES, tmp_path / "frontier.svg")
    assert (tmp_path / "frontier.svg").stat().st_size > 1000


@pytest.mark.slow
def test_the_whole_study_in_small(tmp_path):
    options = {"seeds": 1, "prices": 0.01, "questions": 6, "router-rollouts": 1, "picker-rollouts": 1}
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    main(
        [
            "--output",
            str(tmp_path),
            "--supervised-epochs",
            "1",
            "--supervised-questions",
            "8",
            "--jobs",
            "1",
            *arguments,
        ]
    )
    router = json.loads((tmp_path / "runs" / "router-price0.01-seed0.json").read_text())
    assert router["training"]["prices"] == [0.01, 0.01, 0.1]
    assert router["log"][0]["member_cost"] > 0
    for way, answered in router["answers"]["mixed"].items():
        one = [answered["tokens"][0]] * 3
        assert (answered["tokens"] == one) == (way == "mixed")
    picker = json.loads((tmp_path / "runs" / "picker-one_operator-seed0.json").read_text())
    assert 1 <= picker["loaded"] <= 3
    assert (tmp_path / "mixed.md").exists()
    assert (tmp_path / "frontier.svg").exists()
