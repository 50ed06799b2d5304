"""Sequence-classification models that rewards read: how they are loaded and asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_rlae.errors import ConfigError, nearest
from hf_rlae.hub_revisions import resolved

_HUB_OPTIONS = ("token", "cache_dir", "local_files_only", "force_download", "subfolder")


def load_classifier(
    model: str | Path | PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, model_kwargs: dict[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A classification model and its tokenizer.

    Args:
        model (`str`, `Path` or `PreTrainedModel`): a folder or Hub id, or a loaded model.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): by default loaded from where the model was loaded.
        model_kwargs (`dict`): for `from_pretrained` of a model given by name.

    Raises:
        ConfigError: not a classification model, or a loaded one whose tokenizer is not known.
    """
    if isinstance(model, str | Path):
        # where it is not given, transformers asks on standard input
        trusted = bool(model_kwargs.get("trust_remote_code"))
        pinned = {"trust_remote_code": trusted, "revision": resolved(model, model_kwargs.get("revision"), model_kwargs)}
        if tokenizer is None:  # from the same commit as the model
            hub = {name: model_kwargs[name] for name in _HUB_OPTIONS if name in model_kwargs}
            tokenizer = AutoTokenizer.from_pretrained(model, **hub, **pinned)
        options = {**model_kwargs, **pinned}
        return AutoModelForSequenceClassification.from_pretrained(model, **options), tokenizer
    if model_kwargs:
        raise ConfigError(
            f"{', '.join(sorted(model_kwargs))} can be given only with the name of a model, not a loaded one"
        )
    if not isinstance(model, torch.nn.Module) or not hasattr(getattr(model, "config", None), "num_labels"):
        raise ConfigError(
            f"model must be a sequence-classification model or the name of one, got {type(model).__name__}"
        )
    if tokenizer is None and not model.config.name_or_path:
        raise ConfigError(
            "a loaded reward model needs its tokenizer, and its config does not say where it was loaded from; give "
            "it as the second argument, as in reward_model(model, tokenizer), or as reward_processing_classes of a "
            "trainer"
        )
    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(model.config.name_or_path, trust_remote_code=False)
    return model, tokenizer


def allowed_length(max_length: int | None, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The largest number of tokens that the model reads; `None` for no limit.

    Raises:
        ConfigError: `max_length` is more than model and tokenizer allow.
    """
    limits = (getattr(model.config.get_text_config(), "max_position_embeddings", None), tokenizer.model_max_length)
    # a tokenizer without a limit states a huge number
    allowed = min((limit for limit in limits if limit and limit < 10**9), default=None)
    if max_length is not None and allowed is not None and max_length > allowed:
        raise ConfigError(f"max_length={max_length}, but model and tokenizer allow {allowed} tokens")
    return max_length or allowed


def label_index(config: Any, label: str | int | None, name: str = "label", meaning: str = "the reward") -> int | None:
    """The number of a label; `None` for a model with a single label.

    Args:
        config (`PreTrainedConfig`): of the model.
        label (`str` or `int`, *optional*): its name or number.
        name (`str`, defaults to `"label"`), meaning (`str`): of the argument, for messages.

    Raises:
        ConfigError: the model has no such label.
    """
    names = {str(text): int(at) for at, text in config.id2label.items()}
    if config.num_labels == 1:
        if label is not None:
            raise ConfigError(f"{name}={label!r}, but the model has only one label; leave {name} out")
        return None
    index = names.get(label) if isinstance(label, str) else label
    if isinstance(index, bool) or index not in range(config.num_labels):
        raise ConfigError(
            f"{name}={label!r}: give the label whose probability is {meaning}, a number from 0 to "
            f"{config.num_labels - 1} or its name: {nearest(str(label), names)}"
        )
    return index


@torch.inference_mode()
def classify(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], token_types: Sequence[Sequence[int]] | None = None
) -> torch.Tensor:
    """The logits of rows of ids, in eval mode and one forward pass.

    Rows are padded on the right with the padding token of the model's config; a model without one refuses several rows,
    so it reads one row at a time.

    Args:
        model (`PreTrainedModel`): of `AutoModelForSequenceClassification`.
        rows (`Sequence[Sequence[int]]`): N rows with at least one id each.
        token_types (`Sequence[Sequence[int]]`, *optional*): the segment of each id.

    Returns:
        `torch.FloatTensor` of shape `(N, num_labels)`, in fp32 on the CPU.
    """
    model.eval()
    pad_token_id = model.config.get_text_config().pad_token_id
    if pad_token_id is None and len(rows) > 1:
        each = [classify(model, [row], token_types and [token_types[at]]) for at, row in enumerate(rows)]
        return torch.cat(each)
    columns = {"input_ids": (rows, pad_token_id or 0), "attention_mask": ([[1] * len(row) for row in rows], 0)}
    if token_types is not None:
        columns["token_type_ids"] = (token_types, 0)
    inputs = {
        name: pad_sequence([torch.tensor(row) for row in values], batch_first=True, padding_value=fill).to(model.device)
        for name, (values, fill) in columns.items()
    }
    return model(**inputs).logits.float().cpu()
