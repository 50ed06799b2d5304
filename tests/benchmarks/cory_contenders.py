"""What takes turns in the benchmark of CORY: `CoryTrainer` with two agents, and TRL's `GRPOTrainer`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from hf_rlae.trainers import CoryConfig, CoryTrainer
from tests.benchmarks.contenders import Stopwatch
from tests.benchmarks.cory import TEMPLATE, CoryCase, CoryMemory, CoryResult
from tests.benchmarks.costs import Timing
from tests.benchmarks.training_contenders import LEARNING_RATE, vowels
from tests.benchmarks.training_memory import peak_bytes
from tests.support.tokenizers import LINES, characters


def prompts_of(case: CoryCase, length: int) -> list[str]:
    """Different texts of as many characters, which are as many tokens."""
    text = LINES[0] * (2 + (length + case.prompts) // len(LINES[0]))
    return [text[start : start + length] for start in range(case.prompts)]


def model_of(case: CoryCase) -> LlamaForCausalLM:
    """A random model; its attention is plain matrix products, which the counter of FLOPs knows."""
    torch.manual_seed(0)
    tokenizer = characters()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=case.hidden_size,
        intermediate_size=case.hidden_size * 8 // 3,
        num_hidden_layers=case.layers,
        num_attention_heads=4,
        max_position_embeddings=1024,
        attn_implementation="eager",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config).eval()


class _Counting:
    """Counts the FLOPs of writing texts, and sees that all have the tokens that they are to have."""

    case: CoryCase
    rollout_flops: int = 0
    widths: list[int]

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        with FlopCounterMode(display=False) as counter:
            found = super()._generate(*args, **kwargs)  # type: ignore[misc]
        self.rollout_flops += counter.get_total_flops()
        self.widths += sorted({len(ids) for ids in found[0]})
        if {len(ids) for ids in found[1]} != {self.case.tokens}:
            raise RuntimeError(f"texts have other numbers of tokens than {self.case.tokens}")
        return found


class CountingGRPOTrainer(_Counting, GRPOTrainer):
    """`GRPOTrainer` that counts."""


class CountingCoryTrainer(_Counting, CoryTrainer):
    """`CoryTrainer` that counts, both agents together."""


class _StepClock(TrainerCallback):
    """The time of each step, from before the first micro-batch to behind the optimizer."""

    def __init__(self) -> None:
        self.watch = Stopwatch("cpu")
        self.steps: list[Timing] = []
        self._begun = (0.0, 0.0)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._begun = self.watch.now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        cpu, wall = self.watch.now()
        self.steps.append(Timing(cpu - self._begun[0], wall - self._begun[1]))


def trainer_for(
    case: CoryCase,
    kind: Any,
    folder: str,
    prompt_tokens: int | None = None,
    callbacks: Sequence[Any] = (),
    max_steps: int = 1,
) -> Any:
    """A trainer whose steps are a rollout and an update each.

    Args:
        case (`CoryCase`): the model, and how many texts of how many tokens.
        kind (`type`): of trainer.
        folder (`str`): its output folder.
        prompt_tokens (`int`, *optional*): of a prompt, if not the case's.
        callbacks, max_steps: of the trainer.
    """
    options: dict[str, Any] = {
        "output_dir": folder,
        "num_generations": case.generations,
        "per_device_train_batch_size": case.batch,
        "num_iterations": 1,
        "max_completion_length": case.tokens,
        "generation_kwargs": {"suppress_tokens": characters().all_special_ids},
        "temperature": 1.0,
        "top_k": 0,
        "beta": 0.04,
        "max_steps": max_steps,
        "learning_rate": LEARNING_RATE,
        "activation_checkpointing": case.is_checkpointing,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": False,
        "use_cpu": True,
    }
    is_cory = issubclass(kind, CoryTrainer)
    trainer = kind(
        model_of(case),
        vowels,
        args=CoryConfig(**options, observer_template=TEMPLATE) if is_cory else GRPOConfig(**options),
        train_dataset=Dataset.from_dict({"prompt": prompts_of(case, prompt_tokens or case.prompt_tokens)}),
        processing_class=characters(),
        peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=list(callbacks),
    )
    trainer.case, trainer.widths = case, []
    trainer.remove_callback(PrinterCallback)
    return trainer


KINDS = {"grpo": (GRPOTrainer, CountingGRPOTrainer), "cory": (CoryTrainer, CountingCoryTrainer)}
"""What is timed, and the same with a count of FLOPs, which takes time."""


def flops_of(case: CoryCase, kind: Any) -> tuple[dict[str, int], list[int]]:
    """FLOPs of one step and of its texts, and the numbers of tokens of all agents' prompts."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_for(case, kind, folder)
        with FlopCounterMode(display=False) as counter:
            trainer.train()
    return {"step": counter.get_total_flops(), "rollout": trainer.rollout_flops}, sorted(set(trainer.widths))


def measure(case: CoryCase, rounds: int) -> CoryResult:
    """Counts one step of each, then times steps in turn, another one first in each round; the first round warms up."""
    flops = {}
    expected = {"grpo": [case.prompt_tokens], "cory": [case.prompt_tokens, case.observer_tokens]}
    for who, (_, counting) in KINDS.items():
        flops[who], widths = flops_of(case, counting)
        if widths != expected[who]:
            raise RuntimeError(f"{who}: prompts have {widths} tokens, not {expected[who]}")
    found: list[dict[str, Timing]] = []
    with tempfile.TemporaryDirectory() as folder:
        clocks = {who: _StepClock() for who in KINDS}
        trainers = {who: trainer_for(case, kind, folder, callbacks=[clocks[who]]) for who, (kind, _) in KINDS.items()}
        for number in range(rounds + 1):
            timings = {}
            for who in sorted(KINDS, reverse=bool(number % 2)):
                trainer = trainers[who]
                trainer.args.seed += 1  # other texts in every round
                torch.manual_seed(trainer.args.seed)
                trainer.train()
                timings[who] = clocks[who].steps[-1]
            if number:
                found.append(timings)
    return CoryResult(case, found, flops)


def measure_memory(case: CoryCase) -> CoryMemory:
    """Peaks of two steps of each: in the second one there is an optimizer's state."""
    peaks = {}
    wanted = {
        "cory": (CoryTrainer, None),
        "grpo": (GRPOTrainer, None),
        "grpo_long": (GRPOTrainer, case.observer_tokens),
    }
    adapter = optimizer = 0
    for who, (kind, prompt_tokens) in wanted.items():
        with tempfile.TemporaryDirectory() as folder:
            trainer = trainer_for(case, kind, folder, prompt_tokens, max_steps=2)
            resident = sum(parameter.nbytes for parameter in trainer.model.parameters())
            peaks[who] = resident + peak_bytes(trainer.train)
            if who == "grpo":
                adapter = sum(p.nbytes for p in trainer.model.parameters() if p.requires_grad)
                states = [value for state in trainer.optimizer.state.values() for value in state.values()]
                optimizer = sum(state.nbytes for state in states if isinstance(state, torch.Tensor))
    return CoryMemory(case, adapter, optimizer, **peaks)
