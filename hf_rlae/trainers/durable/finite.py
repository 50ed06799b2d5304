"""Stops training at NaN and infinite values, with the name of their owner."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback

from hf_rlae.errors import NonFiniteError, present

Groups = Callable[[], Mapping[str, Iterable[nn.Parameter]]]


def check_finite(values: torch.Tensor, what: str, names: Sequence[str] | None = None, step: int | None = None) -> None:
    """Raises if a tensor has a value that is NaN or infinite.

    Source: ours.

    Args:
        values (`torch.Tensor` of shape `(..., K)` or any shape): rewards, logits, log-probabilities, weights.
        what (`str`): their name in the message, such as `"logits of the member small"`.
        names (`Sequence[str]`, *optional*): the owners of the K entries of the last dimension (members, rewards).
        step (`int`, *optional*): the optimizer step, for the message.

    Raises:
        NonFiniteError: says how many values are not finite, and where the first one is.

    Example:

    >>> check_finite(torch.tensor([[0.5, torch.nan]]), "member probabilities", ["small", "large"], step=7)
    Traceback (most recent call last):
    hf_rlae.errors.NonFiniteError: member probabilities at step 7: 1 of 2 values ... (large) ...
    """
    if not values.is_floating_point():
        return
    places = (~values.isfinite()).nonzero()
    if not len(places):
        return
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
    """Checks gradients before and parameters after each optimizer step.

    It checks the norm of all tensors first. Only if the norm is not finite does it check each tensor. Gradients whose
    norm alone is infinite are an error too: clipping by an infinite norm sets all of them to 0, and nothing is learned.
    It costs one synchronisation with the device, and one read of gradients and parameters.

    Clipping multiplies all gradients by one factor, which is NaN if one gradient was NaN, so that their origin is lost.
    `FiniteTrainer` therefore calls `check_gradients` before clipping; this callback alone, in another trainer, names
    all groups. With `fp16=True` gradients are not checked: the loss scaler skips steps with infinite ones.

    Source: ours.

    Args:
        groups (callable): returns the trained parameters by the name of their group, such as
            `{"pioneer": [...], "observer": [...]}`.

    Raises:
        NonFiniteError: names the groups, the first parameter and the step.

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
        """Raises if a gradient is not finite, or the norm of all gradients is not.

        Args:
            step (`int`): the next optimizer step, counted from 1.
            model (`nn.Module`, *optional*): for the names of parameters.
        """
        groups = {name: [(p, p.grad) for p in group if p.grad is not None] for name, group in self.groups().items()}
        _check_groups("gradients", groups, step, model)
        self._checked_step = step

    def check_parameters(self, step: int, model: nn.Module | None = None) -> None:
        """Raises if a parameter is not finite; see `check_gradients`."""
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
    """A mixin for trainers that checks loss and gradients before clipping, and parameters after each step.

    Put it before the trainer's class. `finite_groups` returns the checked parameters by the name of their group.

    Source: ours.

    Example:

    >>> class MyTrainer(FiniteTrainer, Trainer):
    ...     def finite_groups(self):
    ...         return {"policy": self.model.parameters()}
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._loss_sum: Any = 0.0
        self.finite_check = FiniteCheck(self.finite_groups)
        self.add_callback(self.finite_check)

    def finite_groups(self) -> Mapping[str, Iterable[nn.Parameter]]:
        """The trained parameters by the name of their group. An override point.

        Returns:
            `Mapping[str, Iterable[nn.Parameter]]`: such as `{"policy": ...}`.
        """
        model = present(self.model, "the trainer's model")
        return {"model": [parameter for parameter in model.parameters() if parameter.requires_grad]}

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """See `Trainer.training_step`.

        The loss is checked too: transformers replaces one that is not finite in logs (`logging_nan_inf_filter=True`).
        """
        loss = super().training_step(*args, **kwargs)
        self._loss_sum = self._loss_sum + loss.detach()
        if self.accelerator.sync_gradients:
            step, total, self._loss_sum = self.state.global_step + 1, self._loss_sum, 0.0
            if not self.args.fp16:
                self.finite_check.check_gradients(step, self.model)
                check_finite(total, "loss", step=step)
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
    faults = [
        (name, parameter, tensor)
        for name, group in groups.items()
        for parameter, tensor in group
        if not bool(tensor.isfinite().all())
    ]
    if not faults:  # large values: the norm has overflowed
        if kind == "gradients":
            _raise_for_norm(groups, step)
        return
    guilty = dict.fromkeys(name for name, _, _ in faults)
    _, parameter, tensor = faults[0]
    labels = {id(named): label for label, named in model.named_parameters()} if model is not None else {}
    label = labels.get(id(parameter), f"a parameter of shape {tuple(parameter.shape)}")
    count = int((~tensor.isfinite()).sum())
    raise NonFiniteError(
        f"{kind} of {', '.join(guilty)}{_at(step)}: {count} of {tensor.numel()} values of {label} are NaN or infinite. "
        "Try a smaller learning rate, and check the rewards and log-probabilities of this step; the last checkpoint is "
        "from an earlier step"
    )


def _raise_for_norm(groups: Mapping[str, Sequence[tuple[nn.Parameter, torch.Tensor]]], step: int | None) -> None:
    largest = {name: max(float(tensor.abs().max()) for _, tensor in group) for name, group in groups.items() if group}
    told = ", ".join(f"{name} (values up to {most:.3g})" for name, most in largest.items())
    raise NonFiniteError(
        f"gradients of {told}{_at(step)}: grad_norm=inf, because the squares overflow. Clipping by it would set all "
        "gradients to 0. Scale or clip the rewards, and check the log-probabilities of this step; the last checkpoint "
        "is from an earlier step"
    )


def _at(step: int | None) -> str:
    return "" if step is None else f" at step {step}"
