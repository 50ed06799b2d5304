"""`generation_kwargs` and `chat_template_kwargs` in trainings: rollouts, evaluations, checks and warnings."""

from __future__ import annotations

import copy
import logging

import pytest
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, LlamaConfig

from hf_rlae.errors import ConfigError, InputError
from hf_rlae.trainers import CoryPPOTrainer, CoryRLOOTrainer, CoryTrainer, RLAETrainer
from hf_rlae.trainers.rlae import batch_shrinking
from hf_rlae.trainers.token_ppo.configuration_token_ppo import TokenPPOConfig
from hf_rlae.trainers.token_ppo.trainer import TokenPPOTrainer
from tests.support import cory, rlae
from tests.support.rlae import data, vowels
from tests.support.tiers import slow
from tests.support.tokenizers import byte_level_bpe

STOP = {"stop_strings": ["e", "a"]}
TEMPLATE = (
    "{% for m in messages %}<{{ m['content'] }}>{% endfor %}"
    "{% if thinks is defined %}" + 12 * "{{ thinks }}" + "{% endif %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)
CHATS = Dataset.from_dict({"prompt": [[{"role": "user", "content": text}] for text in data(6)["prompt"]]})


class Seen:
    """A reward that keeps what it is given."""

    __name__ = "seen"

    def __init__(self):
        self.completions, self.ids = [], []

    def __call__(self, completions, completion_ids, **columns):
        self.completions += [text if isinstance(text, str) else text[0]["content"] for text in completions]
        self.ids += completion_ids
        return vowels(completions)


def token_ppo(folder, reward, given=None, eval_dataset=None, **options):
    kept = {name: value for name, value in cory.OPTIONS.items() if name != "beta"}
    model, tokenizer = given or cory.base()
    return TokenPPOTrainer(
        model, reward, args=TokenPPOConfig(str(folder), **{**kept, "kl_horizon": 100, **options}), train_dataset=data(),
        processing_class=tokenizer, peft_config=cory.lora(), eval_dataset=eval_dataset,
    )  # fmt: skip


def of_cory(kind, **fixed):
    return lambda folder, reward, **options: cory.trainer_of(folder, kind, reward, **{**fixed, **options})


TRAINERS = {
    "rlae": lambda folder, reward, **options: rlae.trainer_of(
        folder, "mixture", reward, rlae.ensemble_of("mixture"), **options
    ),
    "cory": of_cory(CoryTrainer),
    "cory-rloo": of_cory(CoryRLOOTrainer),
    "cory-ppo": of_cory(CoryPPOTrainer, beta=0.0, kl_horizon=100),
    "token-ppo": token_ppo,
}


@pytest.mark.parametrize("kind", TRAINERS)
def test_stop_strings_end_completions_in_rollouts_and_evaluations(kind, tmp_path, caplog):
    seen = Seen()
    trainer = TRAINERS[kind](
        tmp_path, seen, generation_kwargs=STOP, max_completion_length=20, max_steps=1, eval_dataset=data(4)
    )
    assert "biased" not in caplog.text  # where a text ends is no part of the ratios
    trainer.train()
    trained = len(seen.completions)
    metrics = trainer.evaluate()
    tokenizer = trainer.processing_class if kind != "rlae" else trainer.ensemble.tokenizer
    ends = set(trainer.eos_token_ids) if kind != "rlae" else {trainer.ensemble.generation_config.eos_token_id}
    assert 0 < trained < len(seen.completions)
    stopped = 0
    for text, ids in zip(seen.completions, seen.ids, strict=True):
        assert text == tokenizer.decode(ids, skip_special_tokens=True)
        before = tokenizer.decode(ids[:-1])
        assert "e" not in before
        assert "a" not in before
        is_stopped = "e" in text or "a" in text
        stopped += is_stopped
        assert is_stopped or len(ids) == 20 or ids[-1] in ends
    assert stopped > 10
    is_cut = [not ("e" in t or "a" in t or i[-1] in ends) for t, i in zip(seen.completions, seen.ids, strict=True)]
    logged = trainer.state.log_history[0]["completions/clipped_ratio"]
    assert logged == pytest.approx(sum(is_cut[:trained]) / trained)
    assert metrics["eval_completions/clipped_ratio"] == pytest.approx(sum(is_cut[trained:]) / (len(is_cut) - trained))
    lengths = [len(ids) for ids, cut in zip(seen.ids, is_cut, strict=True) if not cut][
        : trained - sum(is_cut[:trained])
    ]
    if kind == "token-ppo":
        name = "completions/mean_terminated_length"
        assert trainer.state.log_history[0][name] == pytest.approx(sum(lengths) / len(lengths))


@pytest.mark.parametrize("kind", ["cory", *slow("cory-rloo", "token-ppo")])
def test_without_stop_strings_trl_generates_as_ever(kind, tmp_path, monkeypatch):
    """Strings that never occur change nothing, bit for bit."""
    seen = []
    for strings in (None, {"stop_strings": "Qx9?"}):
        reward = Seen()
        TRAINERS[kind](tmp_path / str(len(seen)), reward, generation_kwargs=strings, max_steps=2).train()
        seen.append(reward.ids)
    assert seen[0] == seen[1]


@pytest.mark.parametrize("kind", [kind for kind in TRAINERS if kind != "rlae"])
def test_a_model_whose_own_settings_have_stop_strings(kind, tmp_path):
    """transformers takes settings that a trainer leaves out from the model."""
    seen = Seen()
    given = cory.base()
    given[0].generation_config.stop_strings = ["e"]
    trainer = TRAINERS[kind](tmp_path, seen, given=given, max_steps=1, max_completion_length=12)
    trainer.train()
    assert any("e" in text for text in seen.completions)
    assert all("e" not in trainer.processing_class.decode(ids[:-1]) for ids in seen.ids)


@pytest.mark.parametrize("kind", [kind for kind in TRAINERS if kind != "rlae"])
def test_stop_strings_with_what_they_do_not_fit(kind, tmp_path):
    with pytest.raises(ConfigError, match=r"mask_truncated_completions=True with stop_strings=\['e', 'a'\]"):
        TRAINERS[kind](tmp_path, vowels, generation_kwargs=STOP, mask_truncated_completions=True)
    with pytest.raises(ConfigError, match="stop_strings="):
        TRAINERS[kind](tmp_path, vowels, generation_kwargs={"stop_strings": [""]})
    with pytest.raises(ConfigError, match=r"'stop_string' is not an option.*did you mean 'stop_strings'"):
        TRAINERS[kind](tmp_path, vowels, generation_kwargs={"stop_string": ["e"]})
    with pytest.raises(ConfigError, match="generation_kwargs='e'"):
        TRAINERS[kind](tmp_path, vowels, generation_kwargs="e")


@pytest.mark.parametrize("objective", ["ppo", "mixture"])
def test_options_that_bias_ratios_are_warned_of(objective, tmp_path, caplog):
    given = {"repetition_penalty": 1.2, "min_new_tokens": 0, "temperature": 0.7, **STOP}
    rlae.trainer_of(tmp_path, objective, generation_kwargs=given)
    expected = "temperature=0.7, repetition_penalty=1.2: completions are sampled from another distribution"
    assert (expected in caplog.text) == (objective == "mixture")


def test_options_that_bias_ratios_of_cory_are_warned_of(tmp_path, caplog):
    given = {"temperature": 0.7, "suppress_tokens": [5], "stop_strings": ["e"]}
    cory.trainer_of(tmp_path, temperature=0.7, generation_kwargs=given)
    assert "suppress_tokens=[5]: completions are sampled from another distribution" in caplog.text
    caplog.clear()
    cory.trainer_of(tmp_path, temperature=1.0, generation_kwargs={"temperature": 0.7})
    assert "temperature=0.7: completions" in caplog.text


def test_an_evaluation_has_the_options_of_rollouts(tmp_path, monkeypatch):
    monkeypatch.setattr(batch_shrinking, "MIN_ROWS", 1)
    ensemble = rlae.ensemble_of("mixture", "different")
    greedy = {}
    for name, given in {"plain": None, "changed": {"repetition_penalty": 5.0, "no_repeat_ngram_size": 2}}.items():
        seen = Seen()
        trainer = rlae.trainer_of(
            tmp_path, "mixture", seen, ensemble, generation_kwargs=given, max_completion_length=8, eval_dataset=data(4)
        )
        trainer.evaluate()
        greedy[name] = seen.completions
        encoded = ensemble.tokenizer(list(data(4)["prompt"]), return_tensors="pt", padding=True)
        written = ensemble.generate(**encoded, max_new_tokens=8, do_sample=False, **(given or {}))
        texts = ensemble.tokenizer.batch_decode(written[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
        assert seen.completions == texts
    assert greedy["plain"] != greedy["changed"]


def chat_members(kind, **overrides):
    """Members with templates of their own; that of the second one reads `ponders` and not `thinks`."""
    pairs = [(model, copy.deepcopy(tokenizer)) for model, tokenizer in rlae.members(kind, **overrides)]
    pairs[0][1].chat_template = TEMPLATE
    pairs[1][1].chat_template = TEMPLATE.replace("thinks", "ponders")
    return pairs


def judge():
    tokenizer = copy.deepcopy(byte_level_bpe())
    settings = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_labels=1, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return AutoModelForSequenceClassification.from_config(settings), tokenizer


def test_template_arguments_reach_each_members_own_template(tmp_path):
    ensemble = rlae.ensemble_of("mixture", given=chat_members("different"))
    trainer = rlae.trainer_of(
        tmp_path, "mixture", vowels, ensemble, CHATS, max_steps=1, eval_dataset=CHATS,
        chat_template_kwargs={"thinks": "x", "ponders": "yz"},
    )  # fmt: skip
    given = []
    generate = ensemble.generate
    ensemble.generate = lambda *args, **kwargs: given.append(kwargs["member_input_ids"]) or generate(*args, **kwargs)
    trainer.train()
    trainer.evaluate()
    del ensemble.generate
    assert len(given) >= 2
    for ids in given:
        for index, text in enumerate(("x" * 12, "yz" * 12)):
            tokenizer = ensemble.members[index].tokenizer
            assert all(f">{text}A:" in tokenizer.decode(row) for row in ids[:, index].tolist())


def test_template_arguments_reach_reward_models(tmp_path):
    """As in TRL's trainers; here a judge whose tokenizer has the same argument."""
    model, tokenizer = judge()
    tokenizer.chat_template = TEMPLATE
    read = []
    model.register_forward_pre_hook(lambda _module, _args, given: read.append(given["input_ids"]), with_kwargs=True)
    ensemble = rlae.ensemble_of("mixture", given=chat_members("different"))
    args = rlae.config(tmp_path, objective="mixture", max_steps=1, chat_template_kwargs={"thinks": "x"})
    RLAETrainer(ensemble, model, args, CHATS, reward_processing_classes=tokenizer).train()
    texts = [tokenizer.decode(ids) for batch in read for ids in batch]
    assert texts
    assert all("x" * 12 in text for text in texts)


def test_template_arguments_count_in_checks_of_prompts(tmp_path):
    """A prompt fits the context without them, and fills it with them."""
    longer = {"chat_template_kwargs": {"ponders": "a long thought. "}}
    for kind in ("shared", "different"):
        pairs = chat_members(kind, max_position_embeddings=64)
        ensemble = rlae.ensemble_of("mixture", given=pairs)
        rlae.trainer_of(tmp_path, "mixture", vowels, ensemble, CHATS)
        with pytest.raises(InputError, match=r"the prompt of row .* whose context has 64"):
            rlae.trainer_of(tmp_path, "mixture", vowels, ensemble, CHATS, **longer)


def test_template_arguments_reach_pioneers_and_observers(tmp_path):
    given = cory.base(chat=True)
    given[1].chat_template = TEMPLATE
    options = {"chat_template_kwargs": {"thinks": "x"}, "max_steps": 1, "eval_dataset": CHATS}
    trainer = cory.trainer_of(tmp_path, train=CHATS, given=given, **options)
    texts = []
    roll_out = trainer.roll_out

    def keep(agent, inputs):
        batch = roll_out(agent, inputs)
        texts.extend(given[1].batch_decode(batch["prompt_ids"], skip_special_tokens=True))
        return batch

    trainer.roll_out = keep
    trainer.train()
    trainer.evaluate()
    assert len(texts) >= 20
    assert all(text.endswith(">" + "x" * 12 + "A:") for text in texts)
    assert any("answered this before you" in text for text in texts)
    other = cory.base(chat=True)
    other[1].chat_template = TEMPLATE
    plain = cory.trainer_of(tmp_path, train=CHATS, given=other, max_steps=1)
    [long], [short] = (kind.observer_prompts.lengths([CHATS[0]["prompt"]]) for kind in (trainer, plain))
    assert long > short


@pytest.mark.parametrize("name", ["add_generation_prompt", "tokenize", "chat_template", "padding"])
def test_template_arguments_that_the_trainer_passes(name, tmp_path):
    with pytest.raises(ConfigError, match=f"chat_template_kwargs: the trainer itself passes {name}"):
        rlae.config(tmp_path, chat_template_kwargs={name: True})
    for kind in ("cory", "token-ppo"):
        with pytest.raises(ConfigError, match=f"chat_template_kwargs: the trainer itself passes {name}"):
            TRAINERS[kind](tmp_path, vowels, chat_template_kwargs={name: True})


def test_a_resumed_run_with_other_options_is_noted(tmp_path, caplog):
    options = {"save_strategy": "steps", "save_steps": 2}
    rlae.trainer_of(tmp_path, generation_kwargs=STOP, max_steps=2, **options).train()
    caplog.set_level(logging.WARNING)
    rlae.trainer_of(tmp_path, max_steps=3, **options).train(resume_from_checkpoint=True)
    assert "generation_kwargs: " in caplog.text
