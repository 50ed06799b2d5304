"""What a member believes about token boundaries in text that another tokenizer wrote."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from hf_rlae.members.member import Member
from hf_rlae.members.ragged_run import Chain, Path, RowRunner, SlotRunner
from hf_rlae.members.readings.probability_store import ProbabilityPool, flat
from hf_rlae.members.readings.state import Reading, Row, Update, common_length, taken_back
from hf_rlae.members.readings.step import ReadingStep
from hf_rlae.members.readings.union_distribution import UnionDistribution
from hf_rlae.members.readings.update_sums import Measurement
from hf_rlae.vocabulary import Alignment, ByteVocabulary

logger = logging.getLogger(__name__)


class ReadingsRelay:
    """One member in one call, following text that other tokenizers helped to write.

    A member with another tokenizer cannot know whether its own token ended where another one's did. It keeps at
    most `max_readings` readings `(ids, tail, a)` a row: for each, `bytes(ids) + tail` is the text, less what the
    member cannot represent, and the `a` sum to 1.

    Source: ours; see "Readings" in the documentation of concepts.

    Args:
        member (`Member`): whose model is run.
        vocabulary (`ByteVocabulary`): its tokens.
        alignment (`Alignment`): its vocabulary onto the union vocabulary.
        max_readings (`int`): the heaviest so many are kept.
        min_reading (`float`): lighter ones are dropped.
        use_cache (`bool`): keep keys and values from step to step, or run whole rows each time.
        runner (`SlotRunner` or `RowRunner` class): how the model is run on ragged rows.
        hidden_tokens (`int`): what hidden states are kept of every reading, for policies; see `SlotRunner`.

    Attributes:
        rows (`list[Row]`): one a row of the batch.
        pool (`ProbabilityPool`): the member's next-token probabilities after every reading.
        forward_calls (`int`): forward passes so far.
    """

    def __init__(
        self,
        member: Member,
        vocabulary: ByteVocabulary,
        alignment: Alignment,
        max_readings: int = 4,
        min_reading: float = 1e-4,
        use_cache: bool = True,
        runner: type[SlotRunner] | type[RowRunner] | None = None,
        hidden_tokens: int = 0,
    ) -> None:
        self.member = member
        self.vocabulary = vocabulary
        self.alignment = alignment
        self.max_readings = max_readings
        self.min_reading = min_reading
        self.use_cache = use_cache
        if runner is None:
            runner = RowRunner if member.is_recurrent else SlotRunner
        self.runner = runner(member, hidden_tokens)
        self.rows: list[Row] = []
        self.device = member.device
        self._silent = alignment.silent_ids.to(self.device)
        self.pool = ProbabilityPool(vocabulary.size, self.device)
        self._said = UnionDistribution(alignment, self.pool)
        self._warned = False
        self._history: dict[int, list[Row]] | None = None
        self._column = -1

    @property
    def forward_calls(self) -> int:
        """Forward passes so far."""
        return self.runner.forward_calls

    # -- rows ---------------------------------------------------------------------------------------------

    def admit(self, prompts: Sequence[Sequence[int] | None]) -> None:
        """Hands the member its prompts without reading them; `None` rows stay as they are.

        Args:
            prompts: one list of the member's own ids a row.
        """
        if not self.rows:
            self.rows = [Row() for _ in prompts]
        for row, ids in enumerate(prompts):
            if ids is not None:
                self.rows[row] = Row(unread=tuple(ids))

    def begin(self, prompts: Sequence[Sequence[int]]) -> None:
        """Hands the member its prompts and reads them (see `admit`)."""
        self.admit(prompts)
        self.catch_up(range(len(self.rows)))

    def defer(self, row: int, raw: bytes) -> None:
        """Adds text that is read when the member is next needed."""
        old = self.rows[row]
        self.rows[row] = Row(
            old.settled, old.readings, old.pending + raw, old.unread, old.cached, old.kept, old.is_exhausted
        )

    def catch_up(self, rows: Sequence[int] | range) -> None:
        """Reads what the given rows have not read yet at once: their bytes are nobody's proposal."""
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
        """Reads the prompts of all rows, each prompt once; rows that share it share what has been read."""
        kinds: dict[tuple[tuple[int, ...], bytes], int] = {}
        places = [kinds.setdefault((row.unread, row.pending), len(kinds)) for row in self.rows]
        if len(kinds) < len(places):
            self.rows = [self.rows[places.index(kind)] for kind in range(len(kinds))]
        self._begin(list(range(len(self.rows))))
        if len(kinds) < len(places):
            self.rows = [self.rows[kind] for kind in places]
            self.runner.reorder(torch.tensor(places))

    def readings(self, row: int) -> list[tuple[tuple[int, ...], bytes, float]]:
        """The readings of a row as `(all ids, tail, a)`, heaviest first."""
        state = self.rows[row]
        return [(state.settled.after(0) + r.ids, r.tail, r.weight) for r in state.readings]

    def reorder(self, rows: torch.Tensor) -> None:
        """Makes row `i` continue what row `rows[i]` was; the number of rows may change."""
        if self.rows:
            chosen = rows.tolist()
            self.rows = [self.rows[row] for row in chosen]
            self.runner.reorder(rows)
            if self._history is not None:
                self._history = {at: [past[row] for row in chosen] for at, past in self._history.items()}

    def record(self) -> None:
        """Keeps the rows of every column of the last step, so that columns can be taken back."""
        if self._history is None:
            self._history = {self._column: list(self.rows)}

    def start_recording(self, column: int) -> None:
        """A step begins with `column`: what lies before the column before it is not needed any more."""
        if self._history is not None:
            self._history = {at: rows for at, rows in self._history.items() if at == column - 1}

    def mark(self, column: int) -> None:
        """The text has been heard up to `column`."""
        self._column = column
        if self._history is not None:
            self._history[column] = list(self.rows)

    def crop(self, length: int) -> bool:
        """Goes back to the first `length` columns; `False` if what was known then was not recorded."""
        if length > self._column:
            return True
        before = (self._history or {}).get(length - 1)
        if before is None or len(before) != len(self.rows):
            return False
        self.rows = [taken_back(now, then) for now, then in zip(self.rows, before, strict=True)]
        self._column = length - 1
        return True

    def reset(self) -> None:
        """Forgets everything that was read."""
        self.rows = []
        self.runner.reset()
        self._column = -1
        if self._history is not None:
            self._history = {}

    @property
    def can_be_silent(self) -> bool:
        """Whether some row may have nothing to say (see `Row.can_be_silent`)."""
        return any(row.can_be_silent for row in self.rows)

    # -- what the member says -----------------------------------------------------------------------------

    def distribution(self, in_place: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """The member's next-token probabilities over the union vocabulary.

        Args:
            in_place (`bool`): whether the next call may write into the tensor that this one returns.

        Returns:
            as `UnionDistribution.of`.
        """
        return self._said.of(self.rows, in_place)

    def observation(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The heaviest reading's next-token log-probabilities `(B, V_m)` and hidden states `(B, H)`."""
        slots = [row.readings[0].slot if row.readings else 0 for row in self.rows]
        hidden = None if self.pool.hidden is None else self.pool.hidden[slots]
        return self.pool.probs[slots, :-1].log(), hidden

    # -- what the member hears ----------------------------------------------------------------------------

    def measure(self, raws: Sequence[bytes | None]) -> Measurement:
        """The sums of probabilities that an update of the readings needs, for all rows in one gather.

        Args:
            raws: the new bytes of each row; `None` leaves the row as it is.

        Returns:
            a `Measurement`, to be handed to `advance` once its numbers are read.
        """
        return Measurement(self.rows, raws, self.alignment, self.pool, self._said)

    def advance(self, updates: Sequence[Update | None], measurement: Measurement | None = None) -> None:
        """Takes new text in: chooses the live path of every row, reads it, and weighs the readings anew.

        Rule 3. Rows that are `None` stay as they are.

        Args:
            updates: one a row.
            measurement (`Measurement`, *optional*): of the bytes of `updates`, with its numbers.
        """
        if measurement is None:
            measurement = self.measure([None if update is None else update.raw for update in updates]).read()
        numbers, entries = measurement.numbers, measurement.entries
        ended: list[tuple[int, tuple[int, ...]]] = []  # rows whose only reading ends by a token, and nothing else
        steps = []
        for row in measurement.rows:
            update, found = updates[row], entries[row]
            assert update is not None
            if len(found) == 1:
                reading, target, _, at = found[0]
                if len(target.ends) == 1 and not target.goes_on and numbers[at] > 0:
                    ended.append((row, reading.ids + target.ends))
                    continue
            if found:
                step = ReadingStep(row, update)
                step.choose(found, numbers, self.min_reading)
                steps.append(step)
        self._read(steps, ended)
        self._weigh_inside(steps)
        self._renew(steps)

    def _path(self, step: ReadingStep) -> Path | None:
        """The path that has to be read, or `None` if the row needs no forward pass."""
        if step.base is None or not step.new_ids:
            return None
        want = len(step.new_ids) - step.first + 1 if step.canonical is not None else 1
        return self._path_to(self.rows[step.row], step.base.ids + step.new_ids, want)

    def _path_to(self, state: Row, ids: tuple[int, ...], want: int) -> Path:
        return Path(state.settled, ids, self._keep(state, ids, state.settled.length + len(ids) - want), want)

    def _keep(self, state: Row, ids: tuple[int, ...], most: int) -> int:
        if not self.use_cache:
            return 0
        kept = state.kept
        if kept >= state.settled.length:
            kept = min(kept, state.settled.length + common_length(state.cached, ids))
        return min(kept, most)

    @torch.no_grad()  # gradients reach the weights of a mixture, never the members
    def _run(self, paths: list[Path | None]) -> list[int]:
        """Runs the model; the pool slots that now hold the probabilities of the wanted columns, row by row."""
        if not self.use_cache:
            self.runner.reset()
        output = self.runner.run(paths)
        logits = output.logits.float()
        if len(self._silent):
            logits.index_fill_(-1, self._silent, -torch.inf)
        used = {0}
        for rows in (self.rows, *(self._history or {}).values()):
            used.update(reading.slot for row in rows for reading in row.readings)
        return self.pool.store(logits, output.hidden, used)

    def _fits(self, step_row: int, path: Path | None) -> bool:
        limit = self.member.context_length
        if path is None or limit is None or path.length <= limit:
            return True
        self.rows[step_row] = Row(is_exhausted=True)
        if not self._warned:
            self._warned = True
            logger.warning(
                "the text has outgrown the context of member %s (%d tokens); it drops out and the others go on",
                self.member.name,
                limit,
            )
        return False

    def _read(self, steps: list[ReadingStep], ended: Sequence[tuple[int, tuple[int, ...]]]) -> None:
        """Runs the live paths of all rows; rows that no longer fit the model's context are taken out of `steps`.

        Args:
            steps (`list[ReadingStep]`): rows whose readings are weighed afterwards.
            ended: rows that end by the ids given, which follow their settled ones, as their only reading.
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
        slots = self._run(paths)
        begins: list[int] = []
        at = 0
        for wanted in paths:
            begins.append(at)
            at += 0 if wanted is None else wanted.want
        for step in steps:
            path = paths[step.row]
            if path is not None:
                step.slots = slots[begins[step.row] : begins[step.row] + path.want]
        for row, ids in ended:
            if paths[row] is not None:
                self.rows[row] = self._settled(row, ids, [Reading(ids, b"", 1.0, slots[begins[row]])])

    def _weigh_inside(self, steps: list[ReadingStep]) -> None:
        """Follows canonical paths id by id: the weights of their inner boundaries and of their end."""
        parts: list[torch.Tensor] = []
        segments: list[int] = []
        plans: list[tuple[ReadingStep, int, int]] = []
        for step in steps:
            canonical = step.canonical
            if canonical is None:
                continue
            if not step.new_ids or (step.first == len(step.new_ids) and canonical.open is None):
                step.end_sum += step.end
                continue
            following = step.new_ids[step.first :]
            plans.append((step, len(segments), len(following)))
            parts.append(flat(following, step.slots, self.pool.width))
            segments += [1] * len(following)
            inner = [boundary for boundary in canonical.boundaries if boundary.after >= step.first]
            for boundary in [*inner, canonical.open] if canonical.open is not None else inner:
                parts.append(boundary.stay_ids + step.place(boundary.after) * self.pool.width)
                segments.append(len(boundary.stay_ids))
        if not plans:
            return
        index = torch.repeat_interleave(torch.arange(len(segments)), torch.tensor(segments))
        sums = self.pool.sums(torch.cat(parts), index, len(segments)).tolist()
        for step, at, count in plans:
            step.follow(sums[at : at + count], sums[at + count :])

    def _renew(self, steps: list[ReadingStep]) -> None:
        """Makes the new rows: keeps the heaviest readings and settles the ids that all of them share."""
        for step in steps:
            candidates = step.candidates(self.rows[step.row].pending)
            if len(candidates) > 1:
                heaviest = max(candidates, key=lambda entry: entry[2])
                candidates = [entry for entry in candidates if entry[2] >= self.min_reading] or [heaviest]
                candidates.sort(key=lambda entry: -entry[2])
                candidates = candidates[: self.max_readings]
            total = sum(entry[2] for entry in candidates)
            readings = [
                Reading(ids, tail, weight / total if len(candidates) > 1 else 1.0, slot)
                for ids, tail, weight, slot in candidates
            ]
            read = step.base.ids + step.new_ids if step.base is not None and step.new_ids else ()
            self.rows[step.row] = self._settled(step.row, read, readings)

    def _settled(self, row: int, read: tuple[int, ...], readings: list[Reading]) -> Row:
        """The row with new readings, whose common ids are settled; `read` are the ids that the cache now holds."""
        old = self.rows[row]
        cached, kept = old.cached, old.kept
        if read:
            cached = read
            kept = old.settled.length + len(cached)
        shared = readings[0].ids
        for reading in readings[1:]:
            shared = shared[: common_length(shared, reading.ids)]
        settled = old.settled.plus(shared)
        if shared:
            for reading in readings:
                reading.ids = reading.ids[len(shared) :]
            if kept >= old.settled.length:
                common = len(shared) if cached is shared else common_length(cached, shared)
                kept = min(kept, settled.length + len(cached)) if common == len(shared) else old.settled.length + common
            cached = cached[len(shared) :]
        return Row(settled, tuple(readings), b"", (), cached, kept)

    def _begin(self, fresh: list[int]) -> None:
        """Reads prompts, together with the pending text of rows that have some."""
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
        slots = self._run(paths)
        kept: list[list[int]] = []
        updates: list[Update | None] = [None] * len(self.rows)
        column = 0
        for row, following in plans:
            old = self.rows[row]
            kept.append(slots[column : column + len(following) + 1])
            column += len(following) + 1
            self.rows[row] = Row(
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
        measurement = self.measure([None if update is None else update.raw for update in updates]).read()
        steps = []
        for (row, following), own_slots in zip(plans, kept, strict=True):
            update = updates[row]
            if update is None:
                continue
            step = ReadingStep(row, update)
            step.choose(measurement.entries[row], measurement.numbers, self.min_reading)
            step.slots = own_slots[max(step.first, 1) :]
            if step.new_ids in ((), following):  # else the path has to be read after all, as any other
                steps.append(step)
        self._weigh_inside(steps)
        self._renew(steps)
