"""`EnsembleLogitsProcessor.from_members`: names, and tokenizers that are loaded from where the models are."""

from __future__ import annotations

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_rlae import ConfigError, EnsembleLogitsProcessor
from tests.support.models import pair
from tests.support.tokenizers import byte_level_bpe, raw_bytes


@pytest.fixture
def folders(tmp_path):
    """Two saved models, each with its tokenizer."""
    for name, seed, tokenizer in (("host", 0, byte_level_bpe()), ("other", 1, raw_bytes())):
        model, tokenizer = pair("llama", seed, tokenizer, num_hidden_layers=1)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    return str(tmp_path / "host"), str(tmp_path / "other")


def test_tokenizers_are_loaded_from_where_the_models_are(folders):
    """A loaded model, a folder, and a pair write the same text, with and without their tokenizers."""
    model, other = (AutoModelForCausalLM.from_pretrained(folder) for folder in folders)
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in folders]
    texts = []
    for host, others, given in (
        (model, [other], tokenizers),
        (model, [other], None),
        (model, [folders[1]], None),
        (folders[0], [(other, tokenizers[1])], None),
        (model, [folders[1]], [tokenizers[0], None]),
    ):
        processor = EnsembleLogitsProcessor.from_members(host, others, given)
        inputs = processor.host.tokenizer("the dogs", return_tensors="pt")
        ids = processor.host.model.generate(**inputs, logits_processor=[processor], max_new_tokens=4, do_sample=False)
        texts.append(ids.tolist())
    assert texts == texts[:1] * len(texts)


@pytest.mark.parametrize("given", [(), ([],), (None, True)])
def test_models_in_place_of_an_ensemble_are_answered_with_the_right_call(given):
    model, _ = pair("llama")
    with pytest.raises(ConfigError, match=r"got LlamaForCausalLM; .*EnsembleLogitsProcessor\.from_members\(model, \["):
        EnsembleLogitsProcessor(model, *given)
