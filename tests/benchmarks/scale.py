"""What a step with different tokenizers costs beside the members' forward passes: `--cases 'scale-*'` of `decode`.

Members are tiny and random, with small vocabularies (`tests/support/`), so that the engine's own time shows; no files
are needed. `--against` names another checkout of the repository: a process of each takes turns, so that both are
measured in one run, in pairs.

As a script, `python tests/benchmarks/scale.py MEMBERS ROWS`, it measures once for every line on stdin, with the package
that is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

TOKENS = 32
NARROW = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class ScaleCase:
    """An ensemble of `count` members that writes `batch` texts."""

    count: int
    batch: int

    @property
    def name(self) -> str:
        """What `--cases` is matched with."""
        return f"scale-m{self.count}-b{self.batch}"


SCALE_CASES = [ScaleCase(2, 1), ScaleCase(2, 8), ScaleCase(2, 32), ScaleCase(2, 128), ScaleCase(4, 128)]


class Side:
    """A process that measures one case with the package of one checkout.

    Args:
        case (`ScaleCase`): the case.
        checkout (`Path`): the folder whose `hf_rlae` and `tests/support` are imported.
    """

    def __init__(self, case: ScaleCase, checkout: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__, str(case.count), str(case.batch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(checkout)},
            cwd=checkout,
        )

    def measured(self) -> float:
        """CPU milliseconds per step outside the members."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def end(self) -> None:
        """Ends the process."""
        self.process.communicate()


def scale_table(cases: Sequence[ScaleCase], rounds: int, against: Path | None) -> str:
    """A Markdown table with the medians over rounds."""
    head = ["case", "ms per step", *(["before", "ratio, median of pairs"] if against else [])]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for case in cases:
        sides = [Side(case, checkout) for checkout in (ROOT, against) if checkout is not None]
        found: list[list[float]] = [[] for _ in sides]
        for turn in range(rounds + 1):
            order = range(len(sides)) if turn % 2 else reversed(range(len(sides)))
            for index in order:
                value = sides[index].measured()
                if turn:  # the first one warms up
                    found[index].append(value)
        for side in sides:
            side.end()
        row = [case.name, *(f"{median(values):.2f}" for values in found)]
        if against:
            row.append(f"{median(new / old for new, old in zip(*found, strict=True)):.2f}")
        lines.append("| " + " | ".join(row) + " |")
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def serve(count: int, batch: int) -> None:
    """Measures for every line on stdin: CPU time of a call less that of the members' forward passes, per token."""
    import torch

    from tests.support.ensembles import TEXTS, endless
    from tests.support.models import pair
    from tests.support.tokenizers import byte_level_bpe, raw_bytes, sentencepiece_bpe

    torch.set_num_threads(1)
    makers = (byte_level_bpe, sentencepiece_bpe, byte_level_bpe, raw_bytes)
    ensemble = endless([pair("llama", index, makers[index](), **NARROW) for index in range(count)])
    texts = [TEXTS[row % 3] + " x" * (row // 3 % 5) for row in range(batch)]
    encoded = ensemble.tokenizer(texts, return_tensors="pt", padding=True)
    inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    inside = 0.0

    def begin(*_: object) -> None:
        nonlocal inside
        inside -= time.process_time()

    def end(*_: object) -> None:
        nonlocal inside
        inside += time.process_time()

    for member in ensemble.members:
        member.model.register_forward_pre_hook(begin)
        member.model.register_forward_hook(end)
    for number, _ in enumerate(sys.stdin):
        torch.manual_seed(number)
        inside, begun = 0.0, time.process_time()
        ensemble.generate(**inputs, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=True, top_k=0)
        print(1000 * (time.process_time() - begun - inside) / TOKENS, flush=True)


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
