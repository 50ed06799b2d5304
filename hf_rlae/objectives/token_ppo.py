"""PPO over tokens with the KL to a base model in the reward, for fine-tuning a language model."""

from __future__ import annotations

import math

import torch

from hf_rlae.checks import NOT_NEGATIVE, POSITIVE, Bounds, check_number
from hf_rlae.errors import NonFiniteError
from hf_rlae.objectives.advantages import terminal_rewards
from hf_rlae.objectives.checks import check_axes
from hf_rlae.objectives.reductions import Number
from hf_rlae.objectives.settings import ObjectiveSettings
from hf_rlae.objectives.surrogate import Metrics, value_term

MAX_KL_ERROR = 0.2
"""The share by which a KL counts as too large or too small at most, however far it is from its target."""


CHUNK = 2**24
"""Logits that are copied to fp32 at once."""


@torch.no_grad()
def token_kls(per_token_logps: torch.Tensor, ref_per_token_logps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Each token's contribution to the KL to the base model: `log pi(y_t) - log pi_base(y_t)`.

    The sum over a completion of the policy has the expectation `KL(pi || pi_base)` over completions; single terms may
    be negative.

    Source: Ziegler et al. (arXiv 1909.08593), section 2.

    Args:
        per_token_logps (`torch.Tensor` of shape `(B, T)`): of the policy that wrote the completions, in nats.
        ref_per_token_logps (`torch.Tensor` of shape `(B, T)`): of the base model, in nats.
        mask (`torch.Tensor` of shape `(B, T)`): 1 for tokens that count.

    Returns:
        `torch.Tensor` of shape `(B, T)`: 0 where a token does not count.

    Raises:
        ObjectiveError: shapes that do not fit.

    Example:

    >>> token_kls(torch.tensor([[-1.0, -0.5]]), torch.tensor([[-2.0, torch.nan]]), torch.tensor([[1, 0]]))
    tensor([[1., 0.]])
    """
    given = {"per_token_logps": per_token_logps, "ref_per_token_logps": ref_per_token_logps, "mask": mask}
    check_axes(given, dict.fromkeys(given, ("BT",)))
    return torch.where(mask != 0, per_token_logps - ref_per_token_logps, 0)


@torch.no_grad()
def full_token_kls(
    logits: torch.Tensor, ref_logits: torch.Tensor, mask: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """Each token's KL to the base model over the vocabulary: `sum_v pi(v) (log pi(v) - log pi_base(v))`.

    It is the expectation of [`token_kls`] over the token, so it has less variance and is never negative. It is
    computed in fp32 for a few positions at a time, so that there is no fp32 copy of all logits.

    Source: CORY (arXiv 2410.06101), whose penalty is the KL of the policy's distribution; public code, TRL's former
    `PPOTrainer` with `kl_penalty="full"`.

    Args:
        logits (`torch.Tensor` of shape `(B, T, V)`): of the policy, before each token; -inf for ids that it excludes.
        ref_logits (`torch.Tensor` of shape `(B, T, V)`): of the base model.
        mask (`torch.Tensor` of shape `(B, T)`): 1 for tokens that count.
        temperature (`float`, defaults to 1.0): both logits are divided by it; above 0.

    Returns:
        `torch.Tensor` of shape `(B, T)`: in nats, 0 where a token does not count.

    Raises:
        ObjectiveError: shapes that do not fit.
        ConfigError: `temperature` is not above 0.

    Example:

    >>> logits, uniform = torch.tensor([[[0.0, 0.0], [30.0, 0.0]]]), torch.zeros(1, 2, 2)
    >>> full_token_kls(logits, uniform, torch.tensor([[1, 1]]))  # 0 and log 2
    tensor([[0.0000, 0.6931]])
    """
    given = {"logits": logits, "ref_logits": ref_logits, "mask": mask}
    check_axes(given, {"logits": ("BTV",), "ref_logits": ("BTV",), "mask": ("BT",)})
    check_number("temperature", temperature, POSITIVE)
    kls = torch.zeros(mask.shape, dtype=torch.float32, device=logits.device)
    rows, places = mask.nonzero(as_tuple=True)
    for at in torch.arange(len(rows), device=rows.device).split(max(1, CHUNK // logits.shape[-1])):
        where = rows[at], places[at]
        logps = (logits[where].float() / temperature).log_softmax(-1)
        ref_logps = (ref_logits[where].float() / temperature).log_softmax(-1)
        terms = torch.where(logps > -math.inf, logps - ref_logps, 0)  # 0 log 0 is 0
        kls[where] = (logps.exp() * terms).sum(-1)
    return kls


@torch.no_grad()
def token_rewards(rewards: torch.Tensor, kls: torch.Tensor, mask: torch.Tensor, kl_coef: float) -> torch.Tensor:
    """Rewards per token: `-kl_coef * kl_t` at each token, plus the completion's own reward at its last one.

    They sum to `reward - kl_coef * sum of the KLs`. Leave completions that could not be judged out of the mask: rewards
    that are not finite are not masked for you.

    Source: Ziegler et al. (arXiv 1909.08593), section 2; the split over tokens: public code, TRL's former
    `PPOTrainer`.

    Args:
        rewards (`torch.Tensor` of shape `(B,)`): of the finished completions.
        kls (`torch.Tensor` of shape `(B, T)`): see [`token_kls`] and [`full_token_kls`], in nats.
        mask (`torch.Tensor` of shape `(B, T)`): 1 for tokens that count.
        kl_coef (`float`): units of the reward per nat, at least 0.

    Returns:
        `torch.Tensor` of shape `(B, T)`: 0 where a token does not count.

    Raises:
        ObjectiveError: shapes that do not fit.
        ConfigError: `kl_coef` below 0 or not finite.

    Example:

    >>> mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    >>> token_rewards(torch.tensor([1.0, 0.5]), torch.full((2, 3), 2.0), mask, kl_coef=0.25)
    tensor([[-0.5000, -0.5000,  0.5000],
            [ 0.0000,  0.0000,  0.0000]])
    """
    check_axes({"rewards": rewards, "kls": kls, "mask": mask}, {"rewards": ("B",), "kls": ("BT",), "mask": ("BT",)})
    check_number("kl_coef", kl_coef, NOT_NEGATIVE)
    return terminal_rewards(rewards, mask) - kl_coef * torch.where(mask != 0, kls, 0)


def token_value_loss(
    values: torch.Tensor,
    old_values: torch.Tensor,
    returns: torch.Tensor,
    mask: torch.Tensor,
    value_epsilon: float | None = 0.2,
    num_items: Number | None = None,
) -> tuple[torch.Tensor, Metrics]:
    """Half of the critic's squared error, clipped; the mean over tokens.

    `1/2 max((V - R)^2, (V_old + clip(V - V_old, -value_epsilon, value_epsilon) - R)^2)`.

    Source: public code, TRL's former `PPOTrainer`, including the factor of one half.

    Args:
        values, old_values, returns (`torch.Tensor` of shape `(B, T)`): the critic's estimates now and in the rollout,
            and their targets, see [`gae`].
        mask (`torch.Tensor` of shape `(B, T)`): 1 for tokens that count; the others may hold anything.
        value_epsilon (`float`, *optional*, defaults to 0.2): in units of the reward; `None` for no clipping.
        num_items (`float` or 0-d `torch.Tensor`, *optional*): the divisor of the sum over tokens; by default the
            number of tokens that count.

    Returns:
        `(loss, metrics)`: the loss has a gradient to `values`. The metrics are `value_loss`, the same without
        `num_items`, and `value_clip_ratio`, the share of tokens that are clipped and have no gradient.

    Raises:
        ObjectiveError: shapes that do not fit.
        ConfigError: `value_epsilon` is not above 0.

    Example:

    >>> values = torch.tensor([[1.0, 3.0]], requires_grad=True)
    >>> zeros, returns = torch.zeros(1, 2), torch.ones(1, 2)
    >>> loss, metrics = token_value_loss(values, zeros, returns, torch.tensor([[1, 1]]))
    >>> loss, metrics["value_clip_ratio"]  # 0.8 off after clipping against 0; 2 off
    (tensor(1.1600, grad_fn=<MulBackward0>), tensor(0.5000))
    """
    given = {"values": values, "old_values": old_values, "returns": returns, "mask": mask}
    check_axes(given, dict.fromkeys(given, ("BT",)))
    keep = mask != 0
    settings = ObjectiveSettings(value_epsilon=value_epsilon)
    items = {"spans": keep.sum() if num_items is None else num_items}
    loss, metrics = value_term(
        {"returns": returns, "old_values": old_values}, {"values": values}, keep, settings, items
    )
    return 0.5 * loss, {
        "value_loss": 0.5 * metrics["value_loss"],
        "value_clip_ratio": metrics["value_clip_ratio"],
    }


def adapted_kl_coef(kl_coef: float, kl: float, target: float, horizon: float, num_texts: int) -> float:
    """The next KL coefficient: larger after a KL above the target, smaller after one below.

    `kl_coef * (1 + clip(kl / target - 1, -0.2, 0.2) * num_texts / horizon)`: between 0.8 and 1.2 times the current one.

    Source: Ziegler et al. (arXiv 1909.08593), section 2.2; `num_texts / horizon`: public code, TRL's former
    `PPOTrainer`.

    Args:
        kl_coef (`float`): the current coefficient, at least 0; 0 stays 0.
        kl (`float`): mean over the completions of a rollout of the sum of their [`token_kls`], in nats.
        target (`float`): the target KL, in nats per completion, above 0.
        horizon (`float`): the number of completions over which the coefficient changes by at most a fifth.
        num_texts (`int`): completions of the rollout, at most `horizon`.

    Returns:
        `float`.

    Raises:
        NonFiniteError: `kl` is NaN or infinite.
        ConfigError: another number is out of range.

    Example:

    >>> adapted_kl_coef(0.5, kl=12.0, target=6.0, horizon=100, num_texts=50)
    0.55
    """
    if not math.isfinite(kl):
        raise NonFiniteError(f"kl={kl}: the KL to the base model is not finite; check the log-probabilities")
    check_number("kl_coef", kl_coef, NOT_NEGATIVE)
    check_number("target", target, POSITIVE)
    check_number("num_texts", num_texts, Bounds(0, horizon, note="give a larger horizon"))
    error = min(max(kl / target - 1, -MAX_KL_ERROR), MAX_KL_ERROR)
    return kl_coef * (1 + error * num_texts / horizon)
