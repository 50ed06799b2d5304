"""The config of a saved ensemble."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from hf_rlae.ensemble.configuration_ensemble import EnsembleConfig
from hf_rlae.errors import ConfigError, HfRlaeError
from hf_rlae.hub_ids import is_repo_id

_MOST_LABELS = 1024
"""transformers makes a name for each label of a config; an ensemble has none."""


def load_config(source: str, options: dict[str, Any]) -> EnsembleConfig:
    """The config of a saved ensemble.

    Args:
        source (`str`): its folder or Hub id.
        options (`dict`): of the Hub, and `subfolder`.

    Raises:
        ConfigError: no saved ensemble, or a config that cannot be read.
    """
    folder = Path(source, options.get("subfolder") or "")
    if (os.path.isdir(source) or not is_repo_id(source)) and not (folder / "config.json").is_file():
        missing = f"it has no {folder / 'config.json'}" if os.path.isdir(source) else "there is no such folder"
        raise ConfigError(
            f"{source} is no saved ensemble: {missing}. Give a folder that `save_pretrained` of an ensemble wrote, or "
            "the id of such a repository on the Hub"
        )
    try:
        saved = PreTrainedConfig.get_config_dict(source, **options)[0]
        kind, labels = saved.get("model_type"), saved.get("num_labels")
        if kind != EnsembleConfig.model_type:
            raise ConfigError(
                f"{source} is no saved ensemble: its config.json has model_type={kind!r}; build an ensemble with "
                "`EnsembleForCausalLM.from_members([...])`"
            )
        if labels is not None and (not isinstance(labels, int) or not 0 <= labels <= _MOST_LABELS):
            raise ConfigError(
                f"{source} is no saved ensemble: its config.json has num_labels={labels!r:.40}; remove it"
            )
        config = EnsembleConfig.from_pretrained(source, **options)
    except HfRlaeError:
        raise
    except Exception as error:  # files of others can hold anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{source} is no saved ensemble: its config.json cannot be read: {reason}") from error
    return checked_config(config, source)


def checked_config(config: Any, source: str) -> EnsembleConfig:
    """The config that is given with a saved ensemble; `ConfigError` if it is another's, or names no members."""
    if not isinstance(config, EnsembleConfig):
        raise ConfigError(f"config must be an EnsembleConfig, got {type(config).__name__}; leave it out")
    if not config.members:
        raise ConfigError(f"{source} is no saved ensemble: its config.json names no members")
    return config
