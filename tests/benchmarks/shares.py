"""Who writes the text: `python -m tests.benchmarks.shares`.

Two real tiny models with different tokenizers continue TinyStories openings. A member's share of a byte is its share
`w_k p_k(y) / sum_j w_j p_j(y)` of the probability of the token that has the byte. Weights are a share of the choices of
tokens; a member with long tokens writes a word with one choice, where one with single characters has to be chosen
for every letter. `weight_unit="byte"` makes weights a share of the text. Temperature changes who wins the choices.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

import torch

from hf_rlae import EnsembleForCausalLM, Member, StaticPolicy
from tests.benchmarks.command import finish
from tests.benchmarks.costs import table
from tests.conftest import SHARED

MODELS = ("stories260K", "babyllama-tok105")
CORPUS = Path("data/tinystories/tinystories_v1_part.txt")
WEIGHTS = ((0.5, 0.5), (0.8, 0.2))
PROMPT_WORDS = 4
DECODING = {
    "greedy": {"do_sample": False},
    "temperature 1": {"do_sample": True, "top_k": 0},
    "temperature 0.7": {"do_sample": True, "top_k": 0, "temperature": 0.7},
    "top_p 0.9": {"do_sample": True, "top_k": 0, "top_p": 0.9},
}
"""Ways of decoding; the last two are also measured with `warp="members"`."""


def written(
    ensemble: EnsembleForCausalLM, prompts: Sequence[str], tokens: int, **options: object
) -> tuple[float, float]:
    """Bytes per token, and the first member's share of the bytes.

    Args:
        ensemble (`EnsembleForCausalLM`): with different tokenizers.
        prompts (`Sequence[str]`): continued in one batch.
        tokens (`int`): the most tokens of a text.
        options: of `generate`.
    """
    inputs = ensemble.tokenizer(list(prompts), return_tensors="pt", padding=True)
    torch.manual_seed(0)
    out = ensemble.generate(**inputs, max_new_tokens=tokens, return_dict_in_generate=True, **options)
    ids = out.sequences[:, inputs["input_ids"].shape[1] :]
    has_ended = (ids == ensemble.union.stop_id).cumsum(1) > 0
    lengths = torch.tensor([len(piece or b"") for piece in ensemble.pieces])[ids].masked_fill(has_ended, 0)
    spans = torch.arange(ids.shape[1]) // ensemble.config.span_length
    proposed = out.span_weights[:, spans] * out.member_logps.exp().nan_to_num()
    share = proposed[..., 0] / proposed.sum(-1)
    return float(lengths.sum() / (lengths > 0).sum()), float((share.nan_to_num() * lengths).sum() / lengths.sum())


def rows_of(members: Sequence[Member], prompts: Sequence[str], tokens: int) -> list[list[str]]:
    """One row per unit of the weights, weights, way of decoding and value of `warp`."""
    rows = []
    for unit, weights, name in itertools.product(("token", "byte"), WEIGHTS, DECODING):
        for warp in ("mixture", "members") if unit == "token" and len(DECODING[name]) > 2 else ("mixture",):
            policy = StaticPolicy(list(weights))
            ensemble = EnsembleForCausalLM.from_members(members, policy, weight_unit=unit, warp=warp)
            length, share = written(ensemble, prompts, tokens, **DECODING[name])
            rows.append([unit, str(list(weights)), name, warp, f"{length:.2f}", f"{share:.2f}"])
    return rows


def main(given: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.shares", description=__doc__.split("\n")[0])
    parser.add_argument("--texts", type=int, default=32, help="texts per row (default: 32)")
    parser.add_argument("--tokens", type=int, default=120, help="tokens per text at most (default: 120)")
    parser.add_argument("--output", type=Path, help="write the table into this Markdown file, too")
    options = parser.parse_args(given)
    torch.set_num_threads(1)
    lines = [line.split() for line in (SHARED / CORPUS).read_text(encoding="utf-8").splitlines()]
    prompts = [" ".join(words[:PROMPT_WORDS]) for words in lines if len(words) > 2 * PROMPT_WORDS][: options.texts]
    members = [Member.load(str(SHARED / "models" / name), dtype=torch.float32) for name in MODELS]
    head = ["weight_unit", "weights", "decoding", "warp", "bytes per token", f"share of {MODELS[0]}"]
    finish([table(head, rows_of(members, prompts, options.tokens))], options.output)


if __name__ == "__main__":
    main()
