"""The appending baseline of the cost benchmark against the reference decoder."""

from __future__ import annotations

import torch

from hf_rlae import EnsembleForCausalLM, Member
from tests.benchmarks.appending import appending_ensemble
from tests.benchmarks.rivals import AppendingDecoder, EnsembleDecoder

PROMPTS = ["Once upon a time", "Lily and Tom went to the park. They"]


def test_appending_engine_says_what_the_reference_says(shared):
    folders = [shared("models", name) for name in ("stories260K", "babyllama-tok105")]
    members = [Member.load(str(folder)) for folder in folders]
    ensemble = EnsembleForCausalLM.from_members(members)
    expected = AppendingDecoder(members, [0.5, 0.5])
    found = EnsembleDecoder(appending_ensemble(ensemble))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        want, got = expected.start(PROMPTS), found.start(PROMPTS)
        for _ in range(12):
            torch.testing.assert_close(got.exp(), want.exp(), atol=1e-5, rtol=1e-3)
            chances = want.exp()
            chances[:, [i for i, piece in enumerate(expected.union.pieces) if piece is None]] = 0
            tokens = torch.multinomial(chances, 1, generator=generator)[:, 0]
            want, got = expected.step(tokens), found.step(tokens)
