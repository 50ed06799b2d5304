"""The process that runs math-verify: it reads and writes one line of JSON per text. Started by `math_verify_rule`.

It runs as a file, so it imports nothing of this package.
"""

from __future__ import annotations

import faulthandler
import json
import sys
from typing import Any

from math_verify import parse, verify

MEMORY_BYTES = 4 * 2**30


def judge(answer: str, text: str) -> str:
    """`"right"`, `"wrong"`, `"unreadable"` (the answer), or `"failed"`."""
    try:
        # a bare expression needs the dollars: without them, math-verify finds only the last number of "x^2 + 1"
        is_bare = not any(mark in answer for mark in ("$", "\\boxed", "\\(", "\\["))
        gold: Any = is_bare and parse(f"${answer}$", parsing_timeout=None)
        gold = gold or parse(answer, parsing_timeout=None)
        if not gold:
            return "unreadable"
        found = parse(text, parsing_timeout=None)
        return "right" if verify(gold, found, timeout_seconds=None) else "wrong"
    except Exception:  # sympy may raise anything on such input: the pair cannot be judged
        return "failed"


def main() -> None:
    """Answers until the input is closed."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    except (ImportError, ValueError, OSError):  # not on every system; the time limit still applies
        pass
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        request = json.loads(line)
        # ends this process even if its parent is gone
        faulthandler.dump_traceback_later(2 * request["timeout_s"] + 5, exit=True)
        verdict = judge(request["answer"], request["text"])
        faulthandler.cancel_dump_traceback_later()
        sys.stdout.write(json.dumps(verdict) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
