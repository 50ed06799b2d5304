"""The questions of an evaluation: rows of a task or of a dataset, in the form in which they are scored."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase as LETTERS
from typing import Any

from hf_rlae.errors import ConfigError, InputError
from hf_rlae.members.fingerprint import digest_of
from hf_rlae.rewards import RewardUnavailableError, get_reward
from hf_rlae.rewards.contract import name_of
from hf_rlae.tasks import Example, Task, get_task, load_task

SCORINGS = ("generate", "choices", "bits_per_byte")
OPTION_FORMS = ("text", "letter")
CONTEXT_CHARACTERS = 12
"""Characters of a text that are given, before its bits are counted."""

_TEXT_COLUMNS = ("text", "solution", "question")

Prompt = str | list[dict[str, str]]


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        key (`str`): a digest of all that follows, under which its result is kept.
        prompt (`str` or `list[dict]`): what is continued: a text, or messages.
        columns (`Mapping[str, Any]`): of the row, for the reward.
        completions (`tuple[str, ...]`): what is scored by likelihood: the options, or the rest of a text.
        sizes (`tuple[int, ...]`): bytes of each completion, without the space before it.
        right (`int`, *optional*): the index of the right option.
    """

    key: str
    prompt: Prompt
    columns: Mapping[str, Any]
    completions: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    right: int | None = None

    @property
    def length(self) -> int:
        """Characters of all that is read, by which questions are sorted into batches."""
        given = self.prompt if isinstance(self.prompt, str) else "".join(str(m.get("content")) for m in self.prompt)
        return len(given) + max(map(len, self.completions), default=0)


@dataclass(frozen=True)
class Questions:
    """The questions of one task.

    Attributes:
        name (`str`): of the task.
        scoring (`str`): one of `SCORINGS`.
        rows (`Sequence[Question]`): the questions.
        reward (callable, *optional*): judges completions, if they are generated.
        metric (`str`): `"accuracy"`, the measure of the reward, or `"bits per byte"`.
        source (`str`): where they come from, for people.
    """

    name: str
    scoring: str
    rows: Sequence[Question]
    reward: Callable[..., Any] | None
    metric: str
    source: str

    @property
    def lower_is_better(self) -> bool:
        """Whether a smaller value of the metric is the better one."""
        return self.scoring == "bits_per_byte"


@dataclass(frozen=True)
class Reading:
    """How rows become questions.

    Args:
        scoring (`str`, defaults to `"generate"`): `"generate"` writes a completion that the reward judges, `"choices"`
            takes the most likely option, `"bits_per_byte"` measures the likelihood of texts.
        reward (`str` or callable, *optional*): for `"generate"`; the task's own by default.
        option_form (`str`, defaults to `"text"`): for `"choices"`: the options' texts after the question alone, or
            `"letter"`, their letters after a question that lists them.
        text_column (`str`, *optional*): for `"bits_per_byte"`: the column of the text; by default the first of `text`,
            `solution` and `question` that there is.
    """

    scoring: str = "generate"
    reward: str | Callable[..., Any] | None = None
    option_form: str = "text"
    text_column: str | None = None

    def read(
        self,
        name: str,
        given: Any,
        split: str,
        source: Any,
        limit: int | None,
        seed: int,
        options: Mapping[str, Any],
        judge: str | None = None,
    ) -> Questions:
        """The questions of a task by name, of a dataset, or of a list of rows, which the task `judge` may judge.

        Raises:
            ConfigError, TaskError: a task that cannot be loaded, or that cannot be scored in this way.
            InputError: rows that lack a column.
        """
        if isinstance(given, str):
            task = get_task(given)
            rows = load_task(given, split, source, limit, seed, **self._with_format(task, options))
            return self._made(name, list(rows), task, f"split {split!r} of {source or task.default_source or name}")
        if options or source is not None:
            extra = ", ".join([*options, *(["source"] if source is not None else [])])
            raise ConfigError(f"{extra}: {name} is given as rows, not by the name of a task; leave it out")
        rows = [{"text": row} if isinstance(row, str) else dict(row) for row in given]
        judged_by = get_task(judge) if judge is not None and self.scoring == "generate" else None
        return self._made(name, rows[:limit], judged_by, "given rows")

    def _with_format(self, task: Task, options: Mapping[str, Any]) -> dict[str, Any]:
        if self.scoring == "choices" and self.option_form == "text" and options.get("num_few_shot"):
            raise ConfigError(
                "num_few_shot: worked examples list options and answer with letters, so they do not fit questions "
                'whose options are scored by their texts; give option_form="letter", or leave num_few_shot out'
            )
        default = None if self.scoring == "generate" else "standard"
        return {"prompt_format": default, **options}

    def _made(self, name: str, rows: list[dict[str, Any]], task: Task | None, source: str) -> Questions:
        if not rows:
            raise InputError(f"{name} has no rows; give at least one question")
        make = {"generate": self._prompted, "choices": self._chosen, "bits_per_byte": self._scored}[self.scoring]
        parts = [make(row, task, f"row {at} of {name}") for at, row in enumerate(rows)]
        kinds = {isinstance(part["prompt"], str) for part in parts}
        if len(kinds) > 1:
            raise InputError(f"{name}: some prompts are texts and some are messages; give all in one form")
        reward, metric = self._judge(name, task)
        return Questions(name, self.scoring, list(_with_keys(parts)), reward, metric, source)

    def _judge(self, name: str, task: Task | None) -> tuple[Callable[..., Any] | None, str]:
        if self.scoring != "generate":
            return None, "accuracy" if self.scoring == "choices" else "bits per byte"
        given = self.reward if self.reward is not None or task is None else task.reward
        if given is None and task is not None:
            raise RewardUnavailableError(f"the task {name!r} has no reward: {task.reward_note}; give reward=")
        if given is None:
            raise ConfigError(f"{name}: rows without a task need a reward that judges completions; give reward=")
        reward = get_reward(given) if isinstance(given, str) else given
        return reward, str(getattr(reward, "measure", name_of(reward)))

    def _prompted(self, row: dict[str, Any], task: Task | None, place: str) -> dict[str, Any]:
        prompt = _column(row, "prompt", place)
        return {"prompt": prompt, "columns": {key: value for key, value in row.items() if key != "prompt"}}

    def _chosen(self, row: dict[str, Any], task: Task | None, place: str) -> dict[str, Any]:
        options = [str(option) for option in _column(row, "choices", place)]
        right = _right_option(_column(row, "answer", place), options, place)
        if self.option_form == "letter":
            prompt, options = _column(row, "prompt", place), list(LETTERS[: len(options)])
        elif task is not None:
            prompt = task.build_prompt(Example(row["question"], "", ""), (), "standard")
        else:
            prompt = _column(row, "prompt", place)
        gap = " " if isinstance(prompt, str) and not prompt[-1:].isspace() else ""
        if not all(options):
            raise InputError(f"{place} has an option without text, whose likelihood is not defined; leave the row out")
        return {
            "prompt": prompt,
            "columns": {},
            "completions": tuple(gap + option for option in options),
            "sizes": tuple(len(option.encode("utf-8", "surrogatepass")) for option in options),
            "right": right,
        }

    def _scored(self, row: dict[str, Any], task: Task | None, place: str) -> dict[str, Any]:
        names = [self.text_column] if self.text_column is not None else [key for key in _TEXT_COLUMNS if row.get(key)]
        text = str(_column(row, names[0] if names else "text", place))
        # whole words, so that no token of any member lies across the cut
        cut = next((at for at in range(CONTEXT_CHARACTERS, len(text)) if text[at].isspace()), None)
        if cut is None:
            raise InputError(
                f"{place}: the text {text[:40]!r} has nothing after its first {CONTEXT_CHARACTERS} characters and the "
                "word that they end in; leave it out"
            )
        size = len(text[cut:].encode("utf-8", "surrogatepass"))
        return {"prompt": text[:cut], "columns": {}, "completions": (text[cut:],), "sizes": (size,)}


def named_tasks(given: Any) -> dict[str, Any]:
    """Tasks by the name under which the table has them.

    Args:
        given: the name of a task, a list of names, a dataset or a list of rows, or a mapping of names to these.

    Raises:
        ConfigError: none, or something else.
    """
    if isinstance(given, str):
        return {given: given}
    if isinstance(given, Mapping) and given:
        return {str(name): entry for name, entry in given.items()}
    if hasattr(given, "column_names") and isinstance(given.column_names, list):
        return {"dataset": given}
    if isinstance(given, Sequence) and len(given):
        if all(isinstance(entry, str) for entry in given):
            return {name: name for name in given}
        if all(isinstance(entry, Mapping) for entry in given):
            return {"dataset": given}
    raise ConfigError(
        f"task={given!r:.80}: give the name of a task, a list of names, a dataset, a list of rows, or a dict of names "
        "to these"
    )


def source_of(name: str, source: Any) -> Any:
    """The source of one task: `source` is one for all tasks, or a mapping by task."""
    return source.get(name) if isinstance(source, Mapping) else None if source is None else os.fspath(source)


def _column(row: Mapping[str, Any], name: str, place: str) -> Any:
    value = row.get(name)
    if value is None or (isinstance(value, str | list) and not value):
        raise InputError(f"{place} has no {name!r}; its columns are {', '.join(map(str, row))}")
    return value


def _right_option(answer: Any, options: Sequence[str], place: str) -> int:
    """The index of the right option, from its letter or its number from 0."""
    at = LETTERS.find(answer.strip().upper()) if isinstance(answer, str) and len(answer.strip()) == 1 else answer
    if isinstance(at, bool) or not isinstance(at, int) or not 0 <= at < len(options):
        raise InputError(
            f"{place}: answer={answer!r} is none of the {len(options)} options; give a letter, or 0, 1, ..."
        )
    return at


def _with_keys(parts: Iterable[dict[str, Any]]) -> Iterable[Question]:
    """Questions with different keys, also where rows are equal."""
    seen: Counter[str] = Counter()
    for part in parts:
        digest = digest_of(part)
        yield Question(f"{digest}-{seen[digest]}", **part)
        seen[digest] += 1
