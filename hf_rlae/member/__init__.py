"""Floor 2: one member at run time."""

from hf_rlae.member.lockstep import LockstepRelay
from hf_rlae.member.member import Member

__all__ = ["LockstepRelay", "Member"]
