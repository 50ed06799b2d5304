"""The rule for numbers: a case table, properties, and the datasets' own answers."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hf_rlae.rewards import RewardError, get_reward
from hf_rlae.rewards.number_rule import extract_number
from hf_rlae.rewards.number_syntax import number_of

number = get_reward("number")

NONE = None
"""In the table: the text has no answer."""

CASES = {
    "bare": ("12", 12),
    "sentence_end": ("She has 12.", 12),
    "last_of_several": ("3 + 4 = 7, and 7 + 5 = 12", 12),
    "hashes": ("3 * 4 = <<3*4=12>>12\n#### 12", 12),
    "hashes_touching": ("####12", 12),
    "hashes_with_unit": ("#### 12 apples for 3 children", 12),
    "hashes_with_currency": ("#### $12", 12),
    "hashes_bold": ("#### **12**", 12),
    "hashes_equation": ("#### 3 * 4 = 12", 12),
    "hashes_heading_in_words": ("#### Step 1: multiply\nso she has 12", 12),
    "hashes_heading_with_number": ("#### Step 1\nso she has 12", 12),
    "hashes_numbered_heading": ("#### 1. Multiply\nso she has 12", 12),
    "two_hashes": ("#### 11\nNo, that was wrong.\n#### 12", 12),
    "boxed": (r"so \boxed{12} is it, of 3", 12),
    "boxed_with_space": (r"\boxed {12}", 12),
    "fbox": (r"\fbox{12} of 13", 12),
    "boxed_text": (r"$\boxed{12\text{ apples}}$ for 3", 12),
    "boxed_nested_braces": (r"\boxed{\frac{1}{2}} of 3", Fraction(1, 2)),
    "boxed_unclosed": (r"\boxed{12", 12),
    "boxed_empty": (r"12 \boxed{}", 12),
    "two_boxes": (r"\boxed{11} no, \boxed{12}", 12),
    "answer_is": ("The answer is 12 because 3 * 4 is 12 and 5 is not.", 12),
    "answer_colon": ("Answer: 12\nAll 3 are happy.", 12),
    "answer_capitals": ("FINAL ANSWER: 12\nAll 3 are happy.", 12),
    "answer_bold": ("**Final Answer:** **12**\nAll 3 are happy.", 12),
    "answer_to_the_question": ("The answer to the question is 12. See page 3.", 12),
    "answer_next_line": ("The answer is:\n\n12\n\nSee page 3.", 12),
    "answer_first_sentence_only": ("The answer is 12. There are 3 of them.", 12),
    "answer_then_an_equation": ("The answer is 12. Each child has 24 / 6 = 4 of them.", 12),
    "answer_equation": ("The answer is 3 * 4 = 12.", 12),
    "answer_without_number": ("The answer is 12. I hope my answer is right.", 12),
    "answer_unfinished": ("There are 12. The answer is", 12),
    "two_answers_last_wins": ("The answer is 11. No, the answer is 12.", 12),
    "last_marker_wins_over_kind": ("\\boxed{11}\nThe answer is 12.", 12),
    "last_marker_wins_box": ("The answer is 11.\n\\boxed{12}", 12),
    "answer_a_or_b": ("The answer is 12 or 13.", NONE),
    "a_or_b": ("It is 12 or 13", NONE),
    "either": ("Either 11 or 12", NONE),
    "boxed_a_or_b": (r"\boxed{12 \text{ or } 13}", NONE),
    "answer_list": ("The answer is 12, 13, 14.", NONE),
    "answer_list_and": ("The answer is 12 and 13.", NONE),
    "answer_range": ("The answer is 12-13.", NONE),
    "answer_range_to": ("The answer is 12 to 13.", NONE),
    "answer_unfinished_sum": ("The answer is 5 + 7", NONE),
    "answer_digit_groups_by_spaces": ("The answer is 1 200", 1200),
    "list_without_marker": ("They are 10, 11, 12", 12),
    "not_b": ("It is not 12", NONE),
    "answer_not_b": ("The answer is not 12.", NONE),
    "answer_not_a_but_b": ("The answer is not 11 but 12.", 12),
    "b_not_a": ("It is 12, not 11.", 12),
    "isnt": ("12. It isn't 11", 12),
    "cannot_be": ("12, and it cannot be 11", 12),
    "unequal": ("x = 12 and x != 11", 12),
    "thousands": ("1,200", 1200),
    "thousands_millions": ("1,234,567.25", Decimal("1234567.25")),
    "thousands_latex": (r"\boxed{1{,}200}", 1200),
    "thousands_thin_latex": (r"\boxed{1\,200}", 1200),
    "thousands_thin_space": ("1\u2009200", 1200),
    "thousands_narrow_space": ("1\u202f200", 1200),
    "thousands_wrong_groups": ("12,34,567", NONE),
    "decimal_comma": ("1,25", NONE),
    "decimals": ("0.125", Fraction(1, 8)),
    "trailing_zeros": ("12.500", Fraction(25, 2)),
    "leading_point": (".5", Fraction(1, 2)),
    "leading_zeros": ("0012", 12),
    "two_points": ("1.2.3", NONE),
    "negative": ("-12", -12),
    "negative_in_brackets": ("(-12)", -12),
    "minus_sign": ("−12", -12),
    "fullwidth_minus": ("－12", -12),
    "en_dash": ("it is –12", -12),
    "minus_apart": ("- 12", 12),
    "difference": ("20-12", 12),
    "negative_zero": ("-0", 0),
    "negative_zero_decimals": ("-0.00", 0),
    "plus": ("+12", 12),
    "dollar": ("$12", 12),
    "dollar_latex": (r"\$12.00", 12),
    "negative_dollar": ("-$12", -12),
    "dollar_negative": ("$-12", -12),
    "euro": ("12 €", 12),
    "percent": ("12%", 12),
    "percent_latex": (r"\boxed{12\%}", 12),
    "degrees": (r"\boxed{12^\circ}", 12),
    "unit_touching": ("12kg", 12),
    "unit_with_exponent": ("12 m^2, or 12 m^{2}", 12),
    "ordinal": ("the 12th", 12),
    "fraction": ("1/2", Fraction(1, 2)),
    "fraction_spaces": ("1 / 2", Fraction(1, 2)),
    "fraction_negative": ("-1/2", Fraction(-1, 2)),
    "fraction_latex": (r"-\frac{1}{2}", Fraction(-1, 2)),
    "fraction_latex_short": (r"\dfrac12", Fraction(1, 2)),
    "fraction_to_a_whole": ("24/2", 12),
    "fraction_of_zero": ("1/0", NONE),
    "fraction_that_does_not_end": ("10/3", Fraction(10, 3)),
    "rounded": ("3.33", Decimal("3.33")),
    "mixed": ("1 1/2", Fraction(3, 2)),
    "mixed_and": ("1 and 1/2", Fraction(3, 2)),
    "mixed_latex": (r"-1\frac{1}{2}", Fraction(-3, 2)),
    "vulgar": ("½", Fraction(1, 2)),
    "vulgar_mixed": ("12½", Fraction(25, 2)),
    "date": ("1/2/2020", NONE),
    "time": ("12:30", NONE),
    "scientific": ("1.2e1", 12),
    "scientific_times": ("1.2 × 10^1", 12),
    "scientific_latex": (r"\boxed{1.2 \times 10^{-3}}", Decimal("0.0012")),
    "power_of_ten": ("10^3", 1000),
    "power": ("2^3", NONE),
    "power_stars": ("2**3", NONE),
    "power_raised": ("10²", NONE),
    "arabic_digits": ("١٢", 12),
    "devanagari_digits": ("१२", 12),
    "fullwidth_digits": ("The answer is １２．", 12),
    "bold": ("**12**", 12),
    "code": ("`12`", 12),
    "name_with_digit": ("12 litres of H2O", 12),
    "subscript": ("12 of x_1", 12),
    "bullet_list": ("- 10\n- 11\n- 12", 12),
    "numbered_list": ("1. ten\n2. twelve", 2),
    "word": ("twelve", NONE),
    "infinity": ("∞", NONE),
    "infinity_word": ("infinity", NONE),
    "nan": ("nan", NONE),
    "empty": ("", NONE),
    "spaces": ("   \n ", NONE),
    "chain_symbolic": (" 5*3=15; 7+15=22. 22", 22),
    "chain_worded": (" 5 times 3 is 15; 7 plus 15 is 22. So 22", 22),
    "long_before": ("x" * 200_000 + " #### 12", 12),
    "long_after": ("#### 12\n" + "x" * 200_000, 12),
    "long_after_without_marker": ("12 " + "x" * 200_000, 12),
    "as_long_as_allowed": ("1" * 4_000, int("1" * 4_000)),
    "too_long": ("1" * 4_001, NONE),
    "tail_of_a_too_long_number": ("7," + "123," * 50_000 + "123", NONE),
    "large_exponent": ("1e" + "9" * 18, Decimal("1e" + "9" * 18)),
    "too_large_exponent": ("1e" + "9" * 19, NONE),
    "lone_surrogate": ("12 \ud800", 12),
    "nul": ("12\0", 12),
}


@pytest.mark.parametrize(("text", "expected"), CASES.values(), ids=CASES)
def test_cases(text, expected):
    found = extract_number(text)
    assert found == (None if expected is NONE else number_of(expected))
    if expected is not NONE:
        assert found is not None
        assert number([""], [text], answer=[expected]) == [1.0]
        assert number([""], [text], answer=[13]) == [0.0]
    else:
        assert number([""], [text], answer=[12]) == [0.0]


def test_the_prompt_is_never_graded():
    assert number(["The answer is 12."], ["I do not know."], answer=["12"]) == [0.0]


@pytest.mark.parametrize(
    "answer",
    ["12", "12.0", " 12 apples", "$12", "3 * 4 = 12\n#### 12", "3\n#### 12", 12, 12.0, Decimal(12), Fraction(24, 2)]
    + [np.int64(12), np.float32(12), torch.tensor(12)],
)
def test_ground_truths(answer):
    assert number([""] * 2, ["12", "3"], answer=[answer] * 2) == [1.0, 0.0]


@pytest.mark.parametrize(
    "answer", ["", "twelve", "3 and 12", "1,23", "#### ", "3\n####", float("nan"), float("inf"), True, [12], {}, b"12"]
)
def test_unreadable_ground_truths(answer):
    with pytest.raises(RewardError, match="row 1 of the batch"):
        number(["", ""], ["12", "12"], answer=["12", answer])


def test_floats_mean_what_they_print():
    assert number([""] * 3, ["0.1", "1/10", "0.1000000000000000055"], answer=[0.1] * 3) == [1.0, 1.0, 0.0]


fractions = st.fractions(max_denominator=10**20).filter(lambda value: abs(value) < 10**60)


@given(fractions)
def test_fractions_survive_being_written(value):
    assert extract_number(str(value)) == number_of(value)
    assert extract_number(f"The answer is {value}.") == number_of(value)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=8))
def test_decimals_survive_being_written(value):
    assert extract_number(f"{value:f}") == number_of(value) == number_of(Fraction(value))
    assert extract_number(f"{value:,f}") == number_of(value)
    assert extract_number(f"{value:e}") == number_of(value)


@given(fractions, fractions)
def test_equal_forms_are_equal_values(a, b):
    assert (number_of(a) == number_of(b)) == (a == b)
    assert extract_number(f"{a.numerator}/{a.denominator}") == number_of(a)


pieces = st.lists(
    st.sampled_from(
        ["12", "3.5", "1,200", "#### ", "\\boxed{", "}", "The answer is ", "Answer: ", " or ", " not ", "=", "-", "$"]
        + ["\n", " ", ".", ",", "/", "^", "e", "\\frac{", "½", "١", "x", "(", ")", "%", "**", "10^", "\ud800", "\0"]
    ),
    max_size=30,
).map("".join)


@given(st.one_of(pieces, st.text(st.characters(exclude_categories=()), max_size=200)))
@settings(max_examples=500)
def test_nothing_raises(text):
    assert number([""], [text], answer=[12]) in ([0.0], [1.0])


@given(pieces, st.integers(-(10**6), 10**6))
def test_what_stands_before_the_last_marker_does_not_matter(before, value):
    for marked in (f"\n#### {value}", f"\nThe answer is {value}.", rf" \boxed{{{value}}}"):
        # the words before must not reach into the marker: "####" + "#### 5", or "not" before a box
        assume(not before.endswith(("#", "\\", "not ")))
        assert extract_number(before + marked) == number_of(value)


@given(pieces, pieces, pieces)
def test_the_prompt_changes_nothing(text, one, other):
    assert number([one], [text], answer=[12]) == number([other], [text], answer=[12])


def test_gsm8k_solves_itself(shared):
    """Every solution of the dataset is right for its own answer, and wrong for that answer plus 1."""
    lines = shared("data", "gsm8k", "test.jsonl").read_text(encoding="utf-8").splitlines()
    answers = [json.loads(line)["answer"] for line in lines]
    bare = [answer.rpartition("####")[2] for answer in answers]
    prompts = [""] * len(answers)
    assert set(number(prompts, answers, answer=bare)) == {1.0}
    assert set(number(prompts, bare, answer=answers)) == {1.0}
    assert set(number(prompts, answers, answer=[float(text.replace(",", "")) + 1 for text in bare])) == {0.0}


FORMS_OF_GSM8K = {
    "thought": ("<think>Maybe the answer is {wrong}...</think> {solution}", 1.0),
    "right_in_the_thought_only": ("<think>{solution}</think> The answer is {wrong}.", 0.0),
    "thought_cut_off": ("<think>{solution}", 0.0),
    "tag": ("{solution}\n#### {wrong}\n<answer>{right}</answer>", 1.0),
    "next_question": ("{solution}\n\nQuestion: And the next one?\nAnswer: #### {wrong}", 1.0),
    "unit": (r"So $\boxed{{{right}\text{{ dollars}}}}$, not {wrong}.", 1.0),
    "two_numbers": ("The answer is {right} or {wrong}.", 0.0),
}


@pytest.mark.parametrize(("form", "reward"), FORMS_OF_GSM8K.values(), ids=FORMS_OF_GSM8K)
def test_forms_of_answers_to_gsm8k(shared, form, reward):
    lines = shared("data", "gsm8k", "test.jsonl").read_text(encoding="utf-8").splitlines()
    solutions = [json.loads(line)["answer"] for line in lines]
    right = [solution.rpartition("####")[2].strip() for solution in solutions]
    wrong = [str(int(text.replace(",", "")) + 1) for text in right]
    texts = [
        form.format(solution=solution, right=text, wrong=other)
        for solution, text, other in zip(solutions, right, wrong, strict=True)
    ]
    assert set(number(completions=texts, answer=right)) == {reward}


def test_svamp_answers_are_read(shared):
    rows = json.loads(shared("data", "svamp", "SVAMP.json").read_text(encoding="utf-8"))
    answers = [row["Answer"] for row in rows]
    texts = [f"It is {answer} of them." for answer in answers]
    assert set(number([""] * len(rows), texts, answer=answers)) == {1.0}
