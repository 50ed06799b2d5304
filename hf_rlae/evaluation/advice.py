"""From measured gains to one sentence: one member, an ensemble, or a policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hf_rlae.evaluation.statistics import Difference

MIN_ENSEMBLE_GAIN = 0.03
"""Fixed weights must save this share of the best member's bits, because all members run for it. Source: ours."""
MIN_POLICY_GAIN = 0.01
"""A policy must save this share beyond fixed weights, which run the same members. Source: ours."""
MIN_ACCURACY = 0.05
"""An oracle per question that gains less than this share of the questions leaves nothing to learn. Source: ours."""


@dataclass(frozen=True)
class Advice:
    """What to do with some members, and why.

    Attributes:
        recommendation (`str`): `"member"` (use one), `"ensemble"` (fixed weights) or `"policy"` (train one).
        sentence (`str`): with the numbers behind it.
    """

    recommendation: str
    sentence: str


def advise_on_texts(
    best: str, bits: float, names: Sequence[str], weights: Sequence[float], fixed: Difference, policy: Difference
) -> Advice:
    """The advice from bits per byte.

    Args:
        best (`str`): the best member.
        bits (`float`): its bits per byte.
        names (`Sequence[str]`), weights (`Sequence[float]`): of the members, and their tuned weights.
        fixed (`Difference`): of tuned weights to the best member, in bits per byte; a gain is negative.
        policy (`Difference`): of a linear policy to tuned weights.

    Example:

    >>> gain, none = Difference(-0.1, -0.12, -0.08, 0.001, "bootstrap"), Difference(0.0, 0.0, 0.0, 1.0, "bootstrap")
    >>> advise_on_texts("a", 1.0, ["a", "b"], [0.7, 0.3], gain, none).recommendation
    'ensemble'
    """
    told = ", ".join(f"{name} {weight:.2f}" for name, weight in zip(names, weights, strict=True))
    if _is_gain(policy, MIN_POLICY_GAIN * bits) and fixed.value + policy.value < -MIN_ENSEMBLE_GAIN * bits:
        return Advice(
            "policy",
            f"Train a policy on texts like these: weights that follow the text save {_saved(policy)} "
            f"({_interval(policy)}) bits per byte beyond the best fixed weights, which save {_saved(fixed)} beyond "
            f"{best} ({bits:.3f}).",
        )
    if _is_gain(fixed, MIN_ENSEMBLE_GAIN * bits):
        return Advice(
            "ensemble",
            f"Use an ensemble with fixed weights ({told}): it saves {_saved(fixed)} ({_interval(fixed)}) of the "
            f"{bits:.3f} bits per byte of {best}, and no gain of weights that follow the text was found.",
        )
    return Advice(
        "member",
        f"Use {best} alone ({bits:.3f} bits per byte): the best fixed weights ({told}) save {_saved(fixed)} "
        f"({_interval(fixed)}), and weights that follow the text {_saved(policy)} more.",
    )


def advise_on_answers(best: str, accuracy: float, uniform: Difference, oracle: Difference) -> Advice:
    """The advice from answers alone, where no texts are there to learn from.

    Args:
        best (`str`): the best member.
        accuracy (`float`): its mean score.
        uniform (`Difference`): of equal weights to the best member.
        oracle (`Difference`): to the best member, of the member that is best on each question.

    Example:

    >>> none = Difference(0.0, 0.0, 0.0, 1.0, "sign test")
    >>> advise_on_answers("a", 0.9, none, none).recommendation
    'member'
    """
    room = f"the best member per question would gain {oracle.value:.3f} on {best} ({accuracy:.3f})"
    if uniform.low > 0:
        return Advice(
            "ensemble",
            f"Use an ensemble: equal weights gain {uniform.value:.3f} ({uniform.low:.3f} to {uniform.high:.3f}) on "
            f"{best} ({accuracy:.3f}); a policy may gain more.",
        )
    if oracle.low > 0 and oracle.value >= MIN_ACCURACY:
        return Advice(
            "policy",
            f"Train a policy and compare it with {best}: {room}, and equal weights gain {uniform.value:.3f}.",
        )
    return Advice("member", f"Use {best} alone: {room}, and equal weights gain {uniform.value:.3f}.")


def _is_gain(found: Difference, least: float) -> bool:
    return found.high < 0 and -found.value >= least


def _saved(found: Difference) -> str:
    return _shown(-found.value)


def _interval(found: Difference) -> str:
    return f"{_shown(-found.high)} to {_shown(-found.low)}"


def _shown(value: float) -> str:
    return f"{round(value, 3) + 0.0:.3f}"  # without the sign of a rounded 0
