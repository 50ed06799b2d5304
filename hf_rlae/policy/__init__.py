"""Floor 3: policies, which give every member a weight for each span."""

from hf_rlae.policy.state import MemberObservation, Policy, PolicyOutput, PolicyState
from hf_rlae.policy.static import StaticPolicy, UniformPolicy, policies
from hf_rlae.policy.weights import ask, cut

__all__ = [
    "MemberObservation",
    "Policy",
    "PolicyOutput",
    "PolicyState",
    "StaticPolicy",
    "UniformPolicy",
    "ask",
    "cut",
    "policies",
]
