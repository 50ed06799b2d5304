"""The rule for sentiment: the formula by hand, its bounds, and lexicon files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_rlae.rewards import RewardError, get_reward
from hf_rlae.rewards.sentiment_rule import embedded_lexicon, load_lexicon, sentiment_score

LEXICON = {"good": 2.0, "great": 4.0, "bad": -2.0, "awful": -4.0, ":)": 2.0, "not": -1.0}


def score(total, count):
    return 0.5 + total / (8 * (count + 2))


CASES = {
    "empty": ("", 0.5),
    "spaces": ("  \n", 0.5),
    "nothing_known": ("A table stands here.", 0.5),
    "good": ("good", score(2, 1)),
    "bad": ("bad", score(-2, 1)),
    "both": ("good and bad", 0.5),
    "twice": ("good good", score(4, 2)),
    "capitals": ("GOOD", score(2, 1)),
    "marks": ("**Good!**", score(2, 1)),
    "quoted": ("“good”", score(2, 1)),
    "emoticon": ("fine :)", score(2, 1)),
    "part_of_a_word": ("goodness", 0.5),
    "hyphenated": ("good-natured", 0.5),
    "negated": ("never good", score(-1, 1)),
    "negated_at_a_distance": ("never very very good", score(-1, 1)),
    "negated_too_far": ("never very very very good", score(2, 1)),
    "negation_before_itself_counts_nothing": ("good never", score(2, 1)),
    "contraction": ("isn't good", score(-1, 1)),
    "typographic_contraction": ("isn’t good", score(-1, 1)),
    "negated_bad": ("no bad", score(1, 1)),
    "negation_in_the_lexicon": ("not good", score(-1 - 1, 2)),
    "two_negated": ("never good or great", score(-1 - 2, 2)),
    "nul": ("good\0 good", score(2, 1)),
    "lone_surrogate": ("\ud800 good", score(2, 1)),
    "long": ("x" * 9_995 + " good good", score(2, 1)),
}


@pytest.mark.parametrize(("text", "expected"), CASES.values(), ids=CASES)
def test_cases(text, expected):
    assert sentiment_score(text, LEXICON) == pytest.approx(expected, abs=1e-12)


words = st.lists(st.sampled_from([*LEXICON, "x", "never", "isn't"]), max_size=60)


@given(st.one_of(words.map(" ".join), st.text(st.characters(exclude_categories=()), max_size=200)))
def test_scores_lie_between_0_and_1(text):
    assert 0 < sentiment_score(text, LEXICON) < 1
    assert 0 < sentiment_score(text) < 1


@given(words)
def test_opposite_lexicons_give_opposite_scores(text):
    opposite = {word: -valence for word, valence in LEXICON.items()}
    written = " ".join(text)
    assert sentiment_score(written, LEXICON) + sentiment_score(written, opposite) == pytest.approx(1.0)


@given(st.integers(1, 50))
def test_length_alone_pays_little(count):
    """The score of repeated words approaches their valence and never exceeds it."""
    once, more = sentiment_score("good " * count, LEXICON), sentiment_score("good " * (count + 1), LEXICON)
    assert once < more < 0.5 + 2 / 8


def test_the_embedded_lexicon():
    lexicon = embedded_lexicon()
    assert len(lexicon) > 200
    assert all(-4 <= valence <= 4 and valence for valence in lexicon.values())
    assert abs(sum(valence > 0 for valence in lexicon.values()) / len(lexicon) - 0.5) < 0.1
    assert all(word == word.lower().strip() and " " not in word for word in lexicon)


def test_reward():
    reward = get_reward("story_sentiment")
    scores = reward(prompts=["sad"] * 3, completions=["They were happy and laughed.", "", "She cried. It hurt."])
    assert scores[0] > scores[1] == 0.5 > scores[2]


def test_vader(shared):
    """The real lexicon is read completely and agrees with the embedded one on which words are positive."""
    path = shared("data", "vader_lexicon", "vader_lexicon.txt")
    lexicon = load_lexicon(path)
    assert len(lexicon) > 7_000
    both = [word for word in embedded_lexicon() if lexicon.get(word)]
    assert len(both) > 150
    agreeing = [word for word in both if (lexicon[word] > 0) == (embedded_lexicon()[word] > 0)]
    assert len(agreeing) >= 0.97 * len(both)
    reward = get_reward("sentiment", lexicon=path)
    glad, sad = reward(prompts=[""] * 2, completions=["What a marvelous day :)", "A catastrophe."])
    assert glad > 0.5 > sad


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no words"),
        ("# only a comment\n", "has no words"),
        ("good\t1\nbad\n", "line 2: 'bad'"),
        ("good one\n", "line 1"),
        ("good\tvery\n", "line 1"),
        ("good\tnan\n", "line 1"),
        ("good\t5\n", "line 1"),
        ("\t1\n", "line 1"),
    ],
)
def test_lexicons_that_are_refused(tmp_path, content, message):
    path = tmp_path / "lexicon.txt"
    path.write_text(content)
    with pytest.raises(RewardError, match=message):
        get_reward("sentiment", lexicon=path)


def test_lexicons_that_cannot_be_opened(tmp_path):
    with pytest.raises(RewardError, match="cannot be read"):
        get_reward("sentiment", lexicon=tmp_path / "none.txt")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(RewardError, match="cannot be read"):
        load_lexicon(tmp_path / "bytes.txt")
