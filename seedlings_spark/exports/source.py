"""What is exported: a model version, and the pixels that each export of it is compared with Keras on."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seedlings_spark import files
from seedlings_spark.cluster import runtime
from seedlings_spark.errors import NetworkError
from seedlings_spark.models import export
from seedlings_spark.models.store import ModelVersion
from seedlings_spark.training import network as carried

_ROWS = 32


@dataclass(frozen=True)
class Samples:
    """What an export is compared with Keras on.

    Args:
        pixels: uint8, shape (images, height, width, 3); none lets some be drawn.
        told: What they are, for the model card: "72 images of the split test of ...".
        species: Shape (images,): of each its species' place among the classes; None where that is not known.
        training: Other images, of the training split, which tell a quantised network the ranges of its numbers; of the
            shape of `pixels`, or None.
    """

    pixels: NDArray[np.uint8]
    told: str
    species: NDArray[np.int64] | None = None
    training: NDArray[np.uint8] | None = None


class Source:
    """A model version on its way out.

    Args:
        version: The version, whose files have been compared with its manifest.
        samples: What an export is compared on; None for pictures that are drawn.
        runtime_folder: Where onnxruntime-web is, for the format `web`; "" to let npm fetch it.

    Raises:
        NetworkError: It does not take images.
    """

    def __init__(self, version: ModelVersion, samples: Samples | None, runtime_folder: str = "") -> None:
        self.version = version
        self.runtime_folder = runtime_folder
        self.content = files.read_bytes(version.network_path)
        if samples is None or not len(samples.pixels):
            network = carried.from_bytes(self.content)
            if not export.takes_images(network):
                raise NetworkError(
                    f"{version.name} {version.version}, which takes {tuple(network.input_shape)[1:]}",
                    "a network that takes images",
                    "Export it by Keras itself: keras.models.load_model(...).export(...)",
                )
            drawn = export.drawn_rows(network)
            samples = Samples(drawn, f"{len(drawn)} drawn pictures of noise")
        self.samples = samples

    def network(self) -> Any:
        """A copy of the Keras network, with names that TensorFlow takes."""
        network = export.with_plain_names(carried.from_bytes(self.content))
        for variable in network.variables:
            # Its name is of the layer when that was built, and TensorFlow takes it for a scope when it saves.
            if variable.value.name.startswith("_"):
                variable.value._handle_name = variable.value.name.lstrip("_")
        return network

    @functools.cached_property
    def onnx(self) -> bytes:
        """Its ONNX form; made here for a version of a release that made none.

        Raises:
            NetworkError: It has none.
        """
        if self.version.has_onnx:
            return files.read_bytes(self.version.onnx_path)
        try:
            return export.to_onnx(self.content, self.samples.pixels)[0]
        except NetworkError as error:
            raise NetworkError(error.found, error.expected, "Use --format savedmodel") from error

    @functools.cached_property
    def expected(self) -> NDArray[np.float32]:
        """Keras' probabilities for the samples, shape (images, classes)."""
        runtime.start(1)
        network = self.network()
        dtype = network.inputs[0].dtype
        return in_parts(lambda rows: network(rows.astype(dtype), training=False), self.samples.pixels)


def in_parts(run: Any, rows: NDArray[np.uint8], size: int = _ROWS) -> NDArray[np.float32]:
    """The outputs of a function that takes a few rows at once, for all of them."""
    parts = [np.asarray(run(rows[start : start + size])) for start in range(0, len(rows), size)]
    return np.concatenate(parts).astype(np.float32)
