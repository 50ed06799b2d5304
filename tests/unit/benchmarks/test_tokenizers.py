"""The benchmark across tokenizers: its rows, its tables, and how it continues."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from hf_rlae import EnsembleForCausalLM, StaticPolicy
from hf_rlae.vocabulary import UnionVocabulary
from tests.benchmarks import passages, tokenizers
from tests.benchmarks.decoding_cost import Cost, cost_alone, cost_of_sampling
from tests.benchmarks.passages import Passage
from tests.benchmarks.rivals import EnsembleDecoder
from tests.benchmarks.tokenizer_rows import Measurer, Row, Score, rows_of
from tests.benchmarks.tokenizer_tables import Table, summary
from tests.support.worlds import World, world

WEIGHTS = (0.7, 0.3)
PASSAGES = [Passage("ab", b"abba"), Passage("ba", b"aabab"), Passage("a", b"bb")]


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.inference_mode():
        yield


def ab_pair() -> World:
    voices = world("ab").voices[1:3]
    return World(voices, UnionVocabulary([voice.vocabulary for voice in voices]))


def measurer(samples: int = 0) -> Measurer:
    members = [voice.member for voice in ab_pair().voices]
    prompts = ["ab", "bba", "a"][:samples]
    return Measurer(members, PASSAGES, prompts, {"ab"}, num_bytes=8, particles=1000, seed=0, cost_texts=2)


def score(*bits: float, **fields: object) -> Score:
    return Score(list(bits), **fields)


# passages


def test_stories_have_prompts_that_are_not_scored():
    lines = ["too short a line", "one two three four five six seven eight nine"]
    assert list(passages.stories(lines, 24, 0)) == [Passage("one two three four", b" five six seven eight")]


@pytest.mark.parametrize(
    ("text", "num_bytes", "expected"),
    [
        pytest.param(" one two", 8, b" one two", id="all of it"),
        pytest.param(" one two", 7, b" one", id="up to the end of a word"),
        pytest.param("longer", 3, b"", id="no whole word"),
        pytest.param(" é b", 3, " é".encode(), id="bytes, not characters"),
    ],
)
def test_texts_are_cut_behind_a_word(text, num_bytes, expected):
    assert passages.cut(text, num_bytes) == expected


def test_solutions_have_no_calculator_marks(tmp_path):
    entry = {"question": "How many?", "answer": "It is 2*3=<<2*3=6>>6.\n#### 6"}
    (tmp_path / "test.jsonl").write_text(json.dumps(entry) + "\n", encoding="utf-8")
    found = list(passages.solutions(tmp_path / "test.jsonl", 100))
    assert found == [Passage("Question: How many?\nAnswer:", b" It is 2*3=6.\n#### 6")]


def test_passages_are_those_that_all_members_can_represent():
    members = [voice.member for voice in ab_pair().voices]
    given = [Passage("ab", b"abba"), Passage("ab", b"abc"), Passage("b", b"a")]
    assert passages.choose(given, members, 2) == [given[0], given[2]]
    with pytest.raises(ValueError, match="only 2 passages"):
        passages.choose(given, members, 3)
    with pytest.raises(ValueError, match="512 tokens"):
        passages.choose([Passage("ab", b"ab" * 300)], members, 1)


# rows


def test_alone_is_exact_byte_mixing_of_one_member():
    found = measurer()
    bits = found.measure(Row("alone", (0.0, 1.0))).bits
    assert bits == pytest.approx(found.measure(Row("exact", (0.0, 1.0))).bits)
    assert all(bit > 0 for bit in bits)


def test_particles_with_one_member_find_its_exact_probability():
    """Readings of a member alone are the member, so that both sums over segmentations are the same."""
    found = measurer()
    expected = found.measure(Row("alone", (1.0, 0.0))).bits
    assert found.measure(Row("ensemble", (1.0, 0.0))).bits == pytest.approx(expected, abs=1e-3)


def test_mixings_of_exact_bytes_differ():
    found = measurer()
    bits = [sum(found.measure(Row("exact", WEIGHTS, mixing=mixing)).bits) for mixing in ("linear", "power", "log")]
    assert len(set(bits)) == 3
    assert all(map(math.isfinite, bits))


@pytest.mark.parametrize("kind", ["ensemble", "appending", "retokenising"])
def test_decoders_are_scored_and_sampled(kind):
    found = measurer(samples=2).measure(Row(kind, WEIGHTS))
    assert len(found.bits) == len(PASSAGES)
    assert len(found.words) == len(found.unknown) == 2
    assert (found.cost is not None) == (kind == "ensemble")


@pytest.mark.parametrize("mixing", ["linear", "log", "power"])
def test_the_grain_of_bytes_is_exact_byte_mixing(mixing):
    found = measurer()
    expected = found.measure(Row("exact", WEIGHTS, mixing=mixing)).bits
    assert found.measure(Row("ensemble", WEIGHTS, "byte", mixing)).bits == pytest.approx(expected, abs=0.1)


def test_three_members_have_rows_of_their_own():
    rows = rows_of(3, [(1 / 3,) * 3])
    assert [row.weights for row in rows if row.kind == "alone"] == [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert len({(row.name, row.weights) for row in rows}) == len(rows)


# costs


def test_a_member_alone_costs_a_pass_a_token():
    voice = ab_pair().voices[0]
    cost = cost_alone(voice.member, ["ab", "b"], 30, seed=0)
    assert cost.passes == cost.own_tokens
    assert cost.num_bytes > 0
    assert cost.cpu_s > 0


def test_every_pass_of_an_ensemble_is_counted():
    members = [voice.member for voice in ab_pair().voices]
    calls = [0, 0]
    for index, member in enumerate(members):
        forward = member.model.forward

        def counting(*args, index=index, forward=forward, **options):
            calls[index] += 1
            return forward(*args, **options)

        member.model.forward = counting
    try:
        decoder = EnsembleDecoder(EnsembleForCausalLM.from_members(members, StaticPolicy(WEIGHTS)))
        calls[:] = 0, 0
        cost = cost_of_sampling(decoder, members, ["ab"], 8, torch.Generator().manual_seed(0))
    finally:
        for member in members:
            del member.model.forward
    assert cost.passes == calls
    assert min(calls) > 0


# tables


def table(**scores: Score) -> Table:
    rows = {
        "first": Row("alone", (1.0, 0.0)),
        "second": Row("alone", (0.0, 1.0)),
        "exact": Row("exact", WEIGHTS),
        "token": Row("ensemble", WEIGHTS),
        "byte": Row("ensemble", WEIGHTS, "byte"),
        "log": Row("ensemble", WEIGHTS, "byte", "log"),
        "auto": Row("ensemble", WEIGHTS, "auto"),
    }
    return Table("x+y", ["x", "y"], [10, 10], {rows[name]: found for name, found in scores.items()})


def test_a_table_compares_line_by_line():
    found = table(
        first=score(12.0, 14.0),
        second=score(15.0, 15.0),
        exact=score(9.0, 11.0, cost=Cost(20, [30, 10], [10, 10])),
        token=score(10.0, 12.0, words=[5, 5], unknown=[1, 0], cost=Cost(20, [10, 20], [8, 20], 0.04)),
    ).lines()
    assert found[0] == "**x+y**: 2 lines with 20 bytes."
    assert found[4:] == [
        "| x alone |  | 1.3000 ± 0.1000 |  |  |  |  |  |  |",
        "| y alone |  | 1.5000 ± 0.0000 | +0.2000 ± 0.1000 |  |  |  |  |  |",
        "| exact bytes | .7/.3 | 1.0000 ± 0.1000 | -0.3000 ± 0.0000 |  |  | 2.00 | 3.00 + 1.00 |  |",
        "| grain token | .7/.3 | 1.1000 ± 0.1000 | -0.2000 ± 0.0000 | +0.1000 ± 0.0000 | 10.0 ± 10.0 | 1.50 "
        "| 1.25 + 1.00 | 2.00 |",
    ]


def test_a_summary_has_a_line_for_all_weights_of_all_tables():
    cost = Cost(20, [10, 20], [8, 20], 0.1)
    first = table(first=score(12.0, 14.0), exact=score(9.0, 9.0), token=score(10.0, 10.0, cost=cost))
    second = table(first=score(11.0, 11.0), token=score(8.0, 8.0, cost=cost), byte=score(7.0, 7.0))
    assert summary([first, second]) == [
        "| members | weights | better member | exact bytes | grain token | grain byte |",
        "|---|---|---|---|---|---|",
        "| x+y | .7/.3 | 1.3000 | 0.9000 | 1.0000 (1.50) |  |",
        "| x+y | .7/.3 | 1.1000 |  | 0.8000 (1.50) | 0.7000 |",
    ]


def test_the_frontier_has_what_is_cheaper_or_better():
    found = table(
        token=score(10.0, 10.0, cost=Cost(20, [10, 20], [8, 20])),
        byte=score(9.0, 9.0, cost=Cost(20, [20, 30], [8, 20])),
        log=score(8.0, 8.0),  # its cost was not measured
        auto=score(9.0, 9.0, cost=Cost(20, [20, 30], [8, 20])),
    )
    assert found.frontiers() == ["- x+y .7/.3: grain token (1.0000 at 1.50), grain byte (0.9000 at 2.50)"]
    worse = table(
        token=score(10.0, 10.0, cost=Cost(20, [10, 20], [8, 20])),
        byte=score(11.0, 11.0, cost=Cost(20, [20, 30], [8, 20])),
    )
    assert worse.frontiers() == ["- x+y .7/.3: grain token (1.0000 at 1.50)"]


@pytest.mark.parametrize(
    ("scores", "not_met"),
    [
        pytest.param({"byte": score(10.0, 10.05), "exact": score(10.0, 10.0)}, [], id="near exact bytes"),
        pytest.param({"byte": score(10.0, 10.2), "exact": score(10.0, 10.0)}, ["within"], id="far from them"),
        pytest.param({"log": score(10.0, math.inf)}, ["impossible"], id="an impossible line"),
        pytest.param(
            {
                "auto": score(9.5, 9.5, cost=Cost(10, [8, 8], [9, 9]), grain="character"),
                "byte": score(9.0, 9.0, cost=Cost(10, [8, 8], [9, 9])),
            },
            ["on the frontier"],
            id="a grain that is dominated",
        ),
        pytest.param({"auto": score(13.0, 14.0)}, ["below the better"], id="no better than a member"),
        pytest.param({"auto": score(11.0, 12.0), "token": score(10.0, 11.0)}, ["not above"], id="worse than tokens"),
        pytest.param(
            {
                "auto": score(9.0, 9.0, cost=Cost(10, [9, 9], [9, 9]), grain="byte"),
                "byte": score(9.0, 9.1, cost=Cost(10, [8, 8], [9, 9])),
            },
            ["not dearer"],
            id="dearer than bytes",
        ),
    ],
)
def test_targets(scores, not_met):
    lines = table(first=score(12.0, 14.0), second=score(15.0, 15.0), **scores).targets()
    failed = [line for line in lines if "**not met**" in line]
    assert len(failed) == len(not_met)
    assert lines
    for line, part in zip(failed, not_met, strict=True):
        assert part in line


# the command


def run(output: Path, *options: str) -> str:
    arguments = ["--members", "stories260K+babyllama-tok105", "--lines", "2", "--bytes", "32", "--samples", "0"]
    tokenizers.main([*arguments, "--particles", "2", "--cost-texts", "0", "--output", str(output), *options])
    return (output / "tables.md").read_text(encoding="utf-8")


def test_finished_rows_are_not_measured_again(shared, tmp_path, monkeypatch):
    for parts in (("models", "stories260K"), ("models", "babyllama-tok105"), ("data", "tinystories")):
        shared(*parts)
    rows = ["--rows", "exact bytes", "grain token", "--weights", ".5/.5"]
    first = run(tmp_path, *rows)
    assert first.count("| exact bytes |") == first.count("| grain token |") == 1
    measured = []
    monkeypatch.setattr(Measurer, "measure", lambda self, row: measured.append(row))
    assert run(tmp_path, *rows) == first
    assert not measured
    saved = next((tmp_path / "stories260K+babyllama-tok105").glob("0.5-0.5_grain_token.json"))
    saved.unlink()
    with pytest.raises(AttributeError):  # what the replaced method gives back is no score
        run(tmp_path, *rows)
    assert measured == [Row("ensemble", (0.5, 0.5))]
    measured.clear()
    with pytest.raises(AttributeError):
        run(tmp_path, *rows, "--seed", "1")
    assert measured == [Row("alone", (1.0, 0.0))], "other options make every row another one"


def test_members_that_cannot_be_compared_are_skipped(shared, tmp_path):
    for parts in (("models", "stories260K"), ("data", "tinystories")):
        shared(*parts)
    found = run(tmp_path, "--members", "stories260K+nowhere", "stories260K+stories260K")
    assert "stories260K+nowhere: skipped: models/nowhere is not there" in found
    assert "stories260K+stories260K: skipped: the members have one tokenizer" in found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lines", "1"], "--lines is at least 2"),
        (["--weights", ".5/.6"], "their sum is 1"),
    ],
)
def test_options_are_checked(options, message, capsys):
    with pytest.raises(SystemExit):
        tokenizers.parse(options)
    assert message in capsys.readouterr().err
