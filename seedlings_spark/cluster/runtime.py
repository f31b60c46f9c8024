"""What TensorFlow may use in this process: threads, GPU, determinism, precision.

Spark reuses its Python processes, and TensorFlow's thread pools and GPU choice cannot change once it has
started. So the environment variables of a process are set before its first import of TensorFlow, and each
task verifies on entry that it runs in a process set up as it needs.
"""

import contextlib
import gc
import os
import sys
import tempfile
import zipimport
from collections.abc import Iterator, Mapping
from typing import Any

from seedlings_spark import reproducibility
from seedlings_spark.choices import PRECISIONS
from seedlings_spark.errors import ClusterError, OptionError

# Part of a worker's environment, by which `start` knows one; Spark keeps processes of different environments apart.
THREADS_VARIABLE = "SEEDLINGS_TENSORFLOW_THREADS"

# What Keras imports, where it is installed, for pictures of networks and for scikit-learn's interface. A task has use
# for neither: without them it starts a third sooner, with 90 MB less.
_FOR_PEOPLE = ("matplotlib", "sklearn")

# Modules that were imported when this process was settled the last time.
_num_modules = 0

_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "ABSL_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}


def quiet() -> None:
    """Set, before TensorFlow is first imported, what keeps its registration noise out of the logs."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


def worker_environment(threads: int) -> dict[str, str]:
    """The environment variables of a Python worker that is to run TensorFlow in `threads` threads.

    Op determinism and seeds do not stand here: they are set in the process, by `start`.
    """
    return {**_QUIET, THREADS_VARIABLE: str(threads), "PYTHONHASHSEED": "0"}


def start(threads: int, gpus: tuple[str, ...] = ()) -> Any:
    """Import TensorFlow and hold it to these threads and devices.

    Args:
        threads: Within one operation; across operations it is always 1, so that the order of
            floating-point sums is fixed.
        gpus: Addresses of the GPUs that Spark gave this task; none means that GPUs are hidden.

    Returns:
        The module `tensorflow`.

    Raises:
        ClusterError: TensorFlow has already started in this process with other settings.
    """
    quiet()
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus) if gpus else "-1"
    is_first = "tensorflow" not in sys.modules
    with quiet_import(), _without(_FOR_PEOPLE if THREADS_VARIABLE in os.environ else ()):
        import keras  # noqa: F401 - now, to be kept with TensorFlow
        import tensorflow as tf

    if is_first:
        # Spark collects garbage after every task, and to look through TensorFlow's objects takes 0.3 s.
        gc.collect()
        gc.freeze()
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        for device in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(device, True)
    except RuntimeError:
        found = tf.config.threading.get_intra_op_parallelism_threads()
        raise ClusterError(
            f"TensorFlow has already started in this Python process with {found} threads",
            f"{threads}, set before its first operation",
            "Start the session with spark.python.worker.reuse=false, or use one number of threads throughout",
        ) from None
    tf.config.experimental.enable_op_determinism()
    return tf


def settle() -> None:
    """Spare a Python process that Spark reuses what Spark lets it do between two tasks.

    It looks at its path anew. Up to Python 3.11 each package within an archive then reads the archive's whole index,
    0.1 s a task for Spark's own. What is dropped here is a cache: the next import from an archive finds it again.

    It looks for garbage among all its objects, of which the packages that it has imported have some hundred thousand:
    0.05 s a task, and 0.4 s where memory is slow. Those stay to the end of the process, so they are not looked at.
    """
    from pyspark import TaskContext

    global _num_modules
    for path, finder in list(sys.path_importer_cache.items()):
        if isinstance(finder, zipimport.zipimporter):
            del sys.path_importer_cache[path]
    # Not for every task: what is a task's own goes with it. Not in a driver: that is its user's process.
    if TaskContext.get() is not None and len(sys.modules) > _num_modules:
        _num_modules = len(sys.modules)
        gc.freeze()


def resolve_precision(precision: str, features: tuple[str, ...] | None = None) -> str:
    """Turn "auto" into what this processor does best.

    Args:
        precision: One of `choices.PRECISIONS`.
        features: The processor's instruction sets; by default those of this machine.

    Returns:
        "float32" or "mixed_bfloat16": the latter where the processor multiplies bfloat16 itself, elsewhere
        it would be slower than float32.
    """
    if precision not in PRECISIONS:
        raise OptionError(
            f"precision {precision!r}",
            f"one of {', '.join(PRECISIONS)}",
            "Choose one of them for --precision",
        )
    if precision != "auto":
        return precision
    features = reproducibility.cpu_features() if features is None else features
    return "mixed_bfloat16" if {"avx512_bf16", "amx_bf16"} & set(features) else "float32"


def gpu_addresses(resources: Mapping[str, Any]) -> tuple[str, ...]:
    """The GPUs among the resources that Spark assigned to a task (`TaskContext.resources()`)."""
    gpu = resources.get("gpu")
    return tuple(gpu.addresses) if gpu is not None else ()


def set_precision(network: Any, precision: str) -> None:
    """Let a network compute in this precision; its variables stay as they are.

    In mixed precision the last layer, and what without weights follows it, still answers in float32 (a softmax over
    bfloat16 has two digits), and so does every layer that was given another dtype than float32 on purpose. Depthwise
    convolutions stay in float32: in bfloat16 TensorFlow computes them so slowly on CPUs that EfficientNet-Lite trained
    at half the speed (14.5 images/s a core, 29.1 with this exception, 27.8 in float32).

    Args:
        network: A built `keras.Model`; changed in place, before it is first traced.
        precision: "float32" or "mixed_bfloat16".
    """
    if precision == "float32":
        return
    import keras

    last: list[Any] = []
    tensor = network.outputs[0]
    while not (last and getattr(last[-1], "weights", None)):  # an operation that is no layer has none
        operation, place, _ = tensor._keras_history
        if isinstance(operation, keras.Model):
            tensor = operation.outputs[0]
            continue
        last.append(operation)
        before = operation._inbound_nodes[place].input_tensors
        if len(before) != 1:
            break
        tensor = before[0]
    policy = keras.DTypePolicy(precision)
    spared = (keras.layers.Normalization, keras.layers.Rescaling, keras.layers.DepthwiseConv2D)
    keep = (keras.Model, keras.layers.InputLayer, *spared)
    for layer in network._flatten_layers(include_self=False):
        if (
            all(layer is not each for each in last)
            and layer.dtype_policy.name == "float32"
            and not isinstance(layer, keep)
        ):
            layer.dtype_policy = policy


@contextlib.contextmanager
def float_type_of(network: Any) -> Iterator[None]:
    """Let Keras compute losses and metrics in float64 for a network that answers in float64.

    A loss takes its type from Keras' global setting, not from the network; a float64 network would lose half
    of its digits there, or fail with a regulariser.
    """
    import keras

    keras.config.dtype_policy()  # which Keras makes of the global type when it is first asked, and then keeps
    before = keras.config.floatx()
    keras.config.set_floatx("float64" if network.outputs[0].dtype == "float64" else "float32")
    try:
        yield
    finally:
        keras.config.set_floatx(before)


@contextlib.contextmanager
def _without(packages: tuple[str, ...]) -> Iterator[None]:
    """Let what is imported meanwhile take these packages for not installed, unless they are imported already."""
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None there means that there is none
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


class quiet_import:  # noqa: N801 - used as a statement: `with quiet_import():`
    """Keep what native libraries write to stderr while they are imported; show it when the import fails.

    TensorFlow's wheel reports that CUDA cannot be registered before it has read any setting.
    """

    def __enter__(self) -> None:
        quiet()
        self._kept = tempfile.TemporaryFile()
        self._stderr = os.dup(2)
        os.dup2(self._kept.fileno(), 2)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        os.dup2(self._stderr, 2)
        os.close(self._stderr)
        if error is not None:
            self._kept.seek(0)
            os.write(2, self._kept.read())
        self._kept.close()
