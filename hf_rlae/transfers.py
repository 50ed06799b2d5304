"""Copies from the host to a device that the host does not wait for."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def upload(values: torch.Tensor | Sequence[int] | Sequence[float], device: torch.device) -> torch.Tensor:
    """Copies numbers of the host to a device.

    Memory that is not pinned would make the host wait until a CUDA device has finished all earlier work.

    Args:
        values (`torch.Tensor` or `Sequence`): a tensor, or numbers; a tensor that is on a device already is only moved.
        device (`torch.device`): the device.

    Returns:
        `torch.Tensor`: on the device; on a CPU a tensor itself, not a copy.

    Example:

    >>> upload([3, 1], torch.device("cpu"))
    tensor([3, 1])
    """
    tensor = values if isinstance(values, torch.Tensor) else torch.tensor(values)
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Placed:
    """Tensors that never change, with copies on the devices that need them.

    Args:
        tensors (`torch.Tensor`): tensors of the host, of one shape and dtype.
    """

    __slots__ = ("_copies", "tensors")

    def __init__(self, *tensors: torch.Tensor) -> None:
        self.tensors = tensors
        self._copies: dict[torch.device, tuple[torch.Tensor, ...]] = {}

    def on(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        """The tensors on a device; they are copied once."""
        if device.type == "cpu":
            return self.tensors
        known = self._copies.get(device)
        if known is None:
            known = self._copies[device] = upload(torch.stack(self.tensors), device).unbind(0)
        return known
