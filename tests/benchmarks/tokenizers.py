"""What ensembles across tokenizers predict, write and cost: `python -m tests.benchmarks.tokenizers`.

Sets of members with different tokenizers are measured at every grain of the union vocabulary, against the members
alone and against *exact byte mixing*: each member's exact distribution of the next byte, a sum over all segmentations,
mixed byte by byte. That is what an ensemble across tokenizers means, free of tokenization. Some members are real tiny
models, the others are trained by this command on nine tenths of the TinyStories file, once (about ten minutes).

*Bits per byte* of lines of the last tenth. The first words of a line are the prompt, given in each member's own tokens
and not scored. What follows, up to the end of a word, is scored as bytes. The probability of a line is a sum over its
segmentations into union tokens: a single one at the grain of bytes, else estimated by particles without bias. The
logarithm of an unbiased estimate is on average a little too low, so that figures with several segmentations are, if
anything, a little too high. Whether the real models saw these lines in training is not known.

*Unknown words*: how many of 100 words sampled at temperature 1 are not in the TinyStories file.

*Cost*: forward passes of all members per byte, those of each member per token that its own tokenizer cuts the text
into, and CPU time, in texts sampled one at a time. For exact byte mixing the passes are those that score the lines.

Every finished row is written to `--output` at once, and a later run with the same options continues there.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from hf_rlae import Member
from hf_rlae.files import write_whole
from tests.benchmarks import passages
from tests.benchmarks.decoding_cost import Cost
from tests.benchmarks.story_members import TOKENIZERS, default_cache, split, story_member
from tests.benchmarks.tokenizer_rows import Measurer, Row, Score, rows_of, words_in
from tests.benchmarks.tokenizer_tables import Table, as_weights, summary
from tests.conftest import SHARED

CORPUS = Path("data/tinystories/tinystories_v1_part.txt")
SOLUTIONS = Path("data/gsm8k/test.jsonl")
SETS = (
    "stories260K+babyllama-tok105",
    "stories260K+babyllama-tok105+llama2xs",
    "bpe300+bpe8k",
    "bpe1k+bpe8k",
    "bpe1k+unigram4k",
    "bpe8k+spaces1k",
)
WEIGHTS = ((0.5, 0.5), (0.8, 0.2), (0.2, 0.8))
RIVALS = ("appending", "retokenising")
SETTINGS = ("lines", "bytes", "particles", "samples", "seed", "cost_texts", "steps")
QUICK = {"lines": 3, "bytes": 48, "particles": 4, "samples": 4, "cost_texts": 1, "steps": 20, "weights": WEIGHTS[:1]}


class SkippedSet(Exception):
    """Members that cannot be compared; the message says why."""


class Benchmark:
    """One set of members, and the rows that are measured or were.

    Args:
        names (`str`): of the members, joined by `+`: folders, names of folders in `models/`, or of `TOKENIZERS`.
        options (`argparse.Namespace`): of the command.

    Raises:
        SkippedSet: something does not allow the comparison.
    """

    def __init__(self, names: str, options: argparse.Namespace) -> None:
        self.options = options
        self.title = "+".join(Path(name).name for name in names.split("+"))
        self.names = self.title.split("+")
        corpus = (SHARED / CORPUS).read_text(encoding="utf-8")
        self.members = [self._load(name, corpus) for name in names.split("+")]
        if len({str(sorted(member.tokenizer.get_vocab())) for member in self.members}) < 2:
            raise SkippedSet("the members have one tokenizer, and nothing to disagree about")
        if options.solutions:
            source = passages.solutions(SHARED / SOLUTIONS, options.bytes)
        else:
            source = passages.stories(split(corpus)[1], options.bytes, options.seed)
        try:
            chosen = passages.choose(source, self.members, options.lines + options.samples)
        except ValueError as error:
            raise SkippedSet(str(error)) from error
        scored, rest = chosen[: options.lines], chosen[options.lines :]
        self.lengths = [len(passage.text) for passage in scored]
        prompts = [passage.prompt for passage in rest]
        settings = (options.bytes, options.particles, options.seed, options.cost_texts, options.batch)
        self.measurer = Measurer(self.members, scored, prompts, words_in(corpus), *settings)

    def _load(self, name: str, corpus: str) -> Member:
        if name in TOKENIZERS:
            return story_member(name, corpus, self.options.cache, self.options.steps, report=progress)
        folder = next((path for path in (SHARED / "models" / name, Path(name)) if path.is_dir()), None)
        if folder is None:
            raise SkippedSet(f"models/{name} is not there; set HF_RLAE_SHARED to the folder that holds it")
        return Member.load(str(folder), dtype=torch.float32)

    def run(self) -> Table:
        """Measures what was not measured yet."""
        count = len(self.members)
        weights = [shares for shares in self.options.weights if len(shares) == count] or [(1 / count,) * count]
        scores: dict[Row, Score] = {}
        for row in rows_of(count, weights):
            if row.kind == "alone" or any(fnmatch.fnmatch(row.name, pattern) for pattern in self.options.rows):
                scores[row] = self._score(row, scores)
        return Table(self.title, self.names, self.lengths, scores)

    def _score(self, row: Row, scores: dict[Row, Score]) -> Score:
        settings = {name: getattr(self.options, name) for name in SETTINGS}
        path = None
        if self.options.output:
            shares = "-".join(f"{weight:.3g}" for weight in row.weights)
            name = f"{shares} {row.name}".replace(",", "").replace(" ", "_")
            path = self.options.output / self.title / f"{name}.json"
        if path and path.exists():
            saved = json.loads(path.read_text(encoding="utf-8"))
            if saved["settings"] == settings:
                cost = saved["score"].pop("cost")
                return Score(**saved["score"], cost=cost and Cost(**cost))
        began = time.process_time()
        if row.grain == "auto":
            same = dataclasses.replace(row, grain=self.measurer.chosen_grain(row))
            score = scores[same] if same in scores else self.measurer.measure(row)
        else:
            score = self.measurer.measure(row)
        seconds = time.process_time() - began
        bits = sum(score.bits) / sum(self.lengths)
        progress(f"{self.title} {as_weights(row.weights)} {row.name}: {bits:.4f} bits per byte, {seconds:.0f} s")
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = {"settings": settings, "score": dataclasses.asdict(score), "seconds": seconds}
            write_whole(path, json.dumps(content))
        return score


def progress(line: str) -> None:
    """Prints a line of progress to stderr."""
    print(line, file=sys.stderr, flush=True)


def weights_of(text: str) -> tuple[float, ...]:
    """Weights that are given as in `.5/.5`."""
    weights = tuple(map(float, text.split("/")))
    if min(weights) < 0 or abs(sum(weights) - 1) > 1e-6:
        raise argparse.ArgumentTypeError(f"{text}: weights are 0 or more, and their sum is 1")
    return weights


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.tokenizers",
        description=(__doc__ or "").split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--lines", type=int, default=24, help="lines that are scored, at least 2")
    add("--bytes", type=int, default=120, help="most bytes scored of a line, and sampled of a text")
    add("--particles", type=int, default=64, help="segmentations of a line that are kept at a time")
    add("--batch", type=int, default=256, help="the most rows of a forward pass; fewer need less memory")
    add("--samples", type=int, default=32, help="texts sampled per decoder; 0 for none")
    add("--cost-texts", type=int, default=2, help="how many of them are sampled again, one at a time, for the cost")
    add("--seed", type=int, default=0, help="of the choice of lines and of everything drawn")
    add("--members", nargs="+", default=list(SETS), help="members joined by +: folders, or names that are known here")
    add("--weights", nargs="+", type=weights_of, default=list(WEIGHTS), help="as in .5/.5; uniform for other numbers")
    add("--rows", nargs="+", default=["exact*", "grain*"], help=f"which rows, as patterns; also {', '.join(RIVALS)}")
    add("--solutions", action="store_true", help="score solutions of GSM8K in place of stories")
    add("--cache", type=Path, default=default_cache(), help="where trained members are kept")
    add("--steps", type=int, help="steps of training of each member; fewer make worse members")
    add("--output", type=Path, help="folder for finished rows and for the tables, tables.md")
    add("--quick", action="store_true", help="few short lines and members that learned little: to see that it works")
    options = parser.parse_args(arguments)
    if options.quick:
        vars(options).update(QUICK)
    for name, least in (("lines", 2), ("bytes", 32), ("particles", 1), ("batch", 1), ("samples", 0), ("cost_texts", 0)):
        if getattr(options, name) < least:
            parser.error(f"--{name.replace('_', '-')} is at least {least}")
    for path in (CORPUS, *([SOLUTIONS] if options.solutions else [])):
        if not (SHARED / path).exists():
            parser.error(f"{path} is not there; set HF_RLAE_SHARED to the folder that holds it")
    return options


@torch.inference_mode()
def main(arguments: Sequence[str] | None = None) -> None:
    """Measures all sets of members and prints the tables."""
    options = parse(arguments)
    torch.set_num_threads(1)
    began = time.process_time()
    report, tables = [], []
    for names in options.members:
        try:
            tables.append(Benchmark(names, options).run())
        except SkippedSet as reason:
            report += [f"{names}: skipped: {reason}", ""]
            continue
        report += [*tables[-1].lines(), ""]
    report += [
        f"Value ± standard error. At most {options.bytes} bytes of a line or sampled text; {options.particles} "
        f"particles; {options.samples} sampled texts; seed {options.seed}.",
    ]
    if len(tables) > 1:
        report += ["", "Bits per byte (passes per byte):", "", *summary(tables)]
    if frontiers := [line for table in tables for line in table.frontiers()]:
        report += ["", "Frontiers of bits per byte and passes per byte:", "", *frontiers]
    if targets := [line for table in tables for line in table.targets()]:
        report += ["", "Targets:", "", *targets]
    text = "\n".join(report) + "\n"
    print(text)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        write_whole(options.output / "tables.md", text)
    progress(f"{time.process_time() - began:.0f} s of CPU time")


if __name__ == "__main__":
    main()
