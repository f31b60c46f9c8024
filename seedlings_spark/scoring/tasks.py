"""What a scoring task does: a picture goes from its bytes to its probabilities in one process."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it
from pyspark.sql.types import ArrayType, FloatType, IntegerType, StringType, StructField, StructType

from seedlings_spark import choices, files, fingerprint, schema
from seedlings_spark.cluster import session
from seedlings_spark.corpus import decoding
from seedlings_spark.errors import NetworkError, StoreError
from seedlings_spark.kinds import Kind, Reading
from seedlings_spark.models import prediction
from seedlings_spark.models.decisions import Decisions
from seedlings_spark.models.store import INT8, NETWORK, ONNX, PROFILE, ModelVersion
from seedlings_spark.reports import drift
from seedlings_spark.scoring import progress, sources

# What a task leaves of one file, before predictions and rejects part. `probabilities` are a network's outputs, also
# where that is a number. `cells`: the place of its confidence, or of its number, and of each statistic in the
# histograms of a `drift.Profile`.
CELLS = "cells"
_CELLS = StructField(CELLS, ArrayType(IntegerType(), False), True)
DESCRIBED = StructType([_CELLS])  # by `describe`: of the statistics alone
SCORED = StructType(
    [
        StructField(schema.PATH, StringType(), False),
        StructField(schema.CONTENT_HASH, StringType(), True),
        StructField(schema.PROBABILITIES, ArrayType(FloatType(), False), True),
        StructField(schema.REASON, StringType(), True),
        StructField(schema.STAGE, StringType(), True),
        StructField(schema.DETAIL, StringType(), True),
        _CELLS,
        # Of a second version, if there is one.
        StructField(schema.SHADOW_PROBABILITIES, ArrayType(FloatType(), False), True),
    ]
)
# On a local master the driver itself scores files that cost no more to read, in bytes as `decoding.cost` has them: some
# hundred pictures, which take a second. Python processes beside it would take longer to start.
FEW_BYTES = 32 * 1024 * 1024
# What scoring reads of a version.
CONTENTS = (NETWORK, ONNX, INT8, PROFILE)


@dataclass(frozen=True)
class ScoreTask:
    """What a scoring task is told.

    Args:
        decode: How files become pixels.
        forward: The network.
        shadow: The network of a second version, for the same pixels; None for none.
    """

    decode: decoding.DecodeTask
    forward: prediction.ForwardTask
    shadow: prediction.ForwardTask | None = None

    @property
    def is_without_tensorflow(self) -> bool:
        """Whether other engines compute all of it."""
        return all(each is None or each.engine != choices.TENSORFLOW for each in (self.forward, self.shadow))


def histograms(kind: Kind) -> tuple[str, ...]:
    """The histograms of a profile in the order of `cells`."""
    return (drift.VALUE if kind == Kind.REGRESSION else drift.CONFIDENCE, *drift.STATISTICS)


def with_prediction(rows: DataFrame, classes: Sequence[str], reading: Reading) -> DataFrame:
    """Rows of `SCORED` with what the network says: `predicted_value` where that is a number, else `predicted_species`.

    Args:
        rows: The rows.
        classes: Their names, in the order of the network's outputs.
        reading: How these are read.
    """
    if reading.kind == Kind.REGRESSION:
        return rows.withColumn(schema.PREDICTED_VALUE, F.element_at(schema.PROBABILITIES, 1))
    return with_species(rows, classes, reading.thresholds)


@contextlib.contextmanager
def sent(spark: SparkSession, task: ScoreTask) -> Iterator[ScoreTask]:
    """The task with its networks sent to the executors, for as long as this lasts; see `prediction.sent`."""
    with contextlib.ExitStack() as stack:
        forward = stack.enter_context(prediction.sent(spark, task.forward))
        shadow = task.shadow and stack.enter_context(prediction.sent(spark, task.shadow))
        yield dataclasses.replace(task, forward=forward, shadow=shadow)


def with_species(rows: DataFrame, classes: Sequence[str], thresholds: Sequence[float] = ()) -> DataFrame:
    """Rows of `SCORED` with the class of the highest probability, the first of several.

    Args:
        rows: The rows.
        classes: Their names, in the order of the network's outputs.
        thresholds: As `Reading` has them: with some, the species are an array of the classes that reach theirs.
    """
    names = F.array(*[F.lit(name) for name in classes])
    if thresholds:
        least = F.array(*map(F.lit, thresholds))
        is_named = F.zip_with(schema.PROBABILITIES, least, lambda value, threshold: value >= threshold)
        named = F.filter(names, lambda _, place: F.element_at(is_named, place + 1))
        return rows.withColumn(
            schema.PREDICTED_SPECIES, F.when(F.col(schema.PROBABILITIES).isNotNull(), named)
        )
    place = F.array_position(F.col(schema.PROBABILITIES), F.array_max(schema.PROBABILITIES)).cast("int")
    return rows.withColumn(schema.PREDICTED_SPECIES, F.element_at(names, place))


def confidence(thresholds: Sequence[float] = ()) -> Column:
    """How sure a network is of what `with_species` says, of rows of `SCORED`.

    With thresholds it is that of the class of which it is least sure: its probability where it is named, else one less
    that.
    """
    if not thresholds:
        return F.array_max(schema.PROBABILITIES)
    least = F.array(*map(F.lit, thresholds))
    sure = F.zip_with(
        schema.PROBABILITIES,
        least,
        lambda value, threshold: F.when(value >= threshold, value).otherwise(1 - value),
    )
    return F.array_min(sure).cast("float")


def ranked(classes: Sequence[str]) -> Column:
    """Of rows of `SCORED` an array of (species, confidence), the most probable first; of equal ones the first class."""
    names = F.array(*[F.lit(name) for name in classes])
    pairs = F.transform(
        schema.PROBABILITIES,
        lambda value, place: F.struct(value.alias(schema.CONFIDENCE), (-place).alias("place")),
    )
    return F.transform(
        F.reverse(F.array_sort(pairs)),
        lambda pair: F.struct(
            F.element_at(names, 1 - pair["place"]).alias(schema.SPECIES),
            pair[schema.CONFIDENCE].alias(schema.CONFIDENCE),
        ),
    )


def decided(decisions: Decisions, classes: Sequence[str]) -> dict[str, Column]:
    """The columns that a version's promises add to its predictions, or change; none of a version without any."""
    columns: dict[str, Column] = {}
    if decisions.coverage:
        # The first one in any case: an empty set would name less than `predicted_species` does.
        chosen = F.filter(
            ranked(classes),
            lambda pair, place: (place == 0) | (pair[schema.CONFIDENCE] >= F.lit(decisions.set_from)),
        )
        columns[schema.SPECIES_SET] = F.transform(chosen, lambda pair: pair[schema.SPECIES])
    if decisions.max_unknown:
        is_unknown = F.array_max(schema.PROBABILITIES) < F.lit(decisions.unknown_below)
        columns[schema.PREDICTED_SPECIES] = F.when(~is_unknown, F.col(schema.PREDICTED_SPECIES))
        columns[schema.REASON] = F.when(is_unknown, F.lit(schema.UNKNOWN))
    return columns


def forward_task(
    spark: SparkSession,
    version: ModelVersion,
    batch_size: int,
    engine: str = "auto",
    precision: str = "auto",
    views: int = 1,
) -> prediction.ForwardTask:
    """The forward pass of a model version.

    Args:
        spark: The session.
        version: The version.
        batch_size: Rows of one forward pass of TensorFlow.
        engine: One of `choices.ENGINES`.
        precision: One of `choices.SCORING_PRECISIONS`.
        views: One of `choices.VIEWS`.

    Raises:
        OptionError: The version's images do not have so many views.
        NetworkError: ONNX Runtime or int8 is asked for, and the version has no network for it.
        StoreError: The network's bytes are not those that were published.
    """
    prediction.check_views(views, (*version.image_size, 3))
    chosen = prediction.engine_for(spark, engine, has_onnx=version.has_onnx)
    if takes_int8(version, chosen, precision):
        name, precision = INT8, choices.INT8
    else:
        name = NETWORK if chosen == choices.TENSORFLOW else ONNX
        if precision == "auto" and chosen != choices.ONNXRUNTIME:
            precision = str(version.manifest.get("precision", "float32"))
        else:
            precision = "float32"
    return prediction.ForwardTask(
        network=_published(version, name),
        precision=precision,
        batch_size=batch_size,
        threads=session.task_cpus(spark),
        engine=chosen,
        views=views,
        reading=version.reading,
    )


def takes_int8(version: ModelVersion, engine: str, precision: str) -> bool:
    """Whether it is a version's quantised network that computes.

    Args:
        version: The version.
        engine: One of `choices.ENGINES`, but not "auto".
        precision: One of `choices.SCORING_PRECISIONS`.

    Raises:
        NetworkError: It is asked for, and the version has none, or none for this engine.
    """
    has_it = version.has_int8 and engine != choices.TENSORFLOW
    if precision == choices.INT8 and not has_it:
        raise NetworkError(
            f"--precision int8 for {version.name} {version.version} by {engine}",
            f"a version with {INT8}, by ONNX Runtime or OpenVINO",
            "Quantise it with models quantize, or choose another --precision",
        )
    return has_it and precision != "float32"


def _published(version: ModelVersion, name: str) -> bytes:
    """A file of a version, whose bytes are those that were published.

    Raises:
        StoreError: They are not.
    """
    path = files.join(version.path, name)
    remedy = "Choose another --model-version, and publish this one again"
    try:
        content = files.read_bytes(path)
    except FileNotFoundError:
        raise StoreError(f"no {path}", "the network that was published", remedy) from None
    recorded = version.manifest.get("files", {}).get(name, {}).get("sha256")
    if recorded != fingerprint.content_hash(content):
        raise StoreError(
            f"{path}, whose SHA-256 is not that of its manifest", "the file that was published", remedy
        )
    return content


def score_listed(
    task: ScoreTask,
    batches: Iterator[pa.RecordBatch],
    tally: "progress.Tally | None" = None,
    stores: Sequence[files.Store] = (),
) -> Iterator[pa.RecordBatch]:
    """The function of a Spark task: listed files, with or without content, to rows of `SCORED`."""
    decoded = decoding.decode_listed(task.decode, batches, stores)
    return score_decoded(task.forward, decoded, tally, task.shadow)


def score_decoded(
    forward: prediction.ForwardTask,
    batches: Iterator[pa.RecordBatch],
    tally: "progress.Tally | None" = None,
    shadow: prediction.ForwardTask | None = None,
) -> Iterator[pa.RecordBatch]:
    """The function of a Spark task: decoded files (`schema.DECODED`) to rows of `SCORED`."""
    network = prediction.forward(forward)
    second = None if shadow is None else prediction.forward(shadow)
    for batch in _regrouped(batches, forward.batch_size):
        scored = _predict(network, batch, forward.reading, second)
        if tally is not None:
            tally.add(scored.num_rows, scored.num_rows - scored.column(schema.REASON).null_count)
        yield scored


def describe(row_shape: tuple[int, ...], batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Of a Spark task: `image` and `length` to the places of each of `drift.STATISTICS` in its histogram."""
    for batch in batches:
        contents = batch.column(schema.IMAGE)
        values = drift.statistics(_pixels(contents, row_shape), _lengths(batch, contents))
        yield pa.RecordBatch.from_pydict({CELLS: _lists(_cells(values, drift.STATISTICS), contents)})


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


def _predict(
    network: prediction.Forward,
    batch: pa.RecordBatch,
    reading: Reading,
    shadow: prediction.Forward | None = None,
) -> pa.RecordBatch:
    """Rows of `schema.DECODED` to rows of `SCORED`: probabilities where there is an image, else null."""
    contents = batch.column(schema.IMAGE)
    pixels = _pixels(contents, network.row_shape)
    outputs = _outputs(network, pixels)
    columns = {name: batch.column(name) for name in SCORED.names if name in batch.schema.names}
    columns[schema.PROBABILITIES] = _lists(outputs, contents)
    names = histograms(reading.kind)
    values = {names[0]: _said(outputs, reading), **drift.statistics(pixels, _lengths(batch, contents))}
    columns[CELLS] = _lists(_cells(values, names), contents)
    nothing = pa.nulls(len(contents), pa.list_(pa.float32()))
    columns[schema.SHADOW_PROBABILITIES] = (
        nothing if shadow is None else _lists(_outputs(shadow, pixels), contents)
    )
    return pa.RecordBatch.from_pydict({name: columns[name] for name in SCORED.names})


def _pixels(contents: Any, row_shape: tuple[int, ...]) -> Any:
    """The images that are there, uint8, shape (images, *row_shape)."""
    return np.frombuffer(b"".join(contents.drop_null().to_pylist()), np.uint8).reshape(-1, *row_shape)


def _outputs(network: prediction.Forward, pixels: Any) -> Any:
    """Float32, shape (images, outputs)."""
    outputs = network.predict(pixels).astype(np.float32)
    prediction.check_finite(outputs)
    return outputs


def _lists(values: Any, contents: Any) -> pa.ListArray:
    """An array of lists, of shape (images, length), with null where there is no image."""
    # A null list has no values: its row begins and ends where the one before it ends.
    offsets = np.zeros(len(contents) + 1, np.int32)
    np.cumsum(np.asarray(contents.is_valid()) * values.shape[1], out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.ravel()), mask=contents.is_null())


def _lengths(batch: pa.RecordBatch, contents: Any) -> Any:
    """Bytes of the files whose images are there."""
    return batch.column(schema.LENGTH).filter(contents.is_valid()).fill_null(0).to_numpy(zero_copy_only=False)


def _said(outputs: Any, reading: Reading) -> Any:
    """What `confidence` is of each image; of a number how many deviations it is from the training images' mean."""
    if not len(outputs):
        return np.zeros(0)
    if reading.kind == Kind.REGRESSION:
        return (outputs[:, 0].astype(np.float64) - reading.mean) / reading.deviation
    if reading.kind == Kind.CLASSIFICATION:
        return outputs.max(axis=1)
    return np.where(outputs >= np.array(reading.thresholds), outputs, 1 - outputs).min(axis=1)


def _cells(values: Mapping[str, Any], names: Sequence[str]) -> Any:
    """For each image its places in the histograms of these names: int32, shape (images, histograms)."""
    return np.stack([drift.bins(name, values[name]) for name in names], axis=1).astype(np.int32)


def score_files(
    spark: SparkSession,
    listing: DataFrame,
    source: sources.Source,
    task: ScoreTask,
    tally: "progress.Tally",
    *,
    work: decoding.Work,
    is_whole: bool,
) -> DataFrame:
    """The files of a source as rows of `SCORED`, to be computed.

    Args:
        spark: The session.
        listing: Files to score, as `schema.LISTING`.
        source: Source of the files.
        task: How to score.
        tally: Tally of what the tasks have done.
        work: What they cost to read.
        is_whole: Whether the listing is all of the source.
    """
    if are_few(spark, source, task, work):
        return _scored_here(spark, listing, source, task, tally)
    if source.contents is not None:
        # With nothing left out the bytes stay where Spark reads them; else those that are new have to be found.
        rows = source.contents if is_whole else source.contents.join(listing, schema.PATH, "left_semi")
        return rows.mapInArrow(partial(score_listed, task, tally=tally), SCORED)
    direct = decoding.DirectReading.of(source.roots)
    if not direct.others:
        scores = partial(score_listed, task, tally=tally, stores=direct.stores)
        return decoding.spread(spark, listing, work).mapInArrow(scores, SCORED)
    # On other file systems Spark itself reads, and a row of decoded pixels comes back into Python once more.
    decoded = decoding.decode_all(spark, listing, source.roots, task.decode)
    return decoded.mapInArrow(partial(score_decoded, task.forward, tally=tally, shadow=task.shadow), SCORED)


def are_few(spark: SparkSession, source: sources.Source, task: ScoreTask, work: decoding.Work) -> bool:
    """Whether `score_files` gives rows that the driver has computed already: few files, which it can read.

    TensorFlow is left to processes that end with the job.
    """
    is_readable = source.contents is None and not decoding.DirectReading.of(source.roots).others
    is_light = task.is_without_tensorflow
    return session.is_local(spark) and is_readable and is_light and work.num_bytes <= FEW_BYTES


def _scored_here(
    spark: SparkSession, listing: DataFrame, source: sources.Source, task: ScoreTask, tally: "progress.Tally"
) -> DataFrame:
    """As `score_files`, by this process."""
    stores = decoding.DirectReading.of(source.roots).stores
    batches = listing.toArrow().sort_by(schema.PATH).to_batches()
    scored = pa.Table.from_batches(score_listed(task, iter(batches), tally, stores))
    return spark.createDataFrame(scored, SCORED)
