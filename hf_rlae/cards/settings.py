"""The settings of a training that a card shows: those that differ from their defaults, and nothing private."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Collection, Mapping
from enum import Enum
from typing import Any

_PRIVATE = re.compile(
    r"(_dir|_dirs|_path|_file|_host|_url|_token|_key|_secret|_password|run_name|project|base_model_id|resume_from_.*)$"
)
"""Fields by the end of their names: places, accounts and credentials."""
_NOT_OF_TRAINING = re.compile(
    r"(hub_|push_to_hub|log_|logging_|report_to|save_|trackio_|vllm_|dataloader_|disable_tqdm|local_rank|ddp_|fsdp|"
    r"deepspeed|accelerator_config|use_cpu|no_cuda|debug|eval_steps|eval_strategy|do_|num_completions_to_print|cache_)"
)
"""Fields by the start of their names: they change where a run happens or what it prints, not what it learns."""
_SECRET = re.compile(r"hf_[A-Za-z0-9]{16,}|://[^/\s]+@")
_PATH = re.compile(r"^(/|~|\\\\|[A-Za-z]:[\\/]|\.{1,2}[\\/])")


def changed_settings(config: Any, unset: Collection[str] = ()) -> dict[str, Any]:
    """The fields of a configuration that differ from their defaults.

    Args:
        config (dataclass): the configuration.
        unset (collection of `str`, *optional*): fields that the user left out and the configuration filled in.

    Returns:
        `dict[str, Any]`: numbers, strings, lists and dicts of these, in the order of the fields. Paths, accounts,
        tokens, and fields that only say where a run is logged or saved are left out.

    Example:

    >>> @dataclasses.dataclass
    ... class Config:
    ...     output_dir: str = "out"
    ...     epochs: int = 3
    >>> changed_settings(Config("/home/me/out", 5))
    {'epochs': 5}
    """
    found = {}
    for entry in dataclasses.fields(config):
        if _PRIVATE.search(entry.name) or _NOT_OF_TRAINING.match(entry.name):
            continue
        value = getattr(config, entry.name)
        made: Any = entry.default_factory
        default = entry.default if made is dataclasses.MISSING else made()
        if entry.name not in unset and value != default and (shown := _public(value)) is not None:
            found[entry.name] = shown
    return found


def _public(value: Any) -> Any:
    """A value without what is private; `None` if nothing is left to show."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        is_private = _SECRET.search(value) or _PATH.match(value) or (os.sep in value and os.path.exists(value))
        return None if is_private else value
    if isinstance(value, Mapping):
        kept = {str(name): _public(entry) for name, entry in value.items() if not _PRIVATE.search(f"_{name}")}
        return {name: entry for name, entry in kept.items() if entry is not None} or None
    if isinstance(value, list | tuple | set | frozenset):
        entries = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        return [entry for entry in map(_public, entries) if entry is not None] or None
    return None
