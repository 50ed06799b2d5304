"""The benchmark of memory: its formulas give what small shapes take."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.benchmarks import training_scale as scale
from tests.benchmarks.training_memory import peak_bytes
from tests.support.models import tiny
from tests.support.policies import deberta


def test_keys_and_values_are_what_a_members_cache_holds():
    config = copy.deepcopy(scale.small_ensemble().members[0].config)
    config.dtype = torch.float32
    model = tiny(config.model_type, config.vocab_size)
    layers = model(torch.ones(3, 7, dtype=torch.long), use_cache=True).past_key_values.layers
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
    assert held == scale.cache_bytes(config, 3, 7)


def test_some_completions_at_a_time_need_less_than_the_caches_of_the_others():
    peaks = scale.generating(8, 8)
    config = copy.deepcopy(scale.small_ensemble().members[0].config)
    config.dtype = torch.float32
    assert peaks[8] - peaks[1] > 2 * scale.cache_bytes(config, 7, 8)


def test_hidden_states_are_what_rollouts_keep():
    ensemble = scale.small_ensemble()
    sizes = [member.hidden_size for member in ensemble.members]
    for dtype, itemsize in ((None, 4), (torch.bfloat16, 2)):
        rollouts = scale.written(ensemble, 3, 5, dtype=dtype)
        kept = sum(value.nbytes for name, value in rollouts.observation.items() if name.startswith("hidden_states"))
        assert kept == scale.observation_bytes(3, 5, sizes, itemsize)


def test_counting_copies_no_hidden_states():
    rollouts = scale.written(scale.small_ensemble(), 4, 6)
    copied, counted = scale.counting(rollouts)
    assert counted < 0.05 * copied


def test_activations_are_what_an_encoder_keeps():
    encoder, _ = deberta()
    ids = torch.ones(6, 40, dtype=torch.long)
    peak = peak_bytes(lambda: encoder(input_ids=ids, attention_mask=torch.ones_like(ids)))
    counted = scale.activation_bytes(encoder.config, *ids.shape)
    assert 0.7 * peak < counted <= peak


def test_a_part_of_the_texts_takes_a_part_of_the_memory():
    peaks = scale.encoding(8)
    assert peaks[1] < 0.4 * peaks[4] < 0.4 * peaks[8]


def test_shapes_of_large_models():
    assert scale.cache_bytes(scale.LLAMA_8B, 256, 1500) == 50_331_648_000
    assert scale.parameter_bytes(scale.LLAMA_8B) == 2 * 8_030_261_248


@pytest.mark.slow
def test_the_table_of_large_models():
    text = scale.large_table()
    assert "| keys and values, 32 completions; 8 at a time | 18.9 | 4.7 |" in text
    assert "| observations of a rollout, span length 1 | 12.9 | 1.6 |" in text
