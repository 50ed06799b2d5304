"""The rule for multiple choice: a case table, properties, and the ground truths of datasets."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_rlae.rewards import RewardError, get_reward
from hf_rlae.rewards.letter_rule import extract_letter

letter = get_reward("letter")

OPTIONS = ["a dog", "Paris", "London", "carbon dioxide"]
NONE = None
"""In the table: the text has no answer."""

CASES = {
    "bare": ("B", "B"),
    "full_stop": ("B.", "B"),
    "bracket": ("B)", "B"),
    "brackets": ("(B)", "B"),
    "square_brackets": ("[B]", "B"),
    "colon": ("B: Paris", "B"),
    "with_text": ("B. Paris", "B"),
    "bold": ("**B**", "B"),
    "bold_bracket": ("**(B)** Paris", "B"),
    "quoted": ('"B"', "B"),
    "code": ("`B`", "B"),
    "small_bracket": ("b) Paris", "B"),
    "small_bare": ("b", "B"),
    "small_brackets": ("(b)", "B"),
    "next_line": ("B\n\nBecause A is wrong.", "B"),
    "because": ("B because it is large", "B"),
    "option": ("Option B", "B"),
    "boxed": (r"So \boxed{B}, and not C.", "B"),
    "boxed_text": (r"\boxed{\text{B}}", "B"),
    "boxed_bracket": (r"$\boxed{(B)}$", "B"),
    "boxed_option_text": (r"\boxed{\text{Paris}}", "B"),
    "boxed_plain_option_text": (r"\boxed{Paris}", "B"),
    "hashes": ("#### B", "B"),
    "answer_is": ("The answer is B.", "B"),
    "answer_is_bracket": ("The correct answer is (B) Paris.", "B"),
    "answer_colon": ("Answer: B\nC is too small.", "B"),
    "answer_capitals": ("ANSWER: B", "B"),
    "answer_bold": ("**Answer:** **B**", "B"),
    "answer_is_option": ("The answer is option B.", "B"),
    "answer_small": ("the answer is b.", "B"),
    "answer_because": ("The answer is A because it barks.", "A"),
    "answer_next_line": ("The answer is:\n\nB) Paris", "B"),
    "two_answers_last_wins": ("The answer is A. No, the answer is B.", "B"),
    "answer_after_analysis": ("(A) is wrong. (C) is wrong. The answer is (B).", "B"),
    "answer_then_question": ("The answer is B. Is my answer right?", "B"),
    "answer_without_letter": ("I pick (B). I hope the answer is right.", "B"),
    "answer_text": ("The answer is Paris.", "B"),
    "answer_text_and_more": ("The answer is Paris, of course.", "B"),
    "answer_text_with_article": ("The answer is a dog.", "A"),
    "answer_longest_text": ("The answer is carbon dioxide gas", "D"),
    "answer_text_or_text": ("The answer is Paris or London.", NONE),
    "a_or_b": ("A or B", NONE),
    "a_and_b": ("A and B", NONE),
    "a_comma_b": ("A, B", NONE),
    "a_slash_b": ("A/B", NONE),
    "answer_a_or_b": ("The answer is A or B.", NONE),
    "answer_bracket_or_bracket": ("The answer is (A) or (B).", NONE),
    "answer_either": ("The answer is either A or B.", NONE),
    "both": ("Both A and B", NONE),
    "b_or_b": ("B or (B)", "B"),
    "not_b": ("Not B", NONE),
    "answer_not_b": ("The answer is not B.", NONE),
    "answer_not_a_but_b": ("The answer is not A but B.", "B"),
    "answer_isnt": ("The answer isn't B.", NONE),
    "answer_neither": ("The answer is neither A nor B.", NONE),
    "text": ("Paris", "B"),
    "text_full_stop": (" paris. ", "B"),
    "text_bold": ("**Paris**", "B"),
    "text_with_article": ("A dog.", "A"),
    "text_or_text": ("Paris or London", NONE),
    "text_in_a_sentence": ("Paris is large.", "B"),
    "texts_in_a_sentence": ("Paris is larger than London.", NONE),
    "last_line_text": ("It is in France.\nParis", "B"),
    "article": ("A cat sat on the mat.", NONE),
    "article_after_answer": ("Answer: A cat", NONE),
    "pronoun": ("I do not know.", NONE),
    "letter_in_word": ("Because", NONE),
    "vitamin": ("It has vitamin C", NONE),
    "hyphen": ("B-cells do it", NONE),
    "language": ("C++ it is", NONE),
    "possessive": ("B's friend", NONE),
    "last_line": ("Paris is the capital of France.\nB", "B"),
    "last_line_bracket": ("Let me think: A is a pet, C is elsewhere.\n(B)", "B"),
    "only_one_named": ("Since it lies in France, I choose B", "B"),
    "only_one_bracketed": ("So the best one is (B), I think", "B"),
    "it_is": ("I think it is B", "B"),
    "two_named": ("I pick (A). (B) is right.", NONE),
    "one_named_one_refuted": ("(A) is wrong. (B) is right.", "B"),
    "one_named_one_negated": ("I pick (B), not (A)", "B"),
    "options_repeated": ("A) a dog\nB) Paris\nC) London\nD) carbon dioxide", NONE),
    "options_repeated_in_line": ("(A) a dog (B) Paris (C) London", NONE),
    "options_repeated_then_answer": ("A) a dog\nB) Paris\nC) London\nAnswer: B", "B"),
    "options_repeated_then_letter": ("A) a dog\nB) Paris\nC) London\n\nB", "B"),
    "out_of_range": ("E", NONE),
    "answer_out_of_range": ("The answer is E.", NONE),
    "digit": ("2", NONE),
    "cyrillic": ("В", NONE),
    "empty": ("", NONE),
    "spaces": (" \n ", NONE),
    "marks_only": ("(**)", NONE),
    "answer_only_in_words": ("the second one", NONE),
    "long_before": ("x " * 100_000 + "The answer is B.", "B"),
    "long_after": ("The answer is B.\n" + "x " * 100_000, "B"),
    "long_after_start": ("B. " + "x " * 100_000, "B"),
    "lone_surrogate": ("\ud800 (B)", "B"),
    "nul": ("B\0", "B"),
}


@pytest.mark.parametrize(("text", "expected"), CASES.values(), ids=CASES)
def test_cases(text, expected):
    assert extract_letter(text, OPTIONS) == expected
    for answer in "ABCD":
        right = 1.0 if answer == expected else 0.0
        assert letter([""], [text], answer=[answer], choices=[OPTIONS]) == [right]


@pytest.mark.parametrize("name", [name for name in CASES if "text" not in name and "article" not in name])
def test_cases_without_the_options_texts(name):
    """A single letter is read in the same way."""
    text, expected = CASES[name]
    assert extract_letter(text, num_choices=4) == expected


def test_texts_of_options_need_the_column_choices():
    assert extract_letter("The answer is Paris.") is None
    assert extract_letter("The answer is a dog.") is None


def test_a_letter_counts_more_than_the_text_behind_it():
    assert extract_letter("B. London", OPTIONS) == "B"


def test_texts_that_are_letters_or_equal():
    assert extract_letter("The answer is B.", ["D", "C", "B", "A"]) == "B"
    assert extract_letter("Paris", ["Paris", "Paris", "Rome"]) is None
    assert extract_letter("PARIS", ["Paris", "paris", "Rome"]) is None
    assert extract_letter("The answer is paris.", ["Paris", "paris", "Rome"]) == "B"
    assert extract_letter("The answer is PARIS, yes", ["Paris", "paris", "Rome"]) is None
    assert extract_letter("The answer is 8.", ["2", "4", "8"]) == extract_letter("8", ["2", "4", "8"]) == "C"


def test_the_prompt_is_never_graded():
    assert letter(["The answer is B."], ["I do not know."], answer=["B"]) == [0.0]


@pytest.mark.parametrize(
    ("answer", "choices"),
    [
        ("B", None),
        ("b", None),
        (" (B) ", OPTIONS),
        ("B.", OPTIONS),
        (1, None),
        (1, OPTIONS),
        (np.int64(1), OPTIONS),
        (torch.tensor(1), OPTIONS),
        ("2", None),
        ("2", OPTIONS),
        ("Paris", OPTIONS),
        ("2", {"text": OPTIONS, "label": ["1", "2", "3", "4"]}),
        ("B", {"text": OPTIONS, "label": ["A", "B", "C", "D"]}),
        ("F", {"text": OPTIONS, "label": ["E", "F", "G", "H"]}),
    ],
)
def test_ground_truths(answer, choices):
    columns = {} if choices is None else {"choices": [choices] * 2}
    assert letter([""] * 2, ["(B)", "(C)"], answer=[answer] * 2, **columns) == [1.0, 0.0]


@pytest.mark.parametrize(
    "answer", ["", "E", "0", "5", "Rome", 4, -1, True, 1.0, ["B"], "B or C", "a dog, or not"], ids=repr
)
def test_unreadable_ground_truths(answer):
    with pytest.raises(RewardError, match="row 1 of the batch has answer="):
        letter(["", ""], ["B", "B"], answer=["B", answer], choices=[OPTIONS] * 2)


@pytest.mark.parametrize("choices", [[], "ABCD", [1, 2], {"label": ["A"]}, ["x"] * 27, 4])
def test_unreadable_options(choices):
    with pytest.raises(RewardError, match="row 0 of the batch has choices="):
        letter([""], ["B"], answer=["B"], choices=[choices])


def test_rows_without_options():
    """`None` in the column means a row without options; `num_choices` then applies."""
    assert letter([""] * 2, ["F", "F"], answer=["F", "B"], choices=[None, OPTIONS]) == [1.0, 0.0]
    four = get_reward("letter", num_choices=4)
    assert four.__name__ == letter.__name__
    with pytest.raises(RewardError, match="from A to D"):
        four([""], ["F"], answer=["F"])


FORMS = [
    "{}",
    "{}.",
    "({})",
    "**{}**",
    "The answer is {}.",
    "Answer: ({})",
    "\\boxed{{{}}}",
    "#### {}",
    "So ({})",
    "so\n{}",
]


@given(st.integers(0, 25), st.sampled_from(FORMS))
def test_every_letter_in_every_form(index, form):
    expected = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[index]
    assert extract_letter(form.format(expected)) == expected


@given(st.permutations(range(4)), st.integers(0, 3), st.sampled_from(FORMS[4:7]))
def test_texts_follow_their_option(order, index, form):
    """The text of an option names it, whatever the order of the options."""
    options = [OPTIONS[at] for at in order]
    assert extract_letter(form.format(OPTIONS[index]), options) == "ABCD"[options.index(OPTIONS[index])]


pieces = st.lists(
    st.sampled_from(
        ["A", "B", "(C)", "D.", "a", "b)", "I", "The answer is ", "Answer: ", "\\boxed{", "}", "#### ", " or ", ", "]
        + [" not ", "**", "\n", " ", ".", "Paris", "a dog", "option ", "'", "-", "Ａ", "\ud800", "\0"]
    ),
    max_size=30,
).map("".join)


@given(st.one_of(pieces, st.text(st.characters(exclude_categories=()), max_size=200)))
@settings(max_examples=500)
def test_nothing_raises(text):
    assert letter([""], [text], answer=["B"], choices=[OPTIONS]) in ([0.0], [1.0])
    assert extract_letter(text) is None or extract_letter(text).isupper()


@given(pieces, st.sampled_from("ABCD"))
def test_what_stands_before_the_last_marker_does_not_matter(before, answer):
    assert extract_letter(f"{before}\n\nThe answer is ({answer}).", OPTIONS) == answer


@given(pieces, pieces, pieces)
def test_the_prompt_changes_nothing(text, one, other):
    assert letter([one], [text], answer=["B"]) == letter([other], [text], answer=["B"])


def test_arc_answers_are_read(shared):
    """Letters and the labels "1" .. "4", and the text of the right option."""
    lines = shared("data", "arc_challenge", "test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    choices = [[row[key] for key in "ABCD"] for row in rows]
    answers = [row["answer"] for row in rows]
    at = ["ABCD".index(answer) if answer in "ABCD" else int(answer) - 1 for answer in answers]
    letters = [f"The answer is ({'ABCD'[i]})." for i in at]
    prompts = [""] * len(rows)
    assert set(letter(prompts, letters, answer=answers, choices=choices)) == {1.0}
    wrong = [f"The answer is ({'BCDA'[i]})." for i in at]
    assert set(letter(prompts, wrong, answer=answers, choices=choices)) == {0.0}
    # the rows with labels from "1" have lost the texts of their options
    kept = [row for row, i in enumerate(at) if choices[row][i]]
    texts = [f"The answer is: {choices[row][at[row]]}" for row in kept]
    columns = {"answer": [answers[row] for row in kept], "choices": [choices[row] for row in kept]}
    right = letter([""] * len(kept), texts, **columns)
    assert len(kept) > 1_000
    assert sum(right) >= 0.97 * len(kept)


FORMS_OF_ARC = {
    "thought": "<think>Maybe the answer is ({wrong})...</think> ({right})",
    "answer_first": "{right}) {text}, because {wrong}) is not right.",
    "sentence": "So, {right} is correct.",
    "text": "It's {text}!",
    "text_and_another": "{text}, not {other}",
    "text_in_a_box": r"\boxed{{\text{{{text}}}}}",
    "next_question": "{right}\n\nQuestion: And the next one?\nAnswer: {wrong}",
}


@pytest.mark.parametrize("form", FORMS_OF_ARC.values(), ids=FORMS_OF_ARC)
def test_forms_of_answers_to_arc(shared, form):
    """Every form is right for the right option, but for texts that contain one another, and for no wrong one."""
    lines = shared("data", "arc_challenge", "test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["answer"] in "ABCD" and row["A"]]
    assert len(rows) > 1_000
    answers = [row["answer"] for row in rows]
    wrong = ["BCDA"["ABCD".index(answer)] for answer in answers]
    texts = [
        form.format(right=row["answer"], wrong=option, text=row[row["answer"]], other=row[option])
        for row, option in zip(rows, wrong, strict=True)
    ]
    choices = [[row[key] for key in "ABCD"] for row in rows]
    assert sum(letter(completions=texts, answer=answers, choices=choices)) >= 0.99 * len(rows)
    assert sum(letter(completions=texts, answer=wrong, choices=choices)) == 0.0
