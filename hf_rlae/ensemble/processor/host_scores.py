"""The host's own scores, without what other processors have done to them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hf_rlae.ensemble.processor.capture import HostPass

SAME_SCORES = 1e-4
"""Tolerance: scores that differ by more from the host's logits count as changed."""


@dataclass
class HostScores:
    """The host's scores at one step, separated from the changes of other processors.

    Attributes:
        logits (`torch.FloatTensor` of shape `(B, V)`): the host's own logits; the changed ones if `is_changed`.
        blocked (`torch.BoolTensor` of shape `(B, V)`): the ids that other processors have ruled out.
        is_normalised (`bool`): whether `generate` uses log-probabilities, as for beams.
        is_changed (`bool`): whether another processor has changed scores in any other way.
    """

    logits: torch.Tensor
    blocked: torch.Tensor
    is_normalised: bool
    is_changed: bool

    @classmethod
    def of(cls, host_pass: HostPass, scores: torch.Tensor) -> HostScores:
        """Compares the scores with the host's logits, raw and normalised, to find the changes of other processors."""
        raw = host_pass.logits.to(device=scores.device, dtype=torch.float32)
        ruled_out = scores == -torch.inf
        # if only one id is left in a row, its score does not matter
        settled = ruled_out | (ruled_out.sum(1, keepdim=True) >= scores.shape[1] - 1)
        candidates = []
        for is_normalised in (False, True):
            reference = raw.log_softmax(-1) if is_normalised else raw
            fits = settled | ((scores - reference).abs() <= SAME_SCORES)
            count = int(fits.sum())
            if count == fits.numel():
                return cls(raw, ruled_out & (raw != -torch.inf), is_normalised, False)
            candidates.append((count, reference, is_normalised))
        _, reference, is_normalised = max(candidates, key=lambda candidate: candidate[0])
        changed = torch.where(ruled_out, reference, scores)
        return cls(changed, ruled_out & (raw != -torch.inf), is_normalised, True)
