"""What needs an optional package says so in one line, which names the extra, before any work."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_rlae import EnsembleForCausalLM, get_reward, load_demo_agents, load_task
from hf_rlae.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OF_USERS = {"eval", "docs", "quality", "test"}
"""Extras whose packages the user runs; hf_rlae does not import them."""


def module(name: str) -> Callable[[], object]:
    def again() -> object:
        sys.modules.pop(name, None)
        return importlib.import_module(name)

    return again


def command(*arguments: str) -> Callable[[], object]:
    return lambda: main(list(arguments))


def remote() -> object:
    return EnsembleForCausalLM.from_members(["some/model"], placement="ray")


MISSING = [
    # extra, package, what needs it, how it is called
    *(("train", name, "hf_rlae.trainers", module("hf_rlae.trainers")) for name in ("trl", "peft", "accelerate")),
    ("train", "datasets", "hf_rlae.trainers", module("hf_rlae.trainers")),
    ("train", "trl", "--train", command("demo", "--train")),
    ("train", "peft", "hf-rlae train", command("train", "cory", "--config", "cory_gsm8k")),
    ("train", "datasets", "hf-rlae evaluate", command("evaluate", "some/model", "--task", "gsm8k")),
    ("train", "datasets", "load_task", lambda: load_task("gsm8k", "test")),
    ("train", "evaluate", "hf_rlae.evaluation.metrics", module("hf_rlae.evaluation.metrics")),
    ("peft", "peft", "the adapter of member ", load_demo_agents),
    ("peft", "accelerate", "the device_map of member ", lambda: load_with_device_map()),
    ("math", "math_verify", "the reward math_verify", lambda: get_reward("math_verify")),
    ("serve", "fastapi", "hf-rlae serve", command("serve", "some/model")),
    ("serve", "uvicorn", "hf_rlae.serving.server", module("hf_rlae.serving.server")),
    ("ray", "ray", "a remote member", remote),
    ("demo", "gradio", "--web", command("demo", "--web")),
]


def load_with_device_map() -> object:
    folder = ROOT / "hf_rlae" / "zoo" / "members" / "addition-characters"
    return EnsembleForCausalLM.from_members([folder], device_map="auto")


@pytest.mark.parametrize(
    ("extra", "package", "what", "call"), MISSING, ids=[f"{extra}-{what}" for extra, _, what, _ in MISSING]
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, capsys, extra, package, what, call):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else find_spec(name))
    for name in ("hf_rlae.trainers", "hf_rlae.evaluation.metrics", "hf_rlae.serving.server"):
        if name in sys.modules:  # comes back after the test
            monkeypatch.setitem(sys.modules, name, sys.modules[name])
    try:
        assert call() == 2
        said = capsys.readouterr().err
    except (ImportError, ValueError, RuntimeError) as error:
        said = str(error)
    assert re.search(
        rf"{re.escape(what)}.* needs {package}: install hf_rlae with its extra `{extra}` \(in a clone", said
    )
    assert any(package in re.split(r"[<>=\[]", one)[0].replace("-", "_") for one in packages(extra))


def test_every_extra_has_a_case():
    assert {extra for extra, *_ in MISSING} == set(PROJECT["optional-dependencies"]) - OF_USERS


def packages(extra: str) -> list[str]:
    return PROJECT["optional-dependencies"][extra]


GUARDED = {"trainers/": "train", "cli/demo_training": "train", "evaluation/metrics": "train", "serving/": "serve"}
GUARDED |= {"members/remote/ray_link": "ray", "rewards/math_worker": "math"}
"""Modules that import packages of an extra, and that are imported behind a guard alone."""


def test_no_other_module_imports_an_optional_package():
    names = {re.split(r"[<>=\[]", one)[0].replace("-", "_") for extra in GUARDED.values() for one in packages(extra)}
    names |= {"gradio", "lm_eval", "starlette"}
    found = {}
    for path in sorted((ROOT / "hf_rlae").rglob("*.py")):
        place = path.relative_to(ROOT / "hf_rlae").as_posix()
        if any(place.startswith(guarded) for guarded in GUARDED):
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if used := {name.partition(".")[0] for name in modules} & names:
                found[place] = used
    assert not found
