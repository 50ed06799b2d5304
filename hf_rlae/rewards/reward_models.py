"""A sequence-classification model as a reward."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_rlae.checks import COUNT, OPTIONAL_COUNT, check_number
from hf_rlae.errors import RewardError
from hf_rlae.rewards.classifiers import allowed_length, classify, label_index, load_classifier
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
        chat_template_kwargs (`dict`, *optional*): further arguments of the tokenizer's chat template.
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
        chat_template_kwargs: Mapping[str, Any] | None = None,
        name: str = "reward_model",
        **model_kwargs: Any,
    ) -> None:
        super().__init__(name)
        check_number("batch_size", batch_size, COUNT)
        check_number("max_length", max_length, OPTIONAL_COUNT)
        self.model, tokenizer = load_classifier(model, tokenizer, model_kwargs)
        # a copy, because others may use the tokenizer with truncation on the right
        self.tokenizer = copy.deepcopy(tokenizer)
        self.tokenizer.truncation_side = "left"
        self.max_length = allowed_length(max_length, self.model, tokenizer)
        self.label = label_index(self.model.config, label)
        self.sigmoid, self.batch_size = sigmoid, batch_size
        self.template_kwargs = dict(chat_template_kwargs or {})

    def score_texts(self, texts: list[str], batch: Batch) -> list[float | None]:
        """See `Reward.score_texts`."""
        pairs = zip(batch.required("prompts"), batch.required("completions"), texts, strict=True)
        rows = [self._encode(*pair, row) for row, pair in enumerate(pairs)]
        scores: list[float | None] = [None] * len(rows)
        places = [at for at, ids in enumerate(rows) if ids]
        for start in range(0, len(places), self.batch_size):
            chosen = places[start : start + self.batch_size]
            for at, score in zip(chosen, self._scores([rows[at] for at in chosen]), strict=True):
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
            messages = [*prompt, *completion]
            text = str(self.tokenizer.apply_chat_template(messages, tokenize=False, **self.template_kwargs))
        limits: dict[str, Any] = {} if self.max_length is None else {"truncation": True, "max_length": self.max_length}
        encoded = self.tokenizer(text, add_special_tokens=is_plain, verbose=False, **limits)
        return list(encoded["input_ids"])

    def _scores(self, rows: Sequence[Sequence[int]]) -> list[float]:
        logits = classify(self.model, rows)
        if self.sigmoid:
            logits = logits.sigmoid()
        elif self.label is not None:
            logits = logits.softmax(-1)
        return list(logits[:, self.label or 0].tolist())


reward_model = RewardModel
