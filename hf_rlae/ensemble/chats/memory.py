"""Chats that were rendered in this process, so that tools may pass on only the first member's text or ids of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

from hf_rlae.ensemble.chats.parser import Chat
from hf_rlae.sharing import SharedInCopies

MAX_REMEMBERED = 4096
"""Number of chats that are remembered; a full memory is cleared."""


class ChatMemory(SharedInCopies):
    """Chats by the text and by the ids of the first member.

    Attributes:
        by_text (`dict[str, Chat]`), by_ids (`dict[tuple[int, ...], Chat]`): the chats.
    """

    def __init__(self) -> None:
        self.by_text: dict[str, Chat] = {}
        self.by_ids: dict[tuple[int, ...], Chat] = {}

    def add_texts(self, texts: Sequence[str], conversations: Sequence[Any], options: dict[str, Any]) -> None:
        """Remembers the texts of rendered conversations."""
        for text, conversation in zip(texts, conversations, strict=True):
            _add(self.by_text, text, _snapshot(conversation, options))

    def add_ids(self, rows: Sequence[Sequence[int]], conversations: Sequence[Any], options: dict[str, Any]) -> None:
        """Remembers the ids of rendered conversations."""
        for ids, conversation in zip(rows, conversations, strict=True):
            self.keep(ids, _snapshot(conversation, options))

    def keep(self, ids: Sequence[int], chat: Chat) -> None:
        """Remembers the ids of a chat."""
        _add(self.by_ids, tuple(ids), chat)


_MEMORIES: WeakValueDictionary[tuple[int, str], ChatMemory] = WeakValueDictionary()


def chat_memory(first: Any) -> ChatMemory:
    """The memory that all ensembles of this process share whose first member has the same tokens and chat template.

    A pipeline that is made from a folder renders chats with another tokenizer object than that of its ensemble.

    Args:
        first (`PreTrainedTokenizerBase`): the tokenizer of the first member.
    """
    key = (hash(frozenset(first.get_vocab().items())), repr(first.chat_template))
    return _MEMORIES.setdefault(key, ChatMemory())


def _snapshot(conversation: Any, options: dict[str, Any]) -> Chat:
    return Chat(copy.deepcopy(list(conversation)), copy.deepcopy(options))


def _add(memory: dict[Any, Chat], key: Any, chat: Chat) -> None:
    if len(memory) >= MAX_REMEMBERED:
        memory.clear()
    memory[key] = chat
