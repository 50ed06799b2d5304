"""The paper index: every option of our configurations has a row with its default, and a row names a source."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from pathlib import Path
from typing import ClassVar, get_origin

import pytest

from hf_rlae import CoryArguments, EnsembleConfig, PolicyConfig, RLAEConfig
from hf_rlae.objectives import ObjectiveSettings
from hf_rlae.trainers.constraints import ConstraintArguments
from hf_rlae.trainers.token_ppo.configuration_token_ppo import TokenPPOArguments

PAGE = (Path(__file__).parents[2] / "docs" / "paper_index.md").read_text(encoding="utf-8")
SECTIONS = {
    "RLAEConfig": RLAEConfig,
    "Constraints on rewards": ConstraintArguments,
    "ObjectiveSettings": ObjectiveSettings,
    "PolicyConfig": PolicyConfig,
    "EnsembleConfig": EnsembleConfig,
    "CoryArguments": CoryArguments,
    "TokenPPOArguments": TokenPPOArguments,
}
SOURCES = ("*paper*", "*public code*", "*TRL*", "*ours*", "filled in", "by default", "of transformers", "of PEFT")


def rows(section: str) -> dict[str, tuple[str, str]]:
    """The default and the source of each option of a section."""
    text = re.split(r"^#+ ", PAGE.split(f"# {section}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]
    return {
        name: (default, source)
        for name, default, source in re.findall(r"^\| `(\w+)` \| `(.+?)` \| (.*) \|$", text, re.M)
    }


def own_fields(config: type) -> dict[str, object]:
    """The fields that a class defines itself, with their defaults."""
    own = {name for name, kind in vars(config)["__annotations__"].items() if get_origin(kind) is not ClassVar}
    own = {name for name in own if not str(vars(config)["__annotations__"][name]).startswith("ClassVar")}
    return {field.name: field.default for field in fields(config) if field.name in own}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_option_has_a_row_with_its_default(section):
    found = rows(section)
    expected = own_fields(SECTIONS[section])
    assert sorted(found) == sorted(expected)
    assert {name: ast.literal_eval(default) for name, (default, _) in found.items()} == expected


@pytest.mark.parametrize("section", SECTIONS)
def test_every_row_says_where_the_option_comes_from(section):
    unnamed = {
        name: source
        for name, (_, source) in rows(section).items()
        if not any(word in source for word in SOURCES)
        and name not in ("mixing_kwargs", "members", "observer_template", "observer_reward", "scale_rewards")
    }
    assert unnamed == {}


def test_every_paper_of_a_row_is_in_the_list_of_papers():
    table = PAGE.split("## Papers\n")[1].split("\n## ")[0]
    for section in SECTIONS:
        for _, source in rows(section).values():
            for named in re.findall(r"\*paper\* \(([^)]+)\)", source):
                for paper in re.split(r", (?=[A-Z])", named.split(", equation")[0].split(", section")[0]):
                    assert paper in table or paper == "GaC", (section, paper)
