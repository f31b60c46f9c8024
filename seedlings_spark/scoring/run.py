"""One run, from its listing to its publication: every listed file ends as a prediction or as a rejection."""

import contextlib
import dataclasses
import datetime
import decimal
import itertools
import json
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it
from pyspark.sql.types import DataType, StringType, StructField, StructType

from seedlings_spark import files, schema
from seedlings_spark.cluster import connect, runtime, session
from seedlings_spark.config import ScoringOptions, chosen
from seedlings_spark.corpus import decoding, tables
from seedlings_spark.errors import InputError, OptionError
from seedlings_spark.kinds import Kind
from seedlings_spark.lock import Lock
from seedlings_spark.models import engines, prediction
from seedlings_spark.models.decisions import KEY, Decisions
from seedlings_spark.models.store import ModelVersion
from seedlings_spark.reports import drift
from seedlings_spark.scoring import ledger, progress, review, sources, tasks
from seedlings_spark.scoring import shadow as shadows
from seedlings_spark.scoring.ledger import ALREADY_REJECTED, ALREADY_SCORED, NEW, Ledger
from seedlings_spark.scoring.profile import (
    NO_SPECIES,
    count_species,
    count_values,
    profile_of,
    profile_of_corpus,
)
from seedlings_spark.scoring.runs import FORMAT, Runs, RunsState, tables_path, with_columns
from seedlings_spark.scoring.tasks import CELLS, SCORED, ScoreTask, forward_task, with_prediction

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoreRun:
    """A finished run.

    Args:
        path: Its folder; "" for one that found nothing new and left none.
        manifest: Its numbers.
        drifts: How it differs from the training corpus; none where nothing is known of that.
        is_new: Whether it was made now; False where it had been finished before.
    """

    path: str
    manifest: Mapping[str, Any]
    drifts: Sequence[drift.Drift] = ()
    is_new: bool = True

    @property
    def tables_path(self) -> str:
        """The folder of its tables: the run's own, or on an object store the one that its manifest names."""
        return tables_path(self.path, self.manifest)


def score(
    spark: SparkSession,
    version: ModelVersion,
    options: ScoringOptions,
    shadow: ModelVersion | None = None,
    rows: DataFrame | None = None,
) -> ScoreRun:
    """Score files.

    Args:
        spark: The session.
        version: Version of the model.
        options: What, and how; its paths are full URIs (`config.qualified`).
        shadow: A second version, which is asked about the same pictures; see `shadow`.
        rows: A table of paths or contents in place of what is at `options.images`, below which its relative paths are.

    Returns:
        The run, published.

    Raises:
        InputError: Nothing to score, or the runs would lie among the images.
        OptionError: The second version takes other pixels; or species are asked of a version that gives numbers.
        OutputInUseError: Another run is writing to this output.
        StoreError: The version is damaged.
    """
    sources.check_output(options.images, options.output)
    if options.top_k and version.kind == Kind.REGRESSION:
        raise OptionError(
            f"--top-k {options.top_k} with {version.name} {version.version}, which {version.kind.of_versions}",
            "a version that names species",
            "Leave out --top-k",
        )
    if shadow is not None:
        shadows.check(version, shadow)
    runs = Runs(options.output)
    if options.run_id and runs.is_finished(options.run_id):
        path = runs.path(options.run_id)
        _log.info("%s is finished; there is nothing to do", path)
        return ScoreRun(path, runs.manifest(options.run_id), is_new=False)
    with Lock(options.output, f"run {options.run_id or connect.application_id(spark)}") as lock:
        runs.clear()
        if options.run_id and runs.is_finished(options.run_id):  # by another that held the lock until now
            return ScoreRun(runs.path(options.run_id), runs.manifest(options.run_id), is_new=False)
        return _Scoring(spark, (version, shadow), runs, options, lock, rows).run()


class _Scoring:
    """One run, from its listing to its publication.

    Args:
        spark: The session.
        versions: Version of the model, and a second one in its shadow, or None.
        runs: Runs of the output.
        options: What to score, and how.
        lock: On the output.
        rows: A table to score in place of what the options name, or None.
    """

    def __init__(
        self,
        spark: SparkSession,
        versions: tuple[ModelVersion, ModelVersion | None],
        runs: Runs,
        options: ScoringOptions,
        lock: Lock,
        rows: DataFrame | None,
    ) -> None:
        version, self._shadow = versions
        self._spark, self._where, self._version = spark, options.images, version
        self._runs, self._options, self._lock, self._rows = runs, options, lock, rows
        self._model = f"{version.name} {version.version}"
        self._started = datetime.datetime.now(datetime.UTC)
        self._name = options.run_id or f"{self._started:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"
        self._building = runs.building_path(self._name)
        self._task = ScoreTask(
            decoding.DecodeTask(
                size=version.image_size,
                aspect=version.aspect,
                formats=options.formats,
                max_pixels=options.max_pixels,
                max_bytes=options.max_bytes,
            ),
            self._forward_of(version),
            None if self._shadow is None else self._forward_of(self._shadow),
        )
        self._decisions = Decisions.of(version.manifest, self._task.forward.precision)
        if doubt := self._decisions.doubt(options.tta):
            _log.warning("%s", doubt)
        self._layout = schema.PREDICTIONS_OF[version.kind]
        if not self._task.is_without_tensorflow and not connect.is_connect(spark):
            session.require_memory(spark)

    def _forward_of(self, version: ModelVersion) -> prediction.ForwardTask:
        how = chosen(self._options, "batch_size", "engine", "precision")
        return forward_task(self._spark, version, **how, views=self._options.tta)

    def run(self) -> ScoreRun:
        state = self._runs.state()
        earlier = Ledger(self._runs.output, state.ledger) if self._options.incremental else Ledger("")
        source = self._source()
        columns = self._columns(state, source)
        listing = earlier.compare(
            self._spark, source.listing, self._model, rescore=self._options.rescore
        ).persist()
        target = self._runs.path(self._name)
        try:
            counts = self._count(listing, source)
            new = counts.get(NEW, _NOTHING)
            num_listed = sum(each.count.rows for each in counts.values())
            if not (new.count.rows or self._options.run_id or self._options.keep_empty):
                # A run with a name is kept: its folder is what says that it is finished.
                return self._nothing_new(state, num_listed, counts)
            chosen = listing.where(F.col(ledger.STATUS) == NEW).select(*schema.LISTING.names)
            is_whole = num_listed == new.count.rows
            profile = self._write(chosen, source, new.work, is_whole=is_whole)
            numbers, *_ = session.at_once(
                lambda: self._check(new.count),
                lambda: self._write_ledger(chosen, Ledger(self._runs.output, state.ledger)),
                lambda: self._review(source),
            )
            files.delete(files.join(self._building, "all"))
            profile = dataclasses.replace(profile, species=numbers.species)
            drifts = self._drifts(profile)
            manifest = self._manifest(state, num_listed, counts, numbers, profile, drifts)
            manifest["columns"] = json.loads(columns.json())["fields"]
            self._lock.check()
            manifest = dict(self._runs.publish(self._building, self._name, manifest))
        finally:
            if self._building in self._runs.left_behind():
                files.delete(self._building)
            listing.unpersist()
        self._runs.point_to(manifest)
        _log.info(
            "scored %s files%s and rejected %s in %.1f s, with %s: %s",
            f"{manifest['scored']:,}",
            f" ({numbers.unknown:,} unknown)" if numbers.unknown else "",
            f"{manifest['rejected']:,}",
            (datetime.datetime.now(datetime.UTC) - self._started).total_seconds(),
            self._model,
            target,
        )
        return ScoreRun(target, manifest, drifts)

    def _count(self, listing: DataFrame, source: sources.Source) -> Mapping[str, "_Listed"]:
        """The files of a listing by their status.

        Raises:
            InputError: There are none, or the output lies among them.
        """
        counts = _counts(listing, f"{self._runs.output.rstrip('/')}/")
        # Of a table of contents the paths are names only.
        if source.contents is None and any(each.num_own for each in counts.values()):
            raise sources.output_inside(self._where, self._runs.output)
        listed = sum(each.count.rows for each in counts.values())
        if not listed:
            raise InputError(f"{self._where} is empty", "at least one file to score", "Check --images")
        seen = listed - (counts[NEW].count.rows if NEW in counts else 0)
        _log.info(
            "listed %s files in %s%s",
            f"{listed:,}",
            self._where,
            f", {seen:,} of which have not changed since earlier runs" if seen else "",
        )
        return counts

    def _source(self) -> sources.Source:
        columns = chosen(self._options, "path_column", "content_column", "allowed_roots")
        if self._rows is not None:
            columns["path_column"] = columns["path_column"] or schema.PATH
            return sources.of_rows(self._spark, self._rows, self._where, self._where, **columns)
        return sources.find(
            self._spark,
            self._where,
            table_format=self._options.table_format,
            max_bytes=self._task.decode.max_bytes,
            **columns,
        )

    def _nothing_new(self, state: RunsState, num_listed: int, counts: Mapping[str, "_Listed"]) -> ScoreRun:
        nothing = drift.Profile()
        drifts = self._drifts(nothing)
        manifest = self._manifest(state, num_listed, counts, _Numbers({}, {}, 0), nothing, drifts)
        _log.info("nothing is new: no run is added to %s", self._runs.output)
        return ScoreRun("", manifest, drifts)

    def _columns(self, state: RunsState, source: sources.Source) -> StructType:
        """The columns of the predictions of all runs, with this one's.

        Raises:
            InputError: They do not go together: then `latest` could not be made any more.
        """
        nothing = self._spark.createDataFrame([], SCORED)
        predictions, _ = self._tables(nothing, source)
        earlier = self._runs.columns(self._spark, state)
        for column, other in itertools.permutations((schema.PREDICTED_SPECIES, schema.PREDICTED_VALUE)):
            if column in self._layout.names and other in earlier.names:
                raise InputError(
                    f"earlier runs of {self._runs.output}, which have the column {other}",
                    f"runs with {column}, as {self._model} {self._version.kind.of_versions}",
                    "Give another --output",
                )
        remedy = "Cast it in the table, for example with a view, or give another --output"
        return with_columns(earlier, predictions.schema, self._where, remedy)

    def _tables(self, rows: DataFrame, source: sources.Source) -> tuple[DataFrame, DataFrame]:
        """Predictions and rejects of rows of `SCORED`, with the further columns of the table that was scored."""
        predictions = self._predictions(rows.where(F.col(schema.REASON).isNull()))
        rejects = rows.where(F.col(schema.REASON).isNotNull()).select(*schema.REJECTS.names).coalesce(1)
        if source.extras is None:
            return predictions, rejects
        others = cast(StructType, source.extras.schema[sources.OTHERS].dataType)
        further = [F.col(sources.OTHERS).getField(name).alias(name) for name in others.names]
        return (
            predictions.join(source.extras, schema.PATH, "left").select(*predictions.columns, *further),
            rejects.join(source.extras, schema.PATH, "left").select(*rejects.columns, *further),
        )

    def _write(
        self, listing: DataFrame, source: sources.Source, work: decoding.Work, *, is_whole: bool
    ) -> drift.Profile:
        """Score, and write predictions and rejects; returns the profile of the images, without species.

        Args:
            listing: Files to score.
            source: Source of the files.
            work: What the listing costs to read.
            is_whole: Whether the listing is all of the source.
        """
        options = tables.write_options(self._building)
        rows = self._scored(listing, source, work, is_whole=is_whole)
        predictions, rejects = self._tables(rows, source)
        profile: drift.Profile
        profile, *_ = session.at_once(
            lambda: profile_of(rows.where(F.col(CELLS).isNotNull()), self._version.kind, {}),
            lambda: predictions.write.options(**options).parquet(files.join(self._building, "predictions")),
            lambda: rejects.write.options(**options).parquet(files.join(self._building, "rejects")),
            lambda: self._write_shadow(rows),
        )
        return profile

    def _write_shadow(self, rows: DataFrame) -> None:
        """Write where the second version says something else, if there is one."""
        if self._shadow is None or self._task.shadow is None:
            return
        decisions = Decisions.of(self._shadow.manifest, self._task.shadow.precision)
        voices = (
            shadows.Voice(self._version.classes, self._decisions),
            shadows.Voice(self._shadow.classes, decisions),
        )
        differ = shadows.differences(rows, *voices, probabilities=self._options.probabilities)
        place = files.join(self._building, shadows.FOLDER)
        differ.write.options(**tables.write_options(self._building)).parquet(place)

    def _scored(
        self, listing: DataFrame, source: sources.Source, work: decoding.Work, *, is_whole: bool
    ) -> DataFrame:
        """The rows of `SCORED` of files, each of which is read once."""
        if not work.num_files:
            return self._spark.createDataFrame([], SCORED)
        folder, options = files.join(self._building, "all"), tables.write_options(self._building)
        are_few = tasks.are_few(self._spark, source, self._task, work)
        sent = contextlib.nullcontext(self._task) if are_few else tasks.sent(self._spark, self._task)
        with (
            decoding.batches(self._spark),
            progress.Watch(self._spark, work.num_files) as watch,
            sent as task,
        ):
            with session.python_environment(self._spark, runtime.worker_environment(task.forward.threads)):
                scored = tasks.score_files(
                    self._spark, listing, source, task, watch.tally, work=work, is_whole=is_whole
                )
            if are_few:
                return scored
            scored.write.options(**options).parquet(folder)
        return self._spark.read.schema(SCORED).parquet(tables.literal(folder))

    def _predictions(self, rows: DataFrame) -> DataFrame:
        columns, reading = list(self._layout.names), self._task.forward.reading
        said = with_prediction(rows, self._version.classes, reading)
        added = {schema.MODEL_VERSION: F.lit(self._version.version)}
        if reading.kind == Kind.REGRESSION:
            return said.withColumns(added).select(*columns)
        added[schema.CONFIDENCE] = tasks.confidence(reading.thresholds)
        if self._options.top_k:
            first = F.slice(tasks.ranked(self._version.classes), 1, self._options.top_k)
            added[schema.TOP_SPECIES] = first
        decided = tasks.decided(self._decisions, self._version.classes)
        columns += [name for name in (*added, *decided) if name not in columns]
        if not self._options.probabilities:
            columns.remove(schema.PROBABILITIES)
        return said.withColumns({**added, **decided}).select(*columns)

    def _check(self, new: "_Count") -> "_Numbers":
        """What lies on disk now, checked against what was to be scored."""
        kind = self._version.kind
        said = schema.prediction_of(kind)
        made = self._made("predictions", said)
        predictions = made.withColumn(_IS_SCORED, F.lit(True))
        if kind != Kind.CLASSIFICATION:  # as many as files, it may be: they are counted apart
            predictions = predictions.withColumn(said, F.lit(""))
        rejects = self._made("rejects", schema.REASON).withColumn(_IS_SCORED, F.lit(False))
        counted = predictions.union(rejects).groupBy(_IS_SCORED, said).agg(*_count())
        species, reasons, found = dict[str, int](), dict[str, int](), _NOTHING.count
        for is_scored, key, rows, hashes in counted.collect():
            (species if is_scored else reasons)[key] = int(rows)
            found += _Count(int(rows), hashes)
        unknown = species.pop(None, 0)  # type: ignore[call-overload]
        scored = sum(species.values()) + unknown
        named = species if kind == Kind.CLASSIFICATION else count_species(made)
        numbers = _Numbers(named, reasons, scored, unknown, self._differ(), count_values(made))
        if found != new:
            raise InputError(
                f"{numbers.scored:,} predictions and {numbers.rejected:,} rejects",
                f"the {new.rows:,} files that were to be scored, each exactly once",
                "This is a fault of the program or of the file system; nothing was published. Run score again",
            )
        return numbers

    def _differ(self) -> dict[str | None, int]:
        """What the version says -> pictures of which the second one says something else."""
        if self._shadow is None:
            return {}
        rows = self._made(shadows.FOLDER, schema.PREDICTED_SPECIES)
        return {row[0]: int(row[1]) for row in rows.groupBy(schema.PREDICTED_SPECIES).count().collect()}

    def _made(self, table: str, column: str) -> DataFrame:
        """The paths of a table of this run, and a text."""
        kind: DataType = self._layout[column].dataType if column in self._layout.names else StringType()
        layout = StructType([StructField(schema.PATH, StringType()), StructField(column, kind)])
        return tables.parquet(self._spark, files.join(self._building, table), layout)

    def _drifts(self, profile: drift.Profile) -> list[drift.Drift]:
        """How the run differs from the training corpus; nothing where the version has no profile of that."""
        reference = profile_of_corpus(self._version)
        return [] if reference is None else drift.compare(reference, profile)

    def _write_ledger(self, listing: DataFrame, earlier: Ledger) -> None:
        reasons = self._made("rejects", schema.REASON)
        part = (
            listing.join(reasons, schema.PATH, "left")
            .withColumn(schema.MODEL, F.lit(self._model))
            .select(*schema.LEDGER.names)
        )
        if earlier.is_long:
            part = ledger.with_newer(earlier.read(self._spark), part)
        options = tables.write_options(self._building)
        part.write.options(**options).parquet(files.join(self._building, ledger.FOLDER))

    def _review(self, source: sources.Source) -> None:
        if self._options.review and self._version.kind != Kind.CLASSIFICATION:
            _log.info(
                "no review: its page asks for one species of each picture, and %s %s",
                self._model,
                self._version.kind.of_versions,
            )
        elif self._options.review:
            about = review.Reviewed(
                self._name,
                f"{self._version.name} {self._version.version}",
                self._version.classes,
                self._options.probabilities,
            )
            review.write(self._spark, self._building, source, self._task.decode, self._options.review, about)

    def _manifest(
        self,
        state: RunsState,
        num_listed: int,
        counts: Mapping[str, "_Listed"],
        numbers: "_Numbers",
        profile: drift.Profile,
        drifts: Sequence[drift.Drift],
    ) -> dict[str, Any]:
        seen = {
            name: counts[name].count.rows if name in counts else 0
            for name in (ALREADY_SCORED, ALREADY_REJECTED)
        }
        if num_listed != numbers.scored + numbers.rejected + sum(seen.values()):
            raise InputError(
                f"{numbers.scored:,} scored, {numbers.rejected:,} rejected and {sum(seen.values()):,} known files",
                f"the {num_listed:,} files that were listed",
                "This is a fault of the program; nothing was published. Run score again, and report it",
            )
        is_whole, forward = len(state.ledger) >= ledger.MOST_PARTS, self._task.forward
        return {
            "format": FORMAT,
            "run": self._name,
            "sequence": state.sequence + 1,
            "images": self._where,
            "model_name": self._version.name,
            "model_version": self._version.version,
            "classes": list(self._version.classes),
            "engine": {"name": forward.engine, "version": engines.version(forward.engine)},
            "precision": forward.precision,
            "tta": forward.views,
            "started": self._started.isoformat(timespec="seconds"),
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "listed": num_listed,
            "scored": numbers.scored,
            "rejected": numbers.rejected,
            **self._decided(numbers.unknown),
            **self._shadowed(numbers),
            **seen,
            "rejected_by_reason": dict(sorted(numbers.reasons.items())),
            **self._named(numbers),
            "profile": profile.to_json(),
            "drift": {
                "verdict": drift.verdict(drifts),
                "worst": drift.worst(drifts),
                "of": [each.to_dict() for each in drifts],
            },
            "ledger": [self._name] if is_whole else [*state.ledger, self._name],
        }

    def _named(self, numbers: "_Numbers") -> dict[str, Any]:
        """How many images of each species there are, and of lists how many of none; of numbers what they are."""
        species = dict(sorted(numbers.species.items()))
        if self._version.kind == Kind.REGRESSION:
            return {"images_of_species": species, "predicted_values": numbers.values}
        if self._version.kind == Kind.CLASSIFICATION:
            return {"images_of_species": species}
        none = species.pop(NO_SPECIES, 0)
        return {"images_of_species": species, "without_species": none}

    def _decided(self, num_unknown: int) -> dict[str, Any]:
        """How many of those that are scored are unknown, and what the version has decided by."""
        made = {KEY: self._decisions.to_dict()} if self._decisions.images else {}
        return {"unknown": num_unknown, **made}

    def _shadowed(self, numbers: "_Numbers") -> dict[str, Any]:
        """How often the second version agrees, if there is one."""
        if self._shadow is None or self._task.shadow is None:
            return {}
        forward = self._task.shadow
        about = {
            "model_version": self._shadow.version,
            "classes": list(self._shadow.classes),
            "engine": {"name": forward.engine, "version": engines.version(forward.engine)},
            "precision": forward.precision,
        }
        found = shadows.counts(numbers.differ, numbers.species, numbers.unknown)
        return {shadows.FOLDER: {**about, **found}}


@dataclass(frozen=True)
class _Numbers:
    """Of the files: how many of each species, rejected for each reason, scored at all, and called unknown.

    `differ`: what the version says of them -> of how many a second one says something else. `values`: as
    `count_values` has them.
    """

    species: Mapping[str, int]
    reasons: Mapping[str, int]
    scored: int
    unknown: int = 0
    differ: Mapping[str | None, int] = dataclasses.field(default_factory=dict)
    values: Mapping[str, float | None] = dataclasses.field(
        default_factory=lambda: dict.fromkeys(("mean", "least", "most"))
    )

    @property
    def rejected(self) -> int:
        return sum(self.reasons.values())


@dataclass(frozen=True)
class _Count:
    """A number of rows, and a sum over their paths' hashes: equal for equal sets of paths."""

    rows: int
    hashes: decimal.Decimal

    def __add__(self, other: "_Count") -> "_Count":
        return _Count(self.rows + other.rows, self.hashes + other.hashes)


@dataclass(frozen=True)
class _Listed:
    """Files of a listing.

    Args:
        count: Which they are.
        work: What they cost to read.
        num_own: Number of those that are the output's own.
    """

    count: _Count
    work: decoding.Work
    num_own: int


_NOTHING = _Listed(_Count(0, decimal.Decimal(0)), decoding.Work(0, 0), 0)
_IS_SCORED = "is_scored"


def _count() -> tuple[Column, Column]:
    """The two numbers of a `_Count`."""
    hashes = F.sum(F.xxhash64(schema.PATH).cast("decimal(20,0)")).cast("decimal(38,0)")
    return F.count("*"), hashes


def _counts(listing: DataFrame, output: str) -> dict[str, _Listed]:
    """Of a listing with its status, for each status."""
    own = F.sum(F.col(schema.PATH).startswith(output).cast("int"))
    found = {}
    for status, rows, hashes, num_bytes, num_own in (
        listing.groupBy(ledger.STATUS).agg(*_count(), F.sum(decoding.cost()), own).collect()
    ):
        work = decoding.Work(int(num_bytes), int(rows))
        found[status] = _Listed(_Count(int(rows), hashes), work, int(num_own))
    return found
