"""Members whose weights are loaded when they first run."""

from __future__ import annotations

import pytest
import torch

from hf_rlae import EnsembleForCausalLM, MemberError, StaticPolicy
from hf_rlae.members import LazyMember, Member
from hf_rlae.members.lazy_member import _first_device
from tests.support.ensembles import TEXTS, encode
from tests.support.models import ARCHITECTURES, RECURRENT, pair, with_adapters

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DECLARED = ("name", "source", "vocab_size", "hidden_size", "context_length", "end_ids", "dtype", "device")


def saved(folder, architecture="llama", **options):
    model, tokenizer = pair(architecture, **options)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_member_declares_what_it_is_before_it_is_loaded(tmp_path, architecture):
    """Every architecture; recurrent ones are tried when an ensemble is built, so they are loaded at once."""
    folder = saved(tmp_path, architecture)
    lazy, whole = LazyMember.load(folder), Member.load(folder)
    if architecture in RECURRENT:
        assert type(lazy) is Member
        return
    assert not lazy.is_loaded
    assert {p.device.type for p in lazy.model.parameters()} == {"meta"}
    assert {name: getattr(lazy, name) for name in DECLARED} == {name: getattr(whole, name) for name in DECLARED}
    lazy.prepare()
    assert lazy.is_loaded
    inputs = encode(TEXTS[0])
    with torch.no_grad():
        torch.testing.assert_close(lazy.model(**inputs).logits, whole.model(**inputs).logits)
    model = lazy.model
    lazy.prepare()
    assert lazy.model is model


def test_a_member_by_its_hub_id_needs_no_weights_in_the_cache(tmp_path):
    place = tmp_path / "hub" / "models--me--a"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    folder = place / "snapshots" / COMMIT
    saved(folder)
    (folder / "model.safetensors").unlink()
    options = {"cache_dir": tmp_path / "hub", "local_files_only": True}
    member = LazyMember.load("me/a", **options)
    assert member.vocab_size == 330
    with pytest.raises(MemberError, match="member me/a cannot be loaded"):
        member.prepare()
    assert not member.is_loaded


def test_an_adapter_that_is_given_by_its_folder(tmp_path):
    base = saved(tmp_path / "base")
    model = Member.load(base).model
    tokenizer = Member.load(base).tokenizer
    adapted = with_adapters(model, ("default",))
    adapted.peft_config["default"].base_model_name_or_path = base
    adapted.save_pretrained(tmp_path / "adapter")
    lazy = LazyMember.load(str(tmp_path / "adapter"))
    lazy.prepare()
    inputs = encode(TEXTS[0], tokenizer=tokenizer)
    with torch.no_grad():
        torch.testing.assert_close(lazy.wrapper(**inputs).logits, adapted(**inputs).logits)


def test_a_config_that_declares_more_than_its_files_hold(tmp_path):
    """The config is compared with the files before modules are built, as when a member is loaded."""
    folder = saved(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 1000000'))
    with pytest.raises(MemberError, match="declares num_hidden_layers=1000000"):
        LazyMember.load(folder)


@pytest.mark.parametrize(
    ("device_map", "kind"),
    [
        (None, "cpu"),
        ("cpu", "cpu"),
        ("cuda:1", "cuda"),
        ({"model": "cuda:0", "lm_head": "cpu"}, "cuda"),
        ({"": "disk"}, "cpu"),
        ("auto", (torch.accelerator.current_accelerator() or torch.device("cpu")).type),
    ],
)
def test_the_device_before_a_member_is_loaded(device_map, kind):
    assert _first_device(device_map).type == kind


def test_members_are_loaded_by_name_at_once_without_select(tmp_path):
    ensemble = EnsembleForCausalLM.from_members([saved(tmp_path)] * 2, StaticPolicy([1, 0]))
    assert [type(member) for member in ensemble.members] == [Member, Member]
