"""The parts of an ensemble that follow from its members: engine, tokenizer, generation config."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import GenerationConfig

from hf_rlae.ensemble.chats.member_chats import MemberChats
from hf_rlae.ensemble.configuration_ensemble import EnsembleConfig
from hf_rlae.ensemble.engines.prompts import PromptEncoder
from hf_rlae.ensemble.engines.protocol import Engine
from hf_rlae.ensemble.engines.readings import ReadingsEngine
from hf_rlae.ensemble.engines.shared_tokenizer import SharedTokenizerEngine
from hf_rlae.ensemble.generation_defaults import generation_config_of
from hf_rlae.ensemble.mixing import Mixing, has_trait, make_mixing
from hf_rlae.ensemble.tokenizer_ensemble import EnsembleTokenizer, distinct_vocabularies
from hf_rlae.ensemble.tokenizer_shared import shared_tokenizer
from hf_rlae.errors import ConfigError
from hf_rlae.members import LazyMember, LazyRunner, Member, RemoteMember, RemoteRunner, choose_runner
from hf_rlae.members.model_files import tokenizer_failures
from hf_rlae.members.paths import MakeRunner
from hf_rlae.vocabulary import UnionVocabulary, choose_normalization, same_vocabulary
from hf_rlae.vocabulary.grain import AUTO_GRAIN, TOKEN, choose_grain

logger = logging.getLogger(__name__)


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
