"""Classifier-free guidance: away from what a member writes after a negative prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hf_rlae.checks import Bounds, check_number
from hf_rlae.ensemble.mixing.contrast import contrasted
from hf_rlae.ensemble.mixing.registry import mixings, safe_log, shift


class GuidanceMixing:
    """`log P(y) = log p(y | n) + scale * (log p(y | c) - log p(y | n)) + const`: classifier-free guidance.

    One model is two members: the first reads the prompt c, the other a negative prompt n (`negative_prompt_ids` in
    `generate`; by default the last token of the prompt). The first member with weight is the one that is guided.
    Another member k counts `w_k / w_1` times, so equal weights are the paper's equation, and a weight of 0 switches the
    guidance off. Nothing is ruled out, unlike with [`ContrastMixing`], which has the same equation with
    `beta = guidance_scale - 1` and `alpha = 0`.

    Args:
        guidance_scale (`float`, defaults to 1.5): as in transformers: 1 is the model, above 1 the prompt counts more.
            Source: public code.

    Raises:
        ConfigError: a guidance scale that is not a number of at least 0.

    Source: Sanchez et al. (arXiv 2306.17806); transformers' `UnbatchedClassifierFreeGuidanceLogitsProcessor`.

    Example:

    >>> after_prompt, without = torch.tensor([[[0.5, 0.3, 0.2]]]), torch.tensor([[[0.25, 0.6, 0.15]]])
    >>> weights, log_z = torch.tensor([[[0.5, 0.5]]]), [torch.zeros(1, 1)] * 2
    >>> GuidanceMixing(2.0).of_probs([after_prompt, without], log_z, weights).exp()
    tensor([[[0.7059, 0.1059, 0.1882]]])
    """

    needs_common_strings = compares_members = reads_negative_prompt = True

    def __init__(self, guidance_scale: float = 1.5) -> None:
        check_number("guidance_scale", guidance_scale, Bounds(0))
        self.guidance_scale = guidance_scale

    def of_logits(
        self, scores: Sequence[torch.Tensor], log_z: Sequence[torch.Tensor], weights: torch.Tensor
    ) -> torch.Tensor:
        """See `Mixing.of_logits`."""
        logps = [score - z[..., None] for score, z in zip(scores, log_z, strict=True)]
        return contrasted(logps, logps, weights, self.guidance_scale - 1) + shift(log_z, weights)[..., None]

    def of_probs(
        self, probs: Sequence[torch.Tensor], log_z: Sequence[torch.Tensor], weights: torch.Tensor
    ) -> torch.Tensor:
        """See `Mixing.of_probs`."""
        mixed = self.of_logits([safe_log(prob) for prob in probs], [torch.zeros_like(z) for z in log_z], weights)
        return mixed + shift(log_z, weights)[..., None]


mixings.register("guidance")(GuidanceMixing())
