"""A trainer of TRL accepts a reward of this package."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch

from hf_rlae.rewards import get_reward, length_penalty, weighted_sum
from tests.support.models import pair


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed (hf_rlae[train])")
def test_two_steps_of_grpo(tmp_path):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    model, tokenizer = pair("llama")
    digits = tokenizer("56", add_special_tokens=False)["input_ids"]
    assert len(digits) == 2
    rows = {"prompt": ["2 + 3 = ", "4 + 4 = "] * 4, "answer": ["2 + 3 = 5 #### 5", None] * 4}
    config = GRPOConfig(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=16,
        num_generations=16,
        max_completion_length=1,
        # one token, a 5 or a 6: some completions are right
        generation_kwargs={"suppress_tokens": [i for i in range(len(tokenizer)) if i not in digits]},
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        shuffle_dataset=False,
    )
    both = weighted_sum(["gsm8k", length_penalty(1, 1)], [1.0, 0.5], name="objective")
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=[get_reward("gsm8k"), both],
        args=config,
        train_dataset=Dataset.from_dict(rows),
        processing_class=tokenizer,
    )
    before = model.get_output_embeddings().weight.clone()
    trainer.train()
    first, second = [log for log in trainer.state.log_history if "rewards/objective/mean" in log]
    assert 0.0 < first["rewards/gsm8k_reward/mean"] < 1.0
    assert first["rewards/objective/mean"] == pytest.approx(first["rewards/gsm8k_reward/mean"] - 0.5, abs=1e-3)
    assert first["grad_norm"] > 0
    assert not torch.equal(before, model.get_output_embeddings().weight)
    # the answer of the second prompt is None: the texts could not be judged, and only the penalty is left
    assert second["rewards/gsm8k_reward/mean"] is None or math.isnan(second["rewards/gsm8k_reward/mean"])
    assert second["rewards/objective/mean"] == pytest.approx(-0.5)
