"""Mixings of the members' distributions: one file per mixing, registered by name."""

from hf_rlae.ensemble.mixing.linear import LinearMixing
from hf_rlae.ensemble.mixing.log import LogMixing
from hf_rlae.ensemble.mixing.power import PowerMixing
from hf_rlae.ensemble.mixing.registry import Mixing, mixings

__all__ = ["LinearMixing", "LogMixing", "Mixing", "PowerMixing", "mixings"]
