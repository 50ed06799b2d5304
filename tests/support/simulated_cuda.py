"""A CUDA device that is simulated on the CPU: tensors that say `cuda:0`, CUDA's rules, and a log of waits.

Work on a GPU is queued; the host goes on until it needs a value, or copies memory that is not pinned. Then it waits
until the queue is empty, and the GPU idles until the host has queued new work. No GPU is needed to count such waits.

The rules are those of torch 2.13: which functions read values on the host, which copies block, how indices are moved
to the device. Times cannot be measured here.
"""

from __future__ import annotations

import copy
import functools
import linecache
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from torch.overrides import TorchFunctionMode

import hf_rlae

DEVICE = torch.device("cuda:0")
CPU = torch.device("cpu")

_OURS, _UPSTREAM, _TORCH = (str(Path(module.__file__).parent) for module in (hf_rlae, transformers, torch))

_READS = {
    *("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__contains__", "__array__", "cpu", "equal"),
    *("allclose", "nonzero", "argwhere", "is_nonzero", "masked_select", "unique", "unique_consecutive", "bincount"),
    *("multinomial", "histc", "__format__", "__repr__"),
}
"""Functions that read values on the host, or whose results have a size that depends on values."""

_FROM_HOST = {"tensor", "as_tensor", "new_tensor", "asarray", "from_numpy"}
"""Functions that copy Python numbers to the device."""

_ALLOW_OTHER_DEVICE = {"__getitem__", "__setitem__", "to", "copy_", "type_as", "data", "__set__"}


class OnDevice(torch.Tensor):
    """A tensor that says it is on the device; its values are in `held`, on the CPU."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> OnDevice:
        wrapper = torch.Tensor._make_subclass(cls, held.detach())
        wrapper.held = held
        return wrapper

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    def __deepcopy__(self, memo: dict[int, Any]) -> OnDevice:
        return OnDevice(copy.deepcopy(self.held, memo))

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(None, func, args, kwargs or {})


@dataclass(frozen=True)
class Wait:
    """One wait for the device.

    Attributes:
        step (`int`): the number of the ensemble's forward pass in or after which it happened, from 1; 0 before.
        what (`str`): the function.
        place (`str`): the line of code that caused it: file, number, text.
        kind (`str`): `"engine"` (this package and `generate`), `"forward"` (inside a member, by its own code) or
            `"user"` (a streamer, a user's own processor).
    """

    step: int
    what: str
    place: str
    kind: str


class SimulatedCuda(TorchFunctionMode):
    """Runs everything on the simulated device while it is active, and logs waits.

    Attributes:
        waits (`list[Wait]`): in order.
        launched (`list[tuple[int, int]]`): the step and the index of the model of each forward pass.
        uploads (`list[int]`): the step of each copy from pinned memory, which nobody waits for.
        events (`list[str]`): "forward k" and "wait", in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[Wait] = []
        self.uploads: list[int] = []
        self.events: list[str] = []
        self.step = 0
        self._inside = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(self, func, args, kwargs or {})

    def wait(self, what: str) -> None:
        """Logs a wait."""
        place, kind = _place(self._inside > 0)
        self.waits.append(Wait(self.step, what, place, kind))
        if kind == "engine":
            self.events.append("wait")

    @contextmanager
    def watched(self, ensemble: nn.Module, models: Sequence[nn.Module]) -> Iterator[None]:
        """Counts the ensemble's forward passes as steps, and tells what happens inside the members' own."""

        def begin_step(*_: Any) -> None:
            self.step += 1

        def enter(index: int, *_: Any) -> None:
            self._inside += 1
            self.events.append(f"forward {index}")

        def leave(*_: Any) -> None:
            self._inside -= 1

        hooks = [ensemble.register_forward_pre_hook(begin_step)]
        for index, model in enumerate(models):
            hooks += [
                model.register_forward_pre_hook(functools.partial(enter, index)),
                model.register_forward_hook(leave, always_call=True),
            ]
        try:
            with self:
                yield
        finally:
            for hook in hooks:
                hook.remove()


def on_device(module: nn.Module) -> nn.Module:
    """Moves the parameters and buffers of a module to the device, in place."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and not isinstance(tensor, OnDevice):
                    tensors[name] = OnDevice(tensor.detach())  # type: ignore[assignment]
    return module


def to_device(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor on the device, made outside of the log."""
    return OnDevice(tensor.clone())


# -- one call of a torch function -----------------------------------------------------------------------------


def _call(mode: SimulatedCuda | None, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name = getattr(func, "__name__", "")
    if name == "__get__" or name == "__set__":
        return _run(func, args, kwargs, DEVICE)
    tensors = list(_tensors((args, kwargs)))
    here = any(isinstance(tensor, OnDevice) for tensor in tensors)
    if name in ("pin_memory", "is_pinned"):
        return _pinned(name, args[0])
    pins = bool(kwargs.pop("pin_memory", False)) if "pin_memory" in kwargs else False
    wanted = _wanted_device(name, args, kwargs)
    if not here and wanted != DEVICE:
        result = func(*args, **kwargs)
        if pins:
            result._is_pinned = True
        return result
    if name in _FROM_HOST and not here:
        _wait(mode, f"{name} from the host")
        return _run(func, args, _without_device(kwargs), DEVICE)
    if not tensors:
        return _run(func, args, _without_device(kwargs), DEVICE)
    if name == "numpy" and here:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
    if name == "copy_":
        return _copy(mode, func, args, kwargs)
    if name in ("to", "cuda", "cpu", "type"):
        return _move(mode, func, name, args, kwargs, wanted)
    if name in ("__getitem__", "__setitem__"):
        _check_index(mode, name, args)
    else:
        _check_devices(name, tensors)
    if name in _READS:
        if here:
            _wait(mode, name)
        goes_down = name not in ("nonzero", "argwhere", "masked_select", "multinomial", "unique", "bincount")
        return _run(func, args, kwargs, CPU if goes_down else DEVICE)
    if name == "where" and len(args) == 1:
        _wait(mode, name)
    if name == "repeat_interleave" and _reads_repeats(args, kwargs):
        _wait(mode, name)
    return _run(func, args, _without_device(kwargs), DEVICE)


def _reads_repeats(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the size of the result has to be read from a tensor of repeats."""
    repeats = kwargs.get("repeats", args[1] if len(args) > 1 else args[0])
    return isinstance(repeats, OnDevice) and kwargs.get("output_size") is None


def _wait(mode: SimulatedCuda | None, what: str) -> None:
    if mode is not None:
        mode.wait(what)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _tensors(entry)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _held(value: Any) -> Any:
    if isinstance(value, OnDevice):
        return value.held
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        held = [_held(entry) for entry in value]
        return type(value)(*held) if hasattr(value, "_fields") else type(value)(held)
    if isinstance(value, dict):
        return {key: _held(entry) for key, entry in value.items()}
    return value


def _run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device) -> Any:
    """Calls a function on the values; results on the device are wrapped, and stay the tensors that were passed."""
    known = {id(tensor.held): tensor for tensor in _tensors((args, kwargs)) if isinstance(tensor, OnDevice)}
    return _wrapped(func(*_held(args), **_held(kwargs)), known, device)


def _wrapped(value: Any, known: dict[int, OnDevice], device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        if id(value) in known:
            return known[id(value)]
        return OnDevice(value) if device == DEVICE else value
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        wrapped = [_wrapped(entry, known, device) for entry in value]
        is_named = hasattr(value, "_fields") or type(value).__module__ == "torch.return_types"
        return (
            type(value)(wrapped)
            if type(value).__module__ == "torch.return_types"
            else (type(value)(*wrapped) if is_named else type(value)(wrapped))
        )
    return value


def _wanted_device(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device | None:
    """The device that a call asks for; `None` if it asks for none."""
    if name == "cpu":
        return CPU
    if name == "cuda":
        return DEVICE
    found = kwargs.get("device")
    if found is None and name == "to":
        for entry in args[1:]:
            if isinstance(entry, torch.Tensor):
                return DEVICE if isinstance(entry, OnDevice) else CPU
            if isinstance(entry, torch.device | str):
                found = entry
    if isinstance(found, int):
        return DEVICE
    if found is None:
        return None
    return DEVICE if torch.device(found).type == "cuda" else torch.device(found)


def _without_device(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if key != "device"}


def _pinned(name: str, tensor: torch.Tensor) -> Any:
    if name == "is_pinned":
        return getattr(tensor, "_is_pinned", False)
    copied = tensor.clone()
    copied._is_pinned = True  # type: ignore[attr-defined]
    return copied


def _move(
    mode: SimulatedCuda | None,
    func: Any,
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    wanted: torch.device | None,
) -> Any:
    source, here = args[0], isinstance(args[0], OnDevice)
    target = wanted or (DEVICE if here else CPU)
    rest = [entry for entry in args[1:] if not isinstance(entry, torch.device | str)]
    options = {key: value for key, value in kwargs.items() if key not in ("device", "non_blocking")}
    if name in ("cpu", "cuda"):
        moved = source.held if here else source
    else:
        rest = [entry.dtype if isinstance(entry, torch.Tensor) else entry for entry in rest]
        moved = func(source.held if here else source, *rest, **options) if rest or options else _held(source)
    if here == (target == DEVICE):
        if here:
            return source if moved is source.held else OnDevice(moved)
        return moved
    if here and kwargs.get("non_blocking"):
        raise RuntimeError("a copy to the host that nobody waits for: its values may be read too early")
    if not here and kwargs.get("non_blocking") and getattr(source, "_is_pinned", False):
        if mode is not None:
            mode.uploads.append(mode.step)
    else:
        _wait(mode, f"{name} the {'device' if target == DEVICE else 'host'}")
    moved = moved.clone() if moved is _held(source) else moved
    return OnDevice(moved) if target == DEVICE else moved


def _copy(mode: SimulatedCuda | None, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    to, source = args[:2]
    if isinstance(to, OnDevice) != isinstance(source, OnDevice) and source.dim() > 0:
        is_async = bool(kwargs.get("non_blocking", False)) and getattr(source, "_is_pinned", False)
        if not is_async:
            _wait(mode, "copy_")
    return _run(func, args, {}, DEVICE if isinstance(to, OnDevice) else CPU)


def _check_index(mode: SimulatedCuda | None, name: str, args: tuple[Any, ...]) -> None:
    """Indices that are moved to the device, or that have to be read."""
    base = args[0]
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    fills = name == "__setitem__" and not (isinstance(args[2], torch.Tensor) and args[2].dim() > 0)
    masks = [entry for entry in index if isinstance(entry, torch.Tensor) and entry.dtype == torch.bool]
    for entry in index:
        if isinstance(entry, OnDevice) and not isinstance(base, OnDevice):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        if not isinstance(base, OnDevice):
            continue
        if isinstance(entry, list | range) or type(entry).__module__ == "numpy":
            _wait(mode, "an index of Python numbers")
        elif isinstance(entry, torch.Tensor):
            if not isinstance(entry, OnDevice):
                _wait(mode, "an index on the host")
            elif entry.dtype == torch.bool and not (fills and len(masks) == len(index) == 1):
                _wait(mode, "a mask as index")
            elif entry.dim() == 0 and entry.dtype != torch.bool:
                _wait(mode, "an index of one number on the device")
    values = args[2] if name == "__setitem__" else None
    if not isinstance(values, torch.Tensor) or values.dim() == 0:
        return
    if isinstance(values, OnDevice) != isinstance(base, OnDevice):
        if any(isinstance(entry, list | torch.Tensor) for entry in index):
            raise RuntimeError("expected all tensors to be on the same device, but the value of an index is not")
        _wait(mode, "a value from elsewhere")


def _check_devices(name: str, tensors: Sequence[torch.Tensor]) -> None:
    """Tensors of different devices cannot be mixed, except single numbers on the host."""
    if name in _ALLOW_OTHER_DEVICE:
        return
    here = any(isinstance(tensor, OnDevice) for tensor in tensors)
    strangers = [tensor for tensor in tensors if not isinstance(tensor, OnDevice) and tensor.dim() > 0]
    if here and strangers:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({name})"
        )


def _place(is_inside: bool) -> tuple[str, str]:
    """The line of code that the present call comes from, and the kind of the wait."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name != __file__ and not name.startswith(_TORCH) and "contextlib" not in name:
            break
        frame = frame.f_back
    if frame is None:
        return "?", "user"
    line = linecache.getline(name, frame.f_lineno).strip()
    for root, kind in ((_OURS, "engine"), (_UPSTREAM, "forward" if is_inside else "engine")):
        if name.startswith(root):
            kind = "user" if "streamer.put" in line else kind
            return f"{name[len(root) + 1 :]}:{frame.f_lineno}: {line}", kind
    return f"{Path(name).name}:{frame.f_lineno}: {line}", "forward" if is_inside else "user"
