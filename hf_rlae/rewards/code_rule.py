"""The rules for programs that must pass tests: `mbpp`, `humaneval`.

The program is found by `hf_rlae.rewards.code_part`. It runs in a sandbox (`hf_rlae.rewards.sandbox`), and its tests in
another one, which calls its functions with plain data and compares what comes back: 1.0 if all tests pass, 0.0 if not,
and `None` if the program could not be judged, because its worker was killed from outside or did not start.

* `mbpp`: the column `test_list` holds statements, usually asserts; `test_setup_code` (optional) runs before them. The
  column `answer` (optional) holds a right program, which is not run: its imports, and the names that it defines, say
  what the tests may use; see `hf_rlae.rewards.sandbox.used_names`.
* `humaneval`: the column `test` defines `check(candidate)`, which is called with the function that the column
  `entry_point` names. The column `starter_code` holds the beginning of the program; without it, prompts that are
  strings do. The completion is the rest of the program or all of it. What the beginning defines beside the function is
  taken from there in the tests: a completion cannot replace it.

Source: MBPP (arXiv 2108.07732), HumanEval (arXiv 2107.03374); the separation of program and tests is ours.
"""

from __future__ import annotations

import textwrap
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any

from hf_rlae.checks import check_choice
from hf_rlae.errors import RewardError
from hf_rlae.rewards.answer_part import ANSWER_DELIMITERS, Delimiters, Graded, check_delimiters
from hf_rlae.rewards.code_part import find_programs
from hf_rlae.rewards.contract import Batch
from hf_rlae.rewards.registry import rewards
from hf_rlae.rewards.rule import Row, TextRule
from hf_rlae.rewards.sandbox.judge import Job, Verdict, judge_all
from hf_rlae.rewards.sandbox.limits import SandboxLimits
from hf_rlae.rewards.sandbox.pool import Sandbox
from hf_rlae.rewards.sandbox.used_names import UsedNames, used_names

_UNTESTED, _EMPTY = Verdict(None, "there are no tests"), Verdict(False, "there is no program")
_cached_names = lru_cache(maxsize=1024)(used_names)  # the same tests come with all completions of a prompt


class CodeReward(TextRule):
    """1.0 if the program of a completion passes its tests, else 0.0; `None` if it could not be judged.

    Several threads may call one object. The sandbox starts with the first call, and ends with the reward or with the
    Python process.

    Args:
        name (`str`): its `__name__`.
        limits (`SandboxLimits` or `dict`, *optional*): what a program may use, such as `{"cpu_s": 5}`.
        backend (`str`, *optional*), unsafe (`bool`, defaults to `False`): see `hf_rlae.rewards.sandbox.pool.Sandbox`.
        answer_delimiters (sequence of pairs of `str`, *optional*): tags around the answer, as for `AnswerRule`.
        reading: the options of `TextRule`.

    Raises:
        ConfigError: an option is invalid.
        SandboxUnavailableError: when called, if this machine has no sandbox, or its workers fail too often.
    """

    measure = "pass@1"

    def __init__(
        self,
        name: str,
        *,
        limits: SandboxLimits | Mapping[str, Any] | None = None,
        backend: str | None = None,
        unsafe: bool = False,
        answer_delimiters: Delimiters = ANSWER_DELIMITERS,
        **reading: Any,
    ) -> None:
        super().__init__(name, **reading)
        self.answer_delimiters = check_delimiters("answer_delimiters", answer_delimiters)
        self._options = (_limits(limits), backend, unsafe)
        self._sandbox = Sandbox(*self._options)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_sandbox"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _sandbox=Sandbox(*state["_options"]))

    def check_available(self) -> None:
        """See `Reward.check_available`."""
        _ = self._sandbox.backend

    def score_parts(self, parts: list[Graded], batch: Batch) -> list[float | None]:
        """See `TextRule.score_parts`."""
        return [None if each.passed is None else float(each.passed) for each in self.judge_parts(parts, batch)]

    def judge_parts(self, parts: Sequence[Graded], batch: Batch) -> list[Verdict]:
        """The verdicts on the graded parts of B completions, with reasons.

        Raises:
            RewardError: the tests of a row cannot be read; before any program is run.
            SandboxUnavailableError: there is no sandbox, or its workers fail too often.
        """
        for name in self.required_columns:
            batch.required(name)
        columns = (*self.required_columns, *self.further_columns, "prompts")
        tests = [self.tests_of(Row(self.__name__, at, batch.row(at, columns))) for at in range(len(parts))]
        jobs = {
            at: replace(test, programs=tuple(self.programs_of(find_programs(part.text, self.answer_delimiters), test)))
            for at, (part, test) in enumerate(zip(parts, tests, strict=True))
            if test is not None and part.text.strip()
        }
        found = dict(zip(jobs, judge_all(self._sandbox, list(jobs.values())), strict=True))
        return [found.get(at, _UNTESTED if test is None else _EMPTY) for at, test in enumerate(tests)]

    def programs_of(self, found: list[str], tests: Job) -> list[str]:
        """The texts that may be the whole program, of those in the completion; the first that is Python is run."""
        return found

    @abstractmethod
    def tests_of(self, row: Row) -> Job | None:
        """The tests of a row, without a program; `None` if it has none."""


class MbppReward(CodeReward):
    """1.0 if a program passes the statements of `test_list`; see the module's docstring and `CodeReward`.

    Args:
        name (`str`, defaults to `"mbpp_reward"`), options: see `CodeReward`.

    Example:

    ```py
    reward = get_reward("mbpp", limits={"cpu_s": 5})
    texts = ["def double(n): return 2 * n", "def double(n): return 8"]
    reward(completions=texts, test_list=[["assert double(4) == 8", "assert double(0) == 0"]] * 2)  # [1.0, 0.0]
    ```
    """

    required_columns = ("test_list",)
    further_columns = ("test_setup_code", "answer")

    def __init__(self, name: str = "mbpp_reward", **options: Any) -> None:
        super().__init__(name, **options)

    def tests_of(self, row: Row) -> Job | None:
        """See `CodeReward.tests_of`."""
        given = row.columns.get("test_list")
        if given is None:
            return None
        tests = [] if isinstance(given, str) or not isinstance(given, Sequence) else list(given)
        setup = _text(row, "test_setup_code") or ""
        if not tests or not all(isinstance(test, str) and test.strip() for test in tests):
            raise row.unreadable(given, "a list of statements, such as ['assert f(1) == 2']", "test_list")
        try:
            names = _cached_names("\n".join([setup, *tests]), _text(row, "answer"))
        except RewardError as error:
            raise row.unreadable(given, f"tests of a program ({error})", "test_list") from None
        return Job((), tuple(filter(None, [setup.strip(), *tests])), names)


class HumanEvalReward(CodeReward):
    """1.0 if a program passes `check` of `test`; see the module's docstring and `CodeReward`.

    Args:
        name (`str`, defaults to `"humaneval_reward"`), options: see `CodeReward`.
    """

    required_columns = ("test", "entry_point")
    further_columns = ("starter_code",)

    def __init__(self, name: str = "humaneval_reward", **options: Any) -> None:
        super().__init__(name, **options)

    def tests_of(self, row: Row) -> Job | None:
        """See `CodeReward.tests_of`."""
        test, function = _text(row, "test"), _text(row, "entry_point")
        if test is None or function is None:
            return None
        if "check" not in test:
            raise row.unreadable(test, "a text that defines check(candidate)", "test")
        if not function.isidentifier():
            raise row.unreadable(function, "the name of a function", "entry_point")
        prompt = row.columns.get("prompts")
        starter = _text(row, "starter_code") or (prompt if isinstance(prompt, str) else "")
        whole = f"{starter.rstrip()}\n    pass\n"  # the docstring may be missing
        return Job((), (test, f"check({function})"), UsedNames((function,)), (whole,))

    def programs_of(self, found: list[str], tests: Job) -> list[str]:
        """See `CodeReward.programs_of`: the completion continues the program, or is all of it."""
        start = tests.preludes[0].removesuffix("    pass\n")
        forms = ("{}", "    {}")  # the first line may have lost its indentation
        continued = [start + form.format(text) for text in found for form in forms]
        return [*continued, *(start + textwrap.indent(text, "    ") for text in found), *found]


def _limits(given: SandboxLimits | Mapping[str, Any] | None) -> SandboxLimits:
    if isinstance(given, Mapping):
        known = [each.name for each in fields(SandboxLimits)]
        for name in given:
            check_choice("a key of limits", name, known)
        return SandboxLimits(**given)
    return given or SandboxLimits()


def _text(row: Row, column: str) -> str | None:
    found = row.columns.get(column)
    if found is not None and not isinstance(found, str):
        raise row.unreadable(found, "a string", column)
    return found


rewards.register("mbpp")(MbppReward())
rewards.register("humaneval")(HumanEvalReward())
