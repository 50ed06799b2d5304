"""One step of an ensemble whose members have different tokenizers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch

from hf_rlae.ensemble.cache_ensemble import EnsembleCache
from hf_rlae.ensemble.engines.prompts import PromptEncoder, member_prompts
from hf_rlae.ensemble.mixing import Mixing
from hf_rlae.ensemble.spans import SpanQuery
from hf_rlae.ensemble.trace import MemberScores
from hf_rlae.members import Measurement, Member, ReadingsRelay, RowRunner, SlotRunner, Update
from hf_rlae.policies import MemberObservation
from hf_rlae.vocabulary import Alignment, ByteVocabulary, UnionVocabulary

logger = logging.getLogger(__name__)

AskPolicy = Callable[[EnsembleCache, SpanQuery, Callable[[], Sequence[MemberObservation]]], None]


class _Column:
    """What the text of one column means for the members."""

    def __init__(self, updates: list[list[Update | None]]) -> None:
        self.updates = updates  # per member and row; `None` where nothing was said, or it has been taken in
        self.measurements: list[Measurement | None] = [None] * len(updates)


class ReadingsEngine:
    """Members read the text in their own tokens; their distributions are mixed over the union vocabulary.

    Source: RLAE (arXiv 2506.00439) for the mixture; readings are ours.

    Args:
        members (`Sequence[Member]`): M members.
        vocabularies (`Sequence[ByteVocabulary]`): one a member; members with one tokenizer share theirs.
        union (`UnionVocabulary`): the union vocabulary, of size V.
        runners: how each member is run on ragged rows.
        mixing (`Mixing`): how distributions become one.
        encoder (`PromptEncoder`): gives every member its own prompt.
        max_readings (`int`), min_reading (`float`): see `EnsembleConfig`.
    """

    def __init__(
        self,
        members: Sequence[Member],
        vocabularies: Sequence[ByteVocabulary],
        union: UnionVocabulary,
        runners: Sequence[type[SlotRunner] | type[RowRunner]],
        mixing: Mixing,
        encoder: PromptEncoder,
        max_readings: int,
        min_reading: float,
    ) -> None:
        self.members = list(members)
        self.vocabularies = list(vocabularies)
        self.union = union
        self.vocab_size = union.size
        self.runners = list(runners)
        self.mixing = mixing
        self.encoder = encoder
        self.max_readings = max_readings
        self.min_reading = min_reading
        self.alignments = [
            Alignment(vocabulary, union, member.end_ids)
            for member, vocabulary in zip(members, vocabularies, strict=True)
        ]
        self.groups = [
            next(j for j, other in enumerate(vocabularies) if other is vocabulary) for vocabulary in vocabularies
        ]

    def new_relays(self, use_cache: bool, hidden_tokens: int = 1) -> list[ReadingsRelay]:
        """Fresh states for one call; of `hidden_tokens` see `SlotRunner`."""
        return [
            ReadingsRelay(
                member,
                vocabulary,
                alignment,
                self.max_readings,
                self.min_reading,
                use_cache,
                runner,
                hidden_tokens,
            )
            for member, vocabulary, alignment, runner in zip(
                self.members, self.vocabularies, self.alignments, self.runners, strict=True
            )
        ]

    def take_prompts(self, cache: EnsembleCache, ids: torch.Tensor, mask: torch.Tensor, start: int) -> None:
        """Gives members their own prompts `(B, M, L)` in the place of the first `start` columns."""
        cache.member_prompts = member_prompts(ids, mask)

    def step(self, cache: EnsembleCache, keep: int, ask: AskPolicy) -> torch.Tensor:
        """Logits for the last `keep` columns of `cache.ids`, of shape `(B, keep, V)`; NaN inside a prompt."""
        ids, clock = cache.ids, cache.clock
        assert ids is not None
        assert clock is not None
        total = ids.shape[1]
        low = total - keep
        first = cache.absorbed
        text = ids[:, first:].tolist()
        mask = None
        if cache.mask is not None and not (cache.in_generate and first >= int(clock.starts[0])):
            mask = cache.mask[:, first:].tolist()
        prompt_ends = torch.maximum(clock.starts - 1, clock.firsts).tolist()
        for relay in self._relays(cache):
            relay.start_recording(first)
        # `generate` copies the logits of a single column; members' probabilities that are traced stay as they are
        in_place = cache.in_generate and keep == 1 and not cache.trace.enabled
        results: list[torch.Tensor] = []
        scores: list[list[tuple[torch.Tensor, torch.Tensor] | None]] = []
        weights: list[torch.Tensor] = []
        for column in range(first, total):
            tokens = [row[column - first] for row in text]
            if mask is not None:
                tokens = [t if row[column - first] else None for t, row in zip(tokens, mask, strict=True)]
            mixed, members = self._column(cache, column, tokens, prompt_ends, column >= low, in_place, ask)
            for relay in self._relays(cache):
                relay.mark(column)
            if column >= low:
                results.append(mixed)
                scores.append(members)
                if cache.trace.enabled:  # inside a prompt nobody has any weight yet
                    has_begun = any(entry is not None for entry in members)
                    nobody = torch.zeros(len(ids), 1, len(members), device=ids.device)
                    weights.append(clock.weights(column, column + 1) if has_begun else nobody)
        cache.absorbed = total
        if cache.trace.enabled:
            cache.trace.pending = MemberScores(low, _stacked(scores), torch.cat(weights, dim=1), are_probs=True)
        return results[0][:, None] if len(results) == 1 else torch.stack(results, dim=1)

    def _relays(self, cache: EnsembleCache) -> list[ReadingsRelay]:
        return cache.relays  # type: ignore[return-value]

    def _column(
        self,
        cache: EnsembleCache,
        column: int,
        tokens: list[int | None],
        prompt_ends: list[int],
        is_wanted: bool,
        in_place: bool,
        ask: AskPolicy,
    ) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor] | None]]:
        """Takes the token of one column in and mixes the distributions of the next."""
        ids, clock = cache.ids, cache.clock
        assert ids is not None
        assert clock is not None
        relays = self._relays(cache)
        born = [row for row, end in enumerate(prompt_ends) if end == column]
        if born:
            self._admit(cache, column, born)
        raws: list[bytes | None] = [
            self.union.pieces[token] if token is not None and column > end else None
            for token, end in zip(tokens, prompt_ends, strict=True)
        ]
        heard = self._measure(cache, column, raws)
        for query in clock.queries(column, column + 1):
            if query.column > column:
                continue

            def observe() -> list[MemberObservation]:
                rows = [row for row, end in enumerate(prompt_ends) if end <= column]
                for index in range(len(relays)):
                    self._bring(relays[index], heard, index, rows)
                return [MemberObservation(*relay.observation()) for relay in relays]

            ask(cache, query, observe)
        begun = [end <= column for end in prompt_ends]
        if not any(begun):
            self._defer(relays, heard)
            return self._nothing(ids), [None] * len(relays)
        if cache.draws is None or not is_wanted:
            outputs = self._run_members(cache, column, heard, begun, is_wanted, in_place)
        else:
            outputs = self._run_drawn_members(cache, column, heard, begun, in_place)
        self._defer(relays, heard)
        if not is_wanted:
            return ids, outputs
        return self._mixed(cache, column, outputs, begun), outputs

    def _run_members(
        self, cache: EnsembleCache, column: int, heard: _Column, begun: list[bool], is_wanted: bool, in_place: bool
    ) -> list[tuple[torch.Tensor, torch.Tensor] | None]:
        """Lets the members with weight read what they have not read yet, and returns what they say."""
        assert cache.clock is not None
        relays = self._relays(cache)
        weights = cache.clock.host_weights(column)
        outputs: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * len(relays)
        for index, relay in enumerate(relays):
            rows = [row for row, weight in enumerate(weights) if begun[row] and weight[index] > 0]
            if rows:
                self._bring(relay, heard, index, rows)
                if is_wanted:
                    outputs[index] = relay.distribution(in_place)
        return outputs

    def _run_drawn_members(
        self, cache: EnsembleCache, column: int, heard: _Column, begun: list[bool], in_place: bool
    ) -> list[tuple[torch.Tensor, torch.Tensor] | None]:
        """As `_run_members`, with one member a row; where it turns out to have nothing to say another one is drawn."""
        ids, clock, draws = cache.ids, cache.clock, cache.draws
        assert ids is not None
        assert clock is not None
        assert draws is not None
        relays = self._relays(cache)
        mute = [{k for k, relay in enumerate(relays) if relay.rows[row].is_exhausted} for row in range(len(begun))]
        while True:
            draws.choose(clock, ids, column, [sorted(members) for members in mute])
            outputs = self._run_members(cache, column, heard, begun, True, in_place)
            speakers = [weights.index(1.0) for weights in clock.host_weights(column)]
            doubtful = [
                (row, k)
                for row, k in enumerate(speakers)
                if begun[row] and k not in mute[row] and relays[k].rows[row].can_be_silent
            ]
            silent = [(row, k) for row, k in doubtful if bool(outputs[k][1][row] == -torch.inf)]  # type: ignore[index]
            if not silent:
                return outputs
            for row, k in silent:
                mute[row].add(k)

    def _nothing(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.full((ids.shape[0], self.vocab_size), torch.nan, device=ids.device)

    def _admit(self, cache: EnsembleCache, column: int, born: list[int]) -> None:
        """Hands every member the prompts of the rows whose prompt ends here."""
        ids = cache.ids
        assert ids is not None
        relays = self._relays(cache)
        prompts: list[list[tuple[int, ...] | None]] = [[None] * ids.shape[0] for _ in relays]
        known = cache.encoded_prompts
        text = ids[:, : column + 1].tolist()
        mask = None if cache.mask is None else cache.mask[:, : column + 1].tolist()
        for row in born:
            if cache.member_prompts is not None:
                found = cache.member_prompts[row]
            else:
                own = tuple(i for at, i in enumerate(text[row]) if mask is None or mask[row][at])
                if own not in known:
                    known[own] = self.encoder(own)
                found = known[own]
            for index, prompt in enumerate(found):
                prompts[index][row] = prompt
        for relay, rows in zip(relays, prompts, strict=True):
            relay.admit(rows)

    def _measure(self, cache: EnsembleCache, column: int, raws: list[bytes | None]) -> _Column:
        """The updates of all members, with the shares of those who proposed the tokens of this column."""
        relays = self._relays(cache)
        if not any(raw is not None for raw in raws):
            return _Column([[None] * len(raws) for _ in relays])
        clock = cache.clock
        assert clock is not None
        weights = clock.host_weights(column - 1)
        measurements = [
            relay.measure(
                [
                    raw if held[index] > 0 and row.readings and not row.pending else None
                    for raw, held, row in zip(raws, weights, relay.rows, strict=True)
                ]
            )
            for index, relay in enumerate(relays)
        ]
        device = relays[0].device
        numbers = torch.cat([measurement.sums.to(device) for measurement in measurements]).tolist()
        nobody: list[Update | None] = [None if raw is None else Update(raw) for raw in raws]
        heard = _Column([list(nobody) for _ in relays])
        proposals: dict[int, list[list[float]]] = {}  # by group: what its members proposed whole and unfinished
        totals = [0.0] * len(raws)
        at = 0
        for index, measurement in enumerate(measurements):
            size = len(measurement.sums)
            measurement.read(numbers[at : at + size])
            at += size
            if not measurement.rows:
                continue
            heard.measurements[index] = measurement
            proposed = proposals.setdefault(self.groups[index], [[0.0, 0.0] for _ in raws])
            shares = measurement.proposed()
            for row in measurement.rows:
                weight, (whole, unfinished), sums = weights[row][index], shares[row], proposed[row]
                sums[0] += weight * whole
                sums[1] += weight * unfinished
                totals[row] += weight * (whole + unfinished)
        for index, measurement in enumerate(measurements):
            if not measurement.rows:
                continue
            proposed, updates = proposals[self.groups[index]], heard.updates[index]
            for row in measurement.rows:
                total = totals[row]
                if total > 0:
                    whole, unfinished = proposed[row]
                    updates[row] = Update(raws[row], whole / total, unfinished / total)  # type: ignore[arg-type]
        return heard

    def _bring(self, relay: ReadingsRelay, heard: _Column, index: int, rows: Sequence[int]) -> None:
        """Lets a member read all that it has not read yet in the given rows."""
        if any(relay.rows[row].unread for row in rows):
            for row in rows:
                update = heard.updates[index][row]
                if update is not None and relay.rows[row].unread:
                    relay.defer(row, update.raw)
                    heard.updates[index][row] = None
            relay.catch_up([row for row in rows if relay.rows[row].unread])
        chosen: list[Update | None] = [None] * len(relay.rows)
        for row in rows:
            update = heard.updates[index][row]
            if update is None and relay.rows[row].pending:
                update = Update(b"")
            chosen[row] = update
            heard.updates[index][row] = None
        read = [row for row, update in enumerate(chosen) if update is not None]
        if read:
            measurement = heard.measurements[index]
            relay.advance(chosen, measurement if measurement is not None and measurement.rows == read else None)

    def _defer(self, relays: Sequence[ReadingsRelay], heard: _Column) -> None:
        for relay, updates in zip(relays, heard.updates, strict=True):
            for row, update in enumerate(updates):
                if update is not None:
                    relay.defer(row, update.raw)

    def _mixed(
        self,
        cache: EnsembleCache,
        column: int,
        outputs: Sequence[tuple[torch.Tensor, torch.Tensor] | None],
        begun: list[bool],
    ) -> torch.Tensor:
        ids, clock = cache.ids, cache.clock
        assert ids is not None
        assert clock is not None
        device = ids.device
        active = [index for index, output in enumerate(outputs) if output is not None]
        weights = clock.weights(column, column + 1)[:, 0]
        relays = self._relays(cache)
        if not active:
            return self._nothing(ids)
        present = [output for output in outputs if output is not None]
        probs = [entry[0].to(device) for entry in present]
        log_z = [entry[1].to(device) for entry in present]
        weights = weights[:, active]
        speechless: torch.Tensor | None = None
        if any(relays[index].can_be_silent for index in active):
            weights = weights * torch.isfinite(torch.stack(log_z, dim=1))
            total = weights.sum(1, keepdim=True)
            nobody = total[:, 0] == 0
            speechless = nobody if bool(nobody.any()) else None
            weights = weights / total.masked_fill(total == 0, 1.0)
        if cache.trace.enabled:
            probs = [entry.clone() for entry in probs]
        mixed = self.mixing.of_probs(probs, log_z, weights)
        if speechless is not None:
            # nobody can go on: the text ends
            if not cache.warned:
                cache.warned = True
                logger.warning("no member with weight can go on from a text, so it ends there")
            mixed = mixed.masked_fill(speechless[:, None], -torch.inf)
            mixed[:, self.union.stop_id].masked_fill_(speechless, 0.0)
        if not all(begun):
            mixed[torch.tensor([not done for done in begun], device=device)] = torch.nan
        return mixed


def _stacked(
    columns: list[list[tuple[torch.Tensor, torch.Tensor] | None]],
) -> list[tuple[torch.Tensor, torch.Tensor] | None]:
    """Member outputs of several columns, `(B, n, V)` and `(B, n)` each; a member silent in one column is 0 there."""
    result: list[tuple[torch.Tensor, torch.Tensor] | None] = []
    for entries in zip(*columns, strict=True):
        some = next((entry for entry in entries if entry is not None), None)
        if some is None:
            result.append(None)
            continue
        silent = (torch.full_like(some[0], torch.nan), torch.zeros_like(some[1])) if None in entries else some
        full = [entry if entry is not None else silent for entry in entries]
        result.append((torch.stack([p for p, _ in full], dim=1), torch.stack([z for _, z in full], dim=1)))
    return result
