"""What goes to a member elsewhere and comes back: ids, and tensors as bytes in their own dtype."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch


class PackedTensor(NamedTuple):
    """A tensor as bytes, in its own dtype (NumPy has no bfloat16).

    Attributes:
        dtype (`str`): such as `"bfloat16"`.
        shape (`tuple[int, ...]`): its shape.
        data (`numpy.ndarray`): its bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    data: np.ndarray[Any, Any]


def packed(tensor: torch.Tensor) -> PackedTensor:
    """Copies a tensor to the CPU, if it is elsewhere, and shows its bytes.

    Example:

    >>> unpacked(packed(torch.tensor([0.5, 2.0], dtype=torch.bfloat16)), torch.device("cpu"))
    tensor([0.5000, 2.0000], dtype=torch.bfloat16)
    """
    flat = tensor.detach().cpu().contiguous().view(-1)
    return PackedTensor(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), flat.view(torch.uint8).numpy())


def unpacked(given: PackedTensor, device: torch.device) -> torch.Tensor:
    """A tensor from its bytes. They are copied: Ray's are read-only, and mixing overwrites logits."""
    flat = torch.empty(math.prod(given.shape), dtype=getattr(torch, given.dtype))
    flat.view(torch.uint8).numpy()[...] = given.data
    return flat.view(given.shape).to(device)


@dataclass(frozen=True)
class Columns:
    """New columns of a text, for a `ColumnsSession`.

    Attributes:
        ids (`numpy.ndarray` of shape `(B, n)`): the ids after the columns that the worker has.
        mask (`numpy.ndarray` of shape `(B, n)`, *optional*): 1 = keep; of all columns, if `is_whole_mask`.
        is_whole_mask (`bool`): whether `mask` begins with the first column.
        keep (`int`), hidden (`bool`): see `SharedRun.read`.
    """

    ids: np.ndarray[Any, Any]
    mask: np.ndarray[Any, Any] | None
    is_whole_mask: bool
    keep: int
    hidden: bool

    @property
    def num_bytes(self) -> int:
        """Number of bytes of ids and mask."""
        return self.ids.nbytes + (0 if self.mask is None else self.mask.nbytes)


class NewPath(NamedTuple):
    """A `Path`, without the ids that the worker has.

    Attributes:
        keep (`int`), want (`int`): see `Path`.
        settled (`int`): number of settled ids.
        ids (`numpy.ndarray`): the ids after the first `keep`.
    """

    keep: int
    want: int
    settled: int
    ids: np.ndarray[Any, Any]


@dataclass(frozen=True)
class Request:
    """One message to the worker of a member.

    Attributes:
        ended (`tuple[str, ...]`): sessions that are not needed any more.
        session (`str`): the session that it is about.
        opening (`tuple`, *optional*): how the session begins, if it is new: a method of `MemberHost` and its arguments.
        changes (`tuple`): what happens before reading: names of methods of the session, and their arguments.
        reads (`Columns` or `tuple[NewPath | None, ...]`, *optional*): what is read.
    """

    ended: tuple[str, ...]
    session: str
    opening: tuple[Any, ...] | None
    changes: tuple[tuple[Any, ...], ...]
    reads: Columns | tuple[NewPath | None, ...] | None


class Outputs(NamedTuple):
    """What a worker has read.

    Attributes:
        logits (`PackedTensor`): in the dtype of the model's head.
        hidden (`PackedTensor`, *optional*): hidden states, if they were requested.
        forward_calls (`int`): number of forward passes of the session so far.
    """

    logits: PackedTensor
    hidden: PackedTensor | None
    forward_calls: int
