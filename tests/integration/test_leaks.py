"""Many calls and many steps cost no memory, no descriptors and no time."""

from __future__ import annotations

import gc
import os
import threading
import time
from statistics import median

import psutil
import pytest
import torch
from transformers import TrainerCallback

from tests.support.ensembles import TEXTS, encode, endless, policy_of_text
from tests.support.models import pair, pairs
from tests.support.rlae import trainer_of
from tests.support.tiers import IS_NIGHTLY, draws, show_figure
from tests.support.tokenizers import raw_bytes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors in /proc"),
]
MOST_MB = 5.0


class Usage:
    """Memory, descriptors, threads and CPU time of this process, from when a warm-up has ended.

    Args:
        warm_up (`int`): number of ticks before the first measurement.
    """

    def __init__(self, warm_up: int) -> None:
        self.left = warm_up
        self.durations: list[float] = []
        self._last = time.process_time()

    def tick(self) -> None:
        now = time.process_time()
        self.left -= 1
        if self.left < 0:
            self.durations.append(now - self._last)
        elif self.left == 0:
            self.before = self._counts()
        self._last = time.process_time()

    @staticmethod
    def _counts() -> tuple[float, int, int]:
        gc.collect()
        return (
            psutil.Process().memory_info().rss / 2**20,
            len(os.listdir("/proc/self/fd")),
            threading.active_count(),
        )

    def check(self, what: str) -> None:
        memory, descriptors, threads = (b - a for a, b in zip(self.before, self._counts(), strict=True))
        quarter = len(self.durations) // 4
        slowdown = median(self.durations[-quarter:]) / median(self.durations[:quarter])
        show_figure(
            f"{len(self.durations)} {what}: {memory:+.1f} MB, {descriptors:+d} descriptors, {threads:+d} threads, "
            f"{slowdown:.2f} times the CPU time"
        )
        assert memory < MOST_MB
        assert descriptors <= 0
        assert threads <= 0
        if IS_NIGHTLY:  # the medians of a few durations differ by more on a busy machine
            assert slowdown < 1.3


MEMBERS = {
    "one tokenizer": lambda: pairs(["llama", "gpt2"], num_hidden_layers=1),
    "two tokenizers": lambda: [
        pair("llama", 0, num_hidden_layers=1),
        pair("gpt2", 1, raw_bytes(), num_hidden_layers=1),
    ],
}


@pytest.mark.parametrize("name", MEMBERS)
def test_calls_of_generate(name):
    """Texts, modes and lengths vary, and some calls fail."""
    ensemble = endless(MEMBERS[name](), policy_of_text, span_length=2)
    usage = Usage(60)
    for call in range(60 + draws(200, 5_000)):
        torch.manual_seed(call % 7)
        inputs = encode(TEXTS[call % 3])
        try:
            ensemble.generate(
                **inputs,
                max_new_tokens=5,
                do_sample=call % 2 == 0,
                return_dict_in_generate=call % 3 == 0,
                **({"logits_processor": [_fail]} if call % 20 == 0 else {}),
            )
        except ZeroDivisionError:
            assert call % 20 == 0
        usage.tick()
    usage.check(f"calls of generate, {name}")


def _fail(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    raise ZeroDivisionError


def test_steps_of_training(tmp_path):
    usage = Usage(40)

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            state.log_history.clear()  # grows by design
            if state.global_step % args.gradient_accumulation_steps == 0:
                usage.tick()

    steps = 40 + draws(80, 2_000)
    trainer = trainer_of(tmp_path, "mixture", callbacks=[Watch()], max_steps=steps, logging_steps=10)
    trainer.train()
    usage.check("steps of RLAETrainer")
