"""Trainers push to the Hub over HTTP; policies, agents and checkpoints are pulled, and a run resumes elsewhere."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest
import torch
from huggingface_hub import CommitInfo, snapshot_download
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_rlae import EnsembleForCausalLM, PolicyModel
from hf_rlae.trainers import CoryPPOTrainer, CoryTrainer, TokenPPOConfig, TokenPPOTrainer
from tests.support import cory, rlae
from tests.support.models import pair
from tests.support.tiers import slow

CANARY = "canary-of-alice"
PUSHES = {"push_to_hub": True, "hub_model_id": "me/run", "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
IDS = torch.tensor([[5, 9, 17, 40]])


@pytest.fixture
def home(hub, tmp_path, monkeypatch):
    """A private folder of runs, an environment with secrets, and two models on the Hub."""
    for name in ("USER", "LOGNAME", "WANDB_API_KEY", "HOSTNAME"):
        monkeypatch.setenv(name, f"{name}-{CANARY}")
    home = tmp_path / CANARY
    for name, seed in (("one", 0), ("two", 1)):
        model, tokenizer = pair("llama", seed)
        model.save_pretrained(home / name)
        tokenizer.save_pretrained(home / name)
        hub.add_repo(f"me/{name}", home / name)
    return home


def logits_of(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def rlae_trainer(home, run="run", **options):
    members = EnsembleForCausalLM.from_members(["me/one", "me/two"], span_length=2).members
    policy = rlae.policy_for([(member.model, member.tokenizer) for member in members], "ppo", span_length=2)
    ensemble = EnsembleForCausalLM.from_members(members, policy, span_length=2)
    return rlae.trainer_of(home / "runs" / run, "ppo", ensemble=ensemble, **options)


def cory_trainer(home, run="run", kind=CoryTrainer, **options):
    given = AutoModelForCausalLM.from_pretrained("me/one"), AutoTokenizer.from_pretrained("me/one")
    return cory.trainer_of(home / "runs" / run, kind, given=given, **options)


TRAINERS = {
    "RLAE": rlae_trainer,
    "CORY": cory_trainer,
    "CORY-PPO": lambda home, **options: cory_trainer(home, kind=CoryPPOTrainer, **{**options, "beta": 0.0}),
    "PPO": lambda home, **options: cory_trainer(
        home, kind=TokenPPOTrainer, config_class=TokenPPOConfig, **{**options, "beta": 0.0}
    ),
}


def leaks(hub, tmp_path):
    """What is private in the bytes that the server got, in pushed archives too."""
    sent = [hub.pushed()]
    for data in hub.files("me/run").values():
        if zipfile.is_zipfile(io.BytesIO(data)):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                sent += [archive.read(name) for name in archive.namelist()]
    secrets = (CANARY, str(tmp_path), str(Path.home()), hub.token)
    return [secret for secret in secrets if any(secret.encode() in data for data in sent)]


@pytest.mark.parametrize(
    ("kind", "strategy"),
    [
        ("RLAE", "checkpoint"),
        ("CORY", "every_save"),
        *slow(("RLAE", "every_save"), ("RLAE", "all_checkpoints"), ("RLAE", "end"), ("CORY", "checkpoint")),
        *slow(("CORY", "end"), ("CORY-PPO", "every_save"), ("PPO", "checkpoint")),
    ],
)
def test_nothing_private_is_pushed(hub, home, tmp_path, kind, strategy):
    """Logs of trackers, pickles and hidden files lie in the output folder, as other tools leave them there."""
    out = home / "runs" / "run"
    for name in ("runs/host/events.out.tfevents.1.canary-of-alice.0", "events.out.tfevents.2", "wandb/run/output.log"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(f"{out} {CANARY}")
    for name in ("training_args.bin", "notes.pkl", "old.pt", ".env", "slurm.log"):
        (out / name).write_text(CANARY)
    trainer = TRAINERS[kind](home, **PUSHES, hub_strategy=strategy, hub_token=hub.token)
    trainer.train()
    answer = trainer.push_to_hub(tags="mine")
    assert isinstance(answer, CommitInfo)
    assert answer.oid == hub.commit("me/run")
    files = hub.files("me/run")
    assert leaks(hub, tmp_path) == []
    weights = "model.safetensors" if kind == "RLAE" else "adapter_model.safetensors"
    assert {weights, "README.md"} <= set(files)
    assert "mine" in files["README.md"].decode()
    has_state = {path.split("/")[0] for path in files if path.endswith("optimizer.pt")}
    assert has_state == {"checkpoint": {"last-checkpoint"}, "all_checkpoints": {"checkpoint-2", "checkpoint-4"}}.get(
        strategy, set()
    )
    assert not [path for path in files if path.startswith(("runs", "wandb", ".env", "training_args")) or "log" in path]


@pytest.mark.parametrize("kind", ["RLAE", *slow("CORY")])
def test_a_run_resumes_from_the_pulled_checkpoint(hub, home, kind):
    """On another machine, which has nothing but the repository, and bit-exactly."""
    whole = TRAINERS[kind](home, run="whole")
    whole.train()
    first = TRAINERS[kind](home, **{**PUSHES, "hub_strategy": "checkpoint", "save_steps": 1, "max_steps": 2})
    first.train()
    folder = Path(snapshot_download("me/run", allow_patterns=["last-checkpoint/*"])) / "last-checkpoint"
    again = TRAINERS[kind](home, run="again")
    again.train(resume_from_checkpoint=str(folder))
    assert again.state.global_step == 4
    for (name, value), (_, other) in zip(whole.model.named_parameters(), again.model.named_parameters(), strict=True):
        assert torch.equal(value, other), name


def test_a_policy_from_the_trainer_is_pulled(hub, home):
    """With its members, whose commits the ensemble knows; pinned, whatever is pushed later."""
    trainer = rlae_trainer(home, hub_model_id="me/run")
    trainer.train()
    first = trainer.push_to_hub()
    commits = [hub.commit("me/one"), hub.commit("me/two")]
    card = hub.files("me/run")["README.md"].decode()
    assert f"revisions={json.dumps(commits)})" in card
    assert all(f"| `{commit}` |" in card for commit in commits)
    ensemble = EnsembleForCausalLM.from_members(
        ["me/one", "me/two"], PolicyModel.from_pretrained("me/run", revision=first.oid), span_length=2
    )
    expected = trainer.ensemble(IDS).logits
    torch.testing.assert_close(ensemble(IDS).logits, expected)
    trainer.ensemble.push_to_hub("me/ensemble")
    config = json.loads(hub.files("me/ensemble")["config.json"])
    assert config["revisions"] == commits
    rlae.unsettle(trainer.policy, 9.0)
    assert trainer.push_to_hub().oid != first.oid
    hub.add_repo("me/one", {"config.json": "{}"})
    pinned = EnsembleForCausalLM.from_pretrained("me/ensemble")
    torch.testing.assert_close(pinned(IDS).logits, expected)


def test_agents_from_the_trainer_are_pulled(hub, home):
    """Both, one alone, and as members of an ensemble; the base is pinned in their configurations."""
    trainer = cory_trainer(home, hub_model_id="me/run")
    trainer.train()
    trainer.push_to_hub()
    trainer.push_to_hub(agent="agent-2", private=True)
    assert hub.repository("me/run-agent-2").private
    expected = {}
    for name in trainer.agents.names:
        with trainer.alone(name):
            expected[name] = logits_of(trainer.model)
    commit = hub.commit("me/one")
    model, tokenizer = pair("llama", 7)
    model.save_pretrained(home / "moved")
    tokenizer.save_pretrained(home / "moved")
    hub.add_repo("me/one", home / "moved")
    for place in ("adapter_config.json", "agent-2/adapter_config.json"):
        config = json.loads(hub.files("me/run")[place])
        assert (config["base_model_name_or_path"], config["revision"]) == ("me/one", commit)
    torch.testing.assert_close(logits_of(AutoPeftModelForCausalLM.from_pretrained("me/run")), expected["agent-1"])
    torch.testing.assert_close(
        logits_of(AutoPeftModelForCausalLM.from_pretrained("me/run-agent-2")), expected["agent-2"]
    )
    base = AutoModelForCausalLM.from_pretrained("me/one", revision=commit)
    torch.testing.assert_close(
        logits_of(PeftModel.from_pretrained(base, "me/run", subfolder="agent-2")), expected["agent-2"]
    )
    ensemble = EnsembleForCausalLM.from_members(
        ["me/run", "me/run", "me/run-agent-2"], adapter_names=[None, "agent-2", None], end_token_ids=[[]] * 3
    )
    for index, name in enumerate(("agent-1", "agent-2", "agent-2")):
        torch.testing.assert_close(logits_of(ensemble.members[index].model), expected[name])
    ensemble.push_to_hub("me/ensemble")
    config = json.loads(hub.files("me/ensemble")["config.json"])
    assert config["base_revisions"] == [commit] * 3
    torch.testing.assert_close(EnsembleForCausalLM.from_pretrained("me/ensemble")(IDS).logits, ensemble(IDS).logits)
