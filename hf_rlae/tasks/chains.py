"""Chains of small sums, differences and products: questions, solutions and answers from seeds.

A solution reduces the chain one operator per step: products first, then sums and differences, each from left to right.
The answer comes last. All intermediate results are in 0 .. 99.

    symbolic    7+5*3=                          5*3=15; 7+15=22. 22
    worded      What is 7 plus 5 times 3?       5 times 3 is 15; 7 plus 15 is 22. So 22
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from hf_rlae.errors import ConfigError

OPERATORS = ("+", "-", "*")
WORDS = {"+": "plus", "-": "minus", "*": "times"}
FORMS = ("symbolic", "worded")
HELD_OUT_SPLITS = ("validation", "test")
SPLITS = ("train", *HELD_OUT_SPLITS)
LARGEST = 99
"""The largest result in a valid chain; the smallest is 0."""

_HELD_OUT_SHARE = 8
_PATIENCE = 20_000
_LONG = 12
_ANSWER = re.compile(r"\. (?:So )?(\d{1,4})\Z", re.ASCII)
_SYMBOLIC = re.compile(r"\d+(?:[-+*]\d+)+(?==)", re.ASCII)
_WORDED = re.compile(r"\d+(?: (?:plus|minus|times) \d+)+(?=\?)", re.ASCII)


def apply_operator(operator: str, a: int, b: int) -> int:
    """The true result of `a operator b`.

    Example:

    >>> apply_operator("*", 5, 3)
    15
    """
    return {"+": a + b, "-": a - b, "*": a * b}[operator]


@dataclass(frozen=True)
class Step:
    """One reduction: `a operator b` becomes `result`."""

    a: int
    operator: str
    b: int
    result: int


def reduction_order(operators: Sequence[str]) -> list[str]:
    """The operators in the order of a solution's steps, which does not depend on the numbers.

    Example:

    >>> reduction_order(["+", "*", "-", "*"])
    ['*', '*', '+', '-']
    """
    return [o for o in operators if o == "*"] + [o for o in operators if o != "*"]


def reduce_chain(
    operands: Sequence[int], operators: Sequence[str], result_of: Callable[[str, int, int], int] = apply_operator
) -> Iterator[Step]:
    """The steps that solve a chain. Each step continues from the previous result, right or wrong.

    Args:
        operands (`Sequence[int]`), operators (`Sequence[str]`): one more operand than operators.
        result_of (callable, *optional*): the result to write for `(operator, a, b)`; the true one by default.

    Example:

    >>> [step.result for step in reduce_chain([7, 5, 3], ["+", "*"])]
    [15, 22]
    """
    numbers, left = list(operands), list(operators)
    while left:
        at = left.index("*") if "*" in left else 0
        a, operator, b = numbers[at], left[at], numbers[at + 1]
        result = result_of(operator, a, b)
        yield Step(a, operator, b, result)
        numbers[at : at + 2] = [result]
        del left[at]


def join(a: int, operator: str, b: int, form: str) -> str:
    """A step without its result, such as `5*3=` or `5 times 3 is `."""
    return f"{a}{operator}{b}=" if form == "symbolic" else f"{a} {WORDS[operator]} {b} is "


def closing(form: str) -> str:
    """The text between the last step and the answer."""
    return ". " if form == "symbolic" else ". So "


@dataclass(frozen=True)
class Question:
    """A chain in one of two forms.

    Args:
        operands (`tuple[int, ...]`): one more than operators.
        operators (`tuple[str, ...]`): of `+`, `-`, `*`.
        form (`str`): `"symbolic"` or `"worded"`.

    Example:

    >>> question = Question((7, 5, 3), ("+", "*"))
    >>> question.prompt + question.solution
    '7+5*3= 5*3=15; 7+15=22. 22'
    >>> Question((9, 4), ("-",), "worded").solution
    ' 9 minus 4 is 5. So 5'
    """

    operands: tuple[int, ...]
    operators: tuple[str, ...]
    form: str = "symbolic"

    @property
    def expression(self) -> str:
        """The chain in symbols, whatever the form."""
        return "".join(f"{a}{o}" for a, o in zip(self.operands, (*self.operators, ""), strict=True))

    @property
    def prompt(self) -> str:
        """The prompt for a member."""
        if self.form == "symbolic":
            return self.expression + "="
        worded = re.sub(r"[-+*]", lambda operator: f" {WORDS[operator[0]]} ", self.expression)
        return f"What is {worded}?"

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The true steps."""
        return tuple(reduce_chain(self.operands, self.operators))

    @property
    def answer(self) -> int:
        """The true value of the chain."""
        return self.steps[-1].result

    @property
    def solution(self) -> str:
        """The right completion, without the end token."""
        steps = [f"{join(s.a, s.operator, s.b, self.form)}{s.result}" for s in self.steps]
        return " " + "; ".join(steps) + closing(self.form) + str(self.answer)

    @property
    def is_valid(self) -> bool:
        """Whether all results are in 0 .. 99."""
        return all(0 <= step.result <= LARGEST for step in self.steps)

    @property
    def is_held_out(self) -> bool:
        """Whether the chain is kept out of the training data, in both forms: one in eight, by a hash of the chain."""
        return self.split != "train"

    @property
    def split(self) -> str:
        """The split, by a hash of the chain, whatever its form. Half of the held-out chains are for validation."""
        digest = hashlib.sha256(self.expression.encode()).digest()
        if digest[0] % _HELD_OUT_SHARE:
            return "train"
        return HELD_OUT_SPLITS[digest[1] % 2]

    def is_solved_by(self, completion: str) -> bool:
        """Whether a completion ends with the right answer."""
        return answer_of(completion) == self.answer


def parse_question(chain: str) -> Question:
    """The question of a chain in symbols, with or without `=` at its end.

    Example:

    >>> parse_question("7+5*3=").answer
    22
    """
    parts = re.split(r"([-+*])", chain.rstrip("="))
    return Question(tuple(map(int, parts[::2])), tuple(parts[1::2]))


def answer_of(completion: str) -> int | None:
    """The answer at the end of a completion, or `None` if it has none.

    Example:

    >>> answer_of(" 5*3=15; 7+15=22. 22"), answer_of(" 5*3=15; 7+"), answer_of(" 9 minus 4 is 5. So 5")
    (22, None, 5)
    """
    found = _ANSWER.search(completion.rstrip())
    return int(found[1]) if found else None


def operator_at(text: str) -> str | None:
    """The operator of the step at the end of a text: of the unfinished step, or of the next if the last one is
    finished.

    A step is finished once its true result is written in full.

    Args:
        text (`str`): a prompt and a part of its completion.

    Returns:
        `str` or `None`: `None` if the text is not such a question.

    Example:

    >>> operator_at("7+5*3="), operator_at("7+5*3= 5*3=1"), operator_at("7+5*3= 5*3=15"), operator_at("hello")
    ('*', '*', '+', None)
    """
    found = _SYMBOLIC.search(text) or _WORDED.search(text)
    if found is None:
        return None
    order = reduction_order(_operators_in(found[0]))
    steps = text[found.end() + 1 :].split("; ")
    finished = len(steps) - 1 + steps[-1].endswith(";")
    if finished < len(order) and _is_finished(steps[-1]):
        finished += 1
    return order[min(finished, len(order) - 1)]


def _operators_in(chain: str) -> list[str]:
    for operator, word in WORDS.items():
        chain = chain.replace(word, operator)
    return [char for char in chain if char in OPERATORS]


_STEP = re.compile(r"(\d+) ?([-+*]|plus|minus|times) ?(\d+)(?:=| is )(\d+)\Z", re.ASCII)


def _is_finished(step: str) -> bool:
    found = _STEP.search(step)
    if found is None:
        return False
    (operator,) = _operators_in(found[2])
    return apply_operator(operator, int(found[1]), int(found[3])) == int(found[4])


def draw_question(rng: random.Random, num_steps: int, form: str) -> Question:
    """A valid chain with operands 1 .. 9; a single step may have any operands of a chain.

    Chains are drawn until one is valid. Long chains, which are hardly ever valid, are drawn step by step.

    Args:
        rng (`random.Random`): the source of randomness.
        num_steps (`int`): number of operators.
        form (`str`): `"symbolic"` or `"worded"`.
    """
    while num_steps <= _LONG:
        operators = tuple(rng.choice(OPERATORS) for _ in range(num_steps))
        operands: tuple[int, ...]
        if num_steps == 1 and operators != ("*",) and rng.random() < 0.8:
            operands = (rng.randint(1, LARGEST), rng.randint(1, LARGEST))
        elif num_steps == 1 and rng.random() < 0.3:
            operands = (rng.randint(10, LARGEST // 2), rng.randint(2, 9))
        else:
            operands = tuple(rng.randint(1, 9) for _ in range(num_steps + 1))
        question = Question(operands, operators, form)
        if question.is_valid:
            return question
    return _draw_long(rng, num_steps, form)


def _draw_long(rng: random.Random, num_steps: int, form: str) -> Question:
    """A valid chain in which each operator and operand is drawn from those that keep the chain valid so far.

    Products come first, so a chain has the value `total + sign * term`, where only the last term can still change. The
    chain can always continue, because a product with 1 changes nothing.
    """
    operands, operators = [rng.randint(1, 9)], []
    total, sign, term = 0, 1, operands[0]
    for _ in range(num_steps):
        value = total + sign * term
        ways = {
            "+": [b for b in range(1, 10) if value + b <= LARGEST],
            "-": [b for b in range(1, 10) if value - b >= 0],
            "*": [b for b in range(1, 10) if term * b <= LARGEST and 0 <= total + sign * term * b <= LARGEST],
        }
        operator = rng.choice([each for each in OPERATORS if ways[each]])
        operand = rng.choice(ways[operator])
        if operator == "*":
            term *= operand
        else:
            total, sign, term = value, 1 if operator == "+" else -1, operand
        operators.append(operator)
        operands.append(operand)
    return Question(tuple(operands), tuple(operators), form)


def draw_step(rng: random.Random, form: str) -> Question:
    """A single step as it occurs in chains of two and three steps."""
    step = rng.choice(draw_question(rng, rng.choice((2, 3)), form).steps)
    return Question((step.a, step.b), (step.operator,), form)


def draw_questions(
    count: int,
    seed: int = 0,
    *,
    num_steps: Sequence[int] = (2, 3),
    forms: Sequence[str] = FORMS,
    splits: Sequence[str] = HELD_OUT_SPLITS,
    is_mixed: bool = True,
    operators: Sequence[str] = OPERATORS,
) -> list[Question]:
    """Distinct questions; the same ones for the same arguments.

    Args:
        count (`int`): number of questions.
        seed (`int`, defaults to 0): another seed gives other questions.
        num_steps (`Sequence[int]`, defaults to `(2, 3)`), forms (`Sequence[str]`): what to draw from. Single steps
            are drawn as they occur in longer chains.
        splits (`Sequence[str]`, defaults to `("validation", "test")`): of the chains; no member was trained on the
            default ones.
        is_mixed (`bool`, defaults to `True`): chains of more than one step have at least two different operators.
        operators (`Sequence[str]`, defaults to all three): only chains of these operators.

    Raises:
        ConfigError: there are fewer such questions than `count`.

    Example:

    >>> draw_questions(2) == draw_questions(2), draw_questions(1)[0].is_held_out
    (True, True)
    """
    rng = random.Random(f"chains {seed}")  # noqa: S311 (repeatable draws, no secrets)
    found: dict[tuple[str, str], Question] = {}
    misses = 0
    while len(found) < count:
        if misses == _PATIENCE:
            raise ConfigError(f"count={count}: there seem to be only {len(found)} such questions; ask for fewer")
        length, form = rng.choice(list(num_steps)), rng.choice(list(forms))
        question = draw_step(rng, form) if length == 1 else draw_question(rng, length, form)
        kinds = set(question.operators)
        is_wanted = kinds <= set(operators) and (not is_mixed or length == 1 or len(kinds) > 1)
        key = (question.expression, question.form)
        if is_wanted and question.split in splits and key not in found:
            found[key] = question
            misses = 0
        else:
            misses += 1
    return list(found.values())
