"""The interface of policies: a callable, and its optional attributes."""

from __future__ import annotations

import inspect
from typing import Any, Protocol, runtime_checkable

import torch

from hf_rlae.errors import PolicyError
from hf_rlae.policies.state import PolicyOutput, PolicyState


@runtime_checkable
class Policy(Protocol):
    """Any callable that takes a `PolicyState` and returns one weight per row and member.

    A function is enough. A policy may have these attributes, all of them optional:

    * `observes_members` (`bool`, `True` if absent) and `pooled_tokens` (`int`, 1 if absent): which hidden states of
      the members it reads, see [`MemberObserver`];
    * `lookahead_tokens` (`int`, 0 if absent): what it gives to `PolicyState.look_ahead`, for counts of member-tokens;
    * `num_members` (`int`): how many members it gives weights to, see [`SizedPolicy`];
    * `registered_name` (`str`) and `settings()`: how it is saved with an ensemble, see [`SavedPolicy`].

    Example:

    >>> def first_member_only(state):
    ...     weights = torch.zeros(state.batch_size, state.num_members)
    ...     weights[:, 0] = 1.0
    ...     return weights
    >>> isinstance(first_member_only, Policy)
    True
    """

    def __call__(self, state: PolicyState, /) -> torch.Tensor | PolicyOutput:
        """Weights of shape `(B, M)` whose rows sum to 1, or a `PolicyOutput` with such weights."""


@runtime_checkable
class MemberObserver(Protocol):
    """A policy that declares which hidden states of the members it reads.

    Attributes:
        observes_members (`bool`): `False` if it reads no member, so that members without weight do not run.
        pooled_tokens (`int`): 1 for the newest hidden state alone; n > 1 adds the mean over the newest n tokens.
    """

    observes_members: bool
    pooled_tokens: int


@runtime_checkable
class SizedPolicy(Protocol):
    """A policy for a fixed number of members.

    Attributes:
        num_members (`int`): M.
    """

    num_members: int


@runtime_checkable
class SavedPolicy(Protocol):
    """A policy that is saved by name and settings in an ensemble's `config.json`, without files of its own.

    Attributes:
        registered_name (`str`): its name in `hf_rlae.policies.policies`.
    """

    registered_name: str

    def settings(self) -> dict[str, Any]:
        """The arguments that make the same policy again, as JSON values."""


_OTHER_INPUTS = ("input_ids", "pixel_values", "input_values", "input_features")


def check_is_policy(policy: Any) -> None:
    """Raises if an object cannot be called with a `PolicyState` alone, before any member runs.

    Args:
        policy: what a user gives as policy.

    Raises:
        PolicyError: a class, a model of transformers that reads ids, or a callable with other arguments.

    Example:

    >>> check_is_policy([0.5, 0.5])
    Traceback (most recent call last):
    ...
    hf_rlae.errors.PolicyError: policy must be callable with a PolicyState, got list; for \
fixed weights, give StaticPolicy([...])
    """
    name = type(policy).__name__
    if isinstance(policy, type):
        raise PolicyError(f"policy: {policy.__name__} is a class; give an object of it, such as {policy.__name__}(...)")
    if not callable(policy):
        hint = "; for fixed weights, give StaticPolicy([...])" if isinstance(policy, list | tuple) else ""
        raise PolicyError(f"policy must be callable with a PolicyState, got {name}{hint}")
    call = policy.forward if isinstance(policy, torch.nn.Module) else policy
    try:
        signature = inspect.signature(call)
    except (TypeError, ValueError):  # some built-in callables have none
        return
    first = next(iter(signature.parameters), "")
    if isinstance(policy, torch.nn.Module) and first in _OTHER_INPUTS:
        raise PolicyError(
            f"policy: {name} reads {first}, not a PolicyState, and returns no weights; build a policy from an encoder "
            "with `PolicyModel.from_encoder(encoder, members)`, or wrap it in a function of the state"
        )
    try:
        signature.bind(None)
    except TypeError as error:
        raise PolicyError(
            f"policy: {name} cannot be called with a PolicyState as its only argument ({error}); write "
            "`def policy(state): ...`"
        ) from error


def observed_tokens(policy: Any) -> int:
    """The number of newest tokens of which a policy reads the members' hidden states.

    Args:
        policy (`Policy`): see [`MemberObserver`]; absent attributes count as `True` and 1.

    Returns:
        `int`: 0 if it reads no member; 1 for the newest token; n > 1 for the newest token and the mean over the newest
        n (each in the member's own tokens).

    Raises:
        PolicyError: `pooled_tokens` is not an integer of at least 1.
    """
    pooled = getattr(policy, "pooled_tokens", 1)
    if isinstance(pooled, bool) or not isinstance(pooled, int) or pooled < 1:
        raise PolicyError(
            f"pooled_tokens={pooled!r} of {type(policy).__name__}: it must be an integer of at least 1 (1 for the "
            "newest hidden state alone)"
        )
    return pooled if getattr(policy, "observes_members", True) else 0


def members_of(policy: Any) -> int | None:
    """The number of members that a policy was made for; `None` if it does not declare one.

    Args:
        policy (`Policy`): see [`SizedPolicy`]; the config of a `PreTrainedModel` can have `num_members`, too.
    """
    if isinstance(policy, SizedPolicy):
        return policy.num_members
    return getattr(getattr(policy, "config", None), "num_members", None)
