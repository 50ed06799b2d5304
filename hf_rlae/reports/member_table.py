"""The table behind the texts: what each member weighed and what it thought of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich import box
from rich.table import Table

from hf_rlae.ensemble.outputs import EnsembleGenerateOutput


def completion_mask(completions: torch.Tensor, end_ids: Sequence[int]) -> torch.Tensor:
    """Which tokens belong to the texts: all up to the first end id, and that one.

    Args:
        completions (`torch.LongTensor` of shape `(B, T)`): generated ids, padded behind their end.
        end_ids (`Sequence[int]`): ids that end a text.

    Returns:
        `torch.BoolTensor` of shape `(B, T)`.

    Example:

    >>> completion_mask(torch.tensor([[5, 2, 0], [5, 6, 7]]), [2]).tolist()
    [[True, True, False], [True, True, True]]
    """
    is_end = torch.isin(completions, torch.tensor(list(end_ids), dtype=torch.long, device=completions.device))
    ended_before = is_end.cumsum(1) - is_end.long()
    return ended_before == 0


def member_table(names: Sequence[str], out: EnsembleGenerateOutput, mask: torch.Tensor) -> Table:
    """A table with one line a member.

    Args:
        names (`Sequence[str]`): one a member.
        out (`EnsembleGenerateOutput`): from `generate(..., return_dict_in_generate=True)`.
        mask (`torch.BoolTensor` of shape `(B, T)`): the tokens that count.

    Returns:
        `rich.table.Table`: name, mean weight, at how many tokens the member was run, to how many of those it
        gave any probability ("proposed": a member with another tokenizer cannot propose every token of the
        union), and the mean log-probability of the proposed ones, in nats.
    """
    assert out.span_weights is not None
    assert out.span_starts is not None
    assert out.member_logps is not None
    steps = torch.arange(mask.shape[1])
    span_of = torch.searchsorted(out.span_starts.cpu(), steps, right=True) - 1
    weights = out.span_weights.cpu()[:, span_of][mask.cpu()]
    logps = out.member_logps.cpu()[mask.cpu()]
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("member", overflow="fold")
    for heading in ("weight", "run", "proposed", "nats/token"):
        table.add_column(heading, justify="right", no_wrap=True)
    for index, name in enumerate(names):
        run = logps[:, index][~logps[:, index].isnan()]
        proposed = run[run.isfinite()]
        mean = f"{float(proposed.mean()):.3f}" if len(proposed) else "-"
        weight = f"{float(weights[:, index].mean()):.3f}"
        table.add_row(name, weight, str(len(run)), str(len(proposed)), mean)
    return table
