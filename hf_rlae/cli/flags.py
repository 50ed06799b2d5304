"""Errors name arguments of Python functions; the command line names its own options instead."""

from __future__ import annotations

import argparse
import re

_WORDS = (
    (
        "pass trust_remote_code=True to run its own code, if you trust it",
        "hf-rlae runs no code of repositories: in Python, pass trust_remote_code=True if you trust it",
    ),
    ("pass `members=[...]` with a folder or Hub id per member", "give the members instead of the ensemble"),
    ("`members=[...]` with a folder or Hub id per member", "give the members instead of the ensemble"),
    ("pass `members=[...]`", "give the members instead of the ensemble"),
    ("set its `chat_template`, or give plain strings", "give --prompt_format standard, or models with chat templates"),
    ("pass source= with", "give --task_source with"),
    ("pass source=", "give --task_source"),
    ("Pass source= with", "Give --task_source with"),
)
"""Arguments without an option of the same name."""


def in_flags(message: str, command: argparse.ArgumentParser | None) -> str:
    """A message with options of a command in place of arguments of functions.

    Args:
        message (`str`): of an error.
        command (`argparse.ArgumentParser`, *optional*): the parser of the command.

    Example:

    >>> parser = argparse.ArgumentParser()
    >>> option = parser.add_argument("--save-members", action="store_true")
    >>> in_flags("pass save_members=True to push them", parser)
    'pass --save-members to push them'
    >>> option = parser.add_argument("--mixing")
    >>> in_flags("mixing='lin': give mixing='log', as in build(members, mixing='log')", parser)
    "--mixing 'lin': give --mixing 'log', as in build(members, mixing='log')"
    """
    for argument, option in _WORDS:
        message = message.replace(argument, option)
    for action in command._actions if command is not None else ():
        if action.option_strings and action.nargs == 0:
            message = re.sub(rf"`?\b{action.dest}=True`?", action.option_strings[0], message)
        elif action.option_strings:  # an argument of a call, as in f(mixing='log'), stays
            message = re.sub(rf"(?<![\w(.])(?<!, )\b{action.dest}=(?=\S)", f"{action.option_strings[0]} ", message)
    return message
