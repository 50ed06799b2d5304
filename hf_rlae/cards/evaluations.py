"""Results in cards: a table for people, and entries that the Hub reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump

from hf_rlae.errors import ConfigError
from hf_rlae.files import write_whole
from hf_rlae.hub_ids import is_hub_id

RESULTS_FOLDER = ".eval_results"
"""The folder of a repository in which the Hub looks for results on its datasets."""


@dataclass(frozen=True)
class Evaluation:
    """One measured quantity of a model, and of what it is compared with.

    Args:
        dataset (`str`): the name of the data; a Hub id for a dataset of the Hub.
        metric (`str`): such as `"accuracy"`.
        value (`float`): of this model.
        spread (`float`, *optional*): standard deviation of `value` over trainings.
        baselines (`Mapping[str, float]`, *optional*): the same quantity of what the model is compared with, by name.
        split (`str`, *optional*): of the dataset.
        task_id (`str`, defaults to `"default"`): the task that the dataset's `eval.yaml` names.
        note (`str`, *optional*): how it was measured.

    Raises:
        ConfigError: a value that is no number.
    """

    dataset: str
    metric: str
    value: float
    spread: float | None = None
    baselines: Mapping[str, float] = field(default_factory=dict)
    split: str | None = None
    task_id: str = "default"
    note: str = ""

    def __post_init__(self) -> None:
        for name, value in (("value", self.value), *self.baselines.items()):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigError(f"Evaluation: {name}={value!r} of {self.dataset} is no number; give a float")

    @property
    def is_on_hub(self) -> bool:
        """Whether the dataset is one of the Hub, with its owner."""
        return "/" in self.dataset and is_hub_id(self.dataset)


def model_index(evaluations: Iterable[Evaluation]) -> list[EvalResult]:
    """The results for the `model-index` of a card's head: those on datasets that are not on the Hub."""
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=_slug(entry.dataset),
            dataset_name=entry.dataset,
            dataset_split=entry.split,
            metric_type=_slug(entry.metric),
            metric_name=entry.metric,
            metric_value=entry.value,
        )
        for entry in evaluations
        if not entry.is_on_hub
    ]


def write_eval_results(folder: str | Path, evaluations: Sequence[Evaluation]) -> list[Path]:
    """Writes `.eval_results/*.yaml`, one file per dataset of the Hub.

    Args:
        folder (`str` or `Path`): of the model.
        evaluations (`Sequence[Evaluation]`): those on other data are left out; the card's head has them.

    Returns:
        `list[Path]`: the files.
    """
    entries: dict[str, list[EvalResultEntry]] = {}
    for entry in evaluations:
        if entry.is_on_hub:
            found = EvalResultEntry(entry.dataset, entry.task_id, entry.value, notes=entry.note or None)
            entries.setdefault(_slug(entry.dataset.replace("/", "-")), []).append(found)
    place = Path(folder, RESULTS_FOLDER)
    if entries:
        place.mkdir(parents=True, exist_ok=True)
    return [
        write_whole(place / f"{name}.yaml", yaml_dump(eval_result_entries_to_yaml(found)))
        for name, found in entries.items()
    ]


def _slug(name: str) -> str:
    """A name of letters, digits, dots, `_` and `-`, as the Hub wants it for types."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "data"
