"""Undocumented members of TRL, transformers and accelerate that `RLAETrainer` uses.

A new release that changes one of these fails here, by name, and not somewhere inside a training.
"""

from __future__ import annotations

import inspect

import accelerate.utils
import pytest
import transformers
import trl.trainer.base_config
import trl.trainer.base_trainer
import trl.trainer.utils
from transformers import GenerationMixin, StopStringCriteria, Trainer

BORROWED = {
    (trl.trainer.base_trainer._BaseTrainer, "__init__"): ["self", "args", "kwargs"],
    (trl.trainer.base_trainer._BaseTrainer, "create_model_card"): ["self", "model_name", "dataset_name", "tags"],
    (trl.trainer.base_config._BaseConfig, "__post_init__"): ["self"],
    (trl.trainer.utils.RepeatSampler, "__init__"): [
        "self", "data_source", "mini_repeat_count", "batch_size", "repeat_count", "shuffle", "seed",
    ],
    (trl.trainer.utils, "identity"): ["x"],
    (trl.trainer.utils, "disable_dropout_in_model"): ["model"],
    (trl.trainer.utils, "nanstd"): ["tensor", "dim", "keepdim"],
    (trl.trainer.utils, "print_prompt_completions_sample"): [
        "prompts", "completions", "rewards", "advantages", "step", "num_samples", "extra",
    ],
    (Trainer, "_get_dataloader"): [
        "self", "dataset", "description", "batch_size", "sampler_fn", "is_training", "dataloader_key",
    ],
    (Trainer, "_get_train_sampler"): ["self", "train_dataset"],
    (Trainer, "_get_eval_sampler"): ["self", "eval_dataset"],
    (Trainer, "_set_signature_columns_if_needed"): ["self"],
    (Trainer, "_prepare_inputs"): ["self", "inputs"],
    (Trainer, "training_step"): ["self", "model", "inputs", "num_items_in_batch"],
    (Trainer, "compute_loss"): ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
    (Trainer, "prediction_step"): ["self", "model", "inputs", "prediction_loss_only", "ignore_keys"],
    (Trainer, "evaluation_loop"): [
        "self", "dataloader", "description", "prediction_loss_only", "ignore_keys", "metric_key_prefix",
    ],
    (Trainer, "evaluate"): ["self", "eval_dataset", "ignore_keys", "metric_key_prefix"],
    (Trainer, "predict"): ["self", "test_dataset", "ignore_keys", "metric_key_prefix"],
    (Trainer, "train"): ["self", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"],
    (Trainer, "log"): ["self", "logs", "start_time"],
    (Trainer, "num_examples"): ["self", "dataloader"],
    (Trainer, "floating_point_ops"): ["self", "inputs"],
    (Trainer, "save_model"): ["self", "output_dir", "_internal_call"],
    (Trainer, "push_to_hub"): ["self", "commit_message", "blocking", "token", "revision", "private", "kwargs"],
    (Trainer, "_save_checkpoint"): ["self", "model", "trial"],
    (Trainer, "_push_from_checkpoint"): ["self", "checkpoint_folder"],
    (Trainer, "_load_optimizer_and_scheduler"): ["self", "checkpoint"],
    (Trainer, "is_world_process_zero"): ["self"],
    (Trainer, "is_local_process_zero"): ["self"],
    (accelerate.utils, "gather_object"): ["object"],
    (GenerationMixin, "_get_logits_processor"): [
        "self", "generation_config", "input_ids_seq_length", "encoder_input_ids", "prefix_allowed_tokens_fn",
        "logits_processor", "device", "model_kwargs", "negative_prompt_ids", "negative_prompt_attention_mask",
    ],
    (StopStringCriteria, "__init__"): ["self", "tokenizer", "stop_strings"],
}  # fmt: skip


@pytest.mark.parametrize(("owner", "name"), BORROWED, ids=lambda value: getattr(value, "__name__", value))
def test_signatures(owner, name):
    assert list(inspect.signature(getattr(owner, name)).parameters) == BORROWED[owner, name]


def test_attributes():
    base = trl.trainer.base_trainer._BaseTrainer
    assert issubclass(base, Trainer)
    for name in ("loss_is_scaled_for_ga", "_tag_names", "_name", "_paper"):
        assert hasattr(base, name), name
    source = inspect.getsource(Trainer)
    # set by `Trainer.__init__` or `train`, and read or written by RLAETrainer
    for name in ("self._train_batch_size", "self._signature_columns", "self.hub_model_id", "self.accelerator"):
        assert f"{name} =" in source or f"{name}:" in source, name
    assert "self.log(output.metrics)" in inspect.getsource(Trainer.evaluate)
    assert "loss_is_scaled_for_ga" in inspect.getsource(transformers.trainer)


def test_the_end_ids_of_processors():
    """Processors that rule out end ids read them from this attribute, which `generate` sets."""
    source = inspect.getsource(GenerationMixin._get_logits_processor)
    assert source.count("generation_config._eos_token_tensor") >= 4
    assert "model_kwargs or {}).get(" in source
