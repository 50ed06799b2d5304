"""A full disk is told plainly, leaves no part of a checkpoint, and leaves the older ones whole."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import re
import shutil
import subprocess
import sys

import pytest

from hf_rlae.errors import DiskFullError, HfRlaeError
from hf_rlae.trainers.durable.manifest import damaged_parts
from tests.support.trainers import ToyTrainer, toy_trainer

resource = pytest.importorskip("resource", reason="limits on file sizes are of Unix")

SHORT = {"max_steps": 4, "save_steps": 2, "eval_strategy": "no"}
TOLD = r"the disk of {folder} is full: {what} needs about \d+ bytes, and \d+ bytes are free"


@contextlib.contextmanager
def largest_file(size):
    """Inside, writing a file beyond a size fails, in any library: what a disk without space does, without root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def failing_flush(number):
    """Inside, flushing to the disk fails, as on network file systems with a quota."""

    def fsync(handle):
        raise OSError(number, os.strerror(number))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """Transformers collects garbage at each start of training; objects of other tests are excluded."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(lambda: largest_file(100), id="model: safetensors"),
        pytest.param(lambda: largest_file(2000), id="optimizer: torch.save"),
        pytest.param(lambda: largest_file(8000), id="generators: torch.save"),
        pytest.param(lambda: failing_flush(errno.ENOSPC), id="flush: no space"),
        pytest.param(lambda: failing_flush(errno.EDQUOT), id="flush: quota"),
    ],
)
def test_a_checkpoint(tmp_path, fault):
    class Filling(ToyTrainer):
        def _save_checkpoint(self, model, trial):
            with fault() if self.state.global_step == 4 else contextlib.nullcontext():
                super()._save_checkpoint(model, trial)

    trainer = toy_trainer(tmp_path, Filling, **SHORT)
    with pytest.raises(DiskFullError, match=TOLD.format(folder=tmp_path, what="checkpoint-4")) as caught:
        trainer.train()
    needed, free = map(int, re.findall(r"(\d+) bytes", str(caught.value)))
    state = sum(value.numel() * 4 for value in trainer.model.parameters())
    assert 3 * state <= needed <= 3 * state + 64  # weights, two moments, steps of the optimizer
    assert free == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.5)
    assert isinstance(caught.value, HfRlaeError)
    assert isinstance(caught.value, OSError)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    assert damaged_parts(tmp_path / "checkpoint-2") == []
    again = toy_trainer(tmp_path, **SHORT)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4


def test_a_saved_model(tmp_path):
    trainer = toy_trainer(tmp_path, **SHORT)
    with largest_file(100), pytest.raises(DiskFullError, match=TOLD.format(folder=tmp_path / "m", what="the model")):
        trainer.save_model(str(tmp_path / "m"))


def test_other_errors_stay(tmp_path):
    """An error that has nothing to do with the disk, and one of the disk that is not full; no part is left either."""
    for error in (RuntimeError("CUDA error"), OSError(errno.EIO, "Input/output error"), PermissionError(13, "denied")):

        class Failing(ToyTrainer):
            def _save_extra_state(self, staged, error=error):
                raise error

        with pytest.raises(type(error), match=str(error.args[-1])) as caught:
            toy_trainer(tmp_path, Failing, **SHORT).train()
        assert caught.value is error
        assert not list(tmp_path.iterdir())


PROGRAM = """
import sys, torch
from tests.support.trainers import ToyTrainer, toy_trainer
class Large(ToyTrainer):
    def extra_state(self):
        return {**super().extra_state(), "rollout": torch.zeros(600_000)}
    def load_extra_state(self, state):
        super().load_extra_state({key: value for key, value in state.items() if key != "rollout"})
trainer = toy_trainer(sys.argv[1], Large, max_steps=4, save_steps=1, eval_strategy="no")
trainer.train()
"""


@pytest.mark.slow
def test_a_disk_of_six_megabytes(tmp_path):
    """A real one: the third checkpoint of 2.4 MB does not fit."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = f"mount -t tmpfs -o size=6m tmpfs {place}"
    unshare = [str(shutil.which("unshare")), "-rm", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, mounted]).returncode:
        pytest.skip("this machine lets no user mount a small disk (unshare, tmpfs)")
    listed = f"ls {place} {place}/out"
    done = subprocess.run(
        [*unshare, f'{mounted} && "$0" -c "$1" {place}/out; {listed}', sys.executable, PROGRAM],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert re.search(TOLD.format(folder=f"{place}/out", what="checkpoint-3"), done.stderr), done.stderr[-2000:]
    assert done.stdout.split()[-2:] == ["checkpoint-1", "checkpoint-2"]
    assert "_unfinished" not in done.stdout
