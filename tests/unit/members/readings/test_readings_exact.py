"""Readings against exact inference over all segmentations, and cases computed by hand."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from tests.support.readings_reference import sampled_states
from tests.support.worlds import build, pieces_only, world

EXACT = {"max_readings": 100_000, "min_reading": 1e-12}
ENGINES = ["rules", "run"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """One thread: for such small models, several threads are slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def engine(name, place, k, **options):
    """The reference implementation or the package's run; every number must hold for both."""
    return place.reference_run(k, **options) if name == "rules" else place.run(k, **options)


def table(run, row=0):
    """The probabilities of a row's readings, by ids and tail."""
    return {(tuple(ids), tail): a for ids, tail, a, _ in run.readings(row)}


# all segmentations


def test_all_segmentations_are_what_sampling_gives():
    place = world("ab", 1)
    for k, text in [(1, b"abab"), (2, b"aab"), (3, b"abab")]:
        exact = place.segmentations(k, place.voices[k].ids("b"))
        exact.update(text)
        samples = 3000
        counts = sampled_states(exact, text, samples, np.random.default_rng(k))
        probability = exact.text_probability()
        total = sum(counts.values())
        assert probability * samples > 40
        assert total == pytest.approx(probability * samples, abs=4.5 * (probability * samples) ** 0.5)
        for state, posterior in exact.state().items():
            error = 4.5 * (posterior * (1 - posterior) / total) ** 0.5 + 3 / total
            assert counts.get(state, 0) / total == pytest.approx(posterior, abs=error)
        assert set(counts) <= set(exact.state())


def one_path(place, k, before, after, b):
    """Whether only one sequence of tokens ends with `b`, the tokenizer's own, and all states are along it."""
    vocabulary = place.voices[k].vocabulary
    if len(b) > 1 and any(vocabulary.representable(tail + b) != tail + b for _, tail in before):
        return False  # canonical ids leave out letters that exist only inside longer tokens
    ends = [ids for ids, tail in after if not tail]
    if len(ends) > 1:
        return False
    old = {ids for ids, _ in before}
    new = {ids for ids, _ in after if ids not in old}
    if not ends:
        return not new
    end = ends[0]
    if not all(end[: len(ids)] == ids for ids in new):
        return False
    for ids, tail in before:
        rest = end[len(ids) :]
        if end[: len(ids)] == ids and rest and vocabulary.to_bytes(rest) == tail + b:
            return len(rest) == 1 or rest == vocabulary.canonical_ids(tail + b)
    return False


@pytest.mark.parametrize("name", ENGINES)
def test_equal_to_all_segmentations_while_one_reaches_the_end(name):
    """With o = 1 readings are exact until two segmentations reach the end of the same text."""
    states = uncertain = steps = 0
    for seed in range(12):
        place = world("pieces", seed)
        for k in (1, 2):
            rng = random.Random(10 * seed + k)
            voice = place.voices[k]
            prompts = [[rng.choice(voice.text_ids) for _ in range(2)] for _ in range(6)]
            run = engine(name, place, k, **EXACT)
            run.begin(prompts)
            exact = [place.segmentations(k, prompt) for prompt in prompts]
            before = [one.state() for one in exact]
            running = set(range(6))
            for _ in range(9):
                updates = [None] * 6
                for row in sorted(running):
                    b = b""
                    for _ in range(rng.choice((1, 1, 1, 2))):
                        exact[row].update(byte := next_byte(rng, exact[row]))
                        b += byte
                    after = exact[row].state()
                    if b and after and one_path(place, k, before[row], after, b):
                        updates[row] = (b, 0.0, 0.0)
                        before[row] = after
                    else:
                        running.discard(row)
                if not running:
                    break
                run.advance(updates)
                probs = run.distribution()
                for row in running:
                    steps += 1
                    got = {key: a for key, a in table(run, row).items() if a > 1e-10}
                    assert set(got) == {key for key, a in before[row].items() if a > 1e-10}
                    for key, a in got.items():
                        assert a == pytest.approx(before[row][key], abs=3e-6)
                    states += len(got)
                    uncertain += len(got) > 1
                    assert probs[row, place.union.stop_id] == pytest.approx(exact[row].stop_probability(), abs=3e-6)
                    for byte in (b"a", b"b", b"c"):
                        mass = sum(probs[row, u] for raw, u in place.union.id_of.items() if raw[:1] == byte)
                        assert mass == pytest.approx(exact[row].next_byte_probability(byte), abs=3e-6)
    assert steps >= 300
    assert states >= 400
    assert uncertain >= 60


def next_byte(rng, exact):
    """A letter that can come next, or `None`."""
    weights = [exact.next_byte_probability(byte) for byte in (b"a", b"b", b"c")]
    return rng.choices((b"a", b"b", b"c"), weights)[0] if sum(weights) > 0 else b""


# cases computed by hand; p is always the member's own p(v | ids)


@pytest.fixture(params=ENGINES)
def name(request):
    return request.param


TH = 1
"""Tokens of this voice of the `th` world: t h e r _ y th the re they there."""

SP = 0
"""Tokens of this one: t h e r _ y _t _th _the re _there he."""


def begun(name, kind, k, *pieces, **options):
    """A world, a member, the ids of its prompt, and a run that has read it."""
    place = world(kind)
    voice = place.voices[k]
    ids = voice.ids(*pieces)
    run = engine(name, place, k, **options)
    run.begin([ids])
    return place, voice, ids, run


def close(expected):
    return pytest.approx(expected, abs=2e-6)


def test_the_prompt_is_one_reading(name):
    place, voice, ids, run = begun(name, "th", TH, "the", "y")
    assert table(run) == {(ids, b""): 1.0}
    # Z leaves out the unknown and the padding token; every other token is itself a union token
    p = voice.next_probs(ids)
    z = 1 - p[0] - p[3]
    probs = run.distribution()[0]
    for piece in ("t", "th", "there"):
        assert probs[place.union.id_of[piece.encode()]] == close(voice.p(piece, ids) / z)
    assert probs[place.union.id_of[b" the"]] == 0
    assert probs[place.union.stop_id] == close((p[1] + p[2]) / z)


def test_a_one_token_end_and_a_stay(name):
    _, voice, ids, run = begun(name, "th", TH, "y")
    run.advance([(b"th", 0.0, 0.0)])
    # `th` is a token: E = p(th). the, they and there start with it and are longer: S = p(the) + p(they) + p(there).
    # Both are divided by the same Z. o = 1: a(end) = E / (E + S).
    e = voice.p("th", ids)
    s = voice.p("the", ids) + voice.p("they", ids) + voice.p("there", ids)
    assert table(run) == {
        ((*ids, voice.id("th")), b""): close(e / (e + s)),
        (ids, b"th"): close(s / (e + s)),
    }


def test_shares_of_the_proposers(name):
    _, voice, ids, run = begun(name, "th", TH, "y")
    run.advance([(b"th", 0.2, 0.3)])
    # r = 0.2 ended, q = 0.3 stays, and there is no information about the other 0.5:
    # a(end) = 0.2 + 0.5 E / (E + S), a(stay) = 0.3 S / S + 0.5 S / (E + S)
    e = voice.p("th", ids)
    s = voice.p("the", ids) + voice.p("they", ids) + voice.p("there", ids)
    assert table(run) == {
        ((*ids, voice.id("th")), b""): close(0.2 + 0.5 * e / (e + s)),
        (ids, b"th"): close(0.3 + 0.5 * s / (e + s)),
    }


def test_q_is_shared_in_proportion_to_the_stays(name):
    _, voice, ids, run = begun(name, "th", SP, "y")
    run.advance([(b" ", 0.0, 0.0)])
    # two readings: `_` ended (1), or is the start of _t, _th, _the or _there (2)
    spaced = ("y", " ")
    e = voice.p(" ", ids)
    s = sum(voice.p(piece, ids) for piece in (" t", " th", " the", " there"))
    a1, a2 = e / (e + s), s / (e + s)
    run.advance([(b"t", 0.1, 0.6)])
    # (1) no longer token starts with `t`: one end, a1 / Z1 * p(t | y _).
    # (2) _th, _the, _there stay; _t ends. Z2 = s, as union tokens are prefixes of all four remainders.
    p1 = voice.next_probs(voice.ids(*spaced))
    e1 = a1 / (1 - p1[0] - p1[3]) * voice.p("t", voice.ids(*spaced))
    e2 = a2 / s * voice.p(" t", ids)
    s2 = a2 / s * sum(voice.p(piece, ids) for piece in (" th", " the", " there"))
    path = voice.ids("y", " ", "t") if e1 > e2 else voice.ids("y", " t")
    # the more likely end is read, and has the weight of both; r = 0.1, q = 0.6, o = 0.3
    assert table(run) == {
        (path, b""): close(0.1 + 0.3 * (e1 + e2) / (e1 + e2 + s2)),
        (ids, b" t"): close(0.6 + 0.3 * s2 / (e1 + e2 + s2)),
    }


def test_canonical_end_with_a_stay_at_an_inner_boundary(name):
    _, voice, ids, run = begun(name, "th", SP, "y")
    run.advance([(b"e e t", 0.0, 0.0)])
    # `e e t` is not a token, nor a prefix of one; the tokenizer writes e _ e _t. Three inner boundaries:
    # after e (no token starts with `_e_t`), after e _ (none with `e_t`), after e _ e (_th, _the, _there do with `_t`).
    path = [ids, (*ids, voice.id("e")), (*ids, *voice.ids("e", " ")), (*ids, *voice.ids("e", " ", "e"))]
    inner = voice.p("e", path[0]) * voice.p(" ", path[1]) * voice.p("e", path[2])
    e = inner * voice.p(" t", path[3])
    s = inner * sum(voice.p(piece, path[3]) for piece in (" th", " the", " there"))
    assert table(run) == {
        ((*path[3], voice.id(" t")), b""): close(e / (e + s)),
        (path[3], b" t"): close(s / (e + s)),
    }


def canonical_case(name, prompt, r):
    """After `th`, two readings; then `ey`, which ends `they` for one, and is two tokens for the other."""
    _, voice, ids, run = begun(name, "th", TH, *prompt)
    run.advance([(b"th", 0.5, 0.25)])
    e = voice.p("th", ids)
    s = voice.p("the", ids) + voice.p("they", ids) + voice.p("there", ids)
    a1, a2 = 0.5 + 0.25 * e / (e + s), 0.25 + 0.25 * s / (e + s)
    ended = (*ids, voice.id("th"))
    p1 = voice.next_probs(ended)
    z1 = 1 - p1[0] - p1[3]
    run.advance([(b"ey", r, 0.0)])
    # (1) th|ey: not one token, canonical e y, known before the forward pass: a1 / Z1 * p(e | th)
    # (2) they: one token, a2 / Z2 * p(they), Z2 = s
    canonical = a1 / z1 * voice.p("e", ended)
    one_token = a2 / s * voice.p("they", ids)
    return voice, ids, table(run), canonical > one_token


def canonical_prompts(wanted):
    """Prompts after which the canonical path is more likely than the single token, or less likely."""
    voice = world("th").voices[TH]
    pieces = [voice.vocabulary.pieces[i].decode() for i in voice.text_ids]
    found = [(x,) for x in pieces if canonical_case("rules", (x,), 0.0)[3] == wanted]
    assert found
    return found[:2]


def test_the_canonical_path_is_read_if_it_is_likelier(name):
    for prompt in canonical_prompts(True):
        voice, ids, readings, _ = canonical_case(name, prompt, 0.0)
        # no longer token starts with the text, so the end has all weight; it is e y, although they is an end, too
        assert readings == {((*ids, *voice.ids("th", "e", "y")), b""): close(1.0)}


def test_one_token_is_read_if_it_is_likelier_or_the_tokenizers_own_members_proposed_it(name):
    for prompt in canonical_prompts(False):
        voice, ids, readings, _ = canonical_case(name, prompt, 0.0)
        assert readings == {((*ids, voice.id("they")), b""): close(1.0)}
    for prompt in canonical_prompts(True):
        voice, ids, readings, _ = canonical_case(name, prompt, 0.5)
        assert readings == {((*ids, voice.id("they")), b""): close(1.0)}


def test_unfinished_mass_goes_to_the_longest_union_token_that_begins_the_rest(name):
    place = build([pieces_only("t", "h", "e", "y", "they", "tee"), pieces_only("t", "h", "he", "e", "y")], 2)
    voice = place.voices[0]
    ids = voice.ids("y")
    run = engine(name, place, 0)
    run.begin([ids])
    run.advance([(b"t", 0.0, 1.0)])
    # only the stay is left: with the tail `t`, they or tee can follow. `hey` is not a union token; its prefixes h
    # and he are, and he is longer. `ee` is not a union token either; its prefix e is.
    assert table(run) == {(ids, b"t"): close(1.0)}
    z = voice.p("they", ids) + voice.p("tee", ids)
    expected = np.zeros(place.union.size)
    expected[place.union.id_of[b"he"]] = voice.p("they", ids) / z
    expected[place.union.id_of[b"e"]] = voice.p("tee", ids) / z
    np.testing.assert_allclose(run.distribution()[0], expected, atol=2e-6)
    whole, unfinished = run.proposed([place.union.id_of[b"he"]])
    assert whole[0] == 0
    assert unfinished[0] == close(voice.p("they", ids) / z)


def test_whole_and_unfinished_parts_of_one_union_token(name):
    place, voice, ids, run = begun(name, "th", TH, "y")
    run.advance([(b"th", 0.0, 1.0)])
    # tail `th`: the gives `e` whole; `ey` of they and `ere` of there are no union tokens, so `e` receives them
    e, y, ere = (voice.p(piece, ids) for piece in ("the", "they", "there"))
    whole, unfinished = run.proposed([place.union.id_of[b"e"]])
    assert whole[0] == close(e / (e + y + ere))
    assert unfinished[0] == close((y + ere) / (e + y + ere))
    assert run.distribution()[0, place.union.id_of[b"e"]] == close(1.0)


def test_a_forced_token_counts_like_another_tokenizers(name):
    _, voice, ids, run = begun(name, "th", TH, "re")
    run.advance([(b"here", 0.0, 0.0)])
    # no member proposed it: r = q = 0, o = 1. No token starts with here; the tokenizer writes h e re; no inner
    # boundary has a longer token (none starts with `ere` or `re`), so the end has all weight
    assert table(run) == {((*ids, *voice.ids("h", "e", "re")), b""): close(1.0)}


def test_what_the_member_cannot_represent_is_not_read(name):
    _, voice, ids, run = begun(name, "accent", 0, "h", "b")
    before = run.distribution()
    run.advance([("é".encode(), 0.0, 0.0)])
    # no token of this member has an `é`: no end, no stay, no canonical ids
    assert table(run) == {(ids, b""): 1.0}
    np.testing.assert_allclose(run.distribution(), before, atol=1e-6)
    run.advance([(b"h", 0.0, 0.0)])
    # the member continues after it: h ended, or is the start of ha
    e, s = voice.p("h", ids), voice.p("ha", ids)
    assert table(run) == {((*ids, voice.id("h")), b""): close(e / (e + s)), (ids, b"h"): close(s / (e + s))}


def test_an_unfinished_token_ends_before_what_cannot_be_represented(name):
    _, voice, ids, run = begun(name, "accent", 0, "b")
    run.advance([(b"h", 0.0, 1.0)])
    assert table(run) == {(ids, b"h"): 1.0}
    run.advance([("é".encode(), 0.0, 0.0)])
    # E + S = 0: the canonical ids of `hé` without the é
    assert table(run) == {((*ids, voice.id("h")), b""): 1.0}
    run.advance([("aé€b".encode(), 0.0, 0.0)])
    # `aé€b` without é and € is written as ab (one token, although `aé€b` is none)
    assert table(run) == {((*ids, *voice.ids("h", "ab")), b""): close(1.0)}


def test_half_a_character_is_the_beginning_of_a_token(name):
    _, voice, ids, run = begun(name, "accent", 1, "b")
    e, f = (bytes([byte]) for byte in "é".encode())
    run.advance([(e, 0.0, 0.0)])
    # no token is this byte; the token é starts with it
    assert table(run) == {(ids, e): close(1.0)}
    run.advance([(f, 0.0, 0.0)])
    assert table(run) == {((*ids, voice.id("é")), b""): close(1.0)}


def test_stop_is_the_sum_of_all_end_ids_at_an_empty_tail(name):
    place, voice, ids, run = begun(name, "th", TH, "there")
    ends = voice.member.end_ids
    assert len(ends) == 2
    run.advance([(b"th", 0.25, 0.25)])
    readings = table(run)
    ended = (*ids, voice.id("th"))
    p = voice.next_probs(ended)
    # the reading inside a longer token cannot end the text here, so STOP gets nothing from it
    stop = readings[(ended, b"")] * (p[ends[0]] + p[ends[1]]) / (1 - p[0] - p[3])
    assert run.distribution()[0, place.union.stop_id] == close(stop)
    run.begin([ids])
    run.advance([(b"th", 0.0, 1.0)])
    assert run.distribution()[0, place.union.stop_id] == 0


def test_without_an_end_or_a_stay_the_heaviest_reading_ends_by_its_canonical_ids(name):
    _, voice, ids, run = begun(name, "th", TH, "y")
    run.advance([(b"th", 0.0, 1.0)])
    assert table(run) == {(ids, b"th"): close(1.0)}
    run.advance([(b" h", 0.0, 0.0)])
    # no token starts with `th h`; the first of its canonical ids th _ h is not longer than the tail `th`, so they
    # are no end of this reading by the rule for ends: E + S = 0
    assert table(run) == {((*ids, *voice.ids("th", " ", "h")), b""): 1.0}


def test_unfinished_shares_count_as_an_end_where_nothing_can_stay(name):
    _, voice, ids, run = begun(name, "th", TH, "y")
    run.advance([(b"e", 0.0, 1.0)])
    # no longer token starts with `e`: S = 0, and q = 1 goes to the end
    assert table(run) == {((*ids, voice.id("e")), b""): 1.0}


def test_one_tokenizer_keeps_one_reading(name):
    _, voice, ids, run = begun(name, "th", TH, "y")
    written = list(ids)
    for piece in ("th", "e", "there", " ", "t", "he"[:1], "they"):
        run.advance([(piece.encode(), 1.0, 0.0)])
        written.append(voice.id(piece))
        assert table(run) == {(tuple(written), b""): close(1.0)}


def test_ids_with_the_same_bytes_are_summed_and_the_most_likely_is_read(name):
    place = world("ab")
    voice = place.voices[3]
    assert len(voice.vocabulary.ids_of[b"a"]) == 2
    paths = set()
    for prompt in [("a",), ("b",), ("ab",), ("abab",), ("a", "a"), ("b", "b"), ("ab", "b"), ("a", "b")]:
        ids = voice.ids(*prompt)
        run = engine(name, place, 3)
        run.begin([ids])
        run.advance([(b"a", 0.0, 0.0)])
        e, s = voice.p("a", ids), voice.p("ab", ids) + voice.p("abab", ids)
        most_likely = max(voice.vocabulary.ids_of[b"a"], key=lambda v: voice.next_probs(ids)[v])
        paths.add(most_likely)
        assert table(run) == {((*ids, most_likely), b""): close(e / (e + s)), (ids, b"a"): close(s / (e + s))}
    assert len(paths) == 2


def test_a_reading_that_no_union_token_can_continue_is_dropped(name):
    place = build([pieces_only("t", "h", "a", "thx"), pieces_only("t", "h", "a", "th")], 1)
    voice = place.voices[0]
    ids = voice.ids("a")
    run = engine(name, place, 0)
    run.begin([ids])
    run.advance([(b"th", 0.0, 0.0)])
    # (1) t h, canonical; (2) the start of thx, but no member has a token that starts with x: Z2 = 0
    ended = (*ids, *voice.ids("t", "h"))
    p = voice.next_probs(ended)
    probs = run.distribution()[0]
    z = 1 - p[0] - p[3]
    for piece in ("t", "h", "a", "thx"):
        assert probs[place.union.id_of[piece.encode()]] == close(voice.p(piece, ended) / z)
    assert probs.sum() == close(1.0)


def test_rare_readings_are_dropped_and_four_are_kept(name):
    _, voice, ids, run = begun(name, "th", TH, "y")
    e = voice.p("th", ids)
    s = voice.p("the", ids) + voice.p("they", ids) + voice.p("there", ids)
    # o = 2e-4: the stay gets o * S / (E + S); below 1e-4 it is dropped and the end is certain
    assert 0.05 < s / (e + s) < 0.45
    run.advance([(b"th", 1 - 2e-4, 0.0)])
    assert table(run) == {((*ids, voice.id("th")), b""): 1.0}
    # the same for an end: with q = 1 - 1e-4 its share is below o = 1e-4
    run.begin([ids])
    run.advance([(b"th", 0.0, 1 - 1e-4)])
    assert table(run) == {(ids, b"th"): 1.0}
