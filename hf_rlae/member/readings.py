"""What a member believes about token boundaries in text that another tokenizer wrote."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch

from hf_rlae.member.member import Member
from hf_rlae.member.runners import Chain, Path, RowRunner, SlotRunner
from hf_rlae.vocabulary import Alignment, Boundary, ByteVocabulary, Canonical, Target

logger = logging.getLogger(__name__)


class Reading:
    """One way in which a member can have arrived at the text so far. Never changed once made.

    Attributes:
        ids (`tuple[int, ...]`): own ids after the row's settled ones.
        tail (`bytes`): bytes that the unfinished next token already has.
        weight (`float`): its probability, `a`; those of a row sum to 1.
        slot (`int`): where the pool keeps the member's next-token probabilities after `ids`.
    """

    __slots__ = ("ids", "slot", "tail", "weight")

    def __init__(self, ids: tuple[int, ...], tail: bytes, weight: float, slot: int) -> None:
        self.ids = ids
        self.tail = tail
        self.weight = weight
        self.slot = slot


@dataclass(frozen=True, slots=True)
class Row:
    """A member's state in one row. Never changed once made, so that beams can share it.

    Attributes:
        settled (`Chain`): ids that all readings share.
        readings (`tuple[Reading, ...]`): heaviest first; empty before the prompt has been read.
        pending (`bytes`): text that the member has not read yet.
        unread (`tuple[int, ...]`): the prompt, while it has not been read.
        cached (`tuple[int, ...]`): the ids after `settled` that are in the key-value cache.
        kept (`int`): how many ids of `settled` and `cached` the cache holds; fewer than `settled` has after a
            path that was left.
        is_exhausted (`bool`): whether the row has outgrown the member's context.
    """

    settled: Chain = field(default_factory=Chain)
    readings: tuple[Reading, ...] = ()
    pending: bytes = b""
    unread: tuple[int, ...] = ()
    cached: tuple[int, ...] = ()
    kept: int = 0
    is_exhausted: bool = False


@dataclass(frozen=True, slots=True)
class Update:
    """What was added to a row's text, and who proposed it.

    Attributes:
        raw (`bytes`): the new bytes.
        r (`float`): the share of the token's probability that members with this tokenizer proposed whole.
        q (`float`): the share that they proposed as the beginning of a longer token; `1 - r - q` is the others'.
    """

    raw: bytes
    r: float = 0.0
    q: float = 0.0


class _Step:
    """One row on its way through an update."""

    __slots__ = (
        "base",
        "canonical",
        "end",
        "end_sum",
        "first",
        "inner",
        "new_ids",
        "row",
        "slots",
        "stays",
        "update",
    )

    def __init__(self, row: int, update: Update) -> None:
        self.row = row
        self.update = update
        self.base: Reading | None = None  # the reading that the live path goes on from
        self.new_ids: tuple[int, ...] = ()
        self.canonical: Canonical | None = None  # set where the path is canonical
        self.first = 0  # how many new ids come before the first wanted column
        self.end = 0.0  # weight of the canonical path so far
        self.end_sum = 0.0
        self.stays: list[tuple[Reading, float]] = []
        self.inner: list[tuple[Boundary, float]] = []
        self.slots: list[int] = []  # where the probabilities of the wanted columns are


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids two rows share at the beginning."""
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count


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
        keep_hidden (`bool`): keep the last hidden states of every reading, for policies.

    Attributes:
        rows (`list[Row]`): one a row of the batch.
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
        keep_hidden: bool = False,
    ) -> None:
        self.member = member
        self.vocabulary = vocabulary
        self.alignment = alignment
        self.max_readings = max_readings
        self.min_reading = min_reading
        self.use_cache = use_cache
        self.keep_hidden = keep_hidden
        if runner is None:
            runner = RowRunner if member.is_recurrent else SlotRunner
        self.runner = runner(member)
        self.rows: list[Row] = []
        self.device = member.device
        self._gather = alignment.gather.to(self.device)
        self._cleared = alignment.cleared.to(self.device)
        self._moved_from = alignment.moved_from.to(self.device)
        self._moved_to = alignment.moved_to.to(self.device)
        self._silent = alignment.silent_ids.to(self.device)
        self._width = vocabulary.size + 1
        self._pool = torch.zeros(1, self._width, device=self.device)
        self._log_z = torch.zeros(1, device=self.device)
        self._hidden: torch.Tensor | None = None
        self._buffer: torch.Tensor | None = None
        self._totals: dict[int, tuple[Reading, int]] = {}
        self._total_values: torch.Tensor | None = None
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
        """Reads what the given rows have not read yet, in one forward pass: their bytes are nobody's proposal."""
        fresh = [row for row in rows if self.rows[row].unread and not self.rows[row].is_exhausted]
        if fresh:
            self._begin(fresh)
        waiting = [row for row in rows if self.rows[row].pending and self.rows[row].readings]
        if waiting:
            updates: list[Update | None] = [None] * len(self.rows)
            for row in waiting:
                updates[row] = Update(b"")
            self.advance(updates)

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
        self.rows = [_taken_back(now, then) for now, then in zip(self.rows, before, strict=True)]
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
        """Whether some row may have nothing to say: it was left by the member, or no reading is at a boundary."""
        return any(all(reading.tail for reading in row.readings) for row in self.rows)

    # -- what the member says -----------------------------------------------------------------------------

    def distribution(self, in_place: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """The member's next-token probabilities over the union vocabulary.

        Rule 1: `P(u) = sum_i a_i / Z_i * sum_{v: bytes after tail_i -> u} p(v | ids_i)`.

        Args:
            in_place (`bool`): whether the next call may write into the tensor that this one returns.

        Returns:
            fp32 probabilities of shape `(B, V)`, each row summing to 1, and the log of the sum of exponentials of the
            heaviest reading's logits, shape `(B,)`. A row in which the member has nothing to say is all 0 with
            `-inf`.
        """
        heads = [row.readings[0] if row.readings else None for row in self.rows]
        self._totals = {}
        if all(head is not None and not head.tail and head.weight == 1.0 for head in heads):
            slots = [head.slot for head in heads if head is not None]
            return self._spread(slots, in_place), self._log_z[slots]
        ends = [next((r for r in row.readings if not r.tail), None) for row in self.rows]
        probs = self._spread([0 if r is None else r.slot for r in ends], in_place)
        weights = torch.tensor([0.0 if r is None else r.weight for r in ends], device=self.device)
        tails = [(i, r) for i, row in enumerate(self.rows) for r in row.readings if r.tail]
        if not tails:
            slots = [0 if head is None else head.slot for head in heads]
            silent = torch.tensor([head is None for head in heads], device=self.device)
            return probs, self._log_z[slots].masked_fill(silent, -torch.inf)
        maps = [self.alignment.tail_map(r.tail) for _, r in tails]
        counts = torch.tensor([len(m.member_ids) for m in maps])
        table = torch.tensor([[r.slot * self._width, i * probs.shape[1], i, k] for k, (i, r) in enumerate(tails)])
        spread = table.repeat_interleave(counts, 0)
        source = (torch.cat([m.member_ids for m in maps]) + spread[:, 0]).to(self.device)
        target = (torch.cat([m.union_ids for m in maps]) + spread[:, 1]).to(self.device)
        segment, row_of = spread[:, 3].to(self.device), table[:, 2].to(self.device)
        values = self._pool.view(-1).take(source)
        z = torch.zeros(len(tails), device=self.device).index_add_(0, segment, values)
        share = torch.tensor([r.weight for _, r in tails], device=self.device).masked_fill(z == 0, 0.0)
        total = weights.index_add(0, row_of, share)
        share = share / (z * total[row_of]).clamp(min=torch.finfo(z.dtype).tiny)
        if any(r is not None for r in ends):
            probs.mul_((weights / total.clamp(min=torch.finfo(z.dtype).tiny))[:, None])
        probs.view(-1).index_add_(0, target, values * share[segment])
        self._totals = {id(r): (r, k) for k, (_, r) in enumerate(tails)}
        self._total_values = z
        slots = [0 if head is None else head.slot for head in heads]
        return probs, self._log_z[slots].masked_fill(total == 0, -torch.inf)

    def observation(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The heaviest reading's next-token log-probabilities `(B, V_m)` and last hidden states `(B, H_m)`."""
        slots = [row.readings[0].slot if row.readings else 0 for row in self.rows]
        hidden = None if self._hidden is None else self._hidden[slots]
        return self._pool[slots, : self._width - 1].log(), hidden

    def _spread(self, slots: Sequence[int], in_place: bool) -> torch.Tensor:
        """The probabilities of slots over the union vocabulary: shape `(B, V)`."""
        probs = self._buffer
        if not in_place or probs is None or len(probs) != len(slots):
            probs = self._pool.new_empty(len(slots), len(self._gather))  # memory that is new costs page faults
            self._buffer = probs if in_place else None
        copied = self.alignment.copied
        for row, slot in enumerate(slots):
            if copied:
                probs[row, :copied] = self._pool[slot, :copied]
            else:
                torch.index_select(self._pool[slot], 0, self._gather, out=probs[row])
        if copied:
            probs[:, copied:] = 0.0
            if len(self._cleared):
                probs.index_fill_(1, self._cleared, 0.0)
        if len(self._moved_from):
            places = torch.tensor(slots, device=self.device)[:, None] * self._width + self._moved_from
            probs.index_add_(1, self._moved_to, self._pool.view(-1).take(places))
        return probs

    # -- what the member hears ----------------------------------------------------------------------------

    def measure(self, updates: Sequence[Update | None]) -> torch.Tensor:
        """The sums of probabilities that an update of the readings needs, for all rows in one gather.

        Args:
            updates: one a row; `None` leaves the row as it is.

        Returns:
            a flat fp32 tensor, to be handed to `proposed` and `advance` as a list.
        """
        parts: list[torch.Tensor] = []
        segments: list[torch.Tensor] = []
        offsets: list[tuple[int, int]] = []
        count = 0
        for row, update in enumerate(updates):
            if update is None:
                continue
            state = self.rows[row]
            raw = state.pending + update.raw
            for reading in state.readings:
                target = self.alignment.target(reading.tail, raw)
                parts.append(target.ids)
                segments.append(target.segments)
                offsets.append((reading.slot * self._width, count))
                count += target.num_segments
                if reading.tail and self._total_of(reading) is None:
                    tokens = self.alignment.tail_map(reading.tail).member_ids
                    parts.append(tokens)
                    segments.append(torch.zeros_like(tokens))
                    offsets.append((reading.slot * self._width, count))
                    count += 1
        if not parts:
            return torch.zeros(0, device=self.device)
        if len(parts) == 1:
            source, segment = parts[0] + offsets[0][0], segments[0]
        else:
            spread = torch.tensor(offsets).repeat_interleave(torch.tensor([len(part) for part in parts]), 0)
            source = torch.cat(parts) + spread[:, 0]
            segment = torch.cat(segments) + spread[:, 1]
        values = self._pool.view(-1).take(source.to(self.device))
        sums = torch.zeros(count, device=self.device).index_add_(0, segment.to(self.device), values)
        return sums if not self._totals else torch.cat([sums, self._total_values])  # type: ignore[list-item]

    def _total_of(self, reading: Reading) -> int | None:
        known = self._totals.get(id(reading))
        return known[1] if known is not None and known[0] is reading else None

    def _evaluated(
        self, updates: Sequence[Update | None], sums: Sequence[float]
    ) -> list[list[tuple[Reading, Target, float, int]]]:
        """For every row its readings with their targets, `a_i / Z_i`, and where their sums begin."""
        totals = len(sums) - (len(self._total_values) if self._totals else 0)  # type: ignore[arg-type]
        at = 0
        rows: list[list[tuple[Reading, Target, float, int]]] = []
        for row, update in enumerate(updates):
            entries: list[tuple[Reading, Target, float, int]] = []
            rows.append(entries)
            if update is None:
                continue
            state = self.rows[row]
            raw = state.pending + update.raw
            for reading in state.readings:
                target = self.alignment.target(reading.tail, raw)
                start, z = at, 1.0
                at += target.num_segments
                if reading.tail:
                    known = self._total_of(reading)
                    if known is None:
                        z = sums[at]
                        at += 1
                    else:
                        z = sums[totals + known]
                entries.append((reading, target, reading.weight / z if z > 0 else 0.0, start))
        return rows

    def proposed(self, updates: Sequence[Update | None], sums: Sequence[float]) -> list[tuple[float, float]]:
        """How much of `P(u)` the member proposed whole, and how much as the beginning of a longer token."""
        shares = []
        for entries in self._evaluated(updates, sums):
            whole = unfinished = 0.0
            for _, target, scale, at in entries:
                ends = len(target.ends)
                whole += scale * sum(sums[at : at + ends])
                unfinished += scale * sums[at + ends + 1]
            shares.append((whole, unfinished))
        return shares

    def advance(self, updates: Sequence[Update | None], sums: Sequence[float] | None = None) -> None:
        """Takes new text in: chooses the live path of every row, reads it, and weighs the readings anew.

        Rule 3. Rows that are `None` stay as they are.

        Args:
            updates: one a row.
            sums (`Sequence[float]`, *optional*): what `measure(updates)` returned, as numbers.
        """
        if sums is None:
            sums = self.measure(updates).tolist()
        evaluated = self._evaluated(updates, sums)
        steps = []
        for row, update in enumerate(updates):
            if update is not None and evaluated[row]:
                step = _Step(row, update)
                self._choose(step, evaluated[row], sums)
                steps.append(step)
        self._read(steps)
        self._weigh_inside(steps)
        self._renew(steps)

    def _choose(self, step: _Step, entries: list[tuple[Reading, Target, float, int]], sums: Sequence[float]) -> None:
        """Sets the live path of a row, before any forward pass."""
        best_end: tuple[float, Reading | None, int] = (0.0, None, -1)
        best_path: tuple[float, Reading | None, Canonical | None] = (0.0, None, None)
        for reading, target, scale, at in entries:
            for offset, i in enumerate(target.ends):
                value = scale * sums[at + offset]
                step.end_sum += value
                if value > best_end[0]:
                    best_end = (value, reading, i)
            after = at + len(target.ends)
            if not target.ends and target.canonical.is_path:
                value = scale * sums[after]
                if value > best_path[0]:
                    best_path = (value, reading, target.canonical)
            stay = scale * sums[after + 2]
            if stay > 0:
                step.stays.append((reading, stay))
        update = step.update
        others = 1.0 - update.r - update.q
        if best_end[1] is not None and (update.r >= others or best_path[0] <= best_end[0]):
            step.base, step.new_ids = best_end[1], (best_end[2],)
            if self._end_weight(step)[0] < self.min_reading and step.stays:
                step.base, step.new_ids = None, ()  # a dropped end costs no forward pass
        elif best_path[1] is not None and update.r < others:
            assert best_path[2] is not None
            step.base, step.canonical, step.end = best_path[1], best_path[2], best_path[0]
            step.new_ids = step.canonical.ids
            step.first = 1
            if not step.stays and step.end_sum == 0.0:  # no other candidates: only ratios inside the path count
                boundaries = step.canonical.boundaries
                step.first = boundaries[0].after if boundaries else len(step.new_ids)
        elif step.stays:
            pass
        else:
            self._fall_back(step, max(entries, key=lambda entry: entry[0].weight))

    def _fall_back(self, step: _Step, entry: tuple[Reading, Target, float, int]) -> None:
        """Nothing explains the new text: the heaviest reading ends by the canonical ids."""
        step.base, step.canonical = entry[0], entry[1].canonical
        step.new_ids = step.canonical.ids
        step.first = len(step.new_ids)
        step.end = 1.0

    def _end_weight(self, step: _Step) -> tuple[float, float, float]:
        """`a(end)`, and what a stay's sum is multiplied with: `a(stay_i) = stay_i * (q / S + o / (E + S))`."""
        update = step.update
        r, q = update.r, update.q
        o = max(1.0 - r - q, 0.0)
        stay_sum = sum(value for _, value in step.stays) + sum(value for _, value in step.inner)
        total = step.end_sum + stay_sum
        if total <= 0:
            return 1.0, 0.0, 0.0
        if stay_sum <= 0:
            return 1.0, 0.0, 0.0
        if step.end_sum <= 0:
            return 0.0, 1.0 / stay_sum, stay_sum
        return r + o * step.end_sum / total, q / stay_sum + o / total, stay_sum

    def _path(self, step: _Step) -> Path | None:
        """The path that has to be read, or `None` if the row needs no forward pass."""
        state = self.rows[step.row]
        if step.base is None or not step.new_ids:
            return None
        ids = step.base.ids + step.new_ids
        want = len(step.new_ids) - step.first + 1 if step.canonical is not None else 1
        length = state.settled.length + len(ids)
        return Path(state.settled, ids, self._keep(state, ids, length - want), want)

    def _keep(self, state: Row, ids: tuple[int, ...], most: int) -> int:
        if not self.use_cache:
            return 0
        kept = state.kept
        if kept >= state.settled.length:
            kept = min(kept, state.settled.length + _common(state.cached, ids))
        return min(kept, most)

    @torch.no_grad()  # gradients reach the weights of a mixture, never the members
    def _run(self, paths: list[Path | None]) -> list[int]:
        """Runs the model; the pool slots that now hold the probabilities of the wanted columns, row by row."""
        if not self.use_cache:
            self.runner.reset()
        output = self.runner.run(paths, self.keep_hidden)
        logits = output.logits.float()
        if len(self._silent):
            logits.index_fill_(-1, self._silent, -torch.inf)
        slots = self._free_slots(len(logits))
        index = torch.tensor(slots, device=self.device)
        highest = logits.amax(-1)
        if self.device.type == "cpu":  # row by row into place saves a copy of everything
            likeliest = torch.empty_like(highest)
            for row, slot in enumerate(slots):
                kept = self._pool[slot, :-1]
                torch.softmax(logits[row], -1, out=kept)
                torch.amax(kept, 0, out=likeliest[row])
        else:
            probs = logits.softmax(-1)
            likeliest = probs.amax(-1)
            self._pool[index, :-1] = probs
        # log Z = logit - log p of any token: that of the likeliest one is the most precise
        self._log_z[index] = highest - likeliest.log()
        if output.hidden is not None:
            if self._hidden is None:
                self._hidden = output.hidden.new_zeros(len(self._pool), output.hidden.shape[-1])
            self._hidden[index] = output.hidden
        return slots

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

    def _read(self, steps: list[_Step]) -> None:
        """Runs the live paths of all rows; rows that no longer fit the model's context are taken out of `steps`."""
        paths: list[Path | None] = [None] * len(self.rows)
        for step in list(steps):
            path = self._path(step)
            if self._fits(step.row, path):
                paths[step.row] = path
            else:
                steps.remove(step)
        if not any(paths):
            return
        slots = self._run(paths)
        at = 0
        for step in steps:
            path = paths[step.row]
            if path is not None:
                step.slots = slots[at : at + path.want]
                at += path.want

    def _weigh_inside(self, steps: list[_Step]) -> None:
        """Follows canonical paths id by id: the weights of their inner boundaries and of their end."""
        parts: list[torch.Tensor] = []
        segments: list[int] = []
        plans: list[tuple[_Step, int, int]] = []
        for step in steps:
            canonical = step.canonical
            if canonical is None:
                continue
            if not step.new_ids or (step.first == len(step.new_ids) and canonical.open is None):
                step.end_sum += step.end
                continue
            following = step.new_ids[step.first :]
            plans.append((step, len(segments), len(following)))
            places = [i + slot * self._width for i, slot in zip(following, step.slots, strict=False)]
            parts.append(torch.tensor(places, dtype=torch.long))
            segments += [1] * len(following)
            inner = [boundary for boundary in canonical.boundaries if boundary.after >= step.first]
            for boundary in [*inner, canonical.open] if canonical.open is not None else inner:
                parts.append(boundary.stay_ids + self._place(step, boundary.after) * self._width)
                segments.append(len(boundary.stay_ids))
        if not plans:
            return
        values = self._pool.view(-1).take(torch.cat(parts).to(self.device))
        index = torch.repeat_interleave(torch.arange(len(segments)), torch.tensor(segments)).to(self.device)
        sums = torch.zeros(len(segments), device=self.device).index_add_(0, index, values).tolist()
        for step, at, count in plans:
            self._follow(step, sums[at : at + count], sums[at + count :])

    def _follow(self, step: _Step, following: list[float], stays: list[float]) -> None:
        """Multiplies up the probabilities along a canonical path."""
        assert step.canonical is not None
        weight = step.end
        here = step.first
        rest = iter(stays)
        for boundary in step.canonical.boundaries:
            if boundary.after < step.first:
                continue
            while here < boundary.after:
                weight *= following[here - step.first]
                here += 1
            step.inner.append((boundary, weight * next(rest)))
        while here < len(step.new_ids):
            weight *= following[here - step.first]
            here += 1
        if step.canonical.open is not None:
            step.inner.append((step.canonical.open, weight * next(rest)))
        else:
            step.end_sum += weight

    def _renew(self, steps: list[_Step]) -> None:
        """Makes the new rows: keeps the heaviest readings and settles the ids that all of them share."""
        for step in steps:
            candidates = self._candidates(step)
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
            self.rows[step.row] = self._settled(step, readings)

    def _candidates(self, step: _Step) -> list[tuple[tuple[int, ...], bytes, float, int]]:
        end, factor, _ = self._end_weight(step)
        found = [
            (reading.ids, reading.tail + self.rows[step.row].pending + step.update.raw, value * factor, reading.slot)
            for reading, value in step.stays
        ]
        if step.base is None:
            return found
        ids, canonical = step.base.ids, step.canonical
        for boundary, value in step.inner:
            slot = self._place(step, boundary.after)
            found.append((ids + step.new_ids[: boundary.after], boundary.rest, value * factor, slot))
        if canonical is not None and canonical.open is not None:
            if not any(entry[2] > 0 for entry in found):  # not even half a character is expected here
                found.append((ids + step.new_ids, canonical.open.rest, 1.0, self._place(step, len(step.new_ids))))
        else:
            found.append((ids + step.new_ids, b"", end, self._place(step, len(step.new_ids))))
        return found

    def _place(self, step: _Step, after: int) -> int:
        """The pool slot of the probabilities after `after` new ids."""
        assert step.base is not None
        if after == 0:
            return step.base.slot
        return step.slots[after - step.first if step.canonical is not None else 0]

    def _settled(self, step: _Step, readings: list[Reading]) -> Row:
        old = self.rows[step.row]
        cached, kept = old.cached, old.kept
        if step.base is not None and step.new_ids:
            cached = step.base.ids + step.new_ids
            kept = old.settled.length + len(cached)
        shared = readings[0].ids
        for reading in readings[1:]:
            shared = shared[: _common(shared, reading.ids)]
        settled = old.settled.plus(shared)
        if shared:
            for reading in readings:
                reading.ids = reading.ids[len(shared) :]
            if kept >= old.settled.length:
                common = _common(cached, shared)
                kept = min(kept, settled.length + len(cached)) if common == len(shared) else old.settled.length + common
            cached = cached[len(shared) :]
        return Row(settled, tuple(readings), b"", (), cached, kept)

    # -- the pool -----------------------------------------------------------------------------------------

    def _free_slots(self, count: int) -> list[int]:
        """Slots that no row refers to; the pool grows when there are too few."""
        used = {0}
        for rows in (self.rows, *(self._history or {}).values()):
            used.update(reading.slot for row in rows for reading in row.readings)
        if len(used) + count > len(self._pool):
            grown = max(2 * len(self._pool), len(used) + count)
            self._pool = _grown(self._pool, grown)
            self._log_z = _grown(self._log_z, grown)
            if self._hidden is not None:
                self._hidden = _grown(self._hidden, grown)
        free = (slot for slot in range(len(self._pool)) if slot not in used)
        return list(islice(free, count))

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
        sums = self.measure(updates).tolist()
        steps = []
        evaluated = self._evaluated(updates, sums)
        for (row, following), own_slots in zip(plans, kept, strict=True):
            update = updates[row]
            if update is None:
                continue
            step = _Step(row, update)
            self._choose(step, evaluated[row], sums)
            step.slots = own_slots[max(step.first, 1) :]
            if step.new_ids in ((), following):  # else the path has to be read after all, as any other
                steps.append(step)
        self._weigh_inside(steps)
        self._renew(steps)


def _taken_back(now: Row, then: Row) -> Row:
    """The row `then`, with what the cache holds now."""
    start = then.settled.length
    kept = min(now.kept, then.kept)
    cached: tuple[int, ...] = ()
    if kept > start:
        held = (now.settled.after(start) + now.cached)[: now.kept - start]
        cached = then.cached[: _common(held, then.cached)]
        kept = start + len(cached)
    return Row(then.settled, then.readings, then.pending, then.unread, cached, kept, then.is_exhausted)


def _grown(store: torch.Tensor, size: int) -> torch.Tensor:
    grown = store.new_zeros(size, *store.shape[1:])
    grown[: len(store)] = store
    return grown
