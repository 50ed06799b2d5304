"""A table of the members: their weights, and their log-probabilities of the completions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich import box
from rich.table import Column, Table

from hf_rlae.ensemble.outputs import EnsembleGenerateOutput
from hf_rlae.errors import InputError
from hf_rlae.reports.member_names import Names, names_of, wrapped_name

_NAME = 30
"""Characters of a name in a line."""


def completion_mask(completions: torch.Tensor, end_ids: Sequence[int]) -> torch.Tensor:
    """The mask of the tokens of each completion: all up to and including the first end id.

    Args:
        completions (`torch.LongTensor` of shape `(B, T)`): generated ids, padded on the right.
        end_ids (`Sequence[int]`): ids that end a completion.

    Returns:
        `torch.BoolTensor` of shape `(B, T)`.

    Example:

    >>> completion_mask(torch.tensor([[5, 2, 0], [5, 6, 7]]), [2]).tolist()
    [[True, True, False], [True, True, True]]
    """
    is_end = torch.isin(completions, torch.tensor(list(end_ids), dtype=torch.long, device=completions.device))
    return (is_end.cumsum(1) - is_end.long()) == 0


def member_table(names: Names, out: EnsembleGenerateOutput, mask: torch.Tensor) -> Table:
    """A table with one line per member.

    Args:
        names (`Sequence[str]` or `EnsembleForCausalLM`): of the members, or the ensemble.
        out (`EnsembleGenerateOutput`): from `generate(..., return_dict_in_generate=True)`.
        mask (`torch.BoolTensor` of shape `(B, T)`): the tokens to include.

    Returns:
        `rich.table.Table`: name, mean weight, number of tokens at which the member ran, number of these to which it
        gave any probability ("proposed": a member cannot propose all tokens of other tokenizers), and the mean
        log-probability of the proposed ones, in nats.

    Raises:
        InputError: the output has no trace.
    """
    if out.span_weights is None or out.span_starts is None or out.member_logps is None:
        raise InputError(
            "out has no trace; pass the output of `ensemble.generate(..., return_dict_in_generate=True)` itself"
        )
    steps = torch.arange(mask.shape[1])
    span_of = torch.searchsorted(out.span_starts.cpu(), steps, right=True) - 1
    weights = out.span_weights.cpu()[:, span_of][mask.cpu()]
    logps = out.member_logps.cpu()[mask.cpu()]
    numbers = [Column(name, justify="right", no_wrap=True) for name in ("weight", "run", "proposed", "nats/token")]
    table = Table(Column("member", overflow="fold"), *numbers, box=box.SIMPLE_HEAD)
    for index, name in enumerate(names_of(names)):
        run = logps[:, index][~logps[:, index].isnan()]
        proposed = run[run.isfinite()]
        mean = f"{float(proposed.mean()):.3f}" if len(proposed) else "-"
        weight = f"{float(weights[:, index].mean()):.3f}"
        table.add_row(wrapped_name(name, _NAME), weight, str(len(run)), str(len(proposed)), mean)
    return table
