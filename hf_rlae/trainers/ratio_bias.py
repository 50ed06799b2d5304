"""Sampling options that bias the ratios of a policy gradient."""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping
from typing import Any

logger = logging.getLogger(__name__)


def warn_of_biased_ratios(args: Any, neutral: Mapping[str, Container[Any]]) -> None:
    """Warns of options with which completions come from another distribution than the one that is trained.

    Args:
        args: the configuration.
        neutral (`Mapping[str, Container]`): for each option, the values that leave the distribution as it is.
    """
    found = [f"{name}={getattr(args, name)}" for name, values in neutral.items() if getattr(args, name) not in values]
    if found:
        logger.warning(
            "%s: completions are sampled from another distribution than the one that is trained, so importance ratios "
            "are biased; leave these options out unless this is intended",
            ", ".join(found),
        )
