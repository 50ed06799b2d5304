"""`TokenPPOTrainer`: PPO over tokens on TRL's `GRPOTrainer`, with a value head and the KL to the base in the reward."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer

from hf_rlae.errors import CheckpointError, ConfigError
from hf_rlae.objectives import gae, whiten
from hf_rlae.objectives.reductions import explained_variance, masked_mean
from hf_rlae.objectives.surrogate import density_ratio, kl_estimate
from hf_rlae.objectives.token_ppo import adapted_kl_coef, token_kls, token_rewards, token_value_loss
from hf_rlae.rewards.weighted_sums import total_rewards
from hf_rlae.trainers.cory.checks import check_adapter
from hf_rlae.trainers.durable.finite import check_finite
from hf_rlae.trainers.token_ppo.configuration_token_ppo import TokenPPOArguments, TokenPPOConfig

STATE = "token_ppo.pt"
"""The file of a checkpoint that holds value heads and KL coefficients."""

_TEXT_ONLY = {
    "prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages", "num_items_in_batch",
    "old_per_token_logps",
}  # fmt: skip


@dataclass
class _Rollout:
    """What is seen on the way while TRL generates and scores: of all processes, and of this one."""

    rewards_per_func: torch.Tensor | None = None
    old_values: torch.Tensor | None = None


class TokenPPOTrainer(GRPOTrainer):
    """PPO with one value head on the adapter's own last hidden state; generation, rewards and surrogate are TRL's.

    Each token is rewarded with `-kl_coef * (log pi - log pi_base)` and the text's own reward is paid at its last token;
    GAE over tokens gives advantages of shape `(B, T)`, which TRL's clipped surrogate takes; the value head and the
    adapter learn the returns by half of the clipped squared error. The group of a prompt is no baseline: texts of a
    group that all get the same reward still teach something.

    The value head is linear, says the mean reward of the first rollout until it has learned, and reads the state before
    each token, so values cost no forward pass of their own. (A head that begins at 0 is off by more than rewards
    differ; the first advantages then say little but how far a token is from the end of its text.) It stands beside the
    adapter in `model.value_heads`: it is trained by the same optimizer, kept in checkpoints (`token_ppo.pt`, with the
    KL coefficient), and left out of saved and published adapters, which need none to write texts.

    Source: CORY (arXiv 2410.06101), whose agents learn by PPO; Ziegler et al. (arXiv 1909.08593) for the KL in the
    reward and its adaptive coefficient; PPO (arXiv 1707.06347).

    Logged beside TRL's metrics: `kl` (nats a token, to the base, as in TRL), `text_kl` (nats a text, what `kl_target`
    is about), `kl_coef`, `value/loss`, `value/clip_ratio`, `value/mean`, `value/explained_variance`.

    Args:
        model, reward_funcs, args, train_dataset, and others: as in `GRPOTrainer`; `args` is a `TokenPPOConfig`.
        peft_config (`peft.PeftConfig`): required; the base model is the one without it.

    Raises:
        ConfigError: no `peft_config`, or arguments that are no `TokenPPOConfig`.
        NonFiniteError: NaN or infinity in rewards, log-probabilities or values of a rollout.
    """

    _tag_names = ["trl", "ppo", "hf_rlae"]  # noqa: RUF012
    _name = "PPO"
    _paper = {  # noqa: RUF012
        "title": "Proximal Policy Optimization Algorithms",
        "id": "1707.06347",
    }
    # what transformers and TRL declare more widely than what is there
    args: Any
    model: Any
    _logs: Any

    def __init__(self, model: Any, reward_funcs: Any, args: Any = None, **kwargs: Any) -> None:
        args = TokenPPOConfig("token-ppo") if args is None else args
        if not issubclass(type(args), TokenPPOArguments):
            raise ConfigError(
                f"args is a {type(args).__name__}; PPO needs its own arguments, such as TokenPPOConfig(output_dir)"
            )
        if kwargs.get("peft_config") is None:
            raise ConfigError(
                "peft_config is missing: the adapter is what learns and the base model is what the KL is measured to; "
                "give peft_config=LoraConfig(r=16, target_modules='all-linear')"
            )
        check_adapter(kwargs["peft_config"])
        super().__init__(model, reward_funcs, args=args, **kwargs)
        self._rollouts: list[_Rollout] = []
        self._present: dict[str, torch.Tensor] = {}
        self.kl_coefs: dict[str, float] = {}
        self.peft_model.value_heads = nn.ModuleDict()
        self.add_value_heads([self.agent_name])

    @property
    def peft_model(self) -> Any:
        """The model with its adapters, without what several processes wrap it in."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def agent_name(self) -> str:
        """Whose head and KL coefficient are used: the active adapter's."""
        return str(self.peft_model.active_adapter)

    def value_head(self, name: str) -> nn.Linear:
        """What turns an agent's last hidden states into values.

        Args:
            name (`str`): of the agent.
        """
        return self.peft_model.value_heads[_key(name)]

    def add_value_heads(self, names: Iterable[str]) -> None:
        """Gives agents a value head of zeros, and the first KL coefficient; before the optimizer is made.

        Args:
            names (iterable of `str`): of agents that have none.
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
        """Remembers the rewards of the rollout that is being scored, before TRL compares groups."""
        self._rollouts[-1].rewards_per_func = rewards_per_func

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        """TRL's, which also puts the log-probabilities and the active adapter's values aside."""
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
        """Adds the values `(B, T)` of each forward pass: at each completion token, of the text before it."""
        head, model = self.value_head(self.agent_name), self.peft_model

        def read(module: nn.Module, args: Any, output: Any) -> None:
            states = output.last_hidden_state[:, -logits_to_keep - 1 : -1]
            with torch.autocast(states.device.type, enabled=False):
                values.append(head(states.float()).squeeze(-1))

        def tie(module: nn.Module, args: Any, output: Any) -> None:
            # DDP looks for parameters that take part in what `forward` returns, and waits for no others
            if torch.is_grad_enabled():
                output.log_probs = output.log_probs + 0.0 * values[-1].sum()

        hooks = [model.get_base_model().base_model.register_forward_hook(read), model.register_forward_hook(tie)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

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
        """Puts advantages of tokens in the place of TRL's, with what the value loss needs beside them."""
        unknown = sorted(output.keys() - _TEXT_ONLY)
        if unknown:
            raise ConfigError(
                f"the rollout has {', '.join(unknown)}: images, tools and other samplers are not supported by "
                f"{type(self).__name__}; train on texts"
            )
        logps, values, ref_logps = self._score_tokens(output, rollout)
        rewards, is_judged = self._own_rewards(rollout, len(logps))
        tokens = output["completion_mask"] != 0
        where = f"of {self.agent_name} in the rollout of step {self.state.global_step}"
        check_finite(rewards, f"rewards {where}")
        values = values + self._begin_value_head(rollout)
        for name, tensor in (("log-probabilities", logps), ("base log-probabilities", ref_logps), ("values", values)):
            check_finite(torch.where(tokens, tensor, 0), f"{name} {where}")
        mask = tokens & is_judged[:, None]
        kls = token_kls(logps, ref_logps, tokens)
        paid = token_rewards(rewards, kls, mask, self.kl_coefs[self.agent_name])
        advantages, returns = gae(paid, torch.where(mask, values, 0), mask, self.args.gamma, self.args.lam)
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

    def _begin_value_head(self, rollout: _Rollout) -> float:
        """What a head of zeros says from now on: the mean reward of all processes' texts; 0 for any other head."""
        head = self.value_head(self.agent_name)
        if not self.model.training or any(bool(parameter.any()) for parameter in head.parameters()):
            return 0.0
        rewards, is_judged = self._weighted_rewards(rollout)
        mean = rewards[is_judged].mean() if bool(is_judged.any()) else rewards.new_zeros(())
        with torch.no_grad():
            head.bias.fill_(mean)
        return float(mean)

    def _weighted_rewards(self, rollout: _Rollout) -> tuple[torch.Tensor, torch.Tensor]:
        """Weighted sums of all processes' rewards, and which texts could be judged by any reward function."""
        given = rollout.rewards_per_func
        assert given is not None
        totals = total_rewards(given, self.reward_weights)
        return totals.masked_fill(totals.isnan(), 0.0), ~totals.isnan()

    def _own_rewards(self, rollout: _Rollout, num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows of `_weighted_rewards` that are this process's."""
        rows = slice(self.accelerator.process_index * num_rows, (self.accelerator.process_index + 1) * num_rows)
        rewards, is_judged = self._weighted_rewards(rollout)
        return rewards[rows], is_judged[rows]

    def _gathered(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows `(B, T)` of all processes, filled up with 0 to the longest T."""
        return self.accelerator.gather(self.accelerator.pad_across_processes(rows, dim=1))

    def _whitened(self, advantages: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Standardised over the tokens of all processes."""
        rows, length = advantages.shape
        first = self.accelerator.process_index * rows
        white = whiten(self._gathered(advantages), self._gathered(mask))
        return white[first : first + rows, :length].contiguous()

    def _describe_rollout(
        self, kls: torch.Tensor, values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor
    ) -> None:
        """Logs what a rollout says about KL and critic, and adapts the KL coefficient to it."""
        name = self.agent_name
        text_kls = self.accelerator.gather(kls.sum(1))[self.accelerator.gather(mask.any(1))]  # others are left out
        values, returns, mask = self._gathered(values), self._gathered(returns), self._gathered(mask)
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
        """The table of completions shows each text's mean advantage, in the place of TRL's group advantages."""
        means = torch.where(mask, advantages, 0).sum(1) / mask.sum(1).clamp(min=1)
        logged, own = self._logs["advantages"], self.accelerator.gather(means).tolist()
        for back, mean in enumerate(reversed(own[-len(logged) :]), start=1):
            logged[-back] = mean

    def _log_ppo(self, name: str, value: float) -> None:
        """Adds to a metric of the agent that acts or learns."""
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
    """A name that no method of `ModuleDict` has, and in which PEFT and TRL find no adapter's."""
    return f"head_{name}"
