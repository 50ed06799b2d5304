"""`hf-rlae serve`: its arguments, which are checked before slow imports."""

from __future__ import annotations

import argparse
import importlib
import sys

from hf_rlae.checks import POSITIVE, Bounds
from hf_rlae.cli.arguments import (
    add_decoding,
    add_ensemble,
    add_loading,
    add_members,
    check_packages,
    check_shared,
    hub_sources,
    number,
    positive_int,
    stay_offline_without_network,
)
from hf_rlae.errors import ConfigError
from hf_rlae.serving import LOOPBACK, PACKAGES

SUMMARY = "serve several models as one, to OpenAI clients"
DESCRIPTION = """\
Serves an ensemble on this machine, with OpenAI's interface: /v1/completions, /v1/chat/completions (both also streamed)
and /v1/models. `transformers chat` and other clients can talk to it. Needs the extra `serve`. Ctrl-C ends it.

  hf-rlae serve MEMBER MEMBER --weights 0.7,0.3
  hf-rlae serve ENSEMBLE --port 8001 --model-name mine --max-new-tokens 256
  transformers chat mine http://127.0.0.1:8001

Decoding options are for requests that do not say how to choose tokens (no temperature and no top_p).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    add_members(parser)
    server = parser.add_argument_group("server")
    server.add_argument(
        "--host", default="127.0.0.1", help="where it listens (default: 127.0.0.1, which only this machine reaches)"
    )
    port = number(int, Bounds(0, 65535, is_whole=True))
    server.add_argument("--port", type=port, default=8000, metavar="N", help="0 for any free one (default: 8000)")
    server.add_argument(
        "--model-name", metavar="NAME", help="as which clients ask for it (default: the names of what is given)"
    )
    size = "bytes of a request (default: 1000000)"
    server.add_argument("--max-body-bytes", type=positive_int, default=1_000_000, metavar="N", help=size)
    requests = "requests that run or wait at a time (default: 8)"
    server.add_argument("--max-requests", type=positive_int, default=8, metavar="N", help=requests)
    seconds = "after which a request ends (default: 600)"
    server.add_argument("--timeout", type=number(float, POSITIVE), default=600.0, metavar="SECONDS", help=seconds)
    batching = "not supported: every member has its own cache"
    server.add_argument("--continuous-batching", action="store_true", help=batching)
    add_ensemble(parser)
    add_decoding(parser, max_new_tokens=1024)
    add_loading(parser)


def check(args: argparse.Namespace) -> None:
    """Raises for arguments that cannot be used.

    Raises:
        ConfigError: see `check_shared`; continuous batching, a name that is empty, a package that is not installed.
        MemberError: a path that is not a folder.
    """
    if args.continuous_batching:
        raise ConfigError(
            "--continuous-batching keeps keys and values of one model in pages, and every member has its "
            "own cache; leave it out: requests run one after the other"
        )
    if args.model_name is not None and not args.model_name.strip():
        raise ConfigError("--model-name: give a name, or leave it out")
    check_packages("hf-rlae serve", PACKAGES, "serve")
    check_shared(args)


def run(args: argparse.Namespace) -> int:
    """Checks the arguments, serves, and returns the exit code."""
    check(args)
    if args.host not in LOOPBACK:
        print(
            f"hf-rlae: warning: --host {args.host}: anyone who reaches this machine can use the server: it has no "
            "password and no encryption",
            file=sys.stderr,
        )
    stay_offline_without_network(hub_sources(args))
    importlib.import_module("hf_rlae.cli.serving_process").serve(args)
    return 0
