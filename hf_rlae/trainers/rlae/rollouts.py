"""Rollouts: completions of an ensemble with the data of an update of its policy, none of it of vocabulary size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers import LogitsProcessorList, StopStringCriteria
from transformers.generation.streamers import BaseStreamer

from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.ensemble.member_scores import score_members
from hf_rlae.ensemble.member_tokens import count_member_tokens
from hf_rlae.errors import present
from hf_rlae.objectives import mixture_logps, spans_of_tokens
from hf_rlae.policies import rescaled
from hf_rlae.trainers.ratio_bias import distorting
from hf_rlae.trainers.rlae.batch_shrinking import Completions, generate_shrinking
from hf_rlae.trainers.rlae.generation_options import logits_processors
from hf_rlae.trainers.rlae.row_noise import DrawNumbers, RowSampler, row_uniforms, seed_of
from hf_rlae.trainers.rlae.span_recorder import SpanRecorder
from hf_rlae.trainers.stop_strings import NEVER

_PADDING = {"span_index": -1, "member_logps": torch.nan, "old_mixture_logps": torch.nan}


@dataclass
class Rollouts:
    """N completions with the policy's observations, outputs and results. Axes: N rows, T tokens, S spans, M members.

    Attributes:
        prompts (`list[str]` or `list[list[dict]]`), completions (the same form): one per row.
        completion_ids (`torch.LongTensor` of shape `(N, T)`): union ids, padded on the right.
        completion_mask (`torch.BoolTensor` of shape `(N, T)`): the tokens up to and including the one that ends a
            completion.
        span_index (`torch.LongTensor` of shape `(N, T)`): the span of each token; -1 past the end.
        span_mask (`torch.BoolTensor` of shape `(N, S)`): which spans exist.
        observation (`dict[str, torch.Tensor]`, each of shape `(N, S, ...)`): the inputs of the policy; empty if they
            are not kept.
        weights (`torch.FloatTensor` of shape `(N, S, M)`): the outputs of the policy, before the ensemble cuts
            small weights.
        actions (`torch.FloatTensor` of shape `(N, S, M)`, *optional*): the sampled actions.
        old_log_probs (`torch.FloatTensor` of shape `(N, S)` or `(N, S, M)`, *optional*): of the actions, in nats.
        old_values (`torch.FloatTensor` of shape `(N, S)`): the critic's estimates, in its unit (see [`ValueScale`]).
        is_ended (`torch.BoolTensor` of shape `(N,)`): whether a completion ended by itself, not at
            `max_completion_length`.
        member_logps (`torch.FloatTensor` of shape `(N, T, M)`, *optional*): each member's log-probability of each
            token, in nats; NaN where it had no weight, minus infinity where it could not propose the token.
        old_mixture_logps (`torch.FloatTensor` of shape `(N, T)`, *optional*): the mixture's log-probability of each
            token, in nats.
        member_tokens (`torch.LongTensor` of shape `(N, S, M)`, *optional*): see `count_member_tokens`.
        advantages (`torch.FloatTensor` of shape `(N,)` or `(N, S)`, *optional*): added once rewards are known.
        returns (`torch.FloatTensor` of shape `(N, S)`, *optional*): the targets of the critic, in its unit; added with
            them.
    """

    prompts: list[Any]
    completions: list[Any]
    completion_ids: torch.Tensor
    completion_mask: torch.Tensor
    span_index: torch.Tensor
    span_mask: torch.Tensor
    observation: dict[str, torch.Tensor]
    weights: torch.Tensor
    old_values: torch.Tensor
    is_ended: torch.Tensor
    actions: torch.Tensor | None = None
    old_log_probs: torch.Tensor | None = None
    member_logps: torch.Tensor | None = None
    old_mixture_logps: torch.Tensor | None = None
    member_tokens: torch.Tensor | None = None
    advantages: torch.Tensor | None = None
    returns: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors by name, without the observation."""
        return {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor], **others: Any) -> Rollouts:
        """A copy with every tensor changed."""
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in self.tensors().items()}
        observation = {name: change(tensor) for name, tensor in self.observation.items()}
        return replace(self, observation=observation, **changed, **others)

    def select(self, rows: Sequence[int]) -> Rollouts:
        """Some of the rows, in the given order."""
        prompts, completions = [self.prompts[row] for row in rows], [self.completions[row] for row in rows]
        return self._map(lambda tensor: tensor[list(rows)], prompts=prompts, completions=completions)

    def to(self, device: torch.device | str) -> Rollouts:
        """A copy on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def state(self) -> dict[str, Any]:
        """The fields that are not `None`, as plain containers to be saved; `Rollouts(**state)` restores them."""
        return {name: value for name, value in vars(self).items() if value is not None}


def concatenate(parts: Sequence[Rollouts]) -> Rollouts:
    """All rows of several rollouts; shorter ones are padded.

    Args:
        parts (`Sequence[Rollouts]`): with the same optional fields.
    """
    if len(parts) == 1:
        return parts[0]
    joined: dict[str, Any] = {
        name: _joined([part.tensors()[name] for part in parts], _PADDING.get(name, 0)) for name in parts[0].tensors()
    }
    joined["observation"] = {
        name: _joined([part.observation[name] for part in parts], 0) for name in parts[0].observation
    }
    joined["prompts"] = [prompt for part in parts for prompt in part.prompts]
    joined["completions"] = [completion for part in parts for completion in part.completions]
    return Rollouts(**joined)


def _joined(tensors: Sequence[torch.Tensor], value: float) -> torch.Tensor:
    largest = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    padded = []
    for tensor in tensors:
        missing = [full - size for full, size in zip(largest, tensor.shape[1:], strict=True)]
        padded.append(nn.functional.pad(tensor, [n for gap in reversed(missing) for n in (0, gap)], value=value))
    return torch.cat(padded)


@dataclass(frozen=True)
class Sampling:
    """How completions are generated.

    Attributes:
        max_completion_length (`int`): maximum number of tokens.
        seeds (`tuple[int, ...]` or `None`): one per row, for tokens and actions; `None` is greedy decoding.
        explores (`bool`): whether actions are sampled.
        keeps_logps (`bool`): whether to keep the members' log-probabilities.
        keeps_observations (`bool`): whether to keep the inputs of the policy, by far the largest part of rollouts.
        observation_dtype (`torch.dtype`, *optional*): in which hidden states are kept; see [`SpanRecorder`].
        shared_seed (`int`, *optional*): of draws of members that all rows share (`draw_scope="batch"`); `None` = from
            the seeds of the rows.
        options (`Mapping`): how `generate` changes the probabilities; see `generation_options.SUPPORTED`.
        stop (`StopStringCriteria`, *optional*): ends completions at stop strings.
    """

    max_completion_length: int
    seeds: tuple[int, ...] | None
    explores: bool = False
    keeps_logps: bool = True
    keeps_observations: bool = True
    observation_dtype: torch.dtype | None = None
    shared_seed: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    stop: StopStringCriteria | None = None


def write_rollouts(
    ensemble: EnsembleForCausalLM,
    policy: Any,
    inputs: dict[str, torch.Tensor],
    prompts: Sequence[Any],
    sampling: Sampling,
    streamer: BaseStreamer | None = None,
) -> Rollouts:
    """Continues prompts with an ensemble and records what the policy does.

    The policy is called at the first token of every span, with the sequence so far. A prompt that several rows share is
    read once, and completions that have ended leave the batch (see `generate_shrinking`). If the ensemble draws
    members, their log-probabilities come from one more pass over the finished completions. With different tokenizers
    that pass would cost as much as generation with all members, so tokens are sampled from the mixture itself there.

    Args:
        ensemble (`EnsembleForCausalLM`): generates; its own policy is not called.
        policy (`PolicyModel`): is called instead.
        inputs: `input_ids` and `attention_mask` of shape `(N, L)`, and for chats `member_input_ids` and
            `member_attention_mask`.
        prompts: one per row, strings or messages, as in the dataset.
        sampling (`Sampling`): how to generate.
        streamer (*optional*): receives every step.
    """
    seeds = sampling.seeds
    seeds_of = None
    if sampling.explores and seeds is not None:
        seeds_of = lambda span, rows: [seed_of(seeds[row], 1, span) for row in rows]  # noqa: E731
    recorder = SpanRecorder(policy, len(prompts), seeds_of, sampling.keeps_observations, sampling.observation_dtype)
    columns, mask = inputs["input_ids"].shape[1], inputs["attention_mask"]
    draws = seeds is not None and _draws(ensemble, sampling)
    numbers = _draw_numbers(ensemble, sampling) if draws else None
    records = sampling.keeps_logps and not draws
    with torch.no_grad():
        completions = generate_shrinking(
            ensemble,
            ensemble.new_cache(record=records, policy=recorder, may_draw=draws, draw_numbers=numbers),
            inputs,
            sampling.max_completion_length,
            recorder,
            lambda rows: {
                "logits_processor": _processors(ensemble, sampling, rows, mask),
                "do_sample": False,  # a processor samples
                "streamer": streamer,
            },
            sampling.stop,
        )
        if not sampling.keeps_logps:
            completions.member_logps = None
        elif draws:
            ids = completions.completion_ids
            kept = torch.cat([mask, torch.ones_like(ids)], dim=1)
            sequences = torch.cat([inputs["input_ids"], ids], dim=1)
            completions.member_logps = score_members(
                ensemble, sequences, kept, columns, inputs, completions.span_weights
            )
    return _rollouts(ensemble, recorder, completions, prompts)


def write_in_batches(
    ensemble: EnsembleForCausalLM,
    policy: Any,
    encode: Callable[[list[Any]], dict[str, torch.Tensor]],
    prompts: Sequence[Any],
    sampling: Sampling,
    batch_size: int | None = None,
    streamer: BaseStreamer | None = None,
) -> Rollouts:
    """`write_rollouts` for some of the prompts at a time, so that caches of the members are never for more rows.

    All random numbers belong to rows, so that the completions do not depend on the size, up to rounding. The result is
    on the CPU.

    Args:
        encode (callable): returns the `inputs` of prompts.
        batch_size (`int`, *optional*): the largest number of rows at a time; `None` = all.
        ensemble, policy, prompts, sampling, streamer: see `write_rollouts`.
    """
    seeds, size = sampling.seeds, batch_size or len(prompts)
    if seeds is not None and sampling.shared_seed is None:
        sampling = replace(sampling, shared_seed=seed_of(*seeds))
    parts = []
    for start in range(0, len(prompts), size):
        part = slice(start, start + size)
        own = sampling if seeds is None else replace(sampling, seeds=seeds[part])
        given = list(prompts[part])
        parts.append(write_rollouts(ensemble, policy, encode(given), given, own, streamer).to("cpu"))
    return concatenate(parts)


def _draws(ensemble: EnsembleForCausalLM, sampling: Sampling) -> bool:
    """Whether each token comes from one drawn member, the only one that runs."""
    is_plain = not distorting(sampling.options)
    is_mixture = is_plain and ensemble.config.draw == "token"  # the draws have the mixture's distribution
    reads_twice = sampling.keeps_logps and not ensemble.engine.scores_texts_at_once
    return ensemble.config.draw is not None and not (is_mixture and reads_twice)


def _draw_numbers(ensemble: EnsembleForCausalLM, sampling: Sampling) -> DrawNumbers:
    seeds = present(sampling.seeds, "the seeds of the rows")
    if ensemble.config.draw_scope == "batch":
        seeds = (seed_of(*seeds) if sampling.shared_seed is None else sampling.shared_seed,)
    return DrawNumbers(seeds, sampling.max_completion_length)


def _processors(
    ensemble: EnsembleForCausalLM, sampling: Sampling, rows: torch.Tensor, prompt_mask: torch.Tensor
) -> LogitsProcessorList:
    """The processors of some of the rows; the last one samples."""
    seeds, length = sampling.seeds, sampling.max_completion_length
    own_mask = prompt_mask[rows.to(prompt_mask.device)]
    processors = logits_processors(ensemble, sampling.options, own_mask, length, samples=seeds is not None)
    if seeds is not None:
        uniforms = row_uniforms([seed_of(seeds[row], 0) for row in rows.tolist()], length)
        processors.append(RowSampler(uniforms, prompt_mask.shape[1]))
    return processors


def _rollouts(
    ensemble: EnsembleForCausalLM, recorder: SpanRecorder, written: Completions, prompts: Sequence[Any]
) -> Rollouts:
    ids, mask, member_logps = written.completion_ids, written.mask, written.member_logps
    span_index, span_mask = spans_of_tokens(mask, ensemble.config.tokens_per_weights)
    spans = span_mask.shape[1]
    outputs = {
        name: recorder.outputs_of(name, spans, ids.device)
        for name in ("weights", "state_values", "actions", "log_probs")
    }
    weights, values = (present(outputs[name], name) for name in ("weights", "state_values"))
    mixed_by = rescaled(weights, ensemble.engine.weight_scale)
    if member_logps is not None:
        member_logps = _with_weight(member_logps, written.span_weights, span_index)
    return Rollouts(
        prompts=list(prompts),
        completions=_completions(ensemble, ids, mask, prompts),
        completion_ids=ids,
        completion_mask=mask,
        span_index=span_index,
        span_mask=span_mask,
        observation=recorder.observations(spans),
        weights=weights,
        old_values=values,
        is_ended=written.lengths != NEVER,
        member_tokens=count_member_tokens(
            written.span_weights,
            span_index,
            written.drawn_members,
            recorder.observes_members,
            recorder.policy.lookahead_tokens,
        )[:, :spans],
        actions=outputs["actions"],
        old_log_probs=outputs["log_probs"],
        member_logps=member_logps,
        old_mixture_logps=None if member_logps is None else mixture_logps(mixed_by, member_logps, span_index),
    )


def _with_weight(member_logps: torch.Tensor, span_weights: torch.Tensor, span_index: torch.Tensor) -> torch.Tensor:
    """NaN past the end, and where a member that ran for other rows had no weight."""
    rows = torch.arange(len(span_index), device=span_index.device)[:, None]
    held = span_weights.to(span_index.device)[rows, span_index.clamp(min=0)]
    return member_logps.masked_fill((span_index < 0)[..., None] | (held == 0), torch.nan)


def _completions(
    ensemble: EnsembleForCausalLM, completion_ids: torch.Tensor, mask: torch.Tensor, prompts: Sequence[Any]
) -> list[Any]:
    lengths = mask.sum(1).tolist()
    ids = [row[:length] for row, length in zip(completion_ids.tolist(), lengths, strict=True)]
    texts = ensemble.tokenizer.batch_decode(ids, skip_special_tokens=True)
    if isinstance(prompts[0], str):
        return list(texts)
    return [[{"role": "assistant", "content": text}] for text in texts]
