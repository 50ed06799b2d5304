"""Members of a command: their devices, and one-line errors if they cannot be loaded."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

import torch
from huggingface_hub.utils import disable_progress_bars
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from hf_rlae.errors import ConfigError, first_sentence
from hf_rlae.members import Member


def choose_device(name: str | None) -> torch.device | None:
    """The device of the members.

    Args:
        name (`str` or `None`): the value of `--device`; `None` uses an accelerator if there is one.

    Returns:
        `torch.device`, or `None` if accelerate decides (`"auto"`).

    Raises:
        ConfigError: a device that does not exist or cannot compute.
    """
    if name == "auto":
        return None
    if name is None:
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"--device {name} cannot be used here: {first_sentence(error)} Give cpu, or leave --device out"
        ) from error
    return device


def load_members(
    sources: Sequence[str], *, dtype: str, device_map: str | None, revisions: Sequence[str | None] | None
) -> list[Member]:
    """Loads members, and shows progress if stderr is a terminal.

    Args:
        sources (`Sequence[str]`): folders or Hub ids.
        dtype, device_map: as in `AutoModelForCausalLM.from_pretrained`.
        revisions (`Sequence[str | None]`, *optional*): one per member.

    Raises:
        MemberError: a member that cannot be loaded or used.
    """
    is_terminal = sys.stderr.isatty()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # no logs of retries
    set_verbosity_error()  # no reports of many lines beside the one-line error
    if not is_terminal:
        disable_progress_bar()
        disable_progress_bars()
    members = []
    for index, (source, revision) in enumerate(zip(sources, revisions or [None] * len(sources), strict=True)):
        if is_terminal:
            print(f"loading {source} ({index + 1} of {len(sources)})", file=sys.stderr)
        members.append(Member.load(source, dtype=dtype, device_map=device_map, revision=revision))
    return members
