"""The reward functions of one training, with their names and weights."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from hf_rlae.errors import ConfigError
from hf_rlae.rewards import RewardError
from hf_rlae.trainer.reward_calls import call_rewards, resolve_rewards

_OWN_COLUMNS = ("prompt", "completion", "completion_ids")


class RewardCalls:
    """Calls reward functions as TRL does.

    Args:
        reward_funcs: see `resolve_rewards`.
        weights (`Sequence[float]`, *optional*): one a function; `None` = all 1.
        timeout_s (`float`): seconds that one may take; 0 for no limit.
        processing_classes (*optional*): tokenizers of reward models.

    Raises:
        ConfigError: functions that are none, or another number of weights.
    """

    def __init__(
        self, reward_funcs: Any, weights: Sequence[float] | None, timeout_s: float, processing_classes: Any = None
    ) -> None:
        self.funcs = resolve_rewards(
            reward_funcs, timeout_s or None, wrap_models=True, reward_processing_classes=processing_classes
        )
        names = [func.__name__ for func in self.funcs]
        self.names = [name if names.count(name) == 1 else f"{name}_{index}" for index, name in enumerate(names)]
        if weights is not None and len(weights) != len(self.funcs):
            raise ConfigError(
                f"reward_weights has {len(weights)} entries for {len(self.funcs)} reward functions "
                f"({', '.join(self.names)}); give one a function"
            )
        self.weights = torch.ones(len(self.funcs)) if weights is None else torch.tensor(list(map(float, weights)))

    @property
    def columns(self) -> set[str]:
        """The columns that the functions name among their arguments."""
        called = [func.reward for func in self.funcs]
        return {name for func in called for name in inspect.signature(func).parameters}

    def __call__(
        self,
        inputs: Sequence[dict[str, Any]],
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        **extras: Any,
    ) -> torch.Tensor:
        """Rewards of shape `(N, F)`, NaN where a function could not judge.

        Args:
            inputs (`Sequence[dict]`): N examples; their other columns are passed on.
            prompts, completions, completion_ids: one a row.
            extras: `trainer_state`, `log_extra` and `log_metric`, as in TRL.
        """
        columns = {name: [example.get(name) for example in inputs] for name in inputs[0] if name not in _OWN_COLUMNS}
        return call_rewards(self.funcs, prompts, completions, completion_ids, {**columns, **extras})

    def weighted(self, rewards_per_func: torch.Tensor) -> torch.Tensor:
        """Weighted sums `(N,)` of what was judged; NaN where nothing was."""
        total = (rewards_per_func * self.weights).nansum(1)
        return total.masked_fill(rewards_per_func.isnan().all(1), torch.nan)

    def check(self, rewards: Any, count: int) -> torch.Tensor:
        """Rewards in fp32 on the CPU.

        Raises:
            RewardError: something else than a tensor of shape `(count, F)`.
        """
        expected = (count, len(self.funcs))
        if not isinstance(rewards, torch.Tensor) or tuple(rewards.shape) != expected:
            given = tuple(rewards.shape) if isinstance(rewards, torch.Tensor) else type(rewards).__name__
            raise RewardError(
                f"_calculate_rewards returned {given}; expected a tensor of shape (texts, reward functions) = "
                f"{expected}, NaN where a function could not judge"
            )
        return rewards.detach().to(dtype=torch.float32, device="cpu")
