"""Baselines that choose among members' finished answers, or a member or weights on a validation split."""

from __future__ import annotations

import math

import pytest
import torch

from hf_rlae import EnsembleForCausalLM, StaticPolicy, get_baseline, train_pair_ranker
from hf_rlae.baselines import answer_pairs, pairrm_judge
from hf_rlae.errors import ConfigError, RewardError
from hf_rlae.rewards.pair_judges import PairJudge
from tests.support.baselines import always
from tests.support.tokenizers import byte_level_bpe, raw_bytes
from tests.unit.rewards.test_reward_models import classifier, tokenizer_of

ONE = {"max_new_tokens": 1, "do_sample": False}


def writers(*letters):
    """Members that always write one letter; the second has another tokenizer."""
    kinds = [byte_level_bpe(), raw_bytes(), byte_level_bpe(), byte_level_bpe()]
    return [always(kind, {letter: 0.9, "z": 0.1}) for kind, letter in zip(kinds, letters, strict=False)]


@pytest.mark.parametrize(
    ("answer", "texts", "winner"),
    [
        pytest.param("text", ["a", "b", "b"], 1, id="two votes beat one"),
        pytest.param("text", ["a", "b", "c"], 0, id="a tie: the first"),
        pytest.param("text", ["a", "b", "c", "c", "b"], 1, id="a tie of pairs: the earlier pair"),
        pytest.param("text", ["a", " B!", "b."], 1, id="compared as answers"),
        pytest.param("number", ["It is 4.", "#### 5", "5.0"], 1, id="numbers"),
        pytest.param("number", ["no idea", "7", "none"], 1, id="no answer, no vote"),
        pytest.param("number", ["no", "none"], 0, id="no answers at all: the first"),
        pytest.param("letter", ["The answer is (B).", "C", "(c)"], 1, id="letters"),
        pytest.param(len, ["aa", "b", "c"], 1, id="a function"),
    ],
)
def test_majority_vote(answer, texts, winner):
    assert get_baseline("majority_vote", answer=answer).winner(texts) == winner


def test_the_winner_is_returned_at_the_cost_of_all():
    output = get_baseline("majority_vote").generate(writers("a", "b", "b"), ["Q", "R"], **ONE)
    assert output.texts == ["b", "b"]
    assert output.choices == [1, 1]
    assert output.member_tokens.tolist() == [[1, 1, 1]] * 2
    assert output.forward_calls == [1, 1, 1]


def score(texts):
    return [float(text == "b") for text in texts]


def test_the_best_member_is_found_on_a_validation_split():
    ensemble = EnsembleForCausalLM.from_members(writers("a", "b", "b"))
    baseline = get_baseline("best_member").fit(ensemble, ["Q", "R"], score, **ONE)
    assert (baseline.index, baseline.scores) == (1, [0.0, 1.0, 1.0])
    output = baseline.generate(ensemble, ["Q"], **ONE)
    assert (output.texts, output.choices, output.member_tokens.tolist()) == (["b"], [1], [[0, 1, 0]])


def test_the_best_fixed_weights_are_found_on_a_validation_split():
    """With weight w on the second member, `b` has .9 w and `a` .9 (1 - w)."""
    ensemble = EnsembleForCausalLM.from_members(writers("a", "b"))
    baseline = get_baseline("best_fixed", resolution=4).fit(ensemble, ["Q"], score, **ONE)
    assert baseline.weights == [0.25, 0.75]  # nearest to equal weights of those that write b
    assert [score for _, score in baseline.search.tried] == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert baseline.generate(ensemble, ["Q"], **ONE).texts == ["b"]


def test_baselines_that_leave_nothing_open_are_fitted_by_doing_nothing():
    baseline = get_baseline("gac")
    assert baseline.fit(["no/such", "./folder"], ["Q"], score, **ONE) is baseline  # nothing is loaded


def test_the_policy_baselines_ask_their_policy_and_leave_the_ensembles_own():
    ensemble = EnsembleForCausalLM.from_members(writers("a", "b"))
    own = ensemble.policy
    assert get_baseline("best_fixed", weights=[0.2, 0.8]).generate(ensemble, ["Q"], **ONE).texts == ["b"]
    assert get_baseline("ensemble", policy=StaticPolicy([0, 1])).generate(
        ensemble, ["Q"], **ONE
    ).member_tokens.tolist() == [[0, 1]]
    assert ensemble.policy is own


# -- the pair ranker --------------------------------------------------------------------------------------


def judged(table):
    """A judge with these probabilities of the first answer being better."""
    return lambda prompts, first, second: [table[pair] for pair in zip(first, second, strict=True)]


def test_pair_ranker_by_hand():
    """Log-odds of .9 are 2.2 and of .6 .4; a wins twice by little, b once by much.

    Logits: a .4 + .4 + .4 + .4 = 1.6, b 2.2 + 2.2 - .8 = 3.6, c -.8 - 4.4 = -5.2. Wins: a 4, b 2 - 2 = 0.
    """
    table = {("a", "b"): 0.6, ("b", "a"): 0.4, ("a", "c"): 0.6, ("c", "a"): 0.4, ("b", "c"): 0.9, ("c", "b"): 0.1}
    answers = [["a"], ["b"], ["c"]]
    assert get_baseline("pair_ranker", judge=judged(table)).best(["Q"], answers) == [1]
    assert get_baseline("pair_ranker", judge=judged(table), aggregation="max_wins").best(["Q"], answers) == [0]
    output = get_baseline("pair_ranker", judge=judged(table)).generate(writers(*"abc"), ["Q"], **ONE)
    assert (output.texts, output.choices) == (["b"], [1])


def test_pair_ranker_a_judge_that_prefers_a_position_changes_nothing():
    fair = lambda prompts, first, second: [1 / (1 + math.exp(ord(one) - ord(two))) for one, two in zip(first, second)]  # noqa: B905, E731
    biased = lambda *texts: [min(1.0, prob * 1.5) for prob in fair(*texts)]  # noqa: E731
    answers = [["c", "a"], ["b", "b"], ["d", "c"]]
    for judge in (fair, biased):
        assert get_baseline("pair_ranker", judge=judge, judge_batch_size=3).best(["Q", "R"], answers) == [1, 0]


def test_pair_ranker_equal_answers_are_not_compared_and_what_cannot_be_judged_counts_nothing():
    asked = []

    def judge(prompts, first, second):
        asked.extend(zip(prompts, first, second, strict=True))
        return [None] * len(first)

    ranker = get_baseline("pair_ranker", judge=judge)
    assert ranker.best(["Q", "R"], [["a", "a"], ["a", "b"]]) == [0, 0]
    assert asked == [("R", "a", "b"), ("R", "b", "a")]


def test_a_small_ranker_learns_which_answers_are_right():
    """Answers to prompts that it was not trained on; the right one is always the same."""
    words = ["a", "she", "ran", "sat", "and", "the", "dog"]
    model = classifier("bert", max_position_embeddings=64, hidden_size=32, num_hidden_layers=1)
    judge = PairJudge(model, tokenizer_of())
    prompts = [f"{one} {two}" for one in words for two in words]
    answers = [["ran" for _ in prompts], ["sat" for _ in prompts]]
    scores = [[float(answer == "ran") for answer in own] for own in answers]
    pairs = answer_pairs(prompts, answers, scores)
    assert len(pairs) == len(prompts)
    losses = train_pair_ranker(judge, pairs[:40], num_epochs=8, learning_rate=1e-2)
    assert losses[-1] < 0.3 < losses[0]
    assert not model.training
    ranker = get_baseline("pair_ranker", judge=judge)
    assert ranker.best(prompts[40:], [own[40:] for own in answers[::-1]]) == [1] * 9


def test_training_is_repeatable_and_touches_no_generator():
    found = []
    state = torch.get_rng_state()
    for _ in range(2):
        judge = PairJudge(classifier("bert"), tokenizer_of())
        found.append(train_pair_ranker(judge, answer_pairs(["a"], [["ran"], ["sat"]], [[1], [0]]), num_epochs=2))
    assert found[0] == found[1]
    assert torch.equal(state, torch.get_rng_state())


class Recorded(torch.nn.Module):
    """A stand-in for the published ranker, which records what it reads."""

    def __init__(self):
        super().__init__()
        self.one = torch.nn.Parameter(torch.zeros(1))
        self.read = []

    def forward(self, input_ids, attention_mask):
        self.read = [row[mask.bool()].tolist() for row, mask in zip(input_ids, attention_mask, strict=True)]
        return type("Output", (), {"logits": torch.tensor([0.0, 2.0])})


def test_pairrm_reads_prompt_and_answers_each_with_its_mark():
    model, tokenizer = Recorded(), byte_level_bpe()
    found = pairrm_judge(model, tokenizer)(["Q", "R"], ["one", "x" * 3000], ["two", "b"])
    assert found == pytest.approx([0.5, 1 / (1 + math.exp(-2))])
    parts = [tokenizer.encode(text) for text in ("<|source|>Q", "<|candidate1|>one", "<|candidate2|>two")]
    assert model.read[0] == [i for part in parts for i in part]
    source, last = tokenizer.encode("<|source|>R"), tokenizer.encode("<|candidate2|>b")
    assert len(model.read[1]) == len(source) + (2048 - len(source)) // 2 + len(last)


@pytest.mark.parametrize(
    ("judge", "error", "message"),
    [
        pytest.param(3, ConfigError, "judge is 3", id="no judge"),
        pytest.param(lambda *texts: [0.5], RewardError, "for 2 pairs", id="too few"),
        pytest.param(lambda *texts: [0.5, 1.5], RewardError, "1.5", id="no probability"),
    ],
)
def test_judges_that_cannot_be_used_are_refused(judge, error, message):
    with pytest.raises(error, match=message):
        get_baseline("pair_ranker", judge=judge).best(["Q"], [["a"], ["b"]])


def test_training_needs_pairs_and_one_label():
    judge = PairJudge(classifier("bert"), tokenizer_of())
    with pytest.raises(ConfigError, match="pairs is empty"):
        train_pair_ranker(judge, [])
    two = PairJudge(classifier("bert", num_labels=2), tokenizer_of(), label=1)
    with pytest.raises(ConfigError, match="num_labels=1"):
        train_pair_ranker(two, answer_pairs(["a"], [["ran"], ["sat"]], [[1], [0]]))
