"""What a worker can do."""

from __future__ import annotations

from pathlib import Path

ROLES = tuple(sorted(path.stem.removesuffix("_role") for path in Path(__file__).parent.glob("*_role.py")))
"""Each is the function `main` of the module `<role>_role`, which gets the worker's `Channel`."""
