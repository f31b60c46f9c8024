"""Which shards a slow worker loses to faster ones, between two epochs.

Who holds a shard changes no bit of what comes of it (`tree`). So a worker whose machine is slower than the others', by
more than a factor, may hold fewer: all wait for the last one at each step. Judged is how long a worker computes for one
step of one shard, the median of an epoch; neither counts what it waits for the network or for others, nor what it does
once a step however many shards it holds. Blocks stay blocks of neighbours, and each worker keeps a shard, by which it
is judged again: one that has become as fast as the others gets back what it has lost.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from seedlings_spark.training.tree import blocks, shards_of

# Rows travel in messages of about so many bytes.
_MESSAGE_BYTES = 4 * 1024 * 1024
# What all rows of a step must come to sooner by, as a share, for shards to be moved: seconds are never twice the same.
_LEAST_GAIN = 0.1


@dataclass(frozen=True)
class Dealing:
    """When shards are moved, and what that takes.

    Args:
        factor: A worker that is slower than the others by more than this is slow.
        row_bytes: Bytes of a row with its label and weight.
    """

    factor: float
    row_bytes: int

    @property
    def rows_at_once(self) -> int:
        """Rows in one message."""
        return max(1, _MESSAGE_BYTES // self.row_bytes)

    @property
    def max_bytes(self) -> int:
        """The longest payload of such a message."""
        return max_bytes(self.row_bytes)


def max_bytes(row_bytes: int) -> int:
    """The longest payload of a message with rows of so many bytes."""
    return max(_MESSAGE_BYTES, row_bytes)


@dataclass(frozen=True)
class Move:
    """A shard that changes hands.

    Args:
        shard: Its number.
        giver: Rank of the worker that holds it.
        taker: Rank of the worker that will.
    """

    shard: int
    giver: int
    taker: int


class Paces:
    """How long each worker of a generation computes for one step of one shard."""

    def __init__(self) -> None:
        self._generation: int | None = None
        self._of_epoch: list[list[float]] = []

    def took(self, generation: int, sizes: Sequence[int], num_steps: int, seconds: Sequence[float]) -> None:
        """Workers that hold so many shards each have computed so long, for so many steps.

        The first time of a generation is not looked at: some of them traced the network then.
        """
        if generation != self._generation:
            self._generation, self._of_epoch = generation, []
            return
        self._of_epoch.append([each / (size * num_steps) for each, size in zip(seconds, sizes, strict=True)])

    def of_epoch(self, generation: int) -> list[float]:
        """The median of each worker since this was asked the last time; empty where nothing is known of them."""
        found, self._of_epoch = self._of_epoch, []
        if generation != self._generation:
            return []
        return [statistics.median(column) for column in zip(*found, strict=True)]


def slow_workers(sizes: Sequence[int], seconds: Sequence[float], factor: float) -> list[int]:
    """The workers that are slower than the others.

    The others' are their lower median, so that up to half of all workers can be slow. Whoever has lost shards is slow
    until half of the excess is gone: none is to lose and get back the same ones in turns.

    Args:
        sizes: Shards that each worker holds.
        seconds: That each takes for a step of one shard.
        factor: See `Dealing`.
    """
    found = []
    for rank, own in enumerate(seconds):
        others = statistics.median_low([*seconds[:rank], *seconds[rank + 1 :]])
        has_lost = sizes[rank] < len(shards_of(rank, len(sizes), sum(sizes)))
        if own > others * (1 + (factor - 1) / 2 if has_lost else factor):
            found.append(rank)
    return found


def dealt(sizes: Sequence[int], seconds: Sequence[float], factor: float) -> tuple[int, ...]:
    """How many shards each worker is to hold: at least one, and so that the last one is done as soon as can be.

    Args:
        sizes: That each holds now.
        seconds: That each takes for a step of one shard.
        factor: See `Dealing`.

    Returns:
        The same sizes where nobody is slow and none has lost a shard, or where little would be gained.
    """
    if len(sizes) < 2 or not all(math.isfinite(each) and each > 0 for each in seconds):
        return tuple(sizes)
    slow = slow_workers(sizes, seconds, factor)
    usual = statistics.median(each for rank, each in enumerate(seconds) if rank not in slow)
    paces = [each if rank in slow else usual for rank, each in enumerate(seconds)]
    found = [1] * len(sizes)

    def is_next(rank: int) -> tuple[float, bool, int]:
        # Of several that would be done at once whoever holds more already, then a neighbour of a slow one.
        near = min((abs(rank - each) for each in slow), default=0)
        return (found[rank] + 1) * paces[rank], found[rank] >= sizes[rank], near

    for _ in range(sum(sizes) - len(sizes)):
        found[min(range(len(sizes)), key=is_next)] += 1
    before, after = (
        max(size * pace for size, pace in zip(each, paces, strict=True)) for each in (sizes, found)
    )
    return tuple(found if after < before * (1 - _LEAST_GAIN) else sizes)


def moves(before: Sequence[int], after: Sequence[int]) -> list[Move]:
    """The shards that change hands from one dealing to another."""
    holders = [[rank for rank, block in enumerate(blocks(sizes)) for _ in block] for sizes in (before, after)]
    return [
        Move(shard, giver, taker)
        for shard, (giver, taker) in enumerate(zip(*holders, strict=True))
        if giver != taker
    ]
