"""Micro-batching: images that wait for a network are computed together, and none waits for company.

While a forward pass runs, others arrive; the next pass takes what has arrived by then. A lone request is computed at
once.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

_Waiting: TypeAlias = tuple[NDArray[np.uint8], "asyncio.Future[NDArray[np.float32]]"]
# With more rows, a convolution's results leave the processor's cache.
_MOST_ROWS = 16


class Batcher:
    """Forward passes of one network, one at a time; belongs to one event loop.

    Args:
        run: Rows of uint8 pixels to probabilities.
        executor: Where it runs.
        told: Is told the number of rows of each pass.
    """

    def __init__(
        self,
        run: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
        executor: Executor,
        told: Callable[[int], None],
    ) -> None:
        self._run, self._executor, self._told = run, executor, told
        self._waiting: deque[_Waiting] = deque()
        self._task: asyncio.Task[None] | None = None

    async def predict(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The probabilities of some images, shape (images, classes), once they have been computed."""
        loop = asyncio.get_running_loop()
        parts = []
        for start in range(0, len(pixels), _MOST_ROWS):
            future: asyncio.Future[NDArray[np.float32]] = loop.create_future()
            self._waiting.append((pixels[start : start + _MOST_ROWS], future))
            parts.append(future)
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        return np.concatenate(await asyncio.gather(*parts))

    async def _work(self) -> None:
        try:
            while batch := self._next():
                await self._compute(batch)
        finally:
            self._task = None

    def _next(self) -> list[_Waiting]:
        """What is computed next: as many images that somebody still waits for as fit."""
        batch: list[_Waiting] = []
        rows = 0
        while self._waiting:
            pixels, future = self._waiting[0]
            if future.done():  # whoever asked has gone
                self._waiting.popleft()
                continue
            if batch and rows + len(pixels) > _MOST_ROWS:
                break
            batch.append(self._waiting.popleft())
            rows += len(pixels)
        return batch

    async def _compute(self, batch: list[_Waiting]) -> None:
        rows = np.concatenate([pixels for pixels, _ in batch])
        self._told(len(rows))
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._executor, self._run, rows)
        except Exception as error:  # of whatever class the engine has: it is the answer of those who wait
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        start = 0
        for pixels, future in batch:
            if not future.done():
                future.set_result(found[start : start + len(pixels)])
            start += len(pixels)
