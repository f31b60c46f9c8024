"""What a person sees while it trains: one live line on a terminal, in a log a line an epoch and every half minute."""

import logging
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TextIO

import numpy as np

from seedlings_spark import display
from seedlings_spark.progress import Line, Pace, duration

_log = logging.getLogger(__name__)


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
        num_epochs: Number of epochs of the run.
        stream: A terminal gets a line that is rewritten; for anything else the module's logger gets lines.
    """

    def __init__(self, num_epochs: int, stream: TextIO | None = None) -> None:
        self._num_epochs = num_epochs
        self._line = Line(stream or sys.stderr, _log)
        self._epoch: int | None = None
        self._epoch_started = time.monotonic()
        self._pace = Pace(self._epoch_started)

    def step(
        self, epoch: int, images: int, images_of_epoch: int, logs: Callable[[], Mapping[str, float]]
    ) -> None:
        """Some rows of an epoch have been trained on."""
        now = time.monotonic()
        self._pace.reached(epoch + images / images_of_epoch, now)
        if epoch != self._epoch:
            # The first round of all holds the tracing of the network; it says nothing about the speed.
            self._epoch, self._epoch_started = epoch, now
            return
        if self._line.is_due:
            speed = images / max(1e-9, now - self._epoch_started)
            # What matters comes first: a narrow terminal shows no more.
            self._line.show(
                f"epoch {epoch + 1}/{self._num_epochs}  {images:,}/{images_of_epoch:,} images"
                f"  {speed:,.0f} images/s{self._left(now)}  {_numbers(logs())}"
            )

    def epoch(self, epoch: int, seconds: float, images: int, logs: Mapping[str, float]) -> None:
        """An epoch has ended."""
        now = time.monotonic()
        self._pace.reached(epoch + 1, now)
        self._line.keep(
            f"epoch {epoch + 1}/{self._num_epochs}  {images:,} images  {images / max(seconds, 1e-9):,.0f} images/s"
            f"  {_numbers(logs)}{self._left(now)}"
        )

    def _left(self, now: float) -> str:
        left = self._pace.left(self._num_epochs, now)
        return "" if left is None else f"  {duration(left)} left"


def _numbers(logs: Mapping[str, Any]) -> str:
    """Metrics in one line; of those that give several numbers (one a class) the mean."""
    means = {name: float(np.mean(value)) for name, value in logs.items()}
    return "  ".join(
        f"{display.shown(name)} " + (f"{value:.4f}" if abs(value) >= 0.001 else f"{value:.2g}")
        for name, value in means.items()
    )
