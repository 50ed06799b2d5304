"""What the split judge pays: right programs, and nothing that only looks right. Without isolation, in threads."""

from __future__ import annotations

import contextlib

import pytest

from hf_rlae.errors import SandboxUnavailableError
from hf_rlae.rewards.sandbox.judge import Job, Verdict, judge, judge_all
from hf_rlae.rewards.sandbox.outcomes import Ended, Outcome, WorkerEndedError
from hf_rlae.rewards.sandbox.used_names import UsedNames
from tests.support.threads_as_workers import ThreadsSandbox, threads_place
from tests.unit.rewards.sandbox.cheats import CHEATS, FALSE_EQUAL, NEEDS_PROCESSES, job


def verdict(program, *tests, **options):
    return judge(threads_place, job(program, *tests, **options))


RIGHT = {
    "a number": ("def f(x): return x + 1", "assert f(1) == 2", "assert f(x=-1) == 0"),
    "a list": ("def f(x): return sorted(x)", "assert f([2, 1]) == [1, 2]"),
    "one of several texts": ("def f(): return 'ab'", "assert f() in ('ab', 'ba')"),
    "nearly equal": ("def f(): return 0.1 + 0.2", "import math\nassert math.isclose(f(), 0.3)"),
    "a module that the tests do not import": ("def f(): return 2.0", "assert f() == math.sqrt(4)"),
    "a loop": ("def f(x): return x * x", "for x in range(5):\n    assert f(x) == x**2"),
    "two functions": ("def f(x): return x\ndef g(x): return -x", "assert f(g(1)) == -1"),
    "a class that only the program reads": (
        """
        class Pair:
            def __init__(self, a, b):
                self.a, self.b = a, b
        def f(pairs): return [pair.a + pair.b for pair in pairs]
        """,
        "assert f([Pair(1, 2), Pair(3, 4)]) == [3, 7]",
    ),
    "a tree that the tests build": (
        """
        class Node:
            def __init__(self, value): self.value, self.left, self.right = value, None, None
        def depth(node): return 1 + max(depth(node.left), depth(node.right)) if node else 0
        """,
        "root = Node(1)\nroot.left = Node(2)\nroot.left.right = Node(3)",
        "assert depth(root) == 3",
    ),
    "a truth value": ("import re\ndef f(x): return re.match('a', x)", "assert f('ab')", "assert not f('b')"),
    "a generator": ("def f(n):\n    yield from range(n)", "assert list(f(700)) == list(range(700))"),
    "an endless generator": (
        "import itertools\ndef f(): return itertools.count()",
        "import itertools\nassert list(itertools.islice(f(), 3)) == [0, 1, 2]",
    ),
    "a map": ("def f(x): return map(str, x)", "assert list(f([1, 2])) == ['1', '2']"),
    "an exception": (
        "def f(x): return 1 / x",
        """
        try:
            f(0)
        except ZeroDivisionError:
            pass
        else:
            raise AssertionError
        """,
    ),
    "a type as an argument": ("def f(x, kind): return isinstance(x, kind)", "assert f(1, int) and not f('', int)"),
    "the name of a function of Python": ("def sum(a, b): return a + b", "assert sum(1, 2) == 3"),
    "output": ("def f():\n    print('x')\n    return 1", "assert f() == 1"),
    "equality with itself": ("class A: pass\nmade = A()\ndef f(): return made", "assert f() == f() and f() is f()"),
    "a data class": (
        "from dataclasses import dataclass\n@dataclass\nclass P:\n    a: int\ndef f(): return P(1).a",
        "assert f() == 1",
    ),
    "recursion that it catches": (
        "def f(n=0):\n    try:\n        return f(n + 1)\n    except RecursionError:\n        return 'deep'",
        "assert f() == 'deep'",
    ),
}


@pytest.mark.parametrize("case", RIGHT.values(), ids=RIGHT)
def test_right_programs_pass(case):
    assert verdict(*case) == Verdict(True)


WRONG = {
    "a wrong number": ("def f(x): return 3", "assert f(1) == 2"),
    "the last test fails": ("def f(x): return 2", "assert f(1) == 2", "assert f(2) == 3"),
    "no such function": ("def g(x): return 2", "assert f(1) == 2"),
    "no Python": ("def f(x: return 2", "assert f(1) == 2"),
    "an error at its end": ("def f(x): return 2\nraise ValueError", "assert f(1) == 2"),
    "an iterator is no list": ("def f(x): return iter([1])", "assert f(1) == [1]"),
    "too large": ("def f(x): return 'x' * 10**7", "assert f(1) == 'y'"),
    "too large, though as expected": ("def f(x): return 'x' * 10**7", "assert f(1) == 'x' * 10**7"),
    "an attribute is not read": ("class A: value = 1\ndef f(): return A()", "assert f().value == 1"),
    "no attribute differs": ("class A: value = 1\ndef f(): return A()", "assert f().value != 2"),
    "an attribute has no truth value": ("class A: value = 1\ndef f(): return A()", "assert f().value"),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_wrong_programs_fail(case):
    assert verdict(*case).passed is False


IN_THREADS = {name: case for name, case in CHEATS.items() if name not in NEEDS_PROCESSES}


@pytest.mark.parametrize("case", IN_THREADS.values(), ids=IN_THREADS)
def test_cheats_fail(case):
    assert verdict(*case).passed is False


@pytest.mark.parametrize("base", ["int", "str", "float", "list", "dict", "tuple", "set", "object"])
def test_the_plain_way_pays_what_the_judge_does_not(base):
    """The cheats above are cheats: beside the tests, in one process, they pass."""
    program = FALSE_EQUAL.format(base=f"({base})") + "    __hash__ = None\ndef f(x): return Equal()"
    namespace: dict = {}
    exec(program + "\nassert f(1) == 2", namespace)
    assert verdict(program, "assert f(1) == 2").passed is False


def test_programs_cannot_replace_what_the_tests_begin_with():
    """As in HumanEval/32: a function of the prompt is the tests' own."""
    prelude = "def poly(x): return x - 2\ndef zero():\n    pass\n"
    case = Job(
        ("def poly(x): return 0\ndef zero(): return 7",),
        ("assert abs(poly(zero())) < 1e-4",),
        UsedNames(("zero",)),
        (prelude,),
    )
    assert judge(threads_place, case).passed is False
    right = Job(("def zero(): return 2",), case.statements, case.names, case.preludes)
    assert judge(threads_place, right).passed is True


@pytest.mark.parametrize(
    ("tests", "reason"),
    [
        (("import no_such_module", "assert f() == 1"), "no_such_module"),
        (("assert f(lambda: 1) == 1",), "hands an object of type function"),
    ],
)
def test_tests_that_cannot_run_judge_nobody(tests, reason):
    found = verdict("def f(*x): return 2", *tests)
    assert found.passed is None
    assert reason in found.reason


def test_a_program_cannot_say_that_it_cannot_be_judged():
    for kind in ("ImportError", "ModuleNotFoundError", "UnjudgedError"):
        assert (
            verdict(f"class UnjudgedError(Exception): pass\ndef f(): raise {kind}", "assert f() == 1").passed is False
        )


class Scripted:
    """A worker of a program that says what it likes."""

    def __init__(self, *replies):
        self.replies = list(replies)

    def send(self, message):
        pass

    def receive(self):
        reply = self.replies.pop(0) if self.replies else Ended(Outcome.EXITED, "exit code 0")
        if isinstance(reply, Ended):
            raise WorkerEndedError(reply)
        return reply


def judged_with(*replies):
    scripted = Scripted(*replies)
    return judge(scripted_place(scripted), job("", "assert f(1) == 2"))


def scripted_place(program):
    """Room for workers of which the program's is scripted."""

    @contextlib.contextmanager
    def place(*soon):
        with threads_place() as start:
            yield lambda role: program if role == "program" else start(role)

    return place


LOADED = {"loaded": ""}


@pytest.mark.parametrize(
    "replies",
    [
        ({"verdict": [True, ""]},),
        (LOADED, {"verdict": [True, ""]}),
        (LOADED, {"reply": "AAAA", "verdict": [True, ""]}),
        (LOADED, {"reply": None}),
        (LOADED, {"reply": "not base64 ä"}),
        (LOADED, {"reply": ""}),
        (LOADED, {"reply": "ä" * 400_000}),
        (LOADED, {}),
        ({"loaded": True},),
        (LOADED, Ended(Outcome.EXITED, "exit code 0")),
        (LOADED, Ended(Outcome.TIMEOUT)),
        (LOADED, Ended(Outcome.BROKEN)),
        (Ended(Outcome.MEMORY),),
    ],
    ids=str,
)
def test_forged_answers_and_ends_fail(replies):
    assert judged_with(*replies).passed is False


@pytest.mark.parametrize("outcome", [Outcome.KILLED, Outcome.UNAVAILABLE])
@pytest.mark.parametrize("before", [(), (LOADED,)], ids=["loading", "answering"])
def test_an_outage_judges_nobody(outcome, before):
    assert judged_with(*before, Ended(outcome)).passed is None


def test_what_could_not_be_judged_is_judged_once_more():
    places = iter([scripted_place(Scripted(Ended(Outcome.KILLED))), threads_place])
    sandbox = ThreadsSandbox(lambda *soon: next(places)(*soon))
    assert judge_all(sandbox, [job("def f(): return 1", "assert f() == 1")]) == [Verdict(True)]


def test_more_than_one_in_a_hundred_outages_are_an_error():
    sandbox = ThreadsSandbox(scripted_place(Scripted(*[Ended(Outcome.KILLED)] * 4)))
    case = job("def f(): return 1", "assert f() == 1")
    assert judge_all(sandbox, [case])[0].passed is None
    with pytest.raises(SandboxUnavailableError, match=r"2 of the last 2 gradings.*killed"):
        judge_all(sandbox, [case])


def test_batches_keep_their_order_and_judge_equal_programs_once():
    started = []

    @contextlib.contextmanager
    def counted(*soon):
        with threads_place() as start:
            yield lambda role: started.append(role) or start(role)

    programs = ["def f(): return 1", "def f(): return 2", "def f(): return 1", "def f("] * 4
    found = judge_all(ThreadsSandbox(counted), [job(program, "assert f() == 1") for program in programs])
    assert [each.passed for each in found] == [True, False, True, False] * 4
    assert started.count("program") == 3
    assert judge_all(ThreadsSandbox(), []) == []
