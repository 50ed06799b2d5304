"""Two real language models by domain: `python -m tests.studies.real_llms --models A B --data DIR --output DIR`.

Bits per byte of stories, word problems, code, science questions, and texts with code inside prose: of each member, of
uniform and fixed weights, of members that append tokens, and of policies that were trained on the likelihood of other
texts. Members read every text once (`tests.studies.real_llms_scores`); with `--check`, a few mixed texts are also
scored by `hf_rlae.evaluate`, with the ensemble's own teacher forcing and its times.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import nn
from transformers.utils.logging import disable_progress_bar

from hf_rlae import EnsembleForCausalLM, evaluate
from hf_rlae.baselines.fixed_weights import best_fixed_weights
from hf_rlae.members import Member
from hf_rlae.policies import PolicyConfig, PolicyModel
from tests.studies.bootstrap import paired_bootstrap
from tests.studies.real_llms_scores import Scored, Scorer, bits_of, read_scores
from tests.studies.real_llms_texts import DOMAINS, MIXED, SPLITS, read_sets
from tests.studies.results import ResultFolder
from tests.studies.rlae_tables import StudyTable, as_markdown

SETS = (*DOMAINS, MIXED)
HIDDEN = 64
RATE, EPOCHS, DECAY = 1e-3, 40, 1e-2
Texts = dict[str, list[Scored]]


def span_starts(scored: Scored, span_length: int) -> list[int]:
    """For each stretch, the stretch at which its span begins: the first one `span_length` tokens after the last."""
    starts, begin, tokens = [], 0, 0
    for at, count in enumerate(scored.num_tokens.tolist()):
        if tokens >= span_length:
            begin, tokens = at, 0
        starts.append(begin)
        tokens += count
    return starts


def new_policy(members: Sequence[Any], seed: int, span_length: int) -> PolicyModel:
    """A policy with random heads that observes the members."""
    torch.manual_seed(seed)
    return PolicyModel(PolicyConfig.for_members(members, hidden_size=HIDDEN, span_length=span_length))


def policy_weights(policy: PolicyModel, scored: Scored, span_length: int) -> torch.Tensor:
    """The weights of every stretch, `(S, M)`."""
    starts = span_starts(scored, span_length)
    asked = sorted(set(starts))
    seen = {name: tensor[asked] for name, tensor in scored.seen.items()}
    weights = policy(seen, sample=False).weights
    return weights[[asked.index(start) for start in starts]]


def train(policy: PolicyModel, texts: Sequence[Scored], validation: Sequence[Scored], seed: int, span: int) -> int:
    """Trains on the likelihood of texts; the state with the best likelihood of validation texts is kept.

    Returns:
        `int`: the epoch of that state; 0 is before the first.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=RATE, weight_decay=DECAY)
    best, kept, at = mean_bits(policy, validation, span), _copy(policy), 0
    for epoch in range(1, EPOCHS + 1):
        for part in torch.randperm(len(texts), generator=generator).split(8):
            loss = torch.zeros(())
            for index in part.tolist():
                scored = texts[index]
                weights = policy_weights(policy, scored, span)
                loss = loss - (scored.logps + weights.log()).logsumexp(-1).sum() / scored.num_bytes
            optimizer.zero_grad()
            (loss / len(part)).backward()
            nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
        now = mean_bits(policy, validation, span)
        if now < best:
            best, kept, at = now, _copy(policy), epoch
    policy.load_state_dict(kept)
    policy.eval()
    return at


def _copy(policy: PolicyModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in policy.state_dict().items()}


@torch.no_grad()
def mean_bits(policy: PolicyModel, texts: Sequence[Scored], span: int) -> float:
    """Bits per byte, all texts alike."""
    found = [bits_of(scored, policy_weights(policy, scored, span)) / scored.num_bytes for scored in texts]
    return float(np.mean(found))


def tuned(texts: Sequence[Scored], resolution: int, by: str = "logps") -> list[float]:
    """The fixed weights with the fewest bits."""

    def score(weights: Sequence[float]) -> float:
        return -sum(bits_of(scored, torch.tensor(weights), by=by) / scored.num_bytes for scored in texts)

    return list(best_fixed_weights(score, texts[0].logps.shape[1], resolution).weights)


class Study:
    """What is known of all texts, and what methods make of them.

    Args:
        members: of the ensemble.
        names (`Sequence[str]`): how tables call them.
        scores (`dict[str, Texts]`): by split and set.
        options (`argparse.Namespace`): of the command.
    """

    def __init__(
        self, members: Sequence[Any], names: Sequence[str], scores: dict[str, Texts], options: argparse.Namespace
    ) -> None:
        self.members, self.names, self.scores, self.options = list(members), list(names), scores, options
        self.together = tuned([s for texts in scores["validation"].values() for s in texts], options.resolution)

    def policies(self, sets: Sequence[str]) -> list[PolicyModel]:
        """One per seed, trained on some of the sets."""
        found = []
        for seed in range(self.options.seeds):
            policy = new_policy(self.members, seed, self.options.span)
            texts = [[s for name in sets for s in self.scores[split][name]] for split in ("train", "validation")]
            train(policy, texts[0], texts[1], seed, self.options.span)
            found.append(policy)
        return found

    def fixed(self, name: str) -> dict[str, Any]:
        """Methods without training: bits per byte of each test text, `(1, N)`, and the weights."""
        count = len(self.members)
        validation = self.scores["validation"][name]
        methods = {member: _one_hot(at, count) for at, member in enumerate(self.names)}
        methods |= {"uniform": [1 / count] * count, "fixed, tuned on all sets": self.together}
        methods["fixed, tuned on this set"] = tuned(validation, self.options.resolution)
        found = {method: (self._bits(name, weights), weights) for method, weights in methods.items()}
        for method, weights in (
            ("appending, uniform", [1 / count] * count),
            ("appending, tuned on this set", tuned(validation, self.options.resolution, "appended")),
        ):
            found[method] = (self._bits(name, weights, "appended"), weights)
        return found

    def _bits(self, name: str, weights: Sequence[float], by: str = "logps") -> np.ndarray:
        given = torch.tensor(weights)
        return np.array([[bits_of(s, given, by=by) / s.num_bytes for s in self.scores["test"][name]]])

    @torch.no_grad()
    def of_policies(self, name: str, policies: Sequence[PolicyModel]) -> tuple[np.ndarray, list[float]]:
        """Bits per byte `(seeds, N)` and mean weights."""
        rows, weights = [], []
        for policy in policies:
            given = [policy_weights(policy, s, self.options.span) for s in self.scores["test"][name]]
            pairs = zip(self.scores["test"][name], given, strict=True)
            rows.append([bits_of(s, w) / s.num_bytes for s, w in pairs])
            weights += given
        return np.array(rows), torch.cat(weights).mean(0).tolist()

    def oracle(self, name: str, *, by_span: bool) -> np.ndarray:
        """The better member of each text, or of each span, which no method knows."""
        found = []
        for s in self.scores["test"][name]:
            starts = torch.tensor(span_starts(s, self.options.span) if by_span else [0] * len(s.logps))
            sums = torch.zeros(len(s.logps), len(self.members), dtype=torch.float64).index_add_(
                0, starts, s.logps.double()
            )
            found.append(-float(sums.max(-1).values.sum()) / np.log(2) / s.num_bytes)
        return np.array([found])


def _one_hot(at: int, count: int) -> list[float]:
    return [float(at == index) for index in range(count)]


def run(study: Study) -> tuple[dict[str, dict[str, Any]], list[PolicyModel]]:
    """All methods on all sets, and the policies that were trained on all of them."""
    learned = study.policies(SETS)
    found: dict[str, dict[str, Any]] = {}
    for name in SETS:
        methods = study.fixed(name)
        methods["policy"] = study.of_policies(name, learned)
        others = [other for other in SETS if other != name]
        methods["policy, trained on the other sets"] = study.of_policies(name, study.policies(others))
        methods["oracle, better member of each text"] = (study.oracle(name, by_span=False), [])
        methods["oracle, better member of each span"] = (study.oracle(name, by_span=True), [])
        found[name] = methods
    return found, learned


def table(study: Study, methods: dict[str, Any], name: str) -> StudyTable:
    """One row a method, with paired differences to the best member and to the best fixed weights of the set."""
    validation = study.scores["validation"][name]
    alone = [
        sum(bits_of(s, torch.tensor(_one_hot(at, len(study.names)))) for s in validation)
        for at in range(len(study.names))
    ]
    best, fixed = study.names[int(np.argmin(alone))], "fixed, tuned on this set"
    rows = []
    for method, (bits, weights) in methods.items():
        cells = [method, f"{bits.mean():.3f}", " / ".join(f"{w:.2f}" for w in weights)]
        for other in (best, fixed):
            low, high = paired_bootstrap([bits, methods[other][0]], lambda a, b: a - b)
            gap = bits.mean() - methods[other][0].mean()
            cells.append("" if other == method else f"{gap:+.3f} [{low:+.3f}, {high:+.3f}]")
        rows.append(tuple(cells))
    count = len(study.scores["test"][name])
    headings = ("method", "bits per byte", "weights", f"against {best}", f"against {fixed}")
    return StudyTable(headings, tuple(rows), (f"{count} texts; 95% intervals: paired bootstrap over texts and seeds.",))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.studies.real_llms",
        description="Two real language models by domain, and policies for them.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--models", nargs="+", type=Path, required=True, help="folders of the members, two or more")
    parser.add_argument("--data", type=Path, required=True, help="folder of tinystories, gsm8k, mbpp, arc_challenge")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--scores", type=Path, required=True, help="folder of what members make of texts; continued")
    parser.add_argument("--train", type=int, default=24, help="texts per set to train policies on")
    parser.add_argument("--validation", type=int, default=8, help="texts per set to tune on")
    parser.add_argument("--test", type=int, default=16, help="texts per set to measure on")
    parser.add_argument("--characters", type=int, default=240, help="of a text")
    parser.add_argument("--span", type=int, default=4, help="tokens of the first member per span")
    parser.add_argument("--seeds", type=int, default=5, help="trainings of the policy")
    parser.add_argument("--resolution", type=int, default=20, help="fixed weights are tried in steps of 1 / this")
    parser.add_argument("--check", type=int, default=0, help="mixed texts that `evaluate` scores, too")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    options = parser.parse_args(arguments)
    for name in ("train", "validation", "test", "span", "seeds", "resolution", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)}: at least 1")
    if len(options.models) < 2:
        parser.error("--models: give two or more folders")
    return options


def check(study: Study, texts: Sequence[str], policy: PolicyModel, folder: Path) -> Any:
    """The same methods under the ensemble's own teacher forcing, with times."""
    ensemble = EnsembleForCausalLM.from_members(study.members, None, span_length=study.options.span)
    methods = {
        "uniform": "uniform",
        "fixed, tuned on this set": tuned(study.scores["validation"][MIXED], study.options.resolution),
    }
    rows = [{"text": text} for text in texts]
    methods["policy"] = policy
    return evaluate(ensemble, {MIXED: rows}, methods=methods, scoring="bits_per_byte", batch_size=1, output_dir=folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Scores what is missing, trains, and writes the tables."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    disable_progress_bar()
    counts = {split: getattr(options, split) for split in SPLITS}
    sets = read_sets(options.data, counts, options.characters)
    members = [Member.load(str(path), dtype=torch.bfloat16) for path in options.models]
    names = [path.resolve().name for path in options.models]
    settings = counts | {name: getattr(options, name) for name in ("characters", "span", "seeds", "resolution")}
    settings |= {"models": names, "hidden_size": HIDDEN, "learning_rate": RATE, "epochs": EPOCHS, "weight_decay": DECAY}
    results = ResultFolder(options.output, settings)
    scorer = Scorer(members, options.scores)
    kept = {split: {name: [f"{name}-{split}-{at}" for at in range(counts[split])] for name in SETS} for split in SPLITS}
    todo = [(kept[s][name][at], sets[name][s][at]) for s in SPLITS for name in SETS for at in range(counts[s])]
    for key, text in track(todo, "members read texts"):
        scorer.score(key, text, appends="-train-" not in key)
    scores = {
        split: {name: read_scores(options.scores, keys) for name, keys in of.items()} for split, of in kept.items()
    }
    started = time.process_time()
    study = Study(members, names, scores, options)
    found, learned = run(study)
    console = Console(width=150)
    for name, methods in found.items():
        rows = {
            method: {"bits_per_byte": np.round(bits, 4).tolist(), "weights": w} for method, (bits, w) in methods.items()
        }
        if results.read(name) is None:
            results.write(name, rows)
        made = table(study, methods, name)
        console.print(made.shown(name))
        as_markdown(made, options.output / f"{name}.md")
    quality = [np.mean([mean_bits(p, scores["validation"][name], options.span) for name in SETS]) for p in learned]
    best = learned[int(np.argmin(quality))]
    best.save_pretrained(options.output / "policy")
    console.print(f"training and tables: {time.process_time() - started:.0f} CPU seconds")
    if options.check:
        report = check(study, sets[MIXED]["test"][: options.check], best, options.output / "check")
        console.print(report.to_markdown())


if __name__ == "__main__":
    main()
