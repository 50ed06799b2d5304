"""The agents' adapters: one LoRA adapter an agent on one frozen base."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.utils.save_and_load import load_peft_weights, set_peft_model_state_dict
from torch import nn

from hf_rlae.errors import CheckpointError, ConfigError
from hf_rlae.trainers.cory.roles import draws_apart

FIRST = "default"
"""PEFT's name for the adapter of the first agent, which TRL makes."""


class AgentAdapters:
    """The adapters of all agents, of which one at a time is active.

    The first agent has the adapter `default`. The others are added here, as copies of it under their agents' names,
    since CORY begins with duplicates of one model.

    All agents' parameters keep `requires_grad`, whichever is active: PEFT freezes an adapter that is added or left, and
    an optimizer or DDP that is built then would never train it.

    Source: CORY (arXiv 2410.06101) for the duplicates; one adapter an agent is ours.

    Args:
        model (`PeftModel`): with the adapter `default`.
        names (`Sequence[str]`): of the agents.

    Raises:
        ConfigError: a name that the model uses for something else.
    """

    def __init__(self, model: PeftModel, names: Sequence[str]) -> None:
        self.model = model
        self.adapters = {name: FIRST if index == 0 else name for index, name in enumerate(names)}
        named = [name for name, _ in [*model.named_modules(), *model.named_parameters()]]
        taken = {part for name in named for part in name.split(".")} | set(model.peft_config)
        for name in list(names)[1:]:
            # a module dictionary, in which PEFT keeps adapters, has no room for the names of its methods
            if name in taken or hasattr(nn.ModuleDict, name) or hasattr(nn.ParameterDict, name):
                raise ConfigError(f"agent_names: the model has something named {name!r} already; take another name")
        first = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._parameters = {names[0]: first}
        for name in list(names)[1:]:
            self._parameters[name] = self._added(name)
        self.activate(names[0])

    def _added(self, name: str) -> dict[str, nn.Parameter]:
        """A copy of the first agent's adapter under another name."""
        known = {id(parameter) for parameter in self.model.parameters()}
        with draws_apart(0):  # what PEFT draws is replaced by the copy
            self.model.add_adapter(name, copy.deepcopy(self.model.peft_config[FIRST]))
        added = {key: value for key, value in self.model.named_parameters() if id(value) not in known}
        first = next(iter(self._parameters.values()))
        with torch.no_grad():
            for key, parameter in added.items():
                source = ".".join(FIRST if part == name else part for part in key.split("."))
                parameter.data = first[source].detach().clone()  # in its precision, too
        return added

    @property
    def names(self) -> list[str]:
        """The agents, in their first order."""
        return list(self.adapters)

    @property
    def active(self) -> str:
        """The agent whose adapter is active."""
        adapter = self.model.active_adapter
        return next(name for name, own in self.adapters.items() if own == adapter)

    def parameters(self, name: str) -> list[nn.Parameter]:
        """What trains of an agent."""
        return list(self._parameters[name].values())

    def activate(self, name: str) -> None:
        """Makes an agent's adapter the one that the model computes with; all stay trainable."""
        if name not in self.adapters:
            raise ConfigError(f"there is no agent {name!r}; there are {', '.join(self.adapters)}")
        if self.model.active_adapter != self.adapters[name]:
            self.model.set_adapter(self.adapters[name])
        for own in self._parameters.values():
            for parameter in own.values():
                parameter.requires_grad_(True)

    @contextlib.contextmanager
    def acting(self, name: str) -> Iterator[None]:
        """An agent is active inside, and the former one again afterwards."""
        former = self.active
        self.activate(name)
        try:
            yield
        finally:
            self.activate(former)

    def folder(self, name: str, root: str | os.PathLike[str]) -> str:
        """Where PEFT saves an agent's adapter: the first one in the folder itself, the others in one of their name."""
        return os.fspath(root) if self.adapters[name] == FIRST else os.path.join(root, name)

    def load(self, root: str | os.PathLike[str]) -> None:
        """Loads every agent from a folder that `save_pretrained` wrote.

        Raises:
            CheckpointError: an agent is missing, or has other parameters.
        """
        device = next(iter(self._parameters[self.names[0]].values())).device
        missing = [name for name in self.names if not os.path.isfile(_weights_file(self.folder(name, root)))]
        if missing:
            raise CheckpointError(
                f"{os.fspath(root)} has no adapter of {', '.join(missing)}; it was saved with other agent_names or "
                "num_agents, or by another trainer"
            )
        for name, adapter in self.adapters.items():
            weights = load_peft_weights(self.folder(name, root), device=str(device))
            try:
                result: Any = set_peft_model_state_dict(self.model, weights, adapter_name=adapter)
            except RuntimeError as error:  # other shapes
                fault = str(error).strip().splitlines()[-1].strip()
            else:
                absent = {key for key in result.missing_keys if adapter in key.split(".")} | set(result.unexpected_keys)
                fault = ", ".join(sorted(absent)[:3])
            if fault:
                raise CheckpointError(
                    f"{self.folder(name, root)} does not fit the adapter of {name}: {fault}; it was saved with another "
                    "peft_config"
                )


def config_for_texts(peft_config: LoraConfig) -> LoraConfig:
    """A copy of an adapter's configuration that says what the model is for, as `AutoPeftModelForCausalLM` asks.

    It is a copy because PEFT writes into what it is given.

    Example:

    >>> config_for_texts(LoraConfig(r=4)).task_type
    'CAUSAL_LM'
    """
    adapted = copy.deepcopy(peft_config)
    adapted.task_type = adapted.task_type or "CAUSAL_LM"
    adapted.inference_mode = False  # which configurations that were published with an adapter set
    return adapted


def _weights_file(folder: str) -> str:
    return os.path.join(folder, "adapter_model.safetensors")
