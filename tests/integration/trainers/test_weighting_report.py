"""Pictures of weights during training."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset

from hf_rlae import (
    EnsembleForCausalLM,
    PolicyConfig,
    PolicyModel,
    RLAEConfig,
    RLAETrainer,
    WeightingReport,
    load_demo_members,
)
from hf_rlae.errors import ConfigError
from hf_rlae.trainers.rlae.weighting_report import plot_reward_over_training, plot_weights_over_training

HISTORY = [
    {"step": 1, "reward": 0.1, "weights/a/mean": 0.5, "weights/b/mean": 0.5, "weights/entropy": 0.69},
    {"step": 2, "eval_reward": 0.2, "eval_weights/a/mean": 0.6},
    {"step": 2, "reward": None, "weights/a/mean": 0.7, "weights/b/mean": 0.3, "weights/entropy": 0.61},
]


def train(folder, *, report: bool) -> PolicyModel:
    members = load_demo_members("shared")
    torch.manual_seed(0)
    policy = PolicyModel(PolicyConfig.for_members(members, span_length=2, hidden_size=8))
    ensemble = EnsembleForCausalLM.from_members(members, policy, span_length=2)
    dataset = Dataset.from_dict({"prompt": ["7+5=", "9-4="], "answer": ["12", "5"]})
    args = RLAEConfig(
        str(folder),
        objective="mixture",
        num_generations=2,
        per_device_train_batch_size=4,
        max_completion_length=8,
        generation_kwargs={"stop_strings": ["="], "min_new_tokens": 2},
        max_steps=4,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=3,
    )
    callbacks = [WeightingReport(ensemble, ["7+5=", "9-4="], {"uniform": 0.3})] if report else []
    RLAETrainer(ensemble, "number", args, dataset, dataset, callbacks=callbacks).train()
    return policy


def test_pictures_are_written_and_training_does_not_notice(tmp_path):
    seen, unseen = train(tmp_path / "a", report=True), train(tmp_path / "b", report=False)
    for name, parameter in seen.named_parameters():
        assert torch.equal(parameter, unseen.get_parameter(name)), name
    written = {path.name for path in (tmp_path / "a" / "weighting").iterdir()}
    samples = {f"sample_{number}_step_{step:06d}.png" for number in (0, 1) for step in (2, 4)}
    assert written == samples | {"weights_over_training.png", "reward_over_training.png"}


def test_lines_are_what_was_logged():
    axes, entropy = plot_weights_over_training(HISTORY).axes
    lines = {line.get_label(): line.get_ydata().tolist() for line in axes.lines}
    assert lines == {"a": [0.5, 0.7], "b": [0.5, 0.3]}
    assert entropy.lines[0].get_ydata().tolist() == [0.69, 0.61]


def test_rewards_stand_beside_their_baselines():
    (axes,) = plot_reward_over_training(HISTORY, {"uniform": 0.05, "best fixed": 0.3}).axes
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert lines == {"rollouts": [0.1], "evaluations": [0.2], "uniform": [0.05, 0.05], "best fixed": [0.3, 0.3]}


def test_nothing_logged_is_no_error():
    for figure in (plot_weights_over_training([]), plot_reward_over_training([], {})):
        assert figure.axes
        assert not any(len(line.get_xdata()) for axes in figure.axes for line in axes.lines)


@pytest.mark.parametrize("wrong", [{"picture_format": "gif"}, {"prompts": "7+5="}, {"prompts": [3]}])
def test_what_cannot_be_drawn_is_refused(wrong):
    with pytest.raises(ConfigError):
        WeightingReport(None, **wrong)
