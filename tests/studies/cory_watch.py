"""What is watched while agents are trained: each one alone as pioneer, its reward, and its exact KL to the base."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback

COLUMNS = ("step", "reward", "kl", "text_kl", "entropy", "length")
"""What is kept of each evaluation; see [`Watch`]."""


@dataclass(frozen=True)
class Texts:
    """Sampled texts, and what the model and its base think of each token.

    Attributes:
        completions (`list[str]`): B texts.
        mask (`torch.Tensor` of shape `(B, T)`): 1 for tokens of the text, its end token too.
        kls (`torch.Tensor` of shape `(B, T)`): KL of the model's next-token distribution to the base's, over the whole
            vocabulary, in nats.
        entropies (`torch.Tensor` of shape `(B, T)`): of the model's next-token distribution, in nats.
    """

    completions: list[str]
    mask: torch.Tensor
    kls: torch.Tensor
    entropies: torch.Tensor

    def means(self) -> dict[str, float]:
        """`kl` and `entropy` (nats a token, over all tokens), `text_kl` (nats a text), `length` (tokens a text)."""
        count = self.mask.sum()
        return {
            "kl": float((self.kls * self.mask).sum() / count),
            "text_kl": float((self.kls * self.mask).sum(1).mean()),
            "entropy": float((self.entropies * self.mask).sum() / count),
            "length": float(self.mask.sum(1).float().mean()),
        }


@torch.no_grad()
def sample_with_kls(model: Any, tokenizer: Any, prompts: Sequence[str], num_tokens: int) -> Texts:
    """One continuation of each prompt at temperature 1, scored by the model and by its base.

    Args:
        model (`PeftModel`): with the adapter that is asked active; its base is the model without adapters.
        tokenizer: of the model, padding on the left.
        prompts (`Sequence[str]`): B prompts.
        num_tokens (`int`): of a continuation, at most.

    Returns:
        [`Texts`].
    """
    inputs = tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left").to(model.device)
    given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    ids = model.generate(
        **given,
        max_new_tokens=num_tokens,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    completion_ids = ids[:, given["input_ids"].shape[1] :]
    is_end = completion_ids == tokenizer.eos_token_id
    mask = ((is_end.cumsum(1) - is_end.int()) == 0).int()  # the first end token counts, what follows does not
    whole = torch.cat([given["attention_mask"], mask], dim=1)
    logps = _next_logps(model, ids, whole, mask.shape[1])
    with model.disable_adapter():
        base_logps = _next_logps(model, ids, whole, mask.shape[1])
    probs = logps.exp()
    return Texts(
        tokenizer.batch_decode(
            [row[kept.bool()] for row, kept in zip(completion_ids, mask, strict=True)], skip_special_tokens=True
        ),
        mask,
        (probs * (logps - base_logps)).sum(-1),
        -(probs * logps).sum(-1),
    )


def _next_logps(model: Any, ids: torch.Tensor, mask: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """Log-probabilities of all tokens at each place of the completions, `(B, T, V)`."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(ids, attention_mask=mask, position_ids=positions, logits_to_keep=num_tokens + 1).logits
    return logits[:, -num_tokens - 1 : -1].float().log_softmax(-1)


class Watch(TrainerCallback):
    """Evaluates every agent before training and every few steps: `curves` has one row an evaluation.

    Every agent answers the same prompts, alone as pioneer, with the same random numbers at each evaluation; training
    draws what it would draw unwatched. The columns are those of `COLUMNS`: the mean reward, the exact KL to the base
    (`kl` in nats a token, `text_kl` in nats a text), the entropy in nats a token, and the length in tokens.

    Source: ours.

    Args:
        prompts (`Sequence[str]`): that are answered.
        columns (`Mapping[str, Sequence]`): what else the reward function needs of each prompt.
        reward (callable): in TRL's form.
        every (`int`): optimizer steps between evaluations.
        num_tokens (`int`): of an answer, at most.
        num_samples (`int`): texts that are kept of the first and of the last evaluation.

    Attributes:
        curves (`dict[str, list[list[float]]]`): by agent.
        samples (`dict[str, list[str]]`): by agent, texts of the last evaluation.
        base_samples (`list[str]`): texts of the first evaluation, where an adapter changes nothing yet.
        training_seconds (`float`): CPU time of optimizer steps with their rollouts, without evaluations.
        evaluation_seconds (`float`): CPU time of evaluations.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
        reward: Callable[..., Any],
        every: int,
        num_tokens: int,
        num_samples: int = 3,
    ) -> None:
        self.prompts = list(prompts)
        self.columns = dict(columns)
        self.reward = reward
        self.every = every
        self.num_tokens = num_tokens
        self.num_samples = num_samples
        self.trainer: Any = None
        self.curves: dict[str, list[list[float]]] = {}
        self.samples: dict[str, list[str]] = {}
        self.base_samples: list[str] = []
        self.training_seconds = 0.0
        self.evaluation_seconds = 0.0
        self._step_began = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`."""
        self._evaluate(state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`."""
        self._step_began = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`."""
        self.training_seconds += time.process_time() - self._step_began
        if state.global_step % self.every == 0:
            self._evaluate(state.global_step)

    def _evaluate(self, step: int) -> None:
        began = time.process_time()
        model, tokenizer = self.trainer.model, self.trainer.processing_class
        was_training = model.training
        model.eval()
        for agent in agents_of(self.trainer):
            with alone(self.trainer, agent), torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                texts = sample_with_kls(model, tokenizer, self.prompts, self.num_tokens)
            given = self.reward(prompts=self.prompts, completions=texts.completions, **self.columns)
            found = {"step": step, "reward": sum(map(float, given)) / len(given), **texts.means()}
            self.curves.setdefault(agent, []).append([round(found[name], 5) for name in COLUMNS])
            self.samples[agent] = texts.completions[: self.num_samples]
            self.base_samples = self.base_samples or self.samples[agent]
        model.train(was_training)
        self.evaluation_seconds += time.process_time() - began


def agents_of(trainer: Any) -> list[str]:
    """The names of a trainer's agents; a trainer of one model has one, `agent-1`."""
    return trainer.agents.names if hasattr(trainer, "agents") else ["agent-1"]


@contextlib.contextmanager
def alone(trainer: Any, agent: str) -> Iterator[None]:
    """An agent is alone inside, and so is what a trainer of one model trains."""
    with trainer.alone(agent) if hasattr(trainer, "agents") else contextlib.nullcontext():
        yield
