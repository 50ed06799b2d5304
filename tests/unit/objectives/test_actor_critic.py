"""PPO and MAPPO: a loop over spans and agents, clipping, and what they are near the rollout's policy."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Dirichlet

from hf_rlae.objectives import ObjectiveSettings, objectives
from hf_rlae.objectives.surrogate import MAX_LOG_RATIO, kl_estimate
from tests.unit.objectives.batches import batch_of, loss_of

PLAIN = ObjectiveSettings(entropy_coef=0.0)


def by_hand(batch, output, chosen):
    """The loss of one span after the other, in plain numbers."""
    high = 1 + (chosen.epsilon if chosen.epsilon_high is None else chosen.epsilon_high)
    output = {name: tensor.detach() for name, tensor in output.items()}
    rows, value_sum, entropy_sum, count = [], 0.0, 0.0, 0
    for b, mask in enumerate(batch["span_mask"].tolist()):
        row = []
        for s in [s for s, is_span in enumerate(mask) if is_span]:
            count += 1
            advantage = float(batch["advantages"][b, s])
            agents = zip(
                output["log_probs"][b, s].reshape(-1).tolist(),
                batch["old_log_probs"][b, s].reshape(-1).tolist(),
                output["entropies"][b, s].reshape(-1).tolist(),
                strict=True,
            )
            losses, entropies = [], []
            for now, before, entropy in agents:
                ratio = math.exp(now - before)
                clipped = min(max(ratio, 1 - chosen.epsilon), high)
                losses.append(-min(ratio * advantage, clipped * advantage))
                entropies.append(entropy)
            row.append(sum(losses) / len(losses))
            entropy_sum += sum(entropies) / len(entropies)
            value, old, target = (float(t[b, s]) for t in (output["values"], batch["old_values"], batch["returns"]))
            error = (value - target) ** 2
            if chosen.value_epsilon is not None:
                moved = old + min(max(value - old, -chosen.value_epsilon), chosen.value_epsilon)
                error = max(error, (moved - target) ** 2)
            value_sum += error
        rows.append(row)
    if chosen.reduction == "token":
        policy = sum(map(sum, rows)) / count
    else:
        policy = sum(sum(row) / len(row) for row in rows) / len(rows)
    return policy + chosen.value_coef * value_sum / count - chosen.entropy_coef * entropy_sum / count


@pytest.mark.parametrize("name", ["ppo", "mappo"])
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 4),
    spans=st.integers(1, 5),
    members=st.integers(1, 4),
    chosen=st.builds(
        ObjectiveSettings,
        epsilon=st.sampled_from([0.1, 0.2]),
        epsilon_high=st.sampled_from([None, 0.4]),
        value_epsilon=st.sampled_from([None, 0.1]),
        entropy_coef=st.sampled_from([0.0, 0.3]),
        reduction=st.sampled_from(["token", "sequence"]),
    ),
)
@settings(max_examples=40)
def test_by_hand(name, seed, rows, spans, members, chosen):
    batch, output = batch_of(name, seed, rows, spans, members)
    assert loss_of(name, batch, output, chosen)[0].loss.item() == pytest.approx(by_hand(batch, output, chosen))


def test_one_member_makes_mappo_ppo():
    batch, output = batch_of("mappo", members=1)
    found, gradients = loss_of("mappo", batch, output)
    joint = {**batch, "old_log_probs": batch["old_log_probs"][..., 0]}
    same = {key: tensor if key == "values" else tensor[..., 0] for key, tensor in output.items()}
    expected, expected_gradients = loss_of("ppo", joint, same)
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(gradients["log_probs"][..., 0], expected_gradients["log_probs"])
    for key in expected.metrics:
        torch.testing.assert_close(found.metrics[key], expected.metrics[key])


def test_mappo_is_not_ppo_on_the_joint_density():
    """Two agents that move in opposite directions: the joint ratio is 1, each agent's own is clipped."""
    batch = {"span_mask": torch.ones(1, 1), "advantages": torch.tensor([1.0]), "old_log_probs": torch.zeros(1, 1, 2)}
    moved = torch.tensor([[[0.5, -0.5]]], requires_grad=True)
    found, gradients = loss_of("mappo", batch, {"log_probs": moved, "entropies": torch.zeros(1, 1, 2) + 0 * moved})
    assert found.metrics["clip_ratio"].item() == 0.5
    assert gradients["log_probs"][0, 0, 0].item() == 0.0
    assert gradients["log_probs"][0, 0, 1].item() == pytest.approx(-math.exp(-0.5) / 2)


def test_at_the_rollouts_policy_it_is_reinforce():
    """The gradient is that of `-mean(A log p)`, through a real density."""
    scores = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1], [1, 0], [1, 1]])
    density = Dirichlet(5 * scores.softmax(-1))
    actions, advantages = density.sample(), torch.randn(3, 2, dtype=torch.float64)
    log_probs = density.log_prob(actions)
    batch = {"span_mask": mask, "advantages": advantages, "old_log_probs": log_probs.detach()}
    loss = objectives["ppo"]().loss(batch, {"log_probs": log_probs, "entropies": density.entropy()}, PLAIN).loss
    (found,) = torch.autograd.grad(loss, scores, retain_graph=True)
    (expected,) = torch.autograd.grad(-(advantages * log_probs * mask).sum() / 5, scores)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "is_clipped"),
    [
        (0.5, 1.0, True),  # likelier already, and good
        (0.5, -1.0, False),  # likelier, but bad: back
        (-0.5, 1.0, False),  # unlikelier, but good: back
        (-0.5, -1.0, True),  # unlikelier already, and bad
        (0.1, 1.0, False),
        (-0.1, -1.0, False),
        (0.5, 0.0, False),
    ],
)
def test_clipping(log_ratio, advantage, is_clipped):
    """The gradient is exactly 0 where a ratio is clipped, and minus ratio times advantage elsewhere."""
    log_probs = torch.tensor([[log_ratio]], dtype=torch.float64, requires_grad=True)
    batch = {"span_mask": torch.ones(1, 1), "advantages": torch.tensor([advantage]), "old_log_probs": torch.zeros(1, 1)}
    found, gradients = loss_of("ppo", batch, {"log_probs": log_probs, "entropies": 0 * log_probs}, PLAIN)
    assert found.metrics["clip_ratio"].item() == float(is_clipped)
    expected = 0.0 if is_clipped else -math.exp(log_ratio) * advantage
    assert gradients["log_probs"].item() == pytest.approx(expected, abs=1e-12)
    assert found.metrics["ratio_max"].item() == pytest.approx(math.exp(log_ratio))


def test_the_upper_bound_can_be_another_one():
    log_probs = torch.tensor([[math.log(1.25)]], requires_grad=True)
    batch = {"span_mask": torch.ones(1, 1), "advantages": torch.ones(1), "old_log_probs": torch.zeros(1, 1)}
    output = {"log_probs": log_probs, "entropies": torch.zeros(1, 1)}
    for chosen, expected in ((PLAIN, 1.0), (ObjectiveSettings(epsilon_high=0.28), 0.0)):
        found = objectives["ppo"]().loss(batch, output, chosen)
        assert found.metrics["clip_ratio"].item() == expected


@pytest.mark.parametrize(
    ("value", "before", "target", "gradient"),
    [
        (0.5, 0.0, 1.0, 0.0),  # has moved 0.5 towards the target, which is more than 0.2
        (0.1, 0.0, 1.0, 2 * (0.1 - 1.0)),
        (-0.5, 0.0, 1.0, 2 * (-0.5 - 1.0)),  # has moved away: back
    ],
)
def test_value_clipping(value, before, target, gradient):
    values = torch.tensor([[value]], dtype=torch.float64, requires_grad=True)
    zeros = torch.zeros(1, 1)
    batch = {
        "span_mask": torch.ones(1, 1),
        "advantages": torch.zeros(1),
        "old_log_probs": zeros,
        "old_values": torch.tensor([[before]]),
        "returns": torch.tensor([[target]]),
    }
    output = {"values": values, "log_probs": zeros + 0 * values, "entropies": 0 * values}
    found, gradients = loss_of("ppo", batch, output, ObjectiveSettings(value_coef=1.0))
    assert gradients["values"].item() == pytest.approx(gradient)
    assert found.metrics["value_clip_ratio"].item() == float(gradient == 0.0)


def test_entropy_bonus_raises_entropy():
    """One step down the loss, with nothing else in it, makes the distribution broader."""
    scores = torch.tensor([[[2.0, 0.0]]], requires_grad=True)
    weights = scores.softmax(-1)
    entropy = -(weights * weights.log()).sum(-1)
    zeros = torch.zeros(1, 1)
    batch = {"span_mask": torch.ones(1, 1), "advantages": torch.zeros(1), "old_log_probs": zeros}
    loss = objectives["ppo"]().loss(batch, {"log_probs": zeros, "entropies": entropy}, ObjectiveSettings()).loss
    (gradient,) = torch.autograd.grad(loss, scores)
    assert gradient[0, 0, 0] > 0 > gradient[0, 0, 1]


def test_kl_estimate():
    """Over all actions of the rollout's policy its mean is the KL divergence; it is never negative."""
    old, new = torch.randn(2, 6, dtype=torch.float64).softmax(-1).unbind()
    estimates = kl_estimate(new / old)
    assert bool((estimates >= 0).all())
    torch.testing.assert_close((old * estimates).sum(), (old * (old / new).log()).sum())
    assert kl_estimate(torch.ones(1)).item() == 0.0
    assert bool(kl_estimate(torch.zeros(1)).isfinite())


def test_far_away_policies_stay_finite():
    """Densities can be apart by more than fp32 holds."""
    log_probs = torch.tensor([[500.0, -500.0]], requires_grad=True)
    batch = {
        "span_mask": torch.ones(1, 2),
        "advantages": torch.tensor([[0.0, 1.0]]),
        "old_log_probs": torch.zeros(1, 2),
    }
    found, gradients = loss_of("ppo", batch, {"log_probs": log_probs, "entropies": 0 * log_probs}, PLAIN)
    assert bool(found.loss.isfinite())
    assert bool(gradients["log_probs"].isfinite().all())
    assert found.metrics["ratio_max"].item() == pytest.approx(math.exp(MAX_LOG_RATIO), rel=1e-4)


def test_explained_variance():
    """Of the values that the rollout had."""
    batch, output = batch_of("ppo")
    mask = batch["span_mask"]
    for before, expected in ((batch["returns"], 1.0), (torch.full_like(batch["returns"], 3.0), 0.0)):
        found, _ = loss_of("ppo", {**batch, "old_values": before}, output)
        assert found.metrics["explained_variance"].item() == pytest.approx(expected)
    returns = batch["returns"].masked_fill(~mask, 77.0)
    halved = loss_of("ppo", {**batch, "returns": returns, "old_values": returns / 2}, output)[0]
    assert halved.metrics["explained_variance"].item() == pytest.approx(0.75)
    constant = loss_of("ppo", {**batch, "returns": torch.ones_like(returns)}, output)[0]
    assert math.isnan(constant.metrics["explained_variance"].item())
