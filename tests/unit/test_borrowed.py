"""Undocumented members of transformers, TRL and peft that the package uses outside of its trainers' own lists.

A new release that changes one of these fails here, by name, and not somewhere inside a call. The trainers' lists are in
`tests/unit/trainers`; the last test holds the sources against all of them.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch._dynamo.eval_frame import OptimizedModule
from transformers import Cache, GenerationMixin, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast, Trainer
from transformers.cache_utils import CacheLayerMixin, StaticLayer
from transformers.utils.hub import PushToHubMixin
from trl import GRPOTrainer

import hf_rlae
from tests.support.models import pair

BORROWED = {
    # transformers calls these overrides of the ensemble by their arguments' names
    (GenerationMixin, "prepare_inputs_for_generation"): [
        "self", "input_ids", "next_sequence_length", "past_key_values", "attention_mask", "inputs_embeds",
        "is_first_iteration", "kwargs",
    ],
    (PreTrainedTokenizerFast, "_decode"): [
        "self", "token_ids", "skip_special_tokens", "clean_up_tokenization_spaces", "kwargs",
    ],
    (PreTrainedTokenizerFast, "_encode_plus"): [
        "self", "text", "text_pair", "add_special_tokens", "padding_strategy", "truncation_strategy", "max_length",
        "stride", "is_split_into_words", "pad_to_multiple_of", "padding_side", "return_tensors",
        "return_token_type_ids", "return_attention_mask", "return_overflowing_tokens", "return_special_tokens_mask",
        "return_offsets_mapping", "return_length", "verbose", "split_special_tokens", "kwargs",
    ],
    (PreTrainedTokenizerFast, "_convert_token_to_id_with_added_voc"): ["self", "token"],
    (PreTrainedTokenizerFast, "_convert_id_to_token"): ["self", "index"],
    (PreTrainedModel, "_init_weights"): ["self", "module"],
    (PreTrainedModel, "_apply"): ["self", "fn", "recurse"],
    (Cache, "reorder_cache"): ["self", "beam_idx"],
    (Cache, "crop"): ["self", "tokens_to_remove"],
    (Cache, "activate_past_recording"): ["self"],
    (Cache, "get_mask_sizes"): ["self", "query_length", "layer_idx"],
    (CacheLayerMixin, "update"): ["self", "key_states", "value_states", "args", "kwargs"],
    # called by the package
    (GenerationMixin, "_prepare_generation_config"): ["self", "generation_config", "kwargs"],
    (GenerationMixin, "_get_logits_processor"): [
        "self", "generation_config", "input_ids_seq_length", "encoder_input_ids", "prefix_allowed_tokens_fn",
        "logits_processor", "device", "model_kwargs", "negative_prompt_ids", "negative_prompt_attention_mask",
    ],
    (GenerationMixin, "_prepare_cache_for_generation"): [
        "self", "generation_config", "model_kwargs", "generation_mode", "batch_size", "max_cache_length",
    ],
    (GenerationMixin, "_valid_auto_compile_criteria"): ["self", "model_kwargs", "generation_config"],
    (StaticLayer, "lazy_initialization"): ["self", "key_states", "value_states"],
    (torch._dynamo, "mark_static_address"): ["t", "guard"],
    (PushToHubMixin, "_upload_modified_files"): [
        "self", "working_dir", "repo_id", "files_timestamps", "commit_message", "token", "create_pr", "revision",
        "commit_description",
    ],
    (GenerationMixin, "_prepare_position_ids_for_generation"): ["self", "inputs_tensor", "model_kwargs"],
    (GenerationMixin, "_prepare_multimodal_encoder_kwargs_for_generation"): ["self", "model_kwargs"],
    (Trainer, "_save_checkpoint"): ["self", "model", "trial"],
    (Trainer, "_load_optimizer_and_scheduler"): ["self", "checkpoint"],
    (Trainer, "_get_output_dir"): ["self", "trial"],
    (Trainer, "_determine_best_metric"): ["self", "metrics", "trial"],
    (Trainer, "_run_epoch"): [
        "self", "model", "epoch", "train_dataloader", "steps_in_epoch", "num_update_steps_per_epoch", "trial",
        "ignore_keys_for_eval", "start_time", "resume_from_checkpoint", "epochs_trained",
        "steps_trained_in_current_epoch",
    ],
    (GRPOTrainer, "_get_per_token_logps_and_entropies"): [
        "self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy",
        "compute_aux_loss", "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes",
        "num_tiles", "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids",
    ],
    (Trainer, "_finish_current_push"): ["self"],
    (Trainer, "_remove_unused_columns"): ["self", "dataset", "description"],
    (GRPOTrainer, "_compute_loss"): ["self", "model", "inputs"],
}  # fmt: skip


@pytest.mark.parametrize(("owner", "name"), BORROWED, ids=lambda value: getattr(value, "__name__", value))
def test_signatures(owner, name):
    assert list(inspect.signature(getattr(owner, name)).parameters) == BORROWED[owner, name]


def test_generate_prepares_every_step_through_the_method_that_the_ensemble_overrides():
    """`prepare_inputs_for_generation` is called once per step with these two arguments, by name."""
    source = inspect.getsource(GenerationMixin._sample) + inspect.getsource(GenerationMixin._prefill)
    assert "prepare_inputs_for_generation" in source
    assert "next_sequence_length" in source
    assert "is_first_iteration" in source


def test_settings_of_a_call_come_first():
    """`_prepare_generation_config` returns the settings and what is left of the arguments."""
    model, _ = pair()
    settings, rest = model._prepare_generation_config(None, max_new_tokens=3, attention_mask=None)
    assert settings.max_new_tokens == 3
    assert "max_new_tokens" not in rest


def test_attributes_of_tokenizers_and_models():
    model, tokenizer = pair()
    assert hasattr(tokenizer, "_tokenizer")
    assert tokenizer._tokenizer is tokenizer.backend_tokenizer
    for name in ("_is_stateful", "_supports_sdpa", "_supports_flash_attn", "_can_compile_fullgraph"):
        assert hasattr(model, name), name
    assert "name_or_path" in dir(model)


def test_the_adapter_of_a_layer_is_a_list_of_names():
    """A member's own adapter is activated layer by layer, without touching `requires_grad`."""
    model = get_peft_model(pair()[0], LoraConfig(target_modules=["q_proj"]), adapter_name="one")
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    assert layers
    assert all(hasattr(layer, "_active_adapter") for layer in layers)
    layers[0]._active_adapter = ["one"]
    assert layers[0].active_adapters == ["one"]


def test_losses_between_two_logs():
    """`DurableTrainer` keeps and restores these attributes of a training."""
    source = inspect.getsource(Trainer)
    for name in ("self._tr_loss", "self._globalstep_last_logged", "self._total_loss_scalar"):
        assert f"{name} = " in source or f"{name} += " in source, name


ATTRIBUTES = {
    "_dynamo": (torch, "torch._dynamo"),
    "_compiled_call_impl": (torch.nn.Module, "self._compiled_call_impl = torch.compile("),
    "_orig_mod": (OptimizedModule, "self._orig_mod = mod"),
    "dynamo_ctx": (OptimizedModule, "self.dynamo_ctx = dynamo_ctx"),
    "_actions": (argparse, "self._actions = "),
    "_modules": (torch.nn.Module, '"_modules", '),
    "_name_or_path": (PreTrainedConfig, "self._name_or_path = "),
    "_train_batch_size": (Trainer, "self._train_batch_size = "),
}
"""Private attributes: where they are set, and how."""
DOCUMENTED = {"_exit", "_replace"}
"""Of `os` and of named tuples."""


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attributes_are_set(name):
    owner, setting = ATTRIBUTES[name]
    assert setting in inspect.getsource(owner)


def _borrowed_everywhere() -> set[str]:
    lists = ("serving", "trainers.cory", "trainers.rlae")
    found = {name for _, name in BORROWED}
    for module in (importlib.import_module(f"tests.unit.{name}.test_borrowed") for name in lists):
        found |= {name for _, name in module.BORROWED}
    return found


@pytest.fixture(scope="module")
def nodes() -> list[tuple[str, ast.AST]]:
    """The syntax of the package, with the names of its files."""
    trees = {str(path): ast.parse(path.read_text()) for path in sorted(Path(hf_rlae.__file__).parent.rglob("*.py"))}
    return [(file, node) for file, tree in trees.items() for node in ast.walk(tree)]


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_every_private_name_that_the_package_does_not_define_is_on_a_list(nodes):
    """Law: `x._name` in the package is defined or set somewhere in it, or is tested here or in a list of a folder."""
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    own = {node.name for _, node in nodes if isinstance(node, definitions)}
    own |= {node.attr for _, node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    own |= {node.id for _, node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    read = {node.attr: file for file, node in nodes if isinstance(node, ast.Attribute) and _is_private(node.attr)}
    listed = own | _borrowed_everywhere() | ATTRIBUTES.keys() | DOCUMENTED
    assert not {name: file for name, file in read.items() if name not in listed}
    assert len(read.keys() - own) > 10


def test_every_private_method_that_is_called_on_a_base_class_is_on_a_list(nodes):
    """Law: `super()._name(...)` in the package names a method of our own, or one whose signature is tested."""
    classes = [node for _, node in nodes if isinstance(node, ast.ClassDef)]
    methods: dict[str, set[str]] = defaultdict(set)
    for node in classes:
        methods[node.name] |= {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
    own = {name for node in classes for base in node.bases for name in methods[getattr(base, "id", "")]}
    called = {
        node.attr: file
        for file, node in nodes
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Call)
        and getattr(node.value.func, "id", "") == "super"
        and _is_private(node.attr)
    }
    missing = {name: file for name, file in called.items() if name not in own | _borrowed_everywhere()}
    assert not missing
    assert len(called) > 10
