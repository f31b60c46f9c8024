"""A version as one file for LiteRT, which was TensorFlow Lite: phones and small boards."""

import logging
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seedlings_spark import display
from seedlings_spark.cluster import runtime
from seedlings_spark.errors import ClusterError, NetworkError
from seedlings_spark.exports.source import Source
from seedlings_spark.models import export

_log = logging.getLogger(__name__)

_FILE, INT8_FILE = "network.tflite", "network.int8.tflite"

TAKES = "uint8 pixels, `pixels`, shape (1, {height}, {width}, 3): one picture at a time"
GIVES = "`probabilities`, float32, shape (1, {num_classes}), in the order of `labels.txt`"
VERIFIED_BY = "ai-edge-litert {ai-edge-litert}"
USE = """\
    from ai_edge_litert.interpreter import Interpreter
    from preprocessing import pixels

    network = Interpreter("network.tflite").get_signature_runner()
    probabilities = network(pixels=pixels("leaf.jpg")[None])["probabilities"][0]

The names of the classes are also in the file itself, as `labels.txt` in a zip archive. It needs built-in operations
only. `network.int8.tflite`, if it is here, computes in whole numbers of 8 bits and is a quarter as long; its
probabilities are others, in steps of 1/256: on the pictures named below it is about as often right.
"""


def write(source: Source, folder: Path) -> None:
    """Write the file, with the names of the classes in it, and that of int8 if the version was quantised.

    The latter needs the images of a corpus: those of training for the ranges of numbers, and others with their species
    to see that it is about as often right. It is left out if it is not.

    Raises:
        NetworkError: An operation of the network is none of LiteRT's.
    """
    _put(source, folder / _FILE, _converted(source, None))
    samples = source.samples
    if not source.version.has_int8 or samples.species is None or samples.training is None:
        return
    _put(source, folder / INT8_FILE, _converted(source, samples.training))
    accuracies = [
        float((found.argmax(-1) == samples.species).mean())
        for found in (source.expected, run(folder, samples.pixels, INT8_FILE))
    ]
    if accuracies[0] - accuracies[1] > export.MOST_LOST + 1e-9:  # rounding
        (folder / INT8_FILE).unlink()
        _log.warning(
            "%s is left out: on %s the accuracy falls from %.4f to %.4f",
            INT8_FILE,
            samples.told,
            *accuracies,
        )


def _converted(source: Source, training: NDArray[np.uint8] | None) -> bytes:
    """The content of a file; quantised if there are images that tell the ranges of numbers."""
    tf = runtime.start(1)
    network = source.network()
    module = tf.Module()
    module.held = [variable.value for variable in network.variables]

    def outputs(pixels: Any) -> dict[str, Any]:
        found = network(tf.cast(pixels, network.inputs[0].dtype), training=False)
        return {"probabilities": tf.identity(found)}

    taken = tf.TensorSpec((1, *source.version.image_size, 3), tf.uint8, name="pixels")
    module.outputs = tf.function(outputs, [taken], autograph=False)
    try:
        # What it says goes to stderr, from C++; its exceptions say the same.
        with runtime.quiet_import():
            function = module.outputs.get_concrete_function()
            converter = tf.lite.TFLiteConverter.from_concrete_functions([function], module)
            if training is not None:
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
                converter.representative_dataset = lambda: ([row[None]] for row in training)
            content: bytes = converter.convert()
    except Exception as error:  # of no common base
        lines = [line for line in str(error).splitlines() if line.strip()]
        said = next((line for line in lines if "error:" in line), lines[0] if lines else type(error).__name__)
        raise NetworkError(
            f"a network that has no LiteRT form ({said.strip()[:300]})",
            "built-in operations of LiteRT",
            "Use --format onnx or savedmodel",
        ) from error
    return content


def _put(source: Source, file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("labels.txt", "\n".join(map(display.shown, source.version.classes)) + "\n")


def run(folder: Path, rows: NDArray[np.uint8], name: str = _FILE) -> NDArray[np.float32]:
    """The probabilities of what was written, by LiteRT.

    Raises:
        ClusterError: The extra `litert` is not installed.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise ClusterError(
            f"no ai-edge-litert in this Python ({error})",
            "the extra `litert` of this package",
            "Install seedlings-spark[litert]",
        ) from None
    network = Interpreter(str(folder / name), num_threads=1).get_signature_runner()
    return np.concatenate([network(pixels=row[None])["probabilities"] for row in rows])
