"""The images of a run that the model was least sure of, for a person to look at."""

import csv
import io

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it
from pyspark.sql.types import StructType

from seedlings_spark import display, files, images, schema
from seedlings_spark.corpus import decoding, tables
from seedlings_spark.errors import ImageError
from seedlings_spark.scoring.sources import Source

FOLDER = "review"
# Height and width of a picture on the sheet, in pixels.
_TILE = (128, 128)
_MOST_TILES = 48


def write(spark: SparkSession, run: str, source: Source, task: decoding.DecodeTask, num_images: int) -> None:
    """Write `least_confident.csv` and `contact_sheet.png` into a run's folder; nothing of a run without predictions.

    Args:
        spark: The session.
        run: The folder, which has its predictions already.
        source: That was scored.
        task: How files become pixels.
        num_images: To list; the sheet shows up to 48 of them. A path or class that a spreadsheet would take for a
            formula has a quote before it in the CSV.
    """
    columns = (schema.PATH, schema.PREDICTED_SPECIES, schema.CONFIDENCE)
    layout = StructType([schema.PREDICTIONS[name] for name in columns])
    predictions = tables.parquet(spark, files.join(run, "predictions"), layout)
    least = predictions.orderBy(schema.CONFIDENCE, schema.PATH).limit(num_images).collect()
    if not least:
        return
    rows = [(str(row[0]), str(row[1] or schema.UNKNOWN), float(row[2])) for row in least]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    table.writerows((display.cell(path), display.cell(name), f"{value:.4f}") for path, name, value in rows)
    files.write_text(files.join(run, FOLDER, "least_confident.csv"), text.getvalue())
    tiles, captions = [], []
    contents = _contents(source, [row[0] for row in rows[:_MOST_TILES]])
    for path, species, confidence in rows[:_MOST_TILES]:
        try:
            content = contents[path] if path in contents else files.read_bytes(path)
            tiles.append(
                images.decode(
                    content, _TILE, aspect=task.aspect, formats=task.formats, max_pixels=task.max_pixels
                )
            )
        except (ImageError, OSError):
            continue  # it has gone, or changed, since it was scored
        captions.append(f"{confidence:.2f} {species}\n{files.name(path)}")
    if tiles:
        from seedlings_spark.reports import plots  # matplotlib takes its time to import

        sheet = plots.contact_sheet(tiles, captions, title="Least confident")
        files.write_bytes(files.join(run, FOLDER, "contact_sheet.png"), sheet)


def _contents(source: Source, paths: list[str]) -> dict[str, bytes]:
    """The bytes of these, where the table that was scored has them."""
    if source.contents is None:
        return {}
    chosen: DataFrame = source.contents.where(F.col(schema.PATH).isin(paths))
    chosen = chosen.select(schema.PATH, schema.CONTENT)
    return {row[0]: bytes(row[1]) for row in chosen.collect()}
