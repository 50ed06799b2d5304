"""Maps distributions over the union vocabulary to the vocabulary of the host."""

from __future__ import annotations

import torch

from hf_rlae import EnsembleForCausalLM
from tests.support.models import pair
from tests.support.tokenizers import byte_level_bpe, raw_bytes


def logits_of(ensemble, rows=3):
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(rows, ensemble.engine.vocab_size, generator=generator) + 7
    host_scores = torch.randn(rows, ensemble.members[0].vocab_size, generator=generator)
    return logits, host_scores


def test_the_sum_of_exponentials_is_kept():
    """Law: the restricted scores have the mixture's scale, so that a repetition penalty acts alike on both."""
    ensemble = EnsembleForCausalLM.from_members([pair("llama", 0, raw_bytes()), pair("llama", 1, byte_level_bpe())])
    logits, host_scores = logits_of(ensemble)
    found = ensemble.engine.scores_of_first_member(logits, host_scores)
    assert found.shape == host_scores.shape
    torch.testing.assert_close(found.logsumexp(1), logits.logsumexp(1))


def test_ids_of_wider_members_are_left_out():
    """Law: with one tokenizer, ids past the first member's logits are left out, and the rest is renormalised."""
    tokenizer = byte_level_bpe()
    members = [pair("llama", 0, tokenizer), pair("llama", 1, tokenizer, vocab_size=len(tokenizer) + 9)]
    ensemble = EnsembleForCausalLM.from_members(members)
    logits, host_scores = logits_of(ensemble)
    width = host_scores.shape[1]
    assert ensemble.engine.vocab_size == width + 9
    found = ensemble.engine.scores_of_first_member(logits, host_scores)
    torch.testing.assert_close(found.logsumexp(1), logits.logsumexp(1))
    torch.testing.assert_close(found.softmax(1), logits[:, :width].softmax(1))
