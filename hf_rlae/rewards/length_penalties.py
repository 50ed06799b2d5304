"""A penalty for completions that come near the maximum length or exceed it."""

from __future__ import annotations

from hf_rlae.checks import COUNT, Bounds, check_choice, check_number
from hf_rlae.rewards.contract import Batch, Reward


class LengthPenalty(Reward):
    """A reward from -1 to 0: 0 for short completions, falling linearly to -1 at `max_length`.

    `r = min(0, max(-1, (max_length - buffer - length) / buffer))`.

    Source: DAPO (arXiv 2503.14476, eq. 13), where `max_length` is L_max and `buffer` L_cache.

    Args:
        max_length (`int`): at least 1; the length from which the penalty is -1.
        buffer (`int`): 1 .. `max_length`; the penalty grows over this many tokens or characters.
        unit (`str`, defaults to `"tokens"`): `"tokens"` counts `completion_ids`, which must be given;
            `"characters"` counts the text.
        name (`str`, defaults to `"length_penalty"`): its `__name__`.

    Raises:
        ConfigError: a number or unit is out of range.

    Example:

    >>> penalty = length_penalty(max_length=8, buffer=4)
    >>> penalty(prompts=["?"] * 4, completions=["..."] * 4, completion_ids=[[1] * n for n in (4, 5, 8, 99)])
    [0.0, -0.25, -1.0, -1.0]
    """

    measure = "length_penalty"

    def __init__(self, max_length: int, buffer: int, unit: str = "tokens", name: str = "length_penalty") -> None:
        super().__init__(name)
        check_number("max_length", max_length, COUNT)
        check_number("buffer", buffer, Bounds(1, max_length, is_whole=True, note="max_length is the most"))
        check_choice("unit", unit, ("tokens", "characters"))
        self.max_length, self.buffer, self.unit = max_length, buffer, unit

    def score_texts(self, texts: list[str], batch: Batch) -> list[float | None]:
        """See `Reward.score_texts`."""
        measured = texts if self.unit == "characters" else batch.required("completion_ids")
        start = self.max_length - self.buffer
        return [min(0.0, max(-1.0, (start - len(each)) / self.buffer)) for each in measured]


length_penalty = LengthPenalty
