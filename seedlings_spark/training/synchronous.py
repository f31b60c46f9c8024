"""The driver's side of synchronous training: every worker's part of a round, in the order of their ranks.

At frequency `batch` a round is one step: the workers send gradients, the master takes their mean weighted by
samples and makes one optimizer step. Otherwise a round is some steps that each worker takes on its own; then the
master takes the mean, weighted by samples, of weights and optimizer slots alike, and hands it out for the next.

Weights that are not trained (the moving statistics of batch normalisation) are averaged the same way, weighted
by samples, at the end of each round: they are estimates of the same quantity from different samples. Those that no
worker has changed stay what they are, to the bit. Of what a layer counts in integers the highest count stands.
"""

import queue
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from seedlings_spark.training.capacity import ExchangeWatch
from seedlings_spark.training.coordination import Result, Stages, Sums, check_finite, parse, seconds_of
from seedlings_spark.training.optimizer import has_dynamic_scale
from seedlings_spark.training.progress import Progress
from seedlings_spark.training.server import Superseded
from seedlings_spark.training.weights import Layout, Vector, weighted_mean
from seedlings_spark.training.wire import Kind, Message


class Rendezvous:
    """Where all workers meet the master once a round. A `server.Coordinator`.

    Args:
        stages: Starts the stage, and knows what has failed.
        layout: Of the workers' vectors.

    Attributes:
        watch: Told of every result, if there is one.
    """

    def __init__(self, stages: Stages, layout: Layout) -> None:
        self._stages, self._layout = stages, layout
        self._condition = stages.condition
        self._queues: dict[int, queue.SimpleQueue[Message]] = {}
        self._results: dict[int, tuple[Mapping[str, Any], memoryview]] = {}
        self._begin: Message | None = None
        self._work: Message | None = None
        self.watch: ExchangeWatch | None = None
        stages.on_restart = self._forget

    @property
    def max_payload_bytes(self) -> int:
        """The longest vector."""
        return self._layout.nbytes

    # What the server's threads call.

    def open(self, header: Mapping[str, Any]) -> tuple[object, "queue.SimpleQueue[Message]"]:
        """A worker says who it is."""
        with self._condition:
            place = self._stages.enter(header, replace=False)
            return place, self._answer(place.rank, self._begin)

    def ready(self, ticket: object) -> "queue.SimpleQueue[Message]":
        """A worker wants its first work."""
        with self._condition:
            return self._answer(self._stages.holder(ticket).rank, self._work)

    def result(
        self, ticket: object, header: Mapping[str, Any], payload: memoryview
    ) -> "queue.SimpleQueue[Message]":
        """A worker hands in its part of the round."""
        with self._condition:
            rank = self._stages.holder(ticket).rank
            if self._work is None or header.get("number") != self._work.header.get("number"):
                raise Superseded(f"work {header.get('number')!r} is not what this worker was given")
            self._results[rank] = header, payload
            if self.watch is not None and self._work.header["task"] == "train":
                self.watch.result(rank, seconds_of(header))
            self._condition.notify_all()
            return self._answer(rank, None)

    def error(self, ticket: object, text: str) -> None:
        """A worker's own computation failed."""
        self._stages.error(ticket, text)

    def lost(self, ticket: object, why: str) -> None:
        """A connection broke."""
        self._stages.lost(ticket, why)

    # What the master calls.

    def begin(self, header: Mapping[str, Any]) -> None:
        """Tell all workers, and those that will replace them, what holds for the whole run."""
        with self._condition:
            self._begin = Message(Kind.BEGIN, header)
            self._stages.has_begun = True
            self._tell_all(self._begin)

    def perform(self, header: Mapping[str, Any], vector: Vector) -> list[Result]:
        """Let all workers do one piece of work.

        Args:
            header: What to do; `number` tells it from all others.
            vector: The weights or state to start from. It must not be changed afterwards.

        Returns:
            One result a rank, in their order. The vectors are valid until the next call.

        Raises:
            TrainingError: A worker's own computation failed, or workers vanish again and again.
        """
        with self._condition:
            self._results.clear()
            if self.watch is not None and not header.get("first"):
                self.watch.pause()  # between epochs the master has other things to do
            self._work = Message(Kind.WORK, header, vector)
            self._tell_all(self._work)
        self._stages.wait(lambda: len(self._results) == self._stages.num_workers)
        return [
            parse(*self._results[rank], self._layout.dtype, self._layout.size)
            for rank in range(self._stages.num_workers)
        ]

    def stop(self) -> None:
        """Tell all workers that there is no more work."""
        with self._condition:
            self._begin = self._work = Message(Kind.STOP)
            self._tell_all(self._work)
        self._stages.close()

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

    def _forget(self) -> None:
        self._tell_all(Message(Kind.REFUSED, {"text": "the stage was started again"}))
        self._results.clear()


def steps_of_epoch(rows: Sequence[int], batch_size: int) -> int:
    """Steps in which every worker goes once through its rows, with batches of at most batch_size rows."""
    return -(-max(rows) // batch_size)


def rounds_of_epoch(num_steps: int, frequency: str | int) -> list[tuple[int, int]]:
    """The (first, last) steps of an epoch's rounds; `last` is the step after.

    Args:
        num_steps: Of the epoch.
        frequency: "batch", "epoch", or a number of steps; a last, shorter round takes what is left.
    """
    length = {"batch": 1, "epoch": max(1, num_steps)}.get(str(frequency)) or int(frequency)
    return [(first, min(first + length, num_steps)) for first in range(0, num_steps, length)]


def train(
    master: Any,
    rendezvous: Rendezvous,
    stages: Stages,
    *,
    rows: Sequence[int],
    held_out_rows: int,
    batch_size: int,
    frequency: str | int,
    first_epoch: int,
    num_epochs: int,
    callbacks: Any,
    progress: Progress,
    checkpoint: Callable[[int], None],
) -> None:
    """Train the master model.

    Args:
        master: A `master.Master`.
        rendezvous: With all workers gathered and begun.
        stages: Of the rendezvous.
        rows: Of each worker.
        held_out_rows: Of all workers together.
        batch_size: Rows of one worker at one step, at most.
        frequency: "batch", "epoch" or a number of steps.
        first_epoch: From 0.
        num_epochs: Of the whole run.
        callbacks: A `keras.callbacks.CallbackList` of the master's network, told that training begins.
        progress: Hears of every round.
        checkpoint: Called with each epoch that has ended, after its callbacks.

    Raises:
        TrainingError: The loss is no longer finite, or the workers failed.
    """
    num_steps, local = steps_of_epoch(rows, batch_size), frequency != "batch"
    may_overflow = not local and has_dynamic_scale(master.optimizer)
    total, number = sum(rows), 0
    for epoch in range(first_epoch, num_epochs):
        started = time.perf_counter()
        stages.new_epoch()
        callbacks.on_epoch_begin(epoch)
        sums = Sums()
        vector = master.state() if local else master.weights()
        for first, last in rounds_of_epoch(num_steps, frequency):
            number += 1
            results = rendezvous.perform(
                {
                    "number": number,
                    "task": "train",
                    "epoch": epoch,
                    "first": first,
                    "last": last,
                    **master.work(),
                },
                vector,
            )
            for rank, result in enumerate(results):
                check_finite(result, epoch, first, rank, may_overflow=may_overflow)
            mean = weighted_mean(
                [result.vector for result in results],
                [result.samples for result in results],
                master.constants,
            )
            master.take_counts([result.counts for result in results])
            if local:
                master.set_state(mean)
                master.take_counters([result.counters for result in results])
                vector = mean
            else:
                vector = master.apply_gradient(mean)
            sums.add(results)
            progress.step(epoch, sums.samples, total, lambda sums=sums: sums.logs(master))  # type: ignore[misc]
        seconds = time.perf_counter() - started
        logs = sums.logs(master)
        if held_out_rows:
            number += 1
            held_out = Sums()
            callbacks.on_test_begin()
            work = {"number": number, "task": "evaluate", **master.work()}
            held_out.add(rendezvous.perform(work, master.weights()))
            found = held_out.logs(master)
            callbacks.on_test_end(found)
            logs.update({f"val_{name}": value for name, value in found.items()})
        callbacks.on_epoch_end(epoch, logs)
        checkpoint(epoch)
        progress.epoch(epoch, seconds, total, logs)
        if master.network.stop_training:
            break
    master.finalize()
    callbacks.on_train_end()
