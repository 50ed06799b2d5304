"""The public face: names, completion, types, and old names."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hf_rlae
import hf_rlae.trainers

PACKAGE = Path(hf_rlae.__file__).parent


def stub_names(path: Path) -> list[str]:
    """The names that a stub re-exports (`from x import A as A`)."""
    tree = ast.parse(path.read_text())
    found = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            found += [alias.asname for alias in node.names]
            assert all(alias.asname == alias.name for alias in node.names), ast.unparse(node)
    return found


@pytest.mark.parametrize("module", [hf_rlae, hf_rlae.trainers], ids=lambda module: module.__name__)
def test_the_names_of_the_stub_are_the_names_of_the_module(module):
    """Law: what type checkers see is what there is, and `dir()` completes it."""
    names = stub_names(Path(module.__file__).with_suffix(".pyi"))
    assert sorted(names) == sorted(module.__all__)
    assert set(names) <= set(dir(module))
    for name in names:
        assert callable(getattr(module, name)), name


def test_all_errors_are_at_the_top():
    import hf_rlae.errors as errors

    raised = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert raised <= set(hf_rlae.__all__)


def test_a_name_that_does_not_exist():
    with pytest.raises(AttributeError, match="EnsembleForCausalLMs"):
        hf_rlae.EnsembleForCausalLMs  # noqa: B018


@pytest.mark.parametrize(
    ("old", "new"),
    [("load_member", "load_demo_member"), ("load_members", "load_demo_members"), ("load_policy", "load_demo_policy")],
)
def test_old_names_work_and_warn(old, new):
    with pytest.warns(FutureWarning, match=f"hf_rlae.{new}"):
        found = getattr(hf_rlae, old)
    assert found is getattr(hf_rlae, new)
    assert old not in dir(hf_rlae)


def test_importing_the_package_imports_nothing_slow():
    code = "import sys, hf_rlae; print([name for name in ('torch', 'transformers', 'trl') if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


SCRIPT = """
import torch

from hf_rlae import EnsembleForCausalLM, EnsembleLogitsProcessor, Member, PolicyConfig, PolicyModel, PolicyState
from hf_rlae import RLAEConfig, RLAETrainer, StaticPolicy, load_demo_members


def first_member(state: PolicyState) -> torch.Tensor:
    return torch.eye(state.num_members)[torch.zeros(state.batch_size, dtype=torch.long)]


def no_policy(state: PolicyState) -> str:
    return "first"


ensemble = EnsembleForCausalLM.from_members(load_demo_members("shared"), StaticPolicy([1, 1, 1]), span_length=8)
ensemble.set_policy(first_member)
ensemble.set_policy(PolicyModel(PolicyConfig.for_members(ensemble.members)))
ensemble.set_policy(None)
inputs = ensemble.tokenizer(["7+5*3="], return_tensors="pt")
ids = ensemble.generate(**inputs, max_new_tokens=5)
out = ensemble.generate(**inputs, max_new_tokens=5, return_dict_in_generate=True)
text: str | list[str] = ensemble.tokenizer.decode(ids[0])
weights: torch.FloatTensor | None = out.span_weights
scores: torch.FloatTensor = EnsembleLogitsProcessor(ensemble)(ids, torch.zeros(1, 9))
member: Member = ensemble.members[0]
trainer = RLAETrainer(ensemble, "number", RLAEConfig("out", objective="mixture"))
ensemble.set_policy(3)  # wrong: arg-type
ensemble.set_policy(no_policy)  # wrong: arg-type
EnsembleForCausalLM.from_members(ensemble.members, span_lenght=8)  # wrong: call-arg
EnsembleForCausalLM.from_members(ensemble.members, mixing="linea")  # wrong: arg-type
EnsembleForCausalLM.from_members(ensemble.members, draw="sentence")  # wrong: arg-type
EnsembleForCausalLM.from_members(7)  # wrong: arg-type
EnsembleForCausalLM.from_pretrained("owner/name", revison="main")  # wrong: call-arg
EnsembleLogitsProcessor.from_members(None, [], [], span_lenght=8)  # wrong: call-arg
RLAEConfig("out", objective="mixtur")  # wrong: arg-type
RLAEConfig("out", advantages="gea")  # wrong: arg-type
load_demo_members("shred")  # wrong: arg-type
ensemble.policy.weights  # wrong: attr-defined
out.span_weight  # wrong: union-attr
import hf_rlae

hf_rlae.EnsembleForCausalLMs  # wrong: attr-defined
"""


@pytest.mark.slow
def test_a_type_checker_finds_what_is_wrong_in_a_script_and_nothing_else(tmp_path):
    """`mypy --strict` on a user's script: right lines pass, and each wrong one is named."""
    pytest.importorskip("mypy", reason="mypy is not installed (pip install 'hf_rlae[quality]')")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(script)]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}  # as if it were installed there
    printed = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment).stdout
    found = {
        int(n): code for n, code in re.findall(r"^script\.py:(\d+): error: .*\[([\w-]+)\]$", printed, re.MULTILINE)
    }
    lines = SCRIPT.splitlines()
    wanted = {at: line.split("# wrong: ")[1] for at, line in enumerate(lines, 1) if "# wrong: " in line}
    assert len(wanted) > 12
    assert {at: lines[at - 1] for at in found} == {at: lines[at - 1] for at in wanted}, printed
    for at, code in wanted.items():
        assert found[at] == code, lines[at - 1]
