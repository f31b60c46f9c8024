"""Pictures that a version has wrong, and those that it is unsure of, for a person to look at."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

from seedlings_spark import images, schema

# As many as a page can carry inside: some four megabytes.
NUM_WRONG, NUM_UNSURE = 400, 100
# Length of a thumbnail's longer side, in pixels.
_THUMBNAIL = 128
# How many probabilities stand below a picture.
_NUM_SHOWN = 3


@dataclass(frozen=True)
class Picture:
    """One picture on the page.

    Attributes:
        path: Of its file.
        content_hash: Of its bytes.
        truth: Its true species.
        predicted: The one that it was taken for.
        confidence: The probability of that; None where the pipeline gives none.
        probabilities: The most probable species with theirs, and the true one, the highest first.
        thumbnail: A JPEG of the corpus' pixels.
    """

    path: str
    content_hash: str
    truth: str
    predicted: str
    confidence: float | None
    probabilities: tuple[tuple[str, float], ...]
    thumbnail: bytes


@dataclass(frozen=True)
class Gallery:
    """What there is to look at.

    Attributes:
        wrong: The most confident first, at most `NUM_WRONG`.
        unsure: Right ones, the least confident first, at most `NUM_UNSURE`.
    """

    wrong: tuple[Picture, ...]
    unsure: tuple[Picture, ...]


def gallery(predictions: DataFrame, pixels: DataFrame, classes: Sequence[str]) -> Gallery:
    """Choose the pictures, and have executors draw their thumbnails.

    Args:
        predictions: As `schema.EVALUATED`.
        pixels: The same pictures, as `schema.CORPUS`.
        classes: The species, in the order of the probabilities.
    """
    is_right = F.col(schema.SPECIES) == F.col(schema.PREDICTED_SPECIES)
    wrong = predictions.where(~is_right).orderBy(F.desc_nulls_last(schema.CONFIDENCE), schema.PATH)
    unsure = predictions.where(is_right & F.col(schema.CONFIDENCE).isNotNull())
    chosen = [
        wrong.limit(NUM_WRONG).collect(),
        unsure.orderBy(schema.CONFIDENCE, schema.PATH).limit(NUM_UNSURE).collect(),
    ]
    thumbnails = _thumbnails(pixels, [row[schema.CONTENT_HASH] for rows in chosen for row in rows])
    return Gallery(*(tuple(_picture(row, thumbnails, classes) for row in rows) for rows in chosen))


def _thumbnails(pixels: DataFrame, hashes: Sequence[str]) -> dict[str, bytes]:
    if not hashes:
        return {}
    columns = (schema.CONTENT_HASH, schema.HEIGHT, schema.WIDTH, schema.IMAGE)
    rows = pixels.where(F.col(schema.CONTENT_HASH).isin(list(hashes))).select(*columns)
    drawn = rows.mapInArrow(_drawn, f"{schema.CONTENT_HASH} string, thumbnail binary").collect()
    return {row[0]: bytes(row[1]) for row in drawn}


def _drawn(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        drawn = [
            images.thumbnail(np.frombuffer(row[schema.IMAGE], np.uint8).reshape(height, width, 3), _THUMBNAIL)
            for row in batch.to_pylist()
            for height, width in [(row[schema.HEIGHT], row[schema.WIDTH])]
        ]
        yield pa.RecordBatch.from_arrays(
            [batch.column(0), pa.array(drawn, pa.binary())], [schema.CONTENT_HASH, "thumbnail"]
        )


def _picture(row: Row, thumbnails: dict[str, bytes], classes: Sequence[str]) -> Picture:
    values = row[schema.PROBABILITIES] or []
    places = sorted(range(len(values)), key=lambda place: -values[place])
    truth = row[schema.SPECIES]
    shown = [*places[:_NUM_SHOWN], *(each for each in places[_NUM_SHOWN:] if classes[each] == truth)]
    return Picture(
        row[schema.PATH],
        row[schema.CONTENT_HASH],
        truth,
        row[schema.PREDICTED_SPECIES],
        row[schema.CONFIDENCE],
        tuple((classes[place], values[place]) for place in shown),
        thumbnails[row[schema.CONTENT_HASH]],
    )
