"""The driver's side of asynchronous training: one update at a time, from whichever worker has one.

Each worker goes through its shard `num_epochs` times at its own speed; what it pushes is applied at once and
exactly once: an update is taken from the worker that holds its rank's place, and only if it is the next one of
that rank. A retried, speculative or resurrected worker therefore goes on where its rank stands.

An epoch of the run is one corpus' worth of samples applied. A snapshot of the master is then taken, evaluated by all
workers as each of them comes by, and shown to callbacks; nobody waits for that.
"""

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from seedlings_spark.errors import TrainingError
from seedlings_spark.training import rules
from seedlings_spark.training.capacity import ExchangeWatch
from seedlings_spark.training.coordination import Result, Sums, WorkerGroup, check_finite, parse
from seedlings_spark.training.epochs import Epochs, Observers
from seedlings_spark.training.messages import Exchanged
from seedlings_spark.training.optimizer import keeps_averages
from seedlings_spark.training.record import Updates
from seedlings_spark.training.server import Superseded
from seedlings_spark.training.weights import Vector
from seedlings_spark.training.wire import Kind, Message


@dataclass
class Snapshot:
    """The master at the end of an epoch.

    Args:
        epoch: From 0.
        weights: Of the master.
        state: Of the master: with its optimizer's slots where it makes the steps.
        next_updates: Of each rank the first one that is not in the weights.
        sums: Of the epoch's training.
        seconds: That it took.
        parts: Of each rank that has evaluated it, its part.
    """

    epoch: int
    weights: Vector
    state: Vector
    next_updates: list[int]
    sums: Sums
    seconds: float
    parts: dict[int, Result] = field(default_factory=dict)

    def held_out(self) -> Sums:
        """The evaluation of all ranks, summed in their order."""
        sums = Sums()
        sums.add([self.parts[rank] for rank in sorted(self.parts)])
        return sums


class FreeRunning:
    """Takes updates as they come. A `server.Coordinator`.

    Args:
        group: The workers.
        master: Whose optimizer applies gradients; at other frequencies it only lends its layout.
        rule: Of `rules.RULES`.
        elasticity: alpha of the elastic rules.
        local: Whether workers take steps of their own.
        locked: Whether one update at a time is applied (asynchronous) or not (hogwild).

    Attributes:
        watch: Told of every update, if there is one.
    """

    def __init__(
        self, group: WorkerGroup, master: Any, *, rule: str, elasticity: float, local: bool, locked: bool
    ) -> None:
        self._group, self._master = group, master
        self._rule, self._elasticity, self._local = rule, elasticity, local
        self._apply_lock: Any = threading.Lock() if locked else _NoLock()
        self._condition = group.condition
        self._num_trainable = sum(master.model_layout.sizes[: len(master.vectors.trainable)])
        self._center = master.weights()
        self._starts: dict[int, Vector] = {}  # elastic rules: where each worker goes on
        self._pulled: dict[int, tuple[Vector, int]] = {}
        self._queues: dict[int, queue.SimpleQueue[Message]] = {}
        self._begin: Message | None = None
        self._rounds: list[list[tuple[int, int]]] = []
        self._next: list[int] = []  # of each rank, the next update to take
        self._applied: list[int] = []  # and the first that is not applied yet
        self._rows: Sequence[int] = ()
        self._resumed: list[int] = []
        self._first_epoch = self._num_epochs = 0
        self._stopping = False
        self._version = 0
        self._sums = Sums()
        self._applied_samples = 0
        self._epoch_started = time.perf_counter()
        self._snapshots: list[Snapshot] = []
        self._has_held_out = False
        self.staleness: Counter[int] = Counter()
        self.updates_of_rank: Counter[int] = Counter()
        self._last_rank = -1
        self.num_switches = 0
        self.watch: ExchangeWatch | None = None
        group.on_restart = self._forget

    @property
    def max_payload_bytes(self) -> int:
        """The longest vector."""
        return int(self._master.model_layout.nbytes)

    # What the server's threads call.

    def open(self, header: Mapping[str, Any]) -> tuple[object, "queue.SimpleQueue[Message]"]:
        """A worker says who it is; it takes the place of an earlier one of its rank."""
        with self._condition:
            holder = self._group.enter(header, replace=True)
            if holder.rank in self._queues:
                self._queues.pop(holder.rank).put(
                    Message(Kind.REFUSED, {"text": "another worker has this one's place"})
                )
            self._pulled.pop(holder.rank, None)
            self._starts.pop(holder.rank, None)  # a new worker starts from the master
            answer: queue.SimpleQueue[Message] = queue.SimpleQueue()
            if self._begin is not None:
                answer.put(self._begin_of(holder.rank))
            else:
                self._queues[holder.rank] = answer
            return holder, answer

    def ready(self, ticket: object) -> "queue.SimpleQueue[Message]":
        """A worker wants its first work."""
        with self._condition:
            return self._hand_out(self._group.holder(ticket).rank)

    def result(
        self, ticket: object, header: Mapping[str, Any], payload: memoryview
    ) -> "queue.SimpleQueue[Message]":
        """A worker hands in an update, or its part of a snapshot's evaluation."""
        with self._condition:
            rank = self._group.holder(ticket).rank
            if header.get("number") != self._number(rank):
                raise Superseded(f"work {header.get('number')!r} is not what this worker was given")
            layout = self._master.model_layout
            result = parse(header, payload, layout.dtype, layout.size)
            if rank not in self._pulled:
                snapshot = self._to_evaluate(rank)
                assert snapshot is not None
                snapshot.parts[rank] = result
                if self.watch is not None:
                    self.watch.pause(rank)
                self._condition.notify_all()
                return self._hand_out(rank)
            epoch, first, last = self._position(rank)
            try:
                check_finite(result, epoch, first, rank)
            except TrainingError as error:
                self._group.fail(error)
                raise Superseded("the run is over") from None
            if self.watch is not None:
                self.watch.result(rank, result.seconds)
            pulled, version = self._pulled.pop(rank)
            staleness = self._version - version
            # From here on the update counts as applied: whoever takes this rank's place goes on after it.
            self._next[rank] += 1
            self._version += 1
            self.staleness[staleness] += 1
            self.updates_of_rank[rank] += 1
            self.num_switches += self._last_rank not in (-1, rank)
            self._last_rank = rank
        # Applied and counted under one lock, so that a snapshot holds exactly the updates that it says; not in
        # hogwild mode, where there is none.
        with self._apply_lock:
            if result.samples:
                self._apply(rank, result.vector, pulled, last - first, staleness)
                self._master.take_counts([self._master.vectors.get_counts(), result.counts])
            with self._condition:
                self._applied[rank] += 1
                self._sums.add([result])
                self._applied_samples += result.samples
                self._cut_epoch()
                self._condition.notify_all()
                return self._hand_out(rank)

    def error(self, ticket: object, text: str) -> None:
        """A worker's own computation failed."""
        self._group.error(ticket, text)

    def lost(self, ticket: object, why: str) -> None:
        """A connection broke: Spark will notice, and start the task again."""
        self._group.lost(ticket, why)

    # What the master calls.

    def begin(
        self, header: Mapping[str, Any], rows: Sequence[int], rounds: Sequence[list[tuple[int, int]]]
    ) -> None:
        """Tell all workers what holds for the whole run.

        Args:
            header: The same for all, but for `steps`, which is added.
            rows: Of each worker.
            rounds: Of each worker's epoch: (first, last) steps.
        """
        with self._condition:
            self._rows, self._rounds = rows, [list(each) for each in rounds]
            self._next = list(self._resumed) or [0] * len(rows)
            self._begin = Message(Kind.BEGIN, header)
            self._applied = list(self._next)
            self._group.has_begun = True
            for rank, answer in self._queues.items():
                answer.put(self._begin_of(rank))
            self._queues.clear()

    def resume(self, next_updates: Sequence[int]) -> None:
        """Go on from the master as it is now and from these updates of the ranks; before `begin`."""
        self._resumed = list(next_updates)
        self._center = self._master.weights()

    def start(self, first_epoch: int, num_epochs: int, *, has_held_out: bool) -> None:
        """Let the workers train."""
        with self._condition:
            self._first_epoch, self._num_epochs, self._has_held_out = first_epoch, num_epochs, has_held_out
            self._applied_samples = first_epoch * sum(self._rows)
            self._epoch_started = time.perf_counter()
            for rank in list(self._queues):
                self._give(rank)

    def wait_for(self, epoch: int, report: Callable[[int, Sums], None]) -> Snapshot:
        """Wait until an epoch is over and evaluated.

        Args:
            epoch: From 0.
            report: Called now and then with the samples of the current epoch and their sums.
        """
        self._group.new_epoch()

        def over() -> bool:
            report(self._sums.samples, self._sums)
            if len(self._snapshots) <= epoch - self._first_epoch:
                return False
            found = self._snapshots[epoch - self._first_epoch]
            return not self._has_held_out or len(found.parts) == self._group.num_workers

        self._group.wait(over)
        return self._snapshots[epoch - self._first_epoch]

    def set_weights(self, weights: Vector) -> None:
        """Go on from other weights, which a callback has set."""
        with self._apply_lock:
            self._center = weights
            self._starts.clear()
            self._master.set_weights(weights)

    def finalized(self, state: Vector | None) -> Vector:
        """The weights that the optimizer ends with, from a snapshot's state or, without one, from the master's."""
        with self._apply_lock:
            if state is not None:
                self._master.set_state(state)
            return self._master.finalize()  # type: ignore[no-any-return]

    def stop(self) -> None:
        """Tell all workers that there is no more work."""
        with self._condition:
            self._stopping = True
            self._begin = Message(Kind.STOP)
            for rank in list(self._queues):
                self._give(rank)
        self._group.close()

    def updates(self) -> Updates:
        """What has been applied, and its staleness, for the run's record."""
        total = sum(self.staleness.values())
        mean = sum(count * value for value, count in self.staleness.items()) / max(1, total)
        return Updates(
            rule=self._rule,
            updates=total,
            updates_of_rank={str(rank): count for rank, count in sorted(self.updates_of_rank.items())},
            rank_switches=self.num_switches,
            staleness={
                "mean": mean,
                "max": max(self.staleness, default=0),
                "histogram": {str(value): count for value, count in sorted(self.staleness.items())},
            },
        )

    # With the condition held.

    def _forget(self) -> None:
        for answer in self._queues.values():
            answer.put(Message(Kind.REFUSED, {"text": "the workers were started again"}))
        self._queues.clear()
        self._pulled.clear()
        self._starts.clear()

    def _begin_of(self, rank: int) -> Message:
        assert self._begin is not None
        if self._begin.kind != Kind.BEGIN:
            return self._begin
        steps = self._rounds[rank][-1][1] if self._rounds[rank] else 0
        return Message(Kind.BEGIN, {**self._begin.header, "steps": max(1, steps)})

    def _position(self, rank: int) -> tuple[int, int, int]:
        """The epoch of this rank's own, and the steps, of its next update."""
        epoch, place = divmod(self._next[rank], len(self._rounds[rank]))
        return (epoch, *self._rounds[rank][place])

    def _is_done(self, rank: int) -> bool:
        return self._next[rank] >= self._num_epochs * len(self._rounds[rank])

    def _to_evaluate(self, rank: int) -> Snapshot | None:
        if not self._has_held_out:
            return None
        return next((snapshot for snapshot in self._snapshots if rank not in snapshot.parts), None)

    def _number(self, rank: int) -> str:
        snapshot = self._to_evaluate(rank) if rank not in self._pulled else None
        return f"snapshot {snapshot.epoch}" if snapshot is not None else f"update {self._next[rank]}"

    def _hand_out(self, rank: int) -> "queue.SimpleQueue[Message]":
        self._queues[rank] = queue.SimpleQueue()
        answer = self._queues[rank]
        if self._num_epochs or self._stopping:
            self._give(rank)
        return answer

    def _give(self, rank: int) -> None:
        """Answer a waiting worker, if there is something for it."""
        if self._stopping:
            self._queues.pop(rank).put(Message(Kind.STOP))
            return
        snapshot = self._to_evaluate(rank)
        if snapshot is not None:
            header: dict[str, Any] = {
                "number": self._number(rank),
                "task": "evaluate",
                **self._master.work(),
            }
            self._queues.pop(rank).put(Message(Kind.WORK, header, snapshot.weights))
        elif not self._is_done(rank):
            vector = self._starts.get(rank, self._center)  # neither is ever changed in place
            epoch, first, last = self._position(rank)
            self._pulled[rank] = vector, self._version
            steps = self._rounds[rank][-1][1]
            header = {
                "number": self._number(rank),
                "task": "train",
                "epoch": epoch,
                "first": first,
                "last": last,
                **self._master.work(),
                "iterations": epoch * steps + first,
            }
            self._queues.pop(rank).put(Message(Kind.WORK, header, vector))

    def _cut_epoch(self) -> None:
        """Take a snapshot when a corpus' worth of samples has been applied."""
        epoch = self._first_epoch + len(self._snapshots)
        if self._applied_samples < (epoch + 1) * sum(self._rows):
            return
        now = time.perf_counter()
        state = self._center if self._local else self._master.state()
        self._snapshots.append(
            Snapshot(epoch, self._center, state, list(self._applied), self._sums, now - self._epoch_started)
        )
        self._sums, self._epoch_started = Sums(), now
        for rank in list(self._queues):
            self._give(rank)

    # With the apply lock held, unless hogwild.

    def _apply(self, rank: int, pushed: Vector, pulled: Vector, num_steps: int, staleness: int) -> None:
        cut = self._num_trainable
        others = rules.statistics(self._center[cut:], pushed[cut:], staleness)
        if not self._local:
            factor = self._center.dtype.type(rules.gradient_factor(self._rule, staleness))
            self._center = self._master.apply_gradient(np.concatenate([pushed[:cut] * factor, others]))
            return
        push = rules.Push(
            self._center[:cut], pulled[:cut], pushed[:cut], num_steps, staleness, self._elasticity
        )
        center, start = rules.RULES[self._rule](push)
        self._center = np.concatenate([center, others])
        if self._rule in rules.ELASTIC:
            self._starts[rank] = np.concatenate([start, others])


class _NoLock:
    """Hogwild: what two threads apply at the same time may mix (Recht et al. 2011)."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


class AsynchronousRun:
    """A run whose workers push when they are ready. An `engine.Exchange`.

    Args:
        network: What callbacks see; it holds the last snapshot when training is over.
        master: Whose optimizer applies gradients. Its network is another one then.
        running: Takes the workers' updates.
        exchanged: Gradients, or weights after local steps.
    """

    def __init__(self, network: Any, master: Any, running: FreeRunning, exchanged: Exchanged) -> None:
        self._network, self._master, self.coordinator = network, master, running
        self._exchanged = exchanged

    def begin(self, header: Mapping[str, Any], epochs: Epochs) -> None:
        """Tell all workers what holds for the whole run."""
        rounds = [epochs.rounds_of(rank) for rank in range(len(epochs.rows))]
        longest = max((each for each in rounds if each), key=lambda each: each[-1][1])
        first, last = longest[0]
        self.coordinator.watch = ExchangeWatch(
            len(epochs.rows), self.coordinator.max_payload_bytes, last - first, longest[-1][1]
        )
        self.coordinator.begin({**header, "vector": self._exchanged}, epochs.rows, rounds)

    def train(self, epochs: Epochs, observers: Observers) -> None:
        """Let the workers train, and show each epoch's snapshot to the callbacks.

        Raises:
            TrainingError: The loss is no longer finite, or the workers failed.
        """
        if epochs.first < epochs.end:
            observers.callbacks.on_epoch_begin(epochs.first)
            self.coordinator.start(epochs.first, epochs.end, has_held_out=epochs.held_out_rows > 0)
        state: Vector | None = None
        for epoch in range(epochs.first, epochs.end):
            state = self._epoch(epoch, epochs, observers).state
            if self._network.stop_training:
                break
            if epoch + 1 < epochs.end:
                observers.callbacks.on_epoch_begin(epoch + 1)
        if keeps_averages(self._master.optimizer):
            self._master.show(self._network, self.coordinator.finalized(state))

    def updates(self) -> Updates | None:
        """What has been applied."""
        return self.coordinator.updates()

    def _epoch(self, epoch: int, epochs: Epochs, observers: Observers) -> Snapshot:
        """Wait for the end of an epoch, and show its snapshot."""
        master, network = self._master, self._network

        def report(samples: int, sums: Sums) -> None:
            if samples:
                observers.progress.step(epoch, samples, epochs.num_rows, lambda: sums.logs(master))

        snapshot = self.coordinator.wait_for(epoch, report)
        master.show(network, snapshot.weights)
        logs = snapshot.sums.logs(master)
        if epochs.held_out_rows:
            held_out = snapshot.held_out().logs(master)
            logs.update({f"val_{name}": value for name, value in held_out.items()})
        observers.callbacks.on_epoch_end(epoch, logs)
        changed = master.shown(network)
        if not np.array_equal(changed, snapshot.weights):
            self.coordinator.set_weights(changed)
        observers.checkpoint(epoch, snapshot.state, snapshot.next_updates)
        observers.progress.epoch(epoch, snapshot.seconds, epochs.num_rows, logs)
        return snapshot
