"""What contrast and guidance change in texts: `python -m tests.benchmarks.contrast`.

Two real tiny models with one tokenizer, a better and a worse one, continue TinyStories openings. The texts are compared
by four numbers: words that the corpus does not have, runs of four words that the text has written before, longer words
of the opening that come back, and the bits per byte of a third model, which writes single characters.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from hf_rlae import EnsembleForCausalLM, Member
from tests.benchmarks.command import finish
from tests.benchmarks.costs import table
from tests.conftest import SHARED

STRONG, WEAK, JUDGE = "stories260K", "llama2xs", "babyllama-tok105"
CORPUS = Path("data/tinystories/tinystories_v1_part.txt")
OPENING_WORDS = 16
SAMPLING = {"do_sample": True, "top_k": 0}
ROWS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "the weak member": ((WEAK,), {}),
    "the strong member": ((STRONG,), {}),
    "contrast, beta 0": ((STRONG, WEAK), {"mixing": "contrast", "mixing_kwargs": {"beta": 0.0}}),
    "contrast, beta 0.5": ((STRONG, WEAK), {"mixing": "contrast", "mixing_kwargs": {"beta": 0.5}}),
    "contrast": ((STRONG, WEAK), {"mixing": "contrast"}),
    "guidance 1.25": ((STRONG, STRONG), {"mixing": "guidance", "mixing_kwargs": {"guidance_scale": 1.25}}),
    "guidance 1.5": ((STRONG, STRONG), {"mixing": "guidance", "mixing_kwargs": {"guidance_scale": 1.5}}),
    "guidance 2": ((STRONG, STRONG), {"mixing": "guidance", "mixing_kwargs": {"guidance_scale": 2.0}}),
}
"""The members and the settings of each row. With `beta=0` only the plausibility constraint acts."""


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return re.findall(r"[a-z]+", text.lower())


def repeated(words: Sequence[str], size: int = 4) -> int:
    """How many runs of `size` words a text has written before."""
    runs = [tuple(words[at : at + size]) for at in range(len(words) - size + 1)]
    return len(runs) - len(set(runs))


def echoed(opening: str, completion: str) -> float:
    """The share of an opening's longer words that a completion has, too."""
    wanted = {word for word in words_of(opening) if len(word) > 4}
    return len(wanted & set(words_of(completion))) / max(len(wanted), 1)


@torch.no_grad()
def bits_per_byte(judge: Member, openings: Sequence[str], completions: Sequence[str]) -> float:
    """What a model needs for the completions after their openings."""
    bits, count = 0.0, 0
    for opening, completion in zip(openings, completions, strict=True):
        start = len(judge.tokenizer(opening)["input_ids"])
        ids = judge.tokenizer(opening + completion, return_tensors="pt", verbose=False)["input_ids"]
        ids = ids[:, : judge.context_length]
        logps = judge.model(ids).logits[0, start - 1 : -1].log_softmax(-1)
        bits -= float(logps.gather(1, ids[0, start:, None]).sum()) / torch.log(torch.tensor(2.0)).item()
        count += ids.shape[1] - start
    return bits / count


def completions_of(ensemble: EnsembleForCausalLM, openings: Sequence[str], tokens: int, **options: Any) -> list[str]:
    """What an ensemble writes after each opening."""
    inputs = ensemble.tokenizer(list(openings), return_tensors="pt", padding=True)
    torch.manual_seed(0)
    out = ensemble.generate(**inputs, max_new_tokens=tokens, **options)
    whole = ensemble.tokenizer.batch_decode(out, skip_special_tokens=True)
    starts = ensemble.tokenizer.batch_decode(inputs["input_ids"], skip_special_tokens=True)
    return [text[len(start) :] for text, start in zip(whole, starts, strict=True)]


def rows_of(models: dict[str, Member], known: set[str], openings: Sequence[str], tokens: int) -> Iterator[list[str]]:
    """One row per way of decoding and kind of ensemble."""
    for decoding, options in (("greedy", {"do_sample": False}), ("temperature 1", SAMPLING)):
        for name, (members, settings) in ROWS.items():
            ensemble = EnsembleForCausalLM.from_members([models[member] for member in members], **settings)
            texts = completions_of(ensemble, openings, tokens, **options)
            # the last word may be cut
            words = [words_of(text)[:-1] for text in texts]
            count = sum(map(len, words))
            new = sum(word not in known for own in words for word in own)
            again = sum(map(repeated, words))
            echo = sum(map(echoed, openings, texts)) / len(texts)
            bits = bits_per_byte(models[JUDGE], openings, texts)
            rates = [f"{100 * new / count:.1f}", f"{100 * again / count:.1f}"]
            yield [f"{decoding}, {name}", *rates, f"{echo:.2f}", f"{bits:.2f}"]


def main(given: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.contrast", description=__doc__.split("\n")[0])
    parser.add_argument("--texts", type=int, default=48, help="texts per row (default: 48)")
    parser.add_argument("--tokens", type=int, default=80, help="tokens per text at most (default: 80)")
    parser.add_argument("--output", type=Path, help="write the table into this Markdown file, too")
    options = parser.parse_args(given)
    torch.set_num_threads(1)
    corpus = (SHARED / CORPUS).read_text(encoding="utf-8")
    lines = [line.split() for line in corpus.splitlines()]
    openings = [" ".join(words[:OPENING_WORDS]) for words in lines if len(words) > 3 * OPENING_WORDS][: options.texts]
    models = {name: Member.load(str(SHARED / "models" / name), dtype=torch.float32) for name in (STRONG, WEAK, JUDGE)}
    head = ["decoding", "new words per 100", "repeats per 100", "words of the opening", "bits per byte"]
    rows = rows_of(models, set(words_of(corpus)), openings, options.tokens)
    finish([table(head, rows)], options.output)


if __name__ == "__main__":
    main()
