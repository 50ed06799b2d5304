"""`CoryConfig`: settings of the training of a pioneer and its observers."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from trl import GRPOConfig, RLOOConfig

from hf_rlae.checks import NOT_NEGATIVE, OPTIONAL_COUNT, SHARE, Bounds, check_choice, check_fields, check_list
from hf_rlae.errors import ConfigError
from hf_rlae.hub_ids import is_hub_id
from hf_rlae.trainers.constraints import ConstraintArguments
from hf_rlae.trainers.cory.credit import CREDITS, OBSERVER_GROUPS
from hf_rlae.trainers.cory.prompts import check_template
from hf_rlae.trainers.cory.roles import OBSERVER, PIONEER, Role, check_roles, role_of
from hf_rlae.trainers.defaults import option, set_defaults

_BOUNDS = {
    "num_agents": Bounds(
        2, is_whole=True, note="a pioneer and at least one observer; for one agent, use TRL's trainer"
    ),
    "role_exchange_steps": Bounds(0, is_whole=True, note="with 0, roles are never exchanged"),
    "shared_rollout_delta": SHARE,
    "shared_rollout_alpha": NOT_NEGATIVE,
    "reward_timeout": Bounds(0, note="0 is no limit"),
    "max_observer_prompt_length": OPTIONAL_COUNT,
    "max_completion_length": Bounds(1, is_whole=True, note="observers' prompts leave room for a completion"),
}
_DEFAULT_AGENTS = 2
_MAX_SHAPLEY_AGENTS = 5
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_RESERVED_NAMES = {
    "default": "PEFT's name for the first agent's adapter",
    "ref": "TRL's name for the adapter of a reference model",
}
_UNSUPPORTED = {
    "use_vllm": "vLLM loads one adapter; leave it out, so that transformers generates",
    "use_transformers_continuous_batching": "it is not tested with several adapters; leave it out",
    "use_liger_kernel": "it is not tested with several adapters; leave it out",
    "sync_ref_model": "the reference model is the frozen base model; leave it out",
    "use_adaptive_entropy": "one controller cannot serve several agents; give a fixed entropy_coef",
    "torch_compile": "it is not tested with several adapters; leave it out",
    "torch_compile_backend": "it switches torch_compile on; leave it out",
    "torch_compile_mode": "it switches torch_compile on; leave it out",
    "auto_find_batch_size": "the size of a rollout in use cannot change; leave it out",
    "deepspeed": "a step has one backward pass per agent, which DeepSpeed's engine does not support; use DDP",
    "fsdp": "it is not tested with several adapters; use DDP",
    "parallelism_config": "it is not tested with several adapters; use DDP",
    "ddp_static_graph": "agents take turns, so the graph changes within a step; leave it out",
}


@dataclass
class CoryArguments(ConstraintArguments):
    r"""The arguments that [`CoryMixin`] adds to those of a TRL trainer, and those of [`ConstraintArguments`].

    Put it before the trainer's configuration: `class MyConfig(CoryArguments, GMPOConfig)`, with `@dataclass`.

    Source: CORY (arXiv 2410.06101) for the algorithm; names and defaults are ours.

    Args:
        num_agents (`int`, defaults to 2): 2 or more. The first in a rollout is the pioneer; each later one is an
            observer, which reads all answers before its own.
        agent_names (`list[str]`, *optional*): one per agent; `agent-1`, `agent-2`, ... if not given. Metrics and the
            folders of the adapters have these names.
        role_exchange_steps (`int`, defaults to 5): T, optimizer steps between exchanges of roles; 0 for never. Roles
            stay the same within a rollout: an exchange that is due inside one takes effect with the next one, and a
            rollout that serves more than T steps counts as one exchange.
        roles (`list[str]`, *optional*): the roles of the chain in its order, by their names in
            `hf_rlae.trainers.cory.roles.roles`: `pioneer` and `observer`s if not given; also `critic` and `verifier`.
            The first role reads no answer. `num_agents` is their number. An exchange moves every agent to the next
            role.
        knowledge_transfer (`bool`, defaults to `True`): whether observers read earlier answers. `False` is an ablation:
            each agent answers the prompt alone.
        credit (`str`, defaults to `"team"`): what each agent learns from. `"team"`: the sum of all agents' rewards, as
            in the paper. `"own"`: the sum of the rewards that the agent can change: its own, and those of later agents,
            which have read its answer. The expected update is the same, with less noise: for an observer the pioneer's
            reward is a constant. `"difference"`: that sum less the mean of the agent's other answers to the prompt
            that followed equally good ones, see `difference_rewards`; no further completions are written. `"shapley"`:
            the agent's Shapley value, see `shapley_values`; `2**N - 1` completions per prompt are written instead of N
            (3 for two agents, 7 for three), of which the chain's own N are learned from. Evaluations report sums of
            rewards, whatever the credit. Source: the paper for `"team"`; COMA (arXiv 1705.08926) for counterfactual
            baselines; Shapley (1953); chains of answers are ours.
        observer_groups (`str`, defaults to `"own_reference"`): what the `num_generations` observers of a prompt read.
            `"own_reference"`: each another completion of the earlier agents. `"shared_reference"`: all of them the
            prompt's first completion, so that a group baseline compares answers to the same question and reference. As
            many completions are written. The pioneer then learns from its own rewards alone: observers' rewards are the
            same for all its completions of a prompt. Source: ours.
        team_normalization (`bool`, defaults to `False`): whether each agent's rewards are standardised within their
            prompt before they are added, and the sum is not divided again (`scale_rewards="none"`), so that an agent's
            own signal is as large as without a team, see `normalized_rewards`. Source: ours.
        shared_rollouts (`bool`, defaults to `False`): whether every agent also learns from the completions of the other
            agents that earned more than the mean of both, as answers to its own prompt, importance-weighted and
            clipped; see `shared_rollout_loss`. No further completions are written; an update has up to N times the
            forward passes. Source: HACPO (arXiv 2603.02604).
        shared_rollout_delta (`float`, defaults to 0.2): ratios below 1 less this, and above 1, have no gradient.
            Source: public code of HACPO.
        shared_rollout_alpha (`float`, defaults to 1.0): completions are also weighted by the ratio to this power.
            Source: public code of HACPO.
        observer_template (`str` or callable, *optional*): a text with the slots `{prompt}` and `{answers}`, which
            replaces a plain prompt or the content of the last message; or `f(prompt, answers) -> prompt`, where the
            prompt is a string or a list of messages and answers are strings, the earliest first. It replaces the
            template of the role `observer`.
        max_observer_prompt_length (`int`, *optional*): maximum number of tokens of an observer's prompt; longer answers
            are cut from the left. `None` is the model's context less `max_completion_length`.
        agent_learning_rates (`list[float]`, *optional*): one per agent, instead of `learning_rate`.
        base_model_id (`str`, *optional*): the Hub id of a base model that was loaded from a folder; published adapters
            refer to it.
        reward_timeout (`float`, defaults to 60.0): seconds that a reward function may take; 0 for no limit.
        disable_dropout (`bool`, defaults to `True`): whether dropout is switched off. With dropout equal policies have
            a KL above 0, since TRL scores in training mode.
        observer_reward (`str`, *optional*): deprecated; the former name of `credit`.

    Raises:
        ConfigError: a value that cannot be used; the message names the field.
    """

    num_agents: int = option(default=_DEFAULT_AGENTS, help="Number of agents: one pioneer and its observers.")
    agent_names: list[str] | None = option(default=None, help="One per agent; agent-1, agent-2, ... if not given.")
    role_exchange_steps: int = option(default=5, help="Optimizer steps between exchanges of roles; 0 for never.")
    roles: list[str] | None = option(default=None, help="Of the chain, in its order; pioneer and observers by default.")
    knowledge_transfer: bool = option(default=True, help="Whether observers read earlier answers.")
    credit: Literal["team", "own", "difference", "shapley"] = option(
        default="team", help="Which rewards an agent learns from."
    )
    observer_groups: Literal["own_reference", "shared_reference"] = option(
        default="own_reference", help="Whether the observers of a prompt read one completion."
    )
    team_normalization: bool = option(default=False, help="Whether to standardise rewards per agent before adding.")
    shared_rollouts: bool = option(default=False, help="Whether agents learn from better completions of others.")
    shared_rollout_delta: float = option(default=0.2, help="Width of the range of ratios for shared rollouts.")
    shared_rollout_alpha: float = option(default=1.0, help="Exponent of the weights of shared rollouts.")
    observer_template: str | None = option(default=None, help="A text with {prompt} and {answers}, or a callable.")
    max_observer_prompt_length: int | None = option(default=None, help="Maximum tokens; None: the model's context.")
    agent_learning_rates: list[float] | None = option(default=None, help="One per agent, instead of learning_rate.")
    base_model_id: str | None = option(default=None, help="Hub id of a base model that was loaded from a folder.")
    reward_timeout: float = option(default=60.0, help="Seconds that a reward function may take; 0 for no limit.")
    disable_dropout: bool = option(default=True, help="Whether dropout is switched off.")
    observer_reward: str | None = option(default=None, help="Deprecated: the former name of credit.")

    def __post_init__(self) -> None:
        self._rename()
        check_fields(self, _BOUNDS)
        self._check_roles()
        self._check_agents()
        self._check_observers()
        self._check_unsupported()
        set_defaults(self)
        super().__post_init__()

    def _rename(self) -> None:
        """Takes over what was given by a former name."""
        if self.observer_reward is None:
            return
        if self.credit not in ("team", self.observer_reward):
            raise ConfigError(
                f"observer_reward={self.observer_reward!r} is the former name of credit={self.credit!r}; leave it out"
            )
        warnings.warn("observer_reward is now credit; the old name will be removed", FutureWarning, stacklevel=4)
        self.credit, self.observer_reward = self.observer_reward, None  # type: ignore[assignment]  # checked below

    @property
    def names(self) -> list[str]:
        """The agents' names, in the order of their first roles."""
        return list(self.agent_names or (f"agent-{number}" for number in range(1, self.num_agents + 1)))

    @property
    def role_names(self) -> list[str]:
        """The registered names of the roles of the chain, in its order."""
        return list(self.roles or [PIONEER, *[OBSERVER] * (self.num_agents - 1)])

    def role(self, name: str) -> Role:
        """A role by its registered name, as this training uses it."""
        role = role_of(name)
        template = self.observer_template if name == OBSERVER and self.observer_template else role.template
        return replace(role, template=template if self.knowledge_transfer else None)

    @property
    def learning_rates(self) -> list[float]:
        """The learning rate of each agent."""
        rate: float = self.learning_rate  # type: ignore[attr-defined]
        return [float(own) for own in self.agent_learning_rates or [rate] * self.num_agents]

    def to_dict(self) -> dict[str, Any]:
        """See `TrainingArguments.to_dict`; a template that is a function is given by its name."""
        fields: dict[str, Any] = super().to_dict()  # type: ignore[misc]
        return {**fields, "observer_template": self.told_template}

    @property
    def told_template(self) -> str | None:
        """The template, or its name if it is a function, which cannot be saved to every file."""
        template: Any = self.observer_template
        if template is None or isinstance(template, str):
            return template
        return str(getattr(template, "__qualname__", type(template).__qualname__))

    def _check_roles(self) -> None:
        if self.roles is None:
            return
        check_roles(self.roles)
        if self.num_agents not in (len(self.roles), _DEFAULT_AGENTS):
            raise ConfigError(
                f"roles={self.roles!r} are {len(self.roles)} roles, but num_agents={self.num_agents}; leave num_agents "
                "out"
            )
        self.num_agents = len(self.roles)
        if self.observer_template is not None and OBSERVER not in self.roles:
            raise ConfigError(
                f"observer_template is that of the role {OBSERVER!r}, which roles={self.roles!r} do not have; leave it "
                "out, or register a role with your template"
            )

    def _check_agents(self) -> None:
        check_list("agent_learning_rates", self.agent_learning_rates, NOT_NEGATIVE, self.num_agents)
        names: Any = self.names if self.agent_names is None else self.agent_names
        is_list = isinstance(names, list | tuple) and len(names) == self.num_agents
        if not is_list or len({str(name).lower() for name in names}) != self.num_agents:
            raise ConfigError(f"agent_names={names!r}: give {self.num_agents} different names in a list, one per agent")
        for name in names:
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise ConfigError(
                    f"agent_names: {name!r} cannot name a folder and a metric; use letters, digits, '-' and '_', and "
                    "begin with a letter"
                )
            meaning = (
                "the name of a checkpoint's folder" if name.startswith("checkpoint-") else _RESERVED_NAMES.get(name)
            )
            if meaning:
                raise ConfigError(f"agent_names: {name!r} is {meaning}; give another name")

    def _check_observers(self) -> None:
        check_choice("credit", self.credit, CREDITS)
        check_choice("observer_groups", self.observer_groups, OBSERVER_GROUPS)
        self._check_credit()
        template: str | Callable[..., Any] | None = self.observer_template
        if template is not None:
            check_template(template)
        if self.base_model_id is not None and not is_hub_id(self.base_model_id):
            raise ConfigError(f"base_model_id={self.base_model_id!r}: give a Hub id, such as 'owner/name'")

    def _check_credit(self) -> None:
        is_shared = self.observer_groups == "shared_reference"
        if is_shared and not self.knowledge_transfer:
            raise ConfigError(
                "observer_groups='shared_reference': with knowledge_transfer=False nobody reads; leave it out"
            )
        if self.credit == "shapley":
            if self.num_agents > _MAX_SHAPLEY_AGENTS:
                raise ConfigError(
                    f"credit='shapley' writes 2**N - 1 completions per prompt, {2**self.num_agents - 1} for "
                    f"num_agents={self.num_agents}; give at most {_MAX_SHAPLEY_AGENTS} agents, or credit='difference'"
                )
            for name, is_given in (("observer_groups", is_shared), ("team_normalization", self.team_normalization)):
                if is_given:
                    raise ConfigError(
                        f"{name}={getattr(self, name)!r}: Shapley values compare rewards of different teams as they "
                        "are; leave it out, or give another credit"
                    )
        if not self.team_normalization:
            return
        args: Any = self
        if getattr(args, "multi_objective_aggregation", "sum_then_normalize") != "sum_then_normalize":
            raise ConfigError(
                "team_normalization and multi_objective_aggregation='normalize_then_sum' both standardise rewards; "
                "leave one of them out"
            )
        if getattr(args, "scale_rewards", "none") not in ("group", "none", True, False):
            raise ConfigError(
                f"scale_rewards={args.scale_rewards!r} divides the sums of team_normalization again; leave it out"
            )
        if hasattr(args, "scale_rewards"):
            args.scale_rewards = "none"

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

    It needs no accelerator: if `bf16` is not set, it is on only where the device supports it.

    Example:

    >>> config = CoryConfig("out", num_generations=4, agent_names=["ada", "bob"], report_to="none")
    >>> config.names, config.bf16 in (True, False)
    (['ada', 'bob'], True)
    """


@dataclass
class CoryRLOOConfig(CoryArguments, RLOOConfig):
    r"""Arguments of [`CoryRLOOTrainer`]: those of [`CoryArguments`] and of `trl.RLOOConfig`."""
