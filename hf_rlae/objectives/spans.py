"""Converts between the spans of a batch as a padded table, as a list, and as parts of the tokens."""

from __future__ import annotations

import torch

from hf_rlae.checks import COUNT, check_number
from hf_rlae.errors import ObjectiveError
from hf_rlae.objectives.checks import check_axes


def spans_of_tokens(completion_mask: torch.Tensor, span_length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The span of each token, where every span except a row's last has `span_length` tokens.

    Args:
        completion_mask (`torch.Tensor` of shape `(B, T)`): 1 where there is a token; padding may be on either side.
        span_length (`int`): tokens per span, at least 1.

    Returns:
        `(span_index, span_mask)`: `torch.LongTensor` of shape `(B, T)`, -1 where there is no token, and
        `torch.BoolTensor` of shape `(B, S)`, true where there is a span; S is at least 1.

    Raises:
        ObjectiveError: the mask is not two-dimensional.
        ConfigError: a span length below 1.

    Example:

    >>> span_index, span_mask = spans_of_tokens(torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]), 2)
    >>> span_index.tolist()
    [[0, 0, 1, -1], [0, 0, -1, -1]]
    >>> span_mask.tolist()
    [[True, True], [True, False]]
    """
    check_axes({"completion_mask": completion_mask}, {"completion_mask": ("BT",)})
    check_number("span_length", span_length, COUNT)
    mask = completion_mask != 0
    num_spans = (mask.sum(1) + span_length - 1) // span_length
    span_index = torch.where(mask, (mask.cumsum(1) - 1) // span_length, -1)
    width = max(1, int(num_spans.max())) if len(mask) else 1
    return span_index, torch.arange(width, device=mask.device) < num_spans[:, None]


def scatter_spans(values: torch.Tensor, span_mask: torch.Tensor) -> torch.Tensor:
    """Puts a policy's output for a list of spans into the places of these spans in the batch.

    So one forward pass over the N spans that exist serves the whole padded batch. Gradients flow through it.

    Args:
        values (`torch.Tensor` of shape `(N, ...)`): one entry per span, in the order of rows.
        span_mask (`torch.Tensor` of shape `(B, S)`): 1 where there is a span; N of them.

    Returns:
        `torch.Tensor` of shape `(B, S, ...)`: 0 where there is no span.

    Raises:
        ObjectiveError: N is not the number of spans.

    Example:

    >>> scatter_spans(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([[1, 1], [1, 0]]))
    tensor([[1., 2.],
            [3., 0.]])
    """
    check_axes({"span_mask": span_mask}, {"span_mask": ("BS",)})
    places = (span_mask != 0).nonzero(as_tuple=True)
    if values.dim() == 0 or len(values) != len(places[0]):
        raise ObjectiveError(
            f"values has shape {tuple(values.shape)}, span_mask has {len(places[0])} spans; give one entry per "
            "span, those of the first row first"
        )
    empty = values.new_zeros((*span_mask.shape, *values.shape[1:]))
    return empty.index_put(places, values)
