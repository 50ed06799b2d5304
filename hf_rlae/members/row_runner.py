"""One forward pass per ragged row, for models that do not accept a 4-D mask."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_rlae.members.hidden_states import with_means
from hf_rlae.members.images import PromptImages
from hf_rlae.members.member import Member
from hf_rlae.members.paths import Path, PathOutput
from hf_rlae.members.recurrence import returned_state
from hf_rlae.members.shared_run import accepted_arguments, captured_head_input


@dataclass(frozen=True)
class _RowState:
    """The state of the model after the first ids of a row.

    Attributes:
        length (`int`): number of these ids.
        cache (`dict[str, Any]`): the cache or state that the model continues from; never written to.
        newest (`torch.Tensor` of shape `(n, H_m)`, *optional*): the newest hidden states, if means are needed.
    """

    length: int
    cache: dict[str, Any]
    newest: torch.Tensor | None


class RowRunner:
    """One forward pass per row, with the model's own cache: for models that do not accept a 4-D mask.

    Recurrent states cannot go back. So the state after every run is kept as long as a later path may start from it:
    the newest state within the settled ids, and all states after it.

    Args:
        member (`Member`), hidden_tokens (`int`, defaults to 0): see `BatchRunner`.
        images (`PromptImages`, *optional*): the images in the prompts of all rows.
    """

    kind = "rows"

    def __init__(self, member: Member, hidden_tokens: int = 0, images: PromptImages | None = None) -> None:
        self.member = member
        self.hidden_tokens = hidden_tokens
        self.images = images
        self.forward_calls = 0
        self._states: dict[int, tuple[_RowState, ...]] = {}

    def run(self, paths: Sequence[Path | None]) -> PathOutput:
        """Reads each row's path; rows with `None` do not change (see `BatchRunner.run`)."""
        logits, states = [], []
        for row, path in enumerate(paths):
            if path is None:
                continue
            row_logits, row_states = self._run_row(row, path)
            logits.append(row_logits)
            if row_states is not None:
                states.append(row_states)
        return PathOutput(torch.cat(logits), torch.cat(states) if states else None)

    def _run_row(self, row: int, path: Path) -> tuple[torch.Tensor, torch.Tensor | None]:
        usable = min(path.keep, path.length - path.want)
        known = [state for state in self._states.get(row, ()) if state.length <= usable]
        begin = known[-1] if known else _RowState(0, {}, None)
        cache = copy.deepcopy(begin.cache)
        ids = path.after(begin.length)
        at_once = begin.length == 0 or self.member.recurrence.reads_chunks
        images = None if self.images is None else self.images.of_row(row)
        done = begin.length
        pieces: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        for piece in [ids] if at_once else [(i,) for i in ids]:
            more = {} if images is None else images.arguments(done + len(piece), done)
            cache, logits, states = self._forward({**cache, **more}, piece, min(path.want, len(piece)))
            pieces.append((logits, states))
            done += len(piece)
        hidden = [states for _, states in pieces if states is not None]
        newest: torch.Tensor | None = None
        if self.hidden_tokens > 1 and hidden:
            together = torch.cat(hidden if begin.newest is None else [begin.newest, *hidden])
            newest = together[-self.hidden_tokens :]
            hidden = [with_means(together[None], None, self.hidden_tokens, path.want)[0]]
        known.append(_RowState(path.length, cache, newest))
        settled = [state for state in known if state.length <= path.settled.length]
        self._states[row] = tuple(settled[-1:] + known[len(settled) :])
        logits = torch.cat([logits for logits, _ in pieces[-path.want :]])[-path.want :]
        return logits, torch.cat(hidden)[-path.want :] if hidden else None

    def _forward(
        self, given: dict[str, Any], ids: Sequence[int], want: int
    ) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor | None]:
        member = self.member
        accepted = accepted_arguments(type(member.model).forward)
        arguments: dict[str, Any] = {**given, "use_cache": True}
        arguments["input_ids"] = torch.tensor([list(ids)], dtype=torch.long, device=member.device)
        if "logits_to_keep" in accepted:
            arguments["logits_to_keep"] = len(ids) if self.hidden_tokens > 1 else want
        num_logits = want if self.hidden_tokens > 1 else 0
        with captured_head_input(member, self.hidden_tokens > 0, num_logits) as captured:
            outputs = member.model(**arguments, return_dict=True)
        self.forward_calls += 1
        hidden = captured[-1][0] if captured else None
        if hidden is not None and not num_logits:
            hidden = hidden[-want:]
        return returned_state(outputs), outputs.logits[0, -want:], hidden

    def ahead(self) -> RowRunner:
        """See `Runner`; states are never written to, so that both can share them."""
        twin = RowRunner(self.member, hidden_tokens=1, images=self.images)
        twin._states = dict(self._states)
        return twin

    def reorder(self, rows: torch.Tensor) -> None:
        """Row `i` becomes the former row `rows[i]`."""
        if self.images is not None:
            self.images = self.images.select(rows.tolist())
        # states are never written to, so rows may share one
        self._states = {i: self._states[row] for i, row in enumerate(rows.tolist()) if row in self._states}

    def reset(self) -> None:
        """Drops everything that was read."""
        self._states.clear()
