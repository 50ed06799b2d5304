"""What a policy is asked about: the text and the members at the first token of a span."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_rlae.errors import PolicyError

LEAST_LOGIT = -1e4
"""Logits are at most so far below the best one; `exp` of it is 0."""


class _once:
    """`functools.cached_property` without its lock, which in Python 3.11 all instances share."""

    def __init__(self, compute: Callable[[Any], Any]) -> None:
        self.compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        value = instance.__dict__[self.name] = self.compute(instance)
        return value


@dataclass(frozen=True)
class MemberObservation:
    """What one member shows at the position whose next token is chosen.

    Attributes:
        logits (`torch.Tensor` of shape `(B, V_m)`): the member's logits, in its own vocabulary and dtype.
        hidden (`torch.Tensor` of shape `(B, H_m)` or `None`): the input of its language-model head; with the mean of
            its newest inputs beside it, `(B, 2 H_m)`, for a policy that pools them (see `observed_tokens`).
    """

    logits: torch.Tensor
    hidden: torch.Tensor | None


@dataclass(frozen=True)
class PolicyOutput:
    """A policy's answer with what its training needs.

    Attributes:
        weights (`torch.Tensor` of shape `(B, M)`): each row is a point on the simplex.
        actions (`torch.Tensor`, *optional*): what was drawn, before it became weights.
        log_probs (`torch.Tensor`, *optional*): its log-density in nats.
        values (`torch.Tensor` of shape `(B,)`, *optional*): the critic's estimate.
        entropies (`torch.Tensor`, *optional*): of the distribution that actions are drawn from, in nats.
    """

    weights: torch.Tensor
    actions: torch.Tensor | None = None
    log_probs: torch.Tensor | None = None
    values: torch.Tensor | None = None
    entropies: torch.Tensor | None = None


@dataclass(frozen=True)
class PromptScores:
    """How likely each member finds the prompts.

    A member cannot score the first id that it reads. Where that is text for some member of a row (no
    beginning-of-text token comes before it), no member of the row scores its first token, so that all are measured on
    nearly the same text. Special tokens are never counted. A prompt with nothing to score is 0 everywhere.

    Attributes:
        logps (`torch.FloatTensor` of shape `(B, M)`): sum of the log-probabilities of the scored tokens, in nats.
        num_bytes (`torch.FloatTensor` of shape `(B, M)`): how many bytes these tokens have.
        num_tokens (`torch.FloatTensor` of shape `(B, M)`): how many tokens they are.
    """

    logps: torch.Tensor
    num_bytes: torch.Tensor
    num_tokens: torch.Tensor


class PolicyState:
    """The state of all rows at a span's first token. Everything is computed when it is first read.

    A member that has nothing to say in a row counts as one that finds every token equally likely.

    Args:
        num_members (`int`): M.
        span_index (`torch.LongTensor` of shape `(B,)`): how many spans each row has finished.
        device (`torch.device`): where weights are wanted.
        read_text (callable): returns the prompt and the text so far of every row.
        observe (callable): returns one `MemberObservation` per member; runs the members if need be.
        read_next (callable, *optional*): for members with different tokenizers: given the observations and each
            member's most likely ids, a tensor of shape `(B, M)`, returns the bytes that each of these adds to the text,
            by row and member (`b""` for the end of the text, `None` for no text). Without it, or if it returns `None`,
            ids are compared as they are.
        score_prompts (callable, *optional*): returns `PromptScores`; runs the members over the prompts if need be.
        hidden_tokens (`int`, *optional*): what `observed_tokens` said when the members were run.

    Attributes:
        text (`list[str]`): prompt and text so far, one a row.
        observations (`list[MemberObservation]`): one a member.
        hidden_states (`list[torch.Tensor]`): last hidden states, `(B, H_m)` each; `(B, 2 H_m)` with means beside them,
            for a policy that asks for these (see `observed_tokens`).
        entropies (`torch.FloatTensor` of shape `(B, M)`): of the members' next-token distributions, in nats.
        margins (`torch.FloatTensor` of shape `(B, M)`): log-probability of the best token less the second's, in nats;
            at most 1e4.
        top_logps (`torch.FloatTensor` of shape `(B, M)`): log-probability of the best token.
        agreement (`torch.FloatTensor` of shape `(B, M, M)`): 1.0 where the likeliest next tokens of two members agree,
            else 0.0; 1.0 on the diagonal. With one tokenizer they agree if they are the same token. With different
            ones they agree if both end the text, or if the bytes of one begin those of the other: neither member would
            contradict the other's token.
        prompt_scores (`PromptScores`): of the prompts; costs one more forward pass of each member over each prompt,
            once a call.
        prompt_logps (`torch.FloatTensor` of shape `(B, M)`): log-probability of each prompt, in nats.
        prompt_perplexities (`torch.FloatTensor` of shape `(B, M)`): of each prompt, per *byte*, so that members with
            different tokenizers can be compared: `exp(-logps / num_bytes)`; 1.0 where there is nothing to score.
    """

    def __init__(
        self,
        num_members: int,
        span_index: torch.Tensor,
        device: torch.device,
        read_text: Callable[[], list[str]],
        observe: Callable[[], Sequence[MemberObservation]],
        read_next: Callable[[Sequence[MemberObservation], torch.Tensor], list[list[bytes | None]] | None] | None = None,
        score_prompts: Callable[[], PromptScores] | None = None,
        hidden_tokens: int | None = None,
    ) -> None:
        self.hidden_tokens = hidden_tokens
        self.num_members = num_members
        self.span_index = span_index
        self.device = device
        self._read_text = read_text
        self._observe = observe
        self._read_next = read_next
        self._score_prompts = score_prompts

    @property
    def batch_size(self) -> int:
        """Number of rows, B."""
        return int(self.span_index.shape[0])

    @_once
    def text(self) -> list[str]:
        return self._read_text()

    @_once
    def observations(self) -> list[MemberObservation]:
        return list(self._observe())

    @_once
    def hidden_states(self) -> list[torch.Tensor | None]:
        return [observation.hidden for observation in self.observations]

    @_once
    def _summaries(self) -> torch.Tensor:
        """Entropies, margins, best log-probabilities and best ids, `(4, B, M)`."""
        columns = [_summary(observation.logits.float()).to(self.device) for observation in self.observations]
        return torch.stack(columns, dim=2)

    @property
    def entropies(self) -> torch.Tensor:
        return self._summaries[0]

    @property
    def margins(self) -> torch.Tensor:
        return self._summaries[1]

    @property
    def top_logps(self) -> torch.Tensor:
        return self._summaries[2]

    @property
    def _best_ids(self) -> torch.Tensor:
        return self._summaries[3].long()

    @_once
    def agreement(self) -> torch.Tensor:
        best = self._best_ids
        rows = None if self._read_next is None else self._read_next(self.observations, best)
        if rows is None:
            return (best[:, :, None] == best[:, None]).float()
        return torch.tensor(
            [[[float(i == j or _agree(a, b)) for j, b in enumerate(row)] for i, a in enumerate(row)] for row in rows],
            device=self.device,
        )

    @_once
    def prompt_scores(self) -> PromptScores:
        if self._score_prompts is None:
            raise PolicyError(
                "this PolicyState cannot score prompts: whoever made it gave no `score_prompts`. An ensemble's own "
                "states can; in a state of your own, pass `score_prompts=` that returns PromptScores"
            )
        return self._score_prompts()

    @property
    def prompt_logps(self) -> torch.Tensor:
        return self.prompt_scores.logps

    @property
    def prompt_perplexities(self) -> torch.Tensor:
        scores = self.prompt_scores
        return (-scores.logps / scores.num_bytes.clamp(min=1)).exp()


@torch.no_grad()  # members are frozen, and what is in the way is written over
def _summary(logits: torch.Tensor) -> torch.Tensor:
    """The entropy, margin, best log-probability and best id of fp32 logits `(B, V)`: shape `(4, B)`, in fp32.

    A few passes over the logits and two copies of them; `topk`, `max` with indices and comparisons take far longer.
    fp32 holds ids up to 2^24.
    """
    best = _first_best(logits)
    top = logits.gather(1, best[:, None])
    rest = (logits - top).clamp_(min=LEAST_LOGIT)  # 0 times minus infinity is no number
    rest.scatter_(1, best[:, None], LEAST_LOGIT)
    margin = -rest.amax(-1)
    scaled = rest.exp()
    z = scaled.sum(-1) + 1.0
    log_z = z.log()
    products = rest.mul_(scaled)  # in its place
    entropy = log_z - products.sum(-1) / z
    is_silent = ~torch.isfinite(top[:, 0])
    if bool(is_silent.any()):
        size = logits.shape[-1]
        entropy = entropy.masked_fill(is_silent, math.log(size))
        log_z = log_z.masked_fill(is_silent, math.log(size))
        margin = margin.masked_fill(is_silent, 0.0)
        best = best.masked_fill(is_silent, size)
    return torch.stack([entropy, margin, -log_z, best.to(entropy.dtype)])


def _first_best(logits: torch.Tensor) -> torch.Tensor:
    """The best id of each row, the first one of equals: shape `(B,)`."""
    if logits.device.type == "cpu":
        # of 50,000 ids ten times as fast as torch's, and about as fast of 400
        return torch.from_numpy(logits.detach().numpy().argmax(-1))
    return logits.argmax(-1)


def _agree(first: bytes | None, second: bytes | None) -> bool:
    if not first or not second:
        return first == second == b""
    return first.startswith(second) or second.startswith(first)
