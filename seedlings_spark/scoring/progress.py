"""How far a scoring run is: one live line on a terminal, a line every half minute in a log.

The numbers come from the tasks that have ended, by accumulators; a task that is tried again counts again, so they
are for looking at only. The manifest's numbers are counted on what was written.
"""

import logging
import sys
import time
from types import TracebackType
from typing import Any, TextIO

from pyspark.sql import SparkSession

from seedlings_spark.cluster import connect
from seedlings_spark.progress import Line, Pace, Repeated, duration

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 0.25


class Tally:
    """Counts files in tasks, for the driver to see.

    Args:
        done: Accumulator of files, or None where nobody looks.
        rejected: Accumulator of rejects.
    """

    def __init__(self, done: Any = None, rejected: Any = None) -> None:
        self._done, self._rejected = done, rejected

    def add(self, num_files: int, num_rejected: int) -> None:
        """Some files have been dealt with."""
        if self._done is not None:
            self._done.add(int(num_files))
            self._rejected.add(int(num_rejected))


class Watch:
    """Shows a line while it is entered; a context manager.

    Args:
        spark: The session.
        num_files: To be scored.
        stream: A terminal gets a line that is rewritten; for anything else the module's logger gets lines.
    """

    def __init__(self, spark: SparkSession, num_files: int, stream: TextIO | None = None) -> None:
        self._line = Line(stream or sys.stderr, _log)
        self._num_files = num_files
        self._done, self._rejected = _counters(spark)
        self.tally = Tally(self._done, self._rejected)
        self._looks = Repeated(self._show, _LOOK_SECONDS, "seedlings-progress")

    def __enter__(self) -> "Watch":
        self._started = time.monotonic()
        self._pace = Pace(self._started)
        self._looks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._looks.__exit__(kind, error, trace)
        self._line.clear()

    def _show(self) -> None:
        if self._done is None:
            return
        now, done = time.monotonic(), int(self._done.value)
        self._pace.reached(done, now)
        if self._line.is_due:
            speed = self._pace.speed() or done / max(1e-9, now - self._started)
            left = self._pace.left(self._num_files, now)
            self._line.show(line(done, self._num_files, self._rejected.value, speed, left))


def _counters(spark: SparkSession) -> tuple[Any, Any]:
    """Accumulators of files and of rejects; none on a session of Spark Connect, where there are no such things."""
    if connect.is_connect(spark):
        return None, None
    context = spark.sparkContext
    return context.accumulator(0), context.accumulator(0)


def line(done: int, num_files: int, num_rejected: int, speed: float, left: float | None) -> str:
    """What the line says.

    Args:
        done: Files dealt with.
        num_files: Number of all files.
        num_rejected: Number of rejects among those that are dealt with.
        speed: Files in a second.
        left: Seconds until all are done; None where that is not known yet.
    """
    text = f"{done:,}/{num_files:,} images  {speed:,.0f} images/s  {num_rejected:,} rejected"
    return f"{text}  {duration(left)} left" if left is not None and done < num_files else text
