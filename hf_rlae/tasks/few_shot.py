"""Worked examples in front of a question, never the question itself."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass, field
from typing import Any

from hf_rlae.errors import ConfigError, TaskError
from hf_rlae.tasks.definition import Example, Shot

logger = logging.getLogger(__name__)


@dataclass
class ShotPool:
    """Shots for all questions of a load, drawn once, so that prompts share their beginning.

    A question that is among its own shots gets the next one in its place.

    Args:
        num_shots (`int`): for each question.
        label (`str`): where they come from, for messages.
        group (`str`, *optional*): a column; shots have the same value in it as the question.
    """

    num_shots: int
    label: str
    group: str | None = None
    _by_group: dict[Any, dict[str, Example]] = field(default_factory=dict)

    @property
    def is_full(self) -> bool:
        """Whether no further examples are needed: one more than shots, and no groups that are still to come."""
        return self.group is None and len(self._by_group.get(None, {})) > self.num_shots

    def add(self, example: Example) -> None:
        """Puts an example into its group, unless the same question is there, or it has no reply to show."""
        if not example.reply:
            return
        examples = self._by_group.setdefault(self._group_of(example), {})
        if len(examples) <= self.num_shots:
            examples.setdefault(_key(example), example)

    def shots(self, example: Example, place: str) -> list[Shot]:
        """The shots of one question.

        Raises:
            TaskError: there are too few.
        """
        group = self._group_of(example)
        others = [each for key, each in self._by_group.get(group, {}).items() if key != _key(example)]
        if len(others) < self.num_shots:
            of = f" with the {self.group} of this question" if self.group else ""
            raise TaskError(
                f"{place}: num_few_shot={self.num_shots}, but {self.label} has {len(others)} other questions{of}; ask "
                "for fewer, or name another split by few_shot_split="
            )
        return [(each.body or each.question, each.reply) for each in others[: self.num_shots]]

    def _group_of(self, example: Example) -> Any:
        return None if self.group is None else example.columns.get(self.group)


def _key(example: Example) -> str:
    return " ".join(example.question.split()).casefold()


def shuffled(count: int, purpose: str, seed: int) -> list[int]:
    """The numbers 0 .. count - 1 in an order that depends on the seed alone; the same for the same arguments."""
    order = list(range(count))
    random.Random(f"{purpose} {seed}").shuffle(order)
    return order


def checked_num_few_shot(given: int | None, customary: int) -> int:
    """The number of shots, or a `ConfigError`; `None` stands for the customary number."""
    number = customary if given is None else given
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ConfigError(f"num_few_shot={given!r}: expected a number from 0, or None for the task's own")
    return number
