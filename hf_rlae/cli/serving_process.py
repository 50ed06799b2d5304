"""The work of `hf-rlae serve`, after its arguments have been checked."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys

from transformers import set_seed

from hf_rlae.cli.decoding import encode_chats, generation_options
from hf_rlae.cli.loading import build_ensemble
from hf_rlae.embedded import PREFIX
from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.errors import ConfigError, one_line
from hf_rlae.reports import short_names
from hf_rlae.serving import LOOPBACK
from hf_rlae.serving.limits import Limits
from hf_rlae.serving.server import build_app, build_http_server, listen


def serve(args: argparse.Namespace) -> None:
    """Loads the members and serves them until SIGINT or SIGTERM.

    Args:
        args (`argparse.Namespace`): the checked arguments of `hf-rlae serve`.

    Raises:
        HfRlaeError: members that cannot be loaded or combined, options that cannot be used, an address that is taken.
    """
    with listen(args.host, args.port) as sock:
        ensemble = build_ensemble(args)
        logging.basicConfig(
            stream=sys.stderr,
            format="hf-rlae: %(levelname)s: %(message)s",
            level=logging.DEBUG if args.debug else logging.WARNING,
        )
        if args.debug:
            logging.getLogger("hf_rlae.serving").setLevel(logging.DEBUG)
        _warn_of_missing_templates(ensemble)
        if args.seed is not None:
            set_seed(args.seed)
        name = args.model_name or "+".join(short_names(source.removeprefix(PREFIX) for source in args.members))
        defaults = {key: value for key, value in generation_options(args).items() if key not in _PER_REQUEST}
        limits = Limits(body_bytes=args.max_body_bytes, requests=args.max_requests, request_seconds=args.timeout)
        app = build_app(
            ensemble,
            name,
            defaults=defaults,
            max_new_tokens=args.max_new_tokens,
            limits=limits,
            is_local=args.host in LOOPBACK,
        )
        host = f"[{args.host}]" if ":" in args.host else args.host
        print(f"serving {name} on http://{host}:{sock.getsockname()[1]}/v1 (Ctrl-C ends it)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            build_http_server(app, limits).run(sockets=[sock])


def _warn_of_missing_templates(ensemble: EnsembleForCausalLM) -> None:
    """Says at the start what every chat would be refused for."""
    try:
        encode_chats(ensemble, [[{"role": "user", "content": "Hello"}]], "/v1/chat/completions will be refused")
    except ConfigError as error:
        print(f"hf-rlae: warning: {one_line(str(error))}; /v1/completions works", file=sys.stderr)


_PER_REQUEST = ("max_new_tokens", "num_beams")
