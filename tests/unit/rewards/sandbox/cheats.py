"""Programs that want to be paid without doing what their tests ask."""

from __future__ import annotations

import textwrap
from base64 import b64encode

from hf_rlae.rewards.sandbox.judge import Job
from hf_rlae.rewards.sandbox.used_names import used_names
from hf_rlae.rewards.sandbox.values import encode


def job(program, *tests, reference=None, preludes=()):
    program, tests = textwrap.dedent(program), tuple(map(textwrap.dedent, tests))
    return Job((program,), tests, used_names("\n".join(tests), reference), preludes)


_ANSWER = b64encode(encode((1, "value", 5), lambda value: (0, 0))).decode()
FALSE_EQUAL = (
    "class Equal{base}:\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n"
)
CHEATS = {
    "an object that equals everything": (FALSE_EQUAL.format(base="") + "def f(x): return Equal()", "assert f(1) == 2"),
    "it on the right": (FALSE_EQUAL.format(base="") + "def f(x): return Equal()", "assert 2 == f(1)"),
    "a number that equals everything": (
        FALSE_EQUAL.format(base="(int)") + "def f(x): return Equal(5)",
        "assert f(1) == 2",
    ),
    "a text that equals everything": (
        FALSE_EQUAL.format(base="(str)") + "def f(x): return Equal()",
        "assert f(1) == 'a'",
    ),
    "a float that equals everything": (
        FALSE_EQUAL.format(base="(float)") + "def f(x): return Equal()",
        "assert f(1) == 2.",
    ),
    "a list that equals everything": (
        FALSE_EQUAL.format(base="(list)") + "def f(x): return Equal()",
        "assert f(1) == [2]",
    ),
    "it in a list": (FALSE_EQUAL.format(base="") + "def f(x): return [Equal()]", "assert f(1) == [2]"),
    "it as a key": (
        FALSE_EQUAL.format(base="") + "    def __hash__(self): return hash('a')\ndef f(x): return {Equal(): 1}",
        "assert f(1) == {'a': 1}",
    ),
    "it among the items": (FALSE_EQUAL.format(base="") + "def f(x): return Equal()", "assert f(1) in [1, 2]"),
    "a class that says it is another": (
        "class Lies:\n    __class__ = int\n    def __eq__(self, other): return True\ndef f(x): return Lies()",
        "assert isinstance(f(1), int) and f(1) == 2",
    ),
    "a container of everything": (
        "class All:\n    def __contains__(self, item): return True\ndef f(x): return All()",
        "assert 2 in f(1)",
    ),
    "larger and smaller than anything": (
        "class Any:\n    __lt__ = __gt__ = __le__ = __ge__ = lambda self, other: True\ndef f(x): return Any()",
        "assert f(1) < 2",
    ),
    "methods that say yes": (
        "class Text:\n    def startswith(self, text): return True\ndef f(x): return Text()",
        "assert f(1).startswith('a')",
    ),
    "a length as expected": (
        "class A:\n    def __len__(self): return 2\ndef f(x): return A()",
        "assert len(f(1)) == 2",
    ),
    "a number on demand": (
        "class A:\n    def __int__(self): return 2\n    __index__ = __float__ = __int__\ndef f(x): return A()",
        "assert int(f(1)) == 2",
    ),
    "a text on demand": (
        "class A:\n    def __str__(self): return '2'\n    __repr__ = __str__\ndef f(x): return A()",
        "assert str(f(1)) == '2'",
    ),
    "differences that are nothing": (
        "class A:\n    def __sub__(self, other): return 0\n    __rsub__ = __sub__\ndef f(x): return A()",
        "assert abs(f(1) - 2) < 1e-6",
    ),
    "a replaced builtin": (
        "import builtins\nbuiltins.abs = lambda x: 0\ndef f(x): return 7",
        "assert abs(f(1) - 2) < 1",
    ),
    "a function called as a builtin of the tests": (
        "def sorted(x): return 0\ndef set(x): return 0\ndef len(x): return 0\ndef f(x): return 7",
        "assert sorted(f(1)) == sorted([2])",
    ),
    "a module called as one of the tests": (
        "class math:\n    isclose = staticmethod(lambda a, b: True)\ndef f(x): return 7",
        "assert math.isclose(f(1), 2)",
    ),
    "a replaced module": (
        "import math\nmath.isclose = lambda *a, **k: True\ndef f(x): return 7",
        "assert f(1) == 2 or math.isclose(f(1), 2)",
    ),
    "an error of asserts": ("def f(x): raise AssertionError", "assert f(1) == 2"),
    "the end of an iterator": ("def f(x): raise StopIteration", "assert all(map(f, [1, 2]))"),
    "the end of the process": ("def f(x): raise SystemExit(0)", "assert f(1) == 2"),
    "an interrupt": ("def f(x): raise KeyboardInterrupt", "assert f(1) == 2"),
    "the end of a generator": ("def f(x): raise GeneratorExit", "assert f(1) == 2"),
    "an error that is named as another": (
        "class ValueError(Exception):\n    pass\nValueError.__name__ = 'no such name'\ndef f(x): raise ValueError",
        "assert f(1) == 2",
    ),
    "not a number": ("def f(x): return float('nan')", "assert f(1) == f(1)"),
    "not a number, compared": ("def f(x): return float('nan')", "assert f(1) <= 2"),
    "arguments that it changes": (
        "def f(x):\n    x.clear()\n    return []",
        "given = [2, 1]\nassert f(given) == sorted(given)",
    ),
    "the expected value in a frame": (
        """
        import sys
        def f(x):
            frame = sys._getframe()
            while frame:
                for value in (*frame.f_locals.values(), *frame.f_globals.values()):
                    if type(value) in (int, str) and "31337" in str(value):
                        return 31337
                frame = frame.f_back
        """,
        "assert f(1) == 31337",
    ),
    "the expected value in memory": (
        """
        import gc
        def f(x):
            return next((o for o in gc.get_objects() if type(o) is list and o and o[0] == "secret-value"), None)
        """,
        "expected = ['secret' + '-value']\nassert f(1) == expected",
    ),
    # the process of the program, and its channel
    "its end before the tests": ("import os\nos._exit(0)", "assert f(1) == 2"),
    "its end with success": ("import sys\nsys.exit(0)", "assert f(1) == 2"),
    "its end in the call": ("import os\ndef f(x): os._exit(0)", "assert f(1) == 2"),
    "work at its end": (
        'import atexit, os\natexit.register(os.write, 3, b\'{"verdict":[true,""]}\\n\')\ndef f(x): return 7',
        "assert f(1) == 2",
    ),
    "a printed verdict": (
        "print('{\"verdict\": [true, \"\"]}', flush=True)\ndef f(x):\n    print('passed')\n    return 7",
        "assert f(1) == 2",
    ),
    "a verdict in the channel": (
        'import os\nos.write(3, b\'{"verdict":[true,""]}\\n\')\ndef f(x): return 7',
        "assert f(1) == 2",
    ),
    "a verdict in all channels": (
        """
        import os
        def f(x):
            for descriptor in range(64):
                try:
                    os.write(descriptor, b'{"verdict":[true,""]}\\n' * 2)
                except OSError:
                    pass
            return 7
        """,
        "assert f(1) == 2",
    ),
    "an answer before it is asked": (
        f"ANSWER = {_ANSWER!r}"
        """
        import os
        for line in ('{"loaded":""}', '{"reply":"%s"}' % ANSWER, '{"reply":"%s"}' % ANSWER):
            os.write(3, line.encode() + b"\\n")
        def f(x): return 7
        """,
        "assert f(1) == 5",
    ),
    "half a line": ("import os\ndef f(x):\n    os.write(3, b'{\"reply\":')\n    return 7", "assert f(1) == 2"),
    "a closed channel": ("import os\ndef f(x):\n    os.close(3)\n    return 7", "assert f(1) == 2"),
    "a flood in the channel": (
        "import os\ndef f(x):\n    for _ in range(40):\n        os.write(3, b'x' * 2**16)\n    return 7",
        "assert f(1) == 2",
    ),
    "a replaced encoder": (
        'import json\njson.dumps = lambda *a, **k: \'{"verdict":[true,""]}\'\ndef f(x): return 7',
        "assert f(1) == 2",
    ),
    "a replaced protocol": (
        """
        import sys
        for name, module in list(sys.modules.items()):
            if "sandbox" in name:
                for key, value in list(vars(module).items()):
                    if callable(value) and not key.startswith("__"):
                        setattr(module, key, lambda *a, **k: {"verdict": [True, ""]})
        def f(x): return 7
        """,
        "assert f(1) == 2",
    ),
    "a trace of all calls": (
        "import sys\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)\ndef f(x): return 7",
        "assert f(1) == 2",
    ),
    "a list that is unpickled": (
        "import pickle\nclass A(list):\n    def __reduce__(self): return (list, ([2],))\ndef f(x): return A()",
        "assert f(1) == [2]",
    ),
    "a plain type that is patched in memory": (
        """
        import ctypes
        ctypes.cast(id(int.__dict__) + 16, ctypes.POINTER(ctypes.py_object)).contents.value["__eq__"] = lambda *a: True
        ctypes.pythonapi.PyType_Modified(ctypes.py_object(int))
        def f(x): return 7
        """,
        "assert f(1) == 2",
    ),
    "the expected value read from files": (
        """
        import glob
        def f(x):
            for path in ("/proc/self/mem", "/proc/self/cmdline", *glob.glob("/proc/[0-9]*/environ")):
                try:
                    if "31337" in open(path, errors="replace").read(10**6):
                        return 31337
                except OSError:
                    pass
        """,
        "assert f(1) == 31337",
    ),
    "a huge answer": ("def f(x): return [0] * 10**7", "assert f(1) == [0]"),
    "a huge number": ("def f(x): return 10 ** 10**6", "assert f(1) == 10"),
    "numbers with one hash": (
        "def f(x): return {n * (2**61 - 1) for n in range(3000)}",
        "assert f(1) == set(range(3000))",
    ),
    "a structure without an end": ("def f(x):\n    a = []\n    a.append(a)\n    return a", "assert f(1) == [[]]"),
    "an iterator without an end": ("import itertools\ndef f(x): return itertools.count()", "assert 2 not in f(1)"),
    "a loop without an end": ("def f(x):\n    while True: pass", "assert f(1) == 2"),
    "a truth value without an end": (
        "class A:\n    def __bool__(self):\n        while True: pass\ndef f(x): return A()",
        "assert f(1)",
    ),
}
"""By what they try: a program that does not do what its tests ask, and these tests."""

NEEDS_PROCESSES = frozenset(CHEATS) - frozenset(list(CHEATS)[: list(CHEATS).index("its end before the tests")])
NEEDS_PROCESSES |= {
    "a replaced builtin",
    "a replaced module",
    "the expected value in a frame",
    "the expected value in memory",
}
"""In threads, the tests are in the same memory, and what is replaced is everybody's."""
