"""Policies by name: registered ones, folders, and repositories on the Hub."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeAlias

from transformers import CONFIG_MAPPING, AutoModel, PreTrainedConfig, PreTrainedModel

from hf_rlae.embedded import PREFIX, is_embedded
from hf_rlae.errors import ConfigError, PolicyError, nearest
from hf_rlae.hub_ids import is_repo_id
from hf_rlae.hub_revisions import resolved
from hf_rlae.members.model_files import load_whole, readable
from hf_rlae.policies.modeling_policy import FORMER_CRITIC
from hf_rlae.policies.protocol import Policy, SavedPolicy
from hf_rlae.policies.static import StaticPolicy, UniformPolicy, policies

POLICY_FOLDER = "policy"
"""The folder of a policy with files, inside the folder or repository of an ensemble."""
ENSEMBLE = "hf_rlae_ensemble"
"""The `model_type` of ensembles, whose repositories hold a policy, too."""

GivenPolicy: TypeAlias = Policy | str | os.PathLike[str]
"""A policy, or where it is: a registered name, a folder or a Hub id."""

_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
_FORMS = (
    "a policy is given as an object, as a registered name, as a folder, or as a Hub id of the form 'user/repo' or "
    "'user/repo@revision'"
)


def fixed_weights(weights: Sequence[float], policy: Any, num_members: int) -> StaticPolicy:
    """The policy of the argument `weights` of ensembles.

    Args:
        weights (`Sequence[float]`): see [`StaticPolicy`].
        policy: what is given as policy beside them; nothing may be.
        num_members (`int`): M.

    Raises:
        ConfigError: weights that cannot be used, of another number of members, or beside a policy.
    """
    if policy is not None:
        raise ConfigError(f"weights={weights!r:.200} beside a policy: both give the weights; leave one of them out")
    fixed = StaticPolicy(weights)
    if fixed.num_members != num_members:
        raise ConfigError(
            f"weights={weights!r:.200} has {fixed.num_members} entries for {num_members} members; give one per member"
        )
    return fixed


def resolve_policy(given: GivenPolicy | None, revision: str | None = None, **options: Any) -> Policy | None:
    """The policy that a user gives, as an object or by name.

    Args:
        given (`Policy`, `str` or `os.PathLike`, *optional*): an object is returned unchanged. A string is a registered
            name (`"uniform"`), a folder, or a Hub id, `"user/repo"` or `"user/repo@revision"`: of a policy, or of an
            ensemble, whose policy is taken.
        revision (`str`, *optional*): the commit, branch or tag on the Hub.
        options: of `from_pretrained`: `token`, `cache_dir`, `trust_remote_code` and so on.

    Raises:
        ConfigError: no such name or folder, a name that is both registered and a folder, or a revision of a policy that
            is not on the Hub.
        PolicyError: the files hold no whole policy.

    Example:

    >>> type(resolve_policy("entropy")).__name__
    'EntropyPolicy'
    >>> resolve_policy("unifrom")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    hf_rlae.errors.ConfigError: policy='unifrom': no policy is registered by this name, and there is no such folder: \
did you mean 'uniform'? Known: ...
    """
    if not isinstance(given, str | os.PathLike):
        return _without_revision(given, revision)
    place = os.fspath(given)
    if not isinstance(given, os.PathLike) and place in policies:
        if os.path.isdir(place):
            raise ConfigError(
                f"policy={place!r} is a registered policy, and the working directory has a folder of that name; give "
                f"'./{place}' for the folder, or an object of the registered class"
            )
        if policies[place] is StaticPolicy:
            raise ConfigError(f"policy={place!r} needs weights: give weights=[...] in its place, one per member")
        return _without_revision(_made(place, {}), revision)
    if os.path.isdir(place):
        return _without_revision(_from_files(place, options), revision)
    source, _, own = place.partition("@")
    if own and revision not in (None, own):
        raise ConfigError(f"policy={place!r} with policy_revision={revision!r}; give the revision once")
    if is_embedded(place):
        raise ConfigError(
            f"policy={place!r} is a name for the command line; in Python, give "
            f"load_demo_policy({place.removeprefix(PREFIX)!r})"
        )
    if "/" not in source or not is_repo_id(source) or isinstance(given, os.PathLike):
        raise ConfigError(
            f"policy={place!r}: no policy is registered by this name, and there is no such folder: "
            f"{nearest(place, policies)} {_FORMS[0].upper()}{_FORMS[1:]}"
        )
    if own and os.path.isdir(source):
        raise ConfigError(
            f"policy={place!r}: the working directory has a folder {source}, which has no revisions; give {source!r} "
            "for the folder, or change the working directory"
        )
    return _from_files(source, {**options, "revision": own or revision})


def saved_policy(source: str, saved: dict[str, Any], options: dict[str, Any]) -> Policy:
    """The policy with which an ensemble was saved.

    Args:
        source (`str`): the ensemble's folder or Hub id.
        saved (`dict`): `EnsembleConfig.policy`.
        options (`dict`): of `from_pretrained`.

    Raises:
        ConfigError: an unknown name, or settings from which no policy can be made.
        PolicyError: the files hold no whole policy.
    """
    settings = dict(saved)
    if "name" in settings:
        return _made(str(settings.pop("name")), settings)
    inside = options.get("subfolder") or ""
    own = {**options, "subfolder": f"{inside}/{POLICY_FOLDER}" if inside else POLICY_FOLDER}
    return _loaded(source, settings.get("model_type"), own)


def policy_entry(policy: Any) -> dict[str, Any] | None:
    """What `EnsembleConfig.policy` says of a policy; `None` if it cannot be saved.

    Example:

    >>> policy_entry(resolve_policy("uniform"))
    {'name': 'uniform'}
    """
    if isinstance(policy, SavedPolicy):
        return {"name": policy.registered_name, **policy.settings()}
    return {"model_type": policy.config.model_type} if isinstance(policy, PreTrainedModel) else None


def _made(name: str, settings: dict[str, Any]) -> Policy:
    make = policies[name]
    try:
        policy: Policy = make(**settings)
    except TypeError as error:
        raise ConfigError(
            f"the policy {name!r} cannot be made with the settings {settings!r:.200}: {error}; give an object, "
            f"{make.__name__}(...)"
        ) from error
    return policy


def _without_revision(policy: Any, revision: str | None) -> Any:
    if revision is not None:
        raise ConfigError(f"policy_revision={revision!r} is for a policy on the Hub; leave it out, or give a Hub id")
    return policy


def _from_files(source: str, options: dict[str, Any]) -> Policy:
    with readable(source, f"policy {source}", PolicyError):
        # of the config and of the weights alike
        options = {**options, "revision": resolved(source, options.get("revision"), options)}
        hub = {name: options[name] for name in _HUB_OPTIONS if options.get(name) is not None}
        config = PreTrainedConfig.get_config_dict(source, **hub)[0]
    kind = config.get("model_type")
    if kind is None:
        raise PolicyError(
            f"policy {source} has no config.json with a model_type; give a folder that `save_pretrained` of a policy "
            "or an ensemble wrote, or the id of such a repository"
        )
    if kind != ENSEMBLE:
        return _loaded(source, kind, options)
    saved = config.get("policy")
    return saved_policy(source, saved, options) if isinstance(saved, dict) else UniformPolicy()


def _loaded(source: str, kind: Any, options: dict[str, Any]) -> Policy:
    """Loads a policy whose `config.json` has the `model_type` `kind`; nothing large is downloaded before the check."""
    owner = f"policy of {source}" if options.get("subfolder") else f"policy {source}"
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise ConfigError(
            f"{owner}: transformers does not know its model_type={kind!r}: import the module that registers it "
            "(`AutoConfig.register`, `AutoModel.register`), or pass another `policy=`"
        )
    if CONFIG_MAPPING[kind].__module__.startswith("transformers."):
        raise PolicyError(
            f"{owner} is no policy but a model (model_type={kind!r}); build a policy from an encoder with "
            "`PolicyModel.from_encoder(encoder, members)`"
        )
    policy: Policy
    with readable(source, owner, PolicyError):
        policy, _ = load_whole(AutoModel.from_pretrained, source, owner, PolicyError, replaced=FORMER_CRITIC, **options)
    return policy
