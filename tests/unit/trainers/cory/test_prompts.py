"""Observers' prompts, and how they are cut to the context."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_rlae.errors import InputError
from hf_rlae.trainers.cory.prompts import ObserverPrompts, joined_answers, observer_prompt
from tests.support.cory import base, chats, rollout, trainer_of
from tests.support.rlae import vowels
from tests.support.tokenizers import byte_level_bpe

TEXT = st.text(max_size=20)
TOKENIZER = byte_level_bpe()


def lengths(prompts):
    return [len(TOKENIZER(prompt)["input_ids"]) for prompt in prompts]


@given(TEXT, st.lists(TEXT, min_size=1, max_size=3))
def test_everything_is_in_it_once(prompt, answers):
    """Even if prompts and answers look like slots."""
    made = observer_prompt(f"[{prompt}", [f"<{answer}" for answer in answers], "A {answers} B {prompt} C")
    inner = joined_answers([f"<{answer}" for answer in answers])
    assert made == f"A {inner} B [{prompt} C"


def test_braces_stay_text():
    assert observer_prompt("{answers}", ["{prompt}"], '{"a": {answers}, {prompt}}') == '{"a": {prompt}, {answers}}'


def test_default_templates():
    made = observer_prompt("Once upon", [" a time"])
    assert made.index(" a time") < made.index("Once upon")
    assert made.endswith("Once upon")
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "2+2?"}]
    observed = observer_prompt(chat, ["5", "4"])
    assert observed[0] == chat[0]
    assert len(observed) == 2
    assert observed[1]["role"] == "user"
    assert observed[1]["content"].startswith("2+2?")
    assert "1. 5\n2. 4" in observed[1]["content"]
    assert chat[1]["content"] == "2+2?"


def test_a_function_for_a_template():
    def template(prompt, answers):
        return [*prompt, {"role": "assistant", "content": answers[0]}, {"role": "user", "content": "Really?"}]

    made = observer_prompt([{"role": "user", "content": "2+2?"}], ["5"], template)
    assert [message["content"] for message in made] == ["2+2?", "5", "Really?"]
    with pytest.raises(InputError, match="expected a list of messages"):
        observer_prompt([{"role": "user", "content": "2+2?"}], ["5"], lambda prompt, answers: "text")
    with pytest.raises(InputError, match="expected a string"):
        observer_prompt("2+2?", ["5"], lambda prompt, answers: prompt and [])
    with pytest.raises(InputError, match="no text as its content"):
        observer_prompt([{"role": "user", "content": [{"type": "text", "text": "2+2?"}]}], ["5"])


PIECES = ["Once", "upon", "a", "time", "the", "little", "dog", "ran", "Lily", "said", "ü", "日", "😀"]
WORDS = st.lists(st.sampled_from(PIECES), max_size=30)


@given(WORDS, st.lists(WORDS, min_size=1, max_size=3), st.integers(1, 60))
def test_prompts_fit_and_keep_the_end_of_the_answers(prompt, answers, bound):
    prompt, answers = " ".join(prompt), [" ".join(words) for words in answers]
    template = "{answers}|{prompt}"
    make = ObserverPrompts(TOKENIZER, lengths, bound)
    [made], [is_cut] = make([prompt], [answers], template)
    whole = observer_prompt(prompt, answers, template)
    assert is_cut == (lengths([whole])[0] > bound)
    if not is_cut:
        assert made == whole
        return
    assert made == prompt or lengths([made])[0] <= bound
    if made != prompt and len(answers) == 1:
        kept = made.removesuffix(f"|{prompt}").replace("�", "")
        assert answers[0].endswith(kept)
        assert len(kept) < len(answers[0])


def test_cutting_takes_no_more_than_it_must():
    answer = "Once upon a time there was a little girl named Lily"
    for bound in range(12, 20):
        make = ObserverPrompts(TOKENIZER, lengths, bound)
        [made], [is_cut] = make(["the dog"], [[answer]], "{answers}|{prompt}")
        if is_cut and made != "the dog":
            assert bound - 1 <= lengths([made])[0] <= bound


def test_the_earliest_answer_is_cut_first():
    answers = ["Once upon a time there was a girl", "The dog ran"]
    make = ObserverPrompts(TOKENIZER, lengths, 20)
    [made], _ = make(["x"], [answers], "{answers}|{prompt}")
    assert "The dog ran" in made
    assert "Once upon" not in made


def test_no_bound():
    make = ObserverPrompts(TOKENIZER, lengths)
    assert make(["a"], [["b" * 5000]])[1] == [False]


@pytest.mark.parametrize("chat", [False, True])
def test_observers_of_a_trainer_fit_into_the_context(tmp_path, caplog, chat):
    """The model has 64 positions, enough for the observer's prompt and its completion."""
    seen = {}

    def reward(completions, prompts, role, previous_completions, **_):
        seen[role[0]] = (prompts, completions, previous_completions)
        return vowels([text if isinstance(text, str) else text[0]["content"] for text in completions])

    trainer = trainer_of(
        tmp_path, rewards=reward, given=base(chat=chat, max_position_embeddings=64), max_completion_length=30,
        train=chats() if chat else None, observer_template="{answers} ~~ {prompt}",
    )  # fmt: skip
    with caplog.at_level(logging.WARNING):
        batch = rollout(trainer)
    lengths = batch["agent-2/prompt_mask"].sum(1)
    assert 30 < lengths.max() <= 34
    texts = byte_level_bpe().batch_decode(batch["agent-2/prompt_ids"], skip_special_tokens=True)
    assert all(" ~~ " in text for text in texts)
    assert "were cut from the left" in caplog.text
    assert trainer._metrics["train"]["role/observer/cut_ratio"][0] > 0
    # reward functions receive the original prompts and the complete answers
    assert seen["observer"][0] == seen["pioneer"][0] == [trainer.train_dataset[at // 4]["prompt"] for at in range(8)]
    assert seen["observer"][2] == [[text] for text in seen["pioneer"][1]]
    assert seen["pioneer"][2] == [[] for _ in range(8)]


def test_without_transfer_observers_see_the_prompt_alone(tmp_path):
    trainer = trainer_of(tmp_path, knowledge_transfer=False)
    batch = rollout(trainer)
    assert batch["agent-1/prompt_ids"].equal(batch["agent-2/prompt_ids"])
    with_transfer = rollout(trainer_of(tmp_path))
    assert with_transfer["agent-2/prompt_ids"].shape[1] > with_transfer["agent-1/prompt_ids"].shape[1]
