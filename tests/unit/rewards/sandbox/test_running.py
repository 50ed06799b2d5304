"""The clock of a worker stands still while its program computes."""

from __future__ import annotations

import pytest

from hf_rlae.rewards.sandbox.limits import SandboxLimits
from hf_rlae.rewards.sandbox.outcomes import Outcome
from hf_rlae.rewards.sandbox.pool import Sandbox
from tests.support.sandboxes import some_sandbox
from tests.support.tiers import slow
from tests.unit.rewards.sandbox.world import run


@pytest.fixture
def sandbox():
    made = Sandbox(SandboxLimits(cpu_s=60.0, wall_s=0.4), backend=some_sandbox().backend)
    yield made
    made.close()


def test_a_program_that_computes_may_take_longer(sandbox):
    assert run(sandbox, "import time\nend = time.monotonic() + 1.0\nwhile time.monotonic() < end: pass") == ""


@pytest.mark.parametrize(
    "program",
    ["import time\ntime.sleep(60)", "import time\nwhile True: time.sleep(0.2)", *slow("while True: pass")],
)
def test_a_program_that_waits_or_never_ends_is_ended(sandbox, program):
    """The last one computes all the time: it is ended after ten times as long."""
    ended = run(sandbox, program)
    assert ended.outcome is Outcome.TIMEOUT
    assert "on the clock" in ended.detail


def test_ten_times_as_long_is_the_end():
    assert SandboxLimits(wall_s=3.0).longest_s == 30.0
