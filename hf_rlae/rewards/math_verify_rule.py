r"""The rule for mathematics in LaTeX, by the package math-verify: `math_verify`.

What is read is the part of the completion that `hf_rlae.rewards.answer_part` finds, of it the last 20,000 characters.
Its answer is the expression that math-verify finds in it, by its own rules (boxes and "the answer is" first); the
content of an answer tag may be a bare expression. It is right if math-verify can show that the expression equals the
one in the column `answer`. That column holds an expression, in LaTeX or plain (`\frac{1}{2}`, `x^2 + 1`, `0.5`); if it
contains `####`, the part after the last one counts.

math-verify runs in processes of its own, because sympy may need hours for a short text, and its own time limit uses
signals, which work in the main thread only. The texts of a batch are judged in parallel, as many as there are cores and
at least four. A text that takes longer than `timeout_s`, or needs more than 4 GiB, cannot be judged: its process is
killed and replaced, and the reward is `None`. The processes start when they are first needed, and end with the reward
or with the Python process. They are forked, so the rule needs Linux or macOS.

The package comes with the extra `math` of hf_rlae.

Source: public code (math-verify); the processes are ours.
"""

from __future__ import annotations

import os
import re
from typing import Any

from hf_rlae.checks import Bounds, check_number
from hf_rlae.errors import RewardUnavailableError
from hf_rlae.extras import missing_packages
from hf_rlae.rewards.answer_part import Graded
from hf_rlae.rewards.contract import Batch
from hf_rlae.rewards.math_pool import MathPool
from hf_rlae.rewards.registry import rewards
from hf_rlae.rewards.rule import AnswerRule, Row

_LONGEST = 20_000
_MATHEMATICS = re.compile(r"[\d$\\=^]")
_NOT_BARE = re.compile(r"\$|\\boxed|\\[(\[]|(?<![\\A-Za-z{])[A-Za-z]{4,}|\d%")


class MathVerifyReward(AnswerRule):
    """1.0 if math-verify finds the expression of `answer` in a text, 0.0 if not, `None` if it cannot be judged.

    Several threads may call one object.

    Args:
        timeout_s (`float`, defaults to 2.0): seconds per text, above 0.
        name (`str`, defaults to `"math_verify_reward"`): its `__name__`.
        reading: the options of `AnswerRule`.

    Raises:
        ConfigError: `timeout_s` is out of range.
        RewardUnavailableError: when called, if math-verify is not installed or the system cannot fork.
    """

    def __init__(self, timeout_s: float = 2.0, name: str = "math_verify_reward", **reading: Any) -> None:
        super().__init__(name, **reading)
        check_number("timeout_s", timeout_s, Bounds(above=0, most=3600))
        self.timeout_s = timeout_s
        self._pool = MathPool(timeout_s)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_pool"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _pool=MathPool(state["timeout_s"]))

    def check_available(self) -> None:
        """See `Reward.check_available`."""
        if (message := missing_packages("the reward math_verify", ["math_verify"], "math")) is not None:
            raise RewardUnavailableError(message)
        if not hasattr(os, "fork"):
            raise RewardUnavailableError("math_verify needs a system that can fork processes, such as Linux or macOS")

    def may_answer(self, text: str, batch: Batch, row: int) -> bool:
        """See `AnswerRule.may_answer`."""
        return _MATHEMATICS.search(text) is not None

    def score_parts(self, parts: list[Graded], batch: Batch) -> list[float | None]:
        """See `TextRule.score_parts`."""
        answers = batch.required("answer")
        for row, answer in enumerate(answers):
            if answer is not None and (not isinstance(answer, str | int | float) or not str(answer).strip()):
                raise Row(self.__name__, row, {}).unreadable(answer, "an expression")
        self.check_available()
        asked = [row for row, answer in enumerate(answers) if answer is not None]
        pairs = [(str(answers[row]).rpartition("####")[2].strip(), _expression(parts[row])) for row in asked]
        scores: list[float | None] = [None] * len(parts)
        for row, verdict in zip(asked, self._pool.judge(pairs) if pairs else [], strict=True):
            if verdict == "unreadable":
                expected = "an expression that math-verify can read"
                raise Row(self.__name__, row, {}).unreadable(answers[row], expected)
            scores[row] = {"right": 1.0, "wrong": 0.0}.get(verdict)
        return scores


def _expression(part: Graded) -> str:
    """The text of a part, with dollars around a bare expression: without them, math-verify finds its last number."""
    text = part.text[-_LONGEST:]
    return f"${text}$" if part.is_marked and not _NOT_BARE.search(text) else text


rewards.register("math_verify")(MathVerifyReward())
