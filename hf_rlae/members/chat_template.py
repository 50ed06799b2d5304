"""Renders chat templates within limits of time and size: they are programs that come with a tokenizer."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import jinja2

from hf_rlae.errors import TokenizerError

MAX_SECONDS = 2.0
"""CPU time of rendering one conversation. Templates of real models take milliseconds."""

MAX_CHARACTERS = 20_000_000
"""Characters that a template writes for one conversation."""

_LARGEST_NUMBER = 10**7
_COUNTED = ("<template>", jinja2.utils.__file__)
"""Code in which time is counted: the template's own, and the one function of jinja2 that loops as often as asked."""


def apply_chat_template(tokenizer: Any, name: str, *args: Any, **options: Any) -> Any:
    """`tokenizer.apply_chat_template` within limits.

    Loops are bounded by tracing the template's own lines, in this thread alone. A single operation cannot be stopped:
    powers and large numbers, which such an operation needs, are refused before.

    Args:
        tokenizer (`PreTrainedTokenizerBase`), name (`str`): the member's.
        args, options: as in transformers.

    Raises:
        TokenizerError: the template takes too long or writes too much.
    """
    for template in _templates(tokenizer, options):
        _check_numbers(template, name)
    with _limits(name):
        return tokenizer.apply_chat_template(*args, **options)


def _templates(tokenizer: Any, options: dict[str, Any]) -> list[str]:
    given = options.get("chat_template")
    own = tokenizer.chat_template
    candidates = [given, *(own.values() if isinstance(own, dict) else [own])]
    return [template for template in candidates if isinstance(template, str)]


@lru_cache
def _check_numbers(template: str, name: str) -> None:
    before = ""
    try:
        tokens = [token for token in jinja2.Environment(autoescape=True).lex(template) if token[1] != "whitespace"]
    except jinja2.TemplateError:
        return  # transformers says what is wrong with it
    for _, kind, value in tokens:
        is_power = kind == "operator" and value == "**" and before not in ("(", ",")  # else unpacked arguments
        if is_power or (kind == "integer" and abs(int(value.replace("_", ""), 0)) > _LARGEST_NUMBER):
            raise TokenizerError(
                f"the chat template of member {name} computes with `{value}`, which may fill the memory; pass another "
                "template (`tokenizer.chat_template = ...`)"
            )
        before = value


@contextmanager
def _limits(name: str) -> Iterator[None]:
    conversation: Any = None  # the frame of its rendering
    end, written = time.thread_time() + MAX_SECONDS, 0

    def in_template(frame: Any, event: str, value: Any) -> Any:
        nonlocal conversation, end, written
        if frame.f_code.co_name == "root" and frame is not conversation:
            conversation, end, written = frame, time.thread_time() + MAX_SECONDS, 0
        if event == "return" and isinstance(value, str):  # what the template's generator yields
            written += len(value)
        if written > MAX_CHARACTERS or time.thread_time() > end:
            raise TokenizerError(
                f"the chat template of member {name} takes more than {MAX_SECONDS:g} s or writes more than "
                f"{MAX_CHARACTERS:,} characters for a conversation; pass fewer messages, or another template "
                "(`tokenizer.chat_template = ...`)"
            )
        return in_template

    def at_call(frame: Any, event: str, value: Any) -> Any:
        return in_template(frame, event, value) if frame.f_code.co_filename in _COUNTED else None

    before = sys.gettrace()
    sys.settrace(at_call)
    try:
        yield
    finally:
        sys.settrace(before)
