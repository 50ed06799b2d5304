"""How the policies of the embedded members are made."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rich.console import Console

from hf_rlae import load_demo_members, load_demo_policy
from hf_rlae.cli import demo_training
from hf_rlae.policies import PolicyModel
from hf_rlae.tasks.chains import draw_questions
from hf_rlae.zoo import MEMBER_SETS
from hf_rlae.zoo.loader import POLICIES_FOLDER
from tests.studies import shipped_policy
from tests.studies.chain_policies import right_answers, with_policy


def test_the_policy_that_is_kept_is_the_best_on_validation_questions(monkeypatch):
    monkeypatch.setattr(shipped_policy, "train_policy", lambda kind, members, console, seed, rollouts: seed)
    monkeypatch.setattr(shipped_policy, "with_policy", lambda members, policy, span_length: policy)
    asked = []

    def right(seed, questions):
        asked.extend(question.split for question in questions)
        return np.array([[float(seed == 4), 0.0]])

    monkeypatch.setattr(shipped_policy, "right_answers", right)
    assert shipped_policy.best_of("shared", [3, 4, 5], Console(quiet=True)) == 4
    assert set(asked) == {"validation"}


@pytest.mark.slow
def test_a_policy_is_saved_for_every_set(tmp_path, monkeypatch):
    for name, value in {"COMPLETIONS": 8, "UPDATES": 1, "ITERATIONS": 1}.items():
        monkeypatch.setattr(demo_training, name, value)
    monkeypatch.setattr(shipped_policy, "held_out_questions", lambda count, split: draw_questions(4, splits=(split,)))
    shipped_policy.main(["--output", str(tmp_path), "--members", "shared", "--seeds", "0", "--rollouts", "1"])
    policy = load_demo_policy("shared", tmp_path)
    assert policy.config.span_length == shipped_policy.SPAN_LENGTHS["shared"]


@pytest.mark.parametrize("kind", list(MEMBER_SETS))
def test_the_policy_in_the_package_is_one_of_this_version(kind):
    """Its files hold what the present policy has, and nothing else: loading it prints no report."""
    _, info = PolicyModel.from_pretrained(str(POLICIES_FOLDER / kind), output_loading_info=True)
    assert not info["missing_keys"] | info["unexpected_keys"]


@pytest.mark.parametrize("kind", list(MEMBER_SETS))
@pytest.mark.slow
def test_the_policy_in_the_package_beats_fixed_weights_by_far(kind):
    torch.manual_seed(0)
    policy = load_demo_policy(kind)
    assert policy.config.span_length == shipped_policy.SPAN_LENGTHS[kind]
    ensemble = with_policy(load_demo_members(kind), policy, policy.config.span_length)
    assert right_answers(ensemble, draw_questions(40)).mean() > 0.6  # fixed weights: at most 0.06
