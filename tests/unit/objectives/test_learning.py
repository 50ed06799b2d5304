"""Every objective learns which of two members to trust in which of two situations."""

from __future__ import annotations

import pytest
import torch

from hf_rlae.objectives import (
    gae,
    group_relative,
    mixture_logps,
    objectives,
    scatter_spans,
    spans_of_tokens,
    terminal_rewards,
)
from hf_rlae.policies.actions import actions_of
from hf_rlae.policies.configuration_policy import PolicyConfig

SPANS, GENERATIONS = 2, 8
MEMBERS = torch.tensor([[[0.9, 0.1], [0.1, 0.9]], [[0.1, 0.9], [0.9, 0.1]]])
"""Probabilities of a wrong and a right token, by situation and member: member 1 knows situation 0."""


class Weigher(torch.nn.Module):
    """Scores and a value for each situation."""

    def __init__(self, actor):
        super().__init__()
        self.scores = torch.nn.Parameter(torch.zeros(2, 2))
        self.values = torch.nn.Parameter(torch.zeros(2))
        self.actions = actions_of(PolicyConfig(num_members=2, member_hidden_sizes=[1, 1], actor=actor))


def rollout(policy, objective, situations):
    """Texts of one token a span; a text is right if both tokens are."""
    scores = policy.scores[situations]
    kept = {"span_mask": torch.ones(len(situations), SPANS)}
    if objective.explores:
        actions = policy.actions.draw(scores.flatten(0, 1))
        weights = policy.actions.weights(actions).view_as(scores)
        log_probs = policy.actions.log_probs(scores.flatten(0, 1), actions)
        kept["old_log_probs"] = scatter_spans(log_probs, kept["span_mask"])
    else:
        actions, weights = None, scores.softmax(-1)
    probs = MEMBERS[situations]
    tokens = (weights[..., None] * probs).sum(-2).flatten(0, 1).multinomial(1).view(len(situations), SPANS)
    rewards = tokens.all(1).float()
    if objective.explores:
        values = policy.values[situations]
        paid = terminal_rewards(rewards, kept["span_mask"])
        kept["advantages"], kept["returns"] = gae(paid, values, kept["span_mask"])
        kept["old_values"] = values
    else:
        places = tokens[..., None, None].expand(-1, -1, 2, 1)
        kept["completion_mask"] = torch.ones_like(tokens)
        kept["span_index"], _ = spans_of_tokens(kept["completion_mask"], 1)
        kept["member_logps"] = probs.gather(-1, places)[..., 0].log()
        kept["old_mixture_logps"] = mixture_logps(weights, kept["member_logps"], kept["span_index"])
        kept["advantages"] = group_relative(rewards, GENERATIONS)
    return actions, {name: tensor.detach() for name, tensor in kept.items()}


def answer(policy, objective, situations, actions):
    """What the policy says now of the spans of a rollout."""
    scores = policy.scores[situations]
    if not objective.explores:
        return {"weights": scores.softmax(-1)}
    flat = scores.flatten(0, 1)
    mask = torch.ones(len(situations), SPANS)
    log_probs, entropies = policy.actions.log_probs(flat, actions), policy.actions.entropies(flat)
    return {
        "log_probs": scatter_spans(log_probs, mask),
        "entropies": scatter_spans(entropies, mask),
        "values": policy.values[situations],
    }


@pytest.mark.parametrize("name", ["ppo", "mappo", "mixture"])
def test_learning(name):
    torch.manual_seed(0)
    objective = objectives[name]()
    policy = Weigher(objective.actors[0])
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.05)
    situations = torch.tensor([[0, 1], [1, 1], [0, 0], [1, 0]]).repeat_interleave(GENERATIONS, 0)
    for _ in range(60):
        with torch.no_grad():
            actions, batch = rollout(policy, objective, situations)
        for _ in range(3):
            optimizer.zero_grad()
            objective.loss(batch, answer(policy, objective, situations, actions)).loss.backward()
            optimizer.step()
    weights = policy.scores.softmax(-1)
    assert weights[0, 1] > 0.8
    assert weights[1, 0] > 0.8
