"""Bad input raises an error that names it, before anything runs."""

from __future__ import annotations

import copy
import logging
import time

import pytest
import torch
from datasets import Dataset
from peft import AdaLoraConfig, IA3Config, get_peft_model
from transformers import TrainerCallback
from trl import GRPOConfig

from hf_rlae.errors import CheckpointError, ConfigError, HfRlaeError, InputError, NonFiniteError
from hf_rlae.rewards import RewardError
from hf_rlae.trainers import (
    CoryConfig,
    CoryPPOConfig,
    CoryPPOTrainer,
    CoryRLOOConfig,
    CoryRLOOTrainer,
    CoryTrainer,
    TokenPPOConfig,
    TokenPPOTrainer,
)
from hf_rlae.trainers.cory.checks import check_arguments
from tests.support.cory import adapters_of, base, chats, lora, trainer_of
from tests.support.rlae import assert_same, data, vowels


@pytest.fixture
def forwards():
    """Counts forward passes of all models that exist."""
    calls = []
    handle = torch.nn.modules.module.register_module_forward_pre_hook(lambda *_: calls.append(1))
    yield calls
    handle.remove()


def without(*tokens):
    model, tokenizer = base()
    tokenizer = copy.deepcopy(tokenizer)
    for token in tokens:
        setattr(tokenizer, token, None)
    return model, tokenizer


def adapted(name="default"):
    model, tokenizer = base()
    return get_peft_model(model, lora(), adapter_name=name), tokenizer


def used():
    model, tokenizer = base()
    get_peft_model(model, lora())
    return model, tokenizer


def asked(content):
    return Dataset.from_dict({"prompt": [[{"role": "user", "content": content}]] * 2})


FIELDS = {
    "one agent": ({"num_agents": 1}, "num_agents=1: .*observer"),
    "a half agent": ({"num_agents": 2.5}, "num_agents=2.5"),
    "negative steps": ({"role_exchange_steps": -1}, "role_exchange_steps=-1: .*never exchanged"),
    "no whole steps": ({"role_exchange_steps": True}, "role_exchange_steps=True"),
    "an adapter named ref": ({"agent_names": ["a", "ref"]}, "agent_names: 'ref' is TRL's name"),
    "an adapter named default": ({"agent_names": ["a", "default"]}, "agent_names: 'default' is PEFT's name"),
    "too few names": ({"agent_names": ["a"]}, "agent_names=.*give 2 different names"),
    "a text for names": ({"agent_names": "ab"}, "agent_names='ab': give 2 different names in a list"),
    "a number for names": ({"agent_names": 3}, "agent_names=3"),
    "equal names": ({"agent_names": ["a", "A"]}, "agent_names=.*give 2 different names"),
    "a name with a dot": ({"agent_names": ["a", "b.c"]}, "agent_names: 'b.c' cannot name a folder"),
    "a name that is no text": ({"agent_names": ["a", 3]}, "agent_names: 3 cannot"),
    "a checkpoint's name": ({"agent_names": ["a", "checkpoint-2"]}, "a checkpoint's folder"),
    "an unknown credit": ({"credit": "teem"}, "credit='teem': did you mean 'team'"),
    "an unknown credit by its former name": ({"observer_reward": "teem"}, "credit='teem': did you mean 'team'"),
    "credit by both names": ({"credit": "own", "observer_reward": "team"}, "is the former name of credit='own'"),
    "a template without the answers": ({"observer_template": "{prompt}"}, r"observer_template.*lacks \{answers\}"),
    "a template without slots": ({"observer_template": "?"}, r"lacks \{prompt\} and \{answers\}"),
    "a template that is no text": ({"observer_template": 3}, "observer_template is a int"),
    "a template of one argument": ({"observer_template": lambda prompt: prompt}, r"f\(prompt, answers\)"),
    "no room": ({"max_observer_prompt_length": 0}, "max_observer_prompt_length=0"),
    "too few rates": ({"agent_learning_rates": [1e-3]}, "agent_learning_rates=.*give a list of 2 numbers"),
    "a rate for rates": ({"agent_learning_rates": 1e-3}, "agent_learning_rates=0.001: give a list of 2"),
    "a negative rate": ({"agent_learning_rates": [1e-3, -1.0]}, "agent_learning_rates"),
    "no number of seconds": ({"reward_timeout": float("nan")}, "reward_timeout=nan"),
    "a base that is a folder": ({"base_model_id": "/"}, "base_model_id='/'"),
    "a base that is no name": ({"base_model_id": "not a name!"}, "base_model_id='not a name!'"),
    "answers without a bound": ({"max_completion_length": None}, "max_completion_length=None"),
    "no answers": ({"max_completion_length": 0}, "max_completion_length=0"),
    "vLLM": ({"use_vllm": True}, "use_vllm=True is not supported.*transformers generates"),
    "continuous batching": ({"use_transformers_continuous_batching": True}, "use_transformers_continuous_batching"),
    "Liger": ({"use_liger_kernel": True}, "use_liger_kernel"),
    "a moving reference": ({"sync_ref_model": True}, "sync_ref_model"),
    "an entropy controller": ({"use_adaptive_entropy": True}, "use_adaptive_entropy"),
    "compilation": ({"torch_compile": True}, "torch_compile"),
    "compilation by its backend": ({"torch_compile_backend": "inductor"}, "torch_compile_backend"),
    "compilation by its mode": ({"torch_compile_mode": "default"}, "torch_compile_mode"),
    "a batch size of its own choice": ({"auto_find_batch_size": True}, "auto_find_batch_size"),
    "DeepSpeed": ({"deepspeed": {"zero_optimization": {"stage": 2}}}, "deepspeed=.*one backward pass per agent"),
    "FSDP": ({"fsdp": "full_shard"}, "fsdp='full_shard'"),
    "a static graph": ({"ddp_static_graph": True}, "ddp_static_graph"),
    "no unused parameters": ({"ddp_find_unused_parameters": False}, "ddp_find_unused_parameters=False"),
}


@pytest.mark.parametrize("case", FIELDS)
def test_fields(tmp_path, case):
    options, message = FIELDS[case]
    with pytest.raises(ConfigError, match=message):
        CoryConfig(str(tmp_path), use_cpu=True, report_to="none", **options)


ARGUMENTS = {
    "no adapters": (lambda: {"peft_config": None}, "peft_config is missing.*LoraConfig"),
    "other adapters": (lambda: {"peft_config": IA3Config()}, "peft_config is a IA3Config.*LoraConfig"),
    "a base that an adapter changes": (
        lambda: {"peft_config": lora(init_lora_weights="pissa")},
        "init_lora_weights='pissa'",
    ),
    "an adapter of changing rank": (lambda: {"peft_config": AdaLoraConfig(total_step=9)}, "is a AdaLoraConfig"),
    "an adapter for another task": (lambda: {"peft_config": lora(task_type="SEQ_CLS")}, "task_type='SEQ_CLS'"),
    "a base whose biases train": (lambda: {"peft_config": lora(bias="all")}, "bias='all' .*trains biases of the base"),
    "a base with more layers": (
        lambda: {"peft_config": lora(layer_replication=[[0, 2], [1, 2]])},
        "layer_replication=.*changes the layers of the base",
    ),
    "a model with adapters": (lambda: {"given": adapted()}, r"adapters already \(default\).*LoraConfig"),
    "a model with an adapter named ref": (lambda: {"given": adapted("ref")}, r"adapters already \(ref\)"),
    "another configuration": (lambda: {"config_class": GRPOConfig, "bf16": False}, "args is a GRPOConfig.*CoryConfig"),
    "an optimizer": (lambda: {"optimizers": (torch.optim.SGD([torch.zeros(1)]), None)}, "optimizers: .*args.optim"),
    "tools": (lambda: {"tools": [vowels]}, "tools was given"),
    "a rollout function": (lambda: {"rollout_func": vowels}, "rollout_func was given"),
    "environments": (lambda: {"environment_factory": object}, "environment_factory was given"),
    "no data": (lambda: {"train_dataset": None}, "train_dataset is missing"),
    "rows": (lambda: {"train_dataset": [{"prompt": "a"}]}, "train_dataset is a list.*from_list"),
    "a stream": (lambda: {"train_dataset": data().to_iterable_dataset()}, "IterableDataset"),
    "a stream to evaluate": (lambda: {"eval_dataset": {"x": data().to_iterable_dataset()}}, "x is an IterableDataset"),
    "no prompts": (lambda: {"train_dataset": Dataset.from_dict({"q": ["a"]})}, r"no column 'prompt' \(it has q\)"),
    "no rows": (lambda: {"train_dataset": data(0)}, "train_dataset is empty"),
    "numbers for prompts": (lambda: {"train_dataset": Dataset.from_dict({"prompt": [1, 2]})}, "found int"),
    "too few prompts": (lambda: {"train_dataset": data(1)}, "1 prompts, but a rollout of 8 completions needs 2"),
    "images": (lambda: {"train_dataset": data(6, image=["x"] * 6)}, "column 'image'.*text only"),
    "a column of TRL": (lambda: {"train_dataset": data(6, completions=["x"] * 6)}, r"column\(s\) completions.*rename"),
    "no chat template for evaluations": (lambda: {"eval_dataset": chats()}, "eval_dataset: prompts are messages"),
    "an empty prompt": (
        lambda: {"train_dataset": Dataset.from_dict({"prompt": ["a", "b", ""]})},
        "train_dataset: the prompt of row 2 is empty",
    ),
    "no model": (lambda: {"given": (None, base()[1])}, "model is missing"),
    "a column of the trainer": (lambda: {"train_dataset": data(6, role=["x"] * 6)}, r"column\(s\) role.*rename"),
    "parts of messages": (
        lambda: {"given": base(chat=True), "train_dataset": asked([{"type": "text", "text": "a"}])},
        "last message of row 0 has no text",
    ),
    "no messages": (
        lambda: {
            "given": base(chat=True),
            "eval_dataset": Dataset.from_dict({"prompt": [[]]}).cast(asked("a").features),
        },
        "eval_dataset: the prompt of row 0 has no messages",
    ),
    "the best of several datasets": (
        lambda: {
            "eval_dataset": {"one": data(2), "two": data(2)},
            "load_best_model_at_end": True,
            "eval_strategy": "steps",
            "save_strategy": "steps",
        },
        "metric_for_best_model='reward': .*'one_reward', 'two_reward'",
    ),
    "no end of text": (lambda: {"given": without("eos_token")}, "processing_class has no eos token, so"),
    "neither end nor padding": (
        lambda: {"given": without("eos_token", "pad_token")},
        "processing_class has no eos token",
    ),
    "no chat template": (lambda: {"train_dataset": chats()}, "no chat template"),
    "no tokenizer": (lambda: {"given": (base()[0], vowels)}, "processing_class is a function"),
    "no room for prompts": (lambda: {"max_completion_length": 256}, "max_completion_length=256 leaves no room.*256"),
    "a model of a trainer": (lambda: {"given": used()}, "layers of adapters in it.*load it again"),
    "a name of a parameter": (lambda: {"agent_names": ["a", "weight"]}, "something named 'weight'"),
    "a name of a method": (lambda: {"agent_names": ["a", "keys"]}, "something named 'keys'"),
    "a name of a module": (lambda: {"agent_names": ["a", "layers"]}, "agent_names: the model has something named"),
    "an unknown reward function": (lambda: {"rewards": "vowles"}, "reward_funcs: 'vowles'"),
    "no reward function": (lambda: {"rewards": []}, r"reward_funcs is \[\]"),
    "a base in a folder, to be pushed": (
        lambda: {"push_to_hub": True, "hub_model_id": "me/team"},
        "base model .*base_model_id='owner/name'",
    ),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments(tmp_path, case, forwards, monkeypatch):
    made: list[object] = []
    monkeypatch.setattr("transformers.Trainer.init_hf_repo", lambda self, *_, **__: made.append(self))
    make, message = ARGUMENTS[case]
    given = make()
    with pytest.raises(ConfigError, match=message):
        build(tmp_path, **given)
    assert not forwards
    assert not made  # no repository on the Hub


def build(folder, **given):
    model, tokenizer = given.pop("given", None) or base()
    arguments = {"peft_config": lora(), "train_dataset": data(), "reward_funcs": given.pop("rewards", vowels)}
    names = (
        "peft_config",
        "train_dataset",
        "eval_dataset",
        "optimizers",
        "tools",
        "rollout_func",
        "environment_factory",
    )
    arguments |= {name: given.pop(name) for name in names if name in given}
    kind = given.pop("config_class", CoryConfig)
    options = {
        "num_generations": 4, "per_device_train_batch_size": 8, "max_completion_length": 6, "report_to": "none",
        "use_cpu": True, **given,
    }  # fmt: skip
    return CoryTrainer(model, args=kind(str(folder), **options), processing_class=tokenizer, **arguments)


def test_what_is_trained_in_half_precision_is_warned_of(tmp_path, caplog):
    """Adapters are in float32 whatever the dtype of the base model; copies of its modules are not."""
    for modules, is_told in ((None, False), (["lm_head"], True)):
        model, tokenizer = base()
        build(tmp_path, given=(model.to(torch.bfloat16), tokenizer), peft_config=lora(modules_to_save=modules))
        assert ("half precision" in caplog.text) == is_told


def test_an_adapter_configuration_that_was_published_trains(tmp_path):
    """It has `inference_mode=True`, which would freeze the first agent."""
    trainer = trainer_of(tmp_path, peft_config=lora(inference_mode=True), max_steps=1)
    before = adapters_of(trainer)
    trainer.train()
    for name, adapter in adapters_of(trainer).items():
        assert any(not torch.equal(value, before[name][key]) for key, value in adapter.items())


@pytest.mark.parametrize("plugin", ["DeepSpeed", "FSDP"])
def test_a_launch_with_a_plugin(tmp_path, monkeypatch, plugin):
    config = CoryConfig(str(tmp_path), use_cpu=True)  # accelerate would look for the plugin
    monkeypatch.setenv(f"ACCELERATE_USE_{plugin.upper()}", "true")
    with pytest.raises(ConfigError, match=f"launched with {plugin.upper()}"):
        check_arguments(config, base()[0], lora(), None, {})


def test_reentrant_checkpointing_in_several_processes(tmp_path, monkeypatch):
    """DDP raises in the first backward pass, with a message that does not help."""
    reentrant = {"gradient_checkpointing_kwargs": {"use_reentrant": True}}
    configs = [CoryConfig(str(tmp_path), use_cpu=True, **options) for options in (reentrant, {})]
    check_arguments(configs[0], base()[0], lora(), None, {})
    monkeypatch.setattr(CoryConfig, "world_size", 2)
    with pytest.raises(ConfigError, match="gradient_checkpointing_kwargs: with use_reentrant=True"):
        check_arguments(configs[0], base()[0], lora(), None, {})
    check_arguments(configs[1], base()[0], lora(), None, {})


def test_parts_of_messages_need_a_template_function(tmp_path):
    """Or no template at all, if observers read the prompt alone."""
    parts = asked([{"type": "text", "text": "a"}])
    for options in ({"observer_template": lambda prompt, answers: prompt}, {"knowledge_transfer": False}):
        trainer = build(tmp_path, given=base(chat=True), train_dataset=parts, **options)
        assert trainer.train_dataset["prompt"][0] == parts["prompt"][0]


CONFIGS = {CoryPPOTrainer: CoryPPOConfig, TokenPPOTrainer: TokenPPOConfig}
LONG = {"text": Dataset.from_dict({"prompt": ["a b", "a " * 300]}), "chat": asked("a " * 300)}


@pytest.mark.parametrize("trainer_class", [CoryTrainer, CoryRLOOTrainer, CoryPPOTrainer, TokenPPOTrainer])
@pytest.mark.parametrize("dataset", ["train_dataset", "eval_dataset"])
@pytest.mark.parametrize("kind", LONG)
def test_prompts_beyond_the_context(tmp_path, forwards, trainer_class, dataset, kind):
    """As in `RLAETrainer`; a model with learned positions would fail in the middle of training."""
    train, evaluated = (LONG[kind], None) if dataset == "train_dataset" else (data(), {"hard": LONG[kind]})
    if kind == "chat" and evaluated:
        train = chats()
    name, row = ("train_dataset" if evaluated is None else "hard"), (1 if kind == "text" else 0)
    options = {"given": base(chat=kind == "chat"), "train": train, "eval_dataset": evaluated, "beta": 0.0}
    with pytest.raises(InputError, match=rf"^{name}: the prompt of row {row} has \d+ tokens .*context has 256; remove"):
        trainer_of(tmp_path, trainer_class, config_class=CONFIGS.get(trainer_class), **options)
    assert not forwards


def test_long_prompts_of_a_later_evaluation_and_little_room(tmp_path, forwards, caplog):
    trainer = trainer_of(tmp_path, train=Dataset.from_dict({"prompt": ["a b", "a" * 252]}), max_completion_length=8)
    assert "room for 4; give a smaller max_completion_length" in caplog.text
    with pytest.raises(InputError, match=r"^eval_dataset: the prompt of row 1 has"):
        trainer.evaluate(LONG["text"])
    assert not forwards


REWARDS = {
    "too few": (lambda completions, **_: [1.0] * (len(completions) - 1), RewardError, "returned 7 rewards for 8"),
    "text": (lambda completions, **_: ["good"] * len(completions), RewardError, "'good'"),
    "not a number": (lambda completions, **_: [float("nan")] * len(completions), RewardError, "finite"),
    "late": (lambda completions, **_: time.sleep(2) or vowels(completions), RewardError, "time limit of 0.2 s"),
    "infinite in float32": (lambda completions, **_: [1e39] * len(completions), RewardError, r"1e\+39"),
    "an infinite norm of gradients": (lambda completions, **_: [1e37] * len(completions), RewardError, r"1e\+37"),
    "failing": (lambda completions, **_: 1 // 0, RewardError, "ZeroDivisionError"),
    "failing for observers": (
        lambda completions, role, **_: vowels(completions) if role[0] == "pioneer" else [],
        RewardError,
        "returned 0 rewards",
    ),
}


@pytest.mark.parametrize("case", REWARDS)
def test_rewards_fail_before_anything_is_learned(tmp_path, case):
    reward, error, message = REWARDS[case]
    trainer = trainer_of(tmp_path, rewards=reward, reward_timeout=0.2)
    before = adapters_of(trainer)
    metrics = trainer._metrics["train"]
    with pytest.raises(error, match=message):
        trainer.train()
    after = adapters_of(trainer)
    for name in before:
        assert_same(after[name], before[name])
    assert trainer.agents.active == "agent-1"
    assert trainer._chain is None
    assert trainer._metrics["train"] is metrics


class Poison(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        with torch.no_grad():
            self.trainer.agents.parameters("agent-2")[0].fill_(torch.nan)


def test_what_is_not_finite_has_the_name_of_its_agent(tmp_path):
    poison = Poison()
    trainer = poison.trainer = trainer_of(tmp_path, callbacks=[poison])
    with pytest.raises(NonFiniteError, match="agent-2 at step 2"):
        trainer.train()


def test_a_template_that_gives_no_prompt(tmp_path):
    trainer = trainer_of(tmp_path, observer_template=lambda prompt, answers: answers)
    with pytest.raises(InputError, match=r"observer_template returned .*expected a string"):
        trainer.train()


def test_an_unknown_agent(tmp_path):
    trainer = trainer_of(tmp_path)
    with (
        pytest.raises(ConfigError, match=r"agent='agent-3': .*Known: agent-1, agent-2"),
        trainer.alone("agent-3"),
    ):
        pass
    with pytest.raises(ConfigError, match="agent='x'"):
        trainer.save_agent("x", tmp_path / "x")
    with pytest.raises(ConfigError, match="returns no outputs"):
        trainer.compute_loss(trainer.model, {}, return_outputs=True)
    with pytest.raises(ConfigError, match="has no rollout of"):
        trainer.compute_loss(trainer.model, {"agent-9/prompt_ids": torch.zeros(1)})


def test_a_folder_of_other_agents(tmp_path):
    trainer_of(tmp_path / "two").save_model(str(tmp_path / "saved"))
    with pytest.raises(CheckpointError, match="no adapter of agent-3"):
        trainer_of(tmp_path / "three", num_agents=3).agents.load(tmp_path / "saved")
    with pytest.raises(CheckpointError, match=r"does not fit the adapter of agent-1: .*size mismatch"):
        trainer_of(tmp_path / "rank", peft_config=lora(r=2)).agents.load(tmp_path / "saved")
    with pytest.raises(CheckpointError, match="does not fit the adapter of agent-1"):
        trainer_of(tmp_path / "few", peft_config=lora(target_modules=["q_proj"])).agents.load(tmp_path / "saved")


def test_parameters_of_an_agent_that_the_optimizer_does_not_have(tmp_path):
    """They would stay as they are without a word."""

    class WithHead(CoryTrainer):
        def agent_parameters(self, agent):
            own = super().agent_parameters(agent)
            return [*own, *torch.nn.Linear(2, 1).parameters()] if agent == "agent-2" else own

    with pytest.raises(ConfigError, match=r"agent_parameters\('agent-2'\) returns 2 parameters that the optimizer"):
        trainer_of(tmp_path, WithHead).create_optimizer()


def test_sampling_that_biases_ratios_is_told(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        trainer_of(tmp_path, temperature=0.7)
        assert "biased" not in caplog.text
        trainer_of(tmp_path, top_p=0.9, repetition_penalty=1.1)
    assert "top_p=0.9, repetition_penalty=1.1: completions are sampled from another distribution" in caplog.text


def test_configurations_need_no_accelerator(tmp_path):
    """Nor arguments besides the folder; TRL's own default is bf16, which transformers refuses there."""
    for kind in (CoryConfig, CoryRLOOConfig):
        config = kind(str(tmp_path))
        assert config.bf16 == (torch.cuda.is_available() and torch.cuda.is_bf16_supported())
        assert config.disable_dropout
        assert config.gradient_checkpointing
        assert config.names == ["agent-1", "agent-2"]
    assert issubclass(ConfigError, HfRlaeError)


def test_a_default_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, tokenizer = base(max_position_embeddings=1024)
    trainer = CoryTrainer(
        model, vowels, train_dataset=data(8), processing_class=tokenizer, peft_config=lora(), args=None
    )
    assert isinstance(trainer.args, CoryConfig)
    assert trainer.args.output_dir.endswith("-CORY")
