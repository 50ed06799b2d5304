"""The surrogate of completions that another agent wrote, against loops and by its limits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_rlae.errors import ConfigError, ObjectiveError
from hf_rlae.objectives.shared_rollouts import shared_advantages, shared_rollout_loss


def naive(logps, source, mask, advantages, delta, alpha):
    """The loss and its gradient by loops over completions and tokens."""
    loss, gradient = 0.0, torch.zeros_like(logps)
    for row, gain in enumerate(advantages.tolist()):
        tokens = [at for at in range(logps.shape[1]) if mask[row, at]]
        if not gain or not tokens:
            continue
        ratio = math.exp(sum(float(logps[row, at]) for at in tokens) / len(tokens) - float(source[row]))
        clipped = min(max(ratio, 1 - delta), 1.0)
        loss -= clipped ** (1 + alpha) * gain
        for at in tokens:
            gradient[row, at] = -gain * clipped**alpha * ratio / len(tokens) if ratio == clipped else 0.0
    return loss, gradient


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.2, 0.7, 1.0]), st.sampled_from([0.0, 1.0, 2.5]))
def test_loss_and_gradient(seed, delta, alpha):
    draw = torch.Generator().manual_seed(seed)
    mask = torch.arange(5) < torch.randint(0, 6, (4, 1), generator=draw)
    logps = -torch.rand(4, 5, generator=draw, dtype=torch.float64)
    advantages = torch.tensor([0.0, 1.0, 0.5, 2.0], dtype=torch.float64)
    source = -torch.rand(4, generator=draw, dtype=torch.float64)
    expected, gradient = naive(logps, source, mask, advantages, delta, alpha)
    given_logps = logps.masked_fill(~mask, torch.nan).requires_grad_()  # what does not count
    loss, metrics = shared_rollout_loss(given_logps, source, mask, advantages, delta, alpha)
    assert float(loss) == pytest.approx(expected, abs=1e-12)
    loss.backward()
    torch.testing.assert_close(given_logps.grad.nan_to_num(), gradient)
    assert 0 <= metrics["shared/clip_ratio"] <= 1


def test_advantages_are_to_the_mean_of_both_agents():
    own, other = torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([1.0, 0.0, torch.nan, 1.0])
    found = shared_advantages(own, other, 2)
    for start in (0, 2):
        both = [*own[start : start + 2].tolist(), *other[start : start + 2].tolist()]
        judged = torch.tensor([value for value in both if not math.isnan(value)])
        for at in range(2):
            value = both[2 + at]
            gain = 0.0 if math.isnan(value) else max(0.0, float((value - judged.mean()) / (judged.std() + 1e-4)))
            assert float(found[start + at]) == pytest.approx(gain, rel=1e-5)
    assert not shared_advantages(torch.ones(2), torch.ones(2), 2).any()  # all are right: nothing to learn


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"delta": 1.5}, ConfigError, "delta=1.5"),
        ({"alpha": -1.0}, ConfigError, "alpha=-1.0"),
        ({"source_logps": torch.zeros(3)}, ObjectiveError, "source_logps has shape"),
    ],
)
def test_bad_input_is_named(change, error, message):
    given = {"per_token_logps": torch.zeros(2, 3), "source_logps": torch.zeros(2), "mask": torch.ones(2, 3)}
    with pytest.raises(error, match=message):
        shared_rollout_loss(**{**given, "advantages": torch.ones(2), **change})
