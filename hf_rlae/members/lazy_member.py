"""A member that is given by name, and whose weights are loaded when it first runs."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from hf_rlae.errors import MemberError
from hf_rlae.hub_revisions import commit_of, resolved
from hf_rlae.members.compiled_steps import StaticCaches
from hf_rlae.members.member import TOKENIZER_OPTIONS, Member
from hf_rlae.members.model_files import always_sees, load_skeleton, load_tokenizer, readable
from hf_rlae.members.paths import MakeRunner, Path, PathOutput, Runner
from hf_rlae.members.probe import choose_runner
from hf_rlae.members.ragged_run import BatchRunner

logger = logging.getLogger(__name__)

_LOADING = threading.Lock()
"""One member is loaded at a time. It is no attribute, because members are pickled."""
_DECLARED = ("vocab_size", "hidden_size", "context_length", "end_ids")
"""What an ensemble takes from a member before it is loaded."""


def _first_device(device_map: Any) -> torch.device:
    """The device that ids will most likely be on, as far as a device map says so before a model is loaded."""
    if isinstance(device_map, Mapping):
        device_map = next(iter(device_map.values()), None)
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    try:
        return torch.get_default_device() if device_map is None else torch.device(device_map)
    except RuntimeError:  # such as "disk"
        return torch.device("cpu")


def declared_parts(source: str, **options: Any) -> tuple[Any, Any, dict[str, Any], dict[str, Any]]:
    """What is known of a member without its weights.

    Args:
        source, options: as in [`Member.load`].

    Returns:
        `tuple`: its modules on the meta device, its tokenizer, the arguments with which `Member.load` loads the same
        member, and the arguments `revision`, `adapter_name` and `end_token_ids` of [`Member`], with `base_revision`.
    """
    with readable(source, f"member {source}"):
        revision = resolved(source, options.get("revision"), options)
    about = {"revision": revision, **{name: options.pop(name, None) for name in ("adapter_name", "end_token_ids")}}
    own = {name: options.pop(name, None) for name in ("tokenizer_kwargs", "vocabulary_hash")}
    skeleton, base_revision = load_skeleton(source, **{**options, "revision": revision})
    if options.get("sees") is None:
        options["sees"] = always_sees(skeleton.config.model_type)
    whole = {**options, **about, **own, "base_revision": base_revision}
    shared = {name: options[name] for name in (*TOKENIZER_OPTIONS, "sees") if name in options}
    shared.update(revision=revision, base_revision=base_revision, expected_hash=own["vocabulary_hash"])
    tokenizer = load_tokenizer(source, **{**shared, **(own["tokenizer_kwargs"] or {})})
    return skeleton.eval(), tokenizer, whole, {**about, "base_revision": base_revision}


class LazyMember(Member):
    """A member of which only config, generation config and tokenizer are read, until `prepare` is called.

    The ensemble's vocabulary, tokenizer and end tokens need nothing else. Until then `model` and `wrapper` are modules
    on the meta device. Recurrent models are tried before they can be used, so `LazyMember.load` returns them loaded.

    Source: ours.

    Args:
        skeleton, tokenizer: see `load_skeleton` and `load_tokenizer`.
        source (`str`): the folder or Hub id.
        options (`dict`): of `Member.load`.
        name, adapter_name, ...: see [`Member`].

    Attributes:
        is_loaded (`bool`): whether the weights are there.
    """

    def __init__(self, skeleton: Any, tokenizer: Any, source: str, options: dict[str, Any], **about: Any) -> None:
        self.is_loaded = False
        self._options = options
        # absolute, because the working directory may have changed when the weights are loaded
        self._origin = os.path.abspath(source) if os.path.isdir(source) else source
        self._place = _first_device(options.get("device_map"))
        self._moved: torch.device | None = None
        self._cast: torch.dtype | None = None
        adapter_name = about.pop("adapter_name", None)  # the skeleton is that of the base model
        super().__init__(skeleton, tokenizer, source=source, **about)
        self.adapter_name = adapter_name

    @classmethod
    def load(cls, source: str, **options: Any) -> Member:
        """As [`Member.load`], without the weights.

        Raises:
            MemberError, TokenizerError, ConfigError: see `Member.load`. What is wrong with the weights is found when
                the member first runs.
        """
        skeleton, tokenizer, whole, about = declared_parts(source, **options)
        if getattr(skeleton, "_is_stateful", False):
            return Member.load(source, **whole)
        found = about.pop("base_revision")
        member = cls(skeleton, tokenizer, source, whole, name=source, **about)
        member.base_commit = commit_of(found)
        return member

    def prepare(self) -> None:
        """Loads the weights, if they are not there yet.

        Raises:
            MemberError: the weights are missing, damaged, or of another model than the config says.
        """
        if self.is_loaded:
            return
        with _LOADING:
            if self.is_loaded:  # by another thread
                return
            logger.info("member %s runs for the first time: its weights are loaded", self.name)
            with torch.inference_mode(False):  # `generate` is in it, and such parameters could never be trained
                whole = Member.load(self._origin, **self._options)
            for name in _DECLARED:
                if getattr(whole, name) != getattr(self, name):
                    raise MemberError(
                        f"member {self.name} has {name}={getattr(whole, name)}, but its config declares "
                        f"{getattr(self, name)}; its files belong to different models, or have changed"
                    )
            if not whole.has_device_map and (self._moved is not None or self._cast is not None):
                whole.wrapper.to(device=self._moved, dtype=self._cast)
            self.wrapper, self.model, self.config = whole.wrapper, whole.model, whole.config
            self.is_loaded = True

    def move(self, fn: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """See `Member.move`; before the weights are loaded, their place and dtype are noted."""
        if self.is_loaded:
            return super().move(fn)
        moved = fn(torch.empty(0, dtype=self.dtype, device=self.device))
        if moved.device != self.device:
            self._moved = moved.device
        if moved.dtype != self.dtype:
            self._cast = moved.dtype

    @property
    def device(self) -> torch.device:
        """See [`Member`]; before the weights are loaded, the device on which they will be."""
        return super().device if self.is_loaded else self._moved or self._place

    @property
    def dtype(self) -> torch.dtype:
        """See [`Member`]; before the weights are loaded, the dtype that the config declares."""
        return super().dtype if self.is_loaded else self._cast or super().dtype

    @property
    def has_device_map(self) -> bool:
        """See [`Member`]."""
        return super().has_device_map if self.is_loaded else self._options.get("device_map") is not None

    @cached_property
    def runner(self) -> MakeRunner:
        """What `choose_runner` finds once the weights are loaded."""
        return choose_runner(self)

    def _check_parameters(self) -> None:
        """Nothing yet: `Member.load` checks them."""


class LazyRunner:
    """The runner of a `LazyMember` whose tokenizer differs: chosen, and made, for the first path that it reads.

    Args:
        member (`LazyMember`), hidden_tokens (`int`, defaults to 0): see `BatchRunner`.
    """

    def __init__(self, member: LazyMember, hidden_tokens: int = 0) -> None:
        self.member = member
        self.hidden_tokens = hidden_tokens
        self.static: StaticCaches | None = None
        self._runner: Runner | None = None

    @property
    def forward_calls(self) -> int:
        """See `BatchRunner`."""
        return 0 if self._runner is None else self._runner.forward_calls

    def run(self, paths: Sequence[Path | None]) -> PathOutput:
        """See `BatchRunner.run`."""
        if self._runner is None:
            self.member.prepare()
            self._runner = self.member.runner(self.member, self.hidden_tokens)
            if isinstance(self._runner, BatchRunner):
                self._runner.static = self.static
        return self._runner.run(paths)

    def ahead(self) -> Runner:
        """See `Runner`."""
        return LazyRunner(self.member, hidden_tokens=1) if self._runner is None else self._runner.ahead()

    def reorder(self, rows: torch.Tensor) -> None:
        """See `BatchRunner`."""
        if self._runner is not None:
            self._runner.reorder(rows)

    def reset(self) -> None:
        """See `BatchRunner`."""
        if self._runner is not None:
            self._runner.reset()
