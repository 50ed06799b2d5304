"""The agents' adapters: one LoRA adapter per agent on one frozen base model."""

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

from hf_rlae.checks import check_choice
from hf_rlae.errors import CheckpointError, ConfigError
from hf_rlae.trainers.cory.draws import draws_apart

FIRST = "default"
"""PEFT's name for the first agent's adapter, which TRL creates."""


class AgentAdapters:
    """The adapters of all agents; one at a time is active.

    The first agent has the adapter `default`. The others are added as copies of it under their agents' names, since
    CORY starts with duplicates of one model.

    All agents' parameters keep `requires_grad`, whichever agent is active: PEFT freezes adapters that are added or
    deactivated, and an optimizer or DDP that is built then would never train them.

    Source: CORY (arXiv 2410.06101) for the duplicates; one adapter per agent is ours.

    Args:
        model (`PeftModel`): with the adapter `default`.
        names (`Sequence[str]`): of the agents.

    Raises:
        ConfigError: a name that the model already uses.
    """

    def __init__(self, model: PeftModel, names: Sequence[str]) -> None:
        self.model = model
        self.adapters = {name: FIRST if index == 0 else name for index, name in enumerate(names)}
        first, *others = names
        _check_names(model, others)
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._parameters = {first: trained}
        for name in others:
            self._parameters[name] = self._added(name)
        self.activate(first)

    def _added(self, name: str) -> dict[str, nn.Parameter]:
        """A copy of the first agent's adapter under another name."""
        known = {id(parameter) for parameter in self.model.parameters()}
        with draws_apart(0):  # the copy replaces what PEFT draws
            self.model.add_adapter(name, copy.deepcopy(self.model.peft_config[FIRST]))
        added = {key: value for key, value in self.model.named_parameters() if id(value) not in known}
        first = next(iter(self._parameters.values()))
        with torch.no_grad():
            for key, parameter in added.items():
                source = ".".join(FIRST if part == name else part for part in key.split("."))
                parameter.data = first[source].detach().clone()  # copies the dtype as well
        return added

    @property
    def names(self) -> list[str]:
        """The agents, in their initial order."""
        return list(self.adapters)

    @property
    def active(self) -> str:
        """The agent whose adapter is active."""
        adapter = self.model.active_adapter
        return next(name for name, own in self.adapters.items() if own == adapter)

    def parameters(self, name: str) -> list[nn.Parameter]:
        """The trained parameters of an agent."""
        return list(self._parameters[name].values())

    def activate(self, name: str) -> None:
        """Activates an agent's adapter; all adapters stay trainable."""
        check_choice("agent", name, self.adapters)
        if self.model.active_adapter != self.adapters[name]:
            self.model.set_adapter(self.adapters[name])
        for own in self._parameters.values():
            for parameter in own.values():
                parameter.requires_grad_(True)

    @contextlib.contextmanager
    def acting(self, name: str) -> Iterator[None]:
        """Activates an agent inside, and the former one again afterwards."""
        former = self.active
        self.activate(name)
        try:
            yield
        finally:
            self.activate(former)

    def folder(self, name: str, root: str | os.PathLike[str]) -> str:
        """PEFT's folder of an agent's adapter: `root` for the first agent, a folder of their name for the others."""
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
                absent = {key for key in result.missing_keys if adapter in key.split(".")} | set(result.unexpected_keys)
                fault = ", ".join(sorted(absent)[:3])
            except RuntimeError as error:  # other shapes
                fault = str(error).strip().splitlines()[-1].strip()
            if fault:
                raise CheckpointError(
                    f"{self.folder(name, root)} does not fit the adapter of {name}: {fault}; it was saved with another "
                    "peft_config"
                )


def _check_names(model: PeftModel, names: Sequence[str]) -> None:
    named = [name for name, _ in [*model.named_modules(), *model.named_parameters()]]
    taken = {part for name in named for part in name.split(".")} | set(model.peft_config)
    for name in names:
        # PEFT keeps adapters in module dictionaries, where keys cannot have the names of methods
        if name in taken or hasattr(nn.ModuleDict, name) or hasattr(nn.ParameterDict, name):
            raise ConfigError(f"agent_names: the model has something named {name!r} already; give another name")


def config_for_texts(peft_config: LoraConfig) -> LoraConfig:
    """A copy of an adapter's configuration with the task type that `AutoPeftModelForCausalLM` needs.

    It is a copy because PEFT changes the configuration that it is given.

    Example:

    >>> config_for_texts(LoraConfig(r=4)).task_type
    'CAUSAL_LM'
    """
    adapted = copy.deepcopy(peft_config)
    adapted.task_type = adapted.task_type or "CAUSAL_LM"
    adapted.inference_mode = False  # published adapters have True
    return adapted


def _weights_file(folder: str) -> str:
    return os.path.join(folder, "adapter_model.safetensors")
