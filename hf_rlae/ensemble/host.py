"""The member inside whose own `generate` an ensemble writes: it is run by `generate`, and heard here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_rlae.ensemble.cache_ensemble import EnsembleCache
from hf_rlae.ensemble.readings_engine import ReadingsEngine
from hf_rlae.member import Member, ReadingsRelay, Update
from hf_rlae.member.reading_state import Reading, Row
from hf_rlae.member.reading_step import ReadingStep
from hf_rlae.member.recurrence import returned_state
from hf_rlae.member.runners import Chain, Path
from hf_rlae.vocabulary import ByteVocabulary, UnionVocabulary


@dataclass(frozen=True)
class HostPass:
    """What one forward pass of the host read and said.

    Attributes:
        last_ids (`torch.LongTensor` of shape `(B,)`): the last column that it read.
        columns (`int`): how many columns it read.
        mask (`torch.Tensor` of shape `(B, L)` or `None`): its attention mask.
        has_mask (`bool`): whether `mask` tells what is padding; models may be given another kind of mask.
        logits (`torch.Tensor` of shape `(B, V)`): of the last column.
        hidden (`torch.Tensor` of shape `(B, H)` or `None`): what entered the head there.
        cache: the key-value cache that it returned, or `None`.
    """

    last_ids: torch.Tensor
    columns: int
    mask: torch.Tensor | None
    has_mask: bool
    logits: torch.Tensor
    hidden: torch.Tensor | None
    cache: Any


class HostTap:
    """Keeps what the host said in its newest forward pass, thread by thread, until it is taken.

    `generate` has run the host once before it calls a processor for the first time, so the hooks are there from
    `attach` on; they change nothing, keep one column, and go with `detach`. A copied or pickled model gets a tap that
    hears nothing.
    """

    def __init__(self) -> None:
        self._wants_hidden: Callable[[], bool] = bool
        self._local = threading.local()
        self._handles: list[Any] = []

    def __reduce__(self) -> tuple[type[HostTap], tuple[()]]:
        return HostTap, ()

    def attach(self, member: Member, wants_hidden: Callable[[], bool]) -> None:
        """Begins to listen; also for what enters the head, while `wants_hidden` says so."""
        self._wants_hidden = wants_hidden
        self._handles = [
            member.model.register_forward_hook(self._note, with_kwargs=True),
            member.model.get_output_embeddings().register_forward_pre_hook(self._note_hidden),
        ]

    def detach(self) -> None:
        """Stops listening."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def take(self) -> HostPass | None:
        """The newest pass of this thread; a second call returns `None`."""
        self._local.__dict__.pop("hidden", None)
        return self._local.__dict__.pop("last", None)

    def _note_hidden(self, _module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if self._handles and self._wants_hidden():
            self._local.hidden = args[0][:, -1].detach().clone()

    def _note(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        hidden = self._local.__dict__.pop("hidden", None)
        self._local.__dict__.pop("last", None)
        ids = kwargs.get("input_ids", args[0] if args else None)
        logits = getattr(output, "logits", None)
        if not self._handles or not isinstance(ids, torch.Tensor) or logits is None:
            return
        mask = kwargs.get("attention_mask")
        self._local.last = HostPass(
            ids[:, -1].detach().clone(),
            ids.shape[1],
            mask if isinstance(mask, torch.Tensor) and mask.dim() == 2 else None,
            mask is None or (isinstance(mask, torch.Tensor) and mask.dim() == 2),
            logits[:, -1].detach().clone(),
            hidden,
            next(iter(returned_state(output).values()), None),
        )


class LockstepHost:
    """The host in the place of a `LockstepRelay`: its logits are those that it was fed."""

    def __init__(self) -> None:
        self.forward_calls = 0
        self._fed: tuple[torch.Tensor, torch.Tensor | None] | None = None

    def feed(self, logits: torch.Tensor, hidden: torch.Tensor | None, text: torch.Tensor, pads: Sequence[int]) -> None:
        """Takes what the host said after the newest column: logits `(B, V)` and hidden states `(B, H)`."""
        self._fed = (logits, hidden)

    def columns(self, total: int) -> int:
        """How many columns the host reads where the text has `total`."""
        return total

    def run(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, keep: int, hidden: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See `LockstepRelay.run`; only the newest column is known."""
        assert self._fed is not None
        assert keep == 1
        logits, states = self._fed
        return logits[:, None], None if states is None else states[:, None]

    def reorder(self, rows: torch.Tensor) -> None:
        """`generate` reorders the host itself."""

    def record(self) -> None:
        """Nothing is taken back."""

    def crop(self, length: int) -> bool:
        """Nothing is taken back."""
        return False

    def reset(self) -> None:
        """Forgets what it was fed."""
        self._fed = None


class ReadingsHost(ReadingsRelay):
    """The host in the place of a `ReadingsRelay`: it is never run, and its ids are always those that were written.

    `generate` conditions the host on the ids of the text, so the live path of every update is the written id: all ends
    count for it. Another member may have carried the written token where the host itself would have written a longer
    one. Such a stay needs no forward pass, only the probabilities that the host gave before, so stays are kept as by
    every other member.

    What the host says after a column is fed before the column is taken in; until then `measure` and `proposed` speak of
    the column before, which is what updates ask about.
    """

    _fed: tuple[torch.Tensor, torch.Tensor | None, list[int]] | None = None
    _slots: list[int]

    def feed(self, logits: torch.Tensor, hidden: torch.Tensor | None, text: torch.Tensor, pads: Sequence[int]) -> None:
        """Takes what the host said after the newest column of the text: logits `(B, V)` and hidden states `(B, H)`."""
        self._fed = (logits, hidden, text[:, -1].tolist())

    def _store(self) -> None:
        """Puts what was fed into the pool; rows that begin, or whose newest token says nothing, start from there."""
        if self._fed is None:
            return
        logits, hidden, last_ids = self._fed
        self._fed = None
        logits = logits.to(device=self.device, dtype=torch.float32)
        if len(self._silent):
            logits = logits.index_fill(-1, self._silent, -torch.inf)
        used = {0} | {reading.slot for row in self.rows for reading in row.readings}
        self._slots = self.pool.store(logits, hidden, used)
        begins = not self.rows
        if begins:
            self.rows = [Row() for _ in last_ids]
        for row, i in enumerate(last_ids):
            if begins or not self.vocabulary.pieces[i]:
                self.rows[row] = Row(readings=(Reading((), b"", 1.0, self._slots[row]),))

    def admit(self, prompts: Sequence[Sequence[int] | None]) -> None:
        """See `ReadingsRelay.admit`; the host has read its prompt."""
        self._store()

    def catch_up(self, rows: Sequence[int] | range) -> None:
        """The host is never behind."""

    def defer(self, row: int, raw: bytes) -> None:
        """The host is never behind: it takes the text in at once."""
        updates: list[Update | None] = [None] * len(self.rows)
        updates[row] = Update(raw)
        self.advance(updates)

    def advance(self, updates: Sequence[Update | None], sums: Sequence[float] | None = None) -> None:
        """See `ReadingsRelay.advance`."""
        if sums is None:
            sums = self.measure(updates).tolist()
        evaluated = self._evaluated(updates, sums)
        self._store()
        for row, update in enumerate(updates):
            if update is None:
                continue
            step = ReadingStep(row, update)
            for reading, target, scale, at in evaluated[row]:
                ends = len(target.ends)
                step.end_sum += scale * sum(sums[at : at + ends])
                stay = scale * sums[at + ends + 2]
                if stay > 0:
                    step.stays.append((reading, stay))
            end, factor = step.end_weight()
            found = [Reading((), b"", end, self._slots[row])]
            found += [Reading((), r.tail + update.raw, value * factor, r.slot) for r, value in step.stays]
            found.sort(key=lambda reading: -reading.weight)
            kept = [reading for reading in found if reading.weight >= self.min_reading] or found[:1]
            kept = kept[: self.max_readings]
            total = sum(reading.weight for reading in kept)
            for reading in kept:
                reading.weight = reading.weight / total if len(kept) > 1 else 1.0
            self.rows[row] = Row(readings=tuple(kept))

    def mark(self, column: int) -> None:
        """See `ReadingsRelay.mark`."""
        self._store()
        super().mark(column)

    def distribution(self, in_place: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """See `ReadingsRelay.distribution`."""
        self._store()
        return super().distribution(in_place)

    def observation(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See `ReadingsRelay.observation`."""
        self._store()
        return super().observation()

    def reorder(self, rows: torch.Tensor) -> None:
        """See `ReadingsRelay.reorder`."""
        self.rows = [self.rows[row] for row in rows.tolist()] if self.rows else []


class RereadingHost(ReadingsRelay):
    """The host with readings of its own, as every other member has them.

    Where its live path is the text as it was written, `generate` has run it already and what it said is taken as it
    is; only where it reads the text in other tokens is it run once more, on a cache of its own.
    """

    _fed: tuple[torch.Tensor, torch.Tensor | None] | None = None
    _text: torch.Tensor
    _pads: Sequence[int]
    _served: frozenset[int] = frozenset()

    def feed(self, logits: torch.Tensor, hidden: torch.Tensor | None, text: torch.Tensor, pads: Sequence[int]) -> None:
        """Takes what the host said after the text `(B, L)`, whose rows begin with so many `pads`."""
        logits = logits.to(device=self.device, dtype=torch.float32)
        if len(self._silent):
            logits = logits.index_fill(-1, self._silent, -torch.inf)
        self._fed = (logits, hidden)
        self._text, self._pads = text, pads

    def admit(self, prompts: Sequence[Sequence[int] | None]) -> None:
        """See `ReadingsRelay.admit`; the host has read its prompt."""
        assert self._fed is not None
        slots = self.pool.store(*self._fed, {0})
        self.rows = [
            Row(Chain(None, tuple(prompt or ())), (Reading((), b"", 1.0, slot),))
            for prompt, slot in zip(prompts, slots, strict=True)
        ]

    def _is_written(self, row: int, path: Path) -> bool:
        pad = self._pads[row]
        if path.want != 1 or path.length != self._text.shape[1] - pad:
            return False
        return path.after(0) == tuple(self._text[row, pad:].tolist())

    @torch.no_grad()
    def _run(self, paths: list[Path | None]) -> list[int]:
        assert self._fed is not None
        fed_logits, fed_hidden = self._fed
        self._served = frozenset(
            row for row, path in enumerate(paths) if path is not None and self._is_written(row, path)
        )
        rest = [None if row in self._served else path for row, path in enumerate(paths)]
        if not self._served:
            return super()._run(paths)
        logits, hidden = [], []
        own = self.runner.run(rest, self.keep_hidden) if any(rest) else None
        own_logits = None if own is None else own.logits.float()
        if own_logits is not None and len(self._silent):
            own_logits.index_fill_(-1, self._silent, -torch.inf)
        at = 0
        for row, path in enumerate(paths):
            if path is None:
                continue
            if row in self._served:
                logits.append(fed_logits[row, None])
                hidden += [] if fed_hidden is None else [fed_hidden[row, None]]
            else:
                assert own is not None
                assert own_logits is not None
                logits.append(own_logits[at : at + path.want])
                hidden += [] if own.hidden is None else [own.hidden[at : at + path.want]]
                at += path.want
        used = {0} | {reading.slot for row in self.rows for reading in row.readings}
        return self.pool.store(torch.cat(logits), torch.cat(hidden) if hidden else None, used)

    def _settled(self, step: ReadingStep, readings: list[Reading]) -> Row:
        if step.row in self._served:
            step.new_ids = ()  # the host's own cache has not moved
        return super()._settled(step, readings)

    def advance(self, updates: Sequence[Update | None], sums: Sequence[float] | None = None) -> None:
        """See `ReadingsRelay.advance`."""
        self._served = frozenset()
        super().advance(updates, sums)


def seat_host(
    cache: EnsembleCache, engine: Any, rereads: bool, keeps_hidden: bool
) -> LockstepHost | ReadingsHost | RereadingHost:
    """Puts the host in the place of the first member of a fresh cache."""
    host: LockstepHost | ReadingsHost | RereadingHost
    if isinstance(engine, ReadingsEngine):
        host = (RereadingHost if rereads else ReadingsHost)(
            engine.members[0],
            engine.vocabularies[0],
            engine.alignments[0],
            engine.max_readings,
            engine.min_reading,
            runner=engine.runners[0],
            keep_hidden=keeps_hidden,
        )
    else:
        host = LockstepHost()
    cache.relays[0] = host
    return host


class HostVocabulary:
    """Brings distributions over the union vocabulary onto the vocabulary of the host.

    Union tokens that the host lacks lend their mass to the longest host token that begins them; STOP goes to one of
    the host's end ids, the one that the host itself finds likeliest; what no host token begins is left out, and the
    rest is renormalised. Special tokens that are not text have no mass in the union and get none.

    Args:
        vocabulary (`ByteVocabulary`), end_ids (`Sequence[int]`): of the host.
        union (`UnionVocabulary`): its first ids are the host's.
        stop_ids (`Sequence[int]`): those of `end_ids` that STOP may become.
    """

    def __init__(
        self, vocabulary: ByteVocabulary, end_ids: Sequence[int], union: UnionVocabulary, stop_ids: Sequence[int]
    ) -> None:
        self.size = vocabulary.size
        self.stop_id = union.stop_id
        self.end_ids = torch.tensor(list(end_ids), dtype=torch.long)
        self.stop_ids = torch.tensor(list(stop_ids), dtype=torch.long)
        ends = set(end_ids)
        own = {piece: i for piece, ids in vocabulary.ids_of.items() for i in reversed(ids) if i not in ends}
        pairs = []
        for i in [*end_ids, *range(self.size, union.stop_id)]:
            piece = union.pieces[i] or b""
            found = next((own[piece[:n]] for n in range(len(piece), 0, -1) if piece[:n] in own), None)
            if found is not None:
                pairs.append((i, found))
        self.lent_from = torch.tensor([pair[0] for pair in pairs], dtype=torch.long)
        self.lent_to = torch.tensor([pair[1] for pair in pairs], dtype=torch.long)

    def to(self, device: torch.device) -> HostVocabulary:
        """Moves the tables."""
        for name in ("end_ids", "stop_ids", "lent_from", "lent_to"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def restrict(self, logits: torch.Tensor, host_scores: torch.Tensor) -> torch.Tensor:
        """Logits over the union `(B, V)` to logits over the host's vocabulary, with the same sum of exponentials.

        Args:
            logits (`torch.FloatTensor` of shape `(B, V)`): fp32.
            host_scores (`torch.FloatTensor` of shape `(B, V_host)`): the host's, to choose among end ids.
        """
        probs = logits.softmax(-1)
        kept = probs[:, : self.size].index_fill(1, self.end_ids, 0.0)
        kept.index_add_(1, self.lent_to, probs[:, self.lent_from])
        if len(self.stop_ids):
            chosen = self.stop_ids[host_scores[:, self.stop_ids].argmax(1)]
            kept.scatter_add_(1, chosen[:, None], probs[:, self.stop_id, None])
        return (kept / kept.sum(1, keepdim=True)).log() + logits.logsumexp(1, keepdim=True)
