"""Habits of TRL users: rewards, logs, tables, YAML, override points, saving, the Hub, no warnings."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoModelForSequenceClassification, HfArgumentParser, LlamaConfig, TrainerCallback, logging
from trl import RichProgressCallback, TrlParser
from trl.trainer.base_config import _BaseConfig

from hf_rlae import EnsembleForCausalLM, PolicyModel
from hf_rlae.errors import ConfigError
from hf_rlae.objectives import objectives
from hf_rlae.rewards import weighted_sum
from hf_rlae.trainers import RLAEConfig, RLAETrainer
from hf_rlae.trainers.constraints import ConstraintArguments
from tests.support.card_rules import faults_of_card
from tests.support.rlae import (
    CHAT_TEMPLATES,
    assert_same,
    config,
    data,
    ensemble_of,
    members,
    parameters_of,
    trainer_of,
    vowels,
)
from tests.support.tokenizers import byte_level_bpe


def first_log(trainer, name):
    return next(entry[name] for entry in trainer.state.log_history if name in entry)


def test_a_config_needs_nothing_more_on_a_cpu():
    args = RLAEConfig("out")
    assert args.bf16 is False
    assert args.fp16 is False
    assert args.gradient_checkpointing is False
    assert args.remove_unused_columns is False
    defaults = (args.learning_rate, args.epsilon, args.value_coef, args.num_iterations, args.gamma, args.lam)
    assert defaults == (1e-4, 0.2, 0.5, 3, 1.0, 1.0)
    assert args.max_grad_norm == 1.0
    assert args.objective_settings().entropy_coef == 0.01
    assert RLAEConfig("out", objective="mixture").objective_settings().entropy_coef == 0.03
    assert RLAEConfig("out", objective="mixture").advantages == "group_relative"


def test_yaml(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "output_dir: out\nobjective: mixture\nspan_length: 4\nreward_weights: [1.0, 0.5]\ntarget_kl: 0.1\n"
        "report_to: none\nentropy_coef: 0.02\nscale_rewards: none\n"
    )
    (args,) = TrlParser(RLAEConfig).parse_args_and_config(["--config", str(file), "--top_k", "5"])
    assert isinstance(args, RLAEConfig)
    assert (args.objective, args.span_length, args.reward_weights) == ("mixture", 4, [1.0, 0.5])
    assert (args.target_kl, args.entropy_coef, args.top_k, args.scale_rewards) == (0.1, 0.02, 5, "none")
    assert args.bf16 is False
    with pytest.raises(SystemExit):
        TrlParser(RLAEConfig).parse_args_and_config(["--help"])


def test_a_config_can_be_copied_and_built_from_its_dict(tmp_path):
    """Sizes of rollouts are filled in, and a copy has them all; options that are read keep their values."""
    given = {
        "generation_kwargs": {"stop_strings": ["."], "temperature": 0.5},
        "chat_template_kwargs": {"enable_thinking": False},
        "reward_constraints": {"short": 0.5},
        "member_cost": 0.1,
    }
    args = config(tmp_path, **given)
    names = {entry.name for entry in dataclasses.fields(RLAEConfig) if entry.init}
    from_dict = RLAEConfig(**{name: value for name, value in args.to_dict().items() if name in names})
    changed = dataclasses.replace(args, seed=args.seed)
    assert from_dict.to_dict() == changed.to_dict() == args.to_dict()
    assert (changed.temperature, changed.member_cost, changed.generation_batch_size) == (0.5, [0.1], 8)


@pytest.mark.parametrize("parser", [HfArgumentParser, TrlParser])
def test_objectives_on_the_command_line(parser, monkeypatch):
    """Type checkers know the names of the package; parsers accept registered ones too."""
    monkeypatch.setitem(objectives._entries, "my_own", objectives["mixture"])
    for name in ("ppo", "mixture", "my_own"):
        arguments = ["--output_dir", "out", "--objective", name]
        assert parser(RLAEConfig).parse_args_into_dataclasses(arguments)[0].objective == name
    with pytest.raises(ConfigError, match="did you mean 'mixture'"):
        parser(RLAEConfig).parse_args_into_dataclasses(["--output_dir", "out", "--objective", "mixtur"])


def test_every_field_has_a_help_text():
    own = set(RLAEConfig.__dataclass_fields__) - set(_BaseConfig.__dataclass_fields__)
    documentation = f"{RLAEConfig.__doc__}{ConstraintArguments.__doc__}"
    assert len(own) > 20
    for name in own:
        help_text = RLAEConfig.__dataclass_fields__[name].metadata.get("help", "")
        assert help_text.endswith("."), name
        assert "%" not in help_text
        assert f"{name} (`" in documentation


def test_rewards_get_what_trl_gives_and_are_weighted(tmp_path):
    seen = []

    def first(prompts, completions, completion_ids, number, trainer_state, log_extra, log_metric, **columns):
        seen.append((prompts, completions, completion_ids, number, trainer_state.global_step, sorted(columns)))
        log_extra("shout", [text.upper() for text in completions])
        log_metric("loudness", 3.0)
        return [float(value) for value in number]

    async def second(completions, **_):
        return [None if index % 2 else 1.0 for index in range(len(completions))]

    trainer = trainer_of(tmp_path, reward=[first, second], reward_weights=[0.5, 2.0], max_steps=1, log_completions=True)
    trainer.train()
    prompts, completions, ids, number, step, rest = seen[0]
    rollouts = trainer.buffer.rollouts
    assert (prompts, completions, step, rest) == (rollouts.prompts, rollouts.completions, 0, [])
    assert ids == [row[:5] for row in rollouts.completion_ids.tolist()]
    assert prompts[0] == prompts[3] != prompts[4]
    expected = [0.5 * value + (0.0 if index % 2 else 2.0) for index, value in enumerate(number)]
    assert first_log(trainer, "reward") == pytest.approx(sum(expected) / 8)
    assert first_log(trainer, "rewards/second/mean") == 1.0
    assert first_log(trainer, "loudness") == 3.0
    table = pd.read_parquet(tmp_path / "completions" / "completions_00001.parquet")
    assert table["shout"].tolist() == [text.upper() for text in completions]


def test_two_rewards_of_one_name_are_told_apart(tmp_path):
    trainer = trainer_of(tmp_path, reward=[vowels, vowels], max_steps=1)
    trainer.train()
    assert first_log(trainer, "rewards/vowels_0/mean") == first_log(trainer, "rewards/vowels_1/mean")


def test_a_registered_reward_and_a_reward_model(tmp_path):
    tokenizer = byte_level_bpe()
    settings = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_labels=1, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(settings)
    model.config._name_or_path = "owner/judge"
    trainer = RLAETrainer(
        ensemble_of(),
        ["gsm8k", model],
        trainer_of(tmp_path, max_steps=1).args,
        data(answer=["#### 3"] * 6),
        reward_processing_classes=[None, tokenizer],
    )
    trainer.train()
    names = trainer.reward_calls.names
    assert len(names) == 2
    assert all(f"rewards/{name}/mean" in entry for name in names for entry in trainer.state.log_history[:1])
    assert first_log(trainer, f"rewards/{names[1]}/std") > 0


def test_unused_columns_are_dropped_if_that_is_wanted(tmp_path):
    seen = []

    def of_number(completions, number, **columns):
        seen.append(sorted(columns))
        return [1.0] * len(completions)

    train = data(other=["x"] * 6)
    trainer_of(tmp_path, reward=of_number, train=train, max_steps=1).train()
    trainer_of(tmp_path, reward=of_number, train=train, max_steps=1, remove_unused_columns=True).train()
    assert "other" in seen[0]
    assert "other" not in seen[1]


def test_columns_of_a_rule_are_no_unused_ones(tmp_path):
    """A rule takes its columns by `**columns`, but declares them, so they are kept."""
    train = data(answer=["#### 3"] * 6, other=["x"] * 6)
    for reward in ("number", weighted_sum(["number", vowels])):
        trainer = trainer_of(tmp_path, reward=reward, train=train, max_steps=1, remove_unused_columns=True)
        trainer.train()
        assert "answer" in trainer._train_rows.column_names
        assert "other" not in trainer._train_rows.column_names


def test_completions_are_shown_with_weights_and_kept(tmp_path, capsys):
    trainer = trainer_of(tmp_path, max_steps=4, logging_steps=2, log_completions=True, num_completions_to_print=2)
    trainer.train()
    shown = capsys.readouterr().out
    assert "weights" in shown
    assert "Step 2" in shown
    folder = tmp_path / "completions"
    assert [path.name for path in folder.iterdir()] == ["completions_00002.parquet"]
    table = pd.read_parquet(folder / "completions_00002.parquet")
    rollouts = trainer.buffer.rollouts
    assert table["completion"].tolist() == rollouts.completions
    assert table["step"].tolist() == [2] * 8
    assert table["vowels"].tolist() == pytest.approx(vowels(rollouts.completions))
    lines = table["weights"][3].splitlines()
    numbers = [f"{weight:.2f}" for weight in rollouts.weights[3, :, 1].tolist()]
    assert lines[1] == " ".join([trainer.member_names[1], *numbers])


def test_chats_from_end_to_end(tmp_path):
    pairs = [(model, copy.deepcopy(tokenizer)) for model, tokenizer in members("different")]
    for (_, tokenizer), template in zip(pairs, CHAT_TEMPLATES, strict=True):
        tokenizer.chat_template = template
    prompts = [[{"role": "user", "content": text}] for text in ("Hello", "and", "they", "3 dogs")]
    seen = []

    def of_messages(prompts, completions, **_):
        seen.append((prompts[0], completions[0]))
        return vowels(completions)

    train = data(4).remove_columns("prompt").add_column("prompt", prompts)
    trainer = trainer_of(
        tmp_path, "mixture", of_messages, ensemble_of("mixture", given=pairs), train, log_completions=True,
        eval_dataset=train, eval_strategy="steps", eval_steps=2,
    )  # fmt: skip
    trainer.train()
    assert seen[0][0][0]["role"] == "user"
    assert [message["role"] for message in seen[0][1]] == ["assistant"]


def test_callbacks_see_the_metrics_and_rich_progress_works(tmp_path):
    logs = []

    class Collect(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            collected.append(dict(logs))

    collected = logs
    trainer = trainer_of(
        tmp_path, callbacks=[Collect(), RichProgressCallback()], eval_dataset=data(2), eval_strategy="steps",
        eval_steps=2, disable_tqdm=False, max_steps=2,
    )  # fmt: skip
    trainer.train()
    names = set().union(*logs)
    expected = {
        "reward", "reward_std", "frac_reward_zero_std", "rewards/vowels/mean", "rewards/vowels/std",
        "completions/mean_length", "completions/min_length", "completions/max_length", "completions/clipped_ratio",
        "weights/entropy", *(f"weights/{name}/mean" for name in trainer.member_names), "policy/kl", "policy/entropy",
        "policy/ratio_max", "clip_ratio", "value/loss", "value/explained_variance", "num_tokens", "eval_reward",
        "rewards/unjudged_ratio",
    }  # fmt: skip
    assert expected <= names


def test_override_points_are_called(tmp_path):
    called = []

    class Mine(RLAETrainer):
        def roll_out(self, inputs, seeds, explores):
            called.append(("roll_out", len(inputs), explores))
            rollouts = super().roll_out(inputs, seeds, explores)
            rollouts.completions = ["aaa"] * len(inputs)
            return rollouts

        def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
            called.append(("rewards", len(inputs), completions[0]))
            return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list) / 2

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss, said = super().compute_loss(model, inputs, return_outputs=True)
            called.append(("loss", len(inputs["rollouts"]), sorted(said)))
            return (2 * loss, said) if return_outputs else 2 * loss

    trainer = trainer_of(tmp_path, trainer_class=Mine, max_steps=1, eval_dataset=data(2))
    trainer.train()
    assert called == [
        ("roll_out", 8, True),
        ("rewards", 8, "aaa"),
        ("loss", 4, ["entropies", "log_probs", "values"]),
    ]
    assert first_log(trainer, "reward") == 0.5
    assert trainer.evaluate()["eval_reward"] == 0.5
    assert called[3] == ("roll_out", 2, False)


def test_span_length_of_the_config_is_the_ensembles_and_the_policys(tmp_path):
    trainer = trainer_of(tmp_path, span_length=3)
    trainer.train()
    assert trainer.ensemble.config.span_length == trainer.policy.config.span_length == 3
    assert trainer.buffer.rollouts.span_mask.shape[1] == 2


def test_saved_and_loaded(tmp_path):
    ensemble = ensemble_of(observation="both")
    trainer = trainer_of(tmp_path, ensemble=ensemble)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    loaded = PolicyModel.from_pretrained(tmp_path / "saved")
    assert_same(parameters_of(loaded), parameters_of(trainer.model))
    again = EnsembleForCausalLM.from_members(members(), loaded, span_length=2)
    inputs = ensemble.tokenizer(["Once upon a"], return_tensors="pt")
    options = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True}
    one, other = ensemble.generate(**inputs, **options), again.generate(**inputs, **options)
    assert torch.equal(one.sequences, other.sequences)
    torch.testing.assert_close(one.span_weights, other.span_weights)


class Hub:
    """Records uploads instead of doing them."""

    def __init__(self):
        self.uploads = []

    def upload_folder(self, **options):
        folder = Path(options["folder_path"])
        self.uploads.append((options["repo_id"], {path.name for path in folder.iterdir() if path.is_file()}))

    def create_repo(self, repo_id, **_):
        return type("Repo", (), {"repo_id": f"me/{repo_id}"})()


@pytest.fixture
def hub(monkeypatch):
    found = Hub()
    for module in ("transformers.trainer", "hf_rlae.trainers.durable.private_saves"):
        monkeypatch.setattr(f"{module}.hf_api", lambda *_, **__: found)
    return found


def test_pushed_with_a_card_that_names_no_folder_of_this_machine(tmp_path, hub):
    ensemble = ensemble_of(span_length=2)
    ensemble.members[0].name = "owner/first-member"
    ensemble.members[1].name = str(tmp_path / "models" / "second")
    trainer = trainer_of(tmp_path / "my-policy", ensemble=ensemble, max_steps=2)
    trainer.train()
    trainer.push_to_hub(dataset_name="owner/data", tags="arithmetic")
    repo, files = hub.uploads[-1]
    assert repo == "me/my-policy"
    assert {"README.md", "config.json", "model.safetensors"} <= files
    card = (tmp_path / "my-policy" / "README.md").read_text()
    for wanted in (
        "base_model:\n- owner/first-member\n", "datasets:\n- owner/data\n", "- rlae\n", "- arithmetic\n",
        "objective `ppo`), for 2 updates on `owner/data`. Reward: `vowels`.", "| `max_steps` | `2` |", "- trl\n",
        'policy="me/my-policy", span_length=2', '["owner/first-member", "second"]',
        "span_length=2", "2506.00439",
    ):  # fmt: skip
        assert wanted in card or wanted in card.replace("\n", " "), wanted
    for name in ("README.md", "config.json"):
        assert str(tmp_path) not in (tmp_path / "my-policy" / name).read_text()
    assert faults_of_card(card) == []
    assert PolicyModel.from_pretrained(tmp_path / "my-policy").config.span_length == 2


@pytest.fixture
def heard():
    """Lets `caplog` record logs of transformers."""
    logging.enable_propagation()
    yield
    logging.disable_propagation()


@pytest.mark.usefixtures("heard")
def test_training_is_quiet(tmp_path, caplog, capfd):
    """No warning of this package, transformers or torch, from the config to the end of training."""
    with warnings.catch_warnings(), caplog.at_level("WARNING"):
        warnings.simplefilter("error")
        for objective in ("ppo", "mixture"):
            ensemble = ensemble_of(objective, "different", "both")
            trainer = trainer_of(
                tmp_path, objective, ensemble=ensemble, eval_dataset=data(2), eval_strategy="steps", eval_steps=2,
                save_strategy="steps", save_steps=2,
            )  # fmt: skip
            trainer.train()
            trainer.save_model()
    assert [record.getMessage() for record in caplog.records] == []
    assert "arning" not in capfd.readouterr().err


def test_a_biased_ratio_is_warned_of(tmp_path, caplog):
    with caplog.at_level("WARNING"):
        trainer_of(tmp_path, "ppo", temperature=0.7)
        assert not caplog.records
        trainer_of(tmp_path, "mixture", temperature=0.7)
    assert "temperature=0.7" in caplog.text
