"""The input and output of policies: the state of text and members at the first token of a span, and the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import ModelOutput

from hf_rlae.errors import PolicyError
from hf_rlae.transfers import upload

LEAST_LOGIT = -1e4
"""Lower bound of logits minus the largest logit; `exp` of it is 0."""


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
    """The outputs of one member for the next token.

    Attributes:
        logits (`torch.Tensor` of shape `(B, V_m)`): the member's logits, in its own vocabulary and dtype.
        hidden (`torch.Tensor` of shape `(B, H_m)` or `None`): the input of its language-model head; of shape
            `(B, 2 H_m)`, with the mean over the newest inputs, for a policy that pools them (see `observed_tokens`).
    """

    logits: torch.Tensor
    hidden: torch.Tensor | None


@dataclass
class PolicyOutput(ModelOutput):
    """The outputs of a policy.

    Attributes:
        weights (`torch.FloatTensor` of shape `(B, M)`): each row is at least 0 and sums to 1.
        actions (`torch.FloatTensor` of shape `(B, M)`, *optional*): the drawn actions, from which the weights are
            computed.
        log_probs (`torch.FloatTensor` of shape `(B,)` or `(B, M)`, *optional*): log-probabilities (of drawn weights
            and scores: log-densities) of the actions, in nats: one per row with a joint actor, one per agent with an
            actor per member.
        state_values (`torch.FloatTensor` of shape `(B,)`, *optional*): the critic's estimates, as deviations from the
            mean reward (0 is the mean, 1 is one standard deviation above it).
        entropies (`torch.FloatTensor`, *optional*, same shape as `log_probs`): entropies of the distributions of the
            actions, in nats.
    """

    weights: torch.Tensor
    actions: torch.Tensor | None = None
    log_probs: torch.Tensor | None = None
    state_values: torch.Tensor | None = None
    entropies: torch.Tensor | None = None


@dataclass(frozen=True)
class PromptScores:
    """The members' log-probabilities of the prompts.

    A member cannot score the first id that it reads. If this id is text for some member of a row (because no
    beginning-of-text token precedes it), all members of the row skip their first token, so that all of them score
    nearly the same text. Special tokens are not scored. A prompt without scored tokens has 0 in all fields.

    Attributes:
        logps (`torch.FloatTensor` of shape `(B, M)`): sum of the log-probabilities of the scored tokens, in nats.
        num_bytes (`torch.FloatTensor` of shape `(B, M)`): number of bytes of the scored tokens.
        num_tokens (`torch.FloatTensor` of shape `(B, M)`): number of scored tokens.
    """

    logps: torch.Tensor
    num_bytes: torch.Tensor
    num_tokens: torch.Tensor


class PolicyState:
    """The state of all rows at a span's first token. Every attribute is computed on first access.

    A member without next-token mass in a row counts as a member with a uniform distribution.

    Args:
        num_members (`int`): number of members, M.
        span_index (`torch.LongTensor` of shape `(B,)`): number of finished spans of each row.
        device (`torch.device`): the device of the weights.
        read_text (callable): returns the prompt and the text so far of every row.
        observe (callable): returns one `MemberObservation` per member; runs the members if they have not run.
        read_next (callable, *optional*): for members with different tokenizers. Takes the observations and each
            member's most likely ids, of shape `(B, M)`, and returns the bytes that each id adds to the text, by row and
            member (`b""` for the end of the text, `None` for no text). Without it, or if it returns `None`, the ids
            themselves are compared.
        score_prompts (callable, *optional*): returns `PromptScores`; runs the members over the prompts if needed.
        hidden_tokens (`int`, *optional*): the `observed_tokens` of the policy for which the members were run.
        look_ahead (callable, *optional*): see the method of that name; runs the members.

    Attributes:
        text (`list[str]`): prompt and text so far, one per row.
        observations (`list[MemberObservation]`): one per member.
        hidden_states (`list[torch.Tensor]`): last hidden states, of shape `(B, H_m)` each, or `(B, 2 H_m)` with means
            for a policy that pools them (see `observed_tokens`).
        entropies (`torch.FloatTensor` of shape `(B, M)`): entropies of the members' next-token distributions, in nats.
        margins (`torch.FloatTensor` of shape `(B, M)`): log-probability of the most likely token minus that of the
            second, in nats; at most 1e4.
        top_logps (`torch.FloatTensor` of shape `(B, M)`): log-probability of the most likely token, in nats.
        agreement (`torch.FloatTensor` of shape `(B, M, M)`): 1.0 if the most likely next tokens of two members agree,
            else 0.0; 1.0 on the diagonal. With one tokenizer, the same token agrees. With different tokenizers, two
            tokens agree if both end the text, or if the bytes of one are a prefix of the bytes of the other, so that
            they do not contradict each other.
        prompt_scores (`PromptScores`): the members' log-probabilities of the prompts; costs one more forward pass of
            each member over each prompt, once per call.
        prompt_logps (`torch.FloatTensor` of shape `(B, M)`): log-probability of each prompt, in nats.
        prompt_perplexities (`torch.FloatTensor` of shape `(B, M)`): perplexity of each prompt per *byte*,
            `exp(-logps / num_bytes)`, which is comparable between tokenizers; 1.0 if no token is scored.
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
        look_ahead: Callable[[int], Sequence[torch.Tensor]] | None = None,
    ) -> None:
        self.hidden_tokens = hidden_tokens
        self.num_members = num_members
        self.span_index = span_index
        self.device = device
        self._read_text = read_text
        self._observe = observe
        self._read_next = read_next
        self._score_prompts = score_prompts
        self._look_ahead = look_ahead

    def look_ahead(self, num_tokens: int) -> list[torch.Tensor]:
        """The mean of each member's hidden states over the tokens that it would write next by itself.

        Every member continues the text greedily, without the others, up to an end token of its own. This takes
        `num_tokens` forward passes of each member over all rows, on copies of the members' caches; the text and what
        the members have read do not change.

        Source: ours.

        Args:
            num_tokens (`int`): number of tokens that each member writes, in its own tokens; at least 1.

        Returns:
            `list[torch.Tensor]`: one tensor of shape `(B, H_m)` per member, in its dtype; 0 in rows that the member
            cannot continue.

        Raises:
            PolicyError: the policy has `observes_members = False`, or the state was made without `look_ahead`.
        """
        if self._look_ahead is None:
            raise PolicyError(
                "members cannot look ahead from this PolicyState, because it was made without `look_ahead`; pass "
                "`look_ahead=`, a callable that returns one tensor per member, as ensembles do"
            )
        return list(self._look_ahead(num_tokens))

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
        return upload(
            torch.tensor(
                [
                    [[float(i == j or _agree(a, b)) for j, b in enumerate(row)] for i, a in enumerate(row)]
                    for row in rows
                ]
            ),
            self.device,
        )

    @_once
    def prompt_scores(self) -> PromptScores:
        if self._score_prompts is None:
            raise PolicyError(
                "this PolicyState cannot score prompts, because it was made without `score_prompts`; pass "
                "`score_prompts=`, a callable that returns PromptScores, as ensembles do"
            )
        return self._score_prompts()

    @property
    def prompt_logps(self) -> torch.Tensor:
        return self.prompt_scores.logps

    @property
    def prompt_perplexities(self) -> torch.Tensor:
        scores = self.prompt_scores
        return (-scores.logps / scores.num_bytes.clamp(min=1)).exp()


@torch.no_grad()  # members are frozen, and the in-place operations below would break autograd
def _summary(logits: torch.Tensor) -> torch.Tensor:
    """The entropy, margin, best log-probability and best id of fp32 logits `(B, V)`: shape `(4, B)`, in fp32.

    It takes a few passes over the logits and two copies; `topk`, `max` with indices and comparisons take much longer.
    fp32 is exact for ids up to 2^24.
    """
    best = _first_best(logits)
    top = logits.gather(1, best[:, None])
    rest = (logits - top).clamp_(min=LEAST_LOGIT)  # 0 * -inf would be NaN
    rest.scatter_(1, best[:, None], LEAST_LOGIT)
    margin = -rest.amax(-1)
    scaled = rest.exp()
    z = scaled.sum(-1) + 1.0
    log_z = z.log()
    products = rest.mul_(scaled)
    entropy = log_z - products.sum(-1) / z
    is_empty = ~torch.isfinite(top[:, 0])  # no next-token mass: counts as a uniform distribution
    if logits.device.type != "cpu" or bool(is_empty.any()):  # other devices would have to be waited for
        size = logits.shape[-1]
        entropy = entropy.masked_fill(is_empty, math.log(size))
        log_z = log_z.masked_fill(is_empty, math.log(size))
        margin = margin.masked_fill(is_empty, 0.0)
        best = best.masked_fill(is_empty, size)
    return torch.stack([entropy, margin, -log_z, best.to(entropy.dtype)])


def _first_best(logits: torch.Tensor) -> torch.Tensor:
    """The id with the largest logit of each row, the first one if several are equal: shape `(B,)`."""
    if logits.device.type == "cpu":
        # ten times as fast as torch's argmax for 50,000 ids, and about as fast for 400
        return torch.from_numpy(logits.detach().numpy().argmax(-1))
    return logits.argmax(-1)


def _agree(first: bytes | None, second: bytes | None) -> bool:
    if not first or not second:
        return first == second == b""
    return first.startswith(second) or second.startswith(first)
