"""An adapter for the published ranker `llm-blender/PairRM-hf`. Untested: it has not been run with that model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

SOURCE_LENGTH = 1224
"""Maximum number of tokens of a prompt. Source: the model card of `llm-blender/PairRM-hf`."""
CANDIDATE_LENGTH = 412
"""The same for an answer, where the prompt is as long as possible."""
_MARKS = ("<|source|>", "<|candidate1|>", "<|candidate2|>")


def pairrm_judge(model: Any, tokenizer: Any) -> Callable[[Sequence[str], Sequence[str], Sequence[str]], list[float]]:
    """A judge for [`PairRanker`] that reads pairs in the form of `llm-blender/PairRM-hf`.

    **Untested** with the model itself, whose architecture is not part of transformers: its card loads it with the class
    `DebertaV2PairRM` of the package `llm_blender`. What is tested is the form of the input. Prompt and answers are
    encoded each with its mark and with the tokenizer's special tokens, cut on the right, and joined.

    Source: the model card of `llm-blender/PairRM-hf` for the form, and for a positive logit meaning that the first
    answer is better.

    Args:
        model (`torch.nn.Module`): called with `input_ids` and `attention_mask` `(B, L)`; its output has `logits` of B
            numbers.
        tokenizer (`PreTrainedTokenizerBase`): of the model.

    Returns:
        callable: `judge(prompts, first, second)`, for prompts that are texts.
    """
    most = SOURCE_LENGTH + 2 * CANDIDATE_LENGTH

    def encoded(mark: str, text: str, length: int) -> list[int]:
        return list(tokenizer.encode(mark + text, max_length=length, truncation=True))

    @torch.inference_mode()
    def judge(prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
        rows = []
        for prompt, one, other in zip(prompts, first, second, strict=True):
            source = encoded(_MARKS[0], prompt, SOURCE_LENGTH)
            length = (most - len(source)) // 2
            rows.append(source + encoded(_MARKS[1], one, length) + encoded(_MARKS[2], other, length))
        batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt", padding=True)
        device = next(model.parameters()).device
        inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
        found: list[float] = model(**inputs).logits.reshape(-1).float().sigmoid().tolist()
        return found

    return judge
