"""`generation_kwargs` of rollouts: supported options act as in `generate`, and others are refused by name."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from transformers import GenerationConfig

from hf_rlae.errors import ConfigError, InputError
from hf_rlae.objectives import objectives
from hf_rlae.trainers import RLAEConfig
from hf_rlae.trainers.rlae import batch_shrinking
from hf_rlae.trainers.rlae.generation_options import FIELDS, SUPPORTED, check_values, logits_processors
from hf_rlae.trainers.rlae.rollouts import Sampling, write_rollouts
from hf_rlae.trainers.stop_strings import stop_criterion
from tests.support.ensembles import encode
from tests.support.models import pair
from tests.support.rlae import PROMPTS, ensemble_of, favouring
from tests.support.tiers import slow
from tests.support.tokenizers import byte_level_bpe, sentencepiece_bpe

SEEDS = tuple(range(len(PROMPTS)))
TOKENS = 9


@pytest.fixture
def many_calls(monkeypatch):
    """Batches of any size shrink whenever a row ends, so that rollouts take several `generate` calls."""
    monkeypatch.setattr(batch_shrinking, "MIN_ROWS", 1)
    monkeypatch.setattr(batch_shrinking, "KEPT_SHARE", 0.99)


def ending(kind):
    """An ensemble whose completions often end early."""
    tokenizer = byte_level_bpe()
    if kind == "shared":
        first = favouring("a", 0.0)
        first[0].get_output_embeddings()._forward_hooks.clear()
        first[0].get_output_embeddings().register_forward_hook(
            lambda _module, _args, output: torch.zeros_like(output).index_fill(
                -1, torch.tensor(first[1].eos_token_id), 5.0
            )
        )
        return ensemble_of("mixture", given=[first, pair("llama", 3, tokenizer)])
    return ensemble_of("mixture", "different")


def rolled(ensemble, rows=SEEDS, tokens=TOKENS, samples=True, stop=None, **options):
    prompts = [PROMPTS[row] for row in rows]
    seeds = tuple(SEEDS[row] for row in rows) if samples else None
    sampling = Sampling(tokens, seeds, options=options, stop=stop_criterion(stop, ensemble.tokenizer))
    return write_rollouts(ensemble, ensemble.policy, encode(*prompts), prompts, sampling)


def options_for(ensemble):
    """A value of every option, with which greedy decoding or sampling differs from plain decoding."""
    common = encode(*PROMPTS)["input_ids"][0, -1:].tolist()
    plain = rolled(ensemble, samples=False)
    first, second = (plain.completion_ids[:, column].tolist() for column in (0, 1))
    return {
        "sequence_bias": [[[first[0]], -100.0], [common, 20.0]],
        "repetition_penalty": 3.0,
        "no_repeat_ngram_size": 2,
        "bad_words_ids": [[i] for i in {*first, *second}],
        "min_new_tokens": 6,
        "forced_eos_token_id": ensemble.generation_config.eos_token_id,
        "exponential_decay_length_penalty": (2, 1.5),
        "suppress_tokens": sorted({*first, *second}),
        "begin_suppress_tokens": sorted(set(first)),
        "min_p": 0.9,
        "top_h": 0.1,
        "typical_p": 0.05,
        "epsilon_cutoff": 0.5,
        "eta_cutoff": 0.5,
    }


@pytest.mark.parametrize("kind", ["shared", *slow("different")])
@pytest.mark.parametrize("name", SUPPORTED)
def test_a_row_with_an_option_is_the_same_in_any_batch_and_number_of_calls(name, kind, many_calls, monkeypatch):
    ensemble = ending(kind)
    value = options_for(ensemble)[name]
    many = rolled(ensemble, **{name: value})
    assert many.completions != rolled(ensemble).completions or name == "no_repeat_ngram_size"
    part = rolled(ensemble, [4, 1], **{name: value})
    assert part.completions == [many.completions[4], many.completions[1]]
    monkeypatch.setattr(batch_shrinking, "MIN_ROWS", 100)
    once = rolled(ensemble, **{name: value})
    assert torch.equal(once.completion_ids, many.completion_ids)
    assert torch.equal(once.completion_mask, many.completion_mask)
    torch.testing.assert_close(once.member_logps, many.member_logps, atol=2e-5, rtol=1e-4, equal_nan=True)


@pytest.mark.parametrize("kind", ["shared", *slow("different")])
@pytest.mark.parametrize("name", SUPPORTED)
def test_greedy_rollouts_are_what_generate_writes(name, kind, many_calls):
    ensemble = ending(kind)
    value = options_for(ensemble)[name]
    inputs = encode(*PROMPTS)
    ours = rolled(ensemble, samples=False, **{name: value})
    given = {} if name in ("min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff") else {name: value}
    theirs = ensemble.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, **given)
    written = theirs[:, inputs["input_ids"].shape[1] :]
    assert torch.equal(ours.completion_ids[:, : written.shape[1]], written)


def test_processors_are_those_of_transformers_in_their_order(caplog, monkeypatch):
    """The same classes as `generate(do_sample=True)` builds, from all options at once."""
    ensemble = ending("shared")
    options = {**options_for(ensemble), "temperature": 0.5, "top_p": 0.9, "top_k": 3, "suppress_tokens": [5]}
    mask = torch.ones(2, 4, dtype=torch.long)
    ours = logits_processors(ensemble, options, mask, 5, samples=True)
    assert len(ours) == len(options)
    settings = ensemble._prepare_generation_config(GenerationConfig(**options, do_sample=True, max_length=9))[0]
    ensemble._prepare_special_tokens(settings, True, device="cpu")
    theirs = ensemble._get_logits_processor(settings, 4, model_kwargs={"attention_mask": mask})
    assert [type(entry) for entry in ours] == [type(entry) for entry in theirs]
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    caplog.clear()
    assert not list(logits_processors(ensemble, {"top_p": 0.5, "min_p": 0.5}, mask, 5, samples=False))
    assert not caplog.records


@pytest.mark.parametrize("name", ["min_new_tokens", "begin_suppress_tokens", "exponential_decay_length_penalty"])
def test_positions_count_from_the_prompt(name, many_calls):
    """These options would count from the start of each of the calls that a rollout takes."""
    ensemble = ending("shared")
    rollouts = rolled(ensemble, **{name: options_for(ensemble)[name]})
    lengths = rollouts.completion_mask.sum(1)
    if name == "min_new_tokens":
        assert (lengths > 6).all()  # the sixth token may not end a completion
        assert lengths.min() < TOKENS
    if name == "begin_suppress_tokens":
        banned = options_for(ensemble)[name]
        assert not torch.isin(rollouts.completion_ids[:, 0], torch.tensor(banned)).any()


STOPS = {"one letter": "e", "several": ["e", "Z", "th"], "not written": "Qx9?", "a word": [" the"]}


@pytest.mark.parametrize("kind", ["shared", "different"])
@pytest.mark.parametrize("draw", [None, *slow("word")])
@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
def test_a_stop_string_ends_a_completion(stop, draw, kind, many_calls):
    ensemble = ensemble_of("mixture", kind, draw=draw)
    plain = rolled(ensemble, tokens=15)
    rollouts = rolled(ensemble, tokens=15, stop=stop)
    strings = [stop] if isinstance(stop, str) else stop
    decode = ensemble.tokenizer.decode
    for row, ids in enumerate(plain.completion_ids.tolist() if draw is None else rollouts.completion_ids.tolist()):
        limit = int((plain if draw is None else rollouts).completion_mask[row].sum())
        stops = [n for n in range(1, limit + 1) if any(text in decode(ids[:n]) for text in strings)]
        length = int(rollouts.completion_mask[row].sum())
        assert length == (stops[0] if stops else limit)
        assert rollouts.completion_ids[row, :length].tolist() == ids[:length]
        assert rollouts.completion_mask[row, :length].all()
        assert bool(rollouts.is_ended[row]) == (bool(stops) or bool(plain.is_ended[row]) or length < 15)
        assert int(rollouts.span_mask[row].sum()) == math.ceil(length / 2)
        assert rollouts.completions[row] == decode(ids[:length], skip_special_tokens=True)
        assert rollouts.member_logps[row, length:].isnan().all()
        assert rollouts.old_mixture_logps[row, :length].isfinite().all()
    assert rollouts.is_ended.any() or stop == "Qx9?" or stop == [" the"]


def test_stop_strings_without_end_ids(many_calls):
    """`generate` does not pad rows then, but writes on; what is behind the stop string is padding all the same."""
    ensemble = ensemble_of(end_token_ids=[[], []])
    rollouts = rolled(ensemble, tokens=12, stop="e")
    assert rollouts.is_ended.any()
    for row, length in enumerate(rollouts.completion_mask.sum(1).tolist()):
        assert len(set(rollouts.completion_ids[row, length:].tolist())) <= 1
        assert "e" not in ensemble.tokenizer.decode(rollouts.completion_ids[row, : length - 1])


@pytest.mark.parametrize("samples", [True, False])
def test_a_completion_that_may_not_end_and_cannot_go_on_is_an_error(samples):
    """All contexts are outgrown, and `min_new_tokens` rules the end out: no token is left."""
    tokenizers = byte_level_bpe(), sentencepiece_bpe()
    small = [pair("llama", seed, own, max_position_embeddings=24) for seed, own in enumerate(tokenizers)]
    ensemble = ensemble_of("mixture", "different", given=small)
    with pytest.raises(InputError, match="must not end"):
        rolled(ensemble, tokens=40, samples=samples, min_new_tokens=39)


REFUSED = {
    "num_beams": (4, "num_generations"),
    "num_return_sequences": (2, "num_generations"),
    "do_sample": (True, "eval_do_sample"),
    "max_length": (30, "max_completion_length"),
    "min_length": (3, "min_new_tokens"),
    "max_time": (1.0, "speed"),
    "eos_token_id": (3, "ensemble.generation_config"),
    "encoder_repetition_penalty": (1.5, "repetition_penalty"),
    "remove_invalid_values": (True, "not finite"),
    "use_cache": (False, "decide it themselves"),
    "cache_implementation": ("static", "decide it themselves"),
    "guidance_scale": (1.5, "decide it themselves"),
    "watermarking_config": ({}, "decide it themselves"),
    "prompt_lookup_num_tokens": (3, "decide it themselves"),
    "repetition_penality": (1.1, "did you mean 'repetition_penalty'"),
    "stop_words": (["x"], "not an option of `generate`"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_options_are_refused_by_name(name):
    value, reason = REFUSED[name]
    with pytest.raises(ConfigError, match=f"{name}.*{reason}"):
        RLAEConfig("out", use_cpu=True, generation_kwargs={name: value})


def test_every_option_of_generate_is_supported_or_refused():
    for name in vars(GenerationConfig()):
        if name in SUPPORTED or name in FIELDS or name == "stop_strings" or name.startswith("_"):
            continue
        with pytest.raises(ConfigError, match=f"generation_kwargs: {name}=1 is not supported, because"):
            RLAEConfig("out", use_cpu=True, generation_kwargs={name: 1})
        RLAEConfig("out", use_cpu=True, generation_kwargs={name: None})


BAD_VALUES = {
    "repetition_penalty": -1.0,
    "no_repeat_ngram_size": 1,
    "bad_words_ids": [],
    "sequence_bias": {},
    "suppress_tokens": "many",
    "min_new_tokens": -2,
    "min_p": 3.0,
    "typical_p": -1.0,
    "epsilon_cutoff": -0.5,
    "exponential_decay_length_penalty": 3,
}


@pytest.mark.parametrize("name", BAD_VALUES)
def test_values_that_transformers_refuses_are_refused_by_name(name):
    ensemble = ensemble_of()
    with pytest.raises(ConfigError, match=f"generation_kwargs.*{name}"):
        check_values(ensemble, {name: BAD_VALUES[name]}, 5)


@pytest.mark.parametrize("stop", [[], "", ["a", ""], 3, [3]])
def test_bad_stop_strings(stop):
    with pytest.raises(ConfigError, match="stop_strings"):
        stop_criterion(stop, byte_level_bpe())


def test_more_tokens_than_there_may_be():
    with pytest.raises(ConfigError, match="min_new_tokens=9 is more than max_completion_length=5"):
        check_values(ensemble_of(), {"min_new_tokens": 9}, 5)


@pytest.mark.parametrize(("name", "value"), [("min_new_tokens", 3), ("stop_strings", ["."]), ("min_length", 9)])
def test_defaults_of_the_ensemble_that_would_mean_something_else(name, value):
    ensemble = ensemble_of()
    setattr(ensemble.generation_config, name, value)
    with pytest.raises(ConfigError, match=f"ensemble.generation_config has {name}=.*another place"):
        check_values(ensemble, {}, 5)


def test_defaults_of_the_ensemble_act_in_rollouts(many_calls):
    """As in `generate`; not both there and in `generation_kwargs`."""
    ensemble = ending("shared")
    expected = rolled(ensemble, repetition_penalty=3.0)
    ensemble.generation_config.repetition_penalty = 3.0
    check_values(ensemble, {}, 5)
    assert rolled(ensemble).completions == expected.completions
    with pytest.raises(ConfigError, match=r"repetition_penalty=3.0: in rollouts it would act besides RLAEConfig"):
        check_values(ensemble, {"repetition_penalty": 2.0}, 5)


def test_values_that_change_nothing():
    check_values(
        ensemble_of(), {"no_repeat_ngram_size": 0, "min_new_tokens": 0, "typical_p": 1.0, "eta_cutoff": 0.0}, 5
    )


def test_they_override_fields_as_in_trl():
    given = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "max_new_tokens": 12, "min_p": 0.1, "stop_strings": ["."]}
    args = RLAEConfig("out", use_cpu=True, temperature=0.8, max_completion_length=99, generation_kwargs=given)
    assert (args.temperature, args.top_p, args.top_k, args.max_completion_length) == (0.5, 0.9, 7, 12)
    assert args.generation_options == {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1}
    assert args.stop_strings == ["."]
    again = RLAEConfig("out", use_cpu=True, generation_kwargs=args.generation_kwargs)
    assert again.generation_options == args.generation_options
    with pytest.raises(ConfigError, match="temperature=-1"):
        RLAEConfig("out", use_cpu=True, generation_kwargs={"temperature": -1})


def test_they_are_read_from_json():
    text = '{"stop_strings": ["Question:"], "min_new_tokens": 2}'
    args = RLAEConfig("out", use_cpu=True, generation_kwargs=text, chat_template_kwargs='{"enable_thinking": false}')
    assert args.generation_kwargs == {"stop_strings": ["Question:"], "min_new_tokens": 2}
    assert args.chat_template_kwargs == {"enable_thinking": False}
    for name in ("generation_kwargs", "chat_template_kwargs"):
        with pytest.raises(ConfigError, match=f"{name}='x'"):
            RLAEConfig("out", use_cpu=True, **{name: "x"})


def test_objectives_explore_with_options():
    ensemble = ensemble_of("ppo")
    sampling = Sampling(5, SEEDS, objectives["ppo"].explores, options={"min_p": 0.2})
    assert write_rollouts(ensemble, ensemble.policy, encode(*PROMPTS), PROMPTS, sampling).actions is not None
