"""A version as one file for LiteRT, which was TensorFlow Lite: phones and small boards."""

import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seedlings_spark import display
from seedlings_spark.cluster import runtime
from seedlings_spark.errors import ClusterError, NetworkError
from seedlings_spark.exports.source import Source
from seedlings_spark.models import export
from seedlings_spark.models.store import ModelVersion

_log = logging.getLogger(__name__)

FILE, INT8_FILE = "network.tflite", "network.int8.tflite"
_LABELS = "labels.txt"
# The fields of the tables that are written here, in the order of `metadata_schema.fbs`, version 1.0.0, of TensorFlow
# Lite Support; `_type` says which of a union's tables follows.
_METADATA, _SCHEMA, _IDENTIFIER = "TFLITE_METADATA", "1.0.0", b"M001"
_FIELDS = {
    "ModelMetadata": (
        *("name", "description", "version", "subgraph_metadata"),
        *("author", "license", "associated_files", "min_parser_version"),
    ),
    "SubGraphMetadata": ("name", "description", "input_tensor_metadata", "output_tensor_metadata"),
    "TensorMetadata": (
        *("name", "description", "dimension_names", "content", "process_units", "stats", "associated_files"),
    ),
    "Content": ("content_properties_type", "content_properties"),
    "FeatureProperties": (),
    "ImageProperties": ("color_space", "default_size"),
    "ImageSize": ("width", "height"),
    "ProcessUnit": ("options_type", "options"),
    "NormalizationOptions": ("mean", "std"),
    "AssociatedFile": ("name", "description", "type"),
}
_FEATURE, _IMAGE, _RGB, _NORMALIZATION, _AXIS_LABELS = map(np.uint8, (1, 2, 1, 1, 2))

TAKES = "uint8 pixels, `pixels`, shape (1, {height}, {width}, 3): one picture at a time"
GIVES = "`probabilities`, float32, shape (1, {num_classes}), in the order of `labels.txt`"
VERIFIED_BY = "ai-edge-litert {ai-edge-litert}"
USE = """\
    from ai_edge_litert.interpreter import Interpreter
    from preprocessing import pixels

    network = Interpreter("network.tflite").get_signature_runner()
    probabilities = network(pixels=pixels("leaf.jpg")[None])["probabilities"][0]

The file also has the metadata that Android's Task Library and MediaPipe read (an RGB picture goes in, a number for each
label comes out), and the names of the classes as `labels.txt` in a zip archive at its end. These libraries bring a
picture to the network's size by a rule of their own: hand them one that has it already, by the rule above. The file
needs built-in operations only. `network.int8.tflite`, if it is here, computes in whole numbers of 8 bits and is a
quarter as long; its probabilities are others, in steps of 1/256: on the pictures named below it is about as often
right.
"""


def write(source: Source, folder: Path) -> None:
    """Write the file, with the names of the classes in it, and that of int8 if the version was quantised.

    The latter needs the images of a corpus: those of training for the ranges of numbers, and others with their species
    to see that it is about as often right. It is left out if it is not.

    Raises:
        NetworkError: An operation of the network is none of LiteRT's.
        ClusterError: The extra `litert` is not installed.
    """
    _litert()
    size = source.version.image_size
    _put(source, folder / FILE, converted(source.network(), size))
    samples = source.samples
    if not source.version.has_int8 or samples.species is None or samples.training is None:
        return
    _put(source, folder / INT8_FILE, converted(source.network(), size, samples.training))
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


def converted(network: Any, image_size: tuple[int, int], training: NDArray[np.uint8] | None = None) -> bytes:
    """The content of a LiteRT file of a Keras network that takes images.

    Args:
        network: With names that TensorFlow takes: see `models.export.with_plain_names`.
        image_size: Height and width in pixels.
        training: Images that tell a quantised network the ranges of its numbers; None for one in float32.

    Raises:
        NetworkError: An operation of the network is none of LiteRT's.
    """
    taken = ((1, *image_size, 3), "uint8")
    try:
        return _file(network, taken, training)
    except Exception as error:  # of no common base
        lines = [line for line in str(error).splitlines() if line.strip()]
        said = next((line for line in lines if "error:" in line), lines[0] if lines else type(error).__name__)
        where = export.failing_layer(network, lambda layer, taken: _file(layer, taken, None))
        raise NetworkError(
            f"a network that has no LiteRT form{where} ({said.strip()[:300]})",
            "built-in operations of LiteRT",
            "Use --format onnx or savedmodel",
        ) from error


def _file(network: Any, taken: tuple[Any, str], training: NDArray[np.uint8] | None) -> bytes:
    tf = runtime.start(1)
    module = tf.Module()
    module.held = [variable.value for variable in network.variables]

    def outputs(pixels: Any) -> dict[str, Any]:
        found = network(tf.cast(pixels, network.inputs[0].dtype), training=False)
        return {"probabilities": tf.identity(found)}

    module.outputs = tf.function(outputs, [tf.TensorSpec(*taken, name="pixels")], autograph=False)
    # What it says goes to stderr, from C++; its exceptions say the same.
    with runtime.quiet_import():
        function = module.outputs.get_concrete_function()
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function], module)
        if training is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: ([row[None]] for row in training)
        content: bytes = converter.convert()
    return content


def _put(source: Source, file: Path, content: bytes) -> None:
    file.write_bytes(_described(source, content))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(_LABELS, "\n".join(map(display.shown, source.version.classes)) + "\n")


def _described(source: Source, content: bytes) -> bytes:
    """The file with metadata: that a picture goes in, and what the numbers that come out are of."""
    _litert()
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(_metadata(source.version), np.uint8)
    entry.name, entry.buffer = _METADATA, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or ()), entry]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _metadata(version: ModelVersion) -> bytes:
    """The metadata of a version's file, as a flatbuffer."""
    import flatbuffers

    builder = flatbuffers.Builder(1024)

    def table(kind: str, **values: Any) -> int:
        return _table(builder, kind, values)

    height, width = map(np.uint32, version.image_size)
    size = table("ImageSize", width=width, height=height)
    image = table("ImageProperties", color_space=_RGB, default_size=size)
    as_they_are = table("NormalizationOptions", mean=np.zeros(1, np.float32), std=np.ones(1, np.float32))
    picture = table(
        "TensorMetadata",
        name="pixels",
        description="An upright picture, RGB, values 0 to 255: scaling and standardisation are in the network",
        content=table("Content", content_properties_type=_IMAGE, content_properties=image),
        process_units=[table("ProcessUnit", options_type=_NORMALIZATION, options=as_they_are)],
    )
    feature = table("FeatureProperties")
    labels = table(
        "AssociatedFile", name=_LABELS, description="Names of the classes, a line each", type=_AXIS_LABELS
    )
    answer = table(
        "TensorMetadata",
        name="probabilities",
        description="The probability of each class",
        content=table("Content", content_properties_type=_FEATURE, content_properties=feature),
        associated_files=[labels],
    )
    network = table("SubGraphMetadata", input_tensor_metadata=[picture], output_tensor_metadata=[answer])
    whole = table(
        "ModelMetadata",
        name=version.name,
        description=f"Image classifier of {len(version.classes):,} classes",
        version=version.version,
        subgraph_metadata=[network],
        min_parser_version=_SCHEMA,
    )
    builder.Finish(whole, file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


def _table(builder: Any, kind: str, values: Mapping[str, Any]) -> int:
    """Write a table, whose values are texts, arrays, numbers of NumPy's, and tables written before; its offset."""
    written = {}
    for name, value in values.items():
        if isinstance(value, str):
            value = builder.CreateString(value)
        elif isinstance(value, np.ndarray):
            value = builder.CreateNumpyVector(value)
        elif isinstance(value, list):
            builder.StartVector(4, len(value), 4)
            for each in reversed(value):
                builder.PrependUOffsetTRelative(each)
            value = builder.EndVector()
        written[_FIELDS[kind].index(name)] = value
    builder.StartObject(len(_FIELDS[kind]))
    for place, value in written.items():
        if isinstance(value, np.uint8):
            builder.PrependUint8Slot(place, int(value), 0)
        elif isinstance(value, np.uint32):
            builder.PrependUint32Slot(place, int(value), 0)
        else:
            builder.PrependUOffsetTRelativeSlot(place, value, 0)
    return int(builder.EndObject())


class LiteRt:
    """A network in LiteRT, one picture after the other.

    Args:
        content: What `write` has written, or `converted` has made.
        threads: Threads of a forward pass.

    Raises:
        ClusterError: The extra `litert` is not installed.
    """

    def __init__(self, content: bytes, threads: int) -> None:
        interpreter = _litert().Interpreter(model_content=content, num_threads=threads)
        self._network = interpreter.get_signature_runner()

    def run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The probabilities of pictures, shape (rows, classes)."""
        return np.concatenate([self._network(pixels=row[None])["probabilities"] for row in batch])


def run(folder: Path, rows: NDArray[np.uint8], name: str = FILE) -> NDArray[np.float32]:
    """The probabilities of what was written, by LiteRT.

    Raises:
        ClusterError: The extra `litert` is not installed.
    """
    return LiteRt((folder / name).read_bytes(), threads=1).run(rows)


def _litert() -> Any:
    """LiteRT's interpreter, or an error that says how to have it."""
    try:
        from ai_edge_litert import interpreter
    except ImportError as error:
        raise ClusterError(
            f"no ai-edge-litert in this Python ({error})",
            "the extra `litert` of this package",
            "Install seedlings-spark[litert]",
        ) from None
    return interpreter
