"""Bits per byte of reference texts by members, fixed weights, a linear policy and oracles, in one table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from hf_rlae.evaluation.headroom import LinearPolicy, bits_of, oracle_bits, tuned_weights
from hf_rlae.evaluation.results import EvaluationReport, MethodResult
from hf_rlae.evaluation.statistics import Difference, difference, estimate
from hf_rlae.evaluation.stretches import ReadText


@dataclass(frozen=True)
class TextGains:
    """What was found on texts.

    Attributes:
        report (`EvaluationReport`): a row per member and method, in bits per byte.
        best (`int`): the best member of the texts on which weights are tuned.
        bits (`float`): per byte, of that member.
        weights (`tuple[float, ...]`): the tuned ones.
        fixed, policy (`Difference`): of tuned weights to the best member, and of the linear policy to tuned weights.
        facts (`dict[str, float]`): see `Diagnosis`.
    """

    report: EvaluationReport
    best: int
    bits: float
    weights: tuple[float, ...]
    fixed: Difference
    policy: Difference
    facts: Mapping[str, float]


def measure_texts(
    name: str, names: Sequence[str], halves: Sequence[Sequence[ReadText]], span_length: int, seed: int
) -> TextGains:
    """Tunes on the first half of the texts, measures on the second one.

    Args:
        name (`str`): of the texts, in the table.
        names (`Sequence[str]`): of the M members.
        halves (`Sequence[Sequence[ReadText]]`): two sets of texts.
        span_length (`int`): of the policy and the oracle, in stretches.
        seed (`int`): of the bootstrap.
    """
    tuning, texts = halves
    alone = torch.eye(len(names), dtype=torch.float64)
    best = min(range(len(names)), key=lambda at: sum(bits_of(text, alone[at]) for text in tuning))
    weights = tuned_weights(tuning)
    equal = torch.full_like(weights, 1 / len(names))
    policy = LinearPolicy(tuning, weights, span_length)
    methods: dict[str, Callable[[ReadText], float]] = {
        **{member: lambda text, at=at: bits_of(text, alone[at]) for at, member in enumerate(names)},  # type: ignore[misc]
        "equal weights": lambda text: bits_of(text, equal),
        "tuned weights": lambda text: bits_of(text, weights),
        "linear policy": lambda text: bits_of(text, policy.weights(text)),
        "oracle per text": lambda text: oracle_bits(text, None),
        "oracle per span": lambda text: oracle_bits(text, span_length),
    }
    bits = {method: [score(text) for text in texts] for method, score in methods.items()}
    sizes = [text.num_bytes for text in texts]
    rows = []
    for method, values in bits.items():
        own = estimate(values, sizes, seed)
        gain = difference(values, bits[names[best]], sizes, seed) if method != names[best] else _NONE
        rows.append(
            MethodResult(
                task=name, method=method, metric="bits per byte", value=own.value, low=own.low, high=own.high,
                difference=gain.value, difference_low=gain.low, difference_high=gain.high, p_value=gain.p_value,
                test=gain.test, num_questions=len(texts),
            )
        )  # fmt: skip
    notes = (
        f"{name}: {names[best]} was chosen, weights were tuned ({_shown(names, weights)}) and the linear policy was "
        f"trained on {len(tuning)} other texts. Spans of {span_length} parts between common token boundaries.",
    )
    return TextGains(
        report=EvaluationReport(tuple(rows), notes, {"span_length": span_length, "seed": seed}),
        best=best,
        bits=next(row.value for row in rows if row.method == names[best]),
        weights=tuple(weights.tolist()),
        fixed=difference(bits["tuned weights"], bits[names[best]], sizes, seed),
        policy=difference(bits["linear policy"], bits["tuned weights"], sizes, seed),
        facts=_facts([*tuning, *texts], best),
    )


_NONE = Difference(math.nan, math.nan, math.nan, math.nan, "")


def _facts(texts: Sequence[ReadText], best: int) -> dict[str, float]:
    times = [sum(column) for column in zip(*(text.seconds for text in texts[1:]), strict=True)]  # the first warms up
    return {
        "agreement": fmean(text.agreement for text in texts),
        "common_boundaries": fmean(text.common for text in texts),
        "time_ratio": sum(times) / times[best],
    }


def _shown(names: Sequence[str], weights: torch.Tensor) -> str:
    return ", ".join(f"{name} {weight:.2f}" for name, weight in zip(names, weights.tolist(), strict=True))
