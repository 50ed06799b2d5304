"""What is scored, and what texts are sampled from: pieces of texts behind their prompts."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_rlae import Member
from hf_rlae.vocabulary import ByteVocabulary

PROMPT_WORDS = 4


@dataclass(frozen=True)
class Passage:
    """A prompt and a text.

    Attributes:
        prompt (`str`): given, not scored.
        text (`bytes`): what is scored.
    """

    prompt: str
    text: bytes


def stories(lines: Sequence[str], num_bytes: int, seed: int) -> Iterator[Passage]:
    """Lines in random order, each once, with at least as many words behind the prompt as in it."""
    lines = list(lines)
    random.Random(seed).shuffle(lines)
    for line in lines:
        words = line.split(" ")
        if len(words) < 2 * PROMPT_WORDS:
            continue
        prompt = " ".join(words[:PROMPT_WORDS])
        if text := cut(line.removeprefix(prompt), num_bytes):
            yield Passage(prompt, text)


def solutions(path: Path, num_bytes: int) -> Iterator[Passage]:
    """The first questions of a file of GSM8K, and their solutions without the marks of the calculator."""
    with path.open(encoding="utf-8") as file:
        for entry in map(json.loads, file):
            solution = re.sub(r"<<.*?>>", "", entry["answer"])
            if text := cut(f" {solution}", num_bytes):
                yield Passage(f"Question: {entry['question']}\nAnswer:", text)


def cut(text: str, num_bytes: int) -> bytes:
    """The bytes of a text up to the end of a word, at most so many."""
    raw = text.encode()
    if len(raw) <= num_bytes:
        return raw
    return raw[: max(0, raw.rfind(b" ", 0, num_bytes + 1))]


def choose(passages: Iterable[Passage], members: Sequence[Member], count: int) -> list[Passage]:
    """The first passages that every member can represent.

    Raises:
        ValueError: too few, or longer ones than a member can read.
    """
    vocabularies = [ByteVocabulary(member.tokenizer, member.vocab_size) for member in members]
    chosen: list[Passage] = []
    for passage in passages:
        if len(chosen) == count:
            break
        raw = passage.prompt.encode() + passage.text
        if all(vocabulary.representable(raw) == raw for vocabulary in vocabularies):
            chosen.append(passage)
    if len(chosen) < count:
        raise ValueError(f"there are only {len(chosen)} passages for --lines and --samples together")
    # a token a byte, what tokenizers put in front, and the last token of a sampled text
    longest = max(len(passage.prompt.encode()) + len(passage.text) for passage in chosen) + 16
    for member in members:
        if member.context_length is not None and longest > member.context_length:
            raise ValueError(
                f"{member.name} reads {member.context_length} tokens, fewer than {longest}: give less --bytes"
            )
    return chosen
