"""Tables of trainings: one policy per cell, and for each row a comparison on its test questions."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hf_rlae.baselines.registry import baselines
from hf_rlae.configs import find_config
from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.errors import ConfigError, nearest
from hf_rlae.evaluation import EvaluationReport, evaluate
from hf_rlae.policies import PolicyModel, policies
from hf_rlae.tasks import get_task
from hf_rlae.trainers.runs.build import run
from hf_rlae.trainers.runs.data import check_rewards, load_rewards, load_test_rows
from hf_rlae.trainers.runs.settings import RunSettings, SettingsParser, read_config_file, read_settings

KEYS = ("rows", "columns")
HELD_OUT = "held_out"
"""The test questions of a row that are those which its training held out."""
_OF_ROWS = ("config", "test_split", "test_size")


@dataclass(frozen=True)
class TableRow:
    """One row: a task, its trainings by column, and its test questions.

    Args:
        name (`str`): of the row.
        cells (`dict[str, RunSettings]`): the settings of each training, by column.
        test_split (`str`): of the task, or `"held_out"`.
        test_size (`int`, *optional*): test questions; all by default.
        folder (`Path`): for the results of the row.
        methods (`list[str]`): policies and baselines by name, to compare with.
    """

    name: str
    cells: dict[str, RunSettings]
    test_split: str
    test_size: int | None
    folder: Path
    methods: list[str]


def read_table(arguments: Sequence[str]) -> list[TableRow] | None:
    """The rows of a table, if `--config` names one; `None` for a file of one training.

    A table is a YAML file with `rows` and `columns`. A row names the file of a training (`config`), its test questions
    (`test_split`, `test_size`), and settings that differ. A column has the settings that differ there. `methods` are
    policies and baselines by name, to compare with; other keys of the file are settings of all cells.

    Args:
        arguments (`Sequence[str]`): as for `read_settings`; and `--rows`, `--columns`, `--methods` with the names of
            some of them, `--test_size` for all rows.

    Raises:
        ConfigError: a file that is not a table, a name that it does not have, or settings that cannot be used.
    """
    own = SettingsParser(add_help=False, allow_abbrev=False)
    own.add_argument("--config")
    known, rest = own.parse_known_args(list(arguments))
    values = {} if known.config is None else dict(read_config_file(find_config(known.config)))
    if not set(KEYS) & set(values):
        return None
    for option in (*KEYS, "methods"):
        own.add_argument(f"--{option}", nargs="+")
    own.add_argument("--output_dir", "--output-dir")
    own.add_argument("--test_size", "--test-size", type=int)
    chosen, overrides = own.parse_known_args(rest)
    rows, columns = (_chosen(key, values.pop(key, None), getattr(chosen, key)) for key in KEYS)
    root = Path(chosen.output_dir or values.pop("output_dir", None) or known.config)
    values.pop("output_dir", None)
    methods = list(values.pop("methods", None) or ["uniform"]) if chosen.methods is None else chosen.methods
    for method in methods:
        if method not in (*policies, *baselines):
            raise ConfigError(f"methods: there is no {method!r}: {nearest(method, {*policies, *baselines})}")
    found = [_row(name, row, columns, values, overrides, root, chosen.test_size) for name, row in rows.items()]
    return [replace(row, methods=methods) for row in found]


def run_table(rows: Sequence[TableRow]) -> Iterator[tuple[TableRow, EvaluationReport]]:
    """Trains the policies of all cells, one after the other, and compares those of each row on its test questions.

    A training that was stopped continues from its newest checkpoint, and one that has ended is not repeated; a
    comparison continues where it was. So the same call continues a table.

    Args:
        rows (`Sequence[TableRow]`): from `read_table`.

    Yields:
        `TableRow`, `EvaluationReport`: each row when it is done. The report has the members by themselves, the methods,
        and the policy of each column.
    """
    trainer: Any = None
    for row in rows:
        trained: dict[str, Path] = {}
        for column, settings in row.cells.items():
            trainer = None  # frees the members of the training before
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            trainer = run(settings)
            trainer.accelerator.wait_for_everyone()  # the first process saves the policy, all of them load it
            trained[column] = Path(trainer.args.output_dir)
        yield row, _compared(row, trainer, trained)
    if trainer is not None:
        trainer.end()  # once, because it ends the group of processes


def _compared(row: TableRow, trainer: Any, trained: Mapping[str, Path]) -> EvaluationReport:
    *_, task_args, args = next(iter(row.cells.values())).parts
    held_out = trainer.eval_dataset
    questions = held_out if row.test_split == HELD_OUT else load_test_rows(task_args, row.test_split, row.test_size)
    ensemble = trainer.ensemble.eval()
    methods = {column: _with_policy(ensemble, folder) for column, folder in trained.items()}
    return evaluate(
        ensemble,
        {row.name: questions},
        methods={**{name: name for name in row.methods}, **methods},
        reward=_reward(task_args),
        limit=row.test_size,
        batch_size=args.per_device_eval_batch_size,
        max_new_tokens=args.max_completion_length,
        output_dir=row.folder / "comparison",
    )


def _with_policy(ensemble: EnsembleForCausalLM, folder: Path) -> EnsembleForCausalLM:
    policy = PolicyModel.from_pretrained(folder).to(ensemble.device)
    config = ensemble.config
    options = {name: getattr(config, name) for name in ("mixing", "mixing_kwargs", "grain", "min_weight")}
    options |= {"max_active_members": config.max_active_members, "span_length": policy.config.span_length}
    return EnsembleForCausalLM.from_members(list(ensemble.members), policy, **options)


def _reward(task_args: Any) -> Any:
    """The reward of a comparison: that of the training, if it has one."""
    found = load_rewards(check_rewards(task_args))
    if len(found) != 1:
        raise ConfigError(f"rewards={task_args.rewards!r}: a table compares by one reward; give one")
    return found[0]


def _chosen(key: str, given: Any, names: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    if not isinstance(given, Mapping) or not given or not all(isinstance(value, Mapping) for value in given.values()):
        raise ConfigError(f"{key}={given!r:.200}: a table has rows and columns, names with settings")
    unknown = next((name for name in names or () if name not in given), None)
    if unknown is not None:
        raise ConfigError(f"--{key}: the table has no {unknown!r}: {nearest(unknown, given)}")
    return {name: dict(settings) for name, settings in given.items() if names is None or name in names}


def _row(
    name: str,
    given: dict[str, Any],
    columns: Mapping[str, Mapping[str, Any]],
    common: Mapping[str, Any],
    overrides: Sequence[str],
    root: Path,
    test_size: int | None,
) -> TableRow:
    base = read_config_file(find_config(str(given["config"]))) if "config" in given else {}
    own = {key: value for key, value in given.items() if key not in _OF_ROWS}
    folder = root / _slug(name)
    cells = {}
    for column, settings in columns.items():
        place = {"output_dir": str(folder / _slug(column)), "resume_from_checkpoint": "true"}
        cells[column] = read_settings("rlae", overrides, {**base, **common, **own, **settings, **place})
    first: Any = next(iter(cells.values()))
    _, _, task_args, _ = first.parts
    split, task = str(given.get("test_split", "test")), get_task(str(task_args.task))
    if split == HELD_OUT and task_args.eval_split is None:
        raise ConfigError(f"row {name!r}: test_split={split!r}, but its training holds nothing out; give eval_split")
    if split != HELD_OUT and split not in task.splits:
        raise ConfigError(f"row {name!r}: test_split={split!r}: {nearest(split, (*task.splits, HELD_OUT))}")
    return TableRow(name, cells, split, given.get("test_size") if test_size is None else test_size, folder, [])


def _slug(name: str) -> str:
    """A name as that of a folder.

    Example:

    >>> _slug("PPO, span 4")
    'ppo-span-4'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def table_text(reports: Mapping[str, EvaluationReport]) -> str:
    """One Markdown table: the score of every member and method, by row.

    Args:
        reports (`Mapping[str, EvaluationReport]`): by the name of the row, from `run_table`.
    """
    methods = list(dict.fromkeys(result.method for report in reports.values() for result in report.results))
    lines = ["| | " + " | ".join(methods) + " |", "|---|" + "---:|" * len(methods)]
    for name, report in reports.items():
        scores = {result.method: f"{result.value:.3f}" for result in report.results}
        lines.append(f"| {name} | " + " | ".join(scores.get(method, "") for method in methods) + " |")
    return "\n".join(lines) + "\n"
