"""The type of `reward_funcs`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel

RewardFunc = str | PreTrainedModel | Callable[..., Any]
"""A registered name, dotted path, Hub id or folder; a reward model; or a function in TRL's form."""
