"""Spans of completion tokens, and the weights that hold in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hf_rlae.transfers import upload

WHOLE_TEXT = 2**31 - 1
"""The length of a span that holds to the end of the text (`EnsembleConfig(select="prompt")`)."""


@dataclass(frozen=True)
class SpanQuery:
    """Rows in which a span begins, so that the policy must return weights.

    Attributes:
        column (`int`): the last column of the text that the policy observes.
        span (`int`): the index of the span that begins.
        rows (`torch.LongTensor` of shape `(R,)`, on the CPU, or `None`): the row numbers; `None` for all rows.
    """

    column: int
    span: int
    rows: torch.Tensor | None


@dataclass(frozen=True)
class SpanRecord:
    """The weights of one query.

    Attributes:
        span (`int`): the index of the span.
        column (`int`): the last column that the policy observed.
        weights (`torch.FloatTensor` of shape `(B, M)`): the weights after cutting; 0 in rows whose weights are not
            known yet.
    """

    span: int
    column: int
    weights: torch.Tensor


class SpanWeights:
    """The weights of every span and row.

    The token after column `j` of a row is its completion token `j + 1 - start`. Span `s` covers the completion tokens
    `s * span_length` to `(s + 1) * span_length - 1`. Tokens of the prompt have the weights of span 0.

    Args:
        span_length (`int`): tokens per span.
        starts (`torch.LongTensor` of shape `(B,)`, on the CPU): the column of each row's first completion token.
        firsts (`torch.LongTensor` of shape `(B,)`, on the CPU): the first attended column of each row.

    Attributes:
        records (`list[SpanRecord]`): the weights of all queries, in order.
    """

    def __init__(self, span_length: int, starts: torch.Tensor, firsts: torch.Tensor) -> None:
        self.span_length = span_length
        self.starts = starts
        self.firsts = firsts
        # the start that all rows share, if they do: it makes every step cheaper
        is_shared = bool((starts == starts[0]).all()) and bool((firsts < starts).all())
        self._shared_start = int(starts[0]) if is_shared else None
        self.records: list[SpanRecord] = []
        self._weights: dict[int, torch.Tensor] = {}  # by span, of shape (B, M)
        self._known: dict[int, torch.Tensor] = {}  # by span: whether the weights of each row are known, of shape (B,)
        self._lists: dict[int, list[list[float]]] = {}  # by span: the weights as lists
        self._active: dict[int, frozenset[int]] = {}  # by span: the members with weight in some row
        self._used: dict[int, tuple[torch.Tensor, list[list[float]]]] = {}  # by column: weights in place of the span's

    @property
    def is_whole_text(self) -> bool:
        """Whether the weights hold to the end of the text."""
        return self.span_length == WHOLE_TEXT

    def span_of(self, column: int) -> torch.Tensor:
        """The span of the token after `column`, for every row: shape `(B,)`."""
        return ((column + 1 - self.starts) // self.span_length).clamp(min=0)

    def _shared_span_of(self, column: int, start: int) -> int:
        """The span of the token after `column`, if all rows share `start`."""
        return max(0, (column + 1 - start) // self.span_length)

    def queries(self, low: int, high: int) -> list[SpanQuery]:
        """The queries that the tokens after the columns `low .. high - 1` need, sorted by column.

        A span that begins with the token after column `c` is queried at `c`, the last column before it. Spans whose
        weights are known are left out.
        """
        shared = self._shared_start
        if shared is not None:
            spans = range(self._shared_span_of(low, shared), self._shared_span_of(high - 1, shared) + 1)
            return [
                SpanQuery(shared + span * self.span_length - 1, span, None)
                for span in spans
                if span not in self._weights
            ]
        wanted: dict[tuple[int, int], list[int]] = {}
        for row, (start, first) in enumerate(zip(self.starts.tolist(), self.firsts.tolist(), strict=True)):
            last = max(0, (high - start) // self.span_length)
            for span in range(max(0, (low + 1 - start) // self.span_length), last + 1):
                if span in self._known and bool(self._known[span][row]):
                    continue
                # without a prompt, nothing is before the first token: span 0 is queried at the first token itself
                column = max(start + span * self.span_length - 1, first)
                wanted.setdefault((column, span), []).append(row)
        return [
            SpanQuery(column, span, None if len(rows) == len(self.starts) else torch.tensor(rows))
            for (column, span), rows in sorted(wanted.items())
        ]

    def set(self, query: SpanQuery, weights: torch.Tensor, values: list[list[float]] | None = None) -> None:
        """Stores the weights of a query.

        Args:
            query (`SpanQuery`): one of `queries`.
            weights (`torch.FloatTensor` of shape `(R, M)`): the weights of the rows of the query.
            values (`list[list[float]]`, *optional*): the same numbers, if the host has them already.
        """
        if query.rows is None:
            self._known[query.span] = torch.ones(len(self.starts), dtype=torch.bool)
        else:
            before = self._weights.get(query.span, weights.new_zeros(len(self.starts), weights.shape[1]))
            weights = before.index_copy(0, query.rows.to(before.device), weights)
            known = self._known.get(query.span, torch.zeros(len(self.starts), dtype=torch.bool))
            self._known[query.span] = known.index_fill(0, query.rows, True)
        self._weights[query.span] = weights
        lists = values if query.rows is None and values is not None else weights.tolist()
        self._lists[query.span] = lists
        self._active[query.span] = _with_weight(lists)
        self.records.append(SpanRecord(query.span, query.column, weights))

    def draw(self, column: int, members: torch.Tensor) -> None:
        """Gives all weight for the token after `column` to one member per row, `members` of shape `(B,)`."""
        self.use(column, torch.nn.functional.one_hot(members, len(self.span_lists(column)[0])).float())

    def use(self, column: int, weights: torch.Tensor) -> None:
        """Replaces the weights of the token after `column`, `weights` of shape `(B, M)`."""
        self._used = {at: used for at, used in self._used.items() if at == column - 1}
        device = next(iter(self._weights.values())).device
        self._used[column] = (upload(weights, device), weights.tolist())

    def record_lost(self, column: int, lost: torch.Tensor) -> None:
        """Corrects the records of spans that begin with the token after `column` for members that have dropped out.

        Args:
            column (`int`): the last column of the text.
            lost (`torch.BoolTensor` of shape `(B, M)`): the members that cannot continue each row.
        """
        begins = ((column + 1 - self.starts) % self.span_length == 0) & lost.any(1).cpu()
        if not bool(begins.any()):
            return
        given, spans = self.span_weights(column), self.span_of(column)
        used = without(given, lost.to(given.device))
        for at, record in enumerate(self.records):
            rows = begins & (spans == record.span)
            if bool(rows.any()):
                weights = torch.where(rows.to(used.device)[:, None], used, record.weights)
                self.records[at] = SpanRecord(record.span, record.column, weights)

    def active(self, low: int, high: int) -> list[int]:
        """The members that have weight in some row for the tokens after the columns `low .. high - 1`."""
        if low in self._used and high == low + 1:
            return sorted(_with_weight(self._used[low][1]))
        if self._shared_start is not None:
            spans = {self._shared_span_of(column, self._shared_start) for column in range(low, high)}
        else:
            spans = set(self._weights)
        return sorted(frozenset().union(*(self._active[span] for span in spans)))

    def weights(self, low: int, high: int) -> torch.Tensor:
        """The weights of the tokens after the columns `low .. high - 1`, of shape `(B, high - low, M)`."""
        if low in self._used and high == low + 1:
            return self._used[low][0][:, None]
        return self._given(low, high)

    def span_weights(self, column: int) -> torch.Tensor:
        """The span's weights for the token after `column`, whatever `use` has replaced: shape `(B, M)`."""
        return self._given(column, column + 1)[:, 0]

    def _given(self, low: int, high: int) -> torch.Tensor:
        start = self._shared_start
        if start is not None:
            columns = [self._weights[self._shared_span_of(column, start)] for column in range(low, high)]
            return columns[0][:, None] if len(columns) == 1 else torch.stack(columns, dim=1)
        spans = torch.stack([self.span_of(column) for column in range(low, high)], dim=1)
        any_weights = next(iter(self._weights.values()))
        result = any_weights.new_zeros(len(self.starts), high - low, any_weights.shape[1])
        for span, weights in self._weights.items():
            here = (spans == span).to(weights.device)[..., None]
            result = torch.where(here, weights[:, None], result)
        return result

    def as_lists(self, column: int) -> list[list[float]]:
        """The weights of the token after `column` as B lists of M numbers; 0 in rows whose weights are not known."""
        return self._used[column][1] if column in self._used else self.span_lists(column)

    def span_lists(self, column: int) -> list[list[float]]:
        """`span_weights` as B lists of M numbers; the device is not waited for."""
        if self._shared_start is not None:
            return self._lists[self._shared_span_of(column, self._shared_start)]
        members = len(next(iter(self._lists.values()))[0]) if self._lists else 0
        spans = self.span_of(column).tolist()
        return [self._lists[span][row] if span in self._lists else [0.0] * members for row, span in enumerate(spans)]

    def select(self, rows: torch.Tensor) -> None:
        """Row `i` becomes the former row `rows[i]`."""
        on_cpu = rows.cpu()
        places = {weights.device: upload(rows, weights.device) for weights in self._weights.values()}
        self.starts, self.firsts = self.starts[on_cpu], self.firsts[on_cpu]
        if self._shared_start is not None:  # otherwise rows with a later start may still need older spans
            for span in sorted(self._weights)[:-2]:
                del self._weights[span], self._known[span], self._lists[span], self._active[span]
        self._used = {
            at: (weights[places[weights.device]], [lists[row] for row in on_cpu.tolist()])
            for at, (weights, lists) in self._used.items()
        }
        for span, weights in self._weights.items():
            self._weights[span] = weights.index_select(0, places[weights.device])
            self._known[span] = self._known[span][on_cpu]
            self._lists[span] = [self._lists[span][row] for row in on_cpu.tolist()]
            self._active[span] = _with_weight(self._lists[span])

    def crop(self, columns: int) -> None:
        """Drops the weights of queries at or after column `columns`."""
        for record in self.records:
            if record.column >= columns:
                for table in (self._weights, self._known, self._lists, self._active):
                    table.pop(record.span, None)
        self.records = [record for record in self.records if record.column < columns]
        self._used = {at: used for at, used in self._used.items() if at < columns}


def without(weights: torch.Tensor, lost: torch.Tensor) -> torch.Tensor:
    """Weights `(..., M)` without the lost members, renormalised; if those had all the weight, the others share it.

    Args:
        weights (`torch.FloatTensor` of shape `(..., M)`): each row sums to 1.
        lost (`torch.BoolTensor` of shape `(..., M)`): the members that cannot continue the text.

    Returns:
        `torch.FloatTensor` of shape `(..., M)`: NaN in rows in which all members are lost.

    Example:

    >>> without(torch.tensor([[0.5, 0.25, 0.25], [1, 0, 0]]), torch.tensor([[True, False, False]] * 2))
    tensor([[0.0000, 0.5000, 0.5000],
            [0.0000, 0.5000, 0.5000]])
    """
    left = weights.masked_fill(lost, 0.0)
    total = left.sum(-1, keepdim=True)
    equal = (~lost).float() / (~lost).sum(-1, keepdim=True)
    return torch.where(total > 0, left / total.masked_fill(total == 0, 1.0), equal)


def columns_of(weights: torch.Tensor, members: Sequence[int]) -> torch.Tensor:
    """The weights `(..., A)` of some members, from those of all, `(..., M)`; without a list as index.

    An index of Python numbers would be copied to the device, and waited for.
    """
    if len(members) == weights.shape[-1]:
        return weights
    return torch.stack([weights[..., index] for index in members], dim=-1)


def _with_weight(lists: list[list[float]]) -> frozenset[int]:
    """The members that have weight in some row."""
    return frozenset(index for row in lists for index, weight in enumerate(row) if weight > 0)
