"""`hf-rlae tasks`, `policies` and `version`."""

from __future__ import annotations

import getpass
import os
import platform

import transformers

from hf_rlae.cli.main import main
from hf_rlae.ensemble.mixing import mixings
from hf_rlae.objectives import objectives
from hf_rlae.policies import policies
from hf_rlae.rewards import list_rewards
from hf_rlae.tasks import list_tasks


def test_tasks_have_a_line_each_with_source_licence_reward_and_splits(capsys):
    assert main(["tasks"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    for task in list_tasks():
        said = [task.hub_id or "", task.licence, task.reward or "-", ", ".join(task.splits)]
        assert all(part in lines[task.name] for part in said), task.name


def test_every_registered_name_is_listed(capsys):
    assert main(["policies"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.strip()]
    found = {line[0]: set(line[1].strip().split(", ")) for line in lines if len(line) == 2}
    assert found["policies"] == set(policies)
    assert found["mixings"] == set(mixings)
    assert found["objectives"] == set(objectives)
    assert found["rewards"] == set(list_rewards())
    assert found["tasks"] == {task.name for task in list_tasks()}


def test_the_report_of_versions_has_nothing_private(capsys):
    assert main(["version"]) == 0
    out = capsys.readouterr().out
    assert f"transformers     {transformers.__version__}\n" in out
    private = {os.getcwd(), os.path.expanduser("~"), platform.node(), getpass.getuser()} - {"", "/", "localhost"}
    assert not [word for word in private if word in out.split() or ("/" in word and word in out)]
