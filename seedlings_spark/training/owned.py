"""Owned: the optimizer's step on the slice of the weights that a worker owns, in place of all weights by every worker.

Only for optimizers that make of each number of a weight, its gradient and its slots the next ones, whatever the other
numbers are (`optimizer.is_elementwise`): then the bits are those of a step on all weights. The owner of a slice makes
of its mean gradient the new weights, which it sends in place of the mean; it alone keeps the slice's slots. What it
hands in to the master is the slice of the weights, and then of each kind of slot.
"""

import itertools
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from seedlings_spark.training import optimizer as optimizers
from seedlings_spark.training.optimizer import OptimizerState
from seedlings_spark.training.weights import Vector


class Slots:
    """Where the slots of an elementwise optimizer lie in a vector of state.

    Args:
        vectors: `master.Vectors` of the network.
        optimizer: Its optimizer, built.
    """

    def __init__(self, vectors: Any, optimizer: Any) -> None:
        self._num_model, sizes = vectors.model_layout.size, vectors.state_layout.sizes
        self.num_trained = int(sum(sizes[: len(vectors.trainable)]))
        starts = list(accumulate(sizes, initial=0))[-1 - len(vectors.slots) : -1]
        places = {id(slot): start for slot, start in zip(vectors.slots, starts, strict=True)}
        self._places = [
            [(places[id(slot)], size) for slot, size in zip(kind, sizes, strict=False)]
            for kind in optimizers.slots_by_kind(optimizer, len(vectors.trainable))
        ]
        # Of each array of the state, in its order: weights or kind, where it lies among those, and its size.
        model = zip(accumulate(sizes, initial=0), sizes[: -len(places) or None], strict=False)
        order = [(start, (0, start, size)) for start, size in model]
        for number, kind in enumerate(self._places, 1):
            at = accumulate((size for _, size in kind), initial=0)
            order += [(start, (number, own, size)) for own, (start, size) in zip(at, kind, strict=False)]
        self._order = [each for _, each in sorted(order)]

    def size_of(self, part: slice) -> int:
        """How many numbers the owner of this part of the weights hands in."""
        return int(part.stop - part.start) + len(self._places) * self.trained_of(part)

    def trained_of(self, part: slice) -> int:
        """How many of the first numbers of this part have a gradient."""
        return max(0, min(int(part.stop), self.num_trained) - int(part.start))

    def owned(self, state: Vector, part: slice) -> list[Vector]:
        """Of a state the slice of the weights, and then of each kind of slot."""
        end = part.start + self.trained_of(part)
        kinds = [np.concatenate([state[at : at + size] for at, size in kind]) for kind in self._places]
        return [state[part], *(kind[part.start : end] for kind in kinds)]

    def arrays(self, handed_in: Sequence[Vector], parts: Sequence[slice]) -> Iterator[Vector]:
        """The arrays of a state, flat, from what the owners of all parts have handed in; each is a copy."""
        kinds: list[list[Vector]] = [[] for _ in range(1 + len(self._places))]
        for vector, part in zip(handed_in, parts, strict=True):
            count = self.trained_of(part)
            ends = accumulate([count] * len(self._places), initial=part.stop - part.start)
            edges = [0, *ends]
            for kind, (start, stop) in zip(kinds, itertools.pairwise(edges), strict=True):
                kind.append(vector[start:stop])
        for number, start, size in self._order:
            yield joined(kinds[number], start, size)


def joined(pieces: Sequence[Vector], start: int, size: int) -> Vector:
    """A copy of so many numbers from a place on of vectors that follow on each other."""
    found, at = [], 0
    for piece in pieces:
        found.append(piece[max(0, start - at) : max(0, start + size - at)])
        at += piece.size
    return np.concatenate(found)


class OwnedStep:
    """The optimizer of one slice.

    Args:
        slots: Of the whole optimizer.
        optimizer: Another one of the same configuration, not built.
        part: The slice of the weights.
        tf: The module `tensorflow`.
    """

    def __init__(self, slots: Slots, optimizer: Any, part: slice, tf: Any) -> None:
        import keras

        self.part, self._slots = part, slots
        self._weights = keras.Variable(np.zeros(slots.trained_of(part), np.float32), dtype="float32")
        self._optimizer = optimizer
        optimizer.build([self._weights])
        self.held = OptimizerState(optimizer)
        self._kinds = [kind[0] for kind in optimizers.slots_by_kind(optimizer, 1)]
        self._apply = tf.function(self._step, autograph=False)

    def begin(self, state: Vector) -> None:
        """Go on from a state."""
        weights, *kinds = self._slots.owned(state, self.part)
        for variable, value in zip(
            [self._weights, *self._kinds], [weights[: self._weights.shape[0]], *kinds], strict=True
        ):
            variable.assign(value)

    def make(self, own: Vector) -> None:
        """Make of the slice of a mean, in its place, that of the new weights; what has no gradient stays as it is."""
        count = self._weights.shape[0]
        self._apply(own[:count])
        own[:count] = memoryview(self._weights.value.read_value())

    def handed_in(self, own: Vector) -> Vector:
        """What the master is to have: the slice of the weights, which is given, and the slots."""
        return np.concatenate([own, *(np.asarray(kind.value) for kind in self._kinds)])

    def _step(self, gradient: Any) -> None:
        optimizers.apply(self._optimizer, [gradient], [self._weights])
