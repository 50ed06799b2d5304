"""The work of `hf-rlae generate`, after its arguments have been checked."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.text import Text
from transformers import set_seed
from transformers.generation.streamers import BaseStreamer

from hf_rlae.cli.decoding import encode_chats, generation_options
from hf_rlae.cli.loading import build_ensemble, member_names
from hf_rlae.cli.progress import progress_bar
from hf_rlae.cli.streaming import CarrierStreamer, ContinuationStreamer, warnings_after_the_text
from hf_rlae.ensemble import EnsembleCache, EnsembleForCausalLM
from hf_rlae.ensemble.continuation import ContinuationDecoder
from hf_rlae.reports import (
    TokenCounter,
    carrier_text,
    completion_mask,
    legend,
    member_table,
    short_names,
    span_table,
    trace_tokens,
    write_trace,
)
from hf_rlae.vocabulary import token_ids


def write_texts(args: argparse.Namespace) -> None:
    """Loads the members and writes the texts and the requested reports to stdout.

    Args:
        args (`argparse.Namespace`): the checked arguments of `hf-rlae generate`.

    Raises:
        HfRlaeError: members that cannot be loaded or combined, and options that cannot be used.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # for terminals without Unicode
    with warnings_after_the_text():
        ensemble = build_ensemble(args)
        inputs = {name: value.to(ensemble.device) for name, value in _encode(ensemble, args, args.prompts).items()}
        if args.negative_prompt is not None:
            negative = _encode(ensemble, args, [args.negative_prompt])
            inputs["negative_prompt_ids"] = negative["input_ids"].to(ensemble.device)
        if args.seed is not None:
            set_seed(args.seed)
        write = _stream if len(args.prompts) == 1 and args.num_beams in (None, 1) else _write_all
        out = write(ensemble, inputs, args)
    _report(ensemble, out, inputs["input_ids"].shape[1], args)


def _report(ensemble: EnsembleForCausalLM, out: Any, columns: int, args: argparse.Namespace) -> None:
    """Shows and writes the requested reports."""
    console = Console(file=sys.stdout, soft_wrap=False)
    names = short_names(member_names(args, ensemble))
    if args.show_weights or args.trace is not None:
        rows = trace_tokens(ensemble, out, columns)
    if args.show_weights:
        console.print(legend(names))
        for tokens in rows:
            console.print(span_table(names, tokens))
    if args.table:
        mask = completion_mask(out.sequences[:, columns:], token_ids(ensemble.generation_config.eos_token_id))
        console.print(member_table(names, out, mask))
    if args.trace is not None:
        write_trace(args.trace, member_names(args, ensemble), args.prompts, rows)


def _encode(ensemble: EnsembleForCausalLM, args: argparse.Namespace, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    if not args.chat:
        return dict(ensemble.tokenizer(list(prompts), return_tensors="pt", padding=True))
    return encode_chats(ensemble, [[{"role": "user", "content": prompt}] for prompt in prompts], "--chat")


def _generate(
    ensemble: EnsembleForCausalLM,
    inputs: dict[str, Any],
    args: argparse.Namespace,
    streamer: BaseStreamer | None,
    cache: EnsembleCache | None = None,
) -> Any:
    options = generation_options(args)
    if cache is not None:
        options["past_key_values"] = cache
    return ensemble.generate(**inputs, **options, return_dict_in_generate=True, streamer=streamer)


def _opening(prompt: str, args: argparse.Namespace) -> str:
    return f"{prompt}\n\n" if args.chat else prompt


def _stream(ensemble: EnsembleForCausalLM, inputs: dict[str, torch.Tensor], args: argparse.Namespace) -> Any:
    opening = _opening(args.prompts[0], args)
    cache, streamer = None, ContinuationStreamer(ensemble.tokenizer, partial(print, end="", flush=True), opening)
    if args.show_weights and sys.stdout.isatty():
        cache = ensemble.new_cache(record=True)
        streamer = CarrierStreamer(ensemble, cache, Console(file=sys.stdout), opening)
    try:
        return _generate(ensemble, inputs, args, streamer, cache)
    finally:
        if streamer.has_started:
            print(flush=True)


def _write_all(ensemble: EnsembleForCausalLM, inputs: dict[str, torch.Tensor], args: argparse.Namespace) -> Any:
    with progress_bar(unit="tokens") as progress:
        task = progress.add_task("writing", total=args.max_new_tokens)
        # transformers streams no beams
        is_counted = args.num_beams in (None, 1)
        counter = TokenCounter(lambda: progress.advance(task)) if is_counted else None
        out = _generate(ensemble, inputs, args, counter)
    columns = inputs["input_ids"].shape[1]
    if args.show_weights and sys.stdout.isatty():
        console = Console(file=sys.stdout)
        for prompt, tokens in zip(args.prompts, trace_tokens(ensemble, out, columns), strict=True):
            console.print(Text(_opening(prompt, args)) + carrier_text(tokens), end="\n\n", soft_wrap=True)
        return out
    for row, prompt in enumerate(args.prompts):
        own = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
        decoder = ContinuationDecoder(ensemble.tokenizer, own.tolist())
        text = "".join(decoder.push([token]) for token in out.sequences[row, columns:].tolist())
        if row > 0:
            print()
        print(f"{_opening(prompt, args)}{text}{decoder.finish()}", flush=True)
    return out
