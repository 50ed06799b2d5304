"""Tables of trainings: every ready one with tiny models, what is refused, and that a table continues."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hf_rlae import PolicyModel
from hf_rlae.cli.main import main
from hf_rlae.configs import find_config, list_tables
from hf_rlae.errors import ConfigError
from hf_rlae.trainers.runs import read_table
from tests.support.runs import ROWS, SMALL, save_models
from tests.support.sandboxes import some_sandbox
from tests.support.tiers import slow


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return save_models(tmp_path_factory.mktemp("models"))


def cells(table: str) -> list[tuple[str, str]]:
    return [(table, row) for row in yaml.safe_load(find_config(table).read_text())["rows"]]


def small(table: str, row: str, folders: dict[str, Path], folder: Path, *others: str) -> list[str]:
    """The command line that makes one row of a table small."""
    values = yaml.safe_load(find_config(table).read_text())
    task = yaml.safe_load(find_config(values["rows"][row]["config"]).read_text())["task"]
    for split in ("train", "validation", "test", "auxiliary_train"):
        lines = (json.dumps(ROWS[task](at)) for at in range(8))
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    members = [folders["member0"], folders["member1"], folders["member0"]]
    given = ["train", "rlae", "--config", table, "--rows", row, "--test_size", "2"]
    given += ["--members", *map(str, members[: len(values.get("members", "ab"))])]
    options = {**SMALL, "encoder": folders["encoder"], "max_text_tokens": 16, "task_source": folder}
    options |= {"output_dir": folder / "out"}
    return given + [part for name, value in options.items() for part in (f"--{name}", str(value))] + list(others)


FAST = ("paper/two_members", "GPQA")
ALL = [cell for table in list_tables() for cell in cells(table)]


@pytest.mark.parametrize(("table", "row"), [FAST, *slow(*(cell for cell in ALL if cell != FAST))])
def test_every_row_of_every_table_trains_and_compares(table, row, folders, tmp_path, capsys):
    if row == "MBPP":
        some_sandbox()  # or the test is skipped
    columns = list(yaml.safe_load(find_config(table).read_text())["columns"])
    assert main(small(table, row, folders, tmp_path)) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    for column in columns:
        assert said.index(f"{row}, {column}, predicted:") < said.index("| uniform")
        folder = tmp_path / "out" / row.lower() / column.lower().replace(", ", "-").replace(" ", "-")
        policy = PolicyModel.from_pretrained(folder)
        assert policy.config.span_length == (8 if "8" in column else 4)
        assert policy.config.actor == ("per_member" if "MAPPO" in column else "joint")
    head, _, scores = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert head.endswith(f"| uniform | gac | deepen | {' | '.join(columns)} |")
    assert scores.startswith(f"| {row} |")
    assert scores.count("|") == len(columns) + 7 + (table == "paper/three_members")


def test_a_table_continues(folders, tmp_path, capsys):
    """A column that is done is not trained again, and its questions are not asked again."""
    others = ("--columns", "PPO")
    assert main(small(*FAST, folders, tmp_path, *others)) == 0, capsys.readouterr().err
    policy = tmp_path / "out" / "gpqa" / "ppo" / "model.safetensors"
    before = policy.read_bytes()
    records = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "gpqa" / "comparison").rglob("*.jsonl")}
    assert records
    assert main(small(*FAST, folders, tmp_path)) == 0, capsys.readouterr().err
    assert policy.read_bytes() == before
    assert {path: path.stat().st_mtime_ns for path in records} == records
    assert (tmp_path / "out" / "gpqa" / "mappo" / "model.safetensors").is_file()
    assert "| MAPPO |" in (tmp_path / "out" / "table.md").read_text()


REFUSED = {
    # reason: (the file, further arguments, a part of the message)
    "no columns": ({"rows": {"a": {"task": "gsm8k"}}}, [], "columns=None: a table has rows and columns"),
    "a row that is a word": ({"rows": {"a": "gsm8k"}, "columns": {"b": {}}}, [], "rows={'a': 'gsm8k'}"),
    "an unknown row": (None, ["--rows", "GMS8K"], "--rows: the table has no 'GMS8K': did you mean 'GSM8K'?"),
    "an unknown column": (None, ["--columns", "DPO"], "--columns: the table has no 'DPO'"),
    "an unknown method": (None, ["--methods", "gack"], "methods: there is no 'gack': did you mean 'gac'?"),
    "an unknown split": (
        {"rows": {"a": {"config": "rlae_gsm8k", "test_split": "tset"}}, "columns": {"b": {}}},
        [],
        "row 'a': test_split='tset': did you mean 'test'?",
    ),
    "nothing held out": (
        {"rows": {"a": {"task": "gsm8k", "test_split": "held_out"}}, "columns": {"b": {}}, "members": ["x"]},
        [],
        "its training holds nothing out; give eval_split",
    ),
    "an unknown setting": (
        {"rows": {"a": {"config": "rlae_gsm8k"}}, "columns": {"b": {"span_lenght": 4}}},
        [],
        "there is no setting 'span_lenght': did you mean 'span_length'?",
    ),
    "an unknown file of a row": (
        {"rows": {"a": {"config": "rlae_gsm9k"}}, "columns": {"b": {}}},
        [],
        "config='rlae_gsm9k' is neither a file nor",
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_tables_that_cannot_be_used_are_refused(reason, tmp_path):
    values, others, message = REFUSED[reason]
    path = tmp_path / "table.yaml"
    path.write_text(find_config("paper/two_members").read_text() if values is None else yaml.safe_dump(values))
    with pytest.raises(ConfigError) as raised:
        read_table(["--config", str(path), "--use_cpu", *others])
    assert message in str(raised.value)


def test_a_file_of_one_training_is_no_table():
    assert read_table(["--config", "rlae_gsm8k"]) is None
    assert read_table(["--task", "gsm8k", "--members", "a"]) is None


@pytest.mark.slow
def test_two_processes_make_one_table(folders, tmp_path):
    """Both train and answer their share of the questions; the first one prints and saves."""
    given = small(*FAST, folders, tmp_path, "--per_device_train_batch_size", "2")
    at = given.index("--use_cpu")
    del given[at : at + 2]  # nobody who has no GPU thinks of it
    command = [sys.executable, "-m", "hf_rlae", *given, "--num_processes", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("saved in") == 1
    assert done.stdout.count("GPQA, PPO, predicted:") == 1
    assert "| GPQA |" in (tmp_path / "out" / "table.md").read_text()
