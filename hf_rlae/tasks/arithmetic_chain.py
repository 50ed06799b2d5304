"""Chains of sums, differences and products, made from a seed: the task of the embedded members."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hf_rlae.checks import COUNT, check_choice, check_number
from hf_rlae.errors import ConfigError
from hf_rlae.tasks.chains import FORMS, OPERATORS, SPLITS, draw_questions
from hf_rlae.tasks.definition import Example, task

_DEFAULT_COUNT = 200


@task(
    "arithmetic_chain",
    description="Chains of sums, differences and products, generated.",
    licence="Apache-2.0",
    splits=SPLITS,
    extra_columns={"operators": ["string"], "solution": "string"},
    reward="arithmetic_chain",
    prompt_format="standard",
    text="{question}",
    num_few_shot=3,
    few_shot_split="train",
    options={"num_steps": (2, 3), "forms": FORMS, "is_mixed": True, "operator": None},
)
def arithmetic_chain(split: str, count: int | None, seed: int, options: Mapping[str, Any]) -> Iterator[Example]:
    """Distinct questions; `limit` is their number, 200 by default.

    The splits share no chain, whatever its form: a hash of the chain decides. The embedded members were trained on
    chains of `train` only.

    Options: `num_steps` (`int` or sequence of `int`, defaults to `(2, 3)`): number of operators; `forms` (`str` or
    sequence of `str`): `"symbolic"` (`7+5*3=`), `"worded"` (`What is 7 plus 5 times 3?`), or both; `is_mixed` (`bool`,
    defaults to `True`): whether a chain of several steps has at least two different operators; `operator` (`str`,
    *optional*): only this operator.
    """
    num_steps = _listed("num_steps", options["num_steps"], int)
    for number in num_steps:
        check_number("num_steps", number, COUNT)
    forms = _listed("forms", options["forms"], str)
    for form in forms:
        check_choice("forms", form, FORMS)
    operator = options["operator"]
    if operator is not None:
        check_choice("operator", operator, OPERATORS)
    questions = draw_questions(
        _DEFAULT_COUNT if count is None else count,
        seed,
        num_steps=num_steps,
        forms=forms,
        splits=(split,),
        is_mixed=operator is None and bool(options["is_mixed"]),
        operators=OPERATORS if operator is None else (operator,),
    )
    for question in questions:
        columns = {"operators": list(question.operators), "solution": question.solution}
        yield Example(question.prompt, str(question.answer), question.solution, columns=columns)


def _listed(name: str, given: Any, kind: type) -> Sequence[Any]:
    if isinstance(given, kind):
        return [given]
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise ConfigError(f"{name}={given!r}: expected {kind.__name__}, or several of them")
    return given
