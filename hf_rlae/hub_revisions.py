"""Revisions of repositories on the Hugging Face Hub, and the commits that they name."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import HfApi, ResolvedRevision, constants
from huggingface_hub.errors import RevisionResolutionError

_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
_UNREACHABLE = ("ConnectError", "ConnectTimeout")
"""Errors of the client, by name, because the HTTP library depends on the version of `huggingface_hub`."""


def resolved(source: Any, revision: str | None, options: Mapping[str, Any]) -> str | None:
    """A revision whose commit is looked up once, so that all files are of one commit.

    Args:
        source (`str` or path): a folder, whose revision is returned unchanged, or a Hub id.
        revision (`str`, *optional*): a commit, branch or tag; `None` = the default branch.
        options (`Mapping`): of the Hub, such as `token`, `cache_dir` and `local_files_only`.

    Returns:
        `huggingface_hub.ResolvedRevision`, a string equal to `revision`. If the Hub does not know the repository or
        the revision, `revision` unchanged: the error of the load that follows says more.

    Raises:
        OSError: the Hub cannot be reached, and the repository is not in the cache.
    """
    if os.path.exists(source):
        return revision
    asked = {
        name: options[name] for name in ("token", "cache_dir", "local_files_only") if options.get(name) is not None
    }
    try:
        return HfApi().resolve_revision(str(source), revision=revision, **asked)
    except RevisionResolutionError as error:
        cause = error.__cause__
        if type(cause).__name__ not in _UNREACHABLE:  # such as an answer of a busy Hub, where transformers tries again
            return revision
        raise OSError(
            f"the Hub ({constants.ENDPOINT}) cannot be reached ({type(cause).__name__}: {cause}), and {source} is not "
            "in the cache"
        ) from error
    except Exception:
        return revision


def commit_of(revision: str | None) -> str | None:
    """The commit that a revision names, as far as it is known without asking the Hub.

    Example:

    >>> commit_of("main"), commit_of(None), commit_of("0123456789abcdef0123456789abcdef01234567")
    (None, None, '0123456789abcdef0123456789abcdef01234567')
    """
    if isinstance(revision, ResolvedRevision):
        return revision.resolved
    return revision if revision is not None and _COMMIT.match(revision) else None
