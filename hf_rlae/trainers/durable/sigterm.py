"""At SIGTERM a checkpoint is saved before training ends."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from typing import Any

import torch
from transformers import TrainerCallback

logger = logging.getLogger(__name__)


class SaveAtSigterm(TrainerCallback):
    """At SIGTERM, saves a checkpoint at the end of the step and stops training; see `DurableTrainer`."""

    is_asked = is_stopping = False
    saved_step = -1

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        self.is_asked = self.is_stopping = False
        self.saved_step = -1
        former = None
        if threading.current_thread() is threading.main_thread():
            former = signal.getsignal(signal.SIGTERM)
        # None: not set from Python, so it could not be restored; ignored signals stay ignored
        is_caught = former not in (None, signal.SIG_IGN)
        if is_caught:
            signal.signal(signal.SIGTERM, self._note)
        try:
            yield
        except BaseException:
            if self.is_asked:
                logger.error("training failed after SIGTERM", exc_info=True)
            raise
        finally:
            if is_caught:
                signal.signal(signal.SIGTERM, former)
            if self.is_asked or self.is_stopping:
                signal.raise_signal(signal.SIGTERM)

    def _note(self, signum: int, frame: Any) -> None:
        self.is_asked = True

    def _is_asked_anywhere(self) -> bool:
        if self.trainer.args.world_size == 1:
            return self.is_asked
        flag = torch.tensor([float(self.is_asked)], device=self.trainer.args.device)
        return bool(self.trainer.accelerator.reduce(flag, "sum").item())

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._restore_losses()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._is_asked_anywhere():
            return
        self.is_stopping = True
        logger.warning("SIGTERM: saving a checkpoint at step %d and stopping", state.global_step)
        control.should_training_stop = True
        if control.should_evaluate:
            self.trainer._save_checkpoint(self.trainer.model_wrapped, trial=None)
        control.should_save = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.is_stopping:
            return
        if state.epoch % 1:
            # the epoch was left, not finished: no evaluation or log is due
            control.should_evaluate = control.should_log = False
            control.should_save = self.saved_step != state.global_step
        elif control.should_evaluate or self.saved_step != state.global_step:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.saved_step = state.global_step
