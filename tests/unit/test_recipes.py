"""The recipes of docs/recipes, with tiny models in place of those of the Hub."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_rlae import PolicyModel
from tests.support.runs import ROWS, save_models
from tests.support.sandboxes import some_sandbox

RECIPES = Path(__file__).parents[2] / "docs" / "recipes"
SMALL = {
    "dtype": "float32",
    "device_map": "cpu",
    "use_cpu": True,
    "max_steps": 2,
    "num_generations": 2,
    "generation_batch_size": 4,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "num_iterations": 1,
    "max_completion_length": 4,
    "train_questions": 4,
    "test_questions": 2,
    "test_length": 4,
    "validation_questions": 1,
    "disable_tqdm": True,
    "report_to": "none",
}


def loaded(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(folder: Path, task: str) -> Path:
    (folder / task).mkdir()
    for split in ("train", "test"):
        (folder / task / f"{split}.jsonl").write_text("\n".join(json.dumps(ROWS[task](at)) for at in range(8)))
    return folder / task


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.mark.slow
def test_two_small_models(folders, tmp_path, capsys):
    some_sandbox()  # or the test is skipped
    out = tmp_path / "out"
    given = ["--config", str(RECIPES / "two_small_models.yaml")]
    given += ["--members", str(folders["member0"]), str(folders["member1"])]
    given += ["--sources", *(str(rows(tmp_path, task)) for task in ("gsm8k", "mbpp")), "--output_dir", str(out)]
    given += [part for name, value in SMALL.items() for part in (f"--{name}", str(value))]
    loaded("two_small_models").main(given)
    said = capsys.readouterr().out
    policy = (out / "model.safetensors").read_bytes()
    loaded("two_small_models").main(given)  # nothing is trained or asked again
    assert (out / "model.safetensors").read_bytes() == policy
    assert capsys.readouterr().out.split("**gsm8k**")[1] == said.split("**gsm8k**")[1]
    for task in ("gsm8k", "mbpp"):
        table = said.split(f"**{task}**")[1].split("\n\n")[1].splitlines()
        assert [line.split("|")[1].strip() for line in table[2:]] == [
            "member0",
            "member1",
            "policy",
            "uniform",
            "best_fixed",
        ]
    assert PolicyModel.from_pretrained(out).config.span_length == 8
    assert (out / "comparison" / "results.md").is_file()


def test_completions_are_judged_by_their_own_task():
    some_sandbox()
    judged = loaded("two_small_models").judged_by_task
    columns = {"answer": ["5", "def f(): return 1"], "test_list": [None, ["assert f() == 1"]]}
    right = ["#### 5", "```python\ndef f():\n    return 1\n```"]
    assert judged(completions=right, task=["gsm8k", "mbpp"], test_setup_code=[None, ""], **columns) == [1.0, 1.0]
    assert judged(completions=right[::-1], task=["gsm8k", "mbpp"], test_setup_code=[None, ""], **columns) == [0.0, 0.0]


def test_every_recipe_has_a_page_a_script_and_a_file_of_settings_for_the_hub():
    for page in RECIPES.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        script, settings = page.with_suffix(".py"), page.with_suffix(".yaml")
        for part in (script, settings):
            assert part.is_file()
            assert part.name in text
        members = yaml.safe_load(settings.read_text(encoding="utf-8"))["members"]
        assert all(member.count("/") == 1 and member in text for member in members)
