"""The images of a run that the model was least sure of, on a page where a person says what they are.

What the person saves has the columns path, content_hash and species: `prepare --images` adds such pictures to a corpus,
and `prepare --fixes` corrects the labels of those that are in it. To label first what the model is least sure of is
uncertainty sampling (Lewis and Gale 1994).
"""

import base64
import csv
import io
import json
import logging
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it
from pyspark.sql.types import StructType

from seedlings_spark import display, files, images, schema
from seedlings_spark.corpus import decoding, tables
from seedlings_spark.errors import ImageError
from seedlings_spark.scoring import tasks
from seedlings_spark.scoring.sources import Source

_log = logging.getLogger(__name__)
FOLDER = "review"
TABLE, PAGE = "least_confident.csv", "index.html"
# Height and width of a picture on the page, in pixels, and how many it carries at most: some eight megabytes.
_SIDE, _MOST_PICTURES = 256, 500
# Species that have a key.
_NUM_KEYS = 9
# Of a page: its pictures, in their order, and what its script is given.
_THUMBNAIL = re.compile(r'<img src="data:image/jpeg;base64,([A-Za-z0-9+/=]*)"')
_DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)


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
    _write_table(folder, least)
    if shown := _drawn(source, task, least[:_MOST_PICTURES]):
        _write_page(folder, shown, about)


def write_without(earlier: str, folder: str, gone: Collection[str], about: Reviewed) -> None:
    """Write the review of a run anew, without pictures that are to be forgotten.

    A page of another release that is not understood is left out, and said to be.

    Args:
        earlier: Folder of the run's tables up to now.
        folder: Of the new ones.
        gone: Paths of the pictures.
        about: What is reviewed.
    """
    table, page = (files.join(earlier, FOLDER, name) for name in (TABLE, PAGE))
    if not files.exists(table):
        return
    _, *rows = csv.reader(io.StringIO(files.read_text(table), newline=""))
    named = {display.cell(path) for path in gone}
    stay = [
        _Picture(path, "", predicted, float(sure), ()) for path, predicted, sure in rows if path not in named
    ]
    if stay:
        _write_table(folder, stay)
    if not files.exists(page):
        return
    of_path = {each.path: each for each in stay}
    try:
        found = _pictures_of(files.read_text(page))
        shown = [
            replace(each, predicted=of.predicted, confidence=of.confidence)
            for each in found
            if each.path not in gone and (of := of_path.get(display.cell(each.path)))
        ]
    except (ValueError, KeyError, TypeError) as error:
        _log.warning("%s is not understood (%s) and goes as a whole", page, error)
        return
    if shown:
        _write_page(folder, shown, about)


def _pictures_of(page: str) -> list[_Picture]:
    """What a page shows, without what was predicted.

    Raises:
        ValueError: It is no page of ours, or of another release.
    """
    data = _DATA.search(page)
    thumbnails = _THUMBNAIL.findall(page)
    if data is None:
        raise ValueError("it has no data")
    pictures = json.loads(data[1])["pictures"]
    if len(pictures) != len(thumbnails):
        raise ValueError(f"{len(thumbnails)} pictures for {len(pictures)} paths")
    return [
        _Picture(
            each[schema.PATH],
            each[schema.CONTENT_HASH],
            "",
            0.0,
            tuple(each["choices"]),
            base64.b64decode(thumbnail, validate=True),
        )
        for each, thumbnail in zip(pictures, thumbnails, strict=True)
    ]


def _write_table(folder: str, least: Sequence[_Picture]) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow((schema.PATH, schema.PREDICTED_SPECIES, schema.CONFIDENCE))
    table.writerows(
        (display.cell(each.path), display.cell(each.predicted), f"{each.confidence:.4f}") for each in least
    )
    files.write_text(files.join(folder, FOLDER, TABLE), text.getvalue())


def _write_page(folder: str, shown: Sequence[_Picture], about: Reviewed) -> None:
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
