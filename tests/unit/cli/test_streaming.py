"""Streamed text: complete characters, no lost space, no corrections."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from hf_rlae.cli.streaming import ContinuationStreamer
from hf_rlae.ensemble.continuation import ContinuationDecoder
from hf_rlae.reports import TokenCounter
from tests.support.tokenizers import byte_level_bpe, characters, raw_bytes, sentencepiece_bpe, wordpiece

TOKENIZERS = {
    "byte_level_bpe": byte_level_bpe,
    "sentencepiece_bpe": sentencepiece_bpe,
    "raw_bytes": raw_bytes,
    "wordpiece": wordpiece,
}
HALF = "\ufffd"
TEXTS = st.text(st.sampled_from("ab \n\té日本ひ😀.,1"), min_size=1, max_size=24)


def pieces_of(tokenizer, prompt_ids: list[int], ids: list[int]) -> list[str]:
    pieces: list[str] = []
    streamer = ContinuationStreamer(tokenizer, pieces.append)
    streamer.put(torch.tensor([prompt_ids]))
    for token in ids:
        streamer.put(torch.tensor([token]))
    streamer.end()
    return pieces


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=TEXTS, share=st.floats(0, 1))
def test_the_pieces_are_the_text(name, text, share):
    tokenizer = TOKENIZERS[name]()
    ids = tokenizer("a" + text).input_ids
    cut = max(1, int(share * len(ids)))
    prompt = tokenizer.decode(ids[:cut], skip_special_tokens=True)
    assume(not prompt.endswith(HALF))
    pieces = pieces_of(tokenizer, ids[:cut], ids[cut:])
    assert prompt + "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)
    assert not any(HALF in piece for piece in pieces)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=TEXTS)
def test_a_batch_of_ids_gives_the_same_text_as_one_by_one(name, text):
    tokenizer = TOKENIZERS[name]()
    prompt, ids = tokenizer("a").input_ids, tokenizer(text).input_ids
    decoder = ContinuationDecoder(tokenizer, prompt)
    assert decoder.push(ids) + decoder.finish() == "".join(pieces_of(tokenizer, prompt, ids))


def test_text_appears_with_the_token_that_completes_it():
    tokenizer = raw_bytes()
    decoder = ContinuationDecoder(tokenizer, tokenizer("x").input_ids)
    ids = tokenizer(" aé😀").input_ids
    assert [decoder.push([token]) for token in ids] == [" ", "a", "", "é", "", "", "", "😀"]


def test_a_space_after_the_prompt_and_indentation_stay():
    tokenizer = sentencepiece_bpe()
    prompt = tokenizer("Once upon").input_ids
    whole = tokenizer("Once upon a\n   time").input_ids
    assert whole[: len(prompt)] == prompt
    assert "".join(pieces_of(tokenizer, prompt, whole[len(prompt) :])) == " a\n   time"


@pytest.mark.parametrize("make", [raw_bytes, sentencepiece_bpe, byte_level_bpe])
def test_a_character_that_the_text_breaks_off_in_is_left_out(make):
    tokenizer = make()
    prompt = tokenizer("a").input_ids
    ids = tokenizer("a b🦜").input_ids[len(prompt) :]
    assert "".join(pieces_of(tokenizer, prompt, ids)) == " b🦜"
    assert "".join(pieces_of(tokenizer, prompt, ids[:-1])) == " b"


@pytest.mark.parametrize("make", [raw_bytes, sentencepiece_bpe])
def test_bytes_that_are_no_character_do_not_spoil_their_neighbours(make):
    tokenizer = make()
    prompt = tokenizer("a").input_ids
    bad = tokenizer("🦜").input_ids[-1:]  # the last byte alone
    ids = [*tokenizer("日").input_ids, *bad, *tokenizer("b").input_ids]
    text = "".join(pieces_of(tokenizer, prompt, ids))
    assert text.replace(" ", "") == f"日{HALF}b"


def test_special_tokens_are_not_written():
    tokenizer = sentencepiece_bpe()
    prompt = tokenizer("a").input_ids
    ids = [*tokenizer("b").input_ids, tokenizer.eos_token_id]
    assert "".join(pieces_of(tokenizer, prompt, ids)).strip() == "b"


def test_nothing_to_write_is_nothing_written():
    assert pieces_of(characters(), [3], []) == []
    ContinuationStreamer(characters(), pytest.fail).end()


def test_steps_are_counted_without_the_prompt():
    steps: list[None] = []
    counter = TokenCounter(lambda: steps.append(None))
    for _ in range(2):  # several calls of `generate`, one after the other
        counter.put(torch.tensor([[1, 2, 3], [4, 5, 6]]))
        counter.put(torch.tensor([7, 8]))
        counter.put(torch.tensor([7, 8]))
        counter.end()
    assert len(steps) == 4
