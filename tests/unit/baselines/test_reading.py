"""What members read in baselines: cached passes equal passes over whole texts, and an independent decoder agrees."""

from __future__ import annotations

import pytest
import torch

from hf_rlae import EnsembleForCausalLM, Member, get_baseline
from hf_rlae.baselines.inputs import encode_prompts, settings_of
from hf_rlae.baselines.reader import Reader, runner_of
from hf_rlae.baselines.relay import Relay
from tests.benchmarks.rivals import AppendingDecoder
from tests.support.ensembles import TEXTS, own_logits
from tests.support.models import pair
from tests.support.tiers import slow
from tests.support.tokenizers import LOSSLESS, byte_level_bpe, raw_bytes, sentencepiece_bpe, unigram


@pytest.mark.parametrize("architecture", ["llama", "mamba", *slow("gemma3", "mistral", "rwkv")])
def test_a_reader_gives_the_models_own_logits_when_ids_change(architecture):
    """Rows continue, go back by some ids or by many, and wait."""
    model, tokenizer = pair(architecture, 2)
    member = Member(model, tokenizer)
    prompts = [(5, 9, 30), (40, 41, 42, 43, 44), (7,)]
    reader = Reader(member, runner_of(member), prompts)
    steps = [
        ({0: (), 1: (), 2: ()}, {0: 1, 1: 1, 2: 1}),
        ({0: (50,), 2: (60, 61, 62)}, {0: 2, 2: 1}),
        ({0: (50, 51), 1: (9, 9), 2: (60, 70)}, {0: 1, 1: 3, 2: 1}),
        ({1: (9, 8, 7), 2: tuple(range(80, 125))}, {1: 1, 2: 1}),
        ({0: (99, 51, 52), 2: (80, 81, 3)}, {0: 4, 2: 1}),
    ]
    for completions, wants in steps:
        for row, logits in reader.read(completions, wants).items():
            whole = torch.tensor([*prompts[row], *completions[row]])
            torch.testing.assert_close(logits.double(), own_logits(model, whole)[-wants[row] :], atol=2e-4, rtol=0)


def test_a_reader_counts_what_it_reads_from_the_prompts_last_id_on():
    member = Member(*pair("llama", 2))
    reader = Reader(member, runner_of(member), [(5, 9, 30)])
    for ids, want, total in [((), 1, 1), ((7,), 1, 2), ((7, 8, 9), 1, 4), ((7, 1), 1, 5), ((7, 1), 3, 8)]:
        reader.read({0: ids}, {0: want})
        assert reader.num_tokens == [total]
    assert reader.forward_calls == 5


@pytest.mark.parametrize("second", [raw_bytes, *slow(sentencepiece_bpe, unigram)])
def test_gac_is_what_an_independent_decoder_writes(second):
    """The decoder of the benchmarks, which shares with the baseline only the bytes of tokens."""
    members = [pair("llama", 5), pair("gpt2", 6, second())]
    decoder = AppendingDecoder([Member(*member) for member in members], [0.5, 0.5])
    prompts = list(TEXTS[:2])
    expected = [b"", b""]
    open_rows = [0, 1]
    logps = decoder.start(prompts)
    for _ in range(8):
        chosen = logps.argmax(1)
        for row, token in zip(open_rows, chosen.tolist(), strict=True):
            expected[row] += decoder.union.pieces[token] or b""
        keep = [at for at, token in enumerate(chosen.tolist()) if decoder.union.pieces[token] is not None]
        if not keep:
            break
        if len(keep) < len(open_rows):
            decoder.select(torch.tensor(keep))
        open_rows = [open_rows[at] for at in keep]
        logps = decoder.step(chosen[keep])
    output = get_baseline("gac").generate(members, prompts, max_new_tokens=8, do_sample=False)
    assert output.texts == [raw.decode("utf-8", "replace") for raw in expected]


@pytest.mark.parametrize("tokenizer", ["sentencepiece_bpe", *slow("unigram", "wordpiece", "characters", "raw_bytes")])
def test_every_member_reads_the_text_that_is_written(tokenizer):
    """By appending and by encoding again: the bytes of the ids are those of the completion."""
    ensemble = EnsembleForCausalLM.from_members(
        [pair("llama", 1, byte_level_bpe()), pair("llama", 2, LOSSLESS[tokenizer]())]
    )
    settings = settings_of(ensemble, None, {"max_new_tokens": 99, "do_sample": False})
    ids_of = ensemble.engine.vocabularies[0].ids_of
    for home in (None, 0, 1):
        relay = Relay(ensemble, encode_prompts(ensemble, ["a"]), settings, home)
        for piece in (b" th", b"e", b" ", b"upon", b"ed", b"re", b" ", b"a"):
            assert relay.append(0, relay.space.tokens(0)[ids_of[piece][0]].item())
        for index, vocabulary in enumerate(ensemble.engine.vocabularies):
            assert vocabulary.to_bytes(relay.ids[index][0]) == relay.raw[0] == b" the uponedre a"
        if home is not None:
            assert relay.ids[1 - home][0] == ensemble.engine.vocabularies[1 - home].inner_ids(relay.raw[0])
