"""Readings of a member, computed in the slowest and plainest way."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hf_rlae.vocabulary import ByteVocabulary, UnionVocabulary

FURTHER_END, MOST_FURTHER = 0.001, 2
"""Ends with other last tokens that are kept apart: their least probability, and their number."""

Probs = Callable[[tuple[int, ...]], np.ndarray]
Lent = tuple[tuple[int, int], ...]
"""Positions in an unfinished token, each with the length of the longest union string that begins its bytes there."""

State = tuple[tuple[int, ...], bytes, Lent]
"""All ids of a row, the known bytes of its unfinished token, and which longer tokens it cannot be."""


@dataclass
class Reading:
    """One way in which the member can have written the text: `(ids, tail, a, lent)`."""

    ids: tuple[int, ...]
    tail: bytes
    a: float
    lent: Lent = ()


class RuleReference:
    """The rules of readings for one member and one row, with every probability computed again.

    Args:
        vocabulary (`ByteVocabulary`): the member's tokens.
        union (`UnionVocabulary`): what distributions range over.
        end_ids (`Sequence[int]`): ids of the member that end a text.
        next_probs (`Callable`): the model's probabilities after some ids.
        prompt (`Sequence[int]`): the row's prompt, in the member's own ids.
        max_readings (`int`), min_reading (`float`): the limits on their number and probability.

    Attributes:
        readings (`list[Reading]`): the state.
        margin (`float`): the smallest distance of a decision so far (which path, which readings are kept) from the
            opposite decision; below the error of single precision nothing can be compared.
        branches (`list[str]`): the rules that the updates applied.
    """

    def __init__(
        self,
        vocabulary: ByteVocabulary,
        union: UnionVocabulary,
        end_ids: Sequence[int],
        next_probs: Probs,
        prompt: Sequence[int],
        max_readings: int = 4,
        min_reading: float = 1e-4,
    ) -> None:
        self.vocabulary = vocabulary
        self.union = union
        self.end_ids = list(end_ids)
        self.next_probs = next_probs
        self.max_readings = max_readings if union.grain == "token" else 2 * max_readings
        self.min_reading = min_reading
        self.readings = [Reading(tuple(prompt), b"", 1.0)]
        self.margin = float("inf")
        self.branches: list[str] = []
        self.tokens = [
            (i, piece)
            for i, piece in enumerate(vocabulary.pieces)
            if piece and i not in self.end_ids and i not in vocabulary.special_ids
        ]

    # the next token

    def place(self, rest: bytes) -> tuple[int, bool] | None:
        """The union token that receives the mass of `rest`, and whether it has all bytes of `rest`."""
        if rest in self.union.id_of:
            return self.union.id_of[rest], True
        for length in range(len(rest) - 1, 0, -1):
            if rest[:length] in self.union.id_of:
                return self.union.id_of[rest[:length]], False
        return None

    def can_be(self, piece: bytes, beginning: bytes, lent: Lent) -> bool:
        """Whether a token begins with these bytes, is longer, and was lent as `lent` says."""
        if not piece.startswith(beginning) or len(piece) <= len(beginning):
            return False
        return all(self.lent_length(piece[at:]) == length for at, length in lent)

    def lent_length(self, raw: bytes) -> int:
        """The length of the longest union string that begins these bytes."""
        return max((n for n in range(1, len(raw) + 1) if raw[:n] in self.union.id_of), default=0)

    def shares(self, reading: Reading) -> tuple[dict[int, float], dict[int, float], float]:
        """The mass of one reading on whole and on unfinished union tokens, not divided by Z, and its total Z."""
        p = self.next_probs(reading.ids)
        whole: dict[int, float] = {}
        unfinished: dict[int, float] = {}
        total = 0.0
        for v, piece in self.tokens:
            if not self.can_be(piece, reading.tail, reading.lent):
                continue
            place = self.place(piece[len(reading.tail) :])
            if place is None:
                continue
            u, is_whole = place
            into = whole if is_whole else unfinished
            into[u] = into.get(u, 0.0) + float(p[v])
            total += float(p[v])
        if reading.tail == b"":
            stop = sum(float(p[v]) for v in self.end_ids)
            whole[self.union.stop_id] = stop
            total += stop
        return whole, unfinished, total

    def live(self) -> list[tuple[Reading, float]]:
        """The readings with their Z; a reading with Z = 0 is dropped and the others share its weight."""
        pairs = [(reading, self.shares(reading)[2]) for reading in self.readings]
        pairs = [(reading, z) for reading, z in pairs if z > 0]
        total = sum(reading.a for reading, _ in pairs)
        return [(Reading(r.ids, r.tail, r.a / total, r.lent), z) for r, z in pairs]

    def proposals(self) -> tuple[np.ndarray, np.ndarray]:
        """`P(u)` in two parts: from whole and from unfinished tokens."""
        parts = np.zeros((2, self.union.size))
        for reading, z in self.live():
            for part, masses in enumerate(self.shares(reading)[:2]):
                for u, mass in masses.items():
                    parts[part, u] += reading.a / z * mass
        return parts[0], parts[1]

    def distribution(self) -> np.ndarray:
        """`P(u)` for every union token."""
        whole, unfinished = self.proposals()
        return whole + unfinished

    # the update

    def one_token(self, reading: Reading, raw: bytes) -> list[int]:
        """The ids whose bytes are `raw`, most probable first."""
        p = self.next_probs(reading.ids)
        if any(self.lent_length(raw[at:]) != length for at, length in reading.lent):
            return []
        ids = sorted((v for v, piece in self.tokens if piece == raw), key=lambda v: -p[v])
        if len(ids) > 1:
            self._decided(p[ids[0]], p[ids[1]])
        return ids

    def longer(self, ids: tuple[int, ...], beginning: bytes, lent: Lent = ()) -> float:
        """The probability, after `ids`, of all tokens that begin with these bytes and are strictly longer."""
        p = self.next_probs(ids)
        return sum(float(p[v]) for v, piece in self.tokens if self.can_be(piece, beginning, lent))

    def half_character(self, raw: bytes) -> bytes:
        """The incomplete character at the end of `raw`, if only longer tokens contain it."""
        for length in (1, 2, 3):
            half = raw[len(raw) - length :] if length <= len(raw) else b""
            if not half or half[0] < 0xC0:
                continue
            needed = 2 if half[0] < 0xE0 else 3 if half[0] < 0xF0 else 4
            is_half = length < needed and all(0x80 <= byte < 0xC0 for byte in half[1:])
            single = {piece for _, piece in self.tokens if len(piece) == 1}
            begun = any(piece.startswith(half) and piece != half for _, piece in self.tokens)
            return half if is_half and begun and not {bytes([byte]) for byte in half} <= single else b""
        return b""

    def canonical(self, raw: bytes) -> tuple[tuple[int, ...], bytes]:
        """The ids into which the tokenizer encodes `raw`, and the incomplete character after them.

        The member can represent an incomplete character too, but only as a tail.
        """
        half = b"" if any(piece == raw for _, piece in self.tokens) else self.half_character(raw)
        return self.vocabulary.canonical_ids(raw[: len(raw) - len(half)]), half

    def update(self, b: bytes, r: float = 0.0, q: float = 0.0) -> None:
        """The text continues with `b`; members with this tokenizer proposed `r` whole and `q` unfinished."""
        o = max(0.0, 1.0 - r - q)

        stays: dict[State, float] = {}
        lents: dict[State, float] = {}
        one_token_ends: list[tuple[float, tuple[int, ...]]] = []
        canonical_ends: list[tuple[float, Reading, tuple[int, ...], bytes]] = []
        for reading, z in self.live():
            scale = reading.a / z
            raw = reading.tail + b
            p = self.next_probs(reading.ids)
            known = (*reading.lent, (len(reading.tail), len(b)))
            stays[(reading.ids, raw, reading.lent)] = scale * self.longer(reading.ids, raw, reading.lent)
            lents[(reading.ids, raw, known)] = (
                scale * self.longer(reading.ids, raw, known) if b in self.union.id_of else 0
            )
            ids = self.one_token(reading, raw)
            if ids:
                one_token_ends += [(scale * float(p[v]), (*reading.ids, v)) for v in ids]
            else:
                c, half = self.canonical(raw)
                first = self.vocabulary.pieces[c[0]] if c else b""
                if self.can_be(first, reading.tail, reading.lent):
                    canonical_ends.append((scale * float(p[c[0]]), reading, c, half))

        # the live path
        one_token_ends.sort(key=lambda end: -end[0])
        canonical_ends.sort(key=lambda end: -end[0])
        take_canonical = False
        if canonical_ends:
            self._decided(r, o)
            if r < o and one_token_ends:
                self._decided(canonical_ends[0][0], one_token_ends[0][0])
            take_canonical = r < o and (not one_token_ends or canonical_ends[0][0] > one_token_ends[0][0])
        end = sum(weight for weight, _ in one_token_ends)
        path: tuple[int, ...] | None = None
        if take_canonical:
            if len(canonical_ends) > 1:
                self._decided(canonical_ends[0][0], canonical_ends[1][0])
            weight, reading, c, half = canonical_ends[0]
            ids = (*reading.ids, c[0])
            for n in range(1, len(c) + 1):
                rest = self.vocabulary.to_bytes(c[n:]) + half
                if rest:
                    # the tail is empty here; tokens outside Z are left out, as everywhere else
                    weight /= self.shares(Reading(ids, b"", 1.0))[2]
                    stays[(ids, rest, ())] = weight * self.longer(ids, rest)
                if n < len(c):
                    weight *= float(self.next_probs(ids)[c[n]])
                    ids = (*ids, c[n])
            if not half:
                end += weight
                path = ids
            self.branches.append("half a character" if half else "canonical")
        elif one_token_ends:
            if len(one_token_ends) > 1:
                self._decided(one_token_ends[0][0], one_token_ends[1][0])
            path = one_token_ends[0][1]
            self.branches.append("one token")

        # the weights
        stay = sum(stays.values())
        if end + stay == 0:
            self.branches.append("nothing explains it")
            self.readings = [self._given_up(b)]
            return
        if end == 0:  # no token can have ended here: what was proposed whole counts for the stays too
            r, o = 0.0, 1.0 - q
        total, lent = end + stay, sum(lents.values())
        q, spread = (q, 0.0) if lent > 0 else (0.0, q)
        weights = {key: mass * (o / total + (spread / stay if stay else 0.0)) for key, mass in stays.items()}
        for key, mass in lents.items():
            if mass > 0 and q > 0:
                plain = self.unrestricted(key)
                weights[plain] = weights.get(plain, 0.0) + mass * q / lent
        new = [Reading(ids, tail, a, known) for (ids, tail, known), a in weights.items() if a > 0]
        if path is not None and end > 0:
            ended = 1.0 if stay == 0 else r + o * end / total
            further = (
                self.further_ends(one_token_ends, ended / end)
                if one_token_ends and path == one_token_ends[0][1]
                else []
            )
            new += [Reading(ids, b"", a) for ids, a in further]
            new.append(Reading(path, b"", ended - sum(a for _, a in further)))
        if len(new) > 1:
            self.branches.append("several")
        self.readings = self._kept(new)

    def further_ends(
        self, ends: Sequence[tuple[float, tuple[int, ...]]], scale: float
    ) -> list[tuple[tuple[int, ...], float]]:
        """The ends that are kept apart from the first one, with their probabilities: those with other last tokens."""
        found: list[tuple[tuple[int, ...], float]] = []
        if self.union.grain == "token":
            return found
        seen = {ends[0][1][-1]}
        for weight, ids in ends[1:]:
            if len(found) == MOST_FURTHER:
                break
            self._decided(weight * scale, FURTHER_END)
            if weight * scale < FURTHER_END:
                break
            if ids[-1] not in seen:
                seen.add(ids[-1])
                found.append((ids, weight * scale))
        return found

    def unrestricted(self, state: State) -> State:
        """The state without its last restriction, if that excludes no token."""
        ids, tail, lent = state
        tokens = [[v for v, piece in self.tokens if self.can_be(piece, tail, known)] for known in (lent, lent[:-1])]
        return (ids, tail, lent[:-1]) if tokens[0] == tokens[1] else state

    def _given_up(self, b: bytes) -> Reading:
        """The most probable reading, ended by its canonical ids."""
        heaviest = sorted(self.readings, key=lambda reading: -reading.a)
        if len(heaviest) > 1:
            self._decided(heaviest[0].a, heaviest[1].a)
        c, half = self.canonical(heaviest[0].tail + b)
        return Reading((*heaviest[0].ids, *c), half, 1.0)

    def _kept(self, readings: list[Reading]) -> list[Reading]:
        readings = sorted(readings, key=lambda reading: -reading.a)
        for reading in readings[1:]:
            self._decided(reading.a, self.min_reading)
        readings = [r for n, r in enumerate(readings) if r.a > 0 and (n == 0 or r.a >= self.min_reading)]
        if len(readings) > self.max_readings:
            self._decided(readings[self.max_readings - 1].a, readings[self.max_readings].a)
            self.branches.append("too many readings")
        readings = readings[: self.max_readings]
        total = sum(reading.a for reading in readings)
        return [Reading(reading.ids, reading.tail, reading.a / total, reading.lent) for reading in readings]

    def _decided(self, first: float, second: float) -> None:
        if first != second or first != 0:
            self.margin = min(self.margin, abs(first - second) / max(abs(first), abs(second)))

    def state(self) -> dict[State, float]:
        """The readings as a table."""
        return {(reading.ids, reading.tail, reading.lent): reading.a for reading in self.readings}


class ReferenceRun:
    """A batch of `RuleReference`s with the interface of the package's run.

    Args:
        make (`Callable`): builds the reference of one row from its prompt.
    """

    def __init__(self, make: Callable[[Sequence[int]], RuleReference]) -> None:
        self.make = make
        self.rows: list[RuleReference] = []

    def begin(self, prompts: Sequence[Sequence[int]]) -> None:
        """Starts with one reading per row."""
        self.rows = [self.make(prompt) for prompt in prompts]

    def advance(self, updates: Sequence[tuple[bytes, float, float] | None]) -> None:
        """Takes `(b, r, q)` for each row that continues."""
        for row, update in zip(self.rows, updates, strict=True):
            if update is not None:
                row.update(*update)

    def distribution(self) -> np.ndarray:
        """`P(u)`, one row per row of the batch."""
        return np.stack([row.distribution() for row in self.rows])

    def proposed(self, union_ids: Sequence[int]) -> np.ndarray:
        """The parts of `P(u)` from whole and from unfinished tokens, for one union token per row: `(2, B)`."""
        return np.array([[p[u] for p in row.proposals()] for row, u in zip(self.rows, union_ids, strict=True)]).T

    def readings(self, row: int) -> list[tuple[tuple[int, ...], bytes, float, Lent]]:
        """`(ids, tail, a, lent)` of every reading that counts, most probable first."""
        live = sorted((reading for reading, _ in self.rows[row].live()), key=lambda reading: -reading.a)
        return [(reading.ids, reading.tail, reading.a, reading.lent) for reading in live]

    def reorder(self, rows: Sequence[int]) -> None:
        """Makes row `i` continue the old row `rows[i]`."""
        self.rows = [copy.copy(self.rows[row]) for row in rows]
        for row in self.rows:
            row.branches = list(row.branches)


class SegmentationReference:
    """Every sequence of tokens that spells the text so far, with exact weights; the last token may be unfinished.

    The member's probabilities are those of its text tokens and end ids, renormalised: the text contains no other
    special token.

    Args:
        those of `RuleReference`.
    """

    def __init__(
        self,
        vocabulary: ByteVocabulary,
        union: UnionVocabulary,
        end_ids: Sequence[int],
        next_probs: Probs,
        prompt: Sequence[int],
    ) -> None:
        self.vocabulary = vocabulary
        self.union = union
        self.end_ids = list(end_ids)
        self.raw_probs = next_probs
        self.prompt = tuple(prompt)
        self.text = b""
        self.tokens = [
            (i, piece)
            for i, piece in enumerate(vocabulary.pieces)
            if piece and i not in self.end_ids and i not in vocabulary.special_ids
        ]

    def p(self, ids: tuple[int, ...]) -> np.ndarray:
        """Probabilities of text tokens and end ids only, after `ids`."""
        p = np.zeros(len(self.vocabulary.pieces))
        counted = [i for i, _ in self.tokens] + self.end_ids
        p[counted] = np.asarray(self.raw_probs(ids))[counted]
        return p / p.sum()

    def weights_of_states(self) -> dict[State, float]:
        """`(ids, tail)` with the joint probability of writing `ids` and, with a tail, starting one more token."""
        found: dict[State, float] = {}

        def walk(ids: tuple[int, ...], at: int, weight: float) -> None:
            rest = self.text[at:]
            if not rest:
                found[(ids, b"")] = weight
                return
            p = self.p(ids)
            begun = sum(p[v] for v, piece in self.tokens if piece.startswith(rest) and len(piece) > len(rest))
            if begun > 0:
                found[(ids, rest)] = weight * begun
            for v, piece in self.tokens:
                if rest.startswith(piece) and p[v] > 0:
                    walk((*ids, v), at + len(piece), weight * p[v])

        walk(self.prompt, 0, 1.0)
        return found

    def state(self) -> dict[State, float]:
        """The posterior probability of every state."""
        weights = self.weights_of_states()
        total = sum(weights.values())
        return {state: weight / total for state, weight in weights.items()}

    def text_probability(self) -> float:
        """The probability that the member's own text begins with the text so far."""
        return float(sum(self.weights_of_states().values()))

    def next_byte_probability(self, byte: bytes) -> float:
        """The probability that the text continues with `byte`."""
        before = self.text_probability()
        self.text += byte
        after = self.text_probability()
        self.text = self.text[:-1]
        return after / before

    def stop_probability(self) -> float:
        """The probability that the member ends the text here."""
        return float(
            sum(
                weight * sum(self.p(ids)[v] for v in self.end_ids)
                for (ids, tail), weight in self.state().items()
                if not tail
            )
        )

    def update(self, b: bytes) -> None:
        """The text continues with `b`."""
        self.text += b


def sampled_states(
    reference: SegmentationReference, text: bytes, samples: int, rng: np.random.Generator
) -> dict[State, int]:
    """Samples from the member alone and counts its states after `text`, over the samples that begin with `text`."""
    counts: dict[State, int] = {}
    pieces = dict(reference.tokens)
    for _ in range(samples):
        ids, written = reference.prompt, b""
        while len(written) < len(text):
            p = reference.p(ids)
            v = int(rng.choice(len(p), p=p))
            if v in reference.end_ids:
                break
            more = written + pieces[v]
            if not (more.startswith(text) or text.startswith(more)):
                break
            if len(more) > len(text):
                state = (ids, text[len(written) :])
                counts[state] = counts.get(state, 0) + 1
                break
            ids, written = (*ids, v), more
            if written == text:
                counts[(ids, b"")] = counts.get((ids, b""), 0) + 1
    return counts
