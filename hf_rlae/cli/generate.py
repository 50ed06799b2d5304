"""`hf-rlae generate`: its arguments, which are checked before slow imports."""

from __future__ import annotations

import argparse
import importlib
import math
import os
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from hf_rlae.checks import COUNT, NOT_NEGATIVE, POSITIVE, Bounds
from hf_rlae.errors import ConfigError, MemberError

HUB = "https://huggingface.co"
SUMMARY = "generate text with several models together"
DESCRIPTION = """\
Continues one or more prompts with several models together. The text of a single prompt is streamed.

  hf-rlae generate MEMBER MEMBER --prompt "Once upon a time" --weights 0.7,0.3 --span-length 8
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    parser.add_argument(
        "members", nargs="+", metavar="MEMBER", help="a folder with a model and its tokenizer, or a Hub id"
    )
    parser.add_argument(
        "--prompt",
        dest="prompts",
        action="append",
        required=True,
        metavar="TEXT",
        help="a text to continue; repeat the option for several texts",
    )
    parser.add_argument(
        "--chat",
        action="store_true",
        help="each prompt is a user's message, rendered with each member's chat template",
    )
    _add_ensemble(parser.add_argument_group("ensemble"))
    _add_decoding(parser.add_argument_group("decoding"))
    _add_loading(parser.add_argument_group("loading"))
    _add_reports(parser.add_argument_group("reports"))


def _add_reports(reports: argparse._ArgumentGroup) -> None:
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


def _add_ensemble(ensemble: argparse._ArgumentGroup) -> None:
    weights = "one number per member, such as 0.7,0.3 (default: equal)"
    ensemble.add_argument("--weights", type=_weights, metavar="W,W", help=weights)
    length = "tokens that share one weight vector (default: 8)"
    ensemble.add_argument("--span-length", type=positive_int, default=8, metavar="N", help=length)
    mixing = "linear (mixture of probabilities), log (product of experts) or power (between them) (default: linear)"
    ensemble.add_argument("--mixing", default="linear", metavar="NAME", help=mixing)
    grain = "what is written if tokenizers differ: token, character, byte, common or auto (default: token)"
    ensemble.add_argument("--grain", default="token", metavar="NAME", help=grain)


def _add_decoding(decoding: argparse._ArgumentGroup) -> None:
    tokens = "maximum number of new tokens (default: 128)"
    decoding.add_argument("--max-new-tokens", type=positive_int, default=128, metavar="N", help=tokens)
    sample = "sample every token from the mixture (default: greedy decoding)"
    decoding.add_argument("--sample", "--do-sample", action="store_true", help=sample)
    decoding.add_argument(
        "--temperature", type=number(float, POSITIVE), metavar="T", help="with --sample (default: 1.0)"
    )
    decoding.add_argument(
        "--top-p", type=number(float, Bounds(above=0, most=1)), metavar="P", help="with --sample (default: 1.0)"
    )
    decoding.add_argument("--seed", type=seed, metavar="N", help="makes samples repeatable")


def _add_loading(loading: argparse._ArgumentGroup) -> None:
    loading.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="of the members (default: auto, as they were saved)",
    )
    loading.add_argument(
        "--device",
        metavar="DEVICE",
        help="such as cpu, cuda or cuda:1; auto lets accelerate place the members (default: an accelerator if there is "
        "one, else cpu)",
    )
    revisions = "one branch, tag or commit per member; leave an entry empty for the default"
    loading.add_argument("--revisions", type=_revisions, metavar="R,R", help=revisions)


def check(args: argparse.Namespace) -> None:
    """Raises for arguments that do not fit together and for missing folders.

    Raises:
        ConfigError: a prompt that is not UTF-8, lists that do not have one entry per member, sampling options without
            `--sample`, a revision of a folder, a trace that cannot be written.
        MemberError: a path that is not a folder.
    """
    for prompt in args.prompts:
        check_text(prompt, "--prompt")
    for option, values in (("--weights", args.weights), ("--revisions", args.revisions)):
        if values is not None and len(values) != len(args.members):
            given = f"{len(values)} given for {len(args.members)} member{'s' * (len(args.members) != 1)}"
            raise ConfigError(f"{option}: {given}; give one per member, separated by commas")
    for option, value in (("--temperature", args.temperature), ("--top-p", args.top_p)):
        if value is not None and not args.sample:
            raise ConfigError(f"{option} has no effect on greedy decoding; add --sample, or leave it out")
    if args.trace is not None:
        check_output(args.trace, "--trace")
    for member, revision in zip(args.members, args.revisions or [None] * len(args.members), strict=True):
        _check_member(member, revision)


def _check_member(member: str, revision: str | None) -> None:
    if os.path.isdir(member):
        if revision:
            raise ConfigError(
                f"--revisions: {member} is a folder, which has no revisions; leave its entry empty, or give a Hub id"
            )
    elif _looks_like_path(member):
        raise MemberError(
            f"{member or repr(member)} is not a folder; give the folder with the model's config.json, weights and "
            "tokenizer, or a Hub id"
        )


def check_text(text: str, option: str) -> None:
    """Raises `ConfigError` for an argument whose bytes are not UTF-8; Python keeps them as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{option}: {text[error.start]!a} at character {error.start} is not part of any text; give the option "
            "in UTF-8, for example through `iconv -f LATIN1 -t UTF-8`"
        ) from error


def check_output(path: str, option: str) -> None:
    """Raises `ConfigError` for a file that cannot be written."""
    folder = os.path.dirname(path) or "."
    if os.path.isdir(path) or not path:
        raise ConfigError(f"{option}: {path or repr(path)} is not a file name; give one")
    if not os.path.isdir(folder):
        raise ConfigError(f"{option}: there is no folder {folder} for {path}; create it first")
    is_device = os.path.exists(path) and not os.path.isfile(path)
    if not os.access(path if is_device else folder, os.W_OK):
        raise ConfigError(f"{option}: the folder {folder} is not writable; give a file in another one")


def _looks_like_path(member: str) -> bool:
    """Whether a name cannot be a Hub id."""
    is_path = member.startswith((".", "~", os.sep)) or member.count("/") > 1
    return is_path or not member or os.path.exists(member)


def run(args: argparse.Namespace) -> int:
    """Checks the arguments, writes the texts and returns the exit code."""
    check(args)
    _stay_offline_without_network(args.members)
    # torch and transformers take seconds to import
    importlib.import_module("hf_rlae.cli.generation").write_texts(args)
    return 0


def _stay_offline_without_network(members: list[str]) -> None:
    """Switches the Hub client to offline mode before its import; otherwise it retries to connect for a minute."""
    if all(map(os.path.isdir, members)) or "HF_HUB_OFFLINE" in os.environ or getproxies():
        return
    try:
        socket.getaddrinfo(urlsplit(os.environ.get("HF_ENDPOINT") or HUB).hostname, None)
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"


def _weights(text: str) -> list[float]:
    """One weight per member, separated by commas."""
    weight = number(float, NOT_NEGATIVE)
    values = [weight(part) for part in text.split(",")]
    if not any(values):
        raise argparse.ArgumentTypeError(f"{text!r}: at least one weight must be above 0")
    return values


def _revisions(text: str) -> list[str | None]:
    return [part.strip() or None for part in text.split(",")]


def number(kind: type, allowed: Bounds) -> Callable[[str], Any]:
    """A type of an argument: a number within bounds.

    Args:
        kind (`type`): `int` or `float`.
        allowed (`Bounds`): what is accepted.
    """

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan  # never within bounds
        if not allowed.holds(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {allowed}")
        return value

    return parse


positive_int = number(int, COUNT)
seed = number(int, Bounds(0, 2**32 - 1, is_whole=True))
