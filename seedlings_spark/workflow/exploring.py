"""A corpus, looked at before anything is trained, and its labels, by what a version thinks of them."""

import csv
import io
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

from seedlings_spark import config, corpus, display, files, schema
from seedlings_spark.cluster import session
from seedlings_spark.config import ExploreOptions
from seedlings_spark.corpus import Corpus, fixes, manifest, near_duplicates, tables
from seedlings_spark.errors import ClusterError, CorpusError, InputError, SeedlingsError
from seedlings_spark.images import perceptual
from seedlings_spark.models.store import ModelStore, ModelVersion
from seedlings_spark.reports import exploration, gallery, labels
from seedlings_spark.reports.exploration import Exploration, Shown
from seedlings_spark.workflow import folds, predicting

_log = logging.getLogger(__name__)
METRICS, PAGE, PICTURES, FIXES, PAIRS = (
    "metrics.json",
    "index.html",
    "pictures.parquet",
    "fixes.csv",
    "near_duplicates.csv",
)
_PREDICTIONS = "predictions.parquet"
# Of suspect labels and of pairs more are of use to nobody.
_MOST_ROWS = 10_000


@dataclass(frozen=True)
class _Judged:
    """What is known of pictures by networks that were not trained on them.

    Args:
        table: With `path`, `content_hash`, `species` and `probabilities`.
        classes: The species, in the order of the probabilities.
        by: Whose probabilities they are, for a person.
        splits: That the pictures are in.
        looked_at: How many there are.
    """

    table: DataFrame
    classes: Sequence[str]
    by: str
    splits: Sequence[str]
    looked_at: int


def explore(spark: SparkSession, options: ExploreOptions) -> Exploration:
    """Look at a corpus, and write a page, numbers and a table of labels to look at.

    Args:
        spark: The session.
        options: Those of the job `explore`.

    Raises:
        CorpusError: The corpus is damaged, or does not fit the version.
        StoreError: There is no such version.
    """
    options = config.qualified(options)
    prepared, report = corpus.load(options.corpus).require_one_species("explore"), options.report
    version, splits, judged = None, tuple[str, ...](), None
    if options.predictions:
        judged = _of_folds(spark, prepared, options.predictions)
    elif options.store:
        version = ModelStore(options.store, options.name).verify(options.model_version)
        version.require_one_species("explore")
        splits = _unseen(version, prepared)
        for split in splits:
            predicting.check_fits(version, prepared, split)
    files.make_directory(report)
    for name in (METRICS, FIXES, PAIRS, _PREDICTIONS):
        files.delete(files.join(report, name))
    pixels = prepared.images(spark)
    with session.arrow_batches(spark, 3 * prepared.image_size[0] * prepared.image_size[1]):
        pictures = _written(exploration.measured(pixels), files.join(report, PICTURES))
        means = exploration.mean_pictures(pixels)
        pairs, about_pairs = _pairs(spark, prepared, report)
        if version is not None:
            judged = _of_version(spark, prepared, version, splits, report)
        suspects, about_suspects = _suspects(judged, report)
        found = _shown(prepared, pixels, pictures, means, (pairs, about_pairs), (suspects, about_suspects))
    tables_left = [
        *([PAIRS] if pairs else []),
        *([FIXES] if judged else []),
        *([_PREDICTIONS] if version else []),
    ]
    files.write_text(files.join(report, PAGE), found.page([METRICS, PICTURES, *tables_left]))
    numbers = json.dumps(found.to_dict(), indent=2, allow_nan=False)
    files.write_text(files.join(report, METRICS), numbers + "\n")
    return found


def summary(found: Exploration) -> list[tuple[str, object]]:
    """What `explore` prints at its end."""
    pairs, suspects = found.about_pairs, found.about_suspects
    return [
        ("corpus", display.Whole(found.corpus)),
        ("pictures", f"{sum(sum(each.values()) for each in found.counts.values()):,}"),
        ("stand out", f"{found.num_outliers:,}"),
        (
            "nearly the same",
            str(
                pairs.get("missing") or f"{pairs['pairs']:,} pairs, {pairs['in_two_splits']:,} in two splits"
            ),
        ),
        (
            "suspect labels",
            str(suspects.get("missing") or f"{suspects['number']:,} of {suspects['looked_at']:,} pictures"),
        ),
    ]


def _unseen(version: ModelVersion, prepared: Corpus) -> tuple[str, ...]:
    """The splits whose pictures a version has not been trained on.

    Of a corpus that has grown from that of the version the training split holds that one's. Of any other nothing is
    known: a person who gives it says that it has other pictures.
    """
    trained_on = (version.manifest.get("corpus") or {}).get("fingerprint")
    is_seen = trained_on in prepared.lineage
    found = [split for split in schema.SPLITS if prepared.num_images(split)]
    unseen = tuple(split for split in found if not (is_seen and split == schema.TRAIN))
    if not unseen:
        raise CorpusError(
            f"{prepared.path} with nothing but pictures that {version.name} {version.version} was trained on",
            "a validation or a test split: a network knows what it was trained on by heart",
            "Leave out --store, or prepare the corpus with other --split-shares",
        )
    return unseen


def _written(table: DataFrame, path: str) -> DataFrame:
    options = {**session.PARQUET_CHECKSUMS, **tables.write_options(path)}
    table.write.mode("overwrite").options(**options).parquet(path)
    return tables.parquet(table.sparkSession, path, exploration.PICTURES)


def _pairs(spark: SparkSession, prepared: Corpus, report: str) -> tuple[list[Row], dict[str, Any]]:
    """The pictures that are nearly the same, those in two splits first, and their numbers."""
    folder = files.join(report, "_near_duplicates")
    try:
        if manifest.NEAR_DUPLICATES in prepared.manifest:
            table = prepared.near_duplicates(spark)
        else:
            perceptual.require()
            pixels = prepared.images(spark)
            found = near_duplicates.find(spark, pixels, prepared.image_size, folder)
            table = near_duplicates.described(found, pixels.drop(schema.IMAGE))
        about = near_duplicates.about(table, "report", 0)
        apart = F.col("first_split") != F.col("second_split")
        rows = table.orderBy(~apart, "distance", "first_path", "second_path").limit(_MOST_ROWS).collect()
    except ClusterError:
        return [], {"missing": "not looked for without pip install 'seedlings-spark[near-duplicates]'"}
    finally:
        files.delete(folder)
    names = schema.NEAR_DUPLICATES.names
    _write_csv(files.join(report, PAIRS), names, ([row[name] for name in names] for row in rows))
    return rows, {name: about[name] for name in ("pairs", "in_two_splits", "of_two_species")}


def _of_version(
    spark: SparkSession, prepared: Corpus, version: ModelVersion, splits: Sequence[str], report: str
) -> _Judged:
    """What a version says of some splits."""
    of_splits = [predicting.predictions(spark, version, prepared, split) for split in splits]
    predicted = of_splits[0]
    for each in of_splits[1:]:
        predicted = predicted.unionByName(each)
    table = predicting.kept(predicted, files.join(report, _PREDICTIONS))
    if not table.where(F.col(schema.PROBABILITIES).isNull()).isEmpty():
        raise SeedlingsError(
            f"{version.name} {version.version}, whose pipeline gives no probabilities",
            "one with probabilities",
            "Choose another --model-version, or leave out --store",
        )
    looked_at = sum(prepared.num_images(split) for split in splits)
    return _Judged(table, version.classes, f"{version.name} {version.version}", splits, looked_at)


def _of_folds(spark: SparkSession, prepared: Corpus, path: str) -> _Judged:
    """What networks of a cross-validation say of pictures that they had not seen, whose labels are the corpus' now."""
    remedy = "Give RUN/folds/predictions of a train --folds on this corpus as --predictions"
    if not files.exists(path):
        raise InputError(f"no folder {path}", "predictions of train --folds", remedy)
    told = tables.parquet(spark, path, schema.OUT_OF_FOLD).select(schema.CONTENT_HASH, schema.PROBABILITIES)
    told = told.dropDuplicates([schema.CONTENT_HASH])  # of copies of a picture, which a corpus has, one
    numbers = files.join(files.parent(path), folds.NUMBERS)
    if files.exists(numbers) and json.loads(files.read_text(numbers))["classes"] != list(prepared.classes):
        raise CorpusError(
            f"{path}, of other species than those of {prepared.path}", "predictions of its pictures", remedy
        )
    table = prepared.images(spark).drop(schema.IMAGE).join(told, schema.CONTENT_HASH)
    of_split = {row[0]: row[1] for row in table.groupBy(schema.SPLIT).count().collect()}
    length = F.coalesce(F.size(schema.PROBABILITIES), F.lit(0))
    if not of_split or not table.where(length != len(prepared.classes)).isEmpty():
        raise CorpusError(
            f"{path}, without probabilities of {len(prepared.classes)} species for pictures of {prepared.path}",
            "predictions of its pictures",
            remedy,
        )
    splits = [split for split in schema.SPLITS if split in of_split]
    return _Judged(table, prepared.classes, "networks that had not seen them", splits, sum(of_split.values()))


def _suspects(judged: _Judged | None, report: str) -> tuple[list[Row], dict[str, Any]]:
    """The pictures whose labels are probably wrong, the least probable first, and their numbers; writes `fixes.csv`."""
    if judged is None:
        words = (
            "not looked for: give --store with a version that has not seen these pictures, or --predictions"
        )
        return [], {"missing": words}
    rows = labels.suspects(judged.table, judged.classes, _MOST_ROWS).collect()
    head = (*fixes.COLUMNS, labels.SUGGESTED, labels.PROBABILITY, labels.NEW_PROBABILITY)
    written = (
        [
            row[schema.PATH],
            row[schema.CONTENT_HASH],
            row[schema.SPECIES],
            fixes.KEEP,
            row[labels.SUGGESTED],
            *(f"{row[name]:.4f}" for name in head[-2:]),
        ]
        for row in rows
    )
    _write_csv(files.join(report, FIXES), head, written)
    about = {"number": len(rows), "looked_at": judged.looked_at, "splits": list(judged.splits)}
    return rows, {**about, "version": judged.by}


def _write_csv(path: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([display.cell(str(each)) for each in row] for row in rows)
    files.write_text(path, text.getvalue())


def _shown(
    prepared: Corpus,
    pixels: DataFrame,
    pictures: DataFrame,
    means: dict[str, bytes],
    pairs: tuple[list[Row], dict[str, Any]],
    suspects: tuple[list[Row], dict[str, Any]],
) -> Exploration:
    counts = {name: dict(splits) for name, splits in sorted(prepared.manifest["images_of_species"].items())}
    rarest = sorted(counts, key=lambda name: (sum(counts[name].values()), name))[: exploration.MAX_SPECIES]
    outliers = exploration.outliers(pictures).persist()
    num_outliers = outliers.count()
    of_outliers = outliers.limit(exploration.MOST_OUTLIERS).collect()
    outliers.unpersist()
    of_samples = exploration.samples(pictures, rarest).collect()
    of_pairs, of_suspects = pairs[0][: exploration.MOST_PAIRS], suspects[0][: exploration.MOST_SUSPECTS]
    hashes = _hashes(pictures, {row[f"{side}_path"] for row in of_pairs for side in ("first", "second")})
    wanted = {row[schema.CONTENT_HASH] for row in (*of_outliers, *of_samples, *of_suspects)}
    drawn = gallery.thumbnails(pixels, wanted | set(hashes.values()))

    def picture(row: Row, words: str = "") -> Shown:
        return Shown(row[schema.PATH], row[schema.SPECIES], drawn[row[schema.CONTENT_HASH]], words)

    def half(row: Row, side: str) -> Shown:
        path, species, split = (row[f"{side}_{name}"] for name in (schema.PATH, schema.SPECIES, schema.SPLIT))
        return Shown(path, species, drawn[hashes[path]], f"in {split}; {row['distance']} bits apart")

    def suspect(row: Row) -> Shown:
        new, now = row[labels.NEW_PROBABILITY], row[labels.PROBABILITY]
        return picture(row, f"probably {row[labels.SUGGESTED]} ({new:.3f}, not {now:.3f})")

    return Exploration(
        corpus=prepared.path,
        counts=counts,
        statistics=exploration.quantiles(pictures),
        means=means,
        samples={
            name: [picture(row) for row in of_samples if row[schema.SPECIES] == name]
            for name in sorted(rarest)
        },
        outliers=[picture(row, row["words"]) for row in of_outliers],
        num_outliers=num_outliers,
        pairs=[(half(row, "first"), half(row, "second")) for row in of_pairs],
        about_pairs=pairs[1],
        suspects=[suspect(row) for row in of_suspects],
        about_suspects=suspects[1],
    )


def _hashes(pictures: DataFrame, paths: set[str]) -> dict[str, str]:
    """The contents of a few pictures."""
    if not paths:
        return {}
    rows = pictures.where(F.col(schema.PATH).isin(list(paths))).select(schema.PATH, schema.CONTENT_HASH)
    return {row[0]: row[1] for row in rows.collect()}
