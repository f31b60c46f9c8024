"""What a person sees while it trains: one live line on a terminal, one line an epoch in a log."""

import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Protocol, TextIO

_log = logging.getLogger(__name__)
_REFRESH_SECONDS = 0.5


def can_rewrite(stream: TextIO) -> bool:
    """Whether a stream is a terminal on which a line can be written over; TERM=dumb says that it is not."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


class Progress(Protocol):
    """Hears how far training is."""

    def step(
        self, epoch: int, images: int, images_of_epoch: int, logs: Callable[[], Mapping[str, float]]
    ) -> None:
        """Some rows of an epoch have been trained on."""

    def epoch(self, epoch: int, seconds: float, images: int, logs: Mapping[str, float]) -> None:
        """An epoch has ended."""


class Silent:
    """Shows nothing."""

    def step(
        self, epoch: int, images: int, images_of_epoch: int, logs: Callable[[], Mapping[str, float]]
    ) -> None:
        """Nothing."""

    def epoch(self, epoch: int, seconds: float, images: int, logs: Mapping[str, float]) -> None:
        """Nothing."""


class ProgressLine:
    """Epoch, images, images/s, loss, metrics and time left.

    Args:
        num_epochs: Of the run.
        stream: A terminal gets a line that is rewritten; for anything else the module's logger gets one line
            an epoch.
    """

    def __init__(self, num_epochs: int, stream: TextIO | None = None) -> None:
        self._num_epochs = num_epochs
        self._stream = stream or sys.stderr
        self._live = can_rewrite(self._stream)
        self._epoch: int | None = None
        self._first_epoch = 0
        self._shown = 0.0
        self._run_started = self._epoch_started = time.monotonic()

    def step(
        self, epoch: int, images: int, images_of_epoch: int, logs: Callable[[], Mapping[str, float]]
    ) -> None:
        """Some rows of an epoch have been trained on."""
        now = time.monotonic()
        if epoch != self._epoch:
            if self._epoch is None:
                self._first_epoch = epoch
                # The first round holds the tracing of the network; it says nothing about the speed.
                self._run_started = now
            self._epoch, self._epoch_started = epoch, now
            return
        if not self._live or now - self._shown < _REFRESH_SECONDS:
            return
        self._shown = now
        speed = images / max(1e-9, now - self._epoch_started)
        done = epoch - self._first_epoch + images / images_of_epoch
        left = (now - self._run_started) / max(done, 1e-9) * (self._num_epochs - self._first_epoch - done)
        self._stream.write(
            f"\r\x1b[Kepoch {epoch + 1}/{self._num_epochs}  {images:,}/{images_of_epoch:,} images"
            f"  {speed:,.0f} images/s  {_numbers(logs())}  {_duration(left)} left"
        )
        self._stream.flush()

    def epoch(self, epoch: int, seconds: float, images: int, logs: Mapping[str, float]) -> None:
        """An epoch has ended."""
        done = epoch + 1 - self._first_epoch
        left = (time.monotonic() - self._run_started) / done * (self._num_epochs - epoch - 1)
        line = (
            f"epoch {epoch + 1}/{self._num_epochs}  {images:,} images  {images / max(seconds, 1e-9):,.0f} images/s"
            f"  {_numbers(logs)}  {_duration(left)} left"
        )
        if self._live:
            self._stream.write(f"\r\x1b[K{line}\n")
            self._stream.flush()
        else:
            _log.info(line)


def _numbers(logs: Mapping[str, float]) -> str:
    return "  ".join(
        f"{name} {value:.4f}" if abs(value) >= 0.001 else f"{name} {value:.2g}"
        for name, value in logs.items()
    )


def _duration(seconds: float) -> str:
    seconds = max(0, round(seconds))
    if seconds < 90:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
