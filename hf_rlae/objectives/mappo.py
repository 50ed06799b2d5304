"""MAPPO: one agent per member, one critic for all."""

from __future__ import annotations

from hf_rlae.objectives.objective import objectives
from hf_rlae.objectives.ppo import PPO


@objectives.register("mappo")
class MAPPO(PPO):
    """Multi-agent PPO: each member has an agent of its own.

    Formula: each agent has its own ratio, for whether its member is drawn (or for the score that it draws), and each
    ratio is clipped separately. All agents have the same advantage. The loss is the mean over spans *and agents* of
    `-min(ratio A, clip(ratio) A)`, plus `value_coef` times the clipped squared error of the centralised critic, minus
    `entropy_coef` times the agents' mean entropy. A single ratio for all members would be PPO.

    Args:
        batch: as for [`PPO`], but `old_log_probs` `(B, S, M)`.
        output: as for [`PPO`], but `log_probs` and `entropies` `(B, S, M)`.

    References:
        MAPPO (arXiv 2103.01955); RLAE (arXiv 2506.00439), which weights language models with it.

    Requirements:
        One actor per member, and rollouts that draw their actions.

    Relations:
        [`PPO`] clips one ratio for the whole weight vector, MAPPO one per member; with one member they are
        equal. [`Mixture`] trains actors of either kind, without drawing actions.

    Example:

    >>> import torch
    >>> batch = {
    ...     "span_mask": torch.tensor([[1]]), "advantages": torch.tensor([1.0]), "old_log_probs": torch.zeros(1, 1, 2)
    ... }
    >>> log_probs = torch.tensor([[[0.0, 1.0]]], requires_grad=True)  # the second agent's ratio is clipped
    >>> found = objectives["mappo"]().loss(batch, {"log_probs": log_probs, "entropies": torch.zeros(1, 1, 2)})
    >>> found.loss.backward()
    >>> log_probs.grad.tolist(), found.metrics["clip_ratio"].item()
    ([[[-0.5, 0.0]]], 0.5)
    """

    registered_name = "mappo"
    actors = ("per_member",)
    batch_axes = {**PPO.batch_axes, "old_log_probs": ("BSM",)}  # noqa: RUF012
    output_axes = {**PPO.output_axes, "log_probs": ("BSM",), "entropies": ("BSM",)}  # noqa: RUF012
