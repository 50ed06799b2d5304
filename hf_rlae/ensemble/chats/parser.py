"""Parses the rendering of a chat template back to messages."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

_MAX_TURNS = 1000
_MAX_TRIED = 8
_WORD = "qzkw{}wkzq"
"""A content that no template contains, and that no template changes."""

_TURNS = ("user", "assistant", "user", "assistant", "user")

Render = Callable[[list[dict[str, Any]], bool], str]
"""Renders messages, with or without the prompt for an answer (`add_generation_prompt`)."""


@dataclass
class Chat:
    """A conversation and how it was rendered.

    Attributes:
        messages (`list[dict]`): the messages.
        options (`dict`): the other arguments of `apply_chat_template`.
        rest (`str`): the text that follows the rendering, such as the beginning of the answer.
    """

    messages: list[dict[str, Any]]
    options: dict[str, Any] = field(default_factory=dict)
    rest: str = ""


@dataclass
class _Layout:
    """The strings that a template writes around the contents of conversations that begin with the same role.

    Attributes:
        opening (`str`): before the first content.
        after_system (`str`, *optional*): between the system's content and the first content of the user.
        answers, questions (`list[str]`): between a question and its answer, and between an answer and the next
            question, for the first turn and for later turns.
        closing (`str`): after the last question, with the prompt for an answer.
        question_end, answer_end (`str`): after the last message, without that prompt.
        answer_closing (`str`): after the last answer, with the prompt for another one.
    """

    opening: str
    after_system: str | None
    answers: list[str]
    questions: list[str]
    closing: str
    question_end: str
    answer_end: str
    answer_closing: str


class ChatParser:
    """Parses renderings of one chat template, for conversations of user and assistant, with or without system message.

    The strings that the template writes around contents are learned from renderings of known contents. A parsed
    conversation counts only if rendering it again gives the same text.

    Args:
        render (callable): renders messages with the template; may raise `ValueError`.

    Attributes:
        openings (`tuple[str, ...]`): every rendering starts with one of these; empty if the template cannot be parsed.
    """

    def __init__(self, render: Render) -> None:
        self._render = render
        found = [self._learned(has_system) for has_system in (False, True)]
        self._layouts = [layout for layout in found if layout is not None]
        self.openings = tuple(layout.opening for layout in self._layouts)

    def parse(self, text: str, is_open: bool = False) -> Chat | None:
        """The conversation of which `text` is the rendering, followed by any text.

        Args:
            text (`str`): the text.
            is_open (`bool`): whether only renderings count that end with a question and the prompt for its answer.

        Returns:
            [`Chat`], or `None` if no conversation has this rendering.
        """
        for chat in self.candidates(text):
            is_prompt = bool(chat.options["add_generation_prompt"])
            if not is_open or (is_prompt and chat.messages[-1]["role"] == "user"):
                rendered = self._rendered(chat.messages, is_prompt)
                if rendered is not None and rendered + chat.rest == text:
                    return chat
        return None

    def candidates(self, text: str) -> Iterator[Chat]:
        """Conversations that `text` may be the rendering of, those with most messages first; not rendered again."""
        for layout in self._layouts:
            if text.startswith(layout.opening):
                yield from reversed(deque(_candidates(layout, text), maxlen=_MAX_TRIED))

    def _rendered(self, messages: list[dict[str, Any]], is_prompt: bool) -> str | None:
        try:
            return self._render(messages, is_prompt)
        except ValueError:  # for example, a template without system messages
            return None

    def _learned(self, has_system: bool) -> _Layout | None:
        roles = ("system", *_TURNS) if has_system else _TURNS
        messages = [{"role": role, "content": _WORD.format(index)} for index, role in enumerate(roles)]
        parts = self._parts(messages, True)
        ends = [self._parts(*shown) for shown in ((messages, False), (messages[:-1], False), (messages[:-1], True))]
        if parts is None or any(end is None for end in ends):
            return None
        after_system = parts.pop(1) if has_system else None
        last = [end[-1] for end in ends if end is not None]
        layout = _Layout(parts[0], after_system, parts[1:-1:2], parts[2:-1:2], parts[-1], *last)
        needed = [layout.opening, after_system, *layout.answers, *layout.questions, layout.closing]
        return None if "" in needed else layout

    def _parts(self, messages: list[dict[str, Any]], is_prompt: bool) -> list[str] | None:
        """The strings around the contents of a rendering; `None` if some content does not occur exactly once."""
        text = self._rendered(messages, is_prompt)
        parts = []
        for message in messages:
            before, found, text = (text or "").partition(message["content"])
            if not found or message["content"] in text:
                return None
            parts.append(before)
        return [*parts, text or ""]


def _candidates(layout: _Layout, text: str) -> Iterator[Chat]:
    """All conversations that `text` may be the rendering of, by their number of messages."""
    at = len(layout.opening)
    messages: list[dict[str, Any]] = []
    if layout.after_system is not None:
        end = text.find(layout.after_system, at)
        if end < 0:
            return
        messages.append({"role": "system", "content": text[at:end]})
        at = end + len(layout.after_system)

    def chat(role: str, end: int, is_prompt: bool, rest: str = "") -> Chat:
        message = {"role": role, "content": text[at:end]}
        return Chat([*messages, message], {"add_generation_prompt": is_prompt}, rest)

    for turn in range(_MAX_TURNS):
        answer, question = (strings[min(turn, len(strings) - 1)] for strings in (layout.answers, layout.questions))
        if text.endswith(layout.question_end) and len(text) - len(layout.question_end) >= at:
            yield chat("user", len(text) - len(layout.question_end), False)
        closing = text.find(layout.closing, at)
        if closing >= 0:
            yield chat("user", closing, True, text[closing + len(layout.closing) :])
        end = text.find(answer, at)
        if end < 0:
            return
        messages.append({"role": "user", "content": text[at:end]})
        at = end + len(answer)
        for is_prompt, ending in ((True, layout.answer_closing), (False, layout.answer_end)):
            if text.endswith(ending) and len(text) - len(ending) >= at:
                yield chat("assistant", len(text) - len(ending), is_prompt)
        end = text.find(question, at)
        if end < 0:
            return
        messages.append({"role": "assistant", "content": text[at:end]})
        at = end + len(question)
