"""The study of real language models, in small: random members and made-up texts."""

from __future__ import annotations

import argparse
import json
import math

import pytest
import torch

from hf_rlae import Member
from hf_rlae.errors import ConfigError
from tests.studies import real_llms as study
from tests.studies.real_llms_scores import Scorer, bits_of, read_scores, split_text
from tests.studies.real_llms_texts import DOMAINS, MIXED, POOL, SPLITS, read_sets
from tests.support.models import pair
from tests.support.tokenizers import byte_level_bpe, characters

TEXT = "Once upon a time there was a girl and she was happy."
COUNTS = {"train": 3, "validation": 2, "test": 2}


@pytest.fixture(scope="module")
def members():
    made = [pair("llama", seed, tokenizer) for seed, tokenizer in enumerate([byte_level_bpe(), characters()])]
    return [Member(*given, name=f"member {index}") for index, given in enumerate(made)]


@pytest.fixture
def scored(members, tmp_path):
    Scorer(members, tmp_path).score("one", TEXT)
    return read_scores(tmp_path, ["one"])[0]


@pytest.fixture
def data(tmp_path):
    """Files of all sources, each with enough different texts."""
    count = 2 * POOL * len(SPLITS)
    story = [f"One day girl {at} and her friend went to the park to play." for at in range(count)]
    rows = {
        "gsm8k/test.jsonl": [
            {"question": f"Tom has {at} apples and buys two.", "answer": f"{at} + 2"} for at in range(count)
        ],
        "mbpp/mbpp.jsonl": [{"code": f"def add_{at}(a, b):\r\n    return a + b + {at}"} for at in range(count)],
        "arc_challenge/test.jsonl": [
            {"question": f"Which of these {at} planets is the largest?"} for at in range(count)
        ],
    }
    texts = {name: "\n".join(map(json.dumps, given)) for name, given in rows.items()}
    for name, text in {**texts, "tinystories/tinystories_v1_part.txt": "\n".join(story)}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_splits_and_sets_have_no_text_in_common(data):
    sets = read_sets(data, COUNTS, 48)
    texts = [text for name in DOMAINS for split in SPLITS for text in sets[name][split]]
    assert len(set(texts)) == len(texts) == len(DOMAINS) * sum(COUNTS.values())
    code = [text.split("```")[1] for split in SPLITS for text in sets[MIXED][split]]
    assert len(set(code)) == sum(COUNTS.values())
    assert not {text[:20] for text in sets["mbpp"]["test"]} & {text.removeprefix("python\n")[:20] for text in code}


def test_a_split_stays_the_same_if_another_grows(data):
    few, more = (read_sets(data, {**COUNTS, "train": number}, 48) for number in (1, 5))
    assert all(few[name]["test"] == more[name]["test"] for name in few)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"tinystories_v1_part\.txt is not there"):
        read_sets(tmp_path, COUNTS, 48)


def test_one_hot_weights_give_the_bits_of_that_member(members, scored):
    prompt, rest = split_text(TEXT)
    for index, member in enumerate(members):
        before = member.tokenizer(prompt)["input_ids"]
        ids = member.tokenizer(TEXT)["input_ids"]
        assert ids[: len(before)] == before
        logps = member.model(input_ids=torch.tensor([ids])).logits[0, len(before) - 1 : -1].log_softmax(-1)
        expected = -logps.gather(1, torch.tensor(ids[len(before) :])[:, None]).sum().item() / math.log(2)
        weights = torch.tensor([float(index == at) for at in range(2)])
        assert bits_of(scored, weights) == pytest.approx(expected, rel=1e-4)
    assert scored.num_bytes == len(rest)


def test_stretches_cover_the_text_and_spans_begin_after_enough_tokens(scored):
    starts = study.span_starts(scored, 4)
    per_span = [
        int(scored.num_tokens[[at for at, s in enumerate(starts) if s == start]].sum()) for start in set(starts)
    ]
    assert sum(per_span) == int(scored.num_tokens.sum()) == len(scored.appended)
    assert all(count >= 4 for count in sorted(per_span)[1:])


def test_what_is_stored_is_not_read_again(members, tmp_path):
    scorer = Scorer(members, tmp_path)
    scorer.score("one", TEXT)
    written = (tmp_path / "one.safetensors").stat().st_mtime_ns
    scorer.members = []
    scorer.score("one", TEXT)
    assert (tmp_path / "one.safetensors").stat().st_mtime_ns == written


def test_training_lowers_the_bits_and_keeps_the_best_state(members, scored):
    policy = study.new_policy(members, 0, 4)
    before = study.mean_bits(policy, [scored], 4)
    assert study.train(policy, [scored], [scored], 0, 4) > 0
    assert study.mean_bits(policy, [scored], 4) < before


def test_tuned_weights_are_no_worse_than_any_member(scored):
    weights = torch.tensor(study.tuned([scored], 10))
    alone = [bits_of(scored, torch.tensor(given)) for given in ([1.0, 0.0], [0.0, 1.0])]
    assert bits_of(scored, weights) <= min(alone) + 1e-6


def test_all_methods_are_in_the_table(members, scored):
    options = argparse.Namespace(resolution=4, seeds=1, span=4)
    scores = {split: {name: [scored, scored] for name in study.SETS} for split in SPLITS}
    made = study.Study(members, ["one", "two"], scores, options)
    methods = made.fixed(MIXED)
    methods["policy"] = made.of_policies(MIXED, [study.new_policy(members, 0, 4)])
    shown = study.table(made, methods, MIXED)
    assert {"one", "two", "uniform", "policy", "appending, uniform"} <= {row[0] for row in shown.rows}
    assert made.oracle(MIXED, by_span=True).mean() <= made.oracle(MIXED, by_span=False).mean() + 1e-9


def test_two_models_are_needed(capsys):
    with pytest.raises(SystemExit):
        study.parse(["--models", "a", "--data", "b", "--output", "c", "--scores", "d"])
    assert "two or more folders" in capsys.readouterr().err
