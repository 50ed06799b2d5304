"""Exact byte mixing: what an ensemble across tokenizers means, free of tokenization.

A member's probability of a text is the sum over all sequences of its tokens that write it, the last of which may be
longer than the text. A *path* is such a sequence up to its last whole token. With `text[m:n]` the bytes after that,
`P(text[:n] + c) = sum over paths W(path) * sum of p(v | path) over tokens v that begin with text[m:n] + c`.
Members are mixed byte by byte. Paths with a share of the text's probability below `min_share` are dropped, and what is
lost is counted. The most probable path that ends with the text is always kept, so that no surprise leaves nothing.

Source: covering sequences, as in byte-sampler (arXiv 2506.14123); here those of all segmentations.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from hf_rlae.vocabulary import ByteVocabulary
from hf_rlae.vocabulary.token_bytes import prefix_successor

Ids = tuple[int, ...]
NextProbs = Callable[[Sequence[Ids]], np.ndarray]
"""Probabilities `(N, V_m)` of a model after N contexts; each context but the prompts is a known one and one more id."""

STOP = 256
"""The column of the end of the text, behind the 256 bytes."""


@dataclass
class Predictions:
    """What one member expects after each beginning of one text.

    Attributes:
        probs (`np.ndarray` of shape `(len(text) + 1, 257)`): of each next byte, and of the end of the text.
        lost (`float`): the sum of the shares that paths had when they were dropped. The error of the text's
            log-probability is larger where they would have explained later bytes better than the others: compare with
            a smaller `min_share`.
        passes (`int`): how many contexts the model has read, the prompt's among them.
    """

    probs: np.ndarray
    lost: float = 0.0
    passes: int = 1


@dataclass
class _Path:
    ids: Ids
    at: int  # how many bytes of the text its tokens write
    weight: float  # relative to the probability of the text so far
    probs: np.ndarray = field(repr=False, default_factory=lambda: np.zeros(0))


class ByteMember:
    """One member's exact next-byte distributions.

    Args:
        vocabulary (`ByteVocabulary`): the member's tokens.
        end_ids (`Sequence[int]`): ids that end a text. Other ids without bytes are outside the distribution.
        next_probs (callable): the model, see `NextProbs`.
        min_share (`float`): paths with a smaller share of the text's probability are dropped; 0 keeps all.
    """

    def __init__(
        self, vocabulary: ByteVocabulary, end_ids: Sequence[int], next_probs: NextProbs, min_share: float = 0.0
    ) -> None:
        self.end_ids = list(end_ids)
        self.next_probs = next_probs
        self.min_share = min_share
        ends = set(end_ids)
        texts = zip(vocabulary.sorted_pieces, vocabulary.sorted_ids, strict=True)
        self._pieces, ids = zip(*(pair for pair in texts if pair[1] not in ends), strict=True)
        self._ids = np.array(ids)
        self._counted = np.array([*ids, *self.end_ids])
        self._ranges: dict[bytes, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def predict(self, prompts: Sequence[Sequence[int]], texts: Sequence[bytes]) -> list[Predictions]:
        """The distributions after each beginning of each text; texts advance together, byte by byte.

        Args:
            prompts (`Sequence[Sequence[int]]`): the member's own ids in front of each text.
            texts (`Sequence[bytes]`): what follows.

        Returns:
            `list[Predictions]`: one per text. Behind a byte that the member cannot write, probabilities are 0.
        """
        found = [Predictions(np.zeros((len(text) + 1, STOP + 1))) for text in texts]
        paths = [[_Path(tuple(prompt), 0, 1.0)] for prompt in prompts]
        self._read([path for row in paths for path in row])
        for at in range(max(map(len, texts)) + 1):
            new: list[_Path] = []
            for row, text in enumerate(texts):
                if at > len(text):
                    continue
                found[row].probs[at] = self._next(paths[row], text, at)
                if at < len(text):
                    paths[row], begun = self._advance(paths[row], text, at + 1, found[row])
                    found[row].passes += len(begun)
                    new += begun
            self._read(new)
        return found

    def _read(self, paths: Sequence[_Path]) -> None:
        if not paths:
            return
        for path, probs in zip(paths, self.next_probs([path.ids for path in paths]), strict=True):
            path.probs = np.zeros(len(probs))
            path.probs[self._counted] = probs[self._counted]
            path.probs /= path.probs.sum()

    def _tokens(self, tail: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The tokens whose bytes are `tail`; those that begin with it and are longer; the byte that follows in each."""
        if tail not in self._ranges:
            after = prefix_successor(tail)
            start, longer = bisect_left(self._pieces, tail), bisect_right(self._pieces, tail)
            end = len(self._pieces) if after is None else bisect_left(self._pieces, after)
            following = np.array([piece[len(tail)] for piece in self._pieces[longer:end]], dtype=int)
            self._ranges[tail] = self._ids[start:longer], self._ids[longer:end], following
        return self._ranges[tail]

    def _next(self, paths: Sequence[_Path], text: bytes, at: int) -> np.ndarray:
        total = np.zeros(STOP + 1)
        for path in paths:
            _, ids, following = self._tokens(text[path.at : at])
            total[:STOP] += path.weight * np.bincount(following, path.probs[ids], minlength=STOP)
            if path.at == at:
                total[STOP] += path.weight * path.probs[self.end_ids].sum()
        mass = total.sum()
        return total / mass if mass > 0 else total

    def _advance(
        self, paths: Sequence[_Path], text: bytes, at: int, found: Predictions
    ) -> tuple[list[_Path], list[_Path]]:
        """The paths after `text[:at]`, and those of them that end there, which the model has to read."""
        ways: list[tuple[float, _Path, int | None]] = []
        for path in paths:
            whole, longer, _ = self._tokens(text[path.at : at])
            ways.append((path.weight * path.probs[longer].sum(), path, None))
            ways += [(path.weight * path.probs[i], path, i) for i in whole.tolist()]
        total = sum(share for share, _, _ in ways)
        if total == 0:
            return [], []
        heaviest_end = max((way for way in ways if way[2] is not None), key=lambda way: way[0], default=None)
        kept = [way for way in ways if way[0] > 0 and (way[0] >= self.min_share * total or way is heaviest_end)]
        found.lost += 1 - sum(share for share, _, _ in kept) / total
        stays = [_Path(path.ids, path.at, path.weight / total, path.probs) for _, path, i in kept if i is None]
        ends = [_Path((*path.ids, i), at, share / total) for share, path, i in kept if i is not None]
        return [*stays, *ends], ends


def mix(members: Sequence[np.ndarray], weights: Sequence[float], power: float = 1.0, floor: float = 0.0) -> np.ndarray:
    """Mixes distributions byte by byte.

    Args:
        members (`Sequence[np.ndarray]`): one array `(..., 257)` per member.
        weights (`Sequence[float]`): one per member; their sum is 1. Members with weight 0 do not count.
        power (`float`): `p` is proportional to `(sum_k w_k p_k^power)^(1 / power)`: 1 is the mixture, 0 its limit, the
            product of experts.
        floor (`float`): how much of the members' mixture is added to each of them first.
    """
    probs = np.stack(members)
    shape = (-1,) + (1,) * (probs.ndim - 1)
    shares = np.array(weights).reshape(shape)
    probs = (probs + floor * (shares * probs).sum(0)) / (1 + floor)
    probs, shares = probs[shares.ravel() > 0], shares[shares.ravel() > 0]
    if power == 0:
        with np.errstate(divide="ignore"):
            mixed = np.exp((shares * np.log(probs)).sum(0))
    else:
        mixed = (shares * probs**power).sum(0) ** (1 / power)
    return mixed / np.maximum(mixed.sum(-1, keepdims=True), np.finfo(float).tiny)


def text_logps(probs: np.ndarray, text: bytes) -> np.ndarray:
    """The log-probability of each byte of a text, in nats, from the distributions after each beginning."""
    with np.errstate(divide="ignore"):
        return np.log(probs[np.arange(len(text)), list(text)])
