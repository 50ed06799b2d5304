"""Members whose weights are quantised when they are loaded, by `member_kwargs={"quantization_config": ...}`."""

import pytest
import torch
from torch import nn
from transformers import TorchAoConfig

from hf_rlae import EnsembleForCausalLM, Member
from tests.support.different_tokenizers import encoded
from tests.support.ensembles import TEXTS
from tests.support.models import pair
from tests.support.tokenizers import byte_level_bpe, sentencepiece_bpe


class Packed(torch.Tensor):
    """A tensor that, like torchao's, has few operations."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.aminmax:
            raise NotImplementedError("Packed: aminmax")
        return super().__torch_function__(func, types, args, kwargs or {})


def test_weights_that_cannot_be_searched_are_taken_as_finite():
    model, tokenizer = pair("llama", num_hidden_layers=1)
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = nn.Parameter(layer.weight.data.as_subclass(Packed), requires_grad=False)
    assert Member(model, tokenizer).name


@pytest.mark.parametrize("second", [byte_level_bpe, sentencepiece_bpe], ids=["one tokenizer", "different tokenizers"])
def test_torchao(second, tmp_path):
    """Int8 weights, on the CPU: texts hardly differ, static caches work, and saved members stay quantised."""
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    places = []
    for index, tokenizer in enumerate((byte_level_bpe(), second())):
        places.append(str(tmp_path / str(index)))
        for part in pair("llama", index, tokenizer, hidden_size=64, intermediate_size=128):
            part.save_pretrained(places[-1])
    config = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    whole = EnsembleForCausalLM.from_members(places)
    ensemble = EnsembleForCausalLM.from_members(places, member_kwargs={"quantization_config": config})
    kinds = {type(member.model.model.layers[0].mlp.up_proj.weight).__name__ for member in ensemble.members}
    assert kinds == {"Int8Tensor"}
    inputs, options = encoded(ensemble, *TEXTS), {"max_new_tokens": 8, "do_sample": False}
    text = ensemble.generate(**inputs, **options)
    assert torch.equal(ensemble.generate(**inputs, **options, cache_implementation="static"), text)
    probs = [entry(**inputs).logits[:, -1].softmax(-1) for entry in (whole, ensemble)]
    assert 0 < float((probs[0] - probs[1]).abs().max()) < 0.05
    ensemble.save_pretrained(tmp_path / "saved", save_members=True)
    loaded = EnsembleForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(loaded.generate(**inputs, **options), text)
    assert type(loaded.members[0].model.model.layers[0].mlp.up_proj.weight).__name__ == "Int8Tensor"
