"""Bad input raises an error before anything runs; later errors name their origin."""

from __future__ import annotations

import copy
import time

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from hf_rlae import EnsembleForCausalLM, StaticPolicy
from hf_rlae.errors import ConfigError, InputError, NonFiniteError
from hf_rlae.rewards import RewardError, weighted_sum
from hf_rlae.trainers import RLAEConfig, RLAETrainer
from hf_rlae.trainers.rlae.policy_preparation import wrap_policy
from tests.support.models import pair, pairs
from tests.support.rlae import (
    CHAT_TEMPLATES,
    PROMPTS,
    assert_same,
    config,
    data,
    ensemble_of,
    members,
    parameters_of,
    policy_for,
    trainer_of,
    vowels,
)


@pytest.fixture
def forwards():
    """Counts forward passes of all models that exist."""
    calls = []
    handle = torch.nn.modules.module.register_module_forward_pre_hook(lambda *_: calls.append(1))
    yield calls
    handle.remove()


CHATS = Dataset.from_dict({"prompt": [[{"role": "user", "content": "Hello"}]] * 4})
BAD = {
    "no ensemble": (lambda: {"model": pair()[0]}, ConfigError, "model is a LlamaForCausalLM"),
    "a policy that learns nothing": (
        lambda: {"model": EnsembleForCausalLM.from_members(members(), StaticPolicy([1, 2]))},
        ConfigError,
        "StaticPolicy.*PolicyModel",
    ),
    "joint actor for mappo": (
        lambda: {"model": ensemble_of("ppo"), "objective": "mappo"},
        ConfigError,
        "actor='joint'",
    ),
    "actors per member for ppo": (
        lambda: {"model": ensemble_of("mappo"), "objective": "ppo"},
        ConfigError,
        "actor='per_member'",
    ),
    "mixture of another mixing": (
        lambda: {"model": ensemble_of("mixture", mixing="log"), "objective": "mixture"},
        ConfigError,
        "mixing='log'",
    ),
    "a mixture of words": (
        lambda: {"model": ensemble_of("mixture", draw="word"), "objective": "mixture"},
        ConfigError,
        "draw='word'.*mixture of words",
    ),
    "a policy in half precision": (
        lambda: {"model": halved()},
        ConfigError,
        "parameters in torch.bfloat16.*float32",
    ),
    "an adapter of an earlier training": (lambda: {"model": adapted()}, ConfigError, "merge_and_unload"),
    "an empty prompt": (
        lambda: {"train_dataset": Dataset.from_dict({"prompt": ["a", "", "b"]})},
        InputError,
        "row 1 is empty",
    ),
    "an evaluation of no batch": (
        lambda: {"eval_dataset": data(2), "dataloader_drop_last": True},
        ConfigError,
        "eval_dataset has 2 prompts.*dataloader_drop_last",
    ),
    "checkpointing of nothing": (
        lambda: {"activation_checkpointing": True},
        ConfigError,
        "activation_checkpointing=True",
    ),
    "no data": (lambda: {"train_dataset": None}, ConfigError, "train_dataset is missing"),
    "empty data": (lambda: {"train_dataset": data(0)}, ConfigError, "train_dataset is empty"),
    "empty evaluation": (lambda: {"eval_dataset": {"a": data(1), "b": data(0)}}, ConfigError, "b is empty"),
    "no prompts": (
        lambda: {"train_dataset": Dataset.from_dict({"question": ["a"]})},
        ConfigError,
        "no column 'prompt' .*question",
    ),
    "a list of rows": (lambda: {"train_dataset": [{"prompt": "a"}] * 4}, ConfigError, "is a list.*from_list"),
    "no length": (lambda: {"train_dataset": data().to_iterable_dataset()}, ConfigError, "IterableDataset"),
    "numbers for prompts": (
        lambda: {"train_dataset": Dataset.from_dict({"prompt": [1, 2]})},
        ConfigError,
        "found int",
    ),
    "too few prompts": (lambda: {"train_dataset": data(1)}, ConfigError, "has 1 prompts.*needs 2"),
    "too long a prompt": (
        lambda: {"train_dataset": Dataset.from_dict({"prompt": ["a b", "a " * 300]})},
        InputError,
        "row 1 has .* tokens for member LlamaForCausalLM",
    ),
    "messages without a template": (lambda: {"train_dataset": CHATS}, ConfigError, "no chat template"),
    "unknown reward": (lambda: {"reward_funcs": "no_such_reward"}, ConfigError, "no_such_reward"),
    "no reward": (lambda: {"reward_funcs": []}, ConfigError, "reward_funcs"),
    "too few weights": (
        lambda: {"reward_funcs": [vowels, vowels], "reward_weights": [1.0]},
        ConfigError,
        "reward_weights has 1 entries for 2",
    ),
    "parts of texts without an encoder": (
        lambda: {"encoder_batch_size": 2},
        ConfigError,
        "encoder_batch_size=2, but the policy has no encoder",
    ),
    "LoRA without an encoder": (lambda: {"peft_config": lora()}, ConfigError, "no encoder to adapt"),
}


def halved():
    ensemble = ensemble_of(observation="text")
    ensemble.policy.to(torch.bfloat16)
    return ensemble


def adapted():
    ensemble = ensemble_of(observation="text")
    wrap_policy(ensemble, lora())
    return ensemble


def lora():
    return pytest.importorskip("peft").LoraConfig(r=2)


@pytest.mark.parametrize("name", BAD)
def test_refused_before_the_first_forward_pass(name, tmp_path, forwards):
    make, error, message = BAD[name]
    given = make()
    model = given.pop("model", None) or ensemble_of()
    options = {
        key: given.pop(key)
        for key in (
            "objective",
            "reward_weights",
            "activation_checkpointing",
            "dataloader_drop_last",
            "encoder_batch_size",
        )
        if key in given
    }
    arguments = {"reward_funcs": vowels, "train_dataset": data(), **given}
    args = config(tmp_path, **options)
    forwards.clear()
    with pytest.raises(error, match=message):
        RLAETrainer(model, args=args, **arguments)
    assert not forwards


def test_a_policy_for_other_members_is_refused_by_the_ensemble():
    pairs = members()
    with pytest.raises(ConfigError, match="weighs 3 members, this ensemble has 2"):
        EnsembleForCausalLM.from_members(pairs, policy_for([*pairs, pairs[0]]))


def test_messages_without_a_template_of_members_without_a_limit(tmp_path):
    given = pairs(["rwkv", "mamba"])
    with pytest.raises(ConfigError, match="no chat template"):
        trainer_of(tmp_path, ensemble=ensemble_of(given=given), train=CHATS)


def test_too_little_room_for_completions_is_warned_of(tmp_path, caplog):
    trainer_of(tmp_path, max_completion_length=50)
    assert "max_completion_length" not in caplog.text
    trainer_of(tmp_path, max_completion_length=5000)
    assert "max_completion_length=5000" in caplog.text


def test_a_dataset_to_be_evaluated_is_looked_at(tmp_path, forwards):
    trainer = trainer_of(tmp_path)
    forwards.clear()
    for dataset in (Dataset.from_dict({"question": ["a"]}), {"one": Dataset.from_dict({"question": ["a"]})}):
        with pytest.raises(ConfigError, match="no column 'prompt'"):
            trainer.evaluate(dataset)
    assert not forwards


def test_a_refused_reward_leaves_the_policy_as_it_is(tmp_path):
    ensemble = ensemble_of(observation="text")
    policy = ensemble.policy
    with pytest.raises(ConfigError, match="no_such_reward"):
        trainer_of(tmp_path, ensemble=ensemble, reward="no_such_reward", peft_config=lora())
    assert ensemble.policy is policy


def test_a_policy_without_a_tokenizer(tmp_path):
    ensemble = ensemble_of(observation="text")
    ensemble.policy.tokenizer = None
    with pytest.raises(ConfigError, match="has no tokenizer"):
        trainer_of(tmp_path, ensemble=ensemble)


def test_prompts_of_several_kinds(tmp_path):
    pairs = [(model, copy.deepcopy(tokenizer)) for model, tokenizer in members()]
    for (_, tokenizer), template in zip(pairs, CHAT_TEMPLATES, strict=True):
        tokenizer.chat_template = template
    long = Dataset.from_dict({"prompt": [[{"role": "user", "content": "a " * size}] for size in (1, 2, 300)]})
    with pytest.raises(InputError, match="row 2"):
        trainer_of(tmp_path, ensemble=ensemble_of(given=pairs), train=long)


BAD_REWARDS = {
    "too few": (lambda completions, **_: [1.0], "returned 1 rewards for 8"),
    "text": (lambda completions, **_: "good", "'good'"),
    "texts": (lambda completions, **_: ["good"] * len(completions), "'good'"),
    "NaN": (lambda completions, **_: [float("nan")] * len(completions), "nan"),
    "infinity": (lambda completions, **_: [float("inf")] * len(completions), "inf"),
    "an exception": (lambda completions, **_: 1 / 0, "ZeroDivisionError"),
    "infinite in float32": (lambda completions, **_: [1e39] * len(completions), "1e\\+39"),
    "an infinite norm of gradients": (lambda completions, **_: [1e37] * len(completions), "1e\\+37"),
}


@pytest.mark.parametrize("name", BAD_REWARDS)
def test_a_wrong_reward_is_told_before_the_update(name, tmp_path):
    reward, message = BAD_REWARDS[name]
    trainer = trainer_of(tmp_path, reward=reward)
    before = parameters_of(trainer.model)
    with pytest.raises(RewardError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0
    assert_same(parameters_of(trainer.model), before)


def test_a_reward_that_hangs(tmp_path):
    trainer = trainer_of(tmp_path, reward=lambda completions, **_: time.sleep(20), reward_timeout=0.3)
    started = time.monotonic()
    with pytest.raises(RewardError, match=r"time limit of 0\.3 s while it judged 8 samples \('She said' -> "):
        trainer.train()
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("reward", ["number", weighted_sum(["number", vowels])], ids=["rule", "sum"])
def test_a_column_that_a_reward_needs(reward, tmp_path):
    """It is refused before any work if it is missing, unless the trainer calls no reward functions."""

    class Judged(RLAETrainer):
        def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
            return torch.zeros((len(prompts), 1))

    with pytest.raises(ConfigError, match=r"train_dataset has no column 'answer', which the reward \w+ needs"):
        trainer_of(tmp_path, reward=reward)
    with pytest.raises(ConfigError, match="eval_dataset has no column 'answer'"):
        trainer_of(tmp_path, reward=reward, train=data(answer=["3"] * 6), eval_dataset=data())
    trainer_of(tmp_path, reward=reward, trainer_class=Judged)


def test_an_override_that_gives_no_rewards(tmp_path):
    class Flat(RLAETrainer):
        def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
            return torch.zeros(len(prompts))

    class Infinite(RLAETrainer):
        def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
            return torch.full((len(prompts), 1), torch.inf)

    with pytest.raises(RewardError, match=r"returned \(8,\); expected .* \(8, 1\)"):
        trainer_of(tmp_path, trainer_class=Flat).train()
    with pytest.raises(NonFiniteError, match=r"rewards at step 1: 8 of 8 .*vowels"):
        trainer_of(tmp_path, trainer_class=Infinite).train()


@pytest.mark.parametrize(
    ("give", "told"),
    [
        pytest.param(lambda rollouts: None, "a NoneType", id="nothing"),
        pytest.param(lambda rollouts: rollouts.completions, "a list", id="texts"),
        pytest.param(lambda rollouts: rollouts.select([0, 1]), "2 rows", id="fewer"),
    ],
)
def test_an_override_that_gives_no_rollouts(tmp_path, give, told):
    class Own(RLAETrainer):
        def roll_out(self, *args, **kwargs):
            return give(super().roll_out(*args, **kwargs))

    with pytest.raises(InputError, match=f"roll_out returned {told}; expected `Rollouts` with one row .* 8"):
        trainer_of(tmp_path, trainer_class=Own).train()


@pytest.mark.parametrize("name", ["reward", "loss", "num_tokens", "weights/entropy", "rewards/vowels/mean"])
def test_metrics_of_rewards_do_not_replace_those_of_the_trainer(tmp_path, name):
    def judging(completions, log_metric, **_):
        log_metric(name, 9.0)
        return vowels(completions)

    with pytest.raises(RewardError, match=f"log_metric.'{name}'.: the trainer logs a metric of this name itself"):
        trainer_of(tmp_path, reward=judging, eval_dataset=data()).evaluate()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("kind", ["shared", "different"])
@pytest.mark.parametrize("objective", ["ppo", "mixture"])
def test_a_member_that_goes_wrong_is_named(objective, kind, value, tmp_path):
    """In the second rollout, at step 5; the other member's probabilities alone would hide it."""
    ensemble = ensemble_of(objective, kind)
    trainer = trainer_of(tmp_path, objective, ensemble=ensemble, max_steps=8)
    head = ensemble.members[1].model.get_output_embeddings()

    def break_down(_module, _args, output):
        return output.fill_(value) if trainer.state.global_step == 4 else output

    head.register_forward_hook(break_down)
    with pytest.raises(NonFiniteError, match=f"logits of {ensemble.members[1].name} at step 5"):
        trainer.train()
    assert trainer.state.global_step == 4
    assert ensemble.policy is trainer.policy
    assert len(head._forward_hooks) == 1
    assert not ensemble.members[0].model._forward_hooks


def test_hidden_states_that_go_wrong_are_the_members_fault(tmp_path):
    """NaN hidden states would make the policy's weights NaN; the error names the member."""
    ensemble = ensemble_of("mixture")
    with torch.no_grad():
        ensemble.members[0].model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="LlamaForCausalLM 0 at step 1") as caught:
        trainer_of(tmp_path, "mixture", ensemble=ensemble).train()
    assert isinstance(caught.value.__cause__, NonFiniteError)


def test_members_whose_logits_rule_tokens_out_are_in_order(tmp_path):
    ensemble = ensemble_of("mixture")

    def rule_out(_module, _args, output):
        return output.index_fill(-1, torch.arange(5, 40), -torch.inf)

    ensemble.members[1].model.get_output_embeddings().register_forward_hook(rule_out)
    trainer = trainer_of(tmp_path, "mixture", ensemble=ensemble)
    trainer.train()
    assert all(value.isfinite().all() for value in parameters_of(trainer.model).values())


def test_gradients_that_go_wrong(tmp_path):
    class Broken(RLAETrainer):
        def compute_loss(self, *args, **kwargs):
            return super().compute_loss(*args, **kwargs) * (torch.nan if self.state.global_step == 2 else 1.0)

    trainer = trainer_of(tmp_path, trainer_class=Broken)
    with pytest.raises(NonFiniteError, match=r"gradients of policy at step 3: .* values of heads"):
        trainer.train()
    assert all(value.isfinite().all() for value in parameters_of(trainer.model).values())


def test_weights_that_go_wrong(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=8)

    class Poison(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 4:
                with torch.no_grad():
                    model.heads.critic.value.weight.fill_(torch.nan)

    trainer.add_callback(Poison())
    with pytest.raises(NonFiniteError, match="values of the policy at step 5"):
        trainer.train()


FIELDS = {
    "objective": ("pppo", "did you mean 'ppo'"),
    "advantages": ("gea", "did you mean 'gae'"),
    "scale_rewards": ("groups", "did you mean 'group'"),
    "multi_objective_aggregation": ("normalize", "Known: normalize_then_sum, sum_then_normalize"),
    "observation_dtype": ("bfloat", "did you mean 'bfloat16'"),
    "reduction": ("tokens", "did you mean 'token'"),
    "span_length": (0, "at least 1"),
    "num_generations": (0, "at least 1"),
    "num_generations_eval": (0, "at least 1"),
    "max_completion_length": (2.5, "whole number"),
    "num_iterations": ("3", "whole number"),
    "generation_batch_size": (-8, "at least 1"),
    "rollout_batch_size": (0, "at least 1"),
    "encoder_batch_size": (1.5, "whole number"),
    "num_completions_to_print": (0, "at least 1"),
    "gamma": (1.5, "of at least 0 and at most 1"),
    "lam": (None, "of at least 0 and at most 1"),
    "top_p": (0, "above 0 and at most 1"),
    "top_k": (2.5, "whole number of at least 0"),
    "temperature": (0, "above 0"),
    "target_kl": (float("nan"), "above 0"),
    "reward_timeout": (-1, "at least 0"),
    "reward_weights": (1.0, "list of numbers, each a finite number"),
    "epsilon": (0, "above 0"),
    "epsilon_high": (float("nan"), "finite"),
    "value_epsilon": (-0.1, "above 0"),
    "value_coef": (-1, "at least 0"),
    "entropy_coef": (float("inf"), "finite"),
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_bad_field_is_named(name):
    value, message = FIELDS[name]
    with pytest.raises(ConfigError, match=f"{name}=.*{message}"):
        RLAEConfig("out", report_to="none", **{name: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generation_batch_size": 8, "steps_per_generation": 2}, "=8 and steps_per_generation=2, which are 16"),
        ({"generation_batch_size": 12}, "generation_batch_size=12: .* 8"),
        ({"gradient_accumulation_steps": 2, "steps_per_generation": 3}, "steps_per_generation=3"),
        ({"num_generations": 3}, r"generation_batch_size=8: .* multiple of 3 \(num_generations\)"),
        ({"num_generations": 1, "advantages": "group_relative"}, "num_generations=1 with group-relative"),
        ({"num_generations_eval": 3}, r"per_device_eval_batch_size \* processes=8: .* 3 \(num_generations_eval\)"),
    ],
)
def test_batches_that_do_not_come_out_even(options, message):
    with pytest.raises(ConfigError, match=message):
        RLAEConfig("out", report_to="none", **options)


def test_prompts_are_all_there_after_a_refusal(tmp_path):
    """After an error of the trainer the ensemble is still usable."""
    ensemble = ensemble_of()
    with pytest.raises(ConfigError):
        trainer_of(tmp_path, ensemble=ensemble, train=data(0))
    ensemble.generate(**ensemble.tokenizer(PROMPTS[:1], return_tensors="pt"), max_new_tokens=2)
