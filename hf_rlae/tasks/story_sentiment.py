"""Openings of small stories; the reward is how friendly the continuation is, by a lexicon of words."""

from __future__ import annotations

import hashlib

from hf_rlae.errors import ConfigError
from hf_rlae.tasks.definition import BUILT_IN, Example, task
from hf_rlae.tasks.task_row import TaskRow

_STORIES = (
    "Once upon a time there was a small owl who could not sleep at night.",
    "Once upon a time a boy found a blue key under the stairs.",
    "One day a girl named Mia went to the lake with her dad.",
    "One day the wind took a hat and carried it over the hill.",
    "Tom had a red kite, and he wanted it to fly higher than the birds.",
    "Anna and her brother built a house of boxes in the garden.",
    "There was a little frog who lived alone in a big pond.",
    "In a quiet village an old man baked bread every morning.",
    "The cat sat at the window and looked at the falling snow.",
    "Ben was sad because his best friend had moved to another town.",
    "Lily saw a tiny light behind the trees and walked towards it.",
    "A bear and a mouse met at the river on a warm afternoon.",
    "Sam lost his ball in the park, and it began to rain.",
    "The children were playing in the yard when they heard a noise.",
    "Once there was a train that did not like to stop at stations.",
    "Nina got a box from her grandma, and it was very heavy.",
    "A young dog ran after a butterfly and did not look back.",
    "It was dark in the room, and Max could not find his bear.",
    "The moon was bright when the three mice left their home.",
    "Every day a bird came to the same tree to sing.",
    "Leo wanted to help his mom, so he took the big broom.",
    "At the end of the street there stood a tall green door.",
    "Zoe and Finn found a map that somebody had drawn on a leaf.",
    "The baker had a secret that nobody in the town knew.",
    "A fish swam up to the boat and asked for a story.",
    "Early in the morning Ella heard somebody knock at the window.",
    "The small car was proud of its new and shiny wheels.",
    "Deep in the forest a fox was looking for something to eat.",
    "When the bell rang, all the children ran to the gate.",
    "Paul did not want to share his cake with the others.",
    "A star fell from the sky and landed in the grass.",
    "The king had many rooms, but he was always in the kitchen.",
)

_MARKER = "<|endoftext|>"


def _opening(row: TaskRow) -> tuple[str, str]:
    num_words = row.options["num_words"]
    if isinstance(num_words, bool) or not isinstance(num_words, int) or num_words < 1:
        raise ConfigError(f"num_words={num_words!r}: expected a number from 1")
    text = row.text("text").replace(_MARKER, " ")
    words = text.split()
    return " ".join(words[:num_words]), " ".join(words[num_words:])


def _split_of(row: TaskRow) -> str:
    """The same opening is always in the same split: of 8, one in test and one in validation."""
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
    examples=tuple({"text": story} for story in _STORIES),
    options={"num_words": 6},
    split_of=_split_of,
    reads_lines=True,
)
def story_sentiment(row: TaskRow) -> Example | None:
    """The prompt is the first `num_words` words of a text; there is no right answer, so `answer` is `""`.

    Texts that are not longer than that are left out. In a text file, each line is a text.
    """
    opening, rest = _opening(row)
    return Example(opening, "", rest) if rest else None
