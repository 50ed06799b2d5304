"""What decoding was to cost, and whether it does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from tests.benchmarks.costs import IN_TURN, Growth, Result, Timing, pair, table

DRAWS = {
    ("draw-token", 1, 2): 0.65,
    ("draw-token", 1, 3): 0.50,
    ("draw-word", 1, 2): 0.55,
    ("draw-word", 1, 3): 0.55,
    ("draw-token-batch", 8, 2): 0.70,
    ("draw-token-batch", 8, 3): 0.62,
}
"""The most that drawing members may cost, in parts of the members' sum, by mode, batch and number of members."""

POLICY_PERCENT = 2.0
"""The most that a learned policy may add to a step at span length 8."""


_TOKENIZERS = {"same": "same tokenizer", "different": "different tokenizers"}


def targets_table(results: Sequence[Result], found: Sequence[Growth], union_time: Timing | None) -> str:
    """All targets that the results say something about; empty if they say nothing about any."""
    rows = []
    if union_time is not None:
        label = "union of two vocabularies of 50,000 tokens, s"
        rows.append([label, "1.00", *_verdicts([union_time.cpu, union_time.wall], 1.0)])
    small = [result for result in results if result.case.members == "small"]
    plain = [result for result in small if result.case.count == 2 and result.case.kind == "plain"]
    rows += _plain_targets(plain)
    for growth in found:
        case = growth.long.case
        if case.members in ("small", "narrow") and case.tokenizers == "different" and case.kind == "plain":
            values = [growth.relative("cpu"), growth.relative("wall")]
            span = f"{growth.short.case.tokens} to {case.tokens} tokens"
            label = f"different tokenizers, {case.mode}, batch {case.batch}: growth of the ratio, {span}"
            label += f" ({case.members} members)"
            rows.append([label, "1.05", *_verdicts(values, 1.05)])
    for tokenizers in _TOKENIZERS:
        chosen = [result for result in small if result.case.tokenizers == tokenizers]
        rows += _draw_targets(_TOKENIZERS[tokenizers], chosen)
    for result in small:
        rows += _policy_target(result) if result.case.kind == "policy" else []
    return (
        table(["target (small members; M = 2 where nothing else is said)", "at most", "CPU / wall", ""], rows)
        if rows
        else ""
    )


def _plain_targets(results: Sequence[Result]) -> list[list[str]]:
    rows = []
    for mode in sorted({result.case.mode for result in results}):
        chosen = [result for result in results if result.case.mode == mode]
        same = [result for result in chosen if result.case.tokenizers == "same"]
        rows += _ratio_target(f"same tokenizer, {mode}", 0.95, same)
        for batch, limit in ((1, 1.15), (8, 1.30)):
            different = [r for r in chosen if r.case.tokenizers == "different" and r.case.batch == batch]
            where = f"different tokenizers, {mode}, batch {batch}"
            rows += _ratio_target(where, limit, different)
            rows += _target(f"{where}: above plain appending", 0.12, different, Result.above)
    return rows


def _draw_targets(where: str, results: Sequence[Result]) -> list[list[str]]:
    rows = []
    for (mode, batch, count), limit in DRAWS.items():
        chosen = [r for r in results if (r.case.mode, r.case.batch, r.case.count) == (mode, batch, count)]
        rows += _target(f"{where}, {mode}, batch {batch}, M = {count}: ratio", limit, chosen, _ratio)
    return rows


def _policy_target(result: Result) -> list[list[str]]:
    """The target of a learned policy, and under it what is spent inside the policy.

    So small a share is told from noise only if its error is small, too.
    """
    case = result.case
    where = f"{_TOKENIZERS[case.tokenizers]}, learned policy that observes the members, batch {case.batch}"
    found = [(result.extra(clock), result.extra_error(clock)) for clock in ("cpu", "wall")]
    verdicts = []
    for value, error in found:
        is_met, is_missed = value + error <= POLICY_PERCENT, value - error > POLICY_PERCENT
        verdicts.append("met" if is_met else "not met" if is_missed else "unclear, more --rounds would tell")
    values = " / ".join(f"{value:.2f} ± {error:.2f}" for value, error in found)
    rows = [[f"{where}: added to a step, %", f"{POLICY_PERCENT:.2f}", values, " / ".join(dict.fromkeys(verdicts))]]
    if result.asking is not None:
        share = result.asking.share
        rows.append([f"{where}: inside it, %", "", pair(lambda clock: 100 * share[clock]), "no target"])
    return rows


def _ratio_target(where: str, limit: float, results: Sequence[Result]) -> list[list[str]]:
    """The target, and under it what the members' forward passes cost without an ensemble."""
    rows = _target(f"{where}: ratio", limit, results, _ratio)
    if rows:
        in_turn = pair(lambda clock: median(r.ratio(IN_TURN, clock) for r in results))
        rows.append([f"{where}: {IN_TURN}", "", in_turn, "no target"])
    return rows


def _ratio(result: Result, clock: str) -> float:
    return result.ratio("ensemble", clock)


def _target(
    label: str, limit: float, results: Sequence[Result], value: Callable[[Result, str], float]
) -> list[list[str]]:
    if not results:
        return []
    values = [median(value(result, clock) for result in results) for clock in ("cpu", "wall")]
    return [[label, f"{limit:.2f}", *_verdicts(values, limit)]]


def _verdicts(values: Sequence[float], limit: float) -> list[str]:
    verdicts = list(dict.fromkeys("met" if value <= limit else "not met" for value in values))
    return [" / ".join(f"{value:.2f}" for value in values), " / ".join(verdicts)]
