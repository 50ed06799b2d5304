"""How often a step waits for a CUDA device, which is simulated (`tests/support/simulated_cuda.py`)."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from transformers import LogitsProcessor

from hf_rlae import EnsembleForCausalLM, EnsembleLogitsProcessor, PolicyConfig, PolicyModel
from tests.support.ensembles import TEXTS, Schedule, endless
from tests.support.models import pair
from tests.support.simulated_cuda import SimulatedCuda, on_device, to_device
from tests.support.tokenizers import byte_level_bpe, raw_bytes, sentencepiece_bpe

TOKENS, SETTLED = 16, 4
"""New tokens of a call, and the first step that is counted."""
SPAN = 8
KINDS = (("llama", byte_level_bpe), ("qwen2", sentencepiece_bpe), ("gpt2", raw_bytes), ("llama", byte_level_bpe))


def ensemble_of(tokenizers: str, count: int, policy: Any = None, **options: Any) -> EnsembleForCausalLM:
    """Tiny members on the simulated device."""
    kinds = [("llama", byte_level_bpe)] * count if tokenizers == "same" else KINDS[:count]
    members = [pair(name, seed, tokenizer()) for seed, (name, tokenizer) in enumerate(kinds)]
    ensemble = endless(members, policy, span_length=SPAN, **options)
    for member in ensemble.members:
        on_device(member.model)
    return ensemble


def prompts(tokenizer: Any, batch: int) -> dict[str, torch.Tensor]:
    texts = [TEXTS[row % 3] + " x" * (row // 3) for row in range(batch)]
    encoded = tokenizer(texts, return_tensors="pt", padding=True)
    return {name: to_device(encoded[name]) for name in ("input_ids", "attention_mask")}


def watched(ensemble: EnsembleForCausalLM, batch: int, **settings: Any) -> SimulatedCuda:
    """One `generate` call on the simulated device."""
    device = SimulatedCuda()
    settings = {"do_sample": False, "max_new_tokens": TOKENS, "min_new_tokens": TOKENS, **settings}
    inputs = prompts(ensemble.tokenizer, batch)
    torch.manual_seed(0)
    with device.watched(ensemble, [member.model for member in ensemble.members]):
        ensemble.generate(**inputs, **settings)
    return device


def per_step(device: SimulatedCuda) -> list[int]:
    """The engine's waits in each settled step."""
    found = Counter(wait.step for wait in device.waits if wait.kind == "engine")
    return [found[step] for step in range(SETTLED, TOKENS)]


def explained(device: SimulatedCuda) -> str:
    """The lines that the waits of the settled steps come from."""
    found = Counter(
        f"{wait.what}: {wait.place}" for wait in device.waits if wait.step >= SETTLED and wait.kind == "engine"
    )
    return "\n".join(f"{count:4d} {place}" for place, count in found.most_common())


STATIC = {"cache_implementation": "static", "disable_compile": True}  # nothing compiles for a simulated device
LIMITS = [
    # tokenizers, members, options of the ensemble, settings, usual waits, most waits: the reason
    ("same", 2, {}, {}, 1, 2),  # the stop check of `generate`; and the weights, where a span begins
    ("same", 2, {}, {"do_sample": True}, 2, 3),  # `multinomial` checks its input
    ("same", 3, {"draw": "token"}, {"do_sample": True, "top_k": 0}, 2, 3),  # the host draws from its own weights
    ("same", 2, {}, {"num_beams": 2}, 2, 3),  # the beams that go on
    ("same", 2, {}, STATIC, 1, 2),  # their lengths are on the device
    ("different", 2, {}, {}, 3, 4),  # ids, sums, stop check; sums along a path of several ids
    ("different", 4, {}, {}, 3, 4),  # as many with more members
    ("different", 2, {}, {"do_sample": True}, 4, 5),
    ("different", 2, {}, {"num_beams": 2}, 4, 5),
    ("different", 2, {}, STATIC, 3, 4),
    ("different", 3, {"draw": "token"}, {"do_sample": True, "top_k": 0}, 6, 12),  # text that was put off; late prompts
]


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize(("tokenizers", "count", "options", "settings", "usual", "most"), LIMITS)
def test_waits_in_a_step(tokenizers, count, options, settings, usual, most, batch):
    device = watched(ensemble_of(tokenizers, count, **options), batch, **settings)
    counted = per_step(device)
    assert sorted(counted)[len(counted) // 2] <= usual, explained(device)
    assert max(counted) <= most, explained(device)
    assert all(wait.kind != "user" for wait in device.waits)


@pytest.mark.parametrize(("tokenizers", "at_begin", "most"), [("same", 2, 2), ("different", 5, 6)])
def test_a_policy_that_observes_is_waited_for_once_a_span(tokenizers, at_begin, most):
    """Beside what every step waits for: the weights, their check and the members' faults come in one copy."""
    ensemble = ensemble_of(tokenizers, 3)
    torch.manual_seed(0)
    policy = PolicyModel(PolicyConfig.for_members(ensemble.members, span_length=SPAN)).eval()
    ensemble.set_policy(policy)
    on_device(policy)
    device = watched(ensemble, 8)
    counted = Counter(wait.step for wait in device.waits if wait.kind == "engine")
    begins = [step for step in range(SETTLED, TOKENS) if (step - 1) % SPAN == 0]
    assert begins
    assert sum(counted[step] for step in begins) / len(begins) <= at_begin, explained(device)
    assert max(counted[step] for step in begins) <= most, explained(device)


@pytest.mark.parametrize("tokenizers", ["same", "different"])
@pytest.mark.parametrize("rereads", [False, True])
def test_waits_of_a_processor_in_a_plain_generate(tokenizers, rereads):
    ensemble = ensemble_of(tokenizers, 2)
    host, device = ensemble.members[0], SimulatedCuda()
    inputs = prompts(host.tokenizer, 8)
    with device.watched(host.model, [member.model for member in ensemble.members]):
        host.model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=TOKENS,
            pad_token_id=0,
            logits_processor=[EnsembleLogitsProcessor(ensemble, host_rereads=rereads)],
        )
    counted = per_step(device)
    assert sorted(counted)[len(counted) // 2] <= PROCESSOR[tokenizers, rereads], explained(device)


PROCESSOR = {("same", False): 5, ("same", True): 5, ("different", False): 9, ("different", True): 8}
"""The usual waits of a step: the processor also compares ids and scores with the host's, and reads the faults."""


@pytest.mark.parametrize("tokenizers", ["same", "different"])
def test_all_members_are_launched_before_any_is_waited_for(tokenizers):
    device = watched(ensemble_of(tokenizers, 3), 4)
    events = device.events[device.events.index("forward 0") :]
    steps = "".join("w" if event == "wait" else event[-1] for event in events).split("w")
    rounds = [step for step in steps if step][1:]  # without the prompts
    assert rounds
    # a member reads a long row in two passes; one that has nothing to read, because its token goes on, does not run
    assert all(list(step) == sorted(step) for step in rounds)
    assert any(set(step) == {"0", "1", "2"} for step in rounds)


class _Reader(LogitsProcessor):
    """A user's processor that looks at a value."""

    def __call__(self, input_ids, scores):
        assert scores.amax().item() > -torch.inf
        return scores


def test_the_waits_of_a_users_processor_are_apart():
    device = watched(ensemble_of("same", 2), 2, logits_processor=[_Reader()])
    assert max(per_step(device)) <= 2, explained(device)
    assert sum(wait.kind == "user" for wait in device.waits) == TOKENS


def test_a_policy_of_weights_by_rows_and_prompts_of_chosen_members():
    """`select="prompt"`: the rows that a member reads are indices on the device."""
    policy = Schedule([1.0, 0.0], [0.0, 1.0])

    def chosen(state):
        return policy.rows.to(state.device)[torch.arange(state.batch_size, device=state.device) % 2]

    chosen.observes_members = False
    members = [pair("llama", seed) for seed in range(2)]
    ensemble = endless(members, chosen, select="prompt")
    for member in ensemble.members:
        on_device(member.model)
    assert max(per_step(watched(ensemble, 4))) <= 1
