"""Nothing private is in any folder that a trainer saves: paths, users and tokens, in all bytes of all files."""

from __future__ import annotations

import json
import types

import pandas as pd
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BertModel

from hf_rlae import EnsembleForCausalLM, PolicyModel
from hf_rlae.errors import ConfigError
from hf_rlae.trainers import CoryPPOTrainer, CoryTrainer, TokenPPOConfig, TokenPPOTrainer, WeightingReport
from hf_rlae.trainers.durable.private_saves import hide_base
from tests.support import cory, rlae
from tests.support.models import pair
from tests.support.policies import encoder
from tests.support.tiers import slow

CANARIES = ("canary-user", "canary-models", "hf_canarytoken", "canary-key")
SAVES = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "hub_token": "hf_canarytoken"}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder with models and runs, and an environment with secrets."""
    for name, value in {"USER": "canary-user", "HF_TOKEN": "hf_canarytoken", "WANDB_API_KEY": "canary-key"}.items():
        monkeypatch.setenv(name, value)
    home = tmp_path / "canary-user"
    for name, seed in (("one", 0), ("two", 1)):
        model, tokenizer = pair("llama", seed)
        model.save_pretrained(home / "canary-models" / name)
        tokenizer.save_pretrained(home / "canary-models" / name)
    return home


def loaded(home, name="one"):
    folder = home / "canary-models" / name
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def found_in(folder):
    """The canaries of each file of a folder."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            data = str(path.relative_to(folder)).encode() + path.read_bytes()
            if path.suffix == ".parquet":
                data += pd.read_parquet(path).to_json().encode()
            if hits := [canary for canary in CANARIES if canary.encode() in data]:
                found[str(path.relative_to(folder))] = hits
    return found


def rlae_trainer(home, observation="members", peft_config=None, draws=False, **options):
    members = [loaded(home, name) for name in ("one", "two")]
    if observation == "members":
        policy = rlae.policy_for(members, "ppo", span_length=2)
    else:
        reader, tokenizer = encoder()
        reader.save_pretrained(home / "canary-models" / "reader")
        reader = BertModel.from_pretrained(home / "canary-models" / "reader")
        policy = PolicyModel.from_encoder((reader, tokenizer), members, observation=observation, span_length=2)
    ensemble = EnsembleForCausalLM.from_members(members, policy, span_length=2)
    return rlae.trainer_of(
        home / "runs" / "out", "ppo", ensemble=ensemble, peft_config=peft_config, eval_dataset=rlae.data(2),
        callbacks=[WeightingReport(ensemble, ["She said"])] if draws else None, log_completions=True,
        num_completions_to_print=1, load_best_model_at_end=True, eval_strategy="steps", eval_steps=1,
        **SAVES, **options,
    )  # fmt: skip


def token_ppo_trainer(home):
    options = {**SAVES, "beta": 0.0}
    return cory.trainer_of(
        home / "runs" / "out", TokenPPOTrainer, config_class=TokenPPOConfig, given=loaded(home), **options
    )


TRAINERS = {
    "RLAE": rlae_trainer,
    "RLAE, pictures": lambda home: rlae_trainer(home, draws=True),
    "RLAE, text": lambda home: rlae_trainer(home, "text"),
    "RLAE, LoRA": lambda home: rlae_trainer(home, "text", cory.lora(task_type=None, r=2)),
    "CORY": lambda home: cory.trainer_of(home / "runs" / "out", CoryTrainer, given=loaded(home), **SAVES),
    "CORY-PPO": lambda home: cory.trainer_of(
        home / "runs" / "out", CoryPPOTrainer, given=loaded(home), **{**SAVES, "beta": 0.0}
    ),
    "PPO": token_ppo_trainer,
}


@pytest.mark.parametrize("kind", [*sorted(TRAINERS.keys() - {"RLAE, pictures"}), *slow("RLAE, pictures")])
def test_no_canary_in_any_saved_folder(home, kind):
    """Checkpoints, the saved model, its card, the state, tables and pictures."""
    trainer = TRAINERS[kind](home)
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    trainer.create_model_card()
    trainer.save_model(str(home / "runs" / "elsewhere"))
    if kind.startswith("CORY"):
        trainer.save_agent("agent-2", home / "runs" / "alone")
    checked = list((home / "runs").iterdir())
    names = {path.name for folder in checked for path in folder.rglob("*")}
    assert {"checkpoint-2", "trainer_state.json", "README.md"} <= names
    assert {str(folder): found_in(folder) for folder in checked} == {str(folder): {} for folder in checked}
    assert "training_args.bin" not in names
    assert trainer.args.hub_token == "hf_canarytoken"


@pytest.mark.parametrize("strategy", ["every_save", "all_checkpoints", "end"])
def test_no_canary_is_pushed(home, strategy, monkeypatch):
    """Each upload holds the model, and the training state only where a checkpoint is uploaded."""
    uploads = []

    def upload_folder(folder_path, ignore_patterns=(), path_in_repo="", **options):
        uploads.append(path_in_repo)
        assert found_in(type(home)(folder_path)) == {}
        names = {path.name for path in type(home)(folder_path).iterdir()}
        assert {"model.safetensors", "config.json"} <= names
        assert "training_args.bin" not in names
        assert ("optimizer.pt" in names) == bool(path_in_repo)
        return types.SimpleNamespace(done=lambda: True, result=lambda: None, commit_url="here")

    hub = types.SimpleNamespace(
        upload_folder=upload_folder, create_repo=lambda repo_id, **_: types.SimpleNamespace(repo_id=repo_id)
    )
    for module in ("transformers.trainer", "hf_rlae.trainers.durable.private_saves"):
        monkeypatch.setattr(f"{module}.hf_api", lambda: hub)
    trainer = rlae_trainer(home, push_to_hub=True, hub_model_id="me/policy", hub_strategy=strategy)
    trainer.train()
    trainer.push_to_hub()
    steps = {"every_save": ["", ""], "all_checkpoints": ["", "checkpoint-1", "", "checkpoint-2"], "end": []}[strategy]
    assert uploads == [*steps, ""]


def test_the_best_checkpoint_is_known_after_a_resume(home):
    """It is not in `trainer_state.json`, as a path; the folder may have been moved."""
    rlae_trainer(home).train()
    moved = (home / "runs").rename(home / "moved")
    told = json.loads((moved / "out" / "checkpoint-2" / "trainer_state.json").read_text())
    assert told["best_model_checkpoint"] is None
    (home / "runs").mkdir()
    (moved / "out").rename(home / "runs" / "out")
    again = rlae_trainer(home)
    again.train(resume_from_checkpoint=True)
    best = home / "runs" / "out" / f"checkpoint-{told['best_global_step']}"
    assert again.state.best_model_checkpoint == str(best)


@pytest.mark.parametrize(
    ("base", "saved", "shown"),
    [
        pytest.param("base", "out", "../base", id="beside"),
        pytest.param("base", "runs/out", "../../base", id="beside a folder above"),
        pytest.param("out/base", "out", "./base", id="inside"),
        pytest.param("canary-models/base", "out", "./base", id="in another folder, whose name is not told"),
        pytest.param("gone/base", "out", "./base", id="absent"),
        pytest.param("hub/models--me--base/snapshots/1f", "out", "me/base", id="in the cache of the Hub"),
        pytest.param("me/base", "out", "me/base", id="an id of the Hub"),
    ],
)
def test_the_name_of_a_base(tmp_path, base, saved, shown):
    """Also in the folders of agents; checkpoints, whose bytes are listed, stay as they are."""
    path = base if base == "me/base" else str(tmp_path / base)
    if "gone" not in base and base != "me/base":
        (tmp_path / base).mkdir(parents=True)
    for folder in ("", "agent-2", "checkpoint-3"):
        (tmp_path / saved / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / saved / folder / "adapter_config.json").write_text(
            json.dumps({"base_model_name_or_path": path, "r": 4})
        )
    (tmp_path / saved / "README.md").write_text(f"base_model: {path}\n")
    hide_base(tmp_path / saved)
    configs = [
        json.loads((tmp_path / saved / folder / "adapter_config.json").read_text())
        for folder in ("", "agent-2", "checkpoint-3")
    ]
    inner = "../" + shown.removeprefix("./") if (tmp_path / saved / shown).is_dir() else shown
    assert [config["base_model_name_or_path"] for config in configs] == [shown, inner, path]
    assert configs[0]["r"] == 4
    assert (tmp_path / saved / "README.md").read_text() == f"base_model: {shown}\n"


def test_adapters_of_a_local_base_load(home):
    """With the base model that is given; and nobody is sent to another model of that name on the Hub."""
    trainer = TRAINERS["CORY"](home)
    with torch.no_grad():
        for parameter in trainer.agents.parameters("agent-2"):
            parameter.add_(0.1)
    trainer.save_model()
    again = PeftModel.from_pretrained(loaded(home)[0], home / "runs" / "out", subfolder="agent-2")
    ids = torch.tensor([[5, 9, 17]])
    with trainer.alone("agent-2"), torch.no_grad():
        torch.testing.assert_close(again(ids).logits, trainer.model.eval()(ids).logits)
    card = (home / "runs" / "out" / "README.md").read_text()
    assert 'PeftModel.from_pretrained(base, "out")' in card
    assert "AutoPeftModel" not in card  # it would look for the base
    with pytest.raises(ConfigError, match="nobody could load them"):
        trainer.push_to_hub()
