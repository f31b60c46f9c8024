"""The forward pass in a Spark task: one network a process, batches of one size.

A Python process that Spark reuses keeps the network and its traced function, by the hash of its bytes. Every
batch is padded to the same number of rows: so a row's prediction does not depend on how rows are batched or
partitioned, and nothing is traced twice.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seedlings_spark import runtime

# Networks kept by this process; a scoring job has one, CrossValidator has many in turn.
_MAX_KEPT = 2
_kept: dict[tuple[str, str], "Forward"] = {}


@dataclass(frozen=True)
class ForwardTask:
    """What a task needs to predict.

    Args:
        network: The content of a `.keras` file.
        precision: "float32" or "mixed_bfloat16".
        batch_size: Rows of one forward pass.
        threads: Of TensorFlow within one operation.
    """

    network: bytes
    precision: str
    batch_size: int
    threads: int

    @cached_property
    def key(self) -> tuple[str, str]:
        """Tells networks and settings apart."""
        return hashlib.sha256(self.network).hexdigest(), f"{self.precision} {self.batch_size} {self.threads}"


class Forward:
    """A loaded network.

    Args:
        task: What to load.
    """

    def __init__(self, task: ForwardTask) -> None:
        tf = runtime.start(task.threads)
        from seedlings_spark import networks

        self._tf = tf
        self._batch_size = task.batch_size
        self._network = networks.from_bytes(task.network)
        runtime.set_precision(self._network, task.precision)
        self._dtype = self._network.inputs[0].dtype
        self.row_shape = tuple(self._network.input_shape[1:])
        self._call = tf.function(self._forward, autograph=False, reduce_retracing=True)

    def predict(self, features: NDArray[np.generic]) -> NDArray[np.floating]:
        """The network's outputs.

        Args:
            features: Shape (rows, *row_shape); uint8 pixels or numbers.

        Returns:
            Shape (rows, outputs).
        """
        parts = []
        for start in range(0, len(features), self._batch_size):
            batch = features[start : start + self._batch_size]
            count = len(batch)
            if count < self._batch_size:
                padding = np.zeros((self._batch_size - count, *batch.shape[1:]), batch.dtype)
                batch = np.concatenate([batch, padding])
            parts.append(self._call(batch).numpy()[:count])
        return np.concatenate(parts) if parts else np.zeros((0, *self._network.output_shape[1:]), "float32")

    def _forward(self, batch: Any) -> Any:
        return self._network(self._tf.cast(batch, self._dtype), training=False)


def forward(task: ForwardTask) -> Forward:
    """The network of a task, loaded once a process."""
    if task.key not in _kept:
        while len(_kept) >= _MAX_KEPT:
            _kept.pop(next(iter(_kept)))
        _kept[task.key] = Forward(task)
    return _kept[task.key]


def predict_rows(task: ForwardTask, parts: Iterator[Any]) -> Iterator[Any]:
    """The body of a pandas UDF: series of bytes or of lists of numbers to series of outputs."""
    import pandas as pd

    network = forward(task)
    for rows in parts:
        outputs = [np.zeros((0,))]
        if len(rows):
            dtype = np.uint8 if isinstance(rows.iloc[0], bytes) else np.float64
            flat = b"".join(rows) if dtype == np.uint8 else np.concatenate([np.asarray(row) for row in rows])
            values = np.frombuffer(flat, np.uint8) if dtype == np.uint8 else np.asarray(flat, np.float64)
            expected = int(np.prod(network.row_shape, dtype=np.int64))
            if values.size != expected * len(rows):
                raise ValueError(
                    f"rows of {values.size // len(rows)} values; the network takes {expected}, as"
                    f" {network.row_shape}. Prepare them with the size of the images that the model was trained on."
                )
            outputs = list(network.predict(values.reshape(len(rows), *network.row_shape)).astype(np.float64))
        yield pd.Series([output.ravel() for output in outputs] if len(rows) else [], dtype=object)
