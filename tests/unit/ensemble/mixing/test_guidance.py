"""Laws of guidance mixing, and its equation."""

from __future__ import annotations

import pytest
import torch

from hf_rlae.ensemble.mixing import ContrastMixing, GuidanceMixing
from hf_rlae.errors import ConfigError
from tests.unit.ensemble.mixing.test_contrast import METHODS, logits, mixed


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 1.5, 4.0])
def test_the_equation(scale, method):
    for seed in range(5):
        after_prompt, without = scores = logits(seed)
        found = mixed(GuidanceMixing(scale), method, scores, [0.5, 0.5])
        after, before = (entry.double().log_softmax(-1) for entry in (after_prompt, without))
        expected = (before + scale * (after - before)).log_softmax(-1)
        torch.testing.assert_close(found.double().log_softmax(-1), expected, atol=2e-5, rtol=1e-5)
        shift = 0.5 * (after_prompt.logsumexp(-1) + without.logsumexp(-1))
        torch.testing.assert_close(found.logsumexp(-1), shift, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("scale", "member"), [(1.0, 0), (0.0, 1)])
def test_scale_1_is_the_prompt_and_scale_0_the_negative_prompt(scale, member, method):
    scores = logits(3)
    found = mixed(GuidanceMixing(scale), method, scores, [0.5, 0.5])
    torch.testing.assert_close(found.log_softmax(-1), scores[member].log_softmax(-1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.6, 0.3, 0.1], [0.0, 0.5, 0.5]])
def test_it_is_contrast_without_a_plausibility_constraint(weights, method):
    """Law: the contrast of O'Brien and Lewis with `beta = guidance_scale - 1`; weights mean the same."""
    scores = logits(4, len(weights))
    expected = mixed(ContrastMixing(alpha=0.0, beta=0.5), method, scores, weights)
    assert torch.equal(mixed(GuidanceMixing(1.5), method, scores, weights), expected)


@pytest.mark.parametrize("scale", [-0.5, torch.inf, torch.nan, "2", None, True])
def test_scales_that_are_refused(scale):
    with pytest.raises(ConfigError, match=r"guidance_scale=.*give a finite number of at least 0"):
        GuidanceMixing(scale)
