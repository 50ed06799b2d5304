"""The names of a tokenizer's control tokens, and texts in which they stand for their characters."""

from __future__ import annotations

import re
from typing import Any

from transformers import PreTrainedTokenizerBase

from hf_rlae.vocabulary import ByteVocabulary

MARK = "\ufdd0\ufdd1"
"""Is put inside the name of a control token, so that it is no name. Two noncharacters, which no text contains."""


class ControlStrings:
    """The names that one member's tokenizer reads as control tokens.

    Args:
        tokenizer (`PreTrainedTokenizerBase`), vocabulary (`ByteVocabulary`): the member's.

    Attributes:
        names (`dict[int, str]`): the name of every control token by its id; the unknown token is none.
        id_of (`dict[str, int]`): the reverse.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: ByteVocabulary) -> None:
        added: dict[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
        named = {i: token.content for i, token in added.items() if i in vocabulary.special_ids}
        named |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
        longest_first = sorted(set(named.values()), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        named.pop(tokenizer.unk_token_id, None)
        self.names: dict[int, str] = named
        self.id_of = {name: i for i, name in named.items()}
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary

    def occur_in(self, text: str) -> bool:
        """Whether `text` contains such a name."""
        return self._pattern.search(text) is not None

    def at_start(self, text: str) -> str:
        """The name with which `text` starts, or an empty string."""
        found = self._pattern.match(text)
        return found[0] if found else ""

    def marked(self, given: Any) -> Any:
        """Puts `MARK` into all names in the strings of `given`, also inside lists and values of dicts."""
        if isinstance(given, str):
            return self._pattern.sub(lambda name: name[0][0] + MARK + name[0][1:], given)
        if isinstance(given, dict):
            return {key: self.marked(value) for key, value in given.items()}
        if isinstance(given, list | tuple):
            return [self.marked(value) for value in given]
        return given

    def encode(self, text: str) -> list[int]:
        """The ids of a rendered chat: names with a `MARK` stand for their characters, the others for control tokens.

        A part between two control tokens that has no `MARK` is encoded as the tokenizer itself does.
        """
        options: dict[str, Any] = {"add_special_tokens": False, "split_special_tokens": False, "verbose": False}
        if MARK not in text:
            return list(self._tokenizer(text, **options)["input_ids"])
        encoded = self._tokenizer(text, return_offsets_mapping=True, **options)
        ids: list[int] = []
        run: list[int] = []
        begin = 0
        spans: list[tuple[int, int]] = [*encoded["offset_mapping"], (len(text), len(text))]
        for i, (start, end) in zip([*encoded["input_ids"], None], spans, strict=True):
            if i is not None and i not in self.names:
                run.append(i)
                continue
            part = text[begin:start]
            ids += self._encode_part(part, is_first=not ids) if MARK in part else run
            ids += [] if i is None else [i]
            run, begin = [], end
        return ids

    def _encode_part(self, part: str, is_first: bool) -> tuple[int, ...]:
        raw = part.replace(MARK, "").encode("utf-8", "surrogatepass")
        return self._vocabulary.text_ids(raw) if is_first else self._vocabulary.inner_ids(raw)
