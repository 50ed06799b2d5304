"""Checks the shapes of tensors by their axes before any work is done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from hf_rlae.errors import ObjectiveError

AXES = {"B": "rows", "S": "spans", "T": "completion tokens", "M": "members", "V": "ids"}
"""What the letters of axes stand for."""

Axes = Mapping[str, tuple[str, ...]]
"""By tensor, the axes that it may have: `{"advantages": ("B", "BS")}` allows one number per row or one per span."""


def check_axes(tensors: Mapping[str, torch.Tensor], axes: Axes, optional: Iterable[str] = ()) -> dict[str, int]:
    """Raises for tensors that are missing or whose shapes do not fit together.

    Args:
        tensors (`Mapping[str, torch.Tensor]`): by name; names that are not in `axes` are ignored.
        axes (`Mapping[str, tuple[str, ...]]`): by name, the allowed axes, such as `("B", "BS")`.
        optional (iterable of `str`): names that may be missing.

    Returns:
        `dict[str, int]`: the size of every axis.

    Raises:
        ObjectiveError: a tensor is missing, is not a tensor, or its shape contradicts those before it.

    Example:

    >>> check_axes({"rewards": torch.zeros(2, 3), "values": torch.zeros(2, 3)}, {"rewards": ("BS",), "values": ("BS",)})
    {'B': 2, 'S': 3}
    """
    sizes: dict[str, tuple[int, str]] = {}
    for name, allowed in axes.items():
        tensor = tensors.get(name)
        if tensor is None and name in optional:
            continue
        if not isinstance(tensor, torch.Tensor):
            given = "is missing" if tensor is None else f"is a {type(tensor).__name__}"
            raise ObjectiveError(f"{name} {given}; give a tensor of shape {_written(allowed)}")
        found = next((letters for letters in allowed if len(letters) == tensor.dim()), None)
        if found is None:
            raise ObjectiveError(f"{name} has shape {tuple(tensor.shape)}; it must be {_written(allowed)}")
        for letter, size in zip(found, tensor.shape, strict=True):
            expected, first = sizes.setdefault(letter, (size, name))
            if size != expected:
                raise ObjectiveError(
                    f"{name} has shape {tuple(tensor.shape)}, read as {_written((found,))}: {size} {AXES[letter]}, but "
                    f"{first} has {expected}; both must have the same"
                )
    return {letter: size for letter, (size, _) in sizes.items()}


def _written(allowed: Iterable[str]) -> str:
    return " or ".join(f"({', '.join(letters)}{',' * (len(letters) == 1)})" for letters in allowed)
