"""One Ray for the tests of a module: small, without a dashboard, without reports to anybody."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
"""No statistics; no token in the home folder; workers that are as important as the tests (Ray makes them nice 15)."""
OPTIONS: dict[str, Any] = {
    "num_cpus": 2,
    "object_store_memory": 100 * 2**20,
    "include_dashboard": False,
    "namespace": "hf_rlae",
    "log_to_driver": False,
    "logging_level": "error",
}


@contextmanager
def local_ray() -> Iterator[Any]:
    """Ray on this machine, in a folder of its own; it ends with the block."""
    os.environ.update(ENVIRONMENT)
    import ray

    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        try:
            yield ray.init(_temp_dir=folder, **OPTIONS)
        finally:
            ray.shutdown()
