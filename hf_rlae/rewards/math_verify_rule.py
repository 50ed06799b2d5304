r"""The rule for mathematics in LaTeX, by the package math-verify: `math_verify`.

The answer of a text is the expression that math-verify finds in it, by its own rules (boxes and "the answer is" first).
It is right if math-verify can show that the expression equals the one in the column `answer`. That column holds an
expression, in LaTeX or plain (`\frac{1}{2}`, `x^2 + 1`, `0.5`); if it contains `####`, the part after the last one
counts. The last 20,000 characters of a text are read.

math-verify runs in a process of its own, because sympy may need hours for a short text, and its own time limit uses
signals, which work in the main thread only. A text that takes longer than `timeout_s`, or needs more than 4 GiB, cannot
be judged: the process is killed and replaced, and the reward is `None`. The process starts when it is first needed,
judges one text at a time, and ends with the reward or with the Python process.

The package is an extra: `pip install hf_rlae[math]`.

Source: public code (math-verify); the process is ours.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

from hf_rlae.checks import Bounds, check_number
from hf_rlae.errors import RewardUnavailableError
from hf_rlae.rewards.contract import Batch, Reward, Row
from hf_rlae.rewards.registry import rewards

_LONGEST = 20_000
_START_S = 120.0


class _Worker:
    """A process that runs math-verify. It is killed when it takes too long."""

    def __init__(self) -> None:
        path = os.pathsep.join(entry for entry in sys.path if entry)
        self.owner = os.getpid()
        self.process = subprocess.Popen(  # noqa: S603 (this interpreter, a file of this package, no shell)
            [sys.executable, "-P", str(Path(__file__).with_name("math_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
        )
        if not self.ask("", _START_S):
            self.kill()
            raise RewardUnavailableError(
                "math_verify: the process that runs math-verify did not start; try "
                f"`{sys.executable} -c 'import math_verify'`"
            )

    def ask(self, request: str, timeout_s: float) -> str:
        """The line that answers a request; empty if the process ended or was killed for taking too long."""
        timer = threading.Timer(timeout_s, self.process.kill)
        timer.daemon = True
        timer.start()
        try:
            self.process.stdin.write(request.encode())  # type: ignore[union-attr]
            self.process.stdin.flush()  # type: ignore[union-attr]
            line = self.process.stdout.readline().decode()  # type: ignore[union-attr]
            return line if line.endswith("\n") else ""
        except OSError:
            return ""
        finally:
            timer.cancel()

    def kill(self) -> None:
        """Ends the process, whatever it is doing. A copy of this object in a forked process leaves it alone."""
        if self.owner != os.getpid():
            return
        self.process.kill()
        self.process.communicate()  # closes the pipes


class MathVerifyReward(Reward):
    """1.0 if math-verify finds the expression of `answer` in a text, 0.0 if not, `None` if it cannot be judged.

    Several threads may call one object; it judges their texts one after the other.

    Args:
        timeout_s (`float`, defaults to 5.0): seconds per text, above 0.
        name (`str`, defaults to `"math_verify_reward"`): its `__name__`.

    Raises:
        ConfigError: `timeout_s` is out of range.
        RewardUnavailableError: when called, if math-verify is not installed.
    """

    measure = "accuracy"
    required_columns = ("answer",)

    def __init__(self, timeout_s: float = 5.0, name: str = "math_verify_reward") -> None:
        super().__init__(name)
        check_number("timeout_s", timeout_s, Bounds(above=0, most=3600))
        self.timeout_s = timeout_s
        self._lock = threading.Lock()
        self._worker: _Worker | None = None
        self._stop: Any = None

    def __reduce__(self) -> Any:
        return type(self), (self.timeout_s, self.__name__)

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
            verdict = self._verdict({"answer": bare, "text": text[-_LONGEST:], "timeout_s": self.timeout_s})
        if verdict == "unreadable":
            raise Row(self.__name__, row, {}).unreadable(answer, "an expression that math-verify can read")
        return {"right": 1.0, "wrong": 0.0}.get(verdict or "")

    def _verdict(self, request: dict[str, Any]) -> str | None:
        worker = self._worker
        if worker is None or worker.owner != os.getpid() or worker.process.poll() is not None:
            worker = self._worker = _Worker()
            self._stop = weakref.finalize(self, worker.kill)
        line = worker.ask(json.dumps(request) + "\n", self.timeout_s)
        if not line:
            self._stop()
            self._worker = None
        return json.loads(line) if line else None


rewards.register("math_verify")(MathVerifyReward())
