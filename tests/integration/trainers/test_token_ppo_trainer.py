"""PPO over tokens of one agent: the loss against loops, the data of rollouts, and checkpoints."""

from __future__ import annotations

import copy
import inspect
import math

import pytest
import safetensors.torch
import torch
from peft import LoraConfig, PeftModel
from transformers import OPTConfig, OPTForCausalLM
from trl import GRPOConfig, GRPOTrainer, TrlParser
from trl.trainer.utils import split_tensor_dict

from hf_rlae.errors import CheckpointError, ConfigError, DiskFullError, NonFiniteError, RewardError
from hf_rlae.trainers.token_ppo.configuration_token_ppo import TokenPPOConfig
from hf_rlae.trainers.token_ppo.trainer import STATE, TokenPPOTrainer
from tests.support.models import pair
from tests.support.rlae import assert_same, parameters_of, vowels
from tests.support.token_ppo import LORA, StopAt, data, ending_pair, naive_loss, naive_rollout, unsettle


def config(folder, **options):
    """A rollout of 8 completions of 5 tokens, G = 2, in two micro-batches of one update, two passes."""
    defaults = {
        "num_generations": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_iterations": 2,
        "per_device_eval_batch_size": 4, "max_completion_length": 5, "max_steps": 4, "learning_rate": 1e-2,
        "lr_scheduler_type": "constant", "logging_steps": 1, "save_strategy": "no", "report_to": "none",
        "disable_tqdm": True, "use_cpu": True, "seed": 7, "kl_horizon": 100,
    }  # fmt: skip
    return TokenPPOConfig(str(folder), **{**defaults, **options})


def made(folder, reward=vowels, callbacks=None, model=None, eval_dataset=None, train=None, **options):
    model, tokenizer = ending_pair() if model is None else model
    return TokenPPOTrainer(
        model, reward, args=config(folder, **options), train_dataset=train or data(), eval_dataset=eval_dataset,
        processing_class=tokenizer, callbacks=callbacks, peft_config=LoraConfig(**LORA),
    )  # fmt: skip


def rollout_of(trainer, rows=8):
    """TRL's rollout of the first prompts, each `num_generations` times."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    return trainer._generate_and_score_completions([data()[index // 2] for index in range(rows)])


@pytest.mark.parametrize("fields", [{"init_lora_weights": "pissa"}, {"bias": "all"}])
def test_adapters_that_change_the_base_are_refused(tmp_path, fields):
    """The KL refers to the base model."""
    model, tokenizer = ending_pair()
    with pytest.raises(ConfigError, match=f"{next(iter(fields))}=.*base"):
        TokenPPOTrainer(
            model, vowels, args=config(tmp_path), train_dataset=data(), processing_class=tokenizer,
            peft_config=LoraConfig(**{**LORA, **fields}),
        )  # fmt: skip


def test_texts_that_are_left_out_do_not_move_the_kl_coefficient(tmp_path):
    """A rollout of truncated, masked completions has no KL."""
    options = {"max_completion_length": 2, "mask_truncated_completions": True, "kl_target": 1.0, "kl_coef": 0.2}
    trainer = made(tmp_path, model=pair("llama"), kl_horizon=8, **options)
    unsettle(trainer)
    output = rollout_of(trainer)
    assert not output["completion_mask"].any()
    assert not trainer._metrics["train"]["text_kl"]
    assert trainer.kl_coefs[trainer.agent_name] == 0.2


def test_the_value_head_is_as_wide_as_what_the_language_model_head_reads(tmp_path):
    tokenizer = pair("llama")[1]
    model = OPTForCausalLM(
        OPTConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            word_embed_proj_dim=16,
            ffn_dim=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=64,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    trainer = TokenPPOTrainer(
        model, vowels, args=config(tmp_path, max_steps=1), train_dataset=data(), processing_class=tokenizer,
        peft_config=LoraConfig(r=2, target_modules=["q_proj"]),
    )  # fmt: skip
    assert trainer.value_head(trainer.agent_name).in_features == 16
    trainer.train()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kl_penalty": "full"},
        {"whiten_advantages": False, "gamma": 0.9, "num_iterations": 1, "gradient_checkpointing": False},
    ],
)
def test_the_whole_loss_and_its_gradient(tmp_path, options):
    model, tokenizer = ending_pair()
    base = copy.deepcopy(model)
    trainer = made(tmp_path, model=(model, tokenizer), kl_coef=0.3, value_epsilon=0.05, **options)
    unsettle(trainer)
    output = rollout_of(trainer)
    rewards = vowels(tokenizer.batch_decode(output["completion_ids"], skip_special_tokens=True))
    texts = naive_rollout(trainer, base, output, rewards, 0.3)
    is_kept = "old_per_token_logps" in output
    assert is_kept == (trainer.args.num_iterations > 1)
    if is_kept:
        unsettle(trainer, 0.03, seed=1)
    assert len({int(count) for count in output["completion_mask"].sum(1)}) > 1
    total = 0.0
    for part in split_tensor_dict(output, 2):
        loss = trainer._compute_loss(trainer.model, part)
        loss.backward()
        total += loss.item()
    found = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.model.zero_grad()
    expected = naive_loss(trainer, output, texts)
    expected.backward()
    assert total == pytest.approx(expected.item(), abs=1e-5)
    assert found.keys() == {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(found[name], parameter.grad, atol=2e-5, rtol=1e-3, msg=lambda m, n=name: n + m)
    metrics = trainer._metrics["train"]
    if is_kept:
        assert max(metrics["clip_ratio/region_mean"]) > 0
        assert max(metrics["value/clip_ratio"]) > 0


def test_the_value_loss_alone_reaches_the_adapter(tmp_path):
    trainer = made(tmp_path)
    unsettle(trainer)
    output = rollout_of(trainer)
    output["advantages"] = torch.zeros_like(output["advantages"])
    trainer._compute_loss(trainer.model, output).backward()
    gradients = {n: float(p.grad.abs().sum()) for n, p in trainer.model.named_parameters() if p.grad is not None}
    assert all(value > 0 for value in gradients.values())
    assert any("lora_" in name for name in gradients)
    assert any("value_heads.head_default" in name for name in gradients)


def test_values_and_old_log_probabilities_come_from_one_forward(tmp_path):
    """A rollout needs one forward pass of the agent and one of the base model; an update needs one more."""
    trainer = made(tmp_path)
    calls = []
    backbone = trainer.peft_model.get_base_model().base_model
    full = lambda ids: ids is not None and ids.shape[1] > 8 and ids.shape[0] == 4  # noqa: E731
    backbone.register_forward_hook(
        lambda module, args, kwargs, output: calls.append(full(kwargs.get("input_ids"))), with_kwargs=True
    )
    output = rollout_of(trainer)
    assert sum(calls) == 2 * 2  # two chunks of 4 rows, two models
    calls.clear()
    for part in split_tensor_dict(output, 2):
        trainer._compute_loss(trainer.model, part)
    assert sum(calls) == 2


def test_kept_log_probabilities_change_nothing(tmp_path):
    """With one pass TRL keeps none, and the trainer computes them; advantages are the same."""
    one, two = (made(tmp_path / str(passes), num_iterations=passes) for passes in (1, 2))
    outputs = []
    for trainer in (one, two):
        unsettle(trainer)
        torch.manual_seed(5)
        outputs.append(rollout_of(trainer))
    assert "old_per_token_logps" not in outputs[0]
    for name in ("completion_ids", "advantages", "returns", "old_values", "base_per_token_logps"):
        torch.testing.assert_close(outputs[0][name], outputs[1][name])


def test_there_is_no_group_baseline(tmp_path):
    """From groups with equal rewards GRPO learns nothing, but PPO does."""
    trainer = made(tmp_path, lambda number, **_: [float(value) for value in number], whiten_advantages=False)
    output = rollout_of(trainer)
    mask = output["completion_mask"] != 0
    for row in range(8):
        count = int(mask[row].sum())
        expected = [(row // 2 - 1.5) * 0.95 ** (count - 1 - t) for t in range(count)]
        assert output["advantages"][row, :count].tolist() == pytest.approx(expected)
        assert output["returns"][row, :count].tolist() == pytest.approx([1.5 + gain for gain in expected])
    assert not output["advantages"][~mask].any()
    assert trainer._metrics["train"]["frac_reward_zero_std"] == [1.0]


def test_a_new_value_head_says_the_mean_reward(tmp_path):
    """The mean over judged completions of the first rollout; later ones and evaluations do not change it."""
    rewards = [[None, 1.0, 0.5, None, 0.25, 0.75, 0.0, 1.0], [3.0] * 8]
    trainer = made(tmp_path, lambda completions, **_: rewards[0][: len(completions)], eval_dataset=data())
    trainer.evaluate()
    assert not trainer.value_head("default").bias.any()
    for _ in range(2):
        assert rollout_of(trainer)["old_values"].unique().tolist() == pytest.approx([3.5 / 6])
        assert trainer.value_head("default").bias.tolist() == pytest.approx([3.5 / 6])
        rewards.reverse()


def test_texts_that_cannot_be_judged_teach_nothing(tmp_path):
    judged = [None, 1.0, 0.5, None, 0.25, 0.75, 0.0, 1.0]
    trainer = made(tmp_path, lambda completions, **_: judged, kl_coef=0.3)
    unsettle(trainer)
    output = rollout_of(trainer)
    mask = output["value_mask"]
    assert [bool(row.any()) for row in mask] == [reward is not None for reward in judged]
    assert not output["advantages"][[0, 3]].any()
    assert torch.equal(mask, (output["completion_mask"] != 0) & torch.tensor([r is not None for r in judged])[:, None])
    white = output["advantages"][mask]
    assert float(white.mean()) == pytest.approx(0, abs=1e-5)
    assert float(white.std()) == pytest.approx(1, abs=1e-4)


def test_several_rewards_are_weighted(tmp_path):
    def ones(completions, **_):
        return [1.0] * len(completions)

    def twos(completions, **_):
        return [2.0 if index else None for index in range(len(completions))]

    trainer = made(tmp_path, [ones, twos], reward_weights=[1.0, 10.0], whiten_advantages=False, lam=1.0)
    output = rollout_of(trainer)
    assert output["returns"][:, 0].tolist() == [1.0] + [21.0] * 7


def test_the_table_of_completions_shows_these_advantages(tmp_path):
    trainer = made(tmp_path)
    output = rollout_of(trainer)
    mask = output["completion_mask"]
    expected = (output["advantages"] * mask).sum(1) / mask.sum(1)
    assert list(trainer._logs["advantages"]) == pytest.approx(expected.tolist())


def test_the_coefficient_follows_the_kl_in_training_only(tmp_path):
    far = made(tmp_path / "far", kl_target=1e-3, kl_horizon=8)
    unsettle(far)
    rollout_of(far)
    assert far._metrics["train"]["text_kl"][0] > 1.2e-3
    assert far._metrics["train"]["kl_coef"] == [0.2]
    assert far.kl_coefs["default"] == pytest.approx(0.2 * 1.2)
    near = made(tmp_path / "near", kl_target=6.0, kl_horizon=16)
    rollout_of(near)
    assert near.kl_coefs["default"] == pytest.approx(0.2 * (1 - 0.2 / 2))
    fixed = made(tmp_path / "fixed", kl_target=None)
    unsettle(fixed)
    rollout_of(fixed)
    assert fixed.kl_coefs["default"] == 0.2


def test_what_is_paid_is_the_reward_less_the_present_coefficient_times_the_kl(tmp_path):
    trainer = made(tmp_path, lambda completions, **_: [2.0] * len(completions), lam=1.0, kl_target=None)
    unsettle(trainer)
    trainer.kl_coefs["default"] = 0.7
    output = rollout_of(trainer)
    mask = output["completion_mask"] != 0
    kls = torch.where(mask, output["old_per_token_logps"] - output["base_per_token_logps"], 0).sum(1)
    torch.testing.assert_close(output["returns"][:, 0], 2.0 - 0.7 * kls)
    assert kls.abs().min() > 0
    assert trainer._metrics["train"]["text_kl"] == pytest.approx([float(kls.mean())])


def test_evaluation_leaves_everything_as_it_is(tmp_path):
    trainer = made(tmp_path, eval_dataset=data(), kl_target=1e-3)
    unsettle(trainer)
    before = parameters_of(trainer.model)
    found = trainer.evaluate()
    assert_same(parameters_of(trainer.model), before)
    assert trainer.kl_coefs == {"default": 0.2}
    assert math.isfinite(found["eval_loss"])
    assert {"eval_kl", "eval_text_kl", "eval_value/loss", "eval_value/explained_variance", "eval_reward"} <= set(found)


def test_an_untrained_agent_has_no_kl(tmp_path):
    trainer = made(tmp_path)
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["kl"] == first["text_kl"] == 0.0
    assert first["value/mean"] == pytest.approx(first["reward"])
    assert trainer.state.log_history[3]["kl"] > 0
    frozen = [n for n, p in trainer.model.named_parameters() if not p.requires_grad]
    original = dict(pair("llama")[0].named_parameters())
    for name, parameter in trainer.model.named_parameters():
        if name in frozen:
            key = name.removeprefix("base_model.model.").replace(".base_layer", "")
            assert torch.equal(parameter, original[key])
    assert trainer.value_head("default").weight.abs().sum() > 0


def test_learning_is_shown(tmp_path):
    """The share of vowels rises, and the critic learns to predict it."""
    trainer = made(
        tmp_path, max_steps=24, num_iterations=1, per_device_train_batch_size=16, gradient_accumulation_steps=1,
        num_generations=4, kl_coef=0.01, kl_target=None, learning_rate=3e-2, max_completion_length=3,
        gradient_checkpointing=False,
    )  # fmt: skip
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "reward" in entry]
    first, last = ({name: sum(e[name] for e in part) / 5 for name in ("reward", "value/mean")}
                   for part in (logs[:5], logs[-5:]))  # fmt: skip
    assert last["reward"] > first["reward"] + 0.15
    assert last["value/mean"] > first["value/mean"] + 0.05


# -- checkpoints ------------------------------------------------------------------------------------------


def test_resumed_between_rollouts_to_the_bit(tmp_path):
    """Within an epoch: TRL's own sampler starts each run with the first epoch's order."""
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6, "kl_target": 1e-3, "train": data(4)}
    whole = made(tmp_path / "whole", **options)
    whole.train()
    part = made(tmp_path / "part", callbacks=[StopAt(2)], **options)
    part.train()
    resumed = made(tmp_path / "part", **options)
    unsettle(resumed)  # the initial parameters of a resumed run do not matter
    resumed.kl_coefs["default"] = 9.0
    resumed.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-2"))
    assert_same(parameters_of(resumed.model), parameters_of(whole.model))
    assert resumed.kl_coefs == whole.kl_coefs != part.kl_coefs
    for key, entry in whole.optimizer.state_dict()["state"].items():
        for name, value in entry.items():
            assert torch.equal(resumed.optimizer.state_dict()["state"][key][name], value)


def test_a_checkpoint_without_heads_is_refused(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    made(tmp_path, **options).train()
    checkpoint = tmp_path / "checkpoint-2"
    state = torch.load(checkpoint / STATE, weights_only=True)
    torch.save({**state, "kl_coefs": {"other": 0.1}}, checkpoint / STATE)
    with pytest.raises(CheckpointError, match="value heads of other, this run has default"):
        made(tmp_path, **options).train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / STATE).unlink()
    with pytest.raises(CheckpointError, match="another trainer, without value heads"):
        made(tmp_path, **options).train(resume_from_checkpoint=str(checkpoint))


def test_what_is_saved_is_the_adapter_alone(tmp_path):
    base, tokenizer = pair("llama")
    base.save_pretrained(tmp_path / "base")
    trainer = made(tmp_path / "out", model=(type(base).from_pretrained(tmp_path / "base"), tokenizer))
    unsettle(trainer)
    trainer.save_model(str(tmp_path / "saved"))
    weights = safetensors.torch.load_file(tmp_path / "saved" / "adapter_model.safetensors")
    assert weights
    assert all("lora_" in name for name in weights)
    loaded = PeftModel.from_pretrained(type(base).from_pretrained(tmp_path / "base"), tmp_path / "saved")
    ids = torch.tensor([tokenizer.encode("Once upon a")])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, trainer.model.eval()(ids).logits)


# -- bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl_coef": -0.1}, "kl_coef=-0.1"),
        ({"kl_coef": math.inf}, "kl_coef=inf"),
        ({"kl_target": 0}, "kl_target=0"),
        ({"kl_horizon": 7}, r"kl_horizon=7: .* 8 \(generation_batch_size\)"),
        ({"value_coef": None}, "value_coef=None"),
        ({"value_epsilon": 0.0}, "value_epsilon=0.0"),
        ({"gamma": 1.1}, "gamma=1.1"),
        ({"lam": "x"}, "lam='x'"),
        ({"beta": 0.04}, "beta=0.04: .* give kl_coef=0.04"),
        ({"loss_type": "gppo"}, "loss_type='gppo'"),
        ({"loss_type": "vespo"}, "loss_type='vespo'"),
        ({"scale_rewards": "group"}, "scale_rewards='group'"),
        ({"importance_sampling_level": "sequence"}, "importance_sampling_level='sequence'"),
        ({"multi_objective_aggregation": "normalise"}, "multi_objective_aggregation='normalise'"),
        ({"use_vllm": True}, "use_vllm=True"),
    ],
)
def test_bad_arguments_are_named(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, **options)


def test_an_adapter_and_the_right_arguments_are_needed(tmp_path):
    model, tokenizer = pair("llama")
    with pytest.raises(ConfigError, match="peft_config is missing"):
        TokenPPOTrainer(model, vowels, args=config(tmp_path), train_dataset=data(), processing_class=tokenizer)
    other = GRPOConfig(str(tmp_path), use_cpu=True, bf16=False)
    with pytest.raises(ConfigError, match="args is a GRPOConfig"):
        TokenPPOTrainer(model, vowels, args=other, train_dataset=data(), peft_config=LoraConfig(**LORA))


def test_values_that_are_not_finite_are_named(tmp_path):
    trainer = made(tmp_path)
    with torch.no_grad():
        trainer.value_head("default").bias.fill_(torch.inf)
    with pytest.raises(NonFiniteError, match="values of default in the rollout of step 0"):
        rollout_of(trainer)
    trainer = made(tmp_path, lambda completions, **_: [math.inf] * len(completions))
    with pytest.raises(RewardError, match="sum of rewards of sample 0 is inf"):
        rollout_of(trainer)
    assert not trainer.value_head("default").bias.any()  # a bad reward is not learned from


def test_gradients_that_are_not_finite_are_named(tmp_path):
    trainer = made(tmp_path)
    trainer.value_head("default").weight.register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(NonFiniteError, match=r"gradients of model at step 1: .* of \S*head_default\.weight are NaN"):
        trainer.train()


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    trainer = made(tmp_path, save_strategy="steps", save_steps=1, max_steps=1)

    def fail(*args, **kwargs):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(DiskFullError, match=rf"disk of {tmp_path} is full: checkpoint-1 needs about \d+ bytes"):
        trainer.train()


def test_a_config_needs_no_accelerator_and_reads_yaml(tmp_path):
    path = tmp_path / "ppo.yaml"
    path.write_text(f"output_dir: {tmp_path}\nkl_target: null\nkl_coef: 0.07\nuse_cpu: true\nlam: 0.9\n")
    (read,) = TrlParser((TokenPPOConfig,)).parse_args_and_config(["--config", str(path)])
    assert config(tmp_path, kl_target=None, kl_horizon=1).kl_horizon == 1  # unused without an adaptive coefficient
    assert (read.kl_target, read.kl_coef, read.lam, read.bf16, read.num_iterations) == (None, 0.07, 0.9, False, 4)


def test_borrowed_members_of_trl_are_as_they_were():
    """The private members that are overridden or called, with the arguments that are used."""
    borrowed = {
        "_generate_and_score_completions": ["self", "inputs"],
        "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
        "_compute_loss": ["self", "model", "inputs"],
        "_save_checkpoint": ["self", "model", "trial"],
        "_load_optimizer_and_scheduler": ["self", "checkpoint"],
    }
    for name, expected in borrowed.items():
        assert list(inspect.signature(getattr(GRPOTrainer, name)).parameters) == expected, name
    scorer = list(inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters)
    assert scorer[:6] == ["self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size"]
