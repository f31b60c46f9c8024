"""Who holds which shards of a run, and the one order in which what comes of them is averaged.

The rows of a run are dealt to shards, whose number belongs to the run. The order of batches, dropout, augmentation and
statistics of batches follow from the shard; any number of workers hold the shards among them, in blocks of
neighbours: of the same size, but where `dealing` has found one that is slow.

The shards are the leaves of one binary tree: a node covers neighbours, and is halved in the middle. At each node stands
the mean of the vectors below it, weighted by samples, made from the means of its two halves. So the mean of all has the
same bits whoever has computed which part of it, and a worker sends one vector for each node that lies whole within its
block: one alone where 2, 4, 8, ... workers hold as many shards each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from seedlings_spark.training.weights import Vector


@dataclass(frozen=True)
class Mean:
    """What stands at a node.

    Args:
        vector: Mean of the vectors of the shards below, weighted by samples.
        samples: Of all of them together. The vector of none is not looked at.
    """

    vector: Vector
    samples: int


def shards_of(rank: int, num_workers: int, num_shards: int) -> range:
    """The shards that a worker holds: as many as any other, or one more; none of more workers than shards."""
    return range(rank * num_shards // num_workers, (rank + 1) * num_shards // num_workers)


def sizes_of(num_workers: int, num_shards: int) -> tuple[int, ...]:
    """How many shards each worker holds as a run begins."""
    return tuple(len(shards_of(rank, num_workers, num_shards)) for rank in range(num_workers))


def blocks(sizes: Sequence[int]) -> list[range]:
    """The shards of each worker, where they hold so many."""
    ends = list(accumulate(sizes))
    return [range(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def nodes_within(held: range, num_shards: int) -> list[range]:
    """The largest nodes of the tree that lie whole within a block of shards; each of its shards is in one of them."""

    def within(node: range) -> list[range]:
        if node.start >= held.start and node.stop <= held.stop:
            return [node]
        if node.start >= held.stop or node.stop <= held.start:
            return []
        return [found for half in _halves(node) for found in within(half)]

    return within(range(num_shards)) if held else []


def most_nodes(num_workers: int, num_shards: int) -> int:
    """The largest number of vectors that one of the workers sends at once."""
    return max(
        len(nodes_within(shards_of(rank, num_workers, num_shards), num_shards)) for rank in range(num_workers)
    )


def most_nodes_of_any(num_shards: int) -> int:
    """No block of neighbours needs more vectors: two of each level of the tree."""
    return max(1, 2 * (num_shards - 1).bit_length())


def mean_of(node: range, known: Callable[[range], Mean | None]) -> Mean:
    """What stands at a node.

    Args:
        node: With at least one shard.
        known: Gives what is known of a node, in the order of the shards; None where it follows from its halves, which
            no node of one shard may.
    """
    found = known(node)
    if found is not None:
        return found
    left, right = (mean_of(half, known) for half in _halves(node))
    return _merged(left, right)


def _halves(node: range) -> tuple[range, range]:
    middle = (node.start + node.stop) // 2
    return range(node.start, middle), range(middle, node.stop)


def _merged(left: Mean, right: Mean) -> Mean:
    """The mean of two, as a step from the one to the other: numbers that are the same in both stay so to the bit.

    That holds for what no worker changes, such as the weights of layers that are frozen, round after round.
    """
    if not right.samples:
        return left
    if not left.samples:
        return right
    samples = left.samples + right.samples
    with np.errstate(
        all="ignore"
    ):  # of a gradient that overflows the optimizer makes a smaller scale of the loss
        vector = right.vector - left.vector
        vector *= np.asarray(right.samples / samples, vector.dtype)
        vector += left.vector
    return Mean(vector, samples)
