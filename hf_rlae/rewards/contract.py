"""What every reward takes and gives: TRL's contract for reward functions, with typed errors."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from hf_rlae.errors import RewardError


class Reward(ABC):
    """A reward function as an object: `reward(prompts, completions, completion_ids=None, **columns)`.

    A subclass says how one batch of texts is scored. Lengths and messages are dealt with here, and so are the further
    arguments that TRL gives (`trainer_state`, `log_extra`, `log_metric`, columns that nobody asked for): they are
    ignored. A reward that is made by a module-level class can be pickled and hashed.

    Args:
        name (`str`): becomes `__name__`, which TRL logs as `rewards/<name>/mean`.

    Attributes:
        measure (`str`): what the mean of these rewards is called as a metric, such as `"accuracy"`.

    Example:

    >>> class Brevity(Reward):
    ...     def score_texts(self, texts, batch):
    ...         return [1.0 if len(text) < 10 else 0.0 for text in texts]
    >>> Brevity("brevity")(prompts=["Q", "Q"], completions=["short", "not so short at all"])
    [1.0, 0.0]
    """

    measure = "score"

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __call__(
        self,
        prompts: Sequence[Any] | None = None,
        completions: Sequence[Any] | None = None,
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """One number a completion.

        Args:
            prompts (`Sequence`, *optional*): B prompts, strings or lists of messages.
            completions (`Sequence`): B completions, strings or lists of messages.
            completion_ids (`Sequence[Sequence[int]]`, *optional*): B lists of token ids.
            columns: columns of the data set, B values each; what else TRL gives is ignored.

        Returns:
            `list[float | None]`: B numbers; `None` where the completion could not be judged.

        Raises:
            RewardError: nothing to score, columns of different lengths, a column missing, or an unreadable value.
        """
        if completions is None or not hasattr(completions, "__len__") or isinstance(completions, str):
            raise RewardError(
                f"{self.__name__}: completions must be a list of strings or of message lists, got {completions!r:.80}"
            )
        given = {**columns, "prompts": prompts, "completions": completions, "completion_ids": completion_ids}
        batch = Batch(self.__name__, len(completions), given)
        for argument in ("prompts", "completions", "completion_ids"):
            batch.optional(argument)
        texts = [completion_text(completion, self.__name__, row) for row, completion in enumerate(completions)]
        return self.score_texts(texts, batch)

    @abstractmethod
    def score_texts(self, texts: list[str], batch: Batch) -> list[float | None]:
        """The rewards of B texts.

        Args:
            texts (`list[str]`): what was written, without the prompts.
            batch (`Batch`): everything else.
        """

    def check_available(self) -> None:  # noqa: B027 (most rewards need nothing)
        """Raises `RewardUnavailableError` where something that the reward needs is not installed."""

    def with_options(self, **options: Any) -> Reward:
        """The same reward with other options of its class, such as `lexicon` of `SentimentReward`.

        Raises:
            RewardError: the class has no such option.
        """
        known = [name for name in inspect.signature(type(self)).parameters if name != "name"]
        unknown = sorted(set(options) - set(known))
        if unknown:
            has = f"its options are {', '.join(known)}" if known else "it has no options"
            raise RewardError(f"{self.__name__} has no option {', '.join(unknown)}; {has}")
        return type(self)(name=self.__name__, **options)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.__name__}>"


class RuleReward(Reward):
    """A reward that reads an answer from the text and compares it with the one in the column `answer`.

    1.0 right, 0.0 wrong or no answer at all, `None` where `answer` is `None`. The ground truth of the whole batch is
    read before any text is.

    Example:

    >>> class Shout(RuleReward):
    ...     def reference(self, answer, row):
    ...         return str(answer).upper()
    ...     def is_right(self, text, reference, row):
    ...         return text == reference
    >>> Shout("shout")(prompts=["", "", ""], completions=["A", "a", "A"], answer=["a", "a", None])
    [1.0, 0.0, None]
    """

    measure = "accuracy"
    further_columns: tuple[str, ...] = ()
    """Columns that are read beside `answer` where they are there."""

    def score_texts(self, texts: list[str], batch: Batch) -> list[float | None]:
        """See `Reward.score_texts`."""
        # scalars of numpy and torch become Python's
        answers = [answer.item() if hasattr(answer, "item") else answer for answer in batch.required("answer")]
        rows = [Row(self.__name__, at, batch.row(at, self.further_columns)) for at in range(len(texts))]
        references = [
            None if answer is None else self.reference(answer, row) for answer, row in zip(answers, rows, strict=True)
        ]
        return [
            None if answer is None else float(self.is_right(text, reference, row))
            for text, answer, reference, row in zip(texts, answers, references, rows, strict=True)
        ]

    @abstractmethod
    def reference(self, answer: Any, row: Row) -> Any:
        """The ground truth in the form that `is_right` compares with; `row.unreadable` makes the error."""

    @abstractmethod
    def is_right(self, text: str, reference: Any, row: Row) -> bool:
        """Whether a text gives this answer. It never raises, whatever the text."""


class Row:
    """What a rule may know about one row.

    Args:
        reward (`str`): whose row, for messages.
        index (`int`): which row of the batch.
        columns (`dict`): the further columns of the rule that are there and not `None`.
    """

    def __init__(self, reward: str, index: int, columns: Mapping[str, Any]) -> None:
        self.reward = reward
        self.index = index
        self.columns = columns

    def unreadable(self, value: Any, expected: str, column: str = "answer") -> RewardError:
        """The error for a ground truth that the rule cannot read."""
        return RewardError(
            f"{self.reward}: row {self.index} of the batch has {column}={value!r:.120}; expected {expected}, "
            f"or None where the row cannot be judged"
        )


class Batch:
    """The columns of one call.

    Args:
        reward (`str`): whose call, for messages.
        size (`int`): B.
        columns (`dict`): every argument of the call.
    """

    def __init__(self, reward: str, size: int, columns: Mapping[str, Any]) -> None:
        self.reward = reward
        self.size = size
        self.columns = columns

    def required(self, name: str) -> Sequence[Any]:
        """A column that has to be there."""
        column = self.optional(name)
        if column is None:
            given = sorted(key for key, value in self.columns.items() if value is not None)
            raise RewardError(
                f"{self.reward}: the column {name!r} is missing; the columns given are {', '.join(given) or 'none'}. "
                f"Name the column with the ground truth {name!r} (`dataset.rename_column`)"
            )
        return column

    def optional(self, name: str) -> Sequence[Any] | None:
        """A column that may be missing; where it is there, it has one value a completion."""
        column = self.columns.get(name)
        if column is None:
            return None
        if isinstance(column, str) or not hasattr(column, "__len__") or not hasattr(column, "__getitem__"):
            raise RewardError(
                f"{self.reward}: {name} must be a list with one value a completion, got {column!r:.80}; "
                f"repeat a value that is the same for all"
            )
        if len(column) != self.size:
            raise RewardError(f"{self.reward}: {name} has {len(column)} values for {self.size} completions")
        return column

    def row(self, index: int, names: Sequence[str]) -> dict[str, Any]:
        """The values of one row in those of the columns that are there."""
        columns = {name: self.optional(name) for name in names}
        return {
            name: column[index] for name, column in columns.items() if column is not None and column[index] is not None
        }


def completion_text(completion: Any, reward: str = "reward", row: int = 0) -> str:
    """What was written: a string itself, or the content of the last message of the assistant.

    A content that is a list of parts gives its text parts, joined; no content (a call of a tool alone) and an empty
    list of messages give an empty text.

    Args:
        completion (`str` or `list[dict]`): as TRL hands it over.
        reward (`str`), row (`int`): for messages.

    Raises:
        RewardError: something else.

    Example:

    >>> completion_text([{"role": "assistant", "content": [{"type": "text", "text": "B"}]}])
    'B'
    """
    if isinstance(completion, str):
        return completion
    if isinstance(completion, Mapping):
        completion = [completion]
    if isinstance(completion, Sequence) and all(isinstance(message, Mapping) for message in completion):
        own = [message for message in completion if message.get("role", "assistant") == "assistant"]
        if own or not completion:
            content = own[-1].get("content") if own else ""
            text = _content_text(content)
            if text is not None:
                return text
    raise RewardError(
        f"{reward}: completion {row} is {completion!r:.120}; expected a string, or a list of messages of which at "
        f"least one has the role 'assistant' and a content that is a string or a list of parts"
    )


def _content_text(content: Any) -> str | None:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and all(isinstance(part, str | Mapping) for part in content):
        parts = [part if isinstance(part, str) else part.get("text") or "" for part in content]
        return "".join(parts) if all(isinstance(part, str) for part in parts) else None
    return None


def name_of(reward: Any) -> str:
    """The name under which TRL logs a reward: `__name__`, of a `partial` that of its function, else of its class.

    Example:

    >>> name_of(partial(len)), name_of(3)
    ('len', 'int')
    """
    while isinstance(reward, partial):
        reward = reward.func
    return str(getattr(reward, "__name__", type(reward).__name__))


def is_async(reward: Any) -> bool:
    """Whether calling a reward gives a coroutine: an `async def`, an object with an async `__call__`, or a `partial`.

    Example:

    >>> is_async(len)
    False
    """
    while isinstance(reward, partial):
        reward = reward.func
    return inspect.iscoroutinefunction(reward) or inspect.iscoroutinefunction(getattr(reward, "__call__", None))  # noqa: B004
