"""Lets remote members run at the same time as the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(64, "hf_rlae-remote-member")


def at_once(jobs: Sequence[Callable[[], None]], waits: Sequence[bool]) -> None:
    """Does all jobs, and returns when they are done.

    Args:
        jobs (`Sequence[Callable]`): what to do.
        waits (`Sequence[bool]`): whether each job mostly waits for another process; such a job gets its own thread,
            unless it is the only one. The others are done here, one after the other.
    """
    if len(jobs) < 2 or not any(waits):
        for job in jobs:
            job()
        return
    is_inference, has_grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def in_same_mode(job: Callable[[], None]) -> None:  # modes belong to threads
        with torch.inference_mode(is_inference), torch.set_grad_enabled(has_grad):
            job()

    waiting = [_threads().submit(in_same_mode, job) for job, one in zip(jobs, waits, strict=True) if one]
    try:
        for job, one in zip(jobs, waits, strict=True):
            if not one:
                job()
    finally:
        errors = [one.exception() for one in waiting]  # none may go on when the caller does
    for error in errors:
        if error is not None:
            raise error
