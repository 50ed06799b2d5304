"""What training needs in memory: what rollouts keep, what the policy adds, and peaks."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from hf_rlae import EnsembleForCausalLM, Member, PolicyConfig, PolicyModel
from hf_rlae.trainers.rlae.rollouts import Rollouts, Sampling, write_rollouts
from tests.benchmarks.costs import table
from tests.benchmarks.training_cases import TrainingCase
from tests.benchmarks.training_contenders import members_alone, rlae_trainer, sampling_of
from tests.support.models import tiny
from tests.support.tokenizers import byte_level_bpe

VOCABULARIES = (400, 8000)
"""How many ids the two vocabularies have."""


def stored_bytes(rollouts: Rollouts) -> dict[str, int]:
    """Bytes of every tensor that rollouts keep, by name."""
    tensors = {**rollouts.tensors(), **{f"observation {k}": v for k, v in rollouts.observation.items()}}
    return {name: tensor.untyped_storage().nbytes() for name, tensor in tensors.items()}


def rollouts_with(vocab_size: int, rows: int = 4, tokens: int = 16) -> Rollouts:
    """Rollouts of two random members, of one width whatever the size of their vocabulary."""
    tokenizer = copy.deepcopy(byte_level_bpe())
    tokenizer.add_tokens([f"<{index}>" for index in range(vocab_size - len(tokenizer))])
    members = [Member(tiny("llama", vocab_size, seed), tokenizer, name=f"member {seed}") for seed in (0, 1)]
    torch.manual_seed(0)
    policy = PolicyModel(PolicyConfig.for_members(members, span_length=4)).eval()
    ensemble = EnsembleForCausalLM.from_members(members, policy, span_length=4)
    ensemble.generation_config.min_new_tokens = tokens
    prompts = ["once upon"] * rows
    inputs = dict(tokenizer(prompts, return_tensors="pt", padding=True))
    given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    return write_rollouts(ensemble, policy, given, prompts, Sampling(tokens, tuple(range(rows))))


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most bytes of tensors that were alive at a time while work was done, above those before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    results = profiler.profiler.kineto_results
    events = [event for event in results.events() if event.name() == "[memory]"]
    present = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        present += event.nbytes()
        most = max(most, present)
    return most


@dataclass(frozen=True)
class MemoryResult:
    """Bytes of one case.

    Attributes:
        case (`TrainingCase`): that was measured.
        policy (`int`): of its parameters.
        gradients (`int`), optimizer (`int`): of what training adds to them.
        members_gradients (`int`): of the members; 0 if they are frozen.
        stored (`int`): of the rollout.
        rollout (`int`), update (`int`), alone (`int`): peaks of a rollout, of an update, and of the hungriest member's
            own `generate` on as many rows.
        vocabulary_row (`int`): of one row of the ensemble's logits in fp32, times the rows of the batch.
    """

    case: TrainingCase
    policy: int
    gradients: int
    optimizer: int
    members_gradients: int
    stored: int
    rollout: int
    update: int
    alone: int
    vocabulary_row: int


def measure_memory(case: TrainingCase) -> MemoryResult:
    """One step of a trainer, and then its parts under the profiler."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = rlae_trainer(case, folder)
        trainer.train()
        policy = list(trainer.policy.parameters())
        states = [value for state in trainer.optimizer.state.values() for value in state.values()]
        examples = [{"prompt": prompt} for prompt in trainer.train_dataset["prompt"] for _ in range(case.generations)]
        kept: list[Rollouts] = []
        explores = case.objective != "mixture"  # which learns from the tokens, not from drawn weights
        rollout = peak_bytes(lambda: kept.append(trainer.roll_out(examples, list(range(case.batch)), explores)))
        rollouts = kept[0]
        rollouts.advantages = torch.linspace(-1, 1, len(rollouts))
        given = {"rollouts": rollouts, "num_items": None}
        update = peak_bytes(lambda: trainer.compute_loss(trainer.policy, given).backward())
        alone = [
            peak_bytes(lambda m=member: m.model.generate(**m.inputs, **m.options, **sampling_of(case)))
            for member in members_alone(case)
        ]
        ensemble = trainer.ensemble
        models = [parameter for member in ensemble.members for parameter in member.model.parameters()]
        return MemoryResult(
            case,
            _bytes_of(policy),
            _bytes_of([parameter.grad for parameter in policy]),
            _bytes_of([state for state in states if isinstance(state, torch.Tensor)]),
            _bytes_of([parameter.grad for parameter in models]),
            sum(stored_bytes(rollouts).values()),
            rollout,
            update,
            max(alone),
            4 * case.batch * ensemble.engine.vocab_size,
        )


def _bytes_of(tensors: list[Any]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def storage_table() -> tuple[str, bool]:
    """What rollouts keep with two vocabularies, and whether it is the same."""
    found = {size: stored_bytes(rollouts_with(size)) for size in VOCABULARIES}
    names = list(dict.fromkeys(name for by_name in found.values() for name in by_name))
    rows = [[name, *(str(by_name.get(name, 0)) for by_name in found.values())] for name in names]
    totals = [sum(by_name.values()) for by_name in found.values()]
    rows.append(["all", *map(str, totals)])
    head = ["a rollout keeps, bytes", *(f"{size} ids" for size in VOCABULARIES)]
    return table(head, rows), len(set(totals)) == 1


def memory_table(results: list[MemoryResult]) -> str:
    """Kilobytes, one row a case."""
    head = [
        "memory, kB",
        "policy",
        "its gradients",
        "its optimizer",
        "members' gradients",
        "rollout keeps",
        "peak of a rollout",
        "a member's own `generate`",
        "peak of an update",
        "logits of a step",
    ]
    rows = []
    for r in results:
        values = [r.policy, r.gradients, r.optimizer, r.members_gradients, r.stored, r.rollout, r.alone, r.update]
        rows.append([r.case.name, *(f"{value / 1000:.0f}" for value in [*values, r.vocabulary_row])])
    return table(head, rows)
