"""The tokenizers of ensembles: decoding, copies and saving."""

from __future__ import annotations

import copy
import pickle
from functools import cache

import numpy as np
import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoTokenizer, TextStreamer

from hf_rlae import EnsembleForCausalLM
from hf_rlae.errors import InputError
from tests.support.models import pair
from tests.support.tokenizers import LOSSLESS, byte_level_bpe, changed, chatml, instruct, raw_bytes, sentencepiece_bpe

TEXTS = ["Once upon a time, there", "naïve café 日本語 😀", "def f(x):\n\treturn  x", " a b", "a", ""]
FIRST = {**LOSSLESS, "chatml": chatml, "instruct": instruct}


@cache
def ensemble_with(name):
    other = raw_bytes if name != "raw_bytes" else byte_level_bpe
    return EnsembleForCausalLM.from_members([pair("llama", 0, FIRST[name]()), pair("llama", 1, other())])


def with_word(build=byte_level_bpe, word="hôtel"):
    """A tokenizer with an added token that is not ASCII."""
    return changed(build(), lambda backend: backend.add_tokens([AddedToken(word, special=False)]))


@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize("skips", [True, False])
def test_ids_of_the_first_member_are_decoded_as_its_tokenizer_does(name, skips):
    """Law: for ids of the first member, the ensemble's tokenizer decodes like that member's own."""
    tokenizer, own = ensemble_with(name).tokenizer, FIRST[name]()
    rows = [own(text)["input_ids"] for text in TEXTS]
    rows += [ids + [own.eos_token_id] for ids in rows] + [ids[1:] for ids in rows if len(ids) > 2]
    for ids in rows:
        expected = own.decode(ids, skip_special_tokens=skips, clean_up_tokenization_spaces=False)
        if "\ufffd" not in expected:
            assert tokenizer.decode(ids, skip_special_tokens=skips) == expected
    assert tokenizer.batch_decode(rows, skips) == [tokenizer.decode(ids, skips) for ids in rows]


@pytest.mark.parametrize("position", [0, 1])
def test_an_added_token_that_is_not_ascii(position):
    members = [pair("llama", 0, with_word()), pair("llama", 1, raw_bytes())]
    if position:
        members.reverse()
    ensemble = EnsembleForCausalLM.from_members(members)
    tokenizer = ensemble.tokenizer
    i = ensemble.union.id_of["hôtel".encode()]
    assert tokenizer.decode([i]) == tokenizer.decode(i) == "hôtel"
    assert tokenizer.decode(tokenizer("grand hôtel, hôtel")["input_ids"]) == "grand hôtel, hôtel"
    tokens = tokenizer.convert_ids_to_tokens([i])
    assert tokenizer.convert_tokens_to_string(tokens) == "hôtel"
    assert tokenizer.convert_tokens_to_ids(tokens) == [i]


@pytest.mark.parametrize("name", ["sentencepiece_bpe", "instruct", "raw_bytes"])
def test_a_stray_byte_changes_no_neighbours(name):
    ensemble = ensemble_with(name)
    ids = [ensemble.union.id_of[bytes([byte])] for byte in b"a\x80\xe2\x82\xacz\xf0\x9f\x98\x80"]
    assert ensemble.tokenizer.decode(ids) == "a\ufffd€z😀"
    assert ensemble.tokenizer.decode(ids[:4]) == "a\ufffd\ufffd"


def test_every_form_of_ids_is_decoded():
    tokenizer = ensemble_with("instruct").tokenizer
    ids = tokenizer("Once upon a time")["input_ids"]
    for given in (ids, tuple(ids), torch.tensor(ids), np.array(ids)):
        assert tokenizer.decode(given, skip_special_tokens=True) == "Once upon a time"
    assert tokenizer.batch_decode(torch.tensor([ids, ids]), skip_special_tokens=True) == ["Once upon a time"] * 2


def test_ids_beyond_the_vocabulary():
    """As in plain tokenizers: ids that have no token have no text, and negative ids are an error."""
    ensemble = ensemble_with("instruct")
    tokenizer, size = ensemble.tokenizer, ensemble.union.size
    plain = instruct()
    assert plain.decode([10**6]) == tokenizer.decode([10**6]) == tokenizer.decode(size) == ""
    assert plain.convert_ids_to_tokens([10**6]) == tokenizer.convert_ids_to_tokens([10**6]) == [None]
    assert tokenizer.decode([size, *tokenizer("a")["input_ids"], size], skip_special_tokens=True) == "a"
    with pytest.raises(InputError, match="token_ids has the id -100"):
        tokenizer.decode([5, -100])


def test_spaces_are_cleaned_up_where_asked():
    """As in plain tokenizers: BPE has no such spaces; tokenizers of words have."""
    for name, expected in (("wordpiece", "a, b"), ("byte_level_bpe", "a , b")):
        tokenizer, plain = ensemble_with(name).tokenizer, FIRST[name]()
        ids = plain("a , b")["input_ids"]
        assert tokenizer.decode(ids) == "a , b"
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=True) == expected
        assert plain.decode(ids, clean_up_tokenization_spaces=True) == expected


def test_a_streamed_text_is_the_decoded_text(capsys):
    ensemble = ensemble_with("instruct")
    inputs = ensemble.tokenizer("Once upon", return_tensors="pt")
    streamer = TextStreamer(ensemble.tokenizer, skip_special_tokens=True)
    out = ensemble.generate(**inputs, max_new_tokens=12, do_sample=False, streamer=streamer)
    assert capsys.readouterr().out == ensemble.tokenizer.decode(out[0], skip_special_tokens=True) + "\n"


def test_other_ways_to_encode_agree():
    """Texts with names of control tokens and rendered chats, which are encoded row by row, in every form."""
    tokenizer = ensemble_with("instruct").tokenizer
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "a </s> b"}], tokenize=False)
    for text in ("Tom said </s> and ▁", chat, "Once"):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.encode(text) == ids
        assert tokenizer([text])["input_ids"] == [ids]
        assert tokenizer(text, return_tensors="pt")["input_ids"].tolist() == [ids]
        assert tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text, add_special_tokens=True)) == ids
        assert tokenizer(text, truncation=True, max_length=4)["input_ids"] == ids[:4]
        wide = tokenizer([text, "a"], padding="max_length", max_length=60, return_tensors="np")
        assert wide["input_ids"].shape == (2, 60)
        assert wide["input_ids"][0][wide["attention_mask"][0].astype(bool)].tolist() == ids
        assert len(tokenizer(text, return_offsets_mapping=True)["offset_mapping"]) > 0


# Copies and saving


def shared(tokenizer):
    return EnsembleForCausalLM.from_members([pair("llama", seed, tokenizer) for seed in (0, 1)]).tokenizer


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda given: pickle.loads(pickle.dumps(given))}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("kind", ["shared", "different"])
def test_copies_are_equal(how, kind):
    tokenizer = shared(chatml()) if kind == "shared" else ensemble_with("chatml").tokenizer
    again = COPIES[how](tokenizer)
    assert type(again) is type(tokenizer)
    assert again("Once upon a time") == tokenizer("Once upon a time")
    assert len(again) == len(tokenizer)
    assert again.pad_token_id == tokenizer.pad_token_id
    assert [type(own) for own in again.member_tokenizers] == [type(own) for own in tokenizer.member_tokenizers]
    assert again.decode(list(range(len(again)))) == tokenizer.decode(list(range(len(tokenizer))))
    chat = [{"role": "user", "content": "hi"}]
    if kind == "shared":
        assert torch.equal(*(t.apply_chat_template(chat)["member_input_ids"] for t in (again, tokenizer)))


@pytest.mark.parametrize("build", [chatml, sentencepiece_bpe, with_word])
def test_with_one_tokenizer_what_is_saved_loads(build, tmp_path):
    tokenizer = shared(build())
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert len(loaded) == len(tokenizer)
    assert loaded.padding_side == "left"
    assert loaded.chat_template == tokenizer.chat_template
    texts = ["grand hôtel </s><|im_end|>", "a"]
    assert loaded(texts, padding=True)["input_ids"] == tokenizer(texts, padding=True)["input_ids"]
    assert (loaded.eos_token, loaded.pad_token) == (tokenizer.eos_token, tokenizer.pad_token)
