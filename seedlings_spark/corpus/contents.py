"""Tables that hold the bytes of image files, or images as Spark's own source `image` reads them."""

import numpy as np
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it
from pyspark.sql.types import BinaryType, StructType

from seedlings_spark import images, schema
from seedlings_spark.errors import InputError

MISSING = "no content"
# The fields of a column of that source (`ImageSchema.columnSchema` of Spark's Java side).
_IMAGE_FIELDS = {"origin", "height", "width", "nChannels", "mode", "data"}
# Channels of OpenCV's types CV_8UC1, CV_8UC3 and CV_8UC4, by which Spark names what it has read.
_CHANNELS = {0: 1, 16: 3, 24: 4}


def with_path(rows: DataFrame, column: str) -> DataFrame:
    """A table of Spark's images that has no column `path` with the origins of its images as such."""
    if schema.PATH in rows.columns or column not in rows.columns or not _is_image(rows, column):
        return rows
    return rows.withColumn(schema.PATH, schema.column(column).getField("origin"))


def of_column(rows: DataFrame, column: str, table: str) -> Column:
    """The bytes of a table's image files, as the column `content`; null where there are none.

    An image that Spark has decoded becomes a PNG of the same pixels, whose bytes are always the same.

    Args:
        rows: The table.
        column: Name of the column.
        table: Path of the table, for the error.

    Raises:
        InputError: It is of another type.
    """
    value = schema.column(column)
    if _is_image(rows, column):
        png = F.udf(_png, BinaryType(), useArrow=True)
        return png(*[value.getField(name) for name in ("height", "width", "mode", "data")]).alias(
            schema.CONTENT
        )
    if not isinstance(rows.schema[column].dataType, BinaryType):
        raise InputError(
            f"a column {column} of type {rows.schema[column].dataType.simpleString()} in {table}",
            "binary, the bytes of the image files; or images as Spark's source `image` reads them",
            "Correct --content-column",
        )
    return value.alias(schema.CONTENT)


def _is_image(rows: DataFrame, column: str) -> bool:
    kind = rows.schema[column].dataType
    return isinstance(kind, StructType) and set(kind.names) >= _IMAGE_FIELDS


def _png(
    height: int | None, width: int | None, mode: int | None, data: bytes | bytearray | None
) -> bytes | None:
    """A PNG of pixels that are stored row by row, blue first; None where these are no picture of such a size."""
    channels = _CHANNELS.get(-1 if mode is None else mode)
    if channels is None or data is None or not height or not width or len(data) != height * width * channels:
        return None
    pixels = np.frombuffer(bytes(data), np.uint8).reshape(height, width, channels)
    return images.encode_png(pixels[:, :, [2, 1, 0, 3][:channels] if channels > 1 else [0]])
