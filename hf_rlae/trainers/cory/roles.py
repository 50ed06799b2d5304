"""The roles of a chain's agents, by name: what each of them reads, and the share of its own reward for the team."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_rlae.checks import NOT_NEGATIVE, check_number
from hf_rlae.errors import ConfigError
from hf_rlae.registry import Registry
from hf_rlae.trainers.cory.prompts import CHAT_TEMPLATE, PLAIN_TEMPLATE, Template, TextTemplate, check_template

PIONEER, OBSERVER = "pioneer", "observer"


@dataclass(frozen=True)
class Role:
    """What an agent in a role reads, and how much its own reward counts.

    Source: CORY (arXiv 2410.06101) for a pioneer and an observer; other roles and shares are ours.

    Args:
        template (`str` or callable, *optional*): of the prompt with the earlier answers, see `observer_template` of
            [`CoryArguments`]. `None`: the role reads no answer; its agent answers the prompt alone.
        share (`float`, defaults to 1.0): the factor of the role's own reward in what agents learn from, at least 0.
            With 0 its completions are not judged (their rewards may be `None`); its agent learns from the rewards of
            those who read it.

    Raises:
        ConfigError: a template or a share that cannot be used.

    Example:

    >>> Role("{prompt} Hint: {answers}").is_reader, Role().is_reader
    (True, False)
    """

    template: Template | None = None
    share: float = 1.0

    def __post_init__(self) -> None:
        check_number("share", self.share, NOT_NEGATIVE)
        if self.template is not None:
            check_template(self.template)

    @property
    def is_reader(self) -> bool:
        """Whether the role reads the earlier answers."""
        return self.template is not None


roles: Registry[Any] = Registry("role")
"""All roles by name. `@roles.register(name)` accepts a [`Role`], or a function `f(prompt, answers) -> prompt`."""

roles.register(PIONEER)(Role())
roles.register(OBSERVER)(Role(TextTemplate(PLAIN_TEMPLATE, CHAT_TEMPLATE)))
roles.register("critic")(
    Role(
        TextTemplate(
            "{prompt}\n{answers}\n\nWhat is wrong with it:\n",
            "{prompt}\n\nSomebody has answered this:\n{answers}\n\nName the mistakes of the answer and how to correct "
            "them. Do not answer the request yourself.",
        ),
        share=0.0,
    )
)
roles.register("verifier")(
    Role(
        TextTemplate(
            "{prompt}\n{answers}\n\nChecked, and corrected where it is wrong:\n{prompt}",
            "{prompt}\n\nSomebody has answered this:\n{answers}\n\nCheck this step by step. Then give the answer to "
            "the request above: the same one if it is right, the correct one if it is wrong.",
        )
    )
)


def role_of(name: str) -> Role:
    """A registered role.

    Raises:
        ConfigError: there is no such role, or something else is registered under its name.
    """
    entry = roles[name]
    if isinstance(entry, Role):
        return entry
    if not callable(entry) or isinstance(entry, type):
        raise ConfigError(f"the role {name!r} is a {type(entry).__name__}; register a Role or f(prompt, answers)")
    return Role(entry)


def check_roles(names: Any) -> None:
    """Raises for roles that cannot make up a chain.

    Args:
        names (`list[str]`): of the roles, in the order of the chain.

    Raises:
        ConfigError: not a list of two or more registered roles, a first one that reads answers, or a last one without a
            share of the reward, which would teach nothing.
    """
    if not isinstance(names, list | tuple) or len(names) < 2 or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"roles={names!r}: give a list of two or more names of roles, such as {[PIONEER, OBSERVER]}")
    found = [role_of(name) for name in names]
    if found[0].is_reader:
        raise ConfigError(
            f"roles={names!r}: nobody answers before the first agent, and {names[0]!r} reads an answer; begin with "
            f"{PIONEER!r}, or another role without a template"
        )
    if not found[-1].share:
        raise ConfigError(
            f"roles={names!r}: nobody reads the last agent, and {names[-1]!r} has no share of the reward, so it would "
            f"learn nothing; end with another role, such as {OBSERVER!r}"
        )


def role_labels(names: Sequence[str]) -> list[str]:
    """The name of each place of a chain: that of its role, with a number if several have the same role.

    Example:

    >>> role_labels(["pioneer", "observer"]), role_labels(["pioneer", "observer", "observer"])
    (['pioneer', 'observer'], ['pioneer', 'observer-1', 'observer-2'])
    """
    counts, seen = Counter(names), Counter[str]()
    labels = []
    for name in names:
        seen[name] += 1
        labels.append(name if counts[name] == 1 else f"{name}-{seen[name]}")
    return labels


def order_at(step: int, agents: Sequence[str], exchange_steps: int) -> list[str]:
    """The order of the agents in the chain at an optimizer step; the first is the pioneer.

    After every `exchange_steps` the last agent becomes the pioneer, and all others move one place down the chain. With
    two agents that is an exchange; N exchanges of N agents restore the first order.

    Source: CORY (arXiv 2410.06101) for two agents.

    Args:
        step (`int`): number of finished optimizer steps.
        agents (`Sequence[str]`): in their initial order.
        exchange_steps (`int`): T; 0 for never.

    Example:

    >>> [order_at(step, ["a", "b"], 2)[0] for step in range(6)]
    ['a', 'a', 'b', 'b', 'a', 'a']
    """
    if not exchange_steps:
        return list(agents)
    shift = -(step // exchange_steps) % len(agents)
    return [*agents[shift:], *agents[:shift]]
