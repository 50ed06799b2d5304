"""`hf-rlae`: the command line, with one module per command.

Command modules import nothing slow, so that `--help` and bad arguments are answered at once; a command's `run` imports
torch.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from hf_rlae import __version__
from hf_rlae.cli import demo, generate
from hf_rlae.errors import HfRlaeError

COMMANDS = {"demo": demo, "generate": generate}
"""Modules with `SUMMARY`, `DESCRIPTION`, `add_arguments(parser)` and `run(args)` (the exit code)."""

USAGE_ERROR = 2
INTERRUPTED = 130
BROKEN_PIPE = 141


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(prog="hf-rlae", description="Several language models decode one text together.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=module.SUMMARY,
            description=module.DESCRIPTION,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv (`Sequence[str]`, *optional*): the arguments; those of the process if not given.

    Returns:
        `int`: 0; 2 for an error that the user can fix (one line on stderr says how); 130 after Ctrl-C; 141 if the
        reader of stdout is gone.
    """
    args = build_parser().parse_args(argv)
    try:
        return COMMANDS[args.command].run(args)
    except HfRlaeError as error:
        print(f"hf-rlae: error: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("hf-rlae: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


if __name__ == "__main__":
    sys.exit(main())
