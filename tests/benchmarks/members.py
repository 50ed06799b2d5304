"""The members of the cost benchmark, their ensembles, and what they are given to go on with."""

from __future__ import annotations

import copy
import sys
from collections import defaultdict
from collections.abc import Iterable
from functools import cache

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from hf_rlae import EnsembleForCausalLM, Member, PolicyConfig, PolicyModel, load_demo_members
from hf_rlae.policies.heads import Score
from hf_rlae.vocabulary import ByteVocabulary
from tests.benchmarks import peaked
from tests.benchmarks.cases import Case
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
SPAN_LENGTH = 8
STORIES = "data/tinystories/tinystories_v1_part.txt"
REAL = {
    "same": ("stories260K", "llama2xs", "stories260K"),
    "different": ("stories260K", "babyllama-tok105", "llama2xs"),
}
GPT2, NEOX = "gpt2", "gpt_neox_20b"
TOKENIZERS = {"same": (GPT2, GPT2, GPT2), "different": (GPT2, NEOX, GPT2)}
EMBEDDED = {"same": "shared", "different": "different"}


def report(line: str) -> None:
    """Prints a line of progress to stderr."""
    print(line, file=sys.stderr, flush=True)


def check_files(cases: Iterable[tuple[str, str, int]]) -> None:
    """Ends the program, before any work, where a file that is needed is not there.

    Args:
        cases: members, tokenizers and count of each case, as in `members_of`; embedded members need no files.
    """
    needed: dict[str, None] = {}  # in their order
    for members, tokenizers, count in cases:
        if members == "real":
            needed |= dict.fromkeys([STORIES, *(f"models/{name}" for name in REAL[tokenizers][:count])])
        elif members != "embedded":
            needed |= dict.fromkeys([STORIES, *(_tokenizer_path(name) for name in TOKENIZERS[tokenizers][:count])])
    for path in needed:
        if not (SHARED / path).exists():
            raise SystemExit(
                f"{path} is not there; set HF_RLAE_SHARED to the folder that holds it, or choose cases of members that "
                "need no files: --cases 'embedded-*'"
            )


@cache
def stories() -> str:
    """The text that members are trained on and prompts are taken from."""
    return (SHARED / STORIES).read_text(encoding="utf-8")[:TRAINING_CHARACTERS]


def _tokenizer_path(name: str) -> str:
    return f"data/tokenizers/{name}"


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerBase:
    """One of the real tokenizers."""
    tokenizer = AutoTokenizer.from_pretrained(SHARED / _tokenizer_path(name), padding_side="left")
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
            report=report,
        )
        return model.to(torch.bfloat16)
    return peaked.kept_member(tokenizer_name, tokenizer, stories(), TRAINING_STEPS, report=report).to(device)


@cache
def members_of(kind: str, tokenizers: str, count: int, device: str) -> tuple[Member, ...]:
    """The members of a case."""
    members: list[Member] = []
    if kind in ("real", "embedded"):
        if kind == "real":
            members = [Member.load(str(SHARED / "models" / name)) for name in REAL[tokenizers][:count]]
        else:
            members = load_demo_members(EMBEDDED[tokenizers])[:count]
        for member in members:
            member.model.to(device)
        return tuple(members)
    met: dict[str, int] = defaultdict(int)
    for name in TOKENIZERS[tokenizers][:count]:
        members.append(Member(model_of(kind, name, met[name], device), tokenizer_of(name), name=f"{name} {met[name]}"))
        met[name] += 1
    return tuple(members)


@cache
def ensemble_of(
    kind: str,
    tokenizers: str,
    count: int,
    device: str,
    draws: tuple[str, str] | None = None,
    is_learned: bool = False,
) -> EnsembleForCausalLM:
    """The ensemble of a case, with uniform weights; `is_learned` has a learned policy give them."""
    members = members_of(kind, tokenizers, count, device)
    options = {"draw": draws[0], "draw_scope": draws[1]} if draws else {}
    policy = even_policy(members, device) if is_learned else None
    return EnsembleForCausalLM.from_members(members, policy, span_length=SPAN_LENGTH, **options)


@torch.no_grad()
def even_policy(members: tuple[Member, ...], device: str) -> PolicyModel:
    """A policy that observes the members and works as ever, but whose last layer is 0.

    Its weights are uniform to the last bit, so that the ensemble writes the very text that it writes with uniform
    weights, and a difference in time is the policy's.
    """
    torch.manual_seed(0)
    policy = PolicyModel(PolicyConfig.for_members(members, span_length=SPAN_LENGTH)).eval().to(device)
    for layer in policy.modules():
        if isinstance(layer, Score):
            layer.weight.zero_()
    return policy


@cache
def vocabulary_of(member: Member) -> ByteVocabulary:
    """The bytes of a member's tokens."""
    return ByteVocabulary(member.tokenizer, member.vocab_size)


def prompts_of(case: Case) -> list[str]:
    """A prompt for each row: stories broken off after different numbers of words; embedded members get questions."""
    if case.members == "embedded":
        digits = [(1 + row % 9, 1 + (row + 4) % 9, 1 + (row + 2) % 9) for row in range(case.batch)]
        return [f"What is {a} plus {b} times {c} minus 3?" for a, b, c in digits]
    words = 4 if case.members == "real" else 10
    lines = [line for line in stories().splitlines() if len(line.split()) > 40]
    return [" ".join(lines[row].split()[: words + row % 4]) for row in range(case.batch)]
