"""Saved folders without anything private: no pickled arguments, and no path of this machine."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, SaveStrategy
from transformers.utils.hub import PushInProgress, hf_api

from hf_rlae.files import explained_if_full, write_whole
from hf_rlae.hub_ids import is_hub_id

TRAINING_STATE = ("*.pt", "*.pth", "trainer_state.json", "hf_rlae_checkpoint.json")
"""Files of a checkpoint that are no part of the model."""
UNPUBLISHED = [
    "_*", f"{PREFIX_CHECKPOINT_DIR}-*",  # as in transformers
    "*tfevents*", "runs/*", "wandb/*", "mlruns/*", "*.log",  # names of hosts and paths are in the logs of trackers
    TRAINING_ARGS_NAME, "*.pt", "*.pth", "*.pkl", "*.pickle",  # a published model has no pickles
    ".env*", ".git*", ".netrc", ".ipynb_checkpoints/*",
]  # fmt: skip
"""Files of an output folder that are not uploaded, except inside a checkpoint."""
_KEPT = ("checkpoint-", "_")
_IN_CACHE = re.compile(r"models--([^/\\]+)--([^/\\]+)")


class PrivateSaves(Trainer):
    """A mixin for trainers: what they save has no `training_args.bin`, and no path of this machine.

    transformers pickles all arguments beside the model, with the output folder's path and the Hub token. An adapter's
    configuration has the path of a base model that was loaded from a folder (see `hide_base`), and a saved state the
    path of the best checkpoint.

    Source: ours.
    """

    args: Any

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """See `Trainer.save_model`.

        Raises:
            DiskFullError: the disk is full.
        """
        is_checkpoint = _internal_call and output_dir is not None  # whose errors tell of all of it
        explained = explained_if_full(output_dir or self.args.output_dir, "the model", self._trained_bytes)
        with contextlib.nullcontext() if is_checkpoint else explained:
            super().save_model(output_dir, _internal_call)

    def _trained_bytes(self) -> int:
        """How many bytes the trained parameters take."""
        model: Any = self.model
        return sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)

    def _state_bytes(self) -> int:
        """About how many bytes a checkpoint takes: what is trained, and the optimizer's state."""
        optimizer: Any = self.optimizer
        states = optimizer.state.values() if optimizer is not None else ()
        moments = (value for state in states for value in state.values() if isinstance(value, torch.Tensor))
        return self._trained_bytes() + sum(tensor.nbytes for tensor in moments)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        args, self.args = self.args, _UnsavedArguments(self.args)
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args = args
        if args.should_save:
            folder = Path(output_dir or args.output_dir)
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
            hide_base(folder)

    def save_state(self) -> None:
        """See `Trainer.save_state`."""
        super().save_state()
        self._hide_best(self.args.output_dir)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with explained_if_full(self.args.output_dir, name, self._state_bytes):
            super()._save_checkpoint(model, trial)
            self._hide_best(os.path.join(self._get_output_dir(trial), name))

    def _hide_best(self, folder: str) -> None:
        """Takes the path of the best checkpoint out of a saved state, which has its step."""
        path, best = os.path.join(folder, TRAINER_STATE_NAME), self.state.best_model_checkpoint
        if best is None or not self.args.should_save or not os.path.exists(path):
            return
        self.state.best_model_checkpoint = None
        self.state.save_to_json(path)
        self.state.best_model_checkpoint = best

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.state.best_global_step:
            best = Path(checkpoint).with_name(f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}")
            self.state.best_model_checkpoint = str(best) if best.is_dir() else None

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As in transformers, without the logs of trackers, pickles and hidden files of the output folder.

        Args:
            commit_message, blocking, token, revision, private: as in transformers.
            kwargs: for `create_model_card`.

        Returns:
            `huggingface_hub.CommitInfo`, or a `Future` of it if `blocking=False`; `None` in other processes than the
            first.
        """
        args = self.args
        self.callback_handler.on_push_begin(args, self.state, self.control)
        token = token if token is not None else args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        name = Path(args.hub_model_id or os.path.abspath(args.output_dir)).name
        given = kwargs.pop("tags", None) or []
        tags = [*([given] if isinstance(given, str) else given), *(getattr(self.model, "model_tags", None) or ())]
        self.create_model_card(**{"model_name": name, "tags": list(dict.fromkeys(tags)), **kwargs})
        self._finish_current_push()
        upload: Any = hf_api().upload_folder
        return upload(
            repo_id=self.hub_model_id,
            folder_path=args.output_dir,
            commit_message=commit_message,
            token=token,
            run_as_future=not blocking,
            ignore_patterns=UNPUBLISHED,
            revision=revision or args.hub_revision,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """As in transformers, for all files of the model in a checkpoint (several adapters too), without arguments."""
        args = self.args
        if not self.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
            return
        if not args.hub_always_push and self.push_in_progress is not None and not self.push_in_progress.is_done():
            return
        self.callback_handler.on_push_begin(args, self.state, self.control)
        self._hide_best(checkpoint_folder)
        ignored = shutil.ignore_patterns(*TRAINING_STATE)
        shutil.copytree(checkpoint_folder, args.output_dir, ignore=ignored, dirs_exist_ok=True)
        is_stepwise = args.save_strategy == SaveStrategy.STEPS
        when = f"step {self.state.global_step}" if is_stepwise else f"epoch {int(self.state.epoch)}"
        shared = {"repo_id": self.hub_model_id, "token": args.hub_token, "revision": args.hub_revision}
        message = f"Training in progress, {when}"
        folders: list[dict[str, Any]] = [
            {"folder_path": args.output_dir, "commit_message": message, "ignore_patterns": UNPUBLISHED}
        ]
        if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            is_last = args.hub_strategy == HubStrategy.CHECKPOINT
            place = "last-checkpoint" if is_last else Path(checkpoint_folder).name
            folders.append(
                {"folder_path": checkpoint_folder, "commit_message": f"{message}, checkpoint", "path_in_repo": place}
            )
        jobs: Any = [hf_api().upload_folder(**shared, **folder, run_as_future=True) for folder in folders]
        if self.push_in_progress is None or self.push_in_progress.is_done():
            self.push_in_progress: Any = PushInProgress(jobs)
        else:
            self.push_in_progress.jobs.extend(jobs)


class _UnsavedArguments:
    """The arguments of a trainer, of which nothing is pickled."""

    def __init__(self, args: Any) -> None:
        self.args = args

    def __getattr__(self, name: str) -> Any:
        return getattr(self.args, name)

    def __reduce__(self) -> Any:
        return dict, ()


def hide_base(folder: str | os.PathLike[str]) -> None:
    """Replaces the path of a local base model in all adapters of a folder, and in their model cards.

    `PeftModel.from_pretrained(base, folder)` needs no path. A base beside the folder, or beside a folder that contains
    it, is given by its relative path (`../base`), and one in the cache of the Hub by its id. Other bases become
    `./name`, which cannot be taken for the id of another model. Names of other folders are never written.

    Args:
        folder (`str` or `PathLike`): what `PeftModel.save_pretrained` wrote.
    """
    inner = (path for path in Path(folder).glob("*/adapter_config.json") if not path.parent.name.startswith(_KEPT))
    for config in [*Path(folder).glob("adapter_config.json"), *inner]:
        fields = json.loads(config.read_text(encoding="utf-8"))
        base = fields.get("base_model_name_or_path")
        if not base or is_hub_id(base):
            continue
        shown = _shown_base(base, config.parent)
        write_whole(config, json.dumps({**fields, "base_model_name_or_path": shown}, indent=2, sort_keys=True))
        card = config.with_name("README.md")
        if card.exists():
            write_whole(card, card.read_text(encoding="utf-8").replace(base, shown))


def _shown_base(base: str, folder: Path) -> str:
    if cached := _IN_CACHE.search(base):
        return f"{cached[1]}/{cached[2]}"
    path = Path(os.path.abspath(base))
    place = Path(os.path.abspath(folder))
    above = [place, *place.parents]
    steps = above.index(path.parent) if path.is_dir() and path.parent in above else 0
    return "/".join([*([".."] * steps or ["."]), path.name])
