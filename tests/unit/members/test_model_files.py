"""Folders that hold no whole model: each is refused by name, before much memory or time is spent."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from hf_rlae import EnsembleForCausalLM, MemberError, TokenizerError
from hf_rlae.members import Member, file_budget
from tests.support.ensembles import TEXTS, encode
from tests.support.models import pair
from tests.support.tokenizers import byte_level_bpe

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    model, tokenizer = pair("llama")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "broken"))


def change_tensors(folder, change, dtype=None):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def change_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def shard(folder, second="model-2.safetensors"):
    """Splits the weights into two files with an index, which names the second one as given."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    halves = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, own in halves.items():
        save_file({name: tensors[name] for name in own}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    weight_map = {
        name: second if file == "model-2.safetensors" else file for file, own in halves.items() for name in own
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def as_pickle(folder):
    """The same weights in a `.bin` file, without one tensor."""
    tensors = load_file(folder / "model.safetensors")
    del tensors[UP]
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def without_up_in_shards(folder):
    change_tensors(folder, lambda tensors: tensors.pop(UP))
    shard(folder)


def headless_encoder(folder):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = BertConfig(vocab_size=330, is_decoder=True, **sizes)
    (folder / "model.safetensors").unlink()
    BertModel(config).save_pretrained(folder)


NOT_WHOLE = {
    "one tensor missing": (lambda f: change_tensors(f, lambda t: t.pop(UP)), ["have no " + UP]),
    "in a pickle": (as_pickle, ["no " + UP]),
    "in shards": (without_up_in_shards, ["no " + UP]),
    "no tensors at all": (lambda f: change_tensors(f, lambda t: t.clear()), ["hold only 40 bytes"]),
    "untied head missing": (lambda f: change_tensors(f, lambda t: t.pop("lm_head.weight")), ["no lm_head.weight"]),
    "an encoder without a head": (headless_encoder, ["no cls.predictions", "an encoder"]),
    "another shape": (lambda f: change_tensors(f, lambda t: t.update({UP: torch.zeros(3, 3)})), [UP, "(3, 3)"]),
    "another rank": (lambda f: change_tensors(f, lambda t: t.update({UP: t[UP].flatten()})), [UP, "(1536,)"]),
    "NaN": (lambda f: change_tensors(f, lambda t: t[UP].fill_(float("nan"))), ["NaN", UP]),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_WHOLE)
def test_models_that_are_not_whole(folder, name):
    spoil, words = NOT_WHOLE[name]
    spoil(folder)
    with pytest.raises(MemberError) as caught:
        EnsembleForCausalLM.from_members([str(folder)])
    assert f"member {folder}" in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_whole_models_load(folder):
    """Tied heads have no tensor of their own; additional tensors, shards and half precision are no fault."""
    expected = Member.load(str(folder)).model(**encode(TEXTS[0])).logits
    change_tensors(folder, lambda tensors: tensors.update({"more": torch.zeros(2)}))
    shard(folder)
    torch.testing.assert_close(Member.load(str(folder)).model(**encode(TEXTS[0])).logits, expected)
    tied, _ = pair("llama", tie_word_embeddings=True, num_hidden_layers=1)
    tied.half().save_pretrained(folder)
    assert Member.load(str(folder)).dtype == torch.float16


TOO_MUCH = {
    "layers": {"num_hidden_layers": 10**6},
    "many layers for small files": {"num_hidden_layers": 1000},
    "layers without an end": {"num_hidden_layers": 10**15},
    "labels": {"num_labels": 10**9},
    "width": {"hidden_size": 2**20},
    "feed-forward": {"intermediate_size": 10**9},
    "vocabulary": {"vocab_size": 10**9},
    "layers of a part": {"text_config": {"num_hidden_layers": 10**12}},
}
"""Changes of a config that make its model far larger than the files."""


@pytest.mark.parametrize("name", TOO_MUCH)
def test_configs_that_declare_more_than_the_files_hold(folder, name):
    change_config(folder, **TOO_MUCH[name])
    start = time.thread_time()
    with pytest.raises(MemberError, match=r"config.* declares .* weight files hold only 0\.1 MB"):
        Member.load(str(folder))
    assert time.thread_time() - start < 5  # in full it would take minutes


def test_a_config_that_is_meant_can_be_loaded(folder):
    """`check_files=False` leaves these checks out; then the missing tensors are found after loading."""
    change_config(folder, num_hidden_layers=100)
    with pytest.raises(MemberError, match="check_files=False"):
        Member.load(str(folder))
    with pytest.raises(MemberError, match=r"is not whole: its files have no model.layers.10.*tensors"):
        Member.load(str(folder), check_files=False)
    with pytest.raises(MemberError, match=r"is not whole"):
        EnsembleForCausalLM.from_members([str(folder)], check_files=False)


def test_a_model_that_is_larger_than_the_memory(folder, monkeypatch):
    monkeypatch.setattr(file_budget, "free_memory", lambda: 100_000)
    with pytest.raises(MemberError, match=r"needs more than 0\.1 MB of memory, and 0\.1 MB are free"):
        Member.load(str(folder))
    Member.load(str(folder), check_files=False)
    Member.load(str(folder), dtype=torch.bfloat16)


def test_shards_in_a_folder_of_their_own(folder):
    shard(folder, "parts/model-2.safetensors")
    (folder / "parts").mkdir()
    (folder / "model-2.safetensors").rename(folder / "parts" / "model-2.safetensors")
    assert file_budget.weight_bytes(folder) > 140_000
    Member.load(str(folder))


@pytest.mark.parametrize("name", ["../other/model-2.safetensors", "/etc/passwd", "..\\x", "C:\\x", 3, None])
def test_shards_outside_of_the_folder(folder, name):
    shard(folder, name)
    with pytest.raises(MemberError, match=r"model.safetensors.index.json (names|is not an index)"):
        Member.load(str(folder))


@pytest.mark.parametrize("text", ["[]", '{"weight_map": []}', "{", "[" * 10**5])
def test_an_index_that_is_none(folder, text):
    shard(folder)
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(MemberError, match="is not an index of weights"):
        Member.load(str(folder))


UNREADABLE = {
    "no config": lambda f: (f / "config.json").unlink(),
    "a config that is a list": lambda f: (f / "config.json").write_text("[]"),
    "a config that is no JSON": lambda f: (f / "config.json").write_text("{"),
    "a config nested too deeply": lambda f: (f / "config.json").write_text('{"a":' + "[" * 10**5),
    "dimensions that do not fit": lambda f: change_config(f, num_attention_heads=3, head_dim=None),
    "a negative size": lambda f: change_config(f, hidden_size=-1),
    "a size that is text": lambda f: change_config(f, hidden_size="many"),
    "an unknown architecture": lambda f: change_config(f, model_type="no-such-model"),
    "damaged weights": lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 1000),
    "no weights": lambda f: (f / "model.safetensors").unlink(),
    "a pickle that runs code": lambda f: (
        (f / "model.safetensors").unlink(),
        (f / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR."),
    ),
    "no tokenizer": lambda f: [path.unlink() for path in f.glob("tokenizer*")],
    "a tokenizer that is no JSON": lambda f: (f / "tokenizer.json").write_text("{"),
    "an empty folder": lambda f: [path.unlink() for path in f.iterdir()],
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_files_that_cannot_be_read(folder, name):
    UNREADABLE[name](folder)
    with pytest.raises(MemberError, match=f"member {folder}"):
        Member.load(str(folder))
    assert not Path("ran").exists()


def test_a_folder_that_is_missing(tmp_path):
    with pytest.raises(MemberError, match=r"there is no such folder. Give a folder"):
        Member.load(str(tmp_path / "missing"))


def test_code_of_a_repository_is_not_asked_for(folder, monkeypatch):
    """transformers asks on standard input where `trust_remote_code` is not given."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on standard input"))
    change_config(folder, model_type="custom", auto_map={"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"})
    (folder / "code.py").write_text("raise SystemExit('ran')")
    with pytest.raises(MemberError, match="trust_remote_code"):
        Member.load(str(folder))


def test_a_tokenizer_whose_regular_expression_explodes(folder):
    """The tokenizers library panics, which is no `Exception`."""
    path = folder / "tokenizer.json"
    saved = json.loads(path.read_text())
    saved["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"Regex": r"(?:\w+\s?)+$"},
        "behavior": "Isolated",
        "invert": False,
    }
    path.write_text(json.dumps(saved))
    with pytest.raises(TokenizerError, match=r"tokenizer of member .* fails: PanicException: Onig: Regex search error"):
        EnsembleForCausalLM.from_members([str(folder)])


def test_an_exception_that_ends_the_program_is_not_caught(folder, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(byte_level_bpe()), "from_pretrained", interrupted)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Member.load(str(folder))
