"""Probabilities of texts summed over segmentations, and the share of sampled words that are no words.

A text can be cut into union tokens in many ways, and an ensemble may write it in each of them:
`P(text) = sum over segmentations (u_1, ..., u_n) of prod_t P(u_t | prompt, u_1, ..., u_{t-1})`, where `u_n` may be
longer than what is left of the text.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from hf_rlae.vocabulary import UnionVocabulary
from hf_rlae.vocabulary.token_bytes import prefix_successor
from tests.benchmarks.rivals import Decoder, RetokenisingDecoder

WORD = re.compile(r"(?:[^\W\d_]|')+")
"""Letters and apostrophes."""

Report = Callable[[], None]


def openings(union: UnionVocabulary, text: bytes) -> list[list[tuple[int, int]]]:
    """For each position in a text the tokens that begin what is left of it, as (id, how many bytes of the text).

    A token may be longer than what is left: the probability of a text is that of all texts that begin with it.
    """
    pieces = sorted(union.id_of)
    found = []
    for at in range(len(text)):
        rest, after = text[at:], prefix_successor(text[at:])
        ways = [
            (union.id_of[rest[:length]], length)
            for length in range(1, min(union.max_piece, len(rest) - 1) + 1)
            if rest[:length] in union.id_of
        ]
        covering = pieces[bisect_left(pieces, rest) : len(pieces) if after is None else bisect_left(pieces, after)]
        found.append([*ways, *((union.id_of[piece], len(rest)) for piece in covering)])
    return found


def lookaheads(
    decoder: RetokenisingDecoder, prompts: Sequence[str], texts: Sequence[bytes], report: Report | None = None
) -> list[list[float]]:
    """Exact log-probabilities of what is left of each text at each position, where only the bytes count.

    Dynamic programming: `B(end) = 1`, `B(i) = sum over tokens u = text[i:j] of P(u | prompt + text[:i]) B(j)`, where
    tokens that begin with all of `text[i:]` count for the end, so that `B(0) = P(text)`.

    Args:
        decoder (`RetokenisingDecoder`): one row a text.
        prompts (`Sequence[str]`): given, not scored.
        texts (`Sequence[bytes]`): what follows each prompt.
        report (callable, *optional*): called after each position.

    Returns:
        `list[list[float]]`: for each text `log B(0), ..., log B(end)`, in nats.
    """
    found = [openings(decoder.union, text) for text in texts]
    steps: list[list[list[float]]] = [[] for _ in texts]
    decoder.start(prompts)
    for at in range(max(map(len, texts))):
        logps = decoder.read(prompts, [text[:at] for text in texts])
        for row, text in enumerate(texts):
            if at < len(text):
                steps[row].append(logps[row, [token for token, _ in found[row][at]]].tolist())
        if report:
            report()
    result = []
    for row, text in enumerate(texts):
        ahead = [-math.inf] * len(text) + [0.0]
        for at in range(len(text) - 1, -1, -1):
            ways = zip(found[row][at], steps[row][at], strict=True)
            ahead[at] = _logsumexp([logp + ahead[at + length] for (_, length), logp in ways])
        result.append(ahead)
    return result


def _logsumexp(values: Sequence[float]) -> float:
    high = max(values, default=-math.inf)
    return high if high == -math.inf else high + math.log(sum(math.exp(value - high) for value in values))


def keep_some(log_scores: torch.Tensor, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Keeps `count` of more particles so that no expectation changes, and the heaviest for sure.

    Particle `i` is kept with probability `p_i = min(1, s_i / c)`, where `c` makes the sum of the `p_i` `count`, by
    systematic sampling; its weight is then divided by `p_i`.

    Source: Fearnhead and Clifford (2003), On-line inference for hidden Markov models via particle filters.

    Args:
        log_scores (`torch.DoubleTensor` of shape `(N,)`): logarithms of the `s_i`.
        count (`int`): fewer than N.
        generator (`torch.Generator`): for the one uniform number that is drawn.

    Returns:
        `tuple`: the particles that are kept, and the logarithms of their `p_i`.
    """
    scores = (log_scores - log_scores.max()).exp()
    order = scores.argsort(descending=True)
    sorted_scores = scores[order]
    rest = sorted_scores.flip(0).cumsum(0).flip(0)
    threshold = rest / (count - torch.arange(len(scores)))
    surely = int((sorted_scores[:count] >= threshold[:count]).long().cumprod(0).sum())
    chances = torch.ones_like(scores)
    chances[surely:] = sorted_scores[surely:] / threshold[surely] if surely < count else 0
    cuts = (chances.cumsum(0) + torch.rand((), dtype=scores.dtype, generator=generator)).floor()
    kept = cuts.diff(prepend=cuts.new_zeros(1)) > 0
    return order[kept], chances[kept].log()


def particle_estimates(
    decoder: Decoder,
    prompts: Sequence[str],
    texts: Sequence[bytes],
    lookaheads: Sequence[Sequence[float]],
    particles: int,
    generator: torch.Generator,
) -> list[float]:
    """The log-probability of each text after its prompt, from an unbiased estimate of the probability by particles.

    Every particle is a segmentation of a beginning of its text, with a weight: its probability. In each step every
    particle is continued by every token that begins what is left of the text. Of more than `particles` continuations
    of a text so many are kept, by weight times `lookahead` at their position, and their weights are raised so that
    expectations do not change. The estimate is the sum of the weights of those that have reached the end of the text.
    It is unbiased for any lookahead, and exact as long as nothing had to be dropped. Its logarithm is not unbiased: it
    is too low by about half the estimate's relative variance.

    Args:
        decoder (`Decoder`): any.
        prompts (`Sequence[str]`): given, not scored.
        texts (`Sequence[bytes]`): what follows each prompt.
        lookaheads (`Sequence[Sequence[float]]`): for each position in each text a guess at the log-probability of the
            rest.
        particles (`int`): the most rows of a text.
        generator (`torch.Generator`): for the draws.
    """
    found = [openings(decoder.union, text) for text in texts]
    ahead = [torch.tensor(values, dtype=torch.float64) for values in lookaheads]
    finished: list[list[torch.Tensor]] = [[] for _ in texts]
    logps = decoder.start(prompts)
    owners, at, weights = list(range(len(texts))), [0] * len(texts), torch.zeros(len(texts), dtype=torch.float64)
    while owners:
        ways = [
            (owner, row, token, start + length)
            for row, (owner, start) in enumerate(zip(owners, at, strict=True))
            for token, length in found[owner][start]
        ]
        if not ways:
            break
        of_way, rows, tokens, ends = (torch.tensor(column) for column in zip(*ways, strict=True))
        weights = weights[rows] + logps[rows, tokens]
        kept: list[torch.Tensor] = []
        for owner in sorted(set(owners)):
            mine = (of_way == owner).nonzero()[:, 0]
            done = ends[mine] == len(texts[owner])
            finished[owner].append(weights[mine[done]])
            scores = weights[mine] + ahead[owner][ends[mine]]
            alive = ~done & (scores > -torch.inf)
            mine, scores = mine[alive], scores[alive]
            if len(mine) > particles:
                chosen, chances = keep_some(scores, particles, generator)
                mine = mine[chosen]
                weights[mine] -= chances
            kept.append(mine)
        going = torch.cat(kept)
        owners, at, weights = of_way[going].tolist(), ends[going].tolist(), weights[going]
        if owners:
            decoder.select(rows[going])
            logps = decoder.step(tokens[going])
    return [float(torch.cat(parts).logsumexp(0)) if parts else -math.inf for parts in finished]


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> tuple[float, float]:
    """The ratio of two sums over texts, and its standard error (by linearisation, texts independent)."""
    value = sum(numerators) / sum(denominators)
    count = len(numerators)
    if count < 2:
        return value, math.nan
    rest = [a - value * b for a, b in zip(numerators, denominators, strict=True)]
    return value, math.sqrt(count / (count - 1) * sum(r * r for r in rest)) / sum(denominators)


@dataclass(frozen=True)
class Sample:
    """A sampled text.

    Attributes:
        prompt (`str`): what was given.
        text (`bytes`): what was written.
        ended (`bool`): whether it was ended by the decoder and not by the limit.
    """

    prompt: str
    text: bytes
    ended: bool

    def words(self) -> list[str]:
        """The words that were sampled, lower-cased: not the prompt's, and not an unfinished last one."""
        whole = self.prompt + self.text.decode("utf-8", "replace")
        return [
            match.group().lower()
            for match in WORD.finditer(whole)
            if match.end() > len(self.prompt) and (self.ended or match.end() < len(whole))
        ]


def sample(
    decoder: Decoder,
    prompts: Sequence[str],
    num_bytes: int,
    generator: torch.Generator,
    report: Report | None = None,
) -> list[Sample]:
    """One continuation of each prompt at temperature 1, until it ends or has `num_bytes` bytes."""
    texts = [b""] * len(prompts)
    ended = [False] * len(prompts)
    rows = list(range(len(prompts)))
    logps = decoder.start(prompts)
    while True:
        tokens = torch.multinomial(logps.exp(), 1, generator=generator)[:, 0]
        kept = []
        for index, (row, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
            piece = decoder.union.pieces[token]
            if piece is None:
                ended[row] = True
                continue
            texts[row] += piece
            if len(texts[row]) < num_bytes:
                kept.append(index)
        if report:
            report()
        if not kept:
            break
        if len(kept) < len(rows):
            decoder.select(torch.tensor(kept))
            rows = [rows[index] for index in kept]
        logps = decoder.step(tokens[kept])
    return [Sample(*row) for row in zip(prompts, texts, ended, strict=True)]
