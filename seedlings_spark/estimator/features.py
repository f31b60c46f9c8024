"""Spark ML stages over a prepared corpus: class indices or vectors of 0 and 1, and the mean and std of its pixels.

`ImageStandardizer` is fitted by Spark ML's own `StandardScaler` over vectors of pixels, but its model scales
nothing: it leaves mean and std in the image column's metadata. The estimator behind it folds them into the
network's first layer. So images stay bytes: 12 kB for one of 64x64 pixels, where a vector of doubles takes 98.
"""

import logging
from collections.abc import Iterator
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
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it
from pyspark.sql.types import ArrayType, BinaryType, StringType

from seedlings_spark import schema
from seedlings_spark.cluster import session
from seedlings_spark.errors import CorpusError, OptionError

_log = logging.getLogger(__name__)

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


class _BinarizerParams(HasInputCol, HasOutputCol):
    def _names(self, dataset: DataFrame) -> Column:
        """The names of each row, as an array."""
        column = self.getOrDefault("inputCol")
        kind = dataset.schema[column].dataType if column in dataset.columns else None
        if isinstance(kind, StringType):
            return schema.species_in(schema.column(column))
        if isinstance(kind, ArrayType) and isinstance(kind.elementType, StringType):
            return schema.column(column)
        raise CorpusError(
            f"a column {column!r} of type {kind.simpleString()}" if kind else f"no column {column!r}",
            f"lists of names, or names with {schema.BETWEEN_SPECIES} between them, as `prepare` writes them",
            "Give another inputCol",
        )


class MultiLabelBinarizer(
    _BinarizerParams,
    Estimator["MultiLabelBinarizerModel"],
    DefaultParamsReadable["MultiLabelBinarizer"],
    DefaultParamsWritable,
):
    """Finds the names of classes in lists of them; its model makes of each list a label with 0 or 1 for each class.

    Classes are in the order of their names, as scikit-learn's stage of that name has them.

    Args:
        inputCol: Lists of names, or texts with `|` between names, as the column `species` of a corpus has them.
        outputCol: Arrays of doubles, an element for each class; the names are in the column's metadata.
    """

    __module__ = "seedlings_spark.features"  # as saved pipelines name it

    _input_kwargs: dict[str, Any]  # left by `keyword_only`

    @keyword_only
    def __init__(self, *, inputCol: str = schema.SPECIES, outputCol: str = schema.LABEL) -> None:
        super().__init__()
        self._setDefault(inputCol=schema.SPECIES, outputCol=schema.LABEL)
        self._set(**self._input_kwargs)

    def _fit(self, dataset: DataFrame) -> "MultiLabelBinarizerModel":
        rows = dataset.select(F.explode(self._names(dataset)).alias("name")).distinct().dropna()
        names = sorted(str(row[0]) for row in rows.collect())
        if not names:
            raise CorpusError(
                f"a column {self.getOrDefault('inputCol')!r} without a name",
                "some names of classes",
                "Give another inputCol",
            )
        inputs, outputs = (self.getOrDefault(name) for name in ("inputCol", "outputCol"))
        return MultiLabelBinarizerModel(inputCol=inputs, outputCol=outputs, labels=names)._resetUid(self.uid)


class MultiLabelBinarizerModel(
    _BinarizerParams, Model, DefaultParamsReadable["MultiLabelBinarizerModel"], DefaultParamsWritable
):
    """Makes of each list of names a label with 0 or 1 for each class; a name that is none of them is an error.

    Args:
        inputCol: As for `MultiLabelBinarizer`.
        outputCol: As for `MultiLabelBinarizer`.
        labels: Names of the classes, in the order of the label's elements.
    """

    __module__ = "seedlings_spark.features"  # as saved pipelines name it

    labels: Param[list[str]] = Param(
        Params._dummy(), "labels", "names of the classes, in order", TypeConverters.toListString
    )

    _input_kwargs: dict[str, Any]  # left by `keyword_only`

    @keyword_only
    def __init__(
        self,
        *,
        inputCol: str = schema.SPECIES,
        outputCol: str = schema.LABEL,
        labels: list[str] | None = None,
    ) -> None:
        super().__init__()
        self._setDefault(inputCol=schema.SPECIES, outputCol=schema.LABEL, labels=[])
        kwargs = self._input_kwargs
        self._set(**{name: value for name, value in kwargs.items() if value is not None})

    def _transform(self, dataset: DataFrame) -> DataFrame:
        labels, names = self.getOrDefault("labels"), self._names(dataset)
        classes = F.array(*map(F.lit, labels))
        label = F.transform(classes, lambda name: F.array_contains(names, name).cast("double"))
        strangers = F.array_except(names, classes)
        error = F.concat(
            F.lit(f"a label in {self.getOrDefault('inputCol')!r} is none of the {len(labels)} classes: "),
            F.array_join(strangers, ", ", "NULL"),
        )
        checked = F.when(F.size(strangers) > 0, F.raise_error(error)).otherwise(label)
        metadata = {"ml_attr": {"vals": labels}}
        return dataset.select("*", checked.alias(self.getOrDefault("outputCol"), metadata=metadata))


class _StandardizerParams(HasInputCol, HasOutputCol):
    poolBy: Param[str] = Param(  # noqa: N815 - a param of Spark ML
        Params._dummy(),
        "poolBy",
        "a mean and std for each 'channel' or each 'pixel'",
        TypeConverters.toString,
    )
    imageSize: Param[list[int]] = Param(  # noqa: N815 - a param of Spark ML
        Params._dummy(), "imageSize", "height and width of the images in pixels", TypeConverters.toListInt
    )

    def _check_input(self, dataset: DataFrame) -> None:
        column = self.getOrDefault("inputCol")
        field = next((field for field in dataset.schema if field.name == column), None)
        if field is None or not isinstance(field.dataType, BinaryType):
            raise CorpusError(
                f"no column {column!r}"
                if field is None
                else f"a column {column!r} of type {field.dataType.simpleString()}",
                "a binary column of uint8 pixels (height, width, 3)",
                "Give a table that `prepare` wrote, or another inputCol",
            )

    def _image_size(self) -> tuple[int, int]:
        size = self.getOrDefault("imageSize") if self.isDefined("imageSize") else None
        if size is None or len(size) != 2 or min(size) < 1:
            raise OptionError(
                f"imageSize={size}", "[height, width] of the images in pixels", "Set imageSize to it"
            )
        return size[0], size[1]


class ImageStandardizer(
    _StandardizerParams,
    Estimator["ImageStandardizerModel"],
    DefaultParamsReadable["ImageStandardizer"],
    DefaultParamsWritable,
):
    """Fits mean and std of pixels with Spark ML's StandardScaler.

    The result depends on the images alone, to the last bit: neither on their order nor on their partitions.

    Args:
        inputCol: Binary column of uint8 pixels, (height, width, 3) in C order.
        outputCol: The same images with mean and std in the column's metadata.
        imageSize: [height, width] in pixels.
        poolBy: "channel" (3 means and stds, over all images and pixels) or "pixel" (one for each).
        maxImages: At most so many images are looked at, the first by content hash (of the column
            `content_hash`, else of the pixels); 0 for all.
        heldOutCol: Boolean column of rows that are not looked at, such as validation images; "" for none.
            Where it is null, the row is not looked at either.
    """

    __module__ = "seedlings_spark.features"  # as saved pipelines name it

    maxImages: Param[int] = Param(  # noqa: N815 - a param of Spark ML
        Params._dummy(), "maxImages", "images to look at, 0 for all", TypeConverters.toInt
    )
    heldOutCol: Param[str] = Param(  # noqa: N815 - a param of Spark ML
        Params._dummy(), "heldOutCol", "boolean column of rows to leave out", TypeConverters.toString
    )

    _input_kwargs: dict[str, Any]  # left by `keyword_only`

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
            inputCol=schema.IMAGE,
            outputCol="standardized_image",
            poolBy="channel",
            maxImages=0,
            heldOutCol="",
        )
        kwargs = self._input_kwargs
        self._set(**{name: value for name, value in kwargs.items() if value is not None})

    def _fit(self, dataset: DataFrame) -> "ImageStandardizerModel":
        self._check_input(dataset)
        pool_by = self.getOrDefault("poolBy")
        if pool_by not in POOLINGS:
            raise OptionError(f"poolBy {pool_by!r}", f"one of {', '.join(POOLINGS)}", "Choose one of them")
        height, width = shape = self._image_size()
        column, held_out, limit = (
            self.getOrDefault(name) for name in ("inputCol", "heldOutCol", "maxImages")
        )
        if limit < 0:
            raise OptionError(f"maxImages={limit}", "a number of images, 0 for all", "Correct maxImages")
        rows = dataset.where(~schema.column(held_out)) if held_out else dataset
        if limit:
            has_hash = schema.has_content_hash(rows)
            rows = _first_by(
                rows, F.col(schema.CONTENT_HASH) if has_hash else F.sha2(schema.column(column), 256), limit
            )
        length = height * width * 3
        num_images = _count_images(rows, column, length)
        # Spark reads the setting when the job runs: a batch of its default 10,000 rows would take gigabytes.
        with session.arrow_batches(dataset.sparkSession, 4 * length):
            # Under a name without dots, which `mapInArrow` would take for fields of structs.
            pixels = rows.select(schema.column(column).alias("pixels"))
            floats = pixels.mapInArrow(_to_floats, "pixels array<float>")  # type: ignore[arg-type]
            vectors = floats.select(array_to_vector(F.col("pixels")).alias("pixels"))
            scaler = StandardScaler(inputCol="pixels", outputCol="scaled", withMean=True, withStd=True)
            fitted = scaler.fit(vectors)
        mean, std = exact(fitted.mean.toArray(), fitted.std.toArray(), num_images)
        mean, std = mean.reshape(*shape, 3), std.reshape(*shape, 3)
        if pool_by == "channel":
            mean, std = pool_by_channel(mean, std)
        _log.info("mean and std of %s images, one for each %s", f"{num_images:,}", pool_by)
        model = ImageStandardizerModel(
            inputCol=column,
            outputCol=self.getOrDefault("outputCol"),
            poolBy=pool_by,
            imageSize=[height, width],
            mean=mean.ravel().tolist(),
            std=std.ravel().tolist(),
        )
        return model._resetUid(self.uid)


class ImageStandardizerModel(
    _StandardizerParams, Model, DefaultParamsReadable["ImageStandardizerModel"], DefaultParamsWritable
):
    """Leaves mean and std in the metadata of the image column; the bytes stay as they are.

    Args:
        inputCol: As for `ImageStandardizer`.
        outputCol: As for `ImageStandardizer`.
        poolBy: As for `ImageStandardizer`.
        imageSize: As for `ImageStandardizer`.
        mean: Flat; 3 values, or height * width * 3 in C order.
        std: The same.
    """

    __module__ = "seedlings_spark.features"  # as saved pipelines name it

    mean: Param[list[float]] = Param(
        Params._dummy(), "mean", "mean of the pixels, 0 to 255", TypeConverters.toListFloat
    )
    std: Param[list[float]] = Param(
        Params._dummy(), "std", "standard deviation of the pixels", TypeConverters.toListFloat
    )

    _input_kwargs: dict[str, Any]  # left by `keyword_only`

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
        height, width = self._image_size()
        metadata = {
            METADATA_KEY: {
                "height": height,
                "width": width,
                "mean": self.getOrDefault("mean"),
                "std": self.getOrDefault("std"),
            }
        }
        column = schema.column(self.getOrDefault("inputCol")).alias(
            self.getOrDefault("outputCol"), metadata=metadata
        )
        return dataset.select("*", column)


def standardization(
    dataset: DataFrame, column: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
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


def exact(
    mean: NDArray[np.float64], std: NDArray[np.float64], num_images: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and std without the rounding of the order in which they were summed.

    Pixels are integers, and so are their sum and the sum of their squares. Rounded to integers, the sums behind
    a mean and a std are those of exact arithmetic, whatever Spark's partitions were.

    Args:
        mean: Mean of the values 0 to 255 of `num_images` images, to within rounding.
        std: Their sample standard deviation (divided by num_images - 1), to within rounding.
        num_images: At least 1.
    """
    totals = np.rint(mean * num_images)
    squares = np.rint(np.square(std) * (num_images - 1) + totals * mean)
    # Python's integers, which neither round nor overflow.
    pairs = [(int(total), int(square)) for total, square in zip(totals.flat, squares.flat, strict=True)]
    divisor = num_images * max(1, num_images - 1)
    variances = [max(0, num_images * square - total**2) / divisor for total, square in pairs]
    return totals / num_images, np.sqrt(np.reshape(variances, std.shape))


def _first_by(rows: DataFrame, order: Column, limit: int) -> DataFrame:
    """The first rows in an order; only its values are sorted, the rows stay where they are."""
    first = rows.select(order.alias("key")).orderBy("key").limit(limit)
    last = first.groupBy("key").count().orderBy(F.desc("key")).first()
    if last is None:
        return rows.limit(0)
    # Of several rows with the last hash any will do: equal hashes are equal images.
    key, ties = last
    return rows.where(order < key).union(rows.where(order == key).limit(ties))


def _count_images(rows: DataFrame, column: str, length: int) -> int:
    """How many images there are.

    Raises:
        CorpusError: None, or not all of them have `length` bytes.
    """
    size = F.length(schema.column(column))
    (found,) = rows.agg(
        F.count("*"), F.count_if(size == length), F.min(size), F.max(size), F.count_if(size.isNull())
    ).collect()
    num_images, num_good, least, most, num_null = found
    if not num_images:
        raise CorpusError(
            "no image to take mean and std of", "at least one", "Give a table with training images"
        )
    if num_good != num_images:
        raise CorpusError(
            f"{num_images - num_good:,} of {num_images:,} images with another number of bytes"
            + (f" ({num_null:,} without any)" if num_null else f" ({least:,} to {most:,})"),
            f"{length:,} bytes each, (height, width, 3)",
            "Set imageSize to the size of the corpus' images",
        )
    return int(num_images)


def _to_floats(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Images, all of one length, as lists of float32."""
    for batch in batches:
        contents = batch.column(0).to_pylist()
        pixels = np.frombuffer(b"".join(contents), np.uint8).astype(np.float32)
        offsets = np.arange(len(contents) + 1, dtype=np.int32) * (pixels.size // max(1, len(contents)))
        yield pa.RecordBatch.from_arrays([pa.ListArray.from_arrays(offsets, pixels)], ["pixels"])
