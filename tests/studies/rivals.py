"""RLAE beside its rivals: `python -m tests.studies.rivals SET --output DIR`.

All baselines of `hf_rlae.baselines` and the policies of RLAE on the same questions, by `hf_rlae.evaluate`: quality and
cost side by side. Sets: `embedded`, the specialists of the package on chains of arithmetic, with policies trained by
each objective; `stories`, small story models, and `llms`, language models, in bits per byte (`--models`, `--data`).
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from transformers import AutoModelForSequenceClassification
from transformers.utils.logging import disable_progress_bar

from hf_rlae import EnsembleForCausalLM, evaluate, get_baseline, list_baselines, load_demo_members
from hf_rlae.members import Member
from hf_rlae.policies import PolicyModel
from hf_rlae.rewards.pair_judges import PairJudge
from hf_rlae.tasks import get_task, load_task
from hf_rlae.tasks.chains import answer_of
from hf_rlae.zoo.solving import MAX_NEW_TOKENS
from tests.studies.bootstrap import paired_bootstrap
from tests.studies.chain_policies import TRAINED, held_out_questions, train_policy, training_questions
from tests.studies.pair_classifier import trained_judge
from tests.studies.real_llms_texts import MIXED, read_sets
from tests.studies.results import ResultFolder
from tests.studies.rlae_tables import StudyTable, as_markdown

LEARNED = {"RLAE ppo": "ppo (gae)", "RLAE mappo": "mappo (gae)", "RLAE mixture": "mixture"}
"""The policies of RLAE, and how `tests.studies.chain_policies` trains them."""
SPAN_LENGTH = 2
SCORED = ("uniform", "best_fixed", "perplexity", "entropy")
"""Baselines that are a distribution over texts, so that their bits per byte are defined."""
_SEEDED = " seed "


def embedded_methods(ensemble: EnsembleForCausalLM, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All baselines but those whose rows members have already, and policies of each objective; trained ones per seed.

    Args:
        ensemble (`EnsembleForCausalLM`): the members.
        folder (`Path`): where trained policies and judges are kept, so that a run that was stopped goes on.
        options (`argparse.Namespace`): of the command.
    """
    made: dict[str, Any] = {name: name for name in list_baselines() if name not in ("ensemble", "pair_ranker")}
    made["best_fixed"] = get_baseline("best_fixed", resolution=options.resolution)
    made["majority_vote"] = get_baseline("majority_vote", answer=answer_of)
    for seed in options.seeds:
        judge = _kept(folder / f"judge-{seed}", lambda seed=seed: _judge(ensemble, seed, options))
        model = AutoModelForSequenceClassification.from_pretrained(judge).eval()
        tokenizer = ensemble.members[0].tokenizer
        made[f"pair_ranker{_SEEDED}{seed}"] = get_baseline("pair_ranker", judge=PairJudge(model, tokenizer))
        for name, recipe in LEARNED.items():
            made[f"{name}{_SEEDED}{seed}"] = PolicyModel.from_pretrained(
                _kept(
                    folder / f"{name.replace(' ', '_')}-{seed}",
                    lambda seed=seed, r=recipe: _policy(ensemble, r, seed, options),
                )
            ).eval()
    return made


def _kept(folder: Path, make: Callable[[], Any]) -> str:
    if not folder.exists():
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        make().save_pretrained(part)
        part.rename(folder)
    return str(folder)


def _policy(ensemble: EnsembleForCausalLM, recipe: str, seed: int, options: argparse.Namespace) -> PolicyModel:
    settings = TRAINED[recipe]
    if options.rollouts != settings.rollouts:
        settings = type(settings)(**{**settings.__dict__, "rollouts": options.rollouts})
    return train_policy(ensemble.members, SPAN_LENGTH, settings, seed)[0]


def _judge(ensemble: EnsembleForCausalLM, seed: int, options: argparse.Namespace) -> Any:
    every = training_questions(TRAINED["mixture"])  # short chains first, on which members are right
    questions = every[:: max(1, len(every) // options.judge_questions)][: options.judge_questions]
    held_out = held_out_questions(min(50, options.judge_questions), "validation")
    return trained_judge(ensemble.members, questions, held_out, seed, options.judge_epochs)[0]


def run_embedded(options: argparse.Namespace) -> Any:
    """The report on chains of two and three steps."""
    ensemble = EnsembleForCausalLM.from_members(load_demo_members(options.members), None, span_length=SPAN_LENGTH)
    return evaluate(
        ensemble,
        "arithmetic_chain",
        methods=embedded_methods(ensemble, options.output / "trained", options),
        validation=list(load_task("arithmetic_chain", "validation", limit=options.validation)),
        reward=get_task("arithmetic_chain").reward,  # of the rows above; it is that of the questions, too
        limit=options.questions,
        batch_size=options.batch_size,
        max_new_tokens=MAX_NEW_TOKENS,
        output_dir=options.output,
    )


def run_texts(options: argparse.Namespace) -> Any:
    """The report on texts, in bits per byte: stories for the story models, the mixed set for language models."""
    dtype = torch.float32
    members = [Member.load(str(path), dtype=dtype) for path in options.models]
    ensemble = EnsembleForCausalLM.from_members(members, None, span_length=8)
    counts = {"train": 1, "validation": max(2, options.questions // 2), "test": options.questions}
    sets = read_sets(options.data, counts, options.characters)["stories" if options.set == "stories" else MIXED]
    rows = {split: [{"text": text} for text in texts] for split, texts in sets.items()}
    return evaluate(
        ensemble,
        {options.set: rows["test"]},
        methods=list(SCORED),
        scoring="bits_per_byte",
        validation={options.set: rows["validation"]},
        batch_size=options.batch_size,
        output_dir=options.output,
    )


def summary(report: Any) -> StudyTable:
    """One row per method, trained ones as the mean over seeds; intervals draw questions and seeds."""
    task = report.results[0].task
    groups: dict[str, list[Any]] = {}
    for result in report.results:
        groups.setdefault(result.method.split(_SEEDED)[0], []).append(result)
    scores = {
        name: np.array([[float(record["score"]) for record in report.records[task, r.method]] for r in rows])
        for name, rows in groups.items()
    }
    best = next(r.method for r in report.results if f"the best member is {r.method}" in " ".join(report.notes))
    rows_of_table = []
    for name, rows in groups.items():
        mine, other = scores[name], scores[best]
        low, high = paired_bootstrap([mine], lambda mean: mean)
        values = mine.mean(1)
        spread = f" ({values.min():.3f} to {values.max():.3f})" if len(rows) > 1 else ""
        cells = [name, f"{values.mean():.3f}{spread}", f"{low:.3f} to {high:.3f}"]
        if name == best:
            cells += ["", "", ""]
        else:
            against = paired_bootstrap([mine, other], lambda one, two: one - two)
            p = np.median([r.p_value for r in rows])
            cells += [f"{values.mean() - other.mean():+.3f}", f"{against[0]:+.3f} to {against[1]:+.3f}", f"{p:.2g}"]
        for field, form in (("tokens_per_question", ".1f"), ("time_ratio", ".2f"), ("peak_memory_mib", ".0f")):
            value = float(np.mean([getattr(r, field) for r in rows]))
            cells.append("" if np.isnan(value) else format(value, form))
        rows_of_table.append(tuple(cells))
    headings = ("method", report.results[0].metric, "95% interval", "against best member", "95% interval", "p")
    return StudyTable(
        (*headings, "tokens/question", "time ratio", "peak MiB"), tuple(rows_of_table), tuple(report.notes)
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.studies.rivals",
        description="RLAE beside its rivals.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("set", choices=("embedded", "stories", "llms"))
    parser.add_argument("--output", type=Path, required=True, help="folder of the results; continued if it is there")
    parser.add_argument("--members", default="different", choices=("different", "shared"), help="for embedded")
    parser.add_argument("--models", nargs="+", type=Path, help="folders of members, for stories and llms")
    parser.add_argument("--data", type=Path, help="folder of texts, for stories and llms")
    parser.add_argument("--questions", type=int, default=200, help="held-out questions or texts")
    parser.add_argument("--validation", type=int, default=50, help="questions to choose on, for embedded")
    parser.add_argument("--resolution", type=int, default=5, help="fixed weights in steps of 1 / this, for embedded")
    parser.add_argument("--characters", type=int, default=240, help="of a text")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="of trained policies and rankers")
    parser.add_argument("--rollouts", type=int, default=20, help="of each training")
    parser.add_argument("--judge-questions", type=int, default=400, help="whose answers train the pair ranker")
    parser.add_argument("--judge-epochs", type=int, default=5, help="of the pair ranker's training")
    parser.add_argument("--batch-size", type=int, default=50, help="questions answered together")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    options = parser.parse_args(arguments)
    if options.set != "embedded" and (not options.models or options.data is None):
        parser.error(f"{options.set} needs --models and --data")
    for name in (
        "questions",
        "validation",
        "resolution",
        "rollouts",
        "judge_questions",
        "judge_epochs",
        "batch_size",
        "threads",
    ):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)}: at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluates what is missing, and writes the tables."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    disable_progress_bar()
    kept = {name: value for name, value in vars(options).items() if name not in ("output", "models", "data", "threads")}
    ResultFolder(options.output, kept | {"models": [path.resolve().name for path in options.models or ()]})
    if options.set != "embedded":
        Console(width=160).print(run_texts(options).to_markdown(), highlight=False, markup=False)
        return
    report = run_embedded(options)
    table = summary(report)
    as_markdown(table, options.output / "summary.md")
    Console(width=160).print(table.shown(options.set))


if __name__ == "__main__":
    main()
