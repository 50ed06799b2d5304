"""Reads the bodies of `/v1/completions` and `/v1/chat/completions`, and says in words what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hf_rlae.checks import COUNT, NOT_NEGATIVE, POSITIVE, Bounds, check_choice, check_number
from hf_rlae.errors import InputError, nearest

ROLES = ("system", "developer", "user", "assistant")
MOST_STOPS = 16
MOST_STOP_CHARACTERS = 1000

_SAMPLING = {
    "max_new_tokens": COUNT,
    "min_new_tokens": Bounds(0, is_whole=True),
    "temperature": NOT_NEGATIVE,
    "top_p": Bounds(above=0, most=1),
    "top_k": Bounds(0, is_whole=True),
    "min_p": Bounds(0, 1),
    "typical_p": Bounds(above=0, most=1),
    "repetition_penalty": POSITIVE,
    "no_repeat_ngram_size": Bounds(0, is_whole=True),
}
"""Options of `generate` that a request may set, in the field `generation_config` of transformers' clients."""

_SEED = Bounds(-(2**63), 2**63 - 1, is_whole=True)
_READ = ("model", "stream", "stop", "seed", "temperature", "top_p", "max_tokens", "max_completion_tokens")
_IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "stream_options")
"""Fields without an influence on the text, and usage in streams, which is always sent."""
_ONLY: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "suffix": ("",),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "modalities": (["text"],),
}
"""Fields of OpenAI's interface of which only these values, which ask for nothing, are supported."""


@dataclass(frozen=True)
class CompletionRequest:
    """What a client asks for.

    Attributes:
        prompt (`str` or `list[dict[str, str]]`): a text to continue, or messages to answer.
        options (`dict[str, Any]`): keyword arguments of `generate`.
        stop (`tuple[str, ...]`): strings before which the text ends.
        seed (`int`, *optional*): of the samples.
        stream (`bool`): whether the text is sent in pieces.
    """

    prompt: str | list[dict[str, str]]
    options: dict[str, Any]
    stop: tuple[str, ...]
    seed: int | None
    stream: bool


def read_request(
    body: Mapping[str, Any], is_chat: bool, defaults: Mapping[str, Any], max_new_tokens: int
) -> CompletionRequest:
    """Checks the body of a request.

    Args:
        body (`Mapping[str, Any]`): the JSON object.
        is_chat (`bool`): whether it has `messages`, or a `prompt`.
        defaults (`Mapping[str, Any]`): the server's own keyword arguments of `generate`.
        max_new_tokens (`int`): the most new tokens that a request may ask for, and what it gets if it does not ask.

    Returns:
        `CompletionRequest`: a `temperature` above 0 or a `top_p` asks for samples, as with OpenAI; without both the
        server's defaults hold.

    Raises:
        InputError: a field that is unknown, not supported or out of its bounds; the message names it.
    """
    given = {name: value for name, value in body.items() if value is not None}
    own = "messages" if is_chat else "prompt"
    for name, value in given.items():
        if name in _ONLY:
            if not any(type(value) is type(known) and value == known for known in _ONLY[name]):
                supported = " or ".join(json.dumps(known) for known in _ONLY[name])
                raise InputError(f"{name}: only {supported} is supported here; leave it out")
        elif name not in (own, "generation_config", *_READ, *_IGNORED):
            raise InputError(f"{name} is not a field of this request: {nearest(name, (own, *_READ, *_ONLY))}")
    if own not in given:
        raise InputError(f"{own} is missing; give {'a list of messages' if is_chat else 'a text'}")
    stream = given.get("stream", False)
    if not isinstance(stream, bool):
        raise InputError(f"stream={stream!r}: give true or false")
    seed = given.get("seed")
    if seed is not None:
        check_number("seed", seed, _SEED)
    return CompletionRequest(
        prompt=_messages(given[own]) if is_chat else _prompt(given[own]),
        options=_options(given, defaults, max_new_tokens),
        stop=_stops(given.get("stop", [])),
        seed=seed,
        stream=stream,
    )


def _options(given: Mapping[str, Any], defaults: Mapping[str, Any], max_new_tokens: int) -> dict[str, Any]:
    options = {**defaults, "max_new_tokens": max_new_tokens, **_generation_config(given.get("generation_config"))}
    asked = {name: given[name] for name in ("temperature", "top_p") if name in given}
    for name, value in asked.items():
        check_number(name, value, _SAMPLING[name])
    if asked:
        options = {"top_k": 0, "top_p": 1.0, "temperature": 1.0, **options, **asked, "do_sample": True}
    for name in ("max_tokens", "max_completion_tokens"):
        if name in given:
            check_number(name, given[name], COUNT)
            options["max_new_tokens"] = given[name]
    if options["max_new_tokens"] > max_new_tokens:
        raise InputError(
            f"max_tokens={options['max_new_tokens']}: this server writes at most {max_new_tokens} tokens per request; "
            "ask for fewer, or start it with a larger --max-new-tokens"
        )
    if options.get("temperature") == 0:
        options["do_sample"] = False
    if not options["do_sample"]:  # transformers warns of options without an effect
        options = {name: value for name, value in options.items() if name not in ("temperature", "top_p", "top_k")}
    return options


def _generation_config(text: Any) -> dict[str, Any]:
    """The options in transformers' field `generation_config`; fields that it may not set are refused by name."""
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError("generation_config is a string with a JSON object, as `to_json_string` writes it") from error
    if not isinstance(found, dict):
        raise InputError("generation_config is a string with a JSON object, as `to_json_string` writes it")
    options = {}
    for name, value in found.items():
        if name == "do_sample":
            check_choice(name, json.dumps(value), ("true", "false"))
        elif name in _SAMPLING:
            if value is not None:
                check_number(name, value, _SAMPLING[name])
        elif name in ("transformers_version", "_from_model_config") or value is None:
            continue
        else:
            raise InputError(
                f"generation_config: {name} cannot be set here: {nearest(name, ('do_sample', *_SAMPLING))}"
            )
        if value is not None:
            options[name] = value
    return options


def _stops(given: Any) -> tuple[str, ...]:
    stops = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, list) else (None,)
    is_text = all(isinstance(stop, str) and 0 < len(stop) <= MOST_STOP_CHARACTERS for stop in stops)
    if len(stops) > MOST_STOPS or not is_text:
        raise InputError(
            f"stop: give a string, or a list of at most {MOST_STOPS}, each of 1 to {MOST_STOP_CHARACTERS} characters"
        )
    return stops


def _prompt(given: Any) -> str:
    if isinstance(given, list) and len(given) == 1:
        given = given[0]
    if not isinstance(given, str):
        raise InputError("prompt: give one string; lists of several and ids of tokens are not supported")
    return _text(given, "prompt")


def _messages(given: Any) -> list[dict[str, str]]:
    if not isinstance(given, list) or not given:
        raise InputError("messages: give a list of at least one message")
    found = []
    for index, message in enumerate(given):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            raise InputError(f"{where} is not an object with role and content")
        check_choice(f"{where}.role", message.get("role"), ROLES)
        content = message.get("content")
        if isinstance(content, list):
            kinds = [part.get("type") if isinstance(part, dict) else None for part in content]
            if any(kind != "text" for kind in kinds):
                raise InputError(f"{where}.content: only parts of the type text are supported, got {kinds!r:.100}")
            content = "".join(str(part.get("text", "")) for part in content)
        if not isinstance(content, str):
            raise InputError(f"{where}.content: give a text")
        if message.get("tool_calls"):
            raise InputError(f"{where}.tool_calls: tools are not supported")
        role = "system" if message["role"] == "developer" else message["role"]
        found.append({"role": role, "content": _text(content, f"{where}.content")})
    return found


def _text(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: {text[error.start]!a} is half of a character; send whole ones") from error
    return text
