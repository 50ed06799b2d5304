"""`load_task`: a split of a task as a `datasets.Dataset`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_rlae.checks import OPTIONAL_COUNT, Bounds, check_number
from hf_rlae.errors import ConfigError, nearest
from hf_rlae.extras import missing_packages
from hf_rlae.tasks.definition import Example, Task, check_prompt, tasks
from hf_rlae.tasks.few_shot import ShotPool
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
    """All tasks, sorted by name.

    Example:

    >>> [task.name for task in list_tasks() if task.reward in ("mbpp", "humaneval")]
    ['humaneval', 'mbpp']
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
    """One split of a task, ready for a trainer: prompts, answers and the columns that the reward needs.

    Every row that is taken is checked. A row that cannot be used is an error, and nothing is loaded.

    Args:
        name (`str`): of the task.
        split (`str`): of the source, such as `"train"` or `"test"`.
        source (`str` or `Path`, *optional*): a JSON, JSONL, CSV or Parquet file, a folder of such files that are named
            after splits, a Hub id, or `"built_in"` for the few examples that come with the task. By default the task's
            Hub id. Files are read without a network.
        limit (`int`, *optional*): the maximum number of rows. The rows are shuffled by the seed and the first are
            taken, so a smaller limit gives a prefix of a larger one. By default all rows, in the order of the source.
        seed (`int`, defaults to 0): of that shuffle, of the shots, and of the order of options where a task shuffles
            them.
        config (`str`, *optional*), revision (`str`, *optional*): on the Hub; the task's own by default.
        columns (`Mapping[str, str | Sequence[str]]`, *optional*): the source's column or columns, by field.
        prompt_format (`str`, *optional*): `"conversational"` for lists of messages, `"standard"` for strings; the
            task's own by default.
        template (`str`, *optional*): replaces the task's own; contains `{question}`.
        num_few_shot (`int`, *optional*, defaults to 0): worked examples before each question; `None` for the task's
            customary number.
        few_shot_split (`str`, *optional*): the split of the same source that they come from, or `"built_in"`. By
            default the task's own. Where the source lacks it, or is one file whose name does not say which split it
            holds, the examples that come with the task are used.
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
    if (message := missing_packages("load_task", ["datasets"], "train")) is not None:
        raise ImportError(message)
    num_shots = task.num_few_shot if num_few_shot is None else num_few_shot
    check_number("seed", seed, Bounds(is_whole=True))
    check_number("num_few_shot", num_shots, Bounds(0, is_whole=True))
    check_number("limit", limit, OPTIONAL_COUNT)
    check_prompt(prompt_format or task.prompt_format, task.message if template is None else template)
    _check_known(task, "option", options, task.options)
    _check_known(task, "field", columns or {}, task.fields)
    if task.generate is not None and (source, config, revision, columns) != (None,) * 4:
        raise ConfigError(f"the task {name!r} generates its questions: leave out source, config, revision and columns")
    reader = Reader(task, Source(task, source, config, revision), columns or {}, {**task.options, **options}, seed)
    placed = reader.read(split, limit)
    pool = reader.shot_pool(few_shot_split, num_shots) if num_shots else ShotPool()
    prompts = [
        task.build_prompt(example, pool.shots(example, place), prompt_format, template) for place, example in placed
    ]
    return _dataset(task, prompts, [example for _, example in placed])


def _check_known(task: Task, kind: str, given: Iterable[str], known: Iterable[str]) -> None:
    for name in given:
        if name not in known:
            hint = nearest(str(name), known) if known else "it has none."
            raise ConfigError(f"{name}: the task {task.name!r} has no such {kind}; {hint}")


def _dataset(task: Task, prompts: Sequence[Any], examples: Sequence[Example]) -> Dataset:
    import datasets

    string = datasets.Value("string")
    messages = datasets.List({"role": string, "content": string})
    features = {"prompt": string if isinstance(prompts[0], str) else messages, "question": string, "answer": string}
    for name, kind in task.extra_columns.items():
        features[name] = datasets.Value(kind) if isinstance(kind, str) else datasets.List(datasets.Value(kind[0]))
    rows = [
        {"prompt": prompt, "question": example.question, "answer": example.answer, **example.columns}
        for prompt, example in zip(prompts, examples, strict=True)
    ]
    return datasets.Dataset.from_list(rows, features=datasets.Features(features)).select_columns([*task.column_names])
