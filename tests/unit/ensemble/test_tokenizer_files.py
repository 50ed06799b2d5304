"""Tokenizers of saved ensembles: files, `AutoTokenizer`, and tokenizers that no longer match."""

from __future__ import annotations

import copy
import json
import shutil
from functools import cache

import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoTokenizer

from hf_rlae import ConfigError, EnsembleForCausalLM, EnsembleTokenizer, TokenizerError
from tests.support.models import pair
from tests.support.tokenizers import (
    CHATML,
    LOSSLESS,
    byte_level_bpe,
    changed,
    chatml,
    instruct,
    raw_bytes,
    sentencepiece_bpe,
)

TEXTS = [
    "Once upon a time, there",
    "naïve café 日本語 😀\ufffd",
    "def f(x):\n\treturn  x",
    " a  b ",
    "",
    "\x00\r\n\t",
    "</s><|im_end|><|endoftext|><|stop|>",
    "#348 ▁▁ <0xE2> Ġ",
    "e\u0301 \u200d\U0001f468",
]
CHAT = [{"role": "user", "content": "a </s> <|im_end|> é"}]


def other_template():
    tokenizer = copy.deepcopy(chatml())
    tokenizer.chat_template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}"
    return tokenizer


ENSEMBLES = {
    **{name: ([build, raw_bytes if name != "raw_bytes" else byte_level_bpe], {}) for name, build in LOSSLESS.items()},
    "chats": ([chatml, instruct], {}),
    "three, two of them alike": ([sentencepiece_bpe, chatml, sentencepiece_bpe], {}),
    "bytes": ([chatml, instruct], {"grain": "byte"}),
    "characters": ([instruct, chatml], {"grain": "character", "mixing": "log"}),
    "common tokens": ([instruct, byte_level_bpe], {"grain": "common"}),
    "one tokenizer": ([chatml, chatml], {}),
    "one tokenizer, two templates": ([chatml, other_template], {}),
    "one tokenizer, in bytes": ([chatml, other_template], {"grain": "byte"}),
    "one member": ([chatml], {}),
    "a Unicode form": ([chatml, instruct], {"normalizes": "NFC"}),
    "padded embeddings": ([chatml, instruct], {}),
}


@cache
def ensemble_of(name):
    builds, options = ENSEMBLES[name]
    sizes = {"vocab_size": 400} if name == "padded embeddings" else {}
    members = [pair("llama", seed, build(), num_hidden_layers=1, **sizes) for seed, build in enumerate(builds)]
    return EnsembleForCausalLM.from_members(members, **options)


def assert_same(found, wanted):
    """Law: a loaded tokenizer encodes, decodes and renders as the one that was saved."""
    assert type(found) is type(wanted)
    assert len(found) == len(wanted)
    for skips in (True, False):
        assert found.batch_decode([[i] for i in range(len(wanted))], skip_special_tokens=skips) == wanted.batch_decode(
            [[i] for i in range(len(wanted))], skip_special_tokens=skips
        )
    assert found.convert_ids_to_tokens(list(range(len(wanted)))) == wanted.convert_ids_to_tokens(
        list(range(len(wanted)))
    )
    for options in ({}, {"add_special_tokens": False}, {"split_special_tokens": False}):
        rows = [found(text, **options)["input_ids"] for text in TEXTS]
        assert rows == [wanted(text, **options)["input_ids"] for text in TEXTS]
    assert found(TEXTS, padding=True) == wanted(TEXTS, padding=True)
    assert found.batch_decode(rows) == wanted.batch_decode(rows)
    for name in ("eos_token_id", "pad_token_id", "bos_token_id", "padding_side", "all_special_ids", "chat_template"):
        assert getattr(found, name) == getattr(wanted, name), name
    if all(own.chat_template for own in wanted.member_tokenizers):
        ours, theirs = found.apply_chat_template(CHAT), wanted.apply_chat_template(CHAT)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("name", ENSEMBLES)
def test_the_tokenizer_of_a_saved_ensemble(name, tmp_path):
    """It is made from the members' tokenizers, and no weights are needed."""
    ensemble = ensemble_of(name)
    ensemble.save_pretrained(tmp_path, save_members=True)
    for weights in tmp_path.glob("members/*/*.safetensors"):
        weights.unlink()
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert_same(loaded, ensemble.tokenizer)


@pytest.mark.parametrize("name", ENSEMBLES)
def test_a_tokenizer_that_is_saved_alone(name, tmp_path):
    tokenizer = ensemble_of(name).tokenizer
    paths = tokenizer.save_pretrained(tmp_path / "own")
    assert all((tmp_path / "own" / path).exists() for path in paths)
    shutil.move(tmp_path / "own", tmp_path / "moved")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "moved")
    if name in ("one tokenizer", "one member"):  # a plain tokenizer, which needs no hf_rlae
        assert not isinstance(loaded, EnsembleTokenizer)
        assert [loaded(text)["input_ids"] for text in TEXTS] == [tokenizer(text)["input_ids"] for text in TEXTS]
    else:
        assert_same(loaded, tokenizer)
        assert_same(EnsembleTokenizer.from_pretrained(str(tmp_path / "moved")), tokenizer)


def test_what_a_user_has_set_is_saved(tmp_path):
    tokenizer = copy.deepcopy(ensemble_of("chats").tokenizer)
    tokenizer.padding_side, tokenizer.truncation_side, tokenizer.model_max_length = "right", "left", 17
    tokenizer.chat_template = CHATML + "!"
    tokenizer.pad_token = "<|im_end|>"
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert_same(loaded, tokenizer)
    assert (loaded.truncation_side, loaded.model_max_length) == ("left", 17)
    assert AutoTokenizer.from_pretrained(tmp_path, padding_side="left").padding_side == "left"


def save_members(folder, builds=(chatml, instruct)):
    names = []
    for index, build in enumerate(builds):
        model, tokenizer = pair("llama", index, build(), num_hidden_layers=1)
        names.append(str(folder / f"member-{index}"))
        model.save_pretrained(names[-1])
        tokenizer.save_pretrained(names[-1])
    return names


def test_members_in_other_folders(tmp_path):
    """As for the ensemble: beside its folder with `allow_outside`, elsewhere by `members`; no path is written."""
    names = save_members(tmp_path / "private")
    ensemble = EnsembleForCausalLM.from_members(names)
    ensemble.save_pretrained(tmp_path / "private" / "beside")
    with pytest.raises(ConfigError, match="allow_outside=True"):
        AutoTokenizer.from_pretrained(tmp_path / "private" / "beside")
    assert_same(AutoTokenizer.from_pretrained(tmp_path / "private" / "beside", allow_outside=True), ensemble.tokenizer)
    ensemble.save_pretrained(tmp_path / "elsewhere")
    assert_same(AutoTokenizer.from_pretrained(tmp_path / "elsewhere", members=names), ensemble.tokenizer)
    with pytest.raises(ConfigError, match="members has 1 entries for 2 members"):
        AutoTokenizer.from_pretrained(tmp_path / "elsewhere", members=names[:1])
    ensemble.tokenizer.save_pretrained(tmp_path / "alone")
    written = [path for name in ("elsewhere", "alone") for path in (tmp_path / name).rglob("*") if path.is_file()]
    assert len(written) > 8
    assert not [path for path in written if b"private" in path.read_bytes()]


def test_a_tokenizer_that_no_longer_matches(tmp_path):
    names = save_members(tmp_path)
    EnsembleForCausalLM.from_members(names).save_pretrained(tmp_path / "ensemble")
    grown = changed(instruct(), lambda backend: backend.add_tokens([AddedToken("hôtel", special=False)]))
    grown.save_pretrained(names[1])
    with pytest.raises(
        TokenizerError, match=r"ensemble no longer matches: .* it was saved with [0-9a-f]{64}; load the"
    ):
        AutoTokenizer.from_pretrained(tmp_path / "ensemble", allow_outside=True)


CHANGES = {
    "a member less": (lambda s: s["members"].pop(), r"it has 1 members, and config.json 2"),
    "no members": (lambda s: s.update(members=[]), "members must be a list of objects"),
    "members of no kind": (lambda s: s.update(members=[3]), "members must be a list of objects"),
    "an absurd size": (lambda s: s["members"][0].update(vocab_size=10**12), "vocab_size=1000000000000"),
    "a size that is no number": (lambda s: s["members"][0].update(vocab_size="9"), "members must be a list"),
    "no grain": (lambda s: s.update(grain="words"), "grain='words'"),
    "no form": (lambda s: s.update(form="NFX"), "form='NFX'"),
    "a setting of another type": (lambda s: s.update(padding_side=3), "padding_side=3"),
    "another class": (lambda s: s.update(tokenizer_class="Gate"), "tokenizer_class='Gate'"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_files_that_nobody_has_saved(name, tmp_path):
    change, message = CHANGES[name]
    ensemble_of("chats").save_pretrained(tmp_path, save_members=True)
    path = tmp_path / "tokenizer_config.json"
    saved = json.loads(path.read_text())
    change(saved)
    path.write_text(json.dumps(saved))
    with pytest.raises(TokenizerError, match=message):
        EnsembleTokenizer.from_pretrained(tmp_path)


def test_a_folder_without_a_tokenizer(tmp_path):
    ensemble_of("chats").save_pretrained(tmp_path, save_members=True)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(TokenizerError, match=r"has no tokenizer_config.json.*save it again"):
        AutoTokenizer.from_pretrained(tmp_path)
