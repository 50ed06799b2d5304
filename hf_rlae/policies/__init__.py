"""Floor 3: policies, which give every member a weight for each span."""

from hf_rlae.policies.configuration_policy import PolicyConfig
from hf_rlae.policies.entropy import EntropyPolicy
from hf_rlae.policies.modeling_policy import PolicyModel
from hf_rlae.policies.perplexity import PerplexityPolicy
from hf_rlae.policies.state import MemberObservation, Policy, PolicyOutput, PolicyState, PromptScores, observed_tokens
from hf_rlae.policies.static import StaticPolicy, UniformPolicy, policies
from hf_rlae.policies.weights import ask, cut

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
