"""The processes that run math-verify. Started by `math_pool` as a file, so it imports nothing of this package.

This process loads math-verify once and forks *judges*, at most one per pair that is judged at the same time. A judge
that takes too long is killed, and the next one is forked in milliseconds. It reads one line of JSON per pair, and
writes one line with the pair's id and the verdict: "right", "wrong", "unreadable" (the answer), or "failed".
"""

from __future__ import annotations

import faulthandler
import json
import os
import selectors
import signal
import sys
import time
from collections import deque
from typing import Any, NoReturn

from math_verify import parse, verify

MEMORY_BYTES = 4 * 2**30


def judge(answer: str, text: str) -> str:
    """The verdict on one pair."""
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


class Judge:
    """A forked process that judges one pair at a time."""

    def __init__(self, timeout_s: float, others: list[int]) -> None:
        requests, self.requests = os.pipe()
        self.verdicts, verdicts = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            for descriptor in (self.requests, self.verdicts, *others):
                os.close(descriptor)  # so that the end of this process is seen at the other ends
            for descriptor in (0, 1):
                os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
            _judge_all(requests, verdicts, timeout_s)
        os.close(requests)
        os.close(verdicts)
        self.pair: dict[str, Any] = {}
        self.deadline = 0.0

    def take(self, pair: dict[str, Any], timeout_s: float) -> None:
        """Begins to judge a pair, or begins again with what is left of its time."""
        self.pair, self.deadline = pair, pair.setdefault("deadline", time.monotonic() + timeout_s)
        line = json.dumps(pair).encode() + b"\n"
        while line:
            line = line[os.write(self.requests, line) :]

    def end(self) -> None:
        """Ends the process, whatever it is doing."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.requests)
        os.close(self.verdicts)


def _judge_all(requests: int, verdicts: int, timeout_s: float) -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with os.fdopen(requests) as lines:
        for line in lines:
            pair = json.loads(line)
            # ends this process even if nothing is left that could kill it
            faulthandler.dump_traceback_later(2 * timeout_s + 1, exit=True)
            verdict = judge(pair["answer"], pair["text"])
            faulthandler.cancel_dump_traceback_later()
            os.write(verdicts, verdict.encode() + b"\n")
    os._exit(0)


class Court:
    """Hands pairs to judges, forks and kills them, and writes the verdicts."""

    def __init__(self, most_judges: int, timeout_s: float) -> None:
        self.most_judges, self.timeout_s = most_judges, timeout_s
        self.idle: list[Judge] = []
        self.busy: dict[int, Judge] = {}
        self.waiting: deque[dict[str, Any]] = deque()
        self.events = selectors.DefaultSelector()
        self.events.register(0, selectors.EVENT_READ)

    def run(self) -> None:
        """Judges until the input is closed."""
        unread = b""
        while True:
            self._assign()
            deadlines = [each.deadline for each in self.busy.values()]
            for key, _ in self.events.select(max(0.0, min(deadlines) - time.monotonic()) if deadlines else None):
                if key.fd:
                    self._finish(self.busy[key.fd], os.read(key.fd, 100).decode().strip())
                    continue
                data = os.read(0, 2**20)
                if not data:
                    return
                *lines, unread = (unread + data).split(b"\n")
                self.waiting += map(json.loads, lines)
            now = time.monotonic()
            for each in [each for each in self.busy.values() if each.deadline <= now]:
                self._finish(each, "")

    def _assign(self) -> None:
        while self.waiting and len(self.busy) < self.most_judges:
            others = [fd for each in (*self.idle, *self.busy.values()) for fd in (each.requests, each.verdicts)]
            # what was lost with one judge goes to a new one: the idle ones may have been killed as well
            is_usable = self.idle and not self.waiting[0].get("again")
            chosen = self.idle.pop() if is_usable else Judge(self.timeout_s, others)
            try:
                chosen.take(self.waiting[0], self.timeout_s)
            except BrokenPipeError:  # something else killed it while it was idle
                chosen.end()
                continue
            self.waiting.popleft()
            self.busy[chosen.verdicts] = chosen
            self.events.register(chosen.verdicts, selectors.EVENT_READ)

    def _finish(self, done: Judge, verdict: str) -> None:
        """Writes a verdict; an empty one means that the judge took too long or was killed, perhaps before it began."""
        del self.busy[done.verdicts]
        self.events.unregister(done.verdicts)
        is_lost = not verdict and not done.pair.get("again") and time.monotonic() < done.deadline
        if verdict:
            self.idle.append(done)
        else:
            done.end()
        if is_lost:
            self.waiting.appendleft({**done.pair, "again": True})
        else:
            os.write(1, json.dumps([done.pair["id"], verdict or "failed"]).encode() + b"\n")

    def close(self) -> None:
        """Ends all judges."""
        for each in (*self.idle, *self.busy.values()):
            each.end()


def main() -> None:
    """Answers until the input is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes the input
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    except (ImportError, ValueError, OSError):  # not on every system; the time limit still applies
        pass
    judge("1", "$1$")  # builds the parser, so that judges are forked with it
    os.write(1, b"ready\n")
    court = Court(int(sys.argv[1]), float(sys.argv[2]))
    try:
        court.run()
    finally:
        court.close()


if __name__ == "__main__":
    main()
