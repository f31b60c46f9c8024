"""A model version over files: every listed file ends as a prediction or as a rejection.

Reading, decoding and the forward pass happen in one task, so that a picture crosses no process boundary. A run
writes into a folder of its own and appears by one rename; whoever reads the output sees whole runs only. One run at
a time writes to an output (`lock`), and what earlier runs have seen is in their folders too (`ledger`).
"""

import datetime
import decimal
import json
import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it
from pyspark.sql.types import ArrayType, FloatType, IntegerType, StringType, StructField, StructType

from seedlings_spark import display, files, fingerprint, images, schema
from seedlings_spark.cluster import runtime, session
from seedlings_spark.corpus import decoding, tables
from seedlings_spark.errors import InputError, StoreError
from seedlings_spark.lock import Lock
from seedlings_spark.models import prediction
from seedlings_spark.models.store import CURRENT, NETWORK, PROFILE, ModelStore, ModelVersion
from seedlings_spark.reports import drift
from seedlings_spark.scoring import ledger, progress, review, sources, sql
from seedlings_spark.scoring.ledger import ALREADY_REJECTED, ALREADY_SCORED, NEW, Ledger
from seedlings_spark.scoring.runs import FORMAT, Runs, RunsState, as_json, with_columns

_log = logging.getLogger(__name__)

# What a task leaves of one file, before predictions and rejects part. `cells`: the place of its confidence and of
# each statistic in the histograms of a `drift.Profile`.
_CELLS = "cells"
_HISTOGRAMS = (drift.CONFIDENCE, *drift.STATISTICS)
_SCORED = StructType(
    [
        StructField(schema.PATH, StringType(), False),
        StructField(schema.CONTENT_HASH, StringType(), True),
        StructField(schema.PROBABILITIES, ArrayType(FloatType(), False), True),
        StructField(schema.REASON, StringType(), True),
        StructField(schema.STAGE, StringType(), True),
        StructField(schema.DETAIL, StringType(), True),
        StructField(_CELLS, ArrayType(IntegerType(), False), True),
    ]
)
# What scoring reads of a version.
CONTENTS = (NETWORK, PROFILE)
_NOTHING = decimal.Decimal(0)
# Of the functions of Spark SQL; the job has options for them, with these defaults.
_MAX_BYTES, _BATCH_SIZE = 64 * 1024 * 1024, 64


@dataclass(frozen=True)
class ScoreTask:
    """What a scoring task is told.

    Args:
        decode: How files become pixels.
        forward: The network.
    """

    decode: decoding.DecodeTask
    forward: prediction.ForwardTask


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


@dataclass(frozen=True)
class ScoreSettings:
    """How to score.

    Args:
        formats: Accepted formats.
        max_pixels: A picture with more is rejected.
        max_bytes: A longer file is rejected.
        batch_size: Images of one forward pass.
        run: Name of the run; "" makes one up. A run of that name that is finished is not made again.
        incremental: Whether files that earlier runs of this output have seen, and that have not changed, are left
            out.
        rescore: Whether they are not where another version has scored them.
        path_column: See `sources.find`.
        content_column: See `sources.find`.
        table_format: See `sources.find`.
        allowed_roots: See `sources.find`.
        top_k: Most likely species of each image to name in `top_species`; 0 for no such column.
        probabilities: Whether to keep the probabilities of all classes.
        review: Least confident images to lay out for a person to look at.
        keep_empty: Whether a run without a name that finds nothing new leaves a folder nevertheless.
    """

    formats: tuple[str, ...]
    max_pixels: int
    max_bytes: int
    batch_size: int
    run: str = ""
    incremental: bool = False
    rescore: bool = False
    path_column: str = ""
    content_column: str = ""
    table_format: str = ""
    allowed_roots: tuple[str, ...] = ()
    top_k: int = 0
    probabilities: bool = True
    review: int = 0
    keep_empty: bool = False


def score(
    spark: SparkSession, source: str, version: ModelVersion, output: str, settings: ScoreSettings
) -> ScoreRun:
    """Score files.

    Args:
        spark: The session.
        source: Full URI of what to score; see `sources.find`.
        version: Of the model.
        output: Full URI of the folder that holds the runs.
        settings: How.

    Returns:
        The run, published.

    Raises:
        InputError: Nothing to score, or the runs would lie among the images.
        OutputInUseError: Another run is writing to this output.
        StoreError: The version is damaged.
    """
    sources.check_output(source, output)
    runs = Runs(output)
    if settings.run and runs.is_finished(settings.run):
        path = runs.path(settings.run)
        _log.info("%s is finished; there is nothing to do", path)
        return ScoreRun(path, runs.manifest(settings.run), is_new=False)
    with Lock(output, f"run {settings.run or spark.sparkContext.applicationId}") as lock:
        runs.clear()
        if settings.run and runs.is_finished(settings.run):  # by another that held the lock until now
            return ScoreRun(runs.path(settings.run), runs.manifest(settings.run), is_new=False)
        return _Scoring(spark, source, version, runs, settings, lock).run()


class _Scoring:
    """One run, from its listing to its publication.

    Args:
        spark: The session.
        where: What to score.
        version: Of the model.
        runs: Of the output.
        settings: How.
        lock: On the output.
    """

    def __init__(
        self,
        spark: SparkSession,
        where: str,
        version: ModelVersion,
        runs: Runs,
        settings: ScoreSettings,
        lock: Lock,
    ) -> None:
        self._spark, self._where, self._version = spark, where, version
        self._runs, self._settings, self._lock = runs, settings, lock
        self._model = f"{version.name} {version.version}"
        self._started = datetime.datetime.now(datetime.UTC)
        self._name = settings.run or f"{self._started:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"
        self._building = runs.building_path(self._name)
        self._task = ScoreTask(
            decoding.DecodeTask(
                size=version.image_size,
                aspect=str(version.manifest.get("aspect", "crop")),
                formats=settings.formats,
                max_pixels=settings.max_pixels,
                max_bytes=settings.max_bytes,
            ),
            forward_task(spark, version, settings.batch_size),
        )

    def run(self) -> ScoreRun:
        state = self._runs.state()
        earlier = Ledger(self._runs.output, state.ledger) if self._settings.incremental else Ledger("")
        source = sources.find(
            self._spark,
            self._where,
            path_column=self._settings.path_column,
            content_column=self._settings.content_column,
            table_format=self._settings.table_format,
            allowed_roots=self._settings.allowed_roots,
        )
        columns = self._columns(state, source)
        listing = earlier.compare(
            self._spark, source.listing, self._model, rescore=self._settings.rescore
        ).persist()
        target = self._runs.path(self._name)
        try:
            if source.contents is None:  # else the paths are names only
                own = listing.where(F.col(schema.PATH).startswith(f"{self._runs.output.rstrip('/')}/"))
                if not own.isEmpty():
                    raise sources.output_inside(self._where, self._runs.output)
            counts = _counts(listing)
            listed = sum(counts.values(), _Count(0, _NOTHING))
            if listed.rows == 0:
                raise InputError(f"{self._where} is empty", "at least one file to score", "Check --images")
            new = counts.get(NEW, _Count(0, _NOTHING))
            seen = listed.rows - new.rows
            _log.info(
                "listed %s files in %s%s",
                f"{listed.rows:,}",
                self._where,
                f", {seen:,} of which have not changed since earlier runs" if seen else "",
            )
            if not (new.rows or self._settings.run or self._settings.keep_empty):
                # A run with a name is kept: its folder is what says that it is finished.
                nothing = drift.Profile()
                drifts = self._drifts(nothing)
                manifest = self._manifest(state, listed.rows, counts, _Numbers({}, {}), nothing, drifts)
                _log.info("nothing is new: no run is added to %s", self._runs.output)
                return ScoreRun("", manifest, drifts)
            chosen = listing.where(F.col(ledger.STATUS) == NEW).select(*schema.LISTING.names)
            rows = self._write(chosen, source, new.rows, is_whole=not seen)
            numbers = self._check(new)
            profile = self._profile(rows)
            drifts = self._drifts(profile)
            self._write_ledger(chosen, Ledger(self._runs.output, state.ledger))
            manifest = self._manifest(state, listed.rows, counts, numbers, profile, drifts)
            manifest["columns"] = json.loads(columns.json())["fields"]
            if self._settings.review and numbers.species:
                review.write(self._spark, self._building, source, self._task.decode, self._settings.review)
            files.write_text(files.join(self._building, "manifest.json"), as_json(manifest))
            self._lock.check()
            files.rename(self._building, target)
        finally:
            files.delete(self._building)
            listing.unpersist()
        self._runs.point_to(manifest)
        _log.info(
            "scored %s files and rejected %s in %.1f s, with %s: %s",
            f"{manifest['scored']:,}",
            f"{manifest['rejected']:,}",
            (datetime.datetime.now(datetime.UTC) - self._started).total_seconds(),
            self._model,
            target,
        )
        return ScoreRun(target, manifest, drifts)

    def _columns(self, state: RunsState, source: sources.Source) -> StructType:
        """The columns of the predictions of all runs, with this one's.

        Raises:
            InputError: They do not go together: then `latest` could not be made any more.
        """
        nothing = self._spark.createDataFrame([], _SCORED)
        predictions, _ = self._tables(nothing, source)
        remedy = "Cast it in the table, for example with a view, or give another --output"
        return with_columns(self._runs.columns(self._spark, state), predictions.schema, self._where, remedy)

    def _tables(self, rows: DataFrame, source: sources.Source) -> tuple[DataFrame, DataFrame]:
        """Predictions and rejects of rows of `_SCORED`, with the further columns of the table that was scored."""
        predictions = self._predictions(rows.where(F.col(schema.REASON).isNull()))
        rejects = rows.where(F.col(schema.REASON).isNotNull()).select(*schema.REJECTS.names).coalesce(1)
        if source.extras is None:
            return predictions, rejects
        others = source.extras.schema[sources.OTHERS].dataType
        assert isinstance(others, StructType)
        further = [F.col(sources.OTHERS).getField(name).alias(name) for name in others.names]
        return (
            predictions.join(source.extras, schema.PATH, "left").select(*predictions.columns, *further),
            rejects.join(source.extras, schema.PATH, "left").select(*rejects.columns, *further),
        )

    def _write(
        self, listing: DataFrame, source: sources.Source, num_files: int, *, is_whole: bool
    ) -> DataFrame:
        """Write predictions and rejects; returns the rows of `_SCORED`.

        Args:
            listing: Files to score.
            source: Of the files.
            num_files: Of the listing.
            is_whole: Whether the listing is all of the source.
        """
        folder = files.join(self._building, "all")
        if num_files:
            environment = runtime.worker_environment(self._task.forward.threads)
            with decoding.batches(self._spark), progress.Watch(self._spark, num_files) as watch:
                with session.python_environment(self._spark, environment):
                    scored = _scored(self._spark, listing, source, self._task, watch.tally, is_whole=is_whole)
                scored.write.parquet(folder)
        rows = (
            self._spark.read.schema(_SCORED).parquet(tables.literal(folder))
            if num_files
            else self._spark.createDataFrame([], _SCORED)
        )
        predictions, rejects = self._tables(rows, source)
        predictions.write.parquet(files.join(self._building, "predictions"))
        rejects.write.parquet(files.join(self._building, "rejects"))
        return rows

    def _predictions(self, rows: DataFrame) -> DataFrame:
        classes = F.array(*[F.lit(name) for name in self._version.classes])
        columns = list(schema.PREDICTIONS.names)
        added = {
            schema.CONFIDENCE: F.array_max(schema.PROBABILITIES),
            schema.MODEL_VERSION: F.lit(self._version.version),
        }
        if self._settings.top_k:
            # Of equal ones the first comes first, as in `predicted_species`.
            pairs = F.transform(
                schema.PROBABILITIES,
                lambda value, place: F.struct(value.alias(schema.CONFIDENCE), (-place).alias("place")),
            )
            added[schema.TOP_SPECIES] = F.transform(
                F.slice(F.reverse(F.array_sort(pairs)), 1, self._settings.top_k),
                lambda pair: F.struct(
                    F.element_at(classes, 1 - pair["place"]).alias(schema.SPECIES),
                    pair[schema.CONFIDENCE].alias(schema.CONFIDENCE),
                ),
            )
            columns.append(schema.TOP_SPECIES)
        if not self._settings.probabilities:
            columns.remove(schema.PROBABILITIES)
        return _with_species(rows, self._version.classes).withColumns(added).select(*columns)

    def _check(self, new: "_Count") -> "_Numbers":
        """What lies on disk now, checked against what was to be scored."""
        predictions = self._spark.read.parquet(tables.literal(files.join(self._building, "predictions")))
        rejects = self._spark.read.parquet(tables.literal(files.join(self._building, "rejects")))
        numbers = _Numbers(
            {row[0]: int(row[1]) for row in predictions.groupBy(schema.PREDICTED_SPECIES).count().collect()},
            {row[0]: int(row[1]) for row in rejects.groupBy(schema.REASON).count().collect()},
        )
        if _count(predictions) + _count(rejects) != new:
            raise InputError(
                f"{numbers.scored:,} predictions and {numbers.rejected:,} rejects",
                f"the {new.rows:,} files that were to be scored, each exactly once",
                "This is a fault of the program or of the file system; nothing was published. Run score again",
            )
        return numbers

    def _profile(self, rows: DataFrame) -> drift.Profile:
        return profile_of(_with_species(rows.where(F.col(schema.REASON).isNull()), self._version.classes))

    def _drifts(self, profile: drift.Profile) -> list[drift.Drift]:
        """How the run differs from the training corpus; nothing where the version has no profile of that."""
        reference = profile_of_corpus(self._version)
        return [] if reference is None else drift.compare(reference, profile)

    def _write_ledger(self, listing: DataFrame, earlier: Ledger) -> None:
        rejects = self._spark.read.parquet(tables.literal(files.join(self._building, "rejects")))
        reasons = rejects.select(schema.PATH, schema.REASON)
        part = (
            listing.join(reasons, schema.PATH, "left")
            .withColumn(schema.MODEL, F.lit(self._model))
            .select(*schema.LEDGER.names)
        )
        if earlier.is_long:
            part = ledger.newest(self._spark, [earlier.read(self._spark), part])
        part.write.parquet(files.join(self._building, ledger.FOLDER))
        files.delete(files.join(self._building, "all"))

    def _manifest(
        self,
        state: RunsState,
        num_listed: int,
        counts: Mapping[str, "_Count"],
        numbers: "_Numbers",
        profile: drift.Profile,
        drifts: Sequence[drift.Drift],
    ) -> dict[str, Any]:
        finished = datetime.datetime.now(datetime.UTC)
        seen = {
            name: counts[name].rows if name in counts else 0 for name in (ALREADY_SCORED, ALREADY_REJECTED)
        }
        if num_listed != numbers.scored + numbers.rejected + sum(seen.values()):
            raise InputError(
                f"{numbers.scored:,} scored, {numbers.rejected:,} rejected and {sum(seen.values()):,} known files",
                f"the {num_listed:,} files that were listed",
                "This is a fault of the program; nothing was published. Run score again, and report it",
            )
        is_whole = len(state.ledger) >= ledger.MOST_PARTS
        return {
            "format": FORMAT,
            "run": self._name,
            "sequence": state.sequence + 1,
            "images": self._where,
            "model_name": self._version.name,
            "model_version": self._version.version,
            "classes": list(self._version.classes),
            "precision": self._task.forward.precision,
            "started": self._started.isoformat(timespec="seconds"),
            "finished": finished.isoformat(timespec="seconds"),
            "listed": num_listed,
            "scored": numbers.scored,
            "rejected": numbers.rejected,
            **seen,
            "rejected_by_reason": dict(sorted(numbers.reasons.items())),
            "images_of_species": dict(sorted(numbers.species.items())),
            "profile": profile.to_json(),
            "drift": {
                "verdict": drift.verdict(drifts),
                "worst": drift.worst(drifts),
                "of": [each.to_dict() for each in drifts],
            },
            "ledger": [self._name] if is_whole else [*state.ledger, self._name],
        }


@dataclass(frozen=True)
class _Numbers:
    """Of the files that were scored now: how many of each species, and rejected for each reason."""

    species: Mapping[str, int]
    reasons: Mapping[str, int]

    @property
    def scored(self) -> int:
        return sum(self.species.values())

    @property
    def rejected(self) -> int:
        return sum(self.reasons.values())


def profile_of_corpus(version: ModelVersion) -> drift.Profile | None:
    """What a version keeps of the corpus that it was trained on; None where it keeps nothing.

    Raises:
        SeedlingsError: It is damaged.
    """
    if not files.exists(version.profile_path):
        return None
    try:
        return drift.Profile.from_json(json.loads(files.read_text(version.profile_path)))
    except ValueError as error:  # bad JSON, or bad UTF-8
        raise StoreError(
            f"{version.profile_path}, which is no JSON ({error})",
            "the profile that was published",
            "Restore the file from a copy, or publish the version again",
        ) from None


def require_profile(version: ModelVersion) -> None:
    """Refuse to guard against drift with a version that knows nothing to drift from.

    Raises:
        StoreError: It keeps no profile of its corpus, or an empty one.
    """
    profile = profile_of_corpus(version)
    if profile is None or not sum(profile.species.values()):
        raise StoreError(
            f"--max-drift with {version.name} {version.version}, which has "
            + ("no profile of a corpus" if profile is None else "an empty profile of its corpus"),
            "a version that train has published: an imported network's corpus is not known",
            "Leave --max-drift out, or choose another --model-version",
        )


def profile_of(predictions: DataFrame) -> drift.Profile:
    """The profile of a table with the columns `predicted_species` and `cells`."""
    species = {row[0]: int(row[1]) for row in predictions.groupBy(schema.PREDICTED_SPECIES).count().collect()}
    cells = predictions.select(F.posexplode(_CELLS).alias("place", "cell")).groupBy("place", "cell").count()
    histograms = {name: np.zeros(drift.NUM_BINS, np.int64) for name in _HISTOGRAMS}
    for place, cell, count in cells.collect():
        histograms[_HISTOGRAMS[place]][cell] = count
    return drift.Profile(species, {name: tuple(map(int, counts)) for name, counts in histograms.items()})


def profile_of_images(
    spark: SparkSession,
    prepared: DataFrame,
    forward: prediction.ForwardTask,
    image_size: tuple[int, int],
    classes: Sequence[str],
) -> drift.Profile:
    """The profile of prepared images.

    Args:
        spark: The session.
        prepared: A table of `schema.CORPUS`.
        forward: The network.
        image_size: (height, width) in pixels.
        classes: Their names, in the order of the network's outputs.
    """
    nothing = F.lit(None).cast("string")
    decoded = prepared.withColumns(dict.fromkeys((schema.REASON, schema.STAGE, schema.DETAIL), nothing))
    task = ScoreTask(decoding.DecodeTask(image_size, "crop", (), 0, 0), forward)  # decoded they are already
    with session.python_environment(spark, runtime.worker_environment(forward.threads)):
        scored = decoded.select(*schema.DECODED.names).mapInArrow(partial(score_decoded, task), _SCORED)
    with session.arrow_batches(spark, image_size[0] * image_size[1] * 3):
        rows = _with_species(scored, classes).select(schema.PREDICTED_SPECIES, _CELLS).persist()
        try:
            return profile_of(rows)
        finally:
            rows.unpersist()


def _with_species(rows: DataFrame, classes: Sequence[str]) -> DataFrame:
    """Rows of `_SCORED` with the class of the highest probability, the first of several."""
    names = F.array(*[F.lit(name) for name in classes])
    place = F.array_position(F.col(schema.PROBABILITIES), F.array_max(schema.PROBABILITIES)).cast("int")
    return rows.withColumn(schema.PREDICTED_SPECIES, F.element_at(names, place))


def latest(spark: SparkSession, output: str, name: str = "latest") -> DataFrame:
    """The newest prediction of each path over all runs of an output, with the further column `run`.

    Args:
        spark: The session.
        output: Folder of the runs.
        name: Of a temporary view that is made of it, for SQL; "" for none.

    Raises:
        InputError: There is no finished run, or one has more or fewer predictions than its manifest says.
    """
    runs = Runs(files.qualify(output))
    names = runs.in_order()
    if not names:
        raise InputError(
            f"no run in {output}", "the folder that score was given as --output", "Score something first"
        )
    columns = [field for field in runs.columns(spark, runs.state()) if field.name != schema.PATH]
    if "run" in (field.name.lower() for field in columns):
        raise InputError(
            f"runs with a column run in {output}, from an earlier release",
            "none in the tables that were scored: the view has a column of that name",
            "Give score another --output, and tables whose column has another name",
        )
    table = runs.rows(spark, names, "predictions", StructType(columns))
    # By the files' own numbers: no column is read.
    counts = {str(run): int(count) for run, count in table.groupBy("run").count().collect()}
    for run in names:
        scored = int(runs.manifest(run)["scored"])
        if counts.get(run, 0) != scored:
            raise InputError(
                f"{counts.get(run, 0):,} predictions in {runs.path(run)}",
                f"{scored:,}, as its manifest says",
                "Restore the run from a copy, or move it out of the output's folder runs",
            )
    chosen = table.groupBy(schema.PATH).agg(F.max_by(F.struct("own", "run"), "number").alias("newest"))
    own = F.col("newest").getField("own")
    view = chosen.select(
        schema.PATH,
        *[own.getField(field.name).alias(field.name) for field in columns],
        F.col("newest").getField("run").alias("run"),
    )
    if name:
        view.createOrReplaceTempView(name)
    return view


def register(
    spark: SparkSession, name: str, store: str, version: str = CURRENT, *, model: str = "seedlings"
) -> None:
    """Make a model version a function of Spark SQL: `SELECT path, species(content) FROM images`.

    `name(content)` is the predicted species of an image file's bytes, NULL where they are no usable picture;
    `name_details(content)` is a struct with `predicted_species`, `confidence`, `probabilities`, `reason` and `detail`.

    Args:
        spark: The session.
        name: Of the function.
        store: Folder of the model store.
        version: Of the model.
        model: Name of the model in the store.

    Raises:
        StoreError: There is no such version, or it is damaged.
    """
    resolved = ModelStore(files.qualify(store), model).verify(version, CONTENTS)
    decode = decoding.DecodeTask(
        size=resolved.image_size,
        aspect=str(resolved.manifest.get("aspect", "crop")),
        formats=images.FORMATS,
        max_pixels=images.MAX_PIXELS,
        max_bytes=_MAX_BYTES,
    )
    sql.register_functions(spark, name, resolved, forward_task(spark, resolved, _BATCH_SIZE), decode)


def printed(run: ScoreRun, form: str) -> str:
    """What `score` prints at its end: a "table" for a person, or one line of "json" for a program."""
    if form == "json":
        return display.as_json(short_summary(run)) + "\n"
    return f"{display.table(summary(run))}\n{drift_table(run)}"


def summary(run: ScoreRun) -> list[tuple[str, object]]:
    """What `score` prints at its end."""
    manifest = run.manifest
    reasons = ", ".join(f"{count} {reason}" for reason, count in manifest["rejected_by_reason"].items())
    most = sorted(manifest["images_of_species"].items(), key=lambda item: -item[1])
    seen = [
        (name.replace("_", " "), f"{manifest[name]:,}")
        for name in (ALREADY_SCORED, ALREADY_REJECTED)
        if manifest[name]
    ]
    verdict = manifest["drift"]["verdict"]
    return [
        ("model", f"{manifest['model_name']} {manifest['model_version']}"),
        ("run", display.Whole(run.path or "none, since nothing is new")),
        ("listed", f"{manifest['listed']:,}"),
        ("scored", f"{manifest['scored']:,}"),
        ("rejected", f"{manifest['rejected']:,}" + (f" ({reasons})" if reasons else "")),
        *seen,
        (
            "species",
            ", ".join(f"{count:,} {name}" for name, count in most[:5]) + (" ..." if len(most) > 5 else ""),
        ),
        (
            "drift",
            verdict if manifest["drift"]["of"] else "unknown: the version has no profile of its corpus",
        ),
    ]


def drift_table(run: ScoreRun) -> str:
    """How the run differs from the training corpus, as a table; "" where nothing is known."""
    return drift.table(run.drifts) if run.drifts else ""


def short_summary(run: ScoreRun) -> dict[str, Any]:
    """What a scheduler wants to know of a run: its manifest, without what is long."""
    left_out = ("profile", "ledger", "classes", "columns")
    return {"path": run.path, **{key: value for key, value in run.manifest.items() if key not in left_out}}


def forward_task(spark: SparkSession, version: ModelVersion, batch_size: int) -> prediction.ForwardTask:
    """The forward pass of a model version.

    Raises:
        StoreError: The network's bytes are not those that were published.
    """
    try:
        content = files.read_bytes(version.network_path)
    except FileNotFoundError:
        raise StoreError(
            f"no {version.network_path}",
            "the network that was published",
            "Choose another --model-version, and publish this one again",
        ) from None
    recorded = version.manifest.get("files", {}).get("network.keras", {}).get("sha256")
    if recorded != fingerprint.content_hash(content):
        raise StoreError(
            f"{version.network_path}, whose SHA-256 is not that of its manifest",
            "the file that was published",
            "Choose another --model-version, and publish this one again",
        )
    return prediction.ForwardTask(
        network=content,
        precision=str(version.manifest.get("precision", "float32")),
        batch_size=batch_size,
        threads=session.task_cpus(spark),
    )


def score_listed(
    task: ScoreTask, batches: Iterator[pa.RecordBatch], tally: "progress.Tally | None" = None
) -> Iterator[pa.RecordBatch]:
    """The function of a Spark task: listed files, with or without content, to rows of `_SCORED`."""
    return score_decoded(task, decoding.decode_listed(task.decode, batches), tally)


def score_decoded(
    task: ScoreTask, batches: Iterator[pa.RecordBatch], tally: "progress.Tally | None" = None
) -> Iterator[pa.RecordBatch]:
    """The function of a Spark task: decoded files (`schema.DECODED`) to rows of `_SCORED`."""
    network = prediction.forward(task.forward)
    for batch in _regrouped(batches, task.forward.batch_size):
        scored = _predict(network, batch)
        if tally is not None:
            tally.add(scored.num_rows, scored.num_rows - scored.column(schema.REASON).null_count)
        yield scored


def _regrouped(batches: Iterator[pa.RecordBatch], num_rows: int) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of this many: a smaller one would be padded to it for the network."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        count = sum(each.num_rows for each in waiting)
        if count >= num_rows:
            table = pa.Table.from_batches(waiting)
            whole = count - count % num_rows
            for start in range(0, whole, num_rows):
                yield from table.slice(start, num_rows).combine_chunks().to_batches()
            waiting = table.slice(whole).to_batches()
    if waiting:
        yield from pa.Table.from_batches(waiting).combine_chunks().to_batches()


def _predict(network: prediction.Forward, batch: pa.RecordBatch) -> pa.RecordBatch:
    """Rows of `schema.DECODED` to rows of `_SCORED`: probabilities where there is an image, else null."""
    contents = batch.column(schema.IMAGE)
    pixels = np.frombuffer(b"".join(contents.drop_null().to_pylist()), np.uint8)
    outputs = network.predict(pixels.reshape(-1, *network.row_shape)).astype(np.float32)
    prediction.check_finite(outputs)
    # A null list has no values: its row begins and ends where the one before it ends.
    offsets = np.zeros(len(contents) + 1, np.int32)
    np.cumsum(np.asarray(contents.is_valid()) * outputs.shape[1], out=offsets[1:])
    probabilities = pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(outputs.ravel()), mask=contents.is_null()
    )
    columns = {name: batch.column(name) for name in _SCORED.names if name in batch.schema.names}
    columns[schema.PROBABILITIES] = probabilities
    cells = _cells(pixels.reshape(-1, *network.row_shape), _lengths(batch, contents), outputs)
    offsets = np.zeros(len(contents) + 1, np.int32)
    np.cumsum(np.asarray(contents.is_valid()) * len(_HISTOGRAMS), out=offsets[1:])
    columns[_CELLS] = pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(cells.ravel()), mask=contents.is_null()
    )
    return pa.RecordBatch.from_pydict({name: columns[name] for name in _SCORED.names})


def _lengths(batch: pa.RecordBatch, contents: Any) -> Any:
    """Bytes of the files whose images are there."""
    return batch.column(schema.LENGTH).filter(contents.is_valid()).fill_null(0).to_numpy(zero_copy_only=False)


def _cells(pixels: Any, lengths: Any, outputs: Any) -> Any:
    """For each image its places in the histograms: int32, shape (images, len(_HISTOGRAMS))."""
    values = {drift.CONFIDENCE: outputs.max(axis=1) if len(outputs) else np.zeros(0)}
    values |= drift.statistics(pixels, lengths)
    return np.stack([drift.bins(name, values[name]) for name in _HISTOGRAMS], axis=1).astype(np.int32)


@dataclass(frozen=True)
class _Count:
    """A number of rows, and a sum over their paths' hashes: equal for equal sets of paths."""

    rows: int
    hashes: decimal.Decimal

    def __add__(self, other: "_Count") -> "_Count":
        return _Count(self.rows + other.rows, self.hashes + other.hashes)


def _count(table: DataFrame) -> _Count:
    row = table.agg(
        F.count("*"), F.sum(F.xxhash64(schema.PATH).cast("decimal(20,0)")).cast("decimal(38,0)")
    ).first()
    assert row is not None
    return _Count(int(row[0]), row[1] or _NOTHING)


def _counts(listing: DataFrame) -> dict[str, _Count]:
    """Of a listing with its status, for each status."""
    rows = listing.groupBy(ledger.STATUS).agg(
        F.count("*"), F.sum(F.xxhash64(schema.PATH).cast("decimal(20,0)")).cast("decimal(38,0)")
    )
    return {row[0]: _Count(int(row[1]), row[2] or _NOTHING) for row in rows.collect()}


def _scored(
    spark: SparkSession,
    listing: DataFrame,
    source: sources.Source,
    task: ScoreTask,
    tally: "progress.Tally",
    *,
    is_whole: bool,
) -> DataFrame:
    if source.contents is not None:
        # With nothing left out the bytes stay where Spark reads them; else those that are new have to be found.
        rows = source.contents if is_whole else source.contents.join(listing, schema.PATH, "left_semi")
        return rows.mapInArrow(partial(score_listed, task, tally=tally), _SCORED)
    if all(map(files.is_local, source.roots)):
        return decoding.spread(spark, listing).mapInArrow(partial(score_listed, task, tally=tally), _SCORED)
    # On other file systems Spark itself reads, and a row of decoded pixels comes back into Python once more.
    decoded = decoding.decode_all(spark, listing, source.roots, task.decode)
    return decoded.mapInArrow(partial(score_decoded, task, tally=tally), _SCORED)
