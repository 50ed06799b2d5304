"""What tells two runs apart: descriptions of models and tokenizers, and comparisons of such descriptions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

_VALUES, _PROMPTS = 16, 64
_MOST_SHOWN, _LONGEST = 6, 80
_VOLATILE = {
    "architectures", "dtype", "torch_dtype", "transformers_version", "quantization_config", "use_cache", "name_or_path",
    "auto_map",
}  # fmt: skip
"""Fields of a model's config that differ between machines, versions and calls, and leave the model as it is."""


def describe_model(config: Any, parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, Any]:
    """A short description of a model, the same wherever its files are loaded.

    Source: ours.

    Args:
        config (`PreTrainedConfig`): of the model.
        parameters (iterable of `(str, nn.Parameter)`): those that are not trained.

    Returns:
        `dict`: the config without what differs between machines, a digest of all names and shapes, the dtypes, and a
        digest of a few values of every tensor. Tensors that are not in memory (offloaded to a disk) are left out.
    """
    named = list(parameters)
    digests = {name: _digest_of_values(value) for name, value in named}
    return {
        "config": _stable(config.to_dict()),
        "shapes": digest_of([(name, tuple(value.shape)) for name, value in named]),
        "dtype": ", ".join(sorted({str(value.dtype) for _, value in named})),
        "weights": {name: digest for name, digest in digests.items() if digest is not None},
    }


def describe_tokenizer(tokenizer: Any) -> str:
    """A digest of a tokenizer's vocabulary and chat template."""
    return digest_of([sorted(tokenizer.get_vocab().items()), getattr(tokenizer, "chat_template", None)])


def describe_member(member: Any) -> dict[str, Any]:
    """See `describe_model` and `describe_tokenizer`.

    Args:
        member (`Member`): of an ensemble.
    """
    described = describe_model(member.config, member.wrapper.named_parameters())
    return {**described, "tokenizer": describe_tokenizer(member.tokenizer)}


def describe_adapter(model: Any) -> dict[str, Any] | None:
    """The fields of a model's LoRA that are not told by the shapes of its weights; `None` for a model without."""
    configs = getattr(model, "peft_config", None)
    if not configs:
        return None
    config = next(iter(configs.values()))
    names = ("r", "lora_alpha", "target_modules", "modules_to_save", "use_rslora", "use_dora")
    return _plain({name: getattr(config, name, None) for name in names})  # type: ignore[no-any-return]


def describe_prompts(dataset: Any) -> str:
    """The number of prompts of a dataset, and a digest of a few of them."""
    rows = sorted({round(index * (len(dataset) - 1) / (_PROMPTS - 1)) for index in range(_PROMPTS)})
    return f"{len(dataset)} prompts, {digest_of([dataset[row]['prompt'] for row in rows])}"


def digest_of(value: Any) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a value's JSON."""
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True).encode()).hexdigest()[:16]


def differences(saved: Any, given: Any, place: str = "") -> list[str]:
    """The entries in which two descriptions differ; what only one of them has is ignored.

    So a description may gain fields with a later version.

    Args:
        saved, given: plain dicts, lists and values, as JSON has them.
        place (`str`): their name.

    Returns:
        `list[str]`: such as `"members[1].config.hidden_size: 32 saved, 64 given"`.

    Example:

    >>> differences({"seed": 1, "sizes": [2, 3]}, {"seed": 2, "sizes": [2, 4], "new": 0})
    ['seed: 1 saved, 2 given', 'sizes[1]: 3 saved, 4 given']
    """
    if isinstance(saved, dict) and isinstance(given, dict):
        dot = f"{place}." if place else ""
        return [text for name in saved if name in given for text in differences(saved[name], given[name], dot + name)]
    if isinstance(saved, list) and isinstance(given, list) and len(saved) == len(given):
        pairs = enumerate(zip(saved, given, strict=True))
        return [text for index, (one, other) in pairs for text in differences(one, other, f"{place}[{index}]")]
    return [] if saved == given else [f"{place}: {_shown(saved)} saved, {_shown(given)} given"]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST or not isinstance(value, list) else f"{len(value)} entries"


def told(found: list[str]) -> str:
    """Differences as one text, the first ones of many."""
    more = f"; and {len(found) - _MOST_SHOWN} more" if len(found) > _MOST_SHOWN else ""
    return "; ".join(found[:_MOST_SHOWN]) + more


def _stable(value: Any) -> Any:
    """A config without the fields that leave the model as it is."""
    if isinstance(value, Mapping):
        return {
            str(name): _stable(entry)
            for name, entry in value.items()
            if not str(name).startswith(("_", "output_", "return_"))
            and not str(name).endswith("_token_id")  # training sets them to those of the tokenizer
            and name not in _VOLATILE
        }
    return _plain(value)


def _plain(value: Any) -> Any:
    """A value as JSON gives it back."""
    return json.loads(json.dumps(value, default=lambda entry: sorted(entry) if isinstance(entry, set) else str(entry)))


def _digest_of_values(parameter: nn.Parameter) -> str | None:
    """A digest of evenly spaced values; `None` where they cannot be read, as on the meta device."""
    if parameter.device.type == "meta" or not parameter.numel():
        return None
    try:
        flat = parameter.detach().reshape(-1)
        values = flat[:: max(1, len(flat) // _VALUES)][:_VALUES].to(torch.float32).cpu()
        return hashlib.sha256(values.numpy().tobytes()).hexdigest()[:8]
    except (RuntimeError, TypeError, NotImplementedError):  # quantised and distributed kinds of tensors
        return None
