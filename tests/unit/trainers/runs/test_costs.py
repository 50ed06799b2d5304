"""Predicted costs of a training: the arithmetic, held against models that are really built."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from hf_rlae.errors import ConfigError
from hf_rlae.trainers.runs import build_trainer, predict_cost, read_settings
from tests.support.models import pair
from tests.support.runs import SMALL, data, save_models
from tests.support.tokenizers import byte_level_bpe


def settings(folder, **others):
    folders = save_models(folder)
    config = {**SMALL, "members": [str(folders["member0"]), str(folders["member1"])], "task": "gsm8k"}
    config |= {"output_dir": str(folder / "out"), "task_source": str(data(folder, "rlae_gsm8k")), "eval_split": "train"}
    return read_settings("rlae", config={**config, **others})


def test_parameters_and_bytes_are_those_of_the_models(tmp_path):
    given = settings(tmp_path)
    trainer, cost = build_trainer(given), predict_cost(given)
    for member, predicted in zip(trainer.ensemble.members, cost.members, strict=True):
        assert predicted.parameters == sum(parameter.numel() for parameter in member.model.parameters())
        assert predicted.weight_bytes == sum(parameter.nbytes for parameter in member.model.parameters())
        cache = DynamicCache()
        member.model(torch.ones(1, 5, dtype=torch.long), past_key_values=cache)
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        assert predicted.cache_bytes_per_token * 5 == held
    assert cost.policy_parameters == trainer.policy.num_parameters()
    assert cost.policy_bytes == 16 * cost.policy_parameters
    assert cost.weight_bytes == sum(member.weight_bytes for member in cost.members)
    trainer.end()


def test_passes_are_counted_by_hand(tmp_path):
    """A rollout of 16 completions of at most 10 tokens, spans of 4, two processes, three at a time, two passes."""
    sizes = {"generation_batch_size": 16, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    sizes |= {"max_completion_length": 10, "span_length": 4, "rollout_batch_size": 3, "num_iterations": 2}
    given = settings(tmp_path, **{**sizes, "max_steps": 20})
    cost = predict_cost(given, num_processes=2)
    assert (cost.completions, cost.rows, cost.max_tokens) == (16, 3, 10)
    assert cost.generation_passes == 3 * 10  # 8 completions of this process in batches of 3
    assert cost.texts == 8 * 3 * (1 + 2)  # three spans
    assert cost.flops == 2 * sum(member.parameters for member in cost.members) * 80
    assert cost.rollouts == 5  # 20 updates; 16 completions twice, 8 per update
    assert cost.cache_bytes == sum(member.cache_bytes_per_token for member in cost.members) * 30
    assert "at most 30 forward passes per member" in cost.to_text()
    assert ", 5 rollouts in all" in cost.to_text()


@pytest.mark.parametrize(
    ("questions", "rollouts"),
    [(None, 2), (12, 6)],  # train_size=4, two completions per question, rollouts of 4
)
def test_rollouts_follow_from_epochs_and_questions(questions, rollouts, tmp_path):
    given = settings(tmp_path, max_steps=-1, num_train_epochs=1)
    assert predict_cost(given, num_questions=questions).rollouts == rollouts


def test_half_precision_halves_bytes_and_an_encoder_counts(tmp_path):
    whole = predict_cost(settings(tmp_path))
    half = predict_cost(settings(tmp_path, dtype="bfloat16"))
    assert half.weight_bytes * 2 == whole.weight_bytes
    assert half.members[0].cache_bytes_per_token * 2 == whole.members[0].cache_bytes_per_token
    encoder = str(tmp_path / "encoder")
    reading = settings(tmp_path, encoder=encoder, observation="text", max_text_tokens=16)
    trainer = build_trainer(reading)
    assert predict_cost(reading).policy_parameters == trainer.policy.num_parameters()
    trainer.end()


def test_a_recurrent_member_has_no_keys_and_values(tmp_path):
    for part in pair("rwkv", 0, byte_level_bpe()):
        part.save_pretrained(tmp_path / "rwkv")
    config = {"members": [str(tmp_path / "rwkv")], "task": "gsm8k", "use_cpu": True}
    cost = predict_cost(read_settings("rlae", config=config))
    assert cost.members[0].cache_bytes_per_token is None
    assert cost.cache_bytes == 0
    assert "no keys and values" in cost.to_text()


def test_what_cannot_be_predicted_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="trainings of policies"):
        predict_cost(read_settings("cory", ["--config", "cory_imdb", "--use_cpu"]))
    config = {"members": [str(tmp_path / "nothing")], "task": "gsm8k", "use_cpu": True}
    with pytest.raises(ConfigError, match=r"members: the config of .*nothing' cannot be read"):
        predict_cost(read_settings("rlae", config=config))


def test_no_weights_are_loaded(tmp_path, monkeypatch):
    given = settings(tmp_path)
    assert len(given.parts) == 4
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *args, **kwargs: pytest.fail("loaded"))
    assert predict_cost(given).members[0].parameters > 0
    assert AutoConfig.from_pretrained(given.parts[0].members[0]).model_type == "llama"
