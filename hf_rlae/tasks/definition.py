"""What a task is, and the decorators that make a function one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_rlae.errors import ConfigError, nearest
from hf_rlae.registry import Registry
from hf_rlae.tasks.row import Column, Row

FORMATS = ("conversational", "standard")
"""TRL's names for prompts that are lists of messages and prompts that are strings."""

BUILT_IN = "built_in"
"""The name of the examples that come with a task, as a source and as a split to draw shots from."""

UNKNOWN_LICENCE = "unknown, see the page on the Hub"

tasks: Registry[Task] = Registry("task")


@dataclass(frozen=True)
class Example:
    """What a task makes of one row.

    Args:
        question (`str`): what is asked.
        answer (`str`): what the reward compares with.
        reply (`str`): a right completion, for few-shot prompts.
        body (`str`, *optional*): what stands in the prompt for the question, such as a question with its options;
            the question itself by default.
        columns (`Mapping[str, Any]`, *optional*): what else the reward or the user may need, by column.
    """

    question: str
    answer: str
    reply: str
    body: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)


Shot = tuple[str, str]
"""The body and the reply of a worked example."""


@dataclass(frozen=True)
class Task:
    """Where questions come from, how they are asked, and which reward judges the answers.

    Args:
        name (`str`): as in `load_task(name, ...)`.
        description (`str`): one line.
        splits (`tuple[str, ...]`): what the source has.
        read (callable, *optional*): makes an `Example` of a `Row`, or `None` where the row gives none.
        generate (callable, *optional*): `(split, count, seed, options) -> iterator of Example`, without files.
        fields (`Mapping[str, tuple[Column, ...]]`): by field, the columns that may stand for it, the first that is
            there; a tuple of columns is taken together as a list.
        optional_fields (`tuple[str, ...]`): fields that a source may lack.
        extra_columns (`Mapping[str, str | list[str]]`): columns of the dataset beside `prompt`, `question` and
            `answer`, with their types (`"string"`, `"int64"`, `["string"]` for lists).
        reward (`str`, *optional*): name of the reward, `None` where there is none, for the reason in `reward_note`.
        reward_note (`str`): see `reward`.
        hub_id (`str`, *optional*), hub_config (`str`, *optional*), revision (`str`, *optional*): the default source;
            `None` for a revision that is not pinned.
        default_source (`str`, *optional*): the source where none is given; `hub_id` by default.
        licence (`str`): of the data.
        is_gated (`bool`): the Hub asks for consent; no value of such data is shown in messages.
        prompt_format (`str`): `"conversational"` or `"standard"`, where the user does not say.
        message (`str`), text (`str`): templates of a conversational prompt's message and of a standard prompt;
            `{question}` is replaced.
        num_few_shot (`int`): the customary number of shots.
        few_shot_split (`str`): where they come from; `"built_in"` for the task's own examples.
        few_shot_group (`str`, *optional*): a column; shots have the same value in it as the question.
        examples (`tuple[Mapping, ...]`): rows in the Hub's schema, written for this package.
        options (`Mapping[str, Any]`): further options of `load_task`, with their defaults.
        split_of (callable, *optional*): the split that a `Row` belongs to, for single files that hold all splits.
        reads_lines (`bool`): a `.txt` file is a source, too: each line is a row with the column `text`.

    Raises:
        ConfigError: a template without `{question}`, or an unknown prompt format.
    """

    name: str
    description: str
    splits: tuple[str, ...]
    read: Callable[[Row], Example | None] | None = None
    generate: Callable[[str, int | None, int, Mapping[str, Any]], Iterator[Example]] | None = None
    fields: Mapping[str, tuple[Column, ...]] = field(default_factory=dict)
    optional_fields: tuple[str, ...] = ()
    extra_columns: Mapping[str, str | list[str]] = field(default_factory=dict)
    reward: str | None = None
    reward_note: str = ""
    hub_id: str | None = None
    hub_config: str | None = None
    revision: str | None = None
    default_source: str | None = None
    licence: str = UNKNOWN_LICENCE
    is_gated: bool = False
    prompt_format: str = "conversational"
    message: str = "{question}"
    text: str = "Question: {question}\nAnswer:"
    num_few_shot: int = 0
    few_shot_split: str = BUILT_IN
    few_shot_group: str | None = None
    examples: tuple[Mapping[str, Any], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    split_of: Callable[[Row], str | None] | None = None
    reads_lines: bool = False

    def __post_init__(self) -> None:
        checked_format(self.prompt_format)
        for template in (self.message, self.text):
            checked_template(template)

    @property
    def column_names(self) -> tuple[str, ...]:
        """The columns of the dataset, in order."""
        return ("prompt", "question", "answer", *self.extra_columns)

    def build_prompt(
        self,
        example: Example,
        shots: Sequence[Shot] = (),
        prompt_format: str | None = None,
        template: str | None = None,
    ) -> str | list[dict[str, str]]:
        """The prompt of one question behind its shots.

        Messages of user and assistant take turns; strings are joined by an empty line, each shot followed by its reply.

        Args:
            example (`Example`): what is asked.
            shots (sequence of `(body, reply)`): worked examples.
            prompt_format (`str`, *optional*): `"conversational"` or `"standard"`; the task's own by default.
            template (`str`, *optional*): in the place of the task's own for that format.

        Returns:
            `list[dict[str, str]]` or `str`.

        Raises:
            ConfigError: an unknown format, or a template without `{question}`.

        Example:

        >>> task = Task("sums", "Sums.", ("test",))
        >>> task.build_prompt(Example("2 + 2?", "4", "4"), [("1 + 1?", "2")], "standard")
        'Question: 1 + 1?\\nAnswer: 2\\n\\nQuestion: 2 + 2?\\nAnswer:'
        """
        is_chat = checked_format(prompt_format or self.prompt_format) == "conversational"
        template = checked_template(template or (self.message if is_chat else self.text))
        bodies = [body for body, _ in shots] + [example.body or example.question]
        asked = [template.replace("{question}", body) for body in bodies]
        replies = [reply.strip() for _, reply in shots]
        if not is_chat:
            worked = (f"{before} {reply}" for before, reply in zip(asked, replies, strict=False))
            return "\n\n".join([*worked, asked[-1]])
        messages = []
        for before, reply in zip(asked, replies, strict=False):
            messages += [{"role": "user", "content": before}, {"role": "assistant", "content": reply}]
        return [*messages, {"role": "user", "content": asked[-1]}]


def checked_format(prompt_format: str) -> str:
    """The format, or a `ConfigError`."""
    if prompt_format not in FORMATS:
        raise ConfigError(f"prompt_format={prompt_format!r}: {nearest(str(prompt_format), FORMATS)}")
    return prompt_format


def checked_template(template: str) -> str:
    """The template, or a `ConfigError`."""
    if not isinstance(template, str) or template.count("{question}") != 1:
        raise ConfigError(f"template={template!r}: a template is a text with {{question}} in it once")
    return template


def task(
    name: str,
    *,
    description: str,
    splits: Sequence[str],
    fields: Mapping[str, str | Sequence[Column]],
    **settings: Any,
) -> Callable[[Callable[[Row], Example | None]], Callable[[Row], Example | None]]:
    """Registers a function from `Row` to `Example` as a task.

    Args:
        name (`str`), description (`str`), splits (sequence of `str`), fields (`Mapping`): as in `Task`; a field with
            one possible column may be given as that column's name.
        **settings: the other arguments of `Task`.

    Returns:
        A decorator that returns the function unchanged.

    Raises:
        ConfigError: the name is taken.
    """

    def decorator(read: Callable[[Row], Example | None]) -> Callable[[Row], Example | None]:
        accepted = {key: (value,) if isinstance(value, str) else tuple(value) for key, value in fields.items()}
        made = Task(name, description, tuple(splits), read=read, fields=accepted, **settings)
        tasks.register(name)(made)
        return read

    return decorator


Generate = Callable[[str, int | None, int, Mapping[str, Any]], Iterator[Example]]


def generated_task(
    name: str, *, description: str, splits: Sequence[str], **settings: Any
) -> Callable[[Generate], Generate]:
    """Registers a function that makes its own questions as a task; arguments as for `task`."""

    def decorator(generate: Generate) -> Generate:
        tasks.register(name)(Task(name, description, tuple(splits), generate=generate, **settings))
        return generate

    return decorator
