"""The trace of a text, token by token: bytes, span, weights, and what each member thought of it."""

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


@dataclass(frozen=True)
class TracedToken:
    """One token of a completion.

    Attributes:
        id (`int`): in the union vocabulary.
        raw (`bytes`): the token's bytes; none for the end of a text.
        span (`int`): which span it belongs to.
        weights (`tuple[float, ...]`): of the members in that span.
        logps (`tuple[float, ...]`): what each member alone gave to it, in nats; NaN where the member was not run,
            minus infinity where it could not propose the token.
    """

    id: int
    raw: bytes
    span: int
    weights: tuple[float, ...]
    logps: tuple[float, ...]

    @property
    def carrier(self) -> int:
        """The member that gave the largest share of the token's probability under linear mixing, `w_m p_m`.

        Where no member gave it any (a processor forced it), the member with the largest weight.

        Example:

        >>> TracedToken(7, b"a", 0, (0.6, 0.4), (-3.0, -0.1)).carrier
        1
        """
        shares = [0.0 if math.isnan(p) else w * math.exp(p) for w, p in zip(self.weights, self.logps, strict=True)]
        best = shares if any(shares) else list(self.weights)
        return best.index(max(best))

    @property
    def text(self) -> str:
        """The bytes as text, with replacement characters where they are no whole characters."""
        return self.raw.decode("utf-8", "replace")


def trace_tokens(
    ensemble: EnsembleForCausalLM, out: EnsembleGenerateOutput | EnsembleGenerateBeamOutput, prompt_columns: int
) -> list[list[TracedToken]]:
    """The tokens of every completion, up to and with the token that ends it.

    Args:
        ensemble (`EnsembleForCausalLM`): that wrote the texts.
        out: from its `generate(..., return_dict_in_generate=True)`.
        prompt_columns (`int`): columns of `input_ids`.

    Returns:
        `list[list[TracedToken]]`: one list a row.

    Raises:
        InputError: `out` has no trace.
    """
    if getattr(out, "member_logps", None) is None or out.span_weights is None or out.span_starts is None:
        raise InputError(
            f"out: {type(out).__name__} holds no trace; call the ensemble's own `generate` with "
            "return_dict_in_generate=True"
        )
    completions = out.sequences[:, prompt_columns:].cpu()
    ends = ensemble.generation_config.eos_token_id
    mask = completion_mask(completions, [ends] if isinstance(ends, int) else ends or [])
    steps = torch.arange(completions.shape[1])
    spans = (torch.searchsorted(out.span_starts.cpu(), steps, right=True) - 1).clamp(min=0).tolist()
    weights, logps = out.span_weights.tolist(), out.member_logps.tolist()  # type: ignore[union-attr]
    rows = []
    for row, ids in enumerate(completions.tolist()):
        kept = int(mask[row].sum())
        rows.append(
            [
                TracedToken(
                    ids[step],
                    ensemble.pieces[ids[step]] or b"",
                    spans[step],
                    tuple(weights[row][spans[step]]),
                    tuple(logps[row][step]),
                )
                for step in range(kept)
            ]
        )
    return rows


def live_token(ensemble: EnsembleForCausalLM, cache: EnsembleCache, token: int) -> TracedToken:
    """The token that was just chosen for the one row of a running `generate`, from inside a streamer.

    Args:
        ensemble (`EnsembleForCausalLM`): that writes.
        cache (`EnsembleCache`): from `ensemble.new_cache(record=True)`, passed to `generate` as `past_key_values`.
        token (`int`): a union id, not yet read by the members.

    Raises:
        InputError: the cache has nothing on record: it was made without `record=True`, or nothing was written yet.
    """
    if not cache.has_spans or cache.trace.pending is None:
        raise InputError(
            "cache holds no scores of the newest token; make it with ensemble.new_cache(record=True) and give it to "
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
    """Writes traces as one JSON file, whole or not at all.

    The file is an object with `members` (their names) and `texts`; each text has its `prompt` and its `tokens`, and
    each token `id`, `bytes` (hexadecimal), `text`, `span`, `weights`, `carrier` (the index of a member), `logps` in
    nats and `run`. `logps` is null where a member could not propose the token or was not run; `run` tells which.

    Args:
        path (`str` or `Path`): replaced if it is there.
        names (`Sequence[str]`): of the members.
        prompts (`Sequence[str]`): one a row.
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
