"""The order of prompts: that of TRL, from any epoch, batch and process."""

from __future__ import annotations

import pytest
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from torch.utils.data import DataLoader
from trl.trainer.utils import RepeatSampler

from hf_rlae.errors import ConfigError
from hf_rlae.trainers.durable.prompt_order import EpochRepeatSampler

LAYOUTS = [(1, 1, 1), (2, 3, 1), (3, 2, 4)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_epoch_is_that_of_a_run_left_alone(layout):
    """For any sequence of epochs; TRL's sampler restarts with epoch 0."""
    own = RepeatSampler(range(13), *layout, seed=7)
    expected = [list(own) for _ in range(4)]
    assert len({tuple(order) for order in expected}) == 4
    for epoch in (3, 0, 2, 2, 1):
        sampler = EpochRepeatSampler(range(13), *layout, seed=7, epoch=lambda: epoch)  # noqa: B023
        assert list(sampler) == expected[epoch]
        assert list(sampler) == expected[epoch]
        assert len(sampler) == len(expected[epoch])
    plain = EpochRepeatSampler(range(13), *layout, shuffle=False, seed=7, epoch=lambda: 2)
    assert list(plain) == list(RepeatSampler(range(13), *layout, shuffle=False))


def test_seeds():
    """Different seeds share no permutation, which `seed + epoch` would."""
    orders = [
        tuple(EpochRepeatSampler(range(9), 1, seed=seed, epoch=lambda: epoch))  # noqa: B023
        for seed in range(4)
        for epoch in range(4)
    ]
    assert len(set(orders)) == len(orders)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_skipped_batches_of_every_process(num_processes):
    """A resumed run skips and shards the same order as an uninterrupted one."""
    seen = {}
    for epoch in (0, 2):
        for skipped in (0, 3):
            for rank in range(num_processes):
                sampler = EpochRepeatSampler(range(24), 2, 4, seed=1, epoch=lambda: epoch)  # noqa: B023
                loader = prepare_data_loader(
                    DataLoader(range(24), batch_size=4, sampler=sampler),
                    num_processes=num_processes,
                    process_index=rank,
                    put_on_device=False,
                    rng_types=[],
                )
                batches = skip_first_batches(loader, skipped) if skipped else loader
                seen[epoch, skipped, rank] = [batch.tolist() for batch in batches]
    for epoch, skipped, rank in seen:
        assert seen[epoch, skipped, rank] == seen[epoch, 0, rank][skipped:]
        assert len(seen[epoch, 0, rank]) == 12 // num_processes
    assert seen[0, 0, 0] != seen[2, 0, 0]
    # together, the processes have the whole order
    expected = list(EpochRepeatSampler(range(24), 2, 4, seed=1, epoch=lambda: 2))
    parts = zip(*[seen[2, 0, rank] for rank in range(num_processes)], strict=True)
    assert [index for batches in parts for batch in batches for index in batch] == expected


def test_bad_values():
    with pytest.raises(ConfigError, match="seed"):
        EpochRepeatSampler(range(3), 1, seed=None, epoch=lambda: 0)
    for epoch in (-1, 0.5, None):
        with pytest.raises(ConfigError, match="epoch"):
            list(EpochRepeatSampler(range(3), 1, seed=0, epoch=lambda: epoch))  # noqa: B023
