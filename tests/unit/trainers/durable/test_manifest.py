"""Changed and torn checkpoints are never used: every file, in every way, and the manifest itself."""

from __future__ import annotations

import gc
import json
import logging
import os
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file

from hf_rlae.errors import CheckpointError
from hf_rlae.trainers.durable import manifest as manifests
from hf_rlae.trainers.durable.checkpoint_folders import whole_checkpoints
from hf_rlae.trainers.durable.manifest import MANIFEST, damaged_parts, missing_parts, read_manifest
from tests.support.trainers import ToyTrainer, toy_trainer

SHORT = {"max_steps": 4, "save_steps": 2, "eval_strategy": "no"}
FILES = [
    "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "hf_rlae_state.pt", "trainer_state.json",
    "config.json", MANIFEST,
]  # fmt: skip


class Configured(ToyTrainer):
    """Saves a config as well, as trainers of models with a config do."""

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        with open(os.path.join(output_dir, "config.json"), "w") as file:
            json.dump({"hidden_size": 4}, file)


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
    toy_trainer(folder, Configured, **SHORT).train()
    return folder


@pytest.fixture
def out(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "out")


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


DAMAGE = {
    "first bit": lambda path: flip(path, 0),
    "a bit in the middle": lambda path: flip(path, path.stat().st_size * 4 + 3),
    "last bit": lambda path: flip(path, path.stat().st_size * 8 - 1),
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\n{}"),
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a dangling link": lambda path: (path.unlink(), path.symlink_to("nowhere")),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_damaged_checkpoints(out, caplog, name, damage):
    """The newest whole one is resumed, with a warning that names file and reason; given by name, an error does."""
    DAMAGE[damage](out / "checkpoint-4" / name)
    trainer = toy_trainer(out, Configured, **SHORT)
    with caplog.at_level(logging.WARNING):
        assert trainer._checkpoint_to_resume(True) == str(out / "checkpoint-2")
    assert "checkpoint-4" in caplog.text
    assert name in caplog.text
    with pytest.raises(
        CheckpointError, match=rf"(?s)not a complete checkpoint.*{name}.*Others in output_dir: \S+checkpoint-2; resume"
    ):
        trainer.train(resume_from_checkpoint=str(out / "checkpoint-4"))
    assert trainer.state.global_step == 0


def test_every_bit_of_a_manifest(out):
    """No flip of one bit goes unnoticed: its contents have a checksum, and the rest is the syntax of JSON."""
    folder = out / "checkpoint-4"
    whole = (folder / MANIFEST).read_bytes()
    for bit in random.Random(0).sample(range(len(whole) * 8), 150):
        flip(folder / MANIFEST, bit)
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_manifest(folder)
        (folder / MANIFEST).write_bytes(whole)
    assert damaged_parts(folder) == []


def test_random_bits_of_files(out):
    folder = out / "checkpoint-4"
    draw = random.Random(1)
    for name in FILES[:-1]:
        whole = (folder / name).read_bytes()
        for _ in range(20):
            flip(folder / name, draw.randrange(len(whole) * 8))
            assert damaged_parts(folder) == [f"{name} has changed since it was saved (SHA-256)"]
            (folder / name).write_bytes(whole)
    assert damaged_parts(folder) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        pytest.param({"num_processes": None}, "num_processes is None", id="nothing for processes"),
        pytest.param({"num_processes": ...}, "has no num_processes", id="no processes"),
        pytest.param({"num_processes": "1"}, "num_processes is '1'", id="a text for processes"),
        pytest.param({"num_processes": True}, "num_processes is True", id="a boolean is no number"),
        pytest.param({"resumable": ...}, "has no resumable", id="no word on resuming"),
        pytest.param({"resumable": 1}, "resumable is 1", id="a number is no boolean"),
        pytest.param({"files": []}, r"files is \[\]", id="a list of files"),
        pytest.param({"files": {"model.safetensors": "5"}}, "a size is not a number", id="a text for a size"),
        pytest.param({"files": {"model.safetensors": 5}}, "checksum is wrong", id="another size"),
        pytest.param({"sha256": {}}, "checksum is wrong", id="no digests"),
        pytest.param({"sha256": ...}, "checksum is wrong", id="digests removed"),
        pytest.param({"checksum": ...}, "checksum is wrong", id="checksum removed"),
        pytest.param({"run": {"settings": {"seed": 4}}}, "checksum is wrong", id="another run"),
        pytest.param({"run": []}, r"run is \[\]", id="a list for the run"),
    ],
)
def test_manifests_of_wrong_types(out, changes, told):
    path = out / "checkpoint-4" / MANIFEST
    manifest = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in manifest.items() if value is not ...}))
    with pytest.raises(CheckpointError, match=f"{MANIFEST} cannot be read: .*{told}"):
        read_manifest(path.parent)
    assert any(told.replace("\\", "") in reason for reason in missing_parts(path.parent))
    assert list(whole_checkpoints(out)) == [2]


@pytest.mark.parametrize(
    "text", ["[1]", "3", "null", "[" * 100_000, '"a"'], ids=["list", "number", "null", "deep", "text"]
)
def test_manifests_that_are_no_objects(out, text):
    (out / "checkpoint-4" / MANIFEST).write_text(text)
    assert list(whole_checkpoints(out)) == [2]


@pytest.mark.parametrize("kind", ["a file", "a dangling link", "an empty folder"])
def test_what_has_the_name_of_a_checkpoint(out, caplog, kind):
    """It is ignored with a warning, and replaced when that step is saved again."""
    place = out / "checkpoint-4"
    shutil.rmtree(place)
    if kind == "a file":
        place.write_text("x")
    elif kind == "a dangling link":
        place.symlink_to(out / "nowhere")
    else:
        place.mkdir()
    trainer = toy_trainer(out, Configured, **SHORT, save_total_limit=2)
    with pytest.raises(CheckpointError, match="is not there" if kind == "an empty folder" else "is not a folder"):
        trainer.train(resume_from_checkpoint=str(place))
    with caplog.at_level(logging.WARNING):
        trainer.train(resume_from_checkpoint=True)
    assert "checkpoint-4 is incomplete and is ignored" in caplog.text
    assert trainer.state.global_step == 4
    assert damaged_parts(place) == []
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint-2", "checkpoint-4"]


def test_a_link_to_a_checkpoint(out, tmp_path):
    """Checkpoints may be on another disk; saving the step again replaces the link, not what it leads to."""
    shutil.move(out / "checkpoint-4", tmp_path / "elsewhere")
    (out / "checkpoint-4").symlink_to(tmp_path / "elsewhere")
    assert list(whole_checkpoints(out)) == [2, 4]
    toy_trainer(out, Configured, **SHORT).train(resume_from_checkpoint=str(out / "checkpoint-2"))
    assert not (out / "checkpoint-4").is_symlink()
    assert damaged_parts(tmp_path / "elsewhere") == damaged_parts(out / "checkpoint-4") == []


def test_a_damaged_best_checkpoint_is_not_loaded(tmp_path, caplog):
    """The last weights stay, and that is logged."""

    class Judged(ToyTrainer):
        def evaluate(self, *args, **kwargs):
            return {**super().evaluate(*args, **kwargs), "eval_score": float(self.state.global_step == 1)}

        def _save_checkpoint(self, model, trial):
            super()._save_checkpoint(model, trial)
            if self.state.global_step == 2:
                flip(tmp_path / "checkpoint-1" / "model.safetensors", 999)

    trainer = toy_trainer(
        tmp_path, Judged, max_steps=2, save_steps=1, eval_steps=1, load_best_model_at_end=True,
        metric_for_best_model="score", greater_is_better=True,
    )  # fmt: skip
    trainer.train()
    assert "checkpoint-1 is damaged, and the last weights are kept instead: model.safetensors has ch" in caplog.text
    for name, value in load_file(tmp_path / "checkpoint-2" / "model.safetensors").items():
        assert torch.equal(trainer.model.state_dict()[name], value)


def test_a_file_that_cannot_be_read(out, monkeypatch):
    """Such as one on a bad sector."""
    monkeypatch.setattr(manifests, "_digest", lambda path: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    assert damaged_parts(out / "checkpoint-4") == ["a file cannot be read: [Errno 5] Input/output error"]
