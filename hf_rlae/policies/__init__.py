"""Floor 3: policies, which return one weight per member for each span."""

from hf_rlae.policies.configuration_policy import MEMBER_FIELDS, PolicyConfig
from hf_rlae.policies.entropy import EntropyPolicy
from hf_rlae.policies.loading import (
    POLICY_FOLDER,
    GivenPolicy,
    fixed_weights,
    policy_entry,
    resolve_policy,
    saved_policy,
)
from hf_rlae.policies.modeling_policy import PolicyModel
from hf_rlae.policies.perplexity import PerplexityPolicy
from hf_rlae.policies.protocol import (
    MemberObserver,
    Policy,
    SavedPolicy,
    SizedPolicy,
    check_is_policy,
    members_of,
    observed_tokens,
)
from hf_rlae.policies.state import MemberObservation, PolicyOutput, PolicyState, PromptScores
from hf_rlae.policies.static import StaticPolicy, UniformPolicy, policies
from hf_rlae.policies.weights import answered, ask, cut, rescaled

__all__ = [
    "MEMBER_FIELDS",
    "POLICY_FOLDER",
    "EntropyPolicy",
    "GivenPolicy",
    "MemberObservation",
    "MemberObserver",
    "PerplexityPolicy",
    "Policy",
    "PolicyConfig",
    "PolicyModel",
    "PolicyOutput",
    "PolicyState",
    "PromptScores",
    "SavedPolicy",
    "SizedPolicy",
    "StaticPolicy",
    "UniformPolicy",
    "answered",
    "ask",
    "check_is_policy",
    "cut",
    "fixed_weights",
    "members_of",
    "observed_tokens",
    "policies",
    "policy_entry",
    "rescaled",
    "resolve_policy",
    "saved_policy",
]
