"""The driver's side of synchronous training: every worker's part of a round, in the order of their ranks.

At frequency `batch` a round is one step: the workers send gradients, the master takes their mean weighted by
samples and makes one optimizer step. Otherwise a round is some steps that each worker takes on its own; then the
master takes the mean, weighted by samples, of weights and optimizer slots alike, and hands it out for the next.

Weights that are not trained (the moving statistics of batch normalisation) are averaged the same way, weighted
by samples, at the end of each round: they are estimates of the same quantity from different samples.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from seedlings_spark.errors import TrainingError
from seedlings_spark.training.server import Superseded
from seedlings_spark.training.weights import Vector, weighted_mean
from seedlings_spark.training.wire import Kind, Message

_log = logging.getLogger(__name__)
# Seconds that Spark is given to notice by itself that a task has died, before the stage is cancelled.
_GRACE_SECONDS = 15.0


@dataclass(eq=False)
class Worker:
    """A worker as the master sees it: the ticket of its connection."""

    rank: int
    generation: int
    header: Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """What one worker has made of one piece of work.

    Args:
        samples: Rows it looked at.
        loss: Sum over them.
        metrics: Sums of the metrics' variables.
        bad_step: The first step whose loss was not finite, or None.
        vector: Gradient or state; empty after an evaluation.
    """

    samples: int
    loss: float
    metrics: NDArray[np.float64]
    bad_step: int | None
    vector: Vector


class StageEndedError(Exception):
    """The stage ended while the master still waits for its workers."""


class Rendezvous:
    """Where all workers meet the master once a round. A `server.Coordinator`.

    Args:
        run: Id of the run; workers of another one are refused.
        num_workers: How many meet.
        dtype: Of the vectors.
        max_payload_bytes: The longest vector.
        restart: Starts the stage of a generation; called again when the one before has failed.
        max_failures: How often a stage may fail within one epoch.
    """

    def __init__(
        self,
        run: str,
        num_workers: int,
        dtype: str,
        max_payload_bytes: int,
        restart: Callable[[int], Callable[[], None]],
        max_failures: int,
    ) -> None:
        self.max_payload_bytes = max_payload_bytes
        self._run, self._num_workers, self._dtype = run, num_workers, dtype
        self._restart, self._max_failures = restart, max_failures
        self._condition = threading.Condition()
        self._generation = -1
        self._cancel: Callable[[], None] = lambda: None
        self._workers: dict[int, Worker] = {}
        self._queues: dict[int, queue.SimpleQueue[Message]] = {}
        self._results: dict[int, tuple[Mapping[str, Any], memoryview]] = {}
        self._begin: Message | None = None
        self._work: Message | None = None
        self._failure: BaseException | None = None
        self._stage_error: BaseException | None = None
        self._lost_at: float | None = None
        self.num_failures = 0
        self._failures_of_epoch = 0

    # What the server's threads call.

    def open(self, header: Mapping[str, Any]) -> tuple[object, "queue.SimpleQueue[Message]"]:
        """A worker says who it is."""
        with self._condition:
            rank, generation = header.get("rank"), header.get("generation")
            if header.get("run") != self._run or generation != self._generation:
                raise Superseded("this run or attempt is over")
            if "error" in header:
                self._fail(f"worker {rank}: {header['error']}")
                raise Superseded("the run is over")
            if not isinstance(rank, int) or not 0 <= rank < self._num_workers or rank in self._workers:
                raise Superseded(f"rank {rank!r} is not free")
            worker = Worker(rank, generation, header)
            self._workers[rank] = worker
            answer: queue.SimpleQueue[Message] = queue.SimpleQueue()
            if self._begin is not None:
                answer.put(self._begin)
            else:
                self._queues[rank] = answer
            self._condition.notify_all()
            return worker, answer

    def ready(self, ticket: object) -> "queue.SimpleQueue[Message]":
        """A worker wants its first work."""
        with self._condition:
            worker = self._known(ticket)
            answer: queue.SimpleQueue[Message] = queue.SimpleQueue()
            self._queues[worker.rank] = answer
            if self._work is not None:
                answer.put(self._work)
            return answer

    def result(
        self, ticket: object, header: Mapping[str, Any], payload: memoryview
    ) -> "queue.SimpleQueue[Message]":
        """A worker hands in its part of the round."""
        with self._condition:
            worker = self._known(ticket)
            if self._work is None or header.get("number") != self._work.header["number"]:
                raise Superseded(f"work {header.get('number')!r} is not what this worker was given")
            answer: queue.SimpleQueue[Message] = queue.SimpleQueue()
            self._queues[worker.rank] = answer
            self._results[worker.rank] = header, payload
            self._condition.notify_all()
            return answer

    def error(self, ticket: object, text: str) -> None:
        """A worker's own computation failed: it would fail again."""
        with self._condition:
            if self._is_known(ticket):
                assert isinstance(ticket, Worker)
                self._fail(f"an exception in worker {ticket.rank}:\n{text.rstrip()}\n")

    def lost(self, ticket: object, why: str) -> None:
        """A connection broke. Spark is given some time to notice that the task is gone."""
        with self._condition:
            if self._is_known(ticket):
                assert isinstance(ticket, Worker)
                _log.warning("lost worker %d: %s", ticket.rank, why)
                self._lost_at = time.monotonic()
                self._condition.notify_all()

    def _fail(self, found: str) -> None:
        self._failure = TrainingError(
            found, "a computation that ends", "Mend what it names; it was not tried again, since it would fail again"
        )
        self._condition.notify_all()

    def _is_known(self, ticket: object) -> bool:
        return isinstance(ticket, Worker) and self._workers.get(ticket.rank) is ticket

    def _known(self, ticket: object) -> Worker:
        if not self._is_known(ticket):
            raise Superseded("another worker has this one's place")
        assert isinstance(ticket, Worker)
        return ticket

    # What the stage's thread calls.

    def stage_ended(self, generation: int, error: BaseException | None) -> None:
        """The stage of a generation is over."""
        with self._condition:
            if generation == self._generation:
                self._stage_error = error or StageEndedError("the stage ended before its work")
                self._condition.notify_all()

    # What the master calls.

    def gather_workers(self) -> list[Mapping[str, Any]]:
        """Start the stage and wait until every worker has said who it is; their headers, by rank."""
        self._start()
        self._wait(lambda: len(self._workers) == self._num_workers)
        return [self._workers[rank].header for rank in range(self._num_workers)]

    def begin(self, header: Mapping[str, Any]) -> None:
        """Tell all workers, and those that will replace them, what holds for the whole run."""
        with self._condition:
            self._begin = Message(Kind.BEGIN, header)
            for answer in self._queues.values():
                answer.put(self._begin)
            self._queues.clear()

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
            self._work = Message(Kind.WORK, header, vector)
            for answer in self._queues.values():
                answer.put(self._work)
            self._queues.clear()
        self._wait(lambda: len(self._results) == self._num_workers)
        return [self._parse(*self._results[rank]) for rank in range(self._num_workers)]

    def new_epoch(self) -> None:
        """Give the stage its full budget of failures again."""
        self._failures_of_epoch = 0

    def stop(self) -> None:
        """Tell all workers that there is no more work."""
        with self._condition:
            self._begin = self._work = Message(Kind.STOP)
            for answer in self._queues.values():
                answer.put(self._work)
            self._queues.clear()
            self._generation += 1  # whoever comes now is too late

    def _parse(self, header: Mapping[str, Any], payload: memoryview) -> Result:
        bad = header["bad_step"]
        return Result(
            int(header["samples"]),
            float("nan") if bad is not None else float(header["loss"]),
            np.asarray(header["metrics"], np.float64),
            bad,
            np.frombuffer(payload, self._dtype),
        )

    def _start(self) -> None:
        with self._condition:
            for answer in self._queues.values():
                answer.put(Message(Kind.REFUSED, {"text": "the stage was started again"}))
            self._queues.clear()
            self._workers.clear()
            self._results.clear()
            self._lost_at = self._stage_error = None
            self._generation += 1
            generation = self._generation
        self._cancel = self._restart(generation)

    def _wait(self, done: Callable[[], bool]) -> None:
        while True:
            cancel = False
            with self._condition:
                if self._failure is not None:
                    raise self._failure
                if done():
                    return
                error = self._stage_error
                if error is None:
                    if self._lost_at is not None and time.monotonic() - self._lost_at > _GRACE_SECONDS:
                        cancel, self._lost_at = True, None
                    else:
                        self._condition.wait(1.0)
            if cancel:
                _log.warning("Spark has not noticed that a worker is gone; cancelling the stage")
                self._cancel()
            if error is not None:
                self._count_failure(error)
                self._start()

    def _count_failure(self, error: BaseException) -> None:
        self.num_failures += 1
        self._failures_of_epoch += 1
        reason = _in_brief(error)
        if self._begin is None or self._failures_of_epoch > self._max_failures:
            raise TrainingError(
                f"the workers' stage failed {self._failures_of_epoch} times in one epoch, at last with: {reason}",
                f"at most {self._max_failures} failures an epoch, and workers that start",
                "Look into the executors' logs; memory (spark.executor.memoryOverhead) is the most frequent cause",
            ) from error
        _log.warning("the workers' stage failed (%s); starting it again where it was", reason)


def _in_brief(error: BaseException) -> str:
    """What failed in one line: of a Python worker's traceback its last line, and no Java frames."""
    lines = [line.strip() for line in str(error).split("\n\tat ")[0].splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    traceback_starts = any(line.startswith("Traceback") for line in lines)
    return (lines[-1] if traceback_starts else lines[0])[:500]


class Progress(Protocol):
    """Hears how far training is."""

    def step(
        self, epoch: int, images: int, images_of_epoch: int, logs: Callable[[], Mapping[str, float]]
    ) -> None:
        """Some rows of an epoch have been trained on."""

    def epoch(self, epoch: int, seconds: float, images: int, logs: Mapping[str, float]) -> None:
        """An epoch has ended."""


def steps_of_epoch(rows: Sequence[int], batch_size: int) -> int:
    """Steps in which every worker goes once through its rows, with batches of at most batch_size rows."""
    return -(-max(rows) // batch_size)


def rounds_of_epoch(num_steps: int, frequency: str | int) -> list[tuple[int, int]]:
    """The (first, last) steps of an epoch's rounds; `last` is the step after.

    Args:
        num_steps: Of the epoch.
        frequency: "batch", "epoch", or a number of steps; a last, shorter round takes what is left.
    """
    length = (
        {"batch": 1, "epoch": num_steps}.get(frequency, frequency)
        if isinstance(frequency, str)
        else frequency
    )
    assert isinstance(length, int)
    return [(first, min(first + length, num_steps)) for first in range(0, num_steps, length)]


def train(
    master: Any,
    rendezvous: Rendezvous,
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
        rows: Of each worker.
        held_out_rows: Of all workers together.
        batch_size: Rows of one worker at one step, at most.
        frequency: "batch", "epoch" or a number of steps.
        first_epoch: From 0.
        num_epochs: Of the whole run.
        callbacks: A `keras.callbacks.CallbackList` of the master's network.
        progress: Hears of every round.
        checkpoint: Called with each epoch that has ended, before its callbacks may end the run.

    Raises:
        TrainingError: The loss is no longer finite, or the workers failed.
    """
    num_steps, local = steps_of_epoch(rows, batch_size), frequency != "batch"
    total, number = sum(rows), 0
    callbacks.on_train_begin()
    for epoch in range(first_epoch, num_epochs):
        started = time.perf_counter()
        rendezvous.new_epoch()
        callbacks.on_epoch_begin(epoch)
        sums = _Sums()
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
                    "learning_rate": master.learning_rate,
                    "iterations": master.iterations,
                },
                vector,
            )
            _check(results, epoch, first)
            mean = weighted_mean(
                [result.vector for result in results], [result.samples for result in results]
            )
            if local:
                master.set_state(mean)
                master.advance(last - first)
                vector = mean
            else:
                vector = master.apply_gradient(mean)
            sums.add(results)
            progress.step(epoch, sums.samples, total, lambda sums=sums: sums.logs(master))  # type: ignore[misc]
        seconds = time.perf_counter() - started
        logs = sums.logs(master)
        if held_out_rows:
            number += 1
            results = rendezvous.perform({"number": number, "task": "evaluate"}, master.weights())
            held_out = _Sums()
            held_out.add(results)
            logs.update({f"val_{name}": value for name, value in held_out.logs(master).items()})
        callbacks.on_epoch_end(epoch, logs)
        checkpoint(epoch)
        progress.epoch(epoch, seconds, total, logs)
        if master.network.stop_training:
            break
    callbacks.on_train_end()


class _Sums:
    """Samples, loss and metrics summed over rounds and ranks."""

    def __init__(self) -> None:
        self.samples = 0
        self._loss = 0.0
        self._metrics: NDArray[np.float64] | None = None

    def add(self, results: Sequence[Result]) -> None:
        for result in results:
            if result.samples:
                self.samples += result.samples
                self._loss += result.loss
                self._metrics = result.metrics if self._metrics is None else self._metrics + result.metrics

    def logs(self, master: Any) -> dict[str, float]:
        metrics = [] if self._metrics is None else self._metrics.tolist()
        logs: dict[str, float] = master.logs(self._loss / max(1, self.samples), metrics)
        return logs


def _check(results: Sequence[Result], epoch: int, first: int) -> None:
    for rank, result in enumerate(results):
        if result.bad_step is not None or not np.isfinite(result.vector).all():
            step = first if result.bad_step is None else result.bad_step
            raise TrainingError(
                f"a loss or gradient that is not finite, in epoch {epoch + 1}, step {step + 1}, worker {rank}",
                "finite numbers",
                "Lower the learning rate (--learning-rate), or clip gradients (clipnorm of the optimizer)",
            )
