"""Pictures that a version has wrong, and those that it is unsure of, for a person to look at."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

from seedlings_spark import images, schema
from seedlings_spark.cluster import runtime, session
from seedlings_spark.models import saliency

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
        map: A JPEG in greys, bright where the network finds what it predicts; None where nobody has asked.
    """

    path: str
    content_hash: str
    truth: str
    predicted: str
    confidence: float | None
    probabilities: tuple[tuple[str, float], ...]
    thumbnail: bytes
    map: bytes | None = None


@dataclass(frozen=True)
class Gallery:
    """What there is to look at.

    Attributes:
        wrong: The most confident first, at most `NUM_WRONG`.
        unsure: Right ones, the least confident first, at most `NUM_UNSURE`.
    """

    wrong: tuple[Picture, ...]
    unsure: tuple[Picture, ...]


def gallery(
    predictions: DataFrame,
    pixels: DataFrame,
    classes: Sequence[str],
    task: saliency.SaliencyTask | None = None,
) -> Gallery:
    """Choose the pictures, and have executors draw their thumbnails.

    Args:
        predictions: As `schema.EVALUATED`.
        pixels: The same pictures, as `schema.CORPUS`.
        classes: The species, in the order of the probabilities.
        task: To draw maps of where the predicted species is found; None for none.
    """
    is_right = F.col(schema.SPECIES) == F.col(schema.PREDICTED_SPECIES)
    wrong = predictions.where(~is_right).orderBy(F.desc_nulls_last(schema.CONFIDENCE), schema.PATH)
    unsure = predictions.where(is_right & F.col(schema.CONFIDENCE).isNotNull())
    chosen = [
        wrong.limit(NUM_WRONG).collect(),
        unsure.orderBy(schema.CONFIDENCE, schema.PATH).limit(NUM_UNSURE).collect(),
    ]
    shown = {row[schema.CONTENT_HASH]: row[schema.PREDICTED_SPECIES] for rows in chosen for row in rows}
    drawn = _thumbnails(pixels, shown, classes, task)
    return Gallery(*(tuple(_picture(row, drawn, classes) for row in rows) for rows in chosen))


@dataclass(frozen=True)
class ListPicture:
    """A picture that shows any number of species, of which too many or too few are named.

    Attributes:
        path: Of its file.
        shown: The species that it shows.
        named: Those that are named.
        confidence: As `score` has it.
        thumbnail: A JPEG.
    """

    path: str
    shown: tuple[str, ...]
    named: tuple[str, ...]
    confidence: float
    thumbnail: bytes


def wrong_lists(predictions: DataFrame, pixels: DataFrame) -> tuple[ListPicture, ...]:
    """Of the pictures whose species are not named exactly those that the model was least sure of.

    Args:
        predictions: As `schema.EVALUATED_LISTS`.
        pixels: The same pictures, as `schema.CORPUS`.
    """
    is_exact = F.array_sort(schema.SPECIES) == F.array_sort(schema.PREDICTED_SPECIES)
    rows = predictions.where(~is_exact).orderBy(schema.CONFIDENCE, schema.PATH).limit(NUM_UNSURE).collect()
    drawn = thumbnails(pixels, [row[schema.CONTENT_HASH] for row in rows])
    return tuple(
        ListPicture(
            row[schema.PATH],
            tuple(row[schema.SPECIES]),
            tuple(row[schema.PREDICTED_SPECIES]),
            float(row[schema.CONFIDENCE]),
            drawn[row[schema.CONTENT_HASH]],
        )
        for row in rows
    )


@dataclass(frozen=True)
class NumberPicture:
    """A picture of which another number is predicted than it has.

    Attributes:
        path: Of its file.
        value: The number that it has.
        predicted: The one that is predicted.
        thumbnail: A JPEG.
    """

    path: str
    value: float
    predicted: float
    thumbnail: bytes


def furthest(predictions: DataFrame, pixels: DataFrame) -> tuple[NumberPicture, ...]:
    """The pictures whose numbers are furthest from those that are predicted.

    Args:
        predictions: As `schema.EVALUATED_NUMBERS`.
        pixels: The same pictures, as `schema.CORPUS`.
    """
    error = F.abs(F.col(schema.PREDICTED_VALUE) - F.col(schema.VALUE))
    rows = predictions.orderBy(F.desc(error), schema.PATH).limit(NUM_UNSURE).collect()
    drawn = thumbnails(pixels, [row[schema.CONTENT_HASH] for row in rows])
    return tuple(
        NumberPicture(
            row[schema.PATH],
            float(row[schema.VALUE]),
            float(row[schema.PREDICTED_VALUE]),
            drawn[row[schema.CONTENT_HASH]],
        )
        for row in rows
    )


def thumbnails(pixels: DataFrame, content_hashes: Iterable[str]) -> dict[str, bytes]:
    """Of each of these pictures, by its content, a thumbnail as a JPEG, drawn by executors.

    Args:
        pixels: As `schema.CORPUS`.
        content_hashes: Which.
    """
    drawn = _thumbnails(pixels, dict.fromkeys(content_hashes, ""), [""], None)
    return {content: thumbnail for content, (thumbnail, _) in drawn.items()}


def _thumbnails(
    pixels: DataFrame,
    shown: Mapping[str, str],
    classes: Sequence[str],
    task: saliency.SaliencyTask | None,
) -> dict[str, tuple[bytes, bytes | None]]:
    """Of each picture, by its content, a thumbnail and a map."""
    if not shown:
        return {}
    places = {content: classes.index(name) for content, name in shown.items()}

    def drawn(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            if batch.num_rows:
                yield _drawn(batch, places, task)

    columns = (schema.CONTENT_HASH, schema.HEIGHT, schema.WIDTH, schema.IMAGE)
    rows = pixels.where(F.col(schema.CONTENT_HASH).isin(list(shown))).select(*columns)
    spark = pixels.sparkSession
    with session.python_environment(spark, runtime.worker_environment(task.threads if task else 1)):
        found = rows.mapInArrow(
            drawn, f"{schema.CONTENT_HASH} string, thumbnail binary, map binary"
        ).collect()
    return {row[0]: (bytes(row[1]), None if row[2] is None else bytes(row[2])) for row in found}


def _drawn(
    batch: pa.RecordBatch, places: Mapping[str, int], task: saliency.SaliencyTask | None
) -> pa.RecordBatch:
    rows = batch.to_pylist()
    pixels = [
        np.frombuffer(row[schema.IMAGE], np.uint8).reshape(row[schema.HEIGHT], row[schema.WIDTH], 3)
        for row in rows
    ]
    found: list[bytes | None] = [None] * len(rows)
    if task is not None:
        chosen = np.array([places[row[schema.CONTENT_HASH]] for row in rows])
        greys = saliency.maps(task, np.stack(pixels), chosen)
        found = [images.thumbnail(np.repeat(each[..., None], 3, axis=2), _THUMBNAIL) for each in greys]
    thumbnails = [images.thumbnail(each, _THUMBNAIL) for each in pixels]
    columns = [batch.column(0), pa.array(thumbnails, pa.binary()), pa.array(found, pa.binary())]
    return pa.RecordBatch.from_arrays(columns, [schema.CONTENT_HASH, "thumbnail", "map"])


def _picture(row: Row, drawn: Mapping[str, tuple[bytes, bytes | None]], classes: Sequence[str]) -> Picture:
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
        *drawn[row[schema.CONTENT_HASH]],
    )
