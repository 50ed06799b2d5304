"""`hf-rlae train`: every ready file with tiny models, settings that are refused, and what a run leaves behind."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from hf_rlae import PolicyModel
from hf_rlae.cli import training
from hf_rlae.cli.main import main
from hf_rlae.configs import FOLDER, list_configs, list_tables
from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.tasks import get_task
from hf_rlae.trainers.runs import build, data
from tests.support.runs import SMALL, arguments, save_models
from tests.support.runs import data as rows_of
from tests.support.sandboxes import some_sandbox


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("config", [name for name in list_configs() if name not in list_tables()])
def test_every_ready_file_trains(config, folders, tmp_path, capsys):
    if config.endswith("mbpp"):
        some_sandbox()  # or the test is skipped
    assert main(arguments(config, folders, tmp_path)) == 0, capsys.readouterr().err
    out = tmp_path / "out"
    said = capsys.readouterr().out
    assert f"saved in {out}" in said
    assert ("evaluation: eval_completions/mean_length " in said and "eval_reward " in said) == ("imdb" not in config)
    state = json.loads((out / "trainer_state.json").read_text())
    assert state["global_step"] == 2
    assert (out / "README.md").is_file()
    if "imdb" not in config:  # the others have a validation set
        assert "eval_reward" in (out / "eval_results.json").read_text()
    if config.startswith("rlae"):
        policy = PolicyModel.from_pretrained(out)
        assert policy.config.num_members == (3 if "three" in config else 2)
        assert policy.config.span_length == 4
        assert policy.config.actor == ("per_member" if "mappo" in config else "joint")
    else:
        assert (out / "adapter_model.safetensors").is_file()
        assert (out / "agent-2" / "adapter_model.safetensors").is_file()


REFUSED = {
    # reason: (arguments after `train`, a part of the message)
    "an unknown key": ("rlae --config rlae_gsm8k --span_lenght 4", "--span_lenght: did you mean 'span_length'?"),
    "a part of a key": ("rlae --config rlae_gsm8k --max_step=4", "no setting --max_step: did you mean 'max_steps'?"),
    "a key of the other kind": ("rlae --config rlae_gsm8k --num_agents 3", "no setting --num_agents"),
    "a value without a key": ("rlae rlae_gsm8k", "'rlae_gsm8k' belongs to no setting"),
    "an unknown file": ("rlae --config rlae_gsm9k", "did you mean 'rlae_gsm8k'?"),
    "a file of the other kind": (
        "cory --config rlae_gsm8k",
        "rlae_gsm8k is a file for `hf-rlae train rlae`: cory has no setting",
    ),
    "no value for --config": ("rlae --config", "--config needs a value"),
    "no kind": ("", "rlae or cory"),
    "a wrong type": ("rlae --config rlae_gsm8k --max_steps many", "invalid int value: 'many'"),
    "no members": ("rlae --task gsm8k", "members is missing"),
    "no task": ("rlae --members a b", "task is missing"),
    "an unknown task": ("rlae --config rlae_gsm8k --task gsm9k", "no task named 'gsm9k': did you mean 'gsm8k'?"),
    "an unknown reward": ("rlae --config rlae_gsm8k --rewards gsm9k", "gsm9k"),
    "an unknown option of a reward": (
        'cory --config cory_imdb --rewards {"name":"sentiment","lexikon":"x"}',
        "sentiment cannot be made with {'lexikon': 'x'}",
    ),
    "an option without a reward": ('cory --config cory_imdb --rewards {"label":1}', "has no name"),
    "options that are not JSON": ("cory --config cory_imdb --task_options many", "task_options='many' is not JSON"),
    "an unknown mixing": ("rlae --config rlae_gsm8k --mixing liner", "did you mean 'linear'?"),
    "an unknown option of the ensemble": (
        'rlae --config rlae_gsm8k --ensemble_options {"min_wieght":0.1}',
        "did you mean 'min_weight'?",
    ),
    "a value that the ensemble cannot use": (
        'rlae --config rlae_gsm8k --ensemble_options {"min_weight":"much"}',
        "min_weight",
    ),
    "an unknown dtype": ("rlae --config rlae_gsm8k --dtype float7", "dtype='float7'"),
    "revisions of another number": ("rlae --config rlae_gsm8k --revisions main", "1 entries for 2 members"),
    "an encoder that nothing reads": ("rlae --config rlae_gsm8k --observation members", "with an encoder"),
    "text that nothing reads": ("rlae --members a --task gsm8k --observation text", "with no encoder"),
    "an unknown observation": ("rlae --config rlae_gsm8k --observation texts", "did you mean 'text'?"),
    "an actor that the objective cannot train": ("rlae --config rlae_gsm8k --actor per_member", "'ppo'"),
    "an unknown objective": ("rlae --config rlae_gsm8k --objective pop", "did you mean 'ppo'?"),
    "a batch that does not divide": ("rlae --config rlae_gsm8k --generation_batch_size 100", "must be a multiple of"),
    "a policy without parameters": ("rlae --members a --task gsm8k --policy uniform", "no parameters"),
    "fields of a policy that was saved": ("rlae --config rlae_gsm8k --policy a/b", "belongs to a new policy"),
    "a revision of no policy": ("rlae --config rlae_gsm8k --policy_revision v1", "without policy"),
    "a revision of no encoder": ("rlae --members a --task gsm8k --encoder_revision v1", "without encoder"),
    "a validation set without a size": ("rlae --members a --task gsm8k --eval_split train", "give eval_size"),
    "a size of no validation set": ("rlae --members a --task gsm8k --eval_size 4", "without eval_split"),
    "an unknown algorithm": ("cory --config cory_imdb --algorithm pop", "algorithm='pop'"),
    "a misspelt option of the command": ("rlae --confg rlae_gsm8k", "no setting --confg: did you mean 'config'?"),
    "an algorithm for RLAE": ("rlae --config rlae_gsm8k --algorithm ppo", "no setting --algorithm"),
    "no base model": ("cory --task gsm8k", "model_name_or_path is missing"),
    "agents without adapters": ("cory --config cory_imdb --use_peft false", "LoRA adapters"),
    "two agents too few": ("cory --config cory_imdb --num_agents 1", "num_agents=1"),
    "an option of TRL that CORY has not": ("cory --config cory_imdb --use_vllm", "use_vllm=True"),
    "more processes than GPUs": (
        "rlae --config rlae_gsm8k --accelerate_config eight_gpus",
        "--accelerate_config eight_gpus starts 8 processes on this machine, one per GPU, and it has ",
    ),
    "an unknown file for accelerate": (
        "rlae --config rlae_gsm8k --accelerate_config three_gpus",
        "accelerate_config='three_gpus' is neither a file nor",
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_bad_settings_are_refused_before_anything_is_loaded(reason, capsys, monkeypatch):
    def fail(*args, **kwargs):
        pytest.fail("something was loaded")

    monkeypatch.setattr(EnsembleForCausalLM, "from_members", fail)
    monkeypatch.setattr(build, "load_datasets", fail)
    given, message = REFUSED[reason]
    assert main(["train", *given.split()]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("hf-rlae: error: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_task_without_a_reward_needs_rewards(capsys, monkeypatch):
    task = dataclasses.replace(get_task("gsm8k"), reward=None, reward_note="nobody can judge it")
    monkeypatch.setattr(data, "get_task", lambda name: task)
    assert main(["train", "rlae", "--config", "rlae_gsm8k"]) == 2
    assert "the task 'gsm8k' has no reward of its own (nobody can judge it); give rewards" in capsys.readouterr().err


def test_data_are_checked_before_models_are_loaded(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(EnsembleForCausalLM, "from_members", lambda *args, **kwargs: pytest.fail("members were loaded"))
    given = arguments("rlae_gsm8k", folders, tmp_path)
    (tmp_path / "train.jsonl").write_text('{"question": "1 + 1?", "answer": "two"}\n')
    assert main(given) == 2
    assert "line 1, column 'answer'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "models",
    ["rlae --members demo:addition-characters demo:addition-bytes", "cory --model_name_or_path demo:addition-bytes"],
)
def test_models_without_chat_templates_need_plain_prompts(models, tmp_path, capsys):
    """The error names the setting, and with it the run trains: embedded members know no chats."""
    given = ["train", *models.split(), "--task", "gsm8k", "--task_source", str(rows_of(tmp_path, "rlae_gsm8k"))]
    small = {**SMALL, "eval_split": "train", "output_dir": tmp_path / "out", "max_steps": 1}
    given += [text for name, value in small.items() for text in (f"--{name}", str(value))]
    assert main(given) == 2
    written = capsys.readouterr().err
    assert "has no chat template; give --prompt_format standard, or models with chat templates" in written
    assert main([*given, "--prompt_format", "standard"]) == 0, capsys.readouterr().err


def test_a_run_continues_from_its_newest_checkpoint_and_from_a_saved_policy(folders, tmp_path, capsys):
    given = arguments("rlae_gsm8k", folders, tmp_path, save_steps=1)
    assert main(given) == 0
    assert main([*given, "--max_steps", "3", "--resume_from_checkpoint", "true"]) == 0, capsys.readouterr().err
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "reward" in entry] == [1, 2, 3]
    saved = {
        **SMALL,
        "policy": tmp_path / "out",
        "output_dir": tmp_path / "next",
        "task": "gsm8k",
        "eval_split": "train",
    }
    saved |= {"task_source": tmp_path, "span_length": 4}
    rest = [text for name, value in saved.items() for text in (f"--{name}", str(value))]
    assert main(["train", "rlae", "--members", str(folders["member0"]), str(folders["member1"]), *rest]) == 0
    assert PolicyModel.from_pretrained(tmp_path / "next").config.observation == "text"


def test_processes_are_handed_over_to_accelerate(monkeypatch):
    started = []

    def replace_process(*given):
        started.append(given)
        raise SystemExit(0)

    monkeypatch.setattr(training.os, "execve", replace_process)
    monkeypatch.setattr(training.torch.accelerator, "device_count", lambda: 2)
    given = ["train", "rlae", "--config", "rlae_gsm8k", "--accelerate_config", "two_gpus", "--main_process_port", "1"]
    with pytest.raises(SystemExit):
        main(given)
    path, command, environment = started[0]
    assert command[0] == path
    at = command.index("--module")
    assert command[1:at] == [
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(FOLDER / "accelerate" / "two_gpus.yaml"),
        "--main_process_port",
        "1",
    ]
    assert command[at + 1 :] == ["hf_rlae.cli.main", *given]
    assert environment["HF_RLAE_LAUNCHED"] == "1"
    monkeypatch.setenv("HF_RLAE_LAUNCHED", "1")
    monkeypatch.setattr(training, "run", replace_process)
    with pytest.raises(SystemExit):
        main(given)
    assert started[1][0].kind == "rlae"


@pytest.mark.slow
def test_two_processes_without_a_gpu(folders, tmp_path):
    """Eight completions in updates of two per process: two updates with two processes, four with one."""
    given = arguments("rlae_gsm8k", folders, tmp_path, per_device_train_batch_size=2, num_train_epochs=1, max_steps=-1)
    at = given.index("--use_cpu")
    del given[at : at + 2]  # nobody who has no GPU thinks of it
    command = [sys.executable, "-m", "hf_rlae", *given, "--num_processes", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("saved in") == 1
    assert json.loads((tmp_path / "out" / "trainer_state.json").read_text())["global_step"] == 2


def test_what_was_trained_is_published(folders, tmp_path, hub, capsys):
    """Members and encoder of the Hub, pinned by revisions, after which they changed; the pushed policy loads."""
    *commits, commit = [hub.add_repo(f"me/{name}", folders[name]) for name in ("member0", "member1", "encoder")]
    for name in ("member0", "member1", "encoder"):
        hub.repository(f"me/{name}").commit("main", {"README.md": b"moved"}, "without a model")
    given = arguments("rlae_gsm8k", folders, tmp_path, push_to_hub=True, hub_model_id="me/policy")
    given[given.index("--members") + 1 : given.index("--members") + 3] = ["me/member0", "me/member1"]
    given[given.index("--encoder") + 1] = "me/encoder"
    assert main([*given, "--revisions", *commits, "--encoder_revision", commit]) == 0, capsys.readouterr().err
    assert PolicyModel.from_pretrained("me/policy").config.span_length == 4
    card = hub.files("me/policy")["README.md"].decode()
    assert "me/member0" in card
    assert str(tmp_path) not in card


def test_lists(capsys):
    assert main(["train", "--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed and summary in listed for name, summary in list_configs().items())
    for kind, own in (("rlae", "--encoder"), ("cory", "--num_agents")):
        assert main(["train", kind, "--settings"]) == 0
        text = capsys.readouterr().out
        assert all(option in text for option in (own, "--task", "--learning_rate", "--num_processes"))


def test_debug_is_an_option_and_a_setting(capsys):
    assert main(["train", "rlae", "--config", "rlae_gsm8k", "--task", "gsm9k", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "rlae", "--help"])
    assert "--config rlae_gsm8k" in capsys.readouterr().out
