"""What bounds the speed of training: the workers' computing, the driver's network, or the parameter server.

Pure arithmetic on times and sizes that were measured elsewhere, and a watch that a run carries: from its first
exchanges it tells whether workers wait for the master more than they should, and which frequency would end that.
"""

import logging
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

_log = logging.getLogger(__name__)
# Exchanges of each worker that are left out, since the network is traced in them, and those that are looked at.
_SKIPPED, _LOOKED_AT = 3, 20
# The share of its time that a worker may be without work before it is worth a word, and the share to aim at.
_TOO_MUCH, _GOOD = 0.25, 0.10


@dataclass(frozen=True)
class Exchange:
    """What one exchange of a worker costs, on the average.

    Args:
        compute: Seconds that the worker computes for it.
        outside: Seconds from its result to its next work.
        steps: That the worker takes for it.
    """

    compute: float
    outside: float
    steps: int

    @property
    def share_outside(self) -> float:
        """Of the worker's time, without work."""
        return self.outside / max(1e-12, self.compute + self.outside)

    def steps_for(self, share: float) -> int:
        """The least number of steps an exchange with which the worker is without work for at most this share."""
        of_step = max(1e-12, self.compute / self.steps)
        return max(1, math.ceil(self.outside * (1 - share) / share / of_step - 1e-9))


def advice(exchange: Exchange, *, num_workers: int, vector_bytes: int, steps_of_epoch: int) -> str | None:
    """What to say of a run whose exchanges cost this; None where all is well.

    Args:
        exchange: Of the worker that waits least, so that it is not a slow worker that the others wait for.
        num_workers: Of the run.
        vector_bytes: Of what travels in each direction in one exchange.
        steps_of_epoch: Of one worker.
    """
    if exchange.share_outside <= _TOO_MUCH or exchange.steps >= steps_of_epoch:
        return None
    seconds = exchange.compute + exchange.outside
    rate = 2 * num_workers * vector_bytes / max(1e-9, exchange.outside)
    steps = exchange.steps_for(_GOOD)
    better = "epoch" if steps >= steps_of_epoch else str(steps)
    return (
        f"workers compute {exchange.compute * 1e3:.0f} ms and then are without work for"
        f" {exchange.outside * 1e3:.0f} ms ({exchange.share_outside:.0%}): the driver exchanges"
        f" {2 * num_workers * vector_bytes / 1e6:,.1f} MB with {num_workers} workers every {seconds * 1e3:.0f} ms,"
        f" at {rate * 8 / 1e9:.1f} Gb/s. With frequency {better} they would exchange less often and be without work"
        f" for {'less than ' if better == 'epoch' else ''}{_GOOD:.0%}; or give them a larger batch"
    )


class ExchangeWatch:
    """Looks at the first exchanges of a run, and says once if they hold up the workers.

    Args:
        num_workers: Of the run.
        vector_bytes: Of what travels in each direction in one exchange.
        steps: Of one exchange.
        steps_of_epoch: Of one worker.
        say: Hears of it.
        clock: In seconds.
    """

    def __init__(
        self,
        num_workers: int,
        vector_bytes: int,
        steps: int,
        steps_of_epoch: int,
        say: Callable[[str], None] = _log.warning,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._num_workers, self._vector_bytes, self._steps_of_epoch = (
            num_workers,
            vector_bytes,
            steps_of_epoch,
        )
        self._steps, self._say, self._clock = steps, say, clock
        self._last: dict[int, float] = {}
        self._seen: dict[int, list[tuple[float, float]]] = defaultdict(list)
        self._is_over = False

    def result(self, rank: int, seconds: float) -> None:
        """A worker hands in a result for which it has computed so long."""
        if self._is_over:
            return
        now = self._clock()
        if rank in self._last:
            self._seen[rank].append((seconds, max(0.0, now - self._last[rank] - seconds)))
        self._last[rank] = now
        whole = _SKIPPED + _LOOKED_AT
        if len(self._seen) < self._num_workers or min(map(len, self._seen.values())) < whole:
            return
        self._is_over = True
        medians = [
            Exchange(
                statistics.median(compute for compute, _ in seen[_SKIPPED:]),
                statistics.median(outside for _, outside in seen[_SKIPPED:]),
                self._steps,
            )
            for seen in self._seen.values()
        ]
        found = advice(
            min(medians, key=lambda exchange: exchange.outside),
            num_workers=self._num_workers,
            vector_bytes=self._vector_bytes,
            steps_of_epoch=self._steps_of_epoch,
        )
        if found:
            self._say(found)

    def pause(self, rank: int | None = None) -> None:
        """A worker, or all, do something else now, an evaluation: the time until the next result says nothing."""
        if rank is None:
            self._last.clear()
        else:
            self._last.pop(rank, None)
