"""The driver's side of asynchronous training: one update at a time, from whichever worker has one.

Each worker goes through its shard `num_epochs` times at its own speed; what it pushes is applied at once and
exactly once: an update is taken from the worker that holds its rank's place, and only if it is the next one of
that rank. A retried, speculative or resurrected worker therefore goes on where its rank stands.

An epoch of the run is one corpus' worth of samples applied. A snapshot of the master is then taken, evaluated by all
workers as each of them comes by, and shown to callbacks; nobody waits for that.
"""

import queue
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from seedlings_spark.errors import TrainingError
from seedlings_spark.training.capacity import ExchangeWatch
from seedlings_spark.training.coordination import Sums, WorkerGroup, check_finite
from seedlings_spark.training.epochs import Epochs, Observers
from seedlings_spark.training.messages import Begin, Open, Result
from seedlings_spark.training.optimizer import keeps_averages
from seedlings_spark.training.record import Updates
from seedlings_spark.training.server import Superseded
from seedlings_spark.training.updates import Center, Snapshot, Snapshots, Turns, Update
from seedlings_spark.training.weights import Vector
from seedlings_spark.training.wire import Kind, Message


class FreeRunning:
    """Takes updates as they come. A `server.Coordinator`.

    Args:
        group: The workers.
        center: What updates enter.
        next_updates: Next updates of each rank, where the run goes on from a checkpoint; else empty.

    Attributes:
        watch: Told of every update, if there is one.
    """

    def __init__(self, group: WorkerGroup, center: Center, next_updates: Sequence[int] = ()) -> None:
        self._group, self._center, self._next_updates = group, center, next_updates
        self._condition = group.condition
        self._queues: dict[int, queue.SimpleQueue[Message]] = {}
        self._begin: Begin | None = None
        self._turns, self._snapshots = Turns(), Snapshots()
        self._num_epochs = 0  # until `start`
        self._stopping = False
        self.watch: ExchangeWatch | None = None
        group.on_restart = self._forget

    @property
    def max_payload_bytes(self) -> int:
        """The longest vector."""
        return self._center.layout.nbytes

    # What the server's threads call.

    def open(self, header: Mapping[str, Any]) -> tuple[object, "queue.SimpleQueue[Message]"]:
        """A worker says who it is; it takes the place of an earlier one of its rank."""
        with self._condition:
            holder = self._group.enter(Open.parse(header), replace=True)
            rank = holder.rank
            if rank in self._queues:
                self._queues.pop(rank).put(
                    Message(Kind.REFUSED, {"text": "another worker has this one's place"})
                )
            self._turns.forget(rank)
            self._center.forget(rank)
            answer: queue.SimpleQueue[Message] = queue.SimpleQueue()
            if self._begin is not None or self._stopping:
                answer.put(self._begin_of(rank))
            else:
                self._queues[rank] = answer
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
            result = Result.parse(header, payload, self._center.layout)
            if not self._turns.is_given(rank):
                return self._take_part(rank, result)
            update = self._take(rank, result)
        # Applied and counted under one lock, so that a snapshot holds exactly the updates that it says; not in
        # hogwild mode, where there is none.
        with self._center.lock:
            if result.samples:
                self._apply(rank, result, update)
            with self._condition:
                self._turns.applied[rank] += 1
                if self._snapshots.add(result):
                    self._snapshots.cut(self._center.weights, self._center.state(), self._turns.applied)
                    for waiting in list(self._queues):
                        self._give(waiting)
                self._condition.notify_all()
                return self._hand_out(rank)

    def _apply(self, rank: int, result: Result, update: Update) -> None:
        """Apply an update that has been taken: without it the run has no end, so that what goes wrong here ends it."""
        try:
            self._center.apply(rank, result, update)
        except Exception as error:  # of an optimizer of one's own, or for want of memory
            with self._condition:
                self._group.fail(error)
            raise Superseded("the run has ended") from error

    def error(self, ticket: object, text: str) -> None:
        """A worker's own computation failed."""
        self._group.error(ticket, text)

    def lost(self, ticket: object, why: str) -> None:
        """A connection broke: Spark will notice, and start the task again."""
        self._group.lost(ticket, why)

    # What the master calls.

    def begin(self, begin: Begin, rounds: Sequence[Sequence[tuple[int, int]]]) -> None:
        """Tell all workers what holds for the whole run.

        Args:
            begin: The same for all, but for `steps`, which are each worker's own.
            rounds: Rounds of each worker's epoch: (first, last) steps.
        """
        with self._condition:
            self._turns = Turns(rounds, self._next_updates)
            self._begin = begin
            self._group.has_begun = True
            for rank, answer in self._queues.items():
                answer.put(self._begin_of(rank))
            self._queues.clear()

    def start(self, snapshots: Snapshots, num_epochs: int) -> None:
        """Let the workers train."""
        with self._condition:
            self._snapshots, self._num_epochs = snapshots, num_epochs
            for rank in list(self._queues):
                self._give(rank)

    def wait_for(self, epoch: int, report: Callable[[int, Sums], None]) -> Snapshot:
        """Wait until an epoch is over and evaluated.

        Args:
            epoch: From 0.
            report: Called now and then with the samples of the current epoch and their sums.
        """
        self._group.new_epoch()
        found: list[Snapshot] = []

        def over() -> bool:
            report(self._snapshots.sums.samples, self._snapshots.sums)
            snapshot = self._snapshots.of(epoch, self._group.num_workers)
            found.extend([] if snapshot is None else [snapshot])
            return snapshot is not None

        self._group.wait(over)
        return found[0]

    def stop(self) -> None:
        """Tell all workers that there is no more work."""
        with self._condition:
            self._stopping = True
            for rank in list(self._queues):
                self._give(rank)
        self._group.close()

    def updates(self) -> Updates:
        """What has been applied, for the run's record."""
        return self._turns.updates(self._center.rule)

    # With the condition held.

    def _forget(self) -> None:
        for answer in self._queues.values():
            answer.put(Message(Kind.REFUSED, {"text": "the workers were started again"}))
        self._queues.clear()
        self._turns.forget()
        self._center.forget()

    def _begin_of(self, rank: int) -> Message:
        if self._begin is None or self._stopping:
            return Message(Kind.STOP)
        steps = max(1, self._turns.steps_of_epoch(rank))
        return Message(Kind.BEGIN, replace(self._begin, steps=steps).header())

    def _take(self, rank: int, result: Result) -> Update:
        """Count the update that a rank was given.

        Raises:
            Superseded: It is another one, or not finite, which ends the run.
        """
        if result.number != self._turns.number(rank) or len(result.vectors) != 1:
            raise Superseded(f"work {result.number!r} is not what this worker was given")
        try:
            check_finite(result.parts[0], self._turns.steps(rank), rank)
        except TrainingError as error:
            self._group.fail(error)
            raise Superseded("the run is over") from None
        if self.watch is not None:
            self.watch.result(rank, result.seconds)
        return self._turns.take(rank)

    def _take_part(self, rank: int, result: Result) -> "queue.SimpleQueue[Message]":
        """Take a rank's part of a snapshot's evaluation.

        Raises:
            Superseded: It was given none.
        """
        snapshot = self._snapshots.to_evaluate(rank)
        if snapshot is None or result.number != snapshot.number:
            raise Superseded(f"work {result.number!r} is not what this worker was given")
        snapshot.parts[rank] = result.parts[0]
        if self.watch is not None:
            self.watch.pause(rank)
        self._condition.notify_all()
        return self._hand_out(rank)

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
        snapshot = self._snapshots.to_evaluate(rank)
        if snapshot is not None:
            work = self._center.work(snapshot.number, None)
            self._queues.pop(rank).put(Message(Kind.WORK, work.header(), snapshot.weights))
        elif not self._turns.is_done(rank, self._num_epochs):
            start, steps = self._center.start_of(rank), self._turns.steps(rank)
            self._turns.give(rank, start)
            iterations = steps.epoch * self._turns.steps_of_epoch(rank) + steps.first
            work = self._center.work(self._turns.number(rank), steps, iterations)
            self._queues.pop(rank).put(Message(Kind.WORK, work.header(), start))


class AsynchronousRun:
    """A run whose workers push when they are ready. An `engine.Exchange`.

    Args:
        group: The workers.
        master: Whose optimizer applies gradients. Its network is another one than `network` then.
        network: What callbacks see; it holds the last snapshot when training is over.
        center: What updates enter.
        next_updates: Next updates of each rank, where the run goes on from a checkpoint; else empty.
    """

    def __init__(
        self, group: WorkerGroup, master: Any, network: Any, center: Center, next_updates: Sequence[int] = ()
    ) -> None:
        self._master, self._network, self._center = master, network, center
        self._next_updates = next_updates
        self.coordinator = FreeRunning(group, center, next_updates)

    def begin(self, begin: Begin, epochs: Epochs) -> None:
        """Tell all workers what holds for the whole run; `steps` are added."""
        rounds = [epochs.rounds_of(rank) for rank in range(len(epochs.rows))]
        longest = max((each for each in rounds if each), key=lambda each: each[-1][1])
        first, last = longest[0]
        self.coordinator.watch = ExchangeWatch(
            len(epochs.rows), self.coordinator.max_payload_bytes, last - first, longest[-1][1]
        )
        self.coordinator.begin(begin, rounds)

    def train(self, epochs: Epochs, observers: Observers) -> None:
        """Let the workers train, and show each epoch's snapshot to the callbacks.

        Raises:
            TrainingError: The loss is no longer finite, or the workers failed.
        """
        if epochs.first < epochs.end:
            observers.callbacks.on_epoch_begin(epochs.first)
            samples = sum(epochs.samples_before(*each) for each in enumerate(self._next_updates))
            has_held_out = epochs.held_out_rows > 0
            snapshots = Snapshots(epochs.num_rows, epochs.first, samples, has_held_out=has_held_out)
            self.coordinator.start(snapshots, epochs.end)
        state: Vector | None = None
        for epoch in range(epochs.first, epochs.end):
            state = self._epoch(epoch, epochs, observers).state
            if self._network.stop_training:
                break
            if epoch + 1 < epochs.end:
                observers.callbacks.on_epoch_begin(epoch + 1)
        if keeps_averages(self._master.optimizer):
            self._master.show(self._network, self._center.finalized(state))

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
            held_out = snapshot.held_out()
            logs.update({f"val_{name}": value for name, value in held_out.logs(master).items()})
            observers.hear_confusion(epoch, held_out.beyond(master))
        observers.callbacks.on_epoch_end(epoch, logs)
        changed = master.shown(network)
        if not np.array_equal(changed, snapshot.weights):
            self._center.set_weights(changed)
        observers.checkpoint(epoch, lambda: snapshot.state, snapshot.next_updates)
        observers.progress.epoch(epoch, snapshot.seconds, epochs.num_rows, logs)
        return snapshot
