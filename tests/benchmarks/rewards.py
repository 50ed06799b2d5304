"""What reading an answer costs: `python -m tests.benchmarks.rewards`.

Every rule reads strings that are made to be slow to read, of growing length. A cell is the shortest of several runs, in
milliseconds; "growth" is how much longer the longest string takes than one of half its length, so 2 is linear and 1 is
a rule that looks at a part of the text only. A rule may take 5 ms for 200,000 characters.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from hf_rlae.rewards.answer_part import graded_part
from hf_rlae.rewards.exact_match_rule import extract_answers
from hf_rlae.rewards.letter_rule import extract_letter
from hf_rlae.rewards.number_rule import extract_number
from hf_rlae.rewards.sentiment_rule import sentiment_score

LENGTHS = (1_000, 10_000, 100_000, 200_000)
LIMIT_MS = 5.0

OPTIONS = ["a dog", "Paris", "London", "carbon dioxide"]
RULES: dict[str, Callable[[str], object]] = {
    "answer_part": graded_part,
    "number": extract_number,
    "letter": lambda text: extract_letter(text, OPTIONS),
    "exact_match": extract_answers,
    "sentiment": sentiment_score,
}

REPEATED = {
    "digits": "1",
    "digits and spaces": "1 ",
    "dots": ".",
    "digits and dots": "1.",
    "commas": ",",
    "thousands": "123,",
    "slashes": "1/",
    "exponents": "1e",
    "powers": "10^",
    "equals signs": "=",
    "negated": "not 5 ",
    "names": "H2O ",
    "open braces": "{",
    "closed braces": "}",
    "open boxes": "\\boxed{",
    "open boxes with words": "\\boxed{a word or two ",
    "full boxes": "\\boxed{}",
    "open fractions": "\\frac{",
    "fractions of fractions": "\\frac{1",
    "backslashes": "\\",
    "answer": "answer",
    "answer is": "answer is ",
    "answer is, in lines": "answer is\n",
    "answer is, in sentences": "The answer is what it is. ",
    "ANSWER, answer": "ANSWER answer ",
    "hash signs": "####",
    "headings": "#### a\n",
    "spaces": " ",
    "newlines": "\n",
    "letters": "A",
    "letters and dots": "A.",
    "options": "A) b ",
    "brackets": "(A) ",
    "or": "B or ",
    "not": "not B ",
    "words": "happy ",
    "one letter": "a ",
    "Arabic digits": "٣",
    "Arabic digits and spaces": "٣ ",
    "accents": "é",
    "combining accents": "e\u0301",
    "accents out of order": "\u0301\u0323",
    "wide characters": "Ａ",
    "ligatures": "ﷺ",
    "emoji": "😀",
    "open reasoning": "<think>",
    "closed reasoning": "</think> a ",
    "answer tags": "<answer>1",
    "questions": "question ",
    "lines of questions": "\nQ a\nQuestion b",
    "new questions": ":\nQuestion: ",
    "lone surrogates": "\ud800",
    "nul": "\0",
}


def adversarial(length: int) -> Iterator[tuple[str, str]]:
    """Strings of a length, with their names: one piece over and over, and random characters."""
    for name, piece in REPEATED.items():
        yield name, (piece * (length // len(piece) + 1))[:length]
    rng = random.Random(0)
    yield "random bytes", rng.randbytes(length).decode("latin-1")
    yield "random characters", "".join(map(chr, rng.choices(range(0x11_0000), k=length)))
    pieces = ["12", "#### ", "\\boxed{", "}", "The answer is ", " or ", "=", "-", "\n", " ", ".", ",", "/", "(A)", "٣"]
    yield "random pieces", "".join(rng.choices(pieces, k=length))[:length]


@dataclass(frozen=True)
class Measured:
    """One rule on one kind of string.

    Attributes:
        rule (`str`), kind (`str`): which.
        times_ms (`tuple[float, ...]`): by length.
        growth (`float`): of the longest string over one of half its length.
    """

    rule: str
    kind: str
    times_ms: tuple[float, ...]
    growth: float


def best_ms(read: Callable[[str], object], text: str, runs: int) -> float:
    """The shortest of several runs, in milliseconds."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        read(text)
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


def measure(lengths: Sequence[int], rules: Sequence[str], runs: int) -> Iterator[Measured]:
    """Every rule on every kind of string."""
    by_length = [dict(adversarial(length)) for length in (*lengths, lengths[-1] // 2)]
    for rule in rules:
        for kind in by_length[0]:
            *times, half = [best_ms(RULES[rule], texts[kind], runs) for texts in by_length]
            yield Measured(rule, kind, tuple(times), times[-1] / half if half else float("nan"))


def table(measured: Sequence[Measured], lengths: Sequence[int], rule: str) -> Table:
    """One rule's times, slowest kind of string first."""
    made = Table(title=f"{rule}: milliseconds for one text")
    made.add_column("text made of")
    for length in lengths:
        made.add_column(f"{length:,}", justify="right")
    made.add_column("growth", justify="right")
    for row in sorted((row for row in measured if row.rule == rule), key=lambda row: -row.times_ms[-1]):
        cells = [f"[red]{ms:.2f}[/red]" if ms >= LIMIT_MS else f"{ms:.2f}" for ms in row.times_ms]
        made.add_row(row.kind, *cells, f"{row.growth:.1f}")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="characters, growing")
    parser.add_argument("--rules", nargs="+", choices=sorted(RULES), default=sorted(RULES))
    parser.add_argument("--runs", type=int, default=5, help="runs of which the shortest counts")
    options = parser.parse_args(arguments)
    console = Console()
    measured = list(measure(options.lengths, options.rules, options.runs))
    for rule in options.rules:
        console.print(table(measured, options.lengths, rule))
    slowest = max(measured, key=lambda row: row.times_ms[-1])
    console.print(
        f"slowest at {options.lengths[-1]:,} characters: {slowest.times_ms[-1]:.2f} ms "
        f"({slowest.rule}, {slowest.kind}); the limit is {LIMIT_MS:g} ms"
    )


if __name__ == "__main__":
    main()
