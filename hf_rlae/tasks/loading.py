"""`load_task`: a split of a task as a `datasets.Dataset`."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_rlae.errors import ConfigError, nearest
from hf_rlae.tasks.definition import Example, Task, checked_format, checked_template, tasks
from hf_rlae.tasks.few_shot import ShotPool, checked_num_few_shot
from hf_rlae.tasks.reading import Reader
from hf_rlae.tasks.sources import Source

if TYPE_CHECKING:
    from datasets import Dataset


def get_task(name: str) -> Task:
    """A task by name.

    Raises:
        ConfigError: there is none; the message names the nearest.

    Example:

    >>> get_task("gsm8k").reward
    'gsm8k'
    """
    return tasks[name]


def list_tasks() -> list[Task]:
    """All tasks, by name.

    Example:

    >>> [task.name for task in list_tasks() if task.reward is None]
    ['mbpp']
    """
    return [tasks[name] for name in tasks]


def load_task(
    name: str,
    split: str,
    source: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    *,
    config: str | None = None,
    revision: str | None = None,
    columns: Mapping[str, str | Sequence[str]] | None = None,
    prompt_format: str | None = None,
    template: str | None = None,
    num_few_shot: int | None = 0,
    few_shot_split: str | None = None,
    **options: Any,
) -> Dataset:
    """One split of a task, ready for a trainer: prompts, answers and what the reward needs.

    All rows that are taken are checked, and one that cannot be used is an error: nothing is loaded then.

    Args:
        name (`str`): of the task.
        split (`str`): of the source, such as `"train"` or `"test"`.
        source (`str` or `Path`, *optional*): a JSON, JSONL, CSV or Parquet file, a folder of such files that are named
            after splits, a Hub id, or `"built_in"` for the few examples that come with the task. By default the task's
            Hub id. Files are read without a network.
        limit (`int`, *optional*): at most so many rows, drawn by the seed: the rows are shuffled and the first are
            taken, so that a smaller limit gives the beginning of a larger one. Without it the source's order stays.
        seed (`int`, defaults to 0): of that draw, of the shots, and of the order of options where a task shuffles them.
        config (`str`, *optional*), revision (`str`, *optional*): on the Hub, in the place of the task's own.
        columns (`Mapping[str, str | Sequence[str]]`, *optional*): the source's column, or columns, for a field.
        prompt_format (`str`, *optional*): `"conversational"` for lists of messages, `"standard"` for strings; the
            task's own by default.
        template (`str`, *optional*): in the place of the task's own, with `{question}` in it.
        num_few_shot (`int`, *optional*, defaults to 0): worked examples in front of each question; `None` for the
            task's customary number.
        few_shot_split (`str`, *optional*): the split of the same source that they come from, or `"built_in"`. By
            default the task's own; where the source lacks it, or is one file that does not say which split it holds,
            the examples that come with the task.
        **options: the task's own, see `Task.options`.

    Returns:
        `datasets.Dataset`: with the columns `Task.column_names`, in memory.

    Raises:
        ConfigError: an unknown task or option, or a value out of range.
        ImportError: `datasets` is not installed.
        TaskError: the source, its columns or one of its rows cannot be used.

    Example:

    >>> row = load_task("gsm8k", "test", source="built_in", limit=1, prompt_format="standard")[0]
    >>> row["prompt"]
    'Question: There are 4 cars with 3 people each...
    >>> row["answer"]
    '10'
    """
    task = get_task(name)
    if importlib.util.find_spec("datasets") is None:
        raise ImportError("load_task needs the package datasets: pip install 'hf_rlae[train]'")
    _check_numbers(limit, seed)
    checked_format(prompt_format or task.prompt_format)
    if template is not None:
        checked_template(template)
    num_shots = checked_num_few_shot(num_few_shot, task.num_few_shot)
    for option in options:
        if option not in task.options:
            known = nearest(option, task.options) if task.options else "it has none."
            raise ConfigError(f"{option}: the task {name!r} has no such option; {known}")
    if task.generate is not None and (source, config, revision, columns) != (None,) * 4:
        raise ConfigError(f"the task {name!r} makes its own questions: leave source, config, revision and columns out")
    for field in columns or {}:
        if field not in task.fields:
            raise ConfigError(f"columns: the task {name!r} reads no {field!r}; {nearest(str(field), task.fields)}")
    reader = Reader(task, Source(task, source, config, revision), columns or {}, {**task.options, **options}, seed)
    placed = reader.read(split, limit)
    pool = reader.shot_pool(few_shot_split, num_shots) if num_shots else ShotPool(0, "")
    prompts = [
        task.build_prompt(example, pool.shots(example, place), prompt_format, template) for place, example in placed
    ]
    return _dataset(task, prompts, [example for _, example in placed])


def _check_numbers(limit: int | None, seed: int) -> None:
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ConfigError(f"limit={limit!r}: expected a number from 1, or None for all rows")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ConfigError(f"seed={seed!r}: expected an int")


def _dataset(task: Task, prompts: Sequence[Any], examples: Sequence[Example]) -> Dataset:
    import datasets

    def feature(kind: str | list[str]) -> Any:
        return datasets.Value(kind) if isinstance(kind, str) else datasets.List(datasets.Value(kind[0]))

    messages = datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")})
    data: dict[str, list[Any]] = {
        "prompt": list(prompts),
        "question": [example.question for example in examples],
        "answer": [example.answer for example in examples],
    }
    features = {
        "prompt": datasets.Value("string") if isinstance(prompts[0], str) else messages,
        "question": datasets.Value("string"),
        "answer": datasets.Value("string"),
    }
    for name, kind in task.extra_columns.items():
        data[name] = [example.columns[name] for example in examples]
        features[name] = feature(kind)
    return datasets.Dataset.from_dict(data, features=datasets.Features(features))
