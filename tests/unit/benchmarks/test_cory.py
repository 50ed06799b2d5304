"""What the benchmark of CORY counts, and what its tables say."""

from __future__ import annotations

import pytest
import torch

from tests.benchmarks import cory as benchmark
from tests.benchmarks.cory import CoryCase, CoryMemory, CoryResult, main, targets_table
from tests.benchmarks.costs import Timing

CASE = CoryCase("wide", 32, 2, 1, 2, 20, 10)
THEORY = 2 + (10 + 11) / 30


def result(flops: float, *times: float) -> CoryResult:
    """FLOPs of CORY over GRPO's, and CPU times of CORY over GRPO's, one a round; wall times are twice as long."""
    counts = {"grpo": {"step": 1000, "rollout": 400}, "cory": {"step": round(1000 * flops), "rollout": 1000}}
    rounds = [{"grpo": Timing(0.1, 0.2), "cory": Timing(0.1 * time, 0.4 * time)} for time in times]
    return CoryResult(CASE, rounds, counts)


def test_the_theory_counts_tokens():
    """The pioneer's prompt and answer; the observer's prompt, with both and a template in it, and answer."""
    assert CASE.template_tokens == len("so: . now: ")
    assert CASE.theory == pytest.approx((30 + CASE.observer_tokens + 10) / 30) == pytest.approx(THEORY)


def test_ratios_are_of_two_agents_over_one():
    found = result(3.0, 2.0, 3.0, 4.0)
    assert found.flops_ratio() == 3.0
    assert found.flops_ratio("rollout") == 2.5
    assert found.flops_ratio("rest") == pytest.approx(2000 / 600)
    assert found.time_ratio("cpu") == pytest.approx(3.0)
    assert found.time_ratio("wall") == pytest.approx(6.0)
    assert found.milliseconds("grpo", "cpu") == pytest.approx(100)
    assert found.flops_off() == pytest.approx(3.0 / THEORY - 1)


@pytest.mark.parametrize(
    ("flops", "time", "verdicts"),
    [
        (1.0, 1.0, ["met", "met"]),
        (1.049, 1.099, ["met", "met"]),
        (1.051, 1.101, ["not met", "not met"]),
        (0.951, 0.5, ["met", "met"]),  # quicker than the theory is no fault
        (0.949, 0.5, ["not met", "met"]),
    ],
)
def test_costs_are_held_against_the_theory(flops, time, verdicts):
    text = targets_table([result(flops * THEORY, time * THEORY)], [])
    assert [line.split(" | ")[-1].removesuffix(" |") for line in text.splitlines()[2:]] == verdicts


def test_memory_may_grow_by_an_adapter_and_its_optimizer():
    for peak, verdict in ((1300, "met"), (1301, "not met")):
        weighed = CoryMemory(CASE, adapter=100, optimizer=200, cory=peak, grpo=500, grpo_long=1000)
        assert weighed.allowed == 1300
        assert targets_table([], [weighed]).endswith(f"| {verdict} |")


def test_a_name_that_nothing_has_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--cases", "nobody"])
    assert "no case matches ['nobody']" in capsys.readouterr().err
    main(["--list"])
    assert len(capsys.readouterr().out.splitlines()) == len({case.name for case in benchmark.CASES})


@pytest.mark.slow
def test_the_command_runs(capsys, tmp_path):
    threads = torch.get_num_threads()
    try:
        main(["--quick", "--output", str(tmp_path / "t.md")])
    finally:
        torch.set_num_threads(threads)
    text = capsys.readouterr().out
    assert (tmp_path / "t.md").read_text() + "\n" == text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| wide")]
    costs, memory = rows[3], rows[4]
    assert costs[1:5] == ["1 x 2", "24", "12", "11"]
    assert float(costs[5]) == pytest.approx(2 + 23 / 36, abs=0.01)
    assert float(costs[6]) == pytest.approx(float(costs[5]), rel=0.1)  # attention grows with the square
    grpo, longer, adapter, optimizer, allowed, cory = map(int, memory[1:])
    assert grpo < longer < cory
    assert abs(optimizer - 2 * adapter) <= 2
    assert abs(allowed - longer - adapter - optimizer) <= 2
    assert cory < longer + 2 * (adapter + optimizer)
