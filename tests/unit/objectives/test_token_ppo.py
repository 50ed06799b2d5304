"""PPO over tokens: closed forms, loops over tokens, bounds."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from hf_rlae.errors import ConfigError, NonFiniteError, ObjectiveError
from hf_rlae.objectives import gae, token_ppo
from hf_rlae.objectives.token_ppo import (
    adapted_kl_coef,
    full_token_kls,
    token_kls,
    token_rewards,
    token_value_loss,
)

SHAPES = {"rows": st.integers(1, 4), "length": st.integers(1, 6), "seed": st.integers(0, 10_000)}


def texts(rows, length, seed):
    """Rewards, two tables of log-probabilities and the mask of texts of different lengths, with rubbish behind them."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, length + 1, (rows,), generator=draw)
    mask = torch.arange(length) < lengths[:, None]
    logps, ref_logps = (-torch.rand(rows, length, generator=draw, dtype=torch.float64) * 5 for _ in range(2))
    rewards = torch.randn(rows, generator=draw, dtype=torch.float64)
    return rewards, logps.masked_fill(~mask, torch.nan), ref_logps.masked_fill(~mask, -torch.inf), mask


@given(**SHAPES, kl_coef=st.floats(0, 3))
@settings(max_examples=40)
def test_rewards_of_tokens_are_their_loop(rows, length, seed, kl_coef):
    rewards, logps, ref_logps, mask = texts(rows, length, seed)
    found = token_rewards(rewards, token_kls(logps, ref_logps, mask), mask, kl_coef)
    assert torch.equal(found, token_rewards(rewards, logps - ref_logps, mask, kl_coef))  # rubbish does not count
    for row in range(rows):
        count = int(mask[row].sum())
        for token in range(length):
            expected = 0.0
            if token < count:
                expected = -kl_coef * (float(logps[row, token]) - float(ref_logps[row, token]))
                if token == count - 1:
                    expected += float(rewards[row])
            assert float(found[row, token]) == pytest.approx(expected, abs=1e-12)


@given(**SHAPES, kl_coef=st.floats(0, 3))
@settings(max_examples=40)
def test_a_text_gets_its_reward_less_its_kl(rows, length, seed, kl_coef):
    rewards, logps, ref_logps, mask = texts(rows, length, seed)
    kls = token_kls(logps, ref_logps, mask)
    paid = token_rewards(rewards, kls, mask, kl_coef).sum(1)
    torch.testing.assert_close(paid, rewards - kl_coef * kls.sum(1))


@given(**SHAPES)
@settings(max_examples=40)
def test_without_discount_advantages_are_what_is_still_paid_less_the_value(rows, length, seed):
    """GAE with gamma 1 and lambda 1 over token rewards."""
    rewards, logps, ref_logps, mask = texts(rows, length, seed)
    paid = token_rewards(rewards, token_kls(logps, ref_logps, mask), mask, 0.3)
    values = torch.randn(rows, length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    advantages, returns = gae(paid, values, mask, gamma=1.0, lam=1.0)
    still_paid = paid.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(returns, torch.where(mask, still_paid, 0))
    torch.testing.assert_close(advantages, torch.where(mask, still_paid - values, 0))


def test_a_policy_that_is_the_base_pays_no_kl():
    rewards, logps, _, mask = texts(3, 5, 0)
    kls = token_kls(logps, logps, mask)
    assert not kls.any()
    assert torch.equal(token_rewards(rewards, kls, mask, 9.0).sum(1), rewards)


class _Largest(TorchDispatchMode):
    """The number of elements of the largest fp32 tensor that an operation makes."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.dtype == torch.float32:
            self.size = max(self.size, made.numel())
        return made


def test_full_kls_are_those_of_distributions_in_chunks(monkeypatch):
    """Against PyTorch's own, in any chunks; no fp32 tensor is larger than a chunk."""
    draw = torch.Generator().manual_seed(0)
    logits, ref_logits = (torch.randn(3, 5, 16, generator=draw).bfloat16() for _ in range(2))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]])
    logits[1, 2:], ref_logits[2] = torch.nan, torch.inf  # what does not count
    own, base = ((tensor.float() / 0.5).log_softmax(-1) for tensor in (logits, ref_logits))
    kls = torch.nn.functional.kl_div(base, own, log_target=True, reduction="none").sum(-1)
    expected = torch.where(mask != 0, kls, 0)
    for chunk in (1, 48, 2**24):
        monkeypatch.setattr(token_ppo, "CHUNK", chunk)
        with _Largest() as largest:
            found = full_token_kls(logits, ref_logits, mask, temperature=0.5)
        torch.testing.assert_close(found, expected)
        assert largest.size <= max(chunk, 16)
    assert found.min() >= 0


def test_excluded_ids_have_no_part_in_a_full_kl():
    """0 log 0 is 0; what only the base excludes is infinitely far."""
    logits, ref_logits = torch.tensor([[[0.0, 0.0, -torch.inf]]]), torch.tensor([[[0.0, 0.0, 0.0]]])
    mask = torch.ones(1, 1)
    torch.testing.assert_close(full_token_kls(logits, ref_logits, mask), torch.tensor([[math.log(1.5)]]))
    assert full_token_kls(logits, logits, mask).tolist() == [[0.0]]
    assert full_token_kls(ref_logits, logits, mask).tolist() == [[math.inf]]


def test_sampled_kls_have_the_full_one_as_their_mean():
    draw = torch.Generator().manual_seed(1)
    logits, ref_logits = torch.randn(2, 1, 1, 8, generator=draw)
    logps, ref_logps = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    every = token_kls(logps[0, 0, :, None], ref_logps[0, 0, :, None], torch.ones(8, 1))[:, 0]
    expected = (logps[0, 0].exp() * every).sum()
    torch.testing.assert_close(full_token_kls(logits, ref_logits, torch.ones(1, 1))[0, 0], expected)


@given(**SHAPES, epsilon=st.none() | st.floats(0.01, 2))
@settings(max_examples=40)
def test_the_value_loss_is_its_loop(rows, length, seed, epsilon):
    draw = torch.Generator().manual_seed(seed)
    values, old, returns = (torch.randn(rows, length, generator=draw, dtype=torch.float64) for _ in range(3))
    mask = torch.rand(rows, length, generator=draw) < 0.7
    values.masked_fill_(~mask, torch.nan).requires_grad_()
    loss, metrics = token_value_loss(values, old, returns, mask, epsilon)
    loss.backward()
    terms, gradients, clipped = [], torch.zeros(rows, length, dtype=torch.float64), 0
    for row, token in mask.nonzero().tolist():
        value, before, goal = (float(table[row, token]) for table in (values.detach(), old, returns))
        term, gradient = (value - goal) ** 2 / 2, value - goal
        if epsilon is not None:
            near = min(max(value, before - epsilon), before + epsilon)
            if near != value and (near - goal) ** 2 / 2 > term:
                term, gradient, clipped = (near - goal) ** 2 / 2, 0.0, clipped + 1
        terms.append(term)
        gradients[row, token] = gradient
    count = max(len(terms), 1)
    assert loss.item() == pytest.approx(sum(terms) / count)
    assert metrics["value_loss"].item() == pytest.approx(sum(terms) / count)
    assert metrics["value_clip_ratio"].item() == pytest.approx(clipped / count)
    torch.testing.assert_close(values.grad, gradients / count)


def test_parts_of_a_batch_add_up():
    draw = torch.Generator().manual_seed(3)
    tables = [torch.randn(4, 5, generator=draw) for _ in range(3)]
    mask = torch.rand(4, 5, generator=draw) < 0.6
    whole, _ = token_value_loss(*tables, mask)
    parts = [token_value_loss(*(t[at] for t in tables), mask[at], num_items=mask.sum())[0] for at in ([0], [1, 2, 3])]
    torch.testing.assert_close(sum(parts), whole)


@given(
    kl_coef=st.floats(1e-3, 10), kl=st.floats(-5, 100), target=st.floats(0.01, 50), horizon=st.integers(1, 10_000),
    share=st.floats(0, 1),
)  # fmt: skip
def test_the_coefficient_follows_the_kl_and_never_by_more_than_a_fifth(kl_coef, kl, target, horizon, share):
    num_texts = math.floor(share * horizon)
    found = adapted_kl_coef(kl_coef, kl, target, horizon, num_texts)
    assert 0.8 * kl_coef * (1 - 1e-12) <= found <= 1.2 * kl_coef * (1 + 1e-12)
    if kl > target:
        assert found >= kl_coef
    if kl < target:
        assert found <= kl_coef
    assert adapted_kl_coef(kl_coef, target, target, horizon, num_texts) == kl_coef
    assert adapted_kl_coef(kl_coef, kl, target, horizon, 0) == kl_coef
    assert adapted_kl_coef(0.0, kl, target, horizon, num_texts) == 0.0


def test_the_coefficient_in_closed_form():
    assert adapted_kl_coef(0.2, 6.6, 6.0, 1000, 500) == pytest.approx(0.2 * (1 + 0.1 * 0.5))
    assert adapted_kl_coef(0.2, 600.0, 6.0, 1000, 1000) == pytest.approx(0.24)
    assert adapted_kl_coef(0.2, -3.0, 6.0, 1000, 1000) == pytest.approx(0.16)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: adapted_kl_coef(0.1, math.nan, 6, 10, 1), NonFiniteError, "kl=nan"),
        (lambda: adapted_kl_coef(-0.1, 1, 6, 10, 1), ConfigError, "kl_coef=-0.1"),
        (lambda: adapted_kl_coef(0.1, 1, 0, 10, 1), ConfigError, "target=0"),
        (lambda: adapted_kl_coef(0.1, 1, 6, 10, 11), ConfigError, "num_texts=11.*at most 10.*horizon"),
        (
            lambda: token_rewards(torch.zeros(2), torch.zeros(2, 3), torch.ones(2, 3), -1.0),
            ConfigError,
            "kl_coef=-1.0",
        ),
        (
            lambda: token_rewards(torch.zeros(3), torch.zeros(2, 3), torch.ones(2, 3), 1.0),
            ObjectiveError,
            "kls has shape",
        ),
        (
            lambda: token_kls(torch.zeros(2, 3), torch.zeros(2, 4), torch.ones(2, 3)),
            ObjectiveError,
            "ref_per_token_logps has shape",
        ),
        (
            lambda: full_token_kls(torch.zeros(2, 3, 4), torch.zeros(2, 3, 5), torch.ones(2, 3)),
            ObjectiveError,
            "ref_logits has shape .*: 5 ids, but",
        ),
        (
            lambda: full_token_kls(*[torch.zeros(2, 3, 4)] * 2, torch.ones(2, 3), 0.0),
            ConfigError,
            "temperature=0.0",
        ),
        (
            lambda: token_value_loss(*[torch.zeros(2, 3)] * 3, torch.ones(2, 2)),
            ObjectiveError,
            "mask has shape",
        ),
        (lambda: token_value_loss(*[torch.zeros(2, 3)] * 4, value_epsilon=0.0), ConfigError, "value_epsilon=0.0"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
