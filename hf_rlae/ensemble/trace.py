"""Records each member's log-probability of every completion token, on request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import StoppingCriteria


@dataclass
class MemberScores:
    """The members' next-token distributions after the last n columns, kept until the tokens are known.

    Attributes:
        column (`int`): the first of these columns; its token is the one after it.
        outputs (`list` of `(scores, log_z)` or `None`): for each member, scores `(B, n, V)` and the log of their
            sum of exponentials, `log_z` of shape `(B, n)`; `None` for members that were not run.
        weights (`torch.FloatTensor` of shape `(B, n, M)`): the members' weights. The scores of a member without weight
            in a row may be missing or outdated, so they are not used.
        are_probs (`bool`): whether the scores are probabilities. Then `log_z` only marks rows without next-token mass
            (-inf).
        rows (`torch.LongTensor` of shape `(B,)` or `None`): the row of the tensors that each current row continues;
            `None` if the rows are the same.
        columns_of (callable, *optional*): maps ids to entries of the scores; `None` if they are equal.
    """

    column: int
    outputs: Sequence[tuple[torch.Tensor, torch.Tensor] | None]
    weights: torch.Tensor
    are_probs: bool = False
    rows: torch.Tensor | None = None
    columns_of: Callable[[torch.Tensor], torch.Tensor] | None = None

    def of(self, tokens: torch.Tensor) -> torch.Tensor:
        """The members' log-probabilities of `tokens` `(B, n)`: shape `(B, n, M)`, NaN for members that were not run."""
        return self._pick(tokens[..., None])[..., 0, :]

    def of_candidates(self, tokens: torch.Tensor) -> torch.Tensor:
        """The members' log-probabilities of `tokens` `(B, C)`, all after the first column: shape `(B, C, M)`."""
        return self._pick(tokens[:, None])[:, 0]

    def _pick(self, tokens: torch.Tensor) -> torch.Tensor:
        """The members' log-probabilities of `tokens` `(B, n, C)`: shape `(B, n, C, M)`."""
        columns = []
        n = tokens.shape[1]
        places = tokens if self.columns_of is None else self.columns_of(tokens)
        weights = self.weights[:, :n]
        if self.rows is not None:
            weights = weights[self.rows.to(weights.device)]
        for index, entry in enumerate(self.outputs):
            if entry is None:
                columns.append(torch.full(tokens.shape, torch.nan, device=tokens.device))
                continue
            scores, log_z = entry[0][:, :n], entry[1][:, :n]
            log_z = log_z.to(scores.device)
            if self.rows is not None:
                rows = self.rows.to(scores.device)
                scores, log_z = scores[rows], log_z[rows]
            inside = places.to(scores.device)
            within = inside < scores.shape[-1]
            picked = scores.gather(-1, inside.clamp(max=scores.shape[-1] - 1)).float()
            if self.are_probs:  # log Z = -inf marks rows in which the member has no next-token mass
                logps = picked.log().masked_fill((log_z == -torch.inf)[..., None], torch.nan)
            else:
                logps = picked - log_z[..., None]
            logps = torch.where(within, logps, -torch.inf)
            is_idle = (weights[..., index] == 0).to(logps.device)
            columns.append(logps.masked_fill(is_idle[..., None], torch.nan).to(tokens.device))
        return torch.stack(columns, dim=-1)


@dataclass(frozen=True)
class Candidates:
    """The candidates of a beam search for the next token, with the members' log-probabilities.

    Attributes:
        tokens (`torch.LongTensor` of shape `(N, C)`): the candidates of each of the N items of the batch.
        logps (`torch.FloatTensor` of shape `(N, K, C, M)`): their log-probabilities after each of the K beams.
    """

    tokens: torch.Tensor
    logps: torch.Tensor


@dataclass
class Trace:
    """The recorded log-probabilities of one call.

    Attributes:
        enabled (`bool`): whether member log-probabilities are recorded.
        pending (`MemberScores`, *optional*): distributions whose tokens are not known yet.
        member_logps (`list[tuple[int, torch.FloatTensor]]`): the column of each token, and the members'
            log-probabilities `(B, M)`.
        candidates (`dict[int, Candidates]`): for beam search, by the column of the token.
    """

    enabled: bool = False
    pending: MemberScores | None = None
    member_logps: list[tuple[int, torch.Tensor]] = field(default_factory=list)
    candidates: dict[int, Candidates] = field(default_factory=dict)

    def settle(self, ids: torch.Tensor, columns: int) -> None:
        """Records the log-probabilities of the tokens that are known now: those of `ids` before column `columns`."""
        pending = self.pending
        if pending is None or self.candidates:
            return
        tokens = ids[:, pending.column + 1 : columns]
        if tokens.shape[1] == 0:
            return
        values = pending.of(tokens)
        for offset in range(values.shape[1]):
            self.member_logps.append((pending.column + 1 + offset, values[:, offset]))
        self.pending = None

    def consider(self, tokens: torch.Tensor, beams: int) -> None:
        """Records the candidates `(N, C)` of a beam search with `beams` beams per item."""
        pending = self.pending
        if pending is None:
            return
        logps = pending.of_candidates(tokens.repeat_interleave(beams, 0))
        self.candidates[pending.column + 1] = Candidates(
            tokens, logps.view(tokens.shape[0], beams, tokens.shape[1], -1)
        )

    def of_beams(self, column: int, tokens: torch.Tensor, parents: torch.Tensor) -> torch.Tensor | None:
        """The members' log-probabilities `(R, M)` of `tokens` `(R,)`, each a continuation of beam `parents` `(R,)`."""
        known = self.candidates.get(column)
        if known is None:
            return None
        beams = known.logps.shape[1]
        item = parents // beams
        place = (known.tokens[item] == tokens[:, None]).int().argmax(1)
        return known.logps[item, parents % beams, place]

    def reorder(self, rows: torch.Tensor) -> None:
        """Row `i` becomes the former row `rows[i]`."""
        if self.pending is not None:
            self.pending.rows = rows if self.pending.rows is None else self.pending.rows[rows]

    def crop(self, length: int) -> None:
        """Drops the records of tokens from column `length` on."""
        self.member_logps = [entry for entry in self.member_logps if entry[0] < length]


class BeamWatch(StoppingCriteria):
    """A stopping criterion that never stops: it records all candidates of a beam search, including end tokens.

    Args:
        trace (`Trace`): the trace that records them.
        beams (`int`): number of beams per item of the batch.
        items (`int`): number of items of the batch.
    """

    def __init__(self, trace: Trace, beams: int, items: int) -> None:
        self.trace = trace
        self.beams = beams
        self.items = items

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.trace.consider(input_ids[:, -1].view(self.items, -1), self.beams)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
