"""The actions of policies: their densities, their gradients, and their draws."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Categorical, Dirichlet, Normal

from hf_rlae import PolicyConfig
from hf_rlae.policies.actions import LEAST_ALPHA, actions_of
from hf_rlae.policies.configuration_policy import ACTIONS
from hf_rlae.policies.row_numbers import uniforms

KINDS = [(actor, action) for actor, actions in ACTIONS.items() for action in actions]
SCORES = [0.7, -0.4, 0.1]
ROWS = 20_000


def made(actor, action, members=3, **options):
    return actions_of(PolicyConfig(actor=actor, action=action, num_members=members, **options))


def scores_of(rows=1, scores=SCORES):
    return torch.tensor(scores, requires_grad=True)[None].expand(rows, -1)


@pytest.mark.parametrize(("actor", "action"), KINDS)
def test_log_probs_and_entropies(actor, action):
    """They are those of torch's distributions, and minus the entropy is the mean of the log-probabilities."""
    actions, scores = made(actor, action), scores_of(ROWS).detach()
    drawn = actions.draw(scores, range(ROWS))
    found = actions.log_probs(scores, drawn)
    assert found.shape == ((ROWS,) if actor == "joint" else (ROWS, 3))
    weights = scores[0].softmax(0)
    if action == "categorical":
        expected = Categorical(weights).log_prob(drawn.argmax(1))
        if actor == "per_member":
            expected = torch.where(drawn > 0, weights, 1 - weights).log()
    elif action == "dirichlet":
        expected = Dirichlet(20 * weights.double()).log_prob(drawn.double().softmax(-1))
    else:
        expected = Normal(scores, 0.5).log_prob(drawn)
        expected = expected.sum(-1) if actor == "joint" else expected
    torch.testing.assert_close(found, expected.float(), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(-found.mean(0), actions.entropies(scores)[0], atol=0.03, rtol=0)


@pytest.mark.parametrize(("actor", "action"), KINDS)
def test_mean_of_drawn_weights(actor, action):
    """It is the deterministic weights; with normal noise, the mean of the drawn scores is."""
    actions, scores = made(actor, action), scores_of(ROWS).detach()
    drawn = actions.draw(scores, range(ROWS))
    weights = actions.weights(drawn)
    torch.testing.assert_close(weights.sum(1), torch.ones(ROWS))
    mean = drawn.mean(0).softmax(0) if action == "logistic_normal" else weights.mean(0)
    torch.testing.assert_close(mean, scores[0].softmax(0), atol=0.01, rtol=0)


def test_categorical_weights_are_one_hot():
    drawn = made("joint", "categorical").draw(scores_of(50))
    assert torch.equal(drawn.sort(1).values, torch.tensor([0.0, 0.0, 1.0]).expand(50, 3))


def test_agents_of_a_categorical_action_have_its_gradient_together():
    """Law: summed over the agents, the gradient of the log-probabilities is that of the joint distribution."""
    drawn = made("joint", "categorical").draw(scores_of(8))
    gradients = []
    for actor in ("joint", "per_member"):
        scores = scores_of(8)
        found = made(actor, "categorical").log_probs(scores, drawn)
        found = found if actor == "joint" else found.sum(1)
        gradients.append(torch.autograd.grad((found * torch.arange(1.0, 9.0)).sum(), scores)[0])
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().min() > 0.01


def test_an_agent_of_a_categorical_action_changes_its_own_score_only():
    scores = scores_of()
    found = made("per_member", "categorical").log_probs(scores, torch.tensor([[0.0, 1.0, 0.0]]))
    gradient = torch.autograd.grad(found[0, 2], scores)[0]
    assert gradient[0, :2].tolist() == [0, 0]
    assert gradient[0, 2] == pytest.approx(-float(scores.detach().softmax(-1)[0, 2]))


@pytest.mark.parametrize(("actor", "action"), KINDS)
def test_a_single_member(actor, action):
    """Its weight is 1, and everything stays finite, gradients too."""
    actions, scores = made(actor, action, members=1), scores_of(4, [0.3])
    drawn = actions.draw(scores)
    assert actions.weights(drawn).eq(1).all()
    log_probs, entropies = actions.log_probs(scores, drawn), actions.entropies(scores)
    gradient = torch.autograd.grad(log_probs.sum() + entropies.sum(), scores)[0]
    assert all(bool(tensor.isfinite().all()) for tensor in (log_probs, entropies, gradient))
    if action != "logistic_normal":
        assert log_probs.eq(0).all()


@pytest.mark.parametrize(("actor", "action"), KINDS)
@pytest.mark.parametrize("gap", [20.0, 90.0, 1e4])
def test_scores_far_apart(actor, action, gap):
    """Members with next to no weight leave everything finite."""
    actions, scores = made(actor, action), scores_of(200, [0.0, gap, -gap])
    drawn = actions.draw(scores)
    log_probs, entropies = actions.log_probs(scores, drawn), actions.entropies(scores)
    gradient = torch.autograd.grad(log_probs.sum() + entropies.sum(), scores)[0]
    tensors = (actions.weights(drawn), log_probs, entropies, gradient)
    assert all(bool(tensor.isfinite().all()) for tensor in tensors)


def test_small_dirichlet_weights_are_exact():
    """Log-weights have the mean of a Dirichlet's, also far below the smallest number, and unbiased scores."""
    actions = made("joint", "dirichlet", concentration=0.01)
    scores = scores_of(ROWS)
    drawn = actions.draw(scores, range(ROWS)).double()
    parameters = 0.01 * torch.tensor(SCORES).double().softmax(0)
    expected = parameters.digamma() - parameters.sum().digamma()
    error = drawn.std(0) / math.sqrt(ROWS)
    assert ((drawn.mean(0) - expected).abs() < 4 * error).all()
    assert drawn.min() < -1000
    gradient = torch.autograd.grad(actions.log_probs(scores, drawn.float()).mean(), scores)[0]
    total = gradient.sum(0)  # the score of a density has the mean 0
    spread = (gradient * ROWS).std(0) / math.sqrt(ROWS)
    assert (total.abs() < 4 * spread).all()


def test_dirichlet_parameters_have_a_lower_bound():
    actions = made("joint", "dirichlet", concentration=1e-20)
    drawn = actions.draw(scores_of(50, [0.0, 80.0, -80.0]))
    assert drawn.isfinite().all()
    assert drawn.min() > -1e3 / LEAST_ALPHA


def test_row_numbers_are_uniform_and_unrelated():
    """Also of seeds that follow one another: moments, neighbours, and a histogram."""
    numbers = uniforms(range(ROWS), 2)
    assert numbers.min() > 0
    assert numbers.max() < 1
    counts = torch.histc(numbers[:, 0], 20, 0, 1)
    assert float(((counts - ROWS / 20) ** 2 / (ROWS / 20)).sum()) < 43.8  # chi-square with 19 degrees, p = 0.001
    centred = (numbers - 0.5) * math.sqrt(12)
    for one, other in ((centred[1:, 0], centred[:-1, 0]), (centred[:, 0], centred[:, 1])):
        assert abs(float((one * other).mean())) < 4 / math.sqrt(ROWS)
    assert torch.equal(uniforms([7, 2**63 - 1], 5)[:, 2:], uniforms([7, 2**63 - 1], 3, first=2))


def test_configs_with_the_former_name(tmp_path):
    """`distribution` is read, with the former names of its values."""
    for actor, former, action in (
        ("joint", "dirichlet", "dirichlet"),
        ("joint", "logistic_normal", "logistic_normal"),
        ("per_member", "gaussian", "logistic_normal"),
    ):
        fields = PolicyConfig(actor=actor).to_dict()
        del fields["action"]
        config = PolicyConfig.from_dict({**fields, "distribution": former})
        assert config.action == action
        config.save_pretrained(tmp_path)
        again = PolicyConfig.from_pretrained(tmp_path)
        assert again.action == action
        assert not hasattr(again, "distribution")
