"""Ensembles in `pipeline("text-generation")`: as a user calls it, the text is that of `ensemble.generate`."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from transformers import pipeline

from hf_rlae import EnsembleForCausalLM
from hf_rlae.ensemble.chats.memory import chat_memory
from tests.support.models import pair
from tests.support.tokenizers import byte_level_bpe, chatml, instruct, raw_bytes

OPTIONS = {"max_new_tokens": 9, "do_sample": False}
TEXTS = ["Once upon a time", "a", "The 3 big dogs ran 12 miles; they didn't stop"]
QUESTIONS = [
    [{"role": "user", "content": "hi"}],
    [{"role": "user", "content": "Tell me </s> of 日本語, please, and of <|im_end|> too."}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
]


def other_template(text="[{{ m['role'] }}] {{ m['content'] }}"):
    tokenizer = copy.deepcopy(chatml())
    tokenizer.chat_template = (
        f"{{% for m in messages %}}{text}{{% endfor %}}{{% if add_generation_prompt %}} ->{{% endif %}}"
    )
    return tokenizer


KINDS = {
    "different tokenizers": [chatml, instruct],
    "a template that cannot be parsed": [lambda: other_template("{{ m['content'] }} and "), instruct],
    "one tokenizer": [chatml, chatml],
    "one tokenizer, two templates": [chatml, other_template],
    "one member": [chatml],
}


def make(kind, **options):
    builds = KINDS.get(kind, [byte_level_bpe, raw_bytes])
    members = [pair("llama", seed, build(), num_hidden_layers=1) for seed, build in enumerate(builds)]
    return EnsembleForCausalLM.from_members(members, span_length=2, **options)


def by_generate(ensemble, inputs):
    """The completion of one prompt."""
    ids = ensemble.generate(**inputs, **OPTIONS)[:, inputs["input_ids"].shape[1] :]
    return ensemble.tokenizer.decode(ids[0], skip_special_tokens=True)


def answer(ensemble, messages):
    inputs = ensemble.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert inputs["member_input_ids"].shape[1] == len(ensemble.members)
    return by_generate(ensemble, inputs)


@pytest.fixture(params=["objects", "folder"])
def piped(request, tmp_path):
    """Makes a pipeline of an ensemble, and the same ensemble to compare with."""

    def made(kind, **options):
        ensemble = make(kind, **options)
        if request.param == "objects":
            return pipeline("text-generation", model=ensemble, tokenizer=ensemble.tokenizer), ensemble
        ensemble.save_pretrained(tmp_path, save_members=True)
        return pipeline("text-generation", model=str(tmp_path)), ensemble

    return made


@pytest.mark.parametrize("kind", ["texts alone", "different tokenizers", "one tokenizer", "one member"])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_texts(piped, kind, batch_size):
    pipe, ensemble = piped(kind)
    expected = [text + by_generate(ensemble, ensemble.tokenizer(text, return_tensors="pt")) for text in TEXTS]
    assert [row[0]["generated_text"] for row in pipe(TEXTS, batch_size=batch_size, **OPTIONS)] == expected
    assert pipe(TEXTS[0], **OPTIONS) == [{"generated_text": expected[0]}]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_chats(piped, kind, batch_size):
    """Every member reads its own rendering, also in batches of chats of different lengths."""
    pipe, ensemble = piped(kind)
    expected = [answer(ensemble, messages) for messages in QUESTIONS]
    chat_memory(ensemble.members[0].tokenizer).by_ids.clear()
    found = pipe(QUESTIONS, batch_size=batch_size, **OPTIONS)
    assert [row[0]["generated_text"][-1] for row in found] == [
        {"role": "assistant", "content": text} for text in expected
    ]
    single = pipe(QUESTIONS[0], **OPTIONS)
    assert single[0]["generated_text"] == [*QUESTIONS[0], {"role": "assistant", "content": expected[0]}]


def test_the_beginning_of_an_answer(piped):
    pipe, ensemble = piped("one tokenizer, two templates")
    messages = [*QUESTIONS[0], {"role": "assistant", "content": "Once"}]
    inputs = ensemble.tokenizer.apply_chat_template(messages, continue_final_message=True)
    found = pipe(messages, **OPTIONS)[0]["generated_text"][-1]["content"]
    assert found == "Once" + by_generate(ensemble, inputs)


def test_samples_and_beams_of_a_chat(piped):
    pipe, ensemble = piped("one tokenizer, two templates")
    inputs = ensemble.tokenizer.apply_chat_template(QUESTIONS[1], add_generation_prompt=True)
    options = {**OPTIONS, "num_beams": 3, "num_return_sequences": 2}
    ids = ensemble.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
    expected = ensemble.tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert [row["generated_text"][-1]["content"] for row in pipe(QUESTIONS[1], **options)] == expected


def test_a_pipeline_knows_the_class(piped, monkeypatch):
    logged = []
    monkeypatch.setattr("transformers.pipelines.base.logger.error", logged.append)
    piped("one tokenizer")
    assert not logged


def test_a_pipeline_is_saved_and_loaded(tmp_path):
    ensemble = make("one tokenizer, two templates")
    pipe = pipeline("text-generation", model=ensemble, tokenizer=ensemble.tokenizer)
    pipe.save_pretrained(tmp_path, save_members=True)
    again = pipeline("text-generation", model=str(tmp_path))
    assert again(QUESTIONS, **OPTIONS) == pipe(QUESTIONS, **OPTIONS)


# What is recognised, with one tokenizer and several templates


def test_a_batch_of_a_chat_and_a_text():
    ensemble = make("one tokenizer, two templates")
    tokenizer = ensemble.tokenizer
    rows = [
        tokenizer.apply_chat_template(QUESTIONS[0], add_generation_prompt=True),
        tokenizer("a", return_tensors="pt"),
    ]
    expected = [by_generate(ensemble, row) for row in rows]
    batch = tokenizer.pad({"input_ids": [row["input_ids"][0].tolist() for row in rows]}, return_tensors="pt")
    ids = ensemble.generate(**batch, **OPTIONS)[:, batch["input_ids"].shape[1] :]
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) == expected


def test_a_rendered_text():
    """As evaluation tools do: a text of the first member's template, encoded without special tokens."""
    ensemble = make("one tokenizer, two templates")
    text = ensemble.tokenizer.apply_chat_template(QUESTIONS[0], tokenize=False, add_generation_prompt=True)
    inputs = ensemble.tokenizer(text, add_special_tokens=False, return_tensors="pt")
    found = by_generate(ensemble, inputs)
    assert found == answer(ensemble, QUESTIONS[0])
    chat_memory(ensemble.members[0].tokenizer).by_ids.clear()
    assert by_generate(ensemble, inputs) != found  # a text that nobody rendered is a text


def test_a_chat_that_a_member_cannot_render_is_a_text(caplog):
    strict = other_template("{{ raise_exception('no chats') if m['role'] == 'system' }}{{ m['content'] }}")
    members = [pair("llama", seed, build, num_hidden_layers=1) for seed, build in enumerate((chatml(), strict))]
    ensemble = EnsembleForCausalLM.from_members(members)
    messages = [{"role": "system", "content": "be kind"}, *QUESTIONS[0]]
    text = ensemble.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = ensemble.tokenizer(text, add_special_tokens=False, return_tensors="pt")
    found = by_generate(ensemble, inputs)
    assert "no chats" in caplog.text
    chat_memory(ensemble.members[0].tokenizer).by_ids.clear()
    assert by_generate(ensemble, inputs) == found


def test_what_apply_chat_template_returns_is_what_generate_takes():
    """Other entries than a pipeline's change nothing."""
    inputs = make("one tokenizer, two templates").tokenizer.apply_chat_template(QUESTIONS)
    inputs["labels"] = torch.zeros(3)
    assert list(inputs) == ["input_ids", "attention_mask", "member_input_ids", "member_attention_mask", "labels"]
    assert inputs.to("cpu")["member_input_ids"].shape[:2] == (3, 2)


def test_memories_are_shared_by_equal_first_members_and_end_with_them():
    first = other_template("only in this test: {{ m['content'] }}")  # the others are alive
    second = copy.deepcopy(first)
    memory = chat_memory(first)
    assert chat_memory(second) is memory
    assert chat_memory(other_template()) is not memory
    memory.keep([1], None)
    del memory
    gc.collect()
    assert not chat_memory(first).by_ids
