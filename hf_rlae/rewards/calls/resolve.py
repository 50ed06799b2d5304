"""Resolves a trainer's `reward_funcs` to callables, and calls them."""

from __future__ import annotations

import importlib
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hf_rlae.errors import ConfigError, nearest
from hf_rlae.hub_ids import is_repo_id
from hf_rlae.rewards import RewardError, get_reward, list_rewards, reward_model
from hf_rlae.rewards.calls.guarded import GuardedAsyncReward, GuardedReward
from hf_rlae.rewards.contract import columns_of

logger = logging.getLogger(__name__)

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_OWN_COLUMNS = ("prompt", "completion", "completion_ids")


def resolve_rewards(
    reward_funcs: Any,
    timeout_s: float | None = 60.0,
    *,
    wrap_models: bool = False,
    reward_processing_classes: Any = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[Any]:
    """A trainer's `reward_funcs` as a list in which every function is a `GuardedReward`.

    Source: ours; accepts what TRL's `reward_funcs` accepts, and the names of registered rewards.

    Args:
        reward_funcs: one of these, or a list of them: a registered name (`"gsm8k"`), a dotted path
            (`"my_package.my_rewards.brevity"`), a callable, a model of `AutoModelForSequenceClassification`, or its Hub
            id or folder.
        timeout_s (`float`, *optional*, defaults to 60): see `GuardedReward`; models have no limit.
        wrap_models (`bool`, defaults to `False`): whether models become functions, by `hf_rlae.rewards.reward_model`.
            TRL's trainers call models themselves, so for them models stay as they are.
        reward_processing_classes (*optional*): a tokenizer, or a list with a tokenizer or `None` per reward; used for
            models that are wrapped.
        chat_template_kwargs (`dict`, *optional*): further arguments of the chat templates of models that are wrapped.

    Returns:
        `list`: a new list in the same order.

    Raises:
        ConfigError: an entry is none of these; the message names it.

    Example:

    >>> resolve_rewards(["gsm8k", lambda completions, **columns: [len(c) for c in completions]])
    [<GuardedReward gsm8k_reward>, <GuardedReward <lambda>>]
    """
    given = list(reward_funcs) if isinstance(reward_funcs, list | tuple) else [reward_funcs]
    if not given or reward_funcs is None:
        raise ConfigError(
            f"reward_funcs is {reward_funcs!r}; give one of these, or a list of them: a function, the dotted path of "
            "a function (package.module.function), a sequence-classification model, its folder or Hub id (owner/name), "
            f"or the name of a registered reward ({', '.join(list_rewards())})"
        )
    tokenizers = reward_processing_classes
    if not isinstance(tokenizers, list | tuple):
        tokenizers = [tokenizers] * len(given)
    if len(tokenizers) != len(given):
        raise ConfigError(
            f"reward_processing_classes has {len(tokenizers)} entries for {len(given)} rewards; give one tokenizer or "
            "None per reward"
        )
    resolved = []
    for entry, tokenizer in zip(given, tokenizers, strict=True):
        found = _by_name(os.fspath(entry)) if isinstance(entry, str | os.PathLike) else entry
        if isinstance(found, str | nn.Module):
            resolved.append(_of_model(found, tokenizer, chat_template_kwargs) if wrap_models else found)
        else:
            resolved.append(found if isinstance(found, GuardedReward) else GuardedReward(found, timeout_s=timeout_s))
    return resolved


def names_of(funcs: Sequence[Any]) -> list[str]:
    """The names under which TRL logs rewards.

    Args:
        funcs (`Sequence`): from `resolve_rewards`; models may be names, folders or loaded.

    Example:

    >>> names_of(resolve_rewards(["gsm8k"]) + ["owner/judge"])
    ['gsm8k_reward', 'judge']
    """
    sources = [getattr(func, "config", func) for func in funcs]
    given = [source if isinstance(source, str) else getattr(source, "name_or_path", None) for source in sources]
    return [
        func.__name__ if isinstance(func, GuardedReward) else str(source).rstrip("/").split("/")[-1]
        for func, source in zip(funcs, given, strict=True)
    ]


def call_rewards(
    funcs: Sequence[GuardedReward],
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]] | None = None,
    columns: Mapping[str, Any] | None = None,
) -> torch.Tensor:
    """The rewards of one batch by every function. Async functions run while the others do.

    Source: ours; the call is TRL's (`GRPOTrainer._calculate_rewards`).

    Args:
        funcs (`Sequence[GuardedReward]`): F functions, from `resolve_rewards(..., wrap_models=True)`.
        prompts (`Sequence`): N prompts.
        completions (`Sequence`): N completions.
        completion_ids (`Sequence[Sequence[int]]`, *optional*): N lists of token ids.
        columns (`Mapping`, *optional*): columns of the dataset with N values each, and other arguments to pass on, such
            as TRL's `trainer_state`, `log_extra` and `log_metric`.

    Returns:
        `torch.FloatTensor` of shape `(N, F)`, on the CPU: NaN where a function could not judge the completion.

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
    start_s = time.monotonic()
    running = {at: func.start(arguments) for at, func in enumerate(funcs) if isinstance(func, GuardedAsyncReward)}
    rewards = torch.full((len(completions), len(funcs)), torch.nan)
    try:
        # sync functions first, while the async ones run
        for at in sorted(range(len(funcs)), key=lambda at: at in running):
            if at in running:
                values = funcs[at].finish(running[at], arguments, start_s)
            else:
                values = funcs[at](**arguments)
            rewards[:, at] = torch.tensor([torch.nan if value is None else value for value in values])
    finally:
        for future in running.values():
            future.cancel()
    unjudged = rewards.isnan().all(1).nonzero()[:, 0].tolist()
    if unjudged:
        first = unjudged[0]
        logger.warning(
            "no reward could judge %d of %d samples, the first: %.80r -> %.80r",
            len(unjudged),
            len(completions),
            prompts[first],
            completions[first],
        )
    return rewards


class RewardCalls:
    """Calls reward functions as TRL does.

    Args:
        reward_funcs: see `resolve_rewards`.
        weights (`Sequence[float]`, *optional*): one per function; all 1 by default.
        timeout_s (`float`): seconds per call of one function; 0 for no limit.
        processing_classes (*optional*): tokenizers of reward models.
        chat_template_kwargs (`dict`, *optional*): further arguments of their chat templates.

    Attributes:
        funcs (`list[GuardedReward]`): F functions.
        names (`list[str]`): their names; functions of the same name are numbered.
        weights (`torch.Tensor` of shape `(F,)`): their weights.

    Raises:
        ConfigError: an entry is not a reward, or the number of weights differs from that of the functions.
    """

    def __init__(
        self,
        reward_funcs: Any,
        weights: Sequence[float] | None,
        timeout_s: float,
        processing_classes: Any = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.funcs = resolve_rewards(
            reward_funcs,
            timeout_s or None,
            wrap_models=True,
            reward_processing_classes=processing_classes,
            chat_template_kwargs=chat_template_kwargs,
        )
        names = [func.__name__ for func in self.funcs]
        self.names = [name if names.count(name) == 1 else f"{name}_{index}" for index, name in enumerate(names)]
        if weights is not None and len(weights) != len(self.funcs):
            raise ConfigError(
                f"reward_weights has {len(weights)} entries for {len(self.funcs)} reward functions "
                f"({', '.join(self.names)}); give one weight per function"
            )
        self.weights = torch.ones(len(self.funcs)) if weights is None else torch.tensor(list(map(float, weights)))

    @property
    def columns(self) -> set[str]:
        """The columns of the dataset that the functions are known to read."""
        return set().union(*(columns_of(func.reward) for func in self.funcs))

    @property
    def required_columns(self) -> dict[str, str]:
        """The columns of the dataset that a function declares as required, each with the function's name."""
        return {column: func.__name__ for func in self.funcs for column in getattr(func.reward, "required_columns", ())}

    def __call__(
        self,
        inputs: Sequence[dict[str, Any]],
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        **extras: Any,
    ) -> torch.Tensor:
        """Rewards of shape `(N, F)`, NaN where a function could not judge the completion.

        Args:
            inputs (`Sequence[dict]`): N examples; their other columns are passed on.
            prompts, completions, completion_ids: one per row.
            extras: `trainer_state`, `log_extra` and `log_metric`, as in TRL.
        """
        columns = {name: [example.get(name) for example in inputs] for name in inputs[0] if name not in _OWN_COLUMNS}
        return call_rewards(self.funcs, prompts, completions, completion_ids, {**columns, **extras})

    def check(self, rewards: Any, count: int) -> torch.Tensor:
        """Rewards in fp32 on the CPU.

        Raises:
            RewardError: not a tensor of shape `(count, F)`.
        """
        expected = (count, len(self.funcs))
        if not isinstance(rewards, torch.Tensor) or tuple(rewards.shape) != expected:
            given = tuple(rewards.shape) if isinstance(rewards, torch.Tensor) else type(rewards).__name__
            raise RewardError(
                f"_calculate_rewards returned {given}; expected a tensor of shape (completions, reward functions) = "
                f"{expected}, NaN where a function could not judge"
            )
        return rewards.detach().to(dtype=torch.float32, device="cpu")


def _by_name(name: str) -> Any:
    if name in list_rewards():
        return get_reward(name)
    if os.path.isdir(name) or ("/" in name and is_repo_id(name)):
        return name
    if _DOTTED.fullmatch(name):
        return _imported(name)
    raise ConfigError(
        f"reward_funcs: {name!r} is not a registered reward ({nearest(name, list_rewards())}), nor the dotted path of "
        "a function (package.module.function), nor the folder or Hub id of a model (owner/name)"
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


def _of_model(model: Any, tokenizer: Any, chat_template_kwargs: Mapping[str, Any] | None) -> GuardedReward:
    source = model if isinstance(model, str) else getattr(getattr(model, "config", None), "name_or_path", "")
    name = os.path.basename(source.rstrip("/")) or "reward_model"
    reward = reward_model(model, tokenizer, name=name, chat_template_kwargs=chat_template_kwargs)
    return GuardedReward(reward, timeout_s=None)
