"""A sequence-classification model as a reward."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_rlae.checks import COUNT, OPTIONAL_COUNT, check_number
from hf_rlae.errors import ConfigError, RewardError, nearest
from hf_rlae.rewards.contract import Batch, Reward


class RewardModel(Reward):
    """Any model of `AutoModelForSequenceClassification` as a reward function; `reward_model(...)` makes one.

    It reads prompt and completion: strings are concatenated and get the tokenizer's special tokens, messages are
    rendered by the tokenizer's chat template. Texts that are too long are cut on the left, so their end stays. Rows are
    padded with the padding token of the model's config; a model without one scores one row at a time. A text without
    any token could not be judged and gets `None`. The model is put into eval mode and gets no gradient.
    The reward is the logit of a model with one label, or a probability.

    Source: public code (TRL scores with classification models in the same way).

    Args:
        model (`str`, `Path` or `PreTrainedModel`): a folder or Hub id, or a loaded model.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): by default loaded from where the model was loaded.
        label (`str` or `int`, *optional*): for a model with several labels, the one whose probability is the reward.
        sigmoid (`bool`, defaults to `False`): applies a sigmoid to the logit. With a `label`, it replaces the softmax
            over all labels (for models whose labels do not exclude one another).
        batch_size (`int`, defaults to 8): rows per forward pass.
        max_length (`int`, *optional*): maximum number of tokens; by default what model and tokenizer allow.
        name (`str`, defaults to `"reward_model"`): its `__name__`.
        model_kwargs: for `from_pretrained` of a model given by name, such as `dtype` or `revision`.

    Raises:
        ConfigError: an argument cannot be used; the message names it.

    Example:

    >>> from tokenizers import Tokenizer, models
    >>> from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast
    >>> backend = Tokenizer(models.WordLevel({"[UNK]": 0, "yes": 1}, unk_token="[UNK]"))
    >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    >>> sizes = {"vocab_size": 2, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> config = BertConfig(**sizes, id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1})
    >>> reward = reward_model(BertForSequenceClassification(config), tokenizer, label="good")
    >>> [score] = reward(prompts=["no"], completions=["yes"])
    >>> 0 < score < 1
    True
    """

    def __init__(
        self,
        model: str | Path | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        label: str | int | None = None,
        sigmoid: bool = False,
        batch_size: int = 8,
        max_length: int | None = None,
        name: str = "reward_model",
        **model_kwargs: Any,
    ) -> None:
        super().__init__(name)
        check_number("batch_size", batch_size, COUNT)
        check_number("max_length", max_length, OPTIONAL_COUNT)
        self.model, tokenizer = _load(model, tokenizer, model_kwargs)
        # a copy, because others may use the tokenizer with truncation on the right
        self.tokenizer = copy.deepcopy(tokenizer)
        self.tokenizer.truncation_side = "left"
        self.max_length = _checked_length(max_length, self.model, tokenizer)
        self.label = _label_index(self.model.config, label)
        self.sigmoid, self.batch_size = sigmoid, batch_size

    def score_texts(self, texts: list[str], batch: Batch) -> list[float | None]:
        """See `Reward.score_texts`."""
        pairs = zip(batch.required("prompts"), batch.required("completions"), texts, strict=True)
        rows = [self._encode(*pair, row) for row, pair in enumerate(pairs)]
        scores: list[float | None] = [None] * len(rows)
        places = [at for at, ids in enumerate(rows) if ids]
        pad_token_id = self.model.config.get_text_config().pad_token_id
        # without a padding token the model itself refuses more than one row
        size = 1 if pad_token_id is None else self.batch_size
        for start in range(0, len(places), size):
            chosen = places[start : start + size]
            for at, score in zip(chosen, self._scores([rows[at] for at in chosen], pad_token_id or 0), strict=True):
                scores[at] = score
        return scores

    def _encode(self, prompt: Any, completion: Any, text: str, row: int) -> list[int]:
        is_plain = isinstance(prompt, str)
        if is_plain != isinstance(completion, str):
            raise RewardError(f"{self.__name__}: row {row} mixes a string and messages; give both in one form")
        if not is_plain and not self.tokenizer.chat_template:
            raise RewardError(
                f"{self.__name__}: row {row} has messages and the reward model's tokenizer has no chat template; "
                f"set tokenizer.chat_template, or train on plain strings"
            )
        if is_plain:
            text = prompt + text
        else:
            text = str(self.tokenizer.apply_chat_template([*prompt, *completion], tokenize=False))
        limits: dict[str, Any] = {} if self.max_length is None else {"truncation": True, "max_length": self.max_length}
        encoded = self.tokenizer(text, add_special_tokens=is_plain, verbose=False, **limits)
        return list(encoded["input_ids"])

    @torch.inference_mode()
    def _scores(self, rows: Sequence[Sequence[int]], pad_token_id: int) -> list[float]:
        self.model.eval()
        ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=pad_token_id)
        mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
        device = self.model.device
        logits = self.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits.float()
        if self.sigmoid:
            logits = logits.sigmoid()
        elif self.label is not None:
            logits = logits.softmax(-1)
        return list(logits[:, self.label or 0].tolist())


reward_model = RewardModel


def _load(
    model: str | Path | PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, model_kwargs: dict[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if isinstance(model, str | Path):
        # where it is not given, transformers asks on standard input
        trusted = bool(model_kwargs.get("trust_remote_code"))
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trusted) if tokenizer is None else tokenizer
        options = {**model_kwargs, "trust_remote_code": trusted}
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
            "reward_model(model, tokenizer), or reward_processing_classes to a trainer"
        )
    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(model.config.name_or_path, trust_remote_code=False)
    return model, tokenizer


def _checked_length(max_length: int | None, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    limits = (getattr(model.config.get_text_config(), "max_position_embeddings", None), tokenizer.model_max_length)
    # a tokenizer without a limit states a huge number
    allowed = min((limit for limit in limits if limit and limit < 10**9), default=None)
    if max_length is not None and allowed is not None and max_length > allowed:
        raise ConfigError(f"max_length={max_length}, but model and tokenizer allow {allowed} tokens")
    return max_length or allowed


def _label_index(config: Any, label: str | int | None) -> int | None:
    names = {str(text): int(at) for at, text in config.id2label.items()}
    if config.num_labels == 1:
        if label is not None:
            raise ConfigError(f"label={label!r}, but the model has only one label; leave label out")
        return None
    index = names.get(label) if isinstance(label, str) else label
    if isinstance(index, bool) or index not in range(config.num_labels):
        raise ConfigError(
            f"label={label!r}: give the label whose probability is the reward, a number from 0 to "
            f"{config.num_labels - 1} or its name: {nearest(str(label), names)}"
        )
    return index
