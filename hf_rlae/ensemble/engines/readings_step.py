"""One forward pass of an ensemble with different tokenizers."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessorList

from hf_rlae.ensemble.engines.column_text import ColumnText
from hf_rlae.ensemble.faults import losing
from hf_rlae.ensemble.spans import SpanQuery, columns_of
from hf_rlae.ensemble.trace import MemberScores
from hf_rlae.ensemble.warping import warped
from hf_rlae.members import readings_ahead
from hf_rlae.policies import MemberObservation
from hf_rlae.vocabulary import UnionVocabulary

if TYPE_CHECKING:
    from hf_rlae.ensemble.cache_ensemble import EnsembleCache
    from hf_rlae.ensemble.draws import MemberDraws
    from hf_rlae.ensemble.engines.readings import ReadingsCall

logger = logging.getLogger(__name__)

Distribution = tuple[torch.Tensor, torch.Tensor]
"""A member's probabilities over the columns of the union vocabulary `(B, G)`, and the log of its sum of exponentials
`(B,)`, which is -inf in rows without next-token mass."""


class ReadingsStep:
    """Reads new columns one after the other (see `EngineStep`).

    A member's readings after a column depend on the shares of the members that proposed its token, and so on the
    weights. Therefore several columns cannot be read at once.

    Args:
        call (`ReadingsCall`): the members' runs.
        cache (`EnsembleCache`): the text and the weights.
        keep (`int`): number of last columns to compute logits for.
    """

    def __init__(self, call: ReadingsCall, cache: EnsembleCache, keep: int) -> None:
        self.call = call
        self.engine = call.engine
        self.runs = call.runs
        self.cache = cache
        self.low = cache.ids.shape[1] - keep
        spans = cache.spans
        self.prompt_ends: list[int] = torch.maximum(spans.starts - 1, spans.firsts).tolist()
        # safe, because `generate` copies the logits of a single column; a trace keeps the members' probabilities
        self.writes_in_place = cache.in_generate and keep == 1 and not cache.trace.enabled
        self._column = -1
        self._text: ColumnText  # of the column that is being read
        self._mixed: list[torch.Tensor] = []
        self._members: list[list[Distribution | None]] = []
        self._weights: list[torch.Tensor] = []

    # -- the interface of a step --------------------------------------------------------------------------

    def queries(self) -> Iterator[SpanQuery]:
        """See `EngineStep`; reads the columns, and yields a query whenever a span begins."""
        cache, first, total = self.cache, self.call.num_read, self.cache.ids.shape[1]
        text = cache.ids[:, first:].tolist()
        if not cache.in_generate:
            for row, end in zip(text, self.prompt_ends, strict=True):
                self.engine.encoder.control.check_completion(row[max(end + 1 - first, 0) :])
        mask = None
        if cache.mask is not None and not (cache.in_generate and first >= int(cache.spans.starts[0])):
            mask = cache.mask[:, first:].tolist()
        for run in self.runs:
            run.forget_before(first)
        for column in range(first, total):
            tokens: list[int | None] = [row[column - first] for row in text]
            if mask is not None:
                tokens = [t if row[column - first] else None for t, row in zip(tokens, mask, strict=True)]
            self._column = column
            self._begin_column(tokens)
            for query in cache.spans.queries(column, column + 1):
                if query.column <= column:
                    yield query
            self._finish_column()
            for run in self.runs:
                run.mark(column)
        self.call.num_read = total

    def observe(self, query: SpanQuery) -> list[MemberObservation]:
        """See `EngineStep`."""
        rows = [row for row, end in enumerate(self.prompt_ends) if end <= self._column]
        self._text.catch_up([(index, rows) for index in range(len(self.runs))])
        gone = () if self.cache.faults is None else self.cache.faults.gone
        return [
            self._nothing(index) if index in gone else MemberObservation(*run.observation())
            for index, run in enumerate(self.runs)
        ]

    def _nothing(self, index: int) -> MemberObservation:
        """The observation of a member that is lost, perhaps before it has read anything."""
        member, pools = self.engine.members[index], self.call.hidden_tokens > 1
        options: Any = {"dtype": member.dtype, "device": member.device}
        logits = torch.full((len(self.prompt_ends), member.vocab_size), -torch.inf, **options)
        return MemberObservation(logits, torch.zeros(len(logits), member.hidden_size * (1 + pools), **options))

    def look_ahead(self, query: SpanQuery, num_tokens: int) -> list[torch.Tensor]:
        """See `EngineStep`."""
        self.observe(query)
        rows = range(len(self.prompt_ends)) if query.rows is None else query.rows.tolist()
        states = []
        for index, (run, member) in enumerate(zip(self.runs, self.engine.members, strict=True)):
            ahead = torch.zeros(len(rows), member.hidden_size, dtype=member.dtype, device=member.device)
            with losing(self.cache.faults, index):
                ahead = readings_ahead(run, rows, num_tokens)
            states.append(ahead)
        return states

    def logits(self) -> torch.Tensor:
        """See `EngineStep`; NaN inside prompts."""
        if self.cache.trace.enabled:
            scores = _stacked(self._members)
            weights = torch.cat(self._weights, dim=1)
            self.cache.trace.pending = MemberScores(
                self.low, scores, weights, True, columns_of=self.engine.union.columns_of
            )
        return self._mixed[0][:, None] if len(self._mixed) == 1 else torch.stack(self._mixed, dim=1)

    # -- one column ---------------------------------------------------------------------------------------

    def _begin_column(self, tokens: Sequence[int | None]) -> None:
        """Passes the members the prompts that end at the column, and computes the updates for its tokens."""
        column, pieces = self._column, self.engine.union.pieces
        begins = [row for row, end in enumerate(self.prompt_ends) if end == column]
        if begins:
            self._admit(begins)
        raws = [
            pieces[token] if token is not None and column > end else None
            for token, end in zip(tokens, self.prompt_ends, strict=True)
        ]
        self._text = ColumnText(self.call, self.cache, column, raws)

    def _admit(self, begins: Sequence[int]) -> None:
        """Passes every member the prompts of the rows `begins`."""
        prompts: list[list[tuple[int, ...] | None]] = [[None] * len(self.prompt_ends) for _ in self.runs]
        for row in begins:
            for index, prompt in enumerate(self.call.prompts(self.cache, row)):
                prompts[index][row] = prompt
        for run, rows in zip(self.runs, prompts, strict=True):
            run.admit(rows)

    def _finish_column(self) -> None:
        """Runs the members with weight and mixes their distributions; the other members defer the text."""
        cache, column = self.cache, self._column
        is_wanted = column >= self.low
        has_begun = [end <= column for end in self.prompt_ends]
        outputs: list[Distribution | None] = [None] * len(self.runs)
        if any(has_begun):
            if cache.draws is not None and is_wanted:
                outputs = self._run_drawn(has_begun, cache.draws)
            else:
                outputs = self._run_with_others(has_begun, is_wanted)
        if cache.faults is not None:
            cache.faults.look()
        self._text.defer_rest()
        if not is_wanted:
            return
        processors = cache.member_processors
        if processors is not None:
            outputs = [
                None if entry is None else _warped(processors, cache.ids, entry, self.engine.union) for entry in outputs
            ]
        if cache.trace.enabled:  # inside a prompt no member has a distribution, so no weight
            has_weights = any(output is not None for output in outputs)
            none = torch.zeros(len(has_begun), 1, len(outputs), device=cache.ids.device)
            self._members.append(outputs)
            self._weights.append(cache.spans.weights(column, column + 1) if has_weights else none)
        mixed = self._mix(outputs, has_begun)
        for row, end in enumerate(cache.given or ()):
            if column < end and has_begun[row]:  # the next token is given
                mixed[row] = -torch.inf
                mixed[row, cache.ids[row, column + 1]] = 0.0
        self._mixed.append(mixed)

    def _run_with_others(self, has_begun: Sequence[bool], is_wanted: bool) -> list[Distribution | None]:
        """Like `_run`; where no member with weight can continue the text, the others share the weight and run."""
        spans, column = self.cache.spans, self._column
        outputs = self._run(has_begun, is_wanted)
        lost: dict[int, set[int]] = {}
        while True:
            stuck = self._stuck(outputs, has_begun)
            for row, members in stuck:
                lost.setdefault(row, set()).update(members)
            if not any(len(lost[row]) < len(self.runs) for row, _ in stuck):
                break
            weights = spans.weights(column, column + 1)[:, 0].clone()
            for row, _ in stuck:
                left = [float(index not in lost[row]) for index in range(len(self.runs))]
                if any(left):
                    weights[row] = torch.tensor(left) / sum(left)
            spans.use(column, weights)
            outputs = self._run(has_begun, is_wanted)
        self._record_lost(has_begun)
        return outputs

    def _stuck(self, outputs: Sequence[Distribution | None], has_begun: Sequence[bool]) -> list[tuple[int, list[int]]]:
        """The rows that no member with weight can continue, each with the members that cannot."""
        if not any(run.may_be_empty for run in self.runs):
            return []
        found = []
        open_rows = [row for row, is_sure in enumerate(self._surely_continue()) if has_begun[row] and not is_sure]
        is_empty = _are_empty(outputs) if open_rows else []
        weights = self.cache.spans.as_lists(self._column)
        for row in open_rows:
            held = weights[row]
            if all(
                not weight or run.rows[row].is_exhausted or is_empty[k][row]
                for k, (weight, run) in enumerate(zip(held, self.runs, strict=True))
            ):
                lost = [k for k, run in enumerate(self.runs) if held[k] or run.rows[row].is_exhausted]
                found.append((row, lost))
        return found

    def _surely_continue(self) -> list[bool]:
        """For each row, whether a member with weight has a reading without a tail, and so next-token mass.

        The device has to be waited for only in the other rows, which are rare.
        """
        return [
            any(weight and not run.rows[row].may_be_empty for weight, run in zip(held, self.runs, strict=True))
            for row, held in enumerate(self.cache.spans.as_lists(self._column))
        ]

    def _record_lost(self, has_begun: Sequence[bool]) -> None:
        """Corrects the records of spans that begin here for members that have dropped out."""
        if not any(state.is_exhausted for run in self.runs for state in run.rows):
            return
        lost = torch.tensor([[run.rows[row].is_exhausted for run in self.runs] for row in range(len(has_begun))])
        if self.cache.faults is not None:
            self.cache.faults.check_left(lost)
            self.cache.spans.record_lost(self._column, lost & ~lost.all(1, keepdim=True))

    def _run(self, has_begun: Sequence[bool], is_wanted: bool) -> list[Distribution | None]:
        """Lets the members with weight read all unread text, and returns their distributions."""
        weights = self.cache.spans.as_lists(self._column)
        outputs: list[Distribution | None] = [None] * len(self.runs)
        active = []
        for index in range(len(self.runs)):
            rows = [row for row, weight in enumerate(weights) if has_begun[row] and weight[index] > 0]
            if rows:
                active.append((index, rows))
        self._text.catch_up(active)
        for index, _ in active if is_wanted else ():
            outputs[index] = self.runs[index].distribution(self.writes_in_place)
        return outputs

    def _run_drawn(self, has_begun: Sequence[bool], draws: MemberDraws) -> list[Distribution | None]:
        """Like `_run`, with one drawn member per row; if that member has no next-token mass, another one is drawn."""
        cache, column, runs = self.cache, self._column, self.runs
        excluded = [{k for k, run in enumerate(runs) if run.rows[row].is_exhausted} for row in range(len(has_begun))]
        while True:
            draws.choose(cache.spans, cache.ids, column, [sorted(members) for members in excluded])
            outputs = self._run(has_begun, True)
            drawn = [weights.index(1.0) for weights in cache.spans.as_lists(column)]
            may_be_empty = [
                (row, k)
                for row, k in enumerate(drawn)
                if has_begun[row] and k not in excluded[row] and runs[k].rows[row].may_be_empty
            ]
            is_empty = _are_empty(outputs) if may_be_empty else []
            empty = [(row, k) for row, k in may_be_empty if is_empty[k][row]]
            if not empty:
                self._record_lost(has_begun)
                return outputs
            for row, k in empty:
                excluded[row].add(k)

    # -- the mixture --------------------------------------------------------------------------------------

    def _mix(self, outputs: Sequence[Distribution | None], has_begun: Sequence[bool]) -> torch.Tensor:
        """Logits `(B, V)` of the mixture; NaN in rows whose prompt has not ended."""
        ids, union = self.cache.ids, self.engine.union
        device = ids.device
        active = [index for index, output in enumerate(outputs) if output is not None]
        if not active:
            return torch.full((ids.shape[0], self.engine.vocab_size), torch.nan, device=device)
        present = [output for output in outputs if output is not None]
        probs = [entry[0].to(device) for entry in present]
        log_z = [entry[1].to(device) for entry in present]
        weights = columns_of(self.cache.spans.weights(self._column, self._column + 1)[:, 0], active)
        has_ended: torch.Tensor | None = None
        processors = self.cache.member_processors
        if processors is not None or any(self.runs[index].may_be_empty for index in active):
            weights = weights * torch.isfinite(torch.stack(log_z, dim=1))
            total = weights.sum(1, keepdim=True)
            is_empty = total[:, 0] == 0
            if processors is not None or not all(self._surely_continue()):
                has_ended = is_empty if bool(is_empty.any()) else None
            weights = weights / total.masked_fill(total == 0, 1.0)
        self.cache.ended = has_ended
        if self.cache.trace.enabled:
            probs = [entry.clone() for entry in probs]
        mixed = self.engine.mixing.of_probs(probs, log_z, weights)
        if has_ended is not None:  # no member has next-token mass: the text ends
            if not self.call.has_warned_of_end:
                self.call.has_warned_of_end = True
                logger.warning("no member can continue a text, so it ends there")
            mixed = mixed.masked_fill(has_ended[:, None], -torch.inf)
            mixed[:, union.stop_column].masked_fill_(has_ended, 0.0)
        mixed = union.spread(mixed)
        if has_ended is not None and processors is not None:  # they may not let it end
            mixed = torch.where(has_ended[:, None], warped(processors, ids, mixed), mixed)
        if not all(has_begun):
            mixed[torch.tensor([not begun for begun in has_begun], device=device)] = torch.nan
        return mixed


def _warped(
    processors: LogitsProcessorList, ids: torch.Tensor, output: Distribution, union: UnionVocabulary
) -> Distribution:
    """A member's distribution after the processors that act on members; without mass in rows where they leave none."""
    probs, log_z = (entry.to(ids.device) for entry in output)
    scores = union.gathered(warped(processors, ids, union.spread(probs.log() + log_z[:, None])))
    log_z = scores.logsumexp(-1)
    return (scores - log_z[:, None]).exp().masked_fill((log_z == -torch.inf)[:, None], 0.0), log_z


def _are_empty(outputs: Sequence[Distribution | None]) -> list[list[bool]]:
    """By member and row, whether its output has no next-token mass; the device is waited for once."""
    known = [output[1] for output in outputs if output is not None]
    values = iter(torch.stack([entry.to(known[0].device) for entry in known]).tolist() if known else [])
    rows = len(known[0]) if known else 0
    return [[False] * rows if output is None else [z == -math.inf for z in next(values)] for output in outputs]


def _stacked(columns: Sequence[Sequence[Distribution | None]]) -> list[Distribution | None]:
    """The members' outputs of n columns, `(B, n, G)` and `(B, n)` each; NaN in columns that a member did not read."""
    result: list[Distribution | None] = []
    for entries in zip(*columns, strict=True):
        some = next((entry for entry in entries if entry is not None), None)
        if some is None:
            result.append(None)
            continue
        full = [entry or (torch.full_like(some[0], torch.nan), torch.zeros_like(some[1])) for entry in entries]
        result.append((torch.stack([p for p, _ in full], dim=1), torch.stack([z for _, z in full], dim=1)))
    return result
