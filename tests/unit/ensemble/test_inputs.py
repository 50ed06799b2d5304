"""Arguments of `forward`: each wrong kind is refused before a member runs, each harmless kind gives the same."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from hf_rlae.errors import InputError
from tests.support.ensembles import encode
from tests.support.refusals import different, refused, same

IDS = encode("the dogs ran 12 miles")["input_ids"]
COLUMNS = IDS.shape[1]
LABELS = IDS.masked_fill(torch.arange(COLUMNS) < 3, -100)
OWN = torch.full((1, 2, 4), 5)


def masked(value):
    mask = torch.ones(IDS.shape, dtype=torch.float32 if isinstance(value, float) else torch.long)
    mask[0, 0] = value
    return mask


def labels_with(value):
    labels = LABELS.clone()
    labels[0, -1] = value
    return labels


@pytest.fixture(params=[same, different], ids=["one_tokenizer", "two_tokenizers"])
def ensemble(request):
    return request.param()


REFUSED = {
    # prompt_length: a column of the text, or one per row
    "negative prompt": ({"prompt_length": -4}, "prompt_length=-4"),
    "half a prompt": ({"prompt_length": 2.7}, "whole number"),
    "prompt beyond the text": ({"prompt_length": 10**6}, f"from 0 to {COLUMNS}"),
    "prompt one beyond": ({"prompt_length": COLUMNS + 1}, f"from 0 to {COLUMNS}"),
    "prompt that is a flag": ({"prompt_length": True}, "whole number"),
    "prompt that is text": ({"prompt_length": "3"}, "whole number"),
    "prompts of other rows": ({"prompt_length": torch.tensor([1, 2, 3])}, "(1,)"),
    "prompts as a column": ({"prompt_length": torch.tensor([[3]])}, "(1,)"),
    "prompts as floats": ({"prompt_length": torch.tensor([2.5])}, "whole number"),
    "prompts as flags": ({"prompt_length": torch.tensor([True])}, "whole number"),
    # labels: ids of the union or -100
    "label beyond the union": ({"labels": labels_with(10**6)}, "labels has the id 1000000"),
    "negative label": ({"labels": labels_with(-5)}, "labels has the id -5"),
    "labels as floats": ({"labels": LABELS.float()}, "labels must be int64"),
    "labels as flags": ({"labels": LABELS.bool()}, "labels must be int64"),
    "labels as a list": ({"labels": LABELS.tolist()}, "labels must be int64"),
    # num_items_in_batch: what a sum of losses can be divided by
    "a count in words": ({"labels": LABELS, "num_items_in_batch": "x"}, "a number above 0 or a tensor with one number"),
    "a count of nothing": ({"labels": LABELS, "num_items_in_batch": 0}, "num_items_in_batch must be a number above 0"),
    "counts of two batches": ({"num_items_in_batch": torch.ones(2)}, "num_items_in_batch must be a number above 0"),
    "labels of another shape": ({"labels": LABELS[0]}, "shape of input_ids"),
    "labels without logits": ({"labels": LABELS, "logits_to_keep": 2}, "the loss needs the logits of all columns"),
    # a mask has 1 for tokens and 0 for padding
    "mask 2": ({"attention_mask": masked(2)}, "attention_mask has the value 2"),
    "mask -1": ({"attention_mask": masked(-1)}, "attention_mask has the value -1"),
    "mask 0.3": ({"attention_mask": masked(0.3)}, "attention_mask has the value 0.3"),
    "mask nan": ({"attention_mask": masked(float("nan"))}, "attention_mask has the value nan"),
    "mask as a list": ({"attention_mask": [[1] * COLUMNS]}, "attention_mask must be 2-D"),
    "mask of four dimensions": ({"attention_mask": torch.ones(1, 1, COLUMNS, COLUMNS)}, "attention_mask must be 2-D"),
    # names
    "misspelt labels": ({"lables": LABELS}, "did you mean 'labels'?"),
    "unknown name": ({"colour": 1}, "colour is not an argument of `forward`"),
    "positions": ({"position_ids": torch.arange(COLUMNS)[None]}, "position_ids is not supported"),
    "embeddings": ({"inputs_embeds": torch.zeros(1, 2, 3)}, "inputs_embeds is not supported"),
    "hidden states": ({"output_hidden_states": True}, "output_hidden_states is not supported"),
    # numbers and flags
    "negative columns": ({"logits_to_keep": -1}, "logits_to_keep"),
    "half a column": ({"logits_to_keep": 1.5}, "logits_to_keep"),
    "columns as a flag": ({"logits_to_keep": True}, "logits_to_keep"),
    "columns as indices": ({"logits_to_keep": torch.tensor([1, 2])}, "logits_to_keep"),
    "use_cache as text": ({"use_cache": "no"}, "use_cache='no'"),
    # caches
    "plain cache": ({"past_key_values": DynamicCache()}, "EnsembleCache, got DynamicCache"),
    "tuple": ({"past_key_values": ((1, 2),)}, "EnsembleCache, got tuple"),
    # the members' own prompts
    "own prompts as floats": ({"member_input_ids": OWN.float(), "prompt_length": 3}, "member_input_ids must be int64"),
    "own mask 2": (
        {"member_input_ids": OWN, "member_attention_mask": OWN.new_full(OWN.shape, 2), "prompt_length": 3},
        "member_attention_mask has the value 2",
    ),
    "own mask alone": ({"member_attention_mask": torch.ones_like(OWN), "prompt_length": 3}, "member_input_ids"),
}


@pytest.mark.parametrize(("arguments", "words"), REFUSED.values(), ids=REFUSED)
def test_arguments_that_cannot_be_used(ensemble, arguments, words):
    with refused(InputError, words, ensemble=ensemble):
        ensemble(IDS, **arguments)


WRONG_IDS = {
    "bool": IDS.bool(),
    "int8": IDS.clamp(max=100).to(torch.int8),
    "uint8": IDS.clamp(max=100).to(torch.uint8),
    "int16": IDS.to(torch.int16),
    "float": IDS.float(),
    "complex": IDS.to(torch.complex64),
    "meta": IDS.to("meta"),
    "sparse": IDS.to_sparse(),
    "list": IDS.tolist(),
    "numpy": IDS.numpy(),
    "text": "hello",
}


@pytest.mark.parametrize("call", ["forward", "generate"])
@pytest.mark.parametrize("ids", WRONG_IDS.values(), ids=WRONG_IDS)
def test_ids_of_another_kind(ensemble, ids, call):
    with refused(InputError, "input_ids must be a 2-D tensor of token ids", ensemble=ensemble):
        getattr(ensemble, call)(ids)


SAME = {
    "int32 ids": {"input_ids": IDS.int()},
    "mask as flags": {"attention_mask": torch.ones_like(IDS).bool()},
    "mask as floats": {"attention_mask": torch.ones_like(IDS).float()},
    "prompt as a list": {"prompt_length": [0]},
    "prompt as a scalar": {"prompt_length": torch.tensor(0)},
    "columns as a scalar": {"logits_to_keep": torch.tensor(COLUMNS)},
    "columns that are not there": {"logits_to_keep": 10**6},
    "what tokenizers return": {"token_type_ids": torch.zeros_like(IDS)},
    "what trainers pass": {"output_hidden_states": False, "output_attentions": None},
}


@pytest.mark.parametrize("arguments", SAME.values(), ids=SAME)
def test_harmless_kinds_change_nothing(ensemble, arguments):
    with torch.no_grad():
        expected = ensemble(IDS, prompt_length=0).logits
        got = ensemble(**{"input_ids": IDS, "prompt_length": 0, **arguments}).logits
    assert torch.equal(got, expected)


def test_labels_in_int32(ensemble):
    assert torch.equal(ensemble(IDS, labels=LABELS.int()).loss, ensemble(IDS, labels=LABELS).loss)


def test_a_tuple_as_output(ensemble):
    """`return_dict=False` gives the values that are there, as in transformers."""
    expected = ensemble(IDS, labels=LABELS)
    loss, logits, cache = ensemble(IDS, labels=LABELS, return_dict=False)
    assert torch.equal(loss, expected.loss)
    torch.testing.assert_close(logits, expected.logits, atol=0, rtol=0, equal_nan=True)
    assert cache.seen == COLUMNS
    assert len(ensemble(IDS, return_dict=False)) == 2


def test_items_of_accumulated_batches(ensemble):
    """`num_items_in_batch`, which `Trainer` passes, divides the sum of the losses."""
    count = int((LABELS[:, 1:] != -100).sum())
    mean = ensemble(IDS, labels=LABELS).loss
    torch.testing.assert_close(ensemble(IDS, labels=LABELS, num_items_in_batch=4 * count).loss, mean / 4)
    torch.testing.assert_close(ensemble(IDS, labels=LABELS, num_items_in_batch=torch.tensor(count)).loss, mean)


def test_the_cache_of_another_ensemble():
    ensemble = same()
    cache = same()(IDS[:, :4]).past_key_values
    with refused(InputError, "made by another ensemble", ensemble=ensemble):
        ensemble(IDS[:, 4:], past_key_values=cache)


def test_a_cache_of_other_rows(ensemble):
    cache = ensemble(IDS[:, :4]).past_key_values
    with refused(InputError, "past_key_values has 1 rows, the call has 2", ensemble=ensemble):
        ensemble(IDS[:, 4:].repeat(2, 1), past_key_values=cache)


def test_another_prompt_length_than_before(ensemble):
    cache = ensemble(IDS[:, :4], prompt_length=3).past_key_values
    ensemble(IDS[:, 4:6], prompt_length=3, past_key_values=cache)
    with refused(InputError, "prompt_length=[5]", "columns [3]", ensemble=ensemble):
        ensemble(IDS[:, 6:], prompt_length=5, past_key_values=cache)


def test_values_are_read_from_the_device_at_once(ensemble, monkeypatch):
    """Ids, mask and labels are checked with a single transfer to the CPU."""
    stacked = []
    stack = torch.stack
    monkeypatch.setattr("hf_rlae.ensemble.inputs.torch.stack", lambda flags: stacked.append(len(flags)) or stack(flags))
    with pytest.raises(InputError):  # refused after the checks of all values
        ensemble(IDS, attention_mask=torch.ones_like(IDS), labels=labels_with(10**6))
    assert stacked == [4]
