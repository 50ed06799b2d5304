"""Auto classes: which imports they need, and what they do with the arguments of an ensemble."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from hf_rlae import (
    ConfigError,
    EnsembleConfig,
    EnsembleForCausalLM,
    EntropyPolicy,
    PolicyConfig,
    PolicyModel,
    StaticPolicy,
)
from hf_rlae.remote_code import MODULE
from tests.support.models import pair
from tests.support.policies import assert_same_parameters
from tests.support.tokenizers import chatml, instruct


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved ensemble and, in `policy`, a saved policy."""
    path = tmp_path_factory.mktemp("saved")
    members = [pair("llama", seed, build(), num_hidden_layers=1) for seed, build in enumerate((chatml, instruct))]
    policy = PolicyModel(PolicyConfig.for_members(EnsembleForCausalLM.from_members(members).members))
    EnsembleForCausalLM.from_members(members, policy, span_length=3).save_pretrained(path, save_members=True)
    return path


def texts_of(ensemble, tokenizer):
    inputs = tokenizer(["Once upon", "The 3 big dogs ran"], return_tensors="pt", padding=True)
    return tokenizer.batch_decode(ensemble.generate(**inputs, max_new_tokens=9, do_sample=False))


def test_auto_classes_load_an_ensemble(folder):
    ensemble = EnsembleForCausalLM.from_pretrained(folder)
    config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(config) is EnsembleConfig
    assert type(model) is EnsembleForCausalLM
    assert not model.training
    assert model.config.to_dict() == ensemble.config.to_dict()
    assert model.generation_config == ensemble.generation_config
    assert texts_of(model, tokenizer) == texts_of(ensemble, ensemble.tokenizer)


def test_auto_classes_load_a_policy(folder):
    policy = PolicyModel.from_pretrained(folder / "policy")
    assert type(AutoConfig.from_pretrained(folder / "policy")) is PolicyConfig
    again = AutoModel.from_pretrained(folder / "policy")
    assert type(again) is PolicyModel
    assert_same_parameters(again, policy)


ARGUMENTS = {
    "a field": ({"span_length": 5}, lambda e: e.config.span_length == 5),
    "a grain, which has other ids": ({"grain": "byte"}, lambda e: e.generation_config.eos_token_id == e.union.stop_id),
    "a policy by name": ({"policy": "entropy"}, lambda e: isinstance(e.policy, EntropyPolicy)),
    "a policy": ({"policy": StaticPolicy([1, 0])}, lambda e: e.policy.weights == [1, 0]),
    "a dtype": ({"dtype": torch.float64}, lambda e: e.dtype == torch.float64),
    "automatic dtype": ({"dtype": "auto"}, lambda e: e.dtype == torch.float32),
    "the config": ({"config": "loaded"}, lambda e: e.config.span_length == 3),
    "trust": ({"trust_remote_code": True}, lambda e: type(e).__module__.startswith("hf_rlae")),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_reach_the_ensemble(folder, name):
    options, holds = ARGUMENTS[name]
    if "config" in options:
        options = {"config": AutoConfig.from_pretrained(folder)}
    assert holds(AutoModelForCausalLM.from_pretrained(folder, **options))


def test_members_reach_the_ensemble(folder):
    members = [pair("llama", seed, build(), num_hidden_layers=1) for seed, build in enumerate((chatml, instruct), 5)]
    model = AutoModelForCausalLM.from_pretrained(folder, members=members)
    assert [member.model for member in model.members] == [model for model, _ in members]


def test_arguments_are_checked(folder):
    with pytest.raises(ConfigError, match=r"span_lenght is not an option.*did you mean 'span_length'"):
        AutoModelForCausalLM.from_pretrained(folder, span_lenght=3)


# Imports, in other processes

LOADS = """
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
names = [type(auto.from_pretrained({folder!r}{options})).__name__
         for auto in (AutoConfig, AutoModelForCausalLM, AutoTokenizer)]
print(names)
"""
NAMES = "['EnsembleConfig', 'EnsembleForCausalLM', 'EnsembleTokenizer']"


def run(code, folder, options="", **kwargs):
    code = code + LOADS.format(folder=str(folder), options=options)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, stdin=subprocess.DEVNULL, **kwargs
    )


IMPORTS = {
    "a public name": "from hf_rlae import ConfigError",
    "a public name, asked for later": "import hf_rlae\nhf_rlae.get_task",
    "the package, after transformers": "import transformers\nimport hf_rlae",
    "a module of it": "import hf_rlae.ensemble",
}


@pytest.fixture
def hostile(folder):
    """The folder, with a code file that must not run."""
    path = folder / f"{MODULE}.py"
    code = path.read_text()
    path.write_text("raise SystemExit('the code of the repository was run')")
    yield folder
    path.write_text(code)


def test_where_the_classes_are_registered_code_of_a_repository_does_not_run(hostile):
    """Not even where it is trusted; nothing is asked on standard input, which pytest has closed."""
    assert type(AutoTokenizer.from_pretrained(hostile)).__name__ == "EnsembleTokenizer"
    for options in ({}, {"trust_remote_code": True}):
        assert type(AutoConfig.from_pretrained(hostile, **options)) is EnsembleConfig
        assert type(AutoModelForCausalLM.from_pretrained(hostile, **options)) is EnsembleForCausalLM


@pytest.mark.slow
@pytest.mark.parametrize("name", IMPORTS)
def test_imports_that_register_the_classes(hostile, tmp_path, name):
    found = run(IMPORTS[name], hostile, cwd=tmp_path)
    assert found.stdout.strip() == NAMES, found.stderr
    assert "custom code" not in found.stderr


HIDDEN = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == "hf_rlae":
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Hidden())
"""


@pytest.mark.slow
def test_without_an_import(folder, tmp_path):
    """transformers says that code is needed; the code is the import, and it says which package is missing."""
    refused = run("", folder, cwd=tmp_path)
    assert refused.returncode != 0
    assert "pass the argument `trust_remote_code=True`" in refused.stderr
    environment = {"HF_MODULES_CACHE": str(tmp_path), "PATH": "", "PYTHONPATH": ":".join(filter(None, sys.path))}
    allowed = run("", folder, ", trust_remote_code=True", cwd=tmp_path, env=environment)
    assert allowed.stdout.strip() == NAMES, allowed.stderr
    missing = run(HIDDEN, folder, ", trust_remote_code=True", cwd=tmp_path, env=environment)
    assert "not found in your environment: hf_rlae. Run `pip install hf_rlae`" in missing.stderr


def test_objects_of_code_that_was_trusted_are_saved_without_copies_of_the_package(folder, tmp_path):
    """transformers calls `register_for_auto_class`, and then copies a class's module into every saved folder."""
    for kind in (EnsembleConfig, EnsembleForCausalLM, PolicyConfig, PolicyModel):
        kind.register_for_auto_class()
    EnsembleForCausalLM.from_pretrained(folder).save_pretrained(tmp_path, save_members=True)
    assert [path.name for path in tmp_path.rglob("*.py")] == [f"{MODULE}.py"] * 2
