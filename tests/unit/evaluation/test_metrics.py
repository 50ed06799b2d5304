"""Rewards as metrics: guarantees of `evaluate`, and values counted by hand."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import evaluate
import numpy as np
import pytest
from datasets import Dataset, Features, Value

from hf_rlae.evaluation.metrics import ExactMatch, LetterAccuracy, MeanSentiment, NumberAccuracy, RewardMetric
from hf_rlae.rewards import RewardError, get_reward, list_rewards, weighted_sum

OPTIONS = ["a dog", "Paris", "London"]
METRICS = {
    "letter": (
        LetterAccuracy,
        ["(B)", "The answer is London.", "A or B", "C"],
        [{"answer": "B", "choices": OPTIONS}, {"answer": 1, "choices": OPTIONS}, "A", None],
        {"accuracy": 1 / 3, "num_judged": 3, "num_unjudged": 1},
    ),
    "number": (
        NumberAccuracy,
        ["12", "#### 1,200", "12 or 13", "1/2", "0.5"],
        [12, "5 #### 1200", 12.0, Fraction(1, 2), Decimal("0.6")],
        {"accuracy": 3 / 5, "num_judged": 5, "num_unjudged": 0},
    ),
    "exact_match": (
        ExactMatch,
        ["the Beatles.", "nyc", "Rome", "\ud800"],
        ["Beatles", {"value": "New York", "aliases": ["NYC"]}, ["Paris", "Roma"], None],
        {"exact_match": 2 / 3, "num_judged": 3, "num_unjudged": 1},
    ),
    "sentiment": (
        MeanSentiment,
        ["", "a table", "good bad"],
        [None, None, "whatever"],
        {"score": (0.5 + 0.5 + get_reward("sentiment")([""], ["good bad"])[0]) / 3, "num_judged": 3, "num_unjudged": 0},
    ),
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Nothing is written to the cache of evaluate."""
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "cache"))
    yield
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(("make", "predictions", "references", "expected"), METRICS.values(), ids=METRICS)
class TestEveryMetric:
    def test_by_hand(self, make, predictions, references, expected):
        assert make().compute(predictions=predictions, references=references) == pytest.approx(expected)

    def test_ways_to_add(self, make, predictions, references, expected):
        """`compute` at once, `add` one by one, `add_batch` in parts, and a mixture of them, are the same."""
        metric = make()
        for prediction, reference in zip(predictions, references, strict=True):
            metric.add(prediction=prediction, reference=reference)
        assert len(metric) == len(predictions)
        assert metric.compute() == pytest.approx(expected)
        metric.add_batch(predictions=predictions[:1], references=references[:1])
        metric.add_batch(predictions=predictions[1:], references=references[1:])
        assert metric.compute() == pytest.approx(expected)
        metric.add(prediction=predictions[0], reference=references[0])
        assert metric.compute(predictions=predictions[1:], references=references[1:]) == pytest.approx(expected)

    def test_nothing_stays_behind(self, make, predictions, references, expected):
        """A second `compute` is independent of the first."""
        metric = make()
        metric.compute(predictions=predictions[-1:], references=references[-1:])
        assert metric.compute(predictions=predictions, references=references) == pytest.approx(expected)

    def test_two_at_a_time(self, make, predictions, references, expected):
        """Two objects of one class do not share data."""
        one, other = make(), make()
        one.add_batch(predictions=predictions, references=references)
        other.add_batch(predictions=predictions[:1], references=references[:1])
        assert one.compute() == pytest.approx(expected)
        assert other.compute()["num_judged"] == 1

    def test_in_files(self, make, predictions, references, expected, tmp_path):
        """With an own folder, the data are written to it and deleted afterwards."""
        metric = make(keep_in_memory=False, cache_dir=str(tmp_path / "own"), experiment_id="run-1")
        metric.add_batch(predictions=predictions, references=references)
        assert list((tmp_path / "own").rglob("*.arrow"))
        assert metric.compute() == pytest.approx(expected)
        assert not list((tmp_path / "own").rglob("*.arrow"))

    def test_description(self, make, predictions, references, expected):
        metric = make()
        assert isinstance(metric, evaluate.Metric)
        assert set(metric.features) == {"predictions", "references"}
        assert metric.measure in expected
        assert metric.description
        assert "references" in metric.compute.__doc__


class Accuracy(evaluate.Metric):
    """As the Hub's `accuracy`, for numbers."""

    def _info(self):
        features = Features({"predictions": Value("int32"), "references": Value("int32")})
        return evaluate.EvaluationModuleInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        return {"accuracy": float(np.mean(np.array(predictions) == np.array(references)))}


def test_same_as_a_plain_metric(tmp_path):
    """On plain whole numbers, the rule's accuracy is plain accuracy."""
    rng = np.random.default_rng(0)
    predictions, references = rng.integers(0, 3, 50), rng.integers(0, 3, 50)
    plain = Accuracy(keep_in_memory=True, cache_dir=str(tmp_path / "plain"))
    expected = plain.compute(predictions=predictions, references=references)["accuracy"]
    found = NumberAccuracy().compute(predictions=[str(p) for p in predictions], references=references)
    assert found["accuracy"] == pytest.approx(expected)
    assert 0 < expected < 1


def test_combine():
    both = evaluate.combine([NumberAccuracy(), ExactMatch()])
    found = both.compute(predictions=["12", "12.0"], references=["12", "12"])
    assert found["accuracy"] == 1.0
    assert found["exact_match"] == 0.5


def test_columns_of_a_data_set():
    rows = Dataset.from_dict({"text": ["#### 5", "6"], "answer": ["5", "5"]})
    assert RewardMetric("gsm8k").compute(predictions=rows["text"], references=rows["answer"])["accuracy"] == 0.5


def test_messages_as_predictions():
    prediction = [{"role": "assistant", "content": "12"}]
    assert NumberAccuracy().compute(predictions=[prediction], references=[12])["accuracy"] == 1.0


def test_nothing_judged():
    found = NumberAccuracy().compute(predictions=["1", "2"], references=[None, None])
    assert math.isnan(found["accuracy"])
    assert (found["num_judged"], found["num_unjudged"]) == (0, 2)


def test_any_reward():
    """Names of tasks, reward functions and sums; each names its own key."""
    for name in set(list_rewards()) - {"math_verify", "mbpp", "humaneval"}:
        assert RewardMetric(name).measure in ("accuracy", "exact_match", "score")
    total = RewardMetric(weighted_sum(["gsm8k", "svamp"]))
    assert total.compute(predictions=["5", "6"], references=[5, 5]) == {
        "score": 1.0,
        "num_judged": 2,
        "num_unjudged": 0,
    }


async def waiting(prompts, completions, **columns):
    return [0.0] * len(completions)


def test_misuse():
    with pytest.raises(RewardError, match="async"):
        RewardMetric(waiting)
    with pytest.raises(RewardError, match="row 1"):
        NumberAccuracy().compute(predictions=["1", "2"], references=["1", "x"])
    with pytest.raises(ValueError, match="Mismatch"):
        NumberAccuracy().compute(predictions=["1", "2"], references=["1"])
    with pytest.raises(ValueError, match="must be a list"):
        NumberAccuracy().add_batch(predictions="12", references="12")
    with pytest.raises(ValueError, match="must be a list"):
        NumberAccuracy().compute(predictions=["12"])
    with pytest.raises(ValueError, match="Bad inputs"):
        NumberAccuracy().add(prediction="1", reference="1", answer="1")
