"""`CoryTrainer`: a pioneer and observers, one adapter each on one frozen base, trained together by a TRL trainer."""

from __future__ import annotations

import contextlib
import logging
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from trl import GRPOTrainer, RLOOTrainer
from trl.trainer.utils import disable_dropout_in_model, get_config_model_id

from hf_rlae.errors import ConfigError
from hf_rlae.rewards.calls.guarded import GuardedReward
from hf_rlae.rewards.calls.resolve import resolve_rewards
from hf_rlae.rewards.contract import columns_of
from hf_rlae.rewards.weighted_sums import total_rewards
from hf_rlae.trainers.cory.agents import AgentAdapters, config_for_texts
from hf_rlae.trainers.cory.card import AgentPublisher
from hf_rlae.trainers.cory.checks import (
    check_arguments,
    check_datasets,
    check_tokenizer,
    observer_room,
    warn_of_half_precision,
)
from hf_rlae.trainers.cory.configuration_cory import CoryArguments, CoryConfig, CoryRLOOConfig
from hf_rlae.trainers.cory.logs import CompletionColumns, NamedEvaluations, merge_metrics
from hf_rlae.trainers.cory.prompts import ObserverPrompts
from hf_rlae.trainers.cory.resuming import ResumableRollouts
from hf_rlae.trainers.cory.roles import (
    Chain,
    answer_text,
    batch_of,
    draws_apart,
    learned_rewards,
    order_at,
    role_names,
)
from hf_rlae.trainers.durable.finite import FiniteTrainer

logger = logging.getLogger(__name__)


class CoryMixin(AgentPublisher, ResumableRollouts, NamedEvaluations, FiniteTrainer):
    """Makes a TRL trainer with online rollouts train a chain of agents together. Put it before the trainer's class.

    In every rollout the pioneer answers the prompts; each observer answers them with all earlier answers as a
    reference; all are paid for the team (see `observer_reward` of [`CoryArguments`]); each is updated by the trainer's
    own loss, with its own rewards, baseline, KL and gradient norm. Every `role_exchange_steps` roles move on.

    How it works: the next agent's whole rollout runs inside `_calculate_rewards` of the one before, and the sum of
    rewards is returned, so TRL's code for advantages, KL and log-probabilities is used as it is. The trainer's buffer
    holds the batches of all agents side by side. A step has one backward pass an agent, while its adapter is active:
    one joint loss gives wrong gradients where activations are computed anew. Gradients are clipped agent by agent.

    Override points: `roll_out` (one agent's batch), `agent_loss` (one agent's loss), `agent_parameters`.

    Source: CORY (arXiv 2410.06101); one adapter an agent on one base, chains of more than two, and resetting nothing at
    an exchange are ours.

    Args:
        model (`str` or `PreTrainedModel`): the base, without adapters.
        reward_funcs: see `hf_rlae.rewards.calls.resolve.resolve_rewards`. Besides the dataset's columns functions get
            `role`, `agent` and `previous_completions` (those that the agent was shown); `prompts` are the original
            ones for all agents.
        args ([`CoryArguments`], *optional*): how.
        train_dataset (`datasets.Dataset`): with a column `prompt`, strings or messages.
        eval_dataset (`datasets.Dataset` or `dict` of these, *optional*): the same.
        processing_class (`PreTrainedTokenizerBase`, *optional*): the model's tokenizer.
        peft_config (`peft.LoraConfig`): of the adapters.
        optimizers (`tuple`, *optional*): not supported.
        kwargs: whatever else the TRL trainer takes.

    Raises:
        ConfigError: something that does not fit; the message names the argument or field.
        RewardError: a reward function that returns something else than one number or `None` a text, or takes too long.
        NonFiniteError: NaN or infinity in gradients or parameters, with the agent's name.
    """

    _tag_names: ClassVar[list[str]] = ["cory", "hf_rlae"]
    _name = "CORY"
    _paper: ClassVar[dict[str, str]] = {
        "title": "Coevolving with the Other You: Fine-Tuning LLM with Sequential Cooperative Multi-Agent "
        "Reinforcement Learning",
        "id": "2410.06101",
    }
    config_class: ClassVar[type] = CoryConfig
    per_agent_metrics: ClassVar[tuple[str, ...]] = ("kl", "entropy")
    """Metrics of the trainer that are also logged as `agent/<name>/<metric>`."""

    args: Any
    model: Any
    reward_weights: torch.Tensor

    def __init__(
        self,
        model: Any,
        reward_funcs: Any,
        args: CoryArguments | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        peft_config: Any = None,
        optimizers: tuple[Any, Any] = (None, None),
        **kwargs: Any,
    ) -> None:
        if model is None:
            raise ConfigError("model is missing; give the base model's Hub id or folder, or the model itself")
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = self.config_class(f"{name.rstrip('/').split('/')[-1] or 'model'}-{self._name}")
        settings: Any = args
        check_arguments(settings, model, peft_config, optimizers, kwargs)
        check_datasets(settings, train_dataset, eval_dataset)
        if processing_class is not None:
            check_tokenizer(processing_class, train_dataset, eval_dataset)
        self._chain: Chain | None = None
        self._alone: str | None = None
        self._all_metrics: dict[str, list[float]] | None = None
        self._has_told_of_cuts = False
        super().__init__(
            model,
            resolve_rewards(reward_funcs, settings.reward_timeout),
            args=settings,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            peft_config=config_for_texts(peft_config),
            **kwargs,
        )
        check_tokenizer(self.processing_class, train_dataset, eval_dataset)
        self.agents = AgentAdapters(self.model, settings.names)
        warn_of_half_precision(self.model)
        if settings.disable_dropout:
            disable_dropout_in_model(self.model)
        self.set_base_model_id()
        self.observer_prompts = ObserverPrompts(
            self.processing_class,
            lambda prompts: [len(ids) for ids in self._tokenize_prompts(prompts)[0]],  # type: ignore[attr-defined]
            settings.observer_template,
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

    def _widen_logs(self) -> None:
        """TRL's tables hold the texts of one rollout: here these are those of all agents."""
        rows = self.args.generation_batch_size * len(self.agents.names)
        self._logs: dict[str, Any] = {
            **{name: deque(maxlen=rows) for name in ("images", "prompt", "completion", "advantages")},
            **{name: defaultdict(lambda: deque(maxlen=rows)) for name in ("rewards", "extra")},
        }

    # -- agents and roles ---------------------------------------------------------------------------------

    def order(self, step: int | None = None) -> list[str]:
        """The agents in the order in which they write; the first is the pioneer.

        Args:
            step (`int`, *optional*): an optimizer step; the present one if not given.
        """
        if self._alone is not None:
            return [self._alone]
        step = self.state.global_step if step is None else step
        return order_at(step, self.agents.names, self.exchange_steps)

    @property
    def exchange_steps(self) -> int:  # type: ignore[override]  # read only
        """Optimizer steps between exchanges of roles, 0 for never: a rollout's steps at least, as roles hold for it."""
        rollout = self.args.steps_per_generation * self.args.num_iterations // self.args.gradient_accumulation_steps
        return self.args.role_exchange_steps and max(self.args.role_exchange_steps, rollout)

    def roles(self, step: int | None = None) -> dict[str, str]:
        """The role of every agent, at an optimizer step or now."""
        order = self.order(step)
        return dict(zip(order, role_names(len(order)), strict=True))

    @contextlib.contextmanager
    def alone(self, agent: str) -> Iterator[None]:
        """Inside, one agent is all there is: its adapter is active, and evaluations run it as pioneer, without others.

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
        """What trains of an agent. An override point for what is trained besides adapters."""
        return self.agents.parameters(agent)

    def finite_groups(self) -> Mapping[str, Iterable[nn.Parameter]]:
        """See `FiniteTrainer`: one group an agent."""
        return {name: self.agent_parameters(name) for name in self.agents.names}

    def create_optimizer(self, model: Any = None) -> Any:
        """The optimizer that `args` asks for, with parameter groups of its own for every agent."""
        is_new = self.optimizer is None
        self.agents.activate(self.agents.names[0])
        optimizer: Any = super().create_optimizer(model)
        if not is_new:
            return optimizer
        options = {
            id(parameter): {key: value for key, value in group.items() if key != "params"}
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        optimizer.param_groups.clear()
        for name, rate in zip(self.agents.names, self.args.learning_rates, strict=True):
            parameters = self.agent_parameters(name)
            decays = sorted({options[id(parameter)]["weight_decay"] for parameter in parameters}, reverse=True)
            for decay in decays:
                own = [parameter for parameter in parameters if options[id(parameter)]["weight_decay"] == decay]
                optimizer.add_param_group({**options[id(own[0])], "params": own, "lr": rate, "agent": name})
        optimizer.defaults["lr"] = max(self.args.learning_rates)  # what schedules take an absolute last rate to be of
        return optimizer

    # -- rollouts -----------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """One rollout of all agents, with keys such as `agent-1/prompt_ids`."""
        chain = self._chain = Chain(self.order(), inputs)
        try:
            self._take_turn(inputs)
        finally:
            self._chain = None
        return chain.merged(self.agents.names)

    def _take_turn(self, inputs: list[dict[str, Any]]) -> None:
        """The rollout of the agent whose turn it is, and those of all after it."""
        chain = self._present_chain
        position, agent = chain.position, chain.agent
        shown = chain.previous() if self.args.knowledge_transfer else [[] for _ in inputs]
        columns = {"role": chain.role, "agent": agent}
        rows = [{**row, **columns, "previous_completions": texts} for row, texts in zip(inputs, shown, strict=True)]
        with self.agents.acting(agent), self._metrics_of(agent):
            batch = self.roll_out(agent, rows)
        learned = total_rewards(chain.learned[agent], self.reward_weights)
        start = self.accelerator.process_index * len(rows)
        chain.batches[agent] = {**batch, "rewards": learned[start : start + len(rows)]}
        chain.position = position

    @property
    def _present_chain(self) -> Chain:
        if self._chain is None:
            raise RuntimeError("there is no rollout of a chain of agents at the moment")
        return self._chain

    def roll_out(self, agent: str, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """One agent's rollout, while its adapter is active. An override point.

        Args:
            agent (`str`): its name.
            inputs (`list[dict]`): B examples; `prompt` is what this agent is asked.

        Returns:
            `dict`: TRL's batch: `prompt_ids`, `prompt_mask`, `completion_ids`, `completion_mask`, `advantages`, ...
        """
        return super()._generate_and_score_completions(inputs)  # type: ignore[misc,no-any-return]

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], completion_ids_list: list[Any]
    ) -> torch.Tensor:
        """What the agent learns from, of all processes: its own rewards and others', once the others have written."""
        if self._chain is None:
            return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)  # type: ignore[misc,no-any-return]
        chain = self._chain
        position, agent, role = chain.position, chain.agent, chain.role
        own = super()._calculate_rewards(inputs, chain.prompts, completions, completion_ids_list)  # type: ignore[misc]
        chain.rewards.append(own)
        chain.completions.append(completions)
        mean = total_rewards(own, self.reward_weights).nanmean().item()
        metrics = self._metrics[self._mode]
        metrics[f"role/{role}/reward"].append(mean)
        metrics[f"agent/{agent}/reward"].append(mean)
        self.columns.add({"role": [role] * len(completions), "agent": [agent] * len(completions)})
        if position + 1 < len(chain.agents):
            with self.columns.put_aside(), draws_apart(position + 1):
                chain.position = position + 1
                self._take_turn(self._observed(chain))
                chain.position = position
        self.columns.complete(len(completions))
        chain.learned[agent] = learned_rewards(
            chain.rewards, position, self.args.observer_reward, self.args.knowledge_transfer
        )
        return chain.learned[agent]

    def _observed(self, chain: Chain) -> list[dict[str, Any]]:
        """The examples with the prompts of the observer whose turn it is."""
        if not self.args.knowledge_transfer:
            return chain.rows
        answers = [[answer_text(completion) for completion in texts] for texts in chain.previous()]
        prompts, is_cut = self.observer_prompts(chain.prompts, answers)
        cut = self.accelerator.gather(torch.tensor([float(flag) for flag in is_cut], device=self.accelerator.device))
        self._metrics[self._mode][f"role/{chain.role}/cut_ratio"].append(cut.mean().item())
        if any(is_cut) and not self._has_told_of_cuts:
            self._has_told_of_cuts = True  # each rollout's share is a metric
            logger.warning(
                "%d of %d prompts of the %s pass %d tokens: the answers in them were cut from the left",
                sum(is_cut), len(is_cut), chain.role, self.observer_prompts.max_length,
            )  # fmt: skip
        return [{**row, "prompt": prompt} for row, prompt in zip(chain.rows, prompts, strict=True)]

    # -- updates ------------------------------------------------------------------------------------------

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """See `Trainer.training_step`; afterwards the same agent is active as before."""
        with self.agents.acting(self.agents.active):
            return super().training_step(*args, **kwargs)

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """See `Trainer.prediction_step`; afterwards the same agent is active as before."""
        with self.agents.acting(self.agents.active):
            return super().prediction_step(*args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The sum of the agents' losses; in training, all but the last one's gradients are there already.

        Each backward pass runs while its agent's adapter is active, so that activations that are computed anew in it
        are the agent's. The last agent's pass is the caller's, and its adapter stays active for it.
        """
        if return_outputs:
            raise ConfigError(f"{type(self).__name__}.compute_loss gives no outputs; leave out return_outputs")
        batches = {name: batch_of(name, inputs) for name in self.agents.names}
        present = [name for name in self.agents.names if batches[name]]
        if self.accelerator.num_processes == 1:  # else all have to take the agents in one order
            # the longest texts first, while no other agent's gradients take memory
            present.sort(key=lambda name: -batches[name]["prompt_ids"].shape[1])
        total = torch.zeros((), device=self.accelerator.device)
        for name in present:
            self.agents.activate(name)
            with self._metrics_of(name):
                loss = self.agent_loss(name, model, batches[name], num_items_in_batch)
            if name == present[-1]:
                return loss + total
            if torch.is_grad_enabled():
                self._backward(loss)
            total = total + loss.detach()
        raise ConfigError(f"the batch holds no rollout of {', '.join(self.agents.names)}; it has {', '.join(inputs)}")

    def agent_loss(
        self, agent: str, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None
    ) -> torch.Tensor:
        """One agent's loss for a micro-batch of its own texts, while its adapter is active. An override point.

        Args:
            agent (`str`): its name.
            model (`nn.Module`): the model, perhaps wrapped.
            inputs (`dict`): one micro-batch of what `roll_out` gave, and `rewards` (shape `(B,)`, NaN for what could
                not be judged), the weighted sums that the agent learns from.
            num_items_in_batch: as in transformers.
        """
        return super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)  # type: ignore[return-value]

    def _backward(self, loss: torch.Tensor) -> None:
        """What `Trainer.training_step` does with the loss that it is given."""
        if not self.loss_is_scaled_for_ga:
            loss = loss / self.current_gradient_accumulation_steps
        self.accelerator.backward(loss)

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        """Clips the gradients agent by agent: a large one of one agent must not shorten the other's step."""
        self.accelerator.unscale_gradients()
        norms = []
        for name in self.agents.names:
            norm = nn.utils.clip_grad_norm_(self.agent_parameters(name), self.args.max_grad_norm)
            self._metrics["train"][f"agent/{name}/grad_norm"].append(norm.item())
            norms.append(norm)
        return torch.linalg.vector_norm(torch.stack(norms))

    # -- metrics ------------------------------------------------------------------------------------------

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    @contextlib.contextmanager
    def _metrics_of(self, agent: str) -> Iterator[None]:
        """What is recorded inside is the agent's, too."""
        mode = self._mode
        outer, outermost = self._metrics[mode], self._all_metrics
        inner: dict[str, list[float]] = defaultdict(list)
        # one agent's rollout runs inside another's: what it adds goes past the other to those of all
        self._all_metrics = together = outer if outermost is None else outermost
        self._metrics[mode] = inner
        try:
            yield
        finally:
            self._metrics[mode], self._all_metrics = outer, outermost
        for name in self.per_agent_metrics:
            if name in inner:
                together[f"agent/{agent}/{name}"].extend(inner[name])
        merge_metrics(together, inner)


class CoryTrainer(CoryMixin, GRPOTrainer):
    """[`CoryMixin`] on TRL's `GRPOTrainer`: every agent's advantages are relative to the other texts of its prompt.

    See [`CoryMixin`] for arguments and errors, and [`CoryConfig`] for settings.
    """


class CoryRLOOTrainer(CoryMixin, RLOOTrainer):
    """[`CoryMixin`] on TRL's `RLOOTrainer`: every agent's baseline is the mean of the other texts of its prompt.

    See [`CoryMixin`] for arguments and errors, and [`CoryRLOOConfig`] for settings.
    """

    config_class = CoryRLOOConfig
