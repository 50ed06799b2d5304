"""`PolicyModel.forward(sample=[seeds])`: the draw of a row depends on its own seed only."""

from __future__ import annotations

import pytest
import torch

from hf_rlae import PolicyConfig, PolicyModel
from hf_rlae.errors import PolicyError
from hf_rlae.policies.configuration_policy import ACTIONS
from tests.support.policies import SIZES, random_state

KINDS = [(actor, action) for actor, actions in ACTIONS.items() for action in actions]


def made(actor, action):
    torch.manual_seed(0)
    config = PolicyConfig(actor=actor, action=action, member_hidden_sizes=list(SIZES), hidden_size=8)
    return PolicyModel(config).eval()


@pytest.mark.parametrize(("actor", "action"), KINDS)
def test_a_row_draws_the_same_in_any_batch(actor, action):
    policy, state = made(actor, action), random_state(rows=4)
    seen = policy.observe(state)
    before = torch.random.get_rng_state()
    whole = policy(seen, sample=[3, 4, 5, 3])
    assert torch.equal(torch.random.get_rng_state(), before)
    alone = policy({name: value[2:3] for name, value in seen.items()}, sample=[5])
    for name in ("weights", "actions", "log_probs", "state_values"):
        torch.testing.assert_close(getattr(whole, name)[2:3], getattr(alone, name))
    rows = {name: value[:1].expand(200, *value.shape[1:]) for name, value in seen.items()}
    drawn = policy(rows, sample=range(200)).actions
    assert len(drawn.unique(dim=0)) == (2 if action == "categorical" else 200)
    assert torch.equal(drawn, policy(rows, sample=range(200)).actions)


@pytest.mark.parametrize("sample", [True, [3, 4, 5, 6]], ids=["anyhow", "seeded"])
@pytest.mark.parametrize(("actor", "action"), KINDS)
def test_log_densities_of_draws_have_gradients(actor, action, sample):
    """A draw is a constant, so its log-density has a gradient with respect to the scores."""
    policy = made(actor, action)
    output = policy(policy.observe(random_state(rows=4)), sample=sample)
    assert not output.actions.requires_grad
    scores = [score.bias for score in policy.heads.scores]
    gradients = torch.autograd.grad((output.log_probs.reshape(4, -1).sum(1) * 2.0 ** torch.arange(4)).sum(), scores)
    assert sum(float(gradient.abs().sum()) for gradient in gradients) > 1e-3


@pytest.mark.parametrize(("actor", "action"), KINDS)
def test_seeded_draws_follow_the_distribution(actor, action):
    """Mean and mean log-density equal those of draws without seeds, within five standard errors."""
    policy = made(actor, action)
    with torch.no_grad():
        for score in policy.heads.scores:
            score.bias.copy_(torch.tensor([0.7, -0.4])[: len(score.bias)])
    seen = {name: value.expand(1500, *value.shape[1:]) for name, value in policy.observe(random_state(rows=1)).items()}
    with torch.no_grad():
        seeded, free = policy(seen, sample=list(range(1500))), policy(seen, sample=True)
    for name in ("weights", "log_probs"):
        one, other = getattr(seeded, name), getattr(free, name)
        error = ((one.var(0) + other.var(0)) / 1500).sqrt()
        assert ((one.mean(0) - other.mean(0)).abs() < 5 * error).all(), name
    assert torch.equal(seeded.log_probs, policy(seen, actions=seeded.actions).log_probs)


def test_nothing_is_drawn_without_seeds_or_where_it_is_switched_off():
    policy, state = made(*KINDS[0]), random_state()
    assert policy(state).actions is None
    with policy.exploring():
        assert policy(state, sample=False).actions is None
        assert policy(state, sample=[1, 2, 3]).actions is not None


def test_a_seed_for_every_row():
    policy, state = made(*KINDS[0]), random_state()
    with pytest.raises(PolicyError, match=r"2 seeds for 3 rows"):
        policy(state, sample=[1, 2])
