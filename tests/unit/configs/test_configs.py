"""Ready files: names, sources of values, and files for accelerate."""

from __future__ import annotations

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from hf_rlae.configs import FOLDER, find_accelerate_config


@pytest.mark.parametrize(("name", "processes"), [("single_gpu", 1), ("two_gpus", 2), ("eight_gpus", 8)])
def test_files_for_accelerate(name, processes):
    path = find_accelerate_config(name)
    assert path.parent == FOLDER / "accelerate"
    assert load_config_from_file(str(path)).num_processes == processes


def test_trl_files_for_accelerate_are_found_too():
    assert find_accelerate_config("zero2").name == "zero2.yaml"


def test_every_value_of_a_ready_file_says_where_it_comes_from():
    for path in (*FOLDER.glob("*.yaml"), *FOLDER.glob("paper/*.yaml")):
        for line in path.read_text().splitlines():
            is_value = line and not line.startswith(("#", "output_dir", "rewards:", "  - "))
            assert not is_value or any(word in line for word in ("paper", "public code", "ours", "positive")), line
