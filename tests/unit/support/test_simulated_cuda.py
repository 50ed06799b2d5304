"""The rules of the simulated device: what waits, what is refused, and what it computes."""

from __future__ import annotations

import pytest
import torch

from hf_rlae.transfers import Placed, upload
from tests.support.models import tiny
from tests.support.simulated_cuda import DEVICE, OnDevice, SimulatedCuda, on_device, to_device

X = torch.arange(12.0).view(3, 4)
ROWS = torch.tensor([2, 0])

WAITS = [
    # what is done, how many waits: the reason is torch's own code
    ("item", lambda x: x[0, 0].item(), 1),
    ("bool", lambda x: bool((x > 3).any()), 1),
    ("tolist", lambda x: x.tolist(), 1),
    ("cpu", lambda x: x.cpu(), 1),
    ("to the host", lambda x: x.to("cpu"), 1),
    ("to another dtype", lambda x: x.to(torch.float64), 0),
    ("to the device", lambda x: ROWS.to(x.device), 1),  # not pinned
    ("numbers", lambda x: torch.tensor([1, 2], device=x.device), 1),
    ("upload", lambda x: upload([1, 2], x.device), 0),  # pinned
    ("placed", lambda x: Placed(ROWS).on(x.device), 0),
    ("zeros", lambda x: torch.zeros(3, device=x.device), 0),
    ("new_zeros", lambda x: x.new_zeros(3), 0),
    ("an index of numbers", lambda x: x[[2, 0]], 1),
    ("an index on the host", lambda x: x[ROWS], 1),
    ("an index on the device", lambda x: x[upload(ROWS, x.device)], 0),
    ("one row", lambda x: x[1], 0),
    ("a mask", lambda x: x[x > 3], 1),
    ("nonzero", lambda x: (x > 3).nonzero(), 1),
    ("filling by a mask", lambda x: x.clone().__setitem__(x > 3, 0.0), 0),
    ("values by a mask", lambda x: x.clone().__setitem__(x > 3, x[0, :1].expand(8)), 1),
    ("where", lambda x: torch.where(x > 3, x, 0.0), 0),
    ("repeats of a known size", lambda x: x[0].repeat_interleave(x[0].long(), output_size=6), 0),
    ("repeats", lambda x: x[0].repeat_interleave(x[0].long()), 1),
]


@pytest.mark.parametrize(("act", "waits"), [row[1:] for row in WAITS], ids=[row[0] for row in WAITS])
def test_what_waits(act, waits):
    x, device = to_device(X), SimulatedCuda()
    with device:
        found = act(x)
    assert len(device.waits) == waits, device.waits
    expected = act(X)
    if isinstance(found, OnDevice):
        assert torch.equal(found.held, expected)
    elif isinstance(found, torch.Tensor):
        assert torch.equal(found, expected)


REFUSED = [
    ("a sum", lambda x: x + X),
    ("cat", lambda x: torch.cat([x, X])),
    ("an index of another device", lambda x: X[upload(ROWS, x.device)]),
    ("numpy", lambda x: x.numpy()),
    ("a copy that is read too early", lambda x: x.to("cpu", non_blocking=True)),
]


@pytest.mark.parametrize("act", [row[1] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_is_refused(act):
    x = to_device(X)
    with SimulatedCuda(), pytest.raises((RuntimeError, TypeError)):
        act(x)


def test_single_numbers_of_the_host_can_be_mixed():
    x = to_device(X)
    with SimulatedCuda() as device:
        assert torch.equal((x + torch.tensor(1.0)).held, X + 1)
    assert not device.waits


def test_a_view_and_what_is_written_in_place_are_shared():
    x = to_device(X)
    with SimulatedCuda():
        row = x[1]
        assert row.mul_(2) is row
        x[0, :2] = 7.0
    assert torch.equal(x.held[1], X[1] * 2)
    assert x.held[0, 0] == 7.0
    assert x.device == DEVICE


def test_a_model_computes_the_same_there():
    model, ids = tiny("llama", 50), torch.tensor([[3, 4, 5]])
    expected = model(ids).logits
    on_device(model)
    with SimulatedCuda() as device, torch.no_grad():
        found = model(to_device(ids)).logits
    assert torch.equal(found.held, expected)
    assert all(wait.kind != "engine" for wait in device.waits if "hf_rlae" in wait.place)
