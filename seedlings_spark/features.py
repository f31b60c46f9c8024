"""Spark ML stages over a prepared corpus: class indices, and the mean and std of its pixels.

`ImageStandardizer` is fitted by Spark ML's own `StandardScaler` over vectors of pixels, but its model scales
nothing: it leaves mean and std in the image column's metadata. The estimator behind it folds them into the
network's first layer. So images stay bytes: 12 kB for one of 64x64 pixels, where a vector of doubles takes 98.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark import keyword_only
from pyspark.ml import Estimator, Model
from pyspark.ml.feature import StandardScaler, StringIndexer
from pyspark.ml.functions import array_to_vector
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import HasInputCol, HasOutputCol
from pyspark.ml.util import DefaultParamsReadable, DefaultParamsWritable
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it
from pyspark.sql.types import BinaryType

from seedlings_spark import schema
from seedlings_spark.errors import CorpusError, OptionError

POOLINGS = ("channel", "pixel")
# Key of ours in the image column's metadata.
METADATA_KEY = "seedlings"


def species_indexer() -> StringIndexer:
    """Class numbers in the order of the species' names: it does not depend on how many images each has."""
    return StringIndexer(
        inputCol=schema.SPECIES,
        outputCol=schema.LABEL,
        stringOrderType="alphabetAsc",
        handleInvalid="error",
    )


class _StandardizerParams(HasInputCol, HasOutputCol):
    poolBy: Param[str] = Param(
        Params._dummy(), "poolBy", "a mean and std for each 'channel' or each 'pixel'", TypeConverters.toString
    )
    imageSize: Param[list[int]] = Param(
        Params._dummy(), "imageSize", "height and width of the images in pixels", TypeConverters.toListInt
    )

    def _check_input(self, dataset: DataFrame) -> None:
        column = self.getOrDefault("inputCol")
        field = next((field for field in dataset.schema if field.name == column), None)
        if field is None or not isinstance(field.dataType, BinaryType):
            raise CorpusError(
                f"no column {column!r}" if field is None else f"a column {column!r} of type {field.dataType.simpleString()}",
                "a binary column of uint8 pixels (height, width, 3)",
                "Give a table that `prepare` wrote, or another inputCol",
            )


class ImageStandardizer(_StandardizerParams, Estimator["ImageStandardizerModel"], DefaultParamsReadable, DefaultParamsWritable):  # type: ignore[misc]
    """Fits mean and std of pixels with Spark ML's StandardScaler.

    Args:
        inputCol: Binary column of uint8 pixels, (height, width, 3) in C order.
        outputCol: The same images with mean and std in the column's metadata.
        imageSize: [height, width] in pixels.
        poolBy: "channel" (3 means and stds, over all images and pixels) or "pixel" (one for each).
        maxImages: At most so many images are looked at, the first by content hash; 0 for all.
        heldOutCol: Boolean column of rows that are not looked at, such as validation images; "" for none.
    """

    maxImages: Param[int] = Param(
        Params._dummy(), "maxImages", "images to look at, 0 for all", TypeConverters.toInt
    )
    heldOutCol: Param[str] = Param(
        Params._dummy(), "heldOutCol", "boolean column of rows to leave out", TypeConverters.toString
    )

    @keyword_only
    def __init__(
        self,
        *,
        inputCol: str = schema.IMAGE,
        outputCol: str = "standardized_image",
        imageSize: list[int] | None = None,
        poolBy: str = "channel",
        maxImages: int = 0,
        heldOutCol: str = "",
    ) -> None:
        super().__init__()
        self._setDefault(
            inputCol=schema.IMAGE, outputCol="standardized_image", poolBy="channel", maxImages=0, heldOutCol=""
        )
        kwargs = self._input_kwargs
        self._set(**{name: value for name, value in kwargs.items() if value is not None})

    def _fit(self, dataset: DataFrame) -> "ImageStandardizerModel":
        self._check_input(dataset)
        pool_by = self.getOrDefault("poolBy")
        if pool_by not in POOLINGS:
            raise OptionError(f"poolBy {pool_by!r}", f"one of {', '.join(POOLINGS)}", "Choose one of them")
        height, width = self.getOrDefault("imageSize")
        column, held_out, limit = (self.getOrDefault(name) for name in ("inputCol", "heldOutCol", "maxImages"))
        rows = dataset.where(~F.col(held_out)) if held_out else dataset
        if limit:
            order = schema.CONTENT_HASH if schema.CONTENT_HASH in rows.columns else column
            rows = rows.orderBy(order).limit(limit)
        floats = rows.select(column).mapInArrow(partial(_to_floats, height * width * 3), "pixels array<float>")
        vectors = floats.select(array_to_vector("pixels").alias("pixels"))
        scaler = StandardScaler(inputCol="pixels", outputCol="scaled", withMean=True, withStd=True).fit(vectors)
        shape = (height, width, 3)
        mean, std = scaler.mean.toArray().reshape(shape), scaler.std.toArray().reshape(shape)
        if pool_by == "channel":
            mean, std = pool_by_channel(mean, std)
        model = ImageStandardizerModel(
            inputCol=column,
            outputCol=self.getOrDefault("outputCol"),
            poolBy=pool_by,
            imageSize=[height, width],
            mean=mean.ravel().tolist(),
            std=std.ravel().tolist(),
        )
        return model._resetUid(self.uid)


class ImageStandardizerModel(_StandardizerParams, Model, DefaultParamsReadable, DefaultParamsWritable):  # type: ignore[misc]
    """Leaves mean and std in the metadata of the image column; the bytes stay as they are.

    Args:
        inputCol: As for `ImageStandardizer`.
        outputCol: As for `ImageStandardizer`.
        poolBy: As for `ImageStandardizer`.
        imageSize: As for `ImageStandardizer`.
        mean: Flat; 3 values, or height * width * 3 in C order.
        std: The same.
    """

    mean: Param[list[float]] = Param(
        Params._dummy(), "mean", "mean of the pixels, 0 to 255", TypeConverters.toListFloat
    )
    std: Param[list[float]] = Param(
        Params._dummy(), "std", "standard deviation of the pixels", TypeConverters.toListFloat
    )

    @keyword_only
    def __init__(
        self,
        *,
        inputCol: str = schema.IMAGE,
        outputCol: str = "standardized_image",
        poolBy: str = "channel",
        imageSize: list[int] | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> None:
        super().__init__()
        kwargs = self._input_kwargs
        self._set(**{name: value for name, value in kwargs.items() if value is not None})

    def _transform(self, dataset: DataFrame) -> DataFrame:
        self._check_input(dataset)
        height, width = self.getOrDefault("imageSize")
        metadata = {
            METADATA_KEY: {
                "height": height,
                "width": width,
                "mean": self.getOrDefault("mean"),
                "std": self.getOrDefault("std"),
            }
        }
        column = F.col(self.getOrDefault("inputCol")).alias(self.getOrDefault("outputCol"), metadata=metadata)
        return dataset.select("*", column)


def standardization(dataset: DataFrame, column: str) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """The mean and std that a standardiser left in a column's metadata, or None.

    Returns:
        Two arrays of shape (3,) or (height, width, 3).
    """
    found: dict[str, Any] = dataset.schema[column].metadata.get(METADATA_KEY, {})
    if not found:
        return None
    mean, std = np.array(found["mean"], np.float64), np.array(found["std"], np.float64)
    if mean.size > 3:
        shape = (int(found["height"]), int(found["width"]), 3)
        mean, std = mean.reshape(shape), std.reshape(shape)
    return mean, std


def pool_by_channel(
    mean: NDArray[np.float64], std: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and std over all pixels of a channel, from those of each pixel.

    The variance of a mixture of equal parts is the mean of their variances plus the variance of their means.

    Args:
        mean: Shape (height, width, channels).
        std: The same shape.

    Returns:
        Mean and std of shape (channels,).
    """
    return mean.mean(axis=(0, 1)), np.sqrt(np.square(std).mean(axis=(0, 1)) + mean.var(axis=(0, 1)))


def _to_floats(length: int, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Images of `length` bytes each as lists of float32."""
    for batch in batches:
        images = batch.column(0)
        pixels = np.frombuffer(b"".join(images.to_pylist()), np.uint8).astype(np.float32)
        if pixels.size != length * len(images):
            raise CorpusError(
                f"{len(images)} images of {pixels.size:,} bytes together",
                f"{length:,} bytes each, (height, width, 3)",
                "Set imageSize to the size of the corpus' images",
            )
        offsets = np.arange(len(images) + 1, dtype=np.int32) * length
        yield pa.RecordBatch.from_arrays([pa.ListArray.from_arrays(offsets, pixels)], ["pixels"])
