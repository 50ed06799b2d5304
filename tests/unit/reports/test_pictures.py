"""Pictures show the given weights, and are written atomically."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest

from hf_rlae.reports import TracedToken, plot_token_weights, save_figure, span_table

NAMES = ["first", "second"]


def tokens(count: int) -> list[TracedToken]:
    return [TracedToken(0, b"$x ", step // 2, (0.25, 0.75), (-1.0, -2.0)) for step in range(count)]


@pytest.mark.parametrize(("count", "lines"), [(1, 1), (48, 1), (49, 2), (0, 1)])
def test_bars_are_the_weights(count, lines):
    figure = plot_token_weights(NAMES, tokens(count))
    assert len(figure.axes) == lines
    heights = [patch.get_height() for axes in figure.axes for patch in axes.patches]
    assert heights.count(0.25) == heights.count(0.75) == count
    labels = [label.get_text() for axes in figure.axes for label in axes.get_xticklabels()]
    assert labels == [r"\$x·"] * count


def test_short_labels_are_upright():
    pieces = [b"7", b" 5", b"=12", b"times"]
    figure = plot_token_weights(NAMES, [TracedToken(0, raw, 0, (0.5, 0.5), (-1.0, -1.0)) for raw in pieces])
    assert [label.get_rotation() for label in figure.axes[0].get_xticklabels()] == [0, 0, 90, 90]


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_pictures_are_written(ending, tmp_path):
    odd = [TracedToken(0, raw, 0, (0.5, 0.5), (-1.0, -1.0)) for raw in (b"\xff", b"\n", "é".encode(), b"")]
    path = save_figure(plot_token_weights(NAMES, odd, "title $"), tmp_path / f"weights.{ending}")
    head = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[ending]
    assert path.read_bytes().startswith(head)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_picture_shows_itself_in_a_notebook():
    """A figure that pyplot does not know is `<Figure ...>` there, unless it says how it looks."""
    figure = plot_token_weights(NAMES, tokens(1))
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert type(figure).__module__ == "matplotlib.figure"  # trackers and Gradio go by it
    assert pickle.loads(pickle.dumps(figure))._repr_png_().startswith(b"\x89PNG")


def test_names_come_from_an_ensemble():
    ensemble = SimpleNamespace(members=[SimpleNamespace(name="owner/first"), SimpleNamespace(name="/models/second/")])
    [legend] = plot_token_weights(ensemble, tokens(1)).legends
    assert [text.get_text() for text in legend.get_texts()] == NAMES
    assert [column.header for column in span_table(ensemble, tokens(1)).columns][2:] == NAMES


def test_an_unknown_format_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="xyz"):
        save_figure(plot_token_weights(NAMES, tokens(1)), tmp_path / "weights.xyz")
    assert not list(tmp_path.iterdir())
