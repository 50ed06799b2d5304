"""What rules share: they read the part of a completion that `hf_rlae.rewards.answer_part` finds."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hf_rlae.errors import RewardError
from hf_rlae.rewards.answer_part import (
    ANSWER_DELIMITERS,
    REASONING_DELIMITERS,
    Delimiters,
    Graded,
    check_delimiters,
    graded_part,
)
from hf_rlae.rewards.contract import Batch, Reward


class TextRule(Reward):
    """A reward that grades what follows the reasoning of a completion. Reasoning that never ends gives 0.0.

    Args:
        name (`str`): its `__name__`.
        reasoning_delimiters (sequence of pairs of `str`, *optional*): what begins and ends reasoning, without case; by
            default `<think>`, `[THINK]` and others, see `hf_rlae.rewards.answer_part.REASONING_DELIMITERS`. `[]` grades
            reasoning too.
        prompt_opens_reasoning (`bool`, defaults to `False`): the prompt ends with an opening delimiter, as with the
            chat templates of some reasoning models. A completion without a closing one is then unfinished: 0.0.

    Raises:
        ConfigError: delimiters that are not pairs of strings.

    Example:

    >>> class Brevity(TextRule):
    ...     def score_parts(self, parts, batch):
    ...         return [1 / (1 + len(part.text)) for part in parts]
    >>> Brevity("brevity")(completions=["<think>long, long</think>abc", "abc", "<think>abc"])
    [0.25, 0.25, 0.0]
    """

    def __init__(
        self,
        name: str,
        *,
        reasoning_delimiters: Delimiters = REASONING_DELIMITERS,
        prompt_opens_reasoning: bool = False,
    ) -> None:
        super().__init__(name)
        self.reasoning_delimiters = check_delimiters("reasoning_delimiters", reasoning_delimiters)
        self.answer_delimiters: Delimiters = ()
        self.prompt_opens_reasoning = prompt_opens_reasoning

    def score_texts(self, texts: list[str], batch: Batch) -> list[float | None]:
        """See `Reward.score_texts`."""
        options = (self.reasoning_delimiters, self.answer_delimiters, self.prompt_opens_reasoning)
        found = [graded_part(text, *options, self._is_answer(batch, row)) for row, text in enumerate(texts)]
        scores = self.score_parts([part or Graded("") for part in found], batch)
        return [0.0 if part is None and score is not None else score for part, score in zip(found, scores, strict=True)]

    def _is_answer(self, batch: Batch, row: int) -> Callable[[str], bool] | None:
        return None

    @abstractmethod
    def score_parts(self, parts: list[Graded], batch: Batch) -> list[float | None]:
        """The rewards of the graded parts of B completions; `None` where one cannot be judged."""


class AnswerRule(TextRule):
    """A reward that looks for an answer: a next question that the completion invents does not count.

    Args:
        name (`str`): its `__name__`.
        answer_delimiters (sequence of pairs of `str`, *optional*): tags around the answer, without case; by default
            `<answer>` and others, see `hf_rlae.rewards.answer_part.ANSWER_DELIMITERS`.
        reading: the options of `TextRule`.
    """

    measure = "accuracy"
    required_columns: tuple[str, ...] = ("answer",)

    def __init__(self, name: str, *, answer_delimiters: Delimiters = ANSWER_DELIMITERS, **reading: Any) -> None:
        super().__init__(name, **reading)
        self.answer_delimiters = check_delimiters("answer_delimiters", answer_delimiters)

    def may_answer(self, text: str, batch: Batch, row: int) -> bool:
        """Whether a text of a row may hold an answer, right or wrong: a question that follows it is a next one then.

        Args:
            text (`str`): what stands before the question.
            batch (`Batch`), row (`int`): where.
        """
        return bool(text.strip())

    def _is_answer(self, batch: Batch, row: int) -> Callable[[str], bool]:
        return lambda text: self.may_answer(text, batch, row)


class RuleReward(AnswerRule):
    """A reward that reads an answer from the completion and compares it with the one in the column `answer`.

    It returns 1.0 for a right answer, 0.0 for a wrong one or none, and `None` where `answer` is `None`. The ground
    truth of the whole batch is read before any completion is.

    Args:
        name (`str`): its `__name__`.
        reading: the options of `AnswerRule`.

    Example:

    >>> class Shout(RuleReward):
    ...     def reference(self, answer, row):
    ...         return str(answer).upper()
    ...     def is_right(self, text, reference, row):
    ...         return text == reference
    >>> Shout("shout")(prompts=["", "", ""], completions=["A", "a", "A"], answer=["a", "a", None])
    [1.0, 0.0, None]
    """

    def score_parts(self, parts: list[Graded], batch: Batch) -> list[float | None]:
        """See `TextRule.score_parts`."""
        # scalars of numpy and torch become Python's
        answers = [answer.item() if hasattr(answer, "item") else answer for answer in batch.required("answer")]
        rows = [
            Row(self.__name__, at, batch.row(at, self.further_columns), part.is_marked) for at, part in enumerate(parts)
        ]
        references = [
            None if answer is None else self.reference(answer, row) for answer, row in zip(answers, rows, strict=True)
        ]
        return [
            None if answer is None else float(self.is_right(part.text, reference, row))
            for part, answer, reference, row in zip(parts, answers, references, rows, strict=True)
        ]

    @abstractmethod
    def reference(self, answer: Any, row: Row) -> Any:
        """The ground truth in the form that `is_right` compares with; raise `row.unreadable` if it cannot be read."""

    @abstractmethod
    def is_right(self, text: str, reference: Any, row: Row) -> bool:
        """Whether a text gives this answer. It must not raise, whatever the text."""


@dataclass(frozen=True)
class Row:
    """What a rule may know about one row of the batch.

    Args:
        reward (`str`): name of the reward, for messages.
        index (`int`): of the row in the batch.
        columns (`dict`): those of the rule's further columns that are there and not `None`.
        is_marked (`bool`, defaults to `False`): whether the text is the content of an answer tag, on one line.
    """

    reward: str
    index: int
    columns: Mapping[str, Any]
    is_marked: bool = False

    def unreadable(self, value: Any, expected: str, column: str = "answer") -> RewardError:
        """The error for a ground truth that the rule cannot read."""
        return RewardError(
            f"{self.reward}: row {self.index} of the batch has {column}={value!r:.120}; expected {expected}, "
            f"or None where the row cannot be judged"
        )
