"""What training needs in memory as it grows: `python -m tests.benchmarks.training_scale`.

The first table measures small shapes: each option that bounds memory, beside the same work at once. The second one
predicts bytes for large members by formulas: parameters, keys and values, hidden states, and the activations of a text
policy, counted over shapes without any data. The formulas are tested against what small shapes take.
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM, DebertaV2Config, DebertaV2Model, LlamaConfig

from hf_rlae import EnsembleForCausalLM, Member, PolicyConfig, PolicyModel
from hf_rlae.objectives import objectives
from hf_rlae.trainers.rlae.rollout_buffer import RolloutBuffer
from hf_rlae.trainers.rlae.rollouts import Rollouts, Sampling, write_in_batches
from hf_rlae.trainers.rlae.row_records import RowRecords
from tests.benchmarks.command import finish
from tests.benchmarks.costs import table
from tests.benchmarks.training_memory import peak_bytes, stored_bytes
from tests.support.models import pair, tiny
from tests.support.policies import deberta, random_state
from tests.support.tokenizers import byte_level_bpe

PROCESSES, MEMBERS, COMPLETIONS, PROMPT_TOKENS, TOKENS = 8, 3, 256, 476, 1024
"""The large run: a rollout of 256 completions over 8 processes, each of up to 1,500 tokens with its prompt."""
AT_ONCE, ENCODED_AT_ONCE = 8, 8
"""Its `rollout_batch_size` and `encoder_batch_size`."""
UPDATE, TEXT_ROWS, TEXT_SPANS, TEXT_TOKENS = 64, 4, 32, 512
"""Completions of an update; and of a micro-batch of a text policy, with its spans and the tokens that it reads."""

LLAMA_8B = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    dtype="bfloat16",
)
"""The shape of Llama-3.1-8B."""
DEBERTA_LARGE = DebertaV2Config(
    vocab_size=128100,
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    relative_attention=True,
    position_buckets=256,
    pos_att_type=["p2c", "c2p"],
    share_att_key=True,
    norm_rel_ebd="layer_norm",
    position_biased_input=False,
    type_vocab_size=0,
)
"""The shape of DeBERTa-V3-large."""


# -- formulas ---------------------------------------------------------------------------------------------


def parameter_bytes(config: Any) -> int:
    """Bytes of a causal model's parameters in the dtype of its config."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters()) * config.dtype.itemsize


def cache_bytes(config: Any, rows: int, tokens: int) -> int:
    """Bytes of a member's keys and values: `2 * layers * key-value heads * head size * bytes`, per token and row."""
    size = config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * config.num_key_value_heads * size * config.dtype.itemsize * rows * tokens


def observation_bytes(rows: int, spans: int, hidden_sizes: Sequence[int], itemsize: int, pools: bool = True) -> int:
    """Bytes of the hidden states that rollouts keep: per span and member the newest state, and the mean of several."""
    return rows * spans * sum(hidden_sizes) * (2 if pools else 1) * itemsize


def activation_bytes(config: DebertaV2Config, texts: int, tokens: int) -> int:
    """Bytes that an encoder keeps for its backward pass, besides its parameters; counted without data."""
    kept: dict[int, tuple[Any, int]] = {}
    with FakeTensorMode():
        encoder = DebertaV2Model(config).eval()
        own = {parameter.untyped_storage()._cdata for parameter in encoder.parameters()}
        ids = torch.zeros(texts, tokens, dtype=torch.long)

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                kept[storage._cdata] = (storage, storage.nbytes())  # held, so that no other has its number
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            encoder(input_ids=ids, attention_mask=torch.ones_like(ids))
    return sum(size for _, size in kept.values())


# -- small shapes -----------------------------------------------------------------------------------------


def small_ensemble(span_length: int = 1) -> EnsembleForCausalLM:
    """Two members with one tokenizer and a policy that observes them."""
    tokenizer = byte_level_bpe()
    options = {"max_position_embeddings": 256}
    members = [Member(tiny("llama", len(tokenizer), seed, **options), tokenizer, name=f"{seed}") for seed in (0, 1)]
    torch.manual_seed(0)
    policy = PolicyModel(PolicyConfig.for_members(members, span_length=span_length)).eval()
    return EnsembleForCausalLM.from_members(members, policy, span_length=span_length)


def written(
    ensemble: EnsembleForCausalLM, rows: int, tokens: int, batch_size: int | None = None, dtype: Any = None
) -> Rollouts:
    """A rollout of completions that do not end."""
    ensemble.generation_config.min_new_tokens = tokens
    sampling = Sampling(tokens, tuple(range(rows)), observation_dtype=dtype)

    def encode(prompts: list[Any]) -> dict[str, torch.Tensor]:
        encoded = ensemble.tokenizer(prompts, return_tensors="pt", padding=True)
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    return write_in_batches(ensemble, ensemble.policy, encode, ["once upon"] * rows, sampling, batch_size)


def generating(rows: int = 32, tokens: int = 96) -> dict[int, int]:
    """Peaks of a rollout by how many completions are generated at a time."""
    ensemble = small_ensemble(span_length=tokens)
    return {size: peak_bytes(lambda s=size: written(ensemble, rows, tokens, s)) for size in (rows, rows // 8)}


def counting(rollouts: Rollouts) -> tuple[int, int]:
    """Peaks of counting the spans of an update: with a copy of its rows, as before, and of their masks alone."""
    buffer = RolloutBuffer(0, 2, 1, 1, rollouts=rollouts)
    rows = list(range(len(rollouts) // 2))
    names = objectives["ppo"].batch_axes
    return peak_bytes(lambda: rollouts.select(rows)), peak_bytes(lambda: buffer.update(names))


def encoding(texts: int = 32) -> dict[int, int]:
    """Peaks of an update of a text policy by how many texts its encoder reads at a time."""
    policy = PolicyModel.from_encoder(deberta(), [pair()] * 2, hidden_size=8)
    policy.train()
    seen = policy.observe(random_state(texts))
    return {size: peak_bytes(lambda s=size: _learn(policy, seen, s)) for size in (texts, 4, 1)}


def _learn(policy: PolicyModel, seen: dict[str, torch.Tensor], batch_size: int) -> None:
    policy.encoder_batch_size = batch_size
    policy(seen).weights[:, 0].log().sum().backward()
    policy.zero_grad()


def small_table() -> str:
    """What each option saves on small shapes, in kilobytes."""
    generated, encoded = generating(), encoding()
    ensemble = small_ensemble()
    whole = written(ensemble, 32, 32)
    part = whole.select(range(len(whole) // 4))
    halved = written(ensemble, 32, 32, dtype=torch.bfloat16)
    rows, texts = max(generated), max(encoded)
    copied, counted = counting(whole)
    exchanged = [len(pickle.dumps(value)) for value in (whole.state(), RowRecords.of(whole))]
    lines = [
        (f"peak of a rollout of {rows}, {min(generated)} at a time", generated[rows], generated[min(generated)]),
        ("a process of 4 keeps, and saves with a checkpoint", _size(whole), _size(part)),
        ("exchanged by processes per rollout", *exchanged),
        ("copied to count the spans of an update", copied, counted),
        (f"peak of an update, {texts} texts, 4 at a time", encoded[texts], encoded[4]),
        (f"peak of an update, {texts} texts, 1 at a time", encoded[texts], encoded[1]),
        ("a rollout in float32, in bfloat16", _size(whole), _size(halved)),
    ]
    head = ["small shapes, measured, kB", "at once, or as before", "in parts"]
    return table(head, [[name, *(f"{value / 1000:.0f}" for value in values)] for name, *values in lines])


def _size(rollouts: Rollouts) -> int:
    return sum(stored_bytes(rollouts).values())


# -- large shapes -----------------------------------------------------------------------------------------


def large_table() -> str:
    """Predicted gigabytes per process of a large run."""
    own, total = COMPLETIONS // PROCESSES, PROMPT_TOKENS + TOKENS
    sizes = [LLAMA_8B.hidden_size] * MEMBERS

    def caches(rows: int) -> int:
        return MEMBERS * cache_bytes(LLAMA_8B, rows, total)

    def kept(rows: int, span_length: int) -> int:
        return observation_bytes(rows, TOKENS // span_length, sizes, LLAMA_8B.dtype.itemsize)

    texts = TEXT_ROWS * TEXT_SPANS
    records = COMPLETIONS * (8 + 1 + 8 + 8 * MEMBERS + 8 * MEMBERS + 8 + 4 + 4)
    weights = MEMBERS * parameter_bytes(LLAMA_8B)
    lines = [
        ("weights of the members", weights, weights),
        (f"keys and values, {own} completions; {AT_ONCE} at a time", caches(own), caches(AT_ONCE)),
        (f"the same in one process of {COMPLETIONS} completions", caches(COMPLETIONS), caches(AT_ONCE)),
        ("observations of a rollout, span length 8", kept(COMPLETIONS, 8), kept(own, 8)),
        ("observations of a rollout, span length 1", kept(COMPLETIONS, 1), kept(own, 1)),
        ("rollouts in a checkpoint, span length 1", PROCESSES * kept(COMPLETIONS, 1), kept(COMPLETIONS, 1)),
        ("received per rollout, span length 1", kept(COMPLETIONS, 1), records),
        (f"copied to count an update of {UPDATE}, span length 1", kept(UPDATE, 1), 0),
        (
            f"activations of DeBERTa-V3-large, {texts} texts; {ENCODED_AT_ONCE} at a time",
            activation_bytes(DEBERTA_LARGE, texts, TEXT_TOKENS),
            activation_bytes(DEBERTA_LARGE, ENCODED_AT_ONCE, TEXT_TOKENS),
        ),
    ]
    head = [f"{MEMBERS} members of 8B on {PROCESSES} GPUs, predicted, GB per process", "at once, or as before", "now"]
    return table(head, [[name, *(_gigabytes(value) for value in values)] for name, *values in lines])


def _gigabytes(value: int) -> str:
    return "0" if value == 0 else f"{value / 1e9:.1f}" if value > 5e7 else f"{value / 1e9:.5f}"


def main(given: Sequence[str] | None = None) -> None:
    """Measures, predicts and prints."""
    description = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.training_scale", description=description)
    parser.add_argument("--output", type=Path, help="write the tables into this Markdown file, too")
    options = parser.parse_args(given)
    torch.set_num_threads(1)
    finish([f"CPU; torch {torch.__version__}", small_table(), large_table()], options.output)


if __name__ == "__main__":
    main()
