"""The tokens that baselines choose among, and how each member reads and scores them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import torch

from hf_rlae.baselines.per_ensemble import kept
from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.members import Member
from hf_rlae.vocabulary import ByteVocabulary, UnionVocabulary, token_ids

NO_TOKEN = -1
"""The token of a member's ids that are no text and do not end it."""


class TokenSpace(Protocol):
    """The union of the members' tokens; a token is a number below `size`.

    Attributes:
        size (`int`): number of tokens, V.
        ends (`torch.LongTensor`): the tokens that end a text.
        groups (`Sequence[int]`): for each member, the first member with the same tokenizer.
    """

    size: int
    ends: torch.Tensor
    groups: Sequence[int]

    def tokens(self, index: int) -> torch.Tensor:
        """The token of each of a member's ids, `(V_m,)`."""

    def spread(self, index: int, logits: torch.Tensor) -> torch.Tensor:
        """A member's log-probabilities of all tokens, `(R, V)`, from its logits `(R, V_m)`."""

    def ids(self, index: int, token: int) -> tuple[int, ...]:
        """The ids with which a member reads a token."""

    def own_ids(self, index: int, token: int) -> Sequence[int]:
        """The ids of a member that are this token; empty if it has none."""

    def raw(self, token: int) -> bytes:
        """The bytes of a token; none if it ends a text."""

    def encode(self, index: int, raw: bytes) -> tuple[int, ...]:
        """The ids that a member's tokenizer writes for a completion."""

    def lengths(self, index: int, ids: Sequence[int]) -> list[int]:
        """The number of bytes of each of a member's ids."""

    def begun_with(self, token: int) -> list[int]:
        """The longer tokens that begin with the bytes of a token."""


class IdSpace:
    """The tokens of members that share a tokenizer are its ids.

    Args:
        members (`Sequence[Member]`): M members.
        ends (`Sequence[int]`): the ids that end a text.
    """

    def __init__(self, members: Sequence[Member], ends: Sequence[int]) -> None:
        self.members = members
        self.size = min(member.vocab_size for member in members)
        self.ends = torch.tensor([i for i in ends if i < self.size], dtype=torch.long)
        self.groups: Sequence[int] = [0] * len(members)
        self._end_ids = frozenset(ends)

    @cached_property
    def _vocabulary(self) -> ByteVocabulary:
        return ByteVocabulary(self.members[0].tokenizer, self.size)

    def tokens(self, index: int) -> torch.Tensor:
        """See [`TokenSpace`]; ids that some member cannot read are no tokens."""
        own = torch.arange(self.members[index].vocab_size)
        return own.masked_fill(own >= self.size, NO_TOKEN)

    def spread(self, index: int, logits: torch.Tensor) -> torch.Tensor:
        """See [`TokenSpace`]."""
        return logits.log_softmax(-1)[..., : self.size]

    def ids(self, index: int, token: int) -> tuple[int, ...]:
        """See [`TokenSpace`]."""
        return (token,)

    def own_ids(self, index: int, token: int) -> Sequence[int]:
        """See [`TokenSpace`]."""
        return (token,)

    def raw(self, token: int) -> bytes:
        """See [`TokenSpace`]."""
        return b"" if token in self._end_ids else self._vocabulary.pieces[token] or b""

    def encode(self, index: int, raw: bytes) -> tuple[int, ...]:
        """See [`TokenSpace`]."""
        return self._vocabulary.inner_ids(raw)

    def lengths(self, index: int, ids: Sequence[int]) -> list[int]:
        """See [`TokenSpace`]."""
        return [len(self._vocabulary.pieces[i] or b"") for i in ids]

    def begun_with(self, token: int) -> list[int]:
        """See [`TokenSpace`]."""
        lo, hi = self._vocabulary.range_of(self.raw(token))
        return [i for i in self._vocabulary.sorted_ids[lo:hi] if i not in self._end_ids]


class ByteSpace:
    """The tokens of members with different tokenizers are byte strings, and one that ends a text.

    Tokens with the same bytes are one token. All of a member's end ids are the token that ends a text. Its other
    special ids are no tokens and have no probability.

    Args:
        members (`Sequence[Member]`): M members.
        vocabularies (`Sequence[ByteVocabulary]`): one per member.
        device (`torch.device`, *optional*): where mappings are kept.
    """

    def __init__(
        self, members: Sequence[Member], vocabularies: Sequence[ByteVocabulary], device: torch.device | None = None
    ) -> None:
        self.vocabularies = vocabularies
        self.union = UnionVocabulary(vocabularies)
        self.end_ids = [member.end_ids for member in members]
        self.size = self.union.size
        self.ends = torch.tensor([self.union.stop_id])
        self.groups: Sequence[int] = [
            next(j for j, other in enumerate(vocabularies) if other is vocabulary) for vocabulary in vocabularies
        ]
        self._tokens = [self._tokens_of(index).to(device) for index in range(len(members))]
        self._ids = [(tokens != NO_TOKEN).nonzero()[:, 0] for tokens in self._tokens]
        self._targets = [tokens[ids] for tokens, ids in zip(self._tokens, self._ids, strict=True)]

    def _tokens_of(self, index: int) -> torch.Tensor:
        of_piece = self.union.id_of
        found = [of_piece[piece] if piece else NO_TOKEN for piece in self.vocabularies[index].pieces]
        for end in self.end_ids[index]:
            found[end] = self.union.stop_id
        return torch.tensor(found, dtype=torch.long)

    def tokens(self, index: int) -> torch.Tensor:
        """See [`TokenSpace`]."""
        return self._tokens[index]

    def spread(self, index: int, logits: torch.Tensor) -> torch.Tensor:
        """See [`TokenSpace`]."""
        probs = logits.index_select(-1, self._ids[index].to(logits.device)).softmax(-1)
        found = probs.new_zeros(*probs.shape[:-1], self.size)
        return found.index_add_(-1, self._targets[index].to(probs.device), probs).log_()

    def ids(self, index: int, token: int) -> tuple[int, ...]:
        """See [`TokenSpace`]; the tokenisation of the token's bytes if the member does not have it."""
        own = self.own_ids(index, token)
        return tuple(own[:1]) or self.vocabularies[index].canonical_ids(self.raw(token))

    def own_ids(self, index: int, token: int) -> Sequence[int]:
        """See [`TokenSpace`]."""
        ends = self.end_ids[index]
        if token == self.union.stop_id:
            return ends
        known = self.vocabularies[index].ids_of.get(self.raw(token), ())
        return [i for i in known if i not in ends]

    def raw(self, token: int) -> bytes:
        """See [`TokenSpace`]."""
        return self.union.pieces[token] or b""

    def encode(self, index: int, raw: bytes) -> tuple[int, ...]:
        """See [`TokenSpace`]."""
        return self.vocabularies[index].inner_ids(raw)

    def lengths(self, index: int, ids: Sequence[int]) -> list[int]:
        """See [`TokenSpace`]."""
        return [len(self.vocabularies[index].pieces[i] or b"") for i in ids]

    def begun_with(self, token: int) -> list[int]:
        """See [`TokenSpace`]."""
        found: set[int] = set()
        for index in set(self.groups):
            lo, hi = self.vocabularies[index].range_of(self.raw(token))
            begun = torch.tensor(self.vocabularies[index].sorted_ids[lo:hi], dtype=torch.long)
            found.update(self._tokens[index][begun.to(self._tokens[index].device)].tolist())
        return sorted(found - {self.union.stop_id})


def space_of(ensemble: EnsembleForCausalLM) -> TokenSpace:
    """The token space of an ensemble's members, built once."""
    members = ensemble.members

    def make() -> TokenSpace:
        if ensemble.union is None:
            return IdSpace(members, token_ids(ensemble.generation_config.eos_token_id))
        return ByteSpace(members, ensemble.engine.vocabularies, ensemble.device)

    return kept(ensemble, f"token space on {ensemble.device}", make)
