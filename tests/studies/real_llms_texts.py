"""Texts of several domains for the study of real language models, and one set that mixes them."""

from __future__ import annotations

import json
import random
from pathlib import Path

from hf_rlae.errors import ConfigError

DOMAINS = ("stories", "gsm8k", "mbpp", "arc")
MIXED = "mixed"
SPLITS = ("train", "validation", "test")
_CONTEXT = 12
"""Characters that `evaluate(scoring="bits_per_byte")` gives, before its bits are counted."""

POOL = 60
"""Texts of a domain from which a split is taken, so that it stays the same if another one grows."""

Sets = dict[str, dict[str, list[str]]]
"""By set and split, texts."""


def read_sets(data: Path, counts: dict[str, int], num_characters: int, seed: int = 0) -> Sets:
    """Texts of every domain, and texts of the mixed set: prose, code inside it, and prose again.

    The splits of a domain have no text in common, and mixed texts are made from other texts than those of the domains'
    own sets. All texts are cut at the end of a word.

    Args:
        data (`Path`): a folder with `tinystories`, `gsm8k`, `mbpp` and `arc_challenge`.
        counts (`dict[str, int]`): texts of every set, by split; at most `POOL`.
        num_characters (`int`): at most so many of a text; half as many more of a mixed one.
        seed (`int`): of the choice.

    Raises:
        ConfigError: a file that is not there, or fewer texts than asked for.
    """
    sources = {
        "stories": _lines(data / "tinystories" / "tinystories_v1_part.txt"),
        "gsm8k": [f"{row['question']}\n{row['answer']}" for row in _rows(data / "gsm8k" / "test.jsonl")],
        "mbpp": [row["code"].replace("\r\n", "\n") for row in _rows(data / "mbpp" / "mbpp.jsonl")],
        "arc": [row["question"] for row in _rows(data / "arc_challenge" / "test.jsonl")],
    }
    wanted = 2 * POOL * len(SPLITS)  # the second half is for the mixed set
    if max(counts.values()) > POOL:
        raise ConfigError(f"{max(counts.values())} texts of a split: at most {POOL}")
    chosen: dict[str, list[str]] = {}
    for name, texts in sources.items():
        fitting = sorted({text for text in texts if len(text) >= num_characters // 2 and _is_cut(text)})
        random.Random(f"{seed} {name}").shuffle(fitting)
        if len(fitting) < wanted:
            raise ConfigError(
                f"{name} has {len(fitting)} texts that are long enough, {wanted} are wanted; ask for fewer"
            )
        chosen[name] = fitting[:wanted]
    sets: Sets = {name: {} for name in (*DOMAINS, MIXED)}
    for number, split in enumerate(SPLITS):
        start = number * POOL
        part = slice(start, start + counts[split])
        for name in DOMAINS:
            sets[name][split] = [_cut(text, num_characters) for text in chosen[name][part]]
        second = slice(wanted // 2 + start, wanted // 2 + start + counts[split])
        prose = [
            story if at % 2 else question
            for at, (story, question) in enumerate(zip(chosen["stories"][second], chosen["arc"][second], strict=True))
        ]
        size = num_characters // 2
        sets[MIXED][split] = [
            f"{_cut(before, size)}\n```python\n{_cut(code, size)}\n```\n{_cut(after, size)}"
            for before, code, after in zip(prose, chosen["mbpp"][second], chosen["gsm8k"][second], strict=True)
        ]
    return sets


def _rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in _lines(path)]


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise ConfigError(f"--data: {path} is not there; give the folder that has it")
    return path.read_text(encoding="utf-8").splitlines()


def _is_cut(text: str) -> bool:
    """Whether something is left to score behind the beginning that is given."""
    return any(character.isspace() for character in text[_CONTEXT:-1])


def _cut(text: str, size: int) -> str:
    """At most `size` characters, up to the end of a word."""
    if len(text) <= size:
        return text
    ends = [at for at in range(_CONTEXT + 1, size + 1) if text[at].isspace() and not text[at - 1].isspace()]
    return text[: ends[-1]] if ends else text[:size]
