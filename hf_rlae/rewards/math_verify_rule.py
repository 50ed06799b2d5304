r"""The rule for mathematics in LaTeX, by the package math-verify: `math_verify`.

A text answers with the expression that math-verify finds in it, by its own rules (boxes and "the answer is" first), and
is right if math-verify can show that the expression equals the one in the column `answer`, which is an expression, in
LaTeX or plain (`\frac{1}{2}`, `x^2 + 1`, `0.5`); of a string with `####`, what follows the last one. The last 20,000
characters of a text are read.

math-verify runs in a process of its own, because sympy may need hours for a short text and its own time limit works
with signals, in the main thread only. A text that takes longer than `timeout_s`, or needs more than 4 GiB, could not
be judged: the process is killed and started anew, and the reward is `None`. The process is started when it is first
needed, serves one text at a time, and ends with the reward or with the Python process.

The package is an extra: `pip install hf_rlae[math]`.

Source: public code (math-verify); the process is ours.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import queue
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_rlae.errors import ConfigError, RewardUnavailableError
from hf_rlae.rewards.contract import Batch, Reward, Row
from hf_rlae.rewards.registry import rewards

_LONGEST = 20_000
_START_S = 120.0


class _Worker:
    """One process, and a thread that reads what it says."""

    def __init__(self) -> None:
        path = os.pathsep.join(entry for entry in sys.path if entry)
        self.owner = os.getpid()
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("math_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
        )
        self.lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(self.process.stdout, self.lines), daemon=True).start()
        if not self.line(_START_S):
            self.kill()
            raise RewardUnavailableError(
                "math_verify: the process that runs math-verify did not start; try "
                f"`{sys.executable} -c 'import math_verify'`"
            )

    @staticmethod
    def _read(stream: Any, lines: queue.SimpleQueue[bytes]) -> None:
        for line in stream:
            lines.put(line)
        lines.put(b"")

    def line(self, timeout_s: float) -> bytes:
        """The next line; nothing where the process has ended or takes too long."""
        try:
            return self.lines.get(timeout=timeout_s)
        except queue.Empty:
            return b""

    def ask(self, request: dict[str, Any]) -> str | None:
        """A verdict, or `None` where the process gives none in time; then it is of no more use."""
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")  # type: ignore[union-attr]
            self.process.stdin.flush()  # type: ignore[union-attr]
        except OSError:
            return None
        line = self.line(request["timeout_s"])
        return json.loads(line) if line else None

    def kill(self) -> None:
        """Ends the process, whatever it is doing; a copy that a fork made of this object leaves it alone."""
        if self.owner != os.getpid():
            return
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # what was still to be written has nobody to read it
                    stream.close()


class MathVerifyReward(Reward):
    r"""1.0 where math-verify finds the expression of `answer` in a text, 0.0 where it does not, `None` in doubt.

    Several threads may call one object; their texts are judged one after the other.

    Args:
        timeout_s (`float`, defaults to 5.0): seconds for one text, above 0.
        name (`str`, defaults to `"math_verify_reward"`): its `__name__`.

    Raises:
        ConfigError: a timeout that cannot be used.
        RewardUnavailableError: when called, if math-verify is not installed.
    """

    measure = "accuracy"
    required_columns = ("answer",)

    def __init__(self, timeout_s: float = 5.0, name: str = "math_verify_reward") -> None:
        super().__init__(name)
        if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 < timeout_s <= 3600:
            raise ConfigError(f"timeout_s must be a number of seconds above 0 and up to 3600, got {timeout_s!r}")
        self.timeout_s = timeout_s
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._lock = threading.Lock()
        self._worker: _Worker | None = None
        self._stop: Callable[[], Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("_lock", "_worker", "_stop")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start_afresh()

    def check_available(self) -> None:
        """See `Reward.check_available`."""
        if importlib.util.find_spec("math_verify") is None:
            raise RewardUnavailableError("math_verify needs the package math-verify: pip install hf_rlae[math]")

    def score_texts(self, texts: list[str], batch: Batch) -> list[float | None]:
        """See `Reward.score_texts`."""
        answers = batch.required("answer")
        for row, answer in enumerate(answers):
            if answer is not None and (not isinstance(answer, str | int | float) or not str(answer).strip()):
                raise Row(self.__name__, row, {}).unreadable(answer, "an expression")
        self.check_available()
        return [self._score(text, answers[row], row) for row, text in enumerate(texts)]

    def _score(self, text: str, answer: Any, row: int) -> float | None:
        if answer is None:
            return None
        bare = str(answer).rpartition("####")[2].strip()
        with self._lock:
            verdict = self._ask({"answer": bare, "text": text[-_LONGEST:], "timeout_s": self.timeout_s})
        if verdict == "unreadable":
            raise Row(self.__name__, row, {}).unreadable(answer, "an expression that math-verify can read")
        return {"right": 1.0, "wrong": 0.0}.get(verdict or "")

    def _ask(self, request: dict[str, Any]) -> str | None:
        worker = self._worker
        if worker is None or worker.owner != os.getpid() or worker.process.poll() is not None:
            worker = self._worker = _Worker()
            self._stop = weakref.finalize(self, worker.kill)
        verdict = worker.ask(request)
        if verdict is None:
            if self._stop is not None:
                self._stop()
            self._worker = None
        return verdict


rewards.register("math_verify")(MathVerifyReward())
