"""Classification models as rewards, against plain forward passes of the same models."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    PreTrainedTokenizerBase,
)

from hf_rlae.errors import ConfigError
from hf_rlae.rewards import RewardError, reward_model
from tests.support.tokenizers import byte_level_bpe

PROMPTS = ["Once upon a time ", "She ", "", "They walked to the house and then "]
TEXTS = ["there was a girl.", "", "ran", "they loved the other thing, really."]
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"


def tokenizer_of(**settings) -> PreTrainedTokenizerBase:
    tokenizer = copy.deepcopy(byte_level_bpe())
    for name, value in settings.items():
        setattr(tokenizer, name, value)
    return tokenizer


def classifier(kind: str, num_labels: int = 1, pad_token_id: int | None = 0, **fields):
    sizes = {"vocab_size": len(byte_level_bpe()), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "max_position_embeddings": 32, "num_labels": num_labels}
    config = {"bert": BertConfig, "llama": LlamaConfig}[kind](**{**sizes, "pad_token_id": pad_token_id, **fields})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config)
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model


def alone(model, ids):
    """The logits of one row, without padding."""
    model.eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("kind", "pad"), [("bert", 0), ("llama", 0), ("llama", None)])
def test_padding_changes_nothing(kind, pad, side):
    """Rows of different lengths get the same rewards in a batch as alone; a row without tokens gets `None`."""
    model, tokenizer = classifier(kind, pad_token_id=pad, max_position_embeddings=64), tokenizer_of(padding_side=side)
    prompts, texts = [*PROMPTS, ""], [*TEXTS, ""]
    found = reward_model(model, tokenizer, batch_size=3)(prompts, texts)
    for prompt, text, value in zip(prompts[:4], texts[:4], found[:4], strict=True):
        expected = alone(model, tokenizer(prompt + text)["input_ids"])
        assert value == pytest.approx(float(expected[0]), abs=1e-5)
    assert found[4] is None
    assert len(set(found)) == 5


def test_the_newest_text_stays():
    """Long texts are cut on the left, and the caller's tokenizer keeps its setting."""
    model, tokenizer = classifier("llama"), tokenizer_of(truncation_side="right")
    text = "the other girl walked to the house. " * 20
    ids = tokenizer(text, verbose=False)["input_ids"]
    assert len(ids) > 32
    [found] = reward_model(model, tokenizer)([text[:100]], [text[100:]])
    assert found == pytest.approx(float(alone(model, ids[-32:])[0]), abs=1e-5)
    [found] = reward_model(model, tokenizer, max_length=8)([""], [text])
    assert found == pytest.approx(float(alone(model, ids[-8:])[0]), abs=1e-5)
    assert tokenizer.truncation_side == "right"


def test_labels_and_sigmoid():
    model = classifier("bert", 3, id2label={0: "bad", 1: "fair", 2: "good"}, label2id={"bad": 0, "fair": 1, "good": 2})
    tokenizer = tokenizer_of()
    logits = alone(model, tokenizer("She ran")["input_ids"])
    for label, index in (("good", 2), (1, 1)):
        [found] = reward_model(model, tokenizer, label=label)(["She "], ["ran"])
        assert found == pytest.approx(float(logits.softmax(-1)[index]), abs=1e-6)
        [found] = reward_model(model, tokenizer, label=label, sigmoid=True)(["She "], ["ran"])
        assert found == pytest.approx(float(logits[index].sigmoid()), abs=1e-6)
    single = classifier("bert")
    [logit] = reward_model(single, tokenizer)(["She "], ["ran"])
    [squashed] = reward_model(single, tokenizer, sigmoid=True)(["She "], ["ran"])
    assert squashed == pytest.approx(torch.tensor(logit).sigmoid().item(), abs=1e-6)
    for index, wrong, message in ((3, model, "0 to 2"), ("great", model, "label=.great."), (0, single, "one label")):
        with pytest.raises(ConfigError, match=message):
            reward_model(wrong, tokenizer, label=index)
    with pytest.raises(ConfigError, match="bad, fair, good"):
        reward_model(model, tokenizer)


def test_messages():
    """Messages are rendered by the chat template, without the special tokens of plain texts."""
    model, tokenizer = classifier("llama"), tokenizer_of(chat_template=TEMPLATE)
    prompt = [{"role": "user", "content": "the dog?"}]
    completion = [{"role": "assistant", "content": "ran"}]
    [found] = reward_model(model, tokenizer)([prompt], [completion])
    ids = tokenizer("<user>the dog?\n<assistant>ran\n", add_special_tokens=False)["input_ids"]
    assert found == pytest.approx(float(alone(model, ids)[0]), abs=1e-5)
    with pytest.raises(RewardError, match="no chat template"):
        reward_model(model, tokenizer_of(chat_template=None))([prompt], [completion])
    with pytest.raises(RewardError, match="mixes a string and messages"):
        reward_model(model, tokenizer)(["the dog?"], [completion])
    with pytest.raises(RewardError, match="column 'prompts' is missing"):
        reward_model(model, tokenizer)(completions=["ran"])


def test_it_gives_no_gradient_and_no_dropout():
    model = classifier("bert", hidden_dropout_prob=0.5).train()
    reward = reward_model(model, tokenizer_of())
    assert reward(["She "], ["ran"]) == reward(["She "], ["ran"])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_folders_and_pickles(tmp_path):
    model, tokenizer = classifier("llama"), tokenizer_of()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    expected = reward_model(model, tokenizer)(PROMPTS, TEXTS)
    loaded = reward_model(tmp_path, name="judge", dtype=torch.float32)
    assert loaded(PROMPTS, TEXTS) == pytest.approx(expected, abs=1e-6)
    assert loaded.__name__ == "judge"
    unpickled = pickle.loads(pickle.dumps(loaded))
    assert unpickled(PROMPTS, TEXTS) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"max_length": 0}, "max_length"),
        ({"max_length": 33}, "allow 32 tokens"),
        ({"tokenizer": None}, "needs its tokenizer"),
        ({"dtype": torch.float32}, "dtype can be given only with the name"),
        ({"model": object()}, "got object"),
        ({"model": torch.nn.Linear(1, 1)}, "got Linear"),
    ],
)
def test_arguments_that_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        reward_model(**{"model": classifier("llama"), "tokenizer": tokenizer_of(), **arguments})


def test_a_revision_of_a_repository(hub, tmp_path):
    """Model and tokenizer are of the same commit, whatever is pushed later."""
    for number, side in enumerate(("left", "right")):
        classifier("bert", num_labels=1 + number).save_pretrained(tmp_path)
        tokenizer_of(padding_side=side).save_pretrained(tmp_path)
        hub.add_repo("me/reward", tmp_path, revision="main")
        hub.repository("me/reward").tags[f"v{number}"] = hub.commit("me/reward")
    reward = reward_model("me/reward", revision="v0")
    assert (reward.model.config.num_labels, reward.tokenizer.padding_side) == (1, "left")
