"""Sampling from one member at a time: draw a member by the weights, run it alone, sample from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from hf_rlae.ensemble.spans import SpanWeights
from hf_rlae.errors import present

UNITS = ("token", "word", "span")
SCOPES = ("row", "batch")


class MemberDraws:
    """Draws the member from which each row is sampled, for every token, word or span.

    With linear mixing, drawing `k ~ w` and then a token from member k samples from the mixture `sum_k w_k P_k`. A draw
    that holds for several tokens gives a mixture of longer pieces: of words, if it holds up to and including the next
    token that starts with a space, or of spans.

    Source: ME (arXiv 2605.00419) for tokens; words, spans and scopes are ours.

    Args:
        unit (`str`): `"token"`, `"word"` or `"span"`.
        scope (`str`): `"row"` draws independently for every row. `"batch"` uses one random number for all rows, so that
            rows with equal weights run the same member; the distribution of each row is the same, but the rows are not
            independent.
        begins_word (`torch.BoolTensor` of shape `(V,)`, *optional*): the ids that start with a space; required for
            words.
        numbers (callable, *optional*): returns uniform numbers of shape `(B,)` or `(1,)` for the number of a completion
            token, and the number of draws for this token before; `None` takes them from torch's generator.

    Attributes:
        drawn (`list[tuple[int, torch.LongTensor]]`): the column of each token, and the member of each row `(B,)` from
            which the token is sampled.
    """

    def __init__(
        self,
        unit: str,
        scope: str,
        begins_word: torch.Tensor | None = None,
        numbers: Callable[[int, int], torch.Tensor] | None = None,
    ) -> None:
        self.unit = unit
        self.scope = scope
        self.begins_word = begins_word
        self.numbers = numbers
        self._times = 0  # how often members were drawn for the newest token
        self.drawn: list[tuple[int, torch.Tensor]] = []
        self._current: torch.Tensor | None = None

    def choose(
        self, spans: SpanWeights, ids: torch.Tensor, column: int, excluded: Sequence[Sequence[int]] = ()
    ) -> None:
        """Draws the members for the token after `column`, and gives all weight of this token to them.

        Args:
            spans (`SpanWeights`): the weights of the spans.
            ids (`torch.LongTensor` of shape `(B, L)`): the text.
            column (`int`): the last column of the text.
            excluded (`Sequence[Sequence[int]]`): for each row, the members that cannot be drawn; `()` if all can.
        """
        weights = torch.tensor(spans.span_lists(column))
        if any(excluded):
            for row, members in enumerate(excluded):
                weights[row, list(members)] = 0.0
                if members and not bool(weights[row].any()):  # the others share the weight
                    weights[row] = 1.0
                    weights[row, list(members)] = 0.0
        is_again = bool(self.drawn) and self.drawn[-1][0] == column + 1  # only what is excluded now is replaced
        self._times = self._times + 1 if is_again else 0
        token = column + 1 - int(spans.starts[0])
        current = self._current
        if current is None:
            current = self._draw(weights, token)
        else:
            fresh = weights.gather(1, current[:, None])[:, 0] == 0
            if not is_again:
                fresh = fresh | self._fresh(spans, ids, column, len(weights))
            if bool(fresh.any()):
                current = torch.where(fresh, self._draw(weights, token), current)
        if is_again:
            self.drawn.pop()
        self._current = current
        self.drawn.append((column + 1, current))
        spans.draw(column, current)

    def _fresh(self, spans: SpanWeights, ids: torch.Tensor, column: int, rows: int) -> torch.Tensor:
        """Whether a new token, word or span begins in each row, `(rows,)`."""
        if self.unit == "token":
            return torch.ones(rows, dtype=torch.bool)
        if self.unit == "span":
            return (column + 1 - spans.starts) % spans.span_length == 0
        return present(self.begins_word, "begins_word, which draw='word' needs")[ids[:, column].cpu()]

    def _draw(self, weights: torch.Tensor, token: int) -> torch.Tensor:
        """One member per row, by inverse transform sampling of the weights."""
        if self.numbers is None:
            numbers = torch.rand(1 if self.scope == "batch" else len(weights))
        else:
            numbers = self.numbers(token, self._times)
        steps = weights.cumsum(1)
        found = (steps <= (numbers * steps[:, -1].expand(len(weights)))[:, None]).sum(1)
        # rounding can put a number past the last step: then take the last member with weight
        last = weights.shape[1] - 1 - (weights.flip(1) > 0).int().argmax(1)
        return torch.minimum(found, last)
