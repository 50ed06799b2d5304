"""Runs that are killed and resumed end where a run that was left alone ends, to the bit."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time

import pytest
import torch

from hf_rlae.errors import CheckpointError
from hf_rlae.trainers.durable.checkpoint_folders import settle, whole_checkpoints
from hf_rlae.trainers.durable.manifest import missing_parts
from hf_rlae.trainers.durable.run_lock import OWNER, RunLock
from tests.support.tiers import draws, show_figure, slow
from tests.support.trainers import assert_equal, run, run_two, start, toy_trainer

EPOCHS = {"eval_strategy": "epoch"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The end of a run that nobody disturbed, and its folder."""
    folder = tmp_path_factory.mktemp("alone")
    assert run(folder / "out", folder / "end.pt") == 0
    return torch.load(folder / "end.pt"), folder / "out"


def resumed(folder, resume=True, **options):
    assert run(folder / "out", folder / "end.pt", resume=resume, **options) == 0
    return torch.load(folder / "end.pt")


def assert_same_end(one, other):
    """All but the batches seen: those of the resumed run are the last ones of the other."""
    assert_equal({**one, "seen": 0}, {**other, "seen": 0})
    count = len(one["seen"])
    assert 0 < count <= len(other["seen"])
    assert one["seen"] == other["seen"][-count:]


@pytest.mark.parametrize(("kill_step", "last"), [(5, 3), *slow((2, None), (8, 6), (12, 9))])
def test_killed_between_saves(alone, tmp_path, kill_step, last):
    """Before the first save, inside the first epoch, from the epochs' border, inside the second."""
    assert run(tmp_path / "out", attributes={"kill_step": kill_step}) == -signal.SIGKILL
    assert max(whole_checkpoints(tmp_path / "out"), default=None) == last
    end = resumed(tmp_path)
    assert len(end["seen"]) == 2 * (12 - (last or 0))
    assert_same_end(end, alone[0])


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM], ids=lambda stop: stop.name)
def test_stopped_at_random_times(alone, tmp_path, stop):
    """Signals that know nothing of steps and saves: while Python starts, in a step, in a save, after the end."""
    duration, rng, kept = 0.0, random.Random(stop), []
    for number in range(1 + draws(2, 20)):
        folder = tmp_path / str(number)
        process = start(folder / "out")
        while process.is_alive() and not (folder / "out").exists():
            time.sleep(0.001)
        began = time.monotonic()
        process.join(60 if number == 0 else rng.uniform(0, duration))  # the first one is timed
        if number == 0:
            duration = time.monotonic() - began
            continue
        if process.is_alive():
            os.kill(process.pid, stop)
            process.join(60)
        assert process.exitcode in (0, -stop)
        kept.append(max(whole_checkpoints(folder / "out"), default=0))
        end = resumed(folder)
        if kept[-1] < 12:
            assert_same_end(end, alone[0])
        else:  # nothing was left to do
            assert_equal(end["weights"], alone[0]["weights"])
    show_figure(f"{stop.name} at {len(kept)} random times, resumed from the steps {sorted(kept)}: all ends are equal")


@pytest.mark.slow
def test_killed_at_every_moment_of_a_save(alone, tmp_path):
    """`checkpoint-6` is whole or not there, `checkpoint-3` stays, and both lead to the same end."""
    assert run(tmp_path / "log", kill=(0, 6, tmp_path / "events"), max_steps=6) == 0
    events = (tmp_path / "events").read_text().splitlines()
    assert len([event for event in events if "wrote" in event]) >= 6
    newest = []
    for at in range(len(events)):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        assert run(tmp_path / "out", kill=(at, 6)) == -signal.SIGKILL
        newest.append(max(whole_checkpoints(tmp_path / "out")))
        assert (tmp_path / "out" / "checkpoint-6").exists() == (newest[-1] == 6), events[at]
        if at in (0, len(events) // 2, len(events) - 1):
            assert_same_end(resumed(tmp_path), alone[0])
            assert not list((tmp_path / "out").glob("_*"))
    # the name is given in one step, and after everything else
    assert newest == sorted(newest)
    renamed = next(at for at, event in enumerate(events) if event.startswith("os.rename"))
    assert newest.index(6) == renamed + 1


@pytest.mark.slow
def test_killed_while_a_checkpoint_is_replaced(alone, tmp_path):
    """A run that saves a step again never leaves that step without a checkpoint."""
    log = tmp_path / "events"
    shutil.copytree(alone[1], tmp_path / "log")
    assert run(tmp_path / "log", kill=(0, 3, log), max_steps=3) == 0
    events = log.read_text().splitlines()
    assert [event.split()[0] for event in events].count("os.rename") == 2
    first = next(at for at, event in enumerate(events) if event.startswith("os.rename"))
    # between the two names, and while the old files go
    for at in range(first, first + 4):
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(alone[1], out)
        shutil.rmtree(out / "checkpoint-6")
        shutil.rmtree(out / "checkpoint-9")
        shutil.rmtree(out / "checkpoint-12")
        assert run(out, kill=(at, 3)) == -signal.SIGKILL
        assert not (out / "checkpoint-3").exists() or missing_parts(out / "checkpoint-3") == []
        settle(out)
        assert missing_parts(out / "checkpoint-3") == []
    assert_same_end(resumed(tmp_path), alone[0])


@pytest.mark.slow
def test_killed_while_an_old_checkpoint_is_deleted(tmp_path):
    """Whatever has the name of a checkpoint is whole."""
    options = {"max_steps": 6, "save_total_limit": 1}
    assert run(tmp_path / "log", kill=(0, 6, tmp_path / "events"), **options) == 0
    events = (tmp_path / "events").read_text().splitlines()
    renames = [at for at, event in enumerate(events) if event.startswith("os.rename")]
    assert len(renames) == 2
    for at in range(renames[1], renames[1] + 4):
        out = tmp_path / f"out-{at}"
        assert run(out, kill=(at, 6), **options) == -signal.SIGKILL
        named = {int(path.name.split("-")[1]) for path in out.glob("checkpoint-*")}
        assert named == set(whole_checkpoints(out)) == ({3, 6} if at == renames[1] else {6})


@pytest.mark.slow
def test_sigterm_and_killed_in_the_evaluation(alone, tmp_path):
    """The grace after the signal is shorter than the evaluation that was due: the step is saved."""
    attributes = {"sigterm_step": 5, "kill_evaluation": 5}
    assert run(tmp_path / "out", attributes=attributes, save_strategy="no") == -signal.SIGKILL
    assert list(whole_checkpoints(tmp_path / "out")) == [5]
    end = resumed(tmp_path)
    assert_same_end({**end, "losses": 0}, {**alone[0], "losses": 0})


@pytest.mark.parametrize(
    ("step", "options"),
    [(4, {}), *slow((5, {}), (6, EPOCHS), (8, EPOCHS))],
    ids=["plain", "evaluated", "border", "left"],
)
def test_sigterm(alone, tmp_path, step, options):
    """A checkpoint of that very step, the exit status of the signal, and the same end after all."""
    attributes = {"sigterm_step": step}
    if step == 8:
        # the epoch was left, so nothing is due that a process under a signal would have to wait for
        attributes["kill_evaluation"] = step
    assert run(tmp_path / "out", attributes=attributes, save_strategy="no", **options) == -signal.SIGTERM
    assert list(whole_checkpoints(tmp_path / "out")) == [step]
    end = resumed(tmp_path, **options)
    expected = alone[0]
    if options:
        assert run(tmp_path / "whole", tmp_path / "whole.pt", **options) == 0
        expected = torch.load(tmp_path / "whole.pt")
        # evaluating at other steps, although it draws, changes nothing else
        keys = ("weights", "optimizer", "generators", "seen")
        assert_equal({key: expected[key] for key in keys}, {key: alone[0][key] for key in keys})
    assert_same_end(end, expected)


@pytest.mark.slow
def test_two_processes(tmp_path):
    """One of two has SIGTERM: both save the same step and stop; both go on to the end that two alone reach."""
    ends = [tmp_path / f"end-{rank}.pt" for rank in range(2)]
    stopped = [tmp_path / f"stopped-{rank}.pt" for rank in range(2)]
    options = {"per_device_train_batch_size": 1}
    assert run_two(tmp_path / "alone", ends, **options) == [0, 0]
    signalled = {"sigterm_step": 8, "sigterm_rank": 1}
    codes = run_two(tmp_path / "out", attributes=signalled, save_strategy="no", **options)
    assert codes == [-signal.SIGTERM, -signal.SIGTERM]
    folder = tmp_path / "out" / "checkpoint-8"
    assert missing_parts(folder) == []
    assert {path.name for path in folder.glob("*_[01].pt*")} == {
        f"{name}_{rank}.{end}" for name, end in (("hf_rlae_state", "pt"), ("rng_state", "pth")) for rank in range(2)
    }
    assert run_two(tmp_path / "out", stopped, resume=True, **options) == [0, 0]
    for end, other in zip(stopped, ends, strict=True):
        assert_same_end(torch.load(end), torch.load(other))
    buffers = [torch.load(end)["extra"]["buffer"] for end in ends]
    assert not torch.equal(*buffers)
    with pytest.raises(CheckpointError, match=r"was saved by 2 process\(es\) and this run has 1"):
        toy_trainer(tmp_path / "out").train(resume_from_checkpoint=True)


SHORT = {"max_steps": 2, "save_steps": 1, "eval_strategy": "no"}


@pytest.mark.parametrize("processes", [1, *slow(2)])
def test_another_process_does_not_train_in_the_same_folder(tmp_path, processes):
    """It is refused by name; of two that train together only the main one asks for the lock, and both raise."""
    lock = RunLock(tmp_path / "out")
    told = [tmp_path / f"told-{rank}" for rank in range(processes)]
    if processes == 1:
        assert run(tmp_path / "out", told[0], **SHORT) == 1
    else:
        assert run_two(tmp_path / "out", told, **SHORT, per_device_train_batch_size=1) == [1, 1]
    for file in told:
        assert f"FolderInUseError: {tmp_path / 'out'} is the output_dir of another run (process {os.getpid()} on" in (
            file.read_text()
        )
    lock.release()
    assert not list((tmp_path / "out").iterdir())


def test_a_killed_owner_does_not_block(tmp_path):
    """The operating system releases its lock; what it told about itself is replaced."""
    assert run(tmp_path, attributes={"kill_step": 2}, **SHORT) == -signal.SIGKILL
    assert json.loads((tmp_path / OWNER).read_text())["pid"] != os.getpid()
    trainer = toy_trainer(tmp_path, **SHORT)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-2"]


def test_the_lock_is_not_kept_by_sigterm(tmp_path):
    """The signal ends the process only after the lock is released."""
    assert run(tmp_path, attributes={"sigterm_step": 1}, **SHORT) == -signal.SIGTERM
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
