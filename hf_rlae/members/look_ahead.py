"""Greedy look-ahead: the mean of a member's hidden states over the tokens that it would write next by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from hf_rlae.errors import present
from hf_rlae.members.member import Member
from hf_rlae.members.paths import Path
from hf_rlae.transfers import upload

if TYPE_CHECKING:
    from hf_rlae.members.readings.run import ReadingsRun

Read = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Reads one more token `(R,)` in the rows that go on `(R,)`; returns logits `(R, V_m)` and hidden states `(R, H_m)`."""


@torch.no_grad()
def mean_state_ahead(
    member: Member, logits: torch.Tensor, read: Read, room: torch.Tensor, num_tokens: int
) -> torch.Tensor:
    """Lets a member write greedily, and averages its hidden states after each of these tokens.

    A row stops after an end token of the member, at the end of its context, and where its logits are not finite.

    Args:
        member (`Member`): the member.
        logits (`torch.Tensor` of shape `(R, V_m)`): its next-token logits.
        read (`Read`): reads the tokens.
        room (`torch.Tensor` of shape `(R,)`): the number of tokens that fit into its context.
        num_tokens (`int`): number of tokens to write, at most.

    Returns:
        `torch.Tensor` of shape `(R, H_m)`, in the member's dtype: 0 in rows in which nothing was written.
    """
    room = upload(room, logits.device)
    ends = upload(torch.tensor(list(member.end_ids), dtype=torch.long), logits.device)
    total = logits.new_zeros(len(logits), member.hidden_size, dtype=torch.float32)
    count = logits.new_zeros(len(logits), 1, dtype=torch.float32)
    goes_on = logits.amax(-1).isfinite()
    for written in range(num_tokens):
        goes_on = goes_on & (room > written)
        ids = logits.argmax(-1)
        logits, hidden = read(ids, goes_on)
        goes_on = goes_on & logits.amax(-1).isfinite()
        total += hidden.to(total.device).float().masked_fill(~goes_on[:, None], 0.0)
        count += goes_on[:, None]
        goes_on = goes_on & ~torch.isin(ids, ends)
    return (total / count.clamp(min=1.0)).to(member.dtype)


@torch.no_grad()
def readings_ahead(run: ReadingsRun, rows: Sequence[int], num_tokens: int) -> torch.Tensor:
    """The look-ahead of a member that reads the text in its own tokens, from its most probable reading.

    If that reading has a tail, the first token is one that completes it.

    Args:
        run (`ReadingsRun`): the member's run, which has read the text of these rows; it is not changed.
        rows (`Sequence[int]`): the R row numbers.
        num_tokens (`int`): see `mean_state_ahead`.

    Returns:
        see `mean_state_ahead`.
    """
    member, runner = run.member, run.runner.ahead()
    begins = [run.begin_ahead(row) for row in rows]
    paths = [None if begin is None else begin[0] for begin in begins]
    entries = upload([0 if begin is None else begin[2] for begin in begins], run.device)
    logits = run.store.probs[entries, :-1].log()
    for place, begin in enumerate(begins):
        if begin is not None and begin[1]:
            ids = run.alignment.stays(begin[1]).on(logits.device)
            logits[place] = torch.full_like(logits[place], -torch.inf).index_copy(0, ids, logits[place, ids])
    limit = torch.inf if member.context_length is None else member.context_length
    room = torch.tensor([0 if path is None else limit - path.length for path in paths])

    def read(new: torch.Tensor, goes_on: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = torch.full_like(logits, -torch.inf)
        states = logits.new_zeros(len(logits), member.hidden_size, dtype=member.dtype)
        longer: dict[int, Path] = {}
        for place, (path, own, goes) in enumerate(zip(paths, new.tolist(), goes_on.tolist(), strict=True)):
            if goes and path is not None:
                longer[rows[place]] = Path(path.settled, (*path.ids, own), path.keep, 1)
                paths[place] = Path(path.settled, (*path.ids, own), path.length + 1, 0)
        if longer:
            output = runner.run([longer.get(row) for row in range(len(run.rows))])
            at = upload([rows.index(row) for row in sorted(longer)], logits.device)
            scores[at] = run.cleaned(output.logits)
            states[at] = present(output.hidden, "the hidden states of the look-ahead").to(states.device)
        return scores, states

    return mean_state_ahead(member, logits, read, room, num_tokens)
