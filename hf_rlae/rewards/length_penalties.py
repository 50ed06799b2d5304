"""A penalty for texts that come near the longest length allowed, or go past it."""

from __future__ import annotations

from hf_rlae.errors import ConfigError
from hf_rlae.rewards.contract import Batch, Reward

_UNITS = ("tokens", "characters")


class LengthPenalty(Reward):
    """See `length_penalty`."""

    measure = "length_penalty"

    def __init__(self, max_length: int, buffer: int, unit: str = "tokens", name: str = "length_penalty") -> None:
        super().__init__(name)
        for field, value in (("max_length", max_length), ("buffer", buffer)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{field} must be a whole number above 0, got {value!r}")
        if buffer > max_length:
            raise ConfigError(
                f"buffer={buffer} is larger than max_length={max_length}; the penalty begins at their difference"
            )
        if unit not in _UNITS:
            raise ConfigError(f"unit must be one of {', '.join(_UNITS)}, got {unit!r}")
        self.max_length, self.buffer, self.unit = max_length, buffer, unit

    def score_texts(self, texts: list[str], batch: Batch) -> list[float | None]:
        """See `Reward.score_texts`."""
        measured = texts if self.unit == "characters" else batch.required("completion_ids")
        start = self.max_length - self.buffer
        return [min(0.0, max(-1.0, (start - len(each)) / self.buffer)) for each in measured]


def length_penalty(max_length: int, buffer: int, unit: str = "tokens", name: str = "length_penalty") -> LengthPenalty:
    """A reward from -1 to 0: 0 for texts that are short enough, falling to -1 at `max_length` and staying there.

    `r = min(0, max(-1, (max_length - buffer - length) / buffer))`.

    Source: DAPO (arXiv 2503.14476, eq. 13), where `max_length` is L_max and `buffer` L_cache.

    Args:
        max_length (`int`): above 0; where the penalty is complete.
        buffer (`int`): 1 .. `max_length`; over how many tokens or characters it grows.
        unit (`str`, defaults to `"tokens"`): `"tokens"` counts `completion_ids`, which have to be given;
            `"characters"` counts the text.
        name (`str`, defaults to `"length_penalty"`): its `__name__`.

    Returns:
        `Reward`: the reward.

    Raises:
        ConfigError: a number or unit that cannot be used.

    Example:

    >>> penalty = length_penalty(max_length=8, buffer=4)
    >>> penalty(prompts=["?"] * 4, completions=["..."] * 4, completion_ids=[[1] * n for n in (4, 5, 8, 99)])
    [0.0, -0.25, -1.0, -1.0]
    """
    return LengthPenalty(max_length, buffer, unit, name)
