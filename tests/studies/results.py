"""A folder an experiment: its settings, where it ran, and one file a run, so that what is done is not done again."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hf_rlae import __version__
from hf_rlae.errors import ConfigError
from hf_rlae.files import write_whole

_PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "tokenizers", "numpy")


def provenance() -> dict[str, Any]:
    """Versions, commit and hardware.

    Returns:
        `dict`: `versions`, `commit` (`None` outside of a checkout; `"-dirty"` is added where files were changed),
        `python`, `machine`, `cpus`, `accelerator`.
    """
    accelerator = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "versions": {"hf_rlae": __version__, **{name: importlib.metadata.version(name) for name in _PACKAGES}},
        "commit": _commit(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "accelerator": accelerator,
    }


def _commit() -> str | None:
    folder = Path(__file__).parent
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


def file_name(*parts: str) -> str:
    """The name of a run's file, without the characters of its parts that shells treat specially.

    Example:

    >>> file_name("shared", "", "ppo (gae)", "seed0")
    'shared-ppo_gae-seed0'
    """
    return "-".join(re.sub(r"[(),]", "", part).replace(" ", "_") for part in parts if part)


class ResultFolder:
    """Results of one experiment. Files are written whole or not at all, and never changed.

    Args:
        folder (`str` or `Path`): made if it is not there.
        settings (`Mapping`): of the experiment; kept in `settings.json`.

    Raises:
        ConfigError: the folder holds results of other settings.

    Example:

    >>> import tempfile
    >>> results = ResultFolder(tempfile.mkdtemp(), {"questions": 10})
    >>> results.write("uniform", {"accuracy": 0.5})
    >>> results.read("uniform")["accuracy"], results.read("oracle")
    (0.5, None)
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        (self.folder / "runs").mkdir(parents=True, exist_ok=True)
        self.settings = json.loads(json.dumps(settings))
        path = self.folder / "settings.json"
        if path.exists():
            known = json.loads(path.read_text(encoding="utf-8"))["settings"]
            different = sorted(name for name in {*known, *self.settings} if known.get(name) != self.settings.get(name))
            if different:
                raise ConfigError(
                    f"{self.folder} holds results of other settings ({', '.join(different)}); give another folder, or "
                    "the settings in its settings.json"
                )
        else:
            write_whole(path, json.dumps({"settings": self.settings, **provenance()}, indent=1) + "\n")

    def read(self, run: str) -> dict[str, Any] | None:
        """What a run found, or `None` if it has not been done."""
        path = self.folder / "runs" / f"{run}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def write(self, run: str, found: Mapping[str, Any]) -> None:
        """Keeps what a run found."""
        write_whole(self.folder / "runs" / f"{run}.json", json.dumps(found, indent=1) + "\n")
