"""A curriculum: the first epochs go through easy rows, and harder ones come in quarter by quarter.

Bengio et al. 2009, Curriculum Learning; the pacing in steps is that of Hacohen and Weinshall 2019, arXiv:1904.03626.
An epoch has as many rows and steps as without: the easy rows come by more often. So a batch of all shards is what it
always is, and so are schedules of the learning rate. Which rows an epoch goes through is a pure function of seed,
epoch, shard and the levels of the shard's rows.
"""

import numpy as np
from numpy.typing import NDArray

from seedlings_spark.reproducibility import seed_for
from seedlings_spark.training.shard import epoch_order

# Of the rows, by rising difficulty; a row's level is its quarter, from 0.
LEVELS = 4


def levels_of_epoch(epoch: int, num_epochs: int) -> int:
    """How many of the quarters, the easiest first, an epoch goes through.

    Args:
        epoch: From 0.
        num_epochs: Epochs before all rows are in.
    """
    return min(LEVELS, 1 + (LEVELS - 1) * epoch // num_epochs)


def order(
    seed: int, epoch: int, shard: int, levels: NDArray[np.uint8], row_bytes: int, num_epochs: int
) -> NDArray[np.int64]:
    """The order in which an epoch visits the rows of a shard.

    Args:
        seed: Seed of the run.
        epoch: From 0.
        shard: Number of the shard.
        levels: Of the shard's rows.
        row_bytes: Bytes of one row's features.
        num_epochs: Epochs before all rows are in.

    Returns:
        As many positions as there are rows: some passes over those of the epoch's quarters, each in an order of its
        own, the last one cut short. A shard without any of them goes through its easiest ones.
    """
    rows = len(levels)
    highest = max(levels_of_epoch(epoch, num_epochs), 1 + int(levels.min(initial=LEVELS)))
    passes, found = [np.zeros(0, np.int64)], 0
    while found < rows:
        of_pass = seed if found == 0 else seed_for(seed, "pass", len(passes))
        whole = epoch_order(of_pass, epoch, shard, rows, row_bytes)
        passes.append(whole[levels[whole] < highest])
        found += len(passes[-1])
    return np.concatenate(passes)[:rows]


def rows_of_quarter(
    seed: int, shard: int, levels: NDArray[np.uint8], row_bytes: int, num_epochs: int
) -> list[list[int]]:
    """How many rows of each quarter the epochs of a shard go through, by their orders.

    Args:
        seed: As for `order`, and so are the others.
        shard: Number of the shard.
        levels: Of the shard's rows.
        row_bytes: Bytes of one row's features.
        num_epochs: Epochs before all rows are in.

    Returns:
        Of each epoch until all rows are in the number of each quarter, the easiest first. Later epochs are as the last.
    """
    orders = (order(seed, epoch, shard, levels, row_bytes, num_epochs) for epoch in range(num_epochs + 1))
    return [np.bincount(levels[each], minlength=LEVELS).tolist() for each in orders]
