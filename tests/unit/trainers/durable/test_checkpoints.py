"""Checkpoints: contents, selection, rotation, and SIGTERM."""

from __future__ import annotations

import collections
import gc
import json
import logging
import random
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_rlae.errors import CheckpointError, ConfigError
from hf_rlae.trainers.durable.checkpoint_folders import (
    REPLACED,
    UNFINISHED,
    check_plain,
    rotate,
    settle,
    whole_checkpoints,
)
from hf_rlae.trainers.durable.manifest import MANIFEST, missing_parts
from tests.support.trainers import ToyTrainer, assert_equal, end_state, toy_trainer

SHORT = {"max_steps": 4, "save_steps": 2, "eval_strategy": "no"}


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """Transformers collects garbage at each start of training; objects of other tests are excluded."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The output folder of a run of four steps, with checkpoints 2 and 4."""
    folder = tmp_path_factory.mktemp("saved") / "out"
    toy_trainer(folder, **SHORT).train()
    return folder


@pytest.fixture
def out(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "out")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved(saved):
    """All files of transformers, and two more; nothing else remains."""
    assert names(saved) == ["checkpoint-2", "checkpoint-4"]
    files = {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    assert set(names(saved / "checkpoint-4")) == files | {"hf_rlae_state.pt", MANIFEST}
    assert list(whole_checkpoints(saved)) == [2, 4]
    manifest = json.loads((saved / "checkpoint-4" / MANIFEST).read_text())
    assert (manifest["global_step"], manifest["num_processes"], manifest["resumable"]) == (4, 1, True)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "hf_rlae_state.pt", "trainer_state.json", MANIFEST]
)
@pytest.mark.parametrize("fault", ["removed", "cut"])
def test_torn_checkpoints(out, caplog, name, fault):
    """An incomplete newest checkpoint is ignored, whichever file is damaged; given by name, it raises an error."""
    torn = out / "checkpoint-4" / name
    if fault == "removed":
        torn.unlink()
    else:
        torn.write_bytes(torn.read_bytes()[:-3])
    assert any(name in reason for reason in missing_parts(torn.parent))
    assert list(whole_checkpoints(out)) == [2]
    assert name in caplog.text
    trainer = toy_trainer(out, **{**SHORT, "max_steps": 3})
    trainer.train(resume_from_checkpoint=True)
    assert len(trainer.seen) == 2
    with pytest.raises(
        CheckpointError, match=rf"(?s){name}.*Others in output_dir: \S+checkpoint-2, \S+checkpoint-3; resume"
    ):
        toy_trainer(out, **SHORT).train(resume_from_checkpoint=str(torn.parent))


def test_nothing_to_resume(tmp_path, caplog):
    """Training starts from the beginning and logs it."""
    trainer = toy_trainer(tmp_path / "new", **SHORT)
    with caplog.at_level(logging.WARNING):
        trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4
    assert "starts from the beginning" in caplog.text
    with pytest.raises(CheckpointError, match="nowhere is not a folder"):
        trainer.train(resume_from_checkpoint=tmp_path / "nowhere")


def test_processes_agree_on_the_newest(out, monkeypatch):
    """One process, with its own disk, lacks the last checkpoint."""
    monkeypatch.setattr(
        "hf_rlae.trainers.durable.checkpoints.gather_object", lambda own: [*own, [2, 3]] if own == [[2, 4]] else own
    )
    trainer = toy_trainer(out, **{**SHORT, "max_steps": 3})
    assert trainer._checkpoint_to_resume(True) == str(out / "checkpoint-2")


def test_a_run_that_is_over(out):
    """A finished run takes no further step and saves nothing."""
    trainer = toy_trainer(out, **SHORT)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    output = trainer.train(resume_from_checkpoint=True)
    assert (output.global_step, output.training_loss, trainer.seen) == (4, 0.0, [])
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_weights_alone(tmp_path):
    """A checkpoint of `save_only_model` is complete, but cannot be resumed."""
    toy_trainer(tmp_path, **SHORT, save_only_model=True).train()
    assert names(tmp_path / "checkpoint-4") == [
        MANIFEST,
        "model.safetensors",
        "trainer_state.json",
    ]
    with pytest.raises(CheckpointError, match="save_only_model"):
        toy_trainer(tmp_path, **SHORT).train(resume_from_checkpoint=True)


def test_extra_state_comes_back(saved):
    """It is restored after optimizer and scheduler, before the first step, with equal values and types."""
    events = []

    class Watching(ToyTrainer):
        def load_extra_state(self, state):
            events.append((self.state.global_step, len(self.optimizer.state), self.lr_scheduler.last_epoch, state))

        def training_step(self, *args, **kwargs):
            events.append("step")
            self.buffer = torch.zeros(8)
            return super().training_step(*args, **kwargs)

    trainer = toy_trainer(saved, Watching, **{**SHORT, "max_steps": 3, "save_strategy": "no"})
    trainer.train(resume_from_checkpoint=str(saved / "checkpoint-2"))
    (step, moments, schedule, state), *others = events
    assert (step, moments, schedule) == (2, 4, 2)
    assert state["num_batches"] == 4
    assert state["buffer"].shape == (8,)
    assert_equal(state["nested"], [({"a": b"x"}, None, 0.1)])
    assert others == ["step", "step"]


def test_the_next_log_knows_the_losses_before(tmp_path):
    """With a checkpoint between two logs, the next log and the mean loss are correct."""
    options = {**SHORT, "save_steps": 1, "logging_steps": 4}
    whole = toy_trainer(tmp_path, **options)
    output = whole.train()
    part = toy_trainer(tmp_path, **{**options, "save_strategy": "no"})
    rest = part.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert whole.state.log_history[0]["loss"] == part.state.log_history[0]["loss"]
    assert_equal(end_state(part), end_state(whole))
    first = toy_trainer(tmp_path / "first", **{**options, "max_steps": 1, "lr_scheduler_type": "constant"}).train()
    assert first.training_loss + 3 * rest.training_loss == pytest.approx(4 * output.training_loss, rel=1e-5)


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (collections.defaultdict(list), r"state is a collections.defaultdict"),
        ({"a": [1, np.float64(2)]}, r"state\['a'\]\[1\] is a numpy.float64"),
        ({"a": ({1, 2},)}, r"state\['a'\]\[0\] is a builtins.set"),
        ({(1, 2): 3}, r"state has the key \(1, 2\)"),
        ({"a": torch.nn.Parameter(torch.ones(1))}, r"Parameter"),
        (collections.deque([1]), "deque"),
    ],
)
def test_states_that_are_refused(value, place):
    """Values that `torch.load` would change or refuse."""
    with pytest.raises(CheckpointError, match=place):
        check_plain(value, "state")


def test_a_state_that_cannot_be_saved(tmp_path):
    """The error names the value, and no checkpoint remains."""
    trainer = toy_trainer(tmp_path, **SHORT)
    trainer.extra_state = lambda: {"metrics": collections.Counter()}
    with pytest.raises(CheckpointError, match=r"extra_state\(\)\['metrics'\] is a collections.Counter"):
        trainer.train()
    assert whole_checkpoints(tmp_path) == {}
    assert not list(tmp_path.glob("checkpoint-*"))


def test_leftovers(out):
    """After a killed save, unfinished folders are deleted, and replaced ones restored if their name is free."""
    (out / UNFINISHED / "checkpoint-9").mkdir(parents=True)
    (out / "checkpoint-4").rename(out / f"{REPLACED}checkpoint-4")
    shutil.copytree(out / "checkpoint-2", out / f"{REPLACED}checkpoint-2")
    settle(out)
    assert names(out) == ["checkpoint-2", "checkpoint-4"]
    assert list(whole_checkpoints(out)) == [2, 4]
    (out / UNFINISHED / "checkpoint-9").mkdir(parents=True)
    toy_trainer(out, **SHORT).train(resume_from_checkpoint=True)
    assert names(out) == ["checkpoint-2", "checkpoint-4"]


def test_saving_a_step_again(out):
    """The new checkpoint replaces the old one, including files that only the old one has."""
    (out / "checkpoint-2" / "old.txt").write_text("old")
    trainer = toy_trainer(out, **{**SHORT, "learning_rate": 0.01})
    trainer.train()
    assert list(whole_checkpoints(out)) == [2, 4]
    assert not (out / "checkpoint-2" / "old.txt").exists()
    assert names(out) == ["checkpoint-2", "checkpoint-4"]


def test_rotation(tmp_path):
    """The newest ones are kept."""
    toy_trainer(tmp_path, **{**SHORT, "save_steps": 1}, save_total_limit=2).train()
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-4"]


def test_a_deletion_that_is_interrupted_leaves_no_incomplete_checkpoint(tmp_path, monkeypatch):
    """Law: whatever has the name of a checkpoint is complete, also if rotation was killed in the middle of a folder."""
    toy_trainer(tmp_path, **{**SHORT, "save_steps": 1}).train()

    class Killed(BaseException):
        pass

    def killed(path, *args, **kwargs):
        next(file for file in Path(path).rglob("*") if file.is_file()).unlink()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(Killed):
            rotate(str(tmp_path), str(tmp_path / "checkpoint-4"), 1, None)
    assert names(tmp_path) == [UNFINISHED, "checkpoint-2", "checkpoint-3", "checkpoint-4"]
    assert all(missing_parts(path) == [] for path in tmp_path.glob("checkpoint-*"))
    settle(tmp_path)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]


class Judged(ToyTrainer):
    """Its second evaluation is the best one."""

    scores = (3.0, 1.0, 2.0, 4.0)

    def evaluate(self, *args, **kwargs):
        metrics = super().evaluate(*args, **kwargs)
        return {**metrics, "eval_score": self.scores[self.state.global_step - 1]}


def test_the_best_model(tmp_path):
    """Rotation keeps it, no checkpoint has its path, and it is loaded at the end."""
    options = {
        **{**SHORT, "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1},
        "load_best_model_at_end": True,
        "metric_for_best_model": "score",
        "greater_is_better": False,
        "save_total_limit": 2,
    }
    weights = {}

    class Keeping(Judged):
        def _save_checkpoint(self, model, trial):
            weights[self.state.global_step] = {name: value.clone() for name, value in model.state_dict().items()}
            super()._save_checkpoint(model, trial)
            best = 1 if self.state.global_step == 1 else 2
            assert self.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
            told = json.loads((tmp_path / f"checkpoint-{self.state.global_step}" / "trainer_state.json").read_text())
            assert (told["best_model_checkpoint"], told["best_global_step"]) == (None, best)

    trainer = toy_trainer(tmp_path, Keeping, **options)
    trainer.train()
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4"]
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    assert_equal(dict(trainer.model.state_dict()), weights[2])
    again = toy_trainer(tmp_path, Judged, **{**options, "max_steps": 4})
    again.train(resume_from_checkpoint=True)
    assert again.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")


def test_pushed_are_whole_checkpoints(tmp_path):
    """Each checkpoint is pushed once, under its final name, even if a class in between overrides the push."""
    pushed = []

    class Pushing(ToyTrainer):
        def _push_from_checkpoint(self, checkpoint_folder):
            assert missing_parts(checkpoint_folder) == []
            pushed.append(checkpoint_folder)

    trainer = toy_trainer(tmp_path, Pushing, **SHORT)
    trainer.args.push_to_hub = True
    trainer.train()
    assert pushed == [str(tmp_path / "checkpoint-2"), str(tmp_path / "checkpoint-4")]


def test_evaluation_leaves_the_generators(tmp_path):
    """During training only; other evaluations use the generators as usual."""

    def drawn():
        return torch.random.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()

    trainer = toy_trainer(tmp_path, **SHORT)
    before = drawn()
    trainer.is_in_train = True
    trainer.evaluate()
    assert drawn() == before
    trainer.is_in_train = False
    trainer.evaluate()
    after = drawn()
    assert all(one != other for one, other in zip(before, after, strict=True))


class TestSignal:
    @pytest.fixture(autouse=True)
    def heard(self):
        heard = []
        former = signal.signal(signal.SIGTERM, self.note)
        self.heard = heard
        yield heard
        signal.signal(signal.SIGTERM, former)

    def note(self, signum, frame):
        self.heard.append(signum)

    def test_the_former_handler_has_it_afterwards(self, tmp_path):
        """The former handler is called once, after the checkpoint, and is restored."""
        trainer = toy_trainer(tmp_path, **{**SHORT, "save_strategy": "no"})
        trainer.sigterm_step = 3
        output = trainer.train()
        assert output.global_step == 3
        assert self.heard == [signal.SIGTERM]
        assert list(whole_checkpoints(tmp_path)) == [3]
        assert signal.getsignal(signal.SIGTERM) == self.note
        # the next call is not affected
        trainer.sigterm_step = None
        assert trainer.train(resume_from_checkpoint=True).global_step == 4
        assert len(self.heard) == 1

    def test_without_a_signal(self, tmp_path):
        toy_trainer(tmp_path, **SHORT).train()
        assert signal.getsignal(signal.SIGTERM) == self.note
        assert self.heard == []

    def test_training_fails(self, tmp_path, caplog):
        """The handler is restored; neither a received signal nor the error is lost."""
        for step in (None, 1):
            trainer = toy_trainer(tmp_path, **SHORT)
            trainer.sigterm_step = step
            trainer.compute_loss = lambda *args, **kwargs: 1 / 0
            with pytest.raises(ZeroDivisionError):
                trainer.train()
            assert signal.getsignal(signal.SIGTERM) == self.note
            assert len(self.heard) == (0 if step is None else 1)
        assert "training failed after SIGTERM" in caplog.text

    def test_ignored_signals_stay_ignored(self, tmp_path):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        trainer = toy_trainer(tmp_path, **SHORT)
        trainer.sigterm_step = 2
        assert trainer.train().global_step == 4

    def test_another_thread(self, tmp_path):
        """Only the main thread may set handlers: training in another thread does not."""
        steps = []
        trainer = toy_trainer(tmp_path, **SHORT)
        thread = threading.Thread(target=lambda: steps.append(trainer.train().global_step))
        thread.start()
        thread.join(30)
        assert steps == [4]
        assert signal.getsignal(signal.SIGTERM) == self.note


def test_two_ways_to_save_at_sigterm(tmp_path):
    former = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(ConfigError, match="enable_jit_checkpoint"):
            toy_trainer(tmp_path, enable_jit_checkpoint=True)
    finally:
        signal.signal(signal.SIGTERM, former)
