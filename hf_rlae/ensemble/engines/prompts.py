"""Encodes prompts for members with different tokenizers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from hf_rlae.errors import InputError
from hf_rlae.members import Member
from hf_rlae.vocabulary import ByteVocabulary, UnionVocabulary


class PromptEncoder:
    """Encodes prompts for every member, each with its own beginning-of-text token.

    Args:
        members (`Sequence[Member]`), vocabularies (`Sequence[ByteVocabulary]`): one vocabulary per member.
        union (`UnionVocabulary`): the union vocabulary, which has the ids of the prompt.
        tokenizer (`PreTrainedTokenizerBase`): decodes union ids.
    """

    def __init__(
        self,
        members: Sequence[Member],
        vocabularies: Sequence[ByteVocabulary],
        union: UnionVocabulary,
        tokenizer: PreTrainedTokenizerBase,
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
            `list[tuple[int, ...]]`: the prompt in each member's own ids; for the first member `ids` unchanged.

        Raises:
            InputError: the prompt is empty for a member whose tokenizer has no token to start a text with.
        """
        text: str | None = None
        prompts = []
        for index, member in enumerate(self.members):
            if index == 0 and all(i < self.vocabularies[0].size for i in ids):
                own: tuple[int, ...] = tuple(ids)
            else:
                if text is None:
                    text = str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
                own = self._encode(index, text, ids)
            prompts.append(own or (self._start_id(member),))
        return prompts

    def _encode(self, index: int, text: str, ids: Sequence[int]) -> tuple[int, ...]:
        member, vocabulary = self.members[index], self.vocabularies[index]
        rest = b""
        if "�" in text:  # tokenizers cannot encode an incomplete character: its bytes are tokenised separately
            raw = b"".join(self.union.pieces[i] or b"" for i in ids)
            head, rest = _split_at_invalid(raw)
            text = head.removeprefix(" ") if not text.startswith(" ") else head
        own = [] if not text and rest else list(member.tokenizer(text, verbose=False)["input_ids"])
        while own and own[-1] in member.end_ids and own[-1] not in member.declared_text_end_ids:
            if len(own) == 1:
                break  # the end token of some tokenizers is also their beginning-of-text token
            own.pop()
        unknown = member.tokenizer.unk_token_id
        if unknown is not None and unknown in own:
            own = self._without_unknown(index, text)
        return tuple(own) + vocabulary.canonical_ids(rest)

    def _without_unknown(self, index: int, text: str) -> list[int]:
        """Encodes the text without the characters that the member has no token for."""
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
            f"the prompt is empty for member {member.name}, and its tokenizer has no token to start a text with; give "
            "a prompt with text, or set the tokenizer's bos_token"
        )


def _split_at_invalid(raw: bytes) -> tuple[str, bytes]:
    try:
        return raw.decode("utf-8"), b""
    except UnicodeDecodeError as error:
        return raw[: error.start].decode("utf-8"), raw[error.start :]


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
