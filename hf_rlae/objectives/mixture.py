"""The mixture gradient: the ensemble itself is the policy over tokens, and the weights are its parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hf_rlae.errors import ObjectiveError
from hf_rlae.objectives.checks import check_axes
from hf_rlae.objectives.objective import Objective, ObjectiveOutput, Tensors, objectives
from hf_rlae.objectives.reductions import Number
from hf_rlae.objectives.settings import ObjectiveSettings
from hf_rlae.objectives.surrogate import MAX_LOG_RATIO, policy_term, total

_TOKEN_AXES = {"span_index": ("BT",), "member_logps": ("BTM",)}


@objectives.register("mixture")
class Mixture(Objective):
    """The clipped surrogate on the probabilities of emitted tokens, differentiated through the mixture.

    Formula: `ratio_t = (sum_m w_m p_m(y_t)) / (sum_m w_m(old) p_m(y_t))`, where w are the current weights of the
    span that contains token t. The loss is the mean over tokens of `-min(ratio A, clip(ratio) A)`, minus `entropy_coef`
    times the mean over spans of the entropy of the weights. A rollout keeps only the M probabilities of each emitted
    token, and nothing of the vocabulary's size. The ratio is linear in w. It is computed as
    `sum_m w_m exp(logp_m - logp_old)`, without the logarithm of a number that may be 0.

    Two kinds of tokens are special. If a member's log-probability is NaN, the member had no weight (it was cut): it is
    left out of that token's mixture, and the weights of the others are renormalised. If no member proposes a token
    (something else forced it), the token says nothing about the weights: it is left out and counted in `forced_tokens`.

    Args:
        batch: `span_mask` `(B, S)`; `completion_mask` `(B, T)`; `span_index` `(B, T)`, the span of each token (see
            [`spans_of_tokens`]); `member_logps` `(B, T, M)`, log-probabilities in nats of the emitted tokens, in the
            distributions that the rollout mixed (so *after* temperature and other warpers, if it warped members), NaN
            where a member had no weight, -inf where it could not propose the token; `old_mixture_logps` `(B, T)`, with
            the rollout's weights (see [`mixture_logps`]); `advantages` `(B,)` or `(B, S)`, or `token_advantages`
            `(B, T)`; with a critic also `returns` and `old_values` `(B, S)`; `weight_scale` `(M,)`, factors of the
            weights in the mixture, if the ensemble has any.
        output: `weights` `(B, S, M)`, deterministic, at least 0, each row summing to 1; with a critic `values`
            `(B, S)`.

    References:
        Ours; the surrogate is that of PPO (arXiv 1707.06347), and group-relative advantages are those of GRPO (arXiv
        2402.03300). The nearest work is DLLG (arXiv 2606.04378), where a gate gives weights for the logits of experts.

    Requirements:
        Linear mixing, an actor of either kind, and rollouts that act with the deterministic weights that inference uses
        and *sample* tokens. Without an entropy bonus the weights saturate on the best single member and stay there: in
        a small study of two specialists the share of right answers was 0.68 with a bonus of 0.03. Without it, the
        share was 0.31 to 0.36, that of the best single member. Hence the default of 0.03. A larger bonus is costly if
        spans are long: on the embedded specialists, at span length 8, the share of right answers was 0.51 with
        0.03 and 0.14 with 0.06 (three trainings each); at span length 1 it was 0.88 with both.

    Relations:
        [`PPO`] and [`MAPPO`] draw weights and learn which weights went well. They work with any mixing and need
        rollouts that explore.

    Example:

    >>> weights = torch.tensor([[[0.5, 0.5]]], requires_grad=True)
    >>> member_logps = torch.tensor([[[0.8, 0.2]]]).log()  # four times as likely under the first member
    >>> batch = {
    ...     "span_mask": torch.tensor([[1]]), "completion_mask": torch.tensor([[1]]),
    ...     "span_index": torch.tensor([[0]]), "member_logps": member_logps, "advantages": torch.tensor([1.0]),
    ...     "old_mixture_logps": torch.tensor([[0.5]]).log(),
    ... }
    >>> objectives["mixture"]().loss(batch, {"weights": weights}, ObjectiveSettings(entropy_coef=0.0)).loss.backward()
    >>> -weights.grad  # the gradient before the policy's softmax: the first member's weight increases
    tensor([[[ 0.6000, -0.6000]]])
    """

    registered_name = "mixture"
    actors = ("joint", "per_member")
    explores = False
    default_advantages = "group_relative"
    defaults = ObjectiveSettings(entropy_coef=0.03)
    batch_axes = {  # noqa: RUF012
        "span_mask": ("BS",),
        "completion_mask": ("BT",),
        **_TOKEN_AXES,
        "old_mixture_logps": ("BT",),
        "advantages": ("B", "BS"),
        "token_advantages": ("BT",),
        "returns": ("BS",),
        "old_values": ("BS",),
        "weight_scale": ("M",),
    }
    output_axes = {"weights": ("BSM",), "values": ("BS",)}  # noqa: RUF012
    optional = Objective.optional | {"advantages", "token_advantages", "weight_scale"}

    def check(self, batch: Tensors, output: Tensors) -> None:
        """See `Objective.check`; each token must belong to a span that exists."""
        super().check(batch, output)
        given = [name for name in ("advantages", "token_advantages") if batch.get(name) is not None]
        if len(given) != 1:
            raise ObjectiveError(
                f"{' and '.join(given) or 'advantages'} {'are both given' if given else 'is missing'}; give either "
                "advantages (one per row or per span) or token_advantages (one per token)"
            )
        _check_span_index(batch["span_index"], batch["completion_mask"] != 0, batch["span_mask"] != 0)

    def checked_loss(
        self, batch: Tensors, output: Tensors, settings: ObjectiveSettings, num_items: Mapping[str, Number]
    ) -> ObjectiveOutput:
        """See `Objective.checked_loss`."""
        span_mask, token_mask = batch["span_mask"] != 0, _proposed(batch)
        weights = torch.where(span_mask[..., None], output["weights"], 1 / output["weights"].shape[-1])
        scale = batch.get("weight_scale")
        ratio = mixture_ratio(
            _of_tokens(weights if scale is None else weights * scale, batch["span_index"], token_mask),
            batch["member_logps"].to(weights.dtype),
            batch["old_mixture_logps"].to(weights.dtype).masked_fill(~token_mask, 0.0),
        )
        policy = policy_term(ratio, _advantages(batch, token_mask), token_mask, settings, num_items, "tokens")
        found = total(policy, batch, output, weight_entropies(weights), span_mask, settings, num_items)
        found.metrics["forced_tokens"] = ((batch["completion_mask"] != 0) & ~token_mask).sum().to(weights.dtype)
        return found

    def num_items(self, batch: Tensors) -> dict[str, torch.Tensor]:
        """See `Objective.num_items`; tokens that no member proposed do not count."""
        mask = _proposed(batch)
        return {"sequences": mask.any(1).sum(), "spans": (batch["span_mask"] != 0).sum(), "tokens": mask.sum()}


def mixture_ratio(weights: torch.Tensor, member_logps: torch.Tensor, old_mixture_logps: torch.Tensor) -> torch.Tensor:
    """`sum_m w_m p_m(y) / p_old(y)` of every token, linear in the weights.

    Args:
        weights (`torch.Tensor` of shape `(B, T, M)`): of each token's span; members with NaN are left out and
            the weights of the others renormalised.
        member_logps (`torch.Tensor` of shape `(B, T, M)`): in nats; -inf if the member cannot propose the token, NaN if
            it had no weight.
        old_mixture_logps (`torch.Tensor` of shape `(B, T)`): in nats.

    Returns:
        `torch.Tensor` of shape `(B, T)`.

    Example:

    >>> mixture_ratio(torch.tensor([[[0.7, 0.3]]]), torch.tensor([[[0.5, 0.1]]]).log(), torch.tensor([[0.3]]).log())
    tensor([[1.2667]])
    """
    log_ratios = (member_logps - old_mixture_logps[..., None]).clamp(max=MAX_LOG_RATIO)
    ratios = torch.where(member_logps > -torch.inf, log_ratios, -torch.inf).exp()
    return (_renormalised(weights, member_logps) * ratios).sum(-1)


@torch.no_grad()
def mixture_logps(weights: torch.Tensor, member_logps: torch.Tensor, span_index: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of emitted tokens under the mixture; a rollout keeps them.

    `log sum_m w_m p_m(y_t)` with the weights of the span of token t, and members as in [`Mixture`].

    Args:
        weights (`torch.Tensor` of shape `(B, S, M)`): of every span.
        member_logps (`torch.Tensor` of shape `(B, T, M)`): in nats; -inf if the member cannot propose the token, NaN if
            it had no weight.
        span_index (`torch.LongTensor` of shape `(B, T)`): the span of each token; -1 where there is none.

    Returns:
        `torch.Tensor` of shape `(B, T)`, in nats: -inf where no member proposes the token, NaN where there is no token.

    Raises:
        ObjectiveError: shapes that do not fit, or a span that does not exist.

    Example:

    >>> weights = torch.tensor([[[0.75, 0.25]]])
    >>> mixture_logps(weights, torch.tensor([[[0.4, 0.8]]]).log(), torch.tensor([[0]])).exp()
    tensor([[0.5000]])
    """
    tensors = {"weights": weights, "member_logps": member_logps, "span_index": span_index}
    check_axes(tensors, {"weights": ("BSM",), **_TOKEN_AXES})
    mask = span_index >= 0
    _check_span_index(span_index, mask, torch.ones_like(weights[..., 0], dtype=torch.bool))
    shares = _renormalised(_of_tokens(weights, span_index, mask), member_logps)
    terms = torch.where(member_logps > -torch.inf, shares.log() + member_logps, -torch.inf)
    return terms.logsumexp(-1).masked_fill(~mask, torch.nan)


def weight_entropies(weights: torch.Tensor) -> torch.Tensor:
    """`-sum_m w_m log w_m` in nats; weights of 0 contribute nothing and have a finite gradient.

    Args:
        weights (`torch.Tensor` of shape `(..., M)`): rows sum to 1.

    Returns:
        `torch.Tensor` of shape `(...)`.

    Example:

    >>> weight_entropies(torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
    tensor([0.6931, 0.0000])
    """
    return (weights * -weights.clamp(min=torch.finfo(weights.dtype).tiny).log()).sum(-1)


def _renormalised(weights: torch.Tensor, member_logps: torch.Tensor) -> torch.Tensor:
    """The weights of members whose log-probability is known, summing to 1 (to 0 if all of them are 0)."""
    kept = torch.where(member_logps.isnan(), 0, weights)
    sums = kept.sum(-1, keepdim=True)
    return kept / torch.where(sums > 0, sums, 1)


def _proposed(batch: Tensors) -> torch.Tensor:
    """Where there is a token that the rollout's mixture could propose, `(B, T)`."""
    can_propose = (batch["member_logps"] > -torch.inf).any(-1) & (batch["old_mixture_logps"] != -torch.inf)
    return (batch["completion_mask"] != 0) & can_propose


def _of_tokens(per_span: torch.Tensor, span_index: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The values `(B, S, ...)` of each token's span, `(B, T, ...)`; those of the first span where there is no token."""
    places = torch.where(mask, span_index, 0)
    rows = torch.arange(len(per_span), device=per_span.device)[:, None]
    return per_span[rows, places]


def _advantages(batch: Tensors, mask: torch.Tensor) -> torch.Tensor:
    """Advantages `(B, T)`."""
    if batch.get("token_advantages") is not None:
        return batch["token_advantages"]
    advantages = batch["advantages"]
    if advantages.dim() == 1:
        return advantages[:, None].expand(mask.shape)
    return _of_tokens(advantages, batch["span_index"], mask)


def _check_span_index(span_index: torch.Tensor, mask: torch.Tensor, span_mask: torch.Tensor) -> None:
    num_spans = span_mask.shape[1]
    if not num_spans:
        raise ObjectiveError(f"span_mask has shape {tuple(span_mask.shape)}; pad it to at least one span")
    inside = (span_index >= 0) & (span_index < num_spans)
    bad = mask & ~(inside & span_mask.gather(1, span_index.clamp(0, num_spans - 1)))
    if bool(bad.any()):
        row, token = bad.nonzero()[0].tolist()
        raise ObjectiveError(
            f"span_index[{row}, {token}] is {int(span_index[row, token])}, which is not a span of that row: it has "
            f"{int(span_mask[row].sum())}; give each token that counts the index of a span that counts"
        )
