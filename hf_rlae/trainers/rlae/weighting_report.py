"""`WeightingReport`: pictures of the weights during training."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import TrainerCallback

from hf_rlae.checks import check_choice
from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.errors import ConfigError
from hf_rlae.reports import colour_of, plot_token_weights, save_figure, short_names, trace_tokens
from hf_rlae.trainers.rlae.generation_options import PROCESSORS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class WeightingReport(TrainerCallback):
    """Writes pictures into a folder: at every evaluation, every save, and at the end of training.

    * `weights_over_training.FORMAT`: the mean weight of each member, and the entropy of the weights;
    * `reward_over_training.FORMAT`: the reward of rollouts and of evaluations, with baselines as lines;
    * `sample_N_step_S.FORMAT`: the weights over the tokens of a sample completion, from greedy decoding with the
      `generation_kwargs` of the trainer.

    Source: ours.

    Args:
        ensemble (`EnsembleForCausalLM`): the one whose policy is trained.
        prompts (`Sequence[str]`, *optional*): of the sample completions.
        baselines (`Mapping[str, float]`, *optional*): rewards to compare with, by name.
        folder (`str`, *optional*): `weighting/` in the trainer's output folder if not given.
        max_new_tokens (`int`, defaults to 64): of a sample completion.
        picture_format (`str`, defaults to `"png"`): or `"svg"`, `"pdf"`.

    Raises:
        ConfigError: another format, or prompts that are not strings.

    Example:

    >>> report = WeightingReport(ensemble, prompts=["7+5*3="], baselines={"uniform": 0.03})  # doctest: +SKIP
    >>> trainer = RLAETrainer(ensemble, "number", args, dataset, callbacks=[report])  # doctest: +SKIP
    """

    def __init__(
        self,
        ensemble: EnsembleForCausalLM,
        prompts: Sequence[str] = (),
        baselines: Mapping[str, float] | None = None,
        folder: str | None = None,
        max_new_tokens: int = 64,
        picture_format: Literal["png", "svg", "pdf"] = "png",
    ) -> None:
        check_choice("picture_format", picture_format, ("png", "svg", "pdf"))
        if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
            raise ConfigError("prompts must be a list of strings")
        self.ensemble = ensemble
        self.prompts = list(prompts)
        self.baselines = dict(baselines or {})
        self.folder = folder
        self.max_new_tokens = max_new_tokens
        self.picture_format = picture_format

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`."""
        if not state.is_world_process_zero:
            return
        folder = self.folder or os.path.join(args.output_dir, "weighting")
        os.makedirs(folder, exist_ok=True)

        def save(figure: Figure, name: str) -> None:
            save_figure(figure, os.path.join(folder, f"{name}.{self.picture_format}"))

        save(plot_weights_over_training(state.log_history), "weights_over_training")
        save(plot_reward_over_training(state.log_history, self.baselines), "reward_over_training")
        for number, prompt in enumerate(self.prompts):
            save(self._plot_sample(prompt, args), f"sample_{number}_step_{state.global_step:06d}")

    on_save = on_evaluate
    on_train_end = on_evaluate

    def _plot_sample(self, prompt: str, args: Any) -> Figure:
        ensemble, given = self.ensemble, getattr(args, "generation_kwargs", None) or {}
        options = {name: given[name] for name in (*PROCESSORS, "stop_strings") if given.get(name) is not None}
        was_training = ensemble.training
        ensemble.eval()
        try:
            inputs = ensemble.tokenizer([prompt], return_tensors="pt")
            ids, mask = (inputs[name].to(ensemble.device) for name in ("input_ids", "attention_mask"))
            with torch.random.fork_rng(devices=[]):
                out = ensemble.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    max_new_tokens=self.max_new_tokens,
                    do_sample=ensemble.config.draw is not None,
                    return_dict_in_generate=True,
                    tokenizer=ensemble.tokenizer,
                    **options,
                )
        finally:
            ensemble.train(was_training)
        names = short_names(member.name for member in ensemble.members)
        return plot_token_weights(names, trace_tokens(ensemble, out, ids.shape[1])[0], prompt)


def plot_weights_over_training(log_history: Sequence[Mapping[str, Any]]) -> Figure:
    """Mean weights of the members, and the entropy of the weights, over updates.

    Args:
        log_history (`Sequence[Mapping]`): of a trainer's state, with `weights/NAME/mean` and `weights/entropy`.
    """
    figure, axes = _empty_figure()
    names = sorted({key for entry in log_history for key in entry if _is_weight(key)})
    for member, name in enumerate(names):
        axes.plot(
            *_series(log_history, name), color=colour_of(member), label=name.split("/", 1)[1].removesuffix("/mean")
        )
    axes.set(xlabel="update", ylabel="mean weight", ylim=(0, 1))
    entropy = axes.twinx()
    entropy.plot(*_series(log_history, "weights/entropy"), color="grey", linestyle=":", label="entropy of the weights")
    entropy.set(ylabel="nats")
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    return figure


def plot_reward_over_training(log_history: Sequence[Mapping[str, Any]], baselines: Mapping[str, float]) -> Figure:
    """The reward of rollouts and of evaluations over updates, with baselines as lines.

    Args:
        log_history (`Sequence[Mapping]`): of a trainer's state, with `reward` and `eval_reward`.
        baselines (`Mapping[str, float]`): by name.
    """
    figure, axes = _empty_figure()
    axes.plot(*_series(log_history, "reward"), color="#9fc9d1", label="rollouts")
    steps, rewards = _series(log_history, "eval_reward")
    if steps:
        axes.plot(steps, rewards, "o-", color="#0f9fb5", label="evaluations")
    for place, (name, reward) in enumerate(sorted(baselines.items(), key=lambda item: item[1])):
        axes.axhline(reward, color=colour_of(place + 1), linestyle="--", linewidth=1, label=name)
    axes.set(xlabel="update", ylabel="reward")
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    return figure


def _empty_figure() -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    return figure, figure.subplots()


def _is_weight(key: str) -> bool:
    return key.startswith("weights/") and key.endswith("/mean")


def _series(log_history: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    found = [(entry["step"], entry[name]) for entry in log_history if entry.get(name) is not None]
    return [step for step, _ in found], [value for _, value in found]
