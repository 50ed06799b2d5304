"""LoRA on a policy's encoder."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import DistilBertConfig, DistilBertModel, ModernBertConfig, ModernBertModel, TrainerCallback

from hf_rlae import EnsembleForCausalLM, PolicyModel
from hf_rlae.errors import ConfigError
from tests.integration.trainers.test_rlae_habits import hub  # noqa: F401
from tests.support.policies import encoder
from tests.support.rlae import assert_same, data, ensemble_of, members, parameters_of, trainer_of
from tests.support.tokenizers import byte_level_bpe

peft = pytest.importorskip("peft")

TARGETS = {
    "all-linear": ("all-linear", ("",)),
    "none": (None, ("",)),
    "a list": (["query", "value"], ("query", "value")),
    "an expression": (r".*attention.*query", ("query",)),
}
"""The given target modules, and the endings of the names of their layers."""


def lora(target="all-linear", **options):
    return peft.LoraConfig(r=2, lora_alpha=8, target_modules=target, init_lora_weights="gaussian", **options)


def made(folder, target="all-linear", observation="text", callbacks=None, **options):
    torch.manual_seed(0)
    return trainer_of(
        folder, ensemble=ensemble_of(observation=observation), peft_config=lora(target), callbacks=callbacks, **options
    )


@pytest.mark.parametrize(("target", "endings"), TARGETS.values(), ids=TARGETS)
def test_adapter_and_heads_train_and_nothing_else(tmp_path, target, endings):
    given = lora(target)
    before = copy.deepcopy(given.to_dict())
    ensemble = ensemble_of(observation="both")
    trainer = trainer_of(tmp_path, ensemble=ensemble, peft_config=given)
    assert given.to_dict() == before
    assert ensemble.policy is trainer.model
    trainable = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert all(("lora_" in name and ".encoder." in name) or ".heads.modules_to_save." in name for name in trainable)
    adapted = {name.split(".lora_")[0].removeprefix("base_model.model.") for name in trainable if "lora_" in name}
    linear = {
        name for name, module in encoder()[0].named_modules() if isinstance(module, nn.Linear) and "pooler" not in name
    }
    assert adapted == {f"encoder.{name}" for name in linear if name.endswith(endings)}
    old = parameters_of(trainer.model)
    trainer.train()
    new = parameters_of(trainer.model)
    moved = {name for name in new if not torch.equal(new[name], old[name])}
    assert moved <= trainable
    assert {"lora_A", "lora_B"} <= {part for name in moved for part in name.split(".")}
    for wanted in ("scores", "trunks", "critic"):
        assert any("heads.modules_to_save.default." in name and wanted in name for name in moved), wanted
    assert trainer.state.log_history[0]["policy/ratio_max"] == pytest.approx(1.0, abs=2e-4)


def test_the_first_ratio_is_1_with_lora_dropout(tmp_path):
    ensemble = ensemble_of(observation="text")
    trainer = trainer_of(tmp_path, ensemble=ensemble, peft_config=lora(lora_dropout=0.5), max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["policy/ratio_max"] == pytest.approx(1.0, abs=2e-4)


@pytest.mark.parametrize("make", ["modernbert", "distilbert"])
def test_all_linear_finds_the_layers_of_other_encoders(tmp_path, make):
    tokenizer = byte_level_bpe()
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "max_position_embeddings": 64}
    if make == "modernbert":
        model = ModernBertModel(
            ModernBertConfig(hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, **sizes)
        )
    else:
        model = DistilBertModel(DistilBertConfig(dim=24, hidden_dim=32, n_layers=1, n_heads=2, **sizes))
    pairs = members()
    policy = PolicyModel.from_encoder((model, tokenizer), pairs, hidden_size=8, span_length=2)
    ensemble = EnsembleForCausalLM.from_members(pairs, policy, span_length=2)
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert len(linear) > 3
    trainer = trainer_of(tmp_path, ensemble=ensemble, peft_config=lora(), max_steps=2)
    adapted = {name.split(".lora_")[0] for name, _ in trainer.model.named_parameters() if "lora_" in name}
    assert adapted == {f"base_model.model.encoder.{name}" for name in linear}
    trainer.train()


@pytest.mark.parametrize("stop", [2, 5])
def test_a_resumed_run_is_bit_exact(tmp_path, stop):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == stop

    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 6}
    whole = made(tmp_path / "whole", **options)
    whole.train()
    made(tmp_path / "part", callbacks=[Stop()], **options).train()
    resumed = made(tmp_path / "part", **options)
    with torch.no_grad():  # the initial parameters of a resumed run do not matter
        for parameter in resumed.model.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    resumed.train(resume_from_checkpoint=True)
    assert_same(parameters_of(resumed.model), parameters_of(whole.model))
    assert "adapter_model.safetensors" in {path.name for path in (tmp_path / "part" / "checkpoint-6").iterdir()}


def test_what_is_saved_is_the_merged_policy(tmp_path):
    trainer = made(tmp_path / "run", observation="both")
    trainer.train()
    kept = parameters_of(trainer.model)
    trainer.save_model(str(tmp_path / "saved"))
    assert_same(parameters_of(trainer.model), kept)
    loaded = PolicyModel.from_pretrained(tmp_path / "saved").eval()
    assert isinstance(loaded, PolicyModel)
    rollouts = trainer.buffer.rollouts
    seen = {name: value[rollouts.span_mask] for name, value in rollouts.observation.items()}
    actions = rollouts.actions[rollouts.span_mask]
    with torch.no_grad():
        one, other = loaded(seen, actions=actions), trainer.model(seen, actions=actions)
    for name in ("weights", "log_probs", "state_values"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=1e-5, rtol=1e-4)
    untouched = PolicyModel.from_pretrained(tmp_path / "saved")
    unadapted = dict(ensemble_of(observation="both").policy.named_parameters())
    changed = {n for n, p in untouched.named_parameters() if not torch.equal(p, unadapted[n])}
    assert any("query" in name for name in changed)
    assert not any("LayerNorm" in name and "encoder." in name for name in changed)


def test_the_best_adapter_is_loaded_at_the_end(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    trainer = made(tmp_path, eval_dataset=data(2), load_best_model_at_end=True, **options)
    trainer.train()
    best = made(tmp_path / "other", max_steps=trainer.state.best_global_step)
    best.train()
    assert_same(parameters_of(trainer.model), parameters_of(best.model))


def test_pushed_as_a_whole_policy(tmp_path, hub):  # noqa: F811
    trainer = made(tmp_path / "mine", max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    trainer.push_to_hub()
    _, files = hub.uploads[-1]
    assert {"model.safetensors", "config.json", "README.md"} <= files
    assert not any(name.startswith("adapter") for name in files)
    PolicyModel.from_pretrained(tmp_path / "mine")


def test_uploading_checkpoints_of_adapters_is_refused(tmp_path, hub):  # noqa: F811
    with pytest.raises(ConfigError, match="hub_strategy='every_save' with peft_config"):
        made(tmp_path, push_to_hub=True)
    assert made(tmp_path, push_to_hub=True, hub_strategy="end").args.push_to_hub
