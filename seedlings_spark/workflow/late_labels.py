"""Labels that come late, joined to the newest predictions: how good a version is on what it meets.

All that may be wrong with the labels is looked at before anything is written; `metrics.json` is written last.
"""

import csv
import datetime
import io
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

from seedlings_spark import config, display, files, fingerprint, schema, scoring
from seedlings_spark.config import FeedbackOptions
from seedlings_spark.corpus import tables
from seedlings_spark.errors import InputError, SeedlingsError
from seedlings_spark.kinds import Kind
from seedlings_spark.models.store import ModelStore
from seedlings_spark.reports import feedback as report
from seedlings_spark.reports import slices
from seedlings_spark.scoring import runs

_log = logging.getLogger(__name__)
METRICS, PAGE, WRONG, WRONG_TABLE = "metrics.json", "index.html", "wrong", "wrong.csv"
_GIVEN, LABEL, _WEEK, _KNOWN = "given", "label", "week", "is_known"
_SPELLED = f"{_GIVEN} string, full string"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/(?:/[^/]*)?")
# Of a file's name what the snapshot keeps.
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,5}\Z")


@dataclass(frozen=True)
class Told:
    """What `feedback` has found.

    Args:
        found: The numbers.
        copied: Wrong pictures that were copied.
        missed: Wrong pictures that could not be, or of which there were too many.
    """

    found: report.Feedback
    copied: int
    missed: int


def feedback(spark: SparkSession, options: FeedbackOptions) -> Told:
    """Compare the newest predictions with labels, and write a report with the wrong pictures.

    Args:
        spark: The session.
        options: Those of the job `feedback`.

    Raises:
        InputError: There are no runs, no label matches, a path has two labels, or the report's folder is another's.
    """
    options = config.qualified(options)
    _check_report(options.report)
    labels, rows = labels_of(spark, options)
    latest = scoring.latest(spark, options.scores, name="")
    if (kind := schema.kind_of(latest)) != Kind.CLASSIFICATION:
        raise InputError(
            f"{options.scores}, whose version {kind.of_versions}",
            "predictions of one species each, which labels can be compared with",
            "Prepare the labelled pictures, and call evaluate on them",
        )
    about = _about_runs(spark, options.scores)
    joined = matched(labels, latest, options).join(F.broadcast(about), "run").persist()
    try:
        counted, held = _counted(joined), _held(labels, rows, joined, options)
        found = report.summarize(counted, held, _tests(options.store, counted))
        if not found.overall.num_images:
            raise InputError(
                f"labels of no species that the versions know: {'; '.join(found.labels.words)}",
                "names as the version has them",
                "Correct the table of labels; models list --store ... shows which versions there are",
            )
        if options.slices:
            found = replace(found, slices=_sliced(spark, joined, options))
        chosen = _wrong(joined, options.snapshot)
    finally:
        joined.unpersist()
    copied = _write(options, found, chosen)
    return Told(found, copied, found.overall.wrong - copied)


def _check_report(folder: str) -> None:
    """Refuse a folder in which the wrong pictures of a report would replace somebody's own."""
    if files.exists(files.join(folder, WRONG)) and not files.exists(files.join(folder, WRONG_TABLE)):
        raise InputError(
            f"{folder} with a folder {WRONG} that feedback has not written",
            "a new folder, or that of an earlier report of feedback",
            "Give another --report",
        )


def labels_of(spark: SparkSession, options: FeedbackOptions) -> tuple[DataFrame, int]:
    """`given` and `label` of the rows that have one, and how many rows there are."""
    table = _table(spark, options)
    path, label = (schema.column(name).cast("string") for name in (options.path_column, options.label_column))
    rows = table.select(path.alias(_GIVEN), F.nullif(F.trim(label), F.lit("")).alias(LABEL))
    without = rows.where(F.coalesce(_GIVEN, F.lit("")) == "").count()
    if without:
        raise InputError(
            f"{options.labels} with {without:,} rows without a path",
            "a path in every row",
            "Correct the table",
        )
    return rows.where(F.col(LABEL).isNotNull()), rows.count()


def _table(spark: SparkSession, options: FeedbackOptions) -> DataFrame:
    name = files.name(options.labels).lower()
    kind = options.table_format or ("csv" if name.endswith((".csv", ".csv.gz", ".txt")) else "parquet")
    columns = options.path_column, options.label_column
    expected = f"a .csv or .parquet table with the columns {' and '.join(columns)}"
    try:
        table = tables.read_table(spark, options.labels, kind, expected)
    except InputError as error:
        raise InputError(error.found, error.expected, "Check --labels") from None
    otherwise = ", or name others with --path-column, --label-column and --slices"
    tables.require_columns(table, options.labels, (*columns, *options.slices), otherwise)
    return table


def _sliced(spark: SparkSession, matched: DataFrame, options: FeedbackOptions) -> slices.Slices:
    """Accuracy by columns of the table of labels, of the pictures that were given a species."""
    path, label = schema.column(options.path_column).cast("string"), schema.column(options.label_column)
    names = tuple(dict.fromkeys(options.slices))
    # Of rows that say the same label again the known values that come first in order.
    first = F.struct(*[F.min(schema.column(name)).alias(name) for name in names]).alias("values")
    has_label = F.trim(label.cast("string")) != ""
    rows = _table(spark, options).where(has_label).groupBy(path.alias(_GIVEN)).agg(first)
    is_named = F.col(schema.PREDICTED_SPECIES).isNotNull() & F.array_contains("classes", F.col(LABEL))
    is_right = (F.col(schema.PREDICTED_SPECIES) == F.col(LABEL)).alias(slices.IS_RIGHT)
    is_looked_at = F.lit(True).alias(slices.IS_LOOKED_AT)
    values = [F.col("values").getField(name).alias(name) for name in names]
    named = matched.where(is_named).join(rows, _GIVEN)
    return slices.slices(named.select(is_looked_at, is_right, *values), names)


def _spelled(base: str, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Rows with the column `full` besides: the path that the table says, as `score` spells it."""
    for batch in batches:
        paths = [full_path(base, given) for given in batch.column(_GIVEN).to_pylist()]
        yield pa.RecordBatch.from_arrays(
            [*batch.columns, pa.array(paths, pa.string())], [*batch.schema.names, "full"]
        )


def full_path(base: str, given: str) -> str:
    """A path of a table as `score` spells it: one without a scheme is on the table's file system, or beside it.

    Args:
        base: Full URI of the table's folder.
        given: What stands there.
    """
    full = given
    if not _SCHEME.match(given):
        root = _SCHEME.match(base)
        full = (
            f"{root.group() if root else ''}{given}"
            if given.startswith("/")
            else f"{base.rstrip('/')}/{given}"
        )
    try:
        return files.qualify(full) if files.is_local(full) else full
    except ValueError:
        return full


def matched(labels: DataFrame, latest: DataFrame, options: FeedbackOptions) -> DataFrame:
    """Predictions with their label; a path is looked up as it stands in the table, and as a full one.

    Raises:
        InputError: There is none, or a path has two labels.
    """
    spelled = labels.mapInArrow(
        partial(_spelled, files.parent(options.labels)), f"{_GIVEN} string, {LABEL} string, full string"
    )
    spellings = F.explode(F.array_distinct(F.array(_GIVEN, "full"))).alias(schema.PATH)
    named = spelled.select(_GIVEN, spellings, LABEL)
    wanted = [schema.CONTENT_HASH, schema.PREDICTED_SPECIES, schema.CONFIDENCE, "run"]
    of_path = named.join(latest.select(schema.PATH, *wanted), schema.PATH)
    twice = of_path.groupBy(schema.PATH).agg(F.sort_array(F.collect_set(LABEL)).alias("labels"))
    twice = twice.where(F.size("labels") > 1).orderBy(schema.PATH)
    if count := twice.count():
        (first,) = twice.limit(1).collect()
        raise InputError(
            f"{options.labels} with two labels for {count:,} pictures, such as {first[schema.PATH]}"
            f" ({' and '.join(first['labels'][:3])})",
            "one label for each picture",
            "Correct the table; nothing was written",
        )
    found = of_path.dropDuplicates([schema.PATH]).select(_GIVEN, schema.PATH, LABEL, *wanted)
    if found.isEmpty():
        (label, score) = (
            row[0] if row else "none"
            for row in (labels.select(_GIVEN).first(), latest.select(schema.PATH).first())
        )
        raise InputError(
            f"{labels.count():,} labels in {options.labels}, such as for {label}, none of them for a picture that was"
            f" scored, such as {score}",
            "paths as score was given them, relative ones beside the table",
            "Correct the paths, --path-column or --scores; nothing was written",
        )
    return found


def _about_runs(spark: SparkSession, scores: str) -> DataFrame:
    """Of each run the week in which it began, its model and version, and the species that it knows."""
    known = runs.Runs(files.qualify(scores))
    rows = []
    for run in known.names():
        manifest = known.manifest(run)
        week = _week(str(manifest.get("started", "")))
        version = f"{manifest['model_name']} {manifest['model_version']}"
        rows.append((run, week, version, list(manifest.get("classes", ()))))
    return spark.createDataFrame(rows, f"run string, {_WEEK} string, version string, classes array<string>")


def _week(started: str) -> str:
    try:
        year, week, _ = datetime.datetime.fromisoformat(started).isocalendar()
    except ValueError:
        return "unknown"
    return f"{year}-W{week:02d}"


def _counted(matched: DataFrame) -> list[report.Counted]:
    is_known = F.array_contains("classes", F.col(LABEL)).alias(_KNOWN)
    columns = [F.col(name) for name in (_WEEK, "version", LABEL, schema.PREDICTED_SPECIES)]
    return [report.Counted(*row) for row in matched.groupBy(*columns, is_known).count().collect()]


def _held(labels: DataFrame, num_rows: int, matched: DataFrame, options: FeedbackOptions) -> report.Labels:
    """What the table of labels held; `matched` has each of its pictures once."""
    num_labels, names = labels.count(), labels.select(_GIVEN).distinct()
    unmatched = names.join(matched.select(_GIVEN), _GIVEN, "left_anti").persist()
    try:
        first = unmatched.orderBy(_GIVEN).first()
        # A picture that is named in two spellings is matched by one of them.
        full = unmatched.mapInArrow(
            partial(_spelled, files.parent(options.labels)), _SPELLED
        ).withColumnRenamed("full", schema.PATH)
        again = full.join(matched.select(schema.PATH), schema.PATH, "left_semi").count()
        never = unmatched.count() - again
        repeated = num_labels - names.count() + again
    finally:
        unmatched.unpersist()
    example = str(first[0]) if first is not None and never else ""
    return report.Labels(num_rows, num_rows - num_labels, repeated, never, example)


def _tests(store: str, counted: list[report.Counted]) -> dict[str, report.TestSplit]:
    """What `evaluate` has written down of the versions that have scored."""
    found = {}
    for name in sorted({each.version for each in counted}) if store else ():
        model, _, version = name.rpartition(" ")
        try:
            known = ModelStore(store, model).evaluation(version)
        except SeedlingsError as error:
            _log.warning("nothing is known of %s on its test split: %s", name, error)
            continue
        if known:
            low, high = known["accuracy_interval"]
            found[name] = report.TestSplit(known["accuracy"], (low, high))
    return found


def _wrong(matched: DataFrame, most: int) -> list[dict[str, Any]]:
    """Pictures whose label is not what was predicted, the most confident first; those called unknown are none."""
    is_wrong = (F.col(schema.PREDICTED_SPECIES) != F.col(LABEL)) & F.array_contains("classes", F.col(LABEL))
    rows = matched.where(is_wrong).orderBy(F.desc(schema.CONFIDENCE), schema.PATH).limit(most)
    columns = [schema.PATH, schema.CONTENT_HASH, LABEL, schema.PREDICTED_SPECIES, schema.CONFIDENCE]
    return [row.asDict() for row in rows.select(*columns, "version", "run").collect()] if most else []


def _write(options: FeedbackOptions, found: report.Feedback, wrong: list[dict[str, Any]]) -> int:
    """Write the report; how many wrong pictures were copied."""
    folder = options.report
    files.make_directory(folder)
    for name in (METRICS, WRONG):
        files.delete(files.join(folder, name))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(
        ("snapshot", schema.PATH, schema.SPECIES, schema.PREDICTED_SPECIES, schema.CONFIDENCE, "version")
    )
    # Beside it the pictures are known as ours, also those of a call that is cut short.
    files.write_text(files.join(folder, WRONG_TABLE), text.getvalue())
    copied = 0
    for row, snapshot in _snapshots(files.join(folder, WRONG), wrong):
        copied += bool(snapshot)
        cells = (snapshot, row[schema.PATH], row[LABEL], row[schema.PREDICTED_SPECIES])
        table.writerow((*map(display.cell, cells), f"{row[schema.CONFIDENCE]:.4f}", row["version"]))
    files.write_text(files.join(folder, WRONG_TABLE), text.getvalue())
    page = report.page(found, scores=options.scores, copied=copied, min_accuracy=options.min_accuracy)
    files.write_text(files.join(folder, PAGE), page)
    about = {"scores": options.scores, "labels": options.labels, "min_accuracy": options.min_accuracy}
    metrics = {**about, **found.to_dict(), "wrong_pictures": copied}
    files.write_text(files.join(folder, METRICS), json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    return copied


def _snapshots(folder: str, wrong: list[dict[str, Any]]) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Copy pictures into folders of their true species; each with the path of its copy, "" where there is none."""
    reasons = dict[str, int]()
    for row in wrong:
        label, suffix = str(row[LABEL]), _SUFFIX.search(files.name(row[schema.PATH]))
        target = files.join(label, row[schema.CONTENT_HASH][:24] + (suffix.group() if suffix else ""))
        reason = ""
        # A label is somebody's text: a folder outside of ours, or a hidden one, is none of a species.
        if label.startswith(".") or any(each in label for each in "/\\\0:"):
            reason = "species that are no name of a folder"
        else:
            try:
                content = files.read_bytes(row[schema.PATH])
                if fingerprint.content_hash(content) != row[schema.CONTENT_HASH]:
                    reason = "files that have changed since they were scored"
                else:
                    files.write_bytes(files.join(folder, target), content)
            except (OSError, ValueError) as error:
                reason = "files that cannot be read any more"
                _log.debug("%s: %s", row[schema.PATH], error)
        if reason:
            reasons[reason] = reasons.get(reason, 0) + 1
        yield row, "" if reason else target
    for reason, count in reasons.items():
        _log.warning("%d wrong pictures are not in %s: %s", count, folder, reason)
