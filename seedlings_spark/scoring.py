"""A model version over files: every listed file ends as a prediction or as a rejection.

Reading, decoding and the forward pass happen in one task, so that a picture crosses no process boundary. A run
writes into a folder of its own and appears by one rename.
"""

import datetime
import decimal
import json
import logging
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it
from pyspark.sql.types import ArrayType, FloatType, StringType, StructField, StructType

from seedlings_spark import files, fingerprint, prediction, reading, runtime, schema, session
from seedlings_spark.errors import InputError, NetworkError, StoreError
from seedlings_spark.store import ModelVersion

_log = logging.getLogger(__name__)
FORMAT = 1

# What a task leaves of one file, before predictions and rejects part.
_SCORED = StructType(
    [
        StructField(schema.PATH, StringType(), False),
        StructField(schema.CONTENT_HASH, StringType(), True),
        StructField(schema.PROBABILITIES, ArrayType(FloatType(), False), True),
        StructField(schema.REASON, StringType(), True),
        StructField(schema.STAGE, StringType(), True),
        StructField(schema.DETAIL, StringType(), True),
    ]
)


@dataclass(frozen=True)
class ScoreTask:
    """What a scoring task is told.

    Args:
        decode: How files become pixels.
        forward: The network.
    """

    decode: reading.DecodeTask
    forward: prediction.ForwardTask


@dataclass(frozen=True)
class ScoreRun:
    """A finished run.

    Args:
        path: Its folder.
        manifest: Its numbers.
    """

    path: str
    manifest: Mapping[str, Any]


def score(
    spark: SparkSession,
    images: str,
    version: ModelVersion,
    output: str,
    *,
    formats: tuple[str, ...],
    max_pixels: int,
    max_bytes: int,
    batch_size: int,
) -> ScoreRun:
    """Score every file below a folder.

    Args:
        spark: The session.
        images: Full URI of a folder, of any layout.
        version: Of the model.
        output: Full URI of the folder that holds the runs.
        formats: Accepted formats.
        max_pixels: A picture with more is rejected.
        max_bytes: A longer file is rejected.
        batch_size: Images of one forward pass.

    Returns:
        The run, published.

    Raises:
        InputError: Nothing to score, or the runs would lie among the images.
        StoreError: The version is damaged.
    """
    _check_output(images, output)
    started = datetime.datetime.now(datetime.UTC)
    run = f"{started:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"
    task = ScoreTask(
        reading.DecodeTask(
            size=version.image_size,
            aspect=str(version.manifest.get("aspect", "crop")),
            formats=formats,
            max_pixels=max_pixels,
            max_bytes=max_bytes,
        ),
        forward_task(spark, version, batch_size),
    )
    listing = reading.listing_table(spark, reading.walk(images, by_folder=False)).persist()
    building = files.join(output, "runs", f".building-{run}")
    target = files.join(output, "runs", run)
    try:
        listed = _count(listing)
        if listed.rows == 0:
            raise InputError(f"{images} is empty", "at least one file to score", "Check --images")
        _log.info("listed %s files in %s", f"{listed.rows:,}", images)
        _write(spark, listing, images, task, version, building)
        manifest = _manifest(spark, building, listed, version, run, images, started)
        files.write_text(files.join(building, "manifest.json"), _as_json(manifest))
        files.rename(building, target)
    finally:
        files.delete(building)
        listing.unpersist()
    files.write_text(files.join(output, "manifest.json"), _as_json(manifest))
    _log.info(
        "scored %s files and rejected %s in %.1f s, with %s %s: %s",
        f"{manifest['scored']:,}",
        f"{manifest['rejected']:,}",
        (datetime.datetime.now(datetime.UTC) - started).total_seconds(),
        version.name,
        version.version,
        target,
    )
    return ScoreRun(target, manifest)


def summary(run: ScoreRun) -> list[tuple[str, object]]:
    """What `score` prints at its end."""
    manifest = run.manifest
    reasons = ", ".join(f"{count} {reason}" for reason, count in manifest["rejected_by_reason"].items())
    most = sorted(manifest["images_of_species"].items(), key=lambda item: -item[1])
    return [
        ("model", f"{manifest['model_name']} {manifest['model_version']}"),
        ("run", run.path),
        ("listed", f"{manifest['listed']:,}"),
        ("scored", f"{manifest['scored']:,}"),
        ("rejected", f"{manifest['rejected']:,}" + (f" ({reasons})" if reasons else "")),
        (
            "species",
            ", ".join(f"{count:,} {name}" for name, count in most[:5]) + (" ..." if len(most) > 5 else ""),
        ),
    ]


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


def score_listed(task: ScoreTask, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The function of a Spark task: listed files to rows of predictions and rejects."""
    return score_decoded(task, reading.decode_listed(task.decode, batches))


def score_decoded(task: ScoreTask, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The function of a Spark task: decoded files (`schema.DECODED`) to rows of predictions and rejects."""
    network = prediction.forward(task.forward)
    for batch in _regrouped(batches, task.forward.batch_size):
        yield _predict(network, batch)


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
    if not np.isfinite(outputs).all():
        raise NetworkError(
            "probabilities that are not finite",
            "numbers from 0 to 1",
            "The network is damaged or badly trained: choose another --model-version",
        )
    # A null list has no values: its row begins and ends where the one before it ends.
    offsets = np.zeros(len(contents) + 1, np.int32)
    np.cumsum(np.asarray(contents.is_valid()) * outputs.shape[1], out=offsets[1:])
    probabilities = pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(outputs.ravel()), mask=contents.is_null()
    )
    columns = {name: batch.column(name) for name in _SCORED.names if name != schema.PROBABILITIES}
    columns[schema.PROBABILITIES] = probabilities
    return pa.RecordBatch.from_pydict({name: columns[name] for name in _SCORED.names})


def _check_output(images: str, output: str) -> None:
    if f"{output.rstrip('/')}/".startswith(f"{images.rstrip('/')}/"):
        raise InputError(
            f"the output {output} inside of the images in {images}",
            "a folder outside of them, or the next run would list this one's files",
            "Give another --output",
        )


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
    return _Count(int(row[0]), row[1] or decimal.Decimal(0))


def _write(
    spark: SparkSession,
    listing: DataFrame,
    images: str,
    task: ScoreTask,
    version: ModelVersion,
    building: str,
) -> None:
    all_rows = files.join(building, "all")
    with (
        session.python_environment(spark, runtime.worker_environment(task.forward.threads)),
        reading.batches(spark),
    ):
        _scored(spark, listing, images, task).write.parquet(all_rows)
    table = spark.read.schema(_SCORED).parquet(all_rows)
    classes = F.array(*[F.lit(name) for name in version.classes])
    best = F.array_max(schema.PROBABILITIES)
    place = F.array_position(F.col(schema.PROBABILITIES), best).cast("int")
    (
        table.where(F.col(schema.REASON).isNull())
        .withColumns(
            {
                schema.PREDICTED_SPECIES: F.element_at(classes, place),
                schema.CONFIDENCE: best,
                schema.MODEL_VERSION: F.lit(version.version),
            }
        )
        .select(*schema.PREDICTIONS.names)
        .write.parquet(files.join(building, "predictions"))
    )
    table.where(F.col(schema.REASON).isNotNull()).select(*schema.REJECTS.names).coalesce(1).write.parquet(
        files.join(building, "rejects")
    )
    files.delete(all_rows)


def _scored(spark: SparkSession, listing: DataFrame, images: str, task: ScoreTask) -> DataFrame:
    if files.is_local(images):
        return reading.spread(spark, listing).mapInArrow(partial(score_listed, task), _SCORED)
    # On other file systems Spark itself reads, and a row of decoded pixels comes back into Python once more.
    decoded = reading.decode_all(spark, listing, images, task.decode)
    return decoded.mapInArrow(partial(score_decoded, task), _SCORED)


def _manifest(
    spark: SparkSession,
    building: str,
    listed: _Count,
    version: ModelVersion,
    run: str,
    images: str,
    started: datetime.datetime,
) -> dict[str, Any]:
    """The numbers of what lies on disk now, checked against the listing."""
    predictions = spark.read.schema(schema.PREDICTIONS).parquet(files.join(building, "predictions"))
    rejects = spark.read.schema(schema.REJECTS).parquet(files.join(building, "rejects"))
    species = {row[0]: int(row[1]) for row in predictions.groupBy(schema.PREDICTED_SPECIES).count().collect()}
    reasons = {row[0]: int(row[1]) for row in rejects.groupBy(schema.REASON).count().collect()}
    num_scored, num_rejected = sum(species.values()), sum(reasons.values())
    if _count(predictions) + _count(rejects) != listed:
        raise InputError(
            f"{num_scored:,} predictions and {num_rejected:,} rejects",
            f"the {listed.rows:,} files that were listed, each exactly once",
            "This is a fault of the program or of the file system; nothing was published. Run score again",
        )
    finished = datetime.datetime.now(datetime.UTC)
    return {
        "format": FORMAT,
        "run": run,
        "images": images,
        "model_name": version.name,
        "model_version": version.version,
        "classes": list(version.classes),
        "started": started.isoformat(timespec="seconds"),
        "finished": finished.isoformat(timespec="seconds"),
        "listed": listed.rows,
        "scored": num_scored,
        "rejected": num_rejected,
        "already_scored": 0,
        "already_rejected": 0,
        "rejected_by_reason": dict(sorted(reasons.items())),
        "images_of_species": dict(sorted(species.items())),
    }


def _as_json(manifest: Mapping[str, Any]) -> str:
    return json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
