"""Rollouts that are generated some rows at a time are those that are generated at once."""

from __future__ import annotations

import pytest
import torch

from hf_rlae.objectives import objectives
from hf_rlae.trainers.rlae.rollouts import Rollouts, Sampling, write_in_batches
from tests.support.ensembles import encode
from tests.support.rlae import PROMPTS, ensemble_of

PROMPTS_OF_GROUPS = [prompt for prompt in PROMPTS[:4] for _ in range(3)]  # groups that a batch cuts
BY_TOKEN = ("completion_ids", "member_logps", "old_mixture_logps", "span_index", "completion_mask")


def written(ensemble, objective, batch_size, seeds=tuple(range(12)), **settings) -> Rollouts:
    given: list[int] = []

    def encoded(prompts):
        given.append(len(prompts))
        return encode(*prompts)

    explores = objectives[objective].explores and seeds is not None
    sampling = Sampling(7, seeds, explores, **settings)
    found = write_in_batches(ensemble, ensemble.policy, encoded, PROMPTS_OF_GROUPS, sampling, batch_size)
    size = min(batch_size or 12, 12)
    assert given == [size] * (12 // size) + [12 % size] * (12 % size > 0)
    return found


def assert_same_rollouts(one: Rollouts, other: Rollouts, atol: float) -> None:
    assert one.completions == other.completions
    assert one.prompts == other.prompts
    assert torch.equal(one.completion_mask, other.completion_mask)
    assert one.tensors().keys() == other.tensors().keys()
    masks = {True: one.completion_mask, False: one.span_mask}
    for name, value in {**one.tensors(), **one.observation}.items():
        twin = {**other.tensors(), **other.observation}[name]
        assert twin.shape == value.shape, name
        if value.dim() > 1:
            mask = masks[name in BY_TOKEN]
            value, twin = value[mask], twin[mask]
        if "logps" in name or "log_probs" in name:
            value, twin = value.exp(), twin.exp()
        if name not in ("actions", "old_log_probs"):  # of densities, whose relative errors are larger
            torch.testing.assert_close(twin, value, atol=atol, rtol=1e-4, equal_nan=True, msg=f"{name}: {twin} {value}")


CASES = [
    # kind, objective, observation, settings of the ensemble
    pytest.param("shared", "ppo", "both", {}, id="one tokenizer"),
    pytest.param("different", "mixture", "members", {}, id="several tokenizers"),
    pytest.param("different", "mappo", "text", {}, id="a policy that reads text"),
    pytest.param("shared", "ppo", "members", {"draw": "token"}, id="each row draws members for tokens"),
    pytest.param("different", "ppo", "members", {"draw": "word"}, id="each row draws members for words"),
    pytest.param("shared", "mixture", "members", {"draw": "token"}, id="draws that are read once more"),
    pytest.param("shared", "ppo", "members", {"draw": "span", "draw_scope": "batch"}, id="rows share draws"),
    pytest.param("shared", "ppo", "members", {"draw": "word", "draw_scope": "batch"}, id="rows share draws of words"),
]


@pytest.mark.parametrize(("kind", "objective", "observation", "settings"), CASES)
def test_rollouts_do_not_depend_on_the_batch(kind, objective, observation, settings):
    ensemble = ensemble_of(objective, kind, observation, **settings)
    whole = written(ensemble, objective, None)
    assert len(set(whole.completions)) > 6
    for size in (5, 1, 100) if not settings and kind == "shared" else (5,):
        assert_same_rollouts(written(ensemble, objective, size), whole, 1e-4)
    other = written(ensemble, objective, 5, seeds=(99, *range(1, 12)))
    assert other.completions[0] != whole.completions[0]
    if "draw_scope" not in settings:
        assert other.completions[1:] == whole.completions[1:]


def test_options_of_generate_do_not_count_padding():
    ensemble = ensemble_of()
    options = {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "min_new_tokens": 3, "top_k": 20}
    whole, parts = (written(ensemble, "ppo", size, options=options) for size in (None, 5))
    assert_same_rollouts(parts, whole, 1e-4)
    assert written(ensemble, "ppo", None).completions != whole.completions


@pytest.mark.parametrize("kind", ["shared", "different"])
def test_tokens_in_float64(kind):
    ensemble = ensemble_of("mixture", kind)
    for member in ensemble.members:
        member.model.double()
    whole, parts = (written(ensemble, "mixture", size) for size in (None, 5))
    assert torch.equal(whole.completion_ids, parts.completion_ids)
    torch.testing.assert_close(whole.old_mixture_logps, parts.old_mixture_logps, atol=1e-6, rtol=0.0, equal_nan=True)


def test_greedy_completions_without_observations():
    ensemble = ensemble_of()
    whole, parts = (written(ensemble, "ppo", size, seeds=None, keeps_observations=False) for size in (None, 5))
    assert whole.observation == parts.observation == {}
    assert_same_rollouts(parts, whole, 1e-4)
    assert len(set(whole.completions)) == 4
