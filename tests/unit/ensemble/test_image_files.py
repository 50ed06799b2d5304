"""Members that see, loaded by name, saved and loaded with their ensembles."""

from __future__ import annotations

import pytest
import torch

from hf_rlae import EnsembleForCausalLM, Member
from hf_rlae.errors import ConfigError, MemberError
from tests.support.ensembles import endless
from tests.support.refusals import refused
from tests.support.tiers import slow
from tests.support.vision import NEW_TOKENS, completions, images_of, own_inputs, texts_of, that_sees, with_text_member


@pytest.mark.parametrize("architecture", ["llava", *slow("idefics3")])
def test_saved_and_loaded(architecture, tmp_path):
    ensemble, (model, processor), (text_model, tokenizer) = with_text_member(architecture, "two_tokenizers", 1)
    images, texts = images_of(architecture, 1, 2), texts_of(architecture)
    expected = completions(ensemble, ensemble.processor(images=images, text=texts))
    ensemble.save_pretrained(tmp_path / "saved", save_members=True)
    loaded = EnsembleForCausalLM.from_pretrained(tmp_path / "saved")
    assert [member.sees for member in loaded.members] == [False, True]
    assert loaded.config.sees == [None, True]
    assert completions(loaded, loaded.processor(images=images, text=texts)) == expected
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    text_model.save_pretrained(tmp_path / "text")
    tokenizer.save_pretrained(tmp_path / "text")
    names = [tmp_path / "text", tmp_path / "model"]
    lazy = endless(names, select="prompt", policy="uniform")
    assert lazy.members[1].sees
    assert not lazy.members[1].is_loaded
    assert completions(lazy, lazy.processor(images=images, text=texts)) == expected
    text_only = endless(names, sees=[None, False])
    assert not text_only.members[1].sees
    with refused(ConfigError, "sees[1]", "(model, processor)"):
        endless([(text_model, tokenizer), (model, processor)], sees=[None, False])


def test_a_model_of_both_auto_classes_sees_if_it_is_asked_to(tmp_path):
    model, processor = that_sees("gemma3")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert not Member.load(str(tmp_path)).sees
    member = Member.load(str(tmp_path), sees=True)
    ensemble = EnsembleForCausalLM.from_members([member])
    assert ensemble.config.sees == [True]
    inputs = own_inputs(processor, images_of("gemma3", 1), texts_of("gemma3")[:1])
    expected = model.generate(**inputs, max_new_tokens=NEW_TOKENS)
    assert torch.equal(ensemble.generate(**inputs, max_new_tokens=NEW_TOKENS), expected)


def test_a_folder_without_its_processor(tmp_path):
    model, processor = that_sees("llava")
    model.save_pretrained(tmp_path)
    processor.tokenizer.save_pretrained(tmp_path)
    with refused(MemberError, str(tmp_path)):
        Member.load(str(tmp_path))
