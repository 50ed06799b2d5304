"""Worked examples that stand before a question; never the question itself."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hf_rlae.errors import TaskError
from hf_rlae.tasks.definition import Example, Shot


@dataclass
class ShotPool:
    """The shots of all questions of a load, drawn once, so that prompts share a prefix.

    A question that is among its own shots gets the next example instead.

    Args:
        num_shots (`int`): shots per question.
        label (`str`): where they come from, for messages.
        group (`str`, *optional*): a column; shots and question have the same value in it.
    """

    num_shots: int = 0
    label: str = ""
    group: str | None = None
    _by_group: dict[Any, dict[str, Example]] = field(default_factory=dict)

    def fill(self, examples: Iterable[Example]) -> ShotPool:
        """Takes examples with a reply and different questions until each group has one more than `num_shots`."""
        for example in examples:
            found = self._by_group.setdefault(self._group_of(example), {})
            if example.reply and len(found) <= self.num_shots:
                found.setdefault(_key(example), example)
            if self.group is None and len(found) > self.num_shots:
                break
        return self

    def shots(self, example: Example, place: str) -> list[Shot]:
        """The shots of one question.

        Raises:
            TaskError: there are too few.
        """
        found = self._by_group.get(self._group_of(example), {})
        others = [each for key, each in found.items() if key != _key(example)]
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
    """The numbers 0 .. count - 1 in random order; the same order for the same arguments."""
    order = list(range(count))
    random.Random(f"{purpose} {seed}").shuffle(order)  # noqa: S311 (repeatable draws, no secrets)
    return order
