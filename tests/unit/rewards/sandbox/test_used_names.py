"""Which names of the tests are the program's."""

from __future__ import annotations

import pytest

from hf_rlae.errors import RewardError
from hf_rlae.rewards.sandbox.used_names import UsedNames, used_names

CASES = {
    "a function": ("assert f(1) == 2", None, UsedNames(("f",))),
    "builtins are the tests' own": ("assert sorted(set(f(1))) == list([2])", None, UsedNames(("f",))),
    "also if the program is known to use them": ("assert len(f(1)) == 2", "def f(x): return len(x)", UsedNames(("f",))),
    "the only one that is called": ("assert sum(1, 2) == 3", None, UsedNames(("sum",))),
    "one that the reference defines": ("assert set(sum(1)) == {1}", "def sum(x): return [x]", UsedNames(("sum",))),
    "imports of the tests": ("import math\nfrom re import sub\nassert f(math.pi, sub)", None, UsedNames(("f",))),
    "what the tests define": ("def check(g):\n    x = g(1)\n    assert x\ncheck(f)", None, UsedNames(("f",))),
    "variables of comprehensions": ("assert all(f(x) == y for x, y in [(1, 2)])", None, UsedNames(("f",))),
    "errors that are caught": (
        "try:\n    f(1)\nexcept ValueError as error:\n    assert error",
        None,
        UsedNames(("f",)),
    ),
    "modules": ("assert f(1) == sys.getsizeof(1)", None, UsedNames(("f",), ("sys",))),
    "a function with the name of a module": ("assert calendar(1) == 2", None, UsedNames(("calendar",))),
    "imports of the reference": (
        "assert f(1) == Counter('a') and sq(4)",
        "from collections import Counter\nfrom math import sqrt as sq\ndef f(x): return Counter(x)",
        UsedNames(("f",), (), ("from collections import Counter", "from math import sqrt as sq")),
    ),
    "without a reference they are the program's": ("assert f(1) == Counter('a')", None, UsedNames(("Counter", "f"))),
    "a reference that is not Python": ("assert f(1)", "def f(", UsedNames(("f",))),
    "classes and constants": ("assert f(Node(1)) == R", "R = 1\nclass Node: pass", UsedNames(("Node", "R", "f"))),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_names(case):
    tests, reference, expected = case
    assert used_names(tests, reference) == expected


@pytest.mark.parametrize(
    ("tests", "reason"),
    [
        ("assert f(1", "are not Python"),
        ("assert 1 == 1", "call nothing that a program could define"),
        ("assert max(1, 2) == min(2, 3)", "call nothing that a program could define"),
        ("assert \0", "are not Python"),
    ],
)
def test_tests_that_test_nothing(tests, reason):
    with pytest.raises(RewardError, match=reason):
        used_names(tests)
