"""Tasks of lm-evaluation-harness, from local files, by ensembles as they are passed to `HFLM`."""

from __future__ import annotations

import copy
import json
import math
from functools import cache

import pytest
import torch

from hf_rlae import EnsembleForCausalLM, StaticPolicy
from tests.support.different_tokenizers import member
from tests.support.tiers import slow
from tests.support.tokenizers import byte_level_bpe, raw_bytes, sentencepiece_bpe

lm_eval = pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install 'hf_rlae[eval]'")
from lm_eval.models.huggingface import HFLM  # noqa: E402  (after the skip)
from lm_eval.tasks import TaskManager  # noqa: E402

ROWS = [
    {"question": "How many dogs ran?", "answer": "3", "choices": ["3 dogs", "12 miles", "a"], "right": 0},
    {"question": "Once upon", "answer": "a time", "choices": ["there was", "a time", "upon a time"], "right": 1},
    {"question": "def f(x)", "answer": "return x", "choices": ["x", "return x", "3"], "right": 1},
]
TEXTS = ["Once upon a time, there was a dog. " * 3, "The 3 big dogs ran 12 miles. " * 16]
"""The second one is longer than the members' contexts."""

COMMON = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
"""
TASKS = {
    "tiny_generate": """
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n", "e"], max_gen_toks: 10, do_sample: false}
metric_list: [{metric: exact_match}]
""",
    "tiny_choices": """
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: right
doc_to_choice: choices
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "tiny_rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}]
""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("harness")
    rows = {"tiny_rolling": [{"text": text} for text in TEXTS]}
    for name, text in TASKS.items():
        data = place / f"{name}.json"
        data.write_text("\n".join(map(json.dumps, rows.get(name, ROWS))))
        (place / f"{name}.yaml").write_text(COMMON.format(name=name, data=data, cache=place / "cache") + text)
    return place


def run(folder, model, tokenizer, task, batch_size=2, **options):
    """The scores of a task, and what the model answered to every question."""
    found = lm_eval.simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size),
        tasks=[task],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
        **options,
    )
    samples = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
    scores = {key: value for key, value in found["results"][task].items() if "," in key and "stderr" not in key}
    return scores, [sample["filtered_resps"] for sample in samples]


def of(ensemble):
    return ensemble, ensemble.tokenizer


@cache
def two():
    """Two members with different tokenizers."""
    return EnsembleForCausalLM.from_members([member("gpt2", sentencepiece_bpe, 1), member("llama", raw_bytes)])


def assert_same(got, expected):
    """Equal scores, and answers that are equal but for the rounding of log-probabilities."""
    assert got[0] == pytest.approx(expected[0], rel=1e-6)
    for own, others in zip(got[1], expected[1], strict=True):
        for one, other in zip(own, others, strict=True):
            if isinstance(one, tuple):
                assert one[0] == pytest.approx(other[0], abs=1e-4)
                assert one[1] == other[1]
            else:
                assert one == (other if isinstance(one, str) else pytest.approx(other, rel=1e-6))


@pytest.mark.parametrize("task", list(TASKS))
@pytest.mark.parametrize("tokenizer", [sentencepiece_bpe, *slow(byte_level_bpe)], ids=lambda make: make.__name__)
def test_one_member_and_two_copies_score_what_the_member_scores(folder, task, tokenizer):
    model, own = member("llama", tokenizer)
    expected = run(folder, model, own, task)
    one, two_copies = (EnsembleForCausalLM.from_members([(model, own)] * copies) for copies in (1, 2))
    assert run(folder, *of(one), task) == expected
    assert_same(run(folder, *of(two_copies), task), expected)


def test_options_of_different_tokenizers_have_the_log_probabilities_of_teacher_forcing(folder):
    ensemble = two()
    _, answers = run(folder, *of(ensemble), "tiny_choices")
    for row, answer in zip(ROWS, answers, strict=True):
        context = f"Question: {row['question']}\nAnswer:"
        for choice, (logp, _) in zip(row["choices"], answer, strict=True):
            prompt = ensemble.tokenizer(context)["input_ids"]
            whole = ensemble.tokenizer(f"{context} {choice}")["input_ids"]
            assert whole[: len(prompt)] == prompt
            with torch.no_grad():
                logps = ensemble(torch.tensor([whole])).logits[0].log_softmax(-1)
            expected = sum(float(logps[at - 1, whole[at]]) for at in range(len(prompt), len(whole)))
            assert logp == pytest.approx(expected, abs=1e-3)


def test_texts_of_different_tokenizers_have_the_bits_of_labels(folder):
    ensemble = two()
    _, answers = run(folder, *of(ensemble), "tiny_rolling")
    text = ensemble.tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[ensemble.tokenizer.bos_token_id, *text]])
    with torch.no_grad():
        loss = ensemble(ids, labels=ids).loss
    assert answers[0][0] == pytest.approx(-float(loss) * (ids.shape[1] - 1), abs=1e-2)
    assert math.isfinite(answers[1][0])


def test_completions_of_different_tokenizers_are_those_of_generate(folder):
    ensemble = two()
    for size in (1, 3):
        _, answers = run(folder, *of(ensemble), "tiny_generate", batch_size=size)
        for row, (answer,) in zip(ROWS, answers, strict=True):
            inputs = ensemble.tokenizer([f"Question: {row['question']}\nAnswer:"], return_tensors="pt")
            ids = ensemble.generate(**inputs, max_new_tokens=10, do_sample=False)
            text = ensemble.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            assert answer == text.partition("\n")[0].partition("e")[0]


def chatting(make, template):
    tokenizer = copy.deepcopy(make())
    tokenizer.chat_template = template
    return tokenizer


ANGLE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
SQUARE = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}{% if add_generation_prompt %}:{% endif %}"


@pytest.mark.parametrize("task", ["tiny_generate", *slow("tiny_choices")])
def test_chats_of_one_member(folder, task):
    model, tokenizer = member("llama", byte_level_bpe)[0], chatting(byte_level_bpe, ANGLE)
    expected = run(folder, model, tokenizer, task, apply_chat_template=True)
    assert expected != run(folder, model, tokenizer, task)
    one, two_copies = (EnsembleForCausalLM.from_members([(model, tokenizer)] * copies) for copies in (1, 2))
    assert run(folder, *of(one), task, apply_chat_template=True) == expected
    assert_same(run(folder, *of(two_copies), task, apply_chat_template=True), expected)


def test_every_member_reads_a_chat_in_its_own_template(folder):
    """All weight to the second member: what the ensemble writes is what that member writes by its own template."""
    model, tokenizer = member("llama", raw_bytes)[0], chatting(raw_bytes, SQUARE)
    first = member("gpt2", sentencepiece_bpe, 1)[0], chatting(sentencepiece_bpe, ANGLE)
    ensemble = EnsembleForCausalLM.from_members([first, (model, tokenizer)], StaticPolicy([0, 1]))
    got = run(folder, *of(ensemble), "tiny_generate", apply_chat_template=True, batch_size=1)[1]
    for row, (answer,) in zip(ROWS, got, strict=True):
        messages = [{"role": "user", "content": f"Question: {row['question']}\nAnswer:"}]
        inputs = ensemble.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        ids = ensemble.generate(**inputs, max_new_tokens=10, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        text = ensemble.tokenizer.decode(ids, skip_special_tokens=True)
        assert answer == text.partition("\n")[0].partition("e")[0]
        own = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        alone = model.generate(**own, max_new_tokens=40, do_sample=False)[0, own["input_ids"].shape[1] :]
        assert tokenizer.decode(alone, skip_special_tokens=True).startswith(answer)


def test_long_texts_are_cut_at_the_context_of_the_members():
    lm = HFLM(pretrained=two(), tokenizer=two().tokenizer)
    assert lm.max_length == 256
