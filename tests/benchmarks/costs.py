"""Times of decoding, and what the tables say about them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

IN_TURN = "forwards in turn"
"""The name under which the members' bare forward passes are timed."""


@dataclass(frozen=True)
class Case:
    """What is measured in one go: which members, how many, rows, new tokens, and the way of decoding.

    Modes are "sample", "greedy", and sampling from one drawn member at a time: "draw-token", "draw-word", "draw-span",
    or with one draw for all rows "draw-token-batch" and so on.
    """

    members: str
    tokenizers: str
    count: int
    batch: int
    tokens: int
    mode: str

    @property
    def name(self) -> str:
        """What `--cases` is matched with."""
        return f"{self.members}-{self.tokenizers}-m{self.count}-b{self.batch}-t{self.tokens}-{self.mode}"

    def at(self, tokens: int) -> Case:
        """The same case with another number of new tokens."""
        return Case(self.members, self.tokenizers, self.count, self.batch, tokens, self.mode)

    @property
    def draws(self) -> tuple[str, str] | None:
        """`draw` and `draw_scope` of the ensemble, if members are drawn."""
        if not self.mode.startswith("draw-"):
            return None
        _, unit, *scope = self.mode.split("-")
        return unit, scope[0] if scope else "row"

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of `generate`, for ensembles and members alike."""
        drawn = {"do_sample": False} if self.mode == "greedy" else {"do_sample": True, "temperature": 1.0, "top_k": 0}
        return {"min_new_tokens": self.tokens, "max_new_tokens": self.tokens, **drawn}


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
        share (`dict[str, float]`), seconds (`dict[str, float]`): by clock; seconds a step.
        forwards (`float`): forward passes a member and step.
    """

    share: dict[str, float]
    seconds: dict[str, float]
    forwards: float


@dataclass(frozen=True)
class Result:
    """A case, its timings (one a round and contender) and what lies outside the forward passes."""

    case: Case
    timings: Timings
    outside: Outside

    def per_token(self, who: str, clock: str) -> list[float]:
        """Milliseconds per step (one token in every row), a round; `who` is a contender or `"members"`."""
        scale = 1000 / self.case.tokens
        if who == "members":
            rows = zip(*(rounds for name, rounds in self.timings.items() if name.startswith("member")), strict=True)
            return [scale * sum(timing.of(clock) for timing in row) for row in rows]
        return [scale * timing.of(clock) for timing in self.timings[who]]

    def ratio(self, who: str, clock: str) -> float:
        """The median over rounds of a contender's time over the members' sum."""
        pairs = zip(self.per_token(who, clock), self.per_token("members", clock), strict=True)
        return median(own / alone for own, alone in pairs)

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
    """Times and ratios of all cases."""
    head = [*SHAPE, "members, ms", "ensemble, ms", "ratio", IN_TURN, "appending", "bytes a token", "members'"]
    rows = []
    for result in results:
        has_appending = "appending" in result.timings
        rows.append(
            [
                *_shape_of(result.case),
                pair(lambda clock, r=result: median(r.per_token("members", clock))),
                pair(lambda clock, r=result: median(r.per_token("ensemble", clock))),
                pair(lambda clock, r=result: r.ratio("ensemble", clock)),
                pair(lambda clock, r=result: r.ratio(IN_TURN, clock)),
                pair(lambda clock, r=result: r.ratio("appending", clock)) if has_appending else "",
                f"{result.token_bytes('ensemble'):.1f}",
                f"{result.token_bytes('member'):.1f}",
            ]
        )
    return table(head, rows)


def overhead_table(results: Sequence[Result]) -> str:
    """What is spent outside the members, and what readings add to plain appending."""
    head = [
        *SHAPE,
        "outside forwards, ms a step",
        "share, %",
        "forwards",
        "readings add, µs a row and step",
        "of the members",
    ]
    rows = []
    for result in results:
        batch, outside = result.case.batch, result.outside
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
        return self.long.ratio("ensemble", clock) / self.short.ratio("ensemble", clock)

    def beyond(self, clock: str) -> float:
        """By how many milliseconds a step grows more than the members' own steps do together."""
        grown = {
            who: median(self.long.per_token(who, clock)) - median(self.short.per_token(who, clock))
            for who in ("ensemble", "members")
        }
        return grown["ensemble"] - grown["members"]


def growths(results: Sequence[Result]) -> list[Growth]:
    """All cases that were measured with several numbers of tokens."""
    groups: dict[Case, list[Result]] = defaultdict(list)
    for result in results:
        groups[result.case.at(0)].append(result)
    ordered = [sorted(group, key=lambda result: result.case.tokens) for group in groups.values() if len(group) > 1]
    return [Growth(group[0], group[-1]) for group in ordered]


def growth_table(found: Sequence[Growth]) -> str:
    """How time per token grows with the number of tokens."""
    head = [*SHAPE, "members grow to", "ensemble grows to", "ratio grows to", "ms a step beyond the members'"]
    rows = []
    for growth in found:
        shape = _shape_of(growth.long.case)
        shape[3] = f"{growth.short.case.tokens} to {growth.long.case.tokens}"
        rows.append(
            [
                *shape,
                pair(lambda clock, g=growth: g.factor("members", clock)),
                pair(lambda clock, g=growth: g.factor("ensemble", clock)),
                pair(growth.relative, 3),
                pair(growth.beyond),
            ]
        )
    return table(head, rows)


def targets_table(results: Sequence[Result], found: Sequence[Growth], union_time: Timing) -> str:
    """What was to be reached, and whether it is."""
    small = [result for result in results if result.case.members == "small" and result.case.count == 2]
    rows = [
        [
            "union of two vocabularies of 50,000 tokens, s",
            "1.00",
            *_verdicts([union_time.cpu, union_time.wall], 1.0),
        ]
    ]
    for mode in sorted({result.case.mode for result in small if result.case.draws is None}):
        chosen = [result for result in small if result.case.mode == mode]
        same = [result for result in chosen if result.case.tokenizers == "same"]
        rows += _ratio_target(f"same tokenizer, {mode}", 0.95, same)
        for batch, limit in ((1, 1.15), (8, 1.30)):
            different = [r for r in chosen if r.case.tokenizers == "different" and r.case.batch == batch]
            where = f"different tokenizers, {mode}, batch {batch}"
            rows += _ratio_target(where, limit, different)
            rows += _target(f"{where}: above plain appending", 0.12, different, Result.above)
    for growth in found:
        case = growth.long.case
        if case.members in ("small", "narrow") and case.tokenizers == "different":
            values = [growth.relative("cpu"), growth.relative("wall")]
            span = f"{growth.short.case.tokens} to {case.tokens} tokens"
            label = f"different tokenizers, {case.mode}, batch {case.batch}: growth of the ratio, {span}"
            label += f" ({case.members} members)"
            rows.append([label, "1.05", *_verdicts(values, 1.05)])
    return table(["target (M = 2, small members)", "at most", "CPU / wall", ""], rows)


def _ratio_target(where: str, limit: float, results: Sequence[Result]) -> list[list[str]]:
    """The target, and under it what the members' forward passes cost without an ensemble."""
    rows = _target(f"{where}: ratio", limit, results, lambda r, clock: r.ratio("ensemble", clock))
    if rows:
        in_turn = pair(lambda clock: median(r.ratio(IN_TURN, clock) for r in results))
        rows.append([f"{where}: {IN_TURN}", "", in_turn, "no target"])
    return rows


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
