"""The study of real members, in small: random members from folders, and made-up stories."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from hf_rlae import EnsembleForCausalLM, Member
from hf_rlae.errors import ConfigError
from hf_rlae.policies import StaticPolicy
from hf_rlae.vocabulary import ByteVocabulary
from tests.studies import real_members as study
from tests.studies.forced_text import Passage, guesses_of
from tests.studies.real_members_tables import bits_of, bits_per_byte, comparison_table
from tests.studies.story_policies import SPAN_LENGTH, read_stories, sample_texts, train_by_likelihood
from tests.support.models import pair
from tests.support.tokenizers import byte_level_bpe, characters, sentencepiece_bpe

NAMES = ["Lily", "Tom", "Anna", "Ben", "Sam", "Mia", "Leo", "Zoe", "Nina", "Max"]
PLACES = ["house", "park", "garden", "yard", "room", "forest"]
SMALL = ["--seeds", "1", "--rollouts", "1", "--tokens", "6", "--openings", "3", "--passages", "2", "--bytes", "16"]


def members() -> list[Member]:
    return [
        Member(*pair("llama", 0, byte_level_bpe()), name="one"),
        Member(*pair("llama", 1, sentencepiece_bpe()), name="two"),
    ]


@pytest.fixture
def stories(tmp_path):
    """A file whose lines have many different openings."""
    lines = [f"{name} was in the {place} and saw {other}, who was happy." for name in NAMES for place in PLACES
             for other in NAMES[:2]]  # fmt: skip
    path = tmp_path / "stories.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_splits_have_different_openings_and_passages_follow_them(stories):
    both = members()
    counts = {"train": 20, "validation": 2, "test": 2}
    found = read_stories(stories, both, counts, counts, 20)
    lines = stories.read_text().splitlines()
    openings = [opening for split in counts for opening in found.prompts[split]]
    assert len(set(openings)) == len(openings) == 24
    for split, count in counts.items():
        assert len(found.passages[split]) == len(found.guesses[split]) == count
        for passage in found.passages[split]:
            assert any(line.startswith(passage.prompt + passage.text.decode()) for line in lines)
            assert passage.prompt in found.prompts[split]
            assert 10 < len(passage.text) <= 20
    with pytest.raises(ConfigError, match=r"split 'test' has \d+ different openings"):
        read_stories(stories, both, {"test": 500}, {"test": 2}, 20)
    with pytest.raises(ConfigError, match="0 lines that all members can write with 500 bytes"):
        read_stories(stories, both, {"test": 2}, {"test": 2}, 500)


def test_passages_that_a_member_cannot_write_are_left_out(stories):
    given = [*members(), Member(*pair("llama", 2, characters()), name="three")]
    assert "B" not in characters().get_vocab()  # so it cannot write Ben
    counts = {"train": 20, "test": 1}
    found = read_stories(stories, given, counts, counts, 20)
    vocabulary = ByteVocabulary(characters())
    for passages in found.passages.values():
        for passage in passages:
            raw = passage.prompt.encode() + passage.text
            assert vocabulary.representable(raw) == raw


def test_a_policy_trained_by_likelihood_finds_the_member_that_wrote_the_text():
    """One member goes on with some openings, the other with the others."""
    both = [Member(*pair("llama", seed, characters()), name=f"{seed}") for seed in (0, 3)]
    openings = (["Once upon a time", "Once there"], ["The dogs ran", "They said that"])
    passages = []
    for writer, prompts in zip(both, openings, strict=True):
        given = prompts * 8
        texts = sample_texts(EnsembleForCausalLM.from_members([writer]), given, 20, 0)
        passages += [Passage(prompt, text.encode()) for prompt, text in zip(given, texts, strict=True) if text]
    assert len(passages) >= 20
    policy = train_by_likelihood(both, passages, guesses_of(both[0], passages), 0, particles=2, epochs=60)
    for place, prompts in enumerate(openings):
        watch = study._MeanWeights(policy)
        ensemble = EnsembleForCausalLM.from_members(both, watch, span_length=SPAN_LENGTH)
        sample_texts(ensemble, prompts, SPAN_LENGTH, 1)
        assert watch.mean()[place] > 0.7


def test_fixed_weights_are_the_best_on_the_validation_split(stories, tmp_path, monkeypatch):
    counts = {"train": 4, "validation": 2, "test": 2}
    settings = {"tokens": 4, "particles": 2, "resolution": 4, "rollouts": 1}
    found = read_stories(stories, members(), counts, counts, 16)
    results = study.ResultFolder(tmp_path / "results", settings)
    made = study.Study(members(), ["one", "two"], found, study.SentimentReward(), settings, results)
    seen = []

    def rewards(prompts, seed):
        seen.append(list(prompts))
        return [-abs(made.ensemble.policy.weights[0] - 0.75)], 1.0

    monkeypatch.setattr(made, "rewards", rewards)
    outcome: dict = {}
    assert made._best_weights(study.Run("one+two", study.FIXED["reward"], 0), "reward", outcome) == [0.75, 0.25]
    assert seen == [found.prompts["validation"]] * 5
    assert [0.75, 0.25] in [weights for weights, _ in outcome["tried"]]
    results.write(study.Run("one+two", study.FIXED["reward"], 0).name, {"fixed": [1.0, 0.0]})
    assert made._best_weights(study.Run("one+two", study.FIXED["reward"], 1), "reward", {}) == [1.0, 0.0]
    assert len(seen) == 5


@pytest.mark.slow
def test_the_command_measures_writes_and_goes_on(stories, tmp_path, monkeypatch, capsys):
    folders = []
    for member in members():
        folders.append(str(tmp_path / member.name))
        member.model.save_pretrained(folders[-1])
        member.tokenizer.save_pretrained(folders[-1])
    output = tmp_path / "results"
    given = ["--members", *folders, "--data", str(stories), "--output", str(output), *SMALL]
    given += ["--particles", "2", "--resolution", "2"]
    threads = torch.get_num_threads()
    monkeypatch.setattr(study, "NUM_TRAINING_PROMPTS", 8)
    try:
        study.main(given)
        first = (output / "one+two.md").read_text()
        monkeypatch.setattr(study.Study, "measure", lambda *_: pytest.fail("measured again"))
        study.main(given)
    finally:
        torch.set_num_threads(threads)
    assert (output / "one+two.md").read_text() == first
    entries = [json.loads(line) for line in (output / "one+two.jsonl").read_text().splitlines()]
    methods = [run.method for run in study.plan(["one", "two"], 1)]
    assert [entry["method"] for entry in entries] == methods
    assert len(first.splitlines()) == 2 + len(methods)
    for entry in entries:
        assert len(entry["rewards"]) == 3
        assert len(entry["bits"]) == len(entry["bytes"]) == 2
        assert sum(entry["weights"]) == pytest.approx(1.0, abs=1e-3)
        assert all(0 <= value <= 1 for value in entry["rewards"])
        assert entry["text_bytes"] > 0
    by_method = {entry["method"]: entry for entry in entries}
    assert by_method["two alone"]["weights"] == [0.0, 1.0]
    assert len(by_method[study.LEARNED["reward"]]["curve"]) == 1
    assert (output / "one+two.png").read_bytes().startswith(b"\x89PNG")
    kept = [path.read_text() for path in output.rglob("*") if path.suffix in (".json", ".jsonl", ".md")]
    assert not any(str(tmp_path) in text for text in kept)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--seeds": "0"}, "--seeds 0: at least 1"),
        ({"--bytes": "3"}, "--bytes 3: at least 16"),
        ({"--data": "nowhere.txt"}, "nowhere.txt is not there"),
        ({"--members": "."}, "two or more folders with different names"),
    ],
)
def test_bad_options_are_refused(changed, message, stories, capsys):
    options = {"--members": f"{stories.parent} /", "--data": str(stories), "--output": str(stories.parent / "o")}
    given = [part for name, value in {**options, **changed}.items() for part in (name, *value.split())]
    with pytest.raises(SystemExit):
        study.main(given)
    assert message in capsys.readouterr().err


def entry(method, rewards, bits=None, seed=0, weights=(0.5, 0.5)):
    found = {"method": method, "seed": seed, "rewards": rewards, "weights": list(weights)}
    return found if bits is None else {**found, "bits": bits, "bytes": [10, 30]}


def test_tables_compare_with_the_best_fixed_weights():
    fixed = study.FIXED
    entries = [
        entry(fixed["reward"], [0.5, 0.5], [20.0, 60.0]),
        entry(fixed["reward"], [0.5, 0.5], seed=1),
        entry(fixed["likelihood"], [0.4, 0.4], [20.0, 20.0]),
        entry(study.LEARNED["reward"], [0.7, 0.7], [20.0, 24.0], weights=(0.8, 0.2)),
        entry(study.LEARNED["reward"], [0.6, 0.6], [20.0, 16.0], 1, (0.6, 0.4)),
    ]
    rows = {row[0]: row[1:] for row in comparison_table(entries, fixed).rows}
    learned = rows[study.LEARNED["reward"]]
    assert learned[0] == "0.6500 ± 0.0707"
    assert learned[1].startswith("+0.1500 [+0.1000")
    assert learned[2] == "1.0000 ± 0.1414"
    assert learned[3].startswith("+0.0000 [")
    assert learned[4] == "0.70 / 0.30"
    assert rows[fixed["reward"]][1] == rows[fixed["likelihood"]][3] == ""
    assert rows[fixed["likelihood"]][1] == "-0.1000 [-0.1000, -0.1000]"
    assert rows[fixed["reward"]][2:4] == ("2.0000", "+1.0000 [+0.0000, +2.0000]")
    bits, sizes = bits_of(entries, study.LEARNED["reward"])
    np.testing.assert_allclose(bits_per_byte(bits, sizes), [1.1, 0.9])


def test_mean_weights_are_those_that_were_given():
    watch = study._MeanWeights(StaticPolicy([3, 1]))
    ensemble = EnsembleForCausalLM.from_members(members(), watch, span_length=2)
    texts = sample_texts(ensemble, ["Once upon", "She"], 5, 0)
    assert len(texts) == 2
    assert watch.mean() == [0.75, 0.25]
