"""The real files, in the schemas in which they are distributed."""

from __future__ import annotations

import json
import re

import pytest

from hf_rlae.tasks import load_task


@pytest.mark.parametrize(("split", "count", "by_number"), [("train", 1119, 23), ("test", 1172, 22)])
def test_arc_challenge(split, count, by_number, shared):
    """45 rows have the answers 1 to 4 (for A to D); these rows lost their options."""
    path = shared("data", "arc_challenge", f"{split}.jsonl")
    raw = [json.loads(line) for line in path.open()]
    rows = load_task("arc_challenge", split, path.parent).to_list()
    assert len(rows) == len(raw) == count
    numbered = [(given["answer"], row) for given, row in zip(raw, rows, strict=True) if given["answer"] in "1234"]
    assert len(numbered) == by_number
    for given, row in numbered:
        assert row["answer"] == {"1": "A", "2": "B", "3": "C", "4": "D"}[given]
        assert row["choices"] == [""] * 4
    for given, row in zip(raw, rows, strict=True):
        if given["answer"] not in "1234":
            assert row["answer"] == given["answer"]
            assert row["choices"] == [given[letter].strip() for letter in "ABCD" if given[letter]]
    assert len(load_task("arc_challenge", split, path, blank_options="drop")) == count - by_number


@pytest.mark.parametrize(("split", "count"), [("train", 7473), ("test", 1319)])
def test_gsm8k(split, count, shared):
    """Every answer is the number at the end of the raw field, and no solution contains an annotation."""
    path = shared("data", "gsm8k", f"{split}.jsonl")
    raw = [json.loads(line) for line in path.open()]
    rows = load_task("gsm8k", split, path).to_list()
    assert len(rows) == len(raw) == count
    for given, row in zip(raw, rows, strict=True):
        assert re.fullmatch(r"-?\d+", row["answer"])
        assert given["answer"].replace(",", "").endswith(f"#### {row['answer']}")
        assert row["solution"].endswith(f"\n#### {row['answer']}")
        assert "<<" not in row["solution"]


def test_svamp(shared):
    path = shared("data", "svamp", "SVAMP.json")
    raw = json.loads(path.read_text())
    rows = load_task("svamp", "test", path).to_list()
    assert rows == load_task("svamp", "test", path.parent).to_list()
    assert len(rows) == 1000
    for given, row in zip(raw, rows, strict=True):
        assert float(row["answer"]) == given["Answer"]
        assert "." not in row["answer"]
        assert row["question"].endswith(given["Question"].strip())


def test_mbpp(shared):
    """Both schemas give the same test questions."""
    whole = shared("data", "mbpp", "mbpp.jsonl")
    counts = {split: len(load_task("mbpp", split, whole)) for split in ("prompt", "test", "validation", "train")}
    assert counts == {"prompt": 10, "test": 500, "validation": 90, "train": 374}
    ours = load_task("mbpp", "test", whole)
    theirs = load_task("mbpp", "test", shared("data", "mbpp", "mbpp_test_deepseek.jsonl"))
    assert theirs["question"][:] == ours["question"][:]
    assert theirs["answer"][:] == ours["answer"][:]
    assert len(load_task("mbpp", "test", whole.parent)) == 500


def test_stories(shared):
    path = shared("data", "tinystories", "tinystories_v1_part.txt")
    openings = [set(load_task("story_sentiment", split, path)["prompt"]) for split in ("train", "validation", "test")]
    assert all(len(part) > 300 for part in openings)
    assert not openings[0] & openings[1]
    assert not openings[0] & openings[2]
    assert not openings[1] & openings[2]
    assert all(len(opening.split()) == 6 for part in openings for opening in part)
