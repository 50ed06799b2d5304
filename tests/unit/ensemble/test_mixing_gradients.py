"""Gradients of mixtures with respect to the weights: no NaN from ruled-out tokens or members without mass."""

from __future__ import annotations

import pytest
import torch

from hf_rlae import EnsembleForCausalLM
from hf_rlae.ensemble.mixing import ContrastMixing, GuidanceMixing, LinearMixing, LogMixing, PowerMixing
from tests.support.ensembles import encode, endless
from tests.support.models import constant, pair
from tests.support.tokenizers import byte_level_bpe, raw_bytes

INF = torch.inf
SCORES = {
    "nothing ruled out": ([1.0, 2.0, 0.5, -1.0], [0.0, 0.3, 1.0, 2.0]),
    "by one": ([1.0, 2.0, -INF, -1.0], [0.0, -INF, 1.0, 2.0]),
    "by both": ([1.0, -INF, 0.5, -INF], [0.3, -INF, -INF, -INF]),
    "everything between them": ([1.0, -INF, 0.5, -INF], [-INF, 2.0, -INF, -INF]),
}
"""Logits of two members over four tokens."""

MIXINGS = (LogMixing(), LinearMixing(), PowerMixing(), ContrastMixing(), GuidanceMixing())
MIXTURES = [(mixing, method) for mixing in MIXINGS for method in ("of_logits", "of_probs")]


def mixed(mixing, method, logits, weights):
    """The mixture's logits `(V,)` for weights `(M,)`."""
    rows = [torch.tensor(row, dtype=weights.dtype)[None, None] for row in logits]
    log_z = [row.logsumexp(-1) for row in rows]
    given = rows if method == "of_logits" else [row.softmax(-1) for row in rows]
    return getattr(mixing, method)(given, log_z, weights[None, None])[0, 0]


@pytest.mark.parametrize("logits", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize(("mixing", "method"), MIXTURES, ids=[f"{type(m).__name__}.{name}" for m, name in MIXTURES])
def test_gradients_are_the_derivatives(mixing, method, logits):
    """Law: gradients of every possible token's log-probability equal finite differences."""
    weights = torch.tensor([0.7, 0.3], dtype=torch.float64, requires_grad=True)
    possible = torch.isfinite(mixed(mixing, method, logits, weights.detach()))
    assert possible.any()

    def logps(moved):
        return mixed(mixing, method, logits, moved).log_softmax(-1)[possible]

    assert torch.autograd.gradcheck(logps, (weights,))


@pytest.mark.parametrize("logits", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize("method", ["of_logits", "of_probs"])
def test_log_mixing_is_the_same_with_and_without_gradients(method, logits):
    """Law: values are the same with and without gradients."""
    for pair_of_weights in ([0.7, 0.3], [1.0, 0.0]):
        weights = torch.tensor(pair_of_weights)
        with torch.no_grad():
            expected = mixed(LogMixing(), method, logits, weights)
        torch.testing.assert_close(mixed(LogMixing(), method, logits, weights.requires_grad_()).detach(), expected)


@pytest.mark.parametrize("tokenizer", [byte_level_bpe, raw_bytes], ids=["one_tokenizer", "two_tokenizers"])
def test_members_get_no_gradients(tokenizer):
    members = [pair("llama"), pair("gpt2", 1, tokenizer())]
    weights = torch.tensor([[0.7, 0.3]], requires_grad=True)
    ensemble = EnsembleForCausalLM.from_members(members, lambda state: weights)
    ids = encode("the dogs ran 12 miles")["input_ids"]
    ensemble(input_ids=ids, labels=ids.masked_fill(torch.arange(ids.shape[1]) < 3, -100)).loss.backward()
    assert weights.grad.abs().sum() > 0
    assert all(parameter.grad is None for model, _ in members for parameter in model.parameters())


def test_a_member_without_weight_has_no_effect_on_gradients():
    """With all weight on one member, ruled-out tokens and NaN scores of the other member have no effect."""
    for nothing in (-INF, torch.nan):
        weights = torch.tensor([1.0, 0.0], requires_grad=True)
        first, second = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, -INF, nothing])
        log_z = [first.logsumexp(0)[None, None], torch.zeros(1, 1)]
        LogMixing().of_logits([first[None, None], second[None, None]], log_z, weights[None, None])[0, 0, 0].backward()
        assert torch.isfinite(weights.grad).all()
        assert float(weights.grad[1]) == 0.0


def loss_by_scores(members, text, prompt_length, mixing, is_endless):
    """A function from the policy's scores to the loss of a text by teacher forcing."""
    given = {}
    build = endless if is_endless else EnsembleForCausalLM.from_members
    ensemble = build(
        members,
        lambda state: given["scores"].softmax(0).expand(state.batch_size, -1),
        mixing=mixing,
        grain="token" if is_endless else "byte",
    )
    ids = encode(text, tokenizer=ensemble.tokenizer)["input_ids"]
    labels = ids.clone()
    labels[:, :prompt_length] = -100

    def loss(scores):
        given["scores"] = scores
        return ensemble(input_ids=ids, labels=labels).loss

    return loss


def with_exclusions():
    """Two members with one tokenizer that rule out different tokens, and some tokens both."""
    tokenizer = byte_level_bpe()
    used = set(tokenizer("the dogs")["input_ids"])
    logits = torch.randn(2, len(tokenizer), generator=torch.Generator().manual_seed(0))
    for i in set(range(len(tokenizer))) - used:
        logits[0, i], logits[1, i] = (-INF if i % 3 else logits[0, i]), (-INF if i % 2 else logits[1, i])
    return [constant(row, tokenizer) for row in logits]


def with_other_tokenizers():
    """The second member has tokens for words, which the first, with a byte tokenizer, never proposes."""
    return [pair("llama", 0, raw_bytes()), pair("gpt2", 1, byte_level_bpe())]


@pytest.mark.parametrize("members", [with_exclusions, with_other_tokenizers])
def test_gradients_reach_the_policy_through_log_mixing(members):
    """Teacher forcing: the gradient of the first label's loss equals finite differences of the policy's scores."""
    one_tokenizer = members is with_exclusions
    prompt_length = 2 if one_tokenizer else 7  # one label: later losses depend on the weights by the readings, too
    loss = loss_by_scores(members(), "the dogs", prompt_length, "log", one_tokenizer)
    scores = torch.tensor([0.3, -0.2], requires_grad=True)
    value = loss(scores)
    value.backward()
    assert torch.isfinite(value)
    with torch.no_grad():
        step = torch.tensor([1e-2, 0.0])
        slope = float((loss(scores + step) - loss(scores - step)) / 2e-2)
    assert scores.grad.tolist() == pytest.approx([slope, -slope], abs=2e-3)
    assert abs(slope) > 1e-2


@pytest.mark.parametrize("mixing", ["linear", "log", "power"])
def test_gradients_where_a_member_has_outgrown_its_context_in_one_row(mixing):
    """Gradients stay finite if a member has no next-token mass in one row of a batch."""
    members = [pair("llama", 0, raw_bytes()), pair("gpt2", 1, byte_level_bpe(), max_position_embeddings=16)]
    scores = torch.tensor([0.3, -0.2], requires_grad=True)
    ensemble = EnsembleForCausalLM.from_members(
        members,
        lambda state: scores.softmax(0).expand(state.batch_size, -1),
        mixing=mixing,
        grain="byte" if mixing == "log" else "token",
    )
    texts = ["Once upon a time, there was a big dog that ran and ran", "The 3 big dogs"]
    inputs = encode(*texts, tokenizer=ensemble.tokenizer)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels[:, :45] = -100
    loss = ensemble(**inputs, labels=labels).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(scores.grad).all()
    assert float(scores.grad.abs().min()) > 1e-3
