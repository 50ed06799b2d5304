"""The mixture gradient: a loop over tokens, enumeration of all texts, and members without a say."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_rlae.objectives import ObjectiveError, ObjectiveSettings, mixture_logps, objectives
from hf_rlae.policies import rescaled
from tests.unit.objectives.batches import batch_of, loss_of

PLAIN = ObjectiveSettings(entropy_coef=0.0)
INF, NAN = math.inf, math.nan


def mix(weights, logps):
    """`(probability, whether anybody proposes it)` of one token, of lists."""
    known = [(w, logp) for w, logp in zip(weights, logps, strict=True) if not math.isnan(logp)]
    total = sum(w for w, _ in known)
    return sum(w * math.exp(logp) for w, logp in known) / (total or 1.0), any(logp > -INF for _, logp in known)


def by_hand(batch, output, chosen):
    """The loss of one token after the other, in plain numbers."""
    rows, forced = [], 0
    for b, mask in enumerate(batch["completion_mask"].tolist()):
        row = []
        for t in [t for t, is_token in enumerate(mask) if is_token]:
            s = int(batch["span_index"][b, t])
            prob, is_proposed = mix(output["weights"][b, s].tolist(), batch["member_logps"][b, t].tolist())
            if not is_proposed:
                forced += 1
                continue
            ratio, advantage = prob / math.exp(batch["old_mixture_logps"][b, t]), float(batch["advantages"][b, s])
            clipped = min(max(ratio, 1 - chosen.epsilon), 1 + chosen.epsilon)
            row.append(-min(ratio * advantage, clipped * advantage))
        rows.append(row)
    full = [row for row in rows if row]
    if chosen.reduction == "token":
        loss = sum(map(sum, full)) / max(1, sum(map(len, full)))
    else:
        loss = sum(sum(row) / len(row) for row in full) / max(1, len(full))
    weights = output["weights"][batch["span_mask"]].tolist()
    entropy = sum(-w * math.log(w) for row in weights for w in row) / len(weights)
    return loss - chosen.entropy_coef * entropy, forced, sum(map(len, full))


@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 4),
    spans=st.integers(1, 4),
    members=st.integers(1, 4),
    reduction=st.sampled_from(["token", "sequence"]),
)
@settings(max_examples=50)
def test_by_hand(seed, rows, spans, members, reduction):
    chosen = ObjectiveSettings(entropy_coef=0.1, reduction=reduction)
    batch, output = batch_of("mixture", seed, rows, spans, members, critic=False)
    found, _ = loss_of("mixture", batch, output, chosen)
    loss, forced, tokens = by_hand(batch, output, chosen)
    assert found.loss.item() == pytest.approx(loss)
    assert found.metrics["forced_tokens"].item() == forced
    assert int(objectives["mixture"]().num_items(batch)["tokens"]) == tokens


def tiny_world(members=3, words=3, length=3, spans=2):
    """All texts of a tiny vocabulary, with member probabilities that depend on what stands before.

    Returns: texts `(B, T)`, member probabilities `(B, T, M)`, the span of each token, and for each text and span the
    number of the state that a policy would see there.
    """
    texts = list(itertools.product(range(words), repeat=length))
    tables: dict[tuple, torch.Tensor] = {}
    draw = torch.Generator().manual_seed(0)
    probs = torch.zeros(len(texts), length, members, dtype=torch.float64)
    span_index = torch.arange(length).clamp(max=spans - 1).expand(len(texts), length)
    states: dict[tuple, int] = {}
    state_index = torch.zeros(len(texts), spans, dtype=torch.long)
    for row, text in enumerate(texts):
        for t, word in enumerate(text):
            before = text[:t]
            if before not in tables:
                logits = 2 * torch.randn(members, words, generator=draw, dtype=torch.float64)
                tables[before] = logits.softmax(-1)
            probs[row, t] = tables[before][:, word]
            if t < spans:
                state_index[row, t] = states.setdefault(before, len(states))
    return texts, probs, span_index, state_index


def test_its_expectation_is_the_gradient_of_the_expected_reward():
    """By enumeration of all texts: no approximation, no sampling."""
    texts, probs, span_index, state_index = tiny_world()
    draw = torch.Generator().manual_seed(1)
    rewards = torch.rand(len(texts), generator=draw, dtype=torch.float64)
    scores = torch.randn(int(state_index.max()) + 1, 3, generator=draw, dtype=torch.float64).requires_grad_()
    weights = scores.softmax(-1)[state_index]
    of_tokens = weights.gather(1, span_index[..., None].expand(-1, -1, 3))
    text_probs = (of_tokens * probs).sum(-1).prod(-1)
    torch.testing.assert_close(text_probs.sum(), torch.ones((), dtype=torch.float64))
    (expected,) = torch.autograd.grad((text_probs * rewards).sum(), scores, retain_graph=True)
    batch = {
        "span_mask": torch.ones(len(texts), 2),
        "completion_mask": torch.ones(len(texts), 3),
        "span_index": span_index,
        "member_logps": probs.log(),
        "old_mixture_logps": mixture_logps(weights, probs.log(), span_index),
        "advantages": rewards * text_probs.detach(),
    }
    one = {"tokens": 1.0, "sequences": 1.0, "spans": 1.0}
    loss = objectives["mixture"]().loss(batch, {"weights": weights}, PLAIN, one).loss
    (found,) = torch.autograd.grad(-loss, scores, retain_graph=True)
    torch.testing.assert_close(found, expected)
    # a baseline has no expectation, so that group-relative advantages do not bend the gradient
    batch["advantages"] = 0.4 * text_probs.detach()
    loss = objectives["mixture"]().loss(batch, {"weights": weights}, PLAIN, one).loss
    (found,) = torch.autograd.grad(loss, scores)
    torch.testing.assert_close(found, torch.zeros_like(found), atol=1e-12, rtol=0)


def test_its_gradient_is_that_of_the_mixture():
    """At the rollout's weights it is `-mean(A d log sum_m w_m p_m)`, by autograd."""
    draw = torch.Generator().manual_seed(2)
    scores = torch.randn(2, 3, 4, generator=draw, dtype=torch.float64).requires_grad_()
    logps = torch.randn(2, 6, 4, generator=draw, dtype=torch.float64) - 2
    span_index = torch.tensor([[0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, -1]])
    advantages = torch.randn(2, 3, generator=draw, dtype=torch.float64)
    weights = scores.softmax(-1)
    places = span_index.clamp(min=0)
    mixed = torch.stack([(weights[b][places[b]] * logps[b].exp()).sum(-1) for b in range(2)]).log()
    gains = torch.stack([advantages[b][places[b]] for b in range(2)])
    mask = span_index >= 0
    (expected,) = torch.autograd.grad(-(gains * mixed * mask).sum() / 11, scores, retain_graph=True)
    batch = {
        "span_mask": torch.ones(2, 3),
        "completion_mask": mask,
        "span_index": span_index,
        "member_logps": logps,
        "old_mixture_logps": mixed.detach(),
        "advantages": advantages,
    }
    loss = objectives["mixture"]().loss(batch, {"weights": weights}, PLAIN).loss
    (found,) = torch.autograd.grad(loss, scores, retain_graph=True)
    torch.testing.assert_close(found, expected)
    per_token = {**batch, "token_advantages": gains}
    del per_token["advantages"]
    loss = objectives["mixture"]().loss(per_token, {"weights": weights}, PLAIN).loss
    assert torch.equal(torch.autograd.grad(loss, scores)[0], found)


def one_token(logps, old, advantage=1.0, dtype=torch.float32):
    """A batch of one token in one span."""
    return {
        "span_mask": torch.ones(1, 1),
        "completion_mask": torch.ones(1, 1),
        "span_index": torch.zeros(1, 1, dtype=torch.long),
        "member_logps": torch.tensor([[logps]], dtype=dtype),
        "old_mixture_logps": torch.tensor([[old]], dtype=dtype),
        "advantages": torch.tensor([advantage], dtype=dtype),
    }


@pytest.mark.parametrize(
    "logps",
    [
        [-INF, -INF, -1.0],  # all but one cannot propose it
        [-INF, -2.0, -1.0],
        [-INF, -INF, -INF],  # forced
        [NAN, NAN, NAN],
        [NAN, -INF, -1.0],
        [NAN, -INF, -INF],  # forced
        [-300.0, -200.0, -250.0],  # far beyond what fp32 holds as a probability
        [0.0, 0.0, 0.0],
    ],
)
@pytest.mark.parametrize("scores", [[0.0, 0.0, 0.0], [200.0, 0.0, 0.0], [0.0, 0.0, 200.0]])
def test_gradients_are_finite(logps, scores):
    """Members that cannot propose a token, and probabilities that underflow."""
    scores = torch.tensor([[scores]], requires_grad=True)
    old_weights = torch.full((1, 1, 3), 1 / 3)
    old = mixture_logps(old_weights, torch.tensor([[logps]]), torch.zeros(1, 1, dtype=torch.long))
    batch = {**one_token(logps, 0.0), "old_mixture_logps": old}
    for advantage in (1.0, -1.0):
        batch["advantages"] = torch.tensor([advantage])
        found = objectives["mixture"]().loss(batch, {"weights": scores.softmax(-1)})
        (gradient,) = torch.autograd.grad(found.loss, scores)
        assert bool(found.loss.isfinite())
        assert bool(gradient.isfinite().all())
        is_forced = not any(logp > -INF for logp in logps)
        assert found.metrics["forced_tokens"].item() == is_forced
        assert found.metrics["ratio_max"].isfinite()


@pytest.mark.parametrize("advantage", [1.0, 0.0, -1.0])
def test_a_member_without_weight_knows_the_token_far_better(advantage):
    """Its probability over the mixture's is more than fp32 holds; the weight is now just above 0."""
    scores = torch.tensor([[[-95.0, 0.0]]], requires_grad=True)
    batch = one_token([-1.0, -300.0], -300.0, advantage)
    found = objectives["mixture"]().loss(batch, {"weights": scores.softmax(-1)}, PLAIN)
    (gradient,) = torch.autograd.grad(found.loss, scores)
    assert bool(found.loss.isfinite())
    assert bool(gradient.isfinite().all())


def test_the_ratio_is_one_at_the_rollouts_weights():
    """Also where members are cut, and where probabilities are far below what fp32 holds."""
    batch, _ = batch_of("mixture", rows=8, critic=False, dtype=torch.float32)
    weights = torch.randn(8, 4, 3).softmax(-1)
    for shift in (0.0, -300.0):
        logps = batch["member_logps"] + shift
        moved = {
            **batch,
            "member_logps": logps,
            "old_mixture_logps": mixture_logps(weights, logps, batch["span_index"]),
        }
        found = objectives["mixture"]().loss(moved, {"weights": weights})
        assert found.metrics["ratio_max"].item() == pytest.approx(1.0, abs=1e-4)
        assert found.metrics["kl"].item() == pytest.approx(0.0, abs=1e-6)
        assert found.metrics["clip_ratio"].item() == 0.0


def test_members_that_were_cut_are_no_part_of_the_mixture():
    """A rollout cut the third member and renormalised: its weight trains nobody, however it is now."""
    logps = [math.log(0.9), math.log(0.3), NAN]
    old = math.log(0.5 * 0.9 + 0.5 * 0.3)
    for third in (0.02, 0.5):
        rest = (1 - third) / 2
        weights = torch.tensor([[[rest, rest, third]]], dtype=torch.float64, requires_grad=True)
        found, gradients = loss_of("mixture", one_token(logps, old, dtype=torch.float64), {"weights": weights}, PLAIN)
        assert found.metrics["ratio_max"].item() == pytest.approx(1.0)
        gradient = gradients["weights"][0, 0]
        assert gradient[2].item() == 0.0
        assert gradient[0].item() == pytest.approx(-gradient[1].item())
        assert gradient[0] < 0


def test_advantages_of_tokens_that_do_not_count():
    """They may hold anything, and train nobody."""
    batch, output = batch_of("mixture", critic=False)
    del batch["advantages"]
    draw = torch.Generator().manual_seed(0)
    gains = torch.randn(batch["completion_mask"].shape, generator=draw, dtype=torch.float64)
    found = []
    for rubbish in (0.0, NAN, INF):
        batch["token_advantages"] = gains.masked_fill(~batch["completion_mask"], rubbish)
        found.append(loss_of("mixture", batch, output))
    for other, gradients in found[1:]:
        assert torch.equal(other.loss, found[0][0].loss)
        assert torch.equal(gradients["weights"], found[0][1]["weights"])


def test_forced_tokens_are_left_out():
    """A token that nobody proposed, or only a member without weight, changes nothing but the count."""
    batch, output = batch_of("mixture", seed=3, critic=False)
    objective = objectives["mixture"]()
    places = batch["completion_mask"].nonzero()[2]
    row, token = places.tolist()
    cases = []
    for logps, old in (([-INF] * 3, -INF), ([NAN] * 3, NAN), ([-0.1, -INF, -INF], -INF)):
        forced = {key: tensor.clone() for key, tensor in batch.items()}
        forced["member_logps"][row, token] = torch.tensor(logps, dtype=torch.float64)
        forced["old_mixture_logps"][row, token] = old
        cases.append(objective.loss(forced, output))
    absent = {**batch, "completion_mask": batch["completion_mask"].clone()}
    absent["completion_mask"][row, token] = False
    expected = objective.loss(absent, output)
    for found in cases:
        assert torch.equal(found.loss, expected.loss)
        assert found.metrics["forced_tokens"] == expected.metrics["forced_tokens"] + 1


@pytest.mark.parametrize(
    ("weight", "advantage", "is_clipped"), [(0.9, 1.0, True), (0.9, -1.0, False), (0.1, -1.0, True)]
)
def test_clipping(weight, advantage, is_clipped):
    weights = torch.tensor([[[weight, 1 - weight]]], requires_grad=True)
    batch = one_token([math.log(0.8), math.log(0.2)], math.log(0.5), advantage)
    found, gradients = loss_of("mixture", batch, {"weights": weights}, PLAIN)
    assert found.metrics["clip_ratio"].item() == float(is_clipped)
    assert bool(gradients["weights"].any()) != is_clipped


def test_entropy_bonus_pulls_weights_together():
    """Also weights that underflowed to 0, where the bonus has a finite gradient."""
    batch = one_token([-1.0, -1.0], -1.0, advantage=0.0)
    for scores in ([2.0, 0.0], [300.0, 0.0]):
        scores = torch.tensor([[scores]], requires_grad=True)
        weights = scores.softmax(-1)
        loss = objectives["mixture"]().loss(batch, {"weights": weights}).loss
        (gradient,) = torch.autograd.grad(loss, scores, retain_graph=True)
        assert bool(gradient.isfinite().all())
        assert bool(torch.autograd.grad(loss, weights)[0].isfinite().all())
        assert gradient[0, 0, 0] >= 0 >= gradient[0, 0, 1]
    assert objectives["mixture"].defaults.entropy_coef == 0.03


def test_entropy_is_that_of_the_weights():
    batch, output = batch_of("mixture")
    found, _ = loss_of("mixture", batch, output)
    kept = output["weights"][batch["span_mask"]]
    expected = torch.distributions.Categorical(kept).entropy().mean()
    torch.testing.assert_close(found.metrics["entropy"], expected.detach())


def test_critic():
    """With returns the critic learns as well, and the policy's loss is the same."""
    batch, output = batch_of("mixture")
    found, gradients = loss_of("mixture", batch, output)
    assert bool(gradients["values"].any())
    without = {key: tensor for key, tensor in batch.items() if key not in ("returns", "old_values")}
    actor, gradients = loss_of("mixture", without, output)
    assert gradients["values"] is None
    torch.testing.assert_close(found.loss, actor.loss + 0.5 * found.metrics["value_loss"])


def test_mixture_logps_by_hand():
    batch, output = batch_of("mixture", rows=6)
    weights = output["weights"].detach()
    found = mixture_logps(weights, batch["member_logps"], batch["span_index"])
    for b, t in itertools.product(*map(range, found.shape)):
        s = int(batch["span_index"][b, t])
        if s < 0:
            assert bool(found[b, t].isnan())
            continue
        prob, _ = mix(weights[b, s].tolist(), batch["member_logps"][b, t].tolist())
        assert found[b, t].exp().item() == pytest.approx(prob)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"span_index": torch.tensor([[1]])}, r"span_index\[0, 0\] is 1.*it has 1"),
        ({"span_index": torch.tensor([[-1]])}, r"span_index\[0, 0\] is -1"),
        ({"span_mask": torch.zeros(1, 1)}, r"span_index\[0, 0\] is 0.*it has 0"),
        ({"token_advantages": torch.zeros(1, 1)}, "advantages and token_advantages are both given"),
        ({"advantages": None}, "advantages is missing"),
        ({"member_logps": torch.zeros(1, 1, 3)}, r"weights has shape \(1, 1, 2\).*2 members.*member_logps has 3"),
    ],
)
def test_bad_input(change, message):
    batch = {**one_token([-1.0, -1.0], -1.0), **change}
    with pytest.raises(ObjectiveError, match=message):
        objectives["mixture"]().loss(batch, {"weights": torch.full((1, 1, 2), 0.5)})


def test_no_spans_at_all():
    batch = {**one_token([-1.0, -1.0], -1.0), "span_mask": torch.zeros(1, 0)}
    with pytest.raises(ObjectiveError, match="at least one span"):
        objectives["mixture"]().loss(batch, {"weights": torch.zeros(1, 0, 2)})


def test_settings_are_its_own_where_none_are_given():
    batch, output = batch_of("mixture")
    expected = loss_of("mixture", batch, output, replace(ObjectiveSettings(), entropy_coef=0.03))[0]
    assert torch.equal(loss_of("mixture", batch, output)[0].loss, expected.loss)


def test_factors_of_the_weights_are_those_of_the_mixture():
    """Law: `weight_scale` is the same as a policy that returns the rescaled weights; the entropy is of the weights."""
    batch, _ = batch_of("mixture", rows=6, critic=False)
    scores = torch.randn(6, 4, 3, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([1.0, 0.4, 2.5], dtype=torch.float64)
    weights = scores.softmax(-1)
    expected = objectives["mixture"]().loss(batch, {"weights": rescaled(weights, scale)}, PLAIN).loss
    found = objectives["mixture"]().loss({**batch, "weight_scale": scale}, {"weights": weights}, PLAIN)
    torch.testing.assert_close(found.loss, expected)
    gradients = [torch.autograd.grad(loss, scores, retain_graph=True)[0] for loss in (found.loss, expected)]
    torch.testing.assert_close(*gradients)
    assert float(gradients[0].abs().max()) > 0
    without = objectives["mixture"]().loss(batch, {"weights": weights}, PLAIN)
    assert float((without.loss - found.loss).detach().abs()) > 1e-6
    torch.testing.assert_close(found.metrics["entropy"], without.metrics["entropy"])
