"""hf_rlae: several language models decode one text together inside transformers' `generate`.

Public names are imported on first use, so that `import hf_rlae` takes milliseconds. `__init__.pyi` lists them, for type
checkers and for `lazy_loader`. The first of them registers the classes of saved ensembles and policies for
`AutoConfig`, `AutoModelForCausalLM` and `AutoTokenizer`; where transformers is imported already, `import hf_rlae` does.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from typing import Any

import lazy_loader

__version__ = "0.1.0"

_import, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

_RENAMED = {
    "load_member": "load_demo_member",
    "load_members": "load_demo_members",
    "load_policy": "load_demo_policy",
}


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        new = _RENAMED[name]
        warnings.warn(f"hf_rlae.{name} is now hf_rlae.{new}; the old name will be removed", FutureWarning, stacklevel=2)
        name = new
    if name in __all__:
        importlib.import_module("hf_rlae.ensemble")  # which registers its classes
    return _import(name)


if "transformers" in sys.modules:
    importlib.import_module("hf_rlae.ensemble")
