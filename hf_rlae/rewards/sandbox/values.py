"""Plain data as bytes: what crosses between a program that is not trusted and the process that judges it.

Plain data are `None`, `bool`, `int`, `float`, `complex`, `str`, `bytes`, and `list`, `tuple`, `set`, `frozenset`,
`dict` of them, of exactly these types, and the types of the standard library in `_STANDARD`, whose objects are built
again from plain data. Anything else is *opaque*: an instance of a class of the program, also of a subclass of `int`,
crosses as a number that stands for it and its truth value. Iterators cross as opaque, too, and are read on demand.

The bytes of the program are not trusted: `decode` checks each of them, and builds nothing but plain data. This module
is also loaded where the program runs. It imports the standard library only.
"""

from __future__ import annotations

import builtins
import datetime
import struct
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

# a program may replace `len` or `type` for the whole process: the functions below look them up in a copy
globals()["__builtins__"] = dict(vars(builtins))

MOST_BYTES = 2**19
"""The largest encoded value."""
MOST_LEVELS = 100
"""How deep containers may be nested."""

FALSE, TRUE, UNKNOWN, ITERATOR = range(4)
"""What is known of something opaque: its truth value, that it has none, or that it is an iterator."""


class WireError(ValueError):
    """Bytes that no encoder writes, or a value that is too large or too deep to cross."""


class Named:
    """A global of the program, which only the program's side has.

    Args:
        name (`str`): of the global of the program.
    """

    def __init__(self, name: str) -> None:
        self.name = name


_SCALARS: dict[type, bytes] = {int: b"i", str: b"s", bytes: b"b", float: b"f", complex: b"c"}
_CONSTANTS: dict[bytes, Any] = {b"N": None, b"T": True, b"F": False, b"E": Ellipsis}
_CONTAINERS: dict[type, bytes] = {list: b"l", tuple: b"t", set: b"e", frozenset: b"z"}
_DATE = ("year", "month", "day")
_TIME = ("hour", "minute", "second", "microsecond")


def _fields(*names: str) -> Callable[[Any], list[Any]]:
    return lambda value: [getattr(value, name) for name in names]


def _without_zone(*names: str) -> Callable[[Any], list[Any] | None]:
    return lambda value: None if value.tzinfo is not None else [getattr(value, name) for name in names]


# type -> how its arguments are read off (`None`: this one cannot cross), the types of the arguments, how it is built
_STANDARD: dict[type, tuple[Callable[[Any], list[Any] | None], tuple[type, ...], Callable[..., Any]]] = {
    Counter: (lambda value: [dict(value)], (dict,), Counter),
    OrderedDict: (lambda value: [dict(value)], (dict,), OrderedDict),
    defaultdict: (lambda value: [dict(value)], (dict,), lambda items: defaultdict(None, items)),
    deque: (lambda value: [list(value), value.maxlen], (list, object), deque),
    range: (_fields("start", "stop", "step"), (int, int, int), range),
    bytearray: (lambda value: [bytes(value)], (bytes,), bytearray),
    Fraction: (_fields("numerator", "denominator"), (int, int), Fraction),
    Decimal: (lambda value: [str(value)], (str,), Decimal),
    datetime.date: (_fields(*_DATE), (int,) * 3, datetime.date),
    datetime.time: (_without_zone(*_TIME), (int,) * 4, datetime.time),
    datetime.datetime: (_without_zone(*_DATE, *_TIME), (int,) * 7, datetime.datetime),
    datetime.timedelta: (_fields("days", "seconds", "microseconds"), (int,) * 3, datetime.timedelta),
    type({}.keys()): (lambda value: [list(value)], (list,), lambda items: dict.fromkeys(items).keys()),
    type({}.values()): (lambda value: [list(value)], (list,), lambda items: dict(enumerate(items)).values()),
    type({}.items()): (lambda value: [list(value)], (list,), lambda items: dict(items).items()),
}
_STANDARD_BY_NAME = {kind.__name__: kind for kind in _STANDARD}
# what tests may hand to a program, and programs to tests: the types of `builtins`, and functions without side effects
_FUNCTIONS: tuple[Any, ...] = (
    abs,
    all,
    any,
    ascii,
    bin,
    callable,
    chr,
    divmod,
    format,
    hash,
    hex,
    isinstance,
    issubclass,
    iter,
    len,
)
_FUNCTIONS += (max, min, next, oct, ord, pow, repr, round, sorted, sum)
_TYPES = [value for name, value in vars(builtins).items() if type(value) is type and name[0] != "_"]
_KNOWN: dict[str, Any] = {value.__name__: value for value in (*_FUNCTIONS, *_TYPES)}
_KNOWN_NAMES = {id(value): name for name, value in _KNOWN.items()}


def encode(value: Any, opaque: Callable[[Any], tuple[int, int]], most_bytes: int = MOST_BYTES) -> bytes:
    """The bytes of a value.

    Args:
        value: anything.
        opaque (callable): gives the number of what is not plain data, and what is known of it (`FALSE`, ...).
        most_bytes (`int`): the longest result.

    Raises:
        WireError: the value is too large, or nested too deeply.
    """
    out = bytearray()
    _write(out, value, opaque, most_bytes, MOST_LEVELS)
    return bytes(out)


def _write(out: bytearray, value: Any, opaque: Callable[[Any], Any], most_bytes: int, levels: int) -> None:
    kind = type(value)
    if len(out) > most_bytes or not levels:
        raise WireError("the value is too large to cross")
    if kind in _SCALARS:
        tag = _SCALARS[kind]
        data = _scalar_bytes(tag, value)
        if len(out) + len(data) > most_bytes:
            raise WireError("the value is too large to cross")
        out += tag + struct.pack("<I", len(data)) + data
    elif kind in _CONTAINERS or kind is dict:
        out += _CONTAINERS.get(kind, b"d") + struct.pack("<I", len(value))
        for item in list(value):
            _write(out, item, opaque, most_bytes, levels - 1)
            if kind is dict:
                _write(out, value[item], opaque, most_bytes, levels - 1)
    else:
        _write_other(out, value, opaque, most_bytes, levels)


def _write_other(out: bytearray, value: Any, opaque: Callable[[Any], Any], most_bytes: int, levels: int) -> None:
    for tag, constant in _CONSTANTS.items():
        if value is constant:
            out += tag
            return
    kind = type(value)
    arguments = _STANDARD[kind][0](value) if kind in _STANDARD else None
    if arguments is not None:
        out += b"x"
        _write(out, kind.__name__, opaque, most_bytes, levels)
        _write(out, arguments, opaque, most_bytes, levels - 1)
    elif id(value) in _KNOWN_NAMES or isinstance(value, Named):
        tag, name = (b"n", _KNOWN_NAMES[id(value)]) if id(value) in _KNOWN_NAMES else (b"p", value.name)
        out += tag
        _write(out, name, opaque, most_bytes, levels)
    else:
        out += b"o" + struct.pack("<IB", *opaque(value))


def _scalar_bytes(tag: bytes, value: Any) -> bytes:
    if tag == b"i":
        size: int = value.bit_length() // 8 + 1
        data: bytes = value.to_bytes(size, "little", signed=True)
        return data
    if tag == b"s":
        text: bytes = value.encode("utf-8", "surrogatepass")
        return text
    if tag == b"b":
        return bytes(value)
    return struct.pack("<d", value) if tag == b"f" else struct.pack("<dd", value.real, value.imag)


def decode(data: bytes, opaque: Callable[[int, int], Any], named: Callable[[str], Any] | None = None) -> Any:
    """The value that bytes stand for.

    Args:
        data (`bytes`): from anywhere.
        opaque (callable): what stands for something that is not plain data, by its number and what is known of it.
        named (callable, *optional*): what stands for a global of the program; without it, there must be none.

    Raises:
        WireError: the bytes are not those of a value.
    """
    reader = _Reader(bytes(data), opaque, named)
    try:
        value = reader.value(MOST_LEVELS)
    except WireError:
        raise
    # what the constructors raise for other bytes than `encode` writes
    except (ArithmeticError, IndexError, KeyError, TypeError, ValueError, MemoryError, struct.error) as error:
        raise WireError(f"the bytes are not those of a value: {type(error).__name__}") from None
    if reader.at != len(reader.data):
        raise WireError("there are bytes behind the value")
    return value


class _Reader:
    def __init__(self, data: bytes, opaque: Callable[[int, int], Any], named: Callable[[str], Any] | None):
        self.data, self.opaque, self.named = data, opaque, named
        self.at = 0

    def take(self, count: int) -> bytes:
        found = self.data[self.at : self.at + count]
        if len(found) != count:
            raise WireError("the bytes end within a value")
        self.at += count
        return found

    def count(self) -> int:
        """A length: no item is shorter than a byte, so none is larger than what is left."""
        number: int = struct.unpack("<I", self.take(4))[0]
        if number > len(self.data) - self.at:
            raise WireError("a length is larger than what is left")
        return number

    def value(self, levels: int) -> Any:
        if not levels:
            raise WireError("the value is nested too deeply")
        tag = self.take(1)
        if tag in _CONSTANTS:
            return _CONSTANTS[tag]
        if tag in b"isbfc":
            return self.scalar(tag)
        if tag in b"ltez":
            items = [self.value(levels - 1) for _ in range(self.count())]
            return {b"l": list, b"t": tuple, b"e": set, b"z": frozenset}[tag](items)
        if tag == b"d":
            return {self.value(levels - 1): self.value(levels - 1) for _ in range(self.count())}
        return self.other(tag, levels)

    def scalar(self, tag: bytes) -> Any:
        data = self.take(self.count())
        if tag == b"i":
            return int.from_bytes(data, "little", signed=True)
        if tag == b"s":
            return data.decode("utf-8", "surrogatepass")
        if tag == b"b":
            return data
        return struct.unpack("<d", data)[0] if tag == b"f" else complex(*struct.unpack("<dd", data))

    def other(self, tag: bytes, levels: int) -> Any:
        if tag == b"o":
            number, known = struct.unpack("<IB", self.take(5))
            if known > ITERATOR:
                raise WireError(f"nothing opaque is of the kind {known}")
            return self.opaque(number, known)
        name = self.text(levels)
        if tag == b"n":
            return _KNOWN[name]
        if tag == b"p" and self.named is not None:
            return self.named(name)
        if tag != b"x":
            raise WireError(f"the bytes have the unknown mark {tag!r}")
        _, kinds, build = _STANDARD[_STANDARD_BY_NAME[name]]
        arguments = self.value(levels - 1)
        if type(arguments) is not list or len(arguments) != len(kinds):
            raise WireError(f"these are not the arguments of {name}")
        if not all(kind is object or type(given) is kind for given, kind in zip(arguments, kinds, strict=True)):
            raise WireError(f"these are not the arguments of {name}")
        return build(*arguments)

    def text(self, levels: int) -> str:
        found = self.value(levels)
        if type(found) is not str:
            raise WireError("a name is not a string")
        return found
