"""Compiled steps: the decoder of a member's model runs compiled where shapes are the same in every step."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import nn
from transformers import CompileConfig, GenerationConfig

from hf_rlae.members.member import Member

logger = logging.getLogger(__name__)

STEP_COLUMNS = (1, 2, 4)
"""Numbers of columns of a compiled step; a step of ragged rows is padded to the next of them. Source: ours."""


@dataclass(frozen=True)
class StaticCaches:
    """The settings of a call with caches of fixed capacity.

    Attributes:
        columns (`int`): the length that texts may reach.
        settings (`GenerationConfig`): of the call; its `compile_config` and `disable_compile` count.
        only_compiled (`bool`): whether only members that the user has compiled use such caches.
    """

    columns: int
    settings: GenerationConfig
    only_compiled: bool = False
    _known: dict[int, CompiledDecoder | None] = field(default_factory=dict, repr=False)

    def is_for(self, member: Member) -> bool:
        """Whether a member uses such a cache: its class says that its steps can be compiled as one graph."""
        if self.only_compiled and not member.is_compiled:
            return False
        # Falcon with ALiBi reads a 2-D mask, and those of static caches have four dimensions
        has_alibi = bool(getattr(member.config, "alibi", False))
        if has_alibi or not getattr(member.model, "_can_compile_fullgraph", False):
            log_other_cache(member)
            return False
        return True

    def compiled(self, member: Member, cache: Any) -> CompiledDecoder | None:
        """What runs the steps of a member; `None` if they are not compiled, or as a whole."""
        if id(member) not in self._known:
            self._known[id(member)] = self._found(member, cache)
        return self._known[id(member)]

    def _found(self, member: Member, cache: Any) -> CompiledDecoder | None:
        model: Any = member.model
        if self.settings.disable_compile or member.is_compiled_in_place:
            return None
        compiler, options = member.compiler, None
        if compiler is None:
            if not model._valid_auto_compile_criteria({"past_key_values": cache}, self.settings):
                return None
            options = (self.settings.compile_config or CompileConfig()).to_dict()
            compiler = partial(torch.compile, **options)
        decoder = model.get_decoder()
        if not isinstance(decoder, nn.Module) or decoder is model:
            return None
        made_by = (decoder, member.compiler, options)
        known: CompiledDecoder | None = member.compiled_decoder
        if known is None or known.made_by != made_by:
            known = member.compiled_decoder = CompiledDecoder(decoder, compiler, made_by)
        return known


def log_other_cache(member: Member) -> None:
    """Logs that a member does not have a static cache."""
    logger.info(
        "member %s (%s) has no static cache and is not compiled: its architecture, or a layer of it, has none",
        member.name,
        type(member.model).__name__,
    )


def step_columns(columns: int) -> int | None:
    """The number of columns of the compiled step that has room for `columns`; `None` if there is none."""
    return next((step for step in STEP_COLUMNS if step >= columns), None)


def compiled_step(member: Member, compiled: CompiledDecoder | None, columns: int) -> AbstractContextManager[Any]:
    """Inside, the model's pass over a static cache runs compiled, if there is what compiles it.

    Args:
        member (`Member`): the member.
        compiled (`CompiledDecoder`, *optional*): compiles its decoder.
        columns (`int`): number of columns of the step; 0 for passes with other shapes, which run as they are.
    """
    if columns:
        return nullcontext() if compiled is None else compiled.used(columns)
    return member.as_it_was()


class CompiledDecoder:
    """Runs the decoder of a model compiled, in the threads and for the calls that ask for it.

    The rest of a pass stays as it is: the head, whose number of columns varies and whose input policies observe, and
    all passes of other shapes, such as those that read prompts.

    Args:
        decoder (`nn.Module`): the model without its head.
        compiler (`Callable`): compiles a function, as `torch.compile` does.
        made_by (`tuple`): what it was made from, to see whether that has changed.
    """

    def __init__(self, decoder: nn.Module, compiler: Callable[..., Any], made_by: tuple[Any, ...]) -> None:
        self.decoder = decoder
        self.compiler = compiler
        self.made_by = made_by
        self._steps: dict[int, Callable[..., Any]] = {}  # by number of columns
        self._active: dict[int, Callable[..., Any]] = {}  # by thread
        self._lock = threading.Lock()

    @contextmanager
    def used(self, columns: int) -> Iterator[None]:
        """Inside, calls of the decoder in this thread run the compiled step of this many columns."""
        thread = threading.get_ident()
        with self._lock:
            if not self._active:
                self._install()
            if columns not in self._steps:
                self._steps[columns] = self.compiler(_step(self._plain, columns))
            self._active[thread] = self._steps[columns]
        try:
            yield
        finally:
            with self._lock:
                del self._active[thread]
                if not self._active:
                    self._uninstall()

    def _install(self) -> None:
        self._own = vars(self.decoder).get("forward")  # such as that of accelerate, for a device map
        plain = self._plain = self.decoder.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            step = self._active.get(threading.get_ident())
            if step is None:
                return plain(*args, **kwargs)
            outputs = step(*args, **kwargs)
            # the memory of a CUDA graph's outputs is that of the next graph, too, which may be another member's
            outputs["last_hidden_state"] = outputs["last_hidden_state"].clone()
            return outputs

        self.decoder.forward = forward  # type: ignore[method-assign]

    def _uninstall(self) -> None:
        if self._own is None:
            del self.decoder.forward
        else:
            self.decoder.forward = self._own  # type: ignore[method-assign]


def _step(forward: Callable[..., Any], columns: int) -> Callable[..., Any]:
    """`forward` as a function with code of its own.

    torch.compile counts the graphs of a function by its code, and compiles no more above a limit; the code of
    `forward` is shared by all models of a class.
    """

    def step(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    name = f"step_of_{columns}"
    return FunctionType(step.__code__.replace(co_name=name), step.__globals__, name, None, step.__closure__)


def use_static_caches(runs: Iterable[Any], static: StaticCaches) -> None:
    """Sets `static` in the runs of a call; runs of other processes, and those that read row by row, do not have it."""
    for run in runs:
        while hasattr(run, "inner"):
            run = run.inner
        reader = getattr(run, "runner", run)
        if hasattr(reader, "static"):
            reader.static = static
