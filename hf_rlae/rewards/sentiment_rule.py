"""The rule for the sentiment of a text: `story_sentiment`, `imdb`.

1. The first 10,000 characters are read in lower case and split at whitespace into words.
2. A word is looked up in the lexicon as it is (`:)` is one), and otherwise without the punctuation at its ends. A word
   of the lexicon has a valence v from -4 to 4. Other words do not count.
3. If one of the three words before it is a negation (no, not, never, none, nobody, nothing, neither, nor, without,
   hardly, cannot, or one that ends in n't), v becomes -v / 2: "not good" is bad, but less so than "bad".
4. With n such words, the score is `1/2 + sum(v) / (8 * (n + 2))`: the mean valence with two neutral words added, scaled
   from -4 .. 4 to 0 .. 1. An empty text, and a text without such words, scores 1/2.

The score is a mean because a sum would reward length. The two neutral words keep a single "wonderful" from the full
score.

A lexicon is a file in the format of VADER's: a word, a tab, its valence, and anything after another tab. Empty lines
and lines that begin with "# " are skipped. The package has a small lexicon of its own; a larger one gives finer scores.

Source: words with a mean valence from -4 to 4 after VADER (Hutto and Gilbert, 2014); the formula and the embedded
lexicon are ours.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

from hf_rlae.errors import RewardError
from hf_rlae.rewards.answer_part import Graded
from hf_rlae.rewards.contract import Batch
from hf_rlae.rewards.registry import register_tasks
from hf_rlae.rewards.rule import TextRule

LARGEST = 4.0
_LONGEST = 10_000
_REACH = 3
_NEUTRAL = 2

_NEGATIONS = frozenset(
    {"no", "not", "never", "none", "nobody", "nothing", "neither", "nor", "without", "hardly", "cannot"}
)
_EDGES = ".,;:!?…\"'“”‘’()[]{}*_-–—"


def load_lexicon(path: str | Path) -> dict[str, float]:
    """Reads a lexicon file.

    Args:
        path (`str` or `Path`): a file in VADER's format, UTF-8.

    Returns:
        `dict[str, float]`: valences from -4 to 4, by words in lower case.

    Raises:
        RewardError: the file does not exist or has no words, or a line cannot be read; the message names it.

    Example:

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "lexicon.txt"
    >>> _ = path.write_text("good\\t1.9\\nbad\\t-2.5\\n")
    >>> load_lexicon(path)
    {'good': 1.9, 'bad': -2.5}
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RewardError(f"lexicon={str(path)!r} cannot be read ({error}); give a text file in UTF-8") from error
    lexicon: dict[str, float] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("# "):
            continue
        word, *rest = line.split("\t")
        try:
            valence = float(rest[0])
        except (IndexError, ValueError):
            valence = math.nan
        if not word.strip() or not abs(valence) <= LARGEST:
            raise RewardError(
                f"lexicon={str(path)!r}, line {number}: {line[:80]!r}; expected a word, a tab and a valence of -4 to 4"
            )
        lexicon[word.strip().lower()] = valence
    if not lexicon:
        raise RewardError(f"lexicon={str(path)!r} has no words; expected lines with a word, a tab and a valence")
    return lexicon


@cache
def embedded_lexicon() -> dict[str, float]:
    """The small lexicon of the package.

    Example:

    >>> embedded_lexicon()["happy"] > 0 > embedded_lexicon()["sad"]
    True
    """
    return load_lexicon(Path(__file__).with_name("sentiment_lexicon.txt"))


def sentiment_score(text: str, lexicon: dict[str, float] | None = None) -> float:
    """The sentiment of a text, from 0 (sad) to 1 (happy), by the rule of this module.

    Args:
        text (`str`): any string.
        lexicon (`dict[str, float]`, *optional*): valences of words; the embedded one by default.

    Example:

    >>> sentiment_score(""), sentiment_score("A happy dog.") > 0.5 > sentiment_score("The dog was not happy.")
    (0.5, True)
    """
    valences = embedded_lexicon() if lexicon is None else lexicon
    total, count, negated_until = 0.0, 0, -1
    for at, word in enumerate(text[:_LONGEST].lower().replace("’", "'").split()):
        bare = word.strip(_EDGES)
        valence = valences.get(word, valences.get(bare))
        if valence is not None:
            total += -valence / 2 if at <= negated_until else valence
            count += 1
        if bare in _NEGATIONS or bare.endswith("n't"):
            negated_until = at + _REACH
    return 0.5 + total / (2 * LARGEST * (count + _NEUTRAL))


class SentimentReward(TextRule):
    """The sentiment of a text, from 0 (sad) to 1 (happy). It needs no ground truth.

    The module's docstring has the rule.

    Args:
        lexicon (`str` or `Path`, *optional*): a file in VADER's format; the package's own small lexicon by default.
        name (`str`, defaults to `"sentiment_reward"`): its `__name__`.
        reading: the options of `TextRule`.

    Raises:
        RewardError: the file cannot be read.

    Example:

    >>> reward = SentimentReward()
    >>> glad, plain, sad = reward(prompts=[""] * 3, completions=["They were happy.", "A table.", "He cried, sad."])
    >>> glad > plain == 0.5 > sad
    True
    """

    def __init__(self, lexicon: str | Path | None = None, name: str = "sentiment_reward", **reading: Any) -> None:
        super().__init__(name, **reading)
        self.lexicon = None if lexicon is None else load_lexicon(lexicon)

    def score_parts(self, parts: list[Graded], batch: Batch) -> list[float | None]:
        """See `TextRule.score_parts`."""
        return [sentiment_score(part.text, self.lexicon) for part in parts]


register_tasks(lambda name: SentimentReward(name=name), ("sentiment", "story_sentiment", "imdb"))
