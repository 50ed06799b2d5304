"""Scoring whole texts from the logits of `forward`, as tools for perplexity do (`loglikelihood_rolling` of lm-eval)."""

from __future__ import annotations

import pytest
import torch

from hf_rlae import EnsembleForCausalLM
from tests.support.models import pair
from tests.support.tokenizers import byte_level_bpe, sentencepiece_bpe

TEXT = "the dogs ran 12 miles"


def rolling(model, ids):
    """The log-probability of every id after the first one, `(L - 1,)`, from one forward pass over the others."""
    with torch.no_grad():
        logps = model(ids[None, :-1]).logits[0].float().log_softmax(-1)
    return logps[torch.arange(len(ids) - 1), ids[1:]]


def members():
    return [pair("llama", 0, sentencepiece_bpe()), pair("gpt2", 1, byte_level_bpe())]


@pytest.fixture(params=["own token", "end token"])
def ensemble(request):
    """The token that begins a text is one of its own, or also the one that ends it, as in many base models."""
    begins = sentencepiece_bpe().bos_token_id
    ends = None if request.param == "own token" else [[begins], None]
    return EnsembleForCausalLM.from_members(members(), end_token_ids=ends)


@pytest.mark.parametrize("copies", [2, 3])
def test_a_doubled_beginning_has_probability_1(ensemble, copies):
    """The sum over a text that begins with the token twice is that of `labels=`, not minus infinity."""
    begin = torch.tensor([sentencepiece_bpe().bos_token_id])
    text = torch.tensor(sentencepiece_bpe()(TEXT, add_special_tokens=False)["input_ids"])
    once = torch.cat([begin, text])
    doubled = torch.cat([begin.repeat(copies - 1), once])
    own = rolling(ensemble, once)
    got = rolling(ensemble, doubled)
    assert got[: copies - 1].tolist() == [0.0] * (copies - 1)
    assert torch.equal(got[copies - 1 :], own)
    for ids in (once, doubled):
        with torch.no_grad():
            loss = ensemble(ids[None], labels=ids[None]).loss
        torch.testing.assert_close(-loss * len(text), own.sum())


def test_in_a_padded_batch(ensemble):
    begin = sentencepiece_bpe().bos_token_id
    text = sentencepiece_bpe()(TEXT, add_special_tokens=False)["input_ids"]
    rows = [[begin, begin, *text], [begin, *text[:4]]]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    with torch.no_grad():
        logps = ensemble(ids, attention_mask=mask).logits.log_softmax(-1)
    for row, expected in enumerate(rows):
        alone = rolling(ensemble, torch.tensor(expected))
        at = width - len(expected)
        got = logps[row, torch.arange(at, width - 1), ids[row, at + 1 :]]
        torch.testing.assert_close(got, alone, atol=1e-5, rtol=0)


def test_special_tokens_inside_a_text_keep_no_probability(ensemble):
    """Only the tokens that begin the text are given."""
    begin = sentencepiece_bpe().bos_token_id
    text = sentencepiece_bpe()(TEXT, add_special_tokens=False)["input_ids"]
    assert rolling(ensemble, torch.tensor([begin, *text[:2], begin, *text[2:]]))[2] == -torch.inf


def test_a_declared_prompt_is_not_changed(ensemble):
    """Inside a prompt there are no distributions, whatever begins it."""
    begin = sentencepiece_bpe().bos_token_id
    text = sentencepiece_bpe()(TEXT, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[begin, begin, *text]])
    assert bool(ensemble(ids, prompt_length=4).logits[0, :3].isnan().all())


def test_one_tokenizer_scores_it_as_its_members_do():
    ensemble = EnsembleForCausalLM.from_members(members()[:1])
    begin = sentencepiece_bpe().bos_token_id
    ids = torch.tensor([begin, begin, 40, 41])
    assert torch.equal(rolling(ensemble, ids), rolling(ensemble.members[0].model, ids))
