"""Every wrong argument is refused by name, before any member runs."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig

from hf_rlae import get_baseline, list_baselines
from hf_rlae.baselines import Baseline, baselines
from hf_rlae.errors import ConfigError, InputError, NonFiniteError
from tests.support.ensembles import columns_read
from tests.support.models import constant, pair
from tests.support.tokenizers import raw_bytes

LIMIT = {"max_new_tokens": 2}


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        pytest.param("gca", {}, "no baseline named 'gca': did you mean 'gac'", id="name"),
        pytest.param("gac", {"treshold": 0.5}, "no setting 'treshold': did you mean 'threshold'", id="setting"),
        pytest.param("uniform", {"weights": [1]}, "no setting 'weights': it has none", id="no settings"),
        pytest.param("pair_ranker", {}, "needs judge", id="needed"),
        pytest.param("gac", {"threshold": 1.5}, "threshold=1.5", id="threshold"),
        pytest.param("gac", {"weights": [-1, 2]}, "weights=", id="weights"),
        pytest.param("unite", {"top_k": 0}, "top_k=0", id="top_k"),
        pytest.param("deepen", {"num_anchors": 0}, "num_anchors=0", id="anchors"),
        pytest.param("deepen", {"learning_rate": 2.0}, "learning_rate=2.0", id="rate"),
        pytest.param("deepen", {"temperature": 0}, "temperature=0", id="temperature"),
        pytest.param("safe", {"num_draft": 0}, "num_draft=0", id="draft"),
        pytest.param("safe", {"sharpen": "prefixes"}, "did you mean 'prefix'", id="sharpen"),
        pytest.param("majority_vote", {"answer": "numbr"}, "did you mean 'number'", id="answer"),
        pytest.param("best_fixed", {"resolution": 0}, "resolution=0", id="resolution"),
        pytest.param("entropy", {"temperature": -1}, "temperature", id="policy"),
    ],
)
def test_settings(name, settings, message):
    with pytest.raises(ConfigError, match=message):
        get_baseline(name, **settings)


@pytest.mark.parametrize(
    ("name", "settings", "prompts", "given", "message"),
    [
        ("gac", {}, "text", LIMIT, "prompts must be a list"),
        ("gac", {}, [], LIMIT, "prompts must be a list"),
        ("gac", {}, [3], LIMIT, "texts, or lists of messages"),
        ("gac", {}, ["a", [{"role": "user", "content": "b"}]], LIMIT, "all of one kind"),
        ("gac", {}, ["x" * 300], LIMIT, "whose context has 256"),
        ("gac", {}, ["a"], {}, "max_new_tokens is missing"),
        ("gac", {}, ["a"], {**LIMIT, "max_new_token": 3}, "did you mean 'max_new_tokens'"),
        ("gac", {}, ["a"], {**LIMIT, "num_beams": 2}, "num_beams=2"),
        ("uniform", {}, ["a"], {**LIMIT, "num_return_sequences": 2, "do_sample": True}, "num_return_sequences=2"),
        ("uniform", {}, ["a"], {**LIMIT, "eos_token_id": 3}, "end_token_ids"),
        ("gac", {}, ["a"], {**LIMIT, "repetition_penalty": 1.2}, "RepetitionPenaltyLogitsProcessor"),
        ("unite", {}, ["a"], {**LIMIT, "no_repeat_ngram_size": 2}, "NoRepeatNGramLogitsProcessor"),
        ("safe", {}, ["a"], {**LIMIT, "do_sample": True}, "greedy"),
        ("gac", {}, ["a"], {**LIMIT, "batch_size": 0}, "batch_size=0"),
        ("gac", {"main": 2}, ["a"], LIMIT, "main=2: give the number of a member, from 0 to 1"),
        ("gac", {"weights": [1.0]}, ["a"], LIMIT, "weights has 1 entries for 2 members"),
        ("safe", {"drafter": -1}, ["a"], LIMIT, "drafter=-1"),
        ("best_member", {"index": 5}, ["a"], LIMIT, "index=5"),
        ("best_member", {}, ["a"], LIMIT, "call fit"),
        ("best_fixed", {}, ["a"], LIMIT, "call fit"),
        ("best_fixed", {"weights": [1, 1, 1]}, ["a"], LIMIT, "3"),
        ("ensemble", {"policy": "entrpy"}, ["a"], LIMIT, "entropy"),
    ],
)
def test_calls(name, settings, prompts, given, message):
    members = [pair("llama", 0), pair("gpt2", 1, raw_bytes())]
    with (
        columns_read(*(model for model, _ in members)) as read,
        pytest.raises((ConfigError, InputError), match=message),
    ):
        get_baseline(name, **settings).generate(members, prompts, **given)
    assert all(len(calls) < 20 for calls in read)  # the trial passes with which an ensemble is built


def test_a_generation_config_is_read():
    members = [pair("llama", 0), pair("llama", 1)]
    config = GenerationConfig(max_new_tokens=3, do_sample=False)
    assert get_baseline("gac").generate(members, ["a"], config).num_tokens.tolist() == [3]
    with pytest.raises(InputError, match="num_beams=3"):
        get_baseline("gac").generate(members, ["a"], GenerationConfig(max_new_tokens=3, num_beams=3))


@pytest.mark.parametrize("name", ["gac", "unite", "deepen", "safe"])
def test_logits_that_are_no_numbers_are_named(name):
    members = [pair("llama", 0), constant(torch.full((330,), torch.nan))]
    with pytest.raises(Exception, match=r"NaN|nan") as raised:
        get_baseline(name).generate(members, ["a"], do_sample=False, **LIMIT)
    assert isinstance(raised.value, NonFiniteError | ValueError)


def test_a_member_drops_out_at_the_end_of_its_context_and_the_others_go_on():
    short = pair("llama", 0, max_position_embeddings=12)
    for name in ("gac", "unite", "deepen"):
        settings = {"main": 1} if name == "deepen" else {}
        output = get_baseline(name, **settings).generate(
            [short, pair("gpt2", 1)], ["Once upon"], max_new_tokens=20, do_sample=False, min_new_tokens=20
        )
        assert output.num_tokens.tolist() == [20]
        assert output.member_tokens[0, 0] < 12
    ended = get_baseline("safe").generate([short], ["Once upon"], max_new_tokens=20, do_sample=False)
    assert ended.num_tokens[0] < 13


def test_a_baseline_of_ones_own_is_called_alike(registries):
    class Silent(Baseline):
        def answer(self, ensemble, prompts, settings):
            return get_baseline("best_member", index=0).answer(ensemble, prompts, settings)

    baselines.register("silent")(Silent)
    assert "silent" in list_baselines()
    assert get_baseline("silent").generate([pair("llama", 0)], ["a", "b", "c"], batch_size=2, **LIMIT).texts
