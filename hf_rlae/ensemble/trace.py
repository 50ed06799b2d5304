"""What each member gave to every token of a completion, recorded if it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import StoppingCriteria


@dataclass
class MemberScores:
    """The members' distributions for the last columns, kept until it is known which tokens were chosen.

    Attributes:
        column (`int`): the first column they are for (the token after it).
        logps (`list` of `(scores, log_z)` or `None`): for each member, scores of shape `(B, n, V)` whose log-total
            is `log_z` of shape `(B, n)`; `None` for members that were not run.
        weights (`torch.FloatTensor` of shape `(B, n, M)`): of the members; what one without weight in a row would say
            there is not known, or not up to date.
        are_probs (`bool`): the scores are probabilities, and `log_z` only says whether the member was run.
        rows (`torch.LongTensor` of shape `(B,)` or `None`): which row of the tensors each present row continues.
    """

    column: int
    logps: Sequence[tuple[torch.Tensor, torch.Tensor] | None]
    weights: torch.Tensor
    are_probs: bool = False
    rows: torch.Tensor | None = None

    def of(self, tokens: torch.Tensor) -> torch.Tensor:
        """The members' log-probabilities of `tokens` `(B, n)`: shape `(B, n, M)`, NaN for members not run."""
        return self._pick(tokens[..., None])[..., 0, :]

    def of_candidates(self, tokens: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of `tokens` `(B, C)`, all for the first column: shape `(B, C, M)`."""
        return self._pick(tokens[:, None])[:, 0]

    def _pick(self, tokens: torch.Tensor) -> torch.Tensor:
        """Of tokens `(B, n, C)`: shape `(B, n, C, M)`."""
        columns = []
        n = tokens.shape[1]
        weights = self.weights[:, :n]
        if self.rows is not None:
            weights = weights[self.rows]
        for index, entry in enumerate(self.logps):
            if entry is None:
                columns.append(torch.full(tokens.shape, torch.nan, device=tokens.device))
                continue
            scores, log_z = entry[0][:, :n], entry[1][:, :n]
            if self.rows is not None:
                scores, log_z = scores[self.rows], log_z[self.rows]
            inside = tokens.to(scores.device)
            within = inside < scores.shape[-1]
            picked = scores.gather(-1, inside.clamp(max=scores.shape[-1] - 1)).float()
            if self.are_probs:  # a row in which the member had nothing to say has log Z = -inf
                logps = picked.log().masked_fill((log_z == -torch.inf)[..., None], torch.nan)
            else:
                logps = picked - log_z[..., None]
            logps = torch.where(within, logps, -torch.inf)
            is_idle = (weights[..., index] == 0).to(logps.device)
            columns.append(logps.masked_fill(is_idle[..., None], torch.nan).to(tokens.device))
        return torch.stack(columns, dim=-1)


@dataclass(frozen=True)
class Candidates:
    """The tokens by which beams could go on after one step, with what each member gave to them.

    Attributes:
        tokens (`torch.LongTensor` of shape `(N, C)`): one row an item of the batch.
        logps (`torch.FloatTensor` of shape `(N, K, C, M)`): for each of its K beams.
    """

    tokens: torch.Tensor
    logps: torch.Tensor


@dataclass
class Trace:
    """What was recorded along the way, if it was asked for.

    Attributes:
        enabled (`bool`): whether member log-probabilities are recorded.
        pending (`MemberScores`, *optional*): distributions whose tokens are not known yet.
        member_logps (`list[tuple[int, Tensor]]`): column of a token, and `(B, M)` log-probabilities.
        candidates (`dict[int, Candidates]`): for beams, by the column of the token.
    """

    enabled: bool = False
    pending: MemberScores | None = None
    member_logps: list[tuple[int, torch.Tensor]] = field(default_factory=list)
    candidates: dict[int, Candidates] = field(default_factory=dict)

    def settle(self, ids: torch.Tensor, columns: int) -> None:
        """Reads off what the members gave to the tokens that have since been chosen, those before `columns`."""
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
        """Records the candidates `(N, C)` of a beam search with so many beams an item."""
        pending = self.pending
        if pending is None:
            return
        logps = pending.of_candidates(tokens.repeat_interleave(beams, 0))
        self.candidates[pending.column + 1] = Candidates(
            tokens, logps.view(tokens.shape[0], beams, tokens.shape[1], -1)
        )

    def of_beams(self, column: int, tokens: torch.Tensor, parents: torch.Tensor) -> torch.Tensor | None:
        """What the members gave to `tokens` `(R,)`, each chosen by the beam `parents` `(R,)`: shape `(R, M)`."""
        known = self.candidates.get(column)
        if known is None:
            return None
        beams = known.logps.shape[1]
        item = parents // beams
        place = (known.tokens[item] == tokens[:, None]).int().argmax(1)
        return known.logps[item, parents % beams, place]

    def reorder(self, rows: torch.Tensor) -> None:
        """Makes row `i` continue what row `rows[i]` was."""
        if self.pending is not None:
            self.pending.rows = rows if self.pending.rows is None else self.pending.rows[rows]

    def crop(self, length: int) -> None:
        """Forgets the tokens from column `length` on."""
        self.member_logps = [entry for entry in self.member_logps if entry[0] < length]


class BeamWatch(StoppingCriteria):
    """Stops nothing: it sees every token by which a beam may go on or end.

    Args:
        trace (`Trace`): where they are recorded.
        beams (`int`): of the search, for each item of the batch.
        items (`int`): of the batch.
    """

    def __init__(self, trace: Trace, beams: int, items: int) -> None:
        self.trace = trace
        self.beams = beams
        self.items = items

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.trace.consider(input_ids[:, -1].view(self.items, -1), self.beams)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
