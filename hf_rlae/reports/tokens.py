"""The trace of a completion: bytes, span, weights and each member's log-probability of every token."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_rlae.ensemble import EnsembleCache, EnsembleForCausalLM
from hf_rlae.ensemble.outputs import EnsembleGenerateBeamOutput, EnsembleGenerateOutput
from hf_rlae.errors import InputError
from hf_rlae.files import write_whole
from hf_rlae.reports.member_table import completion_mask
from hf_rlae.vocabulary import token_ids


@dataclass(frozen=True)
class TracedToken:
    """One token of a completion.

    Attributes:
        id (`int`): in the union vocabulary.
        raw (`bytes`): the token's bytes; empty for an end-of-text token.
        span (`int`): the index of its span.
        weights (`tuple[float, ...]`): of the members in that span.
        logps (`tuple[float, ...]`): each member's log-probability, in nats; NaN if the member did not run, minus
            infinity if it could not propose the token.
    """

    id: int
    raw: bytes
    span: int
    weights: tuple[float, ...]
    logps: tuple[float, ...]

    @property
    def carrier(self) -> int:
        """The member with the largest share `w_m p_m` of the token's probability under linear mixing.

        If no member gave it any probability (a processor forced it), the member with the largest weight.

        Example:

        >>> TracedToken(7, b"a", 0, (0.6, 0.4), (-3.0, -0.1)).carrier
        1
        """
        shares = [0.0 if math.isnan(p) else w * math.exp(p) for w, p in zip(self.weights, self.logps, strict=True)]
        best = shares if any(shares) else list(self.weights)
        return best.index(max(best))

    @property
    def text(self) -> str:
        """The bytes as text, with replacement characters for incomplete characters."""
        return self.raw.decode("utf-8", "replace")


def trace_tokens(
    ensemble: EnsembleForCausalLM, out: EnsembleGenerateOutput | EnsembleGenerateBeamOutput, prompt_columns: int
) -> list[list[TracedToken]]:
    """The tokens of every completion, up to and including the token that ends it.

    Args:
        ensemble (`EnsembleForCausalLM`): the one that generated the completions.
        out: the output of its `generate(..., return_dict_in_generate=True)`.
        prompt_columns (`int`): number of columns of `input_ids`.

    Returns:
        `list[list[TracedToken]]`: one list per row.

    Raises:
        InputError: `out` has no trace.
    """
    if getattr(out, "member_logps", None) is None or out.span_weights is None or out.span_starts is None:
        raise InputError(
            f"out: {type(out).__name__} has no trace; call the ensemble's own `generate` with "
            "return_dict_in_generate=True"
        )
    completions = out.sequences[:, prompt_columns:].cpu()
    lengths = completion_mask(completions, token_ids(ensemble.generation_config.eos_token_id)).sum(1).tolist()
    steps = torch.arange(completions.shape[1])
    spans = (torch.searchsorted(out.span_starts.cpu(), steps, right=True) - 1).clamp(min=0).tolist()
    weights, logps = out.span_weights.tolist(), out.member_logps.tolist()  # type: ignore[union-attr]
    return [
        [
            TracedToken(token, ensemble.pieces[token] or b"", span, tuple(weights[row][span]), tuple(logps[row][step]))
            for step, (token, span) in enumerate(zip(ids[: lengths[row]], spans, strict=False))
        ]
        for row, ids in enumerate(completions.tolist())
    ]


def live_token(ensemble: EnsembleForCausalLM, cache: EnsembleCache, token: int) -> TracedToken:
    """The newest token of a running `generate` with one row, for streamers.

    Args:
        ensemble (`EnsembleForCausalLM`): the one that generates.
        cache (`EnsembleCache`): from `ensemble.new_cache(record=True)`, passed to `generate` as `past_key_values`.
        token (`int`): its union id; the members have not read it yet.

    Raises:
        InputError: the cache has no recorded scores: it was made without `record=True`, or no token was generated yet.
    """
    if not cache.has_spans or cache.trace.pending is None:
        raise InputError(
            "cache has no scores of the newest token; make it with ensemble.new_cache(record=True) and pass it to "
            "`generate` as past_key_values"
        )
    column = cache.seen - 1
    logps = cache.trace.pending.of(torch.tensor([[token]], device=ensemble.device))[0, -1]
    return TracedToken(
        token,
        ensemble.pieces[token] or b"",
        int(cache.spans.span_of(column)[0]),
        tuple(cache.spans.weights(column, column + 1)[0, 0].tolist()),
        tuple(logps.tolist()),
    )


def write_trace(path: str | Path, names: Sequence[str], prompts: Sequence[str], rows: list[list[TracedToken]]) -> Path:
    """Writes traces to one JSON file atomically.

    The file is an object with `members` (their names) and `texts`; each text has its `prompt` and its `tokens`, and
    each token `id`, `bytes` (hexadecimal), `text`, `span`, `weights`, `carrier` (the index of a member), `logps` in
    nats and `run`. `logps` is null if a member could not propose the token or did not run; `run` tells them apart.

    Args:
        path (`str` or `Path`): replaced if it exists.
        names (`Sequence[str]`): of the members.
        prompts (`Sequence[str]`): one per row.
        rows: from `trace_tokens`.
    """
    texts = [
        {"prompt": prompt, "tokens": [_as_json(token) for token in tokens]}
        for prompt, tokens in zip(prompts, rows, strict=True)
    ]
    content = {"members": list(names), "texts": texts}
    return write_whole(path, json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def _as_json(token: TracedToken) -> dict[str, Any]:
    return {
        "id": token.id,
        "bytes": token.raw.hex(),
        "text": token.text,
        "span": token.span,
        "weights": list(token.weights),
        "carrier": token.carrier,
        "logps": [logp if math.isfinite(logp) else None for logp in token.logps],
        "run": [not math.isnan(logp) for logp in token.logps],
    }
