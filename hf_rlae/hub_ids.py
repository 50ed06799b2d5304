"""Names of repositories on the Hugging Face Hub."""

from __future__ import annotations

import os

from huggingface_hub.utils import HFValidationError, validate_repo_id


def is_repo_id(name: str) -> bool:
    """Whether a string has the form of a repository id, `"name"` or `"owner/name"`. The Hub is not asked.

    Args:
        name (`str`): any string.

    Returns:
        `bool`: whether `huggingface_hub` accepts it.

    Example:

    >>> is_repo_id("gpt2"), is_repo_id("owner/name"), is_repo_id("a/folder/here"), is_repo_id("./folder")
    (True, True, False, False)
    """
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def is_hub_id(name: object) -> bool:
    """Whether a model's or dataset's name can be a Hub id: it has the form of one, and is no path on this machine.

    Example:

    >>> is_hub_id("owner/name"), is_hub_id("/tmp"), is_hub_id("my data: v2")
    (True, False, False)
    """
    return is_repo_id(str(name)) and not os.path.exists(str(name))
