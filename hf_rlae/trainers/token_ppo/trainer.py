"""`TokenPPOTrainer`: PPO over tokens on TRL's `GRPOTrainer`, with a value head and a KL reward."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer

from hf_rlae.errors import CheckpointError, ConfigError, present
from hf_rlae.objectives import gae, whiten
from hf_rlae.objectives.multi_objective import normalized_sum
from hf_rlae.objectives.reductions import explained_variance, masked_mean
from hf_rlae.objectives.surrogate import density_ratio, kl_estimate
from hf_rlae.objectives.token_ppo import adapted_kl_coef, token_kls, token_rewards, token_value_loss
from hf_rlae.rewards.weighted_sums import total_rewards
from hf_rlae.trainers.adapter_checks import check_adapter
from hf_rlae.trainers.context_check import ContextCheck
from hf_rlae.trainers.durable.finite import FiniteTrainer, check_finite
from hf_rlae.trainers.rewards import RewardFunc
from hf_rlae.trainers.token_ppo.card import AdapterPublisher
from hf_rlae.trainers.token_ppo.configuration_token_ppo import TokenPPOArguments, TokenPPOConfig
from hf_rlae.trainers.token_ppo.full_kl import full_kls_of
from hf_rlae.trainers.trl_generation import TRLGeneration

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

STATE = "token_ppo.pt"
"""The file of a checkpoint with value heads and KL coefficients."""

_TEXT_ONLY = {
    "prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages", "num_items_in_batch",
    "old_per_token_logps",
}  # fmt: skip


@dataclass
class _Rollout:
    """Values that TRL computes during a rollout: rewards of all processes, and value estimates of this one."""

    rewards_per_func: torch.Tensor | None = None
    old_values: torch.Tensor | None = None


class TokenPPOTrainer(AdapterPublisher, FiniteTrainer, ContextCheck, TRLGeneration, GRPOTrainer):
    """PPO with a value head on the last hidden state of the adapted model; generation, rewards and surrogate are TRL's.

    Each token has the reward `-kl_coef * KL_t`, where `KL_t` is `log pi - log pi_base` of the token or, with
    `kl_penalty="full"`, the KL over the vocabulary. The last token also has the reward of the completion. GAE over
    tokens gives advantages of shape `(B, T)` for TRL's clipped surrogate. The value head and the adapter learn the
    returns with half of the clipped squared error. The group of a prompt is not a baseline: completions of a group with
    equal rewards still have advantages.

    The value head is linear and predicts the mean reward of the first rollout until it has learned. It reads the state
    before each token, so values need no extra forward pass. (The error of a head that starts at 0 is larger than the
    differences between rewards; the first advantages then mainly depend on a token's distance from the end.) It is in
    `model.value_heads`, beside the adapter: the same optimizer trains it, checkpoints have it (`token_ppo.pt`, with the
    KL coefficient), and saved and published adapters do not, since generation does not need it.

    Source: CORY (arXiv 2410.06101), whose agents learn by PPO; Ziegler et al. (arXiv 1909.08593) for the KL in the
    reward and its adaptive coefficient; PPO (arXiv 1707.06347).

    Logged besides TRL's metrics: `kl` (to the base model, in nats per token, as in TRL), `text_kl` (in nats per
    completion, the quantity that `kl_target` refers to), `kl_coef`, `value/loss`, `value/clip_ratio`, `value/mean`,
    `value/explained_variance`.

    Args:
        model, reward_funcs, args, train_dataset: as in `GRPOTrainer`, with all others in its order; `args` is a
            `TokenPPOConfig`. Datasets may be streamed (`datasets.IterableDataset`); their prompts are then not checked
            before training.
        peft_config (`peft.LoraConfig`): of the trained adapter; the base model is the model without it.

    Raises:
        ConfigError: no usable `peft_config`, or `args` that are not a `TokenPPOConfig`.
        InputError: a prompt that fills the model's context.
        RewardError: a weighted sum of rewards above `hf_rlae.rewards.contract.REWARD_LIMIT`.
        NonFiniteError: NaN or infinity in log-probabilities or values of a rollout, in losses, gradients or parameters.
    """

    _tag_names = ["trl", "ppo", "hf_rlae"]  # noqa: RUF012
    _name = "PPO"
    _paper = {  # noqa: RUF012
        "title": "Proximal Policy Optimization Algorithms",
        "id": "1707.06347",
    }
    # narrower than the declarations of transformers and TRL
    args: Any
    model: Any
    _logs: Any

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: RewardFunc | Sequence[RewardFunc] | None = None,
        args: TokenPPOArguments | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase | None] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LRScheduler | None] = (None, None),
        quantization_config: Any = None,
        peft_config: LoraConfig | None = None,
        **kwargs: Any,
    ) -> None:
        args = TokenPPOConfig("token-ppo") if args is None else args
        if not isinstance(args, TokenPPOArguments):
            raise ConfigError(f"args is a {type(args).__name__}; give a TokenPPOConfig(output_dir)")
        check_adapter(peft_config)
        if reward_funcs is None:
            raise ConfigError("reward_funcs is missing; give a reward function in TRL's form, or a list of these")
        settings: Any = args
        funcs: Any = reward_funcs
        super().__init__(
            model,
            funcs,
            args=settings,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,  # type: ignore[arg-type]  # TRL's is not optional for type checkers
            reward_processing_classes=reward_processing_classes,  # type: ignore[arg-type]
            callbacks=callbacks,
            optimizers=optimizers,  # type: ignore[arg-type]
            quantization_config=quantization_config,
            peft_config=peft_config,
            **kwargs,
        )
        self._rollouts: list[_Rollout] = []
        self._present: dict[str, torch.Tensor] = {}
        self.kl_coefs: dict[str, float] = {}
        self.peft_model.value_heads = nn.ModuleDict()
        self.add_value_heads([self.agent_name])

    @property
    def peft_model(self) -> Any:
        """The model with its adapters, unwrapped from DDP."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def agent_name(self) -> str:
        """The agent whose value head and KL coefficient are used: the active adapter."""
        return str(self.peft_model.active_adapter)

    def value_head(self, name: str) -> nn.Linear:
        """The value head of an agent."""
        return self.peft_model.value_heads[_key(name)]

    def add_value_heads(self, names: Iterable[str]) -> None:
        """Adds a value head of zeros and a KL coefficient for each agent. Call it before the optimizer exists.

        Args:
            names (iterable of `str`): of agents without a value head.
        """
        base = self.peft_model.get_base_model()
        hidden_size = getattr(base.get_output_embeddings(), "in_features", base.config.get_text_config().hidden_size)
        for name in names:
            head = nn.utils.skip_init(nn.Linear, hidden_size, 1, device=self.peft_model.device, dtype=torch.float32)
            for parameter in head.parameters():
                nn.init.zeros_(parameter)
            self.peft_model.value_heads[_key(name)] = head
            self.kl_coefs[name] = float(self.args.kl_coef)

    # -- rollouts -----------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._rollouts.append(_Rollout())
        try:
            output = super()._generate_and_score_completions(inputs)
        finally:
            rollout = self._rollouts.pop()
        return self._with_token_advantages(output, rollout)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        rewards = super()._calculate_rewards(*args, **kwargs)
        self._keep_rewards(rewards)
        return rewards

    def _keep_rewards(self, rewards_per_func: torch.Tensor) -> None:
        """Keeps the rewards of the current rollout, before TRL compares groups."""
        self._rollouts[-1].rewards_per_func = rewards_per_func

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        """As in TRL; also keeps the log-probabilities and the active adapter's values."""
        values: list[torch.Tensor] = []
        logits_to_keep = args[2] if len(args) > 2 else kwargs["logits_to_keep"]
        with self._reading_values(values, logits_to_keep):
            found = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        self._present = {"per_token_logps": found[0], "values": torch.cat(values)}
        if self._rollouts:
            self._rollouts[-1].old_values = self._present["values"]
        return found

    @contextlib.contextmanager
    def _reading_values(self, values: list[torch.Tensor], logits_to_keep: int) -> Iterator[None]:
        """Collects the values `(B, T)` of each forward pass: at each completion token, of the sequence before it."""
        head, model = self.value_head(self.agent_name), self.peft_model

        def read(module: nn.Module, args: Any, output: Any) -> None:
            states = output.last_hidden_state[:, -logits_to_keep - 1 : -1]
            with torch.autocast(states.device.type, enabled=False):
                values.append(head(states.float()).squeeze(-1))

        def tie(module: nn.Module, args: Any, output: Any) -> None:
            # DDP waits only for gradients of parameters on which the output of `forward` depends
            if torch.is_grad_enabled():
                output.log_probs = output.log_probs + 0.0 * values[-1].sum()

        inner = model.get_base_model().base_model
        with inner.register_forward_hook(read), model.register_forward_hook(tie):
            yield

    @torch.no_grad()
    def _score_tokens(self, output: dict[str, Any], rollout: _Rollout) -> tuple[torch.Tensor, ...]:
        """Log-probabilities and values of the agent, and log-probabilities of the base model, each `(B, T)`."""
        mode = "train" if self.model.training else "eval"
        ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
        mask = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
        rows = self.args.per_device_train_batch_size if mode == "train" else self.args.per_device_eval_batch_size
        asked = (self.model, ids, mask, output["completion_ids"].shape[1], rows)
        if "old_per_token_logps" in output:
            logps, values = output["old_per_token_logps"], rollout.old_values
        else:
            logps, _, _ = self._get_per_token_logps_and_entropies(*asked)
            values = self._present["values"]
        with self.peft_model.disable_adapter():
            ref_logps, _, _ = super()._get_per_token_logps_and_entropies(*asked)
        self._present = {}
        return logps, values, ref_logps  # type: ignore[return-value]

    def _with_token_advantages(self, output: dict[str, Any], rollout: _Rollout) -> dict[str, Any]:
        """Replaces TRL's advantages by those of tokens, and adds the inputs of the value loss."""
        unknown = sorted(output.keys() - _TEXT_ONLY)
        if unknown:
            raise ConfigError(
                f"the rollout has {', '.join(unknown)}: {type(self).__name__} supports neither images nor tools nor "
                "other samplers; train on text alone"
            )
        logps, values, ref_logps = self._score_tokens(output, rollout)
        all_rewards, all_judged = self._weighted_rewards(rollout)
        own = slice(self.accelerator.process_index * len(logps), (self.accelerator.process_index + 1) * len(logps))
        rewards, is_judged = all_rewards[own], all_judged[own]
        tokens = output["completion_mask"] != 0
        where = f"of {self.agent_name} in the rollout of step {self.state.global_step}"
        values = values + self._start_value_head(all_rewards[all_judged])
        for name, tensor in (("log-probabilities", logps), ("base log-probabilities", ref_logps), ("values", values)):
            check_finite(torch.where(tokens, tensor, 0), f"{name} {where}")
        mask = tokens & is_judged[:, None]
        kls = self._kls_of(output, logps, ref_logps)
        rewards_per_token = token_rewards(rewards, kls, mask, self.kl_coefs[self.agent_name])
        advantages, returns = gae(rewards_per_token, torch.where(mask, values, 0), mask, self.args.gamma, self.args.lam)
        self._describe_rollout(kls, values, returns, mask)
        if self.args.whiten_advantages:
            advantages = self._whitened(advantages, mask)
        self._relabel_advantages(advantages, mask)
        return {
            **output,
            "advantages": advantages,
            "returns": returns,
            "old_values": values,
            "value_mask": mask,
            "base_per_token_logps": ref_logps,
        }

    def _kls_of(self, output: dict[str, Any], logps: torch.Tensor, ref_logps: torch.Tensor) -> torch.Tensor:
        """The KL in the reward of each token, `(B, T)`."""
        if self.args.kl_penalty == "sampled":
            return token_kls(logps, ref_logps, output["completion_mask"])
        ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
        mask = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
        kls = full_kls_of(
            self.peft_model, ids, mask, output["completion_mask"], self.temperature, self.accelerator.autocast
        )
        check_finite(
            kls, f"the KL to the base model of {self.agent_name} in the rollout of step {self.state.global_step}"
        )
        return kls

    def _start_value_head(self, rewards: torch.Tensor) -> float:
        """Sets the bias of a head of zeros to the mean of all processes' rewards and returns it; else returns 0."""
        head = self.value_head(self.agent_name)
        if not self.model.training or any(bool(parameter.any()) for parameter in head.parameters()):
            return 0.0
        mean = rewards.mean() if len(rewards) else rewards.new_zeros(())
        with torch.no_grad():
            head.bias.fill_(mean)
        return float(mean)

    def _weighted_rewards(self, rollout: _Rollout) -> tuple[torch.Tensor, torch.Tensor]:
        """Weighted sums of all processes' rewards, 0 where no function could judge, and where any function could."""
        given = present(rollout.rewards_per_func, "the rewards of a rollout")
        is_judged = ~given.isnan().all(dim=1)
        is_plain = self.args.multi_objective_aggregation == "sum_then_normalize"
        totals = (total_rewards if is_plain else normalized_sum)(given, self.reward_weights)
        return totals.masked_fill(~is_judged, 0.0), is_judged

    def _gather_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows `(B, T)` of all processes, padded with 0 to the largest T."""
        return self.accelerator.gather(self.accelerator.pad_across_processes(rows, dim=1))

    def _whitened(self, advantages: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Standardised over the tokens of all processes."""
        rows, length = advantages.shape
        first = self.accelerator.process_index * rows
        white = whiten(self._gather_rows(advantages), self._gather_rows(mask))
        return white[first : first + rows, :length].contiguous()

    def _describe_rollout(
        self, kls: torch.Tensor, values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor
    ) -> None:
        """Logs the KL and the critic's metrics of a rollout, and adapts the KL coefficient."""
        name = self.agent_name
        text_kls = self.accelerator.gather(kls.sum(1))[self.accelerator.gather(mask.any(1))]  # only judged ones
        values, returns, mask = self._gather_rows(values), self._gather_rows(returns), self._gather_rows(mask)
        if len(text_kls):
            self._log_ppo("text_kl", float(text_kls.mean()))
        self._log_ppo("kl_coef", self.kl_coefs[name])
        self._log_ppo("value/mean", float(masked_mean(values, mask)))
        self._log_ppo("value/explained_variance", float(explained_variance(values, returns, mask)))
        if self.model.training and self.args.kl_target is not None and len(text_kls):
            self.kl_coefs[name] = adapted_kl_coef(
                self.kl_coefs[name],
                float(text_kls.mean()),
                self.args.kl_target,
                self.args.kl_horizon,
                len(text_kls),
            )

    def _relabel_advantages(self, advantages: torch.Tensor, mask: torch.Tensor) -> None:
        """Shows each completion's mean advantage in the table of completions, instead of TRL's group advantages."""
        means = torch.where(mask, advantages, 0).sum(1) / mask.sum(1).clamp(min=1)
        logged, own = self._logs["advantages"], self.accelerator.gather(means).tolist()
        for back, mean in enumerate(reversed(own[-len(logged) :]), start=1):
            logged[-back] = mean

    def _log_ppo(self, name: str, value: float) -> None:
        """Adds a value to a metric of the active agent."""
        self._metrics["train" if self.model.training else "eval"][name].append(value)

    # -- updates ------------------------------------------------------------------------------------------

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """TRL's clipped surrogate, plus `value_coef` times the value loss."""
        loss = super()._compute_loss(model, inputs)
        present, self._present = self._present, {}
        value_loss, metrics = token_value_loss(
            present["values"],
            inputs["old_values"],
            inputs["returns"],
            inputs["value_mask"],
            self.args.value_epsilon,
            self._tokens_of_update(inputs),
        )
        tokens = inputs["completion_mask"] != 0
        kl = kl_estimate(density_ratio(inputs["base_per_token_logps"], present["per_token_logps"].detach(), tokens))
        self._log_ppo("kl", self._mean_over_processes(kl, tokens))
        self._log_ppo("value/loss", self._mean_of(metrics["value_loss"], inputs["value_mask"]))
        self._log_ppo("value/clip_ratio", self._mean_of(metrics["value_clip_ratio"], inputs["value_mask"]))
        return loss + self.args.value_coef * value_loss

    def _tokens_of_update(self, inputs: dict[str, Any]) -> torch.Tensor:
        """A process's share of the tokens of one update, as TRL counts them for `loss_type="dapo"`."""
        tokens = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes
        if self.model.training:
            tokens = tokens * self.current_gradient_accumulation_steps / self.args.steps_per_generation
        return tokens

    def _mean_over_processes(self, values: torch.Tensor, mask: torch.Tensor) -> float:
        totals = torch.stack([torch.where(mask, values, 0).sum(), mask.sum().to(values.dtype)])
        total, count = self.accelerator.reduce(totals, reduction="sum")
        return float(total / count.clamp(min=1))

    def _mean_of(self, mean: torch.Tensor, mask: torch.Tensor) -> float:
        """The mean over all processes' tokens, from this process's mean over its own."""
        return self._mean_over_processes(mean.expand(mask.shape), mask)

    # -- checkpoints --------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save and not self.args.save_only_model:
            folder = Path(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
            heads = {name: tensor.cpu() for name, tensor in self.peft_model.value_heads.state_dict().items()}
            torch.save({"value_heads": heads, "kl_coefs": dict(self.kl_coefs)}, folder / STATE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = os.path.join(checkpoint, STATE)
        if not os.path.exists(path):
            raise CheckpointError(f"{checkpoint} has no {STATE}: it was saved by another trainer, without value heads")
        state = torch.load(path, map_location="cpu", weights_only=True)
        saved = set(state["kl_coefs"])
        if saved != set(self.kl_coefs):
            raise CheckpointError(
                f"{path} has value heads of {', '.join(sorted(saved))}, this run has {', '.join(sorted(self.kl_coefs))}"
            )
        self.peft_model.value_heads.load_state_dict(state["value_heads"])
        self.kl_coefs.update(state["kl_coefs"])


def _key(name: str) -> str:
    """A key that is neither a method of `ModuleDict` nor, for PEFT and TRL, the name of an adapter."""
    return f"head_{name}"
