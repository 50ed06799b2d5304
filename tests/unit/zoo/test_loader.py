"""Names of embedded members and policies stay inside the package."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_rlae import ConfigError, load_demo_member, load_demo_members, load_demo_policy

NAMES = ["/etc", "../members", "different/../shared", ".", "", "C:\\", Path("different"), None, 3]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("load", [load_demo_member, load_demo_members, load_demo_policy])
def test_names_that_are_paths(load, name):
    with pytest.raises(ConfigError, match="Known: "):
        load(name)
