"""The rule for short answers: a case table and properties."""

from __future__ import annotations

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from hf_rlae.rewards import RewardError, get_reward
from hf_rlae.rewards.exact_match_rule import extract_answers, normalize_answer

triviaqa = get_reward("triviaqa")

CASES = {
    "bare": ("Paris", "Paris", 1.0),
    "small": ("paris", "Paris", 1.0),
    "capitals": ("PARIS", "Paris", 1.0),
    "full_stop": ("Paris.", "Paris", 1.0),
    "spaces": ("  Paris \n", "Paris", 1.0),
    "second_line": ("Paris\nLondon", "Paris", 1.0),
    "second_line_is_not_read": ("London\nParis", "Paris", 0.0),
    "empty_first_line": ("\n\nParis", "Paris", 1.0),
    "next_question": ("Paris\n\nQuestion: Who wrote Hamlet?", "Paris", 1.0),
    "sentence_behind": ("Paris. It lies on the Seine.", "Paris", 1.0),
    "exclamation": ("Paris!", "Paris", 1.0),
    "sentence_before": ("Let me think. Paris", "Paris", 0.0),
    "in_a_sentence": ("It is Paris", "Paris", 1.0),
    "in_a_longer_sentence": ("Paris is the capital", "Paris", 0.0),
    "answer_is": ("It is a city. The answer is Paris.", "Paris", 1.0),
    "answer_colon": ("Answer: Paris", "Paris", 1.0),
    "answer_bold": ("**Answer:** **Paris**", "Paris", 1.0),
    "answer_next_line": ("The answer is:\nParis", "Paris", 1.0),
    "boxed": (r"So \boxed{Paris} it is", "Paris", 1.0),
    "hashes": ("I think.\n#### Paris", "Paris", 1.0),
    "two_answers_last_wins": ("The answer is London. No, the answer is Paris.", "Paris", 1.0),
    "two_answers_first_loses": ("The answer is Paris. No, the answer is London.", "Paris", 0.0),
    "a_or_b": ("Paris or London", "Paris", 0.0),
    "answer_a_or_b": ("The answer is Paris or London.", "Paris", 0.0),
    "list": ("Paris, London, Rome", "Paris", 0.0),
    "not_b": ("Not Paris", "Paris", 0.0),
    "answer_not_b": ("The answer is not Paris.", "Paris", 0.0),
    "article": ("The Beatles", "Beatles", 1.0),
    "article_in_reference": ("Beatles", "The Beatles", 1.0),
    "article_an": ("an apple", "Apple", 1.0),
    "only_articles": ("The The", "The The", 1.0),
    "only_articles_differ": ("the", "The The", 0.0),
    "only_marks": ("!!!", "!!!", 1.0),
    "only_marks_differ": ("!", "!!!", 0.0),
    "initials": ("J. R. R. Tolkien", "J.R.R. Tolkien", 1.0),
    "abbreviation": ("St. Louis", "St Louis", 1.0),
    "slash": ("AC/DC", "AC DC", 1.0),
    "hyphen": ("Coca-Cola", "Coca Cola", 1.0),
    "apostrophe": ("O'Neill", "O’Neill", 1.0),
    "underscore": ("New_York", "New York", 1.0),
    "inner_spaces": ("New   York", "New York", 1.0),
    "quotes": ("“Hamlet”", "Hamlet", 1.0),
    "accent": ("Beyoncé", "Beyoncé", 1.0),
    "accent_in_two_characters": ("Beyonce\u0301", "Beyoncé", 1.0),
    "accent_counts": ("Beyonce", "Beyoncé", 0.0),
    "fullwidth": ("Ｐａｒｉｓ", "Paris", 1.0),
    "sharp_s": ("Strasse", "Straße", 1.0),
    "other_script": ("東京", "東京", 1.0),
    "vowel_signs_count": ("कि", "का", 0.0),
    "number": ("1984", "1984", 1.0),
    "number_word": ("seven", "7", 0.0),
    "thousands": ("1,984", "1984", 1.0),
    "part_of_the_answer": ("York", "New York", 0.0),
    "more_than_the_answer": ("New York City", "New York", 0.0),
    "empty": ("", "Paris", 0.0),
    "only_spaces": (" \n\t", "Paris", 0.0),
    "empty_field": ("Paris\nThe answer is", "Paris", 1.0),
    "empty_box": (r"Paris \boxed{}", "Paris", 0.0),
    "long_before": ("x " * 100_000 + "\nAnswer: Paris", "Paris", 1.0),
    "long_line": ("Paris " + "x " * 100_000, "Paris", 0.0),
    "long_after": ("Paris\n" + "x" * 200_000, "Paris", 1.0),
    "ninth_sentence": ("b. " * 8 + "Paris", "b b b b b b b b Paris", 1.0),
    "nul": ("Paris\0", "Paris", 0.0),
    "lone_surrogate": ("Paris\ud800", "Paris", 0.0),
}


@pytest.mark.parametrize(("text", "answer", "expected"), CASES.values(), ids=CASES)
def test_cases(text, answer, expected):
    assert triviaqa([""], [text], answer=[answer]) == [expected]


def test_the_prompt_is_never_graded():
    assert triviaqa(["The answer is Paris."], ["I do not know."], answer=["Paris"]) == [0.0]


RAW = {"value": "New York", "aliases": ["NYC", "Big Apple"], "normalized_aliases": ["nyc", "big apple"]}


@pytest.mark.parametrize(
    ("answer", "aliases"),
    [("New York", ["NYC", "Big Apple"]), (["New York", "NYC", "The Big Apple"], None), (RAW, None), (RAW, [])]
    + [("x", RAW), ({"value": "New York", "aliases": ["NYC", "Big Apple"], "normalized_aliases": None}, None)],
)
def test_ground_truths(answer, aliases):
    texts = ["nyc", "the big apple!", "Boston"]
    columns = {} if aliases is None else {"aliases": [aliases] * 3}
    assert triviaqa([""] * 3, texts, answer=[answer] * 3, **columns) == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("answer", ["", " ", [], {}, {"value": ""}, 7, [7], [None]])
def test_unreadable_ground_truths(answer):
    with pytest.raises(RewardError, match="row 1 of the batch"):
        triviaqa(["", ""], ["x", "x"], answer=["x", answer])


def test_unreadable_aliases():
    with pytest.raises(RewardError, match="row 0 of the batch has aliases=7"):
        triviaqa([""], ["x"], answer=["x"], aliases=[7])


anything = st.text(st.characters(exclude_categories=()), max_size=100)


@given(anything)
@settings(max_examples=500)
def test_nothing_raises_and_empty_texts_never_match(text):
    answers = extract_answers(text)
    assert all(answers)
    assert triviaqa([""], [text], answer=["Paris"]) in ([0.0], [1.0])


@given(st.text(st.characters(codec="utf-8"), max_size=50))
@example(": :")
def test_normalisation_settles(text):
    once = normalize_answer(text)
    assert normalize_answer(once) == once
    assert normalize_answer(f"  {text}\t") == once


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\n#"), min_size=1, max_size=50).filter(normalize_answer)
)
def test_an_answer_answers_itself(text):
    marked = "box" in text or "nswer" in text.lower() or "<" in text
    assume(any(char.isalnum() for char in text) and not marked)
    assert triviaqa([""] * 2, [text, f"\nAnswer: {text}"], answer=[text] * 2) == [1.0, 1.0]


@given(anything, anything, anything)
def test_the_prompt_changes_nothing(text, one, other):
    assert triviaqa([one], [text], answer=["Paris"]) == triviaqa([other], [text], answer=["Paris"])
