"""Builds the `PolicyState` that a policy gets when a span begins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from hf_rlae.ensemble.cache_ensemble import EnsembleCache
from hf_rlae.ensemble.engines.protocol import Engine, EngineStep
from hf_rlae.ensemble.spans import SpanQuery
from hf_rlae.errors import PolicyError
from hf_rlae.members import prompt_logps
from hf_rlae.policies import MemberObservation, PolicyState, PromptScores


class StateReader:
    """Builds the `PolicyState` of a query; its attributes are computed on first access.

    Args:
        engine (`Engine`): the engine of the ensemble.
        tokenizer (`PreTrainedTokenizerBase`): decodes union ids.
    """

    def __init__(self, engine: Engine, tokenizer: Any) -> None:
        self.engine = engine
        self.tokenizer = tokenizer

    def state(self, cache: EnsembleCache, step: EngineStep, query: SpanQuery) -> PolicyState:
        """The state of the rows of a query.

        Args:
            cache (`EnsembleCache`): the cache of the call.
            step (`EngineStep`): runs the members if the policy observes them.
            query (`SpanQuery`): the span that begins, and its rows.
        """
        view = _QueryView(self.engine, self.tokenizer, cache, step, query)
        return PolicyState(
            len(self.engine.members),
            torch.full((len(view.rows),), query.span),
            cache.ids.device,
            view.text,
            view.observations,
            view.next_bytes,
            view.prompt_scores,
            cache.call.hidden_tokens,
            view.look_ahead,
        )


class _QueryView:
    """The rows of one query; its methods compute the attributes of `PolicyState`."""

    def __init__(
        self, engine: Engine, tokenizer: Any, cache: EnsembleCache, step: EngineStep, query: SpanQuery
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.cache = cache
        self.step = step
        self.query = query
        self.rows: Sequence[int] = range(cache.ids.shape[0]) if query.rows is None else query.rows.tolist()

    def text(self) -> list[str]:
        rows = [self.cache.text_ids(row, self.query.column + 1) for row in self.rows]
        return [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in rows]

    def observations(self) -> list[MemberObservation]:
        self._check_may_run()
        observations, rows = self.step.observe(self.query), self.query.rows
        if rows is None:
            return observations
        return [
            MemberObservation(
                entry.logits[rows.to(entry.logits.device)],
                None if entry.hidden is None else entry.hidden[rows.to(entry.hidden.device)],
            )
            for entry in observations
        ]

    def look_ahead(self, num_tokens: int) -> list[torch.Tensor]:
        if not self.cache.call.hidden_tokens:
            raise PolicyError(
                f"look_ahead({num_tokens}): the policy has `observes_members = False`, so members that have no weight "
                "do not run; a policy that lets them look ahead observes them, so leave that attribute out"
            )
        if self.cache.has_images and self.cache.images is None:
            raise PolicyError(
                f"look_ahead({num_tokens}): the prompt has images, which a plain `generate` gave to its own model, and "
                "the look-ahead would read it again without them; call the `generate` of `EnsembleForCausalLM`"
            )
        return self.step.look_ahead(self.query, num_tokens)

    def next_bytes(
        self, observations: Sequence[MemberObservation], best: torch.Tensor
    ) -> list[list[bytes | None]] | None:
        return self.cache.call.next_bytes(observations, best, self.rows)

    def _check_may_run(self) -> None:
        if self.cache.spans.is_whole_text:
            raise PolicyError(
                'select="prompt": the policy looks at the outputs of members, and picks them before any of them runs; '
                'give a policy that reads `state.text` alone, or leave select="prompt" out'
            )

    def prompt_scores(self) -> PromptScores:
        self._check_may_run()
        if self.cache.has_images:
            raise PolicyError(
                "the policy reads the members' log-probabilities of the prompt (`prompt_logps`), which would be scored "
                "without its images; use another policy, or leave the images out"
            )
        prompts = [self.cache.call.prompts(self.cache, row) for row in self.rows]
        known = self.cache.prompt_logps
        for index, member in enumerate(self.engine.members):
            new = list({row[index] for row in prompts if (index, row[index]) not in known})
            for prompt, logps in zip(new, prompt_logps(member, new), strict=True):
                known[index, prompt] = logps
        sums = [self._sums(row, [known[index, prompt] for index, prompt in enumerate(row)]) for row in prompts]
        return PromptScores(*torch.tensor(sums, device=self.cache.ids.device).unbind(-1))

    def _sums(
        self, prompts: Sequence[tuple[int, ...]], scores: Sequence[Sequence[float]]
    ) -> list[tuple[float, float, float]]:
        """For each member in one row: log-probability, number of bytes and number of tokens (see `PromptScores`)."""
        members = []
        for index, (prompt, logps) in enumerate(zip(prompts, scores, strict=True)):
            pieces = self.engine.vocabularies[index].pieces
            lengths = [len(pieces[i] or b"") if i < len(pieces) else 0 for i in prompt]
            members.append([(logp, n) for logp, n in zip([math.nan, *logps], lengths, strict=True) if n])
        if any(tokens and math.isnan(tokens[0][0]) for tokens in members):
            members = [tokens[1:] for tokens in members]
        sums = []
        for tokens in members:
            scored = [(logp, n) for logp, n in tokens if not math.isnan(logp)]
            sums.append((math.fsum(logp for logp, _ in scored), float(sum(n for _, n in scored)), float(len(scored))))
        return sums
