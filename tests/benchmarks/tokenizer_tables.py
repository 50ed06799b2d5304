"""The tables of the benchmark across tokenizers, and whether its targets are met."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tests.benchmarks.estimators import ratio
from tests.benchmarks.tokenizer_rows import Row, Score

NEAR = 0.003
"""How many bits per byte the grain of bytes may lie above exact byte mixing."""

COST_NOISE = 1.02
"""Sampled texts differ a little in what they cost."""

HEADER = (
    "| decoder | weights | bits per byte | above the better member | above exact bytes | unknown words per 100 "
    "| passes per byte | passes per own token | CPU ms per byte |\n|---|---|---|---|---|---|---|---|---|"
)

Value = tuple[float, float]
"""A value and its standard error."""


class Table:
    """The scores of one set of members.

    Args:
        title (`str`): names them.
        names (`Sequence[str]`): of each member.
        lengths (`Sequence[int]`): how many bytes of each line are scored.
        scores (`Mapping[Row, Score]`): what was measured, in the order of the rows.
    """

    def __init__(self, title: str, names: Sequence[str], lengths: Sequence[int], scores: Mapping[Row, Score]) -> None:
        self.title = title
        self.names = list(names)
        self.lengths = list(lengths)
        self.scores = dict(scores)
        alone = {row: score for row, score in self.scores.items() if row.kind == "alone"}
        self.better = min(alone.values(), key=lambda score: sum(score.bits)) if alone else None

    def above(self, score: Score, other: Score | None) -> Value | None:
        """Bits per byte above another row, line by line; nothing where there is no such row, or only itself."""
        if other is None or score is other:
            return None
        return ratio([bits - others for bits, others in zip(score.bits, other.bits, strict=True)], self.lengths)

    def find(self, weights: tuple[float, ...], kind: str, grain: str = "token", mixing: str = "linear") -> Score | None:
        """The score of a row, if it was measured."""
        return self.scores.get(Row(kind, weights, grain, mixing))

    def lines(self) -> list[str]:
        """The table in Markdown."""
        return [
            f"**{self.title}**: {len(self.lengths)} lines with {sum(self.lengths)} bytes.",
            "",
            *HEADER.split("\n"),
            *(self._line(row, score) for row, score in self.scores.items()),
        ]

    def _line(self, row: Row, score: Score) -> str:
        is_alone = row.kind == "alone"
        exact = None if is_alone else self.find(row.weights, "exact")
        name = f"{self.names[row.weights.index(1.0)]} alone" if is_alone else row.name
        if row.grain == "auto":
            name += f" ({score.grain})"
        unknown = ratio([100 * count for count in score.unknown], score.words) if score.words else None
        cells = [
            name,
            "" if is_alone else as_weights(row.weights),
            as_number(ratio(score.bits, self.lengths), 4),
            as_number(self.above(score, self.better), 4, "+"),
            as_number(self.above(score, exact), 4, "+"),
            as_number(unknown, 1),
            *self._cost(score),
        ]
        return f"| {' | '.join(cells)} |"

    def _cost(self, score: Score) -> list[str]:
        if (cost := score.cost) is None:
            return ["", "", ""]
        own = [f"{passes / max(1, tokens):.2f}" for passes, tokens in zip(cost.passes, cost.own_tokens, strict=False)]
        cpu = "" if cost.cpu_s is None else f"{1000 * cost.cpu_s / cost.num_bytes:.2f}"
        return [f"{passes_per_byte(score):.2f}", " + ".join(own), cpu]

    def brief(self, score: Score) -> str:
        """Bits per byte, and passes per byte where the cost of writing was measured."""
        bits = f"{ratio(score.bits, self.lengths)[0]:.4f}"
        is_written = score.cost is not None and score.cost.cpu_s is not None
        return f"{bits} ({passes_per_byte(score):.2f})" if is_written else bits

    def frontier(self, weights: tuple[float, ...]) -> dict[Row, Score]:
        """The ensembles with these weights of which no other is cheaper and predicts no worse, cheapest first."""
        rows = [
            (row, s) for row, s in self.scores.items() if row.weights == weights and row.kind == "ensemble" and s.cost
        ]
        rows = sorted((pair for pair in rows if pair[0].grain != "auto"), key=lambda pair: passes_per_byte(pair[1]))
        found: dict[Row, Score] = {}
        for row, score in rows:
            if all(sum(score.bits) < sum(cheaper.bits) for cheaper in found.values()):
                found[row] = score
        return found

    def frontiers(self) -> list[str]:
        """The frontiers of quality and cost, one line for each vector of weights."""
        lines = []
        for weights in dict.fromkeys(row.weights for row in self.scores if row.kind == "ensemble"):
            entries = [
                f"{row.name} ({ratio(score.bits, self.lengths)[0]:.4f} at {passes_per_byte(score):.2f})"
                for row, score in self.frontier(weights).items()
            ]
            if entries:
                lines.append(f"- {self.title} {as_weights(weights)}: {', '.join(entries)}")
        return lines

    def targets(self) -> list[str]:
        """Whether grains do what they are there for."""
        found: list[str] = []
        for weights in dict.fromkeys(row.weights for row in self.scores if row.kind == "ensemble"):
            where = f"{self.title} {as_weights(weights)}"
            exact = {mixing: self.find(weights, "exact", mixing=mixing) for mixing in ("linear", "log")}
            for mixing, best in exact.items():
                score = self.find(weights, "ensemble", "byte", mixing)
                above = score and self.above(score, best)
                if above:
                    said = f"within {NEAR} of exact bytes: {as_number(above, 4, '+')}"
                    found.append(verdict(above[0] <= NEAR, f"{where}: grain byte, {mixing} {said}"))
            found += self._targets_of_auto(where, weights)
            logs = [score for row, score in self.scores.items() if row.weights == weights and row.mixing == "log"]
            if logs:
                is_finite = all(math.isfinite(bits) for score in logs for bits in score.bits)
                found.append(verdict(is_finite, f"{where}: no line is impossible under log mixing"))
        return found

    def _targets_of_auto(self, where: str, weights: tuple[float, ...]) -> list[str]:
        auto, token, byte = (self.find(weights, "ensemble", grain) for grain in ("auto", "token", "byte"))
        if auto is None:
            return []
        found = []
        grains = [row.grain for row in self.frontier(weights)]
        if grains:
            said = f"{where}: grain auto, {auto.grain}, on the frontier of {', '.join(grains)}"
            found.append(verdict(auto.grain in grains, said))
        if below := self.above(auto, self.better):
            found.append(
                verdict(below[0] < 0, f"{where}: grain auto below the better member: {as_number(below, 4, '+')}")
            )
        if token and (above := self.above(auto, token)):
            said = f"{where}: grain auto not above grain token: {as_number(above, 4, '+')}"
            found.append(verdict(above[0] <= max(0.0, above[1]), said))
        if byte and byte.cost and auto.cost:
            costs = passes_per_byte(auto), passes_per_byte(byte)
            said = f"{where}: grain auto not dearer than grain byte: {costs[0]:.2f} and {costs[1]:.2f} passes per byte"
            found.append(verdict(costs[0] <= COST_NOISE * costs[1], said))
        return found


def summary(tables: Sequence[Table]) -> list[str]:
    """All tables in one: bits per byte, with passes per byte in brackets where writing was measured."""
    names = list(dict.fromkeys(row.name for table in tables for row in table.scores if row.kind != "alone"))
    lines = [f"| members | weights | better member | {' | '.join(names)} |", "|---" * (len(names) + 3) + "|"]
    for table in tables:
        better = "" if table.better is None else table.brief(table.better)
        for weights in dict.fromkeys(row.weights for row in table.scores if row.kind != "alone"):
            found = {row.name: score for row, score in table.scores.items() if row.weights == weights}
            cells = [table.brief(found[name]) if name in found else "" for name in names]
            lines.append(f"| {table.title} | {as_weights(weights)} | {better} | {' | '.join(cells)} |")
    return lines


def passes_per_byte(score: Score) -> float:
    """Forward passes of all members per byte."""
    assert score.cost is not None
    return sum(score.cost.passes) / score.cost.num_bytes


def as_number(value: Value | None, digits: int, sign: str = "") -> str:
    """A value with its standard error."""
    return "" if value is None else f"{value[0]:{sign}.{digits}f} ± {value[1]:.{digits}f}"


def as_weights(weights: Sequence[float]) -> str:
    """Weights as they stand in the tables: `.5/.5`."""
    return "/".join(f"{weight:.3g}".replace("0.", ".") for weight in weights)


def verdict(is_met: bool, said: str) -> str:
    """A line about a target."""
    return f"- {'met' if is_met else '**not met**'}: {said}"
