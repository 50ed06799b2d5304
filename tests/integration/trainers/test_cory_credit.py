"""Options of credit inside training: what is written, read, learned from, and resumed."""

from __future__ import annotations

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer

from hf_rlae.objectives import group_relative
from hf_rlae.trainers import CoryPPOTrainer, CoryRLOOTrainer, CoryTrainer
from tests.support.cory import adapters_of, base, chats, rollout, trainer_of
from tests.support.rlae import assert_same, data, vowels
from tests.support.stopping import StopAt
from tests.support.tiers import slow


def watched(calls):
    """A reward that notes what it is given."""

    def reward(completions, role, previous_completions, prompts, **_):
        calls.append({"role": role[0], "read": previous_completions, "texts": completions, "prompts": prompts})
        return vowels(completions)

    return reward


def paid(call):
    return torch.tensor(vowels(call["texts"]))


TRAINERS = [(CoryTrainer, {}), (CoryRLOOTrainer, {}), (CoryPPOTrainer, {"beta": 0.0})]


@pytest.mark.parametrize(("trainer_class", "options"), TRAINERS, ids=["GRPO", "RLOO", "PPO"])
def test_shapley_values_of_two_agents(tmp_path, trainer_class, options):
    """The observer also answers alone; texts that are learned from are those of `own`."""
    calls, plain = [], []
    trainer = trainer_of(tmp_path / "one", trainer_class, watched(calls), credit="shapley", **options)
    batch = rollout(trainer)
    assert [(call["role"], bool(call["read"][0])) for call in calls] == [
        ("pioneer", False), ("observer", True), ("observer", False),
    ]  # fmt: skip
    first, observed, alone = map(paid, calls)
    torch.testing.assert_close(batch["agent-1/rewards"], first + (observed - alone) / 2)
    torch.testing.assert_close(batch["agent-2/rewards"], (observed + alone) / 2)
    assert calls[2]["texts"] != calls[1]["texts"]
    assert calls[2]["prompts"] == calls[0]["prompts"]
    rollout(trainer_of(tmp_path / "two", trainer_class, watched(plain), credit="own", **options))
    assert plain == calls[:2]


def test_texts_of_teams_leave_no_trace_in_metrics_and_tables(tmp_path):
    """But they count as tokens."""
    logs = {}
    for credit in ("own", "shapley"):
        trainer = trainer_of(tmp_path / credit, credit=credit, log_completions=True)
        rollout(trainer)
        metrics = trainer._metrics["train"]
        logs[credit] = {name: len(values) for name, values in metrics.items()}, list(trainer._logs["completion"])
        logs[credit] += (metrics["num_tokens"][0], {key: list(value) for key, value in trainer._logs["extra"].items()})
    assert logs["own"][0] == logs["shapley"][0]
    assert logs["own"][1] == logs["shapley"][1]
    assert logs["shapley"][2] > logs["own"][2]
    assert logs["own"][3] == logs["shapley"][3]


def test_shapley_values_of_three_agents_share_out_the_teams_reward(tmp_path):
    calls = []
    trainer = trainer_of(tmp_path, rewards=watched(calls), credit="shapley", roles=["pioneer", "critic", "observer"])
    batch = rollout(trainer)
    assert len(calls) == 2**3 - 1
    assert [len(call["read"][0]) for call in calls] == [0, 1, 2, 0, 0, 1, 1]
    total = sum(batch[f"{name}/rewards"] for name in trainer.agents.names)
    torch.testing.assert_close(total, paid(calls[0]) + paid(calls[2]))  # a critic has no share


def test_conversations_in_teams(tmp_path):
    calls = []
    trainer = trainer_of(tmp_path, given=base(chat=True), train=chats(), rewards=watched(calls), credit="shapley")
    rollout(trainer)
    assert calls[2]["texts"][0][0]["role"] == calls[1]["texts"][0][0]["role"] == "assistant"


def test_differences_inside_training(tmp_path):
    calls = []
    trainer = trainer_of(tmp_path, rewards=watched(calls), credit="difference")
    batch = rollout(trainer)
    assert len(calls) == 2
    own = (paid(calls[0]) + paid(calls[1])).view(2, 4)
    expected = (own - own.mean(1, keepdim=True)) * 4 / 3
    torch.testing.assert_close(batch["agent-1/rewards"], expected.view(-1))
    torch.testing.assert_close(batch["agent-1/advantages"], group_relative(expected.view(-1), 4))


def test_observers_of_a_prompt_share_a_reference(tmp_path):
    calls = []
    trainer = trainer_of(tmp_path, rewards=watched(calls), num_agents=3, observer_groups="shared_reference")
    batch = rollout(trainer)
    first, second, third = calls
    for row in range(8):
        assert second["read"][row] == [first["texts"][row // 4 * 4]]
        assert third["read"][row] == [first["texts"][row // 4 * 4], second["texts"][row // 4 * 4]]
    assert len(first["texts"]) == len(second["texts"]) == len(third["texts"]) == 8
    # a group baseline compares the observers' own rewards, and the pioneer's own ones
    for name, call in zip(trainer.agents.names, calls, strict=True):
        torch.testing.assert_close(batch[f"{name}/advantages"], group_relative(paid(call), 4), rtol=1e-4, atol=1e-3)
    prompts = batch["agent-2/prompt_ids"].masked_fill(batch["agent-2/prompt_mask"] == 0, -1)
    assert all(torch.equal(prompts[row], prompts[row // 4 * 4]) for row in range(8))


def test_advantages_of_normalized_sums(tmp_path):
    """The sum of the agents' own advantages; that of a pioneer alone is TRL's."""
    calls = []
    trainer = trainer_of(tmp_path, rewards=watched(calls), team_normalization=True)
    batch = rollout(trainer)
    expected = group_relative(paid(calls[0]), 4) + group_relative(paid(calls[1]), 4)
    for name in trainer.agents.names:
        torch.testing.assert_close(batch[f"{name}/advantages"], expected, rtol=1e-4, atol=1e-5)


def test_alone_with_normalization_an_agent_learns_as_in_trl(tmp_path):
    options = {"max_steps": 2, "beta": 0.0}
    plain = trainer_of(
        tmp_path / "plain", GRPOTrainer, config_class=GRPOConfig, bf16=False, disable_dropout=True, **options
    )
    plain.train()
    apart = {"knowledge_transfer": False, "role_exchange_steps": 0, "credit": "own", "team_normalization": True}
    team = trainer_of(tmp_path / "team", **apart, **options)
    team.train()
    found = adapters_of(team)["agent-1"]
    for key, value in plain.model.named_parameters():
        if value.requires_grad:
            torch.testing.assert_close(found[key.replace(".default.", ".")], value.detach(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("options", [{"credit": "difference"}, {"credit": "shapley"}, {"team_normalization": True}])
def test_evaluations_report_sums_of_rewards(tmp_path, options):
    """Differences have the mean 0, however good the agents are."""
    calls = []
    trainer = trainer_of(
        tmp_path, rewards=watched(calls), eval_dataset=data(4), per_device_eval_batch_size=16, **options
    )
    found = trainer.evaluate()
    assert len(calls) == 2
    assert found["eval_reward"] == pytest.approx(float(paid(calls[0]).mean() + paid(calls[1]).mean()), abs=1e-5)
    with trainer.alone("agent-2"):
        assert 0 < trainer.evaluate()["eval_reward"] <= 1


RESUMED = [
    {"credit": "shapley"},
    {"observer_groups": "shared_reference", "credit": "difference", "team_normalization": True},
    {"roles": ["pioneer", "critic", "verifier"], "credit": "shapley"},
]


@pytest.mark.parametrize("options", [RESUMED[0], *slow(*RESUMED[1:])], ids=str)
def test_resumed_to_the_bit(tmp_path, options):
    """Within a rollout, at an exchange; the random numbers of further texts belong to the step."""
    saves = {"max_steps": 7, "role_exchange_steps": 2, "save_strategy": "steps", "save_steps": 3, **options}
    whole = trainer_of(tmp_path / "whole", **{**saves, "save_strategy": "no"})
    whole.train()
    trainer_of(tmp_path / "cut", callbacks=[StopAt(3)], **saves).train()
    resumed = trainer_of(tmp_path / "cut", **saves)
    torch.manual_seed(99)
    resumed.train(resume_from_checkpoint=True)
    for name, parameters in adapters_of(whole).items():
        assert_same(adapters_of(resumed)[name], parameters)
