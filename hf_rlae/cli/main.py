"""`hf-rlae`: the command line, with one module per command.

Command modules import nothing slow, so that `--help` and bad arguments are answered at once; a command's `run` imports
torch.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from hf_rlae import __version__
from hf_rlae.cli import chat, demo, generate, policies, pull, push, serve, tasks, train, version
from hf_rlae.errors import HfRlaeError, InternalError, one_line, shortened, with_type

COMMANDS = {
    "demo": demo,
    "generate": generate,
    "chat": chat,
    "serve": serve,
    "train": train,
    "push": push,
    "pull": pull,
    "tasks": tasks,
    "policies": policies,
    "version": version,
}
"""Modules with `SUMMARY`, `DESCRIPTION`, `add_arguments(parser)` and `run(args)` (the exit code)."""

DEFECT = 1
USAGE_ERROR = 2
INTERRUPTED = 130
BROKEN_PIPE = 141


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Ends the process with one line; argparse would print the usage first, which hides it."""
        self.exit(USAGE_ERROR, f"hf-rlae: error: {message}; see `{self.prog} --help`\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(prog="hf-rlae", description="Several language models decode one text together.")
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
        command.add_argument(
            "--debug", action="store_true", help="show the traceback of an error; HF_RLAE_DEBUG=1 does the same"
        )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv (`Sequence[str]`, *optional*): the arguments; those of the process if not given.

    Returns:
        `int`: 0; 2 for an error that the user can fix (one line on stderr says how); 1 for any other error (one line
        with its type); 130 after Ctrl-C; 141 if the reader of stdout is gone.
    """
    # Threads of OpenMP that wait for work spin, and take the cores from other processes; read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    shows_traceback = bool(os.environ.get("HF_RLAE_DEBUG"))
    try:
        try:
            args = build_parser().parse_args(argv)
            shows_traceback = shows_traceback or args.debug
            return COMMANDS[args.command].run(args)
        finally:
            if sys.stdout is not None:  # it is None if the caller has closed it
                sys.stdout.flush()  # raises here, not when Python ends
    except (SystemExit, GeneratorExit):
        raise
    except KeyboardInterrupt:
        print("hf-rlae: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return BROKEN_PIPE
    except BaseException as error:  # panics of extensions in Rust are no Exception
        return _report(error, shows_traceback)


def _report(error: BaseException, shows_traceback: bool) -> int:
    """Prints one line about an error and returns the exit code."""
    if shows_traceback:
        traceback.print_exception(error)
    if isinstance(error, HfRlaeError) and not isinstance(error, InternalError):
        code, text = USAGE_ERROR, one_line(str(error))
    else:
        code, text = DEFECT, f"{with_type(error, shortened(str(error)))} (--debug shows the traceback)"
    print(f"hf-rlae: error: {text}", file=sys.stderr)
    if isinstance(error, OSError):  # what is left of the output may not be written either
        _drop_output()
    return code


def _drop_output() -> None:
    """Sends the rest of stdout to nowhere, so that Python does not fail to write it at its end."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
