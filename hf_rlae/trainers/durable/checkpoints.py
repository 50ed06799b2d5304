"""Checkpoints that are written atomically, and from which training resumes bit-exactly."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback

from hf_rlae.errors import CheckpointError, ConfigError
from hf_rlae.trainers.durable.checkpoint_folders import (
    MANIFEST,
    UNFINISHED,
    check_plain,
    missing_parts,
    publish,
    rotate,
    settle,
    whole_checkpoints,
)
from hf_rlae.trainers.durable.private_saves import PrivateSaves

logger = logging.getLogger(__name__)

STATE = "hf_rlae_state"


class DurableTrainer(PrivateSaves):
    """A mixin for trainers: checkpoints are atomic, complete and saved at SIGTERM. Put it before the trainer's class.

    * A checkpoint is written to `_unfinished/` in the output folder, flushed to disk, and then renamed, so that
      `checkpoint-N` is always complete, even after a power loss. With several processes, the one that saves renames it
      after all have written. An old checkpoint is renamed before it is deleted.
    * `train(resume_from_checkpoint=True)` resumes from the newest complete checkpoint and ignores incomplete ones. If
      there is none, it logs that and starts from the beginning, which suits jobs that may be restarted at any time
      (transformers raises an error). A finished run takes no further step.
    * Evaluation during training does not change the random number generators, so that a run that was killed between a
      step and its evaluation continues like an uninterrupted one.
    * At SIGTERM, while `train()` runs in the main thread, a checkpoint is saved at the end of the optimizer step,
      training stops, and the signal is raised again (for the former handler, or to end the process). With several
      processes, all do so at the same step when one of them receives the signal. If an evaluation is due at that step,
      a first checkpoint is saved before it and replaced after it.

    A subclass returns further state (a rollout buffer, counters, metrics) from `extra_state`, and restores it in
    `load_extra_state`. A checkpoint can be resumed by as many processes as saved it.

    Source: ours.

    Raises:
        ConfigError: `enable_jit_checkpoint` is on, with which transformers itself saves at SIGTERM.

    Example:

    >>> class MyTrainer(DurableTrainer, Trainer):
    ...     num_rollouts = 0
    ...     def extra_state(self):
    ...         return {"num_rollouts": self.num_rollouts}
    ...     def load_extra_state(self, state):
    ...         self.num_rollouts = state["num_rollouts"]
    """

    _staging: Path | None = None
    _loaded_losses: dict[str, Any] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.enable_jit_checkpoint:
            raise ConfigError(
                f"enable_jit_checkpoint=True, but {type(self).__name__} already saves at SIGTERM; leave it out"
            )
        self._sigterm = _SaveAtSigterm(self)
        self.add_callback(self._sigterm)

    def extra_state(self) -> dict[str, Any]:
        """Further state besides model, optimizer, scheduler, generators and `TrainerState`. An override point.

        It is called in every process at each save, and each process receives its own state back.

        Returns:
            `dict`: of tensors, numbers, strings, bytes, `None`, and plain dicts, lists and tuples of these.
        """
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restores what `extra_state` returned, after optimizer and scheduler. An override point.

        Args:
            state (`dict`): equal to the saved one, with all tensors on the CPU.
        """

    def train(
        self,
        resume_from_checkpoint: str | Path | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Trains; see `Trainer.train`.

        Args:
            resume_from_checkpoint (`str`, `Path` or `bool`, *optional*): a checkpoint's folder, or `True` for the
                newest complete one in `output_dir`, or a start from the beginning if there is none.
            trial: of a hyper-parameter search.
            ignore_keys_for_eval (`list[str]`, *optional*): outputs of the model that evaluations ignore.

        Raises:
            CheckpointError: the folder is not a complete checkpoint, or was saved by another number of processes.
        """
        checkpoint = self._checkpoint_to_resume(resume_from_checkpoint)
        with self._sigterm.caught():
            return super().train(checkpoint, trial, ignore_keys_for_eval)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """See `Trainer.evaluate`; during training, the random number generators do not change."""
        if not self.is_in_train:
            return super().evaluate(*args, **kwargs)
        with _unchanged_generators():
            return super().evaluate(*args, **kwargs)

    def _checkpoint_to_resume(self, asked: str | Path | bool | None) -> str | None:
        output_dir = Path(self._get_output_dir(None))
        if self.args.should_save and output_dir.is_dir():
            settle(output_dir)
        self.accelerator.wait_for_everyone()
        if asked is None or asked is False:
            return None
        if asked is True:
            folder = self._newest_checkpoint()
            if folder is None:
                logger.warning("%s has no complete checkpoint; training starts from the beginning", output_dir)
                return None
        else:
            folder = os.fspath(asked)
            reasons = missing_parts(folder)
            if reasons:
                whole = ", ".join(whole_checkpoints(output_dir).values()) or "none"
                raise CheckpointError(
                    f"resume_from_checkpoint={folder!r} is not a complete checkpoint: {'; '.join(reasons)}. "
                    f"Complete ones in output_dir: {whole}; resume_from_checkpoint=True takes the newest"
                )
        self._check_resumable(Path(folder))
        logger.info("resuming from %s", folder)
        return folder

    def _newest_checkpoint(self) -> str | None:
        """The newest one that is complete for every process (they may have different disks)."""
        whole = whole_checkpoints(self._get_output_dir(None))
        common = set(whole).intersection(*gather_object([list(whole)]))
        return whole[max(common)] if common else None

    def _check_resumable(self, folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_text())
        if not manifest["resumable"]:
            raise CheckpointError(
                f"{folder} was saved with save_only_model=True: it has no optimizer, scheduler and random number "
                f"generators. Load its weights and train without resume_from_checkpoint"
            )
        saved, now = manifest["num_processes"], self.args.world_size
        if saved != now:
            raise CheckpointError(
                f"{folder} was saved by {saved} process(es) and this run has {now}; resume with "
                f"`accelerate launch --num_processes {saved}`, or load its weights and train without "
                f"resume_from_checkpoint"
            )

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging is not None else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        run_dir = self._get_output_dir(trial)
        folder = os.path.join(run_dir, f"checkpoint-{self.state.global_step}")
        staged = Path(run_dir, UNFINISHED, Path(folder).name)
        if self.args.should_save:
            os.makedirs(run_dir, exist_ok=True)
            settle(Path(run_dir))
        self.accelerator.wait_for_everyone()
        with self._writing_to(staged.parent):
            super()._save_checkpoint(model, trial)
        if not self.args.save_only_model:
            self._save_extra_state(staged)
        best = os.path.join(run_dir, f"checkpoint-{self.state.best_global_step}")
        if self.state.best_global_step and (best == folder or os.path.isdir(best)):
            self.state.best_model_checkpoint = best
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self._write_manifest(staged)
            publish(staged, Path(folder))
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(folder)
        if self.args.should_save:
            rotate(run_dir, folder, self.args.save_total_limit, self.state.best_model_checkpoint)

    @contextlib.contextmanager
    def _writing_to(self, staging: Path) -> Iterator[None]:
        self._staging = staging
        # on the instance, so that it precedes overrides of all classes
        vars(self)["_push_from_checkpoint"] = lambda checkpoint_folder: None
        try:
            yield
        finally:
            self._staging = None
            del vars(self)["_push_from_checkpoint"]

    def _state_name(self) -> str:
        return f"{STATE}.pt" if self.args.world_size == 1 else f"{STATE}_{self.args.process_index}.pt"

    def _save_extra_state(self, staged: Path) -> None:
        extra = self.extra_state()
        check_plain(extra, "extra_state()")
        losses = {"sum": self._tr_loss.detach().cpu().clone(), "logged_step": self._globalstep_last_logged}
        torch.save({"extra": extra, "losses": losses}, staged / self._state_name())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            state = torch.load(Path(checkpoint, self._state_name()), map_location="cpu", weights_only=True)
            self._loaded_losses = state["losses"]
            self.load_extra_state(state["extra"])

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # transformers takes one step more if a finished run is resumed inside an epoch
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _restore_losses(self) -> None:
        """Restores the losses since the last log, so that the next log is that of an uninterrupted run."""
        if self._loaded_losses is None:
            return
        self._tr_loss = self._loaded_losses["sum"].to(self.args.device)
        self._globalstep_last_logged = self._loaded_losses["logged_step"]
        # `train_loss` is the mean over the steps of this call only
        self._total_loss_scalar = -self._tr_loss.item()
        self._loaded_losses = None

    def _write_manifest(self, staged: Path) -> None:
        files = {
            str(path.relative_to(staged)): path.stat().st_size for path in sorted(staged.rglob("*")) if path.is_file()
        }
        manifest = {
            "global_step": self.state.global_step,
            "num_processes": self.args.world_size,
            "resumable": not self.args.save_only_model,
            "files": files,
        }
        (staged / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


class _SaveAtSigterm(TrainerCallback):
    """At SIGTERM, saves a checkpoint at the end of the step and stops training."""

    is_asked = is_stopping = False
    saved_step = -1

    def __init__(self, trainer: DurableTrainer) -> None:
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


@contextlib.contextmanager
def _unchanged_generators() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
