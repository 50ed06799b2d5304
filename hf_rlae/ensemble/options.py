"""The keyword arguments of `from_members` and `from_pretrained`, for type checkers, editors and notebooks."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict, TypeVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_rlae.members import Member
from hf_rlae.policies import GivenPolicy

GivenMember = (
    str
    | os.PathLike[str]
    | tuple[PreTrainedModel, PreTrainedTokenizerBase]
    | tuple[Any, Any]
    | PreTrainedModel
    | Member
)
"""A folder, a Hub id, a `(model, tokenizer)` pair (a `PeftModel` counts as a model), a model that `from_pretrained` has
loaded, or a `Member`."""


class PolicyOptions(TypedDict, total=False):
    """What gives the weights, beside the argument `policy`."""

    weights: Sequence[float] | None
    policy_revision: str | None


class EnsembleOptions(TypedDict, total=False):
    """The fields of [`EnsembleConfig`] that users set."""

    span_length: int
    select: Literal["span", "prompt"]
    mixing: Literal["linear", "log", "power", "contrast", "guidance"]
    mixing_kwargs: Mapping[str, Any] | None
    warp: Literal["mixture", "members"]
    weight_unit: Literal["token", "byte"]
    grain: Literal["token", "character", "byte", "common", "auto"]
    min_weight: float
    max_active_members: int | None
    max_readings: int
    min_reading: float
    draw: Literal["token", "word", "span"] | None
    draw_scope: Literal["row", "batch"]
    normalizes: Literal["auto", "NFC", "NFD", "NFKC", "NFKD"] | None
    on_non_finite: Literal["raise", "drop"]
    on_lost_member: Literal["raise", "drop"]


class MemberOptions(TypedDict, total=False):
    """Options for loading members; lists have one entry per member. See [`EnsembleForCausalLM.from_members`]."""

    dtype: str | torch.dtype | None
    device_map: Any
    member_kwargs: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None
    revisions: Sequence[str | None] | None
    base_revisions: Sequence[str | None] | None
    vocabulary_hashes: Sequence[str | None] | None
    end_token_ids: Sequence[Sequence[int] | None] | None
    adapter_names: Sequence[str | None] | None
    sees: Sequence[bool | None] | None
    check_files: bool
    placement: str | Sequence[str | None] | None
    resources: Sequence[Mapping[str, Any] | None] | Mapping[str, Any] | None
    member_timeout: float


class BuildOptions(PolicyOptions, EnsembleOptions, MemberOptions, total=False):
    """Keyword arguments of [`EnsembleForCausalLM.from_members`]."""


class LoadOptions(PolicyOptions, EnsembleOptions, total=False):
    """Keyword arguments of [`EnsembleForCausalLM.from_pretrained`]."""

    members: Sequence[GivenMember | None] | None
    policy: GivenPolicy | None
    config: Any
    dtype: str | torch.dtype | None
    device_map: Any
    member_kwargs: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None
    allow_outside: bool
    check_files: bool
    placement: str | Sequence[str | None] | None
    resources: Sequence[Mapping[str, Any] | None] | Mapping[str, Any] | None
    member_timeout: float
    max_members: int
    trust_remote_code: bool
    revision: str
    subfolder: str
    token: str | bool | None
    cache_dir: str | os.PathLike[str] | None
    force_download: bool
    local_files_only: bool


_F = TypeVar("_F", bound=Callable[..., Any])


class _AsSaved:
    """The default of what a saved ensemble says, in signatures."""

    def __repr__(self) -> str:
        return "<as saved>"


AS_SAVED = _AsSaved()


def with_keywords(options: Any, defaults: Mapping[str, Any]) -> Callable[[_F], _F]:
    """A decorator that shows the keywords of a `TypedDict` in the place of `**kwargs`, in `help` and in notebooks.

    Args:
        options: the `TypedDict`.
        defaults (`Mapping[str, Any]`): of the keywords; the others have `None`.
    """

    def decorate(function: _F) -> _F:
        own = inspect.signature(function)
        shown = [parameter for parameter in own.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
        for name, kind in options.__annotations__.items():
            kind = getattr(kind, "__forward_arg__", kind)
            shown.append(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults.get(name), annotation=kind)
            )
        function.__signature__ = own.replace(parameters=shown)  # type: ignore[attr-defined]
        return function

    return decorate
