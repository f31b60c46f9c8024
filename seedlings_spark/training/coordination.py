"""What the coordinators of all modes share: who holds which rank, what has failed, sums over results.

`WorkerGroup` owns the one condition variable of a run. The server's threads change its state while they hold it; the
master waits on it, and starts the workers again when they have failed.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seedlings_spark.errors import (
    CorpusError,
    SeedlingsError,
    TrainingError,
    from_worker,
    in_brief,
    recognized,
)
from seedlings_spark.training.launcher import Attempt, Ended
from seedlings_spark.training.messages import Open, Part, Rows, Steps
from seedlings_spark.training.server import Superseded
from seedlings_spark.training.tree import blocks, sizes_of

_log = logging.getLogger(__name__)
# Seconds that Spark is given to notice by itself that a task of a barrier stage has died, before the stage is
# cancelled; and to notice it and start the task again, with TensorFlow, in an ordinary stage.
GRACE_SECONDS, RETRY_SECONDS = 15.0, 180.0
# How long a run without room for its fewest workers waits before it leaves waiting to Spark; looks at the slots, a
# second each, after which a stage is given up that some of its workers have no room in.
_ROOM_SECONDS, _LOOKS = 120.0, 3
# At most between two of those looks.
_WAKE_SECONDS = 1.0


@dataclass(eq=False)
class RankHolder:
    """The worker that holds a rank: the ticket of its connection."""

    rank: int
    opened: Open


def check_finite(part: Part, steps: Steps, shard: int, *, may_overflow: bool = False) -> None:
    """Refuse a result that would spoil the model.

    Args:
        part: Of one shard.
        steps: That were to be trained.
        shard: Number of the shard.
        may_overflow: Whether the optimizer itself leaves out a gradient that is not finite.

    Raises:
        TrainingError: Its loss, or a number of its vector, is not finite.
    """
    if part.bad_step is None and np.isfinite(part.loss) and (may_overflow or part.is_finite):
        return
    step = steps.first if part.bad_step is None else part.bad_step
    raise TrainingError(
        f"a loss or gradient that is not finite, in epoch {steps.epoch + 1}, step {step + 1}, shard {shard}",
        "finite numbers",
        "Lower the learning rate (--learning-rate), or clip gradients (clipnorm of the optimizer)",
    )


class Sums:
    """Samples, loss and metrics of many shards and rounds."""

    def __init__(self) -> None:
        self.samples = 0
        self._loss = 0.0
        self._metrics: NDArray[np.float64] | None = None

    def add(self, parts: Sequence[Part]) -> None:
        """Add parts, in the order given."""
        for part in parts:
            if part.samples:
                self.samples += part.samples
                self._loss += part.loss
                self._metrics = part.metrics if self._metrics is None else self._metrics + part.metrics

    def logs(self, master: Any) -> dict[str, float]:
        """What Keras would log of them."""
        metrics = [] if self._metrics is None else self._metrics.tolist()
        logs: dict[str, float] = master.logs(self._loss / max(1, self.samples), metrics)
        return logs

    def beyond(self, master: Any) -> NDArray[np.float64]:
        """What the workers have added up behind the metrics."""
        return np.zeros(0) if self._metrics is None else self._metrics[sum(master.metric_sizes) :]


@dataclass(frozen=True)
class Size:
    """How many workers a run has.

    Args:
        least: With fewer it waits.
        most: More are not started.
        slots: How many could run now; not asked where `least` is `most`.
    """

    least: int
    most: int
    slots: Callable[[], int] = lambda: 0

    @property
    def is_elastic(self) -> bool:
        """Whether it may change."""
        return self.least < self.most

    def now(self) -> int:
        """As many as there is room for."""
        return max(self.least, min(self.most, self.slots())) if self.is_elastic else self.most


class WorkerGroup:
    """A run's workers, started again when they fail, and who of them holds which rank.

    Args:
        run: Id of the run; workers of another one are refused.
        size: How many workers are started at once.
        num_shards: Shards that they hold among them.
        launch: Starts the workers of a generation, as many as said, and will call the function that it is given when
            they have ended.
        max_failures: How often they may fail within one epoch.
        grace_seconds: How long a lost worker may be without a successor before all are cancelled.
    """

    def __init__(
        self,
        run: str,
        size: Size,
        num_shards: int,
        launch: Callable[[int, int, Ended], Attempt],
        max_failures: int,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self.condition = threading.Condition()
        self.num_workers, self.num_shards = size.most, num_shards
        self.num_failures = self.num_moved = 0
        self.has_begun = False
        self.on_restart: Callable[[], None] = lambda: None
        self.summaries: list[Mapping[str, Any]] = []
        self._size, self._run, self._launch, self._max_failures = size, run, launch, max_failures
        self._grace_seconds = grace_seconds
        self._generation = -1
        self._attempts: list[Attempt] = []
        self._holders: dict[int, RankHolder] = {}
        self._rows: list[Rows] = []  # of each shard, as the run began with them
        self._sizes = sizes_of(size.most, num_shards)
        self._failure: BaseException | None = None
        self._attempt_error: BaseException | None = None
        self._lost_at: float | None = None
        self._lost_link: BaseException | None = None
        self._looks_without_room = 0
        self._failures_of_epoch = 0

    @property
    def generation(self) -> int:
        """How many times workers have been started before those that there are now."""
        return self._generation

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many shards each worker of the present generation holds."""
        return self._sizes

    def shards_of(self, rank: int) -> range:
        """The shards that a worker of the present generation holds."""
        return blocks(self._sizes)[rank]

    def rows_of(self, shard: int) -> Rows:
        """What is known of the rows of a shard."""
        return self._rows[shard]

    # With the condition held.

    def enter(self, opened: Open, *, replace: bool) -> RankHolder:
        """Let a worker hold its rank.

        Args:
            opened: Its first message.
            replace: Whether it may follow on another one, as a retried task does.

        Raises:
            Superseded: It is not a worker of this run and generation, or its rank is taken.
        """
        rank = opened.rank
        if opened.run != self._run or opened.generation != self._generation:
            raise Superseded("this run or attempt is over")
        if opened.failure is not None:
            self.fail(opened.failure.error(rank))
            raise Superseded("the run is over")
        if not 0 <= rank < self.num_workers or (rank in self._holders and not replace):
            raise Superseded(f"rank {rank} is not free")
        if len(opened.shards) != len(self.shards_of(rank)):
            raise Superseded(f"a worker of {len(opened.shards)} shards, expected {len(self.shards_of(rank))}")
        if self._rows:
            self._check_rows(opened)
        self._holders[rank] = RankHolder(rank, opened)
        self._lost_at = None
        self.condition.notify_all()
        return self._holders[rank]

    def holds(self, ticket: object) -> bool:
        """Whether a ticket is that of a worker that holds its rank."""
        return isinstance(ticket, RankHolder) and self._holds(ticket)

    def holder(self, ticket: object) -> RankHolder:
        """The worker of a ticket.

        Raises:
            Superseded: Another one holds its rank by now.
        """
        if not isinstance(ticket, RankHolder) or self._holders.get(ticket.rank) is not ticket:
            raise Superseded("another worker has this one's place")
        return ticket

    def opened(self, rank: int) -> Open:
        """What the worker that holds a rank has said of itself."""
        return self._holders[rank].opened

    def hosts(self) -> set[str]:
        """Where the workers are that others reach."""
        with self.condition:
            return {
                str(holder.opened.address[0]) for holder in self._holders.values() if holder.opened.address
            }

    def lost_link(self, text: str) -> None:
        """Two workers do not reach each other, so that this attempt has no result: what to say of its end.

        Those that do not notice, since they wait at a link on which nothing comes, are given the time of a lost worker.
        """
        if self._lost_link is None:
            _log.warning("lost a connection: %s", text)
            self._lost_link = ConnectionError(text)
            self._lost_at = time.monotonic()
        self.condition.notify_all()

    def deal(self, sizes: tuple[int, ...], num_moved: int) -> None:
        """So many shards have been moved, after which the workers of this generation hold others."""
        self._sizes, self.num_moved = sizes, self.num_moved + num_moved

    def fail(self, error: BaseException) -> None:
        """End the run with this error."""
        self._failure = self._failure or error
        self.condition.notify_all()

    # Called without it.

    def error(self, ticket: object, text: str) -> None:
        """A worker's own computation failed: it would fail again."""
        with self.condition:
            if isinstance(ticket, RankHolder) and self._holds(ticket):
                self.fail(_own_words(f"an exception in worker {ticket.rank}:\n{text.rstrip()}\n"))

    def lost(self, ticket: object, why: str) -> bool:
        """A connection broke. Spark is given some time to notice that the task is gone.

        Returns:
            Whether it was that of a worker who held a rank.
        """
        with self.condition:
            if not isinstance(ticket, RankHolder) or not self._holds(ticket):
                return False
            _log.warning("lost worker %d: %s", ticket.rank, why)
            self._lost_at = time.monotonic()
            self.condition.notify_all()
            return True

    def start(self) -> None:
        """Start the workers, for the first time or again: as many as there is room for."""
        num_workers = self._room()
        if num_workers != self.num_workers or (self._size.is_elastic and self._generation < 0):
            _log.info("training with %d of at most %d workers", num_workers, self._size.most)
        with self.condition:
            self.on_restart()
            self.num_workers, self._sizes = num_workers, sizes_of(num_workers, self.num_shards)
            self._holders.clear()
            self._lost_at = self._attempt_error = self._lost_link = None
            self._generation += 1
            generation = self._generation
        self._attempts.append(self._launch(generation, self.num_workers, partial(self._ended, generation)))

    def gather(self) -> list[Open]:
        """Start the workers and wait until each of them has said who it is; what they said, by rank."""
        self.start()
        self.wait(lambda: len(self._holders) == self.num_workers)
        with self.condition:
            opened = [self._holders[rank].opened for rank in range(self.num_workers)]
            self._rows = [rows for worker in opened for rows in worker.shards]
        return opened

    def new_epoch(self) -> None:
        """Give the workers their full budget of failures again."""
        self._failures_of_epoch = 0

    def grow(self) -> None:
        """Between two pieces of work: start the workers again if there is room for more of them."""
        if self._size.now() <= self.num_workers:
            return
        with self.condition:
            self.on_restart()
        if not self.join(GRACE_SECONDS):
            self._attempts[-1].cancel()
            self.join(GRACE_SECONDS)
        self.start()

    def close(self) -> None:
        """Refuse whoever comes now."""
        with self.condition:
            self._generation += 1

    def join(self, seconds: float) -> bool:
        """Wait until the workers have ended; whether they have."""
        return self._attempts[-1].join(seconds)

    def cancel(self) -> None:
        """End whatever was started."""
        for attempt in self._attempts:
            attempt.cancel()

    def wait(self, done: Callable[[], bool]) -> None:
        """Wait until `done`, which is asked with the condition held; start the workers again when they have failed.

        Raises:
            TrainingError: The run cannot go on.
        """
        while True:
            cancel = False
            with self.condition:
                if self._failure is not None:
                    raise self._failure
                if done():
                    return
                error = self._attempt_error
                if error is None:
                    if self._lost_at is not None and time.monotonic() - self._lost_at > self._grace_seconds:
                        cancel, self._lost_at = True, None
                    else:
                        self.condition.wait(_WAKE_SECONDS)
            if cancel:
                _log.warning("a worker is gone, and the others have not ended; cancelling the stage")
            if cancel or self._lacks_room():
                self._attempts[-1].cancel()
            if error is not None:
                self._count_failure(error)
                self.start()

    def _room(self) -> int:
        """How many workers to start; waits a while where there is no room for the fewest."""
        deadline = time.monotonic() + _ROOM_SECONDS
        while self._size.is_elastic and self._size.slots() < self._size.least and time.monotonic() < deadline:
            time.sleep(0.5)
        return self._size.now()

    def _lacks_room(self) -> bool:
        """Whether some of the workers that were started find no slot, since executors have gone in the meantime."""
        if not self._size.is_elastic or len(self._holders) == self.num_workers:
            self._looks_without_room = 0
            return False
        lacks = self._size.now() < self.num_workers
        self._looks_without_room = self._looks_without_room + 1 if lacks else 0
        return self._looks_without_room > _LOOKS

    def _check_rows(self, opened: Open) -> None:
        """End the run if a worker that comes later was given other rows than the run began with.

        Raises:
            Superseded: It has.
        """
        for shard, rows in zip(self.shards_of(opened.rank), opened.shards, strict=True):
            if rows.fingerprint != self._rows[shard].fingerprint:
                self.fail(
                    CorpusError(
                        f"other rows in shard {shard} than this run began with, after its workers were started again",
                        "a table that gives the same rows each time that it is read",
                        "Write the table first and train on what is written: one that draws rows (rand(), sample"
                        " without a seed, limit) is drawn anew, also a cached one whose executor is lost",
                    )
                )
                raise Superseded("the run is over")

    def _holds(self, ticket: RankHolder) -> bool:
        return self._holders.get(ticket.rank) is ticket

    def _ended(
        self, generation: int, summaries: Sequence[Mapping[str, Any]], error: BaseException | None
    ) -> None:
        """The workers of a generation have ended."""
        with self.condition:
            self.summaries.extend(summaries)
            if generation == self._generation:
                ended = self._lost_link or RuntimeError("the stage ended before its work")
                self._attempt_error = error or ended
                self.condition.notify_all()

    def _count_failure(self, error: BaseException) -> None:
        self.num_failures += 1
        self._failures_of_epoch += 1
        reason = in_brief(error)
        if not self.has_begun:
            raise _before_the_beginning(error) from error
        if self._failures_of_epoch > self._max_failures:
            raise TrainingError(
                f"the workers' stage failed {self._failures_of_epoch} times in one epoch, at last with: {reason}",
                f"at most {self._max_failures} failures an epoch",
                "Look into the executors' logs; where executors are lost, memory (spark.executor.memoryOverhead) is the"
                " most frequent cause",
            ) from error
        _log.warning("the workers' stage failed (%s); starting it again where it was", reason)


def _before_the_beginning(error: BaseException) -> SeedlingsError:
    """What ended the workers before they had begun, in the words of whoever knows most of it."""
    if isinstance(error, SeedlingsError):
        return error
    return (
        from_worker(error)
        or recognized(error)
        or TrainingError(
            f"workers that failed before they could begin: {in_brief(error)}",
            "workers that start, with the packages and rows that they need",
            "Mend what it names; where an executor was lost, give it more memory (spark.executor.memoryOverhead)",
        )
    )


def _own_words(found: str) -> TrainingError:
    return TrainingError(
        found,
        "a computation that ends",
        "Mend what it names; it was not tried again, since it would fail again",
    )
