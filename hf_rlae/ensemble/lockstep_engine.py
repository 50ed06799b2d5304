"""One step of an ensemble whose members share a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from hf_rlae.ensemble.cache_ensemble import EnsembleCache, MemberScores
from hf_rlae.ensemble.mixing import Mixing
from hf_rlae.ensemble.spans import SpanQuery
from hf_rlae.member import LockstepRelay, Member
from hf_rlae.policy import MemberObservation

AskPolicy = Callable[[EnsembleCache, SpanQuery, Callable[[], Sequence[MemberObservation]]], None]


class LockstepEngine:
    """Members read the same ids; their logits are mixed as they are.

    Args:
        members (`Sequence[Member]`): M members with one vocabulary.
        mixing (`Mixing`): how distributions become one.
        vocab_size (`int`): V, the widest member's number of logits.
    """

    def __init__(self, members: Sequence[Member], mixing: Mixing, vocab_size: int) -> None:
        self.members = list(members)
        self.mixing = mixing
        self.vocab_size = vocab_size

    def new_relays(self, use_cache: bool, keep_hidden: bool = True) -> list[LockstepRelay]:
        """Fresh caches for one call; hidden states are read when a policy asks for them."""
        return [LockstepRelay(member, use_cache) for member in self.members]

    def step(self, cache: EnsembleCache, keep: int, ask: AskPolicy) -> torch.Tensor:
        """Logits for the last `keep` columns of `cache.ids`, of shape `(B, keep, V)`."""
        clock, ids = cache.clock, cache.ids
        assert clock is not None
        assert ids is not None
        total = ids.shape[1]
        low = total - keep
        queries = clock.queries(low, total)
        first = min([low, *(max(query.column, cache.seen) for query in queries)])
        runs: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = {}

        def run(index: int) -> tuple[torch.Tensor, torch.Tensor | None]:
            if index not in runs:
                relay = cache.relays[index]
                assert isinstance(relay, LockstepRelay)
                runs[index] = relay.run(ids, cache.mask, total - first, hidden=bool(queries))
            return runs[index]

        for query in queries:
            at = max(query.column, first) - first

            def observe(at: int = at) -> list[MemberObservation]:
                seen = [run(index) for index in range(len(self.members))]
                return [
                    MemberObservation(logits[:, at], None if hidden is None else hidden[:, at])
                    for logits, hidden in seen
                ]

            ask(cache, query, observe)
        weights = clock.weights(low, total)
        active = clock.active(low, total)
        weights = self._without_exhausted(cache, weights, active)
        logits = [run(index)[0][:, low - first :] for index in active]
        if len(active) == 1:
            if cache.trace.enabled:
                scores = logits[0]
                self._remember(cache, low, active, [scores], [scores.float().logsumexp(-1)])
            return self._padded(logits[0])
        device = ids.device
        scores = [self._padded(entry).to(device=device, dtype=torch.float32, copy=True) for entry in logits]
        log_z = [entry.logsumexp(-1) for entry in scores]
        if cache.trace.enabled:
            self._remember(cache, low, active, logits, log_z)
        return self.mixing.of_logits(scores, log_z, weights[..., active])

    def _remember(
        self,
        cache: EnsembleCache,
        column: int,
        active: Sequence[int],
        logits: Sequence[torch.Tensor],
        log_z: Sequence[torch.Tensor],
    ) -> None:
        by_member: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * len(self.members)
        for index, scores, z in zip(active, logits, log_z, strict=True):
            by_member[index] = (scores, z)
        cache.trace.pending = MemberScores(column, by_member)

    def _padded(self, logits: torch.Tensor) -> torch.Tensor:
        missing = self.vocab_size - logits.shape[-1]
        if not missing:
            return logits
        return torch.nn.functional.pad(logits, (0, missing), value=-torch.inf)

    def _without_exhausted(
        self, cache: EnsembleCache, weights: torch.Tensor, active: list[int]
    ) -> torch.Tensor:
        """Weights without the members whose context the text has outgrown; `active` is cut in place."""
        if len(self.members) == 1 or not cache.exhausted:
            return weights
        kept = [index for index in active if index not in cache.exhausted]
        left = weights.clone()
        left[..., sorted(cache.exhausted)] = 0
        left = left / left.sum(-1, keepdim=True)
        if not kept or not bool(torch.isfinite(left).all()):
            kept = [index for index in range(len(self.members)) if index not in cache.exhausted]
            left = torch.zeros_like(weights)
            left[..., kept] = 1 / len(kept)
        active[:] = kept
        return left
