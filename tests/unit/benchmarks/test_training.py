"""The training benchmark: what it times, what it makes of the times, and that it runs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.benchmarks import decode, training_contenders, training_memory
from tests.benchmarks import members as benchmarked
from tests.benchmarks.costs import Timing
from tests.benchmarks.training import DENSE_LIMIT, DRAW_LIMIT, MEMORY, Times, main, memory_cases, targets_table
from tests.benchmarks.training_cases import DRAWS, TrainingCase, TrainingResult, chosen_cases
from tests.benchmarks.training_contenders import Clock

CASE = TrainingCase("small", "same", 2, 2, 5, 10)


class Ticks:
    """A stopwatch that moves on by one second whenever it is read; wall time goes twice as fast."""

    def __init__(self):
        self.seconds = 0

    def now(self):
        self.seconds += 1
        return self.seconds, 2 * self.seconds


def entry(rollout, members, filling=2.0, step=3.0, grpo=1.0):
    """One round, in seconds."""
    seconds = {"rlae rollout": rollout, "rlae filling": filling, "rlae step": step}
    seconds |= {f"member {index}": value for index, value in enumerate(members)}
    seconds |= {"grpo rollout": grpo, "grpo filling": 2 * grpo, "grpo step": 4 * grpo}
    return {name: Timing(value, 2 * value, 200 if name != "grpo step" else 0) for name, value in seconds.items()}


def test_ratios_are_medians_of_ratios_within_rounds():
    times = Times(TrainingResult(CASE, [entry(1.0, [1, 1]), entry(6.0, [1, 3]), entry(2.0, [4, 1], step=4.0)]))
    assert times.rollout("members", "cpu") == pytest.approx([20_000, 40_000, 50_000])
    assert times.rollout("rlae", "wall") == pytest.approx([20_000, 120_000, 40_000])
    assert times.ratio("cpu") == times.ratio("wall") == pytest.approx(0.5)
    assert times.update("rlae", "cpu") == pytest.approx([1000, 1000, 2000])
    assert times.update("grpo", "wall") == pytest.approx([4000] * 3)
    assert times.step_ratio("cpu") == pytest.approx(0.75)
    assert times.token_bytes("member") == pytest.approx(2.0)


@pytest.mark.parametrize("mode", ["dense", *DRAWS])
def test_rollouts_are_held_against_their_target(mode):
    limit = DENSE_LIMIT if mode == "dense" else DRAW_LIMIT
    case = TrainingCase("small", "different", 2, 2, 5, 10, mode)
    for factor, verdict in ((0.99, "| met |"), (1.01, "| not met |")):
        times = Times(TrainingResult(case, [entry(2 * factor * limit, [1, 1])]))
        lines = targets_table([times], None).splitlines()[2:]
        assert len(lines) == 1
        assert lines[0].startswith(f"| {case.name}: ratio | {limit:.2f} |")
        assert lines[0].endswith(verdict)
    assert targets_table([], False).endswith("| not met |")
    assert targets_table([], True).endswith("| met |")


def test_inner_times_are_part_of_outer_ones():
    clock = Clock(Ticks())
    for _ in range(2):
        with clock.counting("step"), clock.counting("rollout"):
            pass
    assert clock.spent == {"rollout": Timing(2, 4), "step": Timing(6, 12)}
    args = SimpleNamespace(max_completion_length=3)
    clock.wrote([3, 3], ["abc", "é"], args)
    assert clock.spent["rollout"] == Timing(2, 4, 5)
    with pytest.raises(RuntimeError, match=r"texts have \[2, 3\] tokens, not 3"):
        clock.wrote([3, 2], ["abc", "ab"], args)


def test_rollouts_keep_nothing_of_the_size_of_the_vocabulary():
    text, is_fixed = training_memory.storage_table()
    assert is_fixed
    kept = training_memory.stored_bytes(training_memory.rollouts_with(400))
    assert f"| all | {sum(kept.values())} | {sum(kept.values())} |" in text
    assert kept["member_logps"] == 4 * 16 * 2 * 4  # rows, tokens, members, bytes


def test_a_view_into_something_large_counts_whole():
    """A slice of a tensor keeps all of it in memory."""
    rollouts = training_memory.rollouts_with(400)
    before = sum(training_memory.stored_bytes(rollouts).values())
    rollouts.old_values = torch.zeros(4, 4000)[:, : rollouts.old_values.shape[1]]
    assert sum(training_memory.stored_bytes(rollouts).values()) > before + 60_000


def test_peaks_are_the_most_that_is_alive_at_a_time():
    def work():
        for _ in range(3):
            one = torch.zeros(1000)
            two = torch.zeros(500)
            del one, two

    assert training_memory.peak_bytes(work) == 6000


def test_every_target_is_measured_by_default(capsys):
    cases = chosen_cases([], quick=False)
    assert len({case.name for case in cases}) == len(cases)
    for members in ("embedded", "small"):
        for tokenizers in ("same", "different"):
            modes = {case.mode for case in cases if (case.members, case.tokenizers) == (members, tokenizers)}
            assert modes == {"dense", *DRAWS}
    assert {case.members for case in chosen_cases([], quick=True)} == {"embedded"}
    main(["--list"])
    assert capsys.readouterr().out.splitlines() == [*(case.name for case in cases), "memory"]
    assert len(memory_cases(quick=True)) == 1


def test_a_name_that_nothing_has_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--cases", "nobody"])
    assert "no case matches ['nobody']" in capsys.readouterr().err


@pytest.mark.parametrize("cases", ["small-same-*", "real-different-*", decode.BUILDING, MEMORY])
def test_files_that_are_not_there_are_named_before_any_work(monkeypatch, tmp_path, cases):
    monkeypatch.setattr(benchmarked, "SHARED", tmp_path)
    for module in (decode, training_contenders):
        monkeypatch.setattr(module, "measure", lambda *_: pytest.fail("measured before it was refused"))
    for command in (main,) if cases == MEMORY else (decode.main,) if cases == decode.BUILDING else (main, decode.main):
        with pytest.raises(SystemExit, match=r"^data/tinystories/.* is not there; set HF_RLAE_SHARED"):
            command(["--cases", "embedded-same-*", cases])


def test_files_that_no_chosen_case_needs_may_be_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(benchmarked, "SHARED", tmp_path)
    benchmarked.check_files([("embedded", "different", 3)])
    (tmp_path / benchmarked.STORIES).parent.mkdir(parents=True)
    (tmp_path / benchmarked.STORIES).touch()
    (tmp_path / "data" / "tokenizers" / benchmarked.GPT2).mkdir(parents=True)
    benchmarked.check_files([("small", "same", 3), ("embedded", "same", 2)])
    with pytest.raises(SystemExit, match=benchmarked.NEOX):
        benchmarked.check_files([("small", "same", 2), ("narrow", "different", 2)])
    with pytest.raises(SystemExit, match="models/stories260K"):
        benchmarked.check_files([("real", "same", 2)])


@pytest.mark.slow
def test_the_command_runs(capsys, tmp_path):
    """With embedded members, which need no files beside the package."""
    threads = torch.get_num_threads()
    try:
        main(["--quick", "--cases", "embedded-different-*-draw-word", "memory", "--output", str(tmp_path / "t.md")])
    finally:
        torch.set_num_threads(threads)
    text = capsys.readouterr().out
    assert (tmp_path / "t.md").read_text() + "\n" == text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| emb")]
    target, costs, memory = rows
    assert target[1] == "0.75"
    assert costs[:5] == ["embedded, different", "3", "2 x 2", "12", "draw-word"]
    ratio, rollout, members = (float(costs[place].split(" / ")[0]) for place in (7, 6, 5))
    assert ratio == pytest.approx(rollout / members, rel=0.02)
    assert all(float(costs[place].split(" / ")[0]) > 0 for place in (10, 11, 12, 13))
    policy, gradients, optimizer, of_members = map(int, memory[1:5])
    assert gradients == policy
    assert abs(optimizer - 2 * policy) <= 2
    assert of_members == 0
