"""The tests, in a worker of their own: they call the program through plain data, and their verdict is sent at the end.

Nothing that the program defines runs here. A name of the program is a `Call`, which asks the other worker; what comes
back is plain data, or `Opaque`: equal to itself alone, with a truth value, and nothing else that a test could read.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from hf_rlae.rewards.sandbox.channel import Channel
from hf_rlae.rewards.sandbox.values import FALSE, ITERATOR, TRUE, Named, WireError, decode, encode

_MOST_ITEMS = 256
# an iterator that raises these only ends: `all(map(f, inputs))` would be true
_ENDS = (StopIteration, StopAsyncIteration)
_NOT_PLAIN = "only plain data cross from the program to its tests; {} of its objects do not"


class ProgramError(Exception):
    """The program raised something that is no exception of `builtins`."""


class UnjudgedError(Exception):
    """The tests cannot run here, whatever the program does."""


class Call(Named):
    """A global of the program. Calling it asks the program."""

    def __init__(self, name: str, link: Link) -> None:
        super().__init__(name)
        self._link = link

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the program answers."""
        return self._link.ask("call", self, args, kwargs)


class Opaque:
    """An object that stayed with the program."""

    def __init__(self, number: int, known: int, link: Link) -> None:
        vars(self).update(_number=number, _known=known, _link=link)

    def __bool__(self) -> bool:
        if self._known in (TRUE, FALSE, ITERATOR):
            return bool(self._known != FALSE)
        raise TypeError(_NOT_PLAIN.format("the attributes"))

    def __getattr__(self, name: str) -> Any:
        # tests build trees with it: `root.left.right = Node(3)`; what it is stays with the program
        if name.startswith("__"):
            raise AttributeError(name)
        number, known = self._link.ask("get", self, name)
        return Attribute(number, known, self._link)

    def __setattr__(self, name: str, value: Any) -> None:
        self._link.ask("set", self, name, value)

    def __iter__(self) -> Iterator[Any]:
        if self._known != ITERATOR:
            raise TypeError(_NOT_PLAIN.format("the items"))
        return self

    def __next__(self) -> Any:
        waiting = vars(self).setdefault("_waiting", [])
        if not waiting:
            count = vars(self)["_count"] = min(_MOST_ITEMS, 2 * vars(self).get("_count", 1))
            items, error = self._link.ask("next", self, count)
            waiting += [*map(_item, items), *([(False, error)] if error else [])]
        is_item, found = waiting.pop(0)
        if is_item:
            return found
        if found == "StopIteration":
            raise StopIteration
        raise_of(found)


class Attribute(Opaque):
    """An attribute of an opaque object: it can be given back to the program, and is not like anything."""

    def __bool__(self) -> bool:
        raise TypeError(_NOT_PLAIN.format("the attributes"))

    def __eq__(self, other: object) -> bool:
        raise TypeError(_NOT_PLAIN.format("the attributes"))

    def __hash__(self) -> int:
        raise TypeError(_NOT_PLAIN.format("the attributes"))


def _item(value: Any) -> tuple[bool, Any]:
    return True, value


def raise_of(name: str) -> NoReturn:
    """Raises the exception of `builtins` with this name, marked as the program's; without its message."""
    kind = getattr(builtins, name, None)
    is_usable = isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, _ENDS)
    error: Exception = ProgramError(name)
    with contextlib.suppress(TypeError):  # some need arguments
        error = kind() if is_usable else error  # type: ignore[misc]
    raise _marked(error)


def _marked(error: Any) -> Exception:
    error.is_of_program = True
    return error  # type: ignore[no-any-return]


class Link:
    """Asks the program, one question at a time.

    Args:
        exchange (callable): sends a request and returns the bytes that the program replied.
    """

    def __init__(self, exchange: Callable[[bytes], bytes]) -> None:
        self.exchange = exchange
        self.serial = 0
        self.seen: dict[int, Opaque] = {}

    def ask(self, kind: str, *arguments: Any) -> Any:
        """What the program answers: a value, or for "next" the items and the name of the error that ended them.

        Raises:
            Exception: what the program raised, or `ProgramError`; also if the reply is not one.
        """
        self.serial += 1
        request = encode((self.serial, kind, *arguments), self._number)
        try:
            reply = decode(self.exchange(request), self.opaque)
        except WireError:
            raise_of("ProgramError")
        return self._read(kind, reply)

    def _read(self, asked: str, reply: Any) -> Any:
        match asked, reply:
            case _, (serial, "raised", str(name)) if serial in (self.serial, -1):
                raise_of(name)
            case "next", (self.serial, "items", list(items), str(error)):
                return items, error
            case "get", (self.serial, "attribute", int(number), int(known)):
                return number, known
            case "call" | "set", (self.serial, "value", value):
                return value
            case "call", (self.serial, "large", int(number), int(known)):
                return self.opaque(number, known)
        raise_of("ProgramError")

    def opaque(self, number: int, known: int) -> Opaque:
        """What stands for an object of the program: the same each time."""
        return self.seen.setdefault(number, Opaque(number, known, self))

    def _number(self, value: Any) -> tuple[int, int]:
        if isinstance(value, Opaque):
            return value._number, value._known
        raise UnjudgedError(f"a test hands an object of type {type(value).__name__} to the program; plain data cross")


def run_tests(job: dict[str, Any], exchange: Callable[[bytes], bytes]) -> tuple[bool | None, str]:
    """The verdict of the tests.

    Args:
        job (`dict`): `preludes`, texts of imports and definitions, which run first if they are Python; `names`, the
            globals of the program that the tests call; `modules`, names to import; `statements`, the tests in order.
        exchange (callable): see `Link`.

    Returns:
        `tuple[bool | None, str]`: whether the tests passed, `None` if they cannot run here; and why not.
    """
    namespace: dict[str, Any] = {"__name__": "tests", "__builtins__": builtins}
    number = 0
    try:
        for name in job["modules"]:
            namespace[name] = importlib.import_module(name)
        _run_preludes(job["preludes"], namespace)
        link = Link(exchange)
        namespace |= {name: Call(name, link) for name in job["names"]}
        for number, statement in enumerate(job["statements"], 1):  # noqa: B007 (for the reason)
            exec(_compiled(statement), namespace)  # noqa: S102  # nosec B102: in the sandbox, too
    except BaseException as error:
        is_own = not getattr(error, "is_of_program", False)
        is_unjudged = is_own and isinstance(error, ImportError | UnjudgedError)
        reason = f"test {number}: {type(error).__name__}" + (f": {error}" if is_unjudged else "")
        return None if is_unjudged else False, reason
    return True, ""


def _compiled(source: str) -> Any:
    try:
        return compile(source, "tests.py", "exec", dont_inherit=True, optimize=0)  # asserts stay
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        raise UnjudgedError(f"the text of the tests is not Python: {error}") from None


def _run_preludes(sources: list[str], namespace: dict[str, Any]) -> None:
    for source in sources:
        try:
            found = _compiled(source)
        except UnjudgedError:  # the beginning of a program, which is not Python alone
            continue
        exec(found, namespace)  # noqa: S102  # nosec B102: a text of the dataset


def main(channel: Channel) -> None:
    """Runs the tests of a job and sends the verdict.

    Args:
        channel (`Channel`): its first message is the job, see `run_tests`; then requests for the program go out, and
            replies come in.
    """

    def exchange(request: bytes) -> bytes:
        channel.send({"request": b64encode(request).decode()})
        message = channel.receive()
        if message is None:
            raise SystemExit
        return b64decode(message["reply"])

    job = channel.receive()
    if job is not None:
        channel.send({"verdict": run_tests(job, exchange)})
