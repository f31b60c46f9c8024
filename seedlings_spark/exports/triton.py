"""A version as a model repository of NVIDIA Triton, whose Python backend decodes image files."""

import json
import string
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seedlings_spark.exports import card
from seedlings_spark.exports.source import Source, in_parts
from seedlings_spark.models import engines

_BACKEND = Path(__file__).with_name("triton.txt")
_CONFIG = """\
backend: "python"
max_batch_size: 16
input [ {{ name: "image_bytes" data_type: TYPE_STRING dims: [ 1 ] }} ]
output [
  {{ name: "probabilities" data_type: TYPE_FP32 dims: [ {num_classes} ] }},
  {{ name: "classes" data_type: TYPE_STRING dims: [ {num_classes} ] }}
]
dynamic_batching {{ }}
instance_group [ {{ kind: KIND_CPU }} ]
"""

TAKES = "`image_bytes`, strings of shape (images, 1), each a whole image file"
GIVES = "`probabilities`, float32, and `classes`, strings, both of shape (images, {num_classes})"
VERIFIED_BY = "onnxruntime {onnxruntime}, from the same `network.onnx`; by no Triton server"
USE = """\
    tritonserver --model-repository=$PWD/models
    curl http://localhost:8000/v2/models/{name}/ready

The server's Python needs `pip install onnxruntime numpy pillow` (`onnxruntime-gpu` computes on a GPU). Without
decoding, `network.onnx` alone is a model for Triton's ONNX Runtime backend: as `model.onnx` in a folder of its own, for
which Triton makes the configuration itself.
"""


def write(source: Source, folder: Path) -> None:
    """Write the repository: `models/NAME/config.pbtxt` and the folder of the version's number."""
    version = source.version
    place = folder / "models" / version.name / str(version.number)
    place.mkdir(parents=True)
    config = _CONFIG.format(num_classes=len(version.classes))
    (place.parent / "config.pbtxt").write_text(config, encoding="utf-8")
    backend = string.Template(_BACKEND.read_text(encoding="utf-8")).substitute(name=version.name)
    (place / "model.py").write_text(backend, encoding="utf-8")
    (place / card.PREPROCESSING).write_text(card.preprocessing(version), encoding="utf-8")
    (place / "classes.json").write_text(json.dumps(version.classes), encoding="utf-8")
    (place / "network.onnx").write_bytes(source.onnx)


def run(folder: Path, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The probabilities of the repository's network, by ONNX Runtime."""
    (file,) = folder.glob("models/*/*/network.onnx")
    return in_parts(engines.OnnxRuntime(file.read_bytes(), threads=1).run, rows)
