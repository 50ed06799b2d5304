"""NaN and infinite values stop training, with the name of what they were found in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback

from hf_rlae.errors import NonFiniteError

Groups = Callable[[], Mapping[str, Iterable[nn.Parameter]]]


def check_finite(
    values: torch.Tensor,
    what: str,
    names: Sequence[str] | None = None,
    step: int | None = None,
    *,
    allow_minus_inf: bool = False,
) -> None:
    """Raises where a tensor has a value that is NaN or infinite.

    Source: ours.

    Args:
        values (`torch.Tensor` of shape `(..., K)` or any shape): rewards, logits, log-probabilities, weights.
        what (`str`): what they are, such as `"logits of the member small"`.
        names (`Sequence[str]`, *optional*): what the K entries of the last dimension belong to (members, rewards).
        step (`int`, *optional*): the optimizer step, for the message.
        allow_minus_inf (`bool`, defaults to `False`): minus infinity is legal, as it is in logits of tokens that cannot
            come and in logarithms of 0.

    Raises:
        NonFiniteError: says how many values are bad, and where the first one is.

    Example:

    >>> check_finite(torch.tensor([[0.5, -torch.inf]]), "logits", allow_minus_inf=True)
    >>> check_finite(torch.tensor([[0.5, torch.nan]]), "member probabilities", ["small", "large"], step=7)
    Traceback (most recent call last):
    hf_rlae.errors.NonFiniteError: member probabilities at step 7: 1 of 2 values ... (large) ...
    """
    if not values.is_floating_point():
        return
    bad = values.isnan() | values.isposinf() if allow_minus_inf else ~values.isfinite()
    if not bool(bad.any()):
        return
    places = bad.nonzero()
    first = tuple(places[0].tolist())
    owner = ""
    if names is not None and first:
        owners = dict.fromkeys(str(names[index]) for index in places[:, -1].tolist())
        owner = f" ({', '.join(owners)})"
    raise NonFiniteError(
        f"{what}{_at(step)}: {len(places)} of {values.numel()} values are NaN or infinite{owner}, "
        f"the first is {values[first].item()} at {list(first)}"
    )


class FiniteCheck(TrainerCallback):
    """Checks gradients before and parameters after each optimizer step, by one number each.

    The number is the norm of all; only where it is not finite are tensors looked at one by one, which also tells large
    values, whose norm overflows, from infinite ones. It costs one wait for the device, and reading gradients and
    parameters once.

    Clipping multiplies all gradients by one factor, which is NaN if one gradient was: after it nobody can say whose
    fault it was. `FiniteTrainer` therefore calls `check_gradients` before clipping; this callback alone, in another
    trainer, finds the fault and names all groups. Under `fp16=True` gradients are left to the loss scaler, which leaves
    out steps with infinite ones.

    Source: ours.

    Args:
        groups (callable): gives the parameters that train, by the name to be told, such as
            `{"pioneer": [...], "observer": [...]}`.

    Raises:
        NonFiniteError: names groups, first parameter and step.

    Example:

    >>> layer = nn.Linear(2, 1)
    >>> check = FiniteCheck(lambda: {"policy": layer.parameters()})
    >>> layer.weight.grad = torch.tensor([[torch.inf, 0.0]])
    >>> check.check_gradients(3, layer)
    Traceback (most recent call last):
    hf_rlae.errors.NonFiniteError: gradients of policy at step 3: 1 of 2 values of weight are NaN or ...
    """

    def __init__(self, groups: Groups) -> None:
        self.groups = groups
        self._checked_step = -1

    def check_gradients(self, step: int, model: nn.Module | None = None) -> None:
        """Raises where a gradient is not finite.

        Args:
            step (`int`): the optimizer step that is about to be taken, counted from 1.
            model (`nn.Module`, *optional*): whose names of parameters are told.
        """
        groups = {name: [(p, p.grad) for p in group if p.grad is not None] for name, group in self.groups().items()}
        _check_groups("gradients", groups, step, model)
        self._checked_step = step

    def check_parameters(self, step: int, model: nn.Module | None = None) -> None:
        """Raises where a parameter is not finite; see `check_gradients`."""
        groups = {name: [(p, p.detach()) for p in group] for name, group in self.groups().items()}
        _check_groups("parameters", groups, step, model)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`."""
        if not args.fp16 and self._checked_step != state.global_step + 1:
            self.check_gradients(state.global_step + 1, kwargs.get("model"))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`."""
        self.check_parameters(state.global_step + 1, kwargs.get("model"))


class FiniteTrainer(Trainer):
    """A mixin for trainers: gradients are checked before they are clipped, parameters after each step.

    Put it before the trainer's class. `finite_groups` says what is checked, and under which names.

    Source: ours.

    Example:

    >>> class MyTrainer(FiniteTrainer, Trainer):
    ...     def finite_groups(self):
    ...         return {"policy": self.model.parameters()}
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.finite_check = FiniteCheck(self.finite_groups)
        self.add_callback(self.finite_check)

    def finite_groups(self) -> Mapping[str, Iterable[nn.Parameter]]:
        """The parameters that train, by the name to be told; to be overridden.

        Returns:
            `Mapping[str, Iterable[nn.Parameter]]`: such as `{"policy": ...}`.
        """
        assert self.model is not None
        return {"model": [parameter for parameter in self.model.parameters() if parameter.requires_grad]}

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """See `Trainer.training_step`."""
        loss = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients and not self.args.fp16:
            self.finite_check.check_gradients(self.state.global_step + 1, self.model)
        return loss


def _check_groups(
    kind: str,
    groups: Mapping[str, Sequence[tuple[nn.Parameter, torch.Tensor]]],
    step: int,
    model: nn.Module | None,
) -> None:
    tensors = [tensor for group in groups.values() for _, tensor in group]
    if bool(torch.nn.utils.get_total_norm(tensors).isfinite()):
        return
    faults = {
        name: [(parameter, tensor) for parameter, tensor in group if not bool(tensor.isfinite().all())]
        for name, group in groups.items()
    }
    guilty = [name for name, group in faults.items() if group]
    if not guilty:
        # large values: the norm has overflowed
        return
    parameter, tensor = next(group[0] for group in faults.values() if group)
    labels = {id(named): label for label, named in model.named_parameters()} if model is not None else {}
    label = labels.get(id(parameter), f"a parameter of shape {tuple(parameter.shape)}")
    count = int((~tensor.isfinite()).sum())
    raise NonFiniteError(
        f"{kind} of {', '.join(guilty)}{_at(step)}: {count} of {tensor.numel()} values of {label} are NaN or infinite. "
        f"A smaller learning rate, or a look at the rewards and log-probabilities of this step, may help; the last "
        f"checkpoint is from before it"
    )


def _at(step: int | None) -> str:
    return "" if step is None else f" at step {step}"
