"""`CoryTrainer`: a pioneer and observers, one adapter each on one frozen base model, trained by a TRL trainer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from trl import GRPOTrainer, RLOOTrainer
from trl.trainer.utils import disable_dropout_in_model, get_config_model_id

from hf_rlae.errors import ConfigError
from hf_rlae.rewards.calls.guarded import GuardedReward
from hf_rlae.rewards.calls.resolve import names_of, resolve_rewards
from hf_rlae.rewards.contract import columns_of
from hf_rlae.trainers.constraints import RewardConstraints
from hf_rlae.trainers.context_check import ContextCheck
from hf_rlae.trainers.cory.agents import AgentAdapters, config_for_texts
from hf_rlae.trainers.cory.card import AgentPublisher
from hf_rlae.trainers.cory.chain import batch_of
from hf_rlae.trainers.cory.checks import (
    check_arguments,
    check_cory_datasets,
    check_evaluated,
    check_tokenizer,
    observer_room,
    warn_of_half_precision,
)
from hf_rlae.trainers.cory.configuration_cory import CoryArguments, CoryConfig, CoryRLOOConfig
from hf_rlae.trainers.cory.logs import CompletionColumns
from hf_rlae.trainers.cory.prompts import ObserverPrompts
from hf_rlae.trainers.cory.resuming import ResumableRollouts
from hf_rlae.trainers.cory.roles import PIONEER, order_at, role_labels
from hf_rlae.trainers.cory.rollouts import ChainRollouts
from hf_rlae.trainers.cory.shared_rollouts import without_shared
from hf_rlae.trainers.durable.finite import FiniteTrainer
from hf_rlae.trainers.rewards import RewardFunc
from hf_rlae.trainers.trl_generation import TRLGeneration

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback


class CoryMixin(ChainRollouts, AgentPublisher, ResumableRollouts, FiniteTrainer, ContextCheck, TRLGeneration):
    """Makes a TRL trainer with online rollouts train a chain of agents together. Put it before the trainer's class.

    In every rollout the pioneer answers the prompts; each observer answers them with all earlier answers as a
    reference. All agents receive the team's reward (see `credit` of [`CoryArguments`]). The trainer's own loss
    updates each agent, with the agent's rewards, baseline, KL and gradient norm. Roles are exchanged every
    `role_exchange_steps`.

    How it works: the next agent's whole rollout runs inside `_calculate_rewards` of the agent before it, which returns
    the sum of rewards, so that TRL's code for advantages, KL and log-probabilities is unchanged. The trainer's buffer
    holds the batches of all agents side by side. A step has one backward pass per agent, while its adapter is active:
    one joint loss gives wrong gradients with gradient checkpointing. Gradients are clipped agent by agent.

    Override points: `roll_out` (one agent's batch), `agent_loss` (one agent's loss), `agent_parameters`.

    Source: CORY (arXiv 2410.06101); one adapter per agent on one base model, chains of more than two agents, and
    exchanges without a reset are ours.

    Args:
        model (`str` or `PreTrainedModel`): the base model, without adapters.
        reward_funcs: see `hf_rlae.rewards.calls.resolve.resolve_rewards`. Besides the dataset's columns, functions
            receive `role`, `agent` and `previous_completions` (those that the agent has read); `prompts` are the
            original ones for all agents.
        args ([`CoryArguments`], *optional*): the configuration.
        train_dataset (`datasets.Dataset`): with a column `prompt`, strings or messages.
        eval_dataset (`datasets.Dataset` or `dict` of these, *optional*): the same.
        processing_class (`PreTrainedTokenizerBase`, *optional*): the model's tokenizer.
        reward_processing_classes (*optional*): tokenizers of reward models, one per reward function.
        callbacks (`list`, *optional*): as in transformers.
        optimizers (`tuple`, *optional*): not supported.
        quantization_config (*optional*): of a base model that is given by its name.
        peft_config (`peft.LoraConfig`): of the adapters.
        tools, rollout_func, environment_factory: refused; they are arguments of TRL's `GRPOTrainer`.
        kwargs: further arguments of the TRL trainer.

    Raises:
        ConfigError: an argument or a field that cannot be used; the message names it.
        InputError: a prompt that fills the model's context.
        RewardError: a reward function that does not return one number or `None` per completion, or exceeds its time
            limit.
        NonFiniteError: NaN or infinity in gradients or parameters; the message names the agent.
    """

    _tag_names: ClassVar[list[str]] = ["cory", "hf_rlae"]
    _name = "CORY"
    _paper: ClassVar[dict[str, str]] = {
        "title": "Coevolving with the Other You: Fine-Tuning LLM with Sequential Cooperative Multi-Agent "
        "Reinforcement Learning",
        "id": "2410.06101",
    }
    config_class: ClassVar[type] = CoryConfig

    args: Any
    model: Any
    reward_weights: torch.Tensor

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: RewardFunc | Sequence[RewardFunc] | None = None,
        args: CoryArguments | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | Mapping[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase | None] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LRScheduler | None] = (None, None),
        quantization_config: Any = None,
        peft_config: LoraConfig | None = None,
        tools: None = None,
        rollout_func: None = None,
        environment_factory: None = None,
        **kwargs: Any,
    ) -> None:
        if model is None:
            raise ConfigError("model is missing; give the base model, its Hub id or its folder")
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = self.config_class(f"{name.rstrip('/').split('/')[-1] or 'model'}-{self._name}")
        settings: Any = args
        others = {"tools": tools, "rollout_func": rollout_func, "environment_factory": environment_factory}
        check_arguments(settings, model, peft_config, optimizers, others)
        prompts = check_cory_datasets(settings, train_dataset, eval_dataset)
        if processing_class is not None:
            check_tokenizer(processing_class, prompts)
        self._alone: str | None = None
        funcs = resolve_rewards(reward_funcs, settings.reward_timeout)
        self.constraints = RewardConstraints(settings, names_of(funcs), settings.reward_weights)
        super().__init__(
            model,
            funcs,
            args=settings,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            reward_processing_classes=reward_processing_classes,
            callbacks=callbacks,
            quantization_config=quantization_config,
            peft_config=config_for_texts(peft_config),  # type: ignore[arg-type]  # checked above
            **kwargs,
        )
        check_tokenizer(self.processing_class, prompts)
        self.reward_weights = self.constraints.main_weights
        self.agents = AgentAdapters(self.model, settings.names)
        warn_of_half_precision(self.model)
        if settings.disable_dropout:
            disable_dropout_in_model(self.model)
        self.set_base_model_id()
        self.observer_prompts = ObserverPrompts(
            self.processing_class,
            lambda prompts: [len(ids) for ids in self._tokenize_prompts(prompts)[0]],  # type: ignore[attr-defined]
            observer_room(settings, self.model.config),
        )
        self.columns = CompletionColumns(self)
        self._widen_logs()

    def _set_signature_columns_if_needed(self) -> None:
        """What `remove_unused_columns=True` keeps: TRL's columns, and those that reward functions are known to read."""
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()
            funcs = [func.reward for func in self.reward_funcs if isinstance(func, GuardedReward)]  # type: ignore[attr-defined]
            self._signature_columns += sorted(set().union(*map(columns_of, funcs)))  # type: ignore[operator]

    # -- agents and roles ---------------------------------------------------------------------------------

    def order(self, step: int | None = None) -> list[str]:
        """The agents in the order of the chain; the first is the pioneer.

        Args:
            step (`int`, *optional*): an optimizer step; the current one if not given.
        """
        if self._alone is not None:
            return [self._alone]
        step = self.state.global_step if step is None else step
        return order_at(step, self.agents.names, self.exchange_steps)

    @property
    def exchange_steps(self) -> int:  # type: ignore[override]  # read only
        """Optimizer steps between exchanges of roles, 0 for never; at least one rollout, which keeps its roles."""
        rollout = self.args.steps_per_generation * self.args.num_iterations // self.args.gradient_accumulation_steps
        return self.args.role_exchange_steps and max(self.args.role_exchange_steps, rollout)

    def roles(self, step: int | None = None) -> dict[str, str]:
        """The role of every agent, at an optimizer step or at the current one."""
        return dict(zip(self.order(step), role_labels(self.role_names()), strict=True))

    def role_names(self) -> list[str]:
        """The registered names of the roles of the chain, in its order."""
        return self.args.role_names if self._alone is None else [PIONEER]  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def alone(self, agent: str) -> Iterator[None]:
        """Inside, one agent is alone: its adapter is active, and evaluations run it as pioneer, without observers.

        Args:
            agent (`str`): its name.
        """
        with self.agents.acting(agent):
            former, self._alone = self._alone, agent
            try:
                yield
            finally:
                self._alone = former

    def agent_parameters(self, agent: str) -> list[nn.Parameter]:
        """The trained parameters of an agent. An override point for parameters besides adapters."""
        return self.agents.parameters(agent)

    def finite_groups(self) -> Mapping[str, Iterable[nn.Parameter]]:
        """See `FiniteTrainer`: one group per agent."""
        return {name: self.agent_parameters(name) for name in self.agents.names}

    def create_optimizer(self, model: Any = None) -> Any:
        """The optimizer of `args`, with separate parameter groups for every agent.

        Raises:
            ConfigError: `agent_parameters` returns a parameter that is not trainable or not in the model.
        """
        is_new = self.optimizer is None
        self.agents.activate(self.agents.names[0])
        optimizer: Any = super().create_optimizer(model)
        if not is_new:
            return optimizer
        groups = list(optimizer.param_groups)
        known = {id(parameter) for group in groups for parameter in group["params"]}
        optimizer.param_groups.clear()
        for name, rate in zip(self.agents.names, self.args.learning_rates, strict=True):
            own = {id(parameter) for parameter in self.agent_parameters(name)}
            if own - known:
                raise ConfigError(
                    f"agent_parameters({name!r}) returns {len(own - known)} parameters that the optimizer does not "
                    "have; make them trainable parameters of trainer.model before the optimizer is created"
                )
            for group in groups:
                parameters = [parameter for parameter in group["params"] if id(parameter) in own]
                if parameters:
                    optimizer.add_param_group({**group, "params": parameters, "lr": rate, "agent": name})
        optimizer.defaults["lr"] = max(self.args.learning_rates)  # schedules with an absolute final rate use it
        return optimizer

    # -- evaluation ---------------------------------------------------------------------------------------

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """See `Trainer.evaluate`; raises for a dataset that the constructor would refuse."""
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            check_evaluated(self.args, eval_dataset)
        return super().evaluate(eval_dataset, *args, **kwargs)

    def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """See `Trainer.predict`; raises for a dataset that the constructor would refuse."""
        check_evaluated(self.args, {"test_dataset": test_dataset})
        return super().predict(test_dataset, *args, **kwargs)

    # -- updates ------------------------------------------------------------------------------------------

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """See `Trainer.training_step`; the active agent is the same afterwards."""
        with self.agents.acting(self.agents.active):
            return super().training_step(*args, **kwargs)

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """See `Trainer.prediction_step`; the active agent is the same afterwards."""
        with self.agents.acting(self.agents.active):
            return super().prediction_step(*args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The sum of the agents' losses; in training, all backward passes but the last agent's have been done.

        Each backward pass runs while its agent's adapter is active, so that gradient checkpointing recomputes the
        agent's activations. The caller does the last agent's backward pass, and its adapter stays active for it.
        """
        if return_outputs:
            raise ConfigError(f"{type(self).__name__}.compute_loss returns no outputs; leave out return_outputs")
        batches = {name: batch_of(name, inputs) for name in self.agents.names}
        included = [name for name in self.agents.names if batches[name]]
        if self.accelerator.num_processes == 1:  # several processes need the same order
            # the longest prompts first, while no other agent's gradients take memory
            included.sort(key=lambda name: -batches[name]["prompt_ids"].shape[1])
        total = torch.zeros((), device=self.accelerator.device)
        for name in included:
            self.agents.activate(name)
            with self._metrics_of(name):
                loss = self.agent_loss(name, model, without_shared(batches[name]), num_items_in_batch)
                if self.args.shared_rollouts and self._mode == "train":
                    loss = loss + self._shared_loss(model, batches[name])
            if name == included[-1]:
                return loss + total
            if torch.is_grad_enabled():
                self._backward(loss)
            total = total + loss.detach()
        raise ConfigError(f"the batch has no rollout of {', '.join(self.agents.names)}; it has {', '.join(inputs)}")

    def agent_loss(
        self, agent: str, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None
    ) -> torch.Tensor:
        """One agent's loss for a micro-batch of its own completions, while its adapter is active. An override point.

        Args:
            agent (`str`): its name.
            model (`nn.Module`): the model, possibly wrapped by DDP.
            inputs (`dict`): one micro-batch of the output of `roll_out`, and `rewards` (shape `(B,)`, NaN where no
                function could judge), the weighted sums that the agent learns from.
            num_items_in_batch: as in transformers.
        """
        return super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)  # type: ignore[return-value]

    def _backward(self, loss: torch.Tensor) -> None:
        """The same backward pass as in `Trainer.training_step`."""
        if not self.loss_is_scaled_for_ga:
            loss = loss / self.current_gradient_accumulation_steps
        self.accelerator.backward(loss)

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        """Clips the gradients agent by agent, so that a large gradient of one agent does not shorten another's step."""
        self.accelerator.unscale_gradients()
        norms = []
        for name in self.agents.names:
            norm = nn.utils.clip_grad_norm_(self.agent_parameters(name), self.args.max_grad_norm)
            self._metrics["train"][f"agent/{name}/grad_norm"].append(norm.item())
            norms.append(norm)
        return torch.linalg.vector_norm(torch.stack(norms))


class CoryTrainer(CoryMixin, GRPOTrainer):
    """[`CoryMixin`] on TRL's `GRPOTrainer`: every agent's advantages are relative to the other
    completions of its prompt.

    See [`CoryMixin`] for arguments and errors, and [`CoryConfig`] for settings.
    """


class CoryRLOOTrainer(CoryMixin, RLOOTrainer):
    """[`CoryMixin`] on TRL's `RLOOTrainer`: every agent's baseline is the mean of the other
    completions of its prompt.

    See [`CoryMixin`] for arguments and errors, and [`CoryRLOOConfig`] for settings.
    """

    config_class = CoryRLOOConfig
