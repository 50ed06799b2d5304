"""The pair of CORY agents: small, and with a higher reward than their base."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from hf_rlae import EnsembleForCausalLM, Member, load_demo_agents
from hf_rlae.zoo.loader import ADAPTERS_FOLDER, AGENTS
from tests.integration.zoo.test_members import MEBIBYTE, weight_of
from tests.studies.cory_references.base import answer_logps, questions, split_questions

NUM_QUESTIONS = 96


@pytest.fixture(scope="module")
def agents():
    return load_demo_agents()


@pytest.fixture(scope="module")
def asked():
    rows = questions(split_questions(0)[1][-NUM_QUESTIONS:])  # the study chose by other ones
    return list(rows["prompt"]), list(rows["answer"])


@torch.no_grad()
def reward(member, asked):
    """The mean probability of the right answer, which is what the agents were trained for."""
    return float(answer_logps(member.model, member.tokenizer, *asked).exp().mean())


def test_they_are_small():
    assert {path.name for path in ADAPTERS_FOLDER.iterdir()} == {"base", *AGENTS}
    assert weight_of(ADAPTERS_FOLDER) <= MEBIBYTE


def test_both_have_a_higher_reward_than_the_base(agents, asked):
    base = reward(Member.load(str(ADAPTERS_FOLDER / "base")), asked)
    assert all(reward(agent, asked) > base + 0.02 for agent in agents)


def test_they_differ_and_are_members_of_an_ensemble(agents):
    parameters = [dict(agent.model.named_parameters()) for agent in agents]
    pairs = [(name, other) for name, other in product(parameters[0], parameters[1]) if name == other]
    different = [name for name, _ in pairs if not torch.equal(parameters[0][name], parameters[1][name])]
    assert different
    assert all("lora_" in name for name in different)
    ensemble = EnsembleForCausalLM.from_members(agents)
    ids = ensemble.generate(**ensemble.tokenizer(["12+34="], return_tensors="pt"), max_new_tokens=5, do_sample=False)
    assert ensemble.tokenizer.batch_decode(ids, skip_special_tokens=True) == ["12+34=46"]
