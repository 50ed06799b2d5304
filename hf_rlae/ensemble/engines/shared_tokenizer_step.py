"""One forward pass of an ensemble whose members share a tokenizer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessorList

from hf_rlae.ensemble.engines.look_ahead import columns_ahead
from hf_rlae.ensemble.faults import losing
from hf_rlae.ensemble.spans import SpanQuery, columns_of, without
from hf_rlae.ensemble.trace import MemberScores
from hf_rlae.ensemble.warping import warped
from hf_rlae.errors import present
from hf_rlae.policies import MemberObservation

if TYPE_CHECKING:
    from hf_rlae.ensemble.cache_ensemble import EnsembleCache
    from hf_rlae.ensemble.engines.shared_tokenizer import SharedTokenizerCall
    from hf_rlae.ensemble.faults import MemberFaults


class SharedTokenizerStep:
    """One forward pass of all members with weight (see `EngineStep`).

    Args:
        call (`SharedTokenizerCall`): the members' runs.
        cache (`EnsembleCache`): the text and the weights.
        keep (`int`): number of last columns to compute logits for.

    Attributes:
        low (`int`): the first column with logits.
        first (`int`): the first column for which members compute outputs: `low`, or an earlier column at which a span
            begins.
        skipped (`int`): number of requested columns inside prompts, which have no logits.
    """

    def __init__(self, call: SharedTokenizerCall, cache: EnsembleCache, keep: int) -> None:
        self.call = call
        self.engine = call.engine
        self.cache = cache
        self.total = cache.ids.shape[1]
        low = self.total - keep
        # Members with their own prompts have no common columns before the last one of the prompt: no logits there.
        self.skipped = max(int(cache.spans.starts.max()) - 1 - low, 0) if call.has_own_prompts else 0
        self.low = low + self.skipped
        self._queries = cache.spans.queries(self.low, self.total)
        # A span that holds at `low` may begin, and be queried, before it. Members run once per step, so they compute
        # outputs from the earliest query on; columns before `cache.seen` are in their caches and cannot be computed.
        self.first = min([self.low, *(max(query.column, cache.seen) for query in self._queries)])
        self._outputs: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = {}

    def queries(self) -> list[SpanQuery]:
        """See `EngineStep`."""
        return self._queries

    def _output(self, index: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits and hidden states of a member for the columns from `first` on; the member runs once per step."""
        if index not in self._outputs:
            self._outputs[index] = self.call.runs[index].read(*self._arguments)
        return self._outputs[index]

    def _read(self, indices: Sequence[int]) -> list[int]:
        """Runs members that have not run in this step, remote ones at the same time; returns those that are lost."""
        faults = self.cache.faults
        gone = () if faults is None else faults.gone
        new = [index for index in indices if index not in self._outputs and index not in gone]
        for index in new if len(new) > 1 else ():
            with losing(faults, index):
                self.call.runs[index].launch(*self._arguments)
        for index in new:
            with losing(faults, index):
                self._output(index)
        return [index for index in indices if index not in self._outputs]

    @property
    def _arguments(self) -> tuple[torch.Tensor, torch.Tensor | None, int, bool]:
        """What members read, for `SharedRun.read`."""
        return self.cache.ids, self.cache.mask, self.total - self.first, bool(self._queries)

    def observe(self, query: SpanQuery) -> list[MemberObservation]:
        """See `EngineStep`; logits are -inf and hidden states 0 in rows whose text has outgrown a member's context."""
        column = max(query.column, self.first)
        outgrown = self._outgrown(column, column + 1)
        members = range(len(self.call.runs))
        gone = self._read([k for k in members if outgrown is None or not bool(outgrown[:, 0, k].all())])
        if gone:
            outgrown = self._with_lost(gone, outgrown, 1)
        return [
            self._observation(index, column - self.first, None if outgrown is None else outgrown[:, 0, index])
            for index in members
        ]

    def _observation(self, index: int, at: int, outgrown: torch.Tensor | None) -> MemberObservation:
        if outgrown is not None and bool(outgrown.all()):
            member = self.engine.members[index]
            options: Any = {"dtype": member.dtype, "device": member.device}
            logits = torch.full((len(outgrown), member.vocab_size), -torch.inf, **options)
            width = member.hidden_size * (2 if self.call.hidden_tokens > 1 else 1)
            return MemberObservation(logits, torch.zeros(len(outgrown), width, **options))
        scores, states = self._output(index)
        logits, hidden = scores[:, at], None if states is None else states[:, at]
        if self.cache.faults is not None and self.cache.faults.drops:
            broken = self.cache.faults.note(index, self.first + at, logits.amax(-1, keepdim=True))
            if broken is not None:
                outgrown = broken[:, 0].cpu() if outgrown is None else outgrown | broken[:, 0].cpu()
        if outgrown is not None and bool(outgrown.any()):
            logits = logits.masked_fill(outgrown.to(logits.device)[:, None], -torch.inf)
            hidden = None if hidden is None else hidden.masked_fill(outgrown.to(hidden.device)[:, None], 0.0)
        return MemberObservation(logits, hidden)

    def look_ahead(self, query: SpanQuery, num_tokens: int) -> list[torch.Tensor]:
        """See `EngineStep`."""
        column, states = max(query.column, self.first), []
        for index, (seen, member) in enumerate(zip(self.observe(query), self.engine.members, strict=True)):
            rows = len(seen.logits) if query.rows is None else len(query.rows)
            ahead = torch.zeros(rows, member.hidden_size, dtype=member.dtype, device=member.device)
            with losing(self.cache.faults, index):
                ahead = columns_ahead(self.cache, self.call.runs[index], member, seen, column, query.rows, num_tokens)
            states.append(ahead)
        return states

    def logits(self) -> torch.Tensor:
        """See `EngineStep`; NaN inside the members' own prompts."""
        faults, lost = self.cache.faults, self._outgrown(self.low, self.total)
        gone: Collection[int] = () if faults is None else faults.gone
        while True:
            if gone:
                lost = self._with_lost(gone, lost, self.total - self.low)
                present(faults, "the faults").check_left(lost)
            weights, active = self._weights(lost)
            gone = self._read(active)
            if gone:
                continue
            logits, log_z = self._scores(active, lost)
            broken = None if faults is None else self._broken(faults, active, log_z)
            if broken is None:
                break
            lost = broken if lost is None else lost | broken
            present(faults, "the faults").check_left(lost)
        if self.cache.member_processors is not None:
            return self._warped(self.cache.member_processors, active, logits, weights)
        if self.cache.trace.enabled:
            self._record(
                active, [self._output(index)[0][:, self.low - self.first :] for index in active], log_z, weights
            )
        if len(active) == 1 and not self.skipped:  # a single member: its own logits, bit-exactly
            own = self.engine.padded(logits[0]).to(self.cache.ids.device)
            return self.engine.readable(own if len(self.engine.members) == 1 else own.float())
        mixed = self.engine.readable(self.engine.mixing.of_logits(logits, log_z, columns_of(weights, active)))
        return torch.nn.functional.pad(mixed, (0, 0, self.skipped, 0), value=torch.nan) if self.skipped else mixed

    def _warped(
        self, processors: LogitsProcessorList, active: Sequence[int], logits: list[torch.Tensor], weights: torch.Tensor
    ) -> torch.Tensor:
        """Like `logits`, with the members' warped distributions; `generate` has one column per step."""
        engine, ids = self.engine, self.cache.ids
        scores = [warped(processors, ids, engine.readable(engine.padded(entry[:, -1])))[:, None] for entry in logits]
        log_z = [entry.logsumexp(-1) for entry in scores]
        if self.cache.trace.enabled:
            self._record(active, [entry.clone() for entry in scores], log_z, weights)
        if len(active) == 1:
            return scores[0]
        is_left = torch.isfinite(torch.stack(log_z, dim=-1))  # whether the processors leave a member some token
        held = columns_of(weights, active) * is_left
        total = held.sum(-1, keepdim=True)
        finite = [z.masked_fill(z == -torch.inf, 0.0) for z in log_z]  # the weight is 0: -inf - -inf would be NaN
        return engine.mixing.of_logits(scores, finite, held / total.masked_fill(total == 0, 1.0))

    def _weights(self, lost: torch.Tensor | None) -> tuple[torch.Tensor, list[int]]:
        """The weights `(B, n, M)` without lost members `(B, n, M)`, and the members with weight; draws members."""
        cache, spans, low, total = self.cache, self.cache.spans, self.low, self.total
        if cache.draws is not None:
            excluded = () if lost is None else [row.nonzero()[:, 0].tolist() for row in lost[:, -1]]
            cache.draws.choose(spans, cache.ids, total - 1, excluded)
        weights = spans.weights(low, total)
        if lost is None:
            if spans.is_whole_text and self._queries:
                self._choose_rows(spans.span_weights(total - 1))
            return weights, spans.active(low, total)
        if cache.in_generate:
            spans.record_lost(total - 1, lost[:, -1])
        weights = without(weights, lost.to(weights.device))
        if spans.is_whole_text:
            self._choose_rows(weights.amax(1))
        return weights, (weights > 0).any(0).any(0).nonzero()[:, 0].tolist()

    def _choose_rows(self, weights: torch.Tensor) -> None:
        """Lets each member read only the rows in which it has weight, `(B, M)`, to the end of the text."""
        for index, held in enumerate((weights > 0).T.tolist()):
            if any(held):
                self.call.choose_rows(index, [row for row, is_held in enumerate(held) if is_held])

    def _scores(
        self, active: Sequence[int], lost: torch.Tensor | None
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Logits `(B, n, V)` of the active members, for mixing, and the logs of their sums of exponentials `(B, n)`.

        The only active member has its own logits; the second list then is only for `MemberFaults` and the trace.
        """
        cache = self.cache
        logits = [self._output(index)[0][:, self.low - self.first :] for index in active]
        if len(active) == 1 and not self.skipped:
            if cache.trace.enabled:
                return logits, [logits[0].float().logsumexp(-1)]
            return logits, [] if cache.faults is None else [logits[0].amax(-1)]
        # mixing overwrites its input, so copy logits that the trace, a policy or the caller of `forward` may still use
        options: Any = {
            "device": cache.ids.device,
            "dtype": torch.float32,
            "copy": cache.trace.enabled or not cache.in_generate or bool(self._queries) or lost is not None,
        }
        scores = [self.engine.padded(entry).to(**options) for entry in logits]
        if lost is not None:  # NaN of a member without weight would reach the mixture
            for index, entry in zip(active, scores, strict=True):
                entry.masked_fill_(lost[..., index, None].to(entry.device), 0.0)
        return scores, [entry.logsumexp(-1) for entry in scores]

    def _broken(
        self, faults: MemberFaults, active: Sequence[int], log_z: Sequence[torch.Tensor]
    ) -> torch.Tensor | None:
        """Where members have to be left out, `(B, n, M)` on the CPU; `None` if nowhere."""
        found: torch.Tensor | None = None
        for index, values in zip(active, log_z, strict=True):
            broken = faults.note(index, self.low, values)
            if broken is not None:
                if found is None:
                    found = torch.zeros(*broken.shape, len(self.engine.members), dtype=torch.bool)
                found[..., index] = broken.cpu()
        faults.look()
        return found

    def _with_lost(self, gone: Collection[int], lost: torch.Tensor | None, columns: int) -> torch.Tensor:
        """Lost members `(B, columns, M)` with those that cannot be run any more, in all rows."""
        shape = (self.cache.ids.shape[0], columns, len(self.engine.members))
        lost = torch.zeros(shape, dtype=torch.bool) if lost is None else lost.clone()
        lost[..., list(gone)] = True
        return lost

    def _outgrown(self, low: int, high: int) -> torch.Tensor | None:
        """Whether each row's text has outgrown each member's context at the columns `low .. high - 1`.

        If it has outgrown all contexts, the member with the largest context stays.

        Returns:
            `torch.BoolTensor` of shape `(B, high - low, M)` on the CPU, or `None` if no context is outgrown.
        """
        limits, runs = self.engine.contexts, self.call.runs
        if len(limits) == 1 or all(run.columns(high) <= limit for limit, run in zip(limits, runs, strict=True)):
            return None
        columns = torch.arange(low + 1, high + 1)
        lengths = [run.lengths(columns, self.cache.spans.firsts) for run in runs]
        outgrown = torch.stack([own > limit for own, limit in zip(lengths, limits, strict=True)], dim=-1)
        if not bool(outgrown.any()):
            return None
        outgrown[..., self.engine.survivor] &= ~outgrown.all(-1)
        for index in outgrown.any(0).any(0).nonzero()[:, 0].tolist():
            if index not in self.call.warned_of:
                self.call.warned_of.add(index)
                self.engine.members[index].warn_of_outgrown_context()
        return outgrown

    def _record(
        self,
        active: Sequence[int],
        scores: Sequence[torch.Tensor],
        log_z: Sequence[torch.Tensor],
        weights: torch.Tensor,
    ) -> None:
        by_member: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * len(self.engine.members)
        for index, entry, z in zip(active, scores, log_z, strict=True):
            by_member[index] = (entry, z)
        self.cache.trace.pending = MemberScores(self.low, by_member, weights)
