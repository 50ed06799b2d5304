"""Mixings of the members' distributions: one file per mixing, registered by name."""

from hf_rlae.ensemble.mixing.contrast import ContrastMixing
from hf_rlae.ensemble.mixing.guidance import GuidanceMixing
from hf_rlae.ensemble.mixing.linear import LinearMixing
from hf_rlae.ensemble.mixing.log import LogMixing
from hf_rlae.ensemble.mixing.power import PowerMixing
from hf_rlae.ensemble.mixing.registry import Mixing, has_trait, make_mixing, mixings

__all__ = [
    "ContrastMixing",
    "GuidanceMixing",
    "LinearMixing",
    "LogMixing",
    "Mixing",
    "PowerMixing",
    "has_trait",
    "make_mixing",
    "mixings",
]
