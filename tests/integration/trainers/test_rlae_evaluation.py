"""Evaluations are deterministic, cover the whole dataset, and do not change training."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from hf_rlae.trainers import RLAETrainer
from tests.support.ensembles import encode
from tests.support.rlae import PROMPTS, assert_same, data, ensemble_of, parameters_of, trainer_of, vowels


def expected(ensemble, count):
    """Rewards of greedy decoding with the deterministic weights, one prompt at a time."""
    found = []
    for index in range(count):
        inputs = encode(PROMPTS[index % len(PROMPTS)])
        out = ensemble.generate(**inputs, max_new_tokens=5, do_sample=False)
        text = ensemble.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        found.append(vowels([text])[0])
    return found


@pytest.mark.parametrize("objective", ["ppo", "mappo", "mixture"])
def test_metrics_are_means_over_all_texts(tmp_path, objective):
    """Five completions in batches of two: all count the same, including the last batch."""
    trainer = trainer_of(tmp_path, objective, eval_dataset=data(5), per_device_eval_batch_size=2)
    found = trainer.evaluate()
    rewards = torch.tensor(expected(trainer.ensemble, 5))
    assert found["eval_reward"] == pytest.approx(float(rewards.mean()), abs=1e-6)
    assert found["eval_rewards/vowels/mean"] == found["eval_reward"]
    assert found["eval_reward_std"] == pytest.approx(float(rewards.std()), abs=1e-6)
    names = trainer.member_names
    assert sum(found[f"eval_weights/{name}/mean"] for name in names) == pytest.approx(1.0, abs=1e-5)
    assert trainer.evaluate()["eval_reward"] == found["eval_reward"]
    assert trainer.predict(data(5)).metrics["test_reward"] == found["eval_reward"]
    whole = trainer_of(tmp_path, objective, eval_dataset=data(5), per_device_eval_batch_size=8).evaluate()
    assert whole["eval_weights/entropy"] == pytest.approx(found["eval_weights/entropy"], abs=1e-5)


def test_samples_for_evaluation_and_several_a_prompt(tmp_path):
    options = {"eval_do_sample": True, "num_generations_eval": 2, "per_device_eval_batch_size": 4}
    seen = []

    def counted(prompts, completions, **_):
        seen.extend(zip(prompts, completions, strict=True))
        return vowels(completions)

    trainer = trainer_of(tmp_path, reward=counted, eval_dataset=data(3), **options)
    found = trainer.evaluate()
    assert [prompt for prompt, _ in seen] == [PROMPTS[index // 2] for index in range(6)]
    assert all(seen[2 * at][1] != seen[2 * at + 1][1] for at in range(3))
    assert "eval_frac_reward_zero_std" in found
    assert trainer.evaluate()["eval_reward"] == found["eval_reward"]


@pytest.mark.parametrize("draw", [None, "span"])
def test_samples_for_evaluation_do_not_depend_on_batches(tmp_path, draw):
    def completions_of(batch, at_once):
        seen = []
        trainer = trainer_of(
            tmp_path,
            reward=lambda completions, **_: seen.extend(completions) or [0.0] * len(completions),
            ensemble=ensemble_of(draw=draw),
            eval_dataset=data(5),
            eval_do_sample=True,
            per_device_eval_batch_size=batch,
            rollout_batch_size=at_once,
        )
        trainer.evaluate()
        return seen

    assert completions_of(5, None) == completions_of(2, None) == completions_of(3, 2)


def test_several_datasets_have_metrics_of_their_own(tmp_path):
    trainer = trainer_of(
        tmp_path,
        eval_dataset={"short": data(2), "long": data(6)},
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="long_reward",
    )
    trainer.train()
    found = trainer.evaluate()
    assert found["eval_short_reward"] == pytest.approx(sum(expected(trainer.ensemble, 2)) / 2, abs=1e-6)
    assert found["eval_long_reward"] == pytest.approx(sum(expected(trainer.ensemble, 6)) / 6, abs=1e-6)
    assert trainer.state.best_metric is not None


@pytest.mark.parametrize("objective", ["ppo", "mixture"])
def test_evaluating_does_not_change_training(tmp_path, objective):
    ends = []
    for strategy in ("no", "steps"):
        trainer = trainer_of(
            tmp_path,
            objective,
            ensemble=ensemble_of(objective, draw="token"),
            eval_dataset=data(3),
            eval_strategy=strategy,
            eval_steps=1,
            eval_do_sample=True,
            max_steps=6,
            logging_steps=4,
        )
        trainer.train()
        logs = [
            {name: value for name, value in entry.items() if "runtime" not in name and "second" not in name}
            for entry in trainer.state.log_history
            if "loss" in entry
        ]
        ends.append((parameters_of(trainer.model), logs))
    assert_same(ends[0][0], ends[1][0])
    assert json.dumps(ends[0][1]) == json.dumps(ends[1][1])


def test_the_best_policy_is_loaded_at_the_end(tmp_path):
    """Evaluations give 0.1, 0.7, 0.3: the parameters of the second one are loaded."""

    class Scripted(RLAETrainer):
        scores = (0.1, 0.7, 0.3)
        kept: list = []  # noqa: RUF012

        def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
            rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
            if not self._is_evaluating:
                return rewards
            self.kept.append(parameters_of(self.model))
            return torch.full_like(rewards, self.scores[len(self.kept) - 1])

    trainer = trainer_of(
        tmp_path,
        trainer_class=Scripted,
        eval_dataset=data(2),
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        max_steps=6,
        load_best_model_at_end=True,
    )
    trainer.train()
    assert (trainer.args.metric_for_best_model, trainer.args.greater_is_better) == ("reward", True)
    assert trainer.state.best_metric == pytest.approx(0.7)
    assert trainer.state.best_global_step == 4
    assert_same(parameters_of(trainer.model), trainer.kept[1])


def test_an_unjudged_evaluation_is_never_the_best(tmp_path):
    """If the judge fails during the second evaluation, training continues without that evaluation."""
    calls = []

    def judge(completions, trainer_state, **_):
        calls.append(trainer_state.global_step)
        is_down = len(completions) == 2 and trainer_state.global_step == 4
        return [None] * 2 if is_down else vowels(completions)

    trainer = trainer_of(
        tmp_path,
        reward=judge,
        eval_dataset=data(2),
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
    )
    trainer.train()
    rewards = [entry["eval_reward"] for entry in trainer.state.log_history if "eval_reward" in entry]
    assert rewards[1] is None
    assert trainer.state.best_metric == rewards[0]
    assert trainer.state.best_global_step == 2


def test_the_last_updates_are_logged_at_the_end_also_after_an_evaluation(tmp_path):
    trainer = trainer_of(tmp_path, eval_dataset=data(2), eval_strategy="steps", eval_steps=4, logging_steps=100)
    trainer.train()
    last = trainer.state.log_history[-1]
    assert "train_runtime" in last
    assert last["policy/kl"] > 0
    assert not any(name.startswith("policy/") for name in trainer.state.log_history[0])


def test_tables_of_evaluations_do_not_replace_those_of_training(tmp_path, capsys):
    trainer = trainer_of(
        tmp_path, eval_dataset=data(5), eval_strategy="steps", eval_steps=1, max_steps=1, log_completions=True,
        per_device_eval_batch_size=2, num_completions_to_print=1,
    )  # fmt: skip
    trainer.train()
    folder = Path(tmp_path, "completions")
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["completions_00001.parquet", "completions_eval_00001.parquet"]
    table = pd.read_parquet(folder / "completions_eval_00001.parquet")
    assert table["prompt"].tolist() == PROMPTS[:5]
    assert "advantage" not in table
    assert pd.read_parquet(folder / "completions_00001.parquet")["advantage"].notna().all()
    assert "Step 1" in capsys.readouterr().out
