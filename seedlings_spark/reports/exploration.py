"""A corpus, looked at: how many pictures there are, what they look like, and which of them stand out."""

import functools
import io
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it
from pyspark.sql.types import DoubleType, LongType, StringType, StructField, StructType
from pyspark.sql.window import Window

from seedlings_spark import images, schema
from seedlings_spark.reports import drift, html

FORMAT = 1
# A picture stands out whose modified z-score, by median and median deviation, is above (Iglewicz and Hoaglin 1993).
OUTLIER = 3.5
# So much of a median deviation is taken for granted, of each statistic in its unit: in nearly equal pictures everything
# would stand out.
_LEAST_DEVIATION = {"brightness": 0.02, "contrast": 0.02, "sharpness": 0.3, "size": 0.15}
# Height and width of a mean picture, at most, in pixels.
_MEAN_SIDE = 64
_THUMBNAIL = 128
MAX_SPECIES, SAMPLES, MOST_OUTLIERS, MOST_PAIRS, MOST_SUSPECTS = 60, 8, 48, 24, 200

PICTURES = StructType(
    [
        *(
            StructField(name, StringType())
            for name in (schema.PATH, schema.CONTENT_HASH, schema.SPECIES, schema.SPLIT)
        ),
        StructField(schema.LENGTH, LongType()),
        *(StructField(name, DoubleType()) for name in drift.STATISTICS),
    ]
)
_SUMS = f"{schema.SPECIES} string, sums binary"


@dataclass(frozen=True)
class Shown:
    """A picture on the page.

    Attributes:
        path: Of its file.
        species: Its label.
        thumbnail: A JPEG.
        words: What is said of it.
    """

    path: str
    species: str
    thumbnail: bytes
    words: str = ""


@dataclass(frozen=True)
class Exploration:
    """What there is to say and to show of a corpus.

    Attributes:
        corpus: Its path.
        counts: Species -> split -> pictures.
        statistics: Of each statistic, and of `length`, the 5 %, 50 % and 95 % quantile.
        means: Species -> the mean of its pictures, a JPEG.
        samples: Species -> some of its pictures, chosen by their content.
        outliers: The pictures that stand out most in their species.
        num_outliers: How many stand out.
        pairs: Pictures that are nearly the same, those in two splits first.
        about_pairs: Their numbers; or `missing`, why nobody has looked for them.
        suspects: Pictures whose labels are probably wrong.
        about_suspects: Their numbers; or `missing`.
    """

    corpus: str
    counts: Mapping[str, Mapping[str, int]]
    statistics: Mapping[str, Sequence[float]]
    means: Mapping[str, bytes]
    samples: Mapping[str, Sequence[Shown]]
    outliers: Sequence[Shown]
    num_outliers: int
    pairs: Sequence[tuple[Shown, Shown]]
    about_pairs: Mapping[str, object]
    suspects: Sequence[Shown]
    about_suspects: Mapping[str, object]

    def to_dict(self) -> dict[str, object]:
        """Its numbers, for JSON."""
        return {
            "format": FORMAT,
            "corpus": self.corpus,
            "images_of_species": {name: dict(splits) for name, splits in self.counts.items()},
            "quantiles": {name: list(values) for name, values in self.statistics.items()},
            "outliers": self.num_outliers,
            "near_duplicates": dict(self.about_pairs),
            "suspect_labels": dict(self.about_suspects),
        }

    def page(self, left_files: Sequence[str]) -> str:
        """One HTML page.

        Args:
            left_files: Names of the files beside it.
        """
        return html.sheet("explore.html", found=self, left_files=left_files, outlier=OUTLIER)


def measured(pixels: DataFrame) -> DataFrame:
    """Of each picture of a corpus its `drift.STATISTICS`, as `PICTURES`."""
    columns = [field.name for field in PICTURES.fields[:5]]
    rows = pixels.select(*columns, schema.HEIGHT, schema.WIDTH, schema.IMAGE)
    return rows.mapInArrow(_measured, PICTURES)


def _measured(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        if batch.num_rows:
            lengths = batch.column(schema.LENGTH).fill_null(0).to_numpy(zero_copy_only=False)
            found = drift.statistics(drift.pixels_of(batch), lengths)
            known = {field.name: batch.column(field.name) for field in PICTURES.fields[:5]}
            yield pa.RecordBatch.from_pydict({**known, **{name: found[name] for name in drift.STATISTICS}})


def mean_pictures(pixels: DataFrame) -> dict[str, bytes]:
    """Of each species the mean of its pictures, in at most 64 x 64 pixels, as a JPEG."""
    rows = pixels.select(schema.SPECIES, schema.HEIGHT, schema.WIDTH, schema.IMAGE).mapInArrow(_sums, _SUMS)
    sums: dict[str, list[npt.NDArray[np.float64]]] = {}
    for species, content in rows.collect():
        sums.setdefault(species, []).append(np.load(io.BytesIO(content), allow_pickle=False))
    found = {}
    for species, parts in sorted(sums.items()):
        # The last row of each is filled with the number of pictures.
        total = functools.reduce(operator.add, parts)
        mean = (total[:-1] / total[-1, 0, 0]).round().clip(0, 255).astype(np.uint8)
        found[species] = images.thumbnail(mean, _THUMBNAIL)
    return found


def _sums(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """One row a species and partition: sums of pixels, and below them a row of the number of pictures."""
    sums: dict[str, npt.NDArray[np.float64]] = {}
    for batch in batches:
        if not batch.num_rows:
            continue
        small = pooled(drift.pixels_of(batch), _MEAN_SIDE)
        names = batch.column(schema.SPECIES).to_pylist()
        for species in set(names):
            chosen = small[[name == species for name in names]]
            number = np.full((1, *small.shape[2:]), len(chosen), np.float64)
            part = np.concatenate([chosen.sum(axis=0), number])
            sums[species] = part + sums.get(species, 0.0)
    contents = []
    for total in sums.values():
        content = io.BytesIO()
        np.save(content, total)
        contents.append(content.getvalue())
    columns = [pa.array(list(sums), pa.string()), pa.array(contents, pa.binary())]
    yield pa.RecordBatch.from_arrays(columns, [schema.SPECIES, "sums"])


def pooled(pixels: npt.NDArray[np.uint8], longest: int) -> npt.NDArray[np.float64]:
    """Pictures made smaller by means of squares of pixels, until neither side is longer; the rest is cut off."""
    _, height, width, _ = pixels.shape
    step = -(-max(height, width) // longest)
    rows, columns = height // step, width // step
    whole = pixels[:, : rows * step, : columns * step]
    means: npt.NDArray[np.float64] = whole.reshape(-1, rows, step, columns, step, 3).mean(axis=(2, 4))
    return means


def quantiles(pictures: DataFrame) -> dict[str, list[float]]:
    """Of a table of `PICTURES`, of each number the 5 %, 50 % and 95 % quantile."""
    names = (schema.LENGTH, *drift.STATISTICS)
    shares = F.array(*map(F.lit, (0.05, 0.5, 0.95)))
    (row,) = pictures.agg(*(F.percentile_approx(name, shares, 10_000) for name in names)).collect()
    return {name: [float(each) for each in values or ()] for name, values in zip(names, row, strict=True)}


def outliers(pictures: DataFrame) -> DataFrame:
    """The pictures that stand out in their species, of a table of `PICTURES`, those that do most first.

    Returns:
        `path`, `content_hash`, `species`, `score`, and `words`: by which statistic, and which way.
    """
    names = drift.STATISTICS
    medians = pictures.groupBy(schema.SPECIES).agg(
        *(F.median(name).alias(f"median {name}") for name in names)
    )
    rows = pictures.join(F.broadcast(medians), schema.SPECIES)
    away = {name: F.col(name) - F.col(f"median {name}") for name in names}
    deviations = rows.groupBy(schema.SPECIES).agg(
        *(F.median(F.abs(away[name])).alias(f"deviation {name}") for name in names)
    )
    rows = rows.join(F.broadcast(deviations), schema.SPECIES)
    scores = [
        F.struct(
            # 0.6745: of a normal distribution half lies within so many standard deviations.
            (
                0.6745
                * F.abs(away[name])
                / F.greatest(F.col(f"deviation {name}"), F.lit(_LEAST_DEVIATION[name]))
            ).alias("score"),
            F.concat(
                F.when(away[name] > 0, F.lit("more ")).otherwise(F.lit("less ")), F.lit(f"{name} than others")
            ).alias("words"),
        )
        for name in names
    ]
    worst = F.greatest(*scores).alias("worst")
    found = rows.select(schema.PATH, schema.CONTENT_HASH, schema.SPECIES, worst)
    found = found.select("*", F.col("worst.score").alias("score"), F.col("worst.words").alias("words"))
    return found.where(F.col("score") > OUTLIER).drop("worst").orderBy(F.desc("score"), schema.PATH)


def samples(pictures: DataFrame, species: Sequence[str]) -> DataFrame:
    """Some pictures of each of these species, of a table of `PICTURES`, chosen by their content."""
    order = Window.partitionBy(schema.SPECIES).orderBy(schema.CONTENT_HASH, schema.PATH)
    rows = pictures.where(F.col(schema.SPECIES).isin(list(species)))
    chosen = rows.withColumn("number", F.row_number().over(order)).where(F.col("number") <= SAMPLES)
    return chosen.select(schema.PATH, schema.CONTENT_HASH, schema.SPECIES).orderBy(schema.SPECIES, "number")
