"""What takes turns in the training benchmark: `RLAETrainer`, TRL's `GRPOTrainer`, and the members' own `generate`."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from hf_rlae import EnsembleForCausalLM
from hf_rlae.trainers import RLAEConfig, RLAETrainer
from tests.benchmarks.cases import Case
from tests.benchmarks.contenders import Contender, Stopwatch, inputs_of
from tests.benchmarks.costs import Timing
from tests.benchmarks.members import ensemble_of, members_of, prompts_of, vocabulary_of
from tests.benchmarks.training_cases import TrainingCase, TrainingResult

LEARNING_RATE = 1e-9
"""So small that everyone writes the same kind of text in all rounds."""


@dataclass
class Clock:
    """Adds up seconds by name.

    Attributes:
        watch (`Stopwatch`): that is read.
        spent (`dict[str, Timing]`): of the present round.
    """

    watch: Stopwatch = field(default_factory=lambda: Stopwatch("cpu"))
    spent: dict[str, Timing] = field(default_factory=dict)
    _begun: dict[str, tuple[float, float]] = field(default_factory=dict)

    def begin(self, name: str) -> None:
        """Starts counting."""
        self._begun[name] = self.watch.now()

    def end(self, name: str) -> None:
        """Adds what has passed since `begin`."""
        cpu, wall = self.watch.now()
        begun_cpu, begun_wall = self._begun.pop(name)
        known = self.spent.get(name, Timing(0.0, 0.0))
        self.spent[name] = Timing(known.cpu + cpu - begun_cpu, known.wall + wall - begun_wall)

    def wrote(self, lengths: Sequence[int], texts: Sequence[str], args: Any) -> None:
        """Notes the bytes of the texts of the round.

        Raises:
            RuntimeError: a text of another length than all were to have.
        """
        if set(lengths) != {args.max_completion_length}:
            raise RuntimeError(f"texts have {sorted(set(lengths))} tokens, not {args.max_completion_length}")
        known = self.spent["rollout"]
        self.spent["rollout"] = Timing(known.cpu, known.wall, sum(len(text.encode()) for text in texts))

    @contextmanager
    def counting(self, name: str) -> Iterator[None]:
        """Counts what is done within."""
        self.begin(name)
        yield
        self.end(name)


class _StepClock(TrainerCallback):
    """Counts whole steps: from before the first micro-batch to behind the optimizer."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.clock.begin("step")

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.clock.end("step")


class TimedRLAETrainer(RLAETrainer):
    """`RLAETrainer` that counts `rollout` (texts alone), `filling` (texts, rewards, advantages) and `step` (all)."""

    clock: Clock

    def roll_out(self, *args: Any, **kwargs: Any) -> Any:
        """See `RLAETrainer.roll_out`."""
        with self.clock.counting("rollout"):
            rollouts = super().roll_out(*args, **kwargs)
        self.clock.wrote(rollouts.completion_mask.sum(1).tolist(), rollouts.completions, self.args)
        return rollouts

    def _fill_buffer(self, *args: Any, **kwargs: Any) -> None:
        with self.clock.counting("filling"):
            super()._fill_buffer(*args, **kwargs)


class TimedGRPOTrainer(GRPOTrainer):
    """`GRPOTrainer` that counts the same; its `rollout` is generation with TRL's tokenisation and padding."""

    clock: Clock

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        with self.clock.counting("rollout"):
            found = super()._generate(*args, **kwargs)
        texts = self.processing_class.batch_decode(found[1], skip_special_tokens=True)
        self.clock.wrote([len(ids) for ids in found[1]], texts, self.args)
        return found

    def _generate_and_score_completions(self, *args: Any, **kwargs: Any) -> Any:
        with self.clock.counting("filling"):
            return super()._generate_and_score_completions(*args, **kwargs)


def vowels(completions: Sequence[str], **_: Any) -> list[float]:
    """Any cheap reward: the share of vowels."""
    return [sum(text.count(vowel) for vowel in "aeiou") / max(len(text), 1) for text in completions]


def ensemble_for(case: TrainingCase) -> EnsembleForCausalLM:
    """With a learned policy that gives uniform weights."""
    return ensemble_of(case.members, case.tokenizers, case.count, "cpu", case.draws, is_learned=True)


def prompts_for(case: TrainingCase) -> list[str]:
    """Different prompts."""
    return prompts_of(Case(case.members, case.tokenizers, case.count, case.prompts, case.tokens, "sample"))


def _options(case: TrainingCase, folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "num_generations": case.generations,
        "per_device_train_batch_size": case.batch,
        "num_iterations": 1,
        "max_completion_length": case.tokens,
        "temperature": 1.0,
        "top_k": 0,
        "max_steps": 1,
        "learning_rate": LEARNING_RATE,
        "gradient_checkpointing": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": False,
        "use_cpu": True,
    }


def rlae_trainer(case: TrainingCase, folder: str, **options: Any) -> TimedRLAETrainer:
    """Trains a policy by the case's objective, on texts that cannot end early."""
    lengths = {"generation_kwargs": {"min_new_tokens": case.tokens}}
    args = RLAEConfig(**{**_options(case, folder), **lengths, "objective": case.objective, **options})
    dataset = Dataset.from_dict({"prompt": prompts_for(case)})
    trainer = TimedRLAETrainer(ensemble_for(case), vowels, args, dataset)
    return _with_clock(trainer)


def grpo_trainer(case: TrainingCase, folder: str) -> TimedGRPOTrainer:
    """Trains a copy of the first member, all of it, without a reference model."""
    args = GRPOConfig(**_options(case, folder), beta=0.0, generation_kwargs={"min_new_tokens": case.tokens})
    member = members_of(case.members, case.tokenizers, case.count, "cpu")[0]
    model = copy.deepcopy(member.model)
    dataset = Dataset.from_dict({"prompt": prompts_for(case)})
    trainer = TimedGRPOTrainer(
        model, vowels, args, train_dataset=dataset, processing_class=copy.deepcopy(member.tokenizer)
    )
    return _with_clock(trainer)


def _with_clock(trainer: Any) -> Any:
    trainer.clock = Clock()
    trainer.add_callback(_StepClock(trainer.clock))
    trainer.remove_callback(PrinterCallback)
    return trainer


def members_alone(case: TrainingCase) -> list[Contender]:
    """Every member's own `generate`, on as many rows."""
    rows = [prompt for prompt in prompts_for(case) for _ in range(case.generations)]
    found = []
    for index, member in enumerate(members_of(case.members, case.tokenizers, case.count, "cpu")):
        options = {"pad_token_id": member.tokenizer.pad_token_id}
        own = inputs_of(member.tokenizer, rows, "cpu")
        found.append(Contender(f"member {index}", member.model, own, vocabulary_of(member).pieces, options))
    return found


def sampling_of(case: TrainingCase) -> dict[str, Any]:
    """Arguments of the members' `generate`."""
    lengths = {"min_new_tokens": case.tokens, "max_new_tokens": case.tokens}
    return {**lengths, "do_sample": True, "temperature": 1.0, "top_k": 0}


def measure(case: TrainingCase, rounds: int) -> TrainingResult:
    """Times one case: a warm-up, then all in turn, another one first in each round."""
    with tempfile.TemporaryDirectory() as folder:
        trainers = {"rlae": rlae_trainer(case, folder), "grpo": grpo_trainer(case, folder)}
        found: list[dict[str, Timing]] = []
        turns: list[Callable[[int], dict[str, Timing]]] = [
            *(lambda _, n=name, t=trainer: _trained(n, t) for name, trainer in trainers.items()),
            *(
                lambda seed, m=member: {m.name: m.run(sampling_of(case), Stopwatch("cpu"), seed)}
                for member in members_alone(case)
            ),
        ]
        for number in range(rounds + 1):
            first = number % len(turns)
            timings: dict[str, Timing] = {}
            for turn in turns[first:] + turns[:first]:
                timings |= turn(number)
            if number:  # the first round warms up
                found.append(timings)
    return TrainingResult(case, found)


def _trained(name: str, trainer: Any) -> dict[str, Timing]:
    """One step of a trainer."""
    trainer.clock.spent.clear()
    trainer.args.seed += 1  # other texts in every round
    torch.manual_seed(trainer.args.seed)
    trainer.train()
    return {f"{name} {part}": timing for part, timing in trainer.clock.spent.items()}
