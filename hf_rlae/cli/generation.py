"""The work of `hf-rlae generate`, after its arguments have been checked."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from logging.handlers import MemoryHandler
from typing import Any

import torch
from rich.console import Console
from rich.text import Text
from transformers import set_seed
from transformers.generation.streamers import BaseStreamer

from hf_rlae.cli.loading import choose_device, load_members
from hf_rlae.cli.progress import progress_bar
from hf_rlae.cli.streaming import CarrierStreamer, ContinuationDecoder, ContinuationStreamer
from hf_rlae.ensemble import EnsembleCache, EnsembleConfig, EnsembleForCausalLM
from hf_rlae.errors import ConfigError, first_sentence
from hf_rlae.policies import StaticPolicy
from hf_rlae.reports import (
    TokenCounter,
    carrier_text,
    completion_mask,
    legend,
    member_table,
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
    with _warnings_after_the_text():
        ensemble = _build(args)
        inputs = {name: value.to(ensemble.device) for name, value in _encode(ensemble, args).items()}
        if args.seed is not None:
            set_seed(args.seed)
        write = _stream if len(args.prompts) == 1 else _write_all
        out = write(ensemble, inputs, args)
    _report(ensemble, out, inputs["input_ids"].shape[1], args)


def _report(ensemble: EnsembleForCausalLM, out: Any, columns: int, args: argparse.Namespace) -> None:
    """Shows and writes the requested reports."""
    console = Console(file=sys.stdout, soft_wrap=False)
    if args.show_weights or args.trace is not None:
        rows = trace_tokens(ensemble, out, columns)
    if args.show_weights:
        console.print(legend(args.members))
        for tokens in rows:
            console.print(span_table(args.members, tokens))
    if args.table:
        mask = completion_mask(out.sequences[:, columns:], token_ids(ensemble.generation_config.eos_token_id))
        console.print(member_table(args.members, out, mask))
    if args.trace is not None:
        write_trace(args.trace, args.members, args.prompts, rows)


@contextmanager
def _warnings_after_the_text() -> Iterator[None]:
    """Holds back the package's warnings, which would otherwise appear in the middle of a streamed text."""
    shown = logging.StreamHandler(sys.stderr)
    shown.setFormatter(logging.Formatter("hf-rlae: warning: %(message)s"))
    held = MemoryHandler(capacity=1000, flushLevel=logging.CRITICAL, target=shown)
    held.setLevel(logging.WARNING)
    logger = logging.getLogger("hf_rlae")
    logger.addHandler(held)
    try:
        yield
    finally:
        logger.removeHandler(held)
        held.close()


def _build(args: argparse.Namespace) -> EnsembleForCausalLM:
    settings = {"span_length": args.span_length, "mixing": args.mixing, "grain": args.grain}
    EnsembleConfig(**settings)  # raises before members are loaded
    policy = None if args.weights is None else StaticPolicy(args.weights)
    device = choose_device(args.device)
    members = load_members(
        args.members,
        dtype=args.dtype,
        device_map="auto" if args.device == "auto" else None,
        revisions=args.revisions,
    )
    ensemble = EnsembleForCausalLM.from_members(members, policy=policy, **settings)
    if device is not None:
        ensemble.to(device)  # type: ignore[arg-type]
    return ensemble


def _encode(ensemble: EnsembleForCausalLM, args: argparse.Namespace) -> dict[str, torch.Tensor]:
    if not args.chat:
        return dict(ensemble.tokenizer(args.prompts, return_tensors="pt", padding=True))
    conversations = [[{"role": "user", "content": prompt}] for prompt in args.prompts]
    try:
        return dict(ensemble.tokenizer.apply_chat_template(conversations, add_generation_prompt=True))
    except ValueError as error:
        raise ConfigError(
            f"--chat: {first_sentence(error)} Leave --chat out, or use members that were trained to chat"
        ) from error


def _generate(
    ensemble: EnsembleForCausalLM,
    inputs: dict[str, Any],
    args: argparse.Namespace,
    streamer: BaseStreamer,
    cache: EnsembleCache | None = None,
) -> Any:
    # a member's own settings may contain beams, which cannot be streamed
    options: dict[str, Any] = {"max_new_tokens": args.max_new_tokens, "do_sample": args.sample, "num_beams": 1}
    if args.sample:
        # transformers' default is top_k=50
        options |= {"temperature": args.temperature or 1.0, "top_p": args.top_p or 1.0, "top_k": 0}
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
        out = _generate(ensemble, inputs, args, TokenCounter(lambda: progress.advance(task)))
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
