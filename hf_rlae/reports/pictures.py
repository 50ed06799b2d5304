"""Pictures of weights."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hf_rlae.files import write_whole
from hf_rlae.reports.member_names import Names, names_of
from hf_rlae.reports.tokens import TracedToken

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0f9fb5", "#b5459f", "#c9a227", "#4c9a4c", "#3f63c4", "#c4453f", "#66c7d6", "#d68ec8")
"""Colours of the members in pictures, in their order; they repeat after the last."""

_TOKENS_A_LINE = 48
_LONGEST_LABEL = 12
_UPRIGHT = 2
"""Characters of a label that fit below a bar; longer ones are turned."""


def colour_of(member: int) -> str:
    """The colour of a member in pictures."""
    return COLOURS[member % len(COLOURS)]


def plot_token_weights(names: Names, tokens: Sequence[TracedToken], title: str = "") -> Figure:
    """The weights over the tokens of a completion as stacked bars; thin lines separate the spans.

    Below each bar is its token, in the colour of its carrier. Long completions continue on further lines.

    Args:
        names (`Sequence[str]` or `EnsembleForCausalLM`): of the members, or the ensemble.
        tokens (`Sequence[TracedToken]`): of one completion.
        title (`str`, *optional*): above the picture.

    Returns:
        `matplotlib.figure.Figure`: not registered with pyplot, so it need not be closed. As the last line of a
        notebook's cell it shows itself.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    names = names_of(names)
    lines = [tokens[start : start + _TOKENS_A_LINE] for start in range(0, max(1, len(tokens)), _TOKENS_A_LINE)]
    width = max(4.0, 1.0 + 0.24 * max(map(len, lines)))
    figure = Figure(figsize=(width, 1.0 + 1.7 * len(lines)), layout="constrained")
    # notebooks ask for it; a subclass would no longer be a figure for trackers, which go by the name of the class
    figure._repr_png_ = partial(_drawn, figure, "png")  # type: ignore[attr-defined]
    for axes, line in zip(figure.subplots(len(lines), squeeze=False)[:, 0], lines, strict=True):
        _plot_line(axes, line, len(names))
    patches = [Patch(color=colour_of(member), label=name) for member, name in enumerate(names)]
    figure.legend(handles=patches, loc="outside upper center", ncols=len(names), frameon=False, title=title or None)
    return figure


def _drawn(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=130)
    return buffer.getvalue()


def _plot_line(axes: Axes, line: Sequence[TracedToken], num_members: int) -> None:
    bottoms = [0.0] * len(line)
    for member in range(num_members):
        heights = [token.weights[member] for token in line]
        axes.bar(range(len(line)), heights, 1.0, bottoms, color=colour_of(member))
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    for place in range(1, len(line)):
        if line[place].span != line[place - 1].span:
            axes.axvline(place - 0.5, color="white", linewidth=1.2)
    ticks = axes.set_xticks(range(len(line)), [_label(token) for token in line], family="monospace")
    for text, token in zip(axes.get_xticklabels() if ticks else [], line, strict=False):
        text.set(color=colour_of(token.carrier), rotation=0 if len(_label(token)) <= _UPRIGHT else 90)
    axes.set(xlim=(-0.5, max(len(line), 1) - 0.5), ylim=(0, 1), yticks=(0, 0.5, 1), ylabel="weight")
    axes.tick_params(axis="x", length=0)


def _label(token: TracedToken) -> str:
    shown = token.text.replace(" ", "·") if token.raw else "end"
    shown = shown.encode("unicode_escape").decode() if not shown.isprintable() else shown
    return shown.replace("$", r"\$")[:_LONGEST_LABEL]


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Writes a figure atomically, in the format of the file name's ending (`.png`, `.svg`, `.pdf`).

    Raises:
        ValueError: matplotlib has no such format.
    """
    path = Path(path)
    return write_whole(path, _drawn(figure, path.suffix[1:].lower() or "png"))
