"""Saving and pushing of all agents, with a model card."""

from __future__ import annotations

import json
import shutil
import types

import pytest
import torch
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM

from hf_rlae.errors import ConfigError
from tests.support.card_rules import faults_of_card
from tests.support.cory import base, lora, trainer_of


class Hub:
    """Stands in for `HfApi`: keeps a copy of what is uploaded."""

    def __init__(self, root):
        self.root, self.calls = root, []

    def create_repo(self, repo_id, **options):
        self.calls.append(("create", repo_id, options))
        return types.SimpleNamespace(repo_id=repo_id if "/" in repo_id else f"me/{repo_id}")

    def upload_folder(self, repo_id, folder_path, ignore_patterns=None, path_in_repo="", **options):
        self.calls.append(("upload", repo_id, {**options, "path_in_repo": path_in_repo}))
        target = self.root / repo_id.split("/")[1] / path_in_repo
        ignored = shutil.ignore_patterns(*(ignore_patterns or ()))
        shutil.copytree(folder_path, target, ignore=ignored, dirs_exist_ok=True)
        return types.SimpleNamespace(done=lambda: True, result=lambda: None, commit_url="here")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    found = Hub(tmp_path / "hub")
    for module in ("transformers.trainer", "hf_rlae.trainers.cory.card", "hf_rlae.trainers.durable.private_saves"):
        monkeypatch.setattr(f"{module}.hf_api", lambda: found)
    return found


@pytest.fixture
def team(tmp_path):
    """A trainer whose agents differ from the base and from one another."""
    config = lora(task_type=None)
    trainer = trainer_of(
        tmp_path / "team", base_model_id="me/base", num_agents=3, hub_model_id="me/team", peft_config=config
    )
    assert config.task_type is None
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name in trainer.agents.names:
            for parameter in trainer.agents.parameters(name):
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return trainer


IDS = torch.tensor([[5, 9, 17, 40]])


def logits_of(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def expected_logits(trainer, name):
    with trainer.alone(name):
        return logits_of(trainer.model)


@pytest.fixture
def local_base(tmp_path):
    """The base as a folder, and a way to make a published repository refer to it, as it would to the Hub."""
    model, _ = base()
    model.save_pretrained(tmp_path / "base")

    def localise(repository):
        for config in repository.rglob("adapter_config.json"):
            fields = json.loads(config.read_text())
            assert fields["base_model_name_or_path"] == "me/base"
            config.write_text(json.dumps({**fields, "base_model_name_or_path": str(tmp_path / "base")}))
        return str(repository)

    localise.folder = str(tmp_path / "base")
    return localise


def test_one_repository_of_all_agents(team, hub, local_base):
    team.push_to_hub()
    [(_, name, options)] = [call for call in hub.calls if call[0] == "upload"]
    assert name == "me/team"
    assert options["commit_message"] == "End of training"
    repository = local_base(hub.root / "team")
    torch.testing.assert_close(
        logits_of(AutoPeftModelForCausalLM.from_pretrained(repository)), expected_logits(team, "agent-1")
    )
    for agent in ("agent-2", "agent-3"):
        model = AutoModelForCausalLM.from_pretrained(local_base.folder)
        loaded = PeftModel.from_pretrained(model, repository, subfolder=agent)
        torch.testing.assert_close(logits_of(loaded), expected_logits(team, agent))
    card = ModelCard.load(f"{repository}/README.md")
    assert card.data.base_model == "me/base"
    assert card.data.library_name == "peft"
    assert card.data.base_model_relation == "adapter"
    assert {"cory", "grpo", "hf_rlae", "trl"} <= set(card.data.tags)
    for piece in ("`agent-1`", "`agent-2`", "`agent-3`", 'subfolder="agent-2"', "2410.06101", "me/team", "CoryTrainer"):
        assert piece in card.text, piece


@pytest.mark.parametrize("agent", ["agent-1", "agent-3"])
def test_one_agent_alone(team, hub, local_base, agent):
    team.push_to_hub(agent=agent, private=True)
    assert [call[:2] for call in hub.calls] == [("create", f"me/team-{agent}"), ("upload", f"me/team-{agent}")]
    assert hub.calls[0][2]["private"] is True
    repository = local_base(hub.root / f"team-{agent}")
    torch.testing.assert_close(
        logits_of(AutoPeftModelForCausalLM.from_pretrained(repository)), expected_logits(team, agent)
    )
    card = ModelCard.load(f"{repository}/README.md")
    assert f"`{agent}`" in card.text
    assert f'AutoPeftModelForCausalLM.from_pretrained("me/team-{agent}")' in card.text
    assert (hub.root / f"team-{agent}" / "tokenizer.json").is_file()
    assert not list((hub.root / f"team-{agent}").glob("agent-*"))


def test_a_base_in_a_folder_is_no_base_for_others(tmp_path, hub):
    model, tokenizer = base()
    model.save_pretrained(tmp_path / "base")
    given = AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tokenizer
    trainer = trainer_of(tmp_path / "out", given=given)
    for options in ({}, {"agent": "agent-2"}):
        with pytest.raises(ConfigError, match="base_model_id='owner/name'"):
            trainer.push_to_hub(**options)
    assert not hub.calls
    with pytest.raises(ConfigError, match=r"agent='agent-9': .*Known: agent-1, agent-2"):
        trainer_of(tmp_path / "other", base_model_id="me/base").push_to_hub(agent="agent-9")
    assert not hub.calls


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint"])
def test_every_save_uploads_all_agents(tmp_path, hub, strategy):
    trainer = trainer_of(
        tmp_path / "team", base_model_id="me/base", push_to_hub=True, hub_model_id="me/team", hub_strategy=strategy,
        save_strategy="steps", save_steps=2, max_steps=4,
    )  # fmt: skip
    trainer.train()
    uploads = [call for call in hub.calls if call[0] == "upload"]
    assert [call[2]["path_in_repo"] for call in uploads] == (
        ["", ""] if strategy == "every_save" else ["", "last-checkpoint"] * 2
    )
    newest = tmp_path / "team" / "checkpoint-4"
    places = [hub.root / "team"] + ([hub.root / "team" / "last-checkpoint"] if strategy == "checkpoint" else [])
    for place in places:
        for part in (".", "agent-2"):
            name = "adapter_model.safetensors"
            assert (place / part / name).read_bytes() == (newest / part / name).read_bytes()
            assert (
                json.loads((place / part / "adapter_config.json").read_text())["base_model_name_or_path"] == "me/base"
            )
        assert "`agent-2`" in (place / "README.md").read_text()
    one, two = ((newest / part / "adapter_model.safetensors").read_bytes() for part in (".", "agent-2"))
    assert one != two
    assert not list((hub.root / "team").glob("checkpoint-*"))


@pytest.mark.parametrize("case", ["at the end", "during another upload"])
def test_no_agent_is_copied_where_nothing_is_uploaded(tmp_path, hub, case):
    """`output_dir` never has only some of the agents: transformers would not copy the first one."""
    trainer = trainer_of(
        tmp_path / "team", base_model_id="me/base", push_to_hub=True, hub_model_id="me/team",
        hub_strategy="end" if case == "at the end" else "every_save", save_strategy="steps", save_steps=1, max_steps=1,
    )  # fmt: skip
    trainer.push_in_progress = types.SimpleNamespace(is_done=lambda: case == "at the end", wait_until_done=lambda: None)
    trainer.train()
    assert (tmp_path / "team" / "checkpoint-1" / "agent-2" / "adapter_model.safetensors").exists()
    assert not list((tmp_path / "team").glob("adapter_*"))
    assert not list((tmp_path / "team").glob("agent-2/adapter_*"))


def test_saving_and_loading_agents(team, tmp_path):
    team.save_model(str(tmp_path / "saved"))
    again = trainer_of(tmp_path / "again", num_agents=3)
    again.agents.load(tmp_path / "saved")
    for name in team.agents.names:
        torch.testing.assert_close(expected_logits(again, name), expected_logits(team, name), rtol=0, atol=0)
    team.save_agent("agent-2", tmp_path / "alone")
    assert {path.name for path in (tmp_path / "alone").glob("adapter_*")} == {
        "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip


def test_the_card_of_a_base_without_a_name(tmp_path):
    trainer = trainer_of(tmp_path / "team", role_exchange_steps=0, knowledge_transfer=False)
    trainer.create_model_card(model_name="mine", dataset_name="me/data", tags="extra")
    card = ModelCard.load(tmp_path / "team" / "README.md")
    assert card.data.base_model is None
    assert card.data.datasets == ["me/data"]
    assert "extra" in card.data.tags
    assert "\n# mine\n" in card.text
    assert "exchanged: never" in " ".join(card.text.split())
    assert "without reading another answer" in card.text
    assert str(tmp_path) not in trainer._card()
    assert faults_of_card(str(card)) == []
    for piece in (
        "Reward: `vowels`",
        "| `role_exchange_steps` | `0` |",
        "| `knowledge_transfer` | `False` |",
        "## Limits",
    ):
        assert piece in card.text, piece
