"""Names of members in tables are broken between their words, in a terminal of 80 columns."""

from __future__ import annotations

import re

import pytest
from rich.console import Console

from hf_rlae.reports import TracedToken, legend, short_names, span_table

LONG = "/models/my-organisation/Some-Model-135M-Instruct-2026-11-30-checkpoint-12000-merged"
NAMES = {
    "long names": [LONG, f"{LONG}-again"],
    "three": ["a/SmolLM2-135M-Instruct", "b/Qwen2.5-Coder-0.5B-Instruct", "c/Llama-3.2-1B-Instruct"],
    "the same name twice": ["first/Some-Model-135M", "second/Some-Model-135M"],
}


@pytest.mark.parametrize("kind", NAMES)
def test_no_word_of_a_name_is_broken(kind):
    names = short_names(NAMES[kind])
    weights = (1 / len(names),) * len(names)
    console = Console(width=80)
    with console.capture() as capture:
        console.print(span_table(names, [TracedToken(0, b"a text of some length", 0, weights, weights)]))
    shown = capture.get()
    assert max(map(len, shown.splitlines())) <= 80
    for word in {word for name in names for word in re.findall(r"[^-_./:]+", name)}:
        assert re.search(rf"(?<![^\s_./:-]){re.escape(word)}(?![^\s_./:-])", shown), word


@pytest.mark.parametrize("count", [4, 6, 8])
def test_numbers_are_the_headings_where_names_do_not_fit(count):
    names = short_names(f"owner/multiplication-pieces-v{index}" for index in range(count))
    weights = (1 / count,) * count
    console = Console(width=80)
    with console.capture() as capture:
        console.print(span_table(names, [TracedToken(0, b"more text", 0, weights, weights)]))
    shown = capture.get()
    assert re.search(r"spans +text +" + " +".join(map(str, range(count))), shown)
    assert "more text" in shown, "the text is on one line"
    assert legend(names).plain.splitlines() == [f"■ {index} {name}" for index, name in enumerate(names)]
