"""A checkpoint is resumed only by the run that saved it: every setting that makes up the run is compared."""

from __future__ import annotations

import copy
import json
import logging
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from hf_rlae.errors import CheckpointError
from hf_rlae.trainers import CoryRLOOTrainer, CoryTrainer
from hf_rlae.trainers.durable.manifest import MANIFEST, write_manifest
from tests.support import cory, rlae
from tests.support.models import pair
from tests.support.tokenizers import byte_level_bpe

SAVES = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}


def members(seed=0, dtype=None, **overrides):
    """Two members of one tokenizer; the second one depends on the seed."""
    tokenizer = copy.deepcopy(byte_level_bpe())
    second, _ = pair("llama", 7 + seed, tokenizer, **overrides)
    return [pair("llama", 0, tokenizer), (second.to(dtype), tokenizer)]


def rlae_trainer(folder, given=None, policy=None, observation="members", objective="mixture", **options):
    ensemble = rlae.ensemble_of(
        policy={"actor": "joint", **(policy or {})},
        given=members() if given is None else given,
        observation=observation,
    )
    return rlae.trainer_of(folder, objective, ensemble=ensemble, **{**SAVES, **options})


def nudged():
    """Members of which the second differs in one tensor, by a fine-tuning of its last layer, say."""
    given = members()
    with torch.no_grad():
        given[1][0].model.layers[-1].mlp.up_proj.weight.mul_(1.01)
    return given


def templated():
    given = members()
    given[0][1].chat_template = "{{ messages }}"
    return given


RLAE_CHANGES = {
    "objective": ({"objective": "ppo"}, "objective: 'mixture' saved, 'ppo' given"),
    "actor": ({"policy": {"actor": "per_member"}}, r"policy\.config\.actor: 'joint' saved, 'per_member' given"),
    "width of the policy": ({"policy": {"hidden_size": 8}}, r"policy\.config\.hidden_size: 16 saved, 8 given"),
    "seed": ({"seed": 8}, "seed: 7 saved, 8 given"),
    "batch": ({"per_device_train_batch_size": 8, "steps_per_generation": 1}, "per_device_train_batch_size: 4 saved, 8"),
    "accumulation": ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps: 1 saved, 2 given"),
    "completions of a prompt": ({"num_generations": 2}, "num_generations: 4 saved, 2 given"),
    "passes": ({"num_iterations": 1}, "num_iterations: 2 saved, 1 given"),
    "another member of the same widths": (
        {"given": lambda: members(seed=1)},
        r"members\[1\]\.weights\.\S+: '\w{8}' saved, '\w{8}' given; .* and \d+ more",
    ),
    "one tensor of a member": (
        {"given": nudged},
        r"run: members\[1\]\.weights\.\S+layers\.1\.mlp\.up_proj\.weight: '\w{8}' saved, '\w{8}' given\. Resume",
    ),
    "the order of members": ({"given": lambda: members()[::-1]}, r"members\[0\]\.weights"),
    "a field of a member's config": (
        {"given": lambda: members(rms_norm_eps=1e-3)},
        r"run: members\[1\]\.config\.rms_norm_eps: 1e-06 saved, 0\.001 given",
    ),
    "the dtype of a member": (
        {"given": lambda: members(dtype=torch.bfloat16)},
        r"members\[1\]\.dtype: 'torch.float32' saved, 'torch.bfloat16' given",
    ),
    "the chat template of a tokenizer": ({"given": templated}, r"run: members\[0\]\.tokenizer: '\w+' saved"),
    "a member more": ({"given": lambda: [*members(), members()[0]]}, r"members: 2 entries saved, 3 entries given"),
}


def options_of(change):
    return {name: value() if callable(value) else value for name, value in change.items()}


def with_adapters(seed):
    """A member with a LoRA adapter, whose weights depend on the seed alone."""
    given = members()
    adapted = get_peft_model(given[1][0], cory.lora())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_B" in name:
                value.copy_(torch.randn(value.shape, generator=generator))
            elif "lora_A" in name:
                value.fill_(0.1)
    return [given[0], (adapted, given[1][1])]


def test_another_adapter_of_a_member(tmp_path):
    rlae_trainer(tmp_path, given=with_adapters(0)).train()
    with pytest.raises(CheckpointError, match=r"run: members\[1\]\.weights\.\S+lora_B"):
        rlae_trainer(tmp_path, given=with_adapters(1), max_steps=2).train(resume_from_checkpoint=True)
    rlae_trainer(tmp_path, given=with_adapters(0), max_steps=2).train(resume_from_checkpoint=True)


@pytest.fixture(scope="module")
def rlae_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rlae")
    rlae_trainer(folder).train()
    return folder


@pytest.mark.parametrize("change", RLAE_CHANGES)
def test_another_run_of_rlae(rlae_run, tmp_path, change):
    given, message = RLAE_CHANGES[change]
    trainer = rlae_trainer(tmp_path, max_steps=2, **options_of(given))
    before = rlae.parameters_of(trainer.model)
    with pytest.raises(CheckpointError, match=message):
        trainer.train(resume_from_checkpoint=str(rlae_run / "checkpoint-1"))
    rlae.assert_same(rlae.parameters_of(trainer.model), before)


@pytest.mark.parametrize("adapter", [None, LoraConfig(r=2)], ids=["policy", "adapter"])
def test_a_checkpoint_of_a_policy_with_other_tensors(tmp_path, adapter):
    """As earlier versions saved them, with another critic: their settings differ in nothing that both describe."""
    options = {"observation": "text", "peft_config": adapter}
    rlae_trainer(tmp_path, **options).train()
    folder = tmp_path / "checkpoint-1"
    (path,) = folder.glob("*model.safetensors")
    renamed = {name.replace("critic.hidden", "critic.0"): value for name, value in load_file(path).items()}
    save_file(renamed, path, {"format": "pt"})
    described = json.loads((folder / MANIFEST).read_text())
    write_manifest(folder, {name: described[name] for name in ("global_step", "num_processes", "resumable", "run")})
    trainer = rlae_trainer(tmp_path, **options, max_steps=2)
    before = rlae.parameters_of(trainer.model)
    with pytest.raises(CheckpointError, match=r"has 2 tensors that .* such as \S*heads\.critic\.0\.bias: an earlier"):
        trainer.train(resume_from_checkpoint=True)
    rlae.assert_same(rlae.parameters_of(trainer.model), before)


def test_a_frozen_encoder_belongs_to_the_run(tmp_path):
    """With LoRA it is in no checkpoint."""
    options = {"observation": "text", "peft_config": LoraConfig(r=2)}
    rlae_trainer(tmp_path, **options).train()
    other = rlae_trainer(tmp_path, **options, max_steps=2)
    with torch.no_grad():
        next(v for n, v in other.policy.named_parameters() if "encoder" in n and not v.requires_grad).add_(0.1)
    with pytest.raises(CheckpointError, match=r"run: policy\.weights\.\S*encoder"):
        other.train(resume_from_checkpoint=True)
    scaled = rlae_trainer(tmp_path, **{**options, "peft_config": LoraConfig(r=2, lora_alpha=32)}, max_steps=2)
    with pytest.raises(CheckpointError, match=r"run: policy\.adapter\.lora_alpha: 8 saved, 32 given"):
        scaled.train(resume_from_checkpoint=True)
    rlae_trainer(tmp_path, **options, max_steps=2).train(resume_from_checkpoint=True)


def cory_trainer(folder, trainer_class=CoryTrainer, **options):
    return cory.trainer_of(folder, trainer_class, **{**SAVES, **options})


CORY_CHANGES = {
    "base": ({"given": lambda: cory.base(seed=1)}, r"model\.weights\.\S+: '\w{8}' saved"),
    "agents": ({"num_agents": 3}, r"agent_names: \['agent-1', 'agent-2'\] saved, \['agent-1', 'agent-2', 'agent-3'\]"),
    "names": ({"agent_names": ["eve", "agent-2"]}, r"agent_names\[0\]: 'agent-1' saved, 'eve' given"),
    "roles": ({"role_exchange_steps": 4}, "role_exchange_steps: 5 saved, 4 given"),
    "what observers read": ({"knowledge_transfer": False}, "knowledge_transfer: True saved, False given"),
    "what agents learn from": ({"credit": "own"}, "credit: 'team' saved, 'own' given"),
    "trainer": ({"trainer_class": CoryRLOOTrainer}, "trainer: 'GRPOTrainer' saved, 'RLOOTrainer' given"),
    "scale of adapters": ({"peft_config": cory.lora(lora_alpha=32)}, r"peft_config\.lora_alpha: 8 saved, 32 given"),
    "seed": ({"seed": 8}, "seed: 7 saved, 8 given"),
    "batches of a rollout": (
        {"steps_per_generation": 1, "num_generations": 2},
        "num_generations: 4 saved, 2 given; steps_per_generation: 2 saved, 1 given",
    ),
}


@pytest.fixture(scope="module")
def cory_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cory")
    cory_trainer(folder).train()
    return folder


@pytest.mark.parametrize("change", CORY_CHANGES)
def test_another_run_of_cory(cory_run, tmp_path, change):
    given, message = CORY_CHANGES[change]
    trainer = cory_trainer(tmp_path, max_steps=2, **{"given": None, **options_of_cory(given)})
    with pytest.raises(CheckpointError, match=message):
        trainer.train(resume_from_checkpoint=str(cory_run / "checkpoint-1"))
    assert trainer.state.global_step == 0


def test_a_checkpoint_of_another_trainer(rlae_run, cory_run, tmp_path):
    with pytest.raises(CheckpointError, match="trainer: 'GRPOTrainer' saved, 'RLAETrainer' given"):
        rlae_trainer(tmp_path).train(resume_from_checkpoint=str(cory_run / "checkpoint-1"))
    with pytest.raises(CheckpointError, match="trainer: 'RLAETrainer' saved, 'GRPOTrainer' given"):
        cory_trainer(tmp_path).train(resume_from_checkpoint=str(rlae_run / "checkpoint-1"))


def options_of_cory(change):
    return {name: value() if name == "given" else value for name, value in change.items()}


def test_what_may_change(rlae_run, cory_run, tmp_path, caplog):
    """The schedule, the number of steps, when to save; other data and rewards are told."""
    for saved, make in ((rlae_run, rlae_trainer), (cory_run, cory_trainer)):
        out = shutil.copytree(saved, tmp_path / saved.name)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            same = make(out, max_steps=2, learning_rate=1e-3, save_steps=2, logging_steps=5, lr_scheduler_type="cosine")
            same.train(resume_from_checkpoint=True)
            assert "differs" not in caplog.text
            trainer = make(out, max_steps=3, temperature=0.9, train=rlae.data(8))
            trainer.train(resume_from_checkpoint=str(out / "checkpoint-2"))
        assert trainer.state.global_step == 3
        assert "this run differs from the one that saved" in caplog.text
        assert "temperature: 1.0 saved, 0.9 given; train_dataset: '6 prompts, " in caplog.text


def test_a_checkpoint_of_an_earlier_version(rlae_run, tmp_path, caplog):
    """It has sizes alone, and no description of its run; it is resumed, and what is not checked is logged."""
    out = shutil.copytree(rlae_run, tmp_path / "out")
    path = out / "checkpoint-1" / MANIFEST
    manifest = json.loads(path.read_text())
    path.write_text(
        json.dumps({name: manifest[name] for name in ("global_step", "num_processes", "resumable", "files")})
    )
    trainer = rlae_trainer(out, max_steps=2, seed=9)
    with caplog.at_level(logging.INFO, logger="hf_rlae"):
        trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 2
    assert "only their sizes were checked" in caplog.text
    assert "does not describe its run" in caplog.text


def test_a_description_may_gain_fields(rlae_run, tmp_path):
    """A later version describes more, or a library's config has new fields."""
    out = shutil.copytree(rlae_run, tmp_path / "out")
    manifest = json.loads((out / "checkpoint-1" / MANIFEST).read_text())
    settings = manifest["run"]["settings"]
    del settings["num_iterations"], settings["members"][0]["config"]["rms_norm_eps"]
    settings["members"][1]["config"]["new_field"] = 3
    fields = {name: manifest[name] for name in ("global_step", "num_processes", "resumable", "run")}
    write_manifest(out / "checkpoint-1", fields)
    trainer = rlae_trainer(out, max_steps=2)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 2


DAMAGE = {
    "missing": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-2]),
    "flipped": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
}


@pytest.mark.parametrize("kind", ["rlae", "cory"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_every_file_of_a_damaged_checkpoint(rlae_run, cory_run, tmp_path, caplog, kind, damage):
    """Weights of all agents, configs, tokenizers, states: each is named, and nothing is resumed from."""
    run, make = {"rlae": (rlae_run, rlae_trainer), "cory": (cory_run, cory_trainer)}[kind]
    out = shutil.copytree(run, tmp_path / "out")
    trainer = make(out)
    files = sorted(path.relative_to(out) for path in (out / "checkpoint-1").rglob("*") if path.is_file())
    assert len(files) > 7
    for file in files:
        whole = (out / file).read_bytes()
        DAMAGE[damage](out / file)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert trainer._checkpoint_to_resume(True) is None, file
        assert str(file.relative_to("checkpoint-1")) in caplog.text
        (out / file).write_bytes(whole)
    assert trainer._checkpoint_to_resume(True) == str(out / "checkpoint-1")
