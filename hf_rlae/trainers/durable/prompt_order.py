"""The order of prompts as a function of seed and epoch, so that a resumed run continues with the same prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from typing import Any

import torch
from trl.trainer.utils import RepeatSampler

from hf_rlae.checks import Bounds, check_number


class EpochRepeatSampler(RepeatSampler):
    """TRL's `RepeatSampler`, with an order that depends on `seed` and the epoch alone.

    TRL's own sampler draws the permutations of all epochs from one generator, so that a run resumed in epoch k starts
    with the permutation of epoch 0. Here epoch k has permutation number k of the generator, as in an uninterrupted run
    of TRL's sampler; runs can be compared with TRL's trainers prompt by prompt. `epoch` is called when iteration
    starts, because not every data loader passes `set_epoch` on to its sampler (accelerate's does not in a resumed run
    with several processes).

    Source: ours; the order within an epoch is TRL's.

    Args:
        data_source (`Sized`): N examples.
        mini_repeat_count (`int`): number of consecutive repeats of each index (G).
        batch_size (`int`, defaults to 1): different indices in one chunk; an incomplete last chunk is
            dropped.
        repeat_count (`int`, defaults to 1): number of repeats of a chunk.
        shuffle (`bool`, defaults to `True`): whether the order is random.
        seed (`int`): seed of the generator; the same in every process.
        epoch (callable): returns the epoch, 0 or more; in a trainer `lambda: int(self.state.epoch or 0)`.

    Raises:
        ConfigError: the seed is not a whole number, or the epoch is not one of 0 or more.

    Example:

    >>> epoch = 0
    >>> sampler = EpochRepeatSampler(range(4), mini_repeat_count=2, seed=0, epoch=lambda: epoch)
    >>> first = list(sampler)
    >>> epoch = 1
    >>> list(sampler) == first
    False
    >>> epoch = 0
    >>> list(sampler) == first
    True
    """

    def __init__(
        self,
        data_source: Sized,
        mini_repeat_count: int,
        batch_size: int = 1,
        repeat_count: int = 1,
        shuffle: bool = True,
        *,
        seed: int,
        epoch: Callable[[], int],
    ) -> None:
        check_number("seed", seed, Bounds(is_whole=True))
        super().__init__(data_source, mini_repeat_count, batch_size, repeat_count, shuffle, seed)
        self.order_seed = seed
        self.epoch = epoch

    @classmethod
    def of_rollouts(cls, trainer: Any, dataset: Sized | None = None) -> EpochRepeatSampler:
        """The sampler of a trainer with rollouts, whose batches are whole rollouts.

        Args:
            trainer (`Trainer`): its `args` have the fields of `GRPOConfig` that describe a rollout.
            dataset (`Sized`, *optional*): the training dataset of the trainer if not given.
        """
        args = trainer.args
        return cls(
            trainer.train_dataset if dataset is None else dataset,
            mini_repeat_count=args.num_generations,
            batch_size=args.generation_batch_size // args.num_generations,
            repeat_count=args.num_iterations * args.steps_per_generation,
            shuffle=args.shuffle_dataset,
            seed=args.seed,
            epoch=lambda: int(trainer.state.epoch or 0),
        )

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            epoch = self.epoch()
            check_number("epoch()", epoch, Bounds(0, is_whole=True))
            self.generator.manual_seed(self.order_seed)
            for _ in range(epoch):
                torch.randperm(self.num_samples, generator=self.generator)
        yield from super().__iter__()
