"""A member that reads the rows of a batch, each in its own number of ids, and keeps what it has read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from hf_rlae.errors import NonFiniteError
from hf_rlae.members import LazyMember, Member, choose_runner
from hf_rlae.members.paths import Chain, MakeRunner, Path
from hf_rlae.members.readings.state import common_length

_LATELY = 32
"""Number of last ids that may still change without being read from the start, in recurrent members."""


def runner_of(member: Member) -> MakeRunner:
    """What runs a member on ragged rows; it is tried first."""
    member.prepare()
    return member.runner if isinstance(member, LazyMember) else choose_runner(member)


class Reader:
    """One member in one batch.

    Args:
        member (`Member`): whose model is run.
        runner (`MakeRunner`): see `runner_of`.
        prompts (`Sequence[tuple[int, ...]]`): its own ids of the prompts.

    Attributes:
        num_tokens (`list[int]`): number of tokens per row for which the member ran: columns that it read, from the
            prompt's last one on.
    """

    def __init__(self, member: Member, runner: MakeRunner, prompts: Sequence[tuple[int, ...]]) -> None:
        self.member = member
        self.prompts = list(prompts)
        self.num_tokens = [0] * len(prompts)
        self._runner = runner(member, 0)
        self._seen: list[tuple[int, ...]] = [()] * len(prompts)

    @property
    def forward_calls(self) -> int:
        """Number of forward passes so far."""
        return self._runner.forward_calls

    def fits(self, row: int, ids: Sequence[int]) -> bool:
        """Whether the prompt and the ids of a completion are within the member's context."""
        limit = self.member.context_length
        return limit is None or len(self.prompts[row]) + len(ids) <= limit

    @torch.no_grad()
    def read(self, completions: Mapping[int, tuple[int, ...]], wants: Mapping[int, int]) -> dict[int, torch.Tensor]:
        """Reads completions of some rows behind their prompts.

        Args:
            completions (`Mapping[int, tuple[int, ...]]`): the ids by row; what is unchanged is not read again.
            wants (`Mapping[int, int]`): the number of last ids after which logits are returned, by row; the prompt's
                last id counts.

        Returns:
            `dict[int, torch.Tensor]`: logits of shape `(want, V_m)` in fp32, by row.

        Raises:
            NonFiniteError: logits that are NaN.
        """
        paths: list[Path | None] = [None] * len(self.prompts)
        for row in sorted(completions):
            whole, want = (*self.prompts[row], *completions[row]), wants[row]
            seen = self._seen[row]
            known = len(seen) if whole[: len(seen)] == seen else common_length(seen, whole)
            keep = min(known, len(whole) - want)
            settled = max(0, len(whole) - want - _LATELY)
            paths[row] = Path(Chain(None, whole[:settled]), whole[settled:], keep, want)
            self.num_tokens[row] += len(whole) - max(keep, len(self.prompts[row]) - 1)
            self._seen[row] = whole
        logits = self._runner.run(paths).logits.float()
        if bool(logits.isnan().any()):
            raise NonFiniteError(
                f"member {self.member.name} returned logits that are NaN; its text cannot be continued"
            )
        parts = logits.split([path.want for path in paths if path is not None])
        return dict(zip(sorted(completions), parts, strict=True))
