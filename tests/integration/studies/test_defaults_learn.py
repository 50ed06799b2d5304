"""With `RLAEConfig`'s defaults, policies learn to switch between the embedded specialists."""

from __future__ import annotations

import pytest

from hf_rlae import load_demo_members
from tests.studies import chain_policies as chains
from tests.support.tiers import show_figure

ROLLOUTS = 12
LEAST = 0.25
"""Of right answers to held-out questions. The best fixed weights have 0.068, and before the present defaults `ppo` had
0.075 and `mappo` 0.037 after 20 rollouts."""


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["ppo", "mappo"])
def test_policies_learn_with_the_defaults(objective):
    """12 rollouts of 256 texts, members with one tokenizer, span length 1; all but the learning rate is default."""
    members = load_demo_members("shared")
    training = chains.PolicyTraining(objective, rollouts=ROLLOUTS)
    policy, rewards = chains.train_policy(members, 1, training, seed=0)
    ensemble = chains.with_policy(members, policy, 1)
    right = float(chains.right_answers(ensemble, chains.held_out_questions(200)).mean())
    show_figure(f"{objective}: {right:.3f} right after {ROLLOUTS} rollouts (best fixed weights: 0.068)")
    assert len(rewards) == ROLLOUTS
    assert right >= LEAST
