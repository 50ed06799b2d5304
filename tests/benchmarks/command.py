"""The command line of benchmarks that have cases."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path


def case_parser(module: str, description: str, rounds: str, example: str, quick: str) -> argparse.ArgumentParser:
    """A parser with the options that all of them have.

    Args:
        module (`str`): as in `python -m tests.benchmarks.<module>`.
        description (`str`): the module's docstring, whose first line is shown.
        rounds (`str`), example (`str`), quick (`str`): for the help: how many rounds there are if nothing is said,
            patterns of names, and what `--quick` makes small.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m tests.benchmarks.{module}", description=description.split("\n")[0]
    )
    parser.add_argument("--rounds", type=int, help=f"rounds per case (default: {rounds})")
    parser.add_argument("--cases", nargs="*", default=[], help=f"only cases whose name matches, as in {example}")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1: steady times)")
    parser.add_argument("--quick", action="store_true", help=f"{quick}: to see that it works")
    parser.add_argument("--list", action="store_true", help="print the names of the cases and stop")
    parser.add_argument("--output", type=Path, help="write the tables into this Markdown file, too")
    return parser


def parse_cases(
    parser: argparse.ArgumentParser,
    given: Sequence[str] | None,
    choose: Callable[[argparse.Namespace], bool],
) -> argparse.Namespace:
    """The options, checked.

    Args:
        parser (`argparse.ArgumentParser`): of `case_parser`.
        given (`Sequence[str]`, *optional*): the command line.
        choose (callable): adds the chosen cases to the options, and says whether there are any.
    """
    options = parser.parse_args(given)
    for name in ("rounds", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name} {value}: at least 1")
    if not choose(options):
        parser.error(f"no case matches {options.cases}; `--list` prints the names")
    return options


def finish(parts: Sequence[str], output: Path | None) -> None:
    """Prints the tables, and writes them into a file if one is given."""
    text = "\n\n".join(filter(None, parts)) + "\n"
    print(text)
    if output:
        output.write_text(text, encoding="utf-8")
