"""Building and loading ensembles."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import GenerationConfig, PreTrainedModel

from hf_rlae.ensemble.chats.member_chats import MemberChats
from hf_rlae.ensemble.configuration_ensemble import EnsembleConfig
from hf_rlae.ensemble.engines.prompts import PromptEncoder
from hf_rlae.ensemble.engines.protocol import Engine
from hf_rlae.ensemble.engines.readings import ReadingsEngine
from hf_rlae.ensemble.engines.shared_tokenizer import SharedTokenizerEngine
from hf_rlae.ensemble.generation_defaults import generation_config_of, saved_generation_config
from hf_rlae.ensemble.member_places import find_members
from hf_rlae.ensemble.mixing import Mixing, has_trait, make_mixing
from hf_rlae.ensemble.options import BuildOptions, EnsembleOptions, GivenMember, LoadOptions
from hf_rlae.ensemble.pins import warn_of_unpinned
from hf_rlae.ensemble.placement import PLACEMENT, per_member, remote_loaders
from hf_rlae.ensemble.saved_config import checked_config, load_config
from hf_rlae.ensemble.tokenizer_ensemble import EnsembleTokenizer, distinct_vocabularies
from hf_rlae.ensemble.tokenizer_shared import shared_tokenizer
from hf_rlae.errors import ConfigError, MemberError, nearest
from hf_rlae.hub_revisions import resolved
from hf_rlae.members import LazyMember, LazyRunner, Member, RemoteMember, RemoteRunner, choose_runner
from hf_rlae.members.model_files import readable, tokenizer_failures
from hf_rlae.members.paths import MakeRunner
from hf_rlae.policies import GivenPolicy, resolve_policy, saved_policy
from hf_rlae.vocabulary import UnionVocabulary, choose_normalization, same_vocabulary
from hf_rlae.vocabulary.grain import AUTO_GRAIN, TOKEN, choose_grain

if TYPE_CHECKING:
    from hf_rlae.ensemble.modeling_ensemble import EnsembleForCausalLM

logger = logging.getLogger(__name__)

_FIELDS = tuple(EnsembleOptions.__annotations__)
_PINS = ("revisions", "base_revisions", "vocabulary_hashes")
_PER_MEMBER = (*_PINS, "end_token_ids", "adapter_names", "sees")
_SHARED_OPTIONS = ("token", "cache_dir", "local_files_only", "force_download")
"""Options of the Hub in `from_pretrained` that hold for members, too."""
_OF_AUTO_CLASSES = ("_from_auto", "_from_pipeline", "_commit_hash", "adapter_kwargs", "code_revision")
"""What Auto classes and pipelines add to the arguments of `from_pretrained`."""


def build(
    cls: type[EnsembleForCausalLM],
    members: Sequence[GivenMember],
    policy: GivenPolicy | None,
    given: Mapping[str, Any],
) -> EnsembleForCausalLM:
    """`EnsembleForCausalLM.from_members`: loads members that are given by name, and builds the ensemble."""
    if isinstance(members, (str, bytes)) or not isinstance(members, Sequence):
        raise ConfigError(f"members must be a list of folders, Hub ids or (model, tokenizer) pairs, got {members!r}")
    if not members:
        raise ConfigError("members is empty; give at least one folder, Hub id or (model, tokenizer) pair")
    settings = dict(given)
    policy_revision = settings.pop("policy_revision", None)
    dtype, device_map = settings.pop("dtype", "auto"), settings.pop("device_map", None)
    check_files = settings.pop("check_files", True)
    member_kwargs = per_member(settings.pop("member_kwargs", None), len(members), "member_kwargs")
    remote = remote_loaders(members, settings)
    options = {name: per_member(settings.pop(name, None), len(members), name) for name in _PER_MEMBER}
    unknown = [name for name in settings if name not in _FIELDS]
    if unknown:
        raise ConfigError(
            f"{unknown[0]} is not an option of an ensemble: {nearest(unknown[0], BuildOptions.__annotations__)}"
        )
    _check_options(members, dtype, device_map, member_kwargs, options["end_token_ids"])
    try:
        config = EnsembleConfig(**settings)
    except StrictDataclassFieldValidationError as error:
        raise ConfigError(f"{error} (see `EnsembleConfig`)") from error
    active = config.max_active_members
    if active is not None and active > len(members):
        raise ConfigError(f"max_active_members={active}: there are only {len(members)} members; leave it out")
    policy = resolve_policy(policy, policy_revision, check_files=check_files)
    built: list[Member] = []
    asked: list[tuple[Any, ...]] = []
    for index, member in enumerate(members):
        asked.append((member, *(options[name][index] for name in _PER_MEMBER), member_kwargs[index] or {}))
        first = asked.index(asked[-1]) if isinstance(member, (str, os.PathLike)) else index
        if first < index:  # the same model again, such as for guidance, is not loaded again
            built.append(built[first])
            continue
        built.append(
            _member(
                member,
                index,
                dtype=dtype,
                device_map=device_map,
                revision=options["revisions"][index],
                base_revision=options["base_revisions"][index],
                vocabulary_hash=options["vocabulary_hashes"][index],
                end_token_ids=options["end_token_ids"][index],
                adapter_name=options["adapter_names"][index],
                check_files=check_files,
                sees=options["sees"][index],
                load=remote[index] or (LazyMember if config.select == "prompt" else Member).load,
                kwargs=member_kwargs[index] or {},
            )
        )
    for member in built:  # workers have begun to load their models at the same time
        if isinstance(member, RemoteMember):
            member.connect()
    ends = [list(member.end_ids) if member.has_given_ends else None for member in built]
    config.end_token_ids = ends if any(own is not None for own in ends) else None
    config.adapter_names = options["adapter_names"] if any(options["adapter_names"]) else None
    config.sees = _sight(built, options["sees"])
    config.revisions = [member.commit or member.revision for member in built]
    bases = [member.base_commit or options["base_revisions"][index] for index, member in enumerate(built)]
    config.base_revisions = bases if any(bases) else None
    config.members = [member.source for member in built]
    ensemble = cls(config, built, policy)
    super(PreTrainedModel, ensemble).train(False)
    return ensemble


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
    raise MemberError(
        f"members[{index}] must be a folder, a Hub id or a (model, tokenizer) pair, got {type(given).__name__}"
    )


@dataclass
class Parts:
    """The parts of an ensemble that depend on its members.

    Attributes:
        engine (`Engine`): runs the members.
        generation_config (`GenerationConfig`), tokenizer (`MemberChats`): those of the ensemble.
    """

    engine: Engine
    generation_config: GenerationConfig
    tokenizer: MemberChats


def assemble(config: EnsembleConfig, members: Sequence[Member]) -> Parts:
    """Checks that members fit together, and builds the parts of an ensemble."""
    tables = [member.tokenizer.get_vocab() for member in members]
    _check_end_ids(members)
    mixing = make_mixing(config.mixing, config.mixing_kwargs)
    if len(members) == 1 and has_trait(mixing, "compares_members"):
        raise ConfigError(
            f"mixing={config.mixing!r} compares the first member with the others, and there is only one; give the "
            "other members (for guidance the same model again), or leave mixing out"
        )
    if config.grain in (TOKEN, AUTO_GRAIN) and all(same_vocabulary(tables[0], table) for table in tables[1:]):
        return _assemble_shared(mixing, members)
    return _assemble_different(config, mixing, members)


def _assemble_shared(mixing: Mixing, members: Sequence[Member]) -> Parts:
    """The parts of an ensemble whose members share a tokenizer."""
    generation_config = generation_config_of(members)
    tokenizer = shared_tokenizer(
        [member.tokenizer for member in members],
        [member.name for member in members],
        generation_config.pad_token_id,
    )
    return Parts(SharedTokenizerEngine(members, mixing), generation_config, tokenizer)


def _assemble_different(config: EnsembleConfig, mixing: Mixing, members: Sequence[Member]) -> Parts:
    """The parts of an ensemble whose members have different tokenizers."""
    first = members[0]
    names = [member.name for member in members]
    tokenizers = [member.tokenizer for member in members]
    vocabularies = distinct_vocabularies(tokenizers, [member.vocab_size for member in members], names)
    form = choose_normalization(config.normalizes, vocabularies, names)
    needs_common = has_trait(mixing, "needs_common_strings")
    if config.grain == TOKEN and needs_common:
        reason = "in a product of experts no token could be written that one member lacks"
        if has_trait(mixing, "compares_members"):
            reason = "the probabilities of a token can be compared only if both members can write it in one step"
        raise ConfigError(
            f"mixing={config.mixing!r} with different tokenizers and grain='token': {reason}; set grain='byte' (or "
            "'character'), where every member can write every string, or mixing='power' or 'linear'"
        )
    grain = choose_grain(needs_common) if config.grain == AUTO_GRAIN else config.grain
    union = UnionVocabulary(vocabularies, grain)
    with tokenizer_failures(f"member {first.name}"):
        tokenizer = EnsembleTokenizer(union, tokenizers, names, vocabularies, form)
    engine = ReadingsEngine(
        members,
        vocabularies,
        union,
        [_runner(member) for member in members],
        mixing,
        PromptEncoder(members, vocabularies, union, tokenizer.chats),
        config.max_readings,
        config.min_reading,
        config.weight_unit,
    )
    own = first.generation_config or GenerationConfig()
    bos = own.bos_token_id if own.bos_token_id is not None else first.tokenizer.bos_token_id
    generation_config = GenerationConfig(
        bos_token_id=bos, pad_token_id=tokenizer.pad_token_id, eos_token_id=union.stop_id
    )
    return Parts(engine, generation_config, tokenizer)


def _runner(member: Member) -> MakeRunner:
    if isinstance(member, RemoteMember):
        member.check_runner()
        return RemoteRunner
    return LazyRunner if isinstance(member, LazyMember) else choose_runner(member)


def _check_end_ids(members: Sequence[Member]) -> None:
    """Raises `ConfigError` if no member of several has an end token and this was not requested."""
    if len(members) == 1:
        return
    without = [member for member in members if not member.end_ids]
    if len(without) == len(members) and not all(member.has_given_ends for member in members):
        declared = {member.name: list(member.declared_text_end_ids) for member in members}
        hint = ""
        if any(declared.values()):
            hint = f" (declared end ids that are ordinary text count only if they are given: {declared})"
        raise ConfigError(
            f"end_token_ids: none of the members {[member.name for member in members]} has an end-of-text token, so "
            f"no text would end before its maximum length{hint}; give `end_token_ids=[[...], ...]`, one list per "
            "member (empty lists if only the length ends texts)"
        )
    for member in without:
        logger.info("member %s has no end-of-text token and gives STOP no probability", member.name)


def load(
    cls: type[EnsembleForCausalLM],
    source: Any,
    *,
    members: Sequence[GivenMember | None] | None = None,
    policy: Any = None,
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
    if policy is None and policy_revision is None and config.policy is not None:
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
        {
            **settings,
            **changed,
            **{name: _of_kept(getattr(config, name), kept) for name in (*_PINS, "sees")},
            "dtype": dtype,
            "device_map": device_map,
            "check_files": check_files,
            **placed,
            "member_kwargs": [
                {**shared, **(own or {})} if isinstance(member, (str, os.PathLike)) else own
                for member, own in zip(given, own_kwargs, strict=True)
            ],
        },
    )
    is_same = (members is None and not changed and not is_auto) or all(  # another grain has other ids, too
        getattr(config, name) == getattr(ensemble.config, name) for name in ("vocab_size", "eos_token_id")
    )
    ensemble.generation_config = saved_generation_config(ensemble, source, options, has_saved_ids=is_same)
    if members is None:
        warn_of_unpinned(config, ensemble, source)
    return ensemble
