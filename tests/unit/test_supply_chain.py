"""What an installation brings along: imports that stay at home, and no files that can run code when they are loaded."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

import hf_rlae
from tests.support.tiers import show_figure

PACKAGE = Path(hf_rlae.__file__).parent
TEXTS = {".py", ".pyi", ".json", ".jsonl", ".txt", ".csv", ".typed", ".jinja", ".yaml"}
NAMES = """
import socket, sys, urllib.request

def refuse(*args, **kwargs):
    raise SystemExit(f"a connection to {args}")

for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, refuse)
socket.getaddrinfo = socket.create_connection = urllib.request.urlopen = refuse
import hf_rlae, hf_rlae.trainers, hf_rlae.zoo
for module in (hf_rlae, hf_rlae.trainers):
    for name in module.__all__:
        getattr(module, name)
hf_rlae.load_demo_members()
print(len(hf_rlae.__all__), "torch" in sys.modules)
"""


@pytest.mark.slow
def test_importing_every_public_name_contacts_nobody():
    done = subprocess.run([sys.executable, "-c", NAMES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    count, has_torch = done.stdout.split()
    assert has_torch == "True"
    show_figure(f"{count} names imported, 0 connections")


def files() -> list[Path]:
    return [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def test_the_package_holds_texts_and_safetensors_only():
    """No pickles, archives or libraries: nothing runs when it is read."""
    kinds: dict[str, int] = {}
    for path in files():
        kinds[path.suffix or path.name] = kinds.get(path.suffix or path.name, 0) + 1
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as tensors:
                assert tensors.keys(), path
        else:
            assert path.suffix in TEXTS or path.name == "py.typed", path
            path.read_text(encoding="utf-8")
    show_figure(", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())))


@pytest.mark.parametrize(
    "call",
    [
        r"\bpickle\.loads?\(",
        r"(?<![.\w])eval\(",
        r"\bexec\(",
        r"shell=True",
        r"torch\.load\((?!.*weights_only=True)",
        r"verify=False",
    ],
)
def test_no_module_runs_what_it_reads(call):
    """But for the workers of the sandbox, which are there to run programs and their tests."""
    workers = {"program_role.py", "tests_role.py"} if "exec" in call else set()
    found = [
        f"{path.relative_to(PACKAGE)}:{number}"
        for path in files()
        if path.suffix == ".py" and not (path.parent.name == "sandbox" and path.name in workers)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(call, line)
    ]
    assert found == []
