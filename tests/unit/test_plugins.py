"""Packages that register plug-ins by an entry point: real folders on the path, in a process of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

GOOD = """
from hf_rlae.rewards import rewards
from hf_rlae.tasks import Example, task


@task("sums", description="Sums.", splits=("test",), fields={"question": "q", "answer": "a"}, reward="brevity")
def sums(row):
    return Example(row.text("question"), row.text("answer"), row.text("answer"))


@rewards.register("brevity")
def brevity(completions, **columns):
    return [-float(len(text)) for text in completions]
"""

MODELS = """
from hf_rlae.ensemble.mixing import LinearMixing, mixings
from hf_rlae.objectives import objectives
from hf_rlae.policies import UniformPolicy, policies

mixings.register("my_mixing")(LinearMixing())
policies.register("my_policy")(UniformPolicy)
objectives.register("my_objective")(objectives["ppo"])
"""

BROKEN = "import a_package_that_is_not_there"
SHADOW = "from hf_rlae.tasks import tasks\ntasks.register('gsm8k')(None)"


def install(site: Path, name: str, source: str, module: str = "for_hf_rlae") -> None:
    """What pip leaves behind: a package, and its metadata with an entry point."""
    package, info = site / name, site / f"{name}-1.0.dist-info"
    package.mkdir(parents=True)
    info.mkdir()
    (package / "__init__.py").write_text("")
    (package / f"{module}.py").write_text(source)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[hf_rlae.plugins]\n{name} = {name}.{module}\n")


def run(site: Path, script: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=site)
    assert done.returncode == 0, done.stderr
    return done


def test_plugins_are_found_and_broken_ones_are_left_out(tmp_path):
    for name, source in (("a_broken", BROKEN), ("b_shadow", SHADOW), ("c_good", GOOD)):
        install(tmp_path, name, source)
    done = run(
        tmp_path,
        """
import sys
import hf_rlae
from hf_rlae.rewards import get_reward, list_rewards
from hf_rlae.tasks import get_task, list_tasks
from hf_rlae.errors import ConfigError

get_task("gsm8k"), get_reward("gsm8k")
assert "c_good" not in sys.modules  # built-in names do not wait for plug-ins
assert get_task("sums").reward == "brevity"
assert get_reward("brevity")(completions=["abc"]) == [-3.0]
assert "sums" in [task.name for task in list_tasks()]
assert "brevity" in list_rewards()
assert get_task("gsm8k").hub_id == "openai/gsm8k"
try:
    get_task("summs")
except ConfigError as error:
    assert "did you mean 'sums'" in str(error)
else:
    raise AssertionError("an unknown task was found")
""",
    )
    warnings = done.stderr.strip().splitlines()
    assert len(warnings) == 2, done.stderr
    for line, package, reason in (
        (warnings[0], "a-broken", "ModuleNotFoundError: No module named 'a_package_that_is_not_there'"),
        (warnings[1], "b-shadow", "the task 'gsm8k' is registered twice"),
    ):
        assert f"package {package} cannot be imported" in line
        assert reason in line


def test_the_package_of_the_documentation(tmp_path):
    """The module and the entry point of docs/plugins.md, installed and asked for as the page says."""
    page = (ROOT / "docs" / "plugins.md").read_text()
    module, use = re.findall(r"^```py\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (package,) = re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    entry = tomllib.loads(package)["project"]["entry-points"]["hf_rlae.plugins"]
    assert entry == {"capitals": "hf_rlae_capitals.plugin"}
    install(tmp_path, "hf_rlae_capitals", module, "plugin")
    (data,) = re.findall(r"^```csv\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "test.csv").write_text(data)
    use = use.replace("reward(completions", "found = reward(completions")
    run(tmp_path, f"{use}\nassert found == [1.0, 0.0]")


def test_a_listing_alone_finds_them(tmp_path):
    install(tmp_path, "good", GOOD)
    run(tmp_path, "from hf_rlae.tasks import list_tasks\nassert 'sums' in {task.name for task in list_tasks()}")


def test_importing_the_package_imports_no_plugin(tmp_path):
    install(tmp_path, "good", GOOD)
    run(tmp_path, "import hf_rlae, sys\nhf_rlae.__version__\nassert not {'good', 'hf_rlae.tasks'} & set(sys.modules)")


@pytest.mark.slow
def test_policies_mixings_and_objectives(tmp_path):
    install(tmp_path, "models", MODELS)
    run(
        tmp_path,
        """
from hf_rlae import EnsembleConfig
from hf_rlae.objectives import objectives
from hf_rlae.policies import policies

assert EnsembleConfig(mixing="my_mixing").mixing == "my_mixing"
assert policies["my_policy"]().settings() == {}
assert objectives["my_objective"] is objectives["ppo"]
""",
    )
