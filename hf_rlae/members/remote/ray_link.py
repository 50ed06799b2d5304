"""Remote members as Ray actors."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from hf_rlae.errors import ConfigError, one_line
from hf_rlae.members.remote.host import Worker
from hf_rlae.members.remote.remote_member import Link

NAMESPACE = "hf_rlae"
_WAIT_S = 0.5
"""How long the other ranks of a training wait before they look again for the actors of the first one."""


def ray_link(resources: Mapping[str, Any], about: Mapping[str, Any]) -> Callable[[str], Link]:
    """What makes the `Link` of a member: it connects to Ray, and starts an actor.

    If Ray has not been started in this process, `ray.init()` is called: it uses the cluster that `RAY_ADDRESS` or a
    `ray start` on this machine names, else it starts one that ends with this process.

    Args:
        resources (`Mapping[str, Any]`): options of the actor.
        about (`Mapping[str, Any]`): what makes actors of two ranks of a training the same.
    """
    if not isinstance(resources, Mapping) or any(not isinstance(name, str) for name in resources):
        raise ConfigError(f"resources of a member must be a dict such as {{'num_gpus': 1}}, got {resources!r}")
    kept = {name: value for name, value in about.items() if name != "token"}
    digest = hashlib.sha256(repr(sorted((name, repr(value)) for name, value in kept.items())).encode()).hexdigest()
    return lambda name: RayLink(name, resources, digest)


class RayLink:
    """The Ray actor of a member; several ranks of one training share it.

    Args:
        name (`str`): the member's.
        resources (`Mapping[str, Any]`): options of the actor.
        digest (`str`): tells members apart.
        worker (`type`, defaults to `Worker`): what runs in the actor.
    """

    def __init__(self, name: str, resources: Mapping[str, Any], digest: str, worker: type = Worker) -> None:
        if not ray.is_initialized():
            ray.init(namespace=NAMESPACE)
        self._is_owner = True
        options: dict[str, Any] = {"max_restarts": 0, "max_task_retries": 0, **resources}
        run = training_run()
        if run is None:
            self._actor = _started(worker, name, options)
            return
        shared = f"{run}/{digest}"
        self._is_owner = os.environ.get("RANK", "0") == "0"
        if self._is_owner:
            options |= {"name": shared, "namespace": NAMESPACE, "get_if_exists": True}
            self._actor = _started(worker, name, options)
        else:
            self._actor = _found(shared)

    def call(self, method: str, *arguments: Any) -> Any:
        """See `Link`."""
        try:
            return getattr(self._actor, method).remote(*arguments)
        except RayError as error:  # an actor that is known to be dead
            return error

    def wait(self, call: Any, timeout: float) -> tuple[Any, ...]:
        """See `Link`."""
        try:
            if isinstance(call, RayError):
                raise call
            return ray.get(call, timeout=timeout)
        except GetTimeoutError as error:
            raise TimeoutError from error
        except RayActorError as error:
            raise ConnectionError(_reason(error)) from error
        except RayError as error:
            raise ConnectionError(f"{type(error).__name__}: {_reason(error)}") from error

    def close(self) -> None:
        """See `Link`; the actors of a training are ended by its first rank."""
        if self._is_owner and ray.is_initialized():
            ray.kill(self._actor)


def training_run() -> str | None:
    """What the processes of one distributed training have in common; `None` for a single process."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
    return ":".join(os.environ.get(name, "") for name in names)


def _started(worker: type, name: str, options: dict[str, Any]) -> Any:
    try:
        return ray.remote(worker).options(**options).remote()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"resources of member {name}: {one_line(str(error))}") from error


def _found(name: str, timeout: float = 600.0) -> Any:
    """The actor that the first rank has started."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return ray.get_actor(name, namespace=NAMESPACE)
        except ValueError as error:
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"the first process of this training has not started its members within {timeout:g} s; start one "
                    "Ray cluster for all processes before the training (`ray start --head`)"
                ) from error
        time.sleep(_WAIT_S)


def _reason(error: RayError) -> str:
    """The first sentence of Ray's message, which is long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
