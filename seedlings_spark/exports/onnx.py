"""A version as one ONNX file, for ONNX Runtime in any language and what reads ONNX besides."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seedlings_spark import files
from seedlings_spark.exports.source import Source, in_parts
from seedlings_spark.models import engines
from seedlings_spark.models.store import INT8

FILE = "network.onnx"

TAKES = "uint8 pixels, `features`, shape (images, {height}, {width}, 3)"
GIVES = "`probabilities`, float32, shape (images, {num_classes}), in the order of `labels.txt`"
VERIFIED_BY = "onnxruntime {onnxruntime}"
USE = """\
    import numpy as np, onnxruntime
    from preprocessing import pixels

    session = onnxruntime.InferenceSession("network.onnx")
    (probabilities,) = session.run(["probabilities"], {{"features": pixels("leaf.jpg")[None]}})
    print(open("labels.txt", encoding="utf-8").read().splitlines()[probabilities[0].argmax()])

Names of the classes, the size and the resizing rule are in the file's metadata, too (`session.get_modelmeta()`).
`network.int8.onnx`, if it is here, computes in whole numbers of 8 bits, on many processors several times as fast; its
probabilities are others, and were not compared here: it was published since its accuracy is about as good.
"""


def write(source: Source, folder: Path) -> None:
    """Write the file, and that of int8 if the version was quantised, with what one has to know in their metadata."""
    (folder / FILE).write_bytes(_described(source, source.onnx))
    if source.version.has_int8:
        content = _described(source, files.read_bytes(files.join(source.version.path, INT8)))
        engines.OnnxRuntime(content, threads=1)  # or it would not load for whoever gets it
        (folder / INT8).write_bytes(content)


def _described(source: Source, content: bytes) -> bytes:
    import onnx

    model = onnx.load_model_from_string(content)
    version = source.version
    onnx.helper.set_model_props(
        model,
        {
            "name": version.name,
            "version": version.version,
            "classes": json.dumps(version.classes, ensure_ascii=False),
            "image_size": json.dumps(version.image_size),
            "aspect": source.version.aspect,
        },
    )
    described: bytes = model.SerializeToString()
    return described


def run(folder: Path, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The probabilities of what was written, by ONNX Runtime."""
    engine = engines.OnnxRuntime((folder / FILE).read_bytes(), threads=1)
    return in_parts(engine.run, rows)
