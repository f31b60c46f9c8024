"""A worker's rows: in memory, or spooled to local disk and read in blocks.

The order in which an epoch visits the rows is a pure function of seed, epoch, rank and the number and size of
the rows. It does not depend on the memory budget, so that a shard trains to the same weights whether or not it
fits: blocks of neighbouring rows are permuted, and rows are permuted within windows of blocks. Rows arrive
sorted by the hash of their content, that is in no order that means anything, and a shard of up to one window
(64 MB) is permuted as a whole.
"""

import itertools
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from seedlings_spark.reproducibility import seed_for

_T = TypeVar("_T", bound=np.generic)
BLOCK_BYTES = 1024 * 1024
WINDOW_BYTES = 64 * BLOCK_BYTES


@dataclass(frozen=True)
class Batch:
    """Some rows of a shard.

    Args:
        features: Shape (rows, *row_shape).
        labels: float64, shape (rows, *label_shape).
        weights: float64, shape (rows,): the rows' sample weights.
    """

    features: NDArray[np.generic]
    labels: NDArray[np.float64]
    weights: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.labels)

    def packed(self) -> bytes:
        """All of it, to be sent."""
        return b"".join(each.tobytes() for each in (self.features, self.labels, self.weights))


def batch_edges(num_rows: int, num_steps: int) -> NDArray[np.int64]:
    """Where to cut a shard into num_steps batches whose sizes differ by at most 1.

    Returns:
        num_steps + 1 positions from 0 to num_rows; step s takes the rows [edges[s], edges[s + 1]).
    """
    return np.arange(num_steps + 1, dtype=np.int64) * num_rows // num_steps


def epoch_order(seed: int, epoch: int, rank: int, num_rows: int, row_bytes: int) -> NDArray[np.int64]:
    """The order in which an epoch visits the rows of a shard.

    Args:
        seed: Seed of the run.
        epoch: From 0.
        rank: Rank of the worker.
        num_rows: Number of rows of the shard.
        row_bytes: Bytes of one row's features.

    Returns:
        A permutation of 0 .. num_rows - 1.
    """
    rng = np.random.Generator(np.random.PCG64(seed_for(seed, "shuffle", epoch, rank)))
    rows_per_block = max(1, BLOCK_BYTES // max(1, row_bytes))
    blocks_per_window = max(1, WINDOW_BYTES // (rows_per_block * max(1, row_bytes)))
    num_blocks = -(-num_rows // rows_per_block)
    blocks = rng.permutation(num_blocks)
    windows = []
    for start in range(0, num_blocks, blocks_per_window):
        chosen = blocks[start : start + blocks_per_window]
        rows = (chosen[:, None] * rows_per_block + np.arange(rows_per_block)).ravel()
        windows.append(rng.permutation(rows[rows < num_rows]))
    return np.concatenate(windows) if windows else np.zeros(0, np.int64)


class Shard:
    """Rows that arrive once, in blocks, and are then read by position.

    Labels and weights stay in memory (16 bytes a row). Features do so up to the budget; beyond it they go to
    an unlinked file in `directory`, which disappears with the process whatever happens to it. They are read by
    `pread` into one buffer that is used again and again: mapped pages would count as the container's memory.

    Args:
        row_shape: Shape of one row's features.
        dtype: Dtype of the features.
        budget_bytes: Memory for the features.
        directory: Local folder for the rest; by default the system's temporary folder.
        label_shape: Shape of one row's label.
    """

    def __init__(
        self,
        row_shape: tuple[int, ...],
        dtype: str,
        *,
        budget_bytes: int,
        directory: str | None = None,
        label_shape: tuple[int, ...] = (),
    ) -> None:
        self.row_shape = row_shape
        self.dtype = np.dtype(dtype)
        self.row_bytes = int(np.prod(row_shape, dtype=np.int64)) * self.dtype.itemsize
        self._directory = directory
        # Taken whole, so that it never has to be copied to grow; the system gives a page once it is written to.
        self._memory = np.empty((budget_bytes // max(1, self.row_bytes), self.row_bytes), np.uint8)
        self._file: int | None = None
        self._labels = np.zeros((0, *label_shape), np.float64)
        self._weights = np.zeros(0, np.float64)
        self._num_rows = 0

    def __len__(self) -> int:
        return self._num_rows

    @property
    def bytes_in_memory(self) -> int:
        """Memory that its features take."""
        return 0 if self.is_spooled else self._num_rows * self.row_bytes

    @property
    def is_spooled(self) -> bool:
        """Whether the features lie on disk."""
        return self._file is not None

    def append(
        self, features: NDArray[np.generic], labels: NDArray[np.float64], weights: NDArray[np.float64]
    ) -> None:
        """Take some rows.

        Args:
            features: Shape (rows, *row_shape), of the shard's dtype.
            labels: Shape (rows, *label_shape).
            weights: Shape (rows,).
        """
        count = len(labels)
        flat = np.ascontiguousarray(features, self.dtype).reshape(count, -1).view(np.uint8)
        self._labels = _grown(self._labels, self._num_rows, count)
        self._weights = _grown(self._weights, self._num_rows, count)
        self._labels[self._num_rows : self._num_rows + count] = labels
        self._weights[self._num_rows : self._num_rows + count] = weights
        if self._file is None and self._num_rows + count > len(self._memory):
            self._spool()
        if self._file is None:
            self._memory[self._num_rows : self._num_rows + count] = flat
        else:
            _write(self._file, flat)
        self._num_rows += count

    def append_packed(self, payload: Any, count: int) -> None:
        """Take so many rows, as `Batch.packed` has made them.

        Raises:
            ValueError: They are none.
        """
        width = int(np.prod(self._labels.shape[1:], dtype=np.int64)) * 8
        edges = np.cumsum([0, count * self.row_bytes, count * width, count * 8])
        if len(payload) != edges[-1]:
            raise ValueError(f"{len(payload)} bytes for {count} rows, expected {edges[-1]}")
        if not count:
            return
        features, labels, weights = (payload[a:b] for a, b in itertools.pairwise(edges.tolist()))
        self.append(
            np.frombuffer(features, self.dtype).reshape(count, *self.row_shape),
            np.frombuffer(labels, np.float64).reshape(count, *self._labels.shape[1:]),
            np.frombuffer(weights, np.float64),
        )

    def labels(self) -> NDArray[np.float64]:
        """The labels of all rows, in order of arrival."""
        return self._labels[: self._num_rows]

    def read(self, rows: NDArray[np.int64]) -> Batch:
        """The rows at these positions, in this order."""
        if self._file is None:
            features = self._memory[rows]
        else:
            features = np.empty((len(rows), self.row_bytes), np.uint8)
            for place, row in enumerate(rows):
                _read(self._file, memoryview(features[place]), int(row) * self.row_bytes)
        return Batch(
            features.view(self.dtype).reshape(len(rows), *self.row_shape),
            self._labels[rows],
            self._weights[rows],
        )

    def batches(
        self, order: NDArray[np.int64], edges: NDArray[np.int64], first: int, last: int
    ) -> Iterator[Batch]:
        """The batches of the steps first .. last - 1 of an epoch.

        Args:
            order: From `epoch_order`.
            edges: From `batch_edges`.
            first: Step.
            last: Step after the last.
        """
        for step in range(first, last):
            yield self.read(order[edges[step] : edges[step + 1]])

    def close(self) -> None:
        """Give up the file, if there is one."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _spool(self) -> None:
        descriptor, name = tempfile.mkstemp(prefix="seedlings-shard-", dir=self._directory)
        os.unlink(name)  # noqa: PTH108 - the name comes from mkstemp as a string
        self._file = descriptor
        _write(descriptor, self._memory[: self._num_rows])
        self._memory = np.zeros((0, self.row_bytes), np.uint8)


def _grown(array: NDArray[_T], used: int, more: int) -> NDArray[_T]:
    """The array, with room for `more` rows after the first `used`; it at least doubles when it grows."""
    if used + more <= len(array):
        return array
    larger = np.empty((max(used + more, 2 * len(array)), *array.shape[1:]), array.dtype)
    larger[:used] = array[:used]
    return larger


def _write(descriptor: int, data: NDArray[np.uint8]) -> None:
    view = memoryview(np.ascontiguousarray(data).data).cast("B") if data.size else memoryview(b"")
    while len(view):
        view = view[os.write(descriptor, view) :]


def _read(descriptor: int, view: memoryview, offset: int) -> None:
    while len(view):
        count = os.preadv(descriptor, [view], offset)
        if count == 0:
            raise OSError("the spooled shard is shorter than it was written")
        view = view[count:]
        offset += count
