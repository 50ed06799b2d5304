"""Encodes prompts for members with different tokenizers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hf_rlae.ensemble.chats.reader import ChatReader
from hf_rlae.ensemble.engines.control_tokens import ControlTokens
from hf_rlae.errors import InputError
from hf_rlae.members import Member
from hf_rlae.vocabulary import ByteVocabulary, UnionVocabulary
from hf_rlae.vocabulary.grain import TOKEN


class PromptEncoder:
    """Encodes prompts for every member, each with its own beginning-of-text token.

    Text is encoded as text. Chats that the first member's template has rendered are rendered for every member. Other
    control tokens are translated (see [`ControlTokens`]).

    Args:
        members (`Sequence[Member]`), vocabularies (`Sequence[ByteVocabulary]`): one vocabulary per member.
        union (`UnionVocabulary`): the union vocabulary, which has the ids of the prompt.
        chats (`ChatReader`): recognises chats.
    """

    def __init__(
        self,
        members: Sequence[Member],
        vocabularies: Sequence[ByteVocabulary],
        union: UnionVocabulary,
        chats: ChatReader,
    ) -> None:
        self.members = list(members)
        self.vocabularies = list(vocabularies)
        self.union = union
        self.chats = chats
        self.control = ControlTokens(members, chats.strings, union)

    def __call__(self, ids: Sequence[int]) -> list[tuple[int, ...]]:
        """The prompt of one row for all members.

        Args:
            ids (`Sequence[int]`): union ids, without padding.

        Returns:
            `list[tuple[int, ...]]`: the prompt in each member's own ids; for the first member `ids` unchanged.

        Raises:
            InputError: the prompt is empty for a member whose tokenizer has no token to start a text with.
        """
        has_own = all(i < self.vocabularies[0].size for i in ids)
        known = self.chats.prompts(ids) if has_own else None
        if known is not None:
            return known
        parts = self._parts(ids)
        prompts = []
        for index, member in enumerate(self.members):
            is_own = index == 0 and has_own
            own = tuple(ids) if is_own and self.union.grain == TOKEN else self._encode(index, parts)
            if is_own and not self._was_written(ids, own):
                own = tuple(ids)
            if index == 0 and own != tuple(ids):
                known = self.chats.prompts(own)  # a chat whose earlier answers were written in other strings
                if known is not None:
                    return known
            prompts.append(own or (self._start_id(member),))
        return prompts

    def _was_written(self, ids: Sequence[int], own: Sequence[int]) -> bool:
        """Whether a part of the prompt `ids` was written in strings of the grain, so that the first member reads `own`.

        An ensemble that writes bytes has written a text of one turn byte by byte, and it is in the prompt of the next.
        """
        if len(own) >= len(ids):
            return False
        first = self.vocabularies[0]
        kept, read = ([i for i in row if not first.pieces[i]] for row in (ids, own))
        return kept == read and first.to_bytes(ids) == first.to_bytes(own)

    def _parts(self, ids: Sequence[int]) -> list[bytes | int]:
        """The text of a prompt in bytes, with the ids of control tokens between its parts; without its beginning."""
        pieces, first = self.union.pieces, self.vocabularies[0]
        start = first.start_ids
        at = len(start) if start and tuple(ids[: len(start)]) == start else 0
        while at < len(ids) and pieces[ids[at]] is None and self.control.separates(ids[at]):
            at += 1
        parts: list[bytes | int] = []
        run: list[bytes] = []
        for i in ids[at:]:
            piece = pieces[i]
            if piece is None:
                parts += [b"".join(run), i] if run else [i]
                run = []
            else:
                run.append(piece)
        if run:
            parts.append(b"".join(run))
        if parts and isinstance(parts[0], bytes) and first.strips_space:
            parts[0] = parts[0].removeprefix(b" ")
        return [self._normalised(part) if isinstance(part, bytes) else part for part in parts]

    def _normalised(self, raw: bytes) -> bytes:
        if self.chats.form is None:
            return raw
        return self.chats.normalised(raw.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")

    def _encode(self, index: int, parts: Sequence[bytes | int]) -> tuple[int, ...]:
        vocabulary = self.vocabularies[index]
        own = list(vocabulary.start_ids)
        for at, part in enumerate(parts):
            if isinstance(part, bytes):
                own += vocabulary.text_ids(part) if at == 0 else vocabulary.inner_ids(part)
                continue
            found = self.control.counterpart(index, part)
            is_repeated = own[-1:] == [found] and at > 0 and not isinstance(parts[at - 1], bytes)
            if found is not None and not is_repeated:  # where the end and the beginning of a text are one token
                own.append(found)
        return tuple(own)

    def _start_id(self, member: Member) -> int:
        tokenizer = member.tokenizer
        for i in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
            if i is not None:
                return int(i)
        raise InputError(
            f"the prompt is empty for member {member.name}, and its tokenizer has no token to start a text with; give "
            "a prompt with text, or set the tokenizer's bos_token"
        )


def rows_of(ids: torch.Tensor, mask: torch.Tensor | None) -> list[tuple[int, ...]]:
    """The ids of each row without padding, from tensors of shape `(B, L)`; 1 = keep."""
    if mask is None:
        return [tuple(row) for row in ids.tolist()]
    rows = zip(ids.tolist(), mask.tolist(), strict=True)
    return [tuple(i for i, keep in zip(row, kept, strict=True) if keep) for row, kept in rows]


def member_prompts(ids: torch.Tensor, mask: torch.Tensor) -> list[list[tuple[int, ...]]]:
    """The members' own prompts by row and member, from tensors of shape `(B, M, L)`; 1 = keep."""
    members = [rows_of(ids[:, index], mask[:, index]) for index in range(ids.shape[1])]
    return [list(prompts) for prompts in zip(*members, strict=True)]
