"""Embedded members."""

from hf_rlae.zoo.loader import MEMBER_SETS, SPECIALISTS, load_member, load_members
from hf_rlae.zoo.oracle import OraclePolicy

__all__ = ["MEMBER_SETS", "SPECIALISTS", "OraclePolicy", "load_member", "load_members"]
