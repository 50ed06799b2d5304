"""Several processes of one evaluation, started by `accelerate launch`."""

from __future__ import annotations

import os
from typing import Any

import torch

from hf_rlae.errors import ConfigError
from hf_rlae.extras import missing_packages


class Processes:
    """The processes that share the questions; a single one without `accelerate launch`.

    Attributes:
        rank (`int`), size (`int`): of this process, and their number.

    Raises:
        ConfigError: there are several, and accelerate is not installed.
    """

    def __init__(self) -> None:
        self._state: Any = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            problem = missing_packages("an evaluation in several processes", ["accelerate"], "train")
            if problem is not None:
                raise ConfigError(problem)
            from accelerate import PartialState

            self._state = PartialState(cpu=not torch.accelerator.is_available())
        self.rank = 0 if self._state is None else int(self._state.process_index)
        self.size = 1 if self._state is None else int(self._state.num_processes)

    @property
    def is_first(self) -> bool:
        """Whether this process writes tables and shows progress."""
        return self.rank == 0

    def wait(self) -> None:
        """Waits for all processes."""
        if self._state is not None:
            self._state.wait_for_everyone()

    def joined(self, entries: list[Any]) -> list[Any]:
        """The entries of all processes, the same list in each of them."""
        if self._state is None:
            return entries
        from accelerate.utils import gather_object

        return list(gather_object(entries))
