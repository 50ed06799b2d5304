"""`ReadingsRun` equals the reference implementation of the rules, on random texts with random shares."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_rlae.members import ragged_run
from hf_rlae.members.readings import probability_store
from hf_rlae.vocabulary.grain import GRAINS
from tests.support.readings_reference import Reading
from tests.support.tiers import slow
from tests.support.worlds import PackageRun, World, accent_world, build, pieces_only, th_world, world

CLOSE = 1e-5
UNDECIDED = 1e-4
"""Decisions this close (relative) may go either way in single precision; texts are followed until one comes."""

VOICES = [("ab", 1), ("ab", 2), ("ab", 3), ("th", 0), ("th", 1), ("th", 3), ("accent", 0), ("accent", 1)]
VOICES += [("accent", 2), ("pieces", 1), ("pieces", 2)]
SHARES = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.75, 0.25), (0.25, 0.25), (0.5, 0.0), (0.0, 0.5)]
SHARES += [(0.1, 0.2), (0.6, 0.1), (0.02, 0.9), (0.3, 0.0), (0.0, 0.125), (0.2, 0.6), (0.01, 0.0)]
FOREIGN = ["é".encode(), "h€".encode(), b"\xff", b"xyz", b"t\xc3", b"\xa9", "é€".encode(), b"a" * 9]

Step = tuple[bytes, float, float]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """One thread: for such small models, several threads are slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def same_readings(run: PackageRun, reference, row: int) -> None:
    """Compares readings as sets, without those that no token can continue."""
    rules = reference.rows[row]
    given_readings = run.readings(row)
    weights = [a for _, _, a, _ in given_readings]
    assert weights == sorted(weights, reverse=True)
    assert sum(weights) == pytest.approx(1, abs=CLOSE)
    alive = [one for one in given_readings if rules.shares(Reading(*one))[2] > 0]
    total = sum(a for _, _, a, _ in alive)
    got = {(tuple(ids), tail, lent): a / total for ids, tail, a, lent in alive}
    assert len(got) == len(alive), "two readings are the same"
    expected = {(ids, tail, lent): a for ids, tail, a, lent in reference.readings(row)}
    # a reading exactly at the threshold may be kept on one side only
    assert {key for key in got if got[key] > 0} == set(expected)
    for key, a in expected.items():
        assert got[key] == pytest.approx(a, abs=CLOSE), key


def same_everything(run: PackageRun, reference) -> None:
    """Compares readings and distributions."""
    for row in range(len(reference.rows)):
        same_readings(run, reference, row)
    got = run.distribution()
    np.testing.assert_allclose(got.sum(1), 1, atol=CLOSE)
    np.testing.assert_allclose(got, reference.distribution(), atol=CLOSE)


def has_a_voice(rules) -> bool:
    """Whether some token can continue any of the readings."""
    return bool(rules.live())


def random_step(rng: random.Random, place: World, rules, realistic: bool) -> tuple[int | None, Step]:
    """A union token (and its id), several tokens at once, or other bytes, with shares."""
    kind = rng.random()
    pieces = place.union.pieces
    if kind < 0.7:
        probs = rules.distribution()
        probs[place.union.stop_id] = 0
        u = None
        if kind < 0.45 and probs.sum() > 0:
            u = rng.choices(range(len(probs)), probs)[0]
        if u is None or not pieces[u]:
            u = rng.choice(place.union_text_ids)
        if not realistic:
            return u, (pieces[u], *rng.choice(SHARES))
        # another member, with another tokenizer, proposes a part of it, too
        whole, unfinished = (float(part[u]) for part in rules.proposals())
        others = rng.choice([0.0, 0.01, 0.3, 1.0])
        total = whole + unfinished + others
        return u, (pieces[u], whole / total, unfinished / total) if total else (pieces[u], 0.0, 0.0)
    if kind < 0.93:
        parts = [pieces[rng.choice(place.union_text_ids)] for _ in range(rng.randint(2, 5))]
        return None, (b"".join(parts), 0.0, 0.0)
    return None, (rng.choice(FOREIGN), 0.0, 0.0)


def random_prompt(rng: random.Random, place: World, k: int) -> list[int]:
    return [rng.choice(place.voices[k].text_ids) for _ in range(rng.randint(1, 4))]


@st.composite
def one_row(draw):
    """A grain, a member, a prompt and steps, small enough to read a failing example."""
    kind, k = draw(st.sampled_from(VOICES))
    grain = draw(st.sampled_from(GRAINS))
    place = world(kind, 0, grain)
    prompt = draw(st.lists(st.sampled_from(place.voices[k].text_ids), min_size=1, max_size=3))
    pieces = [place.union.pieces[u] for u in place.union_text_ids]
    share = st.sampled_from(SHARES) | st.tuples(st.floats(0, 0.5, width=16), st.floats(0, 0.5, width=16))
    token = st.tuples(st.sampled_from(pieces), share).map(lambda pair: (pair[0], *pair[1]))
    chunk = st.lists(st.sampled_from(pieces), min_size=2, max_size=4).map(lambda parts: (b"".join(parts), 0.0, 0.0))
    foreign = st.sampled_from(FOREIGN).map(lambda raw: (raw, 0.0, 0.0))
    steps = draw(st.lists(token | token | chunk | foreign, min_size=1, max_size=7))
    return kind, grain, k, prompt, steps


@settings(max_examples=120)
@given(one_row())
def test_one_row_follows_the_rules(case):
    kind, grain, k, prompt, steps = case
    place = world(kind, 0, grain)
    run, reference = place.run(k), place.reference_run(k)
    run.begin([prompt])
    reference.begin([prompt])
    same_everything(run, reference)
    for step in steps:
        run.advance([step])
        reference.advance([step])
        if reference.rows[0].margin < UNDECIDED or not has_a_voice(reference.rows[0]):
            return
        same_everything(run, reference)


def follow(place: World, k: int, seed: int, steps: int, batch: int, realistic: bool, **options) -> int:
    """Rows of a batch advance unevenly and are reordered; returns how many states were compared."""
    rng = random.Random(seed)
    run = place.run(k, **options)
    options.pop("use_cache", None)
    reference = place.reference_run(k, **options)
    prompts = [random_prompt(rng, place, k) for _ in range(batch)]
    run.begin(prompts)
    reference.begin(prompts)
    same_everything(run, reference)
    compared = 0
    for step in range(steps):
        chosen = [random_step(rng, place, rules, realistic) for rules in reference.rows]
        ids = [place.union_text_ids[0] if u is None else u for u, _ in chosen]
        np.testing.assert_allclose(run.proposed(ids), reference.proposed(ids), atol=CLOSE)
        updates = [None if rng.random() < 0.25 else update for _, update in chosen]
        before = list(reference.rows)
        if any(updates):
            run.advance(updates)
            reference.reorder(range(len(before)))
            reference.advance(updates)
        if any(row.margin < UNDECIDED or not has_a_voice(row) for row in reference.rows):
            return compared
        same_everything(run, reference)
        compared += len(reference.rows)
        if step % 3 == 2:
            rows = [rng.randrange(len(reference.rows)) for _ in range(rng.choice((batch, batch, batch + 1, batch - 1)))]
            run.reorder(rows)
            reference.reorder(rows)
            same_everything(run, reference)
    return compared


@pytest.mark.parametrize("realistic", [True, *slow(False)])
@pytest.mark.parametrize(("kind", "k"), VOICES)
def test_batches_follow_the_rules(kind, k, realistic):
    compared = sum(follow(world(kind), k, seed, 9, 4, realistic) for seed in range(2))
    assert compared >= 12


@pytest.mark.parametrize("grain", GRAINS[1:])
@pytest.mark.parametrize(("kind", "k"), VOICES)
def test_batches_at_coarser_and_finer_grains_follow_the_rules(kind, k, grain):
    assert follow(world(kind, 0, grain), k, 4, 9, 4, True) >= 12


@pytest.mark.parametrize("switch", [(probability_store, "WIDE"), (ragged_run, "_LEAST_SAVED")], ids=["by row", "apart"])
@pytest.mark.parametrize(("kind", "k"), VOICES)
def test_what_only_large_members_and_batches_do_follows_the_rules_too(monkeypatch, kind, k, switch):
    monkeypatch.setattr(*switch, 1)
    assert sum(follow(world(kind), k, seed, 9, 4, True) for seed in (2, 3)) >= 12


@pytest.mark.parametrize(("max_readings", "min_reading"), [(1, 1e-4), (2, 1e-4), (3, 0.05), (50, 1e-9)])
def test_other_thresholds(max_readings, min_reading):
    options = {"max_readings": max_readings, "min_reading": min_reading}
    compared = sum(follow(world(kind, 1), 1, 7, 8, 3, False, **options) for kind in ("ab", "th", "accent"))
    assert compared >= 12


@pytest.mark.parametrize("kind", ["ab", "th", "accent"])
def test_without_a_cache(kind):
    assert follow(world(kind), 1, 3, 8, 3, False, use_cache=False) >= 6


@pytest.mark.parametrize("k", range(3))
def test_with_and_without_a_cache_are_the_same(k):
    place, rng = world("ab", 2), random.Random(k)
    runs = [place.run(k, use_cache=use_cache) for use_cache in (True, False)]
    prompts = [random_prompt(rng, place, k) for _ in range(3)]
    for run in runs:
        run.begin(prompts)
    for step in range(8):
        updates = [
            None if rng.random() < 0.3 else (place.union.pieces[rng.choice(place.union_text_ids)], *rng.choice(SHARES))
            for _ in prompts
        ]
        for run in runs:
            run.advance(updates)
            if step == 4:
                run.reorder([2, 2, 0])
        np.testing.assert_allclose(runs[0].distribution(), runs[1].distribution(), atol=CLOSE)
        for row in range(len(prompts)):
            first, second = (run.readings(row) for run in runs)
            assert {one[:2] for one in first} == {one[:2] for one in second}


@pytest.mark.parametrize("architecture", ["bloom", "mamba"])
@pytest.mark.parametrize("k", [0, 1])
def test_models_that_take_no_mask_or_cannot_go_back(architecture, k):
    tokenizers = [voice.member.tokenizer for voice in world("th").voices[:2]]
    place = build(tokenizers, 5, architecture)
    assert follow(place, k, 11, 7, 2, False) >= 4


@pytest.mark.parametrize(("kind", "k"), VOICES)
def test_kept_probabilities_are_those_of_a_run_from_scratch(kind, k):
    """For any readings, the distribution equals that of the model itself for their ids."""
    place, rng = world(kind, 3), random.Random(k)
    run = place.run(k)
    prompts = [random_prompt(rng, place, k) for _ in range(3)]
    run.begin(prompts)
    uncertain = 0
    for _ in range(8):
        got = run.distribution()
        for row in range(3):
            rules = place.reference(k, prompts[row])
            rules.readings = [Reading(tuple(ids), tail, a, lent) for ids, tail, a, lent in run.readings(row)]
            assert all(ids[: len(prompts[row])] == tuple(prompts[row]) for ids, _, _, _ in run.readings(row))
            uncertain += len(rules.readings) > 1
            np.testing.assert_allclose(got[row], rules.distribution(), atol=CLOSE)
        choices = [rng.choices(range(place.union.size), np.maximum(row, 0))[0] for row in got]
        choices = [u if place.union.pieces[u] else rng.choice(place.union_text_ids) for u in choices]
        run.advance([(place.union.pieces[u], *rng.choice(SHARES[-8:])) for u in choices])
    assert uncertain or kind == "pieces"


def test_readings_spell_the_text():
    """The ids and the tail of every reading are the text, without bytes that the member cannot represent."""
    place, rng = th_world(4), random.Random(0)
    for k, voice in enumerate(place.voices):
        run = place.run(k)
        prompt = random_prompt(rng, place, k)
        run.begin([prompt])
        text = voice.vocabulary.to_bytes(prompt)
        for _ in range(12):
            b = place.union.pieces[rng.choice(place.union_text_ids)]
            run.advance([(b, *rng.choice(SHARES))])
            text += b
            for ids, tail, _, _ in run.readings(0):
                assert voice.vocabulary.to_bytes(ids) + tail == text
                assert not tail or tail == text[-len(tail) :]


def test_nothing_is_ever_read_as_unknown():
    place, rng = accent_world(5), random.Random(1)
    for k, voice in enumerate(place.voices):
        run = place.run(k)
        run.begin([random_prompt(rng, place, k)])
        for _ in range(12):
            run.advance([(rng.choice([*FOREIGN, b"h", b"a", b"ab"]), *rng.choice(SHARES))])
            for ids, _, _, _ in run.readings(0):
                assert not set(ids) & set(voice.vocabulary.special_ids)


def test_an_update_is_a_function_of_ids_and_shares():
    """A row does not depend on other rows, nor on the number of calls of `distribution`."""
    place = world("th", 6)
    steps = [
        (b"th", 0.1, 0.2),
        (b"e", 0.5, 0.25),
        (b"re the", 0.0, 0.0),
        (b"y", 0.0, 0.5),
        (b" th", 0.25, 0.0),
    ]
    alone, beside = place.run(1), place.run(1)
    alone.begin([place.voices[1].ids("y")])
    beside.begin([place.voices[1].ids("t", "he"[:1]), place.voices[1].ids("y"), place.voices[1].ids("there", "r")])
    for n, step in enumerate(steps):
        alone.advance([step])
        alone.distribution()
        beside.advance([None if n % 2 else (b"t", 0.0, 0.0), step, steps[-1 - n]])
    np.testing.assert_allclose(alone.distribution()[0], beside.distribution()[1], atol=CLOSE)
    assert [one[:2] for one in alone.readings(0)] == [one[:2] for one in beside.readings(1)]


def test_a_member_without_next_token_mass_gives_no_nan():
    """Only `thx` starts with the tail `th`, and no member has a token that starts with `x`."""
    place = build([pieces_only("t", "h", "a", "thx"), pieces_only("t", "h", "a", "th")], 1)
    run = place.run(0)
    run.begin([place.voices[0].ids("a")])
    run.advance([(b"th", 0.0, 1.0)])
    assert np.isfinite(run.distribution()).all()
    run.advance([(b"a", 0.0, 0.0)])
    assert [one[:2] for one in run.readings(0)] == [(place.voices[0].ids("a", "t", "h", "a"), b"")]
    np.testing.assert_allclose(run.distribution().sum(1), 1, atol=CLOSE)
