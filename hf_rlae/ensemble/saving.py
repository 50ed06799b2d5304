"""Saving ensembles: settings, policy, and the members or the places where they are."""

from __future__ import annotations

import copy
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi
from transformers import PreTrainedModel

from hf_rlae.cards import keep_published_card, write_card
from hf_rlae.ensemble.card import ensemble_card
from hf_rlae.ensemble.member_places import MEMBERS_FOLDER, is_folder, place_of, warn_of_places
from hf_rlae.ensemble.pins import pin_to_hub, vocabulary_hashes
from hf_rlae.errors import ConfigError
from hf_rlae.members import Member
from hf_rlae.policies import POLICY_FOLDER, SavedPolicy, policies

if TYPE_CHECKING:
    from hf_rlae.ensemble.modeling_ensemble import EnsembleForCausalLM

_PUSH_OPTIONS = ("commit_message", "private", "token", "revision", "create_pr", "tags")


def save(
    ensemble: EnsembleForCausalLM,
    directory: Any,
    push_to_hub: bool = False,
    save_members: bool = False,
    **kwargs: Any,
) -> None:
    """`EnsembleForCausalLM.save_pretrained`: first all files into a temporary folder, which are then moved."""
    config = copy.deepcopy(ensemble.config)
    target = Path(directory)
    policy = ensemble.policy
    if push_to_hub:
        check_can_be_pushed(ensemble, save_members, kwargs.get("token"))
    config.policy = _policy_entry(policy)
    sources = config.members or []
    saved = {index: _folder_name(index, ensemble.members[index]) for index in _local(ensemble) if save_members}
    for index in saved:
        ensemble.members[index].prepare()
    _check_sources(ensemble, set(saved))
    config.members = [
        f"./{MEMBERS_FOLDER}/{saved[index]}"
        if index in saved
        else (place_of(source, target) if source and is_folder(source) else source)
        for index, source in enumerate(sources)
    ]
    for name in ("revisions", "base_revisions"):
        if values := getattr(config, name):
            setattr(config, name, [None if index in saved else value for index, value in enumerate(values)])
    config.vocabulary_hashes = vocabulary_hashes(ensemble)
    config.architectures = [type(ensemble).__name__]
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target) as scratch:
        config.save_pretrained(scratch)
        ensemble.generation_config.save_pretrained(scratch)
        if isinstance(policy, PreTrainedModel):
            policy.save_pretrained(Path(scratch) / POLICY_FOLDER, **kwargs)
        for index, name in saved.items():
            place, member = Path(scratch, MEMBERS_FOLDER, name), ensemble.members[index]
            member.model.save_pretrained(place)
            member.tokenizer.save_pretrained(place)
        for path in sorted(Path(scratch).iterdir()):
            final = target / path.name
            if path.is_dir():
                shutil.rmtree(final, ignore_errors=True)
            os.replace(path, final)
        if not isinstance(policy, PreTrainedModel):  # remove the policy of an ensemble that was saved here before
            shutil.rmtree(target / POLICY_FOLDER, ignore_errors=True)
    write_card(target, ensemble_card(ensemble, config, target.name).render())
    if not push_to_hub:
        warn_of_places([place for place in config.members if place])
        return
    options = {name: kwargs[name] for name in _PUSH_OPTIONS if name in kwargs}
    if save_members:
        options["save_members"] = True
    pushed: Any = ensemble
    pushed.push_to_hub(str(kwargs.get("repo_id") or target.name), **options)


def push_with_members(ensemble: EnsembleForCausalLM, repo_id: str, **options: Any) -> Any:
    """Uploads an ensemble with its members, as `save_pretrained(save_members=True)` saves it."""
    unknown = sorted(set(options) - set(_PUSH_OPTIONS))
    if unknown:
        raise ConfigError(f"{unknown[0]} is not an option of a push with save_members=True; give {_PUSH_OPTIONS}")
    api = HfApi(token=options.pop("token", None))
    tags = options.pop("tags", None)
    repository = api.create_repo(repo_id, private=options.pop("private", None), exist_ok=True).repo_id
    with tempfile.TemporaryDirectory() as folder:
        save(ensemble, folder, save_members=True)
        write_card(folder, ensemble.model_card(repository))
        keep_published_card(folder, repository, api.token, tags)
        return api.upload_folder(repo_id=repository, folder_path=folder, **options)


def check_can_be_pushed(ensemble: EnsembleForCausalLM, save_members: bool, token: Any = None) -> None:
    """Raises if nobody else could load the ensemble, because members are not on the Hub; writes their commits else."""
    local = [ensemble.members[index].name for index in _local(ensemble)]
    if local and not save_members:
        raise ConfigError(
            f"the members {[Path(name).name for name in local]} are folders or objects of this machine, so nobody else "
            "could load the pushed ensemble; pass save_members=True to push them with it, or build it from Hub ids"
        )
    pin_to_hub(ensemble, set(_local(ensemble)), token)


def _local(ensemble: EnsembleForCausalLM) -> list[int]:
    """The indices of the members that are not on the Hub."""
    return [index for index, source in enumerate(ensemble.config.members or []) if not source or is_folder(source)]


def _check_sources(ensemble: EnsembleForCausalLM, saved: set[int]) -> None:
    for index, source in enumerate(ensemble.config.members or []):
        member = ensemble.members[index]
        has_adapter = member.wrapper is not member.model or getattr(member.model, "_hf_peft_config_loaded", False)
        if index in saved and has_adapter:
            raise ConfigError(
                f"save_members=True: member {index} ({member.name}) is an adapter; merge it into its base model first "
                "(`merge_and_unload`), or leave save_members out"
            )
        if not source and index not in saved:
            raise ConfigError(
                f"member {index} ({member.name}) was passed as an object that cannot be loaded from a folder or Hub id "
                "(it was never saved, or an adapter was added to it), so the ensemble could not be loaded again; pass "
                "save_members=True, or save that model first and build the ensemble from its folder"
            )


def _folder_name(index: int, member: Member) -> str:
    return f"{index}-{re.sub(r'[^A-Za-z0-9._-]+', '-', Path(str(member.name)).name)}"


def _policy_entry(policy: Any) -> dict[str, Any]:
    if isinstance(policy, SavedPolicy):
        return {"name": policy.registered_name, **policy.settings()}
    if isinstance(policy, PreTrainedModel):
        return {"model_type": policy.config.model_type}
    raise ConfigError(
        f"the policy {type(policy).__name__} cannot be saved: it is neither a PreTrainedModel nor one of "
        f"{list(policies)}; save the ensemble with one of these, and pass `policy=` to `from_pretrained`"
    )
