"""Chats that were rendered in this process, so that tools may pass on only the first member's text or ids of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakValueDictionary

from hf_rlae.ensemble.chats.member_chats import parts_of
from hf_rlae.ensemble.chats.parser import Chat
from hf_rlae.sharing import SharedInCopies

MAX_REMEMBERED = 4096
"""Number of chats that are remembered; a full memory is cleared."""


class ChatMemory(SharedInCopies):
    """Chats by the text and by the ids of the first member.

    A rendering that is no more than the contents is not remembered: a user may write the same as plain text.

    Args:
        start (`str`, *optional*): the token that starts texts, which plain prompts may have, too.

    Attributes:
        by_text (`dict[str, Chat]`), by_ids (`dict[tuple[int, ...], Chat]`): the chats.
    """

    def __init__(self, start: str | None = None) -> None:
        self.start = start or ""
        self.by_text: dict[str, Chat] = {}
        self.by_ids: dict[tuple[int, ...], Chat] = {}

    def add(
        self,
        keys: Sequence[str | Sequence[int]],
        texts: Sequence[str],
        conversations: Sequence[Any],
        options: dict[str, Any],
    ) -> None:
        """Remembers rendered conversations.

        Args:
            keys (`Sequence[str]` or `Sequence[Sequence[int]]`): the texts as the ensemble reads them, or their ids.
            texts (`Sequence[str]`): what the first member's template wrote.
            conversations (`Sequence[list[dict]]`), options (`dict`): see [`render`].
        """
        for key, text, conversation in zip(keys, texts, conversations, strict=True):
            if not self._is_chat(text, conversation):
                continue
            chat = Chat(copy.deepcopy(list(conversation)), copy.deepcopy(options))
            if isinstance(key, str):
                _add(self.by_text, key, chat)
            else:
                self.keep(key, chat)

    def keep(self, ids: Sequence[int], chat: Chat) -> None:
        """Remembers the ids of a chat."""
        _add(self.by_ids, tuple(ids), chat)

    def _is_chat(self, text: str, conversation: Any) -> bool:
        """Whether a rendering has more than the contents of its messages, white space and the start token."""
        rest = text.removeprefix(self.start)
        for content in _contents(conversation):
            rest = rest.replace(content.strip(), "", 1)
        return bool(rest.strip())


_MEMORIES: WeakValueDictionary[tuple[int, str], ChatMemory] = WeakValueDictionary()


def chat_memory(first: Any) -> ChatMemory:
    """The memory that all ensembles of this process share whose first member has the same tokens and chat template.

    A pipeline that is made from a folder renders chats with another tokenizer object than that of its ensemble.

    Args:
        first (`PreTrainedTokenizerBase`): the tokenizer of the first member.
    """
    key = (hash(frozenset(first.get_vocab().items())), repr(first.chat_template))
    return _MEMORIES.setdefault(key, ChatMemory(first.bos_token))


def _contents(conversation: Any) -> Iterator[str]:
    """The texts in the messages of a conversation, the longest first: a short one may occur in a longer one."""
    contents = [message.get("content") for message in conversation if isinstance(message, dict)]
    parts = [part.get("text") for part in parts_of(conversation) if isinstance(part, dict)]
    yield from sorted((text for text in [*contents, *parts] if isinstance(text, str)), key=len, reverse=True)


def _add(memory: dict[Any, Chat], key: Any, chat: Chat) -> None:
    if len(memory) >= MAX_REMEMBERED:
        memory.clear()
    memory[key] = chat
