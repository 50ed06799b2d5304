"""`evaluate`: one loop for members and methods on tasks."""

from __future__ import annotations

import csv
import io
import json
import math
from functools import cache

import pytest
import torch

from hf_rlae import (
    Baseline,
    BaselineOutput,
    ConfigError,
    EnsembleForCausalLM,
    EntropyPolicy,
    InputError,
    evaluate,
    get_baseline,
    list_baselines,
)
from hf_rlae.evaluation.likelihood import completion_logps
from tests.support.different_tokenizers import member
from tests.support.different_tokenizers import trio as new_trio
from tests.support.tokenizers import raw_bytes, sentencepiece_bpe

QUESTIONS = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(1, 5) for b in range(1, 4)]
SHORT = {"max_new_tokens": 6, "progress": False}


@cache
def trio():
    return new_trio()


def solves(prompts):
    """Right on sums of at most 5."""
    sums = [sum(map(int, prompt.rstrip("=").split("+"))) for prompt in prompts]
    return [str(value if value <= 5 else 0) for value in sums]


def contains_letter(completions, **columns):
    """A reward that most random texts get sometimes."""
    return [float("e" in text or "o" in text) for text in completions]


def scores(report, method, task="dataset"):
    return [record["score"] for record in report.records[task, method]]


# -- what is measured -------------------------------------------------------------------------------------


def test_accuracy_of_a_function():
    report = evaluate(solves, QUESTIONS, reward="number")
    (result,) = report.results
    right = [int(row["answer"]) <= 5 for row in QUESTIONS]
    assert (result.method, result.metric, result.num_questions) == ("solves", "accuracy", 12)
    assert result.value == sum(right) / 12
    assert result.low <= result.value <= result.high
    assert scores(report, "solves") == right
    assert math.isnan(result.time_ratio)


def test_members_come_first_and_decode_as_they_do_alone():
    ensemble = trio()
    report = evaluate(ensemble, QUESTIONS[:4], reward=contains_letter, **SHORT)
    names = [result.method for result in report.results]
    assert names[-1] == "ensemble"
    assert len(names) == 4
    model, tokenizer = member("gpt2", raw_bytes, 1)
    for row, record in zip(QUESTIONS, report.records["dataset", names[1]], strict=False):
        inputs = tokenizer([row["prompt"]], return_tensors="pt")
        out = model.generate(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=6, do_sample=False
        )[0, inputs["input_ids"].shape[1] :]
        assert record["text"] == tokenizer.decode(out, skip_special_tokens=True)
        assert record["num_tokens"] == len(out)


def test_differences_are_to_the_best_member_and_times_to_all_members():
    report = evaluate(trio(), QUESTIONS, reward=contains_letter, methods=["uniform"], **SHORT)
    *members, uniform = report.results
    best = max(members, key=lambda result: result.value)
    assert math.isnan(best.difference)
    assert uniform.difference == pytest.approx(uniform.value - best.value)
    assert uniform.test == "sign test"
    total = sum(result.seconds_per_question for result in members)
    assert uniform.time_ratio == pytest.approx(uniform.seconds_per_question / total)
    assert uniform.ms_per_token == pytest.approx(1000 * uniform.seconds_per_question / uniform.tokens_per_question)
    assert sum(result.time_ratio for result in members) == pytest.approx(1)
    assert any("on these very questions" in note for note in report.notes)


def test_the_best_member_of_a_validation_set():
    ensemble = trio()

    def second_is_best(prompts, completions, **columns):
        validation = [prompt.startswith("v") for prompt in prompts]
        return [float(("e" in text) != first) for text, first in zip(completions, validation, strict=True)]

    validation = [{"prompt": "v" + row["prompt"]} for row in QUESTIONS]
    report = evaluate(ensemble, QUESTIONS, reward=second_is_best, validation=validation, **SHORT)
    note = next(note for note in report.notes if "validation questions" in note)
    alone = evaluate(ensemble, validation, reward=second_is_best, **SHORT).results[:3]
    best = max(alone, key=lambda result: result.value).method
    assert f"the best member is {best}, chosen on 12 validation questions" in note
    assert math.isnan(report.result(best).difference)


def test_the_reward_of_a_task_judges_validation_rows_too():
    rows = [{"prompt": "7+5=", "answer": "12"}, {"prompt": "9-4=", "answer": "5"}]
    report = evaluate(trio(), "arithmetic_chain", validation=rows, limit=2, **SHORT)
    assert any("chosen on 2 validation questions" in note for note in report.notes)


def test_options_are_compared_by_their_log_probabilities():
    ensemble = trio()
    rows = [
        {"prompt": "The dogs", "choices": ["ran", "ran 12 miles and 3 more"], "answer": "A"},
        {"prompt": "Once upon", "choices": ["a time", "there", "was"], "answer": 1},
    ]
    for normalize in ("bytes", "none"):
        report = evaluate(ensemble, rows, scoring="choices", normalize=normalize)
        right = []
        for row, gold in zip(rows, (0, 1), strict=True):
            texts = [" " + choice for choice in row["choices"]]
            logps, _ = completion_logps(ensemble, [row["prompt"]] * len(texts), texts)
            sizes = [len(choice) if normalize == "bytes" else 1 for choice in row["choices"]]
            values = [logp / size for logp, size in zip(logps, sizes, strict=True)]
            right.append(values.index(max(values)) == gold)
        assert report.result("ensemble").value == sum(right) / 2


def test_letters_follow_a_question_that_lists_the_options():
    rows = evaluate(trio(), "arc_challenge", source="built_in", limit=2, scoring="choices", option_form="letter")
    record = rows.records["arc_challenge", "ensemble"][0]
    assert len(record["logps"]) >= 3
    assert record["num_tokens"] >= len(record["logps"])


def test_bits_per_byte_are_all_bits_over_all_bytes():
    ensemble = trio()
    texts = ["The dogs ran 12 miles today", "Once upon a time, there was a dog"]
    report = evaluate(ensemble, {"texts": texts}, scoring="bits_per_byte")
    cuts = [text.index(" ", 12) for text in texts]
    logps, _ = completion_logps(
        ensemble, [t[:c] for t, c in zip(texts, cuts, strict=True)], [t[c:] for t, c in zip(texts, cuts, strict=True)]
    )
    size = sum(len(text) - cut for text, cut in zip(texts, cuts, strict=True))
    result = report.result("ensemble")
    assert result.metric == "bits per byte"
    assert result.value == pytest.approx(-sum(logps) / math.log(2) / size, abs=1e-4)
    best = min(r.value for r in report.results[:3])
    assert result.difference == pytest.approx(result.value - best)


def test_answers_that_cannot_be_judged_are_left_out():
    rows = [*QUESTIONS[:3], {"prompt": "9+9=", "answer": None}]
    report = evaluate(solves, rows, reward="number")
    (result,) = report.results
    assert (result.value, result.num_questions, result.num_unjudged) == (1.0, 3, 1)
    assert "1 answers could not be judged and are left out." in report.notes


# -- batches, seeds, limits, kills ------------------------------------------------------------------------


@pytest.mark.parametrize("scoring", ["generate", "choices", "bits_per_byte"])
def test_results_do_not_depend_on_the_batch_size(scoring):
    rows = [
        {
            "prompt": "The dogs ran 12 miles"[: 6 + 3 * at],
            "text": "Once upon a time, there was " + "a dog " * (at + 1),
            "choices": ["a dog", "there was a dog", "x"][: 2 + at % 2],
            "answer": "B",
        }
        for at in range(5)
    ]
    found = [
        evaluate(trio(), rows, scoring=scoring, batch_size=size, reward=contains_letter, **SHORT).records
        for size in (1, 4)
    ]
    for key, records in found[0].items():
        for one, other in zip(records, found[1][key], strict=True):
            if scoring == "generate":
                assert one["text"] == other["text"]
            else:
                assert one["logps"] == pytest.approx(other["logps"], abs=1e-3)


def test_samples_depend_on_the_seed_alone():
    def texts(seed, size=4, rows=QUESTIONS[:4]):
        sampled = {"do_sample": True, "top_k": 0}
        options = {"reward": contains_letter, "generation_kwargs": sampled, "seed": seed, "members": False}
        torch.manual_seed(size)
        report = evaluate(trio(), rows, batch_size=size, **options, **SHORT)
        return {r["key"]: r["text"] for r in report.records["dataset", "ensemble"]}

    assert texts(0) == texts(0, size=1)
    assert texts(0).items() >= texts(0, rows=QUESTIONS[:2]).items()
    assert texts(0) != texts(1)


def test_the_random_state_of_the_caller_is_kept():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    sampled = {"do_sample": True}
    evaluate(trio(), QUESTIONS[:1], reward=contains_letter, generation_kwargs=sampled, members=False, **SHORT)
    assert torch.equal(torch.rand(1), expected)


class Killed(BaseException):
    """What ends a process."""


def test_an_evaluation_that_was_killed_continues(tmp_path):
    asked = []

    def dies(prompts):
        asked.extend(prompts)
        if len(asked) > 6:
            raise Killed
        return solves(prompts)

    options = {"reward": "number", "batch_size": 3, "output_dir": tmp_path, "progress": False}
    with pytest.raises(Killed):
        evaluate(dies, QUESTIONS, **options)
    before, asked[:] = asked[:6], []
    (path,) = tmp_path.glob("*.jsonl")
    path.write_bytes(path.read_bytes() + b'{"key": "half')

    def continues(prompts):
        asked.extend(prompts)
        return solves(prompts)

    continues.__name__, continues.__qualname__ = dies.__name__, dies.__qualname__  # the same method, started again
    report = evaluate(continues, QUESTIONS, **options)
    assert report.results[0].value == evaluate(solves, QUESTIONS, reward="number").results[0].value
    assert sorted(before + asked) == sorted(row["prompt"] for row in QUESTIONS)


def test_a_larger_limit_asks_for_the_rest_only(tmp_path):
    asked = []

    def counted(prompts):
        asked.extend(prompts)
        return solves(prompts)

    options = {"reward": "number", "output_dir": tmp_path, "progress": False}
    evaluate(counted, QUESTIONS, limit=5, **options)
    assert len(asked) == 5
    report = evaluate(counted, QUESTIONS, **options)
    assert len(asked) == len(set(asked)) == 12
    assert report.results[0].num_questions == 12
    evaluate(counted, [{**row, "answer": "0"} for row in QUESTIONS], **options)
    assert len(asked) == 24  # other answers are other questions


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"max_new_tokens": 5}, "shorter texts"),
        ({"generation_kwargs": {"repetition_penalty": 1.5}}, "another setting of generate"),
        ({"reward": "number"}, "another reward"),
        ({"policy": EntropyPolicy()}, "another policy under the same name"),
        ({"seed_of_member": 7}, "other weights of a member with the same name"),
        ({"span_length": 3}, "another span length"),
    ],
)
def test_another_setup_does_not_mix(tmp_path, change, why):
    def run(policy=None, seed_of_member=0, span_length=8, **options):
        members = [member(seed=seed_of_member), member("gpt2", raw_bytes, 1)]
        ensemble = EnsembleForCausalLM.from_members(members, policy, span_length=span_length)
        given = {"reward": contains_letter, "members": False, "output_dir": tmp_path, **SHORT, **options}
        evaluate(ensemble, QUESTIONS[:2], **given)
        return len(list(tmp_path.glob("*.jsonl")))

    assert run() == 1
    assert run() == 1, "the same setup has one file"
    assert run(**change) == 2, why


# -- reports ----------------------------------------------------------------------------------------------


def test_the_report_as_markdown_json_csv_and_a_picture(tmp_path):
    evaluate(trio(), {"a": QUESTIONS[:2], "b": QUESTIONS[2:4]}, reward=contains_letter, output_dir=tmp_path, **SHORT)
    text = (tmp_path / "results.md").read_text()
    assert text.count("| ensemble |") == 2
    assert "**a**, 2 questions" in text
    content = json.loads((tmp_path / "results.json").read_text())
    assert len(content["results"]) == 8
    assert content["settings"]["max_new_tokens"] == 6
    rows = list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text())))
    for row, result in zip(rows, content["results"], strict=True):
        assert float(row["value"]) == result["value"]
        assert (row["difference"] == "") == (result["difference"] is None)
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")


def test_a_value_that_is_not_known_is_null_in_json():
    report = evaluate(solves, QUESTIONS[:1], reward=lambda completions, **columns: [None])
    assert json.loads(report.to_json())["results"][0]["value"] is None
    assert report.results[0].num_unjudged == 1


def test_a_result_by_name():
    report = evaluate(solves, {"a": QUESTIONS[:2], "b": QUESTIONS[2:]}, reward="number")
    assert report.result("solves", "a").num_questions == 2
    with pytest.raises(KeyError, match="2 results"):
        report.result("solves")


# -- methods ----------------------------------------------------------------------------------------------


class Echo(Baseline):
    """Repeats the prompts, after what it was fitted with."""

    def __init__(self):
        self.prefix = ""
        self.batches = []

    def fit(self, members, prompts, score_fn, generation_config=None, **settings):
        self.prefix = "e" if score_fn(["e"] * len(prompts))[0] else ""
        return self

    def answer(self, ensemble, prompts, settings):
        rows = len(prompts)
        self.batches.append((rows, settings.max_new_tokens, len(ensemble.members)))
        return BaselineOutput([self.prefix] * rows, torch.full((rows,), 3), torch.ones(rows, 3), [1, 1, 1])


def test_a_baseline_is_called_with_the_members_and_fitted_on_the_validation_set():
    echo = Echo()
    options = {"methods": {"echo": echo}, "members": False, "batch_size": 2, **SHORT}
    report = evaluate(trio(), QUESTIONS[:4], reward=contains_letter, validation=QUESTIONS[4:6], **options)
    assert echo.batches == [(2, 6, 3)] * 2
    assert report.result("echo").value == 1.0
    assert report.result("echo").tokens_per_question == 3
    assert report.records["dataset", "echo"][0]["member_tokens"] == [1, 1, 1]


@pytest.mark.parametrize("name", [name for name in list_baselines() if name not in ("best_fixed", "pair_ranker")])
def test_every_baseline_by_its_name(name):
    options = {"methods": [name], "members": False, "validation": QUESTIONS[4:6], **SHORT}
    report = evaluate(trio(), QUESTIONS[:2], reward="number", **options)
    assert report.result(name).num_questions == 2


@pytest.mark.parametrize("scoring", ["generate", "bits_per_byte"])
def test_the_best_fixed_weights_are_found_on_the_validation_set(scoring):
    texts = [{"prompt": text[:4], "text": text} for text in ("Once upon a time, there", "The dogs ran 12 miles")]
    ensemble = EnsembleForCausalLM.from_members([member(), member("gpt2", raw_bytes, 1)])
    best = get_baseline("best_fixed", resolution=2)
    options = {"scoring": scoring, "reward": contains_letter, "methods": {"best": best}, **SHORT}
    report = evaluate(ensemble, texts, validation=texts, **options)
    values = [
        evaluate(ensemble, texts, members=False, **{**options, "methods": [list(w)]}) for w, _ in best.search.tried
    ]
    values = [each.results[0].value for each in values]
    assert report.result("best").value == pytest.approx(min(values) if scoring == "bits_per_byte" else max(values))


def test_weights_that_have_to_be_found_need_validation_questions():
    with pytest.raises(ConfigError, match="best_fixed has no weights"):
        evaluate(trio(), QUESTIONS[:1], reward="number", methods=["best_fixed"], **SHORT)


def test_methods_by_name_weights_and_objects():
    ensemble = trio()
    methods = ["uniform", [0.5, 0.25, 0.25], EntropyPolicy(), ensemble]
    report = evaluate(ensemble, QUESTIONS[:1], methods=methods, reward=contains_letter, members=False, **SHORT)
    assert [result.method for result in report.results] == [
        "uniform",
        "weights 0.5, 0.25, 0.25",
        "EntropyPolicy",
        "ensemble",
    ]


def test_members_as_a_list():
    report = evaluate([member(), member("gemma3", sentencepiece_bpe, 2)], QUESTIONS[:1], reward="number", **SHORT)
    assert len(report.results) == 3


# -- errors -----------------------------------------------------------------------------------------------

ROWS = QUESTIONS[:2]


@pytest.mark.parametrize(
    ("task", "options", "error", "message"),
    [
        ("gsm8", {}, ConfigError, "did you mean 'gsm8k'"),
        (ROWS, {"scoring": "choice", "reward": "number"}, ConfigError, "did you mean 'choices'"),
        (ROWS, {"limit": 0, "reward": "number"}, ConfigError, "limit=0"),
        (ROWS, {"batch_size": 0, "reward": "number"}, ConfigError, "batch_size=0"),
        (ROWS, {}, ConfigError, "give reward="),
        (ROWS, {"reward": "numbr"}, ConfigError, "did you mean 'number'"),
        ([], {"reward": "number"}, ConfigError, "give the name of a task"),
        ({"a": []}, {"reward": "number"}, InputError, "a has no rows"),
        ([{"question": "x"}], {"reward": "number"}, InputError, "row 0 of dataset has no 'prompt'; its columns are"),
        (ROWS, {"scoring": "choices"}, InputError, "has no 'choices'"),
        (
            [{"prompt": "x", "choices": ["a", "b"], "answer": "C"}],
            {"scoring": "choices"},
            InputError,
            "answer='C' is none of the 2 options",
        ),
        ([{"text": "short"}], {"scoring": "bits_per_byte"}, InputError, "nothing after its first 12 characters"),
        (ROWS, {"reward": "number", "source": "x.jsonl"}, ConfigError, "source: dataset is given as rows"),
        (ROWS, {"reward": "number", "num_few_shot": 2}, ConfigError, "num_few_shot: dataset is given as rows"),
        (ROWS, {"reward": "number", "validation": "train"}, ConfigError, "names a split"),
        (ROWS, {"reward": "number", "methods": ["unifrom"]}, ConfigError, "did you mean 'uniform'"),
        (ROWS, {"reward": "number", "methods": ["uniform", "uniform"]}, ConfigError, "two entries with the name"),
        (ROWS, {"reward": "number", "methods": {"x": 3}}, ConfigError, "'x' is a int"),
        (ROWS, {"reward": "number", "methods": [[1, 0]]}, ConfigError, "weighs 2 members"),
        (
            [{"prompt": "x", "choices": ["a", "b"], "answer": "A"}],
            {"scoring": "choices", "methods": {"f": solves}},
            ConfigError,
            "only write texts: f",
        ),
        (
            "arc_challenge",
            {"scoring": "choices", "num_few_shot": 2, "source": "built_in"},
            ConfigError,
            "option_form=",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_any_member_runs(task, options, error, message, monkeypatch):
    ensemble = trio()
    monkeypatch.setattr(type(ensemble), "generate", lambda *_args, **_kwargs: pytest.fail("a member was run"))
    monkeypatch.setattr(type(ensemble), "forward", lambda *_args, **_kwargs: pytest.fail("a member was run"))
    with pytest.raises(error, match=message):
        evaluate(ensemble, task, **options)


def test_a_function_has_to_return_a_text_per_prompt():
    with pytest.raises(ConfigError, match="1 completions for 2 prompts"):
        evaluate(lambda prompts: ["one"], ROWS, reward="number")
