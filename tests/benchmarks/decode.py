"""What a step of an ensemble costs: `python -m tests.benchmarks.decode`.

In every round the ensemble, the same ensemble with plain appending (see `tests.benchmarks.appending`) and
every member's own `generate` take turns, with the same decoding mode and the same number of new tokens, and
nothing can end early. A ratio is the ensemble's time per emitted token over the sum of the members' own; the
tables hold medians over rounds. With different tokenizers an ensemble's tokens are not the members' own; the
tables show how many bytes both have on average.

"Forwards in turn" are only the members' forward passes, one of each member at every step on ids given
beforehand, over the same sum. An ensemble that runs its members in turn cannot be faster, and where they push
each other's weights out of the processor's caches, that alone can cost as much as their own `generate`.

Members are "real" (tiny models; short contexts) or "small" (4 layers, 256 wide, with the real GPT-2 and
GPT-NeoX tokenizers, trained on the spot, see `tests.benchmarks.peaked`). "flat" members are like small ones
with random weights; nothing writes or reads text as they do, but they show the other end. "narrow" ones (2 layers,
16 wide, random) cost next to nothing themselves, so that what an ensemble's step does beside them, and whether it grows
with the text, can be seen through the noise of the others. "large" ones are of
the shape of a model with a billion parameters and 150,000 ids (bf16, on a GPU; most ids past the tokenizer's
stand for nothing). A third small member, and the second one where all have one tokenizer, is a copy of the
first with noise on its weights.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from transformers import AutoTokenizer, DynamicCache, LlamaForCausalLM, PreTrainedTokenizerBase
from transformers.utils import logging

from hf_rlae import EnsembleForCausalLM, Member
from hf_rlae.vocabulary import Alignment, ByteVocabulary, UnionVocabulary, same_vocabulary
from tests.benchmarks import peaked
from tests.benchmarks.appending import appending_ensemble
from tests.benchmarks.costs import (
    IN_TURN,
    Case,
    Outside,
    Result,
    Timing,
    Timings,
    costs_table,
    growth_table,
    growths,
    overhead_table,
    pair,
    table,
    targets_table,
)
from tests.conftest import SHARED

NARROW = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
TRAINING_STEPS, TRAINING_CHARACTERS = 250, 40_000
LARGE_VOCABULARY = 150_000
REAL = {
    "same": ("stories260K", "llama2xs", "stories260K"),
    "different": ("stories260K", "babyllama-tok105", "llama2xs"),
}
GPT2, NEOX = "gpt2", "gpt_neox_20b"
TOKENIZERS = {"same": (GPT2, GPT2, GPT2), "different": (GPT2, NEOX, GPT2)}


def all_cases(device: str) -> Iterator[Case]:
    """The default cases, shortest first within each group."""
    for tokenizers in ("same", "different"):
        for batch in (1, 8):
            for mode in ("sample", "greedy"):
                yield Case("small", tokenizers, 2, batch, 64, mode)
            if batch == 1:
                yield Case("small", tokenizers, 2, batch, 256, "sample")
            if batch == 1 or tokenizers == "different":
                yield Case("small", tokenizers, 2, batch, 512, "sample")
            if batch == 1:
                yield Case("small", tokenizers, 3, batch, 64, "sample")
    for tokenizers in ("same", "different"):
        for count in (2, 3):
            for batch, mode in ((1, "draw-token"), (1, "draw-word"), (8, "draw-token-batch")):
                yield Case("small", tokenizers, count, batch, 64, mode)
    for tokenizers in ("same", "different"):
        for tokens in (64, 512):
            yield Case("narrow", tokenizers, 2, 1, tokens, "sample")
    for tokenizers in ("same", "different"):
        for count, batch in ((2, 1), (2, 8), (3, 1)):
            yield Case("real", tokenizers, count, batch, 64, "sample")
    if device != "cpu":
        for tokenizers in ("same", "different"):
            for batch in (1, 8):
                for tokens in (64, 512):
                    yield Case("large", tokenizers, 2, batch, tokens, "sample")


def further_cases() -> Iterator[Case]:
    """Cases that are measured only where `--cases` asks for them."""
    for batch in (1, 8):
        yield Case("flat", "different", 2, batch, 64, "sample")
    for members in ("small", "real"):
        for tokenizers in ("same", "different"):
            yield Case(members, tokenizers, 3, 8, 64, "sample")


# -- members ----------------------------------------------------------------------------------------------


@cache
def stories() -> str:
    """The text that members are trained on and prompts are taken from."""
    path = SHARED / "data" / "tinystories" / "tinystories_v1_part.txt"
    return path.read_text(encoding="utf-8")[:TRAINING_CHARACTERS]


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerBase:
    """One of the real tokenizers."""
    tokenizer = AutoTokenizer.from_pretrained(SHARED / "data" / "tokenizers" / name, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@cache
def model_of(kind: str, tokenizer_name: str, place: int, device: str) -> LlamaForCausalLM:
    """The model of a member; `place` tells members with one tokenizer apart."""
    tokenizer = tokenizer_of(tokenizer_name)
    if place:
        first = model_of(kind, tokenizer_name, 0, device)
        return peaked.sibling(first)
    if kind in ("flat", "narrow"):
        torch.manual_seed(0)
        config = copy.deepcopy(model_of("small", tokenizer_name, 0, device).config)
        if kind == "narrow":
            config.update({**NARROW, "initializer_range": 0.5})
        return LlamaForCausalLM(config).eval().to(device)
    if kind == "large":
        model = peaked.trained_member(
            tokenizer,
            stories(),
            TRAINING_STEPS,
            peaked.LARGE,
            LARGE_VOCABULARY,
            device,
            3e-4,
            report=progress,
        )
        return model.to(torch.bfloat16)
    return peaked.kept_member(tokenizer_name, tokenizer, stories(), TRAINING_STEPS, report=progress).to(device)


@cache
def members_of(kind: str, tokenizers: str, count: int, device: str) -> tuple[Member, ...]:
    """The members of a case."""
    if kind == "real":
        folders = [SHARED / "models" / name for name in REAL[tokenizers][:count]]
        members = [Member.load(str(folder)) for folder in folders]
        for member in members:
            member.model.to(device)
        return tuple(members)
    members, met = [], defaultdict(int)
    for name in TOKENIZERS[tokenizers][:count]:
        members.append(Member(model_of(kind, name, met[name], device), tokenizer_of(name), name=f"{name} {met[name]}"))
        met[name] += 1
    return tuple(members)


@cache
def ensemble_of(
    kind: str, tokenizers: str, count: int, device: str, draws: tuple[str, str] | None = None
) -> EnsembleForCausalLM:
    """The ensemble of a case, with uniform weights."""
    options = {"draw": draws[0], "draw_scope": draws[1]} if draws else {}
    return EnsembleForCausalLM.from_members(members_of(kind, tokenizers, count, device), **options)


def prompts_of(case: Case) -> list[str]:
    """A prompt for each row: stories broken off after different numbers of words."""
    words = 4 if case.members == "real" else 10
    lines = [line for line in stories().splitlines() if len(line.split()) > 40]
    return [" ".join(lines[row].split()[: words + row % 4]) for row in range(case.batch)]


# -- timing -----------------------------------------------------------------------------------------------


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
        name (`str`): `"ensemble"`, `"appending"` or `"member k"`.
        model, inputs, options: what is run, on what, and what else `generate` is given.
        pieces (`list[bytes | None]`): the bytes of its ids.
    """

    name: str
    model: Any
    inputs: dict[str, torch.Tensor]
    pieces: Sequence[bytes | None]
    options: dict[str, Any] = field(default_factory=dict)

    def run(self, settings: dict[str, Any], watch: Stopwatch, seed: int) -> Timing:
        """One call of `generate`."""
        torch.manual_seed(seed)
        cpu, wall = watch.now()
        ids = self.model.generate(**self.inputs, **self.options, **settings)
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
    """The ensemble, plain appending where tokenizers differ, every member, and the members' forward passes."""
    members = members_of(case.members, case.tokenizers, case.count, device)
    ensemble = ensemble_of(case.members, case.tokenizers, case.count, device, case.draws)
    prompts = prompts_of(case)
    vocabularies = [vocabulary_of(member) for member in members]
    pieces = vocabularies[0].pieces if ensemble.union is None else ensemble.union.pieces
    inputs = _inputs(ensemble.tokenizer, prompts, device)
    found = [Contender("ensemble", ensemble, inputs, pieces)]
    if ensemble.union is not None and case.draws is None:
        found.append(Contender("appending", appending_ensemble(ensemble), inputs, pieces))
    alone = []
    for index, (member, vocabulary) in enumerate(zip(members, vocabularies, strict=True)):
        options = {"pad_token_id": member.tokenizer.pad_token_id}
        own = _inputs(member.tokenizer, prompts, device)
        alone.append(Contender(f"member {index}", member.model, own, vocabulary.pieces, options))
    return [*found, *alone, InTurn(alone)]


@cache
def vocabulary_of(member: Member) -> ByteVocabulary:
    """The bytes of a member's tokens."""
    return ByteVocabulary(member.tokenizer, member.vocab_size)


def _inputs(tokenizer: Any, prompts: Sequence[str], device: str) -> dict[str, torch.Tensor]:
    batch = tokenizer(list(prompts), return_tensors="pt", padding=True)
    return {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}


@contextmanager
def timed_forwards(members: Iterable[Member], watch: Stopwatch) -> Iterator[list[Timing]]:
    """Collects the time of every forward pass of the members."""
    found: list[Timing] = []
    begun: list[tuple[float, float]] = []

    def before(*_: Any) -> None:
        begun.append(watch.now())

    def after(*_: Any) -> None:
        cpu, wall = watch.now()
        start_cpu, start_wall = begun.pop()
        found.append(Timing(cpu - start_cpu, wall - start_wall))

    hooks = []
    for model in {id(member.model): member.model for member in members}.values():
        hooks += [model.register_forward_pre_hook(before), model.register_forward_hook(after)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


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
    return Result(case, timings, measure_outside(case, found[0], watch, device))


def measure_outside(case: Case, contender: Contender | InTurn, watch: Stopwatch, device: str) -> Outside:
    """The ensemble's time outside the members' forward passes."""
    members = members_of(case.members, case.tokenizers, case.count, device)
    settings = case.at(min(case.tokens, 64)).settings
    with timed_forwards(members, watch) as forwards:
        whole = contender.run(settings, watch, seed=1)
    steps = settings["max_new_tokens"]
    outside = {clock: whole.of(clock) - sum(entry.of(clock) for entry in forwards) for clock in ("cpu", "wall")}
    return Outside(
        {clock: seconds / whole.of(clock) for clock, seconds in outside.items()},
        {clock: seconds / steps for clock, seconds in outside.items()},
        len(forwards) / steps / case.count,
    )


def timed(function: Callable[[], Any]) -> tuple[Timing, Any]:
    """The time of a call, and its result."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = function()
    return Timing(time.process_time() - cpu, time.perf_counter() - wall), result


# -- building ---------------------------------------------------------------------------------------------


def union_times() -> tuple[Timing, str]:
    """The time for the union of GPT-2's and GPT-NeoX's vocabularies, and a table with its parts."""
    tokenizers = [tokenizer_of(name) for name in (GPT2, NEOX)]
    rounds: list[list[Timing]] = []
    for _ in range(3):
        reading, vocabularies = timed(lambda: [ByteVocabulary(tokenizer) for tokenizer in tokenizers])
        joining, union = timed(lambda v=vocabularies: UnionVocabulary(v))
        aligning, _ = timed(
            lambda v=vocabularies, u=union: [
                Alignment(own, u, [tokenizer.eos_token_id]) for own, tokenizer in zip(v, tokenizers, strict=True)
            ]
        )
        comparing, _ = timed(
            lambda t=tokenizers[0]: same_vocabulary(t.get_vocab(), dict(t.get_vocab()))  # not one object
        )
        parts = [reading, joining, aligning]
        together = Timing(sum(part.cpu for part in parts), sum(part.wall for part in parts))
        rounds.append([*parts, together, comparing])
    found = [
        Timing(median(part.cpu for part in parts), median(part.wall for part in parts))
        for parts in zip(*rounds, strict=True)
    ]
    labels = (
        "bytes of both vocabularies",
        "union",
        "alignments",
        "together",
        "two identical: comparing them",
    )
    rows = [[label, pair(part.of, 3)] for label, part in zip(labels, found, strict=True)]
    return found[3], table(["building", "s"], rows)


def first_text_table(device: str) -> str:
    """The first text of a new ensemble, whose tables by tail are empty, and the same text again."""
    case = Case("small", "different", 2, 1, 64, "sample")
    members = members_of(case.members, case.tokenizers, case.count, device)
    building, ensemble = timed(lambda: EnsembleForCausalLM.from_members(members))
    watch = Stopwatch(device)
    contender = Contender(
        "ensemble", ensemble, _inputs(ensemble.tokenizer, prompts_of(case), device), ensemble.union.pieces
    )
    found = [contender.run(case.settings, watch, seed=1) for _ in range(3)]
    steps = [[1000 * timing.of(clock) / case.tokens for timing in found] for clock in ("cpu", "wall")]
    rows = [
        ["building the ensemble from its members, s", pair(building.of)],
        ["first text of 64 tokens, ms a token", " / ".join(f"{values[0]:.2f}" for values in steps)],
        ["the same text again", " / ".join(f"{min(values[1:]):.2f}" for values in steps)],
    ]
    return table(["a new ensemble of two small members, batch 1", ""], rows)


# -- the command ------------------------------------------------------------------------------------------


def progress(line: str) -> None:
    """A line on stderr."""
    print(line, file=sys.stderr, flush=True)


def chosen_cases(patterns: Sequence[str], quick: bool, device: str) -> list[Case]:
    """The cases that match a pattern; with `quick` few tokens and only two members."""
    cases = [*all_cases(device), *(further_cases() if patterns else ())]
    if quick:
        short = [case.at(min(case.tokens, 96)) for case in cases if case.count == 2 and case.tokens != 512]
        cases = [case.at(24) if case.tokens == 64 else case for case in short]
    return [c for c in cases if not patterns or any(fnmatch.fnmatch(c.name, f"*{p}*") for p in patterns)]


def setting(device: str) -> str:
    """What it was measured on."""
    name = torch.cuda.get_device_name() if device != "cpu" else f"CPU, {torch.get_num_threads()} thread(s)"
    entropies = [
        f"{peaked.mean_entropy(member.model, member.tokenizer, stories()[:4000]):.1f}"
        for member in members_of("small", "different", 2, device)
    ]
    return (
        f"{name}; torch {torch.__version__}. Pairs are CPU / wall time. The small members' distributions "
        f"have {' and '.join(entropies)} nats on average, on text that they were trained on."
    )


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.decode", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, help="rounds per case (default 5; 3 if long or --quick)")
    parser.add_argument("--cases", nargs="*", default=[], help="only cases whose name matches, as in 'different-m2-b1'")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1: steady times)")
    parser.add_argument("--quick", action="store_true", help="few tokens, few rounds: to see that it works")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; cuda adds large members in bf16")
    parser.add_argument("--list", action="store_true", help="print the names of the cases and stop")
    parser.add_argument("--output", type=Path, help="write the tables into this Markdown file, too")
    return parser.parse_args()


def main() -> None:
    """Measures and prints."""
    options = arguments()
    cases = chosen_cases(options.cases, options.quick, options.device)
    if options.list:
        print("\n".join(case.name for case in cases))
        return
    logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    union_time, building = union_times()
    results = []
    for number, case in enumerate(cases, 1):
        rounds = options.rounds or (3 if options.quick or case.tokens > 64 else 5)
        spent, result = timed(lambda c=case, n=rounds: measure(c, n, options.device))
        results.append(result)
        ratios = pair(lambda clock, r=result: r.ratio("ensemble", clock))
        progress(f"[{number}/{len(cases)}] {case.name}: ratio {ratios} ({spent.wall:.0f} s)")
    found = growths(results)
    parts = [setting(options.device), targets_table(results, found, union_time), costs_table(results)]
    parts += [overhead_table(results)]
    if found:
        parts.append(growth_table(found))
    parts += [building, first_text_table(options.device)]
    text = "\n\n".join(parts) + "\n"
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
