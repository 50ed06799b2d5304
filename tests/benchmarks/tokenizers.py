"""What ensembles across tokenizers predict and write: `python -m tests.benchmarks.tokenizers`.

Pairs of real tiny models with different tokenizers are decoded by appending pieces, by retokenising and by
the package's readings, and compared with their members alone. Two things are measured.

*Bits per byte* of lines of TinyStories. The first words of a line are the prompt, the same for everybody:
given in each member's own tokens and not scored. What follows, up to the end of a word, is scored as bytes:
its probability is summed over all segmentations into tokens, exactly where only the bytes count
(retokenising), else by unbiased particles. The logarithm of an unbiased estimate is on average a little too
low, so the figures of appending pieces and readings are, if anything, a little too high. One member alone is
the same sum over the segmentations into its own tokens. The members were trained on stories of this kind;
whether on these very lines is not known.

*Unknown words*: how many of 100 words sampled at temperature 1 are not in the TinyStories file.

Standard errors are over lines, or over sampled texts.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hf_rlae import EnsembleForCausalLM, Member, StaticPolicy
from hf_rlae.vocabulary import ByteVocabulary
from tests.benchmarks.estimators import WORD, lookaheads, particle_estimate, ratio, sample
from tests.benchmarks.rivals import AppendingDecoder, Decoder, EnsembleDecoder, RetokenisingDecoder
from tests.conftest import SHARED

CORPUS = Path("data/tinystories/tinystories_v1_part.txt")
WEIGHTS = ((0.5, 0.5), (0.8, 0.2))
PAIRS = ("stories260K+babyllama-tok105",)
PROMPT_WORDS = 4
ROWS = 64
"""The most rows of a batch where rows are texts (where they are particles, `--particles` says)."""

WORDS_TARGET = 1.5
"""How many unknown words per 100 readings may write more than the worse member alone."""


@dataclass(frozen=True)
class Passage:
    """A line of the corpus.

    Attributes:
        prompt (`str`): its first words.
        text (`bytes`): what is scored.
    """

    prompt: str
    text: bytes


@dataclass(frozen=True)
class Settings:
    """What is the same for every pair and decoder: see the options of the command."""

    lines: int
    bytes: int
    particles: int
    samples: int
    seed: int

    def generator(self) -> torch.Generator:
        """A new source of chance, the same for every decoder."""
        return torch.Generator().manual_seed(self.seed)


@dataclass(frozen=True)
class Score:
    """What was measured of one decoder.

    Attributes:
        name (`str`): of the decoder.
        weights (`tuple[float, ...]`): of the members; empty for one member alone.
        bits (`list[float]`): of each line.
        words (`list[int]`), unknown (`list[int]`): of each sampled text.
    """

    name: str
    weights: tuple[float, ...]
    bits: list[float]
    words: list[int]
    unknown: list[int]

    def unknown_rate(self) -> tuple[float, float]:
        """Unknown words per 100, and the standard error."""
        value, error = ratio(self.unknown, self.words)
        return 100 * value, 100 * error


class SkippedPair(Exception):
    """A pair that these decoders cannot compare; the message says why."""


class Comparison:
    """One pair of members, the lines that both can represent, and the scores so far.

    Args:
        pair (`str`): two folders in `models/`, joined by `+`.
        corpus (`str`): the whole file of lines.
        settings (`Settings`): see there.

    Raises:
        SkippedPair: something does not allow the comparison.
    """

    def __init__(self, pair: str, corpus: str, settings: Settings) -> None:
        self.pair = pair
        self.settings = settings
        self.known_words = {match.group().lower() for match in WORD.finditer(corpus)}
        names = pair.split("+")
        if len(names) != 2:
            raise SkippedPair("a pair is two names joined by +")
        missing = [name for name in names if not (SHARED / "models" / name).is_dir()]
        if missing:
            raise SkippedPair(f"models/{missing[0]} is not there; set HF_RLAE_SHARED to the folder that holds it")
        self.members = [Member.load(str(SHARED / "models" / name), dtype=torch.float32) for name in names]
        self.names = names
        if EnsembleForCausalLM.from_members(self.members).union is None:
            raise SkippedPair("the members have one tokenizer, and nothing to disagree about")
        try:
            passages = choose_passages(corpus, self.members, settings)
            self.retokenising = {weights: RetokenisingDecoder(self.members, weights) for weights in WEIGHTS}
        except ValueError as error:
            raise SkippedPair(str(error).replace(f"{SHARED / 'models'}/", "")) from error
        self.passages = passages[: settings.lines]
        self.prompts = [passage.prompt for passage in passages[settings.lines :]]
        self.scores: list[Score] = []

    @property
    def lengths(self) -> list[int]:
        """How many bytes of each line are scored."""
        return [len(passage.text) for passage in self.passages]

    def run(self) -> None:
        """Measures everything.

        Any guide gives unbiased particles, and a better one less variance. Appending pieces is as surprised by
        texts that go on inside a token as retokenising; readings are not, and neither is the member with the
        shortest tokens.
        """
        guides_alone = []
        for name, member in zip(self.names, self.members, strict=True):
            guides_alone.append(self.lookaheads(RetokenisingDecoder([member], [1.0])))
            self.measure(f"{name} alone", (), AppendingDecoder([member], [1.0]), guides_alone[-1])
        pieces = [ByteVocabulary(member.tokenizer).max_piece for member in self.members]
        finest = guides_alone[pieces.index(min(pieces))]
        for weights, retokenising in self.retokenising.items():
            guides = self.lookaheads(retokenising)
            ensemble = EnsembleForCausalLM.from_members(self.members, StaticPolicy(weights))
            self.measure("appending pieces", weights, AppendingDecoder(self.members, weights), guides)
            self.measure("retokenising", weights, retokenising, guides, is_exact=True)
            self.measure("readings", weights, EnsembleDecoder(ensemble), finest)

    def lookaheads(self, decoder: RetokenisingDecoder) -> list[list[float]]:
        """For each line what retokenising gives to the rest of it, at each position."""
        found = []
        for batch in batches(self.passages):
            found += lookaheads(decoder, [p.prompt for p in batch], [p.text for p in batch])
        return found

    def measure(
        self,
        name: str,
        weights: tuple[float, ...],
        decoder: Decoder,
        guides: Sequence[Sequence[float]],
        is_exact: bool = False,
    ) -> None:
        """Scores the lines and samples texts; `is_exact` says that the guides themselves are the result."""
        began = time.monotonic()
        generator = self.settings.generator()
        logps = [
            guide[0]
            if is_exact
            else particle_estimate(decoder, passage.prompt, passage.text, guide, self.settings.particles, generator)
            for passage, guide in zip(self.passages, guides, strict=True)
        ]
        generator = self.settings.generator()
        texts = [
            text
            for prompts in batches(self.prompts)
            for text in sample(decoder, prompts, self.settings.bytes, generator)
        ]
        words = [text.words() for text in texts]
        score = Score(
            name,
            weights,
            [-logp / math.log(2) for logp in logps],
            [len(found) for found in words],
            [sum(word not in self.known_words for word in found) for found in words],
        )
        self.scores.append(score)
        label = " ".join(filter(None, [f"{self.pair}:", name, as_weights(weights)]))
        progress(
            f"{label}: {as_number(ratio(score.bits, self.lengths), 3)} bits per byte, "
            f"{as_number(score.unknown_rate(), 1)} unknown words per 100, {time.monotonic() - began:.0f} s"
        )

    @property
    def alone(self) -> list[Score]:
        """The scores of the members."""
        return [score for score in self.scores if not score.weights]

    @property
    def better(self) -> Score:
        """The member that predicts the lines better."""
        return min(self.alone, key=lambda score: sum(score.bits))

    @property
    def worse_writer(self) -> Score:
        """The member that writes more unknown words."""
        return max(self.alone, key=lambda score: score.unknown_rate()[0])

    def bits_above(self, score: Score) -> tuple[float, float]:
        """Bits per byte above the better member, line by line, and the standard error."""
        pairs = zip(score.bits, self.better.bits, strict=True)
        return ratio([bits - better for bits, better in pairs], self.lengths)

    def unknown_above(self, score: Score) -> tuple[float, float]:
        """Unknown words per 100 above the worse member, and the standard error."""
        value, error = score.unknown_rate()
        worse, worse_error = self.worse_writer.unknown_rate()
        return value - worse, math.hypot(error, worse_error)

    def table(self) -> list[str]:
        """The scores as lines of Markdown."""
        fewest = min(sum(score.words) for score in self.scores)
        rows = [
            f"**{self.pair}**: {len(self.passages)} lines with {sum(self.lengths)} bytes, "
            f"{len(self.prompts)} sampled texts with {fewest} words or more.",
            "",
            "| decoder | weights | bits per byte | above the better member | unknown words per 100 |",
            "|---|---|---|---|---|",
        ]
        for score in self.scores:
            cells = [
                score.name,
                as_weights(score.weights),
                as_number(ratio(score.bits, self.lengths), 3),
                "" if score is self.better else as_number(self.bits_above(score), 3, sign="+"),
                as_number(score.unknown_rate(), 1),
            ]
            rows.append(f"| {' | '.join(cells)} |")
        return rows

    def targets(self) -> list[str]:
        """Whether readings do what they are there for, as lines of Markdown."""
        rows = []
        for score in self.scores:
            if score.name != "readings":
                continue
            bits, words = self.bits_above(score), self.unknown_above(score)
            where = f"{self.pair} {as_weights(score.weights)}"
            rows += [
                f"- {verdict(bits[0] < 0)}: {where}: readings need fewer bits per byte than the better "
                f"member: {as_number(bits, 3, sign='+')}",
                f"- {verdict(words[0] <= WORDS_TARGET)}: {where}: readings write at most {WORDS_TARGET} "
                f"unknown words per 100 more than the worse member: {as_number(words, 1, sign='+')}",
            ]
        return rows


def choose_passages(corpus: str, members: Sequence[Member], settings: Settings) -> list[Passage]:
    """Random lines, each once: first those that are scored, then those whose prompts texts are sampled from.

    Only lines count that every member can represent, with at least as many words behind the prompt as in it.

    Raises:
        ValueError: too few such lines, or longer ones than a member can read.
    """
    vocabularies = [ByteVocabulary(member.tokenizer, member.vocab_size) for member in members]
    lines = corpus.splitlines()
    random.Random(settings.seed).shuffle(lines)
    passages = []
    for line in lines:
        raw, words = line.encode(), line.split(" ")
        if len(words) < 2 * PROMPT_WORDS or any(v.representable(raw) != raw for v in vocabularies):
            continue
        prompt = " ".join(words[:PROMPT_WORDS])
        text = raw[len(prompt.encode()) :]
        if len(text) > settings.bytes:
            text = text[: text.rindex(b" ", 0, settings.bytes + 1)]
        if not text:
            continue
        passages.append(Passage(prompt, text))
        if len(passages) == settings.lines + settings.samples:
            break
    else:
        raise ValueError(f"there are only {len(passages)} lines for --lines and --samples together")
    # a token a byte, what tokenizers put in front, and the last token of a sampled text
    longest = max(len(passage.prompt.encode()) for passage in passages) + settings.bytes + 16
    for member in members:
        if member.context_length is not None and longest > member.context_length:
            raise ValueError(
                f"{member.name} reads {member.context_length} tokens: give less than {settings.bytes} --bytes"
            )
    return passages


def batches(items: Sequence) -> list[Sequence]:
    """The items in groups of at most `ROWS`."""
    return [items[start : start + ROWS] for start in range(0, len(items), ROWS)]


def as_number(value_and_error: tuple[float, float], digits: int, sign: str = "") -> str:
    """A value with its standard error."""
    value, error = value_and_error
    return f"{value:{sign}.{digits}f} ± {error:.{digits}f}"


def as_weights(weights: Sequence[float]) -> str:
    """Weights as they stand in the tables: `.5/.5`."""
    return "/".join(f"{weight:g}".removeprefix("0") for weight in weights)


def verdict(is_met: bool) -> str:
    """How a target is reported."""
    return "met" if is_met else "**not met**"


def progress(line: str) -> None:
    """Tells whoever waits how far it is."""
    print(line, file=sys.stderr, flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.tokenizers",
        description="Bits per byte and unknown words of ensembles across tokenizers.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--lines", type=int, default=40, help="lines that are scored, at least 2")
    parser.add_argument("--bytes", type=int, default=120, help="most bytes scored of a line, and sampled of a text")
    parser.add_argument("--particles", type=int, default=32, help="segmentations kept at a time")
    parser.add_argument("--samples", type=int, default=128, help="texts sampled per decoder, at least 2")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of lines and of everything drawn")
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS), help="folders in models/, joined by +")
    parser.add_argument("--output", type=Path, help="also write the tables to this Markdown file")
    options = parser.parse_args(arguments)
    for name, least in (("lines", 2), ("bytes", 32), ("particles", 1), ("samples", 2)):
        if getattr(options, name) < least:
            parser.error(f"--{name} is at least {least}")
    if not (SHARED / CORPUS).exists():
        parser.error(f"{CORPUS} is not there; set HF_RLAE_SHARED to the folder that holds it")
    return options


@torch.inference_mode()
def main(arguments: Sequence[str] | None = None) -> None:
    """Measures all pairs and prints the tables."""
    options = parse(arguments)
    settings = Settings(options.lines, options.bytes, options.particles, options.samples, options.seed)
    corpus = (SHARED / CORPUS).read_text(encoding="utf-8")
    began = time.monotonic()
    report, targets = [], []
    for pair in options.pairs:
        try:
            comparison = Comparison(pair, corpus, settings)
        except SkippedPair as reason:
            report += [f"{pair}: skipped: {reason}", ""]
            continue
        comparison.run()
        report += [*comparison.table(), ""]
        targets += comparison.targets()
    report += [
        f"Value ± standard error. At most {settings.bytes} bytes of a line or sampled text behind a prompt "
        f"of {PROMPT_WORDS} words; {settings.particles} particles; seed {settings.seed}.",
    ]
    if targets:
        report += ["", "Targets:", "", *targets]
    text = "\n".join(report) + "\n"
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    progress(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
