"""The images of a run that the model was least sure of, on a page where a person says what they are.

What the person saves has the columns path, content_hash and species: `prepare --images` adds such pictures to a corpus,
and `prepare --fixes` corrects the labels of those that are in it. To label first what the model is least sure of is
uncertainty sampling (Lewis and Gale 1994).
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it
from pyspark.sql.types import StructType

from seedlings_spark import display, files, images, schema
from seedlings_spark.corpus import decoding, tables
from seedlings_spark.errors import ImageError
from seedlings_spark.scoring import tasks
from seedlings_spark.scoring.sources import Source

FOLDER = "review"
TABLE, PAGE = "least_confident.csv", "index.html"
# Height and width of a picture on the page, in pixels, and how many it carries at most: some eight megabytes.
_SIDE, _MOST_PICTURES = 256, 500
# Species that have a key.
_NUM_KEYS = 9


@dataclass(frozen=True)
class Reviewed:
    """What is reviewed.

    Args:
        run: Name of the run.
        model: Name and version of the model.
        classes: Its species.
        has_probabilities: Whether the run's predictions have those of all species.
    """

    run: str
    model: str
    classes: Sequence[str]
    has_probabilities: bool


@dataclass(frozen=True)
class _Picture:
    path: str
    content_hash: str
    predicted: str
    confidence: float
    choices: tuple[int, ...]  # places of the species that have a key, in the order of the keys
    thumbnail: bytes = b""


def write(
    spark: SparkSession,
    folder: str,
    source: Source,
    task: decoding.DecodeTask,
    num_images: int,
    about: Reviewed,
) -> None:
    """Write `least_confident.csv` and the page into a run's folder; nothing of a run without predictions.

    Args:
        spark: The session.
        folder: Of the run, which has its predictions already.
        source: That was scored.
        task: How files become pixels.
        num_images: To list; the page shows up to 500 of them. A path or class that a spreadsheet would take for a
            formula has a quote before it in the CSV.
        about: What is reviewed.
    """
    least = _least(spark, folder, num_images, about)
    if not least:
        return
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow((schema.PATH, schema.PREDICTED_SPECIES, schema.CONFIDENCE))
    table.writerows(
        (display.cell(each.path), display.cell(each.predicted), f"{each.confidence:.4f}") for each in least
    )
    files.write_text(files.join(folder, FOLDER, TABLE), text.getvalue())
    shown = _drawn(source, task, least[:_MOST_PICTURES])
    if not shown:
        return
    from seedlings_spark.reports import html  # which takes its time to import

    data = {
        "run": about.run,
        "species": list(about.classes),
        "names": [display.shown(name) for name in about.classes],
        "pictures": [
            {"path": each.path, "content_hash": each.content_hash, "choices": each.choices} for each in shown
        ],
    }
    page = html.sheet(
        "review.html", script="review.js", data=data, pictures=shown, run=about.run, model=about.model
    )
    files.write_text(files.join(folder, FOLDER, PAGE), page)


def _least(spark: SparkSession, folder: str, num_images: int, about: Reviewed) -> list[_Picture]:
    """The least confident first."""
    columns = [schema.PATH, schema.CONTENT_HASH, schema.PREDICTED_SPECIES, schema.CONFIDENCE]
    # With no more species than keys each keeps its key from picture to picture.
    are_ranked = about.has_probabilities and len(about.classes) > _NUM_KEYS
    columns += [schema.PROBABILITIES] if are_ranked else []
    layout = StructType([schema.PREDICTIONS[name] for name in columns])
    predictions = tables.parquet(spark, files.join(folder, "predictions"), layout)
    likely = F.array(*[F.lit(name) for name in about.classes[:_NUM_KEYS]])
    if are_ranked:
        ranked = F.slice(tasks.ranked(about.classes), 1, _NUM_KEYS)
        likely = F.transform(ranked, lambda pair: pair[schema.SPECIES])
    rows = predictions.orderBy(schema.CONFIDENCE, schema.PATH).limit(num_images)
    places = {name: place for place, name in enumerate(about.classes)}
    return [
        _Picture(
            str(path),
            str(content),
            str(predicted or schema.UNKNOWN),
            float(confidence),
            tuple(places[name] for name in names),
        )
        for path, content, predicted, confidence, names in rows.select(*columns[:4], likely).collect()
    ]


def _drawn(source: Source, task: decoding.DecodeTask, least: Sequence[_Picture]) -> list[_Picture]:
    """The same with their thumbnails, but for those that have gone, or changed, since they were scored."""
    contents, found = _contents(source, [each.path for each in least]), []
    for each in least:
        try:
            content = contents[each.path] if each.path in contents else files.read_bytes(each.path)
            pixels = images.decode(
                content, (_SIDE, _SIDE), aspect="pad", formats=task.formats, max_pixels=task.max_pixels
            )
        except (ImageError, OSError):
            continue
        found.append(replace(each, thumbnail=images.thumbnail(pixels, _SIDE)))
    return found


def _contents(source: Source, paths: list[str]) -> dict[str, bytes]:
    """The bytes of these, where the table that was scored has them."""
    if source.contents is None:
        return {}
    chosen: DataFrame = source.contents.where(F.col(schema.PATH).isin(paths))
    chosen = chosen.select(schema.PATH, schema.CONTENT)
    return {row[0]: bytes(row[1]) for row in chosen.collect()}
