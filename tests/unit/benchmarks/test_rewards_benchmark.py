"""The benchmark of the rules: its strings and its table; and the limit that it is there for."""

from __future__ import annotations

import pytest

from tests.benchmarks.rewards import LENGTHS, RULES, adversarial, best_ms, main, measure

LONGEST = dict(adversarial(LENGTHS[-1]))


def test_strings_have_the_length_asked_for():
    for length in (1, 999, 1_000):
        strings = dict(adversarial(length))
        assert {len(text) for text in strings.values()} == {length}
        assert dict(adversarial(length)) == strings
    assert len(strings) > 40


def compare_each(text):
    """A plain loop over characters: about 4 ms for 200,000 of them where rules are to take 5 at most."""
    return sum(1 for character in text if character == "\0")


@pytest.mark.parametrize("kind", LONGEST)
@pytest.mark.parametrize("rule", RULES)
def test_no_text_takes_more_than_some_passes_over_its_characters(rule, kind):
    """In the time of five plain loops over the characters: what backtracks takes hundreds. The shortest of up to thirty
    runs of each, in turn: other work on the machine may lengthen any of them."""
    best = loop = float("inf")
    for _ in range(30):
        best = min(best, best_ms(RULES[rule], LONGEST[kind], runs=1))
        loop = min(loop, best_ms(compare_each, LONGEST[kind], runs=1))
        if best < 5 * loop:
            return
    pytest.fail(f"{rule} takes {best:.1f} ms for 200,000 characters of {kind}, a loop over them {loop:.1f} ms")


def test_growth_is_seen(monkeypatch):
    """A rule that is quadratic shows as 4, and would not pass for a linear one."""
    monkeypatch.setitem(RULES, "quadratic", lambda text: [text.count("x") for _ in range(len(text) // 20)])
    growths = {row.kind: row.growth for row in measure([4_000, 8_000], ["quadratic"], runs=2)}
    assert sorted(growths.values())[len(growths) // 2] > 3


def test_the_table(capsys):
    main(["--lengths", "100", "200", "--runs", "1", "--rules", "number"])
    out = capsys.readouterr().out
    assert "number: milliseconds for one text" in out
    assert "open fractions" in out
    assert "slowest at 200 characters" in out
