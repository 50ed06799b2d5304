"""`diagnose` gives the right advice, from numbers that are those of the members."""

from __future__ import annotations

import json
import math

import pytest
import torch

from hf_rlae import ConfigError, InputError, diagnose, load_demo_member, load_demo_members, load_task
from hf_rlae.evaluation.headroom import LinearPolicy, bits_of, oracle_bits, tuned_weights
from hf_rlae.evaluation.stretches import ReadText, StretchReader
from hf_rlae.vocabulary import ByteVocabulary

ADDITION = "addition-characters"
QUICK = {"answers": False, "progress": False}


@pytest.fixture(scope="module")
def chains():
    return [dict(row) for row in load_task("arithmetic_chain", "test", limit=60)]


def test_specialists_are_worth_a_policy(chains):
    found = diagnose(load_demo_members(), chains, **QUICK)
    assert found.recommendation == "policy"
    value = {row.method: row.value for row in found.texts.results}
    assert value["oracle per span"] < value["linear policy"] < value["tuned weights"] < value[found.best_member]
    assert value["oracle per text"] < value[found.best_member]
    assert f"{value[found.best_member]:.3f}" in found.advice


def test_a_copy_adds_nothing(chains):
    found = diagnose([load_demo_member(ADDITION), load_demo_member(ADDITION)], chains, **QUICK)
    assert found.recommendation == "member"
    assert len({row.value for row in found.texts.results}) == 1
    assert found.facts["agreement"] == found.facts["common_boundaries"] == 1


def test_a_weak_member_is_left_out(chains):
    sums = [dict(row) for row in load_task("arithmetic_chain", "test", limit=40, operator="+")]
    members = [load_demo_member("multiplication-pieces"), load_demo_member(ADDITION)]
    found = diagnose(members, sums, **QUICK)
    assert (found.recommendation, found.best_member) == ("member", ADDITION)
    assert found.weights[ADDITION] > 0.99


def test_members_that_differ_by_noise_alone_are_an_ensemble():
    """Two noisy copies: neither text nor place says which is better, but their mixture is."""
    members = []
    for seed in range(2):
        member = load_demo_member(ADDITION)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in member.model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise * 0.2 * (parameter.std() if parameter.numel() > 1 else 0.0))
        members.append(member)
    sums = [dict(row) for row in load_task("arithmetic_chain", "test", limit=120)]
    found = diagnose(members, sums, **QUICK)
    assert found.texts.result("tuned weights").difference_high < 0
    assert found.recommendation in ("ensemble", "policy")
    assert min(found.weights.values()) > 0.1


def test_stretches_add_up_to_the_members_own_log_probability(chains):
    members = load_demo_members()
    row = chains[0]
    read = StretchReader(members).read(row["prompt"], row["solution"])
    for index, member in enumerate(members):
        vocabulary = ByteVocabulary(member.tokenizer, member.vocab_size)
        before = member.tokenizer(row["prompt"])["input_ids"]
        own = list(vocabulary.canonical_ids(row["solution"].encode()))
        with torch.no_grad():
            logps = member.model(torch.tensor([before + own])).logits[0, len(before) - 1 : -1].log_softmax(-1)
        expected = logps.gather(1, torch.tensor(own)[:, None]).sum()
        torch.testing.assert_close(read.logps[:, index].sum().float(), expected)
    assert read.num_bytes == len(row["solution"].encode())


def _text(logps, seen=None):
    logps = torch.tensor(logps, dtype=torch.float64)
    seen = torch.zeros(len(logps), 1) if seen is None else torch.tensor(seen, dtype=torch.float32)
    return ReadText(logps, seen, 1.0, 1.0, 10, (1.0, 1.0))


def test_bits_and_oracles_by_hand():
    half, quarter = math.log(0.5), math.log(0.25)
    text = _text([[half, quarter], [quarter, half]])
    assert bits_of(text, torch.tensor([1.0, 0.0])) == pytest.approx(3)
    assert bits_of(text, torch.tensor([0.5, 0.5])) == pytest.approx(-2 * math.log2(0.375))
    assert oracle_bits(text, 1) == pytest.approx(2)
    assert oracle_bits(text, 2) == oracle_bits(text, None) == pytest.approx(3)


def test_tuned_weights_are_the_best_of_a_grid():
    generator = torch.Generator().manual_seed(0)
    texts = [_text(torch.rand(5, 2, generator=generator).log().tolist()) for _ in range(20)]
    weights = tuned_weights(texts)
    own = sum(bits_of(text, weights) for text in texts)
    grid = [torch.tensor([part / 50, 1 - part / 50]) for part in range(1, 50)]
    assert own <= min(sum(bits_of(text, other) for text in texts) for other in grid) + 1e-6


def test_the_linear_policy_learns_from_what_it_sees_and_not_from_noise():
    generator = torch.Generator().manual_seed(0)
    texts, noise = [], []
    for _ in range(60):
        first = torch.randint(2, (6, 1), generator=generator).double()
        logps = torch.cat([first, 1 - first], dim=1) * -3 - 0.1
        texts.append(_text(logps.tolist(), first.tolist()))
        noise.append(_text(logps.tolist(), torch.rand(6, 1, generator=generator).tolist()))
    weights = tuned_weights(texts)
    for given, learns in ((texts, True), (noise, False)):
        policy = LinearPolicy(given[:40], weights, 1)
        fixed = sum(bits_of(text, weights) for text in given[40:])
        own = sum(bits_of(text, policy.weights(text)) for text in given[40:])
        assert (own < 0.5 * fixed) is learns
        assert own < 1.05 * fixed


def test_answers_alone_and_with_texts(chains, tmp_path):
    rows = [{"prompt": row["prompt"], "answer": int(row["answer"])} for row in chains[:16]]
    found = diagnose(load_demo_members(), rows, reward="number", max_new_tokens=4, progress=False)
    assert found.texts is None
    methods = [row.method for row in found.answers.results]
    assert methods == [*(member.name for member in load_demo_members()), "equal weights", "oracle per question"]
    both = diagnose(
        load_demo_members(), "arithmetic_chain", limit=16, reward="number", max_new_tokens=4, progress=False
    )
    assert {"tuned weights", "oracle per question"} <= {row.method for row in both.answers.results}
    both.save(tmp_path)
    assert json.loads((tmp_path / "diagnosis.json").read_text())["recommendation"] == both.recommendation
    assert both.advice in (tmp_path / "diagnosis.md").read_text()


@pytest.mark.parametrize(
    ("model", "task", "options", "error", "words"),
    [
        (1, "arithmetic_chain", {}, ConfigError, "there is one"),
        (2, [{"text": "a text that is long enough"}] * 3, {}, InputError, "has 3 rows; give at least 12"),
        (2, [{"question": "x"}] * 12, {}, InputError, "text_column= or reward="),
        (2, [{"text": "five\u4e2d words that are long enough \u4e2d"}] * 12, {}, InputError, "has no tokens for"),
        (2, "arithmetic_chain", {"limit": 3}, ConfigError, "limit"),
        (2, 7, {}, ConfigError, "task=7"),
        (2, [{"prompt": "5*3=", "answer": 15}] * 12, {"reward": "number"}, ConfigError, "answers=False"),
    ],
)
def test_bad_input_is_refused(model, task, options, error, words):
    members = [load_demo_member(ADDITION) for _ in range(model)]
    with pytest.raises(error, match=words):
        diagnose(members, task, **QUICK, **options)
