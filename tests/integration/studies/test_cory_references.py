"""The study of CORY with a base that can use a reference, in small: the base, what is watched, families, tables."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from hf_rlae.errors import CheckpointError
from tests.studies.cory_references import __main__ as study
from tests.studies.cory_references import base as bases
from tests.studies.cory_references import tables, watch
from tests.studies.cory_references.families import FAMILIES, GRPO, PPO, trainer_of
from tests.studies.cory_references.run import Run
from tests.studies.cory_references.watch import ALONE, IN_ROLE, OWN_ANSWER, TEAM, UNTRAINED, Pass, look
from tests.support.tiers import slow
from tests.support.token_ppo import unsettle

TINY = bases.Pretraining(hidden_size=16, num_layers=1, steps=2, batch_size=8)
SETTINGS = {**study.NUMBERS, **study.QUICK}
MAIN = list(FAMILIES)[:6]
PROMPTS, RIGHT = ["7+5=", "12+34=", "99+99="], ["12", "46", "198"]


@pytest.fixture(scope="module")
def base():
    return bases.build_model(TINY, bases.build_tokenizer()).eval()


def made(name, base, folder):
    own = bases.build_model(TINY, bases.build_tokenizer())
    own.load_state_dict(base.state_dict())
    return trainer_of(FAMILIES[name], own, 1e-3, 0, 3, SETTINGS, str(folder))


# -- the base -------------------------------------------------------------------------------------------------


def test_an_answer_has_the_product_of_its_tokens_probabilities(base):
    tokenizer = bases.build_tokenizer()
    found = bases.answer_logps(base, tokenizer, PROMPTS, RIGHT)
    for prompt, right, logp in zip(PROMPTS, RIGHT, found.tolist(), strict=True):
        ids, expected = tokenizer(prompt)["input_ids"], 0.0
        for token in [*tokenizer(right)["input_ids"], tokenizer.eos_token_id]:
            with torch.no_grad():
                expected += base(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[token].item()
            ids = [*ids, token]
        assert logp == pytest.approx(expected, abs=1e-4)


def test_evaluation_questions_are_held_out():
    train, held_out = (set(map(tuple, part.tolist())) for part in bases.split_questions(0))
    assert (len(train | held_out), len(held_out)) == (bases.NUMBERS**2, bases.NUM_HELD_OUT)
    assert not train & held_out


def test_wrong_references_are_wrong():
    rng = np.random.default_rng(0)
    assert all(bases.wrong_sum(rng, right) not in (right, -1) for right in (0, 1, 99, 198) for _ in range(200))


def test_the_base_is_trained_again_and_has_to_be_the_same(tmp_path):
    first = bases.prepare_base(tmp_path, TINY)
    weights = tmp_path / "weights" / "model.safetensors"
    weights.unlink()
    assert bases.prepare_base(tmp_path, TINY) == first
    weights.unlink()
    with pytest.raises(CheckpointError, match="describes other weights"):
        bases.prepare_base(tmp_path, replace(TINY, seed=1))
    assert not weights.exists()


# -- what is watched ------------------------------------------------------------------------------------------


def test_all_views_of_two_agents(base, tmp_path):
    trainer = made("CORY-PPO own", base, tmp_path)
    unsettle(trainer)
    trainer.model.eval()
    views = look(trainer, PROMPTS, RIGHT, bases.ANSWER_TOKENS)
    assert look(trainer, PROMPTS, RIGHT, bases.ANSWER_TOKENS) == views
    alone, untrained = views[ALONE], views[f"{IN_ROLE}, {UNTRAINED}"]
    assert list(alone) == ["agent-1", "agent-2"]
    assert alone["agent-1"] != alone["agent-2"]
    with trainer.alone("agent-2"):
        logps = bases.answer_logps(trainer.model, trainer.processing_class, PROMPTS, RIGHT)
    assert alone["agent-2"][0] == pytest.approx(logps.exp().mean().item())
    for agent, (reward, kl, text_kl) in alone.items():
        assert min(reward, kl) > 0
        assert text_kl >= kl
        team = views[f"{TEAM}, {UNTRAINED}"][agent]
        assert untrained[agent] == pytest.approx([(reward + team[0]) / 2, kl / 2, text_kl / 2])  # the base has no KL
        own, own_team = views[f"{IN_ROLE}, {OWN_ANSWER}"][agent], views[f"{TEAM}, {OWN_ANSWER}"][agent]
        assert own[0] == pytest.approx((reward + own_team[0]) / 2)
        assert own[1:] == own_team[1:]
    in_role, team = views[IN_ROLE]["agents"], views[TEAM]["agents"]
    pioneers = sum(reward for reward, _, _ in alone.values()) / 2
    assert in_role[0] == pytest.approx((pioneers + team[0]) / 2)
    assert in_role[1:] == team[1:]
    assert in_role[1] not in {row[1] for row in alone.values()}


def test_an_answer_and_its_reference_have_different_random_numbers(base, tmp_path, monkeypatch):
    trainer, asked = made("CORY-PPO own, three agents", base, tmp_path), {}
    monkeypatch.setattr(
        watch,
        "answered",
        lambda *args, seed: asked.setdefault(args[2][0].count("\n"), set()).add(seed) or Pass(["1"] * 3, 0, 0, 0),
    )
    watch.look(trainer, PROMPTS, RIGHT, bases.ANSWER_TOKENS)
    assert asked == {0: {0}, 1: {1}, 2: {2}}  # by the number of references


def test_a_single_agent_has_no_other_role(base, tmp_path):
    trainer = made(GRPO, base, tmp_path)
    trainer.model.eval()
    views = look(trainer, PROMPTS, RIGHT, bases.ANSWER_TOKENS)
    assert set(views) == {
        ALONE,
        *(f"{view}, {control}" for view in (IN_ROLE, TEAM) for control in (UNTRAINED, OWN_ANSWER)),
    }
    kls = {row[1] for rows in views.values() for row in rows.values()}
    assert max(kls) < 1e-6  # a new adapter changes nothing
    assert views[f"{TEAM}, {UNTRAINED}"]["agent-1"][0] == pytest.approx(views[f"{TEAM}, {OWN_ANSWER}"]["agent-1"][0])


# -- families -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*MAIN, *slow(*(name for name in FAMILIES if name not in MAIN))])
def test_families_differ_in_what_they_say_alone(name, base, tmp_path):
    family, trainer = FAMILIES[name], made(name, base, tmp_path)
    args = trainer.args
    assert type(trainer) is family.trainer
    assert args.generation_batch_size == family.texts * SETTINGS["texts"]
    assert args.generation_batch_size == SETTINGS["updates"] * args.per_device_train_batch_size
    assert args.num_generations == SETTINGS["generations"]
    assert (args.learning_rate, args.max_steps) == (1e-3, 3 * family.steps(SETTINGS))
    assert trainer.model.peft_config["default"].r == SETTINGS["rank"]
    assert args.beta == (0.0 if family.is_ppo else SETTINGS["beta"])
    assert all(getattr(args, option) == value for option, value in family.options.items())
    assert family.reference == (PPO if "PPO" in name else GRPO)
    assert family.agents == (len(trainer.agents.names) if family.is_cory else 1)
    if family.is_cory:
        assert args.role_exchange_steps == SETTINGS["exchange"] * family.steps(SETTINGS)


def test_the_first_seed_has_all_families_before_the_second(tmp_path):
    runs = study.planned([PPO, GRPO], [1e-3, 3e-3], 3, 5, tmp_path)
    assert len({run.name for run in runs}) == 12
    assert {(run.family, run.rate) for run in runs[:4]} == {(f, r) for f in (PPO, GRPO) for r in (1e-3, 3e-3)}
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)


# -- tables ---------------------------------------------------------------------------------------------------


def entry(method, seed, **slopes):
    """A run that goes from 0.5 to 0.7; in each view the KL is a multiple of the gain in reward."""
    rewards = np.linspace(0.5, 0.7, 21)
    reference = PPO if "PPO" in method else GRPO
    views = {
        view.replace("_", " "): {"agents": [[float(n), r, slope * (r - 0.5), 0.0] for n, r in enumerate(rewards)]}
        for view, slope in slopes.items()
    }
    return {
        "method": method, "reference": reference, "rate": 1e-3, "seed": seed, "steps": 4, "texts": 8,
        "texts_an_agent": 4, "training_seconds": 2.0 if reference == method else 5.0, "views": views,
    }  # fmt: skip


def test_kls_are_compared_with_the_single_agents_alone():
    entries = [entry(PPO, seed, alone=1.0) for seed in range(3)]
    entries += [entry("CORY-PPO own", seed, alone=1.25, in_role=0.75, team=0.5) for seed in range(3)]
    levels = tables.reward_levels(entries)
    top = np.mean([0.68, 0.69, 0.7])
    assert levels == pytest.approx([0.5 + share * (top - 0.5) for share in tables.SHARES], abs=1e-3)
    for view, ratio in ((ALONE, 1.25), (IN_ROLE, 0.75), (TEAM, 0.5)):
        rows = {row[0]: row[2:] for row in tables.kl_table(entries, view).rows}
        assert rows[PPO][:2] == (f"{levels[0] - 0.5:.3f} (3 of 3)", "1")
        assert rows["CORY-PPO own"][1] == f"{ratio:.2f} [{ratio:.2f}, {ratio:.2f}]"
    row = next(row for row in tables.compute_table(entries).rows if row[0] == "CORY-PPO own")
    assert row == ("CORY-PPO own", "3", "4", "8", "4", "5.0 ± 0.0", "2.50")


def test_runs_that_do_not_reach_a_reward_are_counted():
    low = entry("CORY-PPO own", 3, alone=1.0)
    low["views"][ALONE]["agents"] = [[float(n), 0.5, 0.0, 0.0] for n in range(21)]
    entries = [*(entry(PPO, seed, alone=1.0) for seed in range(2)), entry("CORY-PPO own", 0, alone=1.0), low]
    rows = {row[0]: row[2:] for row in tables.kl_table(entries, ALONE).rows}
    assert rows["CORY-PPO own"][0].endswith("(1 of 2)")
    assert rows["CORY-PPO own"][1] == ""  # one run gives no interval


# -- the command ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_measures_writes_and_goes_on(tmp_path, monkeypatch):
    chosen = ["--quick", "--jobs", "1", "--output", str(tmp_path), "--families", PPO, "CORY-GRPO Shapley"]
    threads = torch.get_num_threads()
    try:
        study.main(chosen)
        monkeypatch.setattr(Run, "measure", lambda *_: pytest.fail("measured again"))
        study.main(chosen)
    finally:
        torch.set_num_threads(threads)
    found = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*.json")}
    assert {one["method"]: one["texts"] for one in found.values()} == {PPO: 16, "CORY-GRPO Shapley": 48}
    for one in found.values():
        assert one["commit"]
        for rows in (rows for curves in one["views"].values() for rows in curves.values()):
            assert [row[0] for row in rows] == [one["steps"] * n / 2 for n in range(3)]
            assert all(math.isfinite(value) for row in rows for value in row)
    for name in ("alone", "in_role", "team", "ends", "compute"):
        assert (tmp_path / f"{name}.md").read_text()
    assert (tmp_path / "alone.png").exists()
    assert not any(str(tmp_path) in path.read_text() for path in tmp_path.rglob("*.json"))
