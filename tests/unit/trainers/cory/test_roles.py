"""Roles by name: those of the package, those of users, and chains that cannot be."""

from __future__ import annotations

import pytest

from hf_rlae.errors import ConfigError
from hf_rlae.trainers import CoryConfig
from hf_rlae.trainers.cory import roles as module
from hf_rlae.trainers.cory.prompts import observer_prompt
from hf_rlae.trainers.cory.roles import Role, role_labels, role_of, roles


@pytest.fixture(autouse=True)
def _own_registry(registries):
    """Roles that a test registers are gone afterwards."""


def made(**options):
    return CoryConfig("out", use_cpu=True, report_to="none", **options)


@pytest.mark.parametrize("name", ["pioneer", "observer", "critic", "verifier"])
def test_templates_have_the_prompt_and_all_answers(name):
    """In plain prompts and in conversations; the pioneer reads nothing."""
    role = role_of(name)
    assert role.is_reader == (name != "pioneer")
    if role.is_reader:
        plain = observer_prompt("Once upon", [" a", " b"], role.template)
        [chat] = observer_prompt([{"role": "user", "content": "2+2?"}], ["5", "4"], role.template)
        assert all(text in plain for text in ("Once upon", " a", " b"))
        assert all(text in chat["content"] for text in ("2+2?", "5", "4"))
        assert chat["role"] == "user"


def test_templates_of_roles_differ():
    texts = {name: observer_prompt("p", ["a"], role_of(name).template) for name in ("observer", "critic", "verifier")}
    assert len(set(texts.values())) == 3
    assert {name: role_of(name).share for name in texts} == {"observer": 1.0, "critic": 0.0, "verifier": 1.0}


def test_a_role_of_a_user():
    """By a decorator: a function, or a `Role` with a share."""

    @roles.register("editor")
    def editor(prompt, answers):
        return f"{answers[-1]}>{prompt}"

    roles.register("judge")(Role("{prompt}: {answers}", share=0.5))
    assert role_of("editor") == Role(editor)
    args = made(roles=["pioneer", "editor", "judge"])
    assert (args.num_agents, args.names) == (3, ["agent-1", "agent-2", "agent-3"])
    assert [args.role(name).share for name in args.role_names] == [1.0, 1.0, 0.5]
    with pytest.raises(ConfigError, match="the role 'editor' is registered twice"):
        roles.register("editor")(editor)


def test_without_roles_there_are_a_pioneer_and_observers():
    assert made(num_agents=3).role_names == ["pioneer", "observer", "observer"]
    assert role_labels(["pioneer", "pioneer", "verifier"]) == ["pioneer-1", "pioneer-2", "verifier"]
    template = "{prompt} {answers}"
    assert made(observer_template=template).role("observer").template == template
    assert not made(knowledge_transfer=False).role("observer").is_reader


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"roles": ["pioneer", "critik"]}, "no role named 'critik': did you mean 'critic'", id="unknown"),
        pytest.param({"roles": ["observer", "observer"]}, "nobody answers before the first", id="first one reads"),
        pytest.param({"roles": ["pioneer", "critic"]}, "'critic' has no share", id="last one learns nothing"),
        pytest.param({"roles": ["pioneer"]}, "a list of two or more", id="one role"),
        pytest.param({"roles": "pioneer"}, "a list of two or more", id="a text"),
        pytest.param({"roles": ["pioneer", 3]}, "a list of two or more", id="a number"),
        pytest.param({"roles": ["pioneer", "observer"], "num_agents": 3}, "num_agents=3; leave", id="another number"),
        pytest.param(
            {"roles": ["pioneer", "verifier"], "observer_template": "{prompt}{answers}"}, "'observer'", id="no observer"
        ),
    ],
)
def test_chains_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        made(**options)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        pytest.param(lambda: Role("{prompt}"), r"lacks \{answers\}", id="a template without answers"),
        pytest.param(lambda: Role(share=-1.0), "share=-1.0", id="a negative share"),
        pytest.param(lambda: roles.register("x")(3) and role_of("x"), "'x' is a int", id="a number"),
        pytest.param(lambda: roles.register("x")(Role) and module.role_of("x"), "is a type", id="a class"),
    ],
)
def test_roles_that_cannot_be(entry, message):
    with pytest.raises(ConfigError, match=message):
        entry()
