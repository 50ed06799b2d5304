"""The rows of the benchmark across tokenizers: one member, exact byte mixing, or a decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from hf_rlae import EnsembleConfig, EnsembleForCausalLM, Member, StaticPolicy
from hf_rlae.ensemble.mixing import PowerMixing
from hf_rlae.ensemble.mixing.log import FLOOR
from hf_rlae.errors import ConfigError
from hf_rlae.vocabulary import ByteVocabulary
from tests.benchmarks.decoding_cost import Cost, cost_alone, cost_of_sampling, own_tokens
from tests.benchmarks.estimators import WORD, lookaheads, openings, particle_estimates, sample
from tests.benchmarks.passages import Passage
from tests.benchmarks.rivals import AppendingDecoder, Decoder, EnsembleDecoder, RetokenisingDecoder
from tests.support.exact_bytes import ByteMember, Predictions, mix, text_logps
from tests.support.tree_reader import TreeReader

MIN_SHARE = 1e-4
"""Paths of exact byte mixing with a smaller share are dropped; 1e-7 changes bits per byte of these members by at most
4e-5."""

POWERS = {"linear": 1.0, "power": PowerMixing().exponent, "log": 0.0}
ENSEMBLES: tuple[dict[str, str], ...] = (
    {},
    {"weight_unit": "byte"},
    {"grain": "common"},
    {"grain": "character"},
    {"grain": "character", "mixing": "log"},
    {"grain": "byte"},
    {"grain": "byte", "mixing": "power"},
    {"grain": "byte", "mixing": "log"},
    {"grain": "auto"},
)
"""Options of the ensembles that are measured, from coarse to fine."""


@dataclass(frozen=True)
class Row:
    """What is measured.

    Attributes:
        kind (`str`): `"alone"`, `"exact"`, `"ensemble"`, `"appending"` or `"retokenising"`.
        weights (`tuple[float, ...]`): of the members; one-hot for a member alone.
        grain (`str`), mixing (`str`), weight_unit (`str`): options of the ensemble; exact byte mixing has `mixing`
            only.
    """

    kind: str
    weights: tuple[float, ...]
    grain: str = "token"
    mixing: str = "linear"
    weight_unit: str = "token"

    @property
    def name(self) -> str:
        """As in the tables and in the option `--rows`."""
        parts = [{"exact": "exact bytes", "ensemble": f"grain {self.grain}"}.get(self.kind, self.kind)]
        if self.mixing != "linear":
            parts.append(self.mixing)
        if self.weight_unit != "token":
            parts.append(f"shares of {self.weight_unit}s")
        return ", ".join(parts)

    @property
    def options(self) -> dict[str, str]:
        """The options of the ensemble that are not the defaults."""
        given = {"grain": self.grain, "mixing": self.mixing, "weight_unit": self.weight_unit}
        return {name: value for name, value in given.items() if value != getattr(EnsembleConfig(), name)}


@dataclass(frozen=True)
class Score:
    """What was measured of one row.

    Attributes:
        bits (`list[float]`): of each line.
        words (`list[int]`), unknown (`list[int]`): of each sampled text; empty where none were sampled.
        cost (`Cost`, *optional*): of writing.
        grain (`str`): the grain that was used.
        lost (`float`): what exact byte mixing dropped, see `Predictions`, in nats per byte.
    """

    bits: list[float]
    words: list[int] = field(default_factory=list)
    unknown: list[int] = field(default_factory=list)
    cost: Cost | None = None
    grain: str = ""
    lost: float = 0.0


def rows_of(num_members: int, weights: Sequence[tuple[float, ...]]) -> list[Row]:
    """Every row of members with these weights, those that others are compared with first."""
    one_hot = [tuple(float(k == member) for k in range(num_members)) for member in range(num_members)]
    rows = [Row("alone", shares) for shares in one_hot]
    for shares in weights:
        rows += [Row("exact", shares, mixing=mixing) for mixing in POWERS]
        rows += [Row("appending", shares), Row("retokenising", shares)]
        rows += [Row("ensemble", shares, **options) for options in ENSEMBLES if are_options(options)]
    return rows


def are_options(options: dict[str, str]) -> bool:
    """Whether this version of the package has these options with these values."""
    try:
        EnsembleConfig(**options)
    except ConfigError:
        return False
    return True


class Measurer:
    """Measures rows on the same lines, with the same prompts for sampled texts.

    Args:
        members (`Sequence[Member]`): of the rows.
        passages (`Sequence[Passage]`): what is scored.
        prompts (`Sequence[str]`): texts are sampled from these; the first `cost_texts` of them again for the cost.
        known_words (`set[str]`): the words that are not unknown.
        num_bytes (`int`), particles (`int`), seed (`int`), cost_texts (`int`), batch (`int`): see the options of the
            command.
    """

    def __init__(
        self,
        members: Sequence[Member],
        passages: Sequence[Passage],
        prompts: Sequence[str],
        known_words: set[str],
        num_bytes: int,
        particles: int,
        seed: int,
        cost_texts: int,
        batch: int = 256,
    ) -> None:
        self.members = list(members)
        self.passages = list(passages)
        self.texts = [passage.text for passage in passages]
        self.prompts = list(prompts)
        self.known_words = known_words
        self.num_bytes = num_bytes
        self.particles = particles
        self.seed = seed
        self.cost_prompts = self.prompts[:cost_texts]
        self.batch = batch

    @cached_property
    def exact(self) -> list[list[Predictions]]:
        """What each member expects after each byte of each line."""
        found = []
        for member in self.members:
            vocabulary = ByteVocabulary(member.tokenizer, member.vocab_size)
            reader = TreeReader(member.model, self.batch)
            encode = member.tokenizer.backend_tokenizer.encode
            prompts = [tuple(encode(passage.prompt).ids) for passage in self.passages]
            found.append(ByteMember(vocabulary, member.end_ids, reader.read, MIN_SHARE).predict(prompts, self.texts))
        return found

    def exact_logps(self, weights: Sequence[float], mixing: str = "linear") -> list[list[float]]:
        """Exact log-probabilities of the bytes of each line."""
        floor = FLOOR if mixing == "log" else 0.0  # as in the package
        return [
            text_logps(mix([p.probs for p in predictions], weights, POWERS[mixing], floor), text).tolist()
            for text, *predictions in zip(self.texts, *self.exact, strict=True)
        ]

    def measure(self, row: Row) -> Score:
        """The score of a row."""
        if row.kind == "exact":
            return self._exact(row)
        if row.kind == "alone":
            return self._alone(row)
        decoder = self._decoder(row)
        if isinstance(decoder, RetokenisingDecoder):
            ahead = self._retokenised(decoder)
            bits = [-logps[0] / math.log(2) for logps in ahead]
        else:
            bits = self._estimated(decoder, row)
        words, unknown = self._words(decoder)
        cost, grain = None, ""
        if isinstance(decoder, EnsembleDecoder):
            grain = row.grain
            if row.grain == "auto":
                grain = decoder.ensemble.union.grain
            if self.cost_prompts and row.mixing == "linear":  # the other mixings cost the same
                options = (self.cost_prompts, self.num_bytes, self._generator())
                cost = cost_of_sampling(decoder, self.members, *options)
        return Score(bits, words, unknown, cost, grain)

    def chosen_grain(self, row: Row) -> str:
        """The grain of a row, which `"auto"` leaves to the ensemble."""
        if row.grain != "auto":
            return row.grain
        decoder = self._decoder(row)
        assert isinstance(decoder, EnsembleDecoder)
        return decoder.ensemble.union.grain

    def _exact(self, row: Row) -> Score:
        bits = [-sum(logps) / math.log(2) for logps in self.exact_logps(row.weights, row.mixing)]
        running = [member for member, weight in zip(self.exact, row.weights, strict=True) if weight > 0]
        length = sum(map(len, self.texts))
        pairs = [(passage.prompt, passage.text) for passage in self.passages]
        cost = Cost(
            length,
            [sum(entry.passes for entry in member) for member in running],
            [own_tokens(member, pairs) for member in self.members],
        )
        return Score(bits, cost=cost, lost=sum(entry.lost for member in running for entry in member) / length)

    def _alone(self, row: Row) -> Score:
        index = row.weights.index(1.0)
        member = self.members[index]
        bits = [-sum(logps) / math.log(2) for logps in self.exact_logps(row.weights)]
        words, unknown = self._words(AppendingDecoder([member], [1.0]))
        cost = cost_alone(member, self.cost_prompts, self.num_bytes, self.seed) if self.cost_prompts else None
        return Score(
            bits, words, unknown, cost, lost=sum(e.lost for e in self.exact[index]) / sum(map(len, self.texts))
        )

    def _decoder(self, row: Row) -> Decoder:
        if row.kind == "appending":
            return AppendingDecoder(self.members, row.weights)
        if row.kind == "retokenising":
            return RetokenisingDecoder(self.members, row.weights)
        ensemble = EnsembleForCausalLM.from_members(self.members, StaticPolicy(row.weights), **row.options)
        return EnsembleDecoder(ensemble)

    def _estimated(self, decoder: Decoder, row: Row) -> list[float]:
        """Bits of each line; particles are guided by what exact byte mixing gives to the rest of the line."""
        if all(len(ways) < 2 for text in self.texts for ways in openings(decoder.union, text)):
            particles, guides = 1, [[0.0] * (len(text) + 1) for text in self.texts]
        else:
            particles, guides = self.particles, self._guides(row)
        bits: list[float] = []
        generator, size = self._generator(), max(1, self.batch // particles)
        for start in range(0, len(self.passages), size):
            part = self.passages[start : start + size]
            prompts, texts = [passage.prompt for passage in part], [passage.text for passage in part]
            logps = particle_estimates(decoder, prompts, texts, guides[start : start + size], particles, generator)
            bits += [-logp / math.log(2) for logp in logps]
        return bits

    def _guides(self, row: Row) -> list[list[float]]:
        guides = []
        for logps in self.exact_logps(row.weights, row.mixing):
            rest = torch.tensor([*logps, 0.0], dtype=torch.float64).flip(0).cumsum(0).flip(0)
            guides.append(rest.clamp(min=-1e4).tolist())
        return guides

    def _retokenised(self, decoder: RetokenisingDecoder) -> list[list[float]]:
        return lookaheads(decoder, [passage.prompt for passage in self.passages], self.texts)

    def _words(self, decoder: Decoder) -> tuple[list[int], list[int]]:
        """How many words of each sampled text there are, and how many of them are unknown."""
        if not self.prompts:
            return [], []
        found = [text.words() for text in sample(decoder, self.prompts, self.num_bytes, self._generator())]
        return [len(words) for words in found], [sum(word not in self.known_words for word in words) for words in found]

    def _generator(self) -> torch.Generator:
        """A new source of chance, the same for every row."""
        return torch.Generator().manual_seed(self.seed)


def words_in(text: str) -> set[str]:
    """The lower-cased words of a text."""
    return {match.group().lower() for match in WORD.finditer(text)}
