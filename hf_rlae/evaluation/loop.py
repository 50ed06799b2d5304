"""`evaluate`: members and methods on tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hf_rlae.checks import COUNT, OPTIONAL_COUNT, Bounds, check_choice, check_number
from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.errors import ConfigError, nearest
from hf_rlae.evaluation.answers import EvaluationLoop
from hf_rlae.evaluation.comparison import Scores, best_of, notes_of, result_rows
from hf_rlae.evaluation.methods import BaselineMethod, Method, make_method, members_alone, named_methods
from hf_rlae.evaluation.processes import Processes
from hf_rlae.evaluation.questions import OPTION_FORMS, SCORINGS, Questions, Reading, named_tasks, source_of
from hf_rlae.evaluation.records import Record
from hf_rlae.evaluation.results import EvaluationReport, MethodResult

NORMALIZATIONS = ("bytes", "none")


def evaluate(
    model: Any,
    task: Any,
    *,
    methods: Any = None,
    members: bool = True,
    scoring: str = "generate",
    split: str = "test",
    source: Any = None,
    validation: Any = None,
    reward: str | Callable[..., Any] | None = None,
    option_form: str = "text",
    normalize: str = "bytes",
    text_column: str | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    max_new_tokens: int = 256,
    seed: int = 0,
    output_dir: str | Path | None = None,
    progress: bool = True,
    generation_kwargs: Mapping[str, Any] | None = None,
    **task_options: Any,
) -> EvaluationReport:
    """Compares members by themselves, ensembles and other methods on the questions of tasks.

    Every method answers the same questions. The report has a row per task and method: the mean score with a bootstrap
    interval, the paired difference to the best member with its p-value, tokens, time and peak memory. With
    `output_dir`, every result is on disk as soon as it is known, and an evaluation that was stopped continues where it
    was.

    In processes of `accelerate launch`, each answers its share of the questions, and all return the same report.

    Source: ours; options are scored as lm-evaluation-harness does (`acc_bytes`).

    Args:
        model: an ensemble, or a list of members as for `EnsembleForCausalLM.from_members`. Without members: a function
            from a list of prompts to as many texts.
        task: the name of a task (see `load_task`), a list of names, a dataset or a list of rows, or a dict of names to
            these. Rows have the column `prompt` and those that the reward reads; for `scoring="choices"` `choices` and
            `answer`; for `scoring="bits_per_byte"` the text.
        methods (*optional*): a method, a list of methods, or a dict of names to methods. A method is the name of a
            policy or a baseline (`"uniform"`, `"entropy"`), the folder or Hub id of a policy, a policy, a list with a
            fixed weight per member, another ensemble, a baseline, or a function from prompts to texts. By default the
            ensemble itself.
        members (`bool`, defaults to `True`): whether each member answers by itself, too.
        scoring (`str`, defaults to `"generate"`): `"generate"` judges completions by the reward of the task,
            `"choices"` takes the option with the highest log-probability, `"bits_per_byte"` measures the likelihood of
            texts after their beginning. The last two use the ensemble's own teacher forcing.
        split (`str`, defaults to `"test"`): of the tasks.
        source (`str`, `Path` or `dict` of names to these, *optional*): as in `load_task`.
        validation (*optional*): where the best member is chosen, and baselines that have to be fitted are: the name of
            another split, or rows (a dict of task names to rows if there are several tasks), which the reward of a task
            by name judges, too. By default the best member
            is the best on the test questions themselves, which a note of the report says.
        reward (`str` or callable, *optional*): in place of the task's own.
        option_form (`str`, defaults to `"text"`): for `"choices"`: `"text"` scores the texts of the options after the
            question alone (ARC, PIQA), `"letter"` their letters after a question that lists them (MMLU).
        normalize (`str`, defaults to `"bytes"`): for `"choices"`: divides log-probabilities by the bytes of the option;
            `"none"` does not.
        text_column (`str`, *optional*): for `"bits_per_byte"`: the column of the text.
        limit (`int`, *optional*): the maximum number of questions per task. A larger limit later continues the results.
        batch_size (`int`, defaults to 8): questions that are answered together, sorted by length. Results do not
            depend on it beyond rounding. Sampled completions are written one by one, each with its own seed.
        max_new_tokens (`int`, defaults to 256): of a completion.
        seed (`int`, defaults to 0): of the order of questions, of samples and of the bootstrap.
        output_dir (`str` or `Path`, *optional*): for the results of every question, and the tables.
        progress (`bool`, defaults to `True`): whether to show a progress bar where stderr is a terminal.
        generation_kwargs (`dict`, *optional*): further arguments of `generate`, such as `do_sample` and `temperature`.
        task_options: of `load_task`: `num_few_shot`, `prompt_format`, `template` and the task's own.

    Returns:
        `EvaluationReport`: with `to_markdown()`, `to_json()`, `to_csv()`, `plot()` and `save(folder)`.

    Raises:
        ConfigError: options that do not fit together, or a method that cannot be scored in this way.
        InputError, TaskError: rows that cannot be used.

    Example:

    >>> from hf_rlae import evaluate, load_demo_members
    >>> report = evaluate(
    ...     load_demo_members(), "arithmetic_chain", methods=["uniform"], limit=3, max_new_tokens=8, reward="number"
    ... )
    >>> [(result.method, result.num_questions) for result in report.results][-1]
    ('uniform', 3)
    """
    check_choice("scoring", scoring, SCORINGS)
    check_choice("option_form", option_form, OPTION_FORMS)
    check_choice("normalize", normalize, NORMALIZATIONS)
    check_number("limit", limit, OPTIONAL_COUNT)
    check_number("batch_size", batch_size, COUNT)
    check_number("max_new_tokens", max_new_tokens, COUNT)
    check_number("seed", seed, Bounds(0, is_whole=True))
    processes = Processes()
    reading = Reading(scoring, reward, option_form, text_column)
    tasks = named_tasks(task)
    given_sources = {name: source_of(name, source) for name in tasks}
    sets = {
        name: reading.read(name, entry, split, given_sources[name], limit, seed, task_options)
        for name, entry in tasks.items()
    }
    validations = {
        name: reading.read(
            f"{name}, validation",
            *_validation_rows(name, entry, validation, given_sources[name]),
            limit,
            seed,
            task_options if isinstance(validation, str) else {},
            judge=entry if isinstance(entry, str) else None,
        )
        for name, entry in tasks.items()
        if validation is not None
    }
    settings = {"do_sample": False, "num_beams": 1, **(generation_kwargs or {}), "max_new_tokens": max_new_tokens}
    folder = None if output_dir is None else Path(output_dir)
    loop = EvaluationLoop(processes, folder, settings, batch_size, seed, shows_progress=progress)
    alone, given = _methods(model, methods, members, scoring, validation is not None)
    results: list[MethodResult] = []
    notes: list[str] = []
    records: dict[tuple[str, str], Sequence[Record]] = {}

    def scored(questions: Questions, chosen: Mapping[str, Method]) -> dict[str, Scores]:
        return {
            method: Scores(questions, loop.answer(questions, method, entry), normalize, seed)
            for method, entry in chosen.items()
        }

    with torch.random.fork_rng():
        for name, questions in sets.items():
            other, best = validations.get(name), None
            if other is not None:
                best = best_of(scored(other, alone), other.lower_is_better) if alone else None
                loop.fit(given.values(), other, normalize)
            scores = scored(questions, {**alone, **given})
            if alone:
                notes.append(_note_on_best(questions, other, best))
                best = best or best_of({member: scores[member] for member in alone}, questions.lower_is_better)
            results += result_rows(questions, scores, list(alone), best)
            records |= {(name, method): own.records for method, own in scores.items()}
    told = {"scoring": scoring, "split": split, "limit": limit, "batch_size": batch_size, "seed": seed, **settings}
    told |= {"sources": {name: questions.source for name, questions in sets.items()}, **task_options}
    if scoring == "choices":
        told |= {"option_form": option_form, "normalize": normalize}
    report = EvaluationReport(tuple(results), (*notes, *notes_of(results)), told, records)
    if folder is not None and processes.is_first:
        report.save(folder)
    return report


def _validation_rows(name: str, entry: Any, validation: Any, source: Any) -> tuple[Any, str, Any]:
    """What is given to `Reading.read` for the validation questions of a task: rows or name, split, source."""
    if isinstance(validation, str):
        if not isinstance(entry, str):
            raise ConfigError(f"validation={validation!r} names a split, and {name} is given as rows; give rows")
        return entry, validation, source
    if isinstance(validation, Mapping):
        if name not in validation:
            raise ConfigError(f"validation has no rows for the task {name!r}: {nearest(name, validation)}")
        return validation[name], "", None
    return validation, "", None


def _methods(
    model: Any, methods: Any, members: bool, scoring: str, is_fitted: bool
) -> tuple[dict[str, Method], dict[str, Method]]:
    """The members by themselves, and the methods that are given."""
    if callable(model) and not isinstance(model, torch.nn.Module):
        ensemble, given = None, {getattr(model, "__name__", "function"): model, **named_methods(methods, None)}
    else:
        ensemble = model if isinstance(model, EnsembleForCausalLM) else EnsembleForCausalLM.from_members(model)
        given = named_methods(methods, ensemble)
    alone = members_alone(ensemble) if ensemble is not None and members else {}
    clash = next((name for name in given if name in alone), None)
    if clash is not None:
        raise ConfigError(f"methods: {clash!r} is the name of a member; give a dict with another name")
    made = {name: make_method(name, entry, ensemble) for name, entry in given.items()}
    if scoring != "generate":
        without = [name for name, method in made.items() if not method.can_score]
        if without:
            raise ConfigError(
                f"scoring={scoring!r} needs probabilities, and these methods only write texts: {', '.join(without)}; "
                'leave them out, or use scoring="generate"'
            )
    if not is_fitted:
        for method in made.values():
            if isinstance(method, BaselineMethod):
                method.baseline.prepare(method.ensemble)  # raises for what has to be fitted first
    return alone, made


def _note_on_best(questions: Questions, validation: Questions | None, best: str | None) -> str:
    if validation is not None:
        return f"{questions.name}: the best member is {best}, chosen on {len(validation.rows)} validation questions."
    return (
        f"{questions.name}: the best member is the one that is best on these very questions, so differences to it are "
        "a little pessimistic; choose it by `validation`."
    )
