"""The same ensemble without readings: every member just takes the pieces that were emitted."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch

from hf_rlae import EnsembleForCausalLM
from hf_rlae.ensemble.cache_ensemble import EnsembleCache
from hf_rlae.ensemble.engines.readings import ReadingsCall, ReadingsEngine
from hf_rlae.ensemble.spans import SpanQuery
from hf_rlae.members import Member
from hf_rlae.members.paths import Chain, Path
from hf_rlae.vocabulary import Alignment, ByteVocabulary


class AppendingRun:
    """One member in one call: plain ids in every row, and what the member says after them.

    Args:
        member (`Member`), vocabulary (`ByteVocabulary`), alignment (`Alignment`): as in the readings engine.
        runner: how the model is run on ragged rows.
    """

    def __init__(self, member: Member, vocabulary: ByteVocabulary, alignment: Alignment, runner: type) -> None:
        self.vocabulary = vocabulary
        self.runner = runner(member)
        self.rows: list[Chain] = []
        device = member.device
        self._gather = alignment.gather.to(device)
        self._extra_from = alignment.extra_from.to(device)
        self._extra_to = alignment.extra_to.to(device)
        self._excluded = alignment.excluded_ids.to(device)
        self._width = vocabulary.size + 1
        self._probs: torch.Tensor | None = None
        self._log_z: torch.Tensor | None = None

    @property
    def forward_calls(self) -> int:
        """Forward passes so far."""
        return self.runner.forward_calls

    def read(self, new_ids: Sequence[tuple[int, ...]]) -> None:
        """Appends ids to every row; a row without new ids keeps what the member said."""
        if not self.rows:
            self.rows = [Chain() for _ in new_ids]
        paths = [Path(row, ids, row.length, 1) if ids else None for row, ids in zip(self.rows, new_ids, strict=True)]
        if not any(paths):
            return
        logits = self.runner.run(paths).logits.float()
        if len(self._excluded):
            logits.index_fill_(-1, self._excluded, -torch.inf)
        probs = logits.softmax(-1)
        log_z = logits.amax(-1) - probs.amax(-1).log()
        if self._probs is None:
            self._probs = probs.new_zeros(len(new_ids), self._width)
            self._log_z = log_z.new_zeros(len(new_ids))
        read = [row for row, path in enumerate(paths) if path is not None]
        for index, row in enumerate(read):
            self._probs[row, :-1] = probs[index]
        self._log_z[torch.tensor(read, device=log_z.device)] = log_z
        self.rows = [row.plus(ids) for row, ids in zip(self.rows, new_ids, strict=True)]

    def distribution(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities over the union vocabulary `(B, V)`, and `log Z` of the logits `(B,)`."""
        own = self._probs
        probs = own.new_empty(len(own), len(self._gather))
        for row in range(len(own)):
            torch.index_select(own[row], 0, self._gather, out=probs[row])
        if len(self._extra_from):
            probs.index_add_(1, self._extra_to, own[:, self._extra_from])
        return probs, self._log_z.clone()

    def reorder(self, rows: torch.Tensor) -> None:
        """Makes row `i` continue what row `rows[i]` was."""
        self.rows = [self.rows[row] for row in rows.tolist()]
        self._probs, self._log_z = self._probs[rows], self._log_z[rows]
        self.runner.reorder(rows)


class AppendingEngine(ReadingsEngine):
    """Takes the place of an ensemble's readings engine, with the same members, runners, prompts and mixing.

    A member that has the emitted token takes it; the others tokenise its bytes as in the middle of a text. It
    goes through the same `generate`, so that the difference in time is what readings cost.

    Source: GaC (arXiv 2406.12585), RLAE (arXiv 2506.00439).

    Args:
        engine (`ReadingsEngine`): what it replaces.
    """

    def __init__(self, engine: ReadingsEngine) -> None:
        self.__dict__.update(vars(engine))
        self._known: list[dict[int, tuple[int, ...]]] = [{} for _ in engine.members]

    def new_call(self, use_cache: bool, hidden_tokens: int) -> AppendingCall:
        """Fresh states for one call."""
        parts = zip(self.members, self.vocabularies, self.alignments, self.runners, strict=True)
        return AppendingCall(self, [AppendingRun(*part) for part in parts], hidden_tokens)

    def pieces_of(self, token: int) -> list[tuple[int, ...]]:
        """The ids that each member takes for a token."""
        return [self._own_ids(index, token) for index in range(len(self._known))]

    def _own_ids(self, index: int, token: int) -> tuple[int, ...]:
        known = self._known[index].get(token)
        if known is None:
            vocabulary, piece = self.vocabularies[index], self.union.pieces[token]
            if piece is None:
                raise ValueError(f"token {token} ends the text or is special: plain appending cannot take it")
            own = vocabulary.ids_of.get(piece)
            known = self._known[index][token] = tuple(own[:1]) if own else vocabulary.canonical_ids(piece)
        return known


class AppendingCall(ReadingsCall):
    """The members' runs in one call, which take one token at a time."""

    def step(self, cache: EnsembleCache, keep: int) -> AppendingStep:
        """One token, or the prompts."""
        return AppendingStep(self, cache)


class AppendingStep:
    """Appends the newest token to every member's ids and mixes what they say."""

    def __init__(self, call: AppendingCall, cache: EnsembleCache) -> None:
        self.call = call
        self.cache = cache

    def queries(self) -> list[SpanQuery]:
        """Where the policy is asked, once all members have read the text."""
        call, ids = self.call, self.cache.ids
        total = ids.shape[1]
        if call.num_read == 0:
            rows = [call.prompts(self.cache, row) for row in range(len(ids))]
        elif total == call.num_read + 1:
            rows = [call.engine.pieces_of(token) for token in ids[:, -1].tolist()]
        else:
            raise ValueError(f"{total - call.num_read} new columns: plain appending takes one token at a time")
        for index, run in enumerate(call.runs):
            run.read([row[index] for row in rows])
        call.num_read = total
        return self.cache.spans.queries(total - 1, total)

    def logits(self) -> torch.Tensor:
        """Log-probabilities of what follows the last column, of shape `(B, 1, V)`."""
        column = self.cache.ids.shape[1] - 1
        outputs = [run.distribution() for run in self.call.runs]
        device = self.cache.ids.device
        probs, log_z = ([part.to(device) for part in parts] for parts in zip(*outputs, strict=True))
        return self.call.engine.mixing.of_probs(probs, log_z, self.cache.spans.span_weights(column))[:, None]


def appending_ensemble(ensemble: EnsembleForCausalLM) -> EnsembleForCausalLM:
    """The same ensemble with plain appending in the place of readings; members and tables are shared."""
    twin = copy.copy(ensemble)
    twin.engine = AppendingEngine(ensemble.engine)
    return twin
