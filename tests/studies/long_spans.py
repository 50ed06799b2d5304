"""Long spans on the embedded specialists: how much can be reached, and what a look-ahead gains.

    python -m tests.studies.long_spans --output DIR

For every span length: the oracle, the best that one member per span can reach in hindsight, policies that the oracle
supervises, and trained policies. Policies are trained with and without `lookahead_tokens`, from as many texts.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.policies import StaticPolicy
from hf_rlae.tasks.chains import Question
from hf_rlae.zoo import OraclePolicy, load_demo_members
from hf_rlae.zoo.solving import MAX_NEW_TOKENS
from tests.studies import chain_policies as chains
from tests.studies.parallel_runs import do_runs
from tests.studies.results import ResultFolder, file_name
from tests.studies.rlae_tables import StudyTable, as_markdown, right_answers_of

KIND = "shared"
MOST_TEXTS = 3000
"""Of one question, while the best members are searched; more are not continued, so the bound may then be too low."""
AT_ONCE = 500
"""Texts of one call of `generate`."""


def solved_in_hindsight(members: Sequence[Any], questions: Sequence[Question], span_length: int) -> list[bool]:
    """Which questions some choice of one member per span answers right, greedily: all choices are tried."""
    alone = [StaticPolicy(weights.tolist()) for weights in torch.eye(len(members))]
    ensembles = [chains.with_policy(members, policy, span_length) for policy in alone]
    solved = [False] * len(questions)
    texts = [[""] for _ in questions]  # all different ones that can be reached, by question
    for _ in range(-(-MAX_NEW_TOKENS // span_length)):
        begun = [(place, text) for place, own in enumerate(texts) if not solved[place] for text in own]
        longer: list[dict[str, None]] = [{} for _ in questions]
        for ensemble in ensembles:
            for (place, before), (new, ended) in zip(
                begun, _continued(ensemble, questions, begun, span_length), strict=True
            ):
                if ended:
                    solved[place] |= questions[place].is_solved_by(before + new)
                else:
                    longer[place][before + new] = None
        texts = [list(own)[:MOST_TEXTS] for own in longer]
    return solved


@torch.inference_mode()
def _continued(
    ensemble: EnsembleForCausalLM, questions: Sequence[Question], texts: Sequence[tuple[int, str]], num_tokens: int
) -> Iterator[tuple[str, bool]]:
    """What follows texts, given with the place of their question, and whether they have ended then."""
    tokenizer, ends = ensemble.tokenizer, set(ensemble.members[0].end_ids)
    for start in range(0, len(texts), AT_ONCE):
        prompts = [questions[place].prompt + text for place, text in texts[start : start + AT_ONCE]]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True)
        sequences = ensemble.generate(**inputs, max_new_tokens=num_tokens, do_sample=False)
        new = sequences[:, inputs["input_ids"].shape[1] :]
        decoded = tokenizer.batch_decode(new, skip_special_tokens=True)
        yield from zip(decoded, (not ends.isdisjoint(ids) for ids in new.tolist()), strict=True)


@dataclass(frozen=True)
class LongSpan:
    """One thing to measure.

    Attributes:
        span_length (`int`): tokens per span.
        method (`str`): `"oracle switching"`, `"hindsight"`, `"supervised"` or a method of `chains.TRAINED`.
        lookahead (`int`): `lookahead_tokens` of the policy.
        rollouts (`int`): of the training, or as many questions for a supervised policy.
        seed (`int`): of the training.
    """

    span_length: int
    method: str
    lookahead: int = 0
    rollouts: int = 20
    seed: int = 0

    @property
    def name(self) -> str:
        """The name of its file."""
        parts = (f"span{self.span_length}", self.method, f"ahead{self.lookahead}", f"rollouts{self.rollouts}")
        return file_name(*parts, f"seed{self.seed}")

    def training(self, settings: dict[str, Any]) -> chains.PolicyTraining | None:
        """How a policy is trained; a supervised one is as `mixture` is. `None` where nothing is trained."""
        training = chains.TRAINED.get("mixture" if self.method == "supervised" else self.method)
        if training is None:
            return None
        policy = {**training.policy, "lookahead_tokens": self.lookahead}
        return chains.replaced(training, rollouts=settings["rollouts"] or self.rollouts, policy=policy)

    def measure(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Trains if there is something to train, then answers the test questions.

        Returns:
            `dict`: `right` (a string of 0 and 1, one a question), `accuracy`, and the rewards of rollouts.
        """
        members = load_demo_members(KIND)
        test = chains.held_out_questions(settings["questions"])
        found: dict[str, Any] = {}
        if self.method == "hindsight":
            right = [float(solved) for solved in solved_in_hindsight(members, test, self.span_length)]
        else:
            ensemble = chains.with_policy(members, self._policy(members, settings, found), self.span_length)
            right = chains.right_answers(ensemble, test)[0].tolist()
        return {**found, "right": chains.as_digits(right), "accuracy": sum(right) / len(right)}

    def _policy(self, members: Sequence[Any], settings: dict[str, Any], found: dict[str, Any]) -> Any:
        training = self.training(settings)
        if training is None:
            return OraclePolicy()
        if self.method == "supervised":
            return chains.supervise_policy(members, self.span_length, training, self.seed)
        policy, found["rewards"] = chains.train_policy(members, self.span_length, training, self.seed)
        return policy


def plan(
    span_lengths: Sequence[int], methods: Sequence[str], lookaheads: Sequence[int], rollouts: Sequence[int], seeds: int
) -> list[LongSpan]:
    """All runs of the study, the cheap ones first."""
    runs = [LongSpan(length, method) for length in span_lengths for method in ("oracle switching", "hindsight")]
    for seed in range(seeds):
        for length in span_lengths:
            for count in rollouts:
                runs += [LongSpan(length, method, ahead, count, seed) for method in methods for ahead in lookaheads]
    return runs


def right_table(entries: Sequence[tuple[LongSpan, dict[str, Any]]]) -> StudyTable:
    """One row a method, look-ahead and number of rollouts; a column a span length, with the mean over seeds."""
    lengths = sorted({run.span_length for run, _ in entries})
    kinds = list(dict.fromkeys((run.method, run.lookahead, run.rollouts) for run, _ in entries))
    rows = []
    for kind in kinds:
        is_trained = kind[0] not in ("oracle switching", "hindsight")
        row = [kind[0], *(str(value) if is_trained else "" for value in kind[1:])]
        for length in lengths:
            of_kind = [
                found["right"]
                for run, found in entries
                if (run.method, run.lookahead, run.rollouts, run.span_length) == (*kind, length)
            ]
            by_seed = right_answers_of(of_kind).mean(1) if of_kind else []
            row.append(", ".join(f"{value:.3f}" for value in by_seed))
        rows.append(tuple(row))
    return StudyTable(("weights", "look-ahead", "rollouts", *(f"span {length}" for length in lengths)), tuple(rows))


def main(arguments: Sequence[str] | None = None) -> None:
    """Does the runs that are missing and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.long_spans", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the results; continued if it is there")
    parser.add_argument("--span-lengths", nargs="+", type=int, default=[8, 16])
    parser.add_argument("--methods", nargs="+", default=["supervised", "ppo (gae)"])
    parser.add_argument("--lookaheads", nargs="+", type=int, default=[0, 4, 8])
    parser.add_argument("--rollouts", nargs="+", type=int, default=[20])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--questions", type=int, default=400, help="held-out questions")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    options = parser.parse_args(arguments)
    results = ResultFolder(options.output, {"questions": options.questions, "rollouts": None})
    console = Console(width=150)
    runs = plan(options.span_lengths, options.methods, options.lookaheads, options.rollouts, options.seeds)
    do_runs(runs, results, options.jobs, console)
    table = right_table([(run, results.read(run.name) or {}) for run in runs])
    console.print(table.shown(f"{KIND} tokenizer"))
    as_markdown(table, results.folder / "table.md")


if __name__ == "__main__":
    main()
