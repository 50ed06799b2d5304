"""Observers' prompts: the prompt and the answers of earlier agents, within the model's context."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hf_rlae.errors import ConfigError, InputError

Template = str | Callable[[Any, list[str]], Any]

PLAIN_TEMPLATE = "A first text, for reference:\n{answers}\n\nThe text itself:\n{prompt}"
"""The observer's prompt if prompts are plain strings, which it continues. Source: ours."""

CHAT_TEMPLATE = (
    "{prompt}\n\nSomebody has answered this before you:\n{answers}\n\nTake from it what is right, mend what is wrong, "
    "and give an answer of your own to the request above."
)
"""The content of the observer's last message if prompts are conversations. Source: ours."""

_SLOT = re.compile(r"\{(prompt|answers)\}")


def check_template(template: Any) -> None:
    """Raises if an `observer_template` cannot be used.

    Args:
        template (`str` or callable): a text with the slots `{prompt}` and `{answers}`, or `f(prompt, answers)`.

    Raises:
        ConfigError: a slot is missing, the function takes other arguments, or it is neither a text nor a function.

    Example:

    >>> check_template("{answers} / {prompt}")
    """
    if isinstance(template, str):
        missing = [slot for slot in ("{prompt}", "{answers}") if slot not in template]
        if missing:
            raise ConfigError(
                f"observer_template={template!r} lacks {' and '.join(missing)}; give a text with both "
                "slots, {prompt} and {answers}"
            )
        return
    if not callable(template):
        raise ConfigError(f"observer_template is a {type(template).__name__}; give a text or a function")
    try:
        inspect.signature(template).bind("", [])
    except TypeError as error:
        raise ConfigError(
            f"observer_template is called as f(prompt, answers), but does not take these arguments: {error}"
        ) from None
    except ValueError:
        return  # a built-in without a signature


def joined_answers(answers: Sequence[str]) -> str:
    """The answers as one text: several answers are numbered.

    Example:

    >>> joined_answers(["4"])
    '4'
    >>> joined_answers(["4", "5"])
    '1. 4\\n2. 5'
    """
    if len(answers) == 1:
        return answers[0]
    return "\n".join(f"{number}. {answer}" for number, answer in enumerate(answers, 1))


def observer_prompt(prompt: Any, answers: Sequence[str], template: Template | None = None) -> Any:
    """The prompt of an observer.

    Source: CORY (arXiv 2410.06101): an observer answers the prompt with the pioneer's answer as a reference. The
    default templates are ours.

    Args:
        prompt (`str` or `list[dict]`): the original prompt.
        answers (`Sequence[str]`): of earlier agents, the earliest first.
        template (`str` or callable, *optional*): see [`CoryArguments`]; `PLAIN_TEMPLATE` or `CHAT_TEMPLATE` if not
            given.

    Returns:
        The new prompt, of the same kind.

    Raises:
        InputError: a callable returned something else than a prompt of this kind.

    Example:

    >>> observer_prompt("2+2=", ["5"], "{answers}? {prompt}")
    '5? 2+2='
    >>> observer_prompt([{"role": "user", "content": "2+2?"}], ["5"], "{prompt} Not {answers}?")
    [{'role': 'user', 'content': '2+2? Not 5?'}]
    """
    is_plain = isinstance(prompt, str)
    if template is not None and not isinstance(template, str):
        made = template(prompt, list(answers))
        if not (isinstance(made, str) if is_plain else _is_chat(made)):
            kind = "a string" if is_plain else "a list of messages"
            raise InputError(f"observer_template returned {made!r:.80} for the prompt {prompt!r:.80}; expected {kind}")
        return made
    if is_plain:
        return _filled(template or PLAIN_TEMPLATE, prompt, answers)
    last = prompt[-1]
    if not isinstance(last.get("content"), str):
        raise InputError(
            f"the last message of the prompt {prompt!r:.80} has no text as its content; give text, or an "
            "observer_template that is a function"
        )
    return [*prompt[:-1], {**last, "content": _filled(template or CHAT_TEMPLATE, last["content"], answers)}]


def _is_chat(prompt: Any) -> bool:
    return isinstance(prompt, list) and bool(prompt) and all(isinstance(entry, dict) for entry in prompt)


def _filled(template: str, prompt: str, answers: Sequence[str]) -> str:
    # in one pass, so that braces in prompts and answers are not slots
    values = {"prompt": prompt, "answers": joined_answers(answers)}
    return _SLOT.sub(lambda slot: values[slot[1]], template)


@dataclass(frozen=True)
class TextTemplate:
    """A template with a text for plain prompts and another for conversations, called as `f(prompt, answers)`.

    Args:
        plain (`str`), chat (`str`): texts with the slots `{prompt}` and `{answers}`.

    Example:

    >>> TextTemplate("{answers}, {prompt}", "{prompt}: {answers}")("b", ["a"])
    'a, b'
    """

    plain: str
    chat: str

    def __call__(self, prompt: Any, answers: Sequence[str]) -> Any:
        return observer_prompt(prompt, answers, self.plain if isinstance(prompt, str) else self.chat)


def fills_text(template: Any) -> bool:
    """Whether a template puts answers into a text of the prompt, which a conversation's last message must then have."""
    return template is not None and isinstance(template, str | TextTemplate)


@dataclass(frozen=True)
class ObserverPrompts:
    """Makes observers' prompts that fit into the context.

    If a prompt is too long, tokens are cut from the left of the answers, the earliest answer first, until it fits. If
    it does not fit without any answer, the observer receives the prompt alone.

    Source: ours.

    Args:
        tokenizer: encodes and decodes answers.
        lengths (callable): returns the numbers of tokens of a list of prompts.
        max_length (`int`, *optional*): maximum number of tokens of a prompt; `None` for no bound.
    """

    tokenizer: Any
    lengths: Callable[[list[Any]], list[int]]
    max_length: int | None = None

    def __call__(
        self, prompts: Sequence[Any], answers: Sequence[Sequence[str]], template: Template | None = None
    ) -> tuple[list[Any], list[bool]]:
        """The observers' prompts, and which of them were cut.

        Args:
            prompts (`Sequence`): B prompts.
            answers (`Sequence[Sequence[str]]`): the earlier answers to each prompt.
            template (`str` or callable, *optional*): see [`observer_prompt`].
        """
        made = [observer_prompt(prompt, texts, template) for prompt, texts in zip(prompts, answers, strict=True)]
        if self.max_length is None:
            return made, [False] * len(made)
        excess = [length - self.max_length for length in self.lengths(made)]
        for row, extra in enumerate(excess):
            if extra > 0:
                made[row] = self._cut(prompts[row], list(answers[row]), extra, template)
        return made, [extra > 0 for extra in excess]

    def _cut(self, prompt: Any, answers: list[str], excess: int, template: Template | None) -> Any:
        """The prompt with its answers cut; each pass of the loop removes at least one token."""
        ids = [self.tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers]
        while any(ids):
            for own in ids:
                taken = min(excess, len(own))
                del own[:taken]
                excess -= taken
            made = observer_prompt(prompt, [self.tokenizer.decode(own) for own in ids], template)
            excess = self.lengths([made])[0] - int(self.max_length or 0)
            if excess <= 0:
                return made
        return prompt
