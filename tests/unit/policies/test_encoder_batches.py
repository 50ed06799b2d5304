"""An encoder that reads some texts at a time gives the results and gradients of one that reads all at once."""

from __future__ import annotations

import pytest
import torch

from hf_rlae import PolicyModel
from tests.support.models import pair
from tests.support.policies import deberta, encoder, random_state

TEXTS = ["Once upon a time", "a", "", "The 3 big dogs and then she said", "They", "Lily who", "and"]


def made(build, dtype, **options):
    torch.manual_seed(0)
    policy = PolicyModel.from_encoder(build(), [pair()] * 2, hidden_size=8, **options).to(dtype)
    for score in policy.heads.scores:
        torch.nn.init.normal_(score.weight)
    return policy, policy.observe(random_state(len(TEXTS), text=TEXTS))


def gradients(policy, seen, batch_size):
    policy.encoder_batch_size = batch_size
    policy.zero_grad()
    output = policy(seen)
    loss = (output.weights[:, 0].log() * torch.linspace(-1, 2, len(TEXTS))).sum() + output.state_values.square().sum()
    loss.backward()
    return output, {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("build", [encoder, deberta], ids=["bert", "deberta-v2"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
def test_results_and_gradients_do_not_depend_on_the_batch(build, dtype, tolerance):
    policy, seen = made(build, dtype)
    whole, expected = gradients(policy, seen, None)
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for size in (3, 1, 7):
        output, found = gradients(policy, seen, size)
        torch.testing.assert_close(output.weights, whole.weights, atol=tolerance, rtol=0.0)
        torch.testing.assert_close(output.state_values, whole.state_values, atol=tolerance, rtol=tolerance)
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            error = float((gradient - expected[name]).abs().max()) / scale
            assert error <= tolerance, (name, size, error)
        with torch.no_grad():
            torch.testing.assert_close(policy(seen).weights, whole.weights, atol=tolerance, rtol=0.0)


def test_dropout_is_the_same_in_both_computations():
    """Activations are computed twice, with the same random numbers."""
    policy, seen = made(deberta, torch.float64)
    policy.train()
    policy.encoder_batch_size = 3
    for module in policy.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    parameter = policy.encoder.embeddings.word_embeddings.weight
    ids = seen["input_ids"]

    def loss():
        torch.manual_seed(4)
        return policy(seen).weights[:, 0].log().sum()

    loss().backward()
    direction = torch.randn(parameter.shape[1], dtype=torch.float64)
    step = torch.zeros_like(parameter)
    step[ids[0, 1]] = 1e-6 * direction
    with torch.no_grad():
        parameter += step
        up = loss()
        parameter -= 2 * step
        down = loss()
    assert float((up - down) / 2e-6) == pytest.approx(float(parameter.grad[ids[0, 1]] @ direction), rel=1e-4)


def test_the_encoder_reads_some_texts_at_a_time():
    policy, seen = made(deberta, torch.float32)
    rows = []
    policy.encoder.register_forward_pre_hook(
        lambda _m, _a, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    gradients(policy, seen, 3)
    assert rows[:3] == [3, 3, 1]
    assert sorted(rows[3:]) == [1, 3, 3]  # activations are computed again, one part at a time
    rows.clear()
    gradients(policy, seen, 7)
    assert rows == [7]
