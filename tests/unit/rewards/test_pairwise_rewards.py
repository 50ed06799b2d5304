"""Rewards from comparisons: shares of wins, orders, opponents, and models as judges."""

from __future__ import annotations

import asyncio
import math
import pickle

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hf_rlae.errors import ConfigError
from hf_rlae.rewards import RewardError, pairwise_reward
from hf_rlae.rewards.calls.resolve import RewardCalls, call_rewards, resolve_rewards
from tests.unit.rewards.test_reward_models import TEMPLATE, alone, classifier, tokenizer_of


class Length:
    """A judge that prefers the longer completion by a logistic function, and one position by `bias` log-odds."""

    def __init__(self, bias: float = 0.0) -> None:
        self.bias, self.sizes, self.asked = bias, [], []

    def __call__(self, prompts, first, second, **columns):
        self.sizes.append(len(prompts))
        self.asked += zip(prompts, first, second, strict=True)
        pairs = zip(first, second, strict=True)
        return [1 / (1 + math.exp(-(len(one) - len(other) + self.bias))) for one, other in pairs]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_means_over_the_group_of_a_prompt():
    """Groups are runs of equal prompts; a prompt's second run is a group of its own."""
    prompts, texts = ["a", "a", "a", "b", "b", "a"], ["x", "xx", "xxxx", "xx", "x", "x"]
    found = pairwise_reward(Length())(prompts, texts)
    expected = [
        (sigmoid(-1) + sigmoid(-3)) / 2,
        (sigmoid(1) + sigmoid(-2)) / 2,
        (sigmoid(3) + sigmoid(2)) / 2,
        sigmoid(1),
        sigmoid(-1),
    ]
    assert found[:5] == pytest.approx(expected)
    assert found[5] is None
    assert sum(found[:3]) == pytest.approx(1.5)


def test_the_bias_for_a_position_cancels():
    """A judge that only looks at the position makes all completions equal; one that also does keeps their order."""
    texts = ["x", "xx", "xxxx"]
    assert pairwise_reward(lambda prompts, first, second: [0.9] * len(first))(["a"] * 3, texts) == pytest.approx(
        [0.5] * 3
    )
    found = pairwise_reward(Length(bias=2.0))(["a"] * 3, texts)
    assert found == sorted(found)
    pair = pairwise_reward(Length(bias=2.0))(["a"] * 2, texts[:2])
    assert pair[1] == pytest.approx((sigmoid(1 + 2) + 1 - sigmoid(-1 + 2)) / 2)


def test_reordering_a_group_reorders_its_rewards():
    texts = ["x", "xxxx", "xx", "xxx"]
    one = dict(zip(texts, pairwise_reward(Length(1.0))(["a"] * 4, texts), strict=True))
    other = dict(zip(texts[::-1], pairwise_reward(Length(1.0))(["a"] * 4, texts[::-1]), strict=True))
    assert one == pytest.approx(other)


def test_equal_texts_tie_and_equal_pairs_are_judged_once():
    judge = Length()
    found = pairwise_reward(judge)(["a"] * 4, ["x", "xx", "x", "xx"])
    assert found == pytest.approx([(2 * sigmoid(-1) + 0.5) / 3, (2 * sigmoid(1) + 0.5) / 3] * 2)
    assert sorted(judge.asked) == [("a", "x", "xx"), ("a", "xx", "x")]
    assert pairwise_reward(judge)(["a"] * 2, ["", ""]) == [0.5, 0.5]
    assert len(judge.asked) == 2


@pytest.mark.parametrize(
    ("size", "num_opponents", "expected"),
    [(4, 1, 1), (4, 2, 2), (4, 3, 3), (5, 1, 2), (5, 2, 2), (5, 3, 4), (6, 3, 3), (6, 5, 5), (3, 9, 2), (2, 1, 1)],
)
def test_every_completion_has_as_many_opponents(size, num_opponents, expected):
    judge = Length()
    texts = ["x" * (length + 1) for length in range(size)]
    pairwise_reward(judge, num_opponents=num_opponents)(["a"] * size, texts)
    assert [sum(first == text for _, first, _ in judge.asked) for text in texts] == [expected] * size
    assert len(set(judge.asked)) == len(judge.asked)


def test_calls_have_no_more_than_batch_size_pairs():
    judge = Length()
    texts = ["x" * length for length in (1, 2, 3, 4)] * 2
    prompts = ["a"] * 4 + ["b"] * 4
    found = pairwise_reward(judge, batch_size=5)(prompts, texts)
    assert judge.sizes == [5, 5, 5, 5, 4]
    assert found == pytest.approx(pairwise_reward(Length(), batch_size=100)(prompts, texts))


def test_what_cannot_be_judged():
    """A pair counts if both orders were judged; a completion without any such pair gets `None`."""

    def judge(prompts, first, second, **columns):
        pairs = zip(first, second, strict=True)
        return [None if "?" in (one, other) else math.nan if one == "!" else 0.75 for one, other in pairs]

    assert pairwise_reward(judge)(["a"] * 4, ["?", "!", "x", "xx"]) == [None, None, 0.5, 0.5]


def test_columns_reach_the_judge():
    def judge(prompts, first, second, answer, **columns):
        assert set(columns) == {"number"}
        triples = zip(first, second, answer, strict=True)
        return [0.5 + (one == right) / 2 - (other == right) / 2 for one, other, right in triples]

    reward = pairwise_reward(judge)
    columns = {"answer": ["1", "1", "2", "2"], "number": (1, 2, 3, 4), "trainer_state": object(), "log_extra": print}
    assert reward(["a", "a", "b", "b"], ["1", "2", "1", "2"], [[1]] * 4, **columns) == [1.0, 0.0, 0.0, 1.0]
    assert "answer" in RewardCalls([reward], None, 0).columns


def test_messages():
    """Groups are of equal messages; a function gets prompts and completions as they are."""
    prompts = [[{"role": "user", "content": text}] for text in "aab"]
    completions = [[{"role": "assistant", "content": text}] for text in ("x", "xx", "x")]

    def judge(prompts, first, second):
        assert all(isinstance(each, list) for each in (*prompts, *first, *second))
        pairs = zip(first, second, strict=True)
        return [float(len(one[0]["content"]) > len(other[0]["content"])) for one, other in pairs]

    assert pairwise_reward(judge)(prompts, completions) == [0.0, 1.0, None]


def test_async_judges():
    async def judge(prompts, first, second, **columns):
        await asyncio.sleep(0)
        return Length()(prompts, first, second)

    given = ["a"] * 3, ["x", "xx", "xxxx"]
    reward = pairwise_reward(judge, batch_size=2)
    assert asyncio.run(reward(*given)) == pytest.approx(pairwise_reward(Length())(*given))
    rewards = call_rewards(resolve_rewards([reward]), *given)
    assert rewards[:, 0].tolist() == pytest.approx(pairwise_reward(Length())(*given))


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        (lambda prompts, first, second: [0.5], r"returned \[0.5\]; expected a list of 2"),
        (lambda prompts, first, second: [1.5] * 2, "returned 1.5 for the completions 'x' and 'y'"),
        (lambda prompts, first, second: ["x"] * 2, "expected a list of 2 probabilities"),
        (lambda prompts, first, second: None, "returned None"),
    ],
)
def test_outputs_of_judges_that_are_refused(judge, message):
    with pytest.raises(RewardError, match=message):
        pairwise_reward(judge)(["a"] * 2, ["x", "y"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"judge": 3}, "judge is 3"),
        ({"judge": Length}, "give a sequence-classification model"),
        ({"num_opponents": 0}, "num_opponents=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"template": "{first}{second}"}, "template: for a judge that is a model, but Length is a function"),
        ({"tokenizer": tokenizer_of()}, "tokenizer: for a judge that is a model"),
    ],
)
def test_arguments_that_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        pairwise_reward(**{"judge": Length(), **arguments})


# -- models as judges -------------------------------------------------------------------------------------

PAIR = (["She "] * 2, ["ran", "loved the dog"])


def opinionated(*args, **fields):
    """A random model whose opinions differ by more than rounding."""
    model = classifier(*args, **fields)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.4)
    return model


def judged(model, ids, index=None):
    """The probability that a model gives to rows of ids, read one by one."""
    logits = alone(model, ids)
    return float(logits[0].sigmoid() if index is None else logits.softmax(-1)[index])


def both(model, tokenizer, template, index=None):
    """The expected rewards of `PAIR`, of the two filled templates."""
    a, b = PAIR[1]
    ahead, behind = (
        judged(model, tokenizer(template.format(prompt="She ", first=one, second=two))["input_ids"], index)
        for one, two in ((a, b), (b, a))
    )
    return [(ahead + 1 - behind) / 2, (behind + 1 - ahead) / 2]


@pytest.mark.parametrize(("kind", "pad"), [("bert", 0), ("llama", 0), ("llama", None)])
def test_a_model_with_one_label(kind, pad):
    """Its logit is the log-odds of the first completion; padding changes nothing."""
    model, tokenizer = opinionated(kind, pad_token_id=pad, max_position_embeddings=64), tokenizer_of()
    expected = both(model, tokenizer, "{prompt}<|endoftext|>{first}<|endoftext|>{second}")
    assert abs(expected[0] - 0.5) > 1e-2
    assert pairwise_reward(model, tokenizer)(*PAIR) == pytest.approx(expected, abs=1e-5)


def test_a_model_with_labels_and_ties():
    names = {0: "first", 1: "second", 2: "tie"}
    model = opinionated("bert", 3, id2label=names, label2id={name: at for at, name in names.items()})
    tokenizer, template = tokenizer_of(), "Q {prompt} A {first} B {second}"
    wins, ties = both(model, tokenizer, template, 0), both(model, tokenizer, template, 2)
    assert min(abs(wins[0] - 0.5), abs(ties[0] - 0.5)) > 1e-3
    found = pairwise_reward(model, tokenizer, label="first", template=template)(*PAIR)
    assert found == pytest.approx(wins, abs=1e-5)
    found = pairwise_reward(model, tokenizer, label="first", tie_label=2, template=template)(*PAIR)
    assert found == pytest.approx([win + (tie - 0.5) / 2 for win, tie in zip(wins, ties, strict=True)], abs=1e-5)


def segment_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of words in the manner of BERT, with special tokens and segments."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "she", "ran", "sat", "and"]
    backend = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = [("[CLS]", 2), ("[SEP]", 3)]
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=specials
    )
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=inputs, **names)


def test_a_pair_of_sequences_is_read_with_segments():
    """As the tokenizer encodes a pair; a separator that a completion spells out is ordinary text."""
    model, tokenizer = classifier("bert", max_position_embeddings=32), segment_tokenizer()
    seen = []
    model.register_forward_pre_hook(lambda module, args, given: seen.append(given), with_kwargs=True)
    template = ("{prompt}", "{first} {sep} {second}")
    pairwise_reward(model, tokenizer, template=template, batch_size=1)(["she"] * 2, ["ran", "sat and ran"])
    expected = tokenizer("she", "ran [SEP] sat and ran")
    assert seen[0]["input_ids"].tolist() == [expected["input_ids"]]
    assert seen[0]["token_type_ids"].tolist() == [expected["token_type_ids"]]
    seen.clear()
    pairwise_reward(model, tokenizer, batch_size=1)(["she"] * 2, ["ran [SEP] sat", "ran"])
    assert seen[0]["input_ids"].tolist() == [[2, 5, 3, 6, 1, 1, 1, 7, 3, 6, 3]]
    assert "token_type_ids" not in seen[0]


def test_the_longest_texts_are_cut_to_one_length():
    """Their ends stay, and both orders read the same texts."""
    model, tokenizer = classifier("bert"), segment_tokenizer()
    seen = []
    model.register_forward_pre_hook(
        lambda module, args, given: seen.append(given["input_ids"][0].tolist()), with_kwargs=True
    )
    reward = pairwise_reward(model, tokenizer, max_length=12, batch_size=1)
    # 12 less [CLS], [SEP], [SEP], [SEP] are 8 tokens: 1 for the short prompt, 3 for each completion
    reward(["she"] * 2, ["ran ran ran sat and", "sat sat sat sat sat sat sat and and"])
    assert seen == [[2, 5, 3, 6, 7, 8, 3, 7, 8, 8, 3], [2, 5, 3, 7, 8, 8, 3, 6, 7, 8, 3]]
    seen.clear()
    reward(["a a a a a a she"] * 2, ["ran", "sat"])
    assert seen == [[2, 4, 4, 4, 4, 4, 5, 3, 6, 3, 7, 3], [2, 4, 4, 4, 4, 4, 5, 3, 7, 3, 6, 3]]


def test_chats_are_rendered_by_the_chat_template():
    model, tokenizer = classifier("llama", max_position_embeddings=64), tokenizer_of(chat_template=TEMPLATE)
    prompts = [[{"role": "user", "content": "the dog?"}]] * 2
    completions = [[{"role": "assistant", "content": text}] for text in PAIR[1]]
    found = pairwise_reward(model, tokenizer)(prompts, completions)
    assert found == pytest.approx(pairwise_reward(model, tokenizer)(["<user>the dog?\n"] * 2, PAIR[1]), abs=1e-6)
    named = tokenizer_of(chat_template="{{ word }}")
    found = pairwise_reward(model, named, chat_template_kwargs={"word": "the dog?"})(prompts, completions)
    assert found == pytest.approx(pairwise_reward(model, tokenizer)(["the dog?"] * 2, PAIR[1]), abs=1e-6)
    with pytest.raises(RewardError, match="no chat template"):
        pairwise_reward(model, tokenizer_of(chat_template=None))(prompts, completions)


def test_models_give_no_gradient_and_come_from_folders(tmp_path):
    model, tokenizer = classifier("llama", max_position_embeddings=64).train(), tokenizer_of()
    expected = pairwise_reward(model, tokenizer)(*PAIR)
    assert all(parameter.grad is None for parameter in model.parameters())
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = pairwise_reward(tmp_path, name="judge", dtype=torch.float32)
    assert loaded(*PAIR) == pytest.approx(expected, abs=1e-6)
    assert pickle.loads(pickle.dumps(loaded))(*PAIR) == pytest.approx(expected, abs=1e-6)
    assert loaded.__name__ == "judge"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"judge": torch.nn.Linear(1, 1)}, "got Linear"),
        ({"tokenizer": None}, "needs its tokenizer"),
        ({"max_length": 33}, "allow 32 tokens"),
        ({"max_length": 4}, "need at least 3"),
        ({"label": 0}, "only one label; leave label out"),
        ({"tie_label": 0}, "only one label; leave tie_label out"),
        ({"template": "{first} {second} {third}"}, "template="),
        ({"template": "{first}"}, "template="),
        ({"template": "{first}{first}{second}"}, "template="),
        ({"template": "{first!r}{second}"}, "template="),
        ({"template": "{first}{second}{"}, "other braces are doubled"),
        ({"template": ("{first}", "{second}", "{prompt}")}, "or two"),
        ({"template": 3}, "template=3"),
        ({"tokenizer": tokenizer_of(eos_token=None)}, "without {sep}"),
    ],
)
def test_arguments_of_models_that_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        pairwise_reward(**{"judge": classifier("llama"), "tokenizer": tokenizer_of(), **arguments})


def test_labels_that_are_refused():
    model = classifier("bert", 2, id2label={0: "second", 1: "first"}, label2id={"second": 0, "first": 1})
    for options, message in (
        ({}, "first completion being better"),
        ({"label": "frist"}, "did you mean 'first'"),
        ({"label": "first", "tie_label": 1}, "the same label"),
    ):
        with pytest.raises(ConfigError, match=message):
            pairwise_reward(model, tokenizer_of(), **options)
