"""Traces of completions agree with the outputs, and can be written and read."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch

from hf_rlae import EnsembleForCausalLM, StaticPolicy
from hf_rlae.errors import InputError
from hf_rlae.reports import TracedToken, carrier_text, live_token, span_table, trace_tokens, write_trace
from tests.support.models import pair
from tests.support.tokenizers import byte_level_bpe, unigram

PROMPTS = ["Once upon a", "They"]
NAMES = ["first", "second"]


@pytest.fixture(scope="module", params=["shared", "different"])
def ensemble(request) -> EnsembleForCausalLM:
    second = unigram() if request.param == "shared" else byte_level_bpe()
    members = [pair("llama", 0, unigram()), pair("llama", 1, second)]
    return EnsembleForCausalLM.from_members(members, StaticPolicy([0.7, 0.3]), span_length=4)


@pytest.fixture(scope="module")
def written(ensemble):
    inputs = ensemble.tokenizer(PROMPTS, return_tensors="pt", padding=True)
    out = ensemble.generate(**inputs, max_new_tokens=11, do_sample=True, return_dict_in_generate=True)
    return inputs, out


def test_tokens_are_those_of_the_text(ensemble, written):
    inputs, out = written
    columns = inputs["input_ids"].shape[1]
    rows = trace_tokens(ensemble, out, columns)
    assert len(rows) == len(PROMPTS)
    for row, tokens in enumerate(rows):
        ids = out.sequences[row, columns:].tolist()[: len(tokens)]
        assert [token.id for token in tokens] == ids
        assert [token.span for token in tokens] == [step // 4 for step in range(len(tokens))]
        whole = ensemble.tokenizer.decode(out.sequences[row], skip_special_tokens=True)
        assert whole.endswith(b"".join(token.raw for token in tokens).decode("utf-8", "replace").lstrip())
        for step, token in enumerate(tokens):
            assert torch.equal(torch.tensor(token.logps).isnan(), out.member_logps[row, step].isnan().cpu())
            assert list(token.weights) == out.span_weights[row, step // 4].tolist()
            shares = torch.tensor(token.weights) * torch.tensor(token.logps).exp()
            assert token.carrier == int(shares.nan_to_num().argmax())


def test_a_text_ends_with_its_end_token(ensemble):
    end = ensemble.generation_config.eos_token_id
    end = end if isinstance(end, int) else end[0]

    def force_end(ids, scores):
        forced = torch.full_like(scores, -torch.inf)
        forced[:, end] = 0.0
        return forced

    inputs = ensemble.tokenizer(PROMPTS, return_tensors="pt", padding=True)
    out = ensemble.generate(
        **inputs, max_new_tokens=5, do_sample=False, return_dict_in_generate=True, logits_processor=[force_end]
    )
    rows = trace_tokens(ensemble, out, inputs["input_ids"].shape[1])
    assert [[token.id for token in tokens] for tokens in rows] == [[end], [end]]


def test_live_tokens_are_the_traced_ones(ensemble):
    cache = ensemble.new_cache(record=True)
    seen: list[TracedToken] = []

    class Watch:
        is_prompt = True

        def put(self, value):
            if not self.is_prompt:
                seen.append(live_token(ensemble, cache, int(value)))
            self.is_prompt = False

        def end(self):
            pass

    inputs = ensemble.tokenizer(PROMPTS[:1], return_tensors="pt")
    out = ensemble.generate(
        **inputs,
        past_key_values=cache,
        streamer=Watch(),
        max_new_tokens=9,
        do_sample=False,
        return_dict_in_generate=True,
    )
    assert seen == trace_tokens(ensemble, out, inputs["input_ids"].shape[1])[0]


def test_live_tokens_need_a_record(ensemble):
    with pytest.raises(InputError, match="record=True"):
        live_token(ensemble, ensemble.new_cache(), 5)


def test_outputs_without_a_trace_are_refused(ensemble, written):
    with pytest.raises(InputError, match="return_dict_in_generate=True"):
        trace_tokens(ensemble, written[1].sequences, 3)


def test_the_carrier_has_the_largest_share():
    def carrier(weights, logps):
        return TracedToken(0, b"", 0, weights, logps).carrier

    assert carrier((0.9, 0.1), (-5.0, -0.1)) == 1
    assert carrier((0.9, 0.1), (-1.0, -0.1)) == 0
    assert carrier((0.2, 0.8), (-1.0, math.nan)) == 0
    assert carrier((0.2, 0.8), (-math.inf, -math.inf)) == 1  # forced by a processor


def test_a_written_trace_is_json_without_numbers_that_are_none(ensemble, written, tmp_path):
    inputs, out = written
    rows = trace_tokens(ensemble, out, inputs["input_ids"].shape[1])
    rows[0][0] = TracedToken(1, b"\xff", 0, (1.0, 0.0), (-math.inf, math.nan))
    path = write_trace(tmp_path / "out.json", NAMES, PROMPTS, rows)

    def refuse(constant):
        raise AssertionError(constant)

    read = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert read["members"] == NAMES
    assert [text["prompt"] for text in read["texts"]] == PROMPTS
    first = read["texts"][0]["tokens"][0]
    assert (first["bytes"], first["logps"], first["run"]) == ("ff", [None, None], [True, False])
    for tokens, text in zip(rows, read["texts"], strict=True):
        assert [bytes.fromhex(token["bytes"]) for token in text["tokens"]] == [token.raw for token in tokens]
        assert [token["span"] for token in text["tokens"]] == [token.span for token in tokens]
        assert [token["weights"] for token in text["tokens"]] == [list(token.weights) for token in tokens]


def test_characters_that_tokens_share_are_whole():
    tokens = [TracedToken(0, part, 0, (0.0, 1.0), (0.0, 0.0)) for part in (b"\xc3", b"\xa9t", b"\xc3\xa9")]
    assert carrier_text(tokens).plain == "été"


def test_spans_with_the_same_weights_are_one_line():
    weights = [(0.5, 0.5), (0.5, 0.5), (1.0, 0.0), (0.5, 0.5)]
    tokens = [TracedToken(0, b"a\n", span, w, (-1.0, -2.0)) for span, w in enumerate(weights)]
    table = span_table(NAMES, tokens)
    assert list(table.columns[0].cells) == ["0-1", "2", "3"]
    assert [cell.plain for cell in table.columns[1].cells] == [r"a\na\n", r"a\n", r"a\n"]
    assert list(table.columns[2].cells) == ["0.50", "1.00", "0.50"]
    assert all(re.fullmatch(r"\d\.\d\d", cell) for cell in table.columns[3].cells)
