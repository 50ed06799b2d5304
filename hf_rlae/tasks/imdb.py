"""IMDB: openings of film reviews, to be continued in a positive way (Maas and others, 2011)."""

from __future__ import annotations

import random
from typing import Any

from hf_rlae.checks import COUNT, check_number
from hf_rlae.errors import ConfigError
from hf_rlae.tasks.definition import Example, task
from hf_rlae.tasks.files import built_in_rows
from hf_rlae.tasks.task_row import TaskRow

_LINE_BREAK = "<br />"


@task(
    "imdb",
    description="Openings of film reviews, to be continued in a positive way.",
    hub_id="stanfordnlp/imdb",
    hub_config="plain_text",
    splits=("train", "test", "unsupervised"),
    fields={"text": ("text", "review")},
    reward="imdb",
    prompt_format="standard",
    message="Continue this film review in a positive way: {question}",
    text="{question}",
    few_shot_split="train",
    examples=built_in_rows("imdb.jsonl"),
    options={"num_words": (2, 7)},
)
def imdb(row: TaskRow) -> Example | None:
    """The prompt is the opening of a review. There is no right answer, so `answer` is `""`; labels are not read.

    Source: CORY (arXiv 2410.06101), whose public code takes the first 2 to 7 tokens of GPT-2; a task has no tokenizer
    and takes words (ours).

    Options: `num_words` (`int` or pair of `int`, defaults to `(2, 7)`): words of an opening; of a pair, the smallest
    and the largest number, between which the seed and the review decide. Reviews without further words are left out.
    """
    fewest, most = _bounds(row.options["num_words"])
    words = row.text("text").replace(_LINE_BREAK, " ").split()
    count = random.Random(f"{row.seed} {' '.join(words)}").randint(fewest, most)  # noqa: S311 (no secret)
    opening, rest = words[:count], words[count:]
    return Example(" ".join(opening), "", " ".join(rest)) if rest else None


def _bounds(num_words: Any) -> tuple[int, int]:
    pair = (num_words, num_words) if isinstance(num_words, int) else num_words
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ConfigError(f"num_words={num_words!r}: expected a number, or the smallest and the largest number")
    for number in pair:
        check_number("num_words", number, COUNT)
    if pair[0] > pair[1]:
        raise ConfigError(f"num_words={num_words!r}: the smallest number comes first")
    return pair[0], pair[1]
