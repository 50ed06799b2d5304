"""The text of one column on its way to the members: what their readings become, and the passes that read it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from hf_rlae.ensemble.engines.at_once import at_once
from hf_rlae.ensemble.faults import losing
from hf_rlae.ensemble.mixing import has_trait
from hf_rlae.members import Launched, RowReadings, Update, UpdateSums, read_together, weigh_inside

if TYPE_CHECKING:
    from hf_rlae.ensemble.cache_ensemble import EnsembleCache
    from hf_rlae.ensemble.engines.readings import ReadingsCall


class ColumnText:
    """The text of one column, as updates of the members' readings.

    Args:
        call (`ReadingsCall`): the members' runs.
        cache (`EnsembleCache`): the weights.
        column (`int`): the column.
        raws (`Sequence[bytes | None]`): the bytes of each row's token; `None` without text.

    Attributes:
        updates (`list[list[Update | None]]`): by member and row; `None` without new text, and after it was taken in.
        sums (`list[UpdateSums | None]`): by member, the sums for its updates, if they are known.
    """

    def __init__(self, call: ReadingsCall, cache: EnsembleCache, column: int, raws: Sequence[bytes | None]) -> None:
        self.engine = call.engine
        self.runs = call.runs
        self.cache = cache
        self._column = column
        self.updates, self.sums = self._measured(raws)

    def _measured(self, raws: Sequence[bytes | None]) -> tuple[list[list[Update | None]], list[UpdateSums | None]]:
        """The updates of all members, with the shares of the members that proposed the tokens of this column.

        Computes `r` and `q` of "After a token" in docs/concepts.md, "Readings": per tokenizer and row, the shares of
        `P(b)` that members with this tokenizer proposed whole and unfinished.
        """
        if not any(raw is not None for raw in raws):
            return [[None] * len(raws) for _ in self.runs], [None] * len(self.runs)
        # the token of this column was chosen with the weights that held after the previous column
        weights = self.cache.spans.as_lists(self._column - 1)
        sums = self._sums(raws, weights)
        unknown = [None if raw is None else Update(raw) for raw in raws]
        if has_trait(self.engine.mixing, "compares_members"):  # nobody's token was drawn, so each has its own posterior
            return [list(unknown) for _ in self.runs], sums
        # by tokenizer and row: weighted mass that its members proposed whole, and as the start of a longer token
        proposals: dict[int, list[list[float]]] = {}
        totals = [0.0] * len(raws)
        for index, known in enumerate(sums):
            if known is None:
                continue
            proposed = proposals.setdefault(self.engine.groups[index], [[0.0, 0.0] for _ in raws])
            shares = known.proposed()
            for row in known.rows:
                weight, (whole, unfinished) = weights[row][index], shares[row]
                proposed[row][0] += weight * whole
                proposed[row][1] += weight * unfinished
                totals[row] += weight * (whole + unfinished)
        # members without sums (no weight, or unread text) get r = q = 0, as does a token that no member proposed
        updates = [list(unknown) for _ in self.runs]
        for index, known in enumerate(sums):
            for row in () if known is None else known.rows:
                total, raw = totals[row], raws[row]
                if total > 0 and raw is not None:
                    whole, unfinished = proposals[self.engine.groups[index]][row]
                    updates[index][row] = Update(raw, whole / total, unfinished / total)
        return updates, sums

    def _sums(self, raws: Sequence[bytes | None], weights: list[list[float]]) -> list[UpdateSums | None]:
        """By member, the sums for the rows in which it had weight and has read all text; copied to the CPU at once."""
        pending = [
            run.measure(
                [
                    raw if held[index] > 0 and row.readings and not row.pending else None
                    for raw, held, row in zip(raws, weights, run.rows, strict=True)
                ]
            )
            for index, run in enumerate(self.runs)
        ]
        return [sums if sums.rows else None for sums in read_together(pending)]

    def catch_up(self, active: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Lets members, by index, read all unread text of the given rows; remote members at the same time as others.

        All forward passes are started before any result is waited for, and then all results are waited for at once.
        """
        updates = {index: self._updates(index, rows) for index, rows in active if not self._has_prompts(index, rows)}
        sums = {index: self._known_sums(index, own) for index, own in updates.items() if any(own)}
        missing = [index for index, known in sums.items() if known is None]
        pending = [self.runs[index].measure(_raws(updates[index])) for index in missing]
        sums.update(zip(missing, read_together(pending), strict=True))
        launched: dict[int, Launched] = {}
        at_once(
            [
                partial(self._launch, index, rows, updates.get(index), sums.get(index), launched)
                for index, rows in active
            ],
            [self.engine.members[index].is_remote for index, _ in active],
        )
        weigh_inside([launched[index].inner for index, _ in active if index in launched])
        for index, _ in active:
            if index in launched:
                self.runs[index].settle(launched[index])
        for index, _ in active:
            self._look(index)

    def defer_rest(self) -> None:
        """Members that have not read the text read it later."""
        for run, updates in zip(self.runs, self.updates, strict=True):
            for row, update in enumerate(updates):
                if update is not None:
                    run.defer(row, update.raw)

    def _launch(
        self,
        index: int,
        rows: Sequence[int],
        updates: list[Update | None] | None,
        sums: UpdateSums | None,
        launched: dict[int, Launched],
    ) -> None:
        """Starts a member's forward pass, and reads prompts before; a member that is lost drops out of all rows."""
        faults, run = self.cache.faults, self.runs[index]
        with losing(faults, index):
            if updates is None:
                self._read_prompts(index, rows)
                updates = self._updates(index, rows)
                sums = self._known_sums(index, updates)
            if any(updates):
                launched[index] = run.launch(updates, sums or run.measure(_raws(updates)).read())
        if faults is not None and index in faults.gone:
            launched.pop(index, None)
            run.rows = [RowReadings(is_exhausted=True) for _ in self.updates[index]]

    def _has_prompts(self, index: int, rows: Sequence[int]) -> bool:
        """Whether a member has not read the prompt of some row yet."""
        return any(self.runs[index].rows[row].unread for row in rows)

    def _known_sums(self, index: int, updates: Sequence[Update | None]) -> UpdateSums | None:
        """The sums for updates, if they are known."""
        sums = self.sums[index]
        read = [row for row, update in enumerate(updates) if update is not None]
        return sums if sums is not None and sums.rows == read else None

    def _read_prompts(self, index: int, rows: Sequence[int]) -> None:
        """Lets a member read the prompts of the given rows, with the text after them."""
        run, updates = self.runs[index], self.updates[index]
        for row in rows:
            update = updates[row]
            if update is not None and run.rows[row].unread:
                run.defer(row, update.raw)
                updates[row] = None
        run.catch_up([row for row in rows if run.rows[row].unread])

    def _updates(self, index: int, rows: Sequence[int]) -> list[Update | None]:
        """A member's updates in the given rows, which have no unread prompt; they are taken out of the column's."""
        run, updates = self.runs[index], self.updates[index]
        chosen: list[Update | None] = [None] * len(run.rows)
        for row in rows:
            update = updates[row]
            if update is None and run.rows[row].pending:
                update = Update(b"")
            chosen[row] = update
            updates[row] = None
        return chosen

    def _look(self, index: int) -> None:
        """Looks at the logits that a member has just returned."""
        run, faults = self.runs[index], self.cache.faults
        while run.newest:
            found, log_z = run.newest.popleft()
            if faults is not None and faults.note(index, self._column, log_z, found) is not None:
                run.drop_non_finite()


def _raws(updates: Sequence[Update | None]) -> list[bytes | None]:
    """The new bytes of each row."""
    return [None if update is None else update.raw for update in updates]
