"""How likely an ensemble finds texts, in whichever of its tokens it writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.vocabulary import ByteVocabulary

MAX_ROWS = 96
"""Particles of all passages that are read together."""


class TokenTable:
    """Which tokens may come next where the bytes that are left are known.

    Args:
        pieces (`Sequence[bytes | None]`): the bytes of every id, `ensemble.pieces`.

    Example:

    >>> ids, lengths = TokenTable([None, b"a", b"ab", b"b", b"abc"]).openings(b"ab")
    >>> ids.tolist(), lengths.tolist()
    ([1, 2, 4], [1, 2, 3])
    """

    def __init__(self, pieces: Sequence[bytes | None]) -> None:
        self.pieces = pieces
        self.max_piece = max((len(piece) for piece in pieces if piece), default=0)
        self._openings: dict[bytes, tuple[torch.Tensor, torch.Tensor]] = {}

    def openings(self, rest: bytes) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens whose bytes begin what is left, or begin with all of it (such a token reaches over its end).

        Args:
            rest (`bytes`): what is left, or its first `max_piece` bytes.

        Returns:
            `tuple[torch.LongTensor, torch.LongTensor]`: ids and their lengths in bytes.
        """
        known = self._openings.get(rest)
        if known is None:
            found = [
                (token, len(piece))
                for token, piece in enumerate(self.pieces)
                if piece and (rest.startswith(piece) or piece.startswith(rest))
            ]
            ids, lengths = torch.tensor(found, dtype=torch.long).view(-1, 2).unbind(1)
            known = self._openings[rest] = (ids, lengths)
        return known


@dataclass(frozen=True)
class Passage:
    """A text that is scored.

    Attributes:
        prompt (`str`): given, not scored.
        text (`bytes`): what follows it.
    """

    prompt: str
    text: bytes


@torch.no_grad()
def guesses_of(member: Any, passages: Sequence[Passage]) -> list[list[float]]:
    """A member's log-probability of what is left of each passage, at each of its places.

    By its own canonical tokens; inside a token the logarithm is interpolated.

    Args:
        member (`Member`): best one with short tokens.
        passages (`Sequence[Passage]`): N.

    Returns:
        `list[list[float]]`: N lists with one entry a byte, and 0.0 for the end.
    """
    vocabulary = ByteVocabulary(member.tokenizer, member.vocab_size)
    found = []
    for passage in passages:
        prompt = member.tokenizer(passage.prompt)["input_ids"]
        tokens = list(vocabulary.canonical_ids(passage.text))
        logits = member.model(input_ids=torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        logps = logits.double().log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()
        per_byte: list[float] = []
        for token, logp in zip(tokens, logps, strict=True):
            length = len(vocabulary.pieces[token] or b"")
            per_byte += [logp / length] * length
        left = [0.0]
        for logp in reversed(per_byte):
            left.append(left[-1] + logp)
        found.append(left[::-1])
    return found


@dataclass
class Particles:
    """Segmentations of beginnings of several passages, one a row.

    Attributes:
        owners (`list[int]`): the passage of each row.
        places (`list[int]`): how many bytes of it the row has written.
        weights (`torch.DoubleTensor` of shape `(R,)`): logarithms, in nats.
        paths (`list[tuple[int, ...]]`): the ids of each row.
    """

    owners: list[int]
    places: list[int]
    weights: torch.Tensor
    paths: list[tuple[int, ...]]


@dataclass
class Segmentations:
    """What was found of one passage.

    Attributes:
        log_weights (`list[float]`): of the segmentations that reached the end, in nats.
        paths (`list[tuple[int, ...]]`): their ids.
    """

    log_weights: list[float] = field(default_factory=list)
    paths: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def bits(self) -> float:
        """The passage's bits; infinity for a text that cannot be written."""
        return -float(torch.tensor(self.log_weights, dtype=torch.float64).logsumexp(0)) / math.log(2)

    def drawn(self, generator: torch.Generator) -> tuple[int, ...]:
        """One segmentation, by its weight."""
        chances = torch.tensor(self.log_weights, dtype=torch.float64).softmax(0)
        return self.paths[int(torch.multinomial(chances, 1, generator=generator))]


@torch.no_grad()
def segment(
    ensemble: EnsembleForCausalLM,
    passages: Sequence[Passage],
    guesses: Sequence[Sequence[float]],
    particles: int = 8,
    seed: int = 0,
) -> list[Segmentations]:
    """How an ensemble may write passages, and how likely it finds them, by particles.

    A particle is a beginning of the passage in some tokens, with a weight: its probability. In each step all particles
    go on by all tokens that go on with the text, and of more than `particles` continuations some are kept, so that no
    expectation changes (see `thinned`). The sum of the weights of those that reach the end is an unbiased estimate of
    the probability of all continuations that begin with the passage's bytes. Its logarithm is too low by about half its
    relative variance, so that bits are a little too high.

    Args:
        ensemble (`EnsembleForCausalLM`): with the policy that is measured.
        passages (`Sequence[Passage]`): N, with bytes that its members can write.
        guesses (`Sequence[Sequence[float]]`): one a passage, see `guesses_of`; a good guess keeps the variance small.
        particles (`int`, defaults to 8): the most that are kept of a passage.
        seed (`int`, defaults to 0): of the choice among them.

    Returns:
        `list[Segmentations]`: N of them.
    """
    generator = torch.Generator().manual_seed(seed)
    table = TokenTable(ensemble.pieces)
    order = sorted(range(len(passages)), key=lambda index: len(passages[index].text))
    size = max(1, MAX_ROWS // particles)
    found = [Segmentations() for _ in passages]
    for start in range(0, len(order), size):
        part = order[start : start + size]
        aims = [torch.tensor(guesses[index], dtype=torch.float64) for index in part]
        group = _Group(table, [passages[index] for index in part], aims, particles, [found[index] for index in part])
        _read(ensemble, group, generator)
    return found


@dataclass
class _Group:
    """Passages that are read together, what is guessed of them, and what is found."""

    table: TokenTable
    passages: Sequence[Passage]
    aims: Sequence[torch.Tensor]
    particles: int
    found: Sequence[Segmentations]


def _read(ensemble: EnsembleForCausalLM, group: _Group, generator: torch.Generator) -> None:
    count = len(group.passages)
    inputs = ensemble.tokenizer([passage.prompt for passage in group.passages], return_tensors="pt", padding=True)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    cache, columns = ensemble.new_cache(), ids.shape[1]
    rows = Particles([*range(count)], [0] * count, torch.zeros(count, dtype=torch.float64), [()] * count)
    while rows.owners:
        logits = ensemble(
            input_ids=ids, attention_mask=mask, past_key_values=cache, prompt_length=columns, logits_to_keep=1
        ).logits[:, -1]
        parents, rows = _continued(group, rows, logits.double().log_softmax(-1).cpu(), generator)
        if rows.owners:
            cache.reorder_cache(parents)  # type: ignore[arg-type]
            mask = torch.cat([mask[parents], mask.new_ones(len(parents), 1)], dim=1)
            ids = torch.tensor([path[-1:] for path in rows.paths])


def _continued(
    group: _Group, rows: Particles, logps: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, Particles]:
    """The rows one token further, and which of the old rows each continues; notes what has reached the end."""
    ways: list[list[tuple[torch.Tensor, ...]]] = [[] for _ in group.passages]
    for row, (owner, place) in enumerate(zip(rows.owners, rows.places, strict=True)):
        text = group.passages[owner].text
        tokens, lengths = group.table.openings(text[place : place + group.table.max_piece])
        weights = rows.weights[row] + logps[row, tokens]
        ways[owner].append((torch.full_like(tokens, row), tokens, place + lengths, weights))
    further = Particles([], [], torch.zeros(0, dtype=torch.float64), [])
    parents: list[int] = []
    for owner, entries in enumerate(ways):
        if not entries:
            continue
        parent, tokens, ends, weights = (torch.cat(column) for column in zip(*entries, strict=True))
        is_done, is_possible = ends >= len(group.passages[owner].text), weights > -torch.inf
        paths = [(*rows.paths[row], token) for row, token in zip(parent.tolist(), tokens.tolist(), strict=True)]
        done = (is_done & is_possible).nonzero()[:, 0]
        group.found[owner].log_weights += weights[done].tolist()
        group.found[owner].paths += [paths[index] for index in done.tolist()]
        going = (~is_done & is_possible).nonzero()[:, 0]
        kept, chances = thinned(weights[going] + group.aims[owner][ends[going]], group.particles, generator)
        going = going[kept]
        parents += parent[going].tolist()
        further.owners += [owner] * len(going)
        further.places += ends[going].tolist()
        further.weights = torch.cat([further.weights, weights[going] - chances])
        further.paths += [paths[index] for index in going.tolist()]
    return torch.tensor(parents, dtype=torch.long), further


def thinned(log_scores: torch.Tensor, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Which particles are kept, and the logarithms of the chances that they had.

    A particle with score s is kept with the chance `min(1, s / c)`, where c makes the chances sum to `count`; by
    systematic sampling, so that exactly `count` are kept. Divided by their chances, weights keep their expectation.

    Source: Fearnhead and Clifford, On-line inference for hidden Markov models via particle filters, 2003.

    Args:
        log_scores (`torch.DoubleTensor` of shape `(N,)`): finite.
        count (`int`): the most that are kept; all are where there are not more.
        generator (`torch.Generator`): of one number.

    Returns:
        `tuple[torch.LongTensor, torch.DoubleTensor]`: indices and logarithms of chances, `(min(N, count),)` each.

    Example:

    >>> kept, chances = thinned(torch.tensor([0.0, 9.0, 0.0]), 2, torch.Generator().manual_seed(0))
    >>> 1 in kept.tolist(), sorted(chances.exp().tolist())
    (True, [0.5, 1.0])
    """
    if len(log_scores) <= count:
        return torch.arange(len(log_scores)), torch.zeros_like(log_scores)
    scores = (log_scores - log_scores.max()).exp()
    large = scores.sort(descending=True).values
    tails = large.flip(0).cumsum(0).flip(0)
    # the first place at which a share of what is left is no more than that place's part of it
    sure = int((large[:count] * torch.arange(count, 0, -1) >= tails[:count]).long().cumprod(0).sum())
    limit = tails[sure] / (count - sure) if sure < count else torch.inf
    chances = (scores / limit).clamp(max=1.0)
    if sure:
        chances[scores >= large[sure - 1]] = 1.0
    cuts = (chances.cumsum(0) + torch.rand((), dtype=chances.dtype, generator=generator)).floor()
    kept = (cuts.diff(prepend=cuts.new_zeros(1)) > 0).nonzero()[:, 0]
    return kept, chances[kept].log()
