"""Times of decoding, and what the tables say about them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from tests.benchmarks.cases import Case

IN_TURN = "forwards in turn"
"""The name under which the members' bare forward passes are timed."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one run, and the bytes that it wrote in all rows."""

    cpu: float
    wall: float
    num_bytes: int = 0

    def of(self, clock: str) -> float:
        """The seconds of one clock, `"cpu"` or `"wall"`."""
        return self.cpu if clock == "cpu" else self.wall


Timings = dict[str, list[Timing]]
"""By contender: one a round."""


@dataclass(frozen=True)
class Outside:
    """What a step of the ensemble spends outside the members' forward passes (from runs of their own).

    Attributes:
        share (`dict[str, float]`), seconds (`dict[str, float]`): by clock; seconds per step.
        forwards (`float`): forward passes per member and step.
    """

    share: dict[str, float]
    seconds: dict[str, float]
    forwards: float


@dataclass(frozen=True)
class Asking:
    """What is spent inside a learned policy, which the members' forward passes are not part of (from a run of its own).

    Attributes:
        share (`dict[str, float]`), seconds (`dict[str, float]`): by clock, of the whole run, and of one call.
    """

    share: dict[str, float]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Result:
    """A case, its timings (one a round and contender), and what lies outside the forward passes or inside a policy."""

    case: Case
    timings: Timings
    outside: Outside | None = None
    asking: Asking | None = None

    @property
    def subject(self) -> str:
        """The contender that the case is about."""
        return self.case.kind if self.case.kind in ("processor", "policy") else "ensemble"

    def per_token(self, who: str, clock: str) -> list[float]:
        """Milliseconds per step (one token in every row), a round; `who` is a contender or `"members"`."""
        scale = 1000 / self.case.tokens
        if who == "members":
            rows = zip(*(rounds for name, rounds in self.timings.items() if name.startswith("member")), strict=True)
            return [scale * sum(timing.of(clock) for timing in row) for row in rows]
        return [scale * timing.of(clock) for timing in self.timings[who]]

    def ratios(self, who: str, clock: str, to: str = "members") -> list[float]:
        """A contender's time over another's, or over the members' sum, in every round."""
        pairs = zip(self.per_token(who, clock), self.per_token(to, clock), strict=True)
        return [own / other for own, other in pairs]

    def ratio(self, who: str, clock: str, to: str = "members") -> float:
        """The median over rounds of `ratios`."""
        return median(self.ratios(who, clock, to))

    def extra(self, clock: str) -> float:
        """What a learned policy adds to a step, as a share of the step with uniform weights, in percent."""
        return 100 * (self.ratio("policy", clock, "ensemble") - 1)

    def extra_error(self, clock: str) -> float:
        """The standard error of `extra`, from the quartiles as if rounds were normal; of a few rounds not known."""
        ratios = self.ratios("policy", clock, "ensemble")
        if len(ratios) < 8:
            return math.inf
        low, _, high = quantiles(ratios, n=4, method="inclusive")
        return 100 * 0.93 * (high - low) / math.sqrt(len(ratios))  # 1.253 (high - low) / 1.349 of a normal one

    def added(self, clock: str) -> float:
        """What readings add to plain appending: the median over rounds of milliseconds a step."""
        pairs = zip(self.per_token("ensemble", clock), self.per_token("appending", clock), strict=True)
        return median(own - plain for own, plain in pairs)

    def above(self, clock: str) -> float:
        """What readings add to plain appending, in parts of the members' sum."""
        return self.added(clock) / median(self.per_token("members", clock))

    def token_bytes(self, who: str) -> float:
        """Mean bytes of a token."""
        found = [t.num_bytes for name, rounds in self.timings.items() if name.startswith(who) for t in rounds]
        return sum(found) / len(found) / self.case.tokens / self.case.batch


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table: the first column is text, the others are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def pair(value: Callable[[str], float], digits: int = 2) -> str:
    """A number by CPU time and by wall time."""
    return f"{value('cpu'):.{digits}f} / {value('wall'):.{digits}f}"


def _shape_of(case: Case) -> list[str]:
    return [
        f"{case.members}, {case.tokenizers}",
        str(case.count),
        str(case.batch),
        str(case.tokens),
        case.mode,
    ]


SHAPE = ["members, tokenizers", "M", "batch", "tokens", "mode"]


def costs_table(results: Sequence[Result]) -> str:
    """Times and ratios of ensembles beside their members."""
    head = [*SHAPE, "members, ms", "ensemble, ms", "ratio", IN_TURN, "appending", "bytes per token", "members'"]
    rows = []
    for result in results:
        rows.append(
            [
                *_shape_of(result.case),
                pair(lambda clock, r=result: median(r.per_token("members", clock))),
                pair(lambda clock, r=result: median(r.per_token("ensemble", clock))),
                pair(lambda clock, r=result: r.ratio("ensemble", clock)),
                *[
                    pair(lambda clock, r=result, w=who: r.ratio(w, clock)) if who in result.timings else ""
                    for who in (IN_TURN, "appending")
                ],
                f"{result.token_bytes('ensemble'):.1f}",
                f"{result.token_bytes('member'):.1f}",
            ]
        )
    return table(head, rows)


def processor_table(results: Sequence[Result]) -> str:
    """`EnsembleLogitsProcessor` in the host's `generate`, beside `EnsembleForCausalLM` and the members."""
    head = [
        *SHAPE,
        "members, ms",
        "processor, ms",
        "ratio",
        "`EnsembleForCausalLM`",
        IN_TURN,
        "processor over `EnsembleForCausalLM`",
        "bytes per token",
        "`EnsembleForCausalLM`'s",
    ]
    rows = []
    for result in results:
        rows.append(
            [
                *_shape_of(result.case),
                pair(lambda clock, r=result: median(r.per_token("members", clock))),
                pair(lambda clock, r=result: median(r.per_token("processor", clock))),
                *[pair(lambda clock, r=result, w=who: r.ratio(w, clock)) for who in ("processor", "ensemble", IN_TURN)],
                pair(lambda clock, r=result: r.ratio("processor", clock, "ensemble")),
                f"{result.token_bytes('processor'):.1f}",
                f"{result.token_bytes('ensemble'):.1f}",
            ]
        )
    return table(head, rows)


def policy_table(results: Sequence[Result]) -> str:
    """A learned policy beside uniform weights on the same ensemble, and what is spent inside it."""
    head = [
        *SHAPE,
        "uniform, ms",
        "policy, ms",
        "extra, % of a step",
        "rounds between the quartiles, %",
        "inside it, ms per call",
        "% of the time",
    ]
    rows = []
    for result in results:
        assert result.asking is not None
        rows.append(
            [
                *_shape_of(result.case),
                pair(lambda clock, r=result: median(r.per_token("ensemble", clock))),
                pair(lambda clock, r=result: median(r.per_token("policy", clock))),
                pair(result.extra, 1),
                " / ".join(_quartiles(result.ratios("policy", clock, "ensemble")) for clock in ("cpu", "wall")),
                pair(lambda clock, a=result.asking: 1000 * a.seconds[clock], 3),
                pair(lambda clock, a=result.asking: 100 * a.share[clock]),
            ]
        )
    return table(head, rows)


def _quartiles(ratios: Sequence[float]) -> str:
    if len(ratios) < 2:
        return "one round"
    low, _, high = quantiles(ratios, n=4, method="inclusive")
    return f"{100 * (low - 1):+.1f} to {100 * (high - 1):+.1f}"


def overhead_table(results: Sequence[Result]) -> str:
    """What is spent outside the members, and what readings add to plain appending."""
    head = [
        *SHAPE,
        "outside forwards, ms per step",
        "share, %",
        "forwards",
        "readings add, µs per row and step",
        "of the members",
    ]
    rows = []
    for result in results:
        batch, outside = result.case.batch, result.outside
        assert outside is not None
        added = ["", ""]
        if "appending" in result.timings:
            added = [
                pair(lambda clock, r=result, b=batch: 1000 * r.added(clock) / b, 0),
                pair(result.above),
            ]
        rows.append(
            [
                *_shape_of(result.case),
                pair(lambda clock, o=outside: 1000 * o.seconds[clock]),
                pair(lambda clock, o=outside: 100 * o.share[clock], 0),
                f"{outside.forwards:.2f}",
                *added,
            ]
        )
    return table(head, rows)


@dataclass(frozen=True)
class Growth:
    """A case at its fewest and its most new tokens."""

    short: Result
    long: Result

    def factor(self, who: str, clock: str) -> float:
        """Time per token at the most tokens over that at the fewest."""
        return median(self.long.per_token(who, clock)) / median(self.short.per_token(who, clock))

    def relative(self, clock: str) -> float:
        """How much the ensemble's ratio to its members grows."""
        who = self.long.subject
        return self.long.ratio(who, clock) / self.short.ratio(who, clock)

    def beyond(self, clock: str) -> float:
        """By how many milliseconds a step grows more than the members' own steps do together."""
        grown = {
            who: median(self.long.per_token(who, clock)) - median(self.short.per_token(who, clock))
            for who in (self.long.subject, "members")
        }
        return grown[self.long.subject] - grown["members"]


def growths(results: Sequence[Result]) -> list[Growth]:
    """All cases that were measured with several numbers of tokens."""
    groups: dict[Case, list[Result]] = defaultdict(list)
    for result in results:
        if result.case.kind != "policy":
            groups[result.case.at(0)].append(result)
    ordered = [sorted(group, key=lambda result: result.case.tokens) for group in groups.values() if len(group) > 1]
    return [Growth(group[0], group[-1]) for group in ordered]


def growth_table(found: Sequence[Growth]) -> str:
    """How time per token grows with the number of tokens."""
    head = [*SHAPE, "members grow to", "ensemble grows to", "ratio grows to", "ms per step beyond the members'"]
    rows = []
    for growth in found:
        shape = _shape_of(growth.long.case)
        shape[3] = f"{growth.short.case.tokens} to {growth.long.case.tokens}"
        rows.append(
            [
                *shape,
                pair(lambda clock, g=growth: g.factor("members", clock)),
                pair(lambda clock, g=growth: g.factor(g.long.subject, clock)),
                pair(growth.relative, 3),
                pair(growth.beyond),
            ]
        )
    return table(head, rows)
