"""Floor 3: policies, which give every member a weight for each span."""

from hf_rlae.policy.configuration_policy import PolicyConfig
from hf_rlae.policy.entropy import EntropyPolicy
from hf_rlae.policy.modeling_policy import PolicyModel
from hf_rlae.policy.perplexity import PerplexityPolicy
from hf_rlae.policy.state import MemberObservation, Policy, PolicyOutput, PolicyState, PromptScores, observed_tokens
from hf_rlae.policy.static import StaticPolicy, UniformPolicy, policies
from hf_rlae.policy.weights import ask, cut

__all__ = [
    "EntropyPolicy",
    "MemberObservation",
    "PerplexityPolicy",
    "Policy",
    "PolicyConfig",
    "PolicyModel",
    "PolicyOutput",
    "PolicyState",
    "PromptScores",
    "StaticPolicy",
    "UniformPolicy",
    "ask",
    "cut",
    "observed_tokens",
    "policies",
]
