"""Random batches for every objective, made from the axes that it asks for."""

from __future__ import annotations

import torch

from hf_rlae.objectives import mixture_logps, objectives

NAMES = tuple(objectives)


def batch_of(name, seed=0, rows=4, spans=4, members=3, critic=True, per_span=True, dtype=torch.float64):
    """`(batch, output)` with ragged rows, spans of 1 to 3 tokens, members that are cut, and forced tokens."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)

    num_spans = torch.randint(1, spans + 1, (rows,), generator=draw)
    span_mask = torch.arange(spans) < num_spans[:, None]
    span_lengths = torch.randint(1, 4, (rows, spans), generator=draw) * span_mask
    tokens = int(span_lengths.sum(1).max())
    completion_mask = torch.arange(tokens) < span_lengths.sum(1)[:, None]
    span_index = torch.full((rows, tokens), -1)
    for row in range(rows):
        places = torch.repeat_interleave(torch.arange(spans), span_lengths[row])
        span_index[row, : len(places)] = places
    old_weights = normal(rows, spans, members).softmax(-1)
    member_logps = normal(rows, tokens, members) - 2
    chance = torch.rand(rows, tokens, members, generator=draw)
    member_logps[chance < 0.2] = -torch.inf
    member_logps[chance > 0.85] = torch.nan
    member_logps[0, 0] = torch.tensor([-1.0, *[-torch.inf] * (members - 1)])
    if tokens > 1:
        member_logps[0, -1] = -torch.inf
    agents = () if name != "mappo" else (members,)
    batch = {
        "span_mask": span_mask,
        "completion_mask": completion_mask,
        "span_index": span_index,
        "member_logps": member_logps,
        "old_mixture_logps": mixture_logps(old_weights, member_logps, span_index),
        "advantages": normal(rows, spans) if per_span else normal(rows),
        "old_log_probs": normal(rows, spans, *agents),
    }
    moved = (old_weights.log() + 0.5 * normal(rows, spans, members)).softmax(-1)
    output = {
        "weights": moved,
        "log_probs": batch["old_log_probs"] + 0.3 * normal(rows, spans, *agents),
        "entropies": normal(rows, spans, *agents),
    }
    if critic:
        batch.update(returns=normal(rows, spans), old_values=normal(rows, spans))
        output["values"] = batch["old_values"] + 0.3 * normal(rows, spans)
    kind = objectives[name]
    batch = {key: tensor for key, tensor in batch.items() if key in kind.batch_axes}
    output = {key: tensor.requires_grad_() for key, tensor in output.items() if key in kind.output_axes}
    return batch, output


def loss_of(name, batch, output, settings=None, num_items=None):
    """The loss, and its gradients by the names of what the policy says."""
    found = objectives[name]().loss(batch, output, settings, num_items)
    gradients = torch.autograd.grad(found.loss, list(output.values()), allow_unused=True)
    return found, dict(zip(output, gradients, strict=True))


def leaves(output):
    """Copies that take gradients of their own."""
    return {name: tensor.detach().clone().requires_grad_() for name, tensor in output.items()}


def masks_of(name, batch):
    """By the letters of its axes, where a tensor counts."""
    masks = {"BS": batch["span_mask"], "BSM": batch["span_mask"][..., None]}
    if name == "mixture":
        masks.update(BT=batch["completion_mask"], BTM=batch["completion_mask"][..., None])
    return masks


def axes_of(name, key):
    """The axes of a tensor of an objective, as in these batches."""
    kind = objectives[name]
    return {**kind.batch_axes, **kind.output_axes}[key][-1]
