"""The study of `RLAETrainer` on the embedded specialists: its parts, in small."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from hf_rlae import load_demo_members, load_demo_policy
from hf_rlae.errors import ConfigError
from hf_rlae.tasks.chains import draw_questions
from tests.studies import chain_policies as chains
from tests.studies.parallel_runs import do_runs
from tests.studies.results import ResultFolder
from tests.studies.rlae import CONTROLS, Run, plan, ways_of
from tests.studies.rlae_tables import WAYS, accuracy_picture, accuracy_table, as_markdown, settings_told, ways_table

SETTINGS = {"questions": 12, "validation_questions": 6, "resolution": 2, "rollouts": 1}
TINY = chains.PolicyTraining(
    "mixture", rollouts=1, texts=8, generations=4, updates=1, further={"num_iterations": 1}, policy={"hidden_size": 8}
)


def entry(method: str, right: str, span_length: int = 1, seed: int = 0):
    return Run("shared", span_length, method, seed), {"right": right, "accuracy": 0.0}


def test_only_some_methods_are_trained():
    runs = plan(["shared"], [1], seeds=2, control_seeds=0, methods=["mappo (gae)"])
    assert [run.method for run in runs if run.method in chains.TRAINED] == ["mappo (gae)", "mappo (gae)"]
    assert {"best fixed weights", "oracle switching"} <= {run.method for run in runs}


def test_all_methods_have_one_recipe_and_the_tables_say_what_is_no_default():
    plain = chains.beside_defaults(chains.TRAINED["mixture"])
    assert plain == {
        "per_device_train_batch_size": 64, "generation_batch_size": 256, "max_completion_length": 70,
        "learning_rate": 0.005,
    }  # fmt: skip
    for method, training in chains.TRAINED.items():
        other = {"advantages": "group_relative"} if "ppo (group" in method else {}
        assert chains.beside_defaults(training) == plain | other
    small = chains.replaced(TINY, policy={"hidden_size": 8, "pooled_tokens": 8})
    assert {"num_iterations": 1, "hidden_size": 8}.items() <= chains.beside_defaults(small).items()
    assert "pooled_tokens" not in chains.beside_defaults(small)
    notes = settings_told(["uniform weights", *chains.TRAINED])
    assert "except for `per_device_train_batch_size=64`, " in notes[0]
    assert notes[1:] == tuple(f"{name} (group-relative): `advantages='group_relative'`" for name in ("ppo", "mappo"))
    assert settings_told(["uniform weights"]) == ()


def test_the_plan_has_every_method_at_every_span_length_and_seed():
    runs = plan(["shared"], [1, 2], seeds=3, control_seeds=1)
    assert len({run.name for run in runs}) == len(runs)
    for method in chains.TRAINED:
        assert sum(run.method == method for run in runs) == 6
    for method in ("supervised", "oracle switching"):
        assert sum(run.method == method for run in runs) == 2
    assert all(sum(run.method == method for run in runs) == 1 for method in CONTROLS if method != "supervised")
    assert sum(run.method == "uniform weights" for run in runs) == 1


def test_runs_that_are_done_are_not_done_again(tmp_path):
    results = ResultFolder(tmp_path, SETTINGS)
    runs = [Run("shared", 1, method) for method in ("uniform weights", "oracle switching")]
    results.write(runs[0].name, {"right": "1" * 12, "accuracy": 1.0})
    do_runs(runs, results, 1, Console(quiet=True))
    assert results.read(runs[0].name) == {"right": "1" * 12, "accuracy": 1.0}
    assert results.read(runs[1].name)["accuracy"] > 0.5


def test_runs_that_were_trained_otherwise_are_not_mixed_with_new_ones(tmp_path, monkeypatch):
    run, fixed = Run("shared", 1, "ppo (gae)"), Run("shared", 1, "uniform weights")
    monkeypatch.setattr(Run, "measure", lambda *_: {"accuracy": 0.5})
    results = ResultFolder(tmp_path, SETTINGS)
    do_runs([run, fixed], results, 1, Console(quiet=True))
    assert results.read(run.name)["training"]["objective"] == "ppo"
    assert "training" not in results.read(fixed.name)
    do_runs([run, fixed], results, 1, Console(quiet=True))  # the same settings again
    changed = chains.replaced(chains.TRAINED["ppo (gae)"], learning_rate=0.5)
    monkeypatch.setitem(chains.TRAINED, "ppo (gae)", changed)
    monkeypatch.setattr(Run, "measure", lambda *_: pytest.fail("done before it was refused"))
    with pytest.raises(
        ConfigError, match=r"1 runs that were trained with other settings .* shared-span1-ppo_gae-seed0"
    ):
        do_runs([Run("shared", 1, "mappo (gae)"), run], results, 1, Console(quiet=True))
    unsaid = ResultFolder(tmp_path / "unsaid", SETTINGS)
    unsaid.write(run.name, {"accuracy": 0.5})
    with pytest.raises(ConfigError, match="do not say"):
        do_runs([run], unsaid, 1, Console(quiet=True))


@pytest.mark.slow
def test_the_best_fixed_weights_come_from_the_validation_questions():
    found = Run("shared", 1, "best fixed weights").measure(SETTINGS)
    assert sum(found["weights"]) == pytest.approx(1.0)
    assert len(found["right"]) == 12


def test_training_and_control_questions_are_not_tested_on():
    trained = {q.expression for q in chains.training_questions(chains.TRAINED["mixture"])}
    tested = {q.expression for q in chains.held_out_questions(300)}
    validated = {q.expression for q in chains.held_out_questions(300, "validation")}
    assert not trained & tested
    assert not trained & validated
    assert not tested & validated


def test_training_questions_come_in_stages():
    settings = chains.replaced(chains.TRAINED["mixture"], rollouts=10, texts=80, generations=8)
    lengths = [len(question.operators) for question in chains.training_questions(settings)]
    assert lengths == [1] * 44 + [2] * 32 + [3] * 24
    assert len(set(chains.training_questions(settings))) == 100
    few = chains.training_questions(chains.replaced(settings, num_questions=10))
    assert [len(question.operators) for question in few] == lengths
    assert len(set(few)) == 9  # 4, 3 and 2
    assert all(q.operators == ("-",) * len(q.operators) for q in chains.training_questions(settings, ("-",)))


def test_a_blind_policy_gives_the_same_weights_everywhere():
    members = load_demo_members("shared")
    policy, _ = chains.train_policy(members, 2, TINY, 0, kind=chains.BlindPolicy)
    ensemble = chains.with_policy(members, policy, 2)
    inputs = ensemble.tokenizer(["7+5*3=", "9-4="], return_tensors="pt", padding=True)
    out = ensemble.generate(**inputs, max_new_tokens=8, do_sample=False, return_dict_in_generate=True)
    first = out.span_weights[0, 0]
    torch.testing.assert_close(out.span_weights, first.expand_as(out.span_weights), atol=1e-6, rtol=0)


def test_shuffled_rewards_are_the_same_rewards():
    texts = [" 5*3=15. 15"] * 3 + [" 5*3=8. 8"] * 5
    true = chains.chain_reward(texts, [15] * 8)
    assert true == [1.0] * 3 + [0.0] * 5
    shuffled = [chains.ShuffledReward(seed)(texts, answer=[15] * 8) for seed in range(5)]
    assert all(sorted(rewards) == sorted(true) for rewards in shuffled)
    assert any(rewards != true for rewards in shuffled)


@pytest.mark.slow
def test_supervision_learns_what_the_oracle_does(monkeypatch):
    members = load_demo_members("shared")
    monkeypatch.setattr(chains, "training_questions", lambda settings: draw_questions(80, 3, splits=("train",)))
    settings = chains.replaced(TINY, policy={"hidden_size": 64})
    policy = chains.supervise_policy(members, 1, settings, 0, epochs=20)
    right = chains.right_answers(chains.with_policy(members, policy, 1), draw_questions(40))
    assert right.mean() > 0.15  # uniform weights: 0.03


@pytest.mark.slow
def test_tables_say_what_was_found(tmp_path):
    entries = [
        entry("uniform weights", "1000" * 25),
        entry("best fixed weights", "1000" * 25),
        entry("oracle switching", "1111" * 25),
        entry("oracle switching", "1111" * 25, 2),
        entry("mixture", "1111" * 25),
        entry("mixture", "1010" * 25, seed=1),
        entry("mixture", "1000" * 25, 2),
    ]
    table = accuracy_table(entries, [1, 2])
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["uniform weights"][0] == rows["uniform weights"][3] == "0.250"
    assert rows["mixture"][0] == "0.750 ± 0.354"
    assert rows["mixture"][1].startswith("+0.500 [")
    assert rows["mixture"][2].startswith("0.67 [")
    assert rows["mixture"][5] == "0.00 [0.00, 0.00]"
    as_markdown(table, tmp_path / "table.md")
    assert (tmp_path / "table.md").read_text().count("\n") == 2 + len(table.rows)
    as_markdown(replace(table, notes=("a note",)), tmp_path / "table.md")
    assert (tmp_path / "table.md").read_text().endswith(" |\n\na note\n")
    accuracy_picture(entries, [1, 2], tmp_path / "picture.svg")
    assert (tmp_path / "picture.svg").stat().st_size > 1000


def test_learned_policies_are_evaluated_in_several_ways():
    ways = dict(zip(WAYS, (0.5, 0.25, 0.0), strict=True))
    entries = [(Run("shared", 1, "ppo (gae)", seed), {"accuracy": 0.75, "ways": ways}) for seed in (0, 1)]
    others = [entry("uniform weights", "10"), (Run("shared", 1, "ppo (gae)", 2), {"accuracy": 0.0})]
    table = ways_table([*entries, *others], [1])
    assert table.rows == (("ppo (gae)", "0.750 ± 0.000", "0.500 ± 0.000", "0.250 ± 0.000", "0.000 ± 0.000"),)
    assert len(table.headings) == 5
    members, policy = load_demo_members("shared"), load_demo_policy("shared")
    found = ways_of(members, policy, policy.config.span_length, draw_questions(10))
    assert list(found) == list(WAYS)
    assert min(found.values()) >= 0.5


def test_right_answers_are_counted_one_by_one():
    members = load_demo_members("shared")
    questions = draw_questions(10)
    right = chains.right_answers(chains.with_policy(members, chains.FREE_POLICIES["oracle switching"](3), 1), questions)
    assert right.shape == (1, 10)
    assert set(np.unique(right)) <= {0.0, 1.0}
    assert right.mean() >= 0.6
