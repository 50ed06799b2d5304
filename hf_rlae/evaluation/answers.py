"""The loop of an evaluation: questions are answered in batches, judged, timed and kept."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from hf_rlae.baselines import BestFixed, best_fixed_weights
from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.errors import ConfigError
from hf_rlae.evaluation.comparison import Scores
from hf_rlae.evaluation.memory import peak_memory_bytes, reset_peak_memory
from hf_rlae.evaluation.methods import BaselineMethod, EnsembleMethod, Method
from hf_rlae.evaluation.processes import Processes
from hf_rlae.evaluation.questions import Question, Questions
from hf_rlae.evaluation.records import Record, RecordStore
from hf_rlae.policies import StaticPolicy
from hf_rlae.rewards.calls.resolve import call_rewards, resolve_rewards
from hf_rlae.rewards.contract import name_of

_REWARD_TIMEOUT_S = 600.0
_FORMAT = 1
"""Of the files in `output_dir`; with another number, results start again."""


@dataclass(frozen=True)
class EvaluationLoop:
    """Answers questions by methods, and keeps the results.

    Args:
        processes (`Processes`): that share the questions.
        folder (`Path`, *optional*): for results.
        settings (`Mapping[str, Any]`): arguments of `generate`.
        batch_size (`int`), seed (`int`), shows_progress (`bool`): see `evaluate`.
    """

    processes: Processes
    folder: Path | None
    settings: Mapping[str, Any]
    batch_size: int
    seed: int
    shows_progress: bool = True

    def answer(self, questions: Questions, name: str, method: Method) -> list[Record]:
        """The results of all questions by one method, in the order of the questions."""
        store = RecordStore(
            self.folder, f"{questions.name}-{name}", self._setup(questions, method), self.processes.rank
        )
        known = store.read()
        self.processes.wait()  # all have read before one writes, so that all share out the same questions
        left = sorted((row for row in questions.rows if row.key not in known), key=lambda row: -row.length)
        own = left[self.processes.rank :: self.processes.size]
        new: list[Record] = []
        with self._bar(questions, name, len(own)) as bar:
            if own:
                self._warm_up(questions, method, own[0])
            for batch in self._batches(questions, own):
                found = self._answered(questions, method, batch)
                store.append(found)
                new += found
                bar.update(len(batch))
        known |= {record["key"]: record for record in self.processes.joined(new)}
        return [known[row.key] for row in questions.rows]

    def fit(self, methods: Iterable[Method], validation: Questions, normalize: str) -> None:
        """Lets baselines choose on validation questions what they leave open."""
        for method in methods:
            if not isinstance(method, BaselineMethod):
                continue
            baseline, ensemble = method.baseline, method.ensemble
            if validation.scoring == "generate":
                prompts, score_fn = [row.prompt for row in validation.rows], partial(_rewards, validation)
                baseline.fit(ensemble, prompts, score_fn, batch_size=self.batch_size, **self.settings)
            elif isinstance(baseline, BestFixed):
                score = partial(self._score_of_weights, ensemble, validation, normalize)
                baseline.search = best_fixed_weights(score, len(ensemble.members), baseline.resolution)
                baseline.policy = StaticPolicy(baseline.search.weights)

    def _score_of_weights(
        self, ensemble: EnsembleForCausalLM, validation: Questions, normalize: str, weights: Sequence[float]
    ) -> float:
        """How well fixed weights score given texts, the larger the better."""
        loop = replace(self, folder=None)
        records = loop.answer(validation, "best_fixed", EnsembleMethod(ensemble, StaticPolicy(weights)))
        mean = Scores(validation, records, normalize, self.seed).mean.value
        return -mean if validation.lower_is_better else mean

    def _setup(self, questions: Questions, method: Method) -> dict[str, Any]:
        found = {"format": _FORMAT, "method": method.setup(), "scoring": questions.scoring}
        if questions.scoring == "generate":
            found |= {"settings": dict(self.settings), "reward": name_of(questions.reward)}
            if self.settings.get("do_sample"):
                found["seed"] = self.seed
        return found

    def _bar(self, questions: Questions, name: str, total: int) -> AbstractContextManager[Any]:
        hidden = None if self.shows_progress and self.processes.is_first else True  # None: shown on terminals only
        return tqdm(total=total, desc=f"{questions.name}: {name}", unit="question", disable=hidden, leave=False)

    def _batches(self, questions: Questions, rows: Sequence[Question]) -> list[Sequence[Question]]:
        size = self.batch_size
        if questions.scoring == "choices":
            size = max(1, size // max((len(row.completions) for row in rows), default=1))
        elif questions.scoring == "generate" and self.settings.get("do_sample"):
            size = 1
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def _warm_up(self, questions: Questions, method: Method, row: Question) -> None:
        """Runs a model once, so that what is prepared at the first use is not in the times."""
        if isinstance(method, EnsembleMethod):
            method.logps([row.prompt], row.completions[:1] or ["."])

    def _answered(self, questions: Questions, method: Method, batch: Sequence[Question]) -> list[Record]:
        if self.settings.get("do_sample"):
            torch.manual_seed(_seed_of(self.seed, batch[0].key))
        reset_peak_memory()
        started = _now()
        if questions.scoring == "generate":
            entries = self._completed(questions, method, batch, started)
        else:
            entries = self._scored(questions, method, batch, started)
        shared = {"peak_bytes": peak_memory_bytes(), "batch_size": len(batch)}
        return [{"key": row.key, **entry, **shared} for row, entry in zip(batch, entries, strict=True)]

    def _completed(
        self, questions: Questions, method: Method, batch: Sequence[Question], started: float
    ) -> list[dict[str, Any]]:
        found = method.complete([row.prompt for row in batch], self.settings)
        seconds = (_now() - started) / len(batch)
        if len(found.texts) != len(batch) or not all(isinstance(text, str) for text in found.texts):
            raise ConfigError(
                f"a method returned {len(found.texts)} completions for {len(batch)} prompts; it must return a list "
                "with one text per prompt"
            )
        scores = _judged(questions, batch, found.texts)
        lengths: Sequence[Any] = found.num_tokens or [None] * len(batch)
        runs: Sequence[Any] = found.member_tokens or [None] * len(batch)
        return [
            {"score": score, "text": text, "num_tokens": length, "member_tokens": run, "seconds": seconds}
            for score, text, length, run in zip(scores, found.texts, lengths, runs, strict=True)
        ]

    def _scored(
        self, questions: Questions, method: Method, batch: Sequence[Question], started: float
    ) -> list[dict[str, Any]]:
        prompts = [row.prompt for row in batch for _ in row.completions]
        logps, lengths = method.logps(prompts, [text for row in batch for text in row.completions])
        seconds, entries, start = (_now() - started) / len(batch), [], 0
        for row in batch:
            part = slice(start, start + len(row.completions))
            start = part.stop
            entries.append(
                {
                    "logps": [logp if math.isfinite(logp) else None for logp in logps[part]],
                    "num_tokens": sum(lengths[part]),
                    "seconds": seconds,
                }
            )
        return entries


def _now() -> float:
    """Seconds, after all work on the GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _seed_of(seed: int, key: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed} {key}".encode(), digest_size=7).digest(), "big")


def _rewards(questions: Questions, texts: Sequence[str]) -> list[float]:
    """The rewards of completions of all questions; 0 where one could not be judged."""
    return [0.0 if score is None else score for score in _judged(questions, questions.rows, texts)]


def _judged(questions: Questions, rows: Sequence[Question], texts: Sequence[str]) -> list[float | None]:
    """The rewards of completions; `None` where one could not be judged."""
    names = list(dict.fromkeys(name for row in rows for name in row.columns))
    columns = {name: [row.columns.get(name) for row in rows] for name in names}
    completions: list[Any] = [
        text if isinstance(row.prompt, str) else [{"role": "assistant", "content": text}]
        for row, text in zip(rows, texts, strict=True)
    ]
    funcs = resolve_rewards(questions.reward, _REWARD_TIMEOUT_S, wrap_models=True)
    scores = call_rewards(funcs, [row.prompt for row in rows], completions, columns=columns)[:, 0].tolist()
    return [None if math.isnan(score) else score for score in scores]
