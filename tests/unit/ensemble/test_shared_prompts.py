"""Samples or beams of one prompt read it once."""

from __future__ import annotations

import pytest
import torch

from hf_rlae import EnsembleForCausalLM, StaticPolicy
from tests.support.models import pair
from tests.support.tokenizers import byte_level_bpe, unigram

PROMPTS = ["Once upon a time there was", "They"]


class PromptReader:
    """Counts the rows of every forward pass of a model."""

    def __init__(self, model):
        self.rows: list[int] = []
        self._handle = model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _model, args, kwargs):
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        self.rows.append(len(ids))

    def close(self):
        self._handle.remove()


def build(kind: str, architecture: str = "llama") -> EnsembleForCausalLM:
    second = unigram() if kind == "shared" else byte_level_bpe()
    members = [pair(architecture, 0, unigram()), pair("llama", 1, second)]
    return EnsembleForCausalLM.from_members(members, StaticPolicy([0.6, 0.4]), span_length=4)


@pytest.mark.parametrize("kind", ["shared", "different"])
@pytest.mark.parametrize("options", [{"do_sample": True, "num_return_sequences": 3}, {"num_beams": 3}])
def test_each_prompt_is_read_once(kind, options):
    ensemble = build(kind)
    inputs = ensemble.tokenizer(PROMPTS, return_tensors="pt", padding=True)
    readers = [PromptReader(member.model) for member in ensemble.members]
    ensemble.generate(**inputs, max_new_tokens=3, **options)
    for reader in readers:
        reader.close()
        assert reader.rows[0] == len(PROMPTS)
        assert set(reader.rows[1:]) == {3 * len(PROMPTS)}


@pytest.mark.parametrize("kind", ["shared", "different"])
@pytest.mark.parametrize("architecture", ["llama", "rwkv"])
def test_a_sample_has_the_probabilities_that_it_has_alone(kind, architecture):
    ensemble = build(kind, architecture)
    inputs = ensemble.tokenizer(PROMPTS, return_tensors="pt", padding=True)
    torch.manual_seed(3)
    options = {"do_sample": True, "max_new_tokens": 6, "return_dict_in_generate": True}
    out = ensemble.generate(**inputs, num_return_sequences=2, **options)
    columns = inputs["input_ids"].shape[1]
    for row in range(len(out.sequences)):
        kept = inputs["attention_mask"][row // 2].bool()
        prompt = inputs["input_ids"][row // 2][kept]
        target, start = out.sequences[row, columns:].tolist(), len(prompt)

        def follow(ids, scores, target=target, start=start):
            forced = torch.full_like(scores, -torch.inf)
            forced[:, target[ids.shape[1] - start]] = 0.0
            return forced

        alone = ensemble.generate(
            prompt[None],
            max_new_tokens=len(target),
            do_sample=False,
            return_dict_in_generate=True,
            logits_processor=[follow],
        )
        steps = alone.member_logps.shape[1]
        torch.testing.assert_close(
            out.member_logps[row, :steps], alone.member_logps[0], atol=2e-4, rtol=0, equal_nan=True
        )


def test_one_member_alone_is_not_touched():
    model, tokenizer = pair("llama", 0, unigram())
    ensemble = EnsembleForCausalLM.from_members([(model, tokenizer)])
    reader = PromptReader(model)
    inputs = ensemble.tokenizer(PROMPTS[:1], return_tensors="pt")
    ensemble.generate(**inputs, max_new_tokens=2, do_sample=True, num_return_sequences=3)
    reader.close()
    assert reader.rows == [3, 3]


def test_rows_with_other_padding_are_other_rows():
    ensemble = build("shared")
    pad = ensemble.tokenizer.pad_token_id
    ids = torch.tensor([[5, 6, 7], [pad, 6, 7], [pad, 6, 7], [5, 6, 7]])
    mask = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 1, 1], [1, 1, 1]])
    reader = PromptReader(ensemble.members[1].model)
    ensemble.generate(input_ids=ids, attention_mask=mask, max_new_tokens=1, do_sample=False)
    reader.close()
    assert reader.rows == [3]
