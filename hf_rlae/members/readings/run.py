"""The run of one member in one call, if members have different tokenizers."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_rlae.errors import present
from hf_rlae.members.member import Member
from hf_rlae.members.paths import Chain, MakeRunner, Path, Runner, rows_of
from hf_rlae.members.ragged_run import BatchRunner
from hf_rlae.members.readings.probability_store import ProbabilityStore
from hf_rlae.members.readings.rows import ReadingRows
from hf_rlae.members.readings.state import Reading, RowReadings, Update, common_length
from hf_rlae.members.readings.step import ReadingStep
from hf_rlae.members.readings.union_distribution import UnionDistribution
from hf_rlae.members.readings.update_sums import InnerSums, PendingSums, UpdateSums, weigh_inside
from hf_rlae.members.row_runner import RowRunner
from hf_rlae.transfers import upload
from hf_rlae.vocabulary import Alignment, ByteVocabulary

FURTHER_END = 0.001
"""At grains other than tokens, ends with other last tokens and at least this probability are read too. Source: ours."""


@dataclass(frozen=True)
class Launched:
    """An update whose forward pass was started.

    Attributes:
        steps (`list[ReadingStep]`): the rows whose readings get new weights.
        inner (`InnerSums`): the sums that these weights need.
    """

    steps: list[ReadingStep]
    inner: InnerSums


class ReadingsRun(ReadingRows):
    """One member's state in one call, where members have different tokenizers (see `MemberRun`).

    A member cannot know whether its own token ended where a token of another tokenizer ended. So it keeps at most
    `max_readings` readings `(ids, tail, a)` per row: `bytes(ids) + tail` is the text, without the bytes that the member
    cannot represent, and the probabilities `a` sum to 1.

    Source: ours; see "Readings" in docs/concepts.md. Candidates with an unfinished token are those of GenLM bytes
    (`genlm/genlm-bytes`), which turns one model into a model of bytes; the update by who proposed a token is ours.

    Args:
        member (`Member`): the member whose model is run.
        vocabulary (`ByteVocabulary`): its tokens as bytes.
        alignment (`Alignment`): its vocabulary onto the union vocabulary.
        max_readings (`int`, defaults to 4): number of readings to keep per row, those with the largest `a`; twice as
            many at other grains than tokens, where more ways of writing the text stay open.
        min_reading (`float`, defaults to 1e-4): readings with a smaller `a` are dropped.
        use_cache (`bool`, defaults to `True`): whether to keep keys and values from step to step, or to run whole rows
            each time.
        runner (`Callable`, *optional*): makes the `Runner` of the model on ragged rows; by default `RowRunner` for
            recurrent members, else `BatchRunner`.
        hidden_tokens (`int`, defaults to 0): which hidden states are kept with every reading (see `BatchRunner`).

    Attributes:
        store (`ProbabilityStore`): the member's next-token probabilities after every reading.
        newest (`deque[tuple[Sequence[int], torch.FloatTensor]]`): the last forward passes: the row of every column that
            they read, and the log of its sum of exponentials.
    """

    def __init__(
        self,
        member: Member,
        vocabulary: ByteVocabulary,
        alignment: Alignment,
        max_readings: int = 4,
        min_reading: float = 1e-4,
        use_cache: bool = True,
        runner: MakeRunner | None = None,
        hidden_tokens: int = 0,
    ) -> None:
        super().__init__()
        self.member = member
        self.vocabulary = vocabulary
        self.alignment = alignment
        self.max_readings = max_readings
        self.min_reading = min_reading
        self.use_cache = use_cache
        if runner is None:
            runner = RowRunner if member.is_recurrent else BatchRunner
        self.runner: Runner = runner(member, hidden_tokens)
        self.device = member.device
        self._excluded = alignment.excluded_ids.to(self.device)
        self.store = ProbabilityStore(vocabulary.size, self.device)
        self._distribution = UnionDistribution(alignment, self.store)
        self.newest: deque[tuple[Sequence[int], torch.Tensor]] = deque(maxlen=8)
        self._further_end = 1.0
        if alignment.columns is not None:
            self.max_readings, self._further_end = 2 * max_readings, FURTHER_END
        self._held: set[int] = set()  # store entries of further ends in the present update
        self._warned = False

    @property
    def forward_calls(self) -> int:
        """Number of forward passes so far."""
        return self.runner.forward_calls

    # -- rows ---------------------------------------------------------------------------------------------

    def begin(self, prompts: Sequence[Sequence[int]]) -> None:
        """Sets prompts and reads them (see `admit`)."""
        self.admit(prompts)
        self.catch_up(range(len(self.rows)))

    def catch_up(self, rows: Sequence[int] | range) -> None:
        """Reads all pending text of the given rows at once, as text that no member proposed (r = q = 0)."""
        fresh = [row for row in rows if self.rows[row].unread and not self.rows[row].is_exhausted]
        if fresh and len(fresh) == len(self.rows):
            self._begin_distinct()
        elif fresh:
            self._begin(fresh)
        waiting = [row for row in rows if self.rows[row].pending and self.rows[row].readings]
        if waiting:
            updates: list[Update | None] = [None] * len(self.rows)
            for row in waiting:
                updates[row] = Update(b"")
            self.advance(updates)

    def _begin_distinct(self) -> None:
        """Reads the prompts of all rows; equal prompts are read once."""
        images = getattr(self.runner, "images", None)
        of_rows = [()] * len(self.rows) if images is None else images.rows
        kinds: dict[tuple[Any, ...], int] = {}
        places = [
            kinds.setdefault((row.unread, row.pending, own), len(kinds))
            for row, own in zip(self.rows, of_rows, strict=True)
        ]
        if len(kinds) < len(places):
            firsts = [places.index(kind) for kind in range(len(kinds))]
            self.rows = [self.rows[first] for first in firsts]
            if images is not None:
                self.runner.reorder(torch.tensor(firsts))
        self._begin(list(range(len(self.rows))))
        if len(kinds) < len(places):
            self.rows = [self.rows[kind] for kind in places]
            self.runner.reorder(torch.tensor(places))
            found = [([places.index(kind) for kind in rows], log_z) for rows, log_z in self.newest]
            self.newest = deque(found, self.newest.maxlen)

    def drop_non_finite(self) -> None:
        """Lets rows with probabilities that are NaN drop out, as if the text had outgrown the context."""
        for row, state in enumerate(self.rows):
            entries = torch.tensor([reading.entry for reading in state.readings], dtype=torch.long)
            is_finite = all(math.isfinite(reading.weight) for reading in state.readings)
            if not is_finite or not bool(self.store.log_z[upload(entries, self.device)].isfinite().all()):
                self.rows[row] = RowReadings(is_exhausted=True)

    def reorder(self, rows: torch.Tensor) -> None:
        """See `MemberRun`."""
        if self.rows:
            super().reorder(rows)
            self.runner.reorder(rows)

    def reset(self) -> None:
        """See `MemberRun`."""
        super().reset()
        self.runner.reset()

    # -- next tokens --------------------------------------------------------------------------------------

    def distribution(self, in_place: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """The member's next-token probabilities over the union vocabulary.

        Args:
            in_place (`bool`): whether the next call may write into the tensor that this one returns.

        Returns:
            see `UnionDistribution.of`.
        """
        return self._distribution.of(self.rows, in_place)

    def observation(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Next-token log-probabilities `(B, V_m)` and hidden states `(B, H)` of the reading with the largest `a`."""
        entries = upload([row.readings[0].entry if row.readings else 0 for row in self.rows], self.device)
        hidden = None if self.store.hidden is None else self.store.hidden[entries]
        return self.store.probs[entries, :-1].log(), hidden

    def begin_ahead(self, row: int) -> tuple[Path, bytes, int] | None:
        """The ids, the tail and the store entry of the reading that a look-ahead continues; `None` if there is none."""
        state = self.rows[row]
        if not state.readings:
            return None
        reading = state.readings[0]
        keep = self._keep(state, reading.ids, state.settled.length + len(reading.ids))
        return Path(state.settled, reading.ids, keep, 0), reading.tail, reading.entry

    # -- new text -----------------------------------------------------------------------------------------

    def measure(self, raws: Sequence[bytes | None]) -> PendingSums:
        """The sums of probabilities that an update of the readings needs, for all rows in one gather.

        Args:
            raws (`Sequence[bytes | None]`): the new bytes of each row; `None` for rows without new text.

        Returns:
            `PendingSums`: their `read()` gives the sums for `advance`.
        """
        return PendingSums(self.rows, raws, self.alignment, self.store, self._distribution)

    def advance(self, updates: Sequence[Update | None], sums: UpdateSums | None = None) -> None:
        """Takes new text in: chooses the path of every row, reads it, and updates the readings.

        Implements "After a token" in docs/concepts.md, "Readings". Rows whose update is `None` do not change.

        Args:
            updates (`Sequence[Update | None]`): one per row.
            sums (`UpdateSums`, *optional*): the sums for the bytes of `updates`; computed here by default.
        """
        if sums is None:
            sums = self.measure([None if update is None else update.raw for update in updates]).read()
        launched = self.launch(updates, sums)
        weigh_inside([launched.inner])
        self.settle(launched)

    def launch(self, updates: Sequence[Update | None], sums: UpdateSums) -> Launched:
        """The first part of `advance`: everything up to the forward pass, which the device may still be working on.

        Args:
            updates (`Sequence[Update | None]`), sums (`UpdateSums`): see `advance`.

        Returns:
            `Launched`: for `weigh_inside`, which can wait for several members at once, and then `settle`.
        """
        numbers = sums.numbers
        ended: list[tuple[int, tuple[int, ...]]] = []  # rows whose only reading can only end, with a single token
        steps = []
        for row in sums.rows:
            update, found = present(updates[row], "the update of a row with sums"), sums.targets[row]
            if len(found) == 1:
                reading, target, _, at = found[0]
                if len(target.ends) == 1 and not target.stays and numbers[at] > 0:
                    ended.append((row, reading.ids + target.ends))
                    continue
            if found:
                step = ReadingStep(row, update)
                step.choose(found, numbers, self.min_reading, self._further_end)
                steps.append(step)
        self._read_further(steps)
        self._read(steps, ended)
        return Launched(steps, InnerSums(steps, self.store))

    def settle(self, launched: Launched) -> None:
        """The last part of `advance`: the new readings."""
        self._renew(launched.steps)

    def _path(self, step: ReadingStep) -> Path | None:
        """The path that the row reads; `None` if it needs no forward pass."""
        if step.base is None or not step.new_ids:
            return None
        want = len(step.new_ids) - step.first + 1 if step.canonical is not None else 1
        return self._path_to(self.rows[step.row], step.base.ids + step.new_ids, want)

    def _path_to(self, state: RowReadings, ids: tuple[int, ...], want: int) -> Path:
        return Path(state.settled, ids, self._keep(state, ids, state.settled.length + len(ids) - want), want)

    def _keep(self, state: RowReadings, ids: tuple[int, ...], most: int) -> int:
        if not self.use_cache:
            return 0
        kept = state.kept
        if kept >= state.settled.length:
            kept = min(kept, state.settled.length + common_length(state.cached, ids))
        return min(kept, most)

    def cleaned(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits in fp32 on the member's device, with -inf for the ids that are not part of the mixture."""
        logits = logits.to(device=self.device, dtype=torch.float32)
        return logits.index_fill(-1, self._excluded, -torch.inf) if len(self._excluded) else logits

    @torch.no_grad()  # gradients reach the weights of the mixture, never the members
    def _run(self, paths: list[Path | None]) -> list[int]:
        """Runs the model; returns the store entries of the last `want` columns of all paths, row by row."""
        if not self.use_cache:
            self.runner.reset()
        output = self.runner.run(paths)
        logits = output.logits.float()
        if len(self._excluded):
            logits.index_fill_(-1, self._excluded, -torch.inf)
        return self._put(logits, output.hidden, rows_of(paths))

    def _put(self, logits: torch.Tensor, hidden: torch.Tensor | None, rows: Sequence[int]) -> list[int]:
        """Stores the softmax of logits; `rows` has the row of each of them. Returns their entries."""
        entries = self.store.put(logits, hidden, {0, *self._held, *self.entries()})
        self.newest.append((rows, self.store.newest))
        return entries

    def _fits(self, step_row: int, path: Path | None) -> bool:
        limit = self.member.context_length
        if path is None or limit is None or path.length <= limit:
            return True
        self.rows[step_row] = RowReadings(is_exhausted=True)
        if not self._warned:
            self._warned = True
            self.member.warn_of_outgrown_context()
        return False

    def _read_further(self, steps: Sequence[ReadingStep]) -> None:
        """Reads the ends beside the most likely ones, one per row at a time."""
        self._held = set()
        limit = self.member.context_length
        for step in steps:
            if limit is not None and step.further:
                begun = self.rows[step.row].settled.length
                step.further = [further for further in step.further if begun + len(further.ids) <= limit]
        for rank in range(max((len(step.further) for step in steps), default=0)):
            paths: list[Path | None] = [None] * len(self.rows)
            chosen = [step for step in steps if rank < len(step.further)]
            for step in chosen:
                paths[step.row] = self._path_to(self.rows[step.row], step.further[rank].ids, 1)
            entries = self._run(paths) if chosen else []
            for step, entry in zip(sorted(chosen, key=lambda step: step.row), entries, strict=True):
                further, old = step.further[rank], self.rows[step.row]
                further.entry = entry
                self._held.add(entry)
                self.rows[step.row] = old.cached_to(further.ids, old.settled.length + len(further.ids))

    def _read(self, steps: list[ReadingStep], ended: Sequence[tuple[int, tuple[int, ...]]]) -> None:
        """Reads the paths of all rows; rows that no longer fit the model's context are removed from `steps`.

        Args:
            steps (`list[ReadingStep]`): rows whose readings get their weights afterwards.
            ended (`Sequence[tuple[int, tuple[int, ...]]]`): rows whose only reading ends with a single token, and the
                ids of that reading after the settled ones.
        """
        paths: list[Path | None] = [None] * len(self.rows)
        for row, ids in ended:
            ending = self._path_to(self.rows[row], ids, 1)
            if self._fits(row, ending):
                paths[row] = ending
        for step in list(steps):
            path = self._path(step)
            if self._fits(step.row, path):
                paths[step.row] = path
            else:
                steps.remove(step)
        if not any(paths):
            return
        entries = self._run(paths)
        begins: list[int] = []
        at = 0
        for wanted in paths:
            begins.append(at)
            at += 0 if wanted is None else wanted.want
        for step in steps:
            path = paths[step.row]
            if path is not None:
                step.entries = entries[begins[step.row] : begins[step.row] + path.want]
        for row, ids in ended:
            if paths[row] is not None:
                self.rows[row] = self._ended(row, ids, entries[begins[row]])

    def _renew(self, steps: list[ReadingStep]) -> None:
        """Builds the new rows: keeps the readings with the largest weights and settles the ids that they share."""
        for step in steps:
            candidates = step.candidates(self.rows[step.row].pending)
            if len(candidates) > 1:
                heaviest = max(candidates, key=lambda entry: entry[2])
                candidates = [entry for entry in candidates if entry[2] >= self.min_reading] or [heaviest]
                candidates.sort(key=lambda entry: -entry[2])
                candidates = candidates[: self.max_readings]
            total = sum(entry[2] for entry in candidates)
            readings = [
                Reading(ids, tail, weight / total if len(candidates) > 1 else 1.0, entry, lent)
                for ids, tail, weight, entry, lent in candidates
            ]
            read = step.base.ids + step.new_ids if step.base is not None and step.new_ids else ()
            self.rows[step.row] = self._settled(step.row, read, readings)

    def _ended(self, row: int, ids: tuple[int, ...], entry: int) -> RowReadings:
        """The row with a single reading that has just ended; `ids` are now in the cache."""
        return self.rows[row].ended(ids, entry)

    def _settled(self, row: int, read: tuple[int, ...], readings: list[Reading]) -> RowReadings:
        """The row with new readings; `read` are the ids that are now in the cache."""
        return self.rows[row].renewed(read, readings)

    def _begin(self, fresh: list[int]) -> None:
        """Reads the prompts of the rows `fresh`, together with their pending text."""
        paths: list[Path | None] = [None] * len(self.rows)
        plans: list[tuple[int, tuple[int, ...]]] = []
        for row in fresh:
            state = self.rows[row]
            following: tuple[int, ...] = ()
            if state.pending:
                target = self.alignment.target(b"", state.pending)
                following = target.ends[:1] or target.canonical.ids
            path = Path(Chain(), state.unread + following, 0, len(following) + 1)
            if self._fits(row, path):
                paths[row] = path
                plans.append((row, following))
        if not plans:
            return
        entries = self._run(paths)
        kept: list[list[int]] = []
        updates: list[Update | None] = [None] * len(self.rows)
        column = 0
        for row, following in plans:
            old = self.rows[row]
            kept.append(entries[column : column + len(following) + 1])
            column += len(following) + 1
            self.rows[row] = RowReadings(
                Chain(None, old.unread),
                (Reading((), b"", 1.0, kept[-1][0]),),
                old.pending,
                (),
                following,
                len(old.unread) + len(following),
            )
            updates[row] = Update(b"") if following else None
        if not any(updates):
            return
        sums = self.measure([None if update is None else update.raw for update in updates]).read()
        steps = []
        for (row, following), own_entries in zip(plans, kept, strict=True):
            update = updates[row]
            if update is None:
                continue
            step = ReadingStep(row, update)
            step.choose(sums.targets[row], sums.numbers, self.min_reading)
            step.entries = own_entries[max(step.first, 1) :]
            if step.new_ids in ((), following):  # else the text stays pending, and `catch_up` reads the other path
                steps.append(step)
        weigh_inside([InnerSums(steps, self.store)])
        self._renew(steps)
