"""The forward pass in a Spark task: one network a process, batches of one size.

A Python process that Spark reuses keeps the network and its traced function, by the hash of its bytes. Every
batch is padded to the same number of rows: so a row's prediction does not depend on how rows are batched or
partitioned, and nothing is traced twice.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyspark import cloudpickle

from seedlings_spark.cluster import runtime
from seedlings_spark.errors import CorpusError, NetworkError
from seedlings_spark.training import network

# Networks kept by this process; a scoring job has one, CrossValidator has many in turn.
_MAX_KEPT = 2
# Numbers of rows that fill the blocks of every processor's matrix products, and those to try before.
_STEADY_ROWS = 64
_BLOCKS = (16, 24, 48)
_kept: dict[tuple[str, str], "Forward"] = {}


@dataclass(frozen=True)
class ForwardTask:
    """What a task needs to predict.

    Args:
        network: The content of a `.keras` file.
        precision: "float32" or "mixed_bfloat16".
        batch_size: Rows of one forward pass.
        threads: Threads of TensorFlow within one operation.
        custom_objects: Classes and functions that the network names.
        logits: "" for none; else `predict_rows` gives behind a row's probabilities also what they are the "softmax"
            or the "sigmoid" of.
    """

    network: bytes
    precision: str
    batch_size: int
    threads: int
    custom_objects: Mapping[str, Any] = field(default_factory=dict)
    logits: str = ""

    @cached_property
    def key(self) -> tuple[str, str]:
        """Tells networks and settings apart; a reused process may have seen other objects of the same names."""
        objects = cloudpickle.dumps(dict(self.custom_objects))  # type: ignore[no-untyped-call]
        code = hashlib.sha256(objects).hexdigest() if self.custom_objects else ""
        settings = f"{self.precision} {self.batch_size} {self.threads} {code} {self.logits}"
        return hashlib.sha256(self.network).hexdigest(), settings


class Forward:
    """A loaded network.

    Args:
        task: What to load.
    """

    def __init__(self, task: ForwardTask) -> None:
        tf = runtime.start(task.threads, _gpus())
        import keras

        from seedlings_spark import problems

        self._tf = tf
        self._network = network.from_bytes(task.network, task.custom_objects)
        runtime.set_precision(self._network, task.precision)
        logits = problems.logits_of(self._network) if task.logits else None
        self.gives_logits = logits is not None
        if logits is not None:
            outputs = keras.layers.Concatenate(dtype=self._network.outputs[0].dtype)(
                [self._network.outputs[0], logits]
            )
            self._network = keras.Model(self._network.inputs, outputs)
        self._dtype = self._network.inputs[0].dtype
        self.row_shape = tuple(self._network.input_shape[1:])
        self._call = tf.function(self._forward, autograph=False, reduce_retracing=True)
        self._batch_size = self._steady_size(task.batch_size)

    def predict(self, features: NDArray[np.generic]) -> NDArray[Any]:
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

    def _steady_size(self, batch_size: int) -> int:
        """The least number of rows, from `batch_size` on, of which each gets the same bits wherever it stands.

        On some processors a matrix product treats the last rows of a batch otherwise, if they do not fill a block of
        registers (AVX2: 8 and 32 rows do not, 24 and 48 do). Multiples of `_STEADY_ROWS` are taken as they are.
        """
        if batch_size == 1 or batch_size % _STEADY_ROWS == 0:
            return batch_size
        call = self._tf.function(self._forward, autograph=False)
        rng = np.random.default_rng(0)
        least = -(-batch_size // _STEADY_ROWS) * _STEADY_ROWS
        for size in sorted({batch_size, *(each for each in _BLOCKS if batch_size < each < least)}):
            rows = rng.integers(0, 256, (size, *self.row_shape)).astype("uint8")
            if all(
                np.array_equal(call(np.roll(rows, by, 0)), np.roll(call(rows), by, 0))
                for by in (1, size // 2)
            ):
                return size
        return least

    def _forward(self, batch: Any) -> Any:
        return self._network(self._tf.cast(batch, self._dtype), training=False)


def forward(task: ForwardTask) -> Forward:
    """The network of a task, loaded once a process; the one that was used least recently gives way."""
    found = _kept.pop(task.key, None) or Forward(task)
    runtime.forget_archives()
    while len(_kept) >= _MAX_KEPT:
        _kept.pop(next(iter(_kept)))
    _kept[task.key] = found
    return found


def check_finite(outputs: NDArray[Any]) -> None:
    """Refuse the outputs of a network for images of which no species can be chosen.

    Raises:
        NetworkError: One of them is not finite.
    """
    if not np.isfinite(outputs).all():
        raise NetworkError(
            "probabilities that are not finite",
            "numbers from 0 to 1",
            "The network is damaged or badly trained: choose another --model-version",
        )


def _gpus() -> tuple[str, ...]:
    """The GPUs that Spark assigned to the task that runs here; none outside of a task."""
    from pyspark import TaskContext

    context = TaskContext.get()
    return () if context is None else runtime.gpu_addresses(context.resources())


def predict_rows(task: ForwardTask, parts: Iterator[Any]) -> Iterator[Any]:
    """The body of a pandas UDF: series of bytes or of lists of numbers to series of outputs.

    Raises:
        CorpusError: A row has another number of values than the network takes, or none.
        NetworkError: The network gives NaN, which would become null on its way to Spark, for a row.
    """
    import pandas as pd

    network = forward(task)
    for rows in parts:
        if not len(rows):
            yield pd.Series([], dtype=object)
            continue
        features = _features(list(rows), network.row_shape)
        outputs = network.predict(features).astype(np.float64).reshape(len(rows), -1)
        if count := int(np.isnan(outputs).any(axis=1).sum()):
            raise NetworkError(
                f"no numbers (NaN) from the network for {count:,} of {len(rows):,} rows",
                "features that are numbers, and a network that gives numbers for them",
                "Fill or remove rows with NaN; if there are none, the network is damaged or badly trained",
            )
        if task.logits and not network.gives_logits:
            outputs = np.concatenate([outputs, _logits(outputs, task.logits)], axis=1)
        yield pd.Series(list(outputs), dtype=object)


def _features(rows: list[Any], row_shape: tuple[int, ...]) -> NDArray[np.generic]:
    """Rows of bytes or of numbers as one array of shape (rows, *row_shape)."""
    expected = math.prod(row_shape)
    for row in rows:
        if row is None or len(row) != expected:
            found = "a row without features" if row is None else f"a row of {len(row):,} values"
            raise CorpusError(
                found,
                f"{expected:,} values, as the network takes {row_shape}",
                "Prepare the rows as those that the model was trained on, images with the same --image-size",
            )
    if isinstance(rows[0], bytes | bytearray):
        return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), *row_shape)
    return np.array(rows, np.float64).reshape(len(rows), *row_shape)


def _logits(probabilities: NDArray[np.float64], function: str) -> NDArray[np.float64]:
    """Logits of a network that gives probabilities only: finite, also where float32 has made 0 or 1 of them."""
    smallest = float(np.finfo(np.float32).smallest_subnormal)
    logs: NDArray[np.float64] = np.log(np.maximum(probabilities, smallest))
    if function == "softmax":
        return logs
    logs -= np.log(np.maximum(1 - probabilities, float(np.finfo(np.float32).epsneg)))
    return logs
