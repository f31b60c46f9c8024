"""Who starts a run's workers: a Spark stage (`stage`), or threads of this process.

A launcher starts all workers at once, as one attempt, and says how the attempt ended. Whether another one follows is
decided by the run's `coordination.WorkerGroup`.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Protocol

import pyarrow as pa

from seedlings_spark.training import worker
from seedlings_spark.training.client import ParameterClient
from seedlings_spark.training.wire import Credentials
from seedlings_spark.training.worker import TrainTask

# Called once, with what each worker has left behind, or with what ended the attempt.
Ended = Callable[[Sequence[Mapping[str, Any]], BaseException | None], None]


class Attempt(Protocol):
    """All workers of a run, started together."""

    def cancel(self) -> None:
        """Ask the workers to end; nothing happens to an attempt that is over."""

    def join(self, seconds: float) -> bool:
        """Wait until it is over and has said so; whether it has."""


class Launcher(Protocol):
    """Starts workers."""

    @property
    def addresses(self) -> tuple[str, str]:
        """The address that the master is to listen on, and the host by which the workers reach it."""

    def slots(self) -> int:
        """How many workers could run at once now."""

    def launch(self, task: TrainTask, ended: Ended) -> Attempt:
        """Start as many workers as the task says."""


class ThreadLauncher:
    """Workers as threads of this process, for tests and for a debugger: no Spark, no JVM.

    Args:
        rows: For each shard a function that gives its Arrow batches anew, as `worker.run` takes them.
        retries: How often a worker that ended with an error is started again alone, as a task of an ordinary stage is.
            Without any the first error ends the attempt, as in a barrier stage.

    Attributes:
        room: How many workers could run at once.
    """

    addresses = ("127.0.0.1", "127.0.0.1")

    def __init__(self, rows: Sequence[Callable[[], Iterator[pa.RecordBatch]]], *, retries: int = 0) -> None:
        self._rows, self._retries = rows, retries
        self.room = len(rows)
        self._current: _Threads | None = None

    def slots(self) -> int:
        """What `room` says."""
        return self.room

    def launch(self, task: TrainTask, ended: Ended) -> "_Threads":
        """Start a thread for each worker."""
        self._current = _Threads(task, self._rows, self._retries, ended)
        self._current.start()
        return self._current

    def kill(self, rank: int) -> None:
        """Cut a worker off from the master, whatever it is doing: to the master its process was killed."""
        if self._current is not None:
            self._current.cut(rank)


class _Threads:
    """One attempt of a `ThreadLauncher`."""

    def __init__(
        self,
        task: TrainTask,
        rows: Sequence[Callable[[], Iterator[pa.RecordBatch]]],
        retries: int,
        ended: Ended,
    ) -> None:
        self._task, self._rows, self._retries, self._ended = task, rows, retries, ended
        self._ranks = range(task.num_workers)
        self._lock = threading.Lock()
        self._clients: dict[int, ParameterClient] = {}
        self._summaries: list[Mapping[str, Any] | None] = []
        self._is_ending = False
        self._over = threading.Event()

    def start(self) -> None:
        for rank in self._ranks:
            threading.Thread(
                target=self._live, args=(rank,), name=f"seedlings-worker-{rank}", daemon=True
            ).start()

    def cancel(self) -> None:
        for rank in self._ranks:
            self.cut(rank)

    def join(self, seconds: float) -> bool:
        return self._over.wait(seconds)

    def cut(self, rank: int) -> None:
        with self._lock:
            client = self._clients.get(rank)
        if client is not None:
            client.cut()

    def _live(self, rank: int) -> None:
        failure: BaseException | None = None
        for attempt in range(self._retries + 1):
            try:
                summary = self._work(rank, attempt)
            except BaseException as error:
                failure = error
            else:
                self._count(summary)
                return
        self._end(failure)

    def _work(self, rank: int, attempt: int) -> Mapping[str, Any] | None:
        import tensorflow as tf  # as the master has started it

        def connect(address: tuple[str, int], credentials: Credentials) -> ParameterClient:
            client = ParameterClient(address, credentials)
            with self._lock:
                self._clients[rank] = client
            return client

        number = rank + attempt * self._task.num_workers
        batches = chain.from_iterable(self._rows[shard]() for shard in self._task.shards_of(rank))
        return worker.work(self._task, rank, number, batches, tf, connect)

    def _count(self, summary: Mapping[str, Any] | None) -> None:
        with self._lock:
            self._summaries.append(summary)
            is_last = len(self._summaries) == len(self._ranks)
        if is_last:
            self._end(None)

    def _end(self, error: BaseException | None) -> None:
        with self._lock:
            if self._is_ending:
                return
            self._is_ending = True
        if error is not None:
            self.cancel()  # those that still work, as Spark does
        try:
            summaries = [summary for summary in self._summaries if summary is not None]
            self._ended(summaries if error is None else (), error)
        finally:
            self._over.set()
