"""Shared parts of tests of ensembles: prompts, policies that look at the text, and references without the package."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_rlae import EnsembleForCausalLM, PolicyState
from tests.support.tokenizers import byte_level_bpe

TEXTS = ("Once upon a time, there was", "The 3 big dogs ran", "def f(x):")
"""Prompts of different lengths."""


def encode(*texts: str, tokenizer: Any = None) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` of a batch, padded on the left."""
    batch = (tokenizer or byte_level_bpe())(list(texts), return_tensors="pt", padding=True)
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}


def endless(members: Sequence[Any], policy: Any = None, **settings: Any) -> EnsembleForCausalLM:
    """An ensemble in which no token ends a text, so that every completion has its full length."""
    settings.setdefault("end_token_ids", [[]] * len(members))
    return EnsembleForCausalLM.from_members(members, policy, **settings)


def weights_of_text(text: str, members: int) -> torch.Tensor:
    """Weights that depend on every character of a text, each member's between 0.1 and 0.8."""
    scores = [zlib.crc32(f"{index}{text}".encode()) / 2**32 for index in range(members)]
    return (2 * torch.tensor(scores)).softmax(0)


def policy_of_text(state: PolicyState) -> torch.Tensor:
    """A policy that looks only at the text."""
    return torch.stack([weights_of_text(text, state.num_members) for text in state.text])


class Recorder:
    """A policy that records its calls: one `(span, text)` per row.

    Attributes:
        asked (`list[list[tuple[int, str]]]`): one list per call.
    """

    def __init__(self, policy: Callable[[PolicyState], torch.Tensor] = policy_of_text) -> None:
        self.policy = policy
        self.asked: list[list[tuple[int, str]]] = []

    def __call__(self, state: PolicyState) -> torch.Tensor:
        self.asked.append(list(zip(state.span_index.tolist(), state.text, strict=True)))
        return self.policy(state)


class Schedule:
    """A policy that gives every row the weights `rows[s % len(rows)]` in span `s`."""

    def __init__(self, *rows: Sequence[float]) -> None:
        self.rows = torch.tensor(rows, dtype=torch.float32)

    def __call__(self, state: PolicyState) -> torch.Tensor:
        return self.rows[state.span_index % len(self.rows)]


@contextmanager
def columns_read(*models: nn.Module) -> Iterator[list[list[int]]]:
    """The number of columns of each forward pass, one list per model."""
    calls: list[list[int]] = [[] for _ in models]
    with ExitStack() as stack:
        for seen, model in zip(calls, models, strict=True):

            def note(_module: nn.Module, args: Any, kwargs: Any, seen: list[int] = seen) -> None:
                ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
                seen.append(ids.shape[1])

            stack.callback(model.register_forward_pre_hook(note, with_kwargs=True).remove)
        yield calls


@torch.no_grad()
def own_logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """A model's own logits `(L, V)` for one row of ids without padding, in double precision."""
    return model(input_ids=ids[None], use_cache=False).logits[0].double()


def mixture(logits: Sequence[torch.Tensor], weights: torch.Tensor, mixing: str = "linear") -> torch.Tensor:
    """The formula itself: mixed log-probabilities plus `sum_k w_k log Z_k`, from logits `(T, V)`, weights `(T, M)`."""
    weights = weights.double()
    stacked = torch.stack([entry.double() for entry in logits], dim=-1)
    shift = (weights * stacked.logsumexp(-2)).sum(-1)
    logps = stacked.log_softmax(-2)
    if mixing == "linear":
        mixed = (logps.exp() * weights[:, None]).sum(-1).log()
    elif mixing == "power":
        mixed = (4 * (logps.div(4).exp() * weights[:, None]).sum(-1).log()).log_softmax(-1)
    else:
        mixed = (logps * weights[:, None]).sum(-1).log_softmax(-1)
    return mixed + shift[:, None]
