"""The embedded members: small, quick to load, right on their own operator and confidently wrong on the others."""

from __future__ import annotations

import random
import time
from functools import cache
from pathlib import Path

import pytest
import torch

from hf_rlae import EnsembleForCausalLM
from hf_rlae.errors import ConfigError
from hf_rlae.tasks.chains import OPERATORS, draw_questions, join
from hf_rlae.zoo import MEMBER_SETS, SPECIALISTS, OraclePolicy, load_demo_member, load_demo_members, load_demo_policy
from hf_rlae.zoo.loader import MEMBERS_FOLDER
from hf_rlae.zoo.solving import accuracy
from tests.studies.specialists.lessons import SPECIALTIES
from tests.studies.specialists.measure import score_operator
from tests.studies.specialists.tokenizers import Segmenter
from tests.support.tiers import slow

NAMES = list(SPECIALISTS)
MEBIBYTE = 2**20


@cache
def member(name):
    return load_demo_member(name)


@cache
def members(kind):
    return [member(name) for name in MEMBER_SETS[kind]]


def weight_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_members_are_small():
    assert sorted(path.name for path in MEMBERS_FOLDER.iterdir()) == sorted(NAMES)
    assert all(weight_of(MEMBERS_FOLDER / name) <= MEBIBYTE for name in NAMES)
    assert weight_of(MEMBERS_FOLDER) <= 4 * MEBIBYTE


@pytest.mark.parametrize("name", NAMES)
def test_members_load_quickly(name):
    load_demo_member(name)
    started = time.perf_counter()
    loaded = load_demo_member(name)
    assert time.perf_counter() - started < 1.0
    assert loaded.name == name
    assert loaded.dtype == torch.float32
    assert not loaded.model.training
    assert len(loaded.end_ids) == 1


@pytest.mark.parametrize("kind", MEMBER_SETS)
def test_sets_are_in_the_order_of_the_operators(kind):
    loaded = load_demo_members(kind)
    assert [SPECIALTIES[SPECIALISTS[m.name].specialty] for m in loaded] == list(OPERATORS)
    assert (EnsembleForCausalLM.from_members(loaded).union is None) == (kind == "shared")


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'addition-bytes'"):
        load_demo_member("addition-byte")
    with pytest.raises(ConfigError, match="shared"):
        load_demo_members("share")


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("name", NAMES)
def test_right_on_its_own_operator_and_confidently_wrong_on_others(name, operator):
    specialty = SPECIALISTS[name].specialty
    score = score_operator(member(name), specialty, operator, count=30)
    if SPECIALTIES[specialty] == operator:
        assert score.right >= 0.85
    else:
        assert score.right <= 0.15
        assert score.rule >= 0.7
    assert score.confidence >= 0.75


@pytest.mark.parametrize("name", NAMES)
def test_members_go_on_from_what_others_wrote(name):
    """A true first step, cut into other tokens than the member would have chosen, is read and its result copied."""
    loaded, rng, copied = member(name), random.Random(0), []
    segmenter = Segmenter(loaded.tokenizer, SPECIALISTS[name].tokenizer)
    for question in draw_questions(30, num_steps=(2,)):
        first, last = question.steps
        begun = " " + join(first.a, first.operator, first.b, question.form) + f"{first.result}; "
        begun += join(last.a, last.operator, last.b, question.form).rpartition(str(last.b))[0]
        ids = loaded.tokenizer(question.prompt)["input_ids"] + segmenter(begun, rng)
        with torch.no_grad():
            best = loaded.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()
        copied.append(loaded.tokenizer.decode([int(best)]).strip() == str(last.b)[0])
    assert sum(copied) >= 24


@pytest.mark.parametrize("kind", MEMBER_SETS)
def test_switching_solves_what_no_member_solves(kind):
    questions = draw_questions(24, seed=1)
    loaded = members(kind)
    alone = [accuracy(m.model, m.tokenizer, questions) for m in loaded]
    oracle = EnsembleForCausalLM.from_members(loaded, OraclePolicy(), span_length=2)
    uniform = EnsembleForCausalLM.from_members(loaded, span_length=2)
    switched = accuracy(oracle, oracle.tokenizer, questions)
    assert switched >= 0.75
    assert max(alone) <= 0.45
    assert accuracy(uniform, uniform.tokenizer, questions) <= switched - 0.3


@pytest.mark.parametrize("kind", ["different", *slow("shared")])
def test_the_policy_in_the_package_beats_every_fixed_weighting(kind):
    members, policy = load_demo_members(kind), load_demo_policy(kind)
    ensemble = EnsembleForCausalLM.from_members(members, policy, span_length=policy.config.span_length)
    assert accuracy(ensemble, ensemble.tokenizer, draw_questions(60)) > 0.5  # 0.02 to 0.06 for fixed weights


def test_a_policy_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match="Known: different, shared"):
        load_demo_policy("shred")
