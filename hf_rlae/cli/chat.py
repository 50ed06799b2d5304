"""`hf-rlae chat`: its arguments, which are checked before slow imports."""

from __future__ import annotations

import argparse
import importlib

from hf_rlae.cli.arguments import (
    add_decoding,
    add_ensemble,
    add_loading,
    add_members,
    check_shared,
    check_text,
    hub_sources,
    stay_offline_without_network,
)

SUMMARY = "chat with several models together"
DESCRIPTION = """\
Answers message after message with several models together; each line of standard input is a message. Every member
reads the conversation through its own chat template. Ctrl-C stops an answer, Ctrl-D ends the chat, and these lines
are commands:

  /weights   who wrote the last answer: its tokens in the colours of their members, and the weights of every span
  /reset     forget the conversation
  /help      these commands
  /exit      end the chat

  hf-rlae chat MEMBER MEMBER --weights 0.7,0.3
  hf-rlae chat ENSEMBLE --system "Answer in one sentence." --sample --temperature 0.7 --seed 1
  echo "What is 12 + 30?" | hf-rlae chat MEMBER MEMBER --policy POLICY
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    add_members(parser)
    parser.add_argument("--system", metavar="TEXT", help="a system message before the conversation")
    add_ensemble(parser)
    add_decoding(parser, max_new_tokens=512)
    add_loading(parser)


def run(args: argparse.Namespace) -> int:
    """Checks the arguments, chats, and returns the exit code."""
    if args.system is not None:
        check_text(args.system, "--system")
    check_shared(args)
    stay_offline_without_network(hub_sources(args))
    importlib.import_module("hf_rlae.cli.chatting").chat(args)
    return 0
