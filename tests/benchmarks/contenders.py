"""What the cost benchmark lets take turns, and how it is timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, LlamaForCausalLM

from hf_rlae import EnsembleForCausalLM, EnsembleLogitsProcessor, Member
from tests.benchmarks.appending import appending_ensemble
from tests.benchmarks.cases import Case
from tests.benchmarks.costs import IN_TURN, Asking, Outside, Result, Timing, Timings
from tests.benchmarks.members import ensemble_of, members_of, prompts_of, vocabulary_of


class Stopwatch:
    """Both clocks, with the device waited for.

    Args:
        device (`str`): where models run.
    """

    def __init__(self, device: str) -> None:
        self.device = device

    def now(self) -> tuple[float, float]:
        """CPU and wall seconds."""
        if self.device != "cpu":
            torch.cuda.synchronize()
        return time.process_time(), time.perf_counter()


@dataclass
class Contender:
    """One `generate` to be timed.

    Attributes:
        name (`str`): `"ensemble"`, `"appending"`, `"processor"`, `"policy"` or `"member k"`.
        model, inputs, options: what is run, on what, and what else `generate` is given.
        pieces (`list[bytes | None]`): the bytes of its ids.
        prepare (callable): makes what else `generate` is given, off the clock; it is let go of after every run.
    """

    name: str
    model: Any
    inputs: dict[str, torch.Tensor]
    pieces: Sequence[bytes | None]
    options: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[], dict[str, Any]] = dict

    def run(self, settings: dict[str, Any], watch: Stopwatch, seed: int) -> Timing:
        """One call of `generate`."""
        prepared = self.prepare()
        torch.manual_seed(seed)
        cpu, wall = watch.now()
        ids = self.model.generate(**self.inputs, **self.options, **prepared, **settings)
        later_cpu, later_wall = watch.now()
        new = ids[:, self.inputs["input_ids"].shape[1] :]
        if new.shape[1] != settings["max_new_tokens"]:
            raise RuntimeError(f"{self.name} wrote {new.shape[1]} tokens, not {settings['max_new_tokens']}")
        written = sum(len(self.pieces[i] or b"") for i in new.flatten().tolist())
        return Timing(later_cpu - cpu, later_wall - wall, written)


@dataclass
class InTurn:
    """The members' forward passes in turn, to be timed like a contender.

    Attributes:
        members (`list[Contender]`): whose models are run, and on what.
    """

    members: Sequence[Contender]
    name: str = IN_TURN

    @torch.inference_mode()
    def run(self, settings: dict[str, Any], watch: Stopwatch, seed: int) -> Timing:
        """As many forward passes of every member as its `generate` makes; nothing is drawn, whatever the seed."""
        steps = settings["max_new_tokens"]
        cpu, wall = watch.now()
        for _ in zip(*(forward_passes(m.model, steps, **m.inputs) for m in self.members), strict=True):
            pass
        later_cpu, later_wall = watch.now()
        return Timing(later_cpu - cpu, later_wall - wall)


def forward_passes(
    model: LlamaForCausalLM, steps: int, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> Iterator[None]:
    """A forward pass whenever the next one is asked for: the prompts, then a column of their ids over again."""
    cache, (batch, width) = DynamicCache(config=model.config), input_ids.shape
    ids = input_ids.repeat(1, 1 + -(-steps // width))
    mask = torch.cat([attention_mask, attention_mask.new_ones(batch, steps)], dim=1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    is_padded = not attention_mask.all()  # else `generate` passes no mask
    start = 0
    for end in range(width, width + steps):
        model(
            input_ids=ids[:, start:end],
            attention_mask=mask[:, :end] if is_padded else None,
            position_ids=positions[:, start:end],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        start = end
        yield


def contenders(case: Case, device: str) -> list[Contender | InTurn]:
    """What takes turns in a case: first what the case is about, then what it is compared with."""
    shape = (case.members, case.tokenizers, case.count, device)
    members = members_of(*shape)
    ensemble = ensemble_of(*shape, case.draws)
    prompts = prompts_of(case)
    vocabularies = [vocabulary_of(member) for member in members]
    pieces = vocabularies[0].pieces if ensemble.union is None else ensemble.union.pieces
    inputs = inputs_of(ensemble.tokenizer, prompts, device)
    mixed = Contender("ensemble", ensemble, inputs, pieces)
    if case.kind == "policy":
        learned = ensemble_of(*shape, is_learned=True)
        return [Contender("policy", learned, inputs, pieces), mixed]
    alone = []
    for index, (member, vocabulary) in enumerate(zip(members, vocabularies, strict=True)):
        options = {"pad_token_id": member.tokenizer.pad_token_id}
        own = inputs_of(member.tokenizer, prompts, device)
        alone.append(Contender(f"member {index}", member.model, own, vocabulary.pieces, options))
    if case.kind == "draw":
        return [mixed, *alone]
    found = [mixed]
    if case.kind == "processor":
        found.insert(0, in_a_processor(alone[0], ensemble, case.mode == "processor-rereads"))
    elif ensemble.union is not None:
        found.append(Contender("appending", appending_ensemble(ensemble), inputs, pieces))
    return [*found, *alone, InTurn(alone)]


def in_a_processor(host: Contender, ensemble: EnsembleForCausalLM, rereads: bool) -> Contender:
    """The ensemble inside the host's own `generate`; its hooks are on the host only while it is timed."""

    def prepare() -> dict[str, Any]:
        return {"logits_processor": [EnsembleLogitsProcessor(ensemble, host_rereads=rereads)]}

    return Contender("processor", host.model, host.inputs, host.pieces, host.options, prepare)


def inputs_of(tokenizer: Any, prompts: Sequence[str], device: str) -> dict[str, torch.Tensor]:
    """Ids and mask of the prompts."""
    batch = tokenizer(list(prompts), return_tensors="pt", padding=True)
    return {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}


def measure(case: Case, rounds: int, device: str) -> Result:
    """Times one case: a short warm-up, then all contenders in turn, another one first in each round."""
    watch = Stopwatch(device)
    found = contenders(case, device)
    for contender in found:
        contender.run(case.at(8).settings, watch, seed=0)
    timings: Timings = {contender.name: [] for contender in found}
    for turn in range(rounds):
        first = turn % len(found)
        for contender in found[first:] + found[:first]:
            timings[contender.name].append(contender.run(case.settings, watch, seed=turn + 1))
    if case.kind == "policy":
        return Result(case, timings, asking=measure_asking(case, found[0], watch, device))
    return Result(case, timings, measure_outside(case, found[0], watch, device))


@contextmanager
def timed_calls(
    modules: Iterable[nn.Module], watch: Stopwatch, within: Sequence[Timing] = ()
) -> Iterator[list[Timing]]:
    """Collects the time of every call of the modules, less that of the calls collected in `within` meanwhile."""
    found: list[Timing] = []
    begun: list[tuple[float, float, int]] = []

    def before(*_: Any) -> None:
        begun.append((*watch.now(), len(within)))

    def after(*_: Any) -> None:
        cpu, wall = watch.now()
        start_cpu, start_wall, met = begun.pop()
        others = within[met:]
        cpu -= start_cpu + sum(other.cpu for other in others)
        wall -= start_wall + sum(other.wall for other in others)
        found.append(Timing(cpu, wall))

    hooks = []
    for module in {id(module): module for module in modules}.values():
        hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def models_of(case: Case, device: str) -> list[nn.Module]:
    """The models of a case's members."""
    members: tuple[Member, ...] = members_of(case.members, case.tokenizers, case.count, device)
    return [member.model for member in members]


def measure_outside(case: Case, contender: Contender | InTurn, watch: Stopwatch, device: str) -> Outside:
    """The ensemble's time outside the members' forward passes."""
    settings = case.at(min(case.tokens, 64)).settings
    with timed_calls(models_of(case, device), watch) as forwards:
        whole = contender.run(settings, watch, seed=1)
    steps = settings["max_new_tokens"]
    outside = {clock: whole.of(clock) - sum(entry.of(clock) for entry in forwards) for clock in ("cpu", "wall")}
    return Outside(
        {clock: seconds / whole.of(clock) for clock, seconds in outside.items()},
        {clock: seconds / steps for clock, seconds in outside.items()},
        len(forwards) / steps / case.count,
    )


def measure_asking(case: Case, contender: Contender | InTurn, watch: Stopwatch, device: str) -> Asking:
    """The time inside the policy, without the members' forward passes that it may be the first to ask for."""
    assert isinstance(contender, Contender)
    policy = contender.model.policy
    with (
        timed_calls(models_of(case, device), watch) as forwards,
        timed_calls([policy], watch, forwards) as calls,
    ):
        whole = contender.run(case.settings, watch, seed=1)
    inside = {clock: sum(call.of(clock) for call in calls) for clock in ("cpu", "wall")}
    return Asking(
        {clock: seconds / whole.of(clock) for clock, seconds in inside.items()},
        {clock: seconds / len(calls) for clock, seconds in inside.items()},
    )
