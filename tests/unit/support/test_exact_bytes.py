"""The reference of exact byte mixing against an enumeration of everything that a tiny member may write."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict

import numpy as np
import pytest

from tests.support.exact_bytes import STOP, ByteMember, mix, text_logps
from tests.support.models import tiny
from tests.support.tree_reader import TreeReader
from tests.support.worlds import Voice, world

LENGTH = 3
VOICES = [("ab", 0), ("ab", 1), ("ab", 2), ("ab", 3), ("accent", 1), ("pieces", 1)]


def voice_of(kind: str, index: int) -> Voice:
    return world(kind).voices[index]


def prompt_of(voice: Voice) -> tuple[int, ...]:
    return tuple(voice.text_ids[:2])


def reference(voice: Voice, min_share: float = 0.0) -> ByteMember:
    def next_probs(contexts):
        return np.stack([voice.next_probs(ids) for ids in contexts])

    return ByteMember(voice.vocabulary, voice.member.end_ids, next_probs, min_share)


def everything(voice: Voice, length: int) -> tuple[dict[bytes, float], dict[bytes, float]]:
    """Probabilities of all beginnings of so many bytes, and of all shorter texts that end, written token by token."""
    begun: dict[bytes, float] = defaultdict(float)
    ended: dict[bytes, float] = defaultdict(float)
    counted = [*voice.text_ids, *voice.member.end_ids]

    def write(ids: tuple[int, ...], text: bytes, weight: float) -> None:
        if len(text) >= length:
            begun[text[:length]] += weight
            return
        probs = voice.next_probs(ids)
        total = probs[counted].sum()
        ended[text] += weight * probs[list(voice.member.end_ids)].sum() / total
        for i in voice.text_ids:
            write((*ids, i), text + voice.vocabulary.pieces[i], weight * probs[i] / total)

    write(prompt_of(voice), b"", 1.0)
    return begun, ended


@pytest.mark.parametrize(("kind", "index"), VOICES)
def test_texts_are_as_probable_as_all_that_writes_them(kind, index):
    voice = voice_of(kind, index)
    begun, ended = everything(voice, LENGTH)
    texts = list(begun)
    found = reference(voice).predict([prompt_of(voice)] * len(texts), texts)
    for text, entry in zip(texts, found, strict=True):
        chances = np.exp(np.cumsum([0.0, *text_logps(entry.probs, text)]))
        assert chances[-1] == pytest.approx(begun[text], rel=1e-9)
        for at in range(LENGTH):
            assert chances[at] * entry.probs[at, STOP] == pytest.approx(ended[text[:at]], rel=1e-9)
        assert entry.lost == 0
    assert sum(begun.values()) + sum(ended.values()) == pytest.approx(1)


@pytest.mark.parametrize(("power", "floor"), [(1, 0), (0.5, 0), (0, 1e-6)])
def test_mixtures_of_members_are_distributions_over_texts(power, floor):
    """The probabilities of all texts of a length, and of those that end before, are 1 in total."""
    voices = [voice_of("ab", 1), voice_of("ab", 2)]
    texts = [bytes(letters) for letters in itertools.product(b"ab", repeat=LENGTH)]
    members = [reference(voice).predict([prompt_of(voice)] * len(texts), texts) for voice in voices]
    total, ended = 0.0, {}
    for row, text in enumerate(texts):
        mixed = mix([member[row].probs for member in members], [0.7, 0.3], power, floor)
        np.testing.assert_allclose(mixed.sum(-1), 1)
        chances = np.exp(np.cumsum([0.0, *text_logps(mixed, text)]))
        total += chances[-1]
        ended |= {text[:at]: chances[at] * mixed[at, STOP] for at in range(LENGTH)}
    assert total + sum(ended.values()) == pytest.approx(1, abs=1e-3 if floor else 1e-9)


def test_dropped_paths_are_counted():
    voice, text = voice_of("ab", 1), b"abbaabab"
    exact, fine, coarse = (reference(voice, s).predict([prompt_of(voice)], [text])[0] for s in (0.0, 1e-4, 0.02))
    assert exact.lost == 0 < fine.lost < coarse.lost < 1
    assert coarse.passes < fine.passes < exact.passes
    errors = [text_logps(entry.probs, text).sum() - text_logps(exact.probs, text).sum() for entry in (fine, coarse)]
    assert 0 < abs(errors[0]) < 0.01 < abs(errors[1])


@pytest.mark.parametrize("text", [b"abbaabab", b"bbbbbbbb"])
def test_no_text_becomes_impossible_when_nearly_all_paths_are_dropped(text):
    voice = voice_of("ab", 1)
    entry = reference(voice, 0.99).predict([prompt_of(voice)], [text])[0]
    assert np.isfinite(text_logps(entry.probs, text)).all()
    assert entry.passes <= len(text) + 1


def test_texts_of_different_lengths_are_as_if_alone():
    voice = voice_of("ab", 2)
    texts = [b"abba", b"", b"ba"]
    member = reference(voice)
    together = member.predict([prompt_of(voice)] * 3, texts)
    for text, entry in zip(texts, together, strict=True):
        alone = member.predict([prompt_of(voice)], [text])[0]
        np.testing.assert_array_equal(entry.probs, alone.probs)
        assert entry.passes == alone.passes


def test_bytes_that_a_member_cannot_write_are_impossible():
    voice = voice_of("accent", 0)
    entry = reference(voice).predict([prompt_of(voice)], ["éa".encode()])[0]
    assert entry.probs[0].sum() == pytest.approx(1)
    assert entry.probs[0, 0xC3] == 0
    assert not entry.probs[1:].any()


@pytest.mark.parametrize(
    ("power", "expected"),
    [
        pytest.param(1.0, [0.1, 0.5, 0.4], id="mixture"),
        pytest.param(0.0, [0.0, 0.55051026, 0.44948974], id="product, where one member gives nothing"),
    ],
)
def test_mixings(power, expected):
    members = [np.array([0.0, 0.6, 0.4]), np.array([0.2, 0.4, 0.4])]
    np.testing.assert_allclose(mix(members, [0.5, 0.5], power), expected, atol=1e-8)


def test_power_mixing_approaches_the_product():
    members = [np.array([0.2, 0.5, 0.3]), np.array([0.6, 0.1, 0.3])]
    np.testing.assert_allclose(mix(members, [0.8, 0.2], 1e-5), mix(members, [0.8, 0.2], 0), atol=1e-4)


def test_a_member_without_weight_does_not_count():
    members = [np.array([0.2, 0.8]), np.array([0.0, 1.0])]
    for power in (1, 0.5, 0):
        np.testing.assert_allclose(mix(members, [1, 0], power), members[0])


def test_tree_reader_is_a_run_from_scratch():
    voice, rng = voice_of("ab", 1), random.Random(0)
    reader, ids = TreeReader(voice.member.model, max_rows=4), voice.text_ids
    known = [tuple(rng.choices(ids, k=length)) for length in (1, 4, 2)]
    for step in range(8):
        if step:
            known += [(*rng.choice(known), rng.choice(ids)) for _ in range(6)]
        contexts = list(dict.fromkeys(known[-6:]))
        expected = np.stack([voice.next_probs(context) for context in contexts])
        np.testing.assert_allclose(reader.read(contexts), expected, atol=1e-5)


def test_tree_reader_refuses_recurrent_models():
    with pytest.raises(ValueError, match="full attention"):
        TreeReader(tiny("rwkv", 20))
