"""What a policy is told about the rows of an ensemble at the first token of a span."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch

from hf_rlae.ensemble.cache_ensemble import EnsembleCache
from hf_rlae.ensemble.engines.readings import ReadingsEngine
from hf_rlae.ensemble.engines.shared_tokenizer import LockstepEngine
from hf_rlae.ensemble.spans import SpanQuery
from hf_rlae.members import Member, OwnPromptRelay, ReadingsRelay, prompt_logps
from hf_rlae.policies import MemberObservation, PolicyState, PromptScores
from hf_rlae.vocabulary import ByteVocabulary


class StateReader:
    """Makes `PolicyState`s of an ensemble's caches.

    Args:
        members (`Sequence[Member]`): M members.
        engine (`LockstepEngine` or `ReadingsEngine`): runs them.
        tokenizer: decodes the ids of the text.
    """

    def __init__(self, members: Sequence[Member], engine: LockstepEngine | ReadingsEngine, tokenizer: Any) -> None:
        self.members = tuple(members)
        self.engine = engine
        self.tokenizer = tokenizer

    def state(
        self,
        cache: EnsembleCache,
        query: SpanQuery,
        rows: torch.Tensor | None,
        observe: Callable[[], Sequence[MemberObservation]],
    ) -> PolicyState:
        """The state of the rows of a query.

        Args:
            cache (`EnsembleCache`): of the call.
            query (`SpanQuery`): which span begins, after which column.
            rows (`torch.LongTensor` of shape `(R,)` or `None`): the rows that are asked about; `None` for all B.
            observe (callable): returns the observations of all rows, one a member.
        """
        assert cache.ids is not None
        places = range(cache.ids.shape[0]) if rows is None else rows.tolist()

        def observe_rows() -> Sequence[MemberObservation]:
            seen = observe()
            if rows is None:
                return seen
            return [
                MemberObservation(
                    entry.logits[rows.to(entry.logits.device)],
                    None if entry.hidden is None else entry.hidden[rows.to(entry.hidden.device)],
                )
                for entry in seen
            ]

        def read_next(seen: Sequence[MemberObservation], best: list[list[int]]) -> list[list[bytes | None]]:
            return [
                [self._next_bytes(cache, index, row, seen[index].logits, at, best[at][index]) for index in members]
                for at, row in enumerate(places)
            ]

        members = range(len(self.members))
        return PolicyState(
            len(self.members),
            torch.full((len(places),), query.span),
            cache.ids.device,
            lambda: [self._text(cache, row, query.column + 1) for row in places],
            observe_rows,
            read_next if isinstance(self.engine, ReadingsEngine) else None,
            lambda: self._prompt_scores(cache, places),
            cache.hidden_tokens,
        )

    def _ids(self, cache: EnsembleCache, row: int, columns: int) -> list[int]:
        assert cache.ids is not None
        ids = cache.ids[row, :columns]
        if cache.mask is not None:
            ids = ids[cache.mask[row, :columns].bool()]
        return ids.tolist()

    def _text(self, cache: EnsembleCache, row: int, columns: int) -> str:
        return self.tokenizer.decode(self._ids(cache, row, columns), skip_special_tokens=True)

    def _next_bytes(
        self, cache: EnsembleCache, index: int, row: int, logits: torch.Tensor, at: int, best: int
    ) -> bytes | None:
        """What a member's likeliest token adds to the text: `b""` for its end, `None` for nothing.

        Args:
            cache (`EnsembleCache`): of the call.
            index (`int`), row (`int`): the member, and the row of the batch.
            logits (`torch.FloatTensor` of shape `(R, V_m)`), at (`int`): the member's, and the row's place in them.
            best (`int`): the likeliest of all its ids there.
        """
        assert isinstance(self.engine, ReadingsEngine)
        relay: ReadingsRelay = cache.relays[index]  # type: ignore[assignment]
        readings = relay.rows[row].readings
        tail = readings[0].tail if readings else b""
        if tail:  # half a token is in the text already: only tokens that begin with it go on from here
            ids = self.engine.alignments[index].stay_ids(tail).to(logits.device)
            if not len(ids):
                return None
            best = int(ids[logits[at, ids].argmax()])
        if best in self.members[index].end_ids:
            return b""
        if best >= len(self.engine.vocabularies[index].pieces):
            return None
        piece = self.engine.vocabularies[index].pieces[best]
        return piece[len(tail) :] if piece else None

    @cached_property
    def _vocabularies(self) -> list[ByteVocabulary]:
        """Each member's bytes."""
        if isinstance(self.engine, ReadingsEngine):
            return self.engine.vocabularies
        return [ByteVocabulary(self.members[0].tokenizer, self.engine.vocab_size)] * len(self.members)

    def _prompts(self, cache: EnsembleCache, row: int) -> list[tuple[int, ...]]:
        """The prompt of a row in each member's own ids."""
        assert cache.clock is not None
        columns = max(int(cache.clock.starts[row]), int(cache.clock.firsts[row]) + 1)
        ids = tuple(self._ids(cache, row, columns))
        if isinstance(self.engine, ReadingsEngine):
            if cache.member_prompts is not None:
                return cache.member_prompts[row]
            if ids not in cache.encoded_prompts:
                cache.encoded_prompts[ids] = self.engine.encoder(ids)
            return cache.encoded_prompts[ids]
        return [
            tuple(relay.ids[row][relay.mask[row].bool()].tolist()) if isinstance(relay, OwnPromptRelay) else ids
            for relay in cache.relays
        ]

    def _prompt_scores(self, cache: EnsembleCache, rows: Sequence[int]) -> PromptScores:
        assert cache.ids is not None
        prompts = [self._prompts(cache, row) for row in rows]
        known = cache.scored_prompts
        for index, member in enumerate(self.members):
            new = list({row[index] for row in prompts if (index, row[index]) not in known})
            for prompt, logps in zip(new, prompt_logps(member, new), strict=True):
                known[index, prompt] = logps
        counted = [self._counted(row, known) for row in prompts]
        columns = torch.tensor(counted, device=cache.ids.device).unbind(-1)
        return PromptScores(*columns)

    def _counted(
        self, prompts: Sequence[tuple[int, ...]], known: dict[tuple[int, tuple[int, ...]], list[float]]
    ) -> list[tuple[float, float, float]]:
        """For each member of one row: log-probability, bytes and tokens of what is scored."""
        entries = []
        for index, prompt in enumerate(prompts):
            pieces = self._vocabularies[index].pieces
            lengths = [len(pieces[i] or b"") if i < len(pieces) else 0 for i in prompt]
            logps = [math.nan, *known[index, prompt]]
            entries.append([(logp, length) for logp, length in zip(logps, lengths, strict=True) if length])
        if any(entry and math.isnan(entry[0][0]) for entry in entries):
            entries = [entry[1:] for entry in entries]
        result = []
        for entry in entries:
            scored = [(logp, length) for logp, length in entry if not math.isnan(logp)]
            result.append((math.fsum(logp for logp, _ in scored), float(sum(n for _, n in scored)), float(len(scored))))
        return result
