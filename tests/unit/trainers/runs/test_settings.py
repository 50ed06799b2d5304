"""Settings of runs: files, overrides, and runs that a script builds."""

from __future__ import annotations

import os

import pytest
import yaml

from hf_rlae.configs import FOLDER
from hf_rlae.errors import ConfigError
from hf_rlae.trainers.runs import build_trainer, read_settings
from tests.support.runs import SMALL, data, save_models

FILES = {
    "an unknown key": ("task: gsm8k\nspan_lenght: 4", "there is no setting 'span_lenght': did you mean 'span_length'?"),
    "no mapping": ("- task", "is not a mapping"),
    "no YAML": ("task: [", "cannot be read as YAML"),
    "numbers as keys": ("1: 2", "is not a mapping"),
    "an environment that is a word": ("env: word", "env='word'"),
    "a wrong type": ("max_steps: many", "invalid int value: 'many'"),
}


@pytest.mark.parametrize("reason", FILES)
def test_bad_files_are_refused(reason, tmp_path):
    text, message = FILES[reason]
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"run\.yaml|env|max_steps") as raised:
        read_settings("rlae", ["--config", str(path)])
    assert message in str(raised.value)


def test_a_config_without_a_name_is_refused():
    with pytest.raises(ConfigError, match="--config"):
        read_settings("rlae", ["--config"])


def test_overrides_go_before_the_file_and_the_file_before_defaults(tmp_path, monkeypatch):
    monkeypatch.setenv("A_VARIABLE_OF_THE_FILE", "")
    path = tmp_path / "run.yaml"
    path.write_text(
        "members: one\nrevisions: [none]\ntask: imdb\ntask_options: {num_words: 3}\nrewards: imdb\n"
        "learning_rate: 1e-3\nspan_length: 2\nenv:\n  A_VARIABLE_OF_THE_FILE: 7\n"
    )
    settings = read_settings("rlae", ["--config", str(path), "--span-length", "6", "--use_cpu"])
    ensemble, policy, task, args = settings.parts
    assert (ensemble.members, ensemble.given_revisions) == (["one"], [None])
    assert (task.task_options, task.rewards) == ({"num_words": 3}, ["imdb"])
    assert (args.learning_rate, args.span_length, args.num_generations) == (1e-3, 6, 8)
    assert policy.config_fields == {}
    assert settings.launch.num_processes is None
    assert os.environ["A_VARIABLE_OF_THE_FILE"] == "7"


def test_a_run_of_a_script(tmp_path):
    """The same settings as a mapping; rows that are held out are not trained on; LoRA on the encoder."""
    folders = save_models(tmp_path / "models")
    config = yaml.safe_load((FOLDER / "rlae_gsm8k.yaml").read_text())
    config |= {**SMALL, "train_size": None, "task_source": str(data(tmp_path, "rlae_gsm8k"))}
    config |= {"members": [str(folders["member0"])] * 2, "encoder": str(folders["encoder"]), "max_text_tokens": 16}
    config |= {
        "output_dir": str(tmp_path / "out"),
        "use_peft": True,
        "lora_r": 2,
        "ensemble_options": {"min_weight": 0.01},
        "actor": "joint",
        "hub_model_id": None,
    }
    trainer = build_trainer(read_settings("rlae", config=config))
    trained, held_out = set(trainer.train_dataset["question"]), set(trainer.eval_dataset["question"])
    assert (len(trained), len(held_out), trained & held_out) == (6, 2, set())
    assert trainer.policy.peft_config["default"].r == 2
    assert trainer.ensemble.config.min_weight == 0.01
