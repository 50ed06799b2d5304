"""The page about errors names every public one, in one section each, and shows how it is raised."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import hf_rlae
from hf_rlae import EnsembleForCausalLM, HfRlaeError, MemberLostError
from tests.support.models import pair
from tests.support.remote_members import remote
from tests.support.tokenizers import byte_level_bpe

PAGE = (Path(__file__).parents[2] / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
ERRORS = {
    name: entry
    for name in hf_rlae.__all__
    if isinstance(entry := getattr(hf_rlae, name), type) and issubclass(entry, HfRlaeError)
}
SECTIONS = dict(re.findall(r"^### (\w+Error)$(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))


def test_every_public_error_has_a_section_and_no_other_has():
    assert sorted(SECTIONS) == sorted(ERRORS)


@pytest.mark.parametrize("name", [name for name in ERRORS if name != "HfRlaeError"])
def test_a_section_says_when_how_to_fix_it_and_raises_it(name):
    section = SECTIONS[name]
    assert "*When:*" in section
    assert "*Fix:*" in section
    assert name == "MemberLostError" or re.search(rf"message\({name}, ", section)
    builtin = next(base for base in ERRORS[name].__mro__ if base.__module__ == "builtins")
    parent = next(base for base in ERRORS[name].__mro__[1:] if base.__name__ in ERRORS)
    assert f"`{builtin.__name__}`" in section or f"`{parent.__name__}`" in section


def test_a_closed_remote_member_is_lost_until_it_is_restarted(tmp_path):
    """The one example that the page does not run, because it needs Ray; here the worker is in this process."""
    for part in pair("llama", 0, byte_level_bpe()):
        part.save_pretrained(tmp_path)
    member = remote(tmp_path)
    ensemble = EnsembleForCausalLM.from_members([pair("llama", 1, byte_level_bpe()), member])
    inputs = ensemble.tokenizer(["Once"], return_tensors="pt")
    member.close()
    with pytest.raises(MemberLostError, match="was closed; call `restart"):
        ensemble.generate(**inputs, max_new_tokens=2)
    member.restart()
    assert ensemble.generate(**inputs, max_new_tokens=2).shape[1] > inputs["input_ids"].shape[1]
