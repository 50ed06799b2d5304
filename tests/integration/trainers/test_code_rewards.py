"""Trainers learn from programs that a sandbox judges."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from datasets import Dataset

from hf_rlae import EnsembleForCausalLM, PolicyConfig, PolicyModel, RLAETrainer
from hf_rlae.rewards import get_reward
from tests.support.models import tiny
from tests.support.rlae import config
from tests.support.sandboxes import some_sandbox
from tests.support.tokenizers import byte_level_bpe

pytestmark = pytest.mark.slow

PROGRAMS = ["def f(): return 1", "def f(): return 2"]
ROWS = {"prompt": ["Write f. "] * 8, "test_list": [["assert f() == 1"], None] * 4}


@pytest.fixture(autouse=True)
def sandbox():
    some_sandbox()  # or the tests are skipped


@pytest.fixture(scope="module")
def tokenizer():
    """Each program is one token."""
    made = copy.deepcopy(byte_level_bpe())  # tests share the one that is returned
    made.add_tokens(PROGRAMS)
    return made


def only_programs(tokenizer):
    """Options of `generate` that leave one of the programs: some completions are right."""
    kept = tokenizer.convert_tokens_to_ids(PROGRAMS)
    return {"suppress_tokens": [each for each in range(len(tokenizer)) if each not in kept]}


def test_two_steps_of_grpo(tmp_path, tokenizer):
    from trl import GRPOConfig, GRPOTrainer

    model = tiny("llama", len(tokenizer))
    settings = GRPOConfig(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=16,
        num_generations=16,
        max_completion_length=1,
        generation_kwargs=only_programs(tokenizer),
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        shuffle_dataset=False,
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=get_reward("mbpp"),
        args=settings,
        train_dataset=Dataset.from_dict(ROWS),
        processing_class=tokenizer,
    )
    before = model.get_output_embeddings().weight.clone()
    trainer.train()
    first, second = [log for log in trainer.state.log_history if "rewards/mbpp_reward/mean" in log]
    assert 0.0 < first["rewards/mbpp_reward/mean"] < 1.0
    assert first["grad_norm"] > 0
    assert not torch.equal(before, model.get_output_embeddings().weight)
    # the second prompt has no tests: its completions could not be judged
    assert second["rewards/mbpp_reward/mean"] is None or math.isnan(second["rewards/mbpp_reward/mean"])


def test_a_step_of_rlae(tmp_path, tokenizer):
    members = [(tiny("llama", len(tokenizer), seed), tokenizer) for seed in range(2)]
    policy = PolicyModel(PolicyConfig.for_members(members, hidden_size=16))
    ensemble = EnsembleForCausalLM.from_members(members, policy)
    options = {"max_steps": 1, "max_completion_length": 1, "generation_kwargs": only_programs(tokenizer)}
    settings = config(tmp_path, num_generations=8, per_device_train_batch_size=16, steps_per_generation=1, **options)
    trainer = RLAETrainer(ensemble, "mbpp", settings, Dataset.from_dict(ROWS))
    trainer.train()
    log = trainer.state.log_history[0]
    assert 0.0 < log["rewards/mbpp_reward/mean"] < 1.0
    assert 0.0 <= log["rewards/unjudged_ratio"] < 1.0
