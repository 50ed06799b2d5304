"""The tokenizer of an ensemble whose members share one: their own, which renders chats for every member."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from hf_rlae.ensemble.chats.member_chats import MemberChats, member_inputs
from hf_rlae.ensemble.chats.memory import ChatMemory, chat_memory
from hf_rlae.ensemble.engines.prompts import rows_of
from hf_rlae.ensemble.tokenizer_files import TokenizerParts, own_settings
from hf_rlae.errors import TokenizerError
from hf_rlae.vocabulary import ByteVocabulary, vocabulary_hash

logger = logging.getLogger(__name__)


@cache
def _with_chats(kind: Any) -> type:
    """The class of tokenizers of the class `kind` that render chats for every member."""
    return type(kind.__name__, (SharedTokenizer, kind), {"__module__": kind.__module__, "plain_class": kind})


def _restored(kind: type) -> Any:
    made: Any = _with_chats(kind)
    return made.__new__(made)


class SharedTokenizer(MemberChats):
    """A mixin for the tokenizer that all members share.

    Attributes:
        plain_class (`type`): the tokenizer's own class.
    """

    plain_class: Any

    @property
    def memory(self) -> ChatMemory:
        """The chats that were rendered."""
        if "chat_memory" not in self.__dict__:
            self.__dict__["chat_memory"] = chat_memory(self.member_tokenizers[0])
        return self.__dict__["chat_memory"]  # type: ignore[no-any-return]

    def rendered(self, conversations: Sequence[Any], options: dict[str, Any]) -> list[str]:
        """See [`MemberChats`]; remembers the ids of the texts."""
        texts = super().rendered(conversations, options)
        if not self.has_one_template:
            self.memory.add(self.chat_ids(0, conversations, options), texts, conversations, options)
        return texts

    def remember(self, rows: Sequence[Sequence[int]], conversations: Sequence[Any], options: dict[str, Any]) -> None:
        """See [`MemberChats`]."""
        if not self.has_one_template:
            self.memory.add(rows, super().rendered(conversations, options), conversations, options)

    def own_prompts(self, ids: torch.Tensor, mask: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """See [`MemberChats`]."""
        if self.has_one_template:
            return {}
        rows = rows_of(ids, mask)
        chats = [self.memory.by_ids.get(row) for row in rows]
        if not any(chats):
            return {}
        try:
            others = [
                [
                    row if chat is None else self.chat_ids(index, [chat.messages], chat.options)[0]
                    for row, chat in zip(rows, chats, strict=True)
                ]
                for index in range(1, len(self.member_tokenizers))
            ]
        except TokenizerError as error:
            logger.warning("a chat cannot be rendered for every member (%s): all read it as the first does", error)
            return {}
        return member_inputs([rows, *others])

    def __reduce__(self) -> Any:
        return _restored, (self.plain_class,), self.__dict__

    def parts(self) -> TokenizerParts:
        """See [`MemberChats`]."""
        sizes = [len(tokenizer) for tokenizer in self.member_tokenizers]
        has_bytes = getattr(self.member_tokenizers[0], "backend_tokenizer", None) is not None
        pieces = ByteVocabulary(self.member_tokenizers[0]).pieces if has_bytes else None
        return TokenizerParts(
            list(self.member_tokenizers),
            list(self.member_names),
            sizes,
            settings=own_settings(self),
            vocabulary_hash=None if pieces is None else vocabulary_hash(pieces),
        )

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """As in [`MemberChats`]; if the members have one chat template, the files of a plain tokenizer."""
        if self.has_one_template:
            return self.plain_class.save_pretrained(self, save_directory, *args, **kwargs)
        return super().save_pretrained(save_directory, *args, **kwargs)


def shared_tokenizer(
    tokenizers: Sequence[PreTrainedTokenizerBase], names: Sequence[str], pad_token_id: int | None
) -> MemberChats:
    """A copy of the first member's tokenizer that pads on the left and renders chats for every member."""
    tokenizer: Any = copy.deepcopy(tokenizers[0])
    kind: Any = type(tokenizer)
    tokenizer.__class__ = _with_chats(kind)
    tokenizer.member_tokenizers = list(tokenizers)
    tokenizer.member_names = list(names)
    tokenizer.first_template = tokenizer.chat_template
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        if pad_token_id is None:
            pad_token_id = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else 0
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_token_id)
    return tokenizer
