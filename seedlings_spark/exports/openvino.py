"""A version as OpenVINO's own files, for Intel's processors, their graphics and NPUs."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seedlings_spark.exports.source import Source, in_parts
from seedlings_spark.models import engines

_XML = "network.xml"

TAKES = "uint8 pixels, `features`, shape (images, {height}, {width}, 3)"
GIVES = "`probabilities`, float32, shape (images, {num_classes}), in the order of `labels.txt`"
VERIFIED_BY = "OpenVINO {openvino}, on the processor in float32"
USE = """\
    import openvino
    from preprocessing import pixels

    network = openvino.Core().compile_model("network.xml", "AUTO")
    probabilities = network(pixels("leaf.jpg")[None])["probabilities"]

The weights (`network.bin`) are float32. A device may compute in less, as the hint `INFERENCE_PRECISION_HINT` says.
"""


def write(source: Source, folder: Path) -> None:
    """Write `network.xml` and `network.bin`.

    Raises:
        ClusterError: The extra `openvino` is not installed.
    """
    openvino = engines.import_openvino()
    model = openvino.Core().read_model(source.onnx)
    openvino.save_model(model, str(folder / _XML), compress_to_fp16=False)


def run(folder: Path, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The probabilities of what was written, by OpenVINO on the processor."""
    openvino = engines.import_openvino()
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    network = openvino.Core().compile_model(str(folder / _XML), "CPU", options)
    return in_parts(lambda some: network(some)["probabilities"], rows)
