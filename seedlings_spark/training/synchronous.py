"""The driver's side of synchronous training: every shard's part of a round, in one order whoever has made it.

At frequency `batch` a round is one step: the workers send gradients, the master takes their mean weighted by
samples and makes one optimizer step. Otherwise a round is some steps that are taken for each shard on its own; then the
master takes the mean, weighted by samples, of weights and optimizer slots alike, and hands it out for the next.

Weights that are not trained (the moving statistics of batch normalisation) are averaged the same way, weighted
by samples, at the end of each round: they are estimates of the same quantity from different samples. Those that no
worker has changed stay what they are, to the bit. Of what a layer counts in integers the highest count stands.
"""

import queue
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from seedlings_spark.training.capacity import ExchangeWatch
from seedlings_spark.training.coordination import Sums, WorkerGroup, check_finite
from seedlings_spark.training.epochs import Epochs, Observers
from seedlings_spark.training.messages import Begin, Exchanged, Open, Part, Result, Steps, Work
from seedlings_spark.training.optimizer import has_dynamic_scale
from seedlings_spark.training.record import Updates
from seedlings_spark.training.server import Superseded
from seedlings_spark.training.tree import Mean, mean_of, most_nodes, nodes_within
from seedlings_spark.training.weights import Layout, Vector
from seedlings_spark.training.wire import Kind, Message


@dataclass(frozen=True)
class Round:
    """What all workers have made of one piece of work.

    Args:
        parts: One of each shard, in their order.
        mean: Of the vectors of all shards, which is nobody else's; None after an evaluation.
    """

    parts: list[Part]
    mean: Vector | None


class Rendezvous:
    """Where all workers meet the master once a round. A `server.Coordinator`.

    Args:
        group: The workers.
        layout: Layout of a vector.

    Attributes:
        watch: Told of every result, if there is one.
    """

    def __init__(self, group: WorkerGroup, layout: Layout) -> None:
        self._group, self._layout = group, layout
        self._condition = group.condition
        self._queues: dict[int, queue.SimpleQueue[Message]] = {}
        self._results: dict[int, Result] = {}
        self._work: Work | None = None
        self._begin: Message | None = None
        self._message: Message | None = None  # of the work
        self._is_leaving = False  # whether this generation of workers is over
        self.watch: ExchangeWatch | None = None
        group.on_restart = self._forget

    @property
    def max_payload_bytes(self) -> int:
        """As many of the longest vectors as a worker sends at once."""
        return self._layout.nbytes * most_nodes(self._group.num_workers, self._group.num_shards)

    # What the server's threads call.

    def open(self, header: Mapping[str, Any]) -> tuple[object, "queue.SimpleQueue[Message]"]:
        """A worker says who it is."""
        with self._condition:
            holder = self._group.enter(Open.parse(header), replace=False)
            return holder, self._answer(holder.rank, self._begin)

    def ready(self, ticket: object) -> "queue.SimpleQueue[Message]":
        """A worker wants its first work."""
        with self._condition:
            if not self._group.holds(ticket) or self._is_leaving:
                return self._left()
            return self._answer(self._group.holder(ticket).rank, self._message)

    def result(
        self, ticket: object, header: Mapping[str, Any], payload: memoryview
    ) -> "queue.SimpleQueue[Message]":
        """A worker hands in its part of the round."""
        with self._condition:
            if not self._group.holds(ticket) or self._is_leaving:
                return self._left()
            rank = self._group.holder(ticket).rank
            held = self._group.shards_of(rank)
            result = Result.parse(header, payload, self._layout, len(held))
            nodes = nodes_within(held, self._group.num_shards)
            is_whole = self._work is not None and len(result.vectors) == len(nodes) * (
                self._work.steps is not None
            )
            if self._work is None or result.number != self._work.number or not is_whole:
                raise Superseded(f"work {result.number!r} is not what this worker was given")
            self._results[rank] = result
            if self.watch is not None and self._work.steps is not None:
                self.watch.result(rank, result.seconds)
            self._condition.notify_all()
            return self._answer(rank, None)

    def error(self, ticket: object, text: str) -> None:
        """A worker's own computation failed."""
        self._group.error(ticket, text)

    def lost(self, ticket: object, why: str) -> None:
        """A connection broke: the others are told at once that this generation is over.

        They end before Spark ends them, so that their processes stay for the next generation, with what they hold.
        """
        if self._group.lost(ticket, why):
            with self._condition:
                self._is_leaving = self._group.has_begun
                if self._is_leaving:
                    self._tell_all(_AGAIN)

    # What the master calls.

    def begin(self, begin: Begin) -> None:
        """Tell all workers, and those that will replace them, what holds for the whole run."""
        with self._condition:
            self._begin = Message(Kind.BEGIN, begin.header())
            self._group.has_begun = True
            self._tell_all(self._begin)

    def perform(self, work: Work, vector: Vector) -> Round:
        """Let all workers do one piece of work.

        Args:
            work: What to do.
            vector: The weights or state to start from. It must not be changed afterwards.

        Raises:
            TrainingError: A worker's own computation failed, or workers vanish again and again.
        """
        with self._condition:
            self._results.clear()
            if self.watch is not None and (work.steps is None or not work.steps.first):
                self.watch.pause()  # between epochs the master has other things to do
            self._work, self._message = work, Message(Kind.WORK, work.header(), vector)
            self._tell_all(self._message)
        self._group.wait(lambda: len(self._results) == self._group.num_workers)
        with self._condition:
            self._message = None  # workers that come before the next piece of work wait for it
        results = [self._results[rank] for rank in range(self._group.num_workers)]
        parts = [part for result in results for part in result.parts]
        return Round(parts, None if work.steps is None else self._mean(results, parts))

    def _mean(self, results: Sequence[Result], parts: Sequence[Part]) -> Vector:
        """The mean of all shards' vectors, from those of the workers' nodes."""
        group, known = self._group, {}
        for rank, result in enumerate(results):
            nodes = nodes_within(group.shards_of(rank), group.num_shards)
            for node, vector in zip(nodes, result.vectors, strict=True):
                known[node] = Mean(vector, sum(parts[shard].samples for shard in node))
        mean = mean_of(range(group.num_shards), known.get)
        if not mean.samples:
            raise ValueError("a mean over no samples")
        # One that is a worker's own lies in the buffer of its connection.
        is_own = any(mean.vector is one.vector for one in known.values())
        return np.array(mean.vector) if is_own else mean.vector

    def stop(self) -> None:
        """Tell all workers that there is no more work."""
        with self._condition:
            self._work = None
            self._begin = self._message = Message(Kind.STOP)
            self._tell_all(self._message)
        self._group.close()

    def _answer(self, rank: int, message: Message | None) -> "queue.SimpleQueue[Message]":
        answer: queue.SimpleQueue[Message] = queue.SimpleQueue()
        if message is not None:
            answer.put(message)
        else:
            self._queues[rank] = answer
        return answer

    def _tell_all(self, message: Message) -> None:
        for answer in self._queues.values():
            answer.put(message)
        self._queues.clear()

    def _left(self) -> "queue.SimpleQueue[Message]":
        """What a worker is told whose generation is over."""
        answer: queue.SimpleQueue[Message] = queue.SimpleQueue()
        answer.put(_AGAIN)
        return answer

    def _forget(self) -> None:
        self._tell_all(_AGAIN)
        self._results.clear()
        self._is_leaving = False
        if self.watch is not None:
            self.watch.pause()


# There is no more work for this generation; for the next one, which may be in the same process, there will be.
_AGAIN = Message(Kind.STOP, {"again": True})


class SynchronousRun:
    """A run whose workers meet once a round. An `engine.Exchange`.

    Args:
        group: The workers.
        master: A `master.Master`.
        exchanged: Gradients, or state after local steps.
    """

    def __init__(self, group: WorkerGroup, master: Any, exchanged: Exchanged) -> None:
        self._group, self._master = group, master
        self._is_local = exchanged.is_local
        self._number = 0
        self.coordinator = Rendezvous(group, master.state_layout if self._is_local else master.model_layout)

    def begin(self, begin: Begin, epochs: Epochs) -> None:
        """Tell all workers what holds for the whole run; `steps` are added."""
        first, last = epochs.rounds()[0]
        self.coordinator.watch = ExchangeWatch(
            self._group.num_workers, self.coordinator.max_payload_bytes, last - first, epochs.num_steps
        )
        self.coordinator.begin(replace(begin, steps=epochs.num_steps))

    def train(self, epochs: Epochs, observers: Observers) -> None:
        """Train the master model.

        Raises:
            TrainingError: The loss is no longer finite, or the workers failed.
        """
        for epoch in range(epochs.first, epochs.end):
            self._group.new_epoch()
            self._epoch(epoch, epochs, observers)
            if self._master.network.stop_training:
                break
            if epoch + 1 < epochs.end:
                self._group.grow()
        self._master.finalize()

    def updates(self) -> Updates | None:
        """None: only an asynchronous run counts them."""
        return None

    def _epoch(self, epoch: int, epochs: Epochs, observers: Observers) -> None:
        started = time.perf_counter()
        observers.callbacks.on_epoch_begin(epoch)
        sums = Sums()
        vector = self._master.state() if self._is_local else self._master.weights()
        for first, last in epochs.rounds():
            vector = self._round(Steps(epoch, first, last), vector, sums)
            observers.progress.step(epoch, sums.samples, epochs.num_rows, lambda: sums.logs(self._master))
        seconds = time.perf_counter() - started
        logs = sums.logs(self._master)
        if epochs.held_out_rows:
            observers.callbacks.on_test_begin()
            found = self._evaluate()
            observers.callbacks.on_test_end(found)
            logs.update({f"val_{name}": value for name, value in found.items()})
        observers.callbacks.on_epoch_end(epoch, logs)
        observers.checkpoint(epoch, self._master.state(), ())
        observers.progress.epoch(epoch, seconds, epochs.num_rows, logs)

    def _round(self, steps: Steps, vector: Vector, sums: Sums) -> Vector:
        """Let all workers train some steps, and take what they make of it; what the next round starts from."""
        master = self._master
        may_overflow = not self._is_local and has_dynamic_scale(master.optimizer)
        found = self._perform(steps, vector)
        for shard, part in enumerate(found.parts):
            check_finite(part, steps, shard, may_overflow=may_overflow)
        if found.mean is None:
            raise RuntimeError("a round of training without vectors")
        master.take_counts([part.counts for part in found.parts])
        if self._is_local:
            master.set_state(found.mean)
            master.take_counters([part.counters for part in found.parts])
            vector = found.mean
        else:
            vector = master.apply_gradient(found.mean)
        sums.add(found.parts)
        return vector

    def _evaluate(self) -> dict[str, float]:
        """Loss and metrics of the rows that are held out."""
        held_out = Sums()
        held_out.add(self._perform(None, self._master.weights()).parts)
        return held_out.logs(self._master)

    def _perform(self, steps: Steps | None, vector: Vector) -> Round:
        self._number += 1
        return self.coordinator.perform(self._master.work(self._number, steps), vector)
