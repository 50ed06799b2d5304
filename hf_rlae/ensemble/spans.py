"""Which weights hold at which token."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class SpanQuery:
    """Rows whose policy has to be asked.

    Attributes:
        column (`int`): the last column of the text that the policy may see.
        span (`int`): which span of those rows begins.
        rows (`torch.BoolTensor` of shape `(B,)` or `None`): which rows; `None` for all.
    """

    column: int
    span: int
    rows: torch.Tensor | None


@dataclass(frozen=True)
class SpanRecord:
    """Weights as they were given.

    Attributes:
        span (`int`): the span that they hold for.
        column (`int`): the last column that the policy saw.
        weights (`torch.FloatTensor` of shape `(B, M)`): after cutting.
    """

    span: int
    column: int
    weights: torch.Tensor


class SpanClock:
    """Counts completion tokens and holds the weights of every span, row by row.

    The token after column `j` of a row is its completion token `j + 1 - start`; span `s` holds for the completion
    tokens `s * span_length` to `(s + 1) * span_length - 1`. Tokens of the prompt take the weights of span 0.

    Args:
        span_length (`int`): tokens per span.
        starts (`torch.LongTensor` of shape `(B,)`, on the CPU): the column of each row's first completion token.
        firsts (`torch.LongTensor` of shape `(B,)`, on the CPU): the first attended column of each row.
    """

    def __init__(self, span_length: int, starts: torch.Tensor, firsts: torch.Tensor) -> None:
        self.span_length = span_length
        self.starts = starts
        self.firsts = firsts
        self.uniform = bool((starts == starts[0]).all()) and bool((firsts < starts).all())
        self.records: list[SpanRecord] = []
        self._table: dict[int, torch.Tensor] = {}
        self._asked: dict[int, torch.Tensor] = {}
        self._active: dict[int, frozenset[int]] = {}
        self._lists: dict[int, list[list[float]]] = {}
        self._narrowed: dict[int, tuple[torch.Tensor, list[list[float]]]] = {}

    def span_of(self, column: int) -> torch.Tensor:
        """The span of the token after `column`, for every row: shape `(B,)`."""
        return ((column + 1 - self.starts) // self.span_length).clamp(min=0)

    def queries(self, low: int, high: int) -> list[SpanQuery]:
        """What has to be asked before the tokens after the columns `low .. high - 1` can be weighed, in order."""
        if self.uniform:
            start = int(self.starts[0])
            spans = range(max(0, (low + 1 - start) // self.span_length), max(0, (high - start) // self.span_length) + 1)
            return [
                SpanQuery(start + span * self.span_length - 1, span, None) for span in spans if span not in self._table
            ]
        wanted: dict[tuple[int, int], torch.Tensor] = {}
        for row, (start, first) in enumerate(zip(self.starts.tolist(), self.firsts.tolist(), strict=True)):
            last = max(0, (high - start) // self.span_length)
            for span in range(max(0, (low + 1 - start) // self.span_length), last + 1):
                if span in self._asked and bool(self._asked[span][row]):
                    continue
                column = max(start + span * self.span_length - 1, first)
                rows = wanted.setdefault((column, span), torch.zeros(len(self.starts), dtype=torch.bool))
                rows[row] = True
        return [SpanQuery(column, span, rows) for (column, span), rows in sorted(wanted.items(), key=_order)]

    def answer(self, query: SpanQuery, weights: torch.Tensor) -> None:
        """Stores weights `(B, M)` for the rows of a query (`weights` of other rows are ignored)."""
        known = self._table.get(query.span)
        if query.rows is not None and known is not None:
            weights = torch.where(query.rows.to(weights.device)[:, None], weights, known)
        self._table[query.span] = weights
        asked = torch.ones(len(self.starts), dtype=torch.bool) if query.rows is None else query.rows
        self._asked[query.span] = asked | self._asked.get(query.span, torch.zeros_like(asked))
        self._lists[query.span] = rows = weights.tolist()
        self._active[query.span] = frozenset(i for row in rows for i, weight in enumerate(row) if weight > 0)
        self.records.append(SpanRecord(query.span, query.column, weights))

    def narrow(self, column: int, members: torch.Tensor) -> None:
        """Gives all weight for the token after `column` to one member a row, `members` of shape `(B,)`."""
        one_hot = torch.nn.functional.one_hot(members, self.span_weights(column).shape[1]).float()
        self._narrowed = {at: entry for at, entry in self._narrowed.items() if at == column - 1}
        device = next(iter(self._table.values())).device
        self._narrowed[column] = (one_hot.to(device), one_hot.tolist())

    def active(self, low: int, high: int) -> list[int]:
        """The members that have weight in some row for the tokens after the columns `low .. high - 1`."""
        if low in self._narrowed and high == low + 1:
            return sorted({row.index(1.0) for row in self._narrowed[low][1]})
        if self.uniform:
            start = int(self.starts[0])
            spans = {max(0, (column + 1 - start) // self.span_length) for column in range(low, high)}
        else:
            spans = set(self._table)
        return sorted(frozenset().union(*(self._active[span] for span in spans)))

    def weights(self, low: int, high: int) -> torch.Tensor:
        """The weights of the tokens after the columns `low .. high - 1`, of shape `(B, high - low, M)`."""
        if low in self._narrowed and high == low + 1:
            return self._narrowed[low][0][:, None]
        return self._given(low, high)

    def span_weights(self, column: int) -> torch.Tensor:
        """The weights of the span that the token after `column` belongs to, of shape `(B, M)`, drawn or not."""
        return self._given(column, column + 1)[:, 0]

    def _given(self, low: int, high: int) -> torch.Tensor:
        if self.uniform:
            start = int(self.starts[0])
            columns = [self._table[max(0, (c + 1 - start) // self.span_length)] for c in range(low, high)]
            return columns[0][:, None] if len(columns) == 1 else torch.stack(columns, dim=1)
        spans = torch.stack([self.span_of(column) for column in range(low, high)], dim=1)
        any_weights = next(iter(self._table.values()))
        result = any_weights.new_zeros(len(self.starts), high - low, any_weights.shape[1])
        for span, weights in self._table.items():
            here = (spans == span).to(weights.device)[..., None]
            result = torch.where(here, weights[:, None], result)
        return result

    def host_weights(self, column: int) -> list[list[float]]:
        """The weights of the token after `column`, row by row; rows whose span has not begun have none (all 0)."""
        if column in self._narrowed:
            return self._narrowed[column][1]
        if self.uniform:
            return self._lists[max(0, (column + 1 - int(self.starts[0])) // self.span_length)]
        count = len(next(iter(self._lists.values()))[0]) if self._lists else 0
        spans = self.span_of(column).tolist()
        return [self._lists[span][row] if span in self._lists else [0.0] * count for row, span in enumerate(spans)]

    def select(self, rows: torch.Tensor) -> None:
        """Makes row `i` continue what row `rows[i]` was."""
        on_cpu = rows.cpu()
        self.starts, self.firsts = self.starts[on_cpu], self.firsts[on_cpu]
        if self.uniform:  # else rows that began later may still need the older spans
            for span in sorted(self._table)[:-2]:
                del self._table[span], self._asked[span], self._lists[span]
        self._narrowed = {
            at: (weights[rows.to(weights.device)], [lists[row] for row in on_cpu.tolist()])
            for at, (weights, lists) in self._narrowed.items()
        }
        for span, weights in self._table.items():
            self._table[span] = weights.index_select(0, rows.to(weights.device))
            self._asked[span] = self._asked[span][on_cpu]
            self._lists[span] = [self._lists[span][row] for row in on_cpu.tolist()]

    def crop(self, columns: int) -> None:
        """Forgets what was asked at or after column `columns`."""
        for record in self.records:
            if record.column >= columns:
                self._table.pop(record.span, None)
                self._asked.pop(record.span, None)
                self._lists.pop(record.span, None)
        self.records = [record for record in self.records if record.column < columns]


def _order(item: tuple[tuple[int, int], torch.Tensor]) -> tuple[int, int]:
    return item[0]
