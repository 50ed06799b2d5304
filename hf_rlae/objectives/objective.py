"""What an objective is: what it asks of actor and rollout, and the loss that it makes of tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from hf_rlae.errors import ObjectiveError
from hf_rlae.objectives.checks import Axes, check_axes
from hf_rlae.objectives.reductions import Number
from hf_rlae.objectives.settings import ObjectiveSettings
from hf_rlae.registry import Registry

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class ObjectiveOutput:
    """A loss and what is worth logging.

    Attributes:
        loss (0-d `torch.Tensor`): to be minimised.
        metrics (`dict[str, torch.Tensor]`): detached 0-d tensors, of this batch alone whatever `num_items` is:

            * `policy_loss`: the clipped surrogate's share of the loss, before any coefficient;
            * `clip_ratio`: share of actions whose ratio is clipped, so that they have no gradient;
            * `kl`: estimate of KL(rollout's policy || present policy) in nats, for stopping early;
            * `ratio_max`: the largest ratio;
            * `entropy`: mean over spans, in nats;
            * with a critic: `value_loss`, `value_clip_ratio` and `explained_variance` (of the rollout's values; NaN
              where returns do not vary);
            * with `mixture`: `forced_tokens`, how many tokens were left out because no member proposed them.
    """

    loss: torch.Tensor
    metrics: dict[str, torch.Tensor]


class Objective(ABC):
    """Turns a rollout and the policy's present answer about its spans into a loss.

    An objective is stateless. Batches are tables of B rows (texts), padded to S spans and T tokens, so that minibatches
    are chosen by rows. Masks may be boolean or of any number, not 0 = counts; what a mask leaves out may hold anything,
    NaN too. NaN where it counts is not hidden: the loss is NaN.

    An objective in a file of its own subclasses this, sets what is below, and registers:
    `@objectives.register("name")`.

    Attributes:
        registered_name (`str`): its name in the registry.
        actors (`tuple[str, ...]`): values of `PolicyConfig.actor` that fit: `"joint"`, `"per_member"`.
        explores (`bool`): whether rollouts draw actions (and keep their log-densities), or act with the deterministic
            weights that inference uses.
        default_advantages (`str`): `"gae"`, which needs a critic, or `"group_relative"`, which needs none. Each
            objective takes either: the critic is trained wherever the batch has `returns`.
        defaults (`ObjectiveSettings`): its own default settings.
        batch_axes (`Mapping[str, tuple[str, ...]]`): what a rollout has to keep, with the axes allowed.
        output_axes (`Mapping[str, tuple[str, ...]]`): what the policy has to say, with the axes allowed.
        optional (`frozenset[str]`): names of both that may be missing.
    """

    registered_name: ClassVar[str]
    actors: ClassVar[tuple[str, ...]]
    explores: ClassVar[bool]
    default_advantages: ClassVar[str]
    defaults: ClassVar[ObjectiveSettings] = ObjectiveSettings()
    batch_axes: ClassVar[Axes]
    output_axes: ClassVar[Axes]
    optional: ClassVar[frozenset[str]] = frozenset({"returns", "old_values", "values"})

    @abstractmethod
    def loss(
        self,
        batch: Tensors,
        output: Tensors,
        settings: ObjectiveSettings | None = None,
        num_items: Mapping[str, Number] | None = None,
    ) -> ObjectiveOutput:
        """The loss of a batch.

        Args:
            batch (`Mapping[str, torch.Tensor]`): what the rollout kept; see the class.
            output (`Mapping[str, torch.Tensor]`): what the policy says now of the same spans; see the class, and
                [`scatter_spans`].
            settings (`ObjectiveSettings`, *optional*): the objective's own `defaults` if `None`.
            num_items (`Mapping[str, float | torch.Tensor]`, *optional*): what sums are divided by, under the names
                that the method `num_items` gives; the batch's own numbers if `None`. Where a batch is split (gradient
                accumulation, several processes), add these numbers up over the parts and give the sums with each part:
                the losses and gradients of the parts then sum to those of the whole batch. (DDP takes the *mean* over
                processes: multiply by their number.)

        Raises:
            ObjectiveError: a tensor is missing or has another shape; the message names it.
        """

    @abstractmethod
    def num_items(self, batch: Tensors) -> dict[str, torch.Tensor]:
        """How many things count in a batch: 0-d tensors under `"sequences"`, `"spans"`, and `"tokens"` if any."""

    def items(self, batch: Tensors, num_items: Mapping[str, Number] | None) -> Mapping[str, Number]:
        """What sums are divided by: the numbers that were given, or else those of the batch.

        Raises:
            ObjectiveError: a number is missing among those that were given.
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
        """Refuses tensors that are missing or do not fit together.

        Raises:
            ObjectiveError: see `loss`.
        """
        check_axes({**batch, **output}, {**self.batch_axes, **self.output_axes}, self.optional)
        missing = [name for name in ("old_values", "values") if {**batch, **output}.get(name) is None]
        if batch.get("returns") is not None and missing:
            raise ObjectiveError(
                f"{missing[0]} is missing, but the batch has returns, which the critic learns from; give the critic's "
                "estimates of the rollout (old_values) and of now (values), or leave the returns out"
            )


objectives: Registry[type[Objective]] = Registry("objective")
"""By name, the classes of objectives."""
