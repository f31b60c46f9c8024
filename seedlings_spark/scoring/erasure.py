"""Pictures that the runs of an output are to forget: predictions, rejects, ledger and review, and the numbers of them.

A run's tables are written anew without them, and one write of its manifest takes the run from the old ones to the new
ones. Until then it is the old run, from then on the new one; what a call that was killed has left goes with the next
one, or with the next run of `score`.

What was measured of a run as a whole (its profile, its drift, what it found seen before) stays: it names no picture. Of
a run of which nothing is left the profile goes, too.
"""

import datetime
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it
from pyspark.sql.types import StructType

from seedlings_spark import files, schema
from seedlings_spark.cluster import session
from seedlings_spark.corpus import tables
from seedlings_spark.corpus.erasure import Held, Pictures, Row
from seedlings_spark.corpus.manifest import FORGOTTEN
from seedlings_spark.errors import InputError
from seedlings_spark.reports import drift
from seedlings_spark.scoring import ledger, review, shadow
from seedlings_spark.scoring.profile import NO_SPECIES, count_species, count_values
from seedlings_spark.scoring.runs import Runs

_log = logging.getLogger(__name__)
PREDICTIONS, _REJECTS = "predictions", "rejects"


def held(
    spark: SparkSession,
    runs: Runs,
    pictures: Pictures,
    names: Sequence[str] = (PREDICTIONS, _REJECTS, ledger.FOLDER),
) -> Held:
    """What these tables of the runs of an output hold of pictures."""
    parts = []
    for table in names:
        of = [run for run in runs.in_order() if files.is_directory(files.join(runs.tables_path(run), table))]
        if of:
            content = schema.REJECTS[schema.CONTENT_HASH]
            # The ledger has none: it is read as null.
            rows = runs.rows(spark, of, table, StructType([content]))
            digest = F.col("own").getField(schema.CONTENT_HASH).alias(schema.CONTENT_HASH)
            parts.append(rows.select(F.lit(table).alias("table"), schema.PATH, digest, "run"))
    if not parts:
        return Held()
    found = pictures.of(reduce(DataFrame.union, parts))
    # What was rejected is no picture.
    digest = F.when(F.col("table") != _REJECTS, F.col(schema.CONTENT_HASH))
    return Held(tuple(Row(*row) for row in found.select("table", schema.PATH, digest, "run").collect()))


@dataclass(frozen=True)
class Erased:
    """What the runs of an output have forgotten.

    Args:
        predictions: That are gone.
        rejects: That are gone.
        runs: Names of the runs that held anything.
    """

    predictions: int
    rejects: int
    runs: tuple[str, ...]


def erase(
    spark: SparkSession,
    runs: Runs,
    pictures: Pictures,
    found: Held,
    request: str,
    check: Callable[[], None],
) -> Erased:
    """Let the runs of an output forget pictures.

    Args:
        spark: The session.
        runs: The runs; the caller holds the lock of their output.
        pictures: What is to be forgotten.
        found: What they hold of that.
        request: What names the call in the manifests.
        check: Raises if the lock has been lost.

    Raises:
        InputError: A run has more or fewer rows than its manifest says.
        OutputInUseError: By `check`.
    """
    runs.clear()
    # The ledger knows no bytes: there the other paths of the same pictures go by name.
    everything = replace(pictures, paths=pictures.paths | pictures.copies | found.paths)
    if everything != pictures:
        of_ledger = held(spark, runs, everything, [ledger.FOLDER])
        found = Held((*(row for row in found.rows if row.table != ledger.FOLDER), *of_ledger.rows))
    parts = {row.part for row in found.rows}
    affected = [name for name in runs.in_order() if name in parts]
    for run in affected:
        of_run = Held(tuple(row for row in found.rows if row.part == run))
        _erase_from(spark, runs, run, (pictures, everything), of_run, request, check)
    if newest := runs.in_order():
        runs.point_to(runs.manifest(newest[-1]))
    return Erased(found.count(PREDICTIONS), found.count(_REJECTS), tuple(affected))


def _erase_from(
    spark: SparkSession,
    runs: Runs,
    run: str,
    pictures: tuple[Pictures, Pictures],
    gone: Held,
    request: str,
    check: Callable[[], None],
) -> None:
    """Write the tables of one run anew, and let its manifest name them."""
    manifest, folder, place = runs.manifest(run), runs.tables_path(run), runs.replacement_path(run)
    by_bytes, by_name = pictures
    try:
        for name in files.list_names(folder):
            source = files.join(folder, name)
            if name != review.FOLDER and files.is_directory(source):
                rows = _read(spark, source)
                kept = (by_bytes if schema.CONTENT_HASH in rows.columns else by_name).others(rows)
                kept.write.options(**tables.write_options(place)).parquet(files.join(place, name))
        about = review.Reviewed(
            run, f"{manifest['model_name']} {manifest['model_version']}", manifest["classes"], False
        )
        gone_paths = {row.path for row in gone.rows if row.table == PREDICTIONS}
        review.write_without(folder, place, gone_paths, about)
        numbers = _numbers(spark, place, manifest)
        removed = {name: gone.count(name) for name in (PREDICTIONS, _REJECTS)}
        for name, key in ((PREDICTIONS, "scored"), (_REJECTS, "rejected")):
            if numbers[key] + removed[name] != manifest[key]:
                raise InputError(
                    f"{numbers[key] + removed[name]:,} {name} in {folder}",
                    f"{manifest[key]:,}, as the manifest of the run says",
                    "Restore the run from a copy, or move it out of the output's folder runs",
                )
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        entry = {"at": now, "request": request, **removed}
        numbers["listed"] = manifest["listed"] - sum(removed.values())
        check()
        runs.replace(run, place, {**manifest, **numbers, FORGOTTEN: [*manifest.get(FORGOTTEN, ()), entry]})
    except BaseException:
        if runs.tables_path(run) != place:
            files.delete(place)
        raise
    runs.clear()
    _log.info("run %s has forgotten %d predictions and %d rejects", run, *removed.values())


def _read(spark: SparkSession, folder: str) -> DataFrame:
    reader = spark.read.options(**session.PARQUET_CHECKSUMS)
    return reader.options(ignoreCorruptFiles="false", ignoreMissingFiles="false").parquet(
        tables.literal(folder)
    )


def _numbers(spark: SparkSession, place: str, manifest: dict[str, Any]) -> dict[str, Any]:
    """What a manifest says of tables, counted."""
    predictions, rejects = (_read(spark, files.join(place, name)) for name in (PREDICTIONS, _REJECTS))
    reasons = {row[0]: int(row[1]) for row in rejects.groupBy(schema.REASON).count().collect()}
    species = count_species(predictions)
    unknown = species.pop(None, 0)  # type: ignore[call-overload]
    # Of lists a picture counts for each name in them.
    without: dict[str, Any] = {}
    if "without_species" in manifest:
        without["without_species"] = species.pop(NO_SPECIES, 0)
    if values := count_values(predictions):
        without["predicted_values"] = values
    numbers: dict[str, Any] = {
        "scored": predictions.count(),
        "rejected": sum(reasons.values()),
        "unknown": unknown,
        "images_of_species": dict(sorted(species.items())),
        **without,
        "rejected_by_reason": dict(sorted(reasons.items())),
    }
    if shadow.FOLDER in manifest:
        rows = _read(spark, files.join(place, shadow.FOLDER)).groupBy(schema.PREDICTED_SPECIES).count()
        differ = {row[0]: int(row[1]) for row in rows.collect()}
        numbers[shadow.FOLDER] = {**manifest[shadow.FOLDER], **shadow.counts(differ, species, unknown)}
    if not numbers["scored"] and manifest.get("scored"):
        nothing: list[drift.Drift] = []
        numbers["profile"] = drift.Profile().to_json()
        numbers["drift"] = {"verdict": drift.verdict(nothing), "worst": drift.worst(nothing), "of": []}
    return numbers
