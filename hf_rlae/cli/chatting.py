"""The work of `hf-rlae chat`, after its arguments have been checked."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import signal
import sys
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from rich.console import Console
from transformers import StoppingCriteriaList, set_seed

from hf_rlae.checks import check_choice
from hf_rlae.cli.decoding import encode_chats, generation_options
from hf_rlae.cli.loading import build_ensemble, member_names
from hf_rlae.cli.streaming import ContinuationStreamer, warnings_after_the_text
from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.ensemble.continuation import StopRequest
from hf_rlae.errors import ConfigError, HfRlaeError, one_line
from hf_rlae.reports import TracedToken, carrier_text, legend, short_names, span_table, trace_tokens

COMMANDS = {
    "/weights": "who wrote the last answer",
    "/reset": "forget the conversation",
    "/help": "these commands",
    "/exit": "end the chat",
}


def chat(args: argparse.Namespace) -> None:
    """Loads the members, and answers the messages on standard input.

    Args:
        args (`argparse.Namespace`): the checked arguments of `hf-rlae chat`.

    Raises:
        HfRlaeError: members that cannot be loaded, combined or talked to, and options that cannot be used.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # for terminals without Unicode
    with warnings_after_the_text():
        ensemble = build_ensemble(args)
        talk = Conversation(ensemble, args)
        encode_chats(
            ensemble, [[*talk.start, {"role": "user", "content": "Hello"}]], "chat"
        )  # raises before anybody types
    if args.seed is not None:
        set_seed(args.seed)
    if sys.stdin.isatty():
        print(f"{len(ensemble.members)} members; /help lists the commands")
    for line in _lines():
        message = line.strip()
        if message == "/exit":
            return
        with _told_in_one_line():
            if message.startswith("/") and " " not in message:
                check_choice("command", message, COMMANDS)
                talk.obey(message)
            elif message:
                talk.answer(message)


def _lines() -> Iterator[str]:
    """The lines of standard input; on a terminal with a prompt and line editing."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")  # `input` uses it
    while True:
        try:
            yield input("> ")
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /exit ends the chat)")
        except EOFError:
            print()
            return


@contextlib.contextmanager
def _told_in_one_line() -> Iterator[None]:
    """Tells errors that the next message can avoid, such as a conversation that is too long, and goes on."""
    try:
        with warnings_after_the_text():
            yield
    except HfRlaeError as error:
        print(f"hf-rlae: error: {one_line(str(error))}", file=sys.stderr)


@contextlib.contextmanager
def _stopped_by_control_c(request: StopRequest) -> Iterator[None]:
    """Ctrl-C ends the answer after its current token; a second one interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        if request.is_made:
            raise KeyboardInterrupt
        request.is_made = True

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Conversation:
    """A conversation with an ensemble.

    Args:
        ensemble (`EnsembleForCausalLM`): who answers.
        args (`argparse.Namespace`): the arguments of `hf-rlae chat`.

    Attributes:
        start (`list[dict[str, str]]`): the messages with which every conversation begins.
        messages (`list[dict[str, str]]`): those so far.
        written (`list[TracedToken]`): the tokens of the last answer.
    """

    def __init__(self, ensemble: EnsembleForCausalLM, args: argparse.Namespace) -> None:
        self.ensemble = ensemble
        self.args = args
        self.start = [] if args.system is None else [{"role": "system", "content": args.system}]
        self.messages = list(self.start)
        self.written: list[TracedToken] = []

    def answer(self, message: str) -> None:
        """Streams the answer to a message. A message that cannot be answered is not kept.

        Raises:
            HfRlaeError: the conversation is longer than the members' contexts, or a member fails.
        """
        asked = [*self.messages, {"role": "user", "content": message}]
        inputs = {name: value.to(self.ensemble.device) for name, value in self._encoded(asked).items()}
        pieces: list[str] = []
        streamer = ContinuationStreamer(self.ensemble.tokenizer, partial(_show, pieces))
        request = StopRequest()
        options: dict[str, Any] = {**inputs, **generation_options(self.args)}
        options["stopping_criteria"] = StoppingCriteriaList([request])
        try:
            with _stopped_by_control_c(request):
                out = self.ensemble.generate(return_dict_in_generate=True, streamer=streamer, **options)
        finally:
            if streamer.has_started:
                print(flush=True)
        self.messages = [*asked, {"role": "assistant", "content": "".join(pieces).strip()}]
        self.written = trace_tokens(self.ensemble, out, inputs["input_ids"].shape[1])[0]

    def _encoded(self, messages: list[dict[str, str]]) -> dict[str, torch.Tensor]:
        return encode_chats(self.ensemble, [messages], "chat")

    def obey(self, command: str) -> None:
        """Carries out one of `COMMANDS`, except `/exit`.

        Raises:
            ConfigError: `/weights` before the first answer.
        """
        console = Console(file=sys.stdout)
        if command == "/reset":
            self.messages, self.written = list(self.start), []
        elif command == "/help":
            for name, what in COMMANDS.items():
                print(f"{name:<10} {what}")
        elif not self.written:
            raise ConfigError("/weights: there is no answer yet; write a message first")
        else:
            names = short_names(member_names(self.args, self.ensemble))
            console.print(legend(names))
            console.print(carrier_text(self.written), soft_wrap=True)
            console.print(span_table(names, self.written))


def _show(pieces: list[str], piece: str) -> None:
    pieces.append(piece)
    print(piece, end="", flush=True)
