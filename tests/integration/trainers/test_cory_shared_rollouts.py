"""Agents that learn from each other's completions."""

from __future__ import annotations

import pytest
import torch

from hf_rlae.objectives.shared_rollouts import shared_advantages
from hf_rlae.trainers import CoryPPOTrainer, CoryRLOOTrainer, CoryTrainer
from tests.support.cory import adapters_of, gradients_of, in_training, rollout, trainer_of
from tests.support.rlae import assert_same, vowels
from tests.support.stopping import StopAt
from tests.support.tiers import slow
from tests.support.token_ppo import scored, unsettle

WIDE = {"shared_rollouts": True, "shared_rollout_delta": 1.0}


def paid(completions, role, **_):
    """Different rewards of the two roles, so that some completions of each are above the mean of both."""
    return [value + 0.02 * (role[0] == "observer") for value in vowels(completions)]


def test_each_row_has_what_the_others_wrote_in_it(tmp_path):
    trainer = trainer_of(tmp_path / "one", rewards=paid, num_agents=3, credit="own", **WIDE)
    unsettle(trainer)
    batch = rollout(trainer)
    plain = trainer_of(tmp_path / "two", rewards=paid, num_agents=3, credit="own")
    unsettle(plain)
    expected = rollout(plain)
    assert {key: value for key, value in batch.items() if "shared:" not in key}.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(batch[key], value), key
    for learner in trainer.agents.names:
        for source in trainer.agents.names:
            start = f"{learner}/shared:{source}:"
            if learner == source:
                assert f"{start}completion_ids" not in batch
                continue
            assert torch.equal(batch[f"{start}completion_ids"], batch[f"{source}/completion_ids"])
            mask, logps = batch[f"{source}/completion_mask"], batch[f"{source}/old_per_token_logps"]
            torch.testing.assert_close(batch[f"{start}source_logps"], (logps * mask).sum(1) / mask.sum(1))
            assert batch[f"{start}advantages"].min() == 0


@pytest.mark.parametrize("trainer_class", [CoryTrainer, CoryRLOOTrainer, CoryPPOTrainer])
def test_gradients_of_shared_completions(tmp_path, trainer_class):
    """What the option adds to each agent's gradient is that of the surrogate, computed from all logits."""
    options = {"beta": 0.0, "max_grad_norm": 0.0, "gradient_checkpointing": True}
    trainer = trainer_of(tmp_path, trainer_class, rewards=paid, **WIDE, **options)
    unsettle(trainer)
    batch = rollout(trainer)
    found = {}
    with in_training(trainer):
        for is_shared in (True, False):
            trainer.args.shared_rollouts = is_shared
            loss = trainer.compute_loss(trainer.model, batch)
            trainer.accelerator.backward(loss)
            found[is_shared] = {name: gradients_of(trainer, name) for name in trainer.agents.names}
            trainer.model.zero_grad()
        for learner, source in (("agent-1", "agent-2"), ("agent-2", "agent-1")):
            own = {key.removeprefix(f"{learner}/"): value for key, value in batch.items() if key.startswith(learner)}
            written = {key.split(":")[2]: value for key, value in own.items() if f"shared:{source}:" in key}
            assert 0 < int((written["advantages"] > 0).sum()) < 8
            with trainer.agents.acting(learner):
                total = 0.0
                for row in range(8):
                    count = int(written["completion_mask"][row].sum())
                    ids = torch.cat([own["prompt_ids"][row], written["completion_ids"][row]])
                    mask = torch.cat([own["prompt_mask"][row], written["completion_mask"][row]])
                    logps = scored(trainer.model, ids, mask, written["completion_ids"].shape[1])[0][:count]
                    ratio = (logps.mean() - written["source_logps"][row]).exp().clamp(max=1.0)
                    total = total - ratio * ratio.detach() * written["advantages"][row] / 8
                total.backward()
            expected = gradients_of(trainer, learner)
            trainer.model.zero_grad()
            assert max(value.abs().max() for value in expected) > 1e-4
            for both, alone, extra in zip(found[True][learner], found[False][learner], expected, strict=True):
                torch.testing.assert_close(both - alone, extra, atol=2e-5, rtol=1e-2)


def test_right_answers_of_the_other_are_learned(tmp_path):
    """The pioneer's own completions earn nothing, and it does not move without the other's."""

    def only_observers(completions, role, **_):
        return vowels(completions) if role[0] == "observer" else [0.0] * len(completions)

    moved = {}
    for is_shared in (False, True):
        trainer = trainer_of(
            tmp_path / str(is_shared), rewards=only_observers, role_exchange_steps=0, credit="difference", beta=0.0,
            knowledge_transfer=False, shared_rollouts=is_shared, shared_rollout_delta=1.0,
        )  # fmt: skip
        before = adapters_of(trainer)["agent-1"]
        trainer.train()
        after = adapters_of(trainer)["agent-1"]
        moved[is_shared] = any(not torch.equal(after[key], value) for key, value in before.items())
        logged = {key for entry in trainer.state.log_history for key in entry}
        names = {"shared/share", "shared/ratio", "shared/clip_ratio"}
        assert (names <= logged) == is_shared
    assert moved == {False: False, True: True}


def test_a_critic_neither_gives_nor_takes(tmp_path):
    trainer = trainer_of(tmp_path, roles=["pioneer", "critic", "observer"], shared_rollouts=True)
    keys = [key for key in rollout(trainer) if "shared:" in key]
    assert {key.split(":")[1] for key in keys} == {"agent-1", "agent-3"}
    assert not any(key.startswith("agent-2/") for key in keys)


def test_advantages_use_each_agents_own_rewards(tmp_path):
    texts = {}

    def kept(completions, role, **_):
        texts[role[0]] = torch.tensor(vowels(completions))
        return vowels(completions)

    batch = rollout(trainer_of(tmp_path, rewards=kept, **WIDE))
    expected = shared_advantages(texts["pioneer"], texts["observer"], 4)
    torch.testing.assert_close(batch["agent-1/shared:agent-2:advantages"], expected)


@pytest.mark.parametrize("trainer_class", [CoryTrainer, *slow(CoryRLOOTrainer, CoryPPOTrainer)])
def test_resumed_to_the_bit(tmp_path, trainer_class):
    saves = {"max_steps": 5, "role_exchange_steps": 2, "save_strategy": "steps", "save_steps": 3, "beta": 0.0, **WIDE}
    whole = trainer_of(tmp_path / "whole", trainer_class, paid, **{**saves, "save_strategy": "no"})
    whole.train()
    trainer_of(tmp_path / "cut", trainer_class, paid, callbacks=[StopAt(3)], **saves).train()
    resumed = trainer_of(tmp_path / "cut", trainer_class, paid, **saves)
    torch.manual_seed(99)
    resumed.train(resume_from_checkpoint=True)
    for name, parameters in adapters_of(whole).items():
        assert_same(adapters_of(resumed)[name], parameters)
