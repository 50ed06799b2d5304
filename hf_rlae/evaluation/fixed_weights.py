"""The search for the best fixed weights, from `hf_rlae.baselines`."""

from hf_rlae.baselines.fixed_weights import FixedWeights, best_fixed_weights, simplex_grid

__all__ = ["FixedWeights", "best_fixed_weights", "simplex_grid"]
