"""Loading the embedded members from the package."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

import torch

from hf_rlae.checks import check_choice
from hf_rlae.members import Member
from hf_rlae.policies import PolicyModel

MEMBERS_FOLDER = Path(str(files("hf_rlae.zoo"))) / "members"
"""The folder of the members in the package."""

POLICIES_FOLDER = MEMBERS_FOLDER.parent / "policies"
"""The folder of the trained policies in the package, with one folder per set of members."""

ADAPTERS_FOLDER = MEMBERS_FOLDER.parent / "adapters"
"""The folder of a pair of trained agents in the package: their `base`, and an adapter each."""

AGENTS = ("agent-1", "agent-2")
"""The names of these agents."""


@dataclass(frozen=True)
class Specialist:
    """An embedded member.

    Attributes:
        specialty (`str`): the operator on which it is right: `"addition"`, `"subtraction"` or `"multiplication"`.
        tokenizer (`str`): `"characters"`, `"bytes"` or `"pieces"`.
    """

    specialty: str
    tokenizer: str

    @property
    def name(self) -> str:
        """The name of its folder, such as `addition-characters`."""
        return f"{self.specialty}-{self.tokenizer}"


_ALL = (
    Specialist("addition", "characters"),
    Specialist("subtraction", "bytes"),
    Specialist("multiplication", "pieces"),
    Specialist("addition", "bytes"),
    Specialist("multiplication", "bytes"),
)
SPECIALISTS = {specialist.name: specialist for specialist in _ALL}
"""All embedded members by name."""

MEMBER_SETS = {
    "different": ("addition-characters", "subtraction-bytes", "multiplication-pieces"),
    "shared": ("addition-bytes", "subtraction-bytes", "multiplication-bytes"),
}
"""The sets of members for one ensemble: with three different tokenizers, or with a shared one."""


def load_demo_member(name: str, folder: Path | None = None) -> Member:
    """Loads one embedded member in fp32, in eval mode.

    Args:
        name (`str`): one of `SPECIALISTS`.
        folder (`Path`, *optional*): the folder of the members; the package's if not given.

    Raises:
        ConfigError: there is no such member.

    Example:

    >>> load_demo_member("addition-characters").name
    'addition-characters'
    """
    check_choice("name", name, SPECIALISTS)
    return _loaded((folder or MEMBERS_FOLDER) / name, name)


def load_demo_members(kind: Literal["different", "shared"] = "different", folder: Path | None = None) -> list[Member]:
    """Loads three members, right on `+`, `-` and `*`, in this order.

    Args:
        kind (`str`, defaults to `"different"`): `"different"` or `"shared"`, the tokenizers.
        folder (`Path`, *optional*): the folder of the members; the package's if not given.

    Raises:
        ConfigError: there is no such set.

    Example:

    >>> [member.name for member in load_demo_members("shared")]
    ['addition-bytes', 'subtraction-bytes', 'multiplication-bytes']
    """
    check_choice("kind", kind, MEMBER_SETS)
    return [load_demo_member(name, folder) for name in MEMBER_SETS[kind]]


def load_demo_policy(kind: Literal["different", "shared"] = "different", folder: Path | None = None) -> PolicyModel:
    """Loads the policy that was trained for one set of members, in eval mode.

    `policy.config.span_length` is the span length of its training.

    Args:
        kind (`str`, defaults to `"different"`): the set, as in `load_demo_members`.
        folder (`Path`, *optional*): the folder of the policies; the package's if not given.

    Raises:
        ConfigError: there is no such policy.

    Example:

    >>> load_demo_policy("different").num_members
    3
    """
    folder = folder or POLICIES_FOLDER
    check_choice("kind", kind, [path.name for path in folder.glob("*")])
    return PolicyModel.from_pretrained(str(folder / kind)).eval()


def load_demo_agents(folder: Path | None = None) -> list[Member]:
    """Loads two agents that `CoryTrainer` or `CoryPPOTrainer` trained together, in fp32, in eval mode.

    They answer sums of two numbers below 100, such as `12+34=`: alone, or after an answer and the question again.

    Args:
        folder (`Path`, *optional*): the folder of the agents; the package's if not given.

    Returns:
        `list[Member]`: `agent-1` and `agent-2`, two adapters on two copies of one base.

    Example:

    >>> [agent.name for agent in load_demo_agents()]
    ['agent-1', 'agent-2']
    """
    return [_loaded((folder or ADAPTERS_FOLDER) / name, name) for name in AGENTS]


def _loaded(folder: Path, name: str) -> Member:
    member = Member.load(str(folder), dtype=torch.float32)
    member.name = name
    return member
