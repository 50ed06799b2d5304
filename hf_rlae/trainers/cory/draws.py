"""Random numbers of one part of a rollout that leave those of all other parts as they are."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def draws_apart(position: int) -> Iterator[None]:
    """Separate random numbers for one agent of the chain; afterwards the generators have their former state.

    The pioneer then draws the same numbers as without observers. The seed is a digest of the generators' state, so that
    a resumed run draws the same numbers.

    Source: ours.

    Args:
        position (`int`): of the agent in the chain, or another number that no other part of the rollout has.

    Example:

    >>> before = torch.random.get_rng_state()
    >>> with draws_apart(1):
    ...     _ = torch.rand(3)
    >>> torch.equal(torch.random.get_rng_state(), before)
    True
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    digest = hashlib.blake2b(position.to_bytes(4, "big"), digest_size=7)
    for state in (torch.random.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)):
        digest.update(state.numpy().tobytes())
    with torch.random.fork_rng(devices):
        torch.manual_seed(int.from_bytes(digest.digest(), "big"))
        yield
