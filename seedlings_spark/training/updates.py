"""What asynchronous updates make: the model that they enter, whose turn it is, and the snapshots at an epoch's end."""

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from seedlings_spark.training import rules
from seedlings_spark.training.coordination import Sums
from seedlings_spark.training.messages import Part, Result, Steps, Work
from seedlings_spark.training.record import Updates
from seedlings_spark.training.weights import Layout, Vector


@dataclass
class Snapshot:
    """The master at the end of an epoch.

    Args:
        epoch: From 0.
        weights: Weights of the master.
        state: State of the master: with its optimizer's slots where it makes the steps.
        next_updates: For each rank the first one that is not in the weights.
        sums: Sums of the epoch's training.
        seconds: That it took.
        parts: The part of each rank that has evaluated it.
    """

    epoch: int
    weights: Vector
    state: Vector
    next_updates: list[int]
    sums: Sums
    seconds: float
    parts: dict[int, Part] = field(default_factory=dict)

    @property
    def number(self) -> str:
        """Of its evaluation, as a piece of work."""
        return f"snapshot {self.epoch}"

    def held_out(self) -> Sums:
        """The evaluation of all ranks, summed in their order."""
        sums = Sums()
        sums.add([self.parts[rank] for rank in sorted(self.parts)])
        return sums


class Center:
    """The master model that updates enter, one at a time unless it is hogwild's.

    Args:
        master: Whose optimizer applies gradients; where workers take steps of their own it only lends its layout.
        rule: One of `rules.RULES`.
        elasticity: alpha of the elastic rules.
        local: Whether workers take steps of their own.
        locked: Whether one update at a time is applied (asynchronous) or not (hogwild).
    """

    def __init__(self, master: Any, *, rule: str, elasticity: float, local: bool, locked: bool) -> None:
        self.lock: Any = threading.Lock() if locked else _NoLock()
        self.rule = rule
        self.weights: Vector = master.weights()  # never changed in place
        self._master = master
        self._elasticity, self._local = elasticity, local
        self._num_trainable = sum(master.model_layout.sizes[: len(master.vectors.trainable)])
        self._starts: dict[int, Vector] = {}  # elastic rules: where each worker goes on

    @property
    def layout(self) -> Layout:
        """Of what workers send."""
        layout: Layout = self._master.model_layout
        return layout

    def start_of(self, rank: int) -> Vector:
        """The weights that a worker's next work starts from."""
        return self._starts.get(rank, self.weights)

    def forget(self, rank: int | None = None) -> None:
        """Let a new worker, or all of them, start from the master."""
        if rank is None:
            self._starts.clear()
        else:
            self._starts.pop(rank, None)

    def work(self, number: str, steps: Steps | None, iterations: int | None = None) -> Work:
        """A piece of work; see `Master.work`."""
        work: Work = self._master.work(number, steps, iterations)
        return work

    # With the lock held, unless hogwild.

    def apply(self, rank: int, result: Result, update: "Update") -> None:
        """Let an update enter."""
        cut, (pushed,) = self._num_trainable, result.vectors
        others = rules.statistics(self.weights[cut:], pushed[cut:], update.staleness)
        if self._local:
            push = rules.Push(
                center=self.weights[:cut],
                pulled=update.pulled[:cut],
                pushed=pushed[:cut],
                num_steps=update.steps.last - update.steps.first,
                staleness=update.staleness,
                elasticity=self._elasticity,
            )
            center, start = rules.RULES[self.rule](push)
            self.weights = np.concatenate([center, others])
            if self.rule in rules.ELASTIC:
                self._starts[rank] = np.concatenate([start, others])
        else:
            factor = self.weights.dtype.type(rules.gradient_factor(self.rule, update.staleness))
            self.weights = self._master.apply_gradient(np.concatenate([pushed[:cut] * factor, others]))
        self._master.take_counts([self._master.vectors.get_counts(), result.parts[0].counts])

    def state(self) -> Vector:
        """What a checkpoint keeps: with the optimizer's slots where the master makes the steps."""
        state: Vector = self.weights if self._local else self._master.state()
        return state

    # Without it.

    def set_weights(self, weights: Vector) -> None:
        """Go on from other weights, which a callback has set."""
        with self.lock:
            self.weights = weights
            self._starts.clear()
            self._master.set_weights(weights)

    def finalized(self, state: Vector | None) -> Vector:
        """The weights that the optimizer ends with, from a snapshot's state or, without one, from the master's."""
        with self.lock:
            if state is not None:
                self._master.set_state(state)
            self._master.finalize()
            weights: Vector = self._master.weights()
            return weights


@dataclass(frozen=True)
class Update:
    """An update that was taken and is to be applied.

    Args:
        steps: That the worker has trained.
        pulled: The weights that it started from.
        staleness: Updates taken since then.
    """

    steps: Steps
    pulled: Vector
    staleness: int


class Turns:
    """Which update of each rank is the next, and what was taken so far. Used with the condition held.

    Args:
        rounds: Rounds of each rank's epoch: (first, last) steps.
        next_updates: Next updates of each rank, where an earlier attempt has taken some; else empty.
    """

    def __init__(
        self, rounds: Sequence[Sequence[tuple[int, int]]] = (), next_updates: Sequence[int] = ()
    ) -> None:
        self._rounds = rounds
        self._next = list(next_updates) or [0] * len(rounds)
        self.applied = list(self._next)  # of each rank, the first update that is not applied yet
        self._pulled: dict[int, tuple[Vector, int]] = {}
        self._version = 0
        self._last_rank = -1
        self._num_switches = 0
        self._staleness: Counter[int] = Counter()
        self._updates_of_rank: Counter[int] = Counter()

    def number(self, rank: int) -> str:
        """Of the next update of a rank."""
        return f"update {self._next[rank]}"

    def steps(self, rank: int) -> Steps:
        """Of the next update of a rank, within its own epoch."""
        epoch, position = divmod(self._next[rank], len(self._rounds[rank]))
        return Steps(epoch, *self._rounds[rank][position])

    def steps_of_epoch(self, rank: int) -> int:
        """Of a rank."""
        return self._rounds[rank][-1][1] if self._rounds[rank] else 0

    def is_done(self, rank: int, num_epochs: int) -> bool:
        """Whether a rank has no update left."""
        return self._next[rank] >= num_epochs * len(self._rounds[rank])

    def give(self, rank: int, weights: Vector) -> None:
        """A rank begins its next update from these weights."""
        self._pulled[rank] = weights, self._version

    def is_given(self, rank: int) -> bool:
        """Whether a rank is at work on its next update."""
        return rank in self._pulled

    def forget(self, rank: int | None = None) -> None:
        """A worker, or all of them, will begin anew what they were given."""
        if rank is None:
            self._pulled.clear()
        else:
            self._pulled.pop(rank, None)

    def take(self, rank: int) -> Update:
        """Count the update that a rank was given: whoever holds the rank then goes on after it."""
        steps = self.steps(rank)
        pulled, version = self._pulled.pop(rank)
        staleness = self._version - version
        self._next[rank] += 1
        self._version += 1
        self._staleness[staleness] += 1
        self._updates_of_rank[rank] += 1
        self._num_switches += self._last_rank not in (-1, rank)
        self._last_rank = rank
        return Update(steps, pulled, staleness)

    def updates(self, rule: str) -> Updates:
        """What was taken, for the run's record."""
        total = sum(self._staleness.values())
        mean = sum(count * value for value, count in self._staleness.items()) / max(1, total)
        return Updates(
            rule=rule,
            updates=total,
            updates_of_rank={str(rank): count for rank, count in sorted(self._updates_of_rank.items())},
            rank_switches=self._num_switches,
            staleness={
                "mean": mean,
                "max": max(self._staleness, default=0),
                "histogram": {str(value): count for value, count in sorted(self._staleness.items())},
            },
        )


class Snapshots:
    """The epochs of the run, each a corpus' worth of samples applied. Used with the condition held.

    Args:
        num_rows: Number of rows of the corpus.
        first_epoch: From 0.
        samples: That an earlier attempt has applied: those of its epochs, and some more where a worker was ahead.
        has_held_out: Whether snapshots are evaluated.
    """

    def __init__(
        self, num_rows: int = 0, first_epoch: int = 0, samples: int = 0, *, has_held_out: bool = False
    ) -> None:
        self.has_held_out = has_held_out
        self.sums = Sums()  # of the current epoch
        self._num_rows, self._first_epoch = num_rows, first_epoch
        self._samples = samples
        self._started = time.perf_counter()
        self._taken: list[Snapshot] = []

    def add(self, result: Result) -> bool:
        """Count an update that was applied; whether it is the last one of an epoch, of which `cut` is due."""
        self.sums.add(result.parts)
        self._samples += result.samples
        return self._samples >= (self._first_epoch + len(self._taken) + 1) * self._num_rows

    def cut(self, weights: Vector, state: Vector, applied: Sequence[int]) -> None:
        """End the epoch with this master."""
        now, epoch = time.perf_counter(), self._first_epoch + len(self._taken)
        self._taken.append(Snapshot(epoch, weights, state, list(applied), self.sums, now - self._started))
        self.sums, self._started = Sums(), now

    def of(self, epoch: int, num_workers: int) -> Snapshot | None:
        """An epoch's snapshot, once it is evaluated."""
        if len(self._taken) <= epoch - self._first_epoch:
            return None
        found = self._taken[epoch - self._first_epoch]
        return found if not self.has_held_out or len(found.parts) == num_workers else None

    def to_evaluate(self, rank: int) -> Snapshot | None:
        """The first one that a rank has not evaluated."""
        if not self.has_held_out:
            return None
        return next((snapshot for snapshot in self._taken if rank not in snapshot.parts), None)


class _NoLock:
    """Hogwild: what two threads apply at the same time may mix (Recht et al. 2011)."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...
