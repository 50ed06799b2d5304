"""The benchmarks' estimates against brute force on tiny tokenizers, and their decoders against plain runs."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hf_rlae import EnsembleForCausalLM, StaticPolicy
from hf_rlae.vocabulary import UnionVocabulary
from tests.benchmarks.estimators import (
    Sample,
    keep_some,
    lookaheads,
    openings,
    particle_estimates,
    ratio,
    sample,
)
from tests.benchmarks.rivals import AppendingDecoder, Decoder, EnsembleDecoder, Reader, RetokenisingDecoder
from tests.support.models import tiny
from tests.support.worlds import World, world

PROMPT = "ab"
TEXT = b"abbaab"
WEIGHTS = (0.7, 0.3)
MANY = 1000
"""More particles than the text has segmentations."""


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.inference_mode():
        yield


def ab_pair() -> World:
    """Two members that cut up texts of two letters differently."""
    full = world("ab")
    voices = full.voices[1:3]
    return World(voices, UnionVocabulary([voice.vocabulary for voice in voices]))


def decoder_of(kind: str) -> Decoder:
    members = [voice.member for voice in ab_pair().voices]
    if kind == "readings":
        return EnsembleDecoder(EnsembleForCausalLM.from_members(members, StaticPolicy(WEIGHTS)))
    return {"appending": AppendingDecoder, "retokenising": RetokenisingDecoder}[kind](members, WEIGHTS)


def segmentations(union: UnionVocabulary, text: bytes) -> list[list[int]]:
    """Every way to write a text, or one that begins with it, in union tokens of which none is behind the text."""
    if not text:
        return [[]]
    return [
        [token, *rest]
        for piece, token in union.id_of.items()
        if text.startswith(piece) or piece.startswith(text)
        for rest in segmentations(union, text[len(piece) :])
    ]


def by_stepping(decoder: Decoder, prompt: str, text: bytes) -> float:
    """The log-probability of a text from one run a segmentation, each from the prompt on."""
    total = 0.0
    for tokens in segmentations(decoder.union, text):
        logps, path = decoder.start([prompt]), 0.0
        for position, token in enumerate(tokens):
            path += float(logps[0, token])
            if position + 1 < len(tokens):
                logps = decoder.step(torch.tensor([token]))
        total += math.exp(path)
    return math.log(total)


def mixed_by_bytes(pair: World, contexts: Sequence[Sequence[int]], piece: bytes) -> float:
    """`P(piece)` after each member's own ids, from plain runs without a cache."""
    total = 0.0
    for voice, weight, ids in zip(pair.voices, WEIGHTS, contexts, strict=True):
        probs = voice.next_probs(ids)
        everything = probs[voice.text_ids].sum() + probs[list(voice.member.end_ids)].sum()
        total += weight * sum(probs[i] for i in voice.vocabulary.ids_of.get(piece, ())) / everything
    return float(total)


def written(pair: World, text: str) -> list[tuple[int, ...]]:
    """Each member's own ids of a text."""
    return [tuple(voice.member.tokenizer.backend_tokenizer.encode(text).ids) for voice in pair.voices]


class TableDecoder:
    """Log-probabilities drawn once for every history of a row; no model.

    Histories are part of the state of a row, so that a row that continues the wrong one is noticed.
    """

    def __init__(self, *pieces: bytes, stop: float = 0.0) -> None:
        self.union = SimpleNamespace(
            pieces=[*pieces, None],
            id_of={piece: i for i, piece in enumerate(pieces)},
            max_piece=max(map(len, pieces)),
        )
        self.stop = stop

    def start(self, prompts):
        self.histories = [(prompt,) for prompt in prompts]
        return self._logps()

    def step(self, tokens):
        self.histories = [(*h, token) for h, token in zip(self.histories, tokens.tolist(), strict=True)]
        return self._logps()

    def select(self, rows):
        self.histories = [self.histories[row] for row in rows.tolist()]

    def _logps(self):
        probs = []
        for history in self.histories:
            values = np.random.default_rng(abs(hash(history[1:])) % 2**32).gamma(0.5, size=len(self.union.id_of))
            probs.append([*(1 - self.stop) * values / values.sum(), self.stop])
        return torch.tensor(probs, dtype=torch.float64).log()


# probabilities of texts


def test_openings_are_the_union_tokens_that_begin_the_rest():
    union = ab_pair().union
    found = openings(union, b"aab")
    for at, ways in enumerate(found):
        rest = b"aab"[at:]
        expected = {token for piece, token in union.id_of.items() if rest.startswith(piece) or piece.startswith(rest)}
        assert {token for token, _ in ways} == expected
        assert len(ways) == len(expected)
        assert all(length == min(len(union.pieces[token]), len(rest)) for token, length in ways)
    assert any(len(union.pieces[token]) > 1 for token, _ in found[-1])


def test_lookaheads_sum_over_all_segmentations():
    pair = ab_pair()

    def rest(text: bytes, at: int) -> float:
        if at >= len(text):
            return 1.0
        contexts = written(pair, PROMPT + text[:at].decode())
        return sum(
            mixed_by_bytes(pair, contexts, piece) * rest(text, at + len(piece))
            for piece in pair.union.id_of
            if text.startswith(piece, at) or piece.startswith(text[at:])
        )

    texts = [TEXT, b"bab"]
    found = lookaheads(decoder_of("retokenising"), [PROMPT, PROMPT], texts)
    for text, ahead in zip(texts, found, strict=True):
        assert ahead == pytest.approx([math.log(rest(text, at)) for at in range(len(text) + 1)], abs=1e-4)


def test_lookaheads_report_every_position():
    calls = []
    lookaheads(decoder_of("retokenising"), [PROMPT], [b"aba"], report=lambda: calls.append(1))
    assert len(calls) == 3


@pytest.mark.parametrize("kind", ["appending", "retokenising", "readings"])
def test_particles_are_exact_when_nothing_is_dropped(kind):
    decoder = decoder_of(kind)
    texts = [TEXT[:5], b"ba"]
    guides = [[0.0] * (len(text) + 1) for text in texts]
    found = particle_estimates(decoder, [PROMPT] * 2, texts, guides, MANY, torch.Generator())
    assert len(segmentations(decoder.union, TEXT)) < MANY
    assert found == pytest.approx([by_stepping(decoder, PROMPT, text) for text in texts], abs=1e-4)


def test_particles_of_retokenising_are_its_lookaheads():
    decoder = decoder_of("retokenising")
    ahead = lookaheads(decoder, [PROMPT], [TEXT])[0]
    found = particle_estimates(decoder, [PROMPT], [TEXT], [ahead], MANY, torch.Generator())[0]
    assert found == pytest.approx(ahead[0], abs=1e-4)


@pytest.mark.parametrize("is_guided", [False, True])
def test_few_particles_are_unbiased(is_guided):
    decoder = TableDecoder(b"a", b"b", b"ab", b"ba")
    text, generator, runs = b"abab", torch.Generator().manual_seed(0), 400
    exact = math.exp(by_stepping(decoder, "", text))
    ahead = [-0.5 * (len(text) - at) * is_guided for at in range(len(text) + 1)]
    logps = particle_estimates(decoder, [""] * runs, [text] * runs, [ahead] * runs, 2, generator)
    found = [math.exp(logp) for logp in logps]
    error = np.std(found) / math.sqrt(len(found))
    assert 0 < error < 0.2 * exact, "the particles must have something to drop"
    assert np.mean(found) == pytest.approx(exact, abs=4 * error)


# which particles are kept


@pytest.mark.parametrize("count", [1, 3, 6])
def test_kept_particles_are_as_likely_as_they_say(count):
    scores = torch.tensor([0.5, 8.0, 0.1, 1.0, 2.0, 0.4, 3.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    draws, chances = 2000, torch.zeros(len(scores), dtype=torch.float64)
    counts = torch.zeros_like(chances)
    for _ in range(draws):
        kept, log_chances = keep_some(scores.log(), count, generator)
        assert len(kept) == len(kept.unique()) == count
        counts[kept] += 1
        chances[kept] = log_chances.exp()
    # min(1, s / c) for the one c with which they sum to the count
    assert chances.sum() == pytest.approx(count)
    unsure = chances < 1
    scale = (chances[unsure] / scores[unsure]).mean()
    torch.testing.assert_close(chances, (scores * scale).clamp(max=1.0))
    errors = (chances * (1 - chances) / draws).sqrt()
    assert ((counts / draws - chances).abs() <= 4 * errors + 1e-12).all()


def test_impossible_particles_are_never_kept():
    scores = torch.tensor([-math.inf, 0.0, -math.inf, 1.0, 0.5], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        kept, _ = keep_some(scores, 2, generator)
        assert set(kept.tolist()) <= {1, 3, 4}


# ratios and words


def test_ratio_and_its_standard_error():
    value, error = ratio([1.0, 2.0, 6.0], [2.0, 2.0, 4.0])
    rest = [1 - 2 * 9 / 8, 2 - 2 * 9 / 8, 6 - 4 * 9 / 8]
    assert value == 9 / 8
    assert error == pytest.approx(math.sqrt(3 / 2 * sum(r * r for r in rest)) / 8)


def test_ratio_with_equal_denominators_is_the_mean():
    values = [0.3, 0.9, 0.1, 0.5]
    value, error = ratio(values, [1.0] * 4)
    assert value == pytest.approx(np.mean(values))
    assert error == pytest.approx(np.std(values, ddof=1) / 2)


def test_one_text_has_no_standard_error():
    value, error = ratio([3.0], [2.0])
    assert value == 1.5
    assert math.isnan(error)


@pytest.mark.parametrize(
    ("prompt", "text", "ended", "words"),
    [
        ("The dog", b" ran Home.", True, ["ran", "home"]),
        ("The dog", b" ran Home", True, ["ran", "home"]),
        ("The dog", b" ran Ho", False, ["ran"]),
        ("The dog", b"gy ran. ", False, ["doggy", "ran"]),
        ("The dog", b"", True, []),
        ("The dog", b"", False, []),
        ("", b"It's 3 o'clock,", False, ["it's", "o'clock"]),
        ("A", " caf\u00e9 ".encode(), False, ["caf\u00e9"]),
        ("A", b" caf\xc3", False, ["caf"]),
    ],
)
def test_sampled_words(prompt, text, ended, words):
    assert Sample(prompt, text, ended).words() == words


# sampling


def test_samples_end_by_stop_or_by_length():
    decoder = TableDecoder(b"a", b"bb", stop=0.1)
    found = sample(decoder, [str(i) for i in range(30)], 6, torch.Generator().manual_seed(0))
    assert [entry.prompt for entry in found] == [str(i) for i in range(30)]
    assert {entry.ended for entry in found} == {False, True}
    for entry in found:
        assert entry.text.replace(b"bb", b"").strip(b"a") == b""
        assert len(entry.text) < 6 if entry.ended else 6 <= len(entry.text) <= 7


def test_samples_follow_the_decoder():
    decoder, count = TableDecoder(b"a", b"b", stop=0.3), 4000
    found = sample(decoder, [""] * count, 2, torch.Generator().manual_seed(0))
    ids = decoder.union.id_of
    logps = decoder.start([""])
    after_a = decoder.step(torch.tensor([ids[b"a"]]))
    expected = {
        (b"", True): float(logps[0, -1].exp()),
        (b"a", True): float((logps[0, ids[b"a"]] + after_a[0, -1]).exp()),
        (b"ab", False): float((logps[0, ids[b"a"]] + after_a[0, ids[b"b"]]).exp()),
    }
    for (text, ended), chance in expected.items():
        share = sum((entry.text, entry.ended) == (text, ended) for entry in found) / count
        assert share == pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / count))


# decoders


def test_reader_is_a_run_from_scratch():
    voice, rng = world("ab").voices[1], random.Random(0)
    ids = voice.text_ids
    contexts = [tuple(rng.choices(ids, k=length)) for length in (3, 1, 5)]
    reader = Reader(voice.member.model)
    for step in range(12):
        torch.testing.assert_close(
            reader.read(contexts).double(),
            torch.tensor(np.stack([voice.next_probs(context) for context in contexts])),
            atol=1e-5,
            rtol=1e-4,
        )
        if step % 4 == 3:  # also fewer and more rows
            rows = [rng.randrange(len(contexts)) for _ in range(rng.randint(1, 4))]
            reader.select(torch.tensor(rows))
            contexts = [contexts[row] for row in rows]
        # some rows are cut back, even to nothing in common, or stay as they are
        contexts = [
            (context[: rng.randint(0, len(context))] if rng.random() < 0.5 else context)
            + tuple(rng.choices(ids, k=rng.randint(0, 3)))
            for context in contexts
        ]
        contexts = [context or (ids[0],) for context in contexts]


def test_reader_forgets():
    voice = world("ab").voices[1]
    reader, ids = Reader(voice.member.model), voice.text_ids
    reader.read([tuple(ids[:3])])
    reader.reset()
    found = reader.read([(ids[1],), (ids[0], ids[2])])
    expected = np.stack([voice.next_probs((ids[1],)), voice.next_probs((ids[0], ids[2]))])
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("architecture", ["rwkv", "mistral"])
def test_reader_refuses_models_that_do_not_see_the_whole_text(architecture):
    with pytest.raises(ValueError, match="full attention"):
        Reader(tiny(architecture, 20))


def test_appending_gives_every_member_the_emitted_pieces():
    pair, decoder = ab_pair(), decoder_of("appending")
    contexts = written(pair, PROMPT)
    logps = decoder.start([PROMPT])
    for piece in (b"ba", b"a", b"ab", b"bb"):
        token = decoder.union.id_of[piece]
        assert float(logps[0, token].exp()) == pytest.approx(mixed_by_bytes(pair, contexts, piece), abs=1e-5)
        logps = decoder.step(torch.tensor([token]))
        for index, voice in enumerate(pair.voices):
            known = voice.vocabulary.ids_of.get(piece)
            contexts[index] += (known[0],) if known else voice.vocabulary.canonical_ids(piece)


@pytest.mark.parametrize("kind", ["appending", "retokenising", "readings"])
def test_selected_rows_go_on_where_they_were(kind):
    decoder = decoder_of(kind)
    tokens = [decoder.union.id_of[piece] for piece in (b"a", b"b", b"ab")]
    decoder.start([PROMPT] * 3)
    decoder.step(torch.tensor(tokens))
    decoder.select(torch.tensor([2, 0, 2, 1]))
    found = decoder.step(torch.tensor([tokens[1], tokens[2], tokens[0], tokens[1]]))
    for row, (first, second) in enumerate([(2, 1), (0, 2), (2, 0), (1, 1)]):
        decoder.start([PROMPT])
        decoder.step(torch.tensor([tokens[first]]))
        expected = decoder.step(torch.tensor([tokens[second]]))[0]
        torch.testing.assert_close(found[row].exp(), expected.exp(), atol=1e-5, rtol=1e-4)


def test_readings_decode_as_generate_does():
    decoder = decoder_of("readings")
    ensemble = decoder.ensemble
    prompts = [PROMPT, "abbab"]
    batch = ensemble.tokenizer(prompts, return_tensors="pt", padding=True)
    output = ensemble.generate(
        **batch, max_new_tokens=6, min_new_tokens=6, output_logits=True, return_dict_in_generate=True
    )
    width = batch["input_ids"].shape[1]
    logps = decoder.start(prompts)
    for step, logits in enumerate(output.logits):
        torch.testing.assert_close(logps.exp(), logits.double().softmax(-1), atol=1e-5, rtol=1e-4)
        logps = decoder.step(output.sequences[:, width + step])
    assert len(output.logits) == 6
