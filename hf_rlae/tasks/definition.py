"""What a task is, and the decorators that make a function a task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hf_rlae.checks import check_choice
from hf_rlae.errors import ConfigError, SplitError, nearest
from hf_rlae.registry import Registry
from hf_rlae.tasks.task_row import Column, TaskRow

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
        question (`str`): the question alone.
        answer (`str`): the ground truth for the reward.
        reply (`str`): a right completion, for few-shot prompts.
        body (`str`, *optional*): what the prompt shows for the question, such as a question with its options; the
            question itself by default.
        columns (`Mapping[str, Any]`, *optional*): further columns of the dataset, for the reward or the user.
    """

    question: str
    answer: str
    reply: str
    body: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)


Shot = tuple[str, str]
"""The body and the reply of a worked example."""

Read = Callable[[TaskRow], Example | None]
F = TypeVar("F", bound=Callable[..., Any])
Generate = Callable[[str, int | None, int, Mapping[str, Any]], Iterator[Example]]


@dataclass(frozen=True)
class Task:
    """Where questions come from, how they are asked, and which reward judges the answers.

    Args:
        name (`str`): as in `load_task(name, ...)`.
        description (`str`): one line.
        splits (`tuple[str, ...]`): the splits of the source.
        read (callable, *optional*): makes an `Example` of a `TaskRow`, or `None` if the row gives none.
        generate (callable, *optional*): `(split, count, seed, options) -> iterator of Example`, without files.
        fields (`Mapping[str, tuple[Column, ...]]`): by field, the columns that may stand for it; the first that the
            source has is read. A tuple of columns is read as a list.
        optional_fields (`tuple[str, ...]`): fields that a source may lack.
        extra_columns (`Mapping[str, str | list[str]]`): columns of the dataset besides `prompt`, `question` and
            `answer`, with their types (`"string"`, `"int64"`, `["string"]` for lists).
        reward (`str`, *optional*): name of the reward; `None` if there is none, for the reason in `reward_note`.
        reward_note (`str`): see `reward`.
        hub_id (`str`, *optional*), hub_config (`str`, *optional*), revision (`str`, *optional*): the default source;
            a revision of `None` is not pinned.
        default_source (`str`, *optional*): the source if none is given; `hub_id` by default.
        licence (`str`): of the data.
        is_gated (`bool`): whether the Hub asks for consent; messages then show no values of the data.
        prompt_format (`str`): the default format, `"conversational"` or `"standard"`.
        message (`str`), text (`str`): templates of a conversational prompt's message and of a standard prompt;
            `{question}` is replaced.
        num_few_shot (`int`): the customary number of shots.
        few_shot_split (`str`): the split of the shots; `"built_in"` for the task's own examples.
        few_shot_group (`str`, *optional*): a column; shots and question have the same value in it.
        examples (`tuple[Mapping, ...]`): rows in the Hub's schema, written for this package.
        options (`Mapping[str, Any]`): further options of `load_task`, with their defaults.
        split_of (callable, *optional*): the split of a `TaskRow`, for single files that hold all splits.
        reads_lines (`bool`): whether a `.txt` file is a source too, with a row per line in the column `text`.

    Raises:
        ConfigError: neither `read` nor `generate`, a template without `{question}`, or an unknown prompt format.
    """

    name: str
    description: str
    splits: tuple[str, ...]
    read: Read | None = None
    generate: Generate | None = None
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
    split_of: Callable[[TaskRow], str | None] | None = None
    reads_lines: bool = False

    def __post_init__(self) -> None:
        if self.read is None and self.generate is None:
            raise ConfigError(
                f"the task {self.name!r} has neither `read` nor `generate`; give a function that makes its examples"
            )
        check_prompt(self.prompt_format, self.message)
        check_prompt(self.prompt_format, self.text)

    @property
    def column_names(self) -> tuple[str, ...]:
        """The columns of the dataset, in order."""
        return ("prompt", "question", "answer", *self.extra_columns)

    def check_split(self, split: str, where: str) -> None:
        """Raises for a split that the task does not have.

        Args:
            split (`str`): the split that was asked for.
            where (`str`): the source, for the message.

        Raises:
            SplitError: names the splits that there are.
        """
        if split not in self.splits:
            raise SplitError(
                f"{where}: the task {self.name!r} has no split {split!r}: {nearest(str(split), self.splits)}"
            )

    def build_prompt(
        self,
        example: Example,
        shots: Sequence[Shot] = (),
        prompt_format: str | None = None,
        template: str | None = None,
    ) -> str | list[dict[str, str]]:
        """The prompt of one question after its shots.

        A conversational prompt alternates messages of user and assistant. In a standard prompt, empty lines separate
        the shots, and each shot ends with its reply.

        Args:
            example (`Example`): the question.
            shots (sequence of `(body, reply)`): worked examples.
            prompt_format (`str`, *optional*): `"conversational"` or `"standard"`; the task's own by default.
            template (`str`, *optional*): replaces the task's own for that format.

        Returns:
            `list[dict[str, str]]` or `str`.

        Raises:
            ConfigError: an unknown format, or a template without `{question}`.

        Example:

        >>> task = Task("sums", "Sums.", ("test",), generate=list)
        >>> task.build_prompt(Example("2 + 2?", "4", "4"), [("1 + 1?", "2")], "standard")
        'Question: 1 + 1?\\nAnswer: 2\\n\\nQuestion: 2 + 2?\\nAnswer:'
        """
        prompt_format = prompt_format or self.prompt_format
        is_chat = prompt_format == "conversational"
        template = template or (self.message if is_chat else self.text)
        check_prompt(prompt_format, template)
        worked = [(template.replace("{question}", body), reply.strip()) for body, reply in shots]
        question = template.replace("{question}", example.body or example.question)
        if not is_chat:
            return "\n\n".join([*(f"{body} {reply}" for body, reply in worked), question])
        messages = []
        for body, reply in worked:
            messages += [{"role": "user", "content": body}, {"role": "assistant", "content": reply}]
        return [*messages, {"role": "user", "content": question}]


def check_prompt(prompt_format: str, template: str) -> None:
    """Raises for a prompt that cannot be built.

    Raises:
        ConfigError: an unknown format, or a template that does not contain `{question}` exactly once.
    """
    check_choice("prompt_format", prompt_format, FORMATS)
    if not isinstance(template, str) or template.count("{question}") != 1:
        raise ConfigError(f"template={template!r}: a template is a string that contains {{question}} once")


def task(
    name: str,
    *,
    description: str,
    splits: Sequence[str],
    fields: Mapping[str, str | Sequence[Column]] | None = None,
    **settings: Any,
) -> Callable[[F], F]:
    """Registers a function from `TaskRow` to `Example` as a task; without `fields`, one that generates its questions.

    Args:
        name (`str`), description (`str`), splits (sequence of `str`), fields (`Mapping`): as in `Task`; a field with
            one possible column may be given as that column's name.
        **settings: the other arguments of `Task`.

    Returns:
        A decorator that returns the function unchanged.

    Raises:
        ConfigError: the name is taken.
    """

    def decorator(function: F) -> F:
        accepted = {key: (value,) if isinstance(value, str) else tuple(value) for key, value in (fields or {}).items()}
        kind = "generate" if fields is None else "read"
        own = {kind: function, "fields": accepted, **settings}
        tasks.register(name)(Task(name, description, tuple(splits), **own))
        return function

    return decorator
