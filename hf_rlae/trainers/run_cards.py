"""What the model card of any training tells: its settings, its results, and tags of the run."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from trl.trainer.utils import get_trackio_space_url

from hf_rlae.cards import Card, CardMember, Evaluation, changed_settings, code
from hf_rlae.hub_ids import is_hub_id
from hf_rlae.trainers.defaults import unset_fields

ADAPTER_LIMITS = (
    "An adapter works with its own base model only, and inherits the base's limits, biases and licence.",
    "It was trained for one reward: what the reward does not measure may have become worse.",
)


def run_tags(own: Iterable[str], added: str | Iterable[str] | None) -> list[str]:
    """The tags of a card: the trainer's own, those of a call of `create_model_card`, and those that TRL adds to a run.

    TRL's are `hf_jobs`, and `trackio:URL` if the run is tracked by Trackio.
    """
    tags = {*own, *([added] if isinstance(added, str) else added or ())}
    if "JOB_ID" in os.environ:
        tags.add("hf_jobs")
    url = get_trackio_space_url()
    if url is not None:
        tags = {tag for tag in tags if not tag.startswith("trackio:")} | {f"trackio:{url}"}
    return sorted(tags)


def add_training(
    card: Card,
    trainer: Any,
    rewards: Iterable[str],
    algorithm: str,
    dataset_name: str | None = None,
    tags: str | Iterable[str] | None = None,
) -> None:
    """Adds to a card what any training tells: tags, data, settings and results.

    Args:
        card (`Card`): its `tags` are the trainer's own.
        trainer (`Trainer`): after or during its training.
        rewards (`Iterable[str]`), algorithm (`str`): names.
        dataset_name (`str`, *optional*), tags (`str` or `Iterable[str]`, *optional*): of `create_model_card`.
    """
    dataset = shown_dataset(dataset_name)
    card.tags = run_tags(card.tags, tags)
    card.datasets = [dataset] if dataset else []
    card.training = training_text(trainer, dataset, rewards, algorithm)
    card.settings = training_settings(trainer.args)
    card.evaluations = run_evaluations(trainer, dataset)


def training_settings(args: Any) -> dict[str, Any]:
    """The settings of a training that differ from the defaults of their class, without anything private."""
    return changed_settings(args, unset_fields(args))


def shown_dataset(name: str | None) -> str | None:
    """The name of a dataset, unless it is a path on this machine."""
    return None if not name or os.path.isabs(name) or os.path.exists(name) else name


def training_text(trainer: Any, dataset_name: str | None, rewards: Iterable[str], algorithm: str) -> str:
    """The first sentences about a training: trainer, updates, data and rewards."""
    data = f" on {code(dataset_name)}" if dataset_name else ""
    steps = trainer.state.global_step
    return (
        f"Trained by reinforcement learning with `{type(trainer).__name__}` of `hf_rlae` ({algorithm}), for {steps} "
        f"updates{data}. Reward: {', '.join(map(code, rewards))}."
    )


def run_evaluations(trainer: Any, dataset_name: str | None) -> list[Evaluation]:
    """The reward in the last evaluation of a run, compared with its first one and with the baselines of a report."""
    found = [entry for entry in trainer.state.log_history if isinstance(entry.get("eval_reward"), int | float)]
    if not found:
        return []
    first, last = found[0], found[-1]
    baselines: dict[str, float] = {}
    for callback in trainer.callback_handler.callbacks:
        baselines |= getattr(callback, "baselines", None) or {}
    if first["step"] < last["step"]:
        baselines[f"this model after {first['step']} updates"] = first["eval_reward"]
    name = dataset_name if dataset_name and not is_hub_id(dataset_name) else "evaluation data of the training"
    note = f"Mean reward of the completions of the evaluation after {last['step']} updates; one training."
    return [Evaluation(name, "reward", last["eval_reward"], baselines=baselines, note=note)]


def published_base(model: Any, adapter: str) -> CardMember | None:
    """The base model to which a published adapter refers, with its commit if it came from the Hub; else `None`.

    Args:
        model (`PeftModel`): with the adapter.
        adapter (`str`): its name.
    """
    name = model.peft_config[adapter].base_model_name_or_path
    if not name or not is_hub_id(name):
        return None
    config = model.get_base_model().config
    return CardMember(name, getattr(config, "_commit_hash", None) if config.name_or_path == name else None)
