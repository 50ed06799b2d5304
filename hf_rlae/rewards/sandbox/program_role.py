"""The program that is judged, in its own worker: it is loaded once, and then answers calls with plain data.

This process never sees the tests: neither what they expect, nor a call before it is made. What it sends is not trusted,
so nothing here protects anything; it makes the program of an honest author answer right.
"""

from __future__ import annotations

import builtins
import itertools
import sys
import types
from base64 import b64decode, b64encode
from typing import Any

from hf_rlae.rewards.sandbox.channel import Channel
from hf_rlae.rewards.sandbox.values import FALSE, ITERATOR, TRUE, UNKNOWN, WireError, decode, encode

# see `values`
globals()["__builtins__"] = dict(vars(builtins))

_EXAMPLES: tuple[Any, ...] = ([], (), {}, set(), "", b"", range(1), bytearray(), {}.values(), {}.items())
_ITERATORS = {
    *(type(iter(each)) for each in _EXAMPLES),
    *(type(reversed(each)) for each in _EXAMPLES if hasattr(each, "__reversed__")),
    *(kind for kind in vars(itertools).values() if isinstance(kind, type)),
    *(map, filter, zip, enumerate, reversed, types.GeneratorType, type(iter(int, 1))),
}
_MOST_NAME = 100


class Candidate:
    """A program, and the objects that it gave to the tests."""

    def __init__(self) -> None:
        self.module = types.ModuleType("program")
        self.globals = vars(self.module)
        self.objects: list[Any] = []
        self.numbers: dict[int, int] = {}

    def load(self, sources: list[str]) -> str:
        """Runs the first of several texts that is Python.

        Returns:
            `str`: the name of the error that it raised, or "".
        """
        found = None
        for source in sources:
            try:
                found = compile(source, "program.py", "exec", dont_inherit=True)
                break
            except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
                continue
        if found is None:
            return "SyntaxError"
        sys.modules["program"] = self.module  # dataclasses and the like look for the module of a class
        try:
            exec(found, self.globals)  # noqa: S102  # nosec B102: this is what the sandbox is for
        except BaseException as error:
            return _name(error)
        return ""

    def answer(self, request: bytes) -> bytes:
        """What the program says to one request; see `_do`."""
        try:
            serial, kind, *arguments = decode(request, lambda number, known: self.objects[number], self._global)
        except BaseException as error:  # also: a global that the program has not
            return self._encoded((-1, "raised", _name(error)))
        try:
            result = (serial, *self._do(kind, *arguments))
        except BaseException as error:
            result = (serial, "raised", _name(error))
        return self._encoded(result)

    def _do(self, kind: str, target: Any, *arguments: Any) -> tuple[Any, ...]:
        if kind == "call":
            args, kwargs = arguments
            return ("value", target(*args, **kwargs))
        if kind == "get":
            return ("attribute", *self._opaque(getattr(target, *arguments)))
        if kind == "set":
            setattr(target, *arguments)
            return ("value", None)
        return self._items(target, *arguments)

    def _items(self, iterator: Any, most: int) -> tuple[str, list[Any], str]:
        items: list[Any] = []
        try:
            while len(items) < most:
                items.append(next(iterator))
        except BaseException as error:
            return "items", items, _name(error)
        return "items", items, ""

    def _encoded(self, reply: tuple[Any, ...]) -> bytes:
        try:
            return encode(reply, self._opaque)
        except WireError:  # too large: it has a truth value still
            pass
        except BaseException as error:
            reply = (*reply[:1], "raised", _name(error))
            return encode(reply, self._opaque)
        number, known = self._opaque(reply[2])
        return encode((reply[0], "large", number, known), self._opaque)

    def _opaque(self, value: Any) -> tuple[int, int]:
        number = self.numbers.setdefault(id(value), len(self.objects))
        if number == len(self.objects):
            self.objects.append(value)  # so that its id stays its own
        if type(value) in _ITERATORS:
            return number, ITERATOR
        try:
            return number, TRUE if value else FALSE
        except BaseException:
            return number, UNKNOWN

    def _global(self, name: str) -> Any:
        if name not in self.globals:
            raise NameError(name)
        return self.globals[name]


def _name(error: BaseException) -> str:
    name = type(error).__name__
    return name if type(name) is str and len(name) <= _MOST_NAME else "Exception"


def main(channel: Channel) -> None:
    """Loads a program and answers until nothing asks any more.

    Args:
        channel (`Channel`): its first message has `sources`, the texts of which the first that is Python is run.
    """
    first = channel.receive()
    if first is None:
        return
    candidate = Candidate()
    channel.send({"loaded": candidate.load(first["sources"])})
    while (message := channel.receive()) is not None:
        channel.send({"reply": b64encode(candidate.answer(b64decode(message["request"]))).decode()})
