"""Undocumented members of TRL, transformers, peft and accelerate that CORY trainers use.

A new release that changes one of these fails here, by name, and not somewhere inside a training.
"""

from __future__ import annotations

import inspect

import accelerate
import accelerate.utils
import peft.utils.save_and_load
import pytest
import trl.trainer.utils
from peft import PeftModel
from transformers import Trainer
from transformers.utils import hub
from trl import GRPOTrainer, RLOOTrainer

from hf_rlae.trainers import CoryMixin, CoryTrainer

_OF_BOTH = {
    "_generate_and_score_completions": ["self", "inputs"],
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_tokenize_prompts": ["self", "prompts"],
    "_prepare_input": ["self", "data"],
    "_prepare_inputs": ["self", "generation_batch"],
    "_generate": ["self", "prompts"],
    "_get_train_sampler": ["self", "dataset"],
    "compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
    "training_step": ["self", "model", "inputs", "num_items_in_batch"],
    "prediction_step": ["self", "model", "inputs", "prediction_loss_only", "ignore_keys"],
    "log": ["self", "logs", "start_time"],
    "_log_completion_extra": ["self", "column", "values"],
    "_log_metric": ["self", "name", "value"],
    "create_model_card": ["self", "model_name", "dataset_name", "tags"],
    "_save_checkpoint": ["self", "model", "trial"],
}

BORROWED = {
    **{(owner, name): names for owner in (GRPOTrainer, RLOOTrainer) for name, names in _OF_BOTH.items()},
    (GRPOTrainer, "_generate_single_turn"): [
        "self", "prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images",
    ],
    (RLOOTrainer, "_generate_single_turn"): ["self", "prompt_ids", "images", "multimodal_fields"],
    (trl.trainer.utils.RepeatSampler, "__init__"): [
        "self", "data_source", "mini_repeat_count", "batch_size", "repeat_count", "shuffle", "seed",
    ],
    (trl.trainer.utils, "disable_dropout_in_model"): ["model"],
    (trl.trainer.utils, "get_config_model_id"): ["config"],
    (trl.trainer.utils, "shuffle_sequence_dict"): ["seq_dict"],
    (trl.trainer.utils, "get_trackio_space_url"): [],
    (trl.trainer.utils, "split_tensor_dict"): ["tensor_dict", "num_chunks"],
    (Trainer, "evaluate"): ["self", "eval_dataset", "ignore_keys", "metric_key_prefix"],
    (Trainer, "create_optimizer"): ["self", "model"],
    (Trainer, "_clip_grad_norm"): ["self", "model"],
    (Trainer, "_get_grad_norm"): ["self", "model", "grad_norm"],
    (Trainer, "_load_from_checkpoint"): ["self", "resume_from_checkpoint", "model"],
    (Trainer, "_load_best_model"): ["self"],
    (Trainer, "_push_from_checkpoint"): ["self", "checkpoint_folder"],
    (Trainer, "_save"): ["self", "output_dir", "state_dict"],
    (Trainer, "push_to_hub"): ["self", "commit_message", "blocking", "token", "revision", "private", "kwargs"],
    (Trainer, "is_world_process_zero"): ["self"],
    (hub, "hf_api"): [],
    (PeftModel, "add_adapter"): [
        "self", "adapter_name", "peft_config", "low_cpu_mem_usage", "autocast_adapter_dtype",
    ],
    (PeftModel, "set_adapter"): ["self", "adapter_name", "inference_mode"],
    (PeftModel, "save_pretrained"): [
        "self", "save_directory", "safe_serialization", "selected_adapters", "save_embedding_layers",
        "is_main_process", "path_initial_model_for_weight_conversion", "kwargs",
    ],
    (peft.utils.save_and_load, "load_peft_weights"): ["model_id", "device", "key_mapping", "hf_hub_download_kwargs"],
    (peft.utils.save_and_load, "set_peft_model_state_dict"): [
        "model", "peft_model_state_dict", "adapter_name", "ignore_mismatched_sizes", "low_cpu_mem_usage",
    ],
    (accelerate.Accelerator, "backward"): ["self", "loss", "kwargs"],
    (accelerate.Accelerator, "unscale_gradients"): ["self", "optimizer"],
    (accelerate.utils, "gather_object"): ["object"],
}  # fmt: skip


@pytest.mark.parametrize(("owner", "name"), BORROWED, ids=lambda value: getattr(value, "__name__", value))
def test_signatures(owner, name):
    assert list(inspect.signature(getattr(owner, name)).parameters) == BORROWED[owner, name]


@pytest.mark.parametrize("owner", [GRPOTrainer, RLOOTrainer])
def test_attributes(owner):
    source = inspect.getsource(owner)
    # set in `__init__`, and read, written or replaced by the mixin
    for name in (
        "self._metrics", "self._logs", "self._step", "self._buffered_inputs", "self._pending_extra_logs",
        "self._pending_metrics", "self.reward_weights", "self.eos_token_ids",
    ):  # fmt: skip
        assert f"{name} = " in source, name
    assert owner.loss_is_scaled_for_ga is not None
    for name in ("_tag_names", "_name", "_paper"):
        assert hasattr(owner, name)


def test_the_buffer_serves_as_many_steps_as_the_mixin_believes():
    for owner in (GRPOTrainer, RLOOTrainer):
        source = inspect.getsource(owner._prepare_inputs)
        assert "generate_every = self.args.steps_per_generation * self.num_iterations" in source
        assert "self._step % generate_every == 0 or self._buffered_inputs is None" in source


@pytest.mark.parametrize("owner", [GRPOTrainer, RLOOTrainer])
def test_what_is_generated_and_scored_is_where_the_mixin_looks_for_it(owner):
    generated = {
        GRPOTrainer: "return prompt_ids, completion_ids, tool_mask, completions, ",
        RLOOTrainer: "return prompt_ids, completion_ids, completions\n",
    }
    assert generated[owner] in inspect.getsource(owner._generate)
    scoring = owner._get_per_token_logps_and_entropies
    names = ["self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size"]
    assert list(inspect.signature(scoring).parameters)[: len(names)] == names
    assert "return logps, " in inspect.getsource(scoring)
    assert "self.num_generations_eval = " in inspect.getsource(owner)


def test_the_loss_is_scaled_as_the_mixin_scales_it():
    source = inspect.getsource(Trainer.training_step)
    assert "loss = loss / self.current_gradient_accumulation_steps" in source
    assert "self.accelerator.backward(loss, **kwargs)" in source


def test_what_the_mixin_overrides_is_there_to_be_overridden():
    """If TRL or transformers rename a method, the mixin would silently no longer override it."""
    below = CoryTrainer.__mro__[CoryTrainer.__mro__.index(GRPOTrainer) :]
    known = {name for owner in below for name in vars(owner)}
    private = {
        name
        for owner in CoryTrainer.__mro__[: CoryTrainer.__mro__.index(GRPOTrainer)]
        if owner.__module__.startswith("hf_rlae.trainers.cory")
        for name in vars(owner)
        if callable(vars(owner)[name]) and name.startswith("_") and not name.startswith("__")
    }
    own = {
        "_take_turn", "_observed", "_credited", "_shown", "_rows", "_rewards_of_teams", "_metrics_aside",
        "_share_rollouts", "_source_of", "_logps_after", "_shared_loss", "_log_shared", "_backward", "_metrics_of",
        "_widen_logs", "_check_base", "_card", "_description", "_load_logs",
    }  # fmt: skip
    assert private - own <= known
    assert own <= private
    assert issubclass(CoryTrainer, CoryMixin)


@pytest.mark.parametrize("owner", [GRPOTrainer, RLOOTrainer])
def test_where_stop_strings_are_added(owner):
    """The arguments of `generate` go through `_prepare_input`, and the completions of one call come back in order."""
    source = inspect.getsource(owner._generate_single_turn)
    assert "generate_inputs = super()._prepare_inputs(generate_inputs)" in source
    assert "**generate_inputs, generation_config=self.generation_config" in source
    assert "self._generate_single_turn(" in inspect.getsource(owner._generate)
    for name in ("clipped_ratio", "mean_terminated_length", "min_terminated_length", "max_terminated_length"):
        assert f'"completions/{name}"].append(' in inspect.getsource(owner._generate)
    assert "self._prepare_input(" in inspect.getsource(Trainer._prepare_inputs)
