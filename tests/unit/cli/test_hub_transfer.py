"""`hf-rlae push` and `pull`: to a Hub on the loopback and back."""

from __future__ import annotations

import pytest

from hf_rlae import EnsembleForCausalLM, StaticPolicy, load_demo_policy
from hf_rlae.cli.arguments import KINDS
from hf_rlae.cli.main import main
from hf_rlae.policies import PolicyConfig
from tests.support.models import pair
from tests.support.tokenizers import unigram


@pytest.fixture
def ensemble(tmp_path):
    """The folder of a saved ensemble with its members."""
    members = [pair("llama", seed, unigram()) for seed in (0, 1)]
    EnsembleForCausalLM.from_members(members, StaticPolicy([0.7, 0.3])).save_pretrained(
        tmp_path / "saved", save_members=True
    )
    return tmp_path / "saved"


def generate(folder, capsys) -> str:
    capsys.readouterr()
    assert main(["generate", str(folder), "--prompt", "Once", "--max-new-tokens", "8", "--device", "cpu"]) == 0
    return capsys.readouterr().out


def test_kinds_are_those_of_the_configs():
    assert KINDS[PolicyConfig.model_type] == "policy"


def test_an_ensemble_goes_to_the_hub_and_comes_back(hub, ensemble, tmp_path, capsys):
    assert main(["push", str(ensemble), "me/both", "--save-members", "--message", "First"]) == 0
    assert "pushed the ensemble to " in capsys.readouterr().out
    files = hub.files("me/both") | {"run.py": b"raise SystemExit", "weights.bin": b"pickled"}
    hub.repository("me/both").commit("main", files, "code")
    assert main(["pull", "me/both", str(tmp_path / "pulled")]) == 0
    told = capsys.readouterr().out
    assert f"at {hub.commit('me/both')} to {tmp_path / 'pulled'}" in told
    assert generate(tmp_path / "pulled", capsys) == generate(ensemble, capsys)
    assert not list((tmp_path / "pulled").rglob("*.py")) + list((tmp_path / "pulled").rglob("*.bin"))
    assert generate("me/both", capsys) == generate(ensemble, capsys)


def test_a_policy_goes_to_the_hub_and_comes_back(hub, tmp_path, capsys, monkeypatch):
    load_demo_policy().save_pretrained(tmp_path / "saved")
    assert main(["push", str(tmp_path / "saved"), "me/policy"]) == 0
    monkeypatch.chdir(tmp_path)
    assert main(["pull", "me/policy"]) == 0
    saved, pulled = (tmp_path / name / "model.safetensors" for name in ("saved", "policy"))
    assert saved.read_bytes() == pulled.read_bytes()
    assert "pulled the policy me/policy at " in capsys.readouterr().out


def one_line(capsys) -> str:
    error = capsys.readouterr().err
    assert error.startswith("hf-rlae: error: ")
    assert error.count("\n") == 1
    return error


def test_members_that_nobody_else_has_are_not_pushed_silently(hub, ensemble, capsys):
    capsys.readouterr()
    assert main(["push", str(ensemble), "me/both"]) == 2
    assert "pass --save-members to push them" in one_line(capsys)


def test_what_cannot_be_moved_is_one_line(hub, ensemble, tmp_path, capsys):
    hub.add_repo("me/model", {"config.json": '{"model_type": "llama"}'})
    load_demo_policy().save_pretrained(tmp_path / "policy")
    cases = [
        (["push", str(tmp_path), "me/x"], "holds neither a saved ensemble nor a policy"),
        (["push", str(tmp_path / "policy"), "me/x", "--save-members"], "which has no members"),
        (["push", str(tmp_path / "policy"), "not/a/name"], "push to not/a/name: "),
        (["pull", "me/both", str(ensemble)], "exists already"),
        (["pull", "me/none", str(tmp_path / "new")], "pull me/none: "),
        (["pull", "me/model", str(tmp_path / "new")], "model_type='llama'"),
    ]
    capsys.readouterr()
    for arguments, said in cases:
        assert main(arguments) == 2, arguments
        assert said in one_line(capsys)
    assert not (tmp_path / "new").exists()
