"""The order of the prompts as a function of seed and epoch, so that a resumed run sees the ones it would have seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized

import torch
from trl.trainer.utils import RepeatSampler

from hf_rlae.errors import ConfigError


class EpochRepeatSampler(RepeatSampler):
    """TRL's `RepeatSampler`, whose order depends on nothing but `seed` and the epoch.

    TRL's own sampler draws each epoch's permutation from one generator that goes on from epoch to epoch: a run resumed
    in epoch k begins with the permutation of epoch 0. Here epoch k has the generator's permutation number k, which is
    also what an uninterrupted run of TRL's sampler has, so that runs can be compared with TRL's trainers prompt by
    prompt. The epoch is asked for when iteration begins, because not every data loader passes `set_epoch` on to its
    sampler (accelerate's does not for a resumed run with several processes).

    Source: ours; the order within an epoch is TRL's.

    Args:
        data_source (`Sized`): N examples.
        mini_repeat_count (`int`): how often each index is repeated in a row (G).
        batch_size (`int`, defaults to 1): different indices in one chunk; an incomplete last chunk is left out.
        repeat_count (`int`, defaults to 1): how often a chunk is repeated.
        shuffle (`bool`, defaults to `True`): whether the order is drawn.
        seed (`int`): of the generator; the same in every process.
        epoch (callable): gives the epoch, 0 or more; in a trainer `lambda: int(self.state.epoch or 0)`.

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
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ConfigError(f"seed must be a whole number, got {seed!r}")
        super().__init__(data_source, mini_repeat_count, batch_size, repeat_count, shuffle, seed)
        self.order_seed = seed
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            epoch = self.epoch()
            if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
                raise ConfigError(f"epoch() must give a whole number of at least 0, got {epoch!r}")
            self.generator.manual_seed(self.order_seed)
            for _ in range(epoch):
                torch.randperm(self.num_samples, generator=self.generator)
        yield from super().__iter__()
