"""What static caches and compiled steps save: `python -m tests.benchmarks.compiled`.

Two random Llama models decode greedily, once with one tokenizer and once with two: with dynamic caches, with static
ones, and compiled. The three take turns after a first call each. Graphs and breaks are those of torch.compile in the
first compiled call, and in all later ones together, where both should be 0.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from torch._dynamo.utils import counters

from hf_rlae import EnsembleForCausalLM
from tests.support.ensembles import TEXTS, encode
from tests.support.models import pair
from tests.support.tokenizers import byte_level_bpe, sentencepiece_bpe

TOKENIZERS = {
    "one tokenizer": (byte_level_bpe, byte_level_bpe),
    "two tokenizers": (byte_level_bpe, sentencepiece_bpe),
}


def counted() -> tuple[int, int]:
    """The numbers of graphs and of graph breaks since the last call."""
    found = int(counters["stats"]["unique_graphs"]), sum(counters["graph_break"].values())
    counters.clear()
    return found


def ensembles(kind: str, options: argparse.Namespace) -> dict[str, tuple[EnsembleForCausalLM, dict[str, Any]]]:
    """By way: an ensemble of the same two models, and the arguments of its `generate`."""
    sizes = {
        "hidden_size": options.hidden,
        "intermediate_size": 2 * options.hidden,
        "num_hidden_layers": options.layers,
    }
    sizes |= {"num_attention_heads": options.hidden // 64, "num_key_value_heads": max(1, options.hidden // 128)}
    sizes |= {"max_position_embeddings": 4096}
    if options.vocab_size:
        sizes["vocab_size"] = options.vocab_size
    members = [pair("llama", seed, make(), **sizes) for seed, make in enumerate(TOKENIZERS[kind])]
    for model, _ in members:
        model.to(options.device, getattr(torch, options.dtype))
    ways: dict[str, dict[str, Any]] = {"dynamic": {}, "static": {"cache_implementation": "static"}, "compiled": {}}
    ways["static"]["disable_compile"] = True  # else an accelerator compiles
    made = {way: EnsembleForCausalLM.from_members(members, end_token_ids=[[], []]) for way in ways}
    made["compiled"].compile(mode="reduce-overhead")
    return {way: (made[way], given) for way, given in ways.items()}


def measured(kind: str, batch: int, options: argparse.Namespace) -> list[Any]:
    """One row: milliseconds per token of each way, seconds of the first compiled call, graphs and breaks."""
    inputs = {name: given[:batch].to(options.device) for name, given in encode(*TEXTS * batch).items()}
    times: dict[str, list[float]] = {}
    texts: dict[str, torch.Tensor] = {}
    found, first = (0, 0), 0.0
    ways = ensembles(kind, options)
    for turn in range(options.turns + 1):
        for way, (ensemble, given) in ways.items():
            begun = time.perf_counter()
            texts[way] = ensemble.generate(**inputs, **given, do_sample=False, max_new_tokens=options.tokens).cpu()
            seconds = time.perf_counter() - begun
            if turn:
                times.setdefault(way, []).append(seconds / options.tokens * 1e3)
            elif way == "compiled":
                first, found = seconds, counted()
    same = all(torch.equal(text, texts["dynamic"]) for text in texts.values())
    medians = [f"{statistics.median(times[way]):.1f}" for way in ways]
    return [kind, batch, *medians, f"{first:.0f}", f"{found[0]}, {found[1]}", "{}, {}".format(*counted()), same]


def main(arguments: list[str] | None = None) -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab-size", type=int, help="width of the logits; that of the tokenizer by default")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args(arguments)
    columns = ["members", "batch", "dynamic, ms per token", "static", "compiled", "first compiled call, s"]
    columns += ["graphs, breaks", "later graphs, breaks", "same texts"]
    print(f"| {' | '.join(columns)} |\n|---|" + "---:|" * (len(columns) - 1))
    for kind in TOKENIZERS:
        for batch in options.batch:
            print(f"| {' | '.join(map(str, measured(kind, batch, options)))} |", flush=True)


if __name__ == "__main__":
    main()
