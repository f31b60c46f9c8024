"""What a person sees of a job at work: a live line on a terminal, in a log a line now and then.

Silence never means hanging: where nothing else has been said for half a minute, a `Heartbeat` says what Spark is at.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from seedlings_spark import display

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_log = logging.getLogger(__name__)
# Between two states of a live line, and between two lines of a log.
REFRESH_SECONDS, LOG_SECONDS = 0.5, 30.0
# Results that come so soon after the first one, in seconds and as a share of the time until then, come from tasks that
# began together with that one's.
_TOGETHER_SECONDS, _TOGETHER_SHARE = 2.0, 0.2


def can_rewrite(stream: TextIO) -> bool:
    """Whether a stream is a terminal on which a line can be written over; TERM=dumb says that it is not."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def columns_of(stream: TextIO) -> int:
    """The width of a terminal, as it is now."""
    with contextlib.suppress(OSError, ValueError):
        return os.get_terminal_size(stream.fileno()).columns or display.COLUMNS
    return display.COLUMNS


def duration(seconds: float) -> str:
    """A time for a person to read."""
    seconds = max(0, round(seconds))
    if seconds < 90:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Line:
    """What is to be seen of work that goes on: a line that is written over, or one in the log now and then.

    Args:
        stream: A terminal gets the live line; for anything else `log` gets a line.
        log: Whose.
        every: Seconds between two lines of the log.
    """

    def __init__(self, stream: TextIO, log: logging.Logger, every: float | None = None) -> None:
        self._stream, self._log = stream, log
        self.is_live = can_rewrite(stream)
        self._every = (REFRESH_SECONDS if self.is_live else LOG_SECONDS) if every is None else every
        self._shown = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether the last state has stood for long enough."""
        return time.monotonic() - self._shown >= self._every

    def show(self, text: str) -> None:
        """Show a state in place of the last one."""
        self._shown = time.monotonic()
        if self.is_live:
            _signs.last = self._shown
            # The last column stays free: a character there would begin the next line on some terminals.
            self._write(f"\r\x1b[K{display.cut(text, columns_of(self._stream) - 1)}")
        else:
            self._log.info("%s", text)

    def keep(self, text: str) -> None:
        """Say something that stays, in place of the last state."""
        self._shown = time.monotonic()
        if self.is_live:
            self._write(f"\r\x1b[K{text}\n")
        else:
            self._log.info("%s", text)

    def clear(self) -> None:
        """Take the live line away."""
        if self.is_live:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


class Pace:
    """How fast work goes, and how long it will still take.

    It is measured from the first results on, so that the start of workers and of TensorFlow is not taken for slow
    work; and from the last of those that come together, since many tasks begin at once.

    Args:
        start: When the work began, as `time.monotonic()` has it.
    """

    def __init__(self, start: float) -> None:
        self._start = start
        self._first: float | None = None
        self._base = self._last = (start, 0.0)

    def reached(self, done: float, now: float) -> None:
        """So much is done by now."""
        if done <= self._last[1]:
            return
        self._last = (now, done)
        if self._first is None:
            self._first = now
        if now - self._first <= max(_TOGETHER_SECONDS, _TOGETHER_SHARE * (self._first - self._start)):
            self._base = self._last

    def speed(self) -> float | None:
        """What is done in a second; None before that can be said."""
        seconds, done = (last - base for last, base in zip(self._last, self._base, strict=True))
        return done / seconds if seconds > 0 else None

    def left(self, total: float, now: float) -> float | None:
        """Seconds until all is done; None before that can be said."""
        speed = self.speed()
        if speed is None:
            return None
        return max(0.0, (total - self._last[1]) / speed - (now - self._last[0]))


class Repeated:
    """Does something now and then, in a thread of its own, while it is entered; a context manager.

    Args:
        do: What; ends it by `False`.
        every: Seconds before and between.
        name: Name of the thread.
    """

    def __init__(self, do: Callable[[], bool | None], every: float, name: str) -> None:
        self._do, self._every, self._name = do, every, name
        self._stop = threading.Event()

    def __enter__(self) -> "Repeated":
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            if self._do() is False:
                return


class Heartbeat:
    """Says in the log what Spark is at, where nothing has been said for a while; a context manager.

    Args:
        spark: The session.
        every: Seconds of silence.
    """

    def __init__(self, spark: "SparkSession", every: float = LOG_SECONDS) -> None:
        self._spark, self._every = spark, every
        self._looks = Repeated(self._look, every / 10, "seedlings-heartbeat")

    def __enter__(self) -> "Heartbeat":
        self._started = _signs.last = time.monotonic()
        logging.getLogger("seedlings_spark").addHandler(_signs)
        self._looks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._looks.__exit__(kind, error, trace)
        logging.getLogger("seedlings_spark").removeHandler(_signs)

    def _look(self) -> None:
        now = time.monotonic()
        if now - _signs.last >= self._every:
            with contextlib.suppress(Exception):  # a session that ends meanwhile
                _log.info("at work for %s: %s", duration(now - self._started), self._state())
            _signs.last = now

    def _state(self) -> str:
        tracker = self._spark.sparkContext.statusTracker()
        stages = [tracker.getStageInfo(number) for number in tracker.getActiveStageIds()]
        said = [
            f"stage {stage.stageId} of Spark, {stage.numCompletedTasks:,} of {stage.numTasks:,} tasks done,"
            f" {stage.numActiveTasks:,} at work"
            for stage in stages
            if stage is not None
        ]
        return "; ".join(said) or "the driver itself, no task of Spark"


class _Signs(logging.Handler):
    """When something was last said."""

    last = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """A line of the log."""
        self.last = time.monotonic()


_signs = _Signs()
