"""The arguments of trainers are those of TRL's trainers, in TRL's order."""

from __future__ import annotations

import inspect

import pytest
from datasets import IterableDatasetDict
from trl import GRPOTrainer, RLOOTrainer

from hf_rlae.errors import ConfigError
from hf_rlae.trainers import CoryPPOTrainer, CoryRLOOTrainer, CoryTrainer, RLAETrainer
from hf_rlae.trainers.token_ppo.configuration_token_ppo import TokenPPOConfig
from hf_rlae.trainers.token_ppo.trainer import TokenPPOTrainer
from tests.support import cory, rlae
from tests.support.rlae import data, vowels

PAIRS = [
    (RLAETrainer, GRPOTrainer),
    (CoryTrainer, GRPOTrainer),
    (CoryRLOOTrainer, RLOOTrainer),
    (CoryPPOTrainer, GRPOTrainer),
    (TokenPPOTrainer, RLOOTrainer),  # its last arguments, for tools, are given by name
]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=lambda kind: kind.__name__)
def test_names_and_order_are_trls(ours, theirs):
    expected = list(inspect.signature(theirs.__init__).parameters)
    assert list(inspect.signature(ours.__init__).parameters)[: len(expected)] == expected


def test_rlae_arguments_by_position(tmp_path):
    ensemble = rlae.ensemble_of()
    callbacks = []
    args = rlae.config(tmp_path)
    trainer = RLAETrainer(ensemble, vowels, args, data(), data(2), ensemble.tokenizer, [None], callbacks, (None, None))
    assert trainer.reward_calls.names == ["vowels"]


REFUSED_BY_RLAE = {
    "processing_class": (lambda: cory.base()[1], "every member of an ensemble has its own tokenizer"),
    "quantization_config": (lambda: object(), "receives loaded members; quantise them"),
    "tools": (lambda: [vowels], "without calls of tools"),
    "rollout_func": (lambda: vowels, "override `roll_out`"),
    "environment_factory": (lambda: dict, "without an environment"),
    "reward_funcs": (lambda: None, "is None; give one of these"),
}


@pytest.mark.parametrize("name", REFUSED_BY_RLAE)
def test_what_has_no_meaning_for_an_ensemble(name, tmp_path):
    make, reason = REFUSED_BY_RLAE[name]
    given = {"reward_funcs": vowels, name: make()}
    with pytest.raises(ConfigError, match=f"{name}.*{reason}"):
        RLAETrainer(rlae.ensemble_of(), args=rlae.config(tmp_path), train_dataset=data(), **given)


@pytest.mark.parametrize("kind", [CoryTrainer, CoryRLOOTrainer])
@pytest.mark.parametrize("name", ["tools", "rollout_func", "environment_factory"])
def test_what_has_no_meaning_for_cory(name, kind, tmp_path):
    model, tokenizer = cory.base()
    args = kind.config_class(str(tmp_path), **cory.OPTIONS)
    with pytest.raises(ConfigError, match=name):
        kind(model, vowels, args, data(), None, tokenizer, peft_config=cory.lora(), **{name: [vowels]})


def test_by_position(tmp_path):
    """All arguments up to the adapter, as TRL's examples give them to `GRPOTrainer`."""
    for kind, options in ((CoryTrainer, {}), (CoryRLOOTrainer, {}), (CoryPPOTrainer, {"beta": 0.0, "kl_horizon": 100})):
        model, tokenizer = cory.base()
        args = kind.config_class(str(tmp_path), **{**cory.OPTIONS, **options})
        trainer = kind(model, vowels, args, data(), data(2), tokenizer, None, [], (None, None), None, cory.lora())
        assert len(trainer.agents.names) == 2
    model, tokenizer = cory.base()
    kept = {name: value for name, value in cory.OPTIONS.items() if name != "beta"}
    args = TokenPPOConfig(str(tmp_path), **kept, kl_horizon=100)
    trainer = TokenPPOTrainer(
        model, vowels, args, data(), data(2), tokenizer, None, [], (None, None), None, cory.lora()
    )
    assert trainer.eval_dataset is not None
    with pytest.raises(ConfigError, match="reward_funcs is missing"):
        TokenPPOTrainer(cory.base()[0], None, args, data(), peft_config=cory.lora())


def streams(count=2):
    stream = data(count).to_iterable_dataset()
    return {"stream": stream, "dict": {"one": stream}, "IterableDatasetDict": IterableDatasetDict({"one": stream})}


@pytest.mark.parametrize("make", [rlae.trainer_of, cory.trainer_of], ids=["rlae", "cory"])
@pytest.mark.parametrize("name", streams())
def test_streamed_datasets_are_refused_in_words(name, make, tmp_path):
    reason = "an IterableDataset, whose rows cannot be read by number.*Dataset.from_list"
    with pytest.raises(ConfigError, match=reason):
        make(tmp_path, eval_dataset=streams()[name])
    trainer = make(tmp_path)
    with pytest.raises(ConfigError, match=reason):
        trainer.evaluate(streams()[name])
    if name == "stream":
        with pytest.raises(ConfigError, match=f"train_dataset is {reason}"):
            make(tmp_path, train=streams(6)[name])
        with pytest.raises(ConfigError, match=f"test_dataset is {reason}"):
            trainer.predict(streams()[name])
    else:
        with pytest.raises(ConfigError, match=r"test_dataset is a .*one of its datasets"):
            trainer.predict(streams()[name])


def test_token_ppo_reads_streams(tmp_path):
    model, tokenizer = cory.base()
    kept = {name: value for name, value in cory.OPTIONS.items() if name != "beta"}
    args = TokenPPOConfig(str(tmp_path), **{**kept, "kl_horizon": 100, "max_steps": 1, "num_iterations": 1})
    evaluated = {"one": data(2).to_iterable_dataset()}
    train = data(6).to_iterable_dataset()
    trainer = TokenPPOTrainer(model, vowels, args, train, evaluated, tokenizer, peft_config=cory.lora())
    trainer.train()
    assert trainer.state.global_step == 1
    assert trainer.evaluate()["eval_reward"] >= 0


@pytest.mark.parametrize("make", [rlae.trainer_of, cory.trainer_of], ids=["rlae", "cory"])
@pytest.mark.parametrize("column", ["image", "images"])
def test_images_are_refused_in_words(column, make, tmp_path):
    with pytest.raises(ConfigError, match=f"train_dataset has a column '{column}'.*text only"):
        make(tmp_path, train=data(6, **{column: ["x"] * 6}))
    with pytest.raises(ConfigError, match=f"eval_dataset has a column '{column}'.*text only"):
        make(tmp_path, eval_dataset=data(2, **{column: ["x"] * 2}))
