"""Recognises chats that were rendered with the first member's chat template, and renders them for every member."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from hf_rlae.ensemble.chats.control_strings import MARK, ControlStrings
from hf_rlae.ensemble.chats.member_chats import render
from hf_rlae.ensemble.chats.memory import chat_memory
from hf_rlae.ensemble.chats.parser import Chat, ChatParser
from hf_rlae.errors import TokenizerError
from hf_rlae.vocabulary import ByteVocabulary, Form

logger = logging.getLogger(__name__)


class ChatReader:
    """Chats of members with different tokenizers.

    Tools such as pipelines and lm-eval pass on only the first member's text or ids of a chat. Chats that were rendered
    here are remembered. Other texts and ids are parsed back to messages, if rendering these again gives the same.

    Args:
        tokenizers (`Sequence[PreTrainedTokenizerBase]`), names (`Sequence[str]`), vocabularies
            (`Sequence[ByteVocabulary]`): the members'.
        form (`str`, *optional*): the Unicode form to which prompts are normalised.
    """

    def __init__(
        self,
        tokenizers: Sequence[PreTrainedTokenizerBase],
        names: Sequence[str],
        vocabularies: Sequence[ByteVocabulary],
        form: Form | None,
    ) -> None:
        self.tokenizers: list[Any] = list(tokenizers)
        self.names = list(names)
        self.vocabularies = list(vocabularies)
        self.form = form
        self.strings = [ControlStrings(*pair) for pair in zip(tokenizers, vocabularies, strict=True)]
        self.memory = chat_memory(tokenizers[0])
        self._known_parser: tuple[Any, ChatParser] | None = None
        self._marks: tuple[str, ...] = ()  # the control tokens that renderings start with
        self._has_warned = False

    def normalised(self, text: str) -> str:
        """`text` in the Unicode form of the ensemble."""
        return text if self.form is None else unicodedata.normalize(self.form, text)

    def ids(self, index: int, conversations: Sequence[Any], options: dict[str, Any]) -> list[list[int]]:
        """A member's ids of several conversations; contents are text, and only the template writes control tokens."""
        own, strings = dict(options), self.strings[index]
        if own.pop("sanitize_control_tokens", True):
            conversations = strings.marked(list(conversations))
            own |= {name: strings.marked(own[name]) for name in ("tools", "documents") if name in own}
        texts = render(self.tokenizers[index], self.names[index], conversations, own)
        texts = [self.normalised(text) for text in texts]
        if any(MARK in text for text in texts):
            return [strings.encode(text) for text in texts]
        encoded = self.tokenizers[index](texts, add_special_tokens=False, split_special_tokens=False, verbose=False)
        return [list(ids) for ids in encoded["input_ids"]]

    # -- texts --------------------------------------------------------------------------------------------

    def recognised(self, text: str) -> Chat | None:
        """The chat of which `text` is the first member's rendering.

        A text that was not rendered here counts only if it ends with the prompt for an answer, or with the beginning
        of an answer: any other text may be a user's.
        """
        known = self.memory.by_text.get(text)
        if known is not None:
            return known
        parser = self._parser()
        if parser is None:
            return None
        if text.startswith(parser.openings):
            chat = parser.parse(text, is_open=True)
            if chat is not None and not self.strings[0].occur_in(chat.rest):
                return chat
        if text.startswith(self._marks):
            self._warn("a text begins like a rendered chat, but is no rendering of the template")
        return None

    def first_ids(self, chat: Chat) -> list[int] | None:
        """The first member's ids of a recognised text; `None` if its tokenizer itself reads all contents as text."""
        if self.strings[0].marked(chat.messages) == chat.messages:
            return None
        return [*self.ids(0, [chat.messages], chat.options)[0], *self._rest_ids(0, chat)]

    # -- ids ----------------------------------------------------------------------------------------------

    def prompts(self, ids: Sequence[int]) -> list[tuple[int, ...]] | None:
        """Each member's own ids of a chat.

        Args:
            ids (`Sequence[int]`): the first member's ids, without padding.

        Returns:
            `list[tuple[int, ...]]` or `None`: `ids` for the first member; `None` if this is no chat, or some member
            cannot render it.
        """
        chat = self.memory.by_ids.get(tuple(ids)) or self._parsed(tuple(ids))
        if chat is None:
            return None
        try:
            others = [
                (*self.ids(index, [chat.messages], chat.options)[0], *self._rest_ids(index, chat))
                for index in range(1, len(self.tokenizers))
            ]
        except TokenizerError as error:
            self._warn(f"a chat cannot be rendered for every member ({error})")
            return None
        return [tuple(ids), *others]

    def _rest_ids(self, index: int, chat: Chat) -> tuple[int, ...]:
        if not chat.rest:
            return ()
        rest = self.normalised(chat.rest).encode("utf-8", "surrogateescape")
        return self.vocabularies[index].inner_ids(rest)

    def _parsed(self, ids: tuple[int, ...]) -> Chat | None:
        parser = self._parser()
        if parser is None:
            return None
        start = self.vocabularies[0].start_ids
        for skipped in {0, len(start)} if ids[: len(start)] == start else {0}:
            own = ids[skipped:]
            if not own or not self._may_open(parser, own[0]):
                continue
            for text in self._readable(own):
                for chat in parser.candidates(text):
                    found = self._verified(own, chat)
                    if found is not None:
                        return found
        return None

    def _may_open(self, parser: ChatParser, i: int) -> bool:
        """Whether a rendering may start with the id `i`."""
        pieces = self.vocabularies[0].pieces
        raw = pieces[i] if i < len(pieces) else None
        text = self.strings[0].names.get(i, "") if raw is None else raw.decode("utf-8", "replace")
        starts = {text, text.removeprefix(" ")} - {""}
        return any(opening.startswith(s) or s.startswith(opening) for opening in parser.openings for s in starts)

    def _readable(self, ids: Sequence[int]) -> Iterator[str]:
        """The texts that ids may be the encoding of; names of control tokens in text have a `MARK`."""
        pieces, names = self.vocabularies[0].pieces, self.strings[0].names
        parts: list[str] = []
        run: list[bytes] = []
        for i in (*ids, None):
            piece = pieces[i] if i is not None and i < len(pieces) else None
            if piece is not None:
                run.append(piece)
                continue
            parts.append(self.strings[0].marked(b"".join(run).decode("utf-8", "surrogateescape")))
            run = []
            if i is not None:
                if i not in names:
                    return
                parts.append(names[i])
        yield "".join(parts)
        if any(part.startswith(" ") for part in parts):  # some tokenizers add a space after a control token
            yield "".join(part.removeprefix(" ") for part in parts)

    def _verified(self, ids: tuple[int, ...], chat: Chat) -> Chat | None:
        """The chat with its rest, if its ids are the beginning of `ids` and text follows."""
        messages = [{**message, "content": message["content"].replace(MARK, "")} for message in chat.messages]
        try:
            expected = self.ids(0, [messages], chat.options)[0]
        except TokenizerError:
            return None
        pieces = self.vocabularies[0].pieces
        rest = [pieces[i] for i in ids[len(expected) :]]
        if list(ids[: len(expected)]) != expected or None in rest:
            return None
        text = b"".join(piece for piece in rest if piece).decode("utf-8", "surrogateescape")
        return Chat(messages, chat.options, text)

    def _parser(self) -> ChatParser | None:
        template = self.tokenizers[0].chat_template
        if not template:
            return None
        if self._known_parser is None or self._known_parser[0] != template:
            self._known_parser = (template, ChatParser(self._rendered_by_first))
            starts = (self.strings[0].at_start(opening) for opening in self._known_parser[1].openings)
            self._marks = tuple({start for start in starts if start})
        return self._known_parser[1]

    def _rendered_by_first(self, messages: list[dict[str, Any]], is_prompt: bool) -> str:
        options = {"add_generation_prompt": is_prompt}
        return self.normalised(render(self.tokenizers[0], self.names[0], [messages], options)[0])

    def _warn(self, reason: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%s, so the members read it as plain text, without each member's own control tokens; for chats, pass "
                "`ensemble.generate(**ensemble.tokenizer.apply_chat_template(messages, add_generation_prompt=True))`",
                reason,
            )
