"""The rule for how a text feels: `story_sentiment`.

1. The first 10,000 characters are read, in small letters, and cut at white space into words.
2. A word is looked up in the lexicon as it stands (`:)` is one), and else without the punctuation at its ends. A word
   of the lexicon has a valence v from -4 to 4; other words count nothing.
3. Where one of the three words before it is a negation (no, not, never, none, nobody, nothing, neither, nor, without,
   hardly, cannot, or one that ends in n't), v becomes -v / 2: "not good" is bad, but less so than "bad".
4. With n such words, the score is `1/2 + sum(v) / (8 * (n + 2))`: the mean valence as if there were two neutral words
   more, brought from -4 .. 4 to 0 .. 1. An empty text, and one without such words, has 1/2.

The mean, and not the sum, because a sum pays for length; the two neutral words, because a mean alone pays a single
"wonderful" in full.

A lexicon is a file in the format of VADER's: a word, a tab, its valence, and anything after a further tab. Lines that
are empty or begin with "# " are skipped. The package has a small one of its own; a larger one gives finer scores.

Source: words with a mean valence from -4 to 4 after VADER (Hutto and Gilbert, 2014); the formula and the embedded
lexicon are ours.
"""

from __future__ import annotations

import math
from functools import cache
from importlib.resources import files
from pathlib import Path

from hf_rlae.errors import RewardError
from hf_rlae.rewards.contract import Batch, Reward
from hf_rlae.rewards.registry import register_tasks

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
        `dict[str, float]`: words in small letters, and valences from -4 to 4.

    Raises:
        RewardError: no such file, no words in it, or a line that cannot be read; the message names it.

    Example:

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "lexicon.txt"
    >>> _ = path.write_text("good\\t1.9\\nbad\\t-2.5\\n")
    >>> load_lexicon(path)
    {'good': 1.9, 'bad': -2.5}
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RewardError(f"lexicon={str(path)!r} cannot be read ({error}); give a text file in UTF-8") from error
    return _parse_lexicon(text, str(path))


def _parse_lexicon(text: str, path: str) -> dict[str, float]:
    lexicon: dict[str, float] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.startswith("# "):
            continue
        word, *rest = line.split("\t")
        try:
            valence = float(rest[0])
        except (IndexError, ValueError):
            valence = math.nan
        if not word.strip() or not abs(valence) <= LARGEST:
            raise RewardError(
                f"lexicon={path!r}, line {number}: {line[:80]!r}; expected a word, a tab and a valence from -4 to 4"
            )
        lexicon[word.strip().lower()] = valence
    if not lexicon:
        raise RewardError(f"lexicon={path!r} has no words; expected lines with a word, a tab and a valence")
    return lexicon


@cache
def embedded_lexicon() -> dict[str, float]:
    """The small lexicon of the package.

    Example:

    >>> embedded_lexicon()["happy"] > 0 > embedded_lexicon()["sad"]
    True
    """
    file = files("hf_rlae.rewards").joinpath("sentiment_lexicon.txt")
    return _parse_lexicon(file.read_text(encoding="utf-8"), "sentiment_lexicon.txt")


def sentiment_score(text: str, lexicon: dict[str, float] | None = None) -> float:
    """How a text feels, from 0 (sad) to 1 (glad), by the rule of this module.

    Args:
        text (`str`): any string.
        lexicon (`dict[str, float]`, *optional*): valences of words; the embedded one if not given.

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


class SentimentReward(Reward):
    """How glad a text is, from 0 to 1. It needs no ground truth.

    The module's docstring has the rule.

    Args:
        lexicon (`str` or `Path`, *optional*): a file in VADER's format; the package's own small lexicon if not given.
        name (`str`, defaults to `"sentiment_reward"`): its `__name__`.

    Raises:
        RewardError: the file cannot be read.

    Example:

    >>> reward = SentimentReward()
    >>> glad, plain, sad = reward(prompts=[""] * 3, completions=["They were happy.", "A table.", "He cried, sad."])
    >>> glad > plain == 0.5 > sad
    True
    """

    def __init__(self, lexicon: str | Path | None = None, name: str = "sentiment_reward") -> None:
        super().__init__(name)
        self.lexicon = None if lexicon is None else load_lexicon(lexicon)

    def score_texts(self, texts: list[str], batch: Batch) -> list[float | None]:
        """See `Reward.score_texts`."""
        return [sentiment_score(text, self.lexicon) for text in texts]


register_tasks(lambda name: SentimentReward(name=name), ("sentiment", "story_sentiment"))
