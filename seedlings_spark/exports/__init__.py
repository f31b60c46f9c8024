"""A model version in the form that some other place wants: verified against Keras, whole or not at all.

Each format is a module here with `write`, which makes its files in a folder, `run`, which gives the probabilities of
what was written by the engine that will use it, and what its model card says. All take uint8 RGB pixels of the
version's size, or image files where the format can decode them, and give probabilities.
"""

import importlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seedlings_spark import display, files
from seedlings_spark.errors import NetworkError, StorageError
from seedlings_spark.exports import card
from seedlings_spark.exports.source import Samples, Source
from seedlings_spark.models.store import ModelVersion

__all__ = ["Exported", "Samples", "export"]

# Format -> what it is called in a card.
_TITLES = {
    "savedmodel": "as a SavedModel of TensorFlow",
    "onnx": "as ONNX",
    "litert": "for LiteRT",
    "openvino": "for OpenVINO",
    "coreml": "for Core ML",
    "web": "as a page for browsers",
    "triton": "as a model repository of Triton",
    "mlflow": "as a model of MLflow",
}


@dataclass(frozen=True)
class Exported:
    """What was exported.

    Args:
        output: Its folder.
        difference: The largest difference of a probability from Keras'.
        told: The same in words.
    """

    output: str
    difference: float
    told: str


def export(
    version: ModelVersion,
    format: str,
    output: str,
    *,
    samples: Samples | None = None,
    tolerance: float = 1e-4,
    runtime_folder: str = "",
) -> Exported:
    """Export a version, verify the export, and put it where it belongs.

    Args:
        version: The version, whose files have been compared with its manifest.
        format: One of `choices.EXPORTS`.
        output: The folder to make, on any file system.
        samples: What to compare with Keras on; None for pictures that are drawn.
        tolerance: Largest difference of a probability.
        runtime_folder: For `web`: the folder of onnxruntime-web; "" to let npm fetch it.

    Raises:
        NetworkError: The format cannot hold the network, or its probabilities differ by more than the tolerance.
        ClusterError: A package that the format needs is missing.
        StorageError: There is something at `output`. Nothing is left behind then, nor in the other cases.
        StoreError: The version names any number of species, which no export says of its outputs.
    """
    version.require_one_species("models export")
    if files.exists(output):
        raise StorageError(
            f"{output}, which exists", "a folder that is not there yet", "Give another --output"
        )
    made: Any = importlib.import_module(f"seedlings_spark.exports.{format}")
    source = Source(version, samples, runtime_folder)
    with tempfile.TemporaryDirectory(prefix="seedlings-export-") as scratch:
        folder = Path(scratch) / "export"
        folder.mkdir()
        made.write(source, folder)
        found = made.run(folder, source.samples.pixels)
        exported = _compared(found, source, format, output, tolerance)
        told = {name: getattr(made, name.upper()) for name in ("takes", "gives", "use", "verified_by")}
        card.write(source, folder, {**told, "title": _TITLES[format]}, exported.told)
        try:
            files.put(folder, output)
        except FileExistsError:
            raise StorageError(
                f"{output}, which somebody else has made meanwhile",
                "a folder that is not there yet",
                "Give another --output",
            ) from None
    return exported


def _compared(found: Any, source: Source, format: str, output: str, tolerance: float) -> Exported:
    """How an export compares with Keras; `found` may hold several ways to the same probabilities."""
    expected = source.expected
    difference = float(np.abs(found.astype(np.float64) - expected).max())
    same = (found.argmax(-1) == expected.argmax(-1)).reshape(-1, len(expected)).all(0).sum()
    if not difference <= tolerance:
        raise NetworkError(
            f"{format} of {source.version.name} {source.version.version}, whose probabilities differ by"
            f" {difference:.2g} from Keras' on {source.samples.told}",
            f"at most {tolerance:g}",
            "Use another --format, or a --tolerance that you can accept; nothing was left behind",
        )
    told = (
        f"on {display.shown(source.samples.told)}, its probabilities differ by at most {difference:.1e} from Keras',"
        f" and name the same class for {same} of {len(expected)}."
    )
    return Exported(output, difference, told)
