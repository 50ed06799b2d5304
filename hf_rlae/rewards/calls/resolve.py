"""Reward functions of a trainer: from what the user gave to a list of callables, and from these to numbers."""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel

from hf_rlae.errors import ConfigError, nearest
from hf_rlae.rewards import RewardError, get_reward, list_rewards, reward_model
from hf_rlae.rewards.calls.guarded import GuardedAsyncReward, GuardedReward

logger = logging.getLogger(__name__)

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_OWN_COLUMNS = ("prompt", "completion", "completion_ids")


def resolve_rewards(
    reward_funcs: Any,
    timeout_s: float | None = 60.0,
    *,
    wrap_models: bool = False,
    reward_processing_classes: Any = None,
) -> list[Any]:
    """What a trainer's `reward_funcs` may be, as a list in which every function is a `GuardedReward`.

    Source: ours; what may be given is TRL's `reward_funcs`, and names besides.

    Args:
        reward_funcs: one of these, or a list of them: a registered name (`"gsm8k"`), a dotted path
            (`"my_package.my_rewards.brevity"`), a callable, a model of `AutoModelForSequenceClassification`, or its Hub
            id or folder.
        timeout_s (`float`, *optional*, defaults to 60): see `GuardedReward`; models have no limit.
        wrap_models (`bool`, defaults to `False`): whether models become functions, by `hf_rlae.rewards.reward_model`.
            TRL's trainers call models themselves: there they stay as they are.
        reward_processing_classes (*optional*): a tokenizer, or a list with one or `None` for each reward; for models
            that are wrapped.

    Returns:
        `list`: a new one, in the order given.

    Raises:
        ConfigError: names what can be none of these.

    Example:

    >>> resolve_rewards(["gsm8k", lambda completions, **columns: [len(c) for c in completions]])
    [<GuardedReward gsm8k_reward>, <GuardedReward <lambda>>]
    """
    given = list(reward_funcs) if isinstance(reward_funcs, list | tuple) else [reward_funcs]
    if not given or reward_funcs is None:
        raise ConfigError(
            f"reward_funcs is {reward_funcs!r}; give a function, a name ({', '.join(list_rewards())}), ..."
        )
    tokenizers = reward_processing_classes
    if not isinstance(tokenizers, list | tuple):
        tokenizers = [tokenizers] * len(given)
    if len(tokenizers) != len(given):
        raise ConfigError(f"reward_processing_classes has {len(tokenizers)} entries for {len(given)} rewards")
    resolved = []
    for entry, tokenizer in zip(given, tokenizers, strict=True):
        found = _by_name(entry) if isinstance(entry, str | os.PathLike) else entry
        if isinstance(found, str | nn.Module):
            resolved.append(_of_model(found, tokenizer) if wrap_models else found)
        else:
            resolved.append(found if isinstance(found, GuardedReward) else GuardedReward(found, timeout_s=timeout_s))
    return resolved


def call_rewards(
    funcs: Sequence[GuardedReward],
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]] | None = None,
    columns: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """The rewards of one batch by every function; async ones run while the others do.

    Source: ours; the call is TRL's (`GRPOTrainer._calculate_rewards`).

    Args:
        funcs (`Sequence[GuardedReward]`): F functions, as `resolve_rewards(..., wrap_models=True)` gives them.
        prompts (`Sequence`): N prompts.
        completions (`Sequence`): N completions.
        completion_ids (`Sequence[Sequence[int]]`, *optional*): N lists of token ids.
        columns (`Mapping`, *optional*): columns of the data set with N values each, and whatever else is to be passed,
            such as TRL's `trainer_state`, `log_extra` and `log_metric`.
        device (`torch.device`, defaults to the CPU): of the result.

    Returns:
        `torch.FloatTensor` of shape `(N, F)`: NaN where a function could not judge.

    Raises:
        RewardError: see `GuardedReward`.

    Example:

    >>> def brevity(completions, limit, **columns):
    ...     return [float(len(text) <= most) for text, most in zip(completions, limit)]
    >>> call_rewards(resolve_rewards(brevity), ["a", "b"], ["xx", "yyy"], columns={"limit": [2, 2]})
    tensor([[1.],
            [0.]])
    """
    arguments = {**(columns or {}), "prompts": prompts, "completions": completions, "completion_ids": completion_ids}
    running = {at: func.start(**arguments) for at, func in enumerate(funcs) if isinstance(func, GuardedAsyncReward)}
    rewards = torch.full((len(completions), len(funcs)), torch.nan)
    try:
        # the others first, while these run
        for at in sorted(range(len(funcs)), key=lambda at: at in running):
            func = funcs[at]
            values = func.finish(running[at]) if isinstance(func, GuardedAsyncReward) else func(**arguments)
            rewards[:, at] = torch.tensor([torch.nan if value is None else value for value in values])
    finally:
        for begun in running.values():
            begun.future.cancel()
    unjudged = rewards.isnan().all(1).nonzero()[:, 0].tolist()
    if unjudged:
        logger.warning(
            "no reward could judge %d of %d samples, the first: %.80r -> %.80r",
            len(unjudged),
            len(completions),
            prompts[unjudged[0]],
            completions[unjudged[0]],
        )
    return rewards.to(device)


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


def _by_name(given: str | os.PathLike[str]) -> Any:
    name = os.fspath(given)
    if name in list_rewards():
        return get_reward(name)
    if os.path.isdir(name) or _HUB_ID.fullmatch(name):
        return name
    if _DOTTED.fullmatch(name):
        return _imported(name)
    raise ConfigError(
        f"reward_funcs: {name!r} is no registered reward ({nearest(name, list_rewards())}), no dotted path of a "
        f"function (package.module.function), no folder and no Hub id of a model (owner/name)"
    )


def _imported(path: str) -> Any:
    module_name, _, attribute = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"reward_funcs: the module of {path!r} cannot be imported: {error}") from error
    if not hasattr(module, attribute):
        public = [name for name in dir(module) if not name.startswith("_")]
        raise ConfigError(f"reward_funcs: {module_name} has no {attribute!r}: {nearest(attribute, public)}")
    return getattr(module, attribute)


def _of_model(model: str | nn.Module, tokenizer: Any) -> GuardedReward:
    if isinstance(model, str):
        return GuardedReward(reward_model(model, tokenizer, name=os.path.basename(model.rstrip("/"))), timeout_s=None)
    if not isinstance(model, PreTrainedModel):
        raise ConfigError(f"reward_funcs: expected a model of transformers, got {type(model).__name__}")
    source = model.config.name_or_path or ""
    if tokenizer is None:
        if not source:
            raise ConfigError(
                "reward_funcs: the loaded reward model does not say where its tokenizer is; "
                "give it as reward_processing_classes"
            )
        tokenizer = AutoTokenizer.from_pretrained(source)
    name = os.path.basename(source.rstrip("/")) or "reward_model"
    return GuardedReward(reward_model(model, tokenizer, name=name), timeout_s=None)
