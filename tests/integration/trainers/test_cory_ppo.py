"""CORY with PPO: every agent's loss against loops, the state of an agent, and bit-exact resumes."""

from __future__ import annotations

import copy
import json

import pytest
import safetensors.torch
import torch
from peft import PeftModel
from trl.trainer.utils import split_tensor_dict

from hf_rlae.errors import ConfigError, NonFiniteError
from hf_rlae.trainers.cory.ppo import CoryPPOConfig, CoryPPOTrainer
from tests.support import cory
from tests.support.models import pair
from tests.support.rlae import assert_same, data, parameters_of, vowels
from tests.support.tiers import slow
from tests.support.token_ppo import StopAt, ending_pair, naive_loss, naive_rollout, unsettle

SAVES = {
    "save_strategy": "steps", "save_steps": 1, "max_steps": 7, "role_exchange_steps": 2, "logging_steps": 3,
    "agent_learning_rates": [1e-2, 1e-4], "kl_target": 0.01,
}  # fmt: skip


def made(folder, rewards=vowels, **options):
    """Rollouts of 8 completions per agent, two updates each, two passes; the KL of each changes the coefficients."""
    options = {"given": ending_pair(), "beta": 0.0, "kl_target": 1e-3, "kl_horizon": 16, **options}
    return cory.trainer_of(folder, CoryPPOTrainer, rewards, **options)


def heads_of(trainer):
    return {name: [p.detach().clone() for p in trainer.value_head(name).parameters()] for name in trainer.agents.names}


def gradients_of(trainer, agent):
    return [None if p.grad is None else p.grad.clone() for p in trainer.agent_parameters(agent)]


def rollout(trainer, step=0):
    trainer.state.global_step = step
    trainer.current_gradient_accumulation_steps = 1
    return cory.rollout(trainer)


# -- the loss ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "kl_penalty"), [(0, "sampled"), (5, "sampled"), (0, "full")])
def test_every_agents_loss_and_gradient(tmp_path, step, kl_penalty):
    """Against loops over completions and tokens, in both orders."""
    given = ending_pair()
    base = copy.deepcopy(given[0])
    trainer = made(tmp_path, given=given, kl_coef=0.3, value_epsilon=0.05, kl_penalty=kl_penalty)
    unsettle(trainer)
    output = rollout(trainer, step)
    assert trainer.order() == (["agent-1", "agent-2"] if step == 0 else ["agent-2", "agent-1"])
    batches, texts = {}, {}
    for name in trainer.agents.names:
        batches[name] = {k.removeprefix(f"{name}/"): v for k, v in output.items() if k.startswith(f"{name}/")}
        with trainer.agents.acting(name):
            texts[name] = naive_rollout(trainer, base, batches[name], batches[name]["rewards"].tolist(), 0.3, name)
    assert torch.equal(batches["agent-1"]["rewards"], batches["agent-2"]["rewards"])
    unsettle(trainer, 0.03, seed=1)
    for part in split_tensor_dict(output, 2):
        trainer.compute_loss(trainer.model, part).backward()
    # steps_per_generation is 2 without accumulation: each of the two parts is a whole update
    found = {name: gradients_of(trainer, name) for name in trainer.agents.names}
    trainer.model.zero_grad()
    count = {name: sum(len(gains) for *_, gains in texts[name]) for name in texts}
    for name in trainer.agents.names:
        with trainer.agents.acting(name):
            (2 * naive_loss(trainer, batches[name], texts[name], name)).backward()
        assert count[name] == int(batches[name]["num_items_in_batch"])
        assert len(found[name]) > 20
        for mine, parameter in zip(found[name], trainer.agent_parameters(name), strict=True):
            torch.testing.assert_close(mine, parameter.grad, atol=5e-5, rtol=1e-3)
            assert mine.abs().sum() > 0


def test_an_agents_loss_leaves_the_other_alone(tmp_path):
    trainer = made(tmp_path)
    unsettle(trainer)
    output = rollout(trainer)
    only = {key: value for key, value in output.items() if key.startswith("agent-2/")}
    trainer.compute_loss(trainer.model, split_tensor_dict(only, 2)[0]).backward()
    assert all(grad is None or not grad.any() for grad in gradients_of(trainer, "agent-1"))
    assert all(grad is not None and grad.any() for grad in gradients_of(trainer, "agent-2"))


def test_agents_learn_from_the_team(tmp_path):
    """Without KL, discount and critic, the return of every token is the sum of both rewards."""

    def rewarded(completions, role, **_):
        return [1.0 if role[0] == "pioneer" else 10.0] * len(completions)

    expected = {"team": {"agent-1": 11.0, "agent-2": 11.0}, "own": {"agent-1": 11.0, "agent-2": 10.0}}
    for kind, sums in expected.items():
        trainer = made(tmp_path / kind, rewarded, kl_coef=0.0, lam=1.0, credit=kind)
        output = rollout(trainer)
        for name, total in sums.items():
            mask = output[f"{name}/completion_mask"] != 0
            assert set(output[f"{name}/returns"][mask].tolist()) == {total}
            assert not output[f"{name}/returns"][~mask].any()


def test_equal_rewards_of_a_group_still_teach(tmp_path):
    trainer = made(tmp_path, lambda number, **_: [float(value) for value in number], whiten_advantages=False)
    output = rollout(trainer)
    for name in trainer.agents.names:
        rewarded = output[f"{name}/rewards"] > 0
        mask = output[f"{name}/completion_mask"] != 0
        assert rewarded.tolist() == [False] * 4 + [True] * 4
        assert bool((output[f"{name}/advantages"][rewarded][mask[rewarded]] > 0).all())


def test_values_are_each_agents_own(tmp_path):
    trainer = made(tmp_path)
    with torch.no_grad():
        trainer.value_head("agent-1").bias.fill_(1.0)
        trainer.value_head("agent-2").bias.fill_(-3.0)
    output = rollout(trainer)
    assert set(output["agent-1/old_values"].flatten().tolist()) == {1.0}
    assert set(output["agent-2/old_values"].flatten().tolist()) == {-3.0}


# -- what belongs to an agent -----------------------------------------------------------------------------


def test_coefficients_belong_to_agents_and_outlive_exchanges(tmp_path):
    """One agent is far from the base, the other is the base; roles change, neither coefficient is reset."""
    trainer = made(tmp_path, kl_target=0.05)
    with torch.no_grad():
        for parameter in trainer.agents.parameters("agent-2"):
            parameter.add_(0.3)
    for turn, step in enumerate((0, 5, 10), start=1):
        rollout(trainer, step)
        assert trainer.kl_coefs["agent-1"] == pytest.approx(0.2 * 0.9**turn)
        assert trainer.kl_coefs["agent-2"] == pytest.approx(0.2 * 1.1**turn)
    metrics = trainer._metrics["train"]
    assert metrics["agent/agent-1/kl_coef"] == pytest.approx([0.2, 0.18, 0.162])
    assert metrics["agent/agent-2/kl_coef"] == pytest.approx([0.2, 0.22, 0.242])
    assert metrics["agent/agent-1/text_kl"] == [0.0] * 3
    assert all(value > 0.06 for value in metrics["agent/agent-2/text_kl"])


def test_parameters_and_groups_of_agents_have_their_heads(tmp_path):
    trainer = made(tmp_path, agent_learning_rates=[0.01, 0.02])
    optimizer = trainer.create_optimizer()
    for name, rate in zip(trainer.agents.names, (0.01, 0.02), strict=True):
        own = {id(parameter) for parameter in trainer.agent_parameters(name)}
        head = {id(parameter) for parameter in trainer.value_head(name).parameters()}
        assert len(own) == len(trainer.agent_parameters(name))
        assert head < own
        groups = [group for group in optimizer.param_groups if group["agent"] == name]
        assert {id(p) for group in groups for p in group["params"]} == own
        assert {group["lr"] for group in groups} == {rate}
        assert {id(p) for p in trainer.finite_groups()[name]} == own
    trainable = [p for p in trainer.model.parameters() if p.requires_grad]
    assert len(trainable) == sum(len(trainer.agent_parameters(name)) for name in trainer.agents.names)


def test_training_moves_both_heads_and_logs_them(tmp_path):
    trainer = made(tmp_path, max_steps=5, role_exchange_steps=2)
    frozen = cory.base_of(trainer)
    trainer.train()
    assert all(bool(weight.any()) for head in heads_of(trainer).values() for weight in head)
    now = {key: value for key, value in parameters_of(trainer.model).items() if key in frozen}
    unmoved = {key: value for key, value in frozen.items() if "value_heads" not in key}
    assert_same({key: now[key] for key in unmoved}, unmoved)
    logged = {key for entry in trainer.state.log_history for key in entry}
    for name in trainer.agents.names:
        for metric in ("kl", "entropy", "kl_coef", "text_kl", "value/loss", "value/clip_ratio", "value/mean",
                       "value/explained_variance", "reward"):  # fmt: skip
            assert f"agent/{name}/{metric}" in logged
    assert {"kl", "kl_coef", "value/loss", "value/explained_variance"} <= logged


def test_a_chain_of_three(tmp_path):
    trainer = made(tmp_path, num_agents=3, max_steps=2)
    trainer.train()
    assert set(trainer.kl_coefs) == {"agent-1", "agent-2", "agent-3"}
    assert all(bool(head[0].any()) for head in heads_of(trainer).values())


def test_each_agent_is_evaluated_alone(tmp_path):
    trainer = made(tmp_path, eval_dataset=data(4), per_device_eval_batch_size=4)
    unsettle(trainer)
    before, coefficients = parameters_of(trainer.model), dict(trainer.kl_coefs)
    for name in trainer.agents.names:
        with trainer.alone(name):
            found = trainer.evaluate()
        assert f"eval_agent/{name}/text_kl" in found
        assert not any(f"agent/{other}/" in key for other in trainer.agents.names if other != name for key in found)
    assert_same(parameters_of(trainer.model), before)
    assert trainer.kl_coefs == coefficients


def test_a_bad_value_names_its_agent(tmp_path):
    trainer = made(tmp_path)
    with torch.no_grad():
        trainer.value_head("agent-2").bias.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="values of agent-2 in the rollout of step 0"):
        rollout(trainer)


@pytest.mark.slow
def test_learning_is_shown(tmp_path):
    """The team writes more and more vowels, across exchanges of roles."""
    trainer = made(
        tmp_path, max_steps=18, per_device_train_batch_size=16, steps_per_generation=1, num_iterations=1, kl_coef=0.01,
        kl_target=None, max_completion_length=3, learning_rate=3e-2, gradient_checkpointing=False,
    )  # fmt: skip
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.15, rewards


# -- checkpoints ------------------------------------------------------------------------------------------


def end_of(trainer):
    moments = trainer.optimizer.state_dict()["state"]
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    plain = [{key: value for key, value in entry.items() if "time" not in key} for entry in logs]
    return parameters_of(trainer.model), moments, plain, trainer.kl_coefs


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    trainer = made(tmp_path_factory.mktemp("alone"), **SAVES)
    trainer.train()
    return end_of(trainer)


@pytest.mark.parametrize("stop", [4, *slow(1, 6)])
def test_resumed_to_the_bit(alone, tmp_path, stop):
    """A rollout serves 4 updates: inside its first pass, at its border, and inside the next, with roles
    exchanged.
    """
    parameters, moments, logs, coefficients = alone
    made(tmp_path, callbacks=[StopAt(stop)], **SAVES).train()
    resumed = made(tmp_path, **SAVES)
    unsettle(resumed)  # the initial parameters of a resumed run do not matter
    resumed.kl_coefs.update(dict.fromkeys(resumed.kl_coefs, 9.0))
    resumed.train(resume_from_checkpoint=True)
    found = end_of(resumed)
    assert_same(found[0], parameters)
    for key, entry in moments.items():
        assert all(torch.equal(found[1][key][name], value) for name, value in entry.items())
    assert found[2] == logs
    assert found[3] == coefficients
    assert len(set(coefficients.values())) == 2


def test_checkpoints_list_the_heads_and_what_is_published_has_none(tmp_path):
    trainer = made(tmp_path / "run", save_strategy="steps", save_steps=2, max_steps=2)
    trainer.train()
    checkpoint = tmp_path / "run" / "checkpoint-2"
    manifests = [json.loads(path.read_text()) for path in checkpoint.glob("*.json") if "files" in path.read_text()]
    assert any("token_ppo.pt" in manifest.get("files", {}) for manifest in manifests)
    trainer.save_model(str(tmp_path / "saved"))
    saved = tmp_path / "saved"
    assert not (saved / "token_ppo.pt").exists()
    for folder in (saved, saved / "agent-2"):
        weights = safetensors.torch.load_file(folder / "adapter_model.safetensors")
        assert weights
        assert all("lora_" in name for name in weights)
    base, tokenizer = ending_pair()
    loaded = PeftModel.from_pretrained(base, saved / "agent-2").eval()
    ids = torch.tensor([tokenizer.encode("Once upon a")])
    trainer.model.eval()
    with trainer.alone("agent-2"), torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, trainer.model(ids).logits)


# -- bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.04}, "beta=0.04: .* give kl_coef=0.04"),
        ({"num_agents": 1}, "num_agents=1"),
        ({"role_exchange_steps": -1}, "role_exchange_steps=-1"),
        ({"kl_target": -1.0}, "kl_target=-1.0"),
        ({"scale_rewards": "batch"}, "scale_rewards='batch'"),
        ({"loss_type": "luspo"}, "loss_type='luspo'"),
        ({"kl_penalty": "ful"}, "kl_penalty='ful': did you mean 'full'"),
    ],
)
def test_bad_arguments_are_named(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        CoryPPOConfig(str(tmp_path), use_cpu=True, **options)


def test_without_arguments_it_is_ppo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, tokenizer = pair("llama", max_position_embeddings=1024)
    trainer = CoryPPOTrainer(
        model, vowels, train_dataset=data(8), processing_class=tokenizer, peft_config=cory.lora()
    )  # fmt: skip
    assert isinstance(trainer.args, CoryPPOConfig)
    assert (trainer.args.kl_coef, trainer.args.beta, trainer.epsilon_high) == (0.2, 0.0, 0.2)
