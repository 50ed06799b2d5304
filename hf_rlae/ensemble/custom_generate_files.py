"""The files of a `custom_generate` repository: code that calls an ensemble, requirements, and a page."""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard

import hf_rlae
from hf_rlae.cards import keep_published_card, write_card
from hf_rlae.ensemble.card import custom_generate_card
from hf_rlae.ensemble.configuration_ensemble import EnsembleConfig
from hf_rlae.ensemble.saved_config import load_config
from hf_rlae.errors import ConfigError
from hf_rlae.files import write_whole
from hf_rlae.hub_ids import is_hub_id
from hf_rlae.hub_revisions import commit_of, resolved

logger = logging.getLogger(__name__)

_CODE = '''"""`model.generate(..., custom_generate=...)` with an ensemble whose first member is the model."""

from hf_rlae import generate_with_ensemble

ENSEMBLE = {ensemble}
REVISION = {revision}


def generate(model, ensemble=ENSEMBLE, ensemble_revision=REVISION, **kwargs):
    """The text of the ensemble, in ids of the model's own tokenizer."""
    return generate_with_ensemble(model, ensemble, ensemble_revision, **kwargs)
'''


def save_custom_generate(
    folder: str | os.PathLike[str], ensemble: str | os.PathLike[str], revision: str | None = None
) -> None:
    """Writes a folder for `custom_generate` of transformers, so that a plain model generates with a saved ensemble.

    `model.generate(**inputs, custom_generate=folder, trust_remote_code=True)` then gives the ensemble's text, for the
    ensemble's first member as `model`. Keep the folder apart from that of a model: transformers replaces the `generate`
    of a model whose own folder has such code.

    Args:
        folder (`str` or `os.PathLike`): created if it does not exist.
        ensemble (`str` or `os.PathLike`): the folder or Hub id of the saved ensemble. The path of a folder is written
            into the code as it is, so do not publish that.
        revision (`str`, *optional*): the commit, branch or tag of the ensemble.

    Raises:
        ConfigError: there is no saved ensemble at that place, its first member is inside its repository on the Hub, or
            `folder` is a model's.

    Example:

    >>> save_custom_generate("my-generate", "me/my-ensemble")  # doctest: +SKIP
    """
    source = os.fspath(ensemble)
    if os.path.isdir(source):
        source = os.path.abspath(source)
        logger.warning("%s has the path of the ensemble, %s; to publish it, use push_custom_generate", folder, source)
    config = load_config(source, {"revision": revision})
    _check_first_member(source, config)
    _write(folder, source, revision, config, os.fspath(folder))


def push_custom_generate(
    repo_id: str,
    ensemble: str,
    revision: str | None = None,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str = "Upload custom_generate",
) -> Any:
    """Publishes a repository for `custom_generate` of transformers (see [`save_custom_generate`]).

    Args:
        repo_id (`str`): the repository of the code, such as `"me/my-ensemble-generate"`; not the ensemble's own.
        ensemble (`str`): the Hub id of the ensemble.
        revision (`str`, *optional*): its commit, branch or tag. The code names the commit, so that the text stays the
            same when the ensemble is pushed again.
        private, token, commit_message: as in `push_to_hub`.

    Returns:
        `huggingface_hub.CommitInfo`: of the upload.

    Raises:
        ConfigError: the ensemble is not on the Hub, its first member is inside its repository, or the repository is the
            ensemble's own.
    """
    if not is_hub_id(ensemble):
        raise ConfigError(
            f"ensemble={ensemble!r} is no repository on the Hub, so nobody else could run the code; push the ensemble "
            "first (`ensemble.push_to_hub`), and give its id"
        )
    options: dict[str, Any] = {"revision": revision, **({} if token is None else {"token": token})}
    options["revision"] = resolved(ensemble, revision, options)
    config, commit = load_config(ensemble, options), commit_of(options["revision"]) or revision
    _check_first_member(ensemble, config)
    api = HfApi(token=token)
    repository = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if repository == ensemble:
        raise ConfigError(
            f"repo_id={repo_id!r} is the ensemble's own repository, whose `generate` transformers would replace when "
            f"it is loaded; give another name, such as {repository + '-generate'!r}"
        )
    with tempfile.TemporaryDirectory() as folder:
        _write(folder, ensemble, commit, config, repository)
        keep_published_card(folder, repository, token)
        return api.upload_folder(repo_id=repository, folder_path=folder, commit_message=commit_message)


def _check_first_member(source: str, config: EnsembleConfig) -> None:
    """Raises if nobody could load the first member by itself, on which `generate` is called."""
    first = (config.members or [""])[0] or ""
    if not os.path.isdir(source) and not is_hub_id(first):
        raise ConfigError(
            f"the first member of {source} is inside the ensemble's repository ({first}), and users of plain "
            "transformers load it from its own; push that model to a repository (`model.push_to_hub`, "
            "`tokenizer.push_to_hub`), and build the ensemble with its id"
        )


def _write(
    folder: str | os.PathLike[str], source: str, revision: str | None, config: EnsembleConfig, name: str
) -> None:
    place = Path(folder)
    if (place / "config.json").exists():
        raise ConfigError(
            f"{place} is the folder of a model, whose `generate` transformers would replace when it is loaded; give "
            "another folder"
        )
    inside = place / "custom_generate"
    inside.mkdir(parents=True, exist_ok=True)
    pinned = "None" if revision is None else json.dumps(str(revision))
    write_whole(inside / "generate.py", _CODE.format(ensemble=json.dumps(source), revision=pinned))
    write_whole(inside / "requirements.txt", _requirement(hf_rlae.__version__) + "\n")
    card: ModelCard = custom_generate_card(config, source, revision, name).render()
    write_card(place, card)


def _requirement(version: str) -> str:
    """The line of this package in `requirements.txt`, of which transformers reads versions of digits only.

    Example:

    >>> _requirement("1.2.0"), _requirement("1.2.0.dev0")
    ('hf_rlae>=1.2.0', 'hf_rlae')
    """
    return f"hf_rlae>={version}" if re.fullmatch(r"[0-9.]+", version) else "hf_rlae"
