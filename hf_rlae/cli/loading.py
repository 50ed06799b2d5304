"""The ensemble of a command: its members, policy and devices, and one-line errors if they cannot be loaded."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

import torch
from huggingface_hub.utils import disable_progress_bars
from transformers import PreTrainedConfig
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from hf_rlae.cli.arguments import saved_ensemble
from hf_rlae.embedded import CHAT_TEMPLATE, PREFIX, embedded_folder, is_embedded
from hf_rlae.ensemble import EnsembleConfig, EnsembleForCausalLM
from hf_rlae.errors import ConfigError, first_sentence
from hf_rlae.members import Member
from hf_rlae.policies import Policy, StaticPolicy
from hf_rlae.policies.loading import resolve_policy

_SETTINGS = ("span_length", "mixing", "mixing_kwargs", "grain", "warp", "weight_unit")
"""The options of commands that are fields of `EnsembleConfig`."""


def build_ensemble(args: argparse.Namespace) -> EnsembleForCausalLM:
    """The ensemble that the arguments of a command describe.

    Args:
        args (`argparse.Namespace`): with the checked arguments of `add_members`, `add_ensemble` and `add_loading`.

    Raises:
        HfRlaeError: options that cannot be used, members or a policy that cannot be loaded or combined.
    """
    settings: dict[str, Any] = {name: getattr(args, name) for name in _SETTINGS if getattr(args, name) is not None}
    EnsembleConfig(**settings)  # raises before anything is loaded
    device = choose_device(args.device)
    device_map = "auto" if args.device == "auto" else None
    log_errors_alone()
    given = args.policy and embedded_folder(args.policy, "policies")
    policy = resolve_policy(given) if args.weights is None else StaticPolicy(args.weights)
    if policy is not None and args.span_length is None:
        settings |= _made_for(policy)
    source, revision = args.members[0], (args.revisions or [None])[0]
    if len(args.members) == 1 and _is_saved_ensemble(source, revision):
        options = {"revision": revision} if revision else {}
        ensemble = EnsembleForCausalLM.from_pretrained(
            source,
            policy=policy,
            dtype=args.dtype,
            device_map=device_map,
            allow_outside=args.allow_outside,
            **settings,
            **options,  # type: ignore[arg-type]
        )
    else:
        members = load_members(args.members, dtype=args.dtype, device_map=device_map, revisions=args.revisions)
        ensemble = EnsembleForCausalLM.from_members(members, policy=policy, **settings)
    if device is not None:
        ensemble.to(device)  # type: ignore[arg-type]
    if args.chat_template is not None:
        ensemble.tokenizer.chat_template = args.chat_template
    return ensemble


def member_names(args: argparse.Namespace, ensemble: EnsembleForCausalLM) -> list[str]:
    """The names of the members in reports: as they were given, or as the saved ensemble names them."""
    given = [source.removeprefix(PREFIX) for source in args.members]
    return given if len(given) == len(ensemble.members) else [str(member.name) for member in ensemble.members]


def _made_for(policy: Policy) -> dict[str, Any]:
    """The settings with which a learned policy was trained."""
    config = getattr(policy, "config", None)
    if not hasattr(config, "span_length"):
        return {}
    length = config.span_length  # type: ignore[union-attr]
    return {"select": "prompt"} if length is None else {"span_length": length}


def _is_saved_ensemble(source: str, revision: str | None) -> bool:
    if os.path.isdir(embedded_folder(source, "members")):
        return saved_ensemble(source) is not None
    try:
        found = PreTrainedConfig.get_config_dict(source, revision=revision)[0]
    except Exception:  # `Member.load` says why
        return False
    return found.get("model_type") == EnsembleConfig.model_type


def log_errors_alone() -> None:
    """Leaves one line about an error, without reports of other packages beside it."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # no logs of retries
    set_verbosity_error()  # no reports of many lines beside the one-line error
    if not sys.stderr.isatty():
        disable_progress_bar()
        disable_progress_bars()


def choose_device(name: str | None) -> torch.device | None:
    """The device of the members.

    Args:
        name (`str` or `None`): the value of `--device`; `None` uses an accelerator if there is one.

    Returns:
        `torch.device`, or `None` if accelerate decides (`"auto"`).

    Raises:
        ConfigError: a device that does not exist or cannot compute.
    """
    if name == "auto":
        return None
    if name is None:
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"--device {name} cannot be used here: {first_sentence(error)} Give cpu, or leave --device out"
        ) from error
    return device


def load_members(
    sources: Sequence[str], *, dtype: str, device_map: str | None, revisions: Sequence[str | None] | None
) -> list[Member]:
    """Loads members, and shows progress if stderr is a terminal.

    Args:
        sources (`Sequence[str]`): folders, Hub ids or `demo:NAME`.
        dtype, device_map: as in `AutoModelForCausalLM.from_pretrained`.
        revisions (`Sequence[str | None]`, *optional*): one per member.

    Raises:
        MemberError: a member that cannot be loaded or used.
    """
    loaded: dict[tuple[str, str | None], Member] = {}
    wanted = list(zip(sources, revisions or [None] * len(sources), strict=True))
    for index, (source, revision) in enumerate(wanted):
        if (source, revision) in loaded:
            continue
        if sys.stderr.isatty():
            print(f"loading {source} ({index + 1} of {len(sources)})", file=sys.stderr)
        if is_embedded(source):
            loaded[source, revision] = _load_embedded(source, dtype)
            continue
        loaded[source, revision] = Member.load(source, dtype=dtype, device_map=device_map, revision=revision)
    return [loaded[entry] for entry in wanted]


def _load_embedded(source: str, dtype: str) -> Member:
    """An embedded member, which is saved in fp16 to be small, with a chat template."""
    folder = embedded_folder(source, "members")
    member = Member.load(folder, dtype="float32" if dtype == "auto" else dtype)
    member.name = source
    member.tokenizer.chat_template = CHAT_TEMPLATE
    return member
