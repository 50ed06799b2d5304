"""One run per folder: a second one is refused, and the lock ends with its owner."""

from __future__ import annotations

import gc
import logging
import os
import socket
import threading

import pytest

from hf_rlae.errors import DiskFullError, FolderInUseError
from hf_rlae.trainers.durable import run_lock
from hf_rlae.trainers.durable.run_lock import LOCK, OWNER, RunLock
from tests.support.trainers import ToyTrainer, toy_trainer

SHORT = {"max_steps": 2, "save_steps": 1, "eval_strategy": "no"}


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """Transformers collects garbage at each start of training; objects of other tests are excluded."""
    gc.freeze()
    yield
    gc.unfreeze()


def test_the_owner_is_named(tmp_path):
    lock = RunLock(tmp_path / "new" / "out")
    with pytest.raises(FolderInUseError, match=rf"process {os.getpid()} on {socket.gethostname()}, since 20\d\d-"):
        RunLock(tmp_path / "new" / "out")
    RunLock(tmp_path / "other").release()
    lock.release()
    lock.release()
    assert not list((tmp_path / "new" / "out").iterdir())
    RunLock(tmp_path / "new" / "out").release()


@pytest.mark.parametrize("text", [None, "", "{}", "[]", "\x00", '{"pid": 1}'])
def test_an_owner_without_a_name(tmp_path, text):
    """What stands beside the lock is for the message alone."""
    lock = RunLock(tmp_path)
    (tmp_path / OWNER).unlink()
    if text is not None:
        (tmp_path / OWNER).write_text(text)
    with pytest.raises(FolderInUseError, match="of an unknown process"):
        RunLock(tmp_path)
    lock.release()


@pytest.mark.parametrize("error", [OSError(37, "No locks available"), NotImplementedError("flock")])
def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog, error):
    """Training goes on, with a warning."""

    def acquire(*args, **kwargs):
        raise error

    monkeypatch.setattr(run_lock.FileLock, "acquire", acquire)
    trainer = toy_trainer(tmp_path, **SHORT)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert "cannot be locked" in caplog.text
    assert trainer.state.global_step == 2


def test_a_full_disk_does_not_keep_the_lock(tmp_path, monkeypatch):
    """The owner's name is for messages alone."""

    def fail(*args):
        raise DiskFullError("full")

    monkeypatch.setattr(run_lock, "write_whole", fail)
    lock = RunLock(tmp_path)
    with pytest.raises(FolderInUseError, match="of an unknown process"):
        RunLock(tmp_path)
    lock.release()
    RunLock(tmp_path).release()


class Waiting(ToyTrainer):
    """Waits in its first step until it is told to go on."""

    def training_step(self, *args, **kwargs):
        self.is_there.set()
        assert self.may_go.wait(60)
        return super().training_step(*args, **kwargs)


@pytest.fixture
def busy(tmp_path):
    """A folder in which a trainer of another thread trains."""
    trainer = toy_trainer(tmp_path / "out", Waiting, **SHORT)
    trainer.is_there, trainer.may_go = threading.Event(), threading.Event()
    thread = threading.Thread(target=trainer.train)
    thread.start()
    assert trainer.is_there.wait(60)
    yield tmp_path / "out"
    trainer.may_go.set()
    thread.join(60)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["checkpoint-1", "checkpoint-2"]


@pytest.mark.parametrize("resume", [None, True])
def test_a_second_run_is_refused_before_it_changes_anything(busy, resume):
    """It would delete the checkpoint that the first one is about to write."""
    (busy / "_unfinished" / "checkpoint-1").mkdir(parents=True)
    second = toy_trainer(busy, **SHORT)
    with pytest.raises(FolderInUseError, match=f"another run \\(process {os.getpid()}"):
        second.train(resume_from_checkpoint=resume)
    assert second.seen == []
    assert (busy / "_unfinished" / "checkpoint-1").is_dir()


@pytest.mark.parametrize("how", ["a finished run", "an error", "an interrupt"])
def test_the_folder_is_free_again(tmp_path, how):
    trainer = toy_trainer(tmp_path, **SHORT)
    errors = {"an error": ZeroDivisionError, "an interrupt": KeyboardInterrupt}
    if how in errors:

        def fail(*args, **kwargs):
            raise errors[how]

        trainer.compute_loss = fail
        with pytest.raises(errors[how]):
            trainer.train()
    else:
        trainer.train()
    assert not (tmp_path / LOCK).exists()
    assert not (tmp_path / OWNER).exists()
    toy_trainer(tmp_path, **SHORT).train()
