"""The forward pass in a Spark task: one network a process, batches of one size.

A Python process that Spark reuses keeps the loaded network, by the hash of its bytes. Every batch is padded to the same
number of rows: so a row's prediction does not depend on how rows are batched or partitioned, and TensorFlow traces
nothing twice.
"""

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyspark import Broadcast, cloudpickle
from pyspark.sql import SparkSession

from seedlings_spark.choices import ENGINES, ONNXRUNTIME, OPENVINO, TENSORFLOW, VIEWS
from seedlings_spark.cluster import connect, runtime
from seedlings_spark.errors import CorpusError, NetworkError, OptionError
from seedlings_spark.kinds import ONE_SPECIES, Reading
from seedlings_spark.models import engines

# Networks kept by this process; a scoring job has one, CrossValidator has many in turn.
_MAX_KEPT = 2
_kept: dict[tuple[str, str], "Forward"] = {}


@dataclass(frozen=True)
class ForwardTask:
    """What a task needs to predict.

    Args:
        network: The content of a `.keras` file for `TENSORFLOW`, else of an ONNX file; or that as Spark has sent it.
        precision: "float32" or "mixed_bfloat16"; ONNX Runtime computes in float32. "int8" for a quantised network.
        batch_size: Rows of one forward pass of TensorFlow.
        threads: Threads within one operation.
        custom_objects: Classes and functions that the network names.
        logits: "" for none; else `predict_rows` gives behind a row's probabilities also what they are the "softmax"
            or the "sigmoid" of.
        engine: `choices.ONNXRUNTIME`, `OPENVINO` or `TENSORFLOW`.
        views: One of `choices.VIEWS`: of how many views of an image the outputs are averaged.
        reading: How whoever has asked reads the outputs.
    """

    network: bytes | Broadcast[bytes]
    precision: str
    batch_size: int
    threads: int
    custom_objects: Mapping[str, Any] = field(default_factory=dict)
    logits: str = ""
    engine: str = TENSORFLOW
    views: int = 1
    reading: Reading = ONE_SPECIES

    @property
    def content(self) -> bytes:
        """The content of the network's file."""
        return self.network.value if isinstance(self.network, Broadcast) else self.network

    @cached_property
    def key(self) -> tuple[str, str]:
        """Tells networks and settings apart; a reused process may have seen other objects of the same names."""
        objects = cloudpickle.dumps(dict(self.custom_objects))  # type: ignore[no-untyped-call]
        code = hashlib.sha256(objects).hexdigest() if self.custom_objects else ""
        settings = f"{self.precision} {self.batch_size} {self.threads} {code} {self.logits} {self.engine}"
        settings += f" {self.views}"
        return hashlib.sha256(self.content).hexdigest(), settings


class Forward:
    """A loaded network.

    Args:
        task: What to load.
    """

    def __init__(self, task: ForwardTask) -> None:
        with_logits = bool(task.logits) and task.views == 1  # those of a mean are not the mean of theirs
        self.engine: engines.Engine
        if task.engine == ONNXRUNTIME:
            self.engine = engines.OnnxRuntime(task.content, task.threads, with_logits=with_logits)
        elif task.engine == OPENVINO:
            self.engine = engines.OpenVino(
                task.content, task.threads, precision=task.precision, with_logits=with_logits
            )
        else:
            self.engine = engines.TensorFlow(
                task.content,
                task.threads,
                precision=task.precision,
                custom_objects=task.custom_objects,
                with_logits=with_logits,
                gpus=_gpus(),
            )
        self.gives_logits, self.row_shape = self.engine.gives_logits, self.engine.row_shape
        check_views(task.views, self.row_shape)
        self._views = task.views
        self._batch_size = self.engine.steady_rows(task.batch_size)

    def predict(self, features: NDArray[np.generic]) -> NDArray[Any]:
        """The network's outputs, or their mean over the views.

        Args:
            features: Shape (rows, *row_shape); uint8 pixels or numbers.

        Returns:
            Shape (rows, outputs).
        """
        if self._views == 1:
            return self._outputs(features)
        outputs = [self._outputs(view) for view in views(features, self._views)]
        mean: NDArray[Any] = np.mean(outputs, axis=0, dtype=np.float64).astype(outputs[0].dtype)
        return mean

    def _outputs(self, features: NDArray[np.generic]) -> NDArray[Any]:
        parts = []
        for start in range(0, len(features), self._batch_size):
            batch = features[start : start + self._batch_size]
            count = len(batch)
            if count < self._batch_size:
                padding = np.zeros((self._batch_size - count, *batch.shape[1:]), batch.dtype)
                batch = np.concatenate([batch, padding])
            parts.append(self.engine.run(batch)[:count])
        return np.concatenate(parts) if parts else np.zeros((0, *self.engine.output_shape), "float32")


def views(images: NDArray[Any], count: int) -> list[NDArray[Any]]:
    """The first symmetries of each image, itself first.

    Args:
        images: Shape (images, height, width, channels).
        count: One of `choices.VIEWS`.

    Returns:
        Arrays over the same memory, of the same shape.
    """
    found = [images]
    if count >= 2:
        found += [each[:, :, ::-1] for each in found]
    if count >= 4:
        found += [each[:, ::-1] for each in found]
    if count >= 8:
        found += [each.swapaxes(1, 2) for each in found]
    return found


def check_views(count: int, row_shape: Sequence[int]) -> None:
    """Refuse views that rows do not have.

    Raises:
        OptionError: It is none of `choices.VIEWS`, the rows are no images, or they cannot be turned.
    """
    if count not in VIEWS:
        raise OptionError(f"tta={count!r}", f"one of {', '.join(map(str, VIEWS))}", "Choose one of them")
    if count > 1 and (len(row_shape) != 3 or (count == 8 and row_shape[0] != row_shape[1])):
        raise OptionError(
            f"tta={count} for rows of the shape {tuple(row_shape)}",
            "square images for 8 views, images for 2 and 4",
            "Choose fewer views; 1 is the image itself",
        )


def forward(task: ForwardTask) -> Forward:
    """The network of a task, loaded once a process; the one that was used least recently gives way."""
    found = _kept.pop(task.key, None) or Forward(task)
    runtime.settle()
    while len(_kept) >= _MAX_KEPT:
        _kept.pop(next(iter(_kept)))
    _kept[task.key] = found
    return found


@contextlib.contextmanager
def sent(spark: SparkSession, task: ForwardTask) -> Iterator[ForwardTask]:
    """The task with its network sent to the executors, for as long as this lasts.

    What else Spark sends to them of the size of a network stays on the driver's disk until the application ends.
    """
    if connect.is_connect(spark):
        yield task
        return
    network = spark.sparkContext.broadcast(task.content)
    try:
        yield dataclasses.replace(task, network=network)
    finally:
        network.destroy()


def engine_for(spark: SparkSession, chosen: str, *, has_onnx: bool) -> str:
    """The engine of a forward pass: ONNX Runtime where it can, TensorFlow on GPUs and for what has no ONNX file.

    Args:
        spark: The session.
        chosen: One of `choices.ENGINES`.
        has_onnx: Whether there is an ONNX file of the network.

    Raises:
        NetworkError: Another than TensorFlow is asked for, and there is none.
        OptionError: There is no such engine.
    """
    if chosen not in ENGINES:
        raise OptionError(f"engine {chosen!r}", f"one of {', '.join(ENGINES)}", "Choose one of them")
    if chosen in (ONNXRUNTIME, OPENVINO) and not has_onnx:
        raise NetworkError(
            f"--engine {chosen} for a network without an ONNX file",
            "a version with network.onnx, or one whose manifest.json says under `onnx` why it has none",
            "Choose --engine auto or tensorflow; models upgrade makes one for a version of an earlier release",
        )
    if chosen != "auto":
        return chosen
    uses_gpus = float(spark.conf.get("spark.task.resource.gpu.amount", None) or 0) > 0
    return ONNXRUNTIME if has_onnx and not uses_gpus else TENSORFLOW


def check_finite(outputs: NDArray[Any]) -> None:
    """Refuse the outputs of a network for images of which they say nothing.

    Raises:
        NetworkError: One of them is not finite.
    """
    if not np.isfinite(outputs).all():
        raise NetworkError(
            "outputs that are not finite",
            "finite numbers",
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
