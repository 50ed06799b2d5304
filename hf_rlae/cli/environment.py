"""The report of `hf-rlae version`."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from hf_rlae import __version__

PACKAGES = (
    "torch", "transformers", "tokenizers", "huggingface_hub", "safetensors", "numpy", "accelerate", "peft", "trl",
    "datasets", "evaluate", "math-verify", "fastapi", "uvicorn", "openai",
)  # fmt: skip


def show_environment() -> None:
    """Prints one line per package and device."""
    rows = [("hf_rlae", __version__), ("python", platform.python_version()), ("platform", platform.platform())]
    rows += [(name, _version(name)) for name in PACKAGES]
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    other = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    rows.append(("devices", ", ".join(devices) or (str(other) if other else f"cpu, {torch.get_num_threads()} threads")))
    for name, value in rows:
        print(f"{name:<16} {value}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
