"""A version as a SavedModel, in a folder of its number as TensorFlow Serving wants it.

`serving_default` takes pixels, and so can be read by what knows no strings, such as OpenVINO. `image_bytes` takes whole
JPEG and PNG files: they are decoded, turned into the network's size by our rule, and given to it, within the graph.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seedlings_spark import images
from seedlings_spark.cluster import runtime
from seedlings_spark.errors import NetworkError, first_line
from seedlings_spark.exports.source import Source

BYTES = "image_bytes"
PIXELS = "serving_default"
_WARM_UP = "tf_serving_warmup_requests"

TAKES = (
    "signature `serving_default`: `pixels`, uint8, shape (images, {height}, {width}, 3); signature `image_bytes`:"
    " `image_bytes`, strings, each a whole JPEG or PNG file"
)
GIVES = (
    "`probabilities`, float32, shape (images, {num_classes}); of the signature `image_bytes` also `classes`, strings of"
    " the same shape"
)
VERIFIED_BY = "TensorFlow {tensorflow} in a new process, both signatures"
USE = """\
    tensorflow_model_server --rest_api_port=8501 --model_name={name} --model_base_path=$PWD

    curl http://localhost:8501/v1/models/{name}:predict -d '{{
      "signature_name": "image_bytes", "instances": [{{"b64": "'$(base64 -w0 leaf.jpg)'"}}]}}'

In Python: `tf.saved_model.load("{number}").signatures["image_bytes"](image_bytes=tf.constant([content]))`.
TensorFlow Serving loads it with the requests of `assets.extra`, so that the first client does not wait.

`image_bytes` does not look at a JPEG's EXIF orientation, and its rounding differs from `preprocessing.py` by a level
of 255 in some pixels.
"""

# Run by a Python that has TensorFlow and nothing of ours.
_RUN = """
import sys
import numpy as np, tensorflow as tf
loaded = tf.saved_model.load(sys.argv[1])
given = np.load(sys.argv[2])
found = {}
for name in sys.argv[4:]:
    signature = loaded.signatures[name]
    argument, rows = ("pixels", given["pixels"]) if name == "serving_default" else (name, given["files"].tolist())
    parts = [signature(**{argument: tf.constant(rows[at:at + 32])})["probabilities"] for at in range(0, len(rows), 32)]
    found[name] = np.concatenate(parts)
np.savez(sys.argv[3], **found)
"""


def write(source: Source, folder: Path) -> None:
    """Write the SavedModel and its warm-up requests."""
    tf = runtime.start(1)
    network = source.network()
    module = tf.Module()
    module.held = [variable.value for variable in network.variables]
    size = source.version.image_size
    classes = tf.constant(source.version.classes)

    def outputs(pixels: Any) -> dict[str, Any]:
        probabilities = network(tf.cast(pixels, network.inputs[0].dtype), training=False)
        return {"probabilities": tf.identity(probabilities)}

    def of_files(contents: Any) -> dict[str, Any]:
        decoded = tf.map_fn(
            lambda content: _decoded(tf, content, size, source.version.aspect),
            contents,
            fn_output_signature=tf.TensorSpec((*size, 3), tf.uint8),
        )
        found = outputs(decoded)
        names = tf.broadcast_to(classes[None], tf.shape(found["probabilities"]))
        return {**found, "classes": names}

    signatures = {
        PIXELS: tf.function(outputs, [tf.TensorSpec((None, *size, 3), tf.uint8, name="pixels")], False),
        BYTES: tf.function(of_files, [tf.TensorSpec((None,), tf.string, name=BYTES)], False),
    }
    target = folder / str(source.version.number)
    try:
        with runtime.quiet_import():
            tf.saved_model.save(module, str(target), signatures=signatures)
    except Exception as error:  # of no common base
        raise NetworkError(
            f"a network that TensorFlow cannot save as a SavedModel ({first_line(error)})",
            "layers that are computed by operations of TensorFlow",
            "Use --format onnx, if the version has that form",
        ) from error
    _write_warm_up(tf, source, target)


def run(folder: Path, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The probabilities of what was written, by a TensorFlow in a process of its own, from pixels and from PNG files.

    Raises:
        NetworkError: It cannot be loaded there, or the two signatures do not agree.
    """
    (saved,) = (each for each in folder.iterdir() if each.name.isdigit())
    with tempfile.TemporaryDirectory() as scratch:
        given, found = Path(scratch) / "given.npz", Path(scratch) / "found.npz"
        contents = np.array([images.encode_png(row) for row in rows], object)
        np.savez(given, pixels=rows, files=contents.astype("S"))
        command = [sys.executable, "-c", _RUN, str(saved), str(given), str(found), PIXELS, BYTES]
        process = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - ours
        if process.returncode:
            last = (process.stderr.strip().splitlines() or ["no word"])[-1]
            raise NetworkError(
                f"a SavedModel that a fresh TensorFlow cannot run ({last[:300]})",
                "one that needs nothing but TensorFlow",
                "Use --format onnx, if the version has that form",
            )
        with np.load(found) as outputs:
            from_pixels, from_files = outputs[PIXELS], outputs[BYTES]
    # The worse of the two is what is compared with Keras.
    return np.stack([from_pixels, from_files])


def _decoded(tf: Any, content: Any, size: tuple[int, int], aspect: str) -> Any:
    """The pixels of one file by our resizing rule, in operations of TensorFlow: uint8, shape (*size, 3)."""

    def png() -> Any:
        picture = tf.cast(tf.io.decode_png(content, channels=4), tf.float32)
        return tf.round(picture[..., :3] * picture[..., 3:] / 255)

    is_png = tf.strings.substr(content, 0, 4) == b"\x89PNG"
    other = lambda: tf.cast(tf.io.decode_jpeg(content, channels=3, dct_method="INTEGER_ACCURATE"), tf.float32)  # noqa: E731
    picture = tf.cond(is_png, png, other)
    height, width = (tf.cast(each, tf.float32) for each in tf.unstack(tf.shape(picture)[:2]))
    used_height, used_width = height, width
    inner_height, inner_width = (tf.constant(each, tf.float32) for each in size)
    if aspect == "crop":
        used_height = tf.minimum(height, width * size[0] / size[1])
        used_width = tf.minimum(width, height * size[1] / size[0])
    elif aspect == "pad":
        scale = tf.minimum(size[0] / height, size[1] / width)
        inner_height = tf.clip_by_value(tf.floor(height * scale + 0.5), 1, size[0])
        inner_width = tf.clip_by_value(tf.floor(width * scale + 0.5), 1, size[1])
    scales = tf.stack([inner_height / used_height, inner_width / used_width])
    offsets = tf.stack([(height - used_height) / 2, (width - used_width) / 2])
    fitted = tf.raw_ops.ScaleAndTranslate(
        images=picture[None],
        size=tf.cast(tf.stack([inner_height, inner_width]), tf.int32),
        scale=scales,
        translation=-offsets * scales,
        kernel_type="triangle",
        antialias=True,
    )[0]
    pixels = tf.cast(tf.floor(tf.clip_by_value(fitted, 0, 255) + 0.5), tf.uint8)
    if aspect == "pad":
        top, left = (size[0] - tf.shape(pixels)[0]) // 2, (size[1] - tf.shape(pixels)[1]) // 2
        pixels = tf.image.pad_to_bounding_box(pixels, top, left, *size)
    return tf.ensure_shape(pixels, (*size, 3))


def _write_warm_up(tf: Any, source: Source, target: Path) -> None:
    """Requests for each signature, as TensorFlow Serving replays them: records of `tensorflow.serving.PredictionLog`.

    The messages are put together by hand, from their field numbers: their package is none that is needed otherwise.
    """
    rows = source.samples.pixels[:1]
    inputs = {
        PIXELS: ("pixels", tf.make_tensor_proto(rows)),
        BYTES: (BYTES, tf.make_tensor_proto([images.encode_png(rows[0])])),
    }
    folder = target / "assets.extra"
    folder.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(folder / _WARM_UP)) as writer:
        for signature, (argument, tensor) in inputs.items():
            model = _field(1, source.version.name.encode()) + _field(3, signature.encode())
            entry = _field(1, argument.encode()) + _field(2, tensor.SerializeToString())
            request = _field(1, model) + _field(2, entry)
            writer.write(_field(6, _field(1, request)))


def _field(number: int, content: bytes) -> bytes:
    """A field of a protobuf message that holds bytes."""
    length, size = b"", len(content)
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content
