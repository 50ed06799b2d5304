"""Names of repositories on the Hugging Face Hub."""

from __future__ import annotations

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
