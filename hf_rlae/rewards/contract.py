"""The contract of every reward: TRL's for reward functions, with typed errors."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from hf_rlae.errors import RewardError, nearest

REWARD_LIMIT = 1e15
"""The largest magnitude of a reward, and of a weighted sum of rewards.

Training squares rewards and adds up the squares: deviations over completions, errors of critics, norms of gradients. A
square is 1e30 at most, and float32, which ends at 3.4e38, has room for the sum of 3e8 of them. With larger rewards an
infinite norm of the gradients scales every gradient to 0, and nothing is learned.
"""


class Reward(ABC):
    """A reward function as an object: `reward(prompts, completions, completion_ids=None, **columns)`.

    A subclass says how one batch of texts is scored. This class checks lengths and reads messages. It ignores the other
    arguments that TRL passes (`trainer_state`, `log_extra`, `log_metric`, columns that the reward does not read). A
    reward of a module-level class can be pickled and hashed.

    Args:
        name (`str`): becomes `__name__`, which TRL logs as `rewards/<name>/mean`.

    Attributes:
        measure (`str`): the name of the mean reward as a metric, such as `"accuracy"`.
        required_columns (`tuple[str, ...]`): columns of the dataset that the reward needs.
        further_columns (`tuple[str, ...]`): columns that it reads if the dataset has them.

    Example:

    >>> class Brevity(Reward):
    ...     def score_texts(self, texts, batch):
    ...         return [1.0 if len(text) < 10 else 0.0 for text in texts]
    >>> Brevity("brevity")(prompts=["Q", "Q"], completions=["short", "not so short at all"])
    [1.0, 0.0]
    """

    measure = "score"
    required_columns: tuple[str, ...] = ()
    further_columns: tuple[str, ...] = ()

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __call__(
        self,
        prompts: Sequence[Any] | None = None,
        completions: Sequence[Any] | None = None,
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """One number per completion.

        Args:
            prompts (`Sequence`, *optional*): B prompts, strings or lists of messages.
            completions (`Sequence`): B completions, strings or lists of messages.
            completion_ids (`Sequence[Sequence[int]]`, *optional*): B lists of token ids.
            columns: columns of the dataset with B values each. Other arguments are ignored.

        Returns:
            `list[float | None]`: B numbers; `None` where the completion could not be judged.

        Raises:
            RewardError: no completions, columns of different lengths, a missing column, or an unreadable value.
        """
        if completions is None or not hasattr(completions, "__len__") or isinstance(completions, str):
            raise RewardError(
                f"{self.__name__}: completions must be a list of strings or of message lists, got {completions!r:.80}"
            )
        given = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids}
        batch = Batch(self.__name__, len(completions), {**columns, **given})
        for argument in given:
            batch.optional(argument)
        texts = [completion_text(completion, self.__name__, row) for row, completion in enumerate(completions)]
        return self.score_texts(texts, batch)

    @abstractmethod
    def score_texts(self, texts: list[str], batch: Batch) -> list[float | None]:
        """The rewards of B texts.

        Args:
            texts (`list[str]`): the completions, without the prompts.
            batch (`Batch`): everything else.
        """

    def check_available(self) -> None:  # noqa: B027 (most rewards need nothing)
        """Raises `RewardUnavailableError` if something that the reward needs is not installed."""

    def with_options(self, **options: Any) -> Reward:
        """The same reward with other options of its class, such as `lexicon` of `SentimentReward`.

        Raises:
            RewardError: the class has no such option.
        """
        known = list(_options(type(self)))
        unknown = sorted(set(options) - set(known))
        if unknown:
            hint = nearest(unknown[0], known) if known else "it has no options"
            raise RewardError(f"{unknown[0]} is not an option of {self.__name__}: {hint}")
        return type(self)(name=self.__name__, **options)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.__name__}>"


def _options(kind: type) -> Iterator[str]:
    """The names of a class's options, with those that it passes on to its base as `**keywords`."""
    for each in kind.__mro__:
        parameters = inspect.signature(each).parameters.values() if "__init__" in vars(each) else ()
        yield from (part.name for part in parameters if part.name != "name" and part.kind is not part.VAR_KEYWORD)
        if parameters and all(part.kind is not part.VAR_KEYWORD for part in parameters):
            return


@dataclass(frozen=True)
class Batch:
    """The columns of one call.

    Args:
        reward (`str`): name of the reward, for messages.
        size (`int`): B.
        columns (`dict`): every argument of the call.
    """

    reward: str
    size: int
    columns: Mapping[str, Any]

    def required(self, name: str) -> Sequence[Any]:
        """A column that must be there."""
        column = self.optional(name)
        if column is None:
            given = sorted(key for key, value in self.columns.items() if value is not None)
            raise RewardError(
                f"{self.reward}: the column {name!r} is missing; the columns given are {', '.join(given) or 'none'}. "
                f"If the dataset has a column {name!r}, the trainer removed it: set remove_unused_columns=False. If it "
                f"has the values under another name, rename that column (`dataset.rename_column`)"
            )
        return column

    def optional(self, name: str) -> Sequence[Any] | None:
        """A column that may be missing; if it is there, it has one value per completion."""
        column = self.columns.get(name)
        if column is None:
            return None
        if isinstance(column, str) or not hasattr(column, "__len__") or not hasattr(column, "__getitem__"):
            raise RewardError(
                f"{self.reward}: {name} must be a list with one value per completion, got {column!r:.80}; "
                f"repeat a value that is the same for all"
            )
        if len(column) != self.size:
            raise RewardError(
                f"{self.reward}: {name} has {len(column)} values for {self.size} completions; give one per completion"
            )
        return column

    def row(self, index: int, names: Sequence[str]) -> dict[str, Any]:
        """The values of one row in those of the columns that are there."""
        columns = {name: self.optional(name) for name in names}
        return {
            name: column[index] for name, column in columns.items() if column is not None and column[index] is not None
        }


def completion_text(completion: Any, reward: str = "reward", row: int = 0) -> str:
    """The text of a completion: the string itself, or the content of the last message of the assistant.

    The text parts of a list of parts are joined. A message without content (a tool call only) and an empty list of
    messages give an empty text.

    Args:
        completion (`str` or `list[dict]`): as TRL passes it.
        reward (`str`), row (`int`): for messages.

    Raises:
        RewardError: something else.

    Example:

    >>> completion_text([{"role": "assistant", "content": [{"type": "text", "text": "B"}]}])
    'B'
    """
    if isinstance(completion, str):
        return completion
    messages = [completion] if isinstance(completion, Mapping) else completion
    text = _last_text(messages) if _is_list_of(messages, Mapping) else None
    if text is None:
        raise RewardError(
            f"{reward}: completion {row} is {completion!r:.120}; expected a string, or a list of messages of which at "
            f"least one has the role 'assistant' and a content that is a string or a list of parts"
        )
    return text


def _last_text(messages: Sequence[Mapping[str, Any]]) -> str | None:
    """The text of the assistant's last message; `None` if it has none or its content is of another kind."""
    own = [message for message in messages if message.get("role", "assistant") == "assistant"]
    if messages and not own:
        return None
    content = own[-1].get("content") or "" if own else ""
    parts = [content] if isinstance(content, str) else content
    if not _is_list_of(parts, str | Mapping):
        return None
    texts = [part if isinstance(part, str) else part.get("text") or "" for part in parts]
    return "".join(texts) if _is_list_of(texts, str) else None


def _is_list_of(value: Any, kind: Any) -> bool:
    return isinstance(value, Sequence) and all(isinstance(each, kind) for each in value)


def name_of(reward: Any) -> str:
    """The name under which TRL logs a reward: its `__name__`, that of a `partial`'s function, or its class's.

    Example:

    >>> name_of(partial(len)), name_of(3)
    ('len', 'int')
    """
    reward = _unwrapped(reward)
    return str(getattr(reward, "__name__", type(reward).__name__))


def is_async(reward: Any) -> bool:
    """Whether calling a reward gives a coroutine: an `async def`, an object with an async `__call__`, or a `partial`.

    Example:

    >>> is_async(len)
    False
    """
    reward = _unwrapped(reward)
    return inspect.iscoroutinefunction(reward) or inspect.iscoroutinefunction(getattr(reward, "__call__", None))  # noqa: B004


def columns_of(reward: Any) -> set[str]:
    """The columns of the dataset that a reward is known to read: those it declares and the names of its arguments.

    Example:

    >>> sorted(columns_of(lambda completions, answer, **columns: [1.0]))
    ['answer', 'columns', 'completions']
    """
    declared = (*getattr(reward, "required_columns", ()), *getattr(reward, "further_columns", ()))
    return {*declared, *inspect.signature(reward).parameters}


def _unwrapped(reward: Any) -> Any:
    while isinstance(reward, partial):
        reward = reward.func
    return reward
