"""What writing costs: members' forward passes and CPU time per byte, one text at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from hf_rlae import Member
from hf_rlae.vocabulary import ByteVocabulary
from tests.benchmarks.estimators import sample
from tests.benchmarks.rivals import Decoder


@dataclass(frozen=True)
class Cost:
    """What some texts cost.

    Attributes:
        num_bytes (`int`): how many bytes were written.
        passes (`list[int]`): forward passes of each member.
        own_tokens (`list[int]`): into how many tokens each member's tokenizer cuts what was written.
        cpu_s (`float`): CPU time.
    """

    num_bytes: int
    passes: list[int]
    own_tokens: list[int]
    cpu_s: float | None = None


@contextmanager
def counted(members: Sequence[Member]) -> Iterator[list[int]]:
    """Counts the calls of each member's model meanwhile."""
    counts, hooks = [0] * len(members), []
    for index, member in enumerate(members):

        def count(*_: object, index: int = index) -> None:
            counts[index] += 1

        hooks.append(member.model.register_forward_pre_hook(count))
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def cost_of_sampling(
    decoder: Decoder, members: Sequence[Member], prompts: Sequence[str], num_bytes: int, generator: torch.Generator
) -> Cost:
    """The cost of one continuation of each prompt, at temperature 1."""
    with counted(members) as passes:
        began = time.process_time()
        texts = [sample(decoder, [prompt], num_bytes, generator)[0] for prompt in prompts]
        cpu_s = time.process_time() - began
    pairs = [(text.prompt, text.text) for text in texts]
    written = sum(len(text) for _, text in pairs)
    return Cost(written, passes, [own_tokens(member, pairs) for member in members], cpu_s)


def cost_alone(member: Member, prompts: Sequence[str], num_bytes: int, seed: int) -> Cost:
    """The cost of the member's own `generate`."""
    torch.manual_seed(seed)
    vocabulary = ByteVocabulary(member.tokenizer, member.vocab_size)
    ids = [member.tokenizer(prompt, return_tensors="pt")["input_ids"].to(member.device) for prompt in prompts]
    options = {
        "do_sample": True,
        "top_k": 0,
        "temperature": 1.0,
        "max_new_tokens": num_bytes // 3,
        "pad_token_id": member.end_ids[0],
    }
    with counted([member]) as passes:
        began = time.process_time()
        outputs = [member.model.generate(row, attention_mask=torch.ones_like(row), **options) for row in ids]
        cpu_s = time.process_time() - began
    new = [output[0, row.shape[1] :].tolist() for output, row in zip(outputs, ids, strict=True)]
    return Cost(sum(len(vocabulary.to_bytes(row)) for row in new), passes, [sum(map(len, new))], cpu_s)


def own_tokens(member: Member, pairs: Sequence[tuple[str, bytes]]) -> int:
    """Into how many tokens the member's tokenizer cuts texts behind their prompts."""
    encode = member.tokenizer.backend_tokenizer.encode
    wholes = [prompt + text.decode("utf-8", "replace") for prompt, text in pairs]
    return sum(
        len(encode(whole).ids) - len(encode(prompt).ids) for whole, (prompt, _) in zip(wholes, pairs, strict=True)
    )
