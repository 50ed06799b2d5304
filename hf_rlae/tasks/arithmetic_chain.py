"""Chains of sums, differences and products, made from a seed: the task of the embedded members."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hf_rlae.errors import ConfigError, nearest
from hf_rlae.tasks.chains import FORMS, OPERATORS, SPLITS, draw_questions
from hf_rlae.tasks.definition import Example, generated_task

_DEFAULT_COUNT = 200


@generated_task(
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
    """Different questions; `limit` says how many, 200 by default.

    The splits share no chain, whatever its form: a hash of the chain decides. The embedded members were trained on
    chains of `train` only.

    Options: `num_steps` (`int` or sequence of `int`, defaults to `(2, 3)`): how many operators; `forms` (`str` or
    sequence of `str`): `"symbolic"` (`7+5*3=`), `"worded"` (`What is 7 plus 5 times 3?`), or both; `is_mixed` (`bool`,
    defaults to `True`): at least two different operators where there is more than one; `operator` (`str`, *optional*):
    this one alone.
    """
    num_steps = _listed("num_steps", options["num_steps"], int)
    if min(num_steps) < 1:
        raise ConfigError(f"num_steps={options['num_steps']!r}: a chain has at least one step")
    forms = _listed("forms", options["forms"], str)
    operator = options["operator"]
    for name, given, known in (
        *(("forms", form, FORMS) for form in forms),
        *(("operator", each, OPERATORS) for each in ([] if operator is None else [operator])),
    ):
        if given not in known:
            raise ConfigError(f"{name}: {given!r}: {nearest(str(given), known)}")
    questions = draw_questions(
        _DEFAULT_COUNT if count is None else count,
        seed,
        num_steps=num_steps,
        forms=forms,
        is_mixed=bool(options["is_mixed"]),
        operator=operator,
        split=split,
    )
    for question in questions:
        columns = {"operators": list(question.operators), "solution": question.solution}
        yield Example(question.prompt, str(question.answer), question.solution, columns=columns)


def _listed(name: str, given: Any, kind: type) -> list[Any]:
    listed = [given] if isinstance(given, kind) else list(given) if isinstance(given, Sequence) else []
    if not listed or not all(isinstance(each, kind) and not isinstance(each, bool) for each in listed):
        raise ConfigError(f"{name}={given!r}: expected {kind.__name__}, or several of them")
    return listed
