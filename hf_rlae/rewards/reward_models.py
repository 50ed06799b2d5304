"""A sequence-classification model as a reward."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_rlae.errors import ConfigError, RewardError, nearest
from hf_rlae.rewards.contract import Batch, Reward


class RewardModel(Reward):
    """See `reward_model`."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        label: int | None,
        is_sigmoid: bool,
        batch_size: int,
        max_length: int | None,
        name: str,
    ) -> None:
        super().__init__(name)
        self.model = model
        # a copy: truncation on the left must not become the setting of whoever else uses the tokenizer
        self.tokenizer = copy.deepcopy(tokenizer)
        self.tokenizer.truncation_side = "left"
        self.label, self.is_sigmoid = label, is_sigmoid
        self.batch_size, self.max_length = batch_size, max_length

    def score_texts(self, texts: list[str], batch: Batch) -> list[float | None]:
        """See `Reward.score_texts`."""
        pairs = zip(batch.required("prompts"), batch.required("completions"), texts, strict=True)
        rows = [self._encode(*pair, row) for row, pair in enumerate(pairs)]
        scores: list[float | None] = [None] * len(rows)
        places = [at for at, ids in enumerate(rows) if ids]
        # without a padding token the model itself refuses more than one row
        size = 1 if self._pad_token_id is None else self.batch_size
        for start in range(0, len(places), size):
            chosen = places[start : start + size]
            for at, score in zip(chosen, self._scores([rows[at] for at in chosen]), strict=True):
                scores[at] = score
        return scores

    @property
    def _pad_token_id(self) -> int | None:
        pad: int | None = self.model.config.get_text_config().pad_token_id
        return pad

    def _encode(self, prompt: Any, completion: Any, text: str, row: int) -> list[int]:
        if isinstance(prompt, str) and isinstance(completion, str):
            return self._tokenize(prompt + text, add_special_tokens=True)
        if isinstance(prompt, str) or isinstance(completion, str):
            raise RewardError(f"{self.__name__}: row {row} mixes a string and messages; give both in one form")
        if not self.tokenizer.chat_template:
            raise RewardError(
                f"{self.__name__}: row {row} has messages and the reward model's tokenizer has no chat template; "
                f"set tokenizer.chat_template, or train on plain strings"
            )
        written = self.tokenizer.apply_chat_template([*prompt, *completion], tokenize=False)
        return self._tokenize(str(written), add_special_tokens=False)

    def _tokenize(self, text: str, add_special_tokens: bool) -> list[int]:
        limits: dict[str, Any] = {} if self.max_length is None else {"truncation": True, "max_length": self.max_length}
        ids: list[int] = self.tokenizer(text, add_special_tokens=add_special_tokens, verbose=False, **limits)[
            "input_ids"
        ]
        return ids

    @torch.inference_mode()
    def _scores(self, rows: Sequence[Sequence[int]]) -> list[float]:
        self.model.eval()
        width, pad = max(map(len, rows)), self._pad_token_id or 0
        ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=self.model.device)
        lengths = torch.tensor([len(row) for row in rows], device=self.model.device)
        mask = (torch.arange(width, device=self.model.device) < lengths[:, None]).long()
        logits = self.model(input_ids=ids, attention_mask=mask).logits.float()
        if self.label is None:
            scores = logits[:, 0].sigmoid() if self.is_sigmoid else logits[:, 0]
        elif self.is_sigmoid:
            scores = logits[:, self.label].sigmoid()
        else:
            scores = logits.softmax(-1)[:, self.label]
        return [float(score) for score in scores]


def reward_model(
    model: str | Path | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    label: str | int | None = None,
    sigmoid: bool = False,
    batch_size: int = 8,
    max_length: int | None = None,
    name: str = "reward_model",
    **model_kwargs: Any,
) -> RewardModel:
    """Any model of `AutoModelForSequenceClassification` as a reward function.

    It reads prompt and completion: strings one behind the other, with the tokenizer's special tokens; messages as the
    tokenizer's chat template renders them. What is too long is cut on the left, so the newest text stays. Rows are
    padded with the padding token of the model's config; where it has none, each row is run alone. A text without any
    token could not be judged and has `None`. The model is put into eval mode and gets no gradient.

    Source: public code (TRL scores with classification models in the same way).

    Args:
        model (`str`, `Path` or `PreTrainedModel`): a folder or Hub id, or a loaded model.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): of a loaded model; of a named one it is loaded from there.
        label (`str` or `int`, *optional*): of a model with several labels, the one whose probability is the reward.
        sigmoid (`bool`, defaults to `False`): brings the logit to 0 .. 1 by a sigmoid; with a `label`, takes that
            instead of the softmax over all labels (for models whose labels do not exclude one another).
        batch_size (`int`, defaults to 8): rows in one forward pass.
        max_length (`int`, *optional*): tokens that are read; as many as model and tokenizer allow if not given.
        name (`str`, defaults to `"reward_model"`): its `__name__`.
        model_kwargs: for `from_pretrained` of a named model, such as `dtype` or `revision`.

    Returns:
        `Reward`: one logit a row (a model with one label), or a probability.

    Raises:
        ConfigError: something above that cannot be used.

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
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"batch_size must be a whole number above 0, got {batch_size!r}")
    if max_length is not None and (isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 1):
        raise ConfigError(f"max_length must be a whole number above 0, got {max_length!r}")
    loaded, tokenizer = _load(model, tokenizer, model_kwargs)
    limits = (getattr(loaded.config.get_text_config(), "max_position_embeddings", None), tokenizer.model_max_length)
    # a tokenizer that knows no limit says some huge number
    allowed = min((limit for limit in limits if limit and limit < 10**9), default=None)
    if max_length is not None and allowed is not None and max_length > allowed:
        raise ConfigError(f"max_length={max_length}, but model and tokenizer allow {allowed} tokens")
    index = _label_index(loaded.config, label)
    return RewardModel(loaded, tokenizer, index, sigmoid, batch_size, max_length or allowed, name)


def _load(
    model: str | Path | PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, model_kwargs: dict[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if isinstance(model, str | Path):
        tokenizer = AutoTokenizer.from_pretrained(model) if tokenizer is None else tokenizer
        return AutoModelForSequenceClassification.from_pretrained(model, **model_kwargs), tokenizer
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
            "a loaded reward model needs its tokenizer, and its config does not name where it was loaded from; give "
            "reward_model(model, tokenizer), or reward_processing_classes to a trainer"
        )
    return model, tokenizer or AutoTokenizer.from_pretrained(model.config.name_or_path)


def _label_index(config: Any, label: str | int | None) -> int | None:
    names = {str(text): int(at) for at, text in config.id2label.items()}
    if label is None:
        if config.num_labels != 1:
            raise ConfigError(
                f"the model has {config.num_labels} labels; say with label= whose probability is the reward: "
                f"{', '.join(names)}"
            )
        return None
    if config.num_labels == 1:
        raise ConfigError(f"label={label!r}, but the model has one label only; leave label out")
    if isinstance(label, int) and not isinstance(label, bool):
        if not 0 <= label < config.num_labels:
            raise ConfigError(f"label={label}, but the model has the labels 0 to {config.num_labels - 1}")
        return label
    if label not in names:
        raise ConfigError(f"the model has no label {label!r}: {nearest(str(label), names)}")
    return names[str(label)]
