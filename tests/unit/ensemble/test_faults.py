"""Members whose logits are NaN or infinite while a text is generated."""

from __future__ import annotations

import re
from contextlib import contextmanager

import pytest
import torch

from hf_rlae import EnsembleForCausalLM, EnsembleLogitsProcessor, EntropyPolicy, StaticPolicy
from hf_rlae.ensemble.faults import MemberFaults
from hf_rlae.errors import ConfigError, NonFiniteError
from tests.support.ensembles import encode, endless
from tests.support.models import pair
from tests.support.tokenizers import byte_level_bpe, sentencepiece_bpe

TEXTS = ("the dogs ran 12", "Once upon a time")
INPUTS = encode(*TEXTS)
GREEDY = {"do_sample": False, "max_new_tokens": 12}
TOKENIZERS = {"one_tokenizer": byte_level_bpe, "two_tokenizers": sentencepiece_bpe}


def members(second=byte_level_bpe):
    return [pair("llama"), pair("gpt2", 1, second())]


@pytest.fixture(params=TOKENIZERS.values(), ids=TOKENIZERS)
def second(request):
    return request.param


def all_nan(logits):
    logits[...] = torch.nan


def one_nan(logits):
    logits[..., 3] = torch.nan


def one_infinite(logits):
    logits[..., 3] = torch.inf


@contextmanager
def broken(model, call=4, row=slice(None), spoil=all_nan):
    """Spoils the logits of a row from a model's forward pass number `call` on."""
    calls = []

    def hook(_module, _args, output):
        calls.append(1)
        if len(calls) >= call:
            output.logits = output.logits.clone()
            spoil(output.logits[row])
        return output

    with model.register_forward_hook(hook):
        yield


DECODERS = {
    "greedy": (GREEDY, {}),
    "sampling": ({"do_sample": True, "top_k": 0, "max_new_tokens": 12}, {}),
    "samples": ({"do_sample": True, "num_return_sequences": 2, "max_new_tokens": 12}, {}),
    "beams": ({**GREEDY, "num_beams": 3}, {}),
    "sampled beams": ({"do_sample": True, "num_beams": 2, "max_new_tokens": 12}, {}),
    "repetition penalty": ({**GREEDY, "repetition_penalty": 1.2}, {}),
    "trace": ({**GREEDY, "return_dict_in_generate": True}, {}),
    "no cache": ({**GREEDY, "use_cache": False}, {}),
    "draws": ({"do_sample": True, "top_k": 0, "max_new_tokens": 12}, {"draw": "token"}),
    "prompt lookup": ({**GREEDY, "prompt_lookup_num_tokens": 2}, {}),
    "log mixing": (GREEDY, {"mixing": "log", "grain": "byte"}),
}


def inputs_for(options):
    """Assisted decoding is for one row."""
    return encode(TEXTS[0]) if "prompt_lookup_num_tokens" in options else INPUTS


@pytest.mark.parametrize("spoil", [all_nan, one_nan, one_infinite])
@pytest.mark.parametrize(("options", "settings"), DECODERS.values(), ids=DECODERS)
def test_the_error_names_member_row_and_token(second, options, settings, spoil):
    ensemble = endless(members(second), **settings)
    torch.manual_seed(0)  # of draws, only the rows run that have drawn the member
    with broken(ensemble.members[1].model, spoil=spoil), pytest.raises(NonFiniteError) as caught:
        ensemble.generate(**inputs_for(options), **options)
    message = str(caught.value)
    assert "member 1 (GPT2LMHeadModel 1)" in message
    assert re.search(r"for completion token \d+ \(from 0\) of row [01];", message)
    assert "on_non_finite='drop'" in message


@pytest.mark.parametrize("spoil", [all_nan, one_nan, one_infinite])
def test_row_and_token(second, spoil):
    """The fourth forward pass writes token 3, counted from 0; the second row is the one whose logits are not finite."""
    ensemble = endless(members(second), StaticPolicy([1.0, 0.0]))
    with broken(ensemble.members[0].model, row=1, spoil=spoil), pytest.raises(NonFiniteError) as caught:
        ensemble.generate(**INPUTS, **GREEDY)
    assert "member 0 (LlamaForCausalLM 0)" in str(caught.value)
    assert "completion token 3 (from 0) of row 1;" in str(caught.value)


def test_rows_of_beams_are_rows_of_the_batch():
    ensemble = endless(members())
    with broken(ensemble.members[0].model, row=slice(3, None)), pytest.raises(NonFiniteError, match="of row 1;"):
        ensemble.generate(**INPUTS, **GREEDY, num_beams=3)


def test_an_ensemble_of_one_member():
    ensemble = EnsembleForCausalLM.from_members(members()[:1])
    with broken(ensemble.members[0].model), pytest.raises(NonFiniteError, match=r"member 0 .* token 3 "):
        ensemble.generate(**INPUTS, **GREEDY)


def test_inside_plain_generate(second):
    """As `custom_generate`, and as a logits processor: for the host and for the other member."""
    ensemble = endless(members(second))
    host = ensemble.members[0].model
    with broken(ensemble.members[1].model), pytest.raises(NonFiniteError, match="member 1"):
        host.generate(**INPUTS, **GREEDY, custom_generate=ensemble.as_custom_generate())
    processor = EnsembleLogitsProcessor(ensemble)
    for index, member in enumerate(ensemble.members):
        with broken(member.model, call=3), pytest.raises(NonFiniteError, match=rf"member {index} .* token 2 "):
            host.generate(**INPUTS, **GREEDY, logits_processor=[processor])


def test_a_policy_is_not_blamed(second):
    """A policy that observes a broken member would return weights that are NaN."""
    ensemble = endless(members(second), EntropyPolicy(), span_length=3)
    with broken(ensemble.members[1].model), pytest.raises(NonFiniteError, match="member 1"):
        ensemble.generate(**INPUTS, **GREEDY)


def test_forward_returns_nan_like_any_model():
    """Outside of `generate`, logits that are NaN are returned."""
    ensemble = endless(members())
    with broken(ensemble.members[1].model, call=1), torch.no_grad():
        assert bool(ensemble(INPUTS["input_ids"]).logits.isnan().all())


# Members that are dropped


@pytest.mark.parametrize("policy", [StaticPolicy([0.5, 0.5]), StaticPolicy([0.0, 1.0]), EntropyPolicy()])
@pytest.mark.parametrize("spoil", [all_nan, one_nan, one_infinite])
def test_the_others_continue_without_it(second, policy, spoil, caplog):
    """A member that breaks in one row leaves that row, and nothing else changes."""
    ensemble = endless(members(second), policy, on_non_finite="drop", span_length=4)
    expected = ensemble.generate(**INPUTS, **GREEDY, return_dict_in_generate=True, output_logits=True)
    caplog.clear()
    with broken(ensemble.members[1].model, call=4, row=0, spoil=spoil):
        out = ensemble.generate(**INPUTS, **GREEDY, return_dict_in_generate=True, output_logits=True)
    assert sum("left out of the row" in record.message for record in caplog.records) == 1
    assert bool(torch.stack(out.logits).logsumexp(-1).isfinite().all())
    assert bool(out.member_logps[0, -4:, 1].isnan().all())
    assert bool(out.member_logps[0, -4:, 0].isfinite().all())
    assert out.span_weights[0, -1].tolist() == [1.0, 0.0]
    if second is byte_level_bpe:  # with different tokenizers, the forward passes of a member are not one per token
        torch.testing.assert_close(torch.stack(out.logits)[:3], torch.stack(expected.logits)[:3])
        torch.testing.assert_close(torch.stack(out.logits)[:, 1], torch.stack(expected.logits)[:, 1])
        assert torch.equal(out.sequences[1], expected.sequences[1])


SAMPLING = {"do_sample": True, "top_k": 0}


@pytest.mark.parametrize(
    ("options", "draw"), [({"num_beams": 2, "do_sample": False}, None), (SAMPLING, None), (SAMPLING, "token")]
)
def test_dropping_in_other_decoders(second, options, draw):
    ensemble = endless(members(second), on_non_finite="drop", draw=draw)
    with broken(ensemble.members[0].model):
        assert ensemble.generate(**INPUTS, max_new_tokens=12, **options).shape[1] == INPUTS["input_ids"].shape[1] + 12


def test_nobody_is_left(second):
    ensemble = endless(members(second), on_non_finite="drop")
    first, other = (member.model for member in ensemble.members)
    with broken(first), broken(other), pytest.raises(NonFiniteError, match="no member is left"):
        ensemble.generate(**INPUTS, **GREEDY)


def test_an_unknown_action():
    with pytest.raises(ConfigError, match="on_non_finite='dorp': did you mean 'drop'"):
        endless(members(), on_non_finite="dorp")


# Reading later, as on an accelerator


@pytest.fixture
def reads_later(monkeypatch):
    """`MemberFaults` as on an accelerator: it keeps the numbers, and reads them when a span begins or the call ends."""

    monkeypatch.setattr(MemberFaults, "look", lambda self: None)
    monkeypatch.setattr(
        MemberFaults, "covered", lambda _, logits: logits.masked_fill(~(logits.amax(-1, keepdim=True) < torch.inf), 0.0)
    )


@pytest.mark.usefixtures("reads_later")
@pytest.mark.parametrize("span_length", [3, 100])
@pytest.mark.parametrize(("options", "settings"), DECODERS.values(), ids=DECODERS)
def test_numbers_that_are_read_later(second, options, settings, span_length):
    """Sampling stays possible until the numbers are read, and the error is the same."""
    ensemble = endless(members(second), span_length=span_length, **settings)
    with broken(ensemble.members[1].model, row=0), pytest.raises(NonFiniteError, match=r"member 1 .* of row 0;"):
        ensemble.generate(**inputs_for(options), **options)


@pytest.mark.usefixtures("reads_later")
def test_numbers_are_read_once_per_span(monkeypatch):
    reads = []
    read = MemberFaults.read
    monkeypatch.setattr(
        MemberFaults, "read", lambda self, total=None: reads.append(len(self._unread)) or read(self, total)
    )
    endless(members(), span_length=4).generate(**INPUTS, **GREEDY)
    assert reads == [0, 8, 8, 8]


def test_a_finite_sum_that_overflows_is_no_fault():
    faults = MemberFaults([], start=0)
    faults.note(0, 0, torch.full((4, 1), 30000.0, dtype=torch.float16))
    faults.read()
