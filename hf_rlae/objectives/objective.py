"""The interface of objectives: what they need from actor and rollout, and the loss that they compute."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

import torch

from hf_rlae.errors import ObjectiveError
from hf_rlae.objectives.checks import Axes, check_axes
from hf_rlae.objectives.reductions import Number
from hf_rlae.objectives.settings import ObjectiveSettings
from hf_rlae.registry import Registry

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class ObjectiveOutput:
    """A loss and its metrics.

    Attributes:
        loss (0-d `torch.Tensor`): to be minimised.
        metrics (`dict[str, torch.Tensor]`): detached 0-d tensors of this batch alone, independent of `num_items`:

            * `policy_loss`: the clipped surrogate;
            * `clip_ratio`: share of actions whose ratio is clipped, so that they have no gradient;
            * `kl`: estimate of KL(rollout's policy || current policy) in nats, for early stopping;
            * `ratio_max`: the largest ratio;
            * `entropy`: mean over spans, in nats;
            * with a critic: `value_loss`, `value_clip_ratio` and `explained_variance` (of the rollout's values; NaN
              where returns do not vary);
            * with `mixture`: `forced_tokens`, the number of tokens that are left out because no member proposed them.
    """

    loss: torch.Tensor
    metrics: dict[str, torch.Tensor]


class Objective(ABC):
    """Computes a loss from a rollout and the policy's current output for its spans.

    An objective is stateless. Batches have B rows (completions), padded to S spans and T tokens, and minibatches are
    selections of rows. Masks may be boolean or numeric; an entry counts if it is not 0. Entries that do not count may
    hold anything, even NaN. A NaN in an entry that counts makes the loss NaN.

    To add an objective, subclass this class in a file of its own, set the attributes below, and register it with
    `@objectives.register("name")`.

    Attributes:
        registered_name (`str`): its name in the registry.
        actors (`tuple[str, ...]`): values of `PolicyConfig.actor` that it can train: `"joint"`, `"per_member"`.
        explores (`bool`): whether rollouts draw actions (and keep their log-densities), or act with the deterministic
            weights that inference uses.
        default_advantages (`str`): `"gae"`, which needs a critic, or `"group_relative"`, which needs none. Each
            objective accepts either; the critic is trained if the batch has `returns`.
        defaults (`ObjectiveSettings`): its own default settings.
        batch_axes (`Mapping[str, tuple[str, ...]]`): the tensors that a rollout has to keep, with their allowed axes.
        output_axes (`Mapping[str, tuple[str, ...]]`): the tensors that the policy has to return, with their allowed
            axes.
        optional (`frozenset[str]`): names of tensors that may be missing.
    """

    registered_name: ClassVar[str]
    actors: ClassVar[tuple[str, ...]]
    explores: ClassVar[bool]
    default_advantages: ClassVar[str]
    defaults: ClassVar[ObjectiveSettings] = ObjectiveSettings()
    batch_axes: ClassVar[Axes]
    output_axes: ClassVar[Axes]
    optional: ClassVar[frozenset[str]] = frozenset({"returns", "old_values", "values"})

    def loss(
        self,
        batch: Tensors,
        output: Tensors,
        settings: ObjectiveSettings | None = None,
        num_items: Mapping[str, Number] | None = None,
    ) -> ObjectiveOutput:
        """The loss of a batch.

        Args:
            batch (`Mapping[str, torch.Tensor]`): the tensors of the rollout; see the class.
            output (`Mapping[str, torch.Tensor]`): the policy's current output for the same spans; see the class and
                [`scatter_spans`].
            settings (`ObjectiveSettings`, *optional*): the objective's own `defaults` if `None`.
            num_items (`Mapping[str, float | torch.Tensor]`, *optional*): the divisors of sums, under the names that
                the method `num_items` returns; by default the batch's own numbers. If a batch is split (gradient
                accumulation, several processes), add these numbers over the parts and pass the sums with each part:
                the losses and gradients of the parts then add up to those of the whole batch. (DDP takes the *mean*
                over processes: multiply by their number.)

        Raises:
            ObjectiveError: a tensor is missing or has another shape; the message names it.
        """
        self.check(batch, output)
        return self.checked_loss(batch, output, settings or self.defaults, self.items(batch, num_items))

    @abstractmethod
    def checked_loss(
        self, batch: Tensors, output: Tensors, settings: ObjectiveSettings, num_items: Mapping[str, Number]
    ) -> ObjectiveOutput:
        """What `loss` returns, after the tensors have been checked. Each objective implements it.

        Args:
            batch, output: as for `loss`.
            settings (`ObjectiveSettings`): never `None`.
            num_items (`Mapping[str, float | torch.Tensor]`): the divisors of sums, complete.
        """

    @abstractmethod
    def num_items(self, batch: Tensors) -> dict[str, torch.Tensor]:
        """The numbers of `"sequences"`, `"spans"` and, for some objectives, `"tokens"` that count: 0-d tensors."""

    def items(self, batch: Tensors, num_items: Mapping[str, Number] | None) -> Mapping[str, Number]:
        """The divisors of sums: the given numbers, or those of the batch.

        Raises:
            ObjectiveError: one of the given numbers is missing.
        """
        own = self.num_items(batch)
        missing = own.keys() - (own if num_items is None else num_items).keys()
        if missing:
            raise ObjectiveError(
                f"num_items has no {', '.join(sorted(missing))}; give the sums over all parts of what "
                f"{type(self).__name__}.num_items returns: {', '.join(own)}"
            )
        return own if num_items is None else num_items

    def check(self, batch: Tensors, output: Tensors) -> None:
        """Raises for tensors that are missing or do not fit together.

        Raises:
            ObjectiveError: see `loss`.
        """
        check_axes({**batch, **output}, {**self.batch_axes, **self.output_axes}, self.optional)
        missing = [name for name in ("old_values", "values") if {**batch, **output}.get(name) is None]
        if batch.get("returns") is not None and missing:
            raise ObjectiveError(
                f"{missing[0]} is missing, but the batch has returns, which the critic learns from; give the critic's "
                "estimates in the rollout (old_values) and now (values), or leave out the returns"
            )


objectives: Registry[type[Objective]] = Registry("objective")
"""The classes of objectives, by name."""

if TYPE_CHECKING:
    ObjectiveName: TypeAlias = Literal["ppo", "mappo", "mixture"]
else:
    # parsers of arguments and configurations also accept names that a user registers
    ObjectiveName = str
