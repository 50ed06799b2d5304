"""Packages that only a part of hf_rlae needs, and how they are installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

TRAINING = ("trl", "peft", "accelerate", "datasets")
"""What every trainer imports, of the extra `train`."""


def missing_packages(what: str, packages: Sequence[str], extra: str) -> str | None:
    """What is missing and how to install it, or `None` if nothing is missing.

    Args:
        what (`str`): what needs the packages.
        packages (`Sequence[str]`): by the names under which they are imported.
        extra (`str`): of hf_rlae, which installs them.

    Example:

    >>> missing_packages("juggling", ["torch", "no_such_package"], "train")
    'juggling needs no_such_package: install hf_rlae with its extra `train` (in a clone: pip install -e ".[train]")'
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if not missing:
        return None
    how = f'install hf_rlae with its extra `{extra}` (in a clone: pip install -e ".[{extra}]")'
    return f"{what} needs {', '.join(missing)}: {how}"
