"""The interface of a mixing and the registry of mixings."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from hf_rlae.errors import ConfigError, nearest
from hf_rlae.registry import Registry


class Mixing(Protocol):
    """Mixes the members' distributions over one vocabulary.

    Both methods return an fp32 tensor of shape `(B, n, V)`: the mixture's log-probabilities plus `sum_k w_k log_z_k`.
    The shift gives the mixture the scale of the members' own logits, so that a repetition penalty, which scales raw
    logits, acts as on one model. `weights` has shape `(B, n, M)`. `log_z` has M tensors of shape `(B, n)`: the log of
    each member's sum of exponentials.

    A mixing with settings takes them as keyword arguments of its class; see `make_mixing`. Attributes with a meaning,
    all optional and `False` by default:

    * `needs_common_strings`: a probability of 0 in one member matters, so if tokenizers differ, every member has to be
      able to write every string (see `EnsembleConfig.grain`).
    * `compares_members`: the first member with weight writes, and the others are subtracted from it.
    * `reads_negative_prompt`: all members but the first read a negative prompt.
    """

    def of_logits(
        self, scores: Sequence[torch.Tensor], log_z: Sequence[torch.Tensor], weights: torch.Tensor
    ) -> torch.Tensor:
        """Mixes M fp32 tensors of logits `(B, n, V)`, which may be overwritten if gradients are disabled."""

    def of_probs(
        self, probs: Sequence[torch.Tensor], log_z: Sequence[torch.Tensor], weights: torch.Tensor
    ) -> torch.Tensor:
        """Mixes M fp32 tensors of probabilities `(B, n, V)`, which may be overwritten if gradients are disabled."""


mixings: Registry[Mixing] = Registry("mixing")


def make_mixing(name: str, settings: Mapping[str, Any] | None = None) -> Mixing:
    """The mixing that is registered under a name, or another object of its class with other settings.

    Args:
        name (`str`): a registered name.
        settings (`Mapping[str, Any]`, *optional*): keyword arguments of the class of the mixing.

    Raises:
        ConfigError: an unknown name, a setting that the mixing does not have, or an invalid value.

    Example:

    >>> from hf_rlae.ensemble.mixing import make_mixing
    >>> make_mixing("power", {"exponent": 0.5}).exponent
    0.5
    """
    mixing = mixings[name]
    if not settings:
        return mixing
    parameters = inspect.signature(type(mixing)).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for setting in () if takes_any else settings:
        if setting not in parameters:
            known = nearest(setting, parameters) if parameters else "it has none; leave mixing_kwargs out"
            raise ConfigError(f"mixing_kwargs: mixing={name!r} has no setting {setting!r}: {known}")
    return type(mixing)(**settings)


def has_trait(mixing: Mixing, trait: str) -> bool:
    """Whether a mixing has one of the attributes that [`Mixing`] lists."""
    return bool(getattr(mixing, trait, False))


def shift(log_z: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    """`sum_k w_k log Z_k`, of shape `(B, n)`; members without weight are left out, even if their `log Z` is -inf."""
    total = torch.zeros_like(log_z[0])
    for index, z in enumerate(log_z):
        weight = weights[..., index]
        total = total + weight * z.masked_fill(weight == 0, 0.0)  # 0 * -inf is NaN, in values and in gradients
    return total


def safe_log(values: torch.Tensor) -> torch.Tensor:
    """The logarithm, with gradient 0 instead of NaN at 0: a token that no member proposes changes no weight."""
    if not torch.is_grad_enabled():
        return values.log()
    is_zero = values == 0
    return values.masked_fill(is_zero, 1.0).log().masked_fill(is_zero, -torch.inf)
