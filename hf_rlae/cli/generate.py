"""`hf-rlae generate`: its arguments, which are checked before slow imports."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path

from hf_rlae.cli.arguments import (
    add_decoding,
    add_ensemble,
    add_loading,
    add_members,
    check_output,
    check_shared,
    check_text,
    hub_sources,
    positive_int,
    stay_offline_without_network,
)
from hf_rlae.errors import ConfigError

SUMMARY = "generate text with several models together"
DESCRIPTION = """\
Continues one or more prompts with several models together. The text of a single prompt is streamed.

  hf-rlae generate demo:addition-characters demo:multiplication-pieces --prompt "5*3=" --weights 0.3,0.7 --table
  hf-rlae generate MEMBER MEMBER --prompt "Once upon a time" --weights 0.7,0.3 --span-length 8
  cat letter.txt | hf-rlae generate MEMBER MEMBER --prompt - --num-beams 3
  hf-rlae generate MEMBER MEMBER --prompt "Once upon a time" --policy POLICY --show-weights
  hf-rlae generate MEMBER MEMBER --prompt "Once upon a time" --mixing contrast --mixing-kwargs '{"alpha": 0.1}'
  hf-rlae generate ENSEMBLE --chat --prompt "What is 12 + 30?" --sample --temperature 0.7 --seed 1
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    add_members(parser)
    parser.add_argument(
        "--prompt",
        dest="prompts",
        action="append",
        default=[],
        metavar="TEXT",
        help="a text to continue, or - to read it from standard input; repeat the option for several texts",
    )
    parser.add_argument(
        "--prompt-file",
        dest="prompt_files",
        action="append",
        default=[],
        metavar="FILE",
        help="a file with a text to continue; repeat the option for several texts",
    )
    parser.add_argument(
        "--chat",
        action="store_true",
        help="each prompt is a user's message, rendered with each member's chat template",
    )
    parser.add_argument(
        "--negative-prompt",
        metavar="TEXT",
        help="what all members but the first read in place of the prompt, with --mixing guidance or contrast (default: "
        "for guidance, the last token of the prompt)",
    )
    add_ensemble(parser)
    decoding = add_decoding(parser)
    beams = "beam search with this number of beams; the text is not streamed (default: 1)"
    decoding.add_argument("--num-beams", type=positive_int, metavar="N", help=beams)
    add_loading(parser)
    reports = parser.add_argument_group("reports")
    reports.add_argument(
        "--table",
        action="store_true",
        help="after the texts, show each member's weight, the number of tokens that it could propose, and their mean "
        "log-probability",
    )
    reports.add_argument(
        "--show-weights",
        action="store_true",
        help="colour every token by the member that carried it, and show the weights of every span",
    )
    reports.add_argument(
        "--trace",
        metavar="FILE",
        help="write a JSON file with the bytes, span, weights and each member's log-probability of every token",
    )


def check(args: argparse.Namespace) -> None:
    """Raises for arguments that do not fit together and for missing folders.

    Raises:
        ConfigError: see `check_shared`; no prompt, one that is not UTF-8 or that nobody reads, a trace that cannot be
            written.
        MemberError: a path that is not a folder.
    """
    args.prompts = _read_prompts(args)
    if args.negative_prompt is not None:
        check_text(args.negative_prompt, "--negative-prompt")
        if args.mixing is None and len(args.members) > 1:
            raise ConfigError("--negative-prompt has no effect on linear mixing; add --mixing guidance or contrast")
    if args.trace is not None:
        check_output(args.trace, "--trace")
    check_shared(args)


def _read_prompts(args: argparse.Namespace) -> list[str]:
    """The texts to continue. Of a file and of standard input, the last line break is not part of the text."""
    prompts = [_text_of("--prompt -", sys.stdin.buffer.read) if text == "-" else text for text in args.prompts]
    prompts += [_text_of(f"--prompt-file {path}", Path(path).read_bytes) for path in args.prompt_files]
    for prompt in prompts:
        check_text(prompt, "--prompt")
    if not prompts:
        raise ConfigError("there is nothing to continue; give --prompt TEXT, --prompt - or --prompt-file FILE")
    return prompts


def _text_of(option: str, read: Callable[[], bytes]) -> str:
    try:
        text = read().decode()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{option} cannot be read: {error}; give a text in UTF-8") from error
    if not text.strip():
        raise ConfigError(f"{option} has no text; give one")
    return text.removesuffix("\n").removesuffix("\r")


def run(args: argparse.Namespace) -> int:
    """Checks the arguments, writes the texts and returns the exit code."""
    check(args)
    stay_offline_without_network(hub_sources(args))
    # torch and transformers take seconds to import
    importlib.import_module("hf_rlae.cli.generation").write_texts(args)
    return 0
