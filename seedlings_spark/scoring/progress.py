"""How far a scoring run is: one live line on a terminal, nothing in a log.

The numbers come from the tasks that have ended, by accumulators; a task that is tried again counts again, so they
are for looking at only. The manifest's numbers are counted on what was written.
"""

import sys
import threading
import time
from types import TracebackType
from typing import Any, TextIO

from pyspark.sql import SparkSession

from seedlings_spark.training.progress import can_rewrite

_REFRESH_SECONDS = 0.5


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
        stream: Where to; nothing is shown unless it is a terminal.
    """

    def __init__(self, spark: SparkSession, num_files: int, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._num_files = num_files
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.tally = Tally()
        if can_rewrite(self._stream):
            context = spark.sparkContext
            self._done, self._rejected = context.accumulator(0), context.accumulator(0)
            self.tally = Tally(self._done, self._rejected)
            self._thread = threading.Thread(target=self._show, name="seedlings-progress", daemon=True)

    def __enter__(self) -> "Watch":
        self._started = time.monotonic()
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def _show(self) -> None:
        while not self._stop.wait(_REFRESH_SECONDS):
            seconds = time.monotonic() - self._started
            self._stream.write(
                "\r\x1b[K" + line(self._done.value, self._num_files, self._rejected.value, seconds)
            )
            self._stream.flush()


def line(done: int, num_files: int, num_rejected: int, seconds: float) -> str:
    """What the line says.

    Args:
        done: Files dealt with.
        num_files: Of all.
        num_rejected: Of those that are dealt with.
        seconds: Since the beginning.
    """
    text = (
        f"{done:,}/{num_files:,} images  {done / max(1e-9, seconds):,.0f} images/s  {num_rejected:,} rejected"
    )
    if 0 < done < num_files:
        left = (num_files - done) * seconds / done
        text += f"  {f'{left:.0f} s' if left < 90 else f'{left / 60:.0f} min'} left"
    return text
