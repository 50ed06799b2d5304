"""At every grain, a member alone writes byte strings with its own probabilities."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest
import torch

from hf_rlae.vocabulary.grain import GRAINS
from tests.support.worlds import bpe, build, pieces_only

EXACT = {"max_readings": 1000, "min_reading": 1e-12}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """One thread: for such small models, several threads are slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def code_world(grain):
    """Three voices that split every text of their own in one way, as all tokens begin with `a` or `d`.

    Common strings are the bytes, `ab` and `dbc`, so that `ab` receives `abc` and `abcb`, and `a` receives `acb` alone.
    """
    return build(
        [
            pieces_only("a", "ab", "abc", "abcb", "acb", "d", "db", "dbc", "dbcb", "dé", "d€"),
            pieces_only("a", "ab", "ac", "acbb", "d", "dbc", "dbcc", "dé€"),
            bpe("abcdé€", "a b", "d b", "db c"),
        ],
        1,
    ).at(grain)


def splits(text, strings):
    """All sequences of the strings that spell the text."""
    if not text:
        yield ()
    for length in range(1, len(text) + 1):
        if text[:length] in strings:
            yield from ((text[:length], *rest) for rest in splits(text[length:], strings))


def probabilities_of_texts(place, k, prompt, texts, **options):
    """The probability that voice `k` alone writes each text and stops, over all its splits into union strings."""
    id_of, stop = place.union.id_of, place.union.stop_id
    ways = [(at, way) for at, text in enumerate(texts) for way in splits(text, id_of)]
    run, total = place.run(k, **options), np.ones(len(ways))
    run.begin([prompt] * len(ways))
    for step in range(1 + max(len(way) for _, way in ways)):
        ids = [id_of[way[step]] if step < len(way) else stop for _, way in ways]
        probs = run.distribution()
        shares = run.proposed([i if i != stop else 0 for i in ids])
        total *= [row[i] if step <= len(way) else 1.0 for row, i, (_, way) in zip(probs, ids, ways, strict=True)]
        updates = []
        for row, (_, way) in enumerate(ways):
            whole, unfinished = (shares[:, row] / max(shares[:, row].sum(), 1e-30)).tolist()
            updates.append((way[step], whole, unfinished) if step < len(way) else None)
        if any(updates):
            run.advance(updates)
    return np.bincount([at for at, _ in ways], total, len(texts))


def texts_of(place, k, longest):
    """All texts of at most so many tokens of a voice."""
    pieces = [place.voices[k].vocabulary.pieces[i] for i in place.voices[k].text_ids]
    return sorted({b"".join(ids) for n in range(longest + 1) for ids in itertools.product(pieces, repeat=n)})


@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("grain", GRAINS)
def test_a_member_alone_writes_every_text_with_its_own_probability(grain, k):
    """Law: the probability of a text, summed over its splits into union strings, is the member's own."""
    place = code_world(grain)
    prompt, texts = place.voices[k].ids("a"), texts_of(place, k, 2)
    expected = []
    for text in texts:
        exact = place.segmentations(k, prompt)
        exact.text = text
        expected.append(exact.text_probability() * exact.stop_probability())
    got = probabilities_of_texts(place, k, prompt, texts, **EXACT)
    np.testing.assert_allclose(got, expected, rtol=2e-5)
    # with the defaults, readings below 1e-4 are dropped: in a text of n strings at most n times
    np.testing.assert_allclose(probabilities_of_texts(place, k, prompt, texts), got, rtol=1e-3)
