"""Reports on the carriers of a completion: coloured tokens for terminals, and a table of the spans."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich import box
from rich.table import Column, Table
from rich.text import Text

from hf_rlae.reports.member_names import Names, names_of, wrapped_name
from hf_rlae.reports.tokens import TracedToken

STYLES = ("cyan", "magenta", "yellow", "green", "blue", "red", "bright_cyan", "bright_magenta")
"""Terminal colours of the members, in their order; they repeat after the last."""

_LINE = 78
"""Characters in a line of a terminal."""
_LEFT = 20
"""Characters of the columns beside the weights, the text among them."""


def style_of(member: int) -> str:
    """The terminal colour of a member."""
    return STYLES[member % len(STYLES)]


def legend(names: Sequence[str]) -> Text:
    """The members' names, each in its colour; with their numbers if `span_table` has these as headings.

    Example:

    >>> legend(["first", "second"]).plain
    '■ first  ■ second'
    """
    between = "  " if sum(len(name) + 4 for name in names) <= _LINE else "\n"
    numbers = [f"{index} " for index in range(len(names))] if _headings(names) is None else [""] * len(names)
    return Text(between).join(
        Text(f"■ {number}{name}", style=style_of(index))
        for index, (number, name) in enumerate(zip(numbers, names, strict=True))
    )


def _headings(names: Sequence[str]) -> list[str] | None:
    """The names with line breaks, as headings of a column per member; `None` if they do not fit into a line."""
    width = max(8, (_LINE - _LEFT) // max(1, len(names)) - 3)
    headings = [wrapped_name(name, width) for name in names]
    taken = sum(max(map(len, heading.split("\n"))) + 2 for heading in headings)
    return headings if _LEFT + taken <= _LINE else None


def carrier_text(tokens: Sequence[TracedToken], escapes: bool = False) -> Text:
    """A text in which every token has the colour of the member that carried it.

    A character of several tokens has the colour of its last token.

    Args:
        tokens (`Sequence[TracedToken]`): of one completion, or of a part of it.
        escapes (`bool`, defaults to `False`): whether line breaks and the like are escaped, as in `\\n`.

    Example:

    >>> text = carrier_text([TracedToken(1, b"12", 0, (1.0, 0.0), (-0.1, -9.0))])
    >>> text.plain, text.spans[0].style
    ('12', 'cyan')
    """
    text = Text()
    pending = b""
    for index, token in enumerate(tokens):
        pending += token.raw
        piece = pending.decode("utf-8", "replace")
        if piece.endswith("\N{REPLACEMENT CHARACTER}") and index + 1 < len(tokens):
            continue
        text.append(repr(piece)[1:-1] if escapes else piece, style=style_of(token.carrier))
        pending = b""
    return text


def span_table(names: Names, tokens: Sequence[TracedToken]) -> Table:
    """One line per group of consecutive spans with equal weights: their text, and every member's weight.

    Tokens have the colours of their carriers. Where the names do not fit into a line of 78 characters, the headings are
    the members' numbers, which `legend` gives.

    Args:
        names (`Sequence[str]` or `EnsembleForCausalLM`): of the members, or the ensemble.
        tokens (`Sequence[TracedToken]`): of one completion.
    """
    names = names_of(names)
    columns = Column("spans", justify="right", no_wrap=True), Column("text", overflow="fold")
    table = Table(*columns, box=box.SIMPLE_HEAD)
    for index, name in enumerate(_headings(names) or map(str, range(len(names)))):
        colour = style_of(index)  # the names have their line breaks already; the text gives way
        table.add_column(name, justify="right", style=colour, header_style=colour, no_wrap=True)
    for weights, group in groupby(tokens, key=lambda token: token.weights):
        part = list(group)
        first, last = part[0].span, part[-1].span
        spans = str(first) if first == last else f"{first}-{last}"
        table.add_row(spans, carrier_text(part, escapes=True), *(f"{weight:.2f}" for weight in weights))
    return table
