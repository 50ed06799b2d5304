"""Openings of small stories; the reward is the sentiment of the continuation, by a lexicon of words."""

from __future__ import annotations

import hashlib

from hf_rlae.checks import COUNT, check_number
from hf_rlae.tasks.definition import BUILT_IN, Example, task
from hf_rlae.tasks.files import built_in_rows
from hf_rlae.tasks.task_row import TaskRow

_MARKER = "<|endoftext|>"


def _opening(row: TaskRow) -> tuple[str, str]:
    num_words = row.options["num_words"]
    check_number("num_words", num_words, COUNT)
    words = row.text("text").replace(_MARKER, " ").split()
    return " ".join(words[:num_words]), " ".join(words[num_words:])


def _split_of(row: TaskRow) -> str:
    """The opening decides the split: one in eight is in test, one in eight in validation."""
    at = hashlib.sha256(_opening(row)[0].encode()).digest()[0] % 8
    return {0: "test", 1: "validation"}.get(at, "train")


@task(
    "story_sentiment",
    description="Openings of small stories, to be continued in a friendly way.",
    default_source=BUILT_IN,
    licence="Apache-2.0 (built-in openings)",
    splits=("train", "validation", "test"),
    fields={"text": ("text", "story")},
    reward="story_sentiment",
    prompt_format="standard",
    message="Continue this story: {question}",
    text="{question}",
    few_shot_split="train",
    examples=built_in_rows("story_sentiment.txt"),
    options={"num_words": 6},
    split_of=_split_of,
    reads_lines=True,
)
def story_sentiment(row: TaskRow) -> Example | None:
    """The prompt is the first `num_words` words of a text. There is no right answer, so `answer` is `""`.

    Texts of at most `num_words` words are left out. In a text file, each line is a text.
    """
    opening, rest = _opening(row)
    return Example(opening, "", rest) if rest else None
