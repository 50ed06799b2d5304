"""The cost benchmark: what it times, what it makes of the times, and that every kind of case runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.benchmarks.cases import Case, chosen_cases
from tests.benchmarks.contenders import Contender, contenders, forward_passes, timed_calls
from tests.benchmarks.costs import Result, Timing, growths
from tests.benchmarks.decode import main
from tests.benchmarks.scale import ROOT
from tests.benchmarks.targets import DRAWS, POLICY_PERCENT, targets_table
from tests.support.models import tiny


@pytest.mark.parametrize("padding", [0, 2])
def test_forward_passes_are_given_what_generate_gives(padding):
    model, steps, calls = tiny("llama", 20), 5, []
    ids = torch.arange(8).reshape(2, 4) + 3
    mask = torch.ones_like(ids)
    mask[1, :padding] = 0

    def note(_: Any, __: Any, given: dict[str, Any]) -> None:
        calls.append({name: given.get(name) for name in ("attention_mask", "position_ids", "logits_to_keep")})
        calls[-1] |= {"ids": given["input_ids"].shape, "seen": given["past_key_values"].get_seq_length()}

    with torch.inference_mode():
        hook = model.register_forward_pre_hook(note, with_kwargs=True)
        model.generate(input_ids=ids, attention_mask=mask, min_new_tokens=steps, max_new_tokens=steps, pad_token_id=0)
        made = len(list(forward_passes(model, steps, ids, mask)))
        hook.remove()
    assert made == steps
    for expected, found in zip(calls[:steps], calls[steps:], strict=True):
        assert torch.equal(found.pop("position_ids"), expected.pop("position_ids"))
        wanted, own = expected.pop("attention_mask"), found.pop("attention_mask")
        assert own is None if wanted is None else torch.equal(own, wanted)
        assert found == expected


class Ticks:
    """A stopwatch that moves on by one second whenever it is read; wall time goes twice as fast."""

    def __init__(self):
        self.seconds = 0

    def now(self):
        self.seconds += 1
        return self.seconds, 2 * self.seconds


def test_the_time_of_inner_calls_is_not_the_time_of_the_outer_one():
    """Two inner calls of one second each, within an outer one that sees the clock move by five."""
    watch, inner = Ticks(), nn.Identity()

    class Outer(nn.Module):
        def forward(self, x):
            return inner(inner(x))

    outer = Outer()
    with timed_calls([inner, inner], watch) as inside, timed_calls([outer], watch, inside) as outside:
        inner(torch.zeros(1))
        outer(torch.zeros(1))
    outer(torch.zeros(1))
    assert inside == [Timing(1, 2)] * 3
    assert outside == [Timing(3, 6)]


def result(mode, seconds, tokenizers="same", count=2, batch=1, members="small", tokens=10):
    """A result with the given seconds of every contender, one a round."""
    case = Case(members, tokenizers, count, batch, tokens, mode)
    return Result(case, {name: [Timing(s, s, 1) for s in rounds] for name, rounds in seconds.items()})


def test_ratios_are_medians_of_ratios_within_rounds():
    found = result("sample", {"ensemble": [1.0, 6.0, 2.0], "member 0": [1.0, 1.0, 1.0], "member 1": [1.0, 3.0, 4.0]})
    assert found.per_token("members", "cpu") == pytest.approx([200, 400, 500])
    assert found.ratios("ensemble", "wall") == pytest.approx([0.5, 1.5, 0.4])
    assert found.ratio("ensemble", "cpu") == pytest.approx(0.5)
    learned = result("policy-sample", {"policy": [1.03, 2.02, 9.0], "ensemble": [1.0, 2.0, 3.0]})
    assert learned.extra("cpu") == pytest.approx(3.0)


@pytest.mark.parametrize("tokenizers", ["same", "different"])
@pytest.mark.parametrize(("shape", "limit"), DRAWS.items())
def test_draws_are_held_against_their_targets(shape, limit, tokenizers):
    mode, batch, count = shape
    for factor, verdict in ((0.99, "| met |"), (1.01, "| not met |")):
        seconds = {"ensemble": [factor * limit * count], **{f"member {k}": [1.0] for k in range(count)}}
        lines = targets_table([result(mode, seconds, tokenizers, count, batch)], [], None).splitlines()[2:]
        assert len(lines) == 1
        assert lines[0].endswith(verdict)
        assert f"| {limit:.2f} |" in lines[0]
        assert lines[0].startswith(f"| {tokenizers} tokenizer")


def test_policies_are_held_against_their_target():
    """A verdict needs rounds that agree better than the target is away."""
    for percents, verdict in (
        ([POLICY_PERCENT - 0.4, POLICY_PERCENT - 0.3, POLICY_PERCENT - 0.2], "| met |"),
        ([POLICY_PERCENT + 0.2, POLICY_PERCENT + 0.3, POLICY_PERCENT + 0.4], "| not met |"),
        ([-9.0, 1.0, 11.0], "| unclear, more --rounds would tell |"),
        ([0.0], "| unclear, more --rounds would tell |"),  # too few
    ):
        percents = percents * 4
        seconds = {"policy": [1 + percent / 100 for percent in percents], "ensemble": [1.0] * len(percents)}
        assert targets_table([result("policy-sample", seconds)], [], None).endswith(verdict)
        assert targets_table([result("policy-sample", seconds, members="embedded")], [], None) == ""


def test_the_error_of_a_share_is_that_of_a_median():
    """Standard errors of medians of normal numbers, against their spread over many repetitions."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(400, 24, generator=generator, dtype=torch.float64) / 100
    results = [result("policy-sample", {"policy": (1 + row).tolist(), "ensemble": [1.0] * len(row)}) for row in noise]
    spread = torch.tensor([found.extra("cpu") for found in results]).std()
    errors = torch.tensor([found.extra_error("cpu") for found in results]).mean()
    assert float(errors) == pytest.approx(float(spread), rel=0.15)


def test_growth_is_that_of_the_ratio():
    short = result("sample", {"ensemble": [1.0], "member 0": [1.0]}, tokens=10)
    long = result("sample", {"ensemble": [15.0], "member 0": [12.0]}, tokens=100)
    (growth,) = growths([long, short])
    assert growth.relative("cpu") == pytest.approx(1.25)
    assert growth.factor("members", "cpu") == pytest.approx(1.2)
    assert growth.beyond("wall") == pytest.approx(150 - 100 - (120 - 100))


def test_every_target_of_draws_and_policies_is_measured_by_default():
    cases = chosen_cases([], quick=False, device="cpu")
    assert len({case.name for case in cases}) == len(cases)
    for tokenizers in ("same", "different"):
        chosen = {(c.mode, c.batch, c.count) for c in cases if c.members == "small" and c.tokenizers == tokenizers}
        assert chosen >= set(DRAWS)
        assert ("policy-sample", 1, 2) in chosen
        assert ("processor-sample", 1, 2) in chosen
        assert ("embedded", tokenizers) in {(c.members, c.tokenizers) for c in cases}


@pytest.mark.parametrize("kind", ["draw", "processor", "policy"])
def test_groups_are_chosen_by_name(kind):
    cases = chosen_cases([f"{kind}-*"], quick=False, device="cpu")
    every = chosen_cases(["*"], quick=False, device="cpu")
    assert cases == [case for case in every if case.kind == kind]
    assert len(cases) > 2


def test_a_name_that_nothing_has_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--cases", "nobody"])
    assert "no case matches ['nobody']" in capsys.readouterr().err


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("tokenizers", ["same", "different"])
def test_embedded_members_in_turn(tokenizers):
    """A learned policy and a processor write what uniform weights write, and hooks last for a run."""
    texts = {}
    for mode in ("policy-greedy", "processor-greedy"):
        case = Case("embedded", tokenizers, 3, 2, 6, mode)
        found = contenders(case, "cpu")
        assert found[0].name == case.kind
        for contender in found:
            if isinstance(contender, Contender) and contender.name in ("policy", "processor", "ensemble"):
                before = hooks(contender.model)
                prepared = contender.prepare()
                assert (hooks(contender.model) > before) == (contender.name == "processor")
                new = contender.model.generate(**contender.inputs, **contender.options, **prepared, **case.settings)
                del prepared
                assert hooks(contender.model) == before
                new = new[:, contender.inputs["input_ids"].shape[1] :]
                texts[contender.name] = [b"".join(contender.pieces[i] for i in row) for row in new.tolist()]
                if contender.name == "policy":
                    traced = contender.model.generate(**contender.inputs, **case.settings, return_dict_in_generate=True)
                    assert torch.equal(traced.span_weights, torch.full_like(traced.span_weights, 1 / 3))
    assert texts["policy"] == texts["ensemble"]
    if tokenizers == "same":
        assert texts["processor"] == texts["ensemble"]
    else:  # the host writes characters
        assert all(len(text) == 6 for text in texts["processor"])


@pytest.mark.slow
def test_every_kind_of_case_runs(capsys, tmp_path):
    """The command with embedded members, which needs no files beside the package."""
    threads = torch.get_num_threads()
    try:
        main(["--quick", "--rounds", "1", "--cases", "embedded-different-m3-b1-*", "--output", str(tmp_path / "t.md")])
    finally:
        torch.set_num_threads(threads)
    text = capsys.readouterr().out
    assert (tmp_path / "t.md").read_text() + "\n" == text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "| embedded," in line]
    by_mode = {row[4]: row for row in rows[:4]}
    assert list(by_mode) == ["sample", "greedy", "draw-token", "draw-word"]
    assert {row[4] for row in rows[4:6]} == {"processor-sample", "policy-sample"}
    assert all(float(row[7].split(" / ")[0]) > 0 for row in rows[:5])
    assert len(rows) == 4 + 1 + 1 + 5
    assert [row[7] for row in rows[6:]] == ["1.00", "1.00", "0.33", "0.33", "1.00"]


def test_the_scale_group_is_chosen_by_its_name(capsys):
    main(["--cases", "scale-m4-*", "--list"])
    assert capsys.readouterr().out.split() == ["scale-m4-b128"]


@pytest.mark.slow
def test_two_checkouts_take_turns_in_the_scale_group(capsys):
    """Here both are this one; the table has both times and their ratio."""
    main(["--cases", "scale-m2-b1", "--rounds", "1", "--against", str(ROOT)])
    row = capsys.readouterr().out.splitlines()[2].split("|")
    assert row[1].strip() == "scale-m2-b1"
    assert all(float(value) > 0 for value in row[2:5])
