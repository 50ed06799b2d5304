"""Learned policies in ensembles: the same weights as outside, called once per span, saved with the ensemble."""

from __future__ import annotations

import logging
import math
from functools import cache

import pytest
import torch

from hf_rlae import (
    EnsembleForCausalLM,
    EnsembleLogitsProcessor,
    EntropyPolicy,
    PerplexityPolicy,
    PolicyConfig,
    PolicyModel,
    PolicyState,
    StaticPolicy,
)
from hf_rlae.errors import ConfigError, PolicyError
from hf_rlae.vocabulary import ByteVocabulary
from tests.support.ensembles import TEXTS, encode, endless
from tests.support.models import constant, pair, pairs
from tests.support.policies import assert_same_parameters, encoder
from tests.support.tiers import slow
from tests.support.tokenizers import raw_bytes, sentencepiece_bpe

MODES = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 0, "num_return_sequences": 2},
    "beams": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.0},
}


@cache
def members(kind):
    if kind == "same":
        return pairs(["llama", "gpt2"])
    return [pair("llama"), pair("gpt2", 1, raw_bytes(), hidden_size=16)]


def policy_for(given, observation="members", actor="joint", **options):
    torch.manual_seed(0)
    options = {"actor": actor, "hidden_size": 16, **options}
    if observation == "members":
        policy = PolicyModel(PolicyConfig.for_members(given, **options))
    else:
        policy = PolicyModel.from_encoder(encoder(), given, observation=observation, **options)
    with torch.no_grad():
        for score in policy.heads.scores:
            score.weight.normal_(0.0, 0.7)
    return policy.eval()


class Watched:
    """Records every state that a policy gets."""

    def __init__(self, policy):
        self.policy = policy
        self.num_members = policy.num_members
        self.pooled_tokens = policy.pooled_tokens
        self.seen = []

    def __call__(self, state):
        output = self.policy(state)
        kept = {name: tensor.clone() for name, tensor in self.policy.observe(state).items()}
        self.seen.append((list(state.text), kept, output.weights.clone()))
        return output


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("observation", ["both", *slow("members", "text")])
@pytest.mark.parametrize("kind", ["same", "different"])
def test_called_once_per_span(kind, observation, mode):
    """The policy is called once per span for all rows; its weights are those of the trace, and depend on the text."""
    watched = Watched(policy_for(members(kind), observation, span_length=3))
    ensemble = endless(members(kind), watched, span_length=3)
    torch.manual_seed(0)
    out = ensemble.generate(**encode(*TEXTS), max_new_tokens=8, return_dict_in_generate=True, **MODES[mode])
    assert len(watched.seen) == math.ceil(8 / 3)
    assert len({tuple(row.tolist()) for _, _, weights in watched.seen for row in weights}) > 3
    by_text: dict[str, list[torch.Tensor]] = {}  # different incomplete characters decode to the same text
    for texts, _, weights in watched.seen:
        for row, text in enumerate(texts):
            by_text.setdefault(text, []).append(weights[row])
    for row, ids in enumerate(out.sequences):
        width = encode(*TEXTS)["input_ids"].shape[1]
        pads = int((encode(*TEXTS)["attention_mask"][row * 3 // len(out.sequences)] == 0).sum())
        for span in range(3):
            text = ensemble.tokenizer.decode(ids[pads : width + 3 * span].tolist(), skip_special_tokens=True)
            given = out.span_weights[row, span]
            assert any(torch.allclose(given, weights, atol=1e-4, rtol=0) for weights in by_text[text])
    plain = policy_for(members(kind), observation, span_length=3)
    torch.manual_seed(0)
    again = endless(members(kind), plain, span_length=3).generate(**encode(*TEXTS), max_new_tokens=8, **MODES[mode])
    assert torch.equal(again, out.sequences)


@pytest.mark.parametrize("kind", ["same", "different"])
def test_rows_of_a_batch_are_rows_alone(kind):
    """Law: the policy's observation of a row does not depend on other rows or on padding."""
    seen = []
    for texts in (TEXTS, *([text] for text in TEXTS)):
        watched = Watched(policy_for(members(kind), span_length=3))
        endless(members(kind), watched, span_length=3).generate(**encode(*texts), max_new_tokens=6, do_sample=False)
        seen.append(watched.seen)
    for row in range(3):
        for span in range(2):
            for name, tensor in seen[0][span][1].items():
                alone = seen[1 + row][span][1][name]
                torch.testing.assert_close(tensor[row], alone[0], atol=2e-4, rtol=1e-3, msg=f"{name} {row} {span}")


def test_hidden_states_are_those_of_the_models():
    """The state at a span's first token has the members' last hidden states, entropies, and agreement by bytes."""
    given = members("different")
    watched = Watched(policy_for(given))
    endless(given, watched).generate(**encode(TEXTS[0]), max_new_tokens=1, do_sample=False)
    kept = watched.seen[0][1]
    most_likely = []
    for index, (model, tokenizer) in enumerate(given):
        ids = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            states = model(ids, output_hidden_states=True).hidden_states[-1][0]
            logps = model(ids).logits[0, -1].double().log_softmax(-1)
        expected = torch.cat([states[-1], states[-watched.pooled_tokens :].mean(0)])
        torch.testing.assert_close(kept[f"hidden_states_{index}"][0], expected, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(
            kept["entropies"][0, index].double(), -(logps.exp() * logps).sum(), atol=1e-3, rtol=1e-3
        )
        pieces = ByteVocabulary(tokenizer).pieces
        most_likely.append(pieces[max((i for i, piece in enumerate(pieces) if piece), key=logps.tolist().__getitem__)])
    agrees = most_likely[0].startswith(most_likely[1]) or most_likely[1].startswith(most_likely[0])
    assert kept["agreement"][0].tolist() == [[1.0, float(agrees)], [float(agrees), 1.0]]


@pytest.mark.parametrize("mode", MODES)
def test_a_policy_sees_nothing_of_a_member_that_dropped_out(mode, caplog):
    """A member does not run after its context is outgrown, even if the policy observes members."""
    given = [pair("llama"), pair("gpt2", 1, max_position_embeddings=12)]
    policy = Watched(policy_for(given))
    ensemble = endless(given, policy, span_length=2)
    out = ensemble.generate(**encode("Once upon a"), **MODES[mode], max_new_tokens=20)
    assert out.shape[1] == encode("Once upon a")["input_ids"].shape[1] + 20
    assert "outgrown the context" in caplog.text
    _, first, _ = policy.seen[0]
    _, last, weights = policy.seen[-1]
    assert first["hidden_states_1"].abs().sum() > 0
    assert last["hidden_states_0"].abs().sum() > 0
    assert (last["hidden_states_1"] == 0).all()
    torch.testing.assert_close(last["entropies"][:, 1], torch.full_like(last["entropies"][:, 1], math.log(330)))
    assert weights.isfinite().all()


def test_the_same_member_twice_agrees_across_tokenizers():
    """A member and its copy always agree, even inside a token; a third member does not."""
    given = [pair("llama"), pair("gpt2", 1, sentencepiece_bpe()), pair("llama")]
    states = []

    def note(state: PolicyState):
        states.append(state.agreement.clone())
        return torch.full((state.batch_size, 3), 1 / 3)

    endless(given, note, span_length=1).generate(**encode(*TEXTS), max_new_tokens=12, do_sample=True, top_k=0)
    agreement = torch.cat(states)
    assert bool((agreement[:, 0, 2] == 1).all())
    assert torch.equal(agreement, agreement.transpose(1, 2))
    assert agreement[:, 0, 1].mean() < 1


def test_agreement_inside_a_token():
    """The tail of a reading is part of the text: only the bytes after it are compared."""
    tokenizer = pair("llama")[1]
    word = " there"
    assert len(tokenizer(word)["input_ids"]) == 1
    whole = torch.full((len(tokenizer),), -8.0)
    whole[tokenizer(word)["input_ids"][0]] = 8.0
    given = [constant(torch.zeros(len(raw_bytes())), raw_bytes()), constant(whole, tokenizer)]
    ensemble = endless(given, StaticPolicy([1.0, 0.0]), span_length=1)
    answers = []

    def read(state):
        answers.append(state._read_next(state.observations, state._best_ids))
        return torch.full((1, 2), 0.5)

    ensemble.set_policy(read)
    force = [[raw_bytes().convert_tokens_to_ids("Ġ")], [raw_bytes().convert_tokens_to_ids("t")]]
    prefix = ensemble.tokenizer(["a"], return_tensors="pt")["input_ids"]

    def allowed(_batch, ids):
        return force[len(ids) - prefix.shape[1]] if len(ids) - prefix.shape[1] < 2 else list(range(10))

    ensemble.generate(prefix, max_new_tokens=3, do_sample=False, prefix_allowed_tokens_fn=allowed)
    assert [answer[0][1] for answer in answers] == [b" there", b"there", b"here"]


@pytest.mark.parametrize("observation", ["members", "both"])
def test_saved_with_the_ensemble(observation, tmp_path):
    """The ensemble's only parameters are the policy's; the policy is saved to `policy/` and loaded from there."""
    folders = []
    for name, (model, tokenizer) in zip(("a", "b"), members("different"), strict=True):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        folders.append(str(tmp_path / name))
    ensemble = EnsembleForCausalLM.from_members(folders, span_length=4)
    ensemble.set_policy(policy_for(ensemble.members, observation, "per_member", span_length=4))
    assert [name for name, _ in ensemble.named_children()] == ["policy"]
    assert {name for name, _ in ensemble.named_parameters()} == {
        f"policy.{name}" for name, _ in ensemble.policy.named_parameters()
    }
    ensemble.save_pretrained(tmp_path / "ensemble")
    assert (tmp_path / "ensemble" / "policy" / "model.safetensors").exists()
    expected = ensemble.generate(**encode(*TEXTS), max_new_tokens=9, do_sample=False, return_dict_in_generate=True)
    for loaded in (
        EnsembleForCausalLM.from_pretrained(tmp_path / "ensemble", allow_outside=True),
        EnsembleForCausalLM.from_members(
            folders, PolicyModel.from_pretrained(tmp_path / "ensemble" / "policy"), span_length=4
        ),
    ):
        assert type(loaded.policy) is PolicyModel
        out = loaded.generate(**encode(*TEXTS), max_new_tokens=9, do_sample=False, return_dict_in_generate=True)
        assert_same_parameters(loaded.policy, ensemble.policy)
        assert torch.equal(out.sequences, expected.sequences)
        torch.testing.assert_close(out.span_weights, expected.span_weights)
    other = EnsembleForCausalLM.from_pretrained(tmp_path / "ensemble", allow_outside=True, policy=StaticPolicy([1, 1]))
    other.save_pretrained(tmp_path / "ensemble")
    assert not (tmp_path / "ensemble" / "policy").exists()
    assert type(EnsembleForCausalLM.from_pretrained(tmp_path / "ensemble", allow_outside=True).policy) is StaticPolicy


def test_a_saved_policy_of_an_unknown_kind(tmp_path):
    """Loading an unregistered policy class raises an error that names it."""
    folders = []
    for name, (model, tokenizer) in zip(("a", "b"), members("same"), strict=True):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        folders.append(str(tmp_path / name))
    ensemble = EnsembleForCausalLM.from_members(folders)
    ensemble.save_pretrained(tmp_path / "e")
    path = tmp_path / "e" / "config.json"
    text = path.read_text().replace('"name": "uniform"', '"model_type": "mine"')
    path.write_text(text)
    with pytest.raises(ConfigError, match="'mine'"):
        EnsembleForCausalLM.from_pretrained(tmp_path / "e", allow_outside=True)
    EnsembleForCausalLM.from_pretrained(tmp_path / "e", allow_outside=True, policy=StaticPolicy([1, 1]))


def test_policies_for_other_members_are_refused(caplog):
    """Another number of members or other widths raise an error; another span length logs a warning."""
    given = members("different")
    ensemble = endless(given)
    with pytest.raises(ConfigError, match="weighs 3 members"):
        ensemble.set_policy(policy_for([*given, given[0]]))
    with pytest.raises(ConfigError, match=r"\[32, 32\].*\[32, 16\]"):
        ensemble.set_policy(policy_for(members("same")))
    assert not isinstance(ensemble.policy, PolicyModel)
    with caplog.at_level(logging.WARNING, logger="hf_rlae"):
        ensemble.set_policy(policy_for(given))
        assert not caplog.records
        ensemble.set_policy(policy_for(given, span_length=2))
    assert "span_length=2" in caplog.text


@pytest.mark.parametrize("kind", ["same", "different"])
def test_coarse_members(kind):
    """With bf16 members the policy computes in fp32, and hidden states keep their dtype."""
    given = [(pair("llama")[0].to(torch.bfloat16), members(kind)[0][1]), members(kind)[1]]
    watched = Watched(policy_for(given))
    endless(given, watched).generate(**encode(*TEXTS), max_new_tokens=9, do_sample=False)
    for _, kept, weights in watched.seen:
        assert kept["hidden_states_0"].dtype == torch.bfloat16
        assert kept["entropies"].dtype == weights.dtype == torch.float32


def test_training_from_a_rollout():
    """Stored observations give the same log-densities, with gradients: weights with a high reward grow."""
    given = members("same")
    policy = policy_for(given)
    ensemble = endless(given, policy)
    kept = []
    forward = policy.forward

    def note(state, **options):
        observed = policy.observe(state)
        output = forward(observed, **options)
        kept.append((observed, output))
        return output

    policy.forward = note
    with policy.exploring():
        ensemble.generate(**encode(*TEXTS), max_new_tokens=9, do_sample=True, top_k=0)
    policy.forward = forward
    observation = policy.stack([observed for observed, _ in kept])
    actions = torch.cat([output.actions for _, output in kept]).clone()
    before = policy(observation).weights[:, 0].detach()
    output = policy(observation, actions=actions)
    torch.testing.assert_close(output.log_probs, torch.cat([out.log_probs for _, out in kept]), atol=1e-4, rtol=1e-4)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    many = policy.stack([observation] * 32)
    for _ in range(20):
        output = policy(many, sample=True)
        advantages = output.actions[:, 0] - policy(many).weights[:, 0].detach()  # as if the first member were right
        loss = -(output.log_probs * advantages).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert policy(observation).weights[:, 0].mean() > before.mean() + 0.02


@pytest.mark.parametrize("pooled_tokens", [1, 8])
def test_hidden_states_that_are_not_kept(pooled_tokens):
    """A policy that observes members although its `observes_members` is `False` raises an error."""
    given = members("different")

    class Forgetful:
        observes_members = False

        def __init__(self):
            self.policy = policy_for(given, pooled_tokens=pooled_tokens)

        def __call__(self, state):
            return self.policy(state)

    with pytest.raises(PolicyError, match=r"run for 0: .* `observes_members`"):
        endless(given, Forgetful()).generate(**encode(TEXTS[0]), max_new_tokens=1)


@pytest.mark.parametrize("mode", ["greedy", "beams"])
@pytest.mark.parametrize("observation", ["members", "text", "both"])
def test_inside_a_plain_generate(observation, mode):
    """With one tokenizer the processor gives a learned policy the same states, and generates the same text."""
    given = members("same")
    policy = policy_for(given, observation, span_length=3)
    ends = [[], []]
    ensemble = endless(given, policy, span_length=3)
    processor = EnsembleLogitsProcessor.from_members(
        given[0][0], [given[1][0]], [tokenizer for _, tokenizer in given], policy, span_length=3, end_token_ids=ends
    )
    options = {"max_new_tokens": 8, "eos_token_id": None, "pad_token_id": 0, **MODES[mode]}
    expected = ensemble.generate(**encode(*TEXTS), **options)
    assert torch.equal(given[0][0].generate(**encode(*TEXTS), logits_processor=[processor], **options), expected)


@pytest.mark.parametrize("kind", ["same", "different"])
@pytest.mark.parametrize("policy", [EntropyPolicy(0.5), PerplexityPolicy(0.5)])
def test_training_free_policies_inside_a_plain_generate(policy, kind):
    given = members(kind)
    seen = []

    def watched(state):
        seen.append((policy(state).clone(), state.agreement.clone()))
        return seen[-1][0]

    processor = EnsembleLogitsProcessor.from_members(
        given[0][0], [given[1][0]], [tokenizer for _, tokenizer in given], watched, end_token_ids=[[], []]
    )
    given[0][0].generate(**encode(TEXTS[0]), logits_processor=[processor], max_new_tokens=1, do_sample=False)
    inside = seen.pop()
    endless(given, watched, span_length=3).generate(**encode(TEXTS[0]), max_new_tokens=1, do_sample=False)
    for one, other in zip(inside, seen.pop(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


@pytest.mark.parametrize("min_weight", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["same", "different"])
def test_gradients_reach_the_policy_through_the_loss(kind, min_weight):
    """Teacher forcing outside of `generate` trains the weights, even if some are cut; members do not change."""
    given = members(kind)
    policy = policy_for(given, span_length=3)
    with torch.no_grad():
        policy.heads.scores[0].weight.mul_(0.3)  # so that not all are cut
    ensemble = endless(given, policy, span_length=3, min_weight=min_weight)
    inputs = ensemble.tokenizer([TEXTS[0]], return_tensors="pt")
    inputs.pop("token_type_ids", None)
    labels = inputs["input_ids"].clone()
    labels[:, :4] = -100
    ensemble(**inputs, labels=labels, prompt_length=4).loss.backward()
    for name, parameter in policy.named_parameters():
        if "critic" not in name and "actions" not in name:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
    assert all(parameter.grad is None for model, _ in given for parameter in model.parameters())
