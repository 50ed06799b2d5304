"""PPO: one agent decides about all members."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hf_rlae.objectives.objective import Objective, ObjectiveOutput, Tensors, objectives
from hf_rlae.objectives.reductions import Number
from hf_rlae.objectives.settings import ObjectiveSettings
from hf_rlae.objectives.surrogate import density_ratio, policy_term, total


@objectives.register("ppo")
class PPO(Objective):
    """Proximal policy optimisation; a step is a span, and its action is the drawn member or weights.

    Formula: the ratio of a span is the probability (or density) of its action now, divided by that in the rollout. The
    loss is the mean over spans of `-min(ratio A, clip(ratio) A)`, plus `value_coef` times the clipped squared error of
    the critic, minus `entropy_coef` times the entropy of the actions.

    Args:
        batch: `span_mask` `(B, S)`; `advantages` `(B,)` or `(B, S)`; `old_log_probs` `(B, S)`, log-probabilities in
            nats of the actions that were drawn; with a critic also `returns` and `old_values` `(B, S)`.
        output: `log_probs` `(B, S)`, of the same actions now; `entropies` `(B, S)`; with a critic `values` `(B, S)`.

    References:
        PPO (arXiv 1707.06347); RLAE (arXiv 2506.00439), which weights language models with it.

    Requirements:
        A joint actor, and rollouts that draw their actions.

    Relations:
        [`MAPPO`] has one agent per member; with one member it equals PPO. [`Mixture`] draws no actions and needs no
        critic; it learns from the tokens that were sampled.

    Example:

    >>> mask = torch.tensor([[1, 1], [1, 0]])
    >>> old = torch.zeros(2, 2)
    >>> log_probs = torch.zeros(2, 2, requires_grad=True)
    >>> batch = {"span_mask": mask, "advantages": torch.tensor([1.0, -1.0]), "old_log_probs": old}
    >>> found = objectives["ppo"]().loss(batch, {"log_probs": log_probs, "entropies": torch.zeros(2, 2)})
    >>> found.loss.backward()
    >>> log_probs.grad  # descent raises the probability of actions that went well, and lowers that of the others
    tensor([[-0.3333, -0.3333],
            [ 0.3333,  0.0000]])
    """

    registered_name = "ppo"
    actors = ("joint",)
    explores = True
    default_advantages = "gae"
    batch_axes = {  # noqa: RUF012
        "span_mask": ("BS",),
        "advantages": ("B", "BS"),
        "old_log_probs": ("BS",),
        "returns": ("BS",),
        "old_values": ("BS",),
    }
    output_axes = {"log_probs": ("BS",), "entropies": ("BS",), "values": ("BS",)}  # noqa: RUF012

    def checked_loss(
        self, batch: Tensors, output: Tensors, settings: ObjectiveSettings, num_items: Mapping[str, Number]
    ) -> ObjectiveOutput:
        """See `Objective.checked_loss`."""
        mask, advantages = batch["span_mask"] != 0, batch["advantages"]
        if advantages.dim() == 1:
            advantages = advantages[:, None].expand(mask.shape)
        ratio = density_ratio(output["log_probs"], batch["old_log_probs"], mask)
        policy = policy_term(ratio, advantages, mask, settings, num_items, "spans")
        entropies = output["entropies"]
        if entropies.dim() == 3:  # of several agents, in the subclass MAPPO
            entropies = entropies.mean(-1)
        return total(policy, batch, output, entropies, mask, settings, num_items)

    def num_items(self, batch: Tensors) -> dict[str, torch.Tensor]:
        """See `Objective.num_items`."""
        mask = batch["span_mask"] != 0
        return {"sequences": mask.any(1).sum(), "spans": mask.sum()}
