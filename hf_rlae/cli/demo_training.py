"""The training of `hf-rlae demo --train`: a policy for the embedded members."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from rich.progress import Progress
from transformers import PrinterCallback, TrainerCallback

from hf_rlae.cli.progress import progress_bar
from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.members import Member
from hf_rlae.policies import PolicyConfig, PolicyModel
from hf_rlae.tasks.chains import Question, answer_of, draw_questions
from hf_rlae.trainers import RLAEConfig, RLAETrainer

SPAN_LENGTHS = {"different": 2, "shared": 1}
"""Tokens per span for each set of members."""
ROLLOUTS, COMPLETIONS, UPDATES, ITERATIONS = 20, 256, 4, 2
"""Rollouts, completions per rollout, updates per pass over a rollout, and passes."""
STAGES = ((1, 0.44), (2, 0.32), (3, 0.24))
"""A curriculum: number of steps of a question, and the share of these questions."""
_SEED = 5


class _Bar(TrainerCallback):
    """A progress bar over updates, with the mean reward of the newest rollout."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("training the policy", total=None)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._progress.update(self._task, total=state.max_steps, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        reward = (logs or {}).get("reward")
        if reward is not None:
            self._progress.update(self._task, description=f"training the policy: {float(reward):.0%} right")


def chain_reward(completions: Sequence[str], answer: Sequence[int], **columns: Any) -> list[float]:
    """1.0 for a completion that ends with the right answer, else 0.0."""
    return [float(answer_of(text) == right) for text, right in zip(completions, answer, strict=True)]


def chain_dataset(questions: Sequence[Question]) -> Dataset:
    """Questions with the columns `prompt` and `answer`."""
    return Dataset.from_dict({"prompt": [q.prompt for q in questions], "answer": [q.answer for q in questions]})


def training_arguments(folder: str, seed: int = 0, rollouts: int = ROLLOUTS) -> RLAEConfig:
    """The settings of the training.

    Args:
        folder (`str`): its output folder.
        seed (`int`, defaults to 0), rollouts (`int`, defaults to 20): see `train_policy`.
    """
    return RLAEConfig(
        folder,
        objective="mixture",
        num_generations=8,
        per_device_train_batch_size=COMPLETIONS // UPDATES,
        generation_batch_size=COMPLETIONS,
        num_iterations=ITERATIONS,
        max_completion_length=70,
        max_steps=rollouts * UPDATES * ITERATIONS,
        learning_rate=1e-2,
        lr_scheduler_type="linear",
        logging_steps=UPDATES * ITERATIONS,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=seed,
        shuffle_dataset=False,
    )


def train_policy(
    kind: str, members: Sequence[Member], console: Console, seed: int = 0, rollouts: int = ROLLOUTS
) -> PolicyModel:
    """Trains a policy with the objective `mixture` on short questions first.

    Args:
        kind (`str`): the set of members, `"different"` or `"shared"`.
        members (`Sequence[Member]`): of that set.
        console (`rich.console.Console`): the console that shows progress.
        seed (`int`, defaults to 0): seed of the policy and of all completions.
        rollouts (`int`, defaults to 20): number of rollouts.

    Returns:
        `PolicyModel`: in eval mode.
    """
    torch.manual_seed(seed)
    policy = PolicyModel(PolicyConfig.for_members(members, hidden_size=64, span_length=SPAN_LENGTHS[kind]))
    ensemble = EnsembleForCausalLM.from_members(members, policy, span_length=SPAN_LENGTHS[kind])
    total = rollouts * COMPLETIONS // 8
    questions: list[Question] = []
    for steps, share in STAGES:
        count = total - len(questions) if steps == STAGES[-1][0] else round(share * total)
        questions += draw_questions(max(1, count), _SEED, num_steps=(steps,), splits=("train",), is_mixed=False)
    with progress_bar(console) as progress, tempfile.TemporaryDirectory() as folder:
        args = training_arguments(folder, seed, rollouts)
        trainer = RLAETrainer(ensemble, chain_reward, args, chain_dataset(questions), callbacks=[_Bar(progress)])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return policy.eval()
