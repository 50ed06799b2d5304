"""Runs functions in new processes, one alone or two together."""

from __future__ import annotations

import multiprocessing
import socket
import time
from collections.abc import Callable
from typing import Any


def start(run: Callable[..., None], *arguments: Any, **options: Any) -> multiprocessing.Process:
    """`run` in a new process, forked from a process that has only imported its module."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([run.__module__])
    process = context.Process(target=run, args=arguments, kwargs=options)
    process.start()
    return process


def start_two(run: Callable[..., None], *arguments: Any, **options: Any) -> list[multiprocessing.Process]:
    """`run` in two processes that train together; `run` has to put its argument `environment` into `os.environ`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    together = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    return [
        start(run, *arguments, environment={**together, "RANK": str(rank), "LOCAL_RANK": str(rank)}, **options)
        for rank in range(2)
    ]


def finish(processes: list[multiprocessing.Process], limit_s: float = 180) -> list[int | None]:
    """Exit statuses; a process that still runs after the limit is killed."""
    end = time.monotonic() + limit_s
    for process in processes:
        process.join(max(0.1, end - time.monotonic()))
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
            raise AssertionError(f"a run hangs for more than {limit_s} s")
    return [process.exitcode for process in processes]
