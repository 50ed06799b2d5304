"""What can be known of a repository's weight files before they are downloaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME, cached_file

from hf_rlae.hub_revisions import commit_of
from hf_rlae.members.file_budget import WEIGHT_FILES, Fail, check_shard_names


def bytes_on_hub(source: Any, options: Mapping[str, Any]) -> int:
    """The size of a repository's weight files that are not in the cache yet; 0 if they are, or the Hub does not say."""
    commit, where = commit_of(options.get("revision")), options.get("subfolder") or ""
    if commit is None or os.path.exists(source) or constants.is_offline_mode() or options.get("local_files_only"):
        return 0
    try:
        info = HfApi(token=options.get("token")).model_info(str(source), revision=commit, files_metadata=True)
        files = [(Path(entry.rfilename), entry.size or 0) for entry in info.siblings or []]
        found = [(path, size) for path, size in files if path.suffix in WEIGHT_FILES and path.parent == Path(where)]
        found = [entry for entry in found if entry[0].suffix == ".safetensors"] or found  # what transformers takes
        cache = options.get("cache_dir")
        known = [try_to_load_from_cache(str(source), str(path), cache, commit) for path, _ in found]
    except Exception:  # the download that follows says more
        return 0
    return 0 if any(isinstance(path, str) for path in known) else sum(size for _, size in found)


def check_shards_on_hub(source: Any, hub: Mapping[str, Any], fail: Fail) -> None:
    """Raises if an index of shards names files elsewhere; only indexes are downloaded.

    Args:
        source (`str`): a Hub id.
        hub (`Mapping`): options of the Hub.
        fail (`Callable`): makes the error.
    """
    for name in (SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME):
        path = cached_file(str(source), name, _raise_exceptions_for_missing_entries=False, **hub)
        if path is not None:
            check_shard_names(Path(path).parent, fail)
