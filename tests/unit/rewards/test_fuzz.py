"""Rules never raise and never hang, whatever a model writes, and they never look at the prompt."""

from __future__ import annotations

import random
import re
import time

import pytest

from hf_rlae.rewards import get_reward
from tests.support.tiers import draws, show_figure

COLUMNS = {
    # rule: columns of one row
    "number": {"answer": "12"},
    "letter": {"answer": "B", "choices": ["a hat", "the liver", "a cat", "dogs"]},
    "exact_match": {"answer": "Paris", "aliases": ["the capital of France"]},
    "sentiment": {},
}
GOLD = {
    # rule: texts that it pays
    "number": ("12", "#### 12", "The answer is 12.", r"\boxed{12}", "<answer>12</answer>"),
    "letter": ("B", "(B)", "The answer is B.", "Answer: B", r"\boxed{B}"),
    "exact_match": ("Paris", "Answer: Paris", "The answer is Paris.", "the capital of France"),
}
WORDS = re.findall(
    r"\S+",
    r"""
    the answer is Answer: Final #### # = == => of to or and not because minus plus million " ' ` * ** _ ^ ~ | , ; : !
    ?? ...
    \boxed{ } { \frac{1}{2} \frac12 \sqrt{2} \text{B} $ $$ \( \) \[ \] \ \\ ( ) ((( [ ] {"answer": <br> &nbsp;
    12 -12 1,000 1.5 3/4 1e9 1e400 12% ½ ٣ 0x1f inf nan A B (B) B) B. **B** C D "B" Paris London, U.S.A. café 日本 😀
    <think> </think> <answer> </answer> <|thinking|> Question: Q: A:
    """,
) + ["e\u0301", "\u00ad", "\u200b", "\u202e", "\ud800", "\0", "\t", "\r\n", "\n", "\n\n"]
ATTACKS = re.findall(
    r"\S+",
    r"""
    a 1 - + . , $ \ { } ( ) [ ] < > # * _ / % = 😀 1, 1. 1/ -1 1e (B #### \boxed{ \boxed{1} \frac{ \frac{1}{ \text{
    <think> </think> <answer> </answer> Answer: {"answer":
    """,
) + [" ", "\n", "\t", "\u0301", "\u200b", "a ", "A) ", "B or ", "not B ", "#### 1 ", "The answer is ", "Q: ", "minus "]
ATTACKS += ["\\boxed{1} or ", "That is wrong. ", "Actually that took 3 steps. "]
LENGTH = 200_000
MOST_MS = draws(60, 5)  # of CPU time; in the gate other work may fill the caches


def score(rule: str, *completions: str, prompt: str = "Q") -> list[float | None]:
    count = len(completions)
    columns = {name: [value] * count for name, value in COLUMNS[rule].items()}
    return get_reward(rule)(prompts=[prompt] * count, completions=list(completions), **columns)


def written(rng: random.Random) -> str:
    """Words of answers in any order, with any characters between them."""
    parts = [rng.choice(WORDS) for _ in range(rng.randint(0, 40))]
    parts += [chr(rng.choice([rng.randrange(0x80), rng.randrange(0x110000)])) for _ in range(rng.randint(0, 4))]
    rng.shuffle(parts)
    return rng.choice(["", " ", "\n"]).join(parts)


@pytest.mark.parametrize("rule", COLUMNS)
def test_any_text_gets_a_score_between_0_and_1(rule):
    rng = random.Random(f"texts for {rule}")
    count = draws(500, 6_500)
    for start in range(0, count, 100):
        texts = [written(rng) for _ in range(min(100, count - start))]
        scores = score(rule, *texts)
        assert all(value is not None and 0.0 <= value <= 1.0 for value in scores), texts
    show_figure(f"{rule}: {count} texts, no exception")


@pytest.mark.parametrize("rule", COLUMNS)
def test_long_texts_are_graded_in_no_time(rule):
    """Repeated openings and markers, for which a backtracking expression needs quadratic or exponential time."""
    score(rule, "warm up")
    slowest = (0.0, "")
    for unit in ATTACKS:
        long = unit * (LENGTH // len(unit))
        for text in (long, f"{long}!", f"12 {long}"):
            spent = []
            for _ in range(2):
                began = time.process_time()
                score(rule, text)
                spent.append((time.process_time() - began) * 1000)
            slowest = max(slowest, (min(spent), repr(text[:20])))
    show_figure(f"{rule}: {len(ATTACKS)} families of {LENGTH} characters, the slowest {slowest[0]:.1f} ms {slowest[1]}")
    assert slowest[0] < MOST_MS, slowest


@pytest.mark.parametrize("rule", GOLD)
def test_the_prompt_is_never_graded(rule):
    """An empty or evasive completion is not paid for a right answer in the prompt."""
    rng = random.Random(f"prompts for {rule}")
    count = draws(60, 1_000)
    paid = 0
    for _ in range(count):
        right = rng.choice(GOLD[rule])
        prompt = f"{written(rng)} {right}\n{rng.choice(['', 'Q: ', written(rng)])}"
        assert score(rule, right) == [1.0], right
        paid += score(rule, rng.choice(["", " ", "\n", "...", "I do not know."]), prompt=prompt) != [0.0]
    show_figure(f"{rule}: {paid} of {count} paid")
    assert paid == 0
