"""A model version as functions of Spark SQL, over the bytes of image files.

register(spark, "species", store, "v0003")
SELECT path, species(content) FROM images
SELECT path, species_details(content).reason FROM images WHERE species(content) IS NULL
"""

from collections.abc import Iterator
from typing import Any

from pyspark.sql import SparkSession
from pyspark.sql.pandas.functions import pandas_udf

from seedlings_spark import choices, files, images, schema
from seedlings_spark.cluster import runtime, session
from seedlings_spark.corpus import decoding
from seedlings_spark.errors import ImageError, InputError, OptionError
from seedlings_spark.models import prediction
from seedlings_spark.models.store import CURRENT, ModelStore, ModelVersion
from seedlings_spark.scoring.tasks import CONTENTS, forward_task

DETAILS = (
    f"{schema.PREDICTED_SPECIES} string, {schema.CONFIDENCE} float, {schema.PROBABILITIES} array<float>,"
    f" {schema.REASON} string, {schema.DETAIL} string"
)
# Of the functions of Spark SQL; the job has an option for it, with this default.
_BATCH_SIZE = 64


def register(
    spark: SparkSession,
    name: str,
    store: str,
    version: str = CURRENT,
    *,
    model: str = "seedlings",
    engine: str = "auto",
) -> None:
    """Make a model version a function of Spark SQL: `SELECT path, species(content) FROM images`.

    `name(content)` is the predicted species of an image file's bytes, NULL where they are no usable picture;
    `name_details(content)` is a struct with `predicted_species`, `confidence`, `probabilities`, `reason` and `detail`.

    Args:
        spark: The session.
        name: Name of the function.
        store: Folder of the model store.
        version: Version of the model.
        model: Name of the model in the store.
        engine: What computes: onnxruntime, openvino, tensorflow, or auto for the first where the version has it.

    Raises:
        StoreError: There is no such version, or it is damaged.
    """
    resolved = ModelStore(files.qualify(store), model).verify(version, CONTENTS)
    decode = decoding.DecodeTask(
        size=resolved.image_size,
        aspect=resolved.aspect,
        formats=choices.FORMATS,
        max_pixels=choices.MAX_PIXELS,
        max_bytes=choices.MAX_BYTES,
    )
    register_functions(spark, name, resolved, forward_task(spark, resolved, _BATCH_SIZE, engine), decode)


def register_functions(
    spark: SparkSession,
    name: str,
    version: ModelVersion,
    forward: prediction.ForwardTask,
    decode: decoding.DecodeTask,
) -> None:
    """Register `name` and `name_details` for the bytes of an image file.

    Args:
        spark: The session.
        name: Name of the function that gives the species, or NULL for what is no usable picture.
        version: Version of the model.
        forward: Its network.
        decode: How bytes become pixels.
    """
    version.require_one_species("a function of Spark SQL")
    if not name.isidentifier():
        raise OptionError(f"the function's name {name!r}", "letters, digits and _", "Choose another name")
    classes = version.classes

    import pandas as pd

    def details(parts: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
        network = prediction.forward(forward)
        for contents in parts:
            yield pd.DataFrame(predict(network, decode, classes, list(contents)))

    def species(parts: Iterator[pd.Series]) -> Iterator[pd.Series]:
        for frame in details(parts):
            yield frame[schema.PREDICTED_SPECIES].astype(object)

    with session.python_environment(spark, runtime.worker_environment(forward.threads)):
        spark.udf.register(name, pandas_udf(species, "string"))  # type: ignore[call-overload]
        spark.udf.register(f"{name}_details", pandas_udf(details, DETAILS))  # type: ignore[call-overload]


def predict(
    network: prediction.Forward, decode: decoding.DecodeTask, classes: tuple[str, ...], contents: list[Any]
) -> dict[str, list[Any]]:
    """Bytes of image files to the columns of `DETAILS`; what is no usable picture has a reason and else None."""
    import numpy as np

    reasons: list[str | None] = [None] * len(contents)
    details: list[str | None] = [None] * len(contents)
    pixels, places = [], []
    for place, content in enumerate(contents):
        if content is not None and not isinstance(content, bytes | bytearray | memoryview):
            raise InputError(
                f"a value of type {type(content).__name__} ({str(content)[:100]!r})",
                "the bytes of an image file, not its path",
                "Give the function a binary column, such as content of spark.read.format('binaryFile').load(folder)",
            )
        try:
            if content is None:
                raise ImageError("unreadable", "NULL")
            if not content:
                raise ImageError("empty")
            if len(content) > decode.max_bytes:
                raise ImageError("too_large", f"{len(content):,} bytes, at most {decode.max_bytes:,}")
            pixels.append(
                images.decode(
                    bytes(content),
                    decode.size,
                    aspect=decode.aspect,
                    formats=decode.formats,
                    max_pixels=decode.max_pixels,
                )
            )
            places.append(place)
        except ImageError as error:
            reasons[place], details[place] = error.reason, error.detail[:500]
    found: dict[str, list[Any]] = {
        name: [None] * len(contents)
        for name in (schema.PREDICTED_SPECIES, schema.CONFIDENCE, schema.PROBABILITIES)
    }
    if pixels:
        outputs = network.predict(np.stack(pixels)).astype(np.float32)
        prediction.check_finite(outputs)
        for place, probabilities in zip(places, outputs, strict=True):
            best = int(np.argmax(probabilities))
            found[schema.PREDICTED_SPECIES][place] = classes[best]
            found[schema.CONFIDENCE][place] = float(probabilities[best])
            found[schema.PROBABILITIES][place] = probabilities.tolist()
    return {**found, schema.REASON: reasons, schema.DETAIL: details}
