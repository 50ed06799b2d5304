"""A policy that knows which member is right: an upper bound for policies that switch members."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hf_rlae.policies import PolicyState
from hf_rlae.tasks.chains import OPERATORS, operator_at


class OraclePolicy:
    """Gives all weight to the specialist for the operator of the current step.

    A span that starts in one step and ends in the result of the next has the weights of the first, so that a long
    `span_length` costs accuracy.

    Args:
        operators (`Sequence[str]`, defaults to `("+", "-", "*")`): each member's operator, as in `load_demo_members`.
    """

    observes_members = False

    def __init__(self, operators: Sequence[str] = OPERATORS) -> None:
        self.operators = tuple(operators)
        self.num_members = len(self.operators)

    def __call__(self, state: PolicyState) -> torch.Tensor:
        weights = torch.full((state.batch_size, self.num_members), 1 / self.num_members, device=state.device)
        for row, text in enumerate(state.text):
            operator = operator_at(text)
            if operator is not None:
                weights[row] = 0.0
                weights[row, self.operators.index(operator)] = 1.0
        return weights
