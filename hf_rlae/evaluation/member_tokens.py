"""What generated texts cost, from `hf_rlae.baselines`."""

from hf_rlae.baselines.costs import member_tokens

__all__ = ["member_tokens"]
