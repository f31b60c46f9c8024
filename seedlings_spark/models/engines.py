"""What computes a forward pass: ONNX Runtime or OpenVINO over `network.onnx`, or TensorFlow over `network.keras`.

All are held to a number of threads and to batches of one size, so that a row's bits depend on nothing but the row.
ONNX Runtime is imported in a tenth of a second, needs a third of TensorFlow's memory, and computes in float32.
OpenVINO is as light and also computes in bfloat16, several times as fast on processors that multiply it. It is an
extra, since it reads files that an ONNX file refers to, and reports each import to its maker; neither happens here.
GPUs and networks that have no ONNX form are TensorFlow's.
"""

import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from seedlings_spark import reproducibility
from seedlings_spark.cluster import runtime
from seedlings_spark.errors import ClusterError, NetworkError, first_line
from seedlings_spark.training import network

# Names of the input and the outputs of an ONNX file.
FEATURES, PROBABILITIES, LOGITS = "features", "probabilities", "logits"
# Rows of each forward pass over an ONNX file: with more, a convolution's results leave the processor's cache.
_ONNX_ROWS = 16
# What an ONNX file names a file of its weights with: a key of one byte's tag and one byte's length.
_EXTERNAL = b"\n\x08location"
_ONNX_TYPES = {
    "tensor(uint8)": "uint8",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
}
# Numbers of rows that fill the blocks of every processor's matrix products, and those to try before.
_STEADY_ROWS = 64
_BLOCKS = (16, 24, 48)


class Engine(Protocol):
    """A loaded network."""

    row_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    gives_logits: bool

    def steady_rows(self, batch_size: int) -> int:
        """The number of rows of each call, near `batch_size`, of which each gets the same bits wherever it stands."""

    def run(self, batch: NDArray[Any]) -> NDArray[Any]:
        """The outputs, shape (rows, *output_shape), for rows of shape (rows, *row_shape): uint8 pixels or numbers."""


def version(engine: str) -> str:
    """The version of an engine that is installed here; "" for none."""
    try:
        return reproducibility.package_versions().get(engine) or metadata.version(engine)
    except metadata.PackageNotFoundError:
        return ""


class OnnxRuntime:
    """A network in ONNX Runtime, on the processor.

    Args:
        content: The content of an ONNX file that `export` has made.
        threads: Threads within one operation.
        with_logits: Whether to give behind a row's probabilities also their logits, if the network has them.

    Raises:
        NetworkError: It is no such file.
        ClusterError: ONNX Runtime is not installed here.
    """

    def __init__(self, content: bytes, threads: int, *, with_logits: bool = False) -> None:
        onnxruntime = _import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads that wait would spin on the cores of other tasks.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            (features,) = self._session.get_inputs()
            outputs = {each.name: each for each in self._session.get_outputs()}
            self.dtype = np.dtype(_ONNX_TYPES[features.type])
            self.row_shape: tuple[int, ...] = tuple(features.shape[1:])
            self.gives_logits = with_logits and LOGITS in outputs
            self._names = [PROBABILITIES, *([LOGITS] if self.gives_logits else [])]
            self.output_shape: tuple[int, ...] = (sum(outputs[name].shape[1] for name in self._names),)
        except Exception as error:  # what the library raises has a class for each cause, of no common base
            raise _unloadable(f"ONNX Runtime {onnxruntime.__version__}", error) from error

    def steady_rows(self, batch_size: int) -> int:
        """Always the same, so that a row's bits do not depend on the batch size either."""
        return _ONNX_ROWS

    def run(self, batch: NDArray[Any]) -> NDArray[Any]:
        """See `Engine`.

        Raises:
            NetworkError: Numbers for a network that takes pixels.
        """
        found = self._session.run(self._names, {FEATURES: _as_input(batch, self.dtype)})
        return np.concatenate(found, axis=1) if len(found) > 1 else found[0]


class OpenVino:
    """A network in OpenVINO, on the processor.

    Args:
        content: As for `OnnxRuntime`.
        threads: Threads of a forward pass.
        precision: "float32", "mixed_bfloat16", or "int8" for a quantised network.
        with_logits: As for `OnnxRuntime`.
        rows: Rows of each forward pass.

    Raises:
        NetworkError: It is no such file.
        ClusterError: OpenVINO is not installed here.
    """

    def __init__(
        self,
        content: bytes,
        threads: int,
        *,
        precision: str,
        with_logits: bool = False,
        rows: int = _ONNX_ROWS,
    ) -> None:
        openvino = import_openvino()
        options = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "mixed_bfloat16" else "f32",
            "ENABLE_CPU_PINNING": False,  # other tasks would be pinned to the same cores
        }
        try:
            if _EXTERNAL in content:
                raise ValueError("it refers to another file")
            self._rows = rows
            core = openvino.Core()
            model = core.read_model(content)
            (features,) = model.inputs
            outputs = {name: output for output in model.outputs for name in output.get_names()}
            self._dtype = np.dtype(features.get_element_type().to_dtype())
            _, *sizes = features.get_partial_shape()
            self.row_shape: tuple[int, ...] = tuple(size.get_length() for size in sizes)
            model.reshape([rows, *self.row_shape])
            self.gives_logits = with_logits and LOGITS in outputs
            self._names = [PROBABILITIES, *([LOGITS] if self.gives_logits else [])]
            self.output_shape: tuple[int, ...] = (sum(outputs[name].shape[1] for name in self._names),)
            self._request = core.compile_model(model, "CPU", options).create_infer_request()
        except Exception as error:  # as above
            raise _unloadable(f"OpenVINO {openvino.__version__}", error) from error

    def steady_rows(self, batch_size: int) -> int:
        """Always the same: see `OnnxRuntime`."""
        return self._rows

    def run(self, batch: NDArray[Any]) -> NDArray[Any]:
        """See `Engine`; as many rows as `steady_rows` says.

        Raises:
            NetworkError: Numbers for a network that takes pixels.
        """
        found = self._request.infer({FEATURES: _as_input(batch, self._dtype)})
        return np.concatenate([found[name] for name in self._names], axis=1)


def _as_input(batch: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype == np.uint8 and batch.dtype != np.uint8:
        raise NetworkError(
            f"{batch.dtype} for a network whose ONNX form takes pixels",
            "uint8, from 0 to 255",
            "Give the pixels as bytes, or choose --engine tensorflow",
        )
    return np.ascontiguousarray(batch.astype(dtype, copy=False))


def _unloadable(engine: str, error: Exception) -> NetworkError:
    return NetworkError(
        f"an ONNX file that {engine} does not load ({first_line(error)})",
        "one that was made of a Keras network on publishing",
        "Restore the file from a copy, or choose --engine tensorflow",
    )


def takes_pixels(content: bytes) -> bool:
    """Whether an ONNX file is of a network that takes images, and so is given uint8."""
    return OnnxRuntime(content, threads=1).dtype == np.uint8


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ClusterError(
            f"no onnxruntime in this Python ({error})",
            "the packages of conf/constraints-spark-*.txt on the driver and on all executors",
            "Install them, or pack them anew (./spark-submit.sh pack); --engine tensorflow does without",
        ) from None
    return onnxruntime


def import_quantization() -> Any:
    """ONNX Runtime's tools that quantise."""
    _import_onnxruntime()
    from onnxruntime import quantization

    return quantization


def import_openvino() -> Any:
    """OpenVINO, or an error that says how to have it."""
    # Without the package that reports each import, of which OpenVINO has a stub that does nothing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise ClusterError(
            f"no openvino in this Python ({error})",
            "the extra `openvino` of this package on the driver and on all executors",
            "Install seedlings-spark[openvino] on all of them, or choose --engine onnxruntime",
        ) from None
    return openvino


class TensorFlow:
    """A network in TensorFlow.

    Args:
        content: The content of a `.keras` file.
        threads: Threads within one operation.
        precision: "float32" or "mixed_bfloat16".
        custom_objects: Classes and functions that the network names.
        with_logits: As for `OnnxRuntime`.
        gpus: Addresses of the GPUs that it may use.

    Raises:
        NetworkError: It is no such file.
        ClusterError: TensorFlow has started with other threads in this process.
    """

    def __init__(
        self,
        content: bytes,
        threads: int,
        *,
        precision: str,
        custom_objects: Mapping[str, Any],
        with_logits: bool = False,
        gpus: tuple[str, ...] = (),
    ) -> None:
        tf = runtime.start(threads, gpus)
        import keras

        from seedlings_spark import problems

        self._tf = tf
        self._network = network.from_bytes(content, custom_objects)
        runtime.set_precision(self._network, precision)
        logits = problems.logits_of(self._network) if with_logits else None
        self.gives_logits = logits is not None
        if logits is not None:
            outputs = keras.layers.Concatenate(dtype=self._network.outputs[0].dtype)(
                [self._network.outputs[0], logits]
            )
            self._network = keras.Model(self._network.inputs, outputs)
        self._dtype = self._network.inputs[0].dtype
        self.row_shape: tuple[int, ...] = tuple(self._network.input_shape[1:])
        self.output_shape: tuple[int, ...] = tuple(self._network.output_shape[1:])
        self.call = tf.function(self._forward, autograph=False, reduce_retracing=True)

    def run(self, batch: NDArray[Any]) -> NDArray[Any]:
        """See `Engine`."""
        outputs: NDArray[Any] = self.call(batch).numpy()
        return outputs

    def steady_rows(self, batch_size: int) -> int:
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
