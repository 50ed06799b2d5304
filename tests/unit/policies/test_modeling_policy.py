"""The learned policy: initial weights, observations, actors, batches, gradients, saving."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel, BertConfig, RobertaConfig, RobertaModel, T5Config

from hf_rlae import PolicyConfig, PolicyModel, PolicyOutput
from hf_rlae.errors import ConfigError, PolicyError
from hf_rlae.members import Member
from hf_rlae.policies import ask
from tests.support.models import pair, tiny
from tests.support.policies import SIZES, assert_same_parameters, encoder, random_state, row_of
from tests.support.tokenizers import byte_level_bpe

KINDS = [
    (observation, actor, options)
    for observation in ("members", "text", "both")
    for actor, options in (
        ("joint", {}),
        ("joint", {"action": "logistic_normal"}),
        ("per_member", {}),
        ("per_member", {"share_trunk": True}),
    )
]


def policy_of(observation="members", actor="joint", seed=0, sizes=SIZES, **options):
    torch.manual_seed(seed)
    config = PolicyConfig(
        num_members=len(sizes),
        observation=observation,
        actor=actor,
        member_hidden_sizes=list(sizes),
        encoder_config=encoder()[0].config.to_dict() if observation != "members" else None,
        max_text_tokens=options.pop("max_text_tokens", 48),
        hidden_size=options.pop("hidden_size", 16),
        **options,
    )
    return PolicyModel(config, encoder()[1] if observation != "members" else None).eval()


def varied(policy, seed=1):
    """Scales the policy's parameters, so that its outputs differ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with torch.no_grad():
            for score in policy.heads.scores:
                score.weight.normal_(0.0, 0.7)
    return policy


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    members=st.integers(1, 4),
    actor=st.sampled_from(["joint", "per_member"]),
    hidden_size=st.sampled_from([1, 16, 128]),
    scale=st.sampled_from([0.0, 1.0, 1e4]),
)
def test_a_random_policy_is_nearly_uniform(seed, members, actor, hidden_size, scale):
    """Law: for any seed and state, initial weights are within 2% of 1/M."""
    policy = policy_of(actor=actor, seed=seed, sizes=[20] * members, hidden_size=hidden_size)
    observation = policy.observe(random_state(5, [20] * members, [30] * members, seed))
    observation = {name: scale * tensor if name != "agreement" else tensor for name, tensor in observation.items()}
    weights = policy(observation).weights
    assert weights.dtype == torch.float32
    assert (weights * members - 1).abs().max() < 0.02
    torch.testing.assert_close(weights.sum(1), torch.ones(5))


@pytest.mark.parametrize("observation", ["text", "both"])
def test_a_random_policy_that_reads_is_nearly_uniform(observation):
    for seed in range(5):
        weights = policy_of(observation, seed=seed)(random_state(seed=seed)).weights
        assert (2 * weights - 1).abs().max() < 0.02


@pytest.mark.parametrize(("observation", "actor", "options"), KINDS)
def test_rows_do_not_see_one_another(observation, actor, options):
    """Law: a row of a batch gets the same weights as alone, and in eval mode the same weights every time."""
    policy = varied(policy_of(observation, actor, **options))
    state = random_state(4)
    together = policy(state)
    assert torch.equal(policy(random_state(4)).weights, together.weights)
    assert together.state_values.shape == (4,)
    assert together.weights.std(0).max() > 0.02
    for row in range(4):
        alone = policy(row_of(state, row))
        torch.testing.assert_close(alone.weights[0], together.weights[row], atol=1e-5, rtol=0)
        torch.testing.assert_close(alone.state_values[0], together.state_values[row], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("observation", "actor", "options"), KINDS)
def test_kept_observations_give_the_same(observation, actor, options):
    """Law: stacked observations of several `generate` calls give the outputs of the calls."""
    policy = varied(policy_of(observation, actor, **options))
    states = [random_state(2), random_state(3, seed=1)]
    with torch.inference_mode():
        kept = [policy.observe(state) for state in states]
        outputs = [policy(entry) for entry in kept]
    again = policy(policy.stack(kept))
    torch.testing.assert_close(again.weights, torch.cat([output.weights for output in outputs]), atol=1e-5, rtol=0)
    again.state_values.sum().backward()
    assert all(name in kept[0] for name in (["entropies", "margins", "agreement"] if observation != "text" else []))
    assert ("input_ids" in kept[0]) == (observation != "members")


@pytest.mark.parametrize(("observation", "actor", "options"), KINDS)
def test_gradients_reach_every_parameter(observation, actor, options):
    policy = varied(policy_of(observation, actor, **options)).train()
    observed = policy.observe(random_state(6))
    actions = policy(observed, sample=True).actions
    output = policy(observed, actions=actions)
    weight = torch.randn(output.log_probs.shape, generator=torch.Generator().manual_seed(0))
    (output.log_probs * weight).sum().add(output.state_values.square().sum()).add(output.entropies.sum()).backward()
    for name, parameter in policy.named_parameters():
        if "pooler" in name:  # transformers' own head for sentence pairs
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(("observation", "actor", "options"), KINDS)
def test_round_trip(observation, actor, options, tmp_path):
    """Law: a policy is loaded bit-exactly, with encoder and tokenizer, from its own folder alone.

    Its outputs may differ by rounding, because loaded tensors have another memory layout.
    """
    policy = varied(policy_of(observation, actor, **options))
    policy.save_pretrained(tmp_path)
    for loaded in (PolicyModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert type(loaded) is PolicyModel
        for name in ("observation", "actor", "action", "member_hidden_sizes", "share_trunk", "max_text_tokens"):
            assert getattr(loaded.config, name) == getattr(policy.config, name)
        state = random_state()
        assert_same_parameters(loaded, policy)
        torch.testing.assert_close(loaded(state).weights, policy(state).weights)
        torch.testing.assert_close(loaded(state).state_values, policy(state).state_values)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "hf_rlae_policy"
    assert ("tokenizer_config.json" in {path.name for path in tmp_path.iterdir()}) == (observation != "members")


def test_a_pretrained_encoder(tmp_path):
    """`from_encoder` copies the encoder's weights; its folder is not needed, or named, afterwards."""
    model, tokenizer = encoder()
    model.save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    members = [pair("llama"), pair("gpt2", 1)]
    for source in (str(tmp_path / "encoder"), (model, tokenizer)):
        policy = PolicyModel.from_encoder(source, members, observation="both", actor="per_member")
        assert policy.config.max_text_tokens == 64
        assert policy.config.member_hidden_sizes == [32, 32]
        for name, tensor in model.state_dict().items():
            assert torch.equal(policy.encoder.state_dict()[name], tensor)
    policy.save_pretrained(tmp_path / "policy")
    assert str(tmp_path) not in (tmp_path / "policy" / "config.json").read_text()
    (tmp_path / "encoder").rename(tmp_path / "gone")
    state = random_state(sizes=[32, 32])
    again = PolicyModel.from_pretrained(tmp_path / "policy")
    assert_same_parameters(again, policy)
    torch.testing.assert_close(again(state).weights, policy(state).weights)
    assert tokenizer.truncation_side == "right"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_encoder_of_half_precision_is_read_in_float32(dtype, tmp_path):
    """Encoder files in half precision are loaded in fp32, because Adam's small steps are lost in half precision."""
    model, tokenizer = encoder()
    halved = copy.deepcopy(model).to(dtype)
    halved.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path).dtype == dtype
    for source in (str(tmp_path), (halved, tokenizer)):
        policy = PolicyModel.from_encoder(source, [pair()] * 2)
        assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}
        for name, tensor in halved.state_dict().items():
            assert torch.equal(policy.encoder.state_dict()[name], tensor.float())
        policy.save_pretrained(tmp_path / "policy")
        again = PolicyModel.from_pretrained(tmp_path / "policy")
        assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}


def test_encoders_whose_positions_begin_after_the_padding_token():
    """RoBERTa reads two tokens fewer than it has positions."""
    tokenizer = byte_level_bpe()
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=18, pad_token_id=1, **sizes)
    source = (RobertaModel(config), tokenizer)
    with pytest.raises(ConfigError, match=r"max_text_tokens=18: .* at most 16"):
        PolicyModel.from_encoder(source, [pair()] * 2, max_text_tokens=18)
    policy = PolicyModel.from_encoder(source, [pair()] * 2)
    assert policy.config.max_text_tokens == 16
    assert policy(random_state(1, text=["a long text " * 20])).weights.isfinite().all()


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_other_encoders(architecture):
    """Any model with last hidden states can be the encoder, even without a padding token."""
    tokenizer = byte_level_bpe(331)
    tokenizer.pad_token = None
    model = tiny(architecture, len(tokenizer)).base_model
    policy = varied(PolicyModel.from_encoder((model, tokenizer), [pair()] * 2))
    assert tokenizer.pad_token_id is None
    state = random_state(3)
    torch.testing.assert_close(policy(row_of(state, 0)).weights[0], policy(state).weights[0], atol=1e-5, rtol=0)


def test_the_newest_text_is_read():
    """Truncation is on the left: old text changes nothing, the last word does."""
    policy = varied(policy_of("text", max_text_tokens=16))
    text = "there was a little girl named Lily who loved the café " * 4

    def weights(text):
        return policy(random_state(1, text=[text])).weights

    observed = policy.observe(random_state(1, text=[text]))
    assert observed["input_ids"].shape == (1, 16)
    assert encoder()[1].decode(observed["input_ids"][0]) == text[-len(encoder()[1].decode(observed["input_ids"][0])) :]
    assert torch.equal(weights("Quite another beginning. " + text), weights(text))
    assert not torch.equal(weights(text + "dogs"), weights(text))
    both = policy(random_state(2, text=["", text])).weights
    torch.testing.assert_close(both, torch.cat([weights(""), weights(text)]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_heads_are_fp32(dtype, tmp_path):
    """Heads compute in fp32 for half-precision members, and stay fp32 if the policy is cast or loaded otherwise."""
    policy = varied(policy_of("both"))
    state = random_state(dtype=dtype)
    same = random_state(dtype=dtype)
    for entry in same.observations:
        object.__setattr__(entry, "hidden", entry.hidden.float())
    assert torch.equal(policy(state).weights, policy(same).weights)
    assert policy(state).weights.dtype == torch.float32
    before = {name: tensor.clone() for name, tensor in policy.heads.state_dict().items()}
    policy.save_pretrained(tmp_path)
    for cast in (PolicyModel.from_pretrained(tmp_path, dtype=dtype), policy.to(dtype)):
        assert {parameter.dtype for parameter in cast.encoder.parameters()} == {dtype}
        assert all(torch.equal(cast.heads.state_dict()[name], tensor) for name, tensor in before.items())
        assert cast(state).weights.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert policy_of()(state).state_values.dtype == torch.float32


def test_exploring():
    """Actions are drawn only inside `exploring()`, even in training mode, and `ask` returns them."""
    policy = policy_of().train()
    state = random_state()
    with policy.exploring():
        drawn = ask(policy, state)
    assert torch.equal(drawn.actions, drawn.weights)
    assert drawn.log_probs.shape == drawn.state_values.shape == drawn.entropies.shape == (3,)
    assert torch.equal(policy(state).weights, policy(state).weights)
    assert isinstance(policy(state), PolicyOutput)
    assert policy(state).actions is None


def test_agents_are_separate():
    """With one actor per member, changing one agent's layers changes its own score only; a shared trunk changes all."""
    for share in (False, True):
        policy = varied(policy_of(actor="per_member", share_trunk=share))
        observed = policy.observe(random_state())
        before = policy.heads(observed, None)[0]
        with torch.no_grad():
            policy.heads.trunks[0].bias.add_(0.5)
        moved = (policy.heads(observed, None)[0] != before).all(0)
        assert moved.tolist() == [True, share]


def test_sizes_of_members():
    """`for_members` uses the width of the head's input, for `Member` objects and pairs."""
    members = [pair("llama"), pair("mamba", 1), Member(*pair("gpt2", 2, hidden_size=16))]
    assert PolicyConfig.for_members(members).member_hidden_sizes == [32, 32, 16]
    assert PolicyConfig.for_members(members, span_length=4).span_length == 4
    assert PolicyConfig.for_members(members).num_members == 3


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"observation": "member"}, "did you mean 'members'"),
        ({"actor": "joined"}, "actor"),
        ({"action": "gaussian"}, "logistic_normal"),
        ({"actor": "per_member", "action": "dirichlet"}, "categorical"),
        ({"num_members": 0}, "num_members"),
        ({"span_length": 0}, "span_length"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"max_text_tokens": 0}, "max_text_tokens"),
        ({"concentration": 0}, "concentration"),
        ({"noise": -1.0}, "noise"),
        ({"member_hidden_sizes": [4]}, "for_members"),
        ({"member_hidden_sizes": [4, 0]}, "member_hidden_sizes"),
        ({"encoder_config": {"hidden_size": 4}}, "model_type"),
        ({"encoder_config": {"model_type": "bart_simpson"}}, "bart_simpson"),
        ({"encoder_config": T5Config()}, "encoder-decoder"),
        ({"encoder_config": BertConfig(max_position_embeddings=64)}, "max_text_tokens=64"),
    ],
)
def test_settings_that_are_refused(options, word):
    """Invalid settings raise an error at construction, which names them."""
    with pytest.raises(ConfigError, match=word):
        PolicyConfig(**options)


def test_types_that_are_refused():
    with pytest.raises(StrictDataclassFieldValidationError, match="hidden_size"):
        PolicyConfig(hidden_size="wide")


def test_policies_that_cannot_be_built():
    """Missing sizes, a missing encoder or an invalid one: the message says what to call."""
    with pytest.raises(ConfigError, match=r"for_members"):
        PolicyModel(PolicyConfig())
    with pytest.raises(ConfigError, match=r"from_encoder"):
        PolicyModel(PolicyConfig(observation="text"))
    with pytest.raises(ConfigError, match="encoder must be"):
        PolicyModel.from_encoder(encoder()[0], [pair()])
    with pytest.raises(ConfigError, match="needs no encoder"):
        PolicyModel.from_encoder(encoder(), [pair()], observation="members")
    for members in ([], "llama", [3]):
        with pytest.raises(ConfigError, match=r"ensemble\.members"):
            PolicyConfig.for_members(members)


def test_states_that_do_not_fit():
    """States of other members raise an error with the member's index and width."""
    with pytest.raises(PolicyError, match="width 96"):
        policy_of()(random_state(sizes=[32, 40]))
    with pytest.raises(PolicyError, match="width 48"):
        policy_of(pooled_tokens=1)(random_state(sizes=[32, 40], pools=False))
    with pytest.raises(PolicyError, match=r"made for pooled_tokens=8.* were run for 4.*attributes"):
        policy_of()(random_state(hidden_tokens=4))
    with pytest.raises(PolicyError, match="weighs 2 members"):
        policy_of()(random_state(sizes=[32, 48, 4], vocab_sizes=[9, 9, 9]))
    state = random_state()
    object.__setattr__(state.observations[1], "hidden", None)
    with pytest.raises(PolicyError, match="member 1 are missing"):
        policy_of()(state)
    with pytest.raises(ConfigError, match="no tokenizer"):
        PolicyModel(policy_of("text").config)(random_state())
