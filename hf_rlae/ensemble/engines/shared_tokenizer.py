"""One step of an ensemble whose members share a tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from hf_rlae.ensemble.cache_ensemble import EnsembleCache
from hf_rlae.ensemble.mixing import Mixing
from hf_rlae.ensemble.spans import SpanQuery
from hf_rlae.ensemble.trace import MemberScores
from hf_rlae.members import LockstepRelay, Member, OwnPromptRelay, SeparateRowsRelay
from hf_rlae.policies import MemberObservation

logger = logging.getLogger(__name__)

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
        self.narrowest = min(member.vocab_size for member in members)
        self.contexts = [
            torch.inf if member.context_length is None else float(member.context_length) for member in members
        ]
        self.survivor = self.contexts.index(max(self.contexts))

    def new_relays(self, use_cache: bool, hidden_tokens: int = 1) -> list[LockstepRelay | SeparateRowsRelay]:
        """Fresh caches for one call; hidden states are read when a policy asks for them (see `LockstepRelay`)."""
        shares_prompts = len(self.members) > 1
        relays: list[LockstepRelay | SeparateRowsRelay] = []
        for index, member in enumerate(self.members):
            if member.recurrence.reads_batches:
                drops_out = index != self.survivor
                relays.append(LockstepRelay(member, use_cache, shares_prompts, drops_out, hidden_tokens))
            else:
                relays.append(SeparateRowsRelay(member, use_cache, shares_prompts, hidden_tokens))
        return relays

    def take_prompts(self, cache: EnsembleCache, ids: torch.Tensor, mask: torch.Tensor, start: int) -> None:
        """Gives members their own prompts `(B, M, L)` in the place of the first `start` columns."""
        assert cache.ids is not None
        shared = cache.ids[:, :start]
        shared_mask = torch.ones_like(shared) if cache.mask is None else cache.mask[:, :start]
        for index, relay in enumerate(cache.relays):
            own, own_mask = ids[:, index], mask[:, index]
            first = int(own_mask.argmax(1).min())
            own, own_mask = own[:, first:], own_mask[:, first:]
            same = own_mask.shape == shared_mask.shape and torch.equal(own_mask.bool().cpu(), shared_mask.bool().cpu())
            if same and torch.equal((own * own_mask).cpu(), (shared * shared_mask).cpu()):
                continue
            assert isinstance(relay, LockstepRelay | SeparateRowsRelay)
            cache.relays[index] = OwnPromptRelay(relay, own, own_mask, start)

    def step(self, cache: EnsembleCache, keep: int, ask: AskPolicy) -> torch.Tensor:
        """Logits for the last `keep` columns of `cache.ids`, of shape `(B, keep, V)`."""
        clock, ids = cache.clock, cache.ids
        assert clock is not None
        assert ids is not None
        total = ids.shape[1]
        low = total - keep
        prompt = 0
        if any(isinstance(relay, OwnPromptRelay) for relay in cache.relays):
            prompt = max(int(clock.starts.max()) - 1 - low, 0)  # inside their own prompts members share no columns
            low += prompt
        queries = clock.queries(low, total)
        first = min([low, *(max(query.column, cache.seen) for query in queries)])
        runs: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = {}

        def run(index: int) -> tuple[torch.Tensor, torch.Tensor | None]:
            if index not in runs:
                relay: Any = cache.relays[index]
                runs[index] = relay.run(ids, cache.mask, total - first, hidden=bool(queries))
            return runs[index]

        for query in queries:
            at = max(query.column, first) - first

            def observe(at: int = at) -> list[MemberObservation]:
                gone = self._gone(cache, first + at, first + at + 1)
                return [
                    self._seen(cache, index, partial(run, index), at, None if gone is None else gone[:, 0, index])
                    for index in range(len(self.members))
                ]

            ask(cache, query, observe)
        gone = self._gone(cache, low, total)
        if cache.draws is not None:
            mute = () if gone is None else [row.nonzero()[:, 0].tolist() for row in gone[:, -1]]
            cache.draws.choose(clock, ids, total - 1, mute)
        weights = clock.weights(low, total)
        active = clock.active(low, total)
        if gone is not None:
            weights = _without(weights, gone.to(weights.device))
            active = (weights > 0).any(0).any(0).nonzero()[:, 0].tolist()
        logits = [run(index)[0][:, low - first :] for index in active]
        if len(active) == 1 and not prompt:
            if cache.trace.enabled:
                self._remember(cache, low, active, logits, [logits[0].float().logsumexp(-1)], weights)
            return self._readable(self._padded(logits[0]))
        device = ids.device
        # what a member has just returned belongs to this step, unless it is traced or a policy has seen it
        copy = cache.trace.enabled or not cache.in_generate or bool(queries)
        scores = [self._padded(entry).to(device=device, dtype=torch.float32, copy=copy) for entry in logits]
        log_z = [entry.logsumexp(-1) for entry in scores]
        if cache.trace.enabled:
            self._remember(cache, low, active, logits, log_z, weights)
        mixed = self._readable(self.mixing.of_logits(scores, log_z, weights[..., active]))
        return torch.nn.functional.pad(mixed, (0, 0, prompt, 0), value=torch.nan) if prompt else mixed

    def _seen(
        self,
        cache: EnsembleCache,
        index: int,
        run: Callable[[], tuple[torch.Tensor, torch.Tensor | None]],
        at: int,
        gone: torch.Tensor | None,
    ) -> MemberObservation:
        """What a policy sees of a member; nothing in the rows `(B,)` that it is gone from."""
        if gone is not None and bool(gone.all()):
            member = self.members[index]
            options: Any = {"dtype": member.dtype, "device": member.device}
            logits = torch.full((len(gone), member.vocab_size), -torch.inf, **options)
            width = member.hidden_size * (2 if cache.hidden_tokens > 1 else 1)
            return MemberObservation(logits, torch.zeros(len(gone), width, **options))
        scores, states = run()
        logits, hidden = scores[:, at], None if states is None else states[:, at]
        if gone is not None and bool(gone.any()):
            logits = logits.masked_fill(gone.to(logits.device)[:, None], -torch.inf)
            hidden = None if hidden is None else hidden.masked_fill(gone.to(hidden.device)[:, None], 0.0)
        return MemberObservation(logits, hidden)

    def _gone(self, cache: EnsembleCache, low: int, high: int) -> torch.Tensor | None:
        """Whose context each row's text has outgrown at the columns `low .. high - 1`.

        Of members that all are too small for a text, the one with the largest context stays.

        Returns:
            `torch.BoolTensor` of shape `(B, high - low, M)`, on the CPU, or `None` if all members can go on.
        """
        clock = cache.clock
        assert clock is not None
        limits, relays = self.contexts, list[Any](cache.relays)
        if len(limits) == 1 or all(relay.columns(high) <= limit for limit, relay in zip(limits, relays, strict=True)):
            return None
        columns = torch.arange(low + 1, high + 1)
        lengths = [relay.lengths(columns, clock.firsts) for relay in relays]
        gone = torch.stack([own > limit for own, limit in zip(lengths, limits, strict=True)], dim=-1)
        if not bool(gone.any()):
            return None
        gone[..., self.survivor] &= ~gone.all(-1)
        for index in gone.any(0).any(0).nonzero()[:, 0].tolist():
            if index not in cache.outgrown:
                cache.outgrown.add(index)
                logger.warning(
                    "the text has outgrown the context of member %s (%d tokens); it drops out and the others go on",
                    self.members[index].name,
                    self.members[index].context_length,
                )
        return gone

    def _remember(
        self,
        cache: EnsembleCache,
        column: int,
        active: Sequence[int],
        logits: Sequence[torch.Tensor],
        log_z: Sequence[torch.Tensor],
        weights: torch.Tensor,
    ) -> None:
        by_member: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * len(self.members)
        for index, scores, z in zip(active, logits, log_z, strict=True):
            by_member[index] = (scores, z)
        cache.trace.pending = MemberScores(column, by_member, weights)

    def _padded(self, logits: torch.Tensor) -> torch.Tensor:
        missing = self.vocab_size - logits.shape[-1]
        if not missing:
            return logits
        return torch.nn.functional.pad(logits, (0, missing), value=-torch.inf)

    def _readable(self, logits: torch.Tensor) -> torch.Tensor:
        """Without the ids that the narrowest member could not read: no token has them."""
        if self.narrowest == self.vocab_size:
            return logits
        beyond = torch.full_like(logits[..., self.narrowest :], -torch.inf)
        return torch.cat([logits[..., : self.narrowest], beyond], dim=-1)


def _without(weights: torch.Tensor, gone: torch.Tensor) -> torch.Tensor:
    """Weights `(B, n, M)` without the members that are gone; where all weight lay on these, the others share it."""
    left = weights.masked_fill(gone, 0.0)
    total = left.sum(-1, keepdim=True)
    equal = (~gone).float() / (~gone).sum(-1, keepdim=True)
    return torch.where(total > 0, left / total.masked_fill(total == 0, 1.0), equal)
