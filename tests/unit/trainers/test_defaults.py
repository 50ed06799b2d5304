"""Defaults that configurations of several trainers share."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from hf_rlae.trainers.defaults import set_devices


@dataclass
class Arguments:
    bf16: bool | None = None
    fp16: bool = False
    use_cpu: bool = False


@pytest.mark.parametrize(
    ("processes", "has_accelerator", "fp16", "uses_cpu"),
    [
        pytest.param("2", False, False, True, id="else accelerate looks for GPUs, and each process is alone"),
        pytest.param("1", False, False, False, id="one process uses the CPU by itself"),
        pytest.param("2", True, False, False, id="accelerators are used"),
        pytest.param("2", False, True, False, id="transformers says that half precision needs a GPU"),
    ],
)
def test_processes_without_accelerators(processes, has_accelerator, fp16, uses_cpu, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", processes)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: has_accelerator)
    args = Arguments(fp16=fp16)
    set_devices(args)
    assert args.use_cpu is uses_cpu
