"""Completions of one agent that the others also learn from."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hf_rlae.objectives.shared_rollouts import shared_advantages, shared_rollout_loss
from hf_rlae.rewards.weighted_sums import total_rewards
from hf_rlae.trainers.cory.chain import Chain
from hf_rlae.trainers.cory.logs import AgentMetrics

SHARED = "shared:"
"""The beginning of the keys of a batch for the completions of other agents."""


class SharedRollouts(AgentMetrics):
    """A mixin for TRL trainers: every agent also learns from better completions that the others wrote.

    Each row of an agent's batch also has the completion that each other agent wrote in this row, to be learned after
    the agent's own prompt. Agents whose role has no share of the reward neither give nor take completions: what they
    write is no answer.

    Source: HACPO (arXiv 2603.02604), see [`shared_rollout_loss`].
    """

    accelerator: Any
    reward_weights: torch.Tensor

    @torch.no_grad()
    def _share_rollouts(self, chain: Chain, group_size: int) -> None:
        """Adds the completions of the other agents to each agent's batch."""
        answering = [place for place, role in enumerate(chain.roles) if role.share]
        totals = [total_rewards(own, self.reward_weights) for own in chain.rewards]
        sources = {place: self._source_of(chain, place) for place in answering}
        for learner in answering:
            for place in answering:
                if place == learner:
                    continue
                gains = shared_advantages(totals[learner], totals[place], group_size)
                rows = len(chain.rows)
                start = self.accelerator.process_index * rows
                given = {**sources[place], "advantages": gains[start : start + rows]}
                batch = chain.batches[chain.agents[learner]]
                batch.update({f"{SHARED}{chain.agents[place]}:{name}": value for name, value in given.items()})

    def _source_of(self, chain: Chain, place: int) -> dict[str, torch.Tensor]:
        """An agent's completions, and the mean log-probability of their tokens when they were written."""
        agent = chain.agents[place]
        batch = chain.batches[agent]
        logps = batch.get("old_per_token_logps")
        if logps is None:
            with self.agents.acting(agent):
                logps = self._logps_after(self.model, batch["prompt_ids"], batch["prompt_mask"], batch)
        mask = batch["completion_mask"]
        mean = (logps * mask).sum(1) / mask.sum(1).clamp(min=1)
        return {"completion_ids": batch["completion_ids"], "completion_mask": mask, "source_logps": mean}

    def _logps_after(
        self, model: Any, prompt_ids: torch.Tensor, prompt_mask: torch.Tensor, written: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Log-probabilities `(B, T)` of completions after prompts, under the active agent."""
        ids = torch.cat([prompt_ids, written["completion_ids"]], dim=1)
        mask = torch.cat([prompt_mask, written["completion_mask"]], dim=1)
        scorer: Any = self
        size = self.args.per_device_train_batch_size
        found = scorer._get_per_token_logps_and_entropies(model, ids, mask, written["completion_ids"].shape[1], size)
        return found[0]  # type: ignore[no-any-return]

    def _shared_loss(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        """The loss of other agents' completions in a micro-batch; a mean over all of its rows."""
        keys = [key for key in inputs if key.startswith(SHARED)]
        total = torch.zeros((), device=self.accelerator.device)
        for source in dict.fromkeys(key.split(":")[1] for key in keys):
            written = {key.split(":")[2]: inputs[key] for key in keys if key.split(":")[1] == source}
            counts = written["advantages"] != 0
            rows = counts.nonzero()[:, 0]
            if not len(rows):
                if self.accelerator.num_processes == 1:
                    self._log_shared({}, counts)
                    continue
                rows = torch.zeros(1, dtype=torch.long, device=counts.device)  # all processes need a forward pass
            written = {name: value[rows] for name, value in written.items()}
            logps = self._logps_after(model, inputs["prompt_ids"][rows], inputs["prompt_mask"][rows], written)
            loss, metrics = shared_rollout_loss(
                logps,
                written["source_logps"],
                written["completion_mask"],
                written["advantages"],
                self.args.shared_rollout_delta,
                self.args.shared_rollout_alpha,
            )
            total = total + loss / len(counts)
            self._log_shared(metrics, counts)
        trainer: Any = self
        return total / trainer.current_gradient_accumulation_steps if trainer.loss_is_scaled_for_ga else total

    def _log_shared(self, metrics: dict[str, torch.Tensor], counts: torch.Tensor) -> None:
        """Logs means over the rows of all processes that count, and their share of all rows."""
        used, metrics = counts.sum(), dict(metrics)
        sums = torch.stack([used, torch.tensor(len(counts), device=used.device), *(used * v for v in metrics.values())])
        total, rows, *others = self.accelerator.reduce(sums, reduction="sum").tolist()
        self._metrics[self._mode]["shared/share"].append(total / rows)
        for name, value in zip(metrics, others, strict=True):
            if total:
                self._metrics[self._mode][name].append(value / total)


def without_shared(inputs: dict[str, Any]) -> dict[str, Any]:
    """A micro-batch without the completions of other agents."""
    return {key: value for key, value in inputs.items() if not key.startswith(SHARED)}
