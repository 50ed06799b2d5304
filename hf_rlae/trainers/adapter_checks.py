"""Which LoRA configurations leave the base model unchanged."""

from __future__ import annotations

from typing import Any

from peft import AdaLoraConfig, LoraConfig

from hf_rlae.errors import ConfigError

LORA_HINT = (
    "what is trained are LoRA adapters on a frozen base model: give peft_config=LoraConfig(r=16, "
    "target_modules='all-linear') of `peft`, and a model without adapters"
)


def check_adapter(peft_config: Any) -> None:
    """Raises for an adapter that changes the base model, which other agents or the KL refer to.

    Args:
        peft_config (`peft.LoraConfig`): of the adapter.

    Raises:
        ConfigError: not LoRA, LoRA for another task, or an option that changes the base model.
    """
    if not isinstance(peft_config, LoraConfig) or isinstance(peft_config, AdaLoraConfig):
        given = "missing" if peft_config is None else f"a {type(peft_config).__name__}"
        raise ConfigError(f"peft_config is {given}; {LORA_HINT}")
    for name, accepted, reason in (
        ("init_lora_weights", (True, False, "gaussian", "orthogonal"), "it changes the base model, or needs data"),
        ("task_type", (None, "CAUSAL_LM"), "the model generates text"),
        ("bias", ("none",), "it trains biases of the base model"),
        ("layer_replication", (None, [], ()), "it changes the layers of the base model"),
    ):
        value = getattr(peft_config, name)
        if value not in accepted:
            raise ConfigError(f"peft_config: {name}={value!r} is not supported: {reason}; leave it out")
