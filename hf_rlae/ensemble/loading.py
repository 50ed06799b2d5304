"""Building and loading ensembles."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import StrictDataclassFieldValidationError
from torch import nn
from transformers import PreTrainedModel

from hf_rlae.embedded import PREFIX, is_embedded
from hf_rlae.ensemble.configuration_ensemble import EnsembleConfig
from hf_rlae.ensemble.generation_defaults import saved_generation_config
from hf_rlae.ensemble.member_places import find_members
from hf_rlae.ensemble.options import AS_SAVED, BuildOptions, EnsembleOptions, GivenMember, LoadOptions
from hf_rlae.ensemble.pins import warn_of_unpinned
from hf_rlae.ensemble.placement import PLACEMENT, per_member, remote_loaders
from hf_rlae.ensemble.saved_config import checked_config, load_config
from hf_rlae.errors import ConfigError, MemberError, nearest
from hf_rlae.hub_revisions import resolved
from hf_rlae.members import LazyMember, Member, RemoteMember
from hf_rlae.members.model_files import load_tokenizer, readable
from hf_rlae.policies import GivenPolicy, fixed_weights, resolve_policy, saved_policy

if TYPE_CHECKING:
    from hf_rlae.ensemble.modeling_ensemble import EnsembleForCausalLM

_FIELDS = tuple(EnsembleOptions.__annotations__)
_OF_KEPT = ("revisions", "base_revisions", "vocabulary_hashes", "sees")
_OF_ONE = {
    "revisions": "revision",
    "base_revisions": "base_revision",
    "vocabulary_hashes": "vocabulary_hash",
    "end_token_ids": "end_token_ids",
    "adapter_names": "adapter_name",
    "sees": "sees",
}
"""Options with one entry per member, and what a member calls its own."""
_PER_MEMBER = tuple(_OF_ONE)
_SHARED_OPTIONS = ("token", "cache_dir", "local_files_only", "force_download")
"""Options of the Hub in `from_pretrained` that hold for members, too."""
_OF_AUTO_CLASSES = ("_from_auto", "_from_pipeline", "_commit_hash", "adapter_kwargs", "code_revision")
"""What Auto classes and pipelines add to the arguments of `from_pretrained`."""


def build(
    cls: type[EnsembleForCausalLM],
    members: Sequence[GivenMember],
    policy: GivenPolicy | None = None,
    *,
    weights: Sequence[float] | None = None,
    policy_revision: str | None = None,
    dtype: Any = "auto",
    device_map: Any = None,
    member_kwargs: Any = None,
    check_files: bool = True,
    **given: Any,
) -> EnsembleForCausalLM:
    """`EnsembleForCausalLM.from_members`: loads members that are given by name, and builds the ensemble."""
    if isinstance(members, (str, bytes)) or not isinstance(members, Sequence):
        raise ConfigError(f"members must be a list of folders, Hub ids or (model, tokenizer) pairs, got {members!r}")
    if not members:
        raise ConfigError("members is empty; give at least one folder, Hub id or (model, tokenizer) pair")
    if weights is not None:
        policy = fixed_weights(weights, policy, len(members))
    own_kwargs = per_member(member_kwargs, len(members), "member_kwargs")
    remote = remote_loaders(members, given)
    options = {name: per_member(given.pop(name, None), len(members), name) for name in _PER_MEMBER}
    unknown = [name for name in given if name not in _FIELDS]
    if unknown:
        raise ConfigError(
            f"{unknown[0]} is not an option of an ensemble: {nearest(unknown[0], BuildOptions.__annotations__)}"
        )
    _check_options(members, dtype, device_map, own_kwargs, options["end_token_ids"])
    try:
        config = EnsembleConfig(**given)
    except StrictDataclassFieldValidationError as error:
        raise ConfigError(f"{error} (see `EnsembleConfig`)") from error
    active = config.max_active_members
    if active is not None and active > len(members):
        raise ConfigError(f"max_active_members={active}: there are only {len(members)} members; leave it out")
    policy = resolve_policy(policy, policy_revision, check_files=check_files)
    shared = {"dtype": dtype, "device_map": device_map, "check_files": check_files}
    loaders = [own or (LazyMember if config.select == "prompt" else Member).load for own in remote]
    built = _built(members, options, own_kwargs, loaders, shared)
    _describe(config, built, options)
    ensemble = cls(config, built, policy)
    super(PreTrainedModel, ensemble).train(False)
    return ensemble


def _built(
    members: Sequence[GivenMember],
    options: Mapping[str, Sequence[Any]],
    member_kwargs: Sequence[Any],
    loaders: Sequence[Callable[..., Member]],
    shared: Mapping[str, Any],
) -> list[Member]:
    """The members as `Member` objects; those that are given by name are loaded."""
    built: list[Member] = []
    asked: list[tuple[Any, ...]] = []
    for index, member in enumerate(members):
        own = {_OF_ONE[name]: options[name][index] for name in _PER_MEMBER}
        asked.append((member, own, member_kwargs[index] or {}))
        first = asked.index(asked[-1]) if isinstance(member, (str, os.PathLike)) else index
        if first < index:  # the same model again, such as for guidance, is not loaded again
            built.append(built[first])
        else:
            kwargs = member_kwargs[index] or {}
            built.append(_member(member, index, load=loaders[index], kwargs=kwargs, **own, **shared))
    for loaded in built:  # workers have begun to load their models at the same time
        if isinstance(loaded, RemoteMember):
            loaded.connect()
    return built


def _describe(config: EnsembleConfig, members: Sequence[Member], options: Mapping[str, Sequence[Any]]) -> None:
    """Writes into a config from where its members are, and how they were loaded."""
    ends = [list(member.end_ids) if member.has_given_ends else None for member in members]
    config.end_token_ids = ends if any(own is not None for own in ends) else None
    config.adapter_names = list(options["adapter_names"]) if any(options["adapter_names"]) else None
    config.sees = _sight(members, options["sees"])
    config.revisions = [member.commit or member.revision for member in members]
    bases = [member.base_commit or options["base_revisions"][index] for index, member in enumerate(members)]
    config.base_revisions = bases if any(bases) else None
    config.members = [member.source for member in members]


def _of_kept(values: Sequence[Any] | None, kept: Collection[int]) -> list[Any] | None:
    """An option per member, for the saved members that are not replaced."""
    return None if values is None else [value if index in kept else None for index, value in enumerate(values)]


def _sight(members: Sequence[Member], wanted: Sequence[bool | None]) -> list[bool | None] | None:
    """`EnsembleConfig.sees` of members; raises `ConfigError` for members that were made otherwise than is wanted."""
    for index, (member, sees) in enumerate(zip(members, wanted, strict=True)):
        if sees not in (None, member.sees):
            raise ConfigError(
                f"sees[{index}]={sees}: member {index} is loaded already, {'with' if member.sees else 'without'} a "
                "processor; give (model, processor) for a member that sees, else (model, tokenizer)"
            )
    found = [member.sees if member.image_ids else None for member in members]
    return None if all(entry is None for entry in found) else found


def _check_options(
    members: Sequence[Any], dtype: Any, device_map: Any, member_kwargs: Sequence[Any], end_token_ids: Sequence[Any]
) -> None:
    """Raises for options of loading that no member takes, and for options of single members of a wrong kind."""
    is_loaded = not any(isinstance(given, (str, os.PathLike)) for given in members)
    for name, value, default in (("dtype", dtype, "auto"), ("device_map", device_map, None)):
        if is_loaded and value is not None and value != default:
            raise ConfigError(
                f"{name}={value!r}: member 0 is loaded already, as are all others; load the models with it, or use "
                "`ensemble.to(...)`"
            )
    for index, given in enumerate(member_kwargs):
        if given is not None and not isinstance(given, Mapping):
            raise ConfigError(f"member_kwargs[{index}] must be a dict of options, got {given!r}")
    for index, given in enumerate(end_token_ids):
        if given is not None and (isinstance(given, (str, bytes)) or not isinstance(given, Sequence)):
            raise ConfigError(f"end_token_ids[{index}] must be a list of ids, got {given!r}")


def _member(given: Any, index: int, *, load: Callable[..., Member], kwargs: dict[str, Any], **options: Any) -> Member:
    if kwargs and not isinstance(given, (str, os.PathLike)):
        raise ConfigError(
            f"member_kwargs[{index}] has options for loading, but member {index} is loaded already; give None for it"
        )
    if isinstance(given, Member):
        known: dict[str, Any] = {
            "revision": given.revision,
            "end_token_ids": list(given.end_ids),
            "adapter_name": given.adapter_name,
        }
        for name, own in known.items():
            wanted = options[name] if name != "end_token_ids" or options[name] is None else list(options[name])
            if wanted is not None and wanted != own:
                raise ConfigError(
                    f"{name}={wanted!r}: member {index} is a Member that was made with {own!r}; pass {name} to "
                    "`Member` or `Member.load`, or pass a (model, tokenizer) pair to the ensemble"
                )
        return given
    if isinstance(given, (str, os.PathLike)):
        if is_embedded(os.fspath(given)):
            raise MemberError(
                f"members[{index}]={given!r} is a name for the command line; in Python, give "
                f"load_demo_member({os.fspath(given).removeprefix(PREFIX)!r})"
            )
        return load(os.fspath(given), **options, **kwargs)
    if isinstance(given, (tuple, list)) and len(given) == 2:
        model, tokenizer = given
        return Member(
            model,
            tokenizer,
            name=getattr(model, "name_or_path", "") or f"{type(model).__name__} {index}",
            revision=options["revision"],
            adapter_name=options["adapter_name"],
            end_token_ids=options["end_token_ids"],
        )
    source = getattr(given, "name_or_path", "") if isinstance(given, nn.Module) else ""
    if not source:
        raise MemberError(
            f"members[{index}] must be a folder, a Hub id or a (model, tokenizer) pair, got {type(given).__name__}"
            + (", which does not say where its tokenizer is" if isinstance(given, nn.Module) else "")
        )
    revision = options["revision"] or getattr(given.config, "_commit_hash", None)
    tokenizer = load_tokenizer(source, revision=revision, sees=options["sees"])
    return _member((given, tokenizer), index, load=load, kwargs=kwargs, **options)


def load(
    cls: type[EnsembleForCausalLM],
    source: Any,
    *,
    members: Sequence[GivenMember | None] | None = None,
    policy: Any = None,
    weights: Sequence[float] | None = None,
    config: EnsembleConfig | None = None,
    dtype: Any = "auto",
    device_map: Any = None,
    member_kwargs: Any = None,
    allow_outside: bool = False,
    check_files: bool = True,
    max_members: int = 64,
    policy_revision: str | None = None,
    **options: Any,
) -> EnsembleForCausalLM:
    """`EnsembleForCausalLM.from_pretrained`."""
    is_auto = bool(options.get("_from_auto"))  # then `config` has the fields that were given as arguments
    options = {name: value for name, value in options.items() if name not in _OF_AUTO_CLASSES}
    unknown = [name for name in options if name not in LoadOptions.__annotations__]
    if unknown:
        raise ConfigError(
            f"{unknown[0]} is not an option of from_pretrained: {nearest(unknown[0], LoadOptions.__annotations__)}"
        )
    changed = {name: options.pop(name) for name in _FIELDS if name in options}
    if "mixing" in changed:
        changed.setdefault("mixing_kwargs", None)  # the saved ones are those of another mixing
    trust_remote_code = bool(options.pop("trust_remote_code", False))
    if not isinstance(source, (str, os.PathLike)):
        raise ConfigError(
            f"from_pretrained loads a saved ensemble from a folder or Hub id, got {type(source).__name__}; build an "
            "ensemble from members with `EnsembleForCausalLM.from_members([...])`"
        )
    source = os.fspath(source)
    with readable(source, f"ensemble {source}", ConfigError):
        options["revision"] = resolved(source, options.get("revision"), options)  # of config, policy and members alike
    config = load_config(source, options) if config is None else checked_config(config, source)
    saved = config.members or []
    given: list[Any] = [None] * len(saved) if members is None else list(members)
    kept = {index: saved[index] for index, one in enumerate(given[: len(saved)]) if one is None}
    if len(kept) > max_members:
        raise ConfigError(
            f"the saved ensemble {source} has {len(kept)} members, each a whole model; pass "
            f"max_members={len(kept)} if that is intended"
        )
    if saved and len(given) != len(saved):
        raise ConfigError(
            f"members has {len(given)} entries, and the saved ensemble {source} has {len(saved)} members; "
            "give one for each, in their order, or build another ensemble with `EnsembleForCausalLM.from_members`"
        )
    for index, place in find_members(kept, source, options.get("subfolder") or "", allow_outside, options).items():
        given[index] = place
    shared = {name: options[name] for name in _SHARED_OPTIONS if name in options}
    shared["trust_remote_code"] = trust_remote_code
    if weights is not None:
        policy = fixed_weights(weights, policy, len(given))
    elif policy is None and policy_revision is None and config.policy is not None:
        policy = saved_policy(
            source, config.policy, {**options, "trust_remote_code": trust_remote_code, "check_files": check_files}
        )
    policy = resolve_policy(policy, policy_revision, **shared, check_files=check_files)
    placed = {name: options.pop(name) for name in PLACEMENT if name in options}
    own_kwargs = per_member(member_kwargs, len(given), "member_kwargs")
    settings: dict[str, Any] = {name: getattr(config, name) for name in (*_FIELDS, *_PER_MEMBER)}
    ensemble = build(
        cls,
        given,
        policy,
        dtype=dtype,
        device_map=device_map,
        check_files=check_files,
        member_kwargs=[
            {**shared, **(own or {})} if isinstance(member, (str, os.PathLike)) else own
            for member, own in zip(given, own_kwargs, strict=True)
        ],
        **{**settings, **changed, **{name: _of_kept(getattr(config, name), kept) for name in _OF_KEPT}, **placed},
    )
    is_same = (members is None and not changed and not is_auto) or all(  # another grain has other ids, too
        getattr(config, name) == getattr(ensemble.config, name) for name in ("vocab_size", "eos_token_id")
    )
    ensemble.generation_config = saved_generation_config(ensemble, source, options, has_saved_ids=is_same)
    if members is None:
        warn_of_unpinned(config, ensemble, source)
    return ensemble


BUILD_DEFAULTS: dict[str, Any] = {
    **{name: getattr(EnsembleConfig, name) for name in _FIELDS},
    **(build.__kwdefaults__ or {}),
}
LOAD_DEFAULTS: dict[str, Any] = {
    **(load.__kwdefaults__ or {}),
    **dict.fromkeys(("members", "policy", *_FIELDS), AS_SAVED),
}
"""What the signatures of `from_members` and `from_pretrained` show."""
