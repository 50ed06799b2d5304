"""Every member's own ids for the same prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hf_rlae.errors import InputError
from hf_rlae.members import Member
from hf_rlae.vocabulary import ByteVocabulary, UnionVocabulary


class PromptEncoder:
    """Re-encodes prompts for every member, each with its own beginning-of-text token.

    Args:
        members (`Sequence[Member]`), vocabularies (`Sequence[ByteVocabulary]`): one vocabulary a member.
        union (`UnionVocabulary`): what the ids of the prompt mean.
        tokenizer: decodes them.
    """

    def __init__(
        self,
        members: Sequence[Member],
        vocabularies: Sequence[ByteVocabulary],
        union: UnionVocabulary,
        tokenizer: Any,
    ) -> None:
        self.members = list(members)
        self.vocabularies = list(vocabularies)
        self.union = union
        self.tokenizer = tokenizer

    def __call__(self, ids: Sequence[int]) -> list[tuple[int, ...]]:
        """The prompt of one row for all members.

        Args:
            ids (`Sequence[int]`): union ids, without padding.

        Returns:
            one tuple of the member's own ids a member; the first one's are `ids` as they are.

        Raises:
            InputError: a member has no token to begin an empty text with.
        """
        text: str | None = None
        prompts = []
        for index, member in enumerate(self.members):
            if index == 0 and all(i < self.vocabularies[0].size for i in ids):
                own: tuple[int, ...] = tuple(ids)
            else:
                if text is None:
                    text = self.tokenizer.decode(list(ids), skip_special_tokens=True)
                own = self._encode(index, text, ids)
            prompts.append(own or (self._start_id(member),))
        return prompts

    def _encode(self, index: int, text: str, ids: Sequence[int]) -> tuple[int, ...]:
        member, vocabulary = self.members[index], self.vocabularies[index]
        rest = b""
        if "�" in text:  # half a character, which no encoder takes: its bytes follow by themselves
            raw = b"".join(self.union.pieces[i] or b"" for i in ids)
            head, rest = _split_at_invalid(raw)
            text = head.removeprefix(" ") if not text.startswith(" ") else head
        own = [] if not text and rest else list(member.tokenizer(text, verbose=False)["input_ids"])
        while own and own[-1] in member.end_ids and own[-1] not in member.declared_text_end_ids:
            if len(own) == 1:
                break  # a text may begin with its end token
            own.pop()
        unknown = member.tokenizer.unk_token_id
        if unknown is not None and unknown in own:
            own = self._without_unknown(index, text)
        return tuple(own) + vocabulary.canonical_ids(rest)

    def _without_unknown(self, index: int, text: str) -> list[int]:
        """The text less the characters that the member has no token for: it is silent there."""
        member, vocabulary = self.members[index], self.vocabularies[index]
        kept = vocabulary.representable(text.encode()).decode("utf-8", "ignore")
        own = list(member.tokenizer(kept, verbose=False)["input_ids"])
        unknown = member.tokenizer.unk_token_id
        return [i for i in own if i != unknown]

    def _start_id(self, member: Member) -> int:
        tokenizer = member.tokenizer
        for i in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
            if i is not None:
                return int(i)
        raise InputError(
            f"the prompt is empty for member {member.name}, and its tokenizer has no token to begin a text with; "
            "give a prompt with text, or set the tokenizer's bos_token"
        )


def _split_at_invalid(raw: bytes) -> tuple[str, bytes]:
    try:
        return raw.decode("utf-8"), b""
    except UnicodeDecodeError as error:
        return raw[: error.start].decode("utf-8"), raw[error.start :]


def member_prompts(ids: torch.Tensor, mask: torch.Tensor | None) -> list[list[tuple[int, ...]]]:
    """Rows of ready-made prompts, `[row][member]`, from tensors of shape `(B, M, L)`."""
    rows = ids.tolist()
    kept = torch.ones_like(ids).tolist() if mask is None else mask.tolist()
    return [
        [
            tuple(i for i, keep in zip(member_ids, member_keep, strict=True) if keep)
            for member_ids, member_keep in zip(row, row_keep, strict=True)
        ]
        for row, row_keep in zip(rows, kept, strict=True)
    ]
