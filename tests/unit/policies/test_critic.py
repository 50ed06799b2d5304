"""The critic: where it starts, what it sees, and what its loss leaves alone."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_rlae import EnsembleForCausalLM, PolicyConfig, PolicyModel, PolicyState
from hf_rlae.errors import PolicyError
from hf_rlae.policies.heads import Score
from tests.support.policies import SIZES, encoder, random_state
from tests.support.rlae import ensemble_of

OBSERVATIONS = ("members", "text", "both")


def policy_of(observation="members", span_length=4):
    torch.manual_seed(0)
    settings = {"num_members": 2, "member_hidden_sizes": list(SIZES), "hidden_size": 16, "span_length": span_length}
    if observation == "members":
        return PolicyModel(PolicyConfig(**settings)).eval()
    model, tokenizer = encoder()
    config = PolicyConfig(**settings, observation=observation, encoder_config=model.config, max_text_tokens=48)
    return PolicyModel(config, tokenizer).eval()


def at_span(span, rows=3):
    state = random_state(rows)
    index = torch.full((rows,), span)
    return PolicyState(2, index, state.device, lambda: state.text, lambda: state.observations)


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_it_starts_at_the_mean_reward(observation):
    """Within 1% of a deviation: its unit is that of normalised rewards."""
    for seed in range(3):
        assert policy_of(observation)(random_state(seed=seed)).state_values.abs().max() < 0.01


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_its_loss_changes_no_layer_but_its_own(observation):
    policy = policy_of(observation).train()
    policy(random_state()).state_values.square().sum().backward()
    changed = {name for name, value in policy.named_parameters() if value.grad is not None and value.grad.any()}
    own = {name for name, _ in policy.named_parameters() if name.startswith("heads.critic.")}
    assert changed == own
    assert len(own) == 4


def test_it_sees_the_position_of_a_span_and_the_actor_does_not():
    policy = policy_of(span_length=4)
    with torch.no_grad():
        policy.heads.critic.value.weight.normal_()
        found = {span: policy(at_span(span)) for span in (0, 1, 50, 10**7)}
    values = [output.state_values for output in found.values()]
    for index, value in enumerate(values):
        assert bool(value.isfinite().all())
        assert all((value - other).abs().max() > 1e-3 for other in values[:index])
        assert torch.equal(found[0].weights, list(found.values())[index].weights)
    twice = policy_of(span_length=8)
    twice.load_state_dict(policy.state_dict())
    assert torch.equal(twice(at_span(25)).state_values, policy(at_span(50)).state_values)  # both at token 200


def test_observations_without_positions_are_at_the_start():
    policy = policy_of()
    observed = dict(policy.observe(at_span(0)))
    values = policy(observed).state_values
    assert observed.pop("positions").tolist() == [0, 0, 0]
    assert torch.equal(policy(observed).state_values, values)


def with_former_critic(path):
    """Gives a policy's file the critic that earlier versions saved; returns the other tensors."""
    kept = {name: value for name, value in load_file(path).items() if not name.startswith("heads.critic.")}
    former = {"0.weight": torch.ones(16, 133), "0.bias": torch.ones(16), "2.weight": torch.ones(1, 16)}
    save_file({**kept, **{f"heads.critic.{name}": value for name, value in former.items()}}, path, {"format": "pt"})
    return kept


def test_an_ensemble_whose_policy_has_the_former_critic_is_loaded(tmp_path):
    ensemble = ensemble_of()
    ensemble.save_pretrained(tmp_path, save_members=True)
    kept = with_former_critic(tmp_path / "policy" / "model.safetensors")
    loaded = EnsembleForCausalLM.from_pretrained(tmp_path).policy.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in kept.items())


def test_a_policy_with_the_former_critic_is_loaded_with_a_new_one(tmp_path):
    """Policies that earlier versions saved; a file without any critic is not whole."""
    policy = policy_of()
    policy.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    kept = with_former_critic(path)
    loaded = PolicyModel.from_pretrained(tmp_path)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in kept.items())
    assert loaded(at_span(3)).state_values.abs().max() < 0.01
    assert isinstance(loaded.heads.critic.value, Score)
    torch.testing.assert_close(loaded(at_span(3)).weights, policy(at_span(3)).weights)
    save_file(kept, path, {"format": "pt"})
    with pytest.raises(PolicyError, match=r"have no heads\.critic\.hidden\.bias"):
        PolicyModel.from_pretrained(tmp_path)
