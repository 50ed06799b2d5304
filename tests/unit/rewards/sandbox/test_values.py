"""Plain data cross exactly; nothing else does, and no bytes do harm."""

from __future__ import annotations

import collections
import datetime
import itertools
import math
import struct
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_rlae.rewards.sandbox import values
from hf_rlae.rewards.sandbox.values import ITERATOR, MOST_LEVELS, UNKNOWN, Named, WireError, decode, encode
from tests.support.tiers import draws


class Opaque:
    """What stands for something that stayed behind."""

    def __init__(self, number, known):
        self.number, self.known = number, known


def crossed(value):
    return decode(encode(value, lambda other: (7, UNKNOWN)), Opaque, Named)


def same(left, right):
    """Equal, of the same types throughout, with the signs of zeros, and NaN equal to NaN."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return struct.pack("d", left) == struct.pack("d", right) or (math.isnan(left) and math.isnan(right))
    if isinstance(left, complex):
        return same(left.real, right.real) and same(left.imag, right.imag)
    if isinstance(left, list | tuple | collections.deque):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return same(list(left.items()), list(right.items()))
    return left == right


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.text(st.characters()),
    st.binary(),
)
HASHABLE = st.one_of(st.none(), st.booleans(), st.integers(), st.text(st.characters()), st.binary())
PLAIN = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(tuple),
        st.sets(HASHABLE),
        st.frozensets(HASHABLE),
        st.dictionaries(HASHABLE, inner),
    ),
    max_leaves=20,
)


@settings(max_examples=draws(50, 2000))
@given(PLAIN)
def test_plain_data_cross_exactly(value):
    assert same(crossed(value), value)


@pytest.mark.parametrize(
    "value",
    [
        2**100_000,  # longer than Python prints
        -(2**63),
        float("nan"),
        -0.0,
        complex(-0.0, math.inf),
        "\ud83d\ude00",  # two halves of a pair, which JSON would join
        "\udfff",
        Ellipsis,
        collections.Counter("hello"),
        collections.OrderedDict([(2, 1), (1, 2)]),
        collections.deque([1, 2], maxlen=5),
        range(3, 10, -2),
        bytearray(b"x"),
        Fraction(1, 3),
        Decimal("1.50"),
        datetime.date(2020, 2, 29),
        datetime.time(1, 2, 3, 4),
        datetime.datetime(2020, 1, 1, 5),
        datetime.timedelta(-1, 2, 3),
        {(1, frozenset({2})): [{}]},
    ],
    ids=lambda value: repr(value)[:30] if not isinstance(value, int) else "int",
)
def test_values_that_others_would_lose(value):
    assert same(crossed(value), value)


def test_views_and_functions_of_python():
    keys = crossed({"a": 1, "b": 2}.keys())
    assert type(keys) is type({}.keys())
    assert keys == {"a", "b"}
    assert list(crossed({"a": 1}.values())) == [1]
    assert crossed({"a": 1}.items()) == {("a", 1)}
    assert dict(crossed(collections.defaultdict(list, a=[1]))) == {"a": [1]}
    assert crossed([int, ValueError, len]) == [int, ValueError, len]
    assert crossed(Named("f")).name == "f"


class Five(int):
    """An integer that is equal to everything."""

    def __eq__(self, other):
        return True

    __hash__ = None


class Lies:
    """It says that it is an `int`."""

    __class__ = int


@pytest.mark.parametrize(
    "value",
    [
        Five(5),
        Lies(),
        type("Text", (str,), {})("a"),
        type("Items", (list,), {})([1]),
        collections.namedtuple("Pair", "a b")(1, 2),
        iter([1]),
        itertools.count(),
        math,
        lambda: 1,
        object(),
        Five,
        datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
        open,
        eval,
        globals,
    ],
    ids=lambda value: type(value).__name__,  # the same in every process
)
def test_anything_else_is_opaque(value):
    """Also what may look like plain data: only the type counts."""
    found = crossed([value])[0]
    assert type(found) is Opaque
    assert (found.number, found.known) == (7, UNKNOWN)


def test_what_is_too_large_or_too_deep():
    deep = []
    deep.append(deep)
    wide = [1]
    for _ in range(60):
        wide = [wide, wide]
    for value in (deep, wide, "xy" * values.MOST_BYTES, list(range(values.MOST_BYTES)), 1 << (9 * values.MOST_BYTES)):
        with pytest.raises(WireError, match="too large"):
            encode(value, lambda other: (0, UNKNOWN))
    nested: list = []
    for _ in range(MOST_LEVELS - 1):
        nested = [nested]
    assert crossed(nested) == nested
    with pytest.raises(WireError):
        crossed([nested])


LENGTH = struct.Struct("<I").pack


def text(value):
    return b"s" + LENGTH(len(value)) + value


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "end within"),
        (b"i", "end within"),
        (b"i" + LENGTH(2) + b"x", "larger than what is left"),
        (b"l" + LENGTH(2**32 - 1), "larger than what is left"),
        (b"l" + LENGTH(2) + b"N", "larger than what is left"),
        (b"NN", "behind the value"),
        (b"q", "end within"),
        (b"q" + text(b"a"), "unknown mark"),
        (b"f" + LENGTH(4) + b"abcd", "error"),
        (text(b"\xff"), "UnicodeDecodeError"),
        (b"e" + LENGTH(1) + b"l" + LENGTH(0), "TypeError"),
        (b"d" + LENGTH(1) + b"l" + LENGTH(0) + b"N", "TypeError"),
        (b"x" + text(b"Counter") + b"N", "not the arguments"),
        (b"x" + text(b"Counter") + b"l" + LENGTH(1) + b"N", "not the arguments"),
        (b"x" + text(b"bytearray") + b"l" + LENGTH(1) + b"i" + LENGTH(5) + b"\0\0\0\0\1", "not the arguments"),
        (b"x" + text(b"system") + b"l" + LENGTH(0), "KeyError"),
        (b"x" + b"N" + b"l" + LENGTH(0), "not a string"),
        (b"n" + text(b"eval"), "KeyError"),
        (b"n" + text(b"__import__"), "KeyError"),
        (b"p" + text(b"f"), "unknown mark"),
        (b"o" + LENGTH(1) + b"\x09", "of the kind 9"),
        (b"l\x01\0\0\0" * 200 + b"N", "nested too deeply"),
    ],
)
def test_bytes_that_no_encoder_writes(data, reason):
    with pytest.raises(WireError, match=reason):
        decode(data, Opaque)


@settings(max_examples=draws(100, 10000))
@given(st.binary(max_size=60))
def test_any_bytes_are_a_value_or_an_error(data):
    try:
        found = decode(data, Opaque)
    except WireError:
        return
    assert type(found) is not bytes or data.endswith(found)


@settings(max_examples=draws(50, 2000))
@given(PLAIN, st.data())
def test_a_changed_byte_gives_plain_data_or_an_error(value, data):
    """Whatever a program does to the bytes, what is built is plain."""
    encoded = bytearray(encode(value, lambda other: (0, ITERATOR)))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = decode(bytes(encoded), Opaque)
    except WireError:
        return
    encode(found, lambda other: (0, UNKNOWN) if type(other) is Opaque else pytest.fail(f"{other!r} is not plain"))


def test_replaced_functions_of_python_change_nothing(monkeypatch):
    """A program may replace `len` or `dict` for its whole process."""
    with monkeypatch.context() as patched:
        patched.setattr("builtins.len", lambda value: 3)
        patched.setattr("builtins.dict", None)
        found = crossed([1, (2, {3: "x"})])
    assert found == [1, (2, {3: "x"})]
