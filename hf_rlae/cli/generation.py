"""What `hf-rlae generate` does once its arguments are known to be good."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from safetensors import SafetensorError
from transformers import set_seed
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging as transformers_logging

from hf_rlae.cli.streaming import ContinuationDecoder, ContinuationStreamer, TokenCounter
from hf_rlae.cli.table import completion_mask, member_table
from hf_rlae.ensemble import EnsembleConfig, EnsembleForCausalLM
from hf_rlae.errors import ConfigError, HfRlaeError, MemberError
from hf_rlae.member import Member
from hf_rlae.policy import StaticPolicy


def write_texts(args: argparse.Namespace) -> None:
    """Loads the members, writes the texts on stdout, and the table if it is asked for.

    Args:
        args (`argparse.Namespace`): the arguments of `hf-rlae generate`, checked.

    Raises:
        HfRlaeError: members that cannot be loaded or cannot work together, and options that cannot be used.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal without Unicode is no reason to stop
    settings = {"span_length": args.span_length, "mixing": args.mixing}
    EnsembleConfig(**settings)
    policy = None if args.weights is None else StaticPolicy(args.weights)
    device = _device(args.device)
    members = _load_members(args)
    ensemble = EnsembleForCausalLM.from_members(members, policy=policy, **settings)
    if device is not None:
        ensemble.to(device)  # type: ignore[arg-type]
    inputs = {name: value.to(ensemble.device) for name, value in _encode(ensemble, args).items()}
    if args.seed is not None:
        set_seed(args.seed)
    if len(args.prompts) == 1:
        out = _stream(ensemble, inputs, args)
    else:
        out = _write_all(ensemble, inputs, args)
    if args.table:
        end_ids = ensemble.generation_config.eos_token_id
        completions = out.sequences[:, inputs["input_ids"].shape[1] :]
        mask = completion_mask(completions, [end_ids] if isinstance(end_ids, int) else end_ids or [])
        Console(file=sys.stdout).print(member_table([member.name for member in members], out, mask))


def _device(name: str | None) -> torch.device | None:
    """Where the members go; `None` where accelerate decides."""
    if name == "auto":
        return None
    if name is None:
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"--device {name} cannot be used here: {_first_line(error)} Give cpu, or leave --device out"
        ) from error
    return device


def _load_members(args: argparse.Namespace) -> list[Member]:
    members = []
    with _progress_bars(sys.stderr.isatty()):
        for index, source in enumerate(args.members):
            if sys.stderr.isatty():
                print(f"loading {source} ({index + 1} of {len(args.members)})", file=sys.stderr)
            members.append(
                _load_member(
                    source,
                    dtype=args.dtype,
                    device_map="auto" if args.device == "auto" else None,
                    revision=args.revisions[index] if args.revisions else None,
                )
            )
    return members


def _load_member(source: str, **options: Any) -> Member:
    try:
        return Member.load(source, **options)
    except HfRlaeError:
        raise
    except ImportError as error:
        raise MemberError(f"member {source} needs a package that is missing: {_first_line(error)}") from error
    except (OSError, ValueError, SafetensorError) as error:
        raise MemberError(
            f"member {source} cannot be loaded: {_first_line(error)} Give a folder that holds a model's "
            "config.json, its weights and its tokenizer, or the id of such a model on the Hub; check the "
            "spelling, the revision and the access to the Hub"
        ) from error


def _first_line(error: BaseException) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0].strip()
    return line if line.endswith((".", "!", "?")) else f"{line}."


@contextmanager
def _progress_bars(visible: bool) -> Iterator[None]:
    """Shows the progress bars of transformers and of the Hub's client inside, or hides them."""
    if visible:
        yield
        return
    loading = transformers_logging.is_progress_bar_enabled()
    downloading = not are_progress_bars_disabled()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    try:
        yield
    finally:
        if loading:
            transformers_logging.enable_progress_bar()
        if downloading:
            enable_progress_bars()


def _encode(ensemble: EnsembleForCausalLM, args: argparse.Namespace) -> dict[str, torch.Tensor]:
    if not args.chat:
        return dict(ensemble.tokenizer(args.prompts, return_tensors="pt", padding=True))
    conversations = [[{"role": "user", "content": prompt}] for prompt in args.prompts]
    try:
        return dict(ensemble.tokenizer.apply_chat_template(conversations, add_generation_prompt=True))
    except HfRlaeError:
        raise
    except ValueError as error:
        raise ConfigError(
            f"--chat: {_first_line(error)} Leave --chat out, or take members that were trained to chat"
        ) from error


def _generate(
    ensemble: EnsembleForCausalLM,
    inputs: dict[str, Any],
    args: argparse.Namespace,
    streamer: BaseStreamer,
) -> Any:
    options: dict[str, Any] = {"max_new_tokens": args.max_new_tokens, "do_sample": args.sample}
    if args.sample:
        # without top_k=0, transformers would leave only the 50 likeliest tokens
        options |= {"temperature": args.temperature or 1.0, "top_p": args.top_p or 1.0, "top_k": 0}
    options |= {"return_dict_in_generate": True, "streamer": streamer}
    return ensemble.generate(**inputs, **options)


def _opening(prompt: str, args: argparse.Namespace) -> str:
    return f"{prompt}\n\n" if args.chat else prompt


def _stream(ensemble: EnsembleForCausalLM, inputs: dict[str, torch.Tensor], args: argparse.Namespace) -> Any:
    def write(piece: str) -> None:
        print(piece, end="", flush=True)

    write(_opening(args.prompts[0], args))
    try:
        return _generate(ensemble, inputs, args, ContinuationStreamer(ensemble.tokenizer, write))
    finally:
        write("\n")


def _write_all(
    ensemble: EnsembleForCausalLM, inputs: dict[str, torch.Tensor], args: argparse.Namespace
) -> Any:
    with Progress(
        TextColumn("writing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("tokens"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    ) as progress:
        task = progress.add_task("writing", total=args.max_new_tokens)
        out = _generate(ensemble, inputs, args, TokenCounter(lambda: progress.advance(task)))
    columns = inputs["input_ids"].shape[1]
    for row, prompt in enumerate(args.prompts):
        own = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
        decoder = ContinuationDecoder(ensemble.tokenizer, own.tolist())
        text = "".join(decoder.push([token]) for token in out.sequences[row, columns:].tolist())
        if row > 0:
            print()
        print(f"{_opening(prompt, args)}{text}{decoder.finish()}", flush=True)
    return out
