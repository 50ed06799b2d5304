"""Checkpoints that are written atomically, and from which training resumes bit-exactly."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object

from hf_rlae.errors import CheckpointError, ConfigError, FolderInUseError
from hf_rlae.files import explained_if_full
from hf_rlae.members.fingerprint import differences, told
from hf_rlae.trainers.durable.checkpoint_folders import (
    UNFINISHED,
    check_plain,
    publish,
    rotate,
    settle,
    whole_checkpoints,
)
from hf_rlae.trainers.durable.manifest import damaged_parts, read_manifest, write_manifest
from hf_rlae.trainers.durable.private_saves import PrivateSaves
from hf_rlae.trainers.durable.run_lock import RunLock
from hf_rlae.trainers.durable.sigterm import SaveAtSigterm

logger = logging.getLogger(__name__)

STATE = "hf_rlae_state"


class DurableTrainer(PrivateSaves):
    """A mixin for trainers: checkpoints are atomic, complete and saved at SIGTERM. Put it before the trainer's class.

    * A checkpoint is written to `_unfinished/` in the output folder, flushed to disk, and then renamed, so that
      `checkpoint-N` is always complete, even after a power loss. With several processes, the one that saves renames it
      after all have written. An old checkpoint is renamed before it is deleted.
    * `train(resume_from_checkpoint=True)` resumes from the newest complete checkpoint and ignores incomplete ones and
      those whose files have changed since (SHA-256). If there is none, it logs that and starts from the beginning,
      which suits jobs that may be restarted at any time (transformers raises an error). A finished run takes no further
      step.
    * A checkpoint is resumed only with the settings that make up its run (`run_settings`); changes of others
      (`run_notes`) are logged.
    * While `train()` runs, its process holds a lock on `output_dir`, so that two runs cannot share it.
    * Evaluation during training does not change the random number generators, so that a run that was killed between a
      step and its evaluation continues like an uninterrupted one.
    * At SIGTERM, while `train()` runs in the main thread, a checkpoint is saved at the end of the optimizer step,
      training stops, and the signal is raised again (for the former handler, or to end the process). With several
      processes, all do so at the same step when one of them receives the signal. If an evaluation is due at that step,
      a first checkpoint is saved before it and replaced after it.

    A subclass returns further state (a rollout buffer, counters, metrics) from `extra_state`, and restores it in
    `load_extra_state`. It adds what makes up a run to `run_settings`. As many processes as saved a checkpoint can
    resume it.

    Source: ours.

    Raises:
        ConfigError: `enable_jit_checkpoint` is on, with which transformers itself saves at SIGTERM.

    Example:

    >>> from transformers import Trainer
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
        self._sigterm = SaveAtSigterm(self)
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

    def run_settings(self) -> dict[str, Any]:
        """What a resumed run must have in common with the run that saved the checkpoint. An override point.

        Learning rates, the number of steps, and when to log, evaluate and save may change.

        Returns:
            `dict`: by name, what JSON can hold; see `hf_rlae.members.fingerprint` for models.
        """
        names = ("seed", "data_seed", "per_device_train_batch_size", "gradient_accumulation_steps")
        return {name: getattr(self.args, name) for name in names}

    def run_notes(self) -> dict[str, Any]:
        """As `run_settings`, but a change is only logged. An override point."""
        return {}

    @functools.cached_property
    def _run(self) -> dict[str, Any]:
        described = {"settings": self.run_settings(), "notes": self.run_notes()}
        plain: dict[str, Any] = json.loads(json.dumps(described, default=str))
        return plain

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
            CheckpointError: the folder is not a complete checkpoint, its files have changed, or it was saved by another
                number of processes or another run.
            FolderInUseError: another run trains in `output_dir`.
            DiskFullError: a checkpoint cannot be saved.
        """
        vars(self).pop("_run", None)  # settings may have changed since the last call
        with self._sigterm.caught(), self._locked_folder():
            checkpoint = self._checkpoint_to_resume(resume_from_checkpoint)
            return super().train(checkpoint, trial, ignore_keys_for_eval)

    @contextlib.contextmanager
    def _locked_folder(self) -> Iterator[None]:
        """Inside, the main process holds the lock of `output_dir`; all processes raise if it cannot have it."""
        lock: RunLock | None = None
        refusal: Exception | None = None
        if self.accelerator.is_main_process:
            try:
                lock = RunLock(self._get_output_dir(None))
            except (FolderInUseError, OSError) as error:
                refusal = error
        for text in gather_object([refusal and str(refusal)]):
            if text is not None:
                raise refusal or FolderInUseError(text)
        try:
            yield
        finally:
            if lock is not None:
                lock.release()

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
        folder = self._newest_checkpoint() if asked is True else self._given_checkpoint(os.fspath(asked))
        if folder is None:
            logger.warning("%s has no complete checkpoint; training starts from the beginning", output_dir)
            return None
        for text in gather_object([self._obstacle(Path(folder))]):
            if text is not None:
                raise CheckpointError(text)
        logger.info("resuming from %s", folder)
        return folder

    def _newest_checkpoint(self) -> str | None:
        """The newest one that is complete and unchanged for every process (they may have different disks)."""
        whole = whole_checkpoints(self._get_output_dir(None))
        common = set(whole).intersection(*gather_object([list(whole)]))
        for step in sorted(common, reverse=True):
            reasons = self._damage(whole[step])
            if not reasons:
                return whole[step]
            logger.warning("%s is damaged and is ignored: %s", whole[step], "; ".join(reasons))
        return None

    def _given_checkpoint(self, folder: str) -> str:
        reasons = self._damage(folder)
        if reasons:
            saved = whole_checkpoints(self._get_output_dir(None)).values()
            others = [path for path in saved if os.path.realpath(path) != os.path.realpath(folder)]
            raise CheckpointError(
                f"resume_from_checkpoint={folder!r} is not a complete checkpoint: {'; '.join(reasons)}. "
                f"Others in output_dir: {', '.join(others) or 'none'}; resume_from_checkpoint=True takes the newest "
                "complete one"
            )
        return folder

    def _damage(self, folder: str) -> list[str]:
        """See `damaged_parts`; one process of each machine reads the files, and all have the result."""
        own = damaged_parts(folder) if self.accelerator.is_local_main_process else []
        return list(dict.fromkeys(reason for part in gather_object([own]) for reason in part))

    def _obstacle(self, folder: Path) -> str | None:
        """Why this run cannot resume from a complete checkpoint."""
        manifest = read_manifest(folder)
        if not manifest["resumable"]:
            return (
                f"{folder} was saved with save_only_model=True: it has no optimizer, scheduler and random number "
                f"generators. Load its weights and train without resume_from_checkpoint"
            )
        saved, now = manifest["num_processes"], self.args.world_size
        if saved != now:
            return (
                f"{folder} was saved by {saved} process(es) and this run has {now}; resume with "
                f"`accelerate launch --num_processes {saved}`, or load its weights and train without "
                f"resume_from_checkpoint"
            )
        if "run" not in manifest:
            logger.warning("%s does not describe its run; whether it is the same run cannot be checked", folder)
            return None
        changed = differences(manifest["run"].get("settings"), self._run["settings"])
        if changed:
            return (
                f"{folder} was saved by another run: {told(changed)}. Resume with what was saved, or load its weights "
                f"and train without resume_from_checkpoint"
            )
        noted = differences(manifest["run"].get("notes"), self._run["notes"])
        if noted:
            logger.warning("this run differs from the one that saved %s: %s", folder, told(noted))
        return None

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging is not None else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        run_dir = self._get_output_dir(trial)
        folder = os.path.join(run_dir, f"checkpoint-{self.state.global_step}")
        try:
            with explained_if_full(run_dir, f"checkpoint-{self.state.global_step}", self._state_bytes):
                self._write_checkpoint(model, trial, Path(folder))
        except Exception:
            if self.args.should_save:  # the space that a part of a checkpoint takes
                shutil.rmtree(Path(run_dir, UNFINISHED), ignore_errors=True)
                settle(Path(run_dir))
            raise
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(folder)
        if self.args.should_save:
            rotate(run_dir, folder, self.args.save_total_limit, self.state.best_model_checkpoint)

    def _write_checkpoint(self, model: torch.nn.Module, trial: Any, folder: Path) -> None:
        run_dir = folder.parent
        staged = run_dir / UNFINISHED / folder.name
        if self.args.should_save:
            os.makedirs(run_dir, exist_ok=True)
            settle(run_dir)
        self.accelerator.wait_for_everyone()
        with self._writing_to(staged.parent):
            super()._save_checkpoint(model, trial)
        if not self.args.save_only_model:
            self._save_extra_state(staged)
        best = run_dir / f"checkpoint-{self.state.best_global_step}"
        if self.state.best_global_step and (best == folder or best.is_dir()):
            self.state.best_model_checkpoint = str(best)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            fields = {
                "global_step": self.state.global_step,
                "num_processes": self.args.world_size,
                "resumable": not self.args.save_only_model,
                "run": self._run,
            }
            write_manifest(staged, fields)
            publish(staged, folder)

    def _load_best_model(self) -> None:
        """See `Trainer`; a best checkpoint that has changed since it was saved is not loaded, which is logged."""
        if self._best_is_whole():
            super()._load_best_model()

    def _best_is_whole(self) -> bool:
        reasons = self._damage(str(self.state.best_model_checkpoint))
        if reasons:
            logger.warning(
                "%s is damaged, and the last weights are kept instead: %s",
                self.state.best_model_checkpoint,
                "; ".join(reasons),
            )
        return not reasons

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
