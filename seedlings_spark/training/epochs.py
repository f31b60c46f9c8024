"""What an epoch is: its steps, its rounds, and who hears of its end."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seedlings_spark.training.progress import Progress
from seedlings_spark.training.shard import batch_edges
from seedlings_spark.training.weights import Vector

# The method of a callback that wants to hear of each epoch's confusion: the epoch, from 0, and integers of shape
# (classes, classes), rows are true, columns predicted ones.
ON_CONFUSION = "on_confusion"


@dataclass(frozen=True)
class Epochs:
    """The epochs that are to be trained, and the rows that they go through.

    Args:
        rows: To train on, of each shard.
        held_out_rows: Held-out rows of all shards together.
        batch_size: Rows of one shard at one step, at most.
        frequency: "batch", "epoch" or a number of steps between two exchanges.
        first: From 0; others have been trained before.
        end: The epoch after the last one.
    """

    rows: Sequence[int]
    held_out_rows: int
    batch_size: int
    frequency: str | int
    first: int
    end: int

    @property
    def num_rows(self) -> int:
        """To train on, of all shards together."""
        return sum(self.rows)

    @property
    def num_steps(self) -> int:
        """Of an epoch in which all shards take the same number of steps."""
        return steps_of_epoch(self.rows, self.batch_size)

    def rounds(self) -> list[tuple[int, int]]:
        """Of such an epoch the (first, last) steps of its rounds."""
        return rounds_of_epoch(self.num_steps, self.frequency)

    def rounds_of(self, rank: int) -> list[tuple[int, int]]:
        """The rounds of an epoch of one worker's own; none without a row."""
        return rounds_of_epoch(steps_of_epoch([self.rows[rank]], self.batch_size), self.frequency)

    def samples_before(self, rank: int, update: int) -> int:
        """How many samples the updates of a worker before this one have, counted from 0 over all epochs."""
        rounds = self.rounds_of(rank)
        if not rounds:
            return 0
        epoch, position = divmod(update, len(rounds))
        edges = batch_edges(self.rows[rank], rounds[-1][1])
        return epoch * self.rows[rank] + int(edges[rounds[position][0]])


@dataclass(frozen=True)
class Observers:
    """Who hears of each epoch.

    Args:
        callbacks: A `keras.callbacks.CallbackList`, told that training begins. Of its callbacks those with an
            `on_confusion` hear of the held-out rows' confusion, before the epoch ends.
        progress: Hears of every round.
        checkpoint: Called with an epoch that has ended, after its callbacks, with what gives a copy of the master's
            state and, in asynchronous modes, of each rank the first update that is not in it.
    """

    callbacks: Any
    progress: Progress
    checkpoint: Callable[[int, Callable[[], Vector], Sequence[int]], None]

    def hear_confusion(self, epoch: int, counts: NDArray[np.float64]) -> None:
        """Tell whoever wants it.

        Args:
            epoch: From 0.
            counts: Of each class by the class that they are taken for, flat; empty where they were not counted.
        """
        if counts.size:
            side = math.isqrt(counts.size)
            matrix = counts.astype(np.int64).reshape(side, side)
            for callback in self.callbacks.callbacks:
                if hasattr(callback, ON_CONFUSION):
                    callback.on_confusion(epoch, matrix)


def steps_of_epoch(rows: Sequence[int], batch_size: int) -> int:
    """Steps in which every shard is gone through once, with batches of at most batch_size rows."""
    return -(-max(rows) // batch_size)


def rounds_of_epoch(num_steps: int, frequency: str | int) -> list[tuple[int, int]]:
    """The (first, last) steps of an epoch's rounds; `last` is the step after.

    Args:
        num_steps: Number of steps of the epoch.
        frequency: "batch", "epoch", or a number of steps; a last, shorter round takes what is left.
    """
    length = {"batch": 1, "epoch": max(1, num_steps)}.get(str(frequency)) or int(frequency)
    return [(first, min(first + length, num_steps)) for first in range(0, num_steps, length)]
