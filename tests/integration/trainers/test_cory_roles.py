"""Chains with other roles than a pioneer and observers."""

from __future__ import annotations

import pytest
import torch

from hf_rlae.trainers import CoryPPOTrainer, CoryTrainer
from hf_rlae.trainers.cory.roles import Role, roles
from tests.support.cory import adapters_of, rollout, trainer_of
from tests.support.rlae import vowels


def watched(calls):
    """A reward that judges no critic, and notes what it is given."""

    def reward(completions, role, agent, previous_completions, prompts, **_):
        calls.append((role[0], agent[0], previous_completions, completions, prompts))
        return [None] * len(completions) if role[0] == "critic" else vowels(completions)

    return reward


def test_three_roles_read_and_learn(tmp_path):
    """The critic is not judged, and learns from the observer that reads it; an exchange moves all roles."""
    calls = []
    trainer = trainer_of(
        tmp_path, rewards=watched(calls), roles=["pioneer", "critic", "observer"], role_exchange_steps=1, max_steps=5,
        credit="own",
    )  # fmt: skip
    before = adapters_of(trainer)
    trainer.train()
    assert [call[:2] for call in calls] == [
        ("pioneer", "agent-1"), ("critic", "agent-2"), ("observer", "agent-3"),
        ("pioneer", "agent-3"), ("critic", "agent-1"), ("observer", "agent-2"),
    ]  # fmt: skip
    first, critique, observed = calls[:3]
    assert critique[2] == [[text] for text in first[3]]
    assert observed[2] == [list(texts) for texts in zip(first[3], critique[3], strict=True)]
    assert first[4] == critique[4] == observed[4]
    after = adapters_of(trainer)
    for name in trainer.agents.names:
        assert any(not torch.equal(after[name][key], value) for key, value in before[name].items())
    assert "role/critic/reward" in trainer.state.log_history[0]


def test_shares_of_the_reward(tmp_path, registries):
    """Two pioneers that do not read each other, and a judge with half a share."""
    roles.register("arbiter")(Role("{answers} {prompt}", share=0.5))
    for credit in ("team", "own"):
        calls = []
        chain = ["pioneer", "pioneer", "arbiter"]
        trainer = trainer_of(tmp_path / credit, rewards=watched(calls), roles=chain, credit=credit)
        batch = rollout(trainer)
        assert [call[0] for call in calls] == ["pioneer-1", "pioneer-2", "arbiter"]
        assert calls[1][2] == [[]] * 8
        assert trainer.roles() == {"agent-1": "pioneer-1", "agent-2": "pioneer-2", "agent-3": "arbiter"}
        one, two, judge = (torch.tensor(vowels(call[3])) for call in calls)
        own = {"agent-1": one + judge / 2, "agent-2": two + judge / 2, "agent-3": judge / 2}
        for name in trainer.agents.names:
            expected = own[name] if credit == "own" else one + two + judge / 2
            torch.testing.assert_close(batch[f"{name}/rewards"], expected)


@pytest.mark.parametrize("trainer_class", [CoryTrainer, CoryPPOTrainer])
def test_named_roles_are_the_default_chain(tmp_path, trainer_class):
    """Bit-exactly."""
    options = {"beta": 0.0, "max_steps": 2}
    plain = trainer_of(tmp_path / "plain", trainer_class, num_agents=3, **options)
    plain.train()
    named = trainer_of(tmp_path / "named", trainer_class, roles=["pioneer", "observer", "observer"], **options)
    named.train()
    for name, parameters in adapters_of(plain).items():
        for key, value in adapters_of(named)[name].items():
            assert torch.equal(value, parameters[key])
