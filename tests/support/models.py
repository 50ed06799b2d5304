"""Tiny causal language models of many architectures, built from configs in memory in a few milliseconds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen3Config,
    RwkvConfig,
)

from tests.support.tokenizers import byte_level_bpe

WINDOW = 8
"""The length of the sliding window, in architectures that have one."""

_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
_GROUPED = {"num_key_value_heads": 2}
_HEADS = {**_GROUPED, "head_dim": 8}

_CONFIGS: dict[str, tuple[Callable[..., PreTrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, _GROUPED),
    "gpt2": (GPT2Config, {}),
    "qwen2": (Qwen2Config, _GROUPED),
    "qwen3": (Qwen3Config, _HEADS),
    "mixtral": (MixtralConfig, {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "mistral": (MistralConfig, {**_GROUPED, "sliding_window": WINDOW}),
    "gemma2": (Gemma2Config, {**_HEADS, "sliding_window": WINDOW, "query_pre_attn_scalar": 8}),
    "gemma3": (
        Gemma3TextConfig,
        {**_HEADS, "sliding_window": WINDOW, "query_pre_attn_scalar": 8, "num_hidden_layers": 3}
        | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "gpt_neox": (GPTNeoXConfig, {}),
    "rwkv": (RwkvConfig, {"attention_hidden_size": 32, "context_length": 256}),
    "mamba": (MambaConfig, {"state_size": 4}),
}

ARCHITECTURES = tuple(_CONFIGS)
"""The names that `tiny` accepts."""

RECURRENT = ("rwkv", "mamba")
"""Architectures without attention: in transformers they read padding as text."""

SLIDING = ("mistral", "gemma2", "gemma3")
"""Architectures with a sliding window; in `mistral` every layer has one."""


def tiny(architecture: str, vocab_size: int, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A small random model in fp32 and eval mode.

    The weights are large enough that texts vary and that distributions are neither flat nor certain.

    Args:
        architecture (`str`): one of `ARCHITECTURES`.
        vocab_size (`int`): number of ids.
        seed (`int`): equal seeds give equal weights.
        overrides: fields of the architecture's config.
    """
    make, own = _CONFIGS[architecture]
    fields = {**_SIZES, **own, **overrides}
    if architecture in RECURRENT:
        del fields["max_position_embeddings"]
    config = make(vocab_size=vocab_size, **fields)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        enlarge(model)
    return model.eval()


def enlarge(model: PreTrainedModel) -> None:
    embeddings = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter is embeddings:
                parameter.normal_(0.0, 1.0)
            elif parameter is head:
                parameter.normal_(0.0, 2.0 / math.sqrt(parameter.shape[1]))
            elif parameter.dim() >= 2 and parameter.shape[0] > 1:
                parameter.add_(torch.randn_like(parameter), alpha=1.0 / math.sqrt(parameter.shape[-1]))
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)


def pair(
    architecture: str = "llama",
    seed: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **overrides: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A `tiny` model and its tokenizer (byte-level BPE if none is given), as users load them."""
    tokenizer = byte_level_bpe() if tokenizer is None else tokenizer
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    options = {**special, **overrides}
    size = options.pop("vocab_size", len(tokenizer))
    return tiny(architecture, size, seed, **options), tokenizer


def pairs(
    architectures: Sequence[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    first_seed: int = 0,
    **overrides: Any,
) -> list[tuple[PreTrainedModel, PreTrainedTokenizerBase]]:
    """One `pair` per architecture, all with one tokenizer and each with its own seed."""
    return [
        pair(architecture, first_seed + index, tokenizer, **overrides)
        for index, architecture in enumerate(architectures)
    ]


def constant(
    logits: torch.Tensor, tokenizer: PreTrainedTokenizerBase | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A pair whose model returns the same `logits` `(V,)` after every text; they may be -inf."""
    tokenizer = byte_level_bpe() if tokenizer is None else tokenizer
    model = tiny("llama", len(logits), num_hidden_layers=1)

    def replace(_module: torch.nn.Module, _args: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        return logits.to(output).expand_as(output).clone()

    model.get_output_embeddings().register_forward_hook(replace)
    return model, tokenizer


def bigram(
    table: torch.Tensor, tokenizer: PreTrainedTokenizerBase | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A pair whose model returns the logits `table[i]` after every text that ends with the id `i`; `(V, V)`."""
    tokenizer = byte_level_bpe() if tokenizer is None else tokenizer
    model = tiny("llama", len(table), num_hidden_layers=1)
    read: list[torch.Tensor] = []

    def note(_module: torch.nn.Module, _args: Any, given: dict[str, Any]) -> None:
        read[:] = [given["input_ids"]]

    def replace(_module: torch.nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        return table.to(output)[read[0][:, -output.shape[1] :]]

    model.register_forward_pre_hook(note, with_kwargs=True)
    model.get_output_embeddings().register_forward_hook(replace)
    return model, tokenizer


def with_adapters(base: PreTrainedModel, names: Sequence[str] = ("one", "two"), seed: int = 0) -> Any:
    """A base model with one LoRA adapter per name; no adapter is zero, and the first one is active."""
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = peft.get_peft_model(base, settings, adapter_name=names[0])
        for name in names[1:]:
            model.add_adapter(name, settings)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_" in key:
                    parameter.normal_(0.0, 0.3)
    return model.eval()
