"""`CoryConfig`: how a pioneer and its observers are trained."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig, RLOOConfig

from hf_rlae.errors import ConfigError, nearest
from hf_rlae.hub_ids import is_repo_id
from hf_rlae.trainers.cory.prompts import check_template
from hf_rlae.trainers.precision import default_bf16

OBSERVER_REWARDS = ("team", "own")

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_RESERVED_NAMES = {
    "default": "PEFT's name for the first agent's adapter",
    "ref": "TRL's name for the adapter of a reference model",
}
_UNSUPPORTED = {
    "use_vllm": "vLLM knows one adapter; leave it out, and transformers generates",
    "use_transformers_continuous_batching": "it is not tested with adapters that change; leave it out",
    "use_liger_kernel": "it is not tested with several adapters; leave it out",
    "sync_ref_model": "the reference is the frozen base, which never moves; leave it out",
    "use_adaptive_entropy": "one controller cannot serve several agents; take a fixed entropy_coef",
    "torch_compile": "it is not tested with adapters that change; leave it out",
    "torch_compile_backend": "it switches torch_compile on; leave it out",
    "torch_compile_mode": "it switches torch_compile on; leave it out",
    "auto_find_batch_size": "a rollout keeps its size, of which a part may have been learned from; leave it out",
    "deepspeed": "a step has one backward pass an agent, which DeepSpeed's engine does not take",
    "fsdp": "it is not tested with several adapters; several processes with DDP work",
    "parallelism_config": "it is not tested with several adapters; several processes with DDP work",
    "ddp_static_graph": "agents take turns, so the graph changes within a step; leave it out",
}


@dataclass
class CoryArguments:
    r"""The arguments that [`CoryMixin`] adds to those of a TRL trainer.

    Put it before the trainer's configuration: `class MyConfig(CoryArguments, GMPOConfig)`, with `@dataclass`.

    Source: CORY (arXiv 2410.06101) for the algorithm; names and defaults are ours.

    Args:
        num_agents (`int`, defaults to 2): 2 or more. The first in a rollout is the pioneer, each next one an observer
            that sees all answers before its own.
        agent_names (`list[str]`, *optional*): one an agent; `agent-1`, `agent-2`, ... if not given. They name metrics
            and the folders of the adapters.
        role_exchange_steps (`int`, defaults to 5): T, optimizer steps between exchanges of roles; 0 for never. Roles
            belong to a rollout: an exchange that is due inside one takes effect with the next one, and a rollout that
            serves more than T steps counts for one exchange.
        knowledge_transfer (`bool`, defaults to `True`): whether observers see earlier answers. `False` is an ablation:
            each agent answers the prompt alone.
        observer_reward (`str`, defaults to `"team"`): `"team"`: every agent learns from the sum of all agents' rewards,
            as in the paper. `"own"`: each learns from the sum of those that it can change: its own, and those of later
            agents, which have read its answer. The expected update is the same, with less noise: to an observer the
            pioneer's reward is a constant.
        observer_template (`str` or callable, *optional*): text with the slots `{prompt}` and `{answers}`, put in place
            of a plain prompt, or of the content of the last message; or `f(prompt, answers) -> prompt`, where prompt is
            a string or a list of messages and answers are strings, the earliest first.
        max_observer_prompt_length (`int`, *optional*): tokens of an observer's prompt at most; answers are cut from the
            left to fit. `None` is the model's context less `max_completion_length`.
        agent_learning_rates (`list[float]`, *optional*): one an agent, in place of `learning_rate`.
        base_model_id (`str`, *optional*): on the Hub, the name of a base model that was loaded from a folder; it is
            written into what is published.
        reward_timeout (`float`, defaults to 60.0): seconds that a reward function may take; 0 for no limit.
        disable_dropout (`bool`, defaults to `True`): with dropout equal policies would have a KL above 0, since TRL
            scores in training mode.

    Raises:
        ConfigError: a value that cannot be used; the message names the field.
    """

    num_agents: int = field(default=2, metadata={"help": "Agents: a pioneer, and observers after it."})
    agent_names: list[str] | None = field(
        default=None, metadata={"help": "One an agent; agent-1, agent-2, ... if not given."}
    )
    role_exchange_steps: int = field(
        default=5, metadata={"help": "Optimizer steps between exchanges of roles; 0 for never."}
    )
    knowledge_transfer: bool = field(default=True, metadata={"help": "Whether observers see earlier answers."})
    observer_reward: str = field(
        default="team",
        metadata={"help": "team: the sum of all agents' rewards. own: the sum of those that an agent can change."},
    )
    observer_template: str | None = field(
        default=None, metadata={"help": "Prompt of observers, with the slots {prompt} and {answers}; or a callable."}
    )
    max_observer_prompt_length: int | None = field(
        default=None, metadata={"help": "Tokens of an observer's prompt at most; None for what the context allows."}
    )
    agent_learning_rates: list[float] | None = field(
        default=None, metadata={"help": "One an agent, in place of learning_rate."}
    )
    base_model_id: str | None = field(
        default=None, metadata={"help": "Name on the Hub of a base model that was loaded from a folder."}
    )
    reward_timeout: float = field(
        default=60.0, metadata={"help": "Seconds that a reward function may take; 0 for no limit."}
    )
    disable_dropout: bool = field(default=True, metadata={"help": "Whether dropout is switched off."})

    def __post_init__(self) -> None:
        self._check_agents()
        self._check_observers()
        self._check_unsupported()
        settings: Any = self
        if settings.bf16 is None:
            settings.bf16 = default_bf16(bool(settings.fp16), bool(settings.use_cpu))
        if settings.load_best_model_at_end and settings.metric_for_best_model is None:
            settings.metric_for_best_model, settings.greater_is_better = "reward", True
        if settings.ddp_find_unused_parameters is None:
            settings.ddp_find_unused_parameters = True
        super().__post_init__()  # type: ignore[misc]

    @property
    def names(self) -> list[str]:
        """The agents' names, in the order in which they take the first roles."""
        return list(self.agent_names or (f"agent-{number}" for number in range(1, self.num_agents + 1)))

    @property
    def learning_rates(self) -> list[float]:
        """One an agent."""
        rate: float = self.learning_rate  # type: ignore[attr-defined]
        return [float(own) for own in self.agent_learning_rates or [rate] * self.num_agents]

    def to_dict(self) -> dict[str, Any]:
        """See `TrainingArguments.to_dict`; a template that is a function appears by its name."""
        fields: dict[str, Any] = super().to_dict()  # type: ignore[misc]
        return {**fields, "observer_template": self.told_template}

    @property
    def told_template(self) -> str | None:
        """The template, or its name if it is a function, which not every file can hold."""
        template: Any = self.observer_template
        if template is None or isinstance(template, str):
            return template
        return str(getattr(template, "__qualname__", type(template).__qualname__))

    def _check_agents(self) -> None:
        if not _is_count(self.num_agents, 2):
            raise ConfigError(
                f"num_agents={self.num_agents!r}: CORY needs a pioneer and at least one observer; give a whole number "
                "of at least 2, or train one agent with TRL's own trainer"
            )
        if not _is_count(self.role_exchange_steps, 0):
            raise ConfigError(
                f"role_exchange_steps={self.role_exchange_steps!r}: it must be a whole number of steps of at least 0; "
                "0 means that roles are never exchanged"
            )
        if self.agent_names is not None:
            self._check_names(self.agent_names)
        rates = self.agent_learning_rates
        if rates is not None and not (_is_list(rates, self.num_agents) and all(_is_number(rate, 0) for rate in rates)):
            raise ConfigError(
                f"agent_learning_rates={rates!r}: give {self.num_agents} finite numbers of at least 0, one an agent"
            )
        if not _is_number(self.reward_timeout, 0):
            raise ConfigError(f"reward_timeout={self.reward_timeout!r}: it must be a finite number of at least 0")

    def _check_names(self, names: Sequence[str]) -> None:
        if not _is_list(names, self.num_agents) or len({str(name).lower() for name in names}) != self.num_agents:
            raise ConfigError(f"agent_names={names!r}: give {self.num_agents} different names in a list, one an agent")
        for name in names:
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise ConfigError(
                    f"agent_names: {name!r} cannot name a folder and a metric; take letters, digits, '-' and '_', "
                    "a letter first"
                )
            if name in _RESERVED_NAMES:
                raise ConfigError(f"agent_names: {name!r} is {_RESERVED_NAMES[name]}; take another name")
            if name.startswith("checkpoint-"):
                raise ConfigError(f"agent_names: {name!r} would be a checkpoint's folder; take another name")

    def _check_observers(self) -> None:
        if self.observer_reward not in OBSERVER_REWARDS:
            hint = nearest(str(self.observer_reward), OBSERVER_REWARDS)
            raise ConfigError(f"observer_reward={self.observer_reward!r}: {hint}")
        template: str | Callable[..., Any] | None = self.observer_template
        if template is not None:
            check_template(template)
        length = self.max_observer_prompt_length
        if length is not None and not _is_count(length, 1):
            raise ConfigError(
                f"max_observer_prompt_length={length!r}: it must be a whole number of at least 1, or None"
            )
        most: Any = self.max_completion_length  # type: ignore[attr-defined]
        if not _is_count(most, 1):
            raise ConfigError(
                f"max_completion_length={most!r}: it must be a whole number of at least 1, for which observers' "
                "prompts leave room"
            )
        base = self.base_model_id
        if base is not None and (not is_repo_id(str(base)) or os.path.exists(str(base))):
            raise ConfigError(
                f"base_model_id={self.base_model_id!r}: give the name of a repository on the Hub, such as 'owner/name'"
            )

    def _check_unsupported(self) -> None:
        for name, reason in _UNSUPPORTED.items():
            value = getattr(self, name, None)
            if value:
                raise ConfigError(f"{name}={value!r} is not supported by CORY trainers: {reason}")
        if getattr(self, "ddp_find_unused_parameters", None) is False:
            raise ConfigError(
                "ddp_find_unused_parameters=False: agents take turns, so each backward pass leaves out the others' "
                "parameters; leave it out, or set it to True"
            )


@dataclass
class CoryConfig(CoryArguments, GRPOConfig):
    r"""Arguments of [`CoryTrainer`]: those of [`CoryArguments`] and of `trl.GRPOConfig`.

    It needs no accelerator: where `bf16` is left out, it is used only where a device has it.

    Example:

    >>> config = CoryConfig("out", num_generations=4, agent_names=["ada", "bob"], report_to="none")
    >>> config.names, config.bf16 in (True, False)
    (['ada', 'bob'], True)
    """


@dataclass
class CoryRLOOConfig(CoryArguments, RLOOConfig):
    r"""Arguments of [`CoryRLOOTrainer`]: those of [`CoryArguments`] and of `trl.RLOOConfig`."""


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_list(value: Any, length: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == length


def _is_number(value: Any, least: float) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value >= least
