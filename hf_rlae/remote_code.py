"""The code file of saved ensembles and policies, for programs that have not imported `hf_rlae`.

transformers finds classes that it does not know by `auto_map` in a config and a Python file beside it, which it runs
with `trust_remote_code=True` only. Ours imports the classes from the installed package. Where `hf_rlae` is imported
already, its classes are registered: transformers neither asks for the file nor runs it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from transformers import PreTrainedConfig as _Base
else:
    _Base = object

MODULE = "import_hf_rlae"
"""The name of the file, without its ending."""
_CODE = '''"""Classes of the package hf_rlae, which must be installed.

This file is run with trust_remote_code=True. It is not needed after `from hf_rlae import EnsembleForCausalLM`.
"""

from hf_rlae import EnsembleConfig, EnsembleForCausalLM, EnsembleTokenizer, PolicyConfig, PolicyModel

__all__ = ["EnsembleConfig", "EnsembleForCausalLM", "EnsembleTokenizer", "PolicyConfig", "PolicyModel"]
'''


def write_code(folder: str | os.PathLike[str]) -> None:
    """Writes the file into a folder, which is created if it does not exist."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    Path(folder, f"{MODULE}.py").write_text(_CODE, encoding="utf-8")


class NotRemote:
    """A mixin for classes that transformers may load through the file: they belong to the package.

    transformers would copy the module of a class of a repository's code into every folder to which its objects are
    saved.
    """

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Does nothing; see the class."""


class ConfigWithCode(NotRemote, _Base):
    """A mixin for configs: the file is saved with them.

    Attributes:
        auto_classes (`dict[str, str]`): the names of Auto classes, each with that of its class of this package.
    """

    auto_classes: ClassVar[dict[str, str]]

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As in transformers; also writes the file that lets transformers find the classes."""
        write_code(save_directory)
        self.auto_map = {auto: f"{MODULE}.{name}" for auto, name in self.auto_classes.items()}
        super().save_pretrained(save_directory, *args, **kwargs)
