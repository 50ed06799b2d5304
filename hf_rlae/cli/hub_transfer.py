"""The work of `hf-rlae push` and `hf-rlae pull`."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from transformers import PreTrainedConfig

from hf_rlae.cli.arguments import KINDS
from hf_rlae.cli.loading import log_errors_alone
from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.errors import ConfigError, HfRlaeError, first_sentence
from hf_rlae.policies import PolicyModel

DATA = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.md", "*.model", "*.yaml")
"""Names of files that hold no code."""


def push(args: argparse.Namespace, kind: str) -> None:
    """Uploads a folder.

    Args:
        args (`argparse.Namespace`): the arguments of `hf-rlae push`.
        kind (`str`): `"ensemble"` or `"policy"`.

    Raises:
        HfRlaeError: files that are not whole, members that nobody else has, a Hub that refuses.
    """
    log_errors_alone()
    given = {"commit_message": args.message, "private": args.private or None, "revision": args.revision}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    with _told(f"push to {args.repo_id}"):
        if kind == "policy":
            commit = PolicyModel.from_pretrained(args.folder).push_to_hub(args.repo_id, **options)
        else:
            ensemble = EnsembleForCausalLM.from_pretrained(args.folder, allow_outside=args.allow_outside)
            commit = ensemble.push_to_hub(args.repo_id, save_members=args.save_members, **options)
    print(f"pushed the {kind} to {commit}")


def pull(repo_id: str, folder: Path, revision: str | None) -> None:
    """Downloads a repository.

    Args:
        repo_id (`str`): on the Hub.
        folder (`Path`): a new or empty one.
        revision (`str`, *optional*): a branch, tag or commit.

    Raises:
        ConfigError: no such repository or revision, or one that holds neither an ensemble nor a policy.
    """
    log_errors_alone()
    with _told(f"pull {repo_id}"):
        commit = HfApi().model_info(repo_id, revision=revision).sha
        kind = PreTrainedConfig.get_config_dict(repo_id, revision=commit)[0].get("model_type")
        if kind not in KINDS:
            raise ConfigError(
                f"{repo_id} holds neither an ensemble nor a policy: its config.json has model_type={kind!r}; give it "
                "to `hf-rlae generate` as a member, or give another repository"
            )
        snapshot_download(repo_id, revision=commit, local_dir=folder, allow_patterns=list(DATA))
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # of the download
    print(f"pulled the {KINDS[kind]} {repo_id} at {commit} to {folder}")


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Errors of the Hub and the network in one line, with a hint."""
    try:
        yield
    except HfRlaeError:
        raise
    except (OSError, ValueError) as error:  # those of the Hub's client are OSErrors
        raise ConfigError(
            f"{what}: {first_sentence(error)} Check the name and the revision, and log in with `hf auth login` if the "
            "repository is yours"
        ) from error
