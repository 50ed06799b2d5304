"""A saved ensemble as the `generate` of its first member: what a `custom_generate` repository calls."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationMixin

from hf_rlae.ensemble.cache_ensemble import EnsembleCache
from hf_rlae.ensemble.configuration_ensemble import EnsembleConfig
from hf_rlae.ensemble.custom_generate import host_settings, in_host_ids
from hf_rlae.ensemble.host_streamer import HostStreamer
from hf_rlae.ensemble.modeling_ensemble import EnsembleForCausalLM
from hf_rlae.ensemble.saved_config import load_config
from hf_rlae.errors import InputError
from hf_rlae.hub_ids import is_hub_id
from hf_rlae.hub_revisions import commit_of, resolved
from hf_rlae.members.model_files import load_tokenizer

logger = logging.getLogger(__name__)

MAX_ENSEMBLES = 2
"""How many ensembles keep their members in memory; the one that was used longest ago is freed first."""

_LOADING = ("token", "cache_dir", "local_files_only", "force_download")
_OF_THE_REPOSITORY = ("revision", "repo_type", "proxies")
"""Arguments with which transformers loads the code, and which it passes on."""
_IN_CACHE = re.compile(r"models--([^/\\]+)--([^/\\]+)[/\\]snapshots[/\\]([0-9a-f]{40})")

_ensembles: OrderedDict[tuple[Any, ...], EnsembleForCausalLM] = OrderedDict()
_lock = threading.RLock()


def generate_with_ensemble(
    model: Any,
    ensemble: str | os.PathLike[str],
    ensemble_revision: str | None = None,
    *,
    member_dtype: Any = "auto",
    check_host: bool = True,
    allow_outside: bool = False,
    **kwargs: Any,
) -> Any:
    """`model.generate(**kwargs)` with a saved ensemble whose first member is `model`.

    The other members and the policy are loaded once, and kept for later calls (see [`free_ensembles`]); `model` itself
    is used as it is. If `model` is an ensemble, its own `generate` is called.

    Args:
        model (`PreTrainedModel`): the first member, on any device; the others are moved there.
        ensemble (`str` or `os.PathLike`): the folder or Hub id of the ensemble.
        ensemble_revision (`str`, *optional*): its commit, branch or tag.
        member_dtype (defaults to `"auto"`): the dtype of the other members, as in `from_pretrained`.
        check_host (`bool`, defaults to `True`): `False` accepts a copy of the first member from another place.
        allow_outside (`bool`, defaults to `False`): see [`EnsembleForCausalLM.from_pretrained`].
        kwargs: of transformers' `generate`. Defaults are those of `model`. Processors and stopping criteria see union
            ids; a streamer receives ids of the first member's tokenizer.

    Returns:
        As `EnsembleForCausalLM.generate` does, with `sequences` in ids of the first member's tokenizer.

    Raises:
        InputError: `model` is not the ensemble's first member.
        ConfigError, MemberError, PolicyError: see [`EnsembleForCausalLM.from_pretrained`].

    Example:

    >>> ids = generate_with_ensemble(model, "me/my-ensemble", **inputs, max_new_tokens=20)  # doctest: +SKIP
    """
    loading = {name: kwargs.pop(name) for name in _LOADING if name in kwargs}
    for name in _OF_THE_REPOSITORY:
        kwargs.pop(name, None)
    if isinstance(model, EnsembleForCausalLM):
        # inside its own `generate`, which has begun the call, or as its replaced `generate`
        cache = kwargs.get("past_key_values")
        has_begun = isinstance(cache, EnsembleCache) and cache.in_generate
        return (GenerationMixin if has_begun else EnsembleForCausalLM).generate(model, **kwargs)  # type: ignore[arg-type]
    built = _ensemble_of(
        model, os.fspath(ensemble), ensemble_revision, member_dtype, check_host, {**loading, "outside": allow_outside}
    )
    return _generate(built, model, kwargs)


def free_ensembles() -> None:
    """Frees the ensembles that [`generate_with_ensemble`] keeps, with their members and the models of its calls.

    Example:

    >>> free_ensembles()
    """
    with _lock:
        _ensembles.clear()


def _generate(ensemble: EnsembleForCausalLM, model: Any, kwargs: dict[str, Any]) -> Any:
    inputs = kwargs.pop("inputs", None)
    ids = kwargs.pop("input_ids", None) if inputs is None else inputs
    if not isinstance(ids, torch.Tensor) or ids.dim() != 2:
        raise InputError(
            "custom_generate: pass prompts as `input_ids`, a tensor of shape (batch, length); an ensemble has no other "
            "inputs"
        )
    given, others = model._prepare_generation_config(kwargs.pop("generation_config", None), **kwargs)
    settings = host_settings(ensemble, given)
    options = {name: value for name, value in others.items() if value is not None}
    if settings.stop_strings is not None:
        options["tokenizer"] = ensemble.tokenizer
    if "streamer" in options and ensemble.union is not None:
        options["streamer"] = HostStreamer(options["streamer"], ensemble)
    result = ensemble.generate(ids, settings, **options)
    return in_host_ids(ensemble, result, ids.shape[1])


def _ensemble_of(
    model: Any, source: str, revision: str | None, dtype: Any, check_host: bool, loading: Mapping[str, Any]
) -> EnsembleForCausalLM:
    """The ensemble with `model` as its first member; its other members are loaded at the first call."""
    options = {name: value for name, value in loading.items() if name in _LOADING and value is not None}
    options["revision"] = revision if commit_of(revision) else resolved(source, revision, options)
    config = load_config(source, options)
    if check_host:
        _check_host(model, source, config)
    is_folder = os.path.isdir(source)
    version = _stamp(source) if is_folder else commit_of(options["revision"]) or revision
    key = (os.path.realpath(source) if is_folder else source, version, str(model.device), str(dtype))
    with _lock:
        known = _ensembles.pop(key, None)
        if known is None or known.members[0].model is not model:
            known = _built(model, source, config, known, dtype, {**options, "allow_outside": loading["outside"]})
        _ensembles[key] = known
        while len(_ensembles) > MAX_ENSEMBLES:
            _ensembles.popitem(last=False)
    return known


def _built(
    model: Any, source: str, config: EnsembleConfig, known: EnsembleForCausalLM | None, dtype: Any, options: Any
) -> EnsembleForCausalLM:
    if known is not None:  # another object of the same first member
        host = known.members[0]
        members: list[Any] = [(model, host.processor or host.tokenizer), *known.members[1:]]
        return EnsembleForCausalLM.from_pretrained(source, members=members, policy=known.policy, **options)
    first, pins = (config.members or [""])[0] or "", config.revisions or [None]
    folder = Path(source, first)
    place = str(folder) if folder.is_dir() else first if is_hub_id(first) else str(model.name_or_path)
    shared: dict[str, Any] = {name: options[name] for name in _LOADING if name in options}
    if pins[0]:
        shared["revision"] = pins[0]
    tokenizer = load_tokenizer(place, **shared)
    entries = list(zip(config.members or [], config.revisions or pins * len(config.members or []), strict=False))
    members = [(model, tokenizer) if entry == entries[0] else None for entry in entries]  # guidance has it twice
    given: dict[str, Any] = {"dtype": dtype} if None in members else {}
    built = EnsembleForCausalLM.from_pretrained(source, members=members, **given, **options)
    if getattr(model, "hf_device_map", None) is None:
        built.to(model.device)
    return built


def _check_host(model: Any, source: str, config: EnsembleConfig) -> None:
    """Raises if the model is from another place than the ensemble's first member."""
    first, name = (config.members or [""])[0] or "", str(getattr(model, "name_or_path", "") or "")
    cached = _IN_CACHE.search(name)
    given = f"{cached[1]}/{cached[2]}" if cached else name
    is_same = given == first if is_hub_id(first) else _same_folder(name, source, first)
    if not is_same:
        raise InputError(
            f"custom_generate: the first member of the ensemble {source} is {first or 'not saved'}, but `generate` was "
            f"called on {name or type(model).__name__}; call it on the first member, or pass check_host=False if this "
            "model is a copy of it"
        )
    pinned = commit_of((config.revisions or [None])[0])
    own = cached[3] if cached else getattr(model.config, "_commit_hash", None)
    if pinned is not None and own is not None and pinned != own:
        logger.warning(
            "custom_generate: %s was loaded at commit %s, and the ensemble %s was saved with commit %s; load it with "
            "revision=%r for the ensemble's own text",
            first, own, source, pinned, pinned,
        )  # fmt: skip


def _same_folder(name: str, source: str, first: str) -> bool:
    own = os.path.realpath(name)
    places = [os.path.realpath(os.path.join(source, first)), os.path.realpath(first)]
    is_unnamed = bool(re.fullmatch(r"\./[^/]+", first)) and not os.path.isdir(places[0])  # its place was not saved
    return bool(name) and (own in places or (is_unnamed and os.path.basename(own) == os.path.basename(first)))


def _stamp(source: str) -> tuple[Any, ...]:
    """What changes when the files of a folder do."""
    files = sorted(path for path in Path(source).rglob("*") if path.is_file())
    return tuple((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in files)
