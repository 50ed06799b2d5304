"""`hf-rlae`: the command line, with one module per command.

Command modules import nothing slow, so that `--help` and bad arguments are answered at once; a command's `run` imports
torch.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from hf_rlae import __version__
from hf_rlae.cli import chat, demo, diagnose, evaluate, generate, policies, pull, push, serve, tasks, train, version
from hf_rlae.cli.flags import in_flags
from hf_rlae.errors import HfRlaeError, InternalError, one_line, present, shortened, with_type

COMMANDS = {
    "demo": demo,
    "generate": generate,
    "chat": chat,
    "serve": serve,
    "train": train,
    "evaluate": evaluate,
    "diagnose": diagnose,
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
    _given: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse; the arguments are kept for `error`."""
        self._given = sys.argv[1:] if args is None else args
        return super().parse_known_args(args, namespace)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse; an option that a command does not have is refused with the nearest one that it has."""
        parsed, rest = self.parse_known_args(args, namespace)
        if rest:
            present(self.command(parsed.command), "the command").refuse(rest)
        return parsed

    def command(self, name: str | None) -> _Parser | None:
        """The parser of a command."""
        (commands,) = (action for action in self._actions if action.dest == "command")
        return dict(commands.choices or {}).get(name)

    def refuse(self, rest: Sequence[str]) -> NoReturn:
        """Ends the process for arguments that this command does not have."""
        option = next((part.partition("=")[0] for part in rest if part.startswith("--")), None)
        if option is None:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        self.error(f"there is no option {option}{_did_you_mean(option, self._options())}")

    def error(self, message: str) -> NoReturn:
        """Ends the process with one line; argparse would print all options first, which hides it.

        A misspelt option also makes argparse miss arguments, which it reports first.
        """
        if message.startswith("the following arguments are required"):
            names = [part.partition("=")[0] for part in self._given if part.startswith("--") and part != "--"]
            unknown = [name for name in names if not any(known.startswith(name) for known in self._options())]
            if unknown:
                message = f"there is no option {unknown[0]}{_did_you_mean(unknown[0], self._options())}"
        if choice := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            message += _did_you_mean(choice[1], re.findall(r"[\w-]+", choice[2]))
        self.exit(USAGE_ERROR, f"hf-rlae: error: {message}; {self._short_usage()} (see `{self.prog} --help`)\n")

    def _options(self) -> list[str]:
        return [name for action in self._actions for name in action.option_strings if name.startswith("--")]

    def _short_usage(self) -> str:
        """The usage without the options, of which there are dozens."""
        formatter = argparse.HelpFormatter(self.prog, width=1000)
        own = [action for action in self._actions if action.required or not action.option_strings]
        formatter.add_usage(None, own, [])
        return f"{one_line(formatter.format_help())} [options]"


def _did_you_mean(given: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(given, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def build_parser() -> _Parser:
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
    shows_traceback, parser = bool(os.environ.get("HF_RLAE_DEBUG")), build_parser()
    args = argparse.Namespace(command=None)
    try:
        try:
            args = parser.parse_args(argv)
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
        return _report(error, shows_traceback, parser.command(args.command))


def _report(error: BaseException, shows_traceback: bool, command: argparse.ArgumentParser | None) -> int:
    """Prints one line about an error of a command and returns the exit code."""
    if shows_traceback:
        traceback.print_exception(error)
    if isinstance(error, HfRlaeError) and not isinstance(error, InternalError):
        code, text = USAGE_ERROR, in_flags(one_line(str(error)), command)
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
