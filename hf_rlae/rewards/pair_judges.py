"""A sequence-classification model as the judge of two completions of one prompt."""

from __future__ import annotations

import copy
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_rlae.checks import OPTIONAL_COUNT, check_number
from hf_rlae.errors import ConfigError, RewardError
from hf_rlae.rewards.classifiers import allowed_length, classify, label_index, load_classifier
from hf_rlae.rewards.contract import completion_text

TEMPLATE = "{prompt}{sep}{first}{sep}{second}"
_SLOTS = ("prompt", "first", "second")

Piece = str | list[int]
"""A part of a template: the name of a slot, or the ids of its own text."""


class PairJudge:
    """How probable it is that the first of two completions is better, by a sequence-classification model.

    The model reads the template, filled with prompt and completions. If that is too long, the longest of the three
    texts are cut on the left, to one length, so that their ends stay. A special token that a completion spells out
    (`[SEP]`) is read as ordinary text.

    Args:
        model (`str`, `Path` or `PreTrainedModel`): a folder or Hub id, or a loaded model.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): by default loaded from where the model was loaded.
        label (`str` or `int`, *optional*): for a model with several labels, the one that means "the first is better".
            A model with one label gives its log-odds.
        tie_label (`str` or `int`, *optional*): the label that means "equally good"; counts half.
        template (`str` or `tuple[str, str]`): the form in which the model was trained: a text with the slots
            `{prompt}` (which may be left out), `{first}` and `{second}`, and `{sep}` for the tokenizer's separator
            (without one, its eos token). Two texts are read as a pair of sequences, with the tokenizer's special tokens
            and segments.
        max_length (`int`, *optional*): maximum number of tokens; by default what model and tokenizer allow.
        chat_template_kwargs (`dict`, *optional*): further arguments of the tokenizer's chat template, which renders
            prompts that are messages.
        model_kwargs: for `from_pretrained` of a model given by name, such as `dtype` or `revision`.

    Raises:
        ConfigError: an argument cannot be used; the message names it.
    """

    def __init__(
        self,
        model: str | Path | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        label: str | int | None = None,
        tie_label: str | int | None = None,
        template: str | tuple[str, str] = TEMPLATE,
        max_length: int | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **model_kwargs: Any,
    ) -> None:
        check_number("max_length", max_length, OPTIONAL_COUNT)
        self.model, tokenizer = load_classifier(model, tokenizer, model_kwargs)
        self.tokenizer = copy.deepcopy(tokenizer)  # others may change its settings
        self.label = label_index(self.model.config, label, meaning="that of the first completion being better")
        meaning = "that of both being equally good"
        self.tie_label = None if tie_label is None else label_index(self.model.config, tie_label, "tie_label", meaning)
        if tie_label is not None and self.tie_label == self.label:
            raise ConfigError(
                f"tie_label={tie_label!r} is the same label as label={label!r}; give another one, or none"
            )
        self.template_kwargs = dict(chat_template_kwargs or {})
        self.segments = [self._pieces(text) for text in _texts_of(template)]
        self.frame = self._frame(len(self.segments))
        self.room = self._room(allowed_length(max_length, self.model, tokenizer))
        self.has_types = len(self.segments) > 1 and "token_type_ids" in self.tokenizer.model_input_names

    def __call__(
        self, prompts: Sequence[Any], first: Sequence[Any], second: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """The probability that the first completion is better, per row; `None` where no text has any token.

        Args:
            prompts, first, second (`Sequence`): N prompts and two completions of each; strings or messages.
            columns: not read.

        Raises:
            RewardError: messages, and a tokenizer without a chat template.
        """
        rows = [self.encode(*texts) for texts in zip(prompts, first, second, strict=True)]
        found: list[float | None] = [None] * len(rows)
        places = [at for at, (ids, _) in enumerate(rows) if ids]
        if not places:
            return found
        types = [rows[at][1] for at in places] if self.has_types else None
        logits = classify(self.model, [rows[at][0] for at in places], types)
        if self.label is None:
            probs = logits[:, 0].sigmoid()
        else:
            shares = logits.softmax(-1)
            probs = shares[:, self.label] + (0 if self.tie_label is None else shares[:, self.tie_label] / 2)
        for at, prob in zip(places, probs.tolist(), strict=True):
            found[at] = prob
        return found

    # -- the template -------------------------------------------------------------------------------------

    def _pieces(self, text: str) -> list[Piece]:
        separator = self.tokenizer.sep_token or self.tokenizer.eos_token
        if "{sep}" in text and separator is None:
            raise ConfigError(
                "the tokenizer has neither a separator nor an eos token; give a template without {sep}, in the form in "
                "which the model was trained"
            )
        pieces: list[Piece] = []
        for literal, slot, _, _ in string.Formatter().parse(text.replace("{sep}", separator or "")):
            pieces.append(self._ids(literal))
            pieces += [] if slot is None else [slot]
        return pieces

    def _ids(self, text: str, **options: Any) -> list[int]:
        encoded = self.tokenizer(text, add_special_tokens=False, verbose=False, **options)
        return list(encoded["input_ids"]) if text else []

    def _frame(self, segments: int) -> list[list[int]]:
        """The tokenizer's special ids before, between and after the segments."""
        encoded = self.tokenizer(*["a"] * segments, return_special_tokens_mask=True)
        frame: list[list[int]] = [[] for _ in range(segments + 1)]
        place, former = 0, 1
        for token_id, is_special in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True):
            place += int(former == 1 and not is_special)
            if is_special:
                frame[min(place, segments)].append(token_id)
            former = is_special
        if 0 < place < segments:  # nothing between the segments
            frame[place], frame[segments] = [], frame[place]
        return frame

    def _room(self, max_length: int | None) -> int | None:
        """Tokens for prompt and completions."""
        if max_length is None:
            return None
        own = sum(len(piece) for pieces in self.segments for piece in pieces if not isinstance(piece, str))
        room = max_length - own - sum(map(len, self.frame))
        if room < len(_SLOTS):
            raise ConfigError(
                f"max_length={max_length} tokens, of which the template and special tokens take {max_length - room}; "
                "prompt and completions need at least 3: give a larger one, or a shorter template"
            )
        return room

    def encode(self, prompt: Any, first: Any, second: Any) -> tuple[list[int], list[int]]:
        """The ids that the model reads, and the segment of each."""
        split: dict[str, Any] = {"split_special_tokens": True}
        filled = {
            "prompt": self._ids(self._prompt_text(prompt)),
            "first": self._ids(completion_text(first), **split),
            "second": self._ids(completion_text(second), **split),
        }
        cap = _cap([len(ids) for ids in filled.values()], self.room)
        ids, types = list(self.frame[0]), [0] * len(self.frame[0])
        for number, pieces in enumerate(self.segments):
            part = [
                token_id
                for piece in pieces
                for token_id in (_end(filled[piece], cap) if isinstance(piece, str) else piece)
            ]
            part += self.frame[number + 1]
            ids += part
            types += [number] * len(part)
        return ids, types

    def _prompt_text(self, prompt: Any) -> str:
        if isinstance(prompt, str):
            return prompt
        if not self.tokenizer.chat_template:
            raise RewardError(
                "the prompts are messages, and the judge's tokenizer has no chat template; set "
                "tokenizer.chat_template, or train on plain strings"
            )
        return str(self.tokenizer.apply_chat_template(prompt, tokenize=False, **self.template_kwargs))


def _texts_of(template: Any) -> tuple[str, ...]:
    texts = (template,) if isinstance(template, str) else template
    slots: list[Any] = ["wrong"]
    if isinstance(texts, tuple | list) and len(texts) in (1, 2) and all(isinstance(text, str) for text in texts):
        try:
            parsed = [part for text in texts for part in string.Formatter().parse(text)]
            slots = [slot for _, slot, form, conversion in parsed if slot is not None and slot != "sep"]
            slots += ["wrong"] * any(form or conversion for _, _, form, conversion in parsed)
        except ValueError:  # a single brace
            pass
    if sorted({"prompt", *slots}) != sorted(_SLOTS) or len(set(slots)) < len(slots):
        raise ConfigError(
            f"template={template!r}: give a text, or two, with the slots {{first}} and {{second}} once, {{prompt}} at "
            "most once, and {sep} as often as you like; other braces are doubled"
        )
    return tuple(texts)


def _cap(lengths: Sequence[int], room: int | None) -> int:
    """How many tokens each text keeps: the longest are cut, to one length, until all fit."""
    left = sum(lengths) if room is None else room
    for place, length in enumerate(sorted(lengths)):
        share = left // (len(lengths) - place)
        if length > share:
            return share
        left -= length
    return max(lengths)


def _end(ids: list[int], count: int) -> list[int]:
    return ids[max(0, len(ids) - count) :]
