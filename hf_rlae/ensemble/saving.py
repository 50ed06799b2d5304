"""Saving ensembles: settings, policy, and the members or the places where they are."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi
from transformers import PreTrainedModel

from hf_rlae.cards import keep_published_card, write_card
from hf_rlae.ensemble.card import ensemble_card
from hf_rlae.ensemble.member_places import MEMBERS_FOLDER, is_folder, name_of, place_of, warn_of_places
from hf_rlae.ensemble.pins import pin_to_hub, vocabulary_hashes
from hf_rlae.ensemble.policy_fit import describe_members
from hf_rlae.ensemble.tokenizer_files import write_tokenizer
from hf_rlae.errors import ConfigError, nearest
from hf_rlae.members import Member
from hf_rlae.policies import POLICY_FOLDER, PolicyModel, policies, policy_entry

if TYPE_CHECKING:
    from hf_rlae.ensemble.modeling_ensemble import EnsembleForCausalLM

_PUSH_OPTIONS = (
    "commit_message", "commit_description", "private", "token", "revision", "create_pr", "max_shard_size", "tags",
)  # fmt: skip


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
    config.policy = policy_entry(policy)  # a plug-in may have changed its settings since it was set
    if config.policy is None:
        raise ConfigError(
            f"the policy {type(policy).__name__} cannot be saved: it is neither a PreTrainedModel nor one of "
            f"{list(policies)}; save the ensemble with one of these, and pass `policy=` to `from_pretrained`"
        )
    sources = config.members or []
    firsts = {index: ensemble.members.index(ensemble.members[index]) for index in _local(ensemble) if save_members}
    saved = {index: _folder_name(first, ensemble.members[first]) for index, first in firsts.items()}
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
        _write_parts(ensemble, Path(scratch), kwargs)
        for index, name in saved.items():
            if firsts[index] == index:  # else it is the same model again
                place, member = Path(scratch, MEMBERS_FOLDER, name), ensemble.members[index]
                member.model.save_pretrained(place, **{"max_shard_size": kwargs.get("max_shard_size", "50GB")})
                (member.processor or member.tokenizer).save_pretrained(place)
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
    push(ensemble, str(kwargs.get("repo_id") or target.name), save_members, **options)


def _write_parts(ensemble: EnsembleForCausalLM, folder: Path, options: dict[str, Any]) -> None:
    """Writes generation config, tokenizer and a policy with files."""
    ensemble.generation_config.save_pretrained(folder)
    write_tokenizer(ensemble.tokenizer.parts(), folder, with_members=False)
    policy: Any = ensemble.policy
    if isinstance(policy, PolicyModel) and policy.config.members is None:
        policy.config.members = describe_members(ensemble)
    if isinstance(policy, PreTrainedModel):
        policy.save_pretrained(folder / POLICY_FOLDER, **options)


def push(ensemble: EnsembleForCausalLM, repo_id: str, save_members: bool = False, **options: Any) -> Any:
    """`EnsembleForCausalLM.push_to_hub`: uploads in one commit what `save_pretrained` saves.

    `policy/` and `members/` of an ensemble that was pushed to this repository before are replaced.
    """
    for name in options:
        if name not in _PUSH_OPTIONS:
            raise ConfigError(f"{name} is not an option of push_to_hub: {nearest(name, _PUSH_OPTIONS)}")
    token, revision = options.get("token"), options.get("revision")
    check_can_be_pushed(ensemble, save_members, token)
    api = HfApi(token=token, library_name="hf_rlae")
    repository = api.create_repo(repo_id, private=options.get("private"), exist_ok=True).repo_id
    if revision is not None and not revision.startswith("refs/pr"):
        api.create_branch(repository, branch=revision, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        sizes = {name: options[name] for name in ("max_shard_size",) if name in options}
        save(ensemble, folder, save_members=save_members, **sizes)
        write_card(folder, ensemble.model_card(repository))
        keep_published_card(folder, repository, token, options.get("tags"))
        return api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=options.get("commit_message") or f"Upload {type(ensemble).__name__}",
            commit_description=options.get("commit_description"),
            revision=revision,
            create_pr=options.get("create_pr", False),
            delete_patterns=[f"{POLICY_FOLDER}/*", f"{MEMBERS_FOLDER}/*"],
        )


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
        if index in saved and member.is_remote:
            raise ConfigError(
                f"save_members=True: member {index} ({member.name}) is remote, so its weights are not in this process; "
                "leave save_members out, or build the ensemble with placement='local'"
            )
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
    return f"{index}-{name_of(str(member.name))}"
