"""Probabilities of given texts, summed over segmentations: against counting them all."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_rlae import EnsembleForCausalLM, Member
from hf_rlae.policies import StaticPolicy
from tests.studies.forced_text import Passage, Segmentations, TokenTable, guesses_of, segment, thinned
from tests.support.models import pair
from tests.support.tokenizers import byte_level_bpe, characters

PASSAGES = [Passage("Once upon", b" the"), Passage("She", b" then"), Passage("a little", b" girl n")]


def members(kind: str) -> list[Member]:
    tokenizers = {"same": [byte_level_bpe(), byte_level_bpe()], "different": [byte_level_bpe(), characters()]}[kind]
    made = [pair("llama", seed, tokenizer) for seed, tokenizer in enumerate(tokenizers)]
    return [Member(*given, name=f"member {index}") for index, given in enumerate(made)]


def counted(ensemble: EnsembleForCausalLM, passage: Passage) -> float:
    """The probability of all continuations that begin with a passage's text: every segmentation by itself."""
    begun = ensemble.tokenizer([passage.prompt], return_tensors="pt")["input_ids"]

    def total(ids: list[int], rest: bytes) -> float:
        whole = torch.cat([begun, torch.tensor([ids], dtype=torch.long)], dim=1)
        logits = ensemble(input_ids=whole, prompt_length=begun.shape[1], logits_to_keep=1).logits
        probs = logits[0, -1].double().softmax(-1)
        found = 0.0
        for token, piece in enumerate(ensemble.pieces):
            if piece and piece.startswith(rest):
                found += float(probs[token])
            elif piece and rest.startswith(piece):
                found += float(probs[token]) * total([*ids, token], rest[len(piece) :])
        return found

    with torch.no_grad():
        return total([], passage.text)


@pytest.mark.parametrize("kind", ["same", "different"])
def test_with_enough_particles_every_segmentation_is_counted(kind):
    ensemble = EnsembleForCausalLM.from_members(members(kind), StaticPolicy([0.7, 0.3]), span_length=2)
    passages = PASSAGES[:2]
    found = segment(ensemble, passages, guesses_of(ensemble.members[0], passages), particles=400)
    for passage, segmentations in zip(passages, found, strict=True):
        assert segmentations.bits == pytest.approx(-math.log2(counted(ensemble, passage)), abs=1e-4)
        for path in segmentations.paths:
            assert b"".join(ensemble.pieces[token] for token in path).startswith(passage.text)


def test_few_particles_are_right_on_average():
    ensemble = EnsembleForCausalLM.from_members(members("different"), span_length=2)
    passage = Passage("Once", b" there")
    guesses = guesses_of(ensemble.members[0], [passage])
    exact = counted(ensemble, passage)
    found = [2 ** -segment(ensemble, [passage], guesses, particles=1, seed=seed)[0].bits / exact for seed in range(40)]
    estimates = torch.tensor(found, dtype=torch.float64)
    assert estimates.std() > 0.01
    assert float(estimates.mean()) == pytest.approx(1.0, abs=4 * float(estimates.std()) / math.sqrt(len(found)))


def test_all_weight_on_a_member_is_that_member_wherever_it_stands():
    both = members("different")
    guesses = guesses_of(both[1], PASSAGES)
    last = EnsembleForCausalLM.from_members(both, StaticPolicy([0.0, 1.0]))
    first = EnsembleForCausalLM.from_members(both[::-1], StaticPolicy([1.0, 0.0]))
    for one, other in zip(segment(last, PASSAGES, guesses), segment(first, PASSAGES, guesses), strict=True):
        assert one.bits == pytest.approx(other.bits, abs=1e-3)
        assert len(one.paths) == 1


def test_guesses_are_those_of_the_canonical_tokens():
    """A member of characters has one segmentation: the guess at the beginning is exact, and so is the estimate."""
    member = members("different")[1]
    guesses = guesses_of(member, PASSAGES)
    ensemble = EnsembleForCausalLM.from_members([member])
    for passage, guess, found in zip(PASSAGES, guesses, segment(ensemble, PASSAGES, guesses, 1), strict=True):
        assert len(guess) == len(passage.text) + 1
        assert guess[-1] == 0.0
        assert guess == sorted(guess)
        assert found.bits == pytest.approx(-guess[0] / math.log(2), rel=1e-4)


def test_a_text_that_nobody_can_write_has_no_probability():
    ensemble = EnsembleForCausalLM.from_members(members("different")[1:])
    (found,) = segment(ensemble, [Passage("Once", "語 Ж".encode())], [[0.0] * 10])
    assert found.bits == math.inf
    assert found.paths == []


def test_segmentations_are_drawn_by_their_weight():
    found = Segmentations([math.log(0.03), math.log(0.01)], [(1,), (2, 3)])
    generator = torch.Generator().manual_seed(0)
    drawn = [found.drawn(generator) for _ in range(2000)]
    assert set(drawn) == {(1,), (2, 3)}
    assert drawn.count((1,)) / len(drawn) == pytest.approx(0.75, abs=0.04)


@given(st.lists(st.floats(-60, 0), min_size=1, max_size=12), st.integers(1, 8), st.integers(0, 2**20))
def test_thinning_keeps_the_number_and_the_total(scores, count, seed):
    log_scores = torch.tensor(scores, dtype=torch.float64)
    kept, chances = thinned(log_scores, count, torch.Generator().manual_seed(seed))
    assert len(set(kept.tolist())) == len(kept) == min(count, len(scores))
    assert float((log_scores[kept] - chances).logsumexp(0)) == pytest.approx(float(log_scores.logsumexp(0)), abs=1e-9)
    assert bool((chances <= 0).all())


def test_thinning_keeps_each_particle_as_often_as_it_says():
    log_scores = torch.tensor([0.5, 0.2, 0.16, 0.14], dtype=torch.float64).log()
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(4, dtype=torch.float64)
    for _ in range(2000):
        kept, _ = thinned(log_scores, 2, generator)
        counts[kept] += 1 / 2000
    torch.testing.assert_close(counts, torch.tensor([1.0, 0.4, 0.32, 0.28], dtype=torch.float64), atol=0.04, rtol=0)


@given(st.binary(min_size=1, max_size=4))
def test_openings_are_all_tokens_that_fit(rest):
    pieces = [None, b"", *(bytes([byte]) for byte in b"ab\x00"), b"ab", b"ba", rest + b"x", rest]
    ids, lengths = TokenTable(pieces).openings(rest)
    fits = [i for i, p in enumerate(pieces) if p and p[: len(rest)] == rest[: len(p)]]
    assert ids.tolist() == fits
    assert lengths.tolist() == [len(pieces[i]) for i in fits]
