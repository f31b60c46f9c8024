"""What arrives, scored as it arrives: each batch of a stream is a run, by the version that is current by then.

Spark repeats a batch of which it has not written down the end, with the same rows. The name of its run is made of the
query's id and the batch's number: a run that is finished is not made again, and of one that is not nothing is seen. So
each row is in one run, and all rows of a run are by one version. The query's id is that of its checkpoint; another
checkpoint is another query, to which nothing is known.
"""

import dataclasses
import json
import logging
import math
import time

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.streaming.readwriter import DataStreamWriter

from seedlings_spark import config, display, files, schema
from seedlings_spark.cluster import connect
from seedlings_spark.config import ScoreOptions
from seedlings_spark.corpus import tables
from seedlings_spark.errors import InputError, OptionError, OutputInUseError, SeedlingsError, StoreError
from seedlings_spark.models.store import CURRENT, ModelStore, ModelVersion
from seedlings_spark.scoring import sources, tasks
from seedlings_spark.scoring.run import score

_log = logging.getLogger(__name__)
# How long a batch waits for whoever else is writing to the output, as `clean` and `forget` do.
_WAIT_SECONDS, _LOOK_SECONDS = 600.0, 2.0
# What Spark's source `binaryFile` has of each file.
_OF_FILES = "path string, modificationTime timestamp, length bigint, content binary"
_ANY_AGE = "36500d"
# Of a single run, of the job's exit code, or of a file.
_NOT_OF_STREAMS = ("run_id", "shadow", "max_drift", "table_format")
# Of a table of one's own.
_OF_ROWS = ("path_column", "content_column")


def stream(
    spark: SparkSession, options: ScoreOptions, checkpoint: str, rows: DataFrame | None = None
) -> DataStreamWriter:
    """Score what arrives: each batch of a streaming query becomes a run of the output.

    With the model version `current` each batch is scored by the version that is promoted when it begins. One that is
    not as it was published, not signed as it has to be, or says something else of a picture than species, or than a
    number, as the ones before is said to be so once, and the last one goes on.

    Killed and started again with the same checkpoint, nothing is lost, and nothing is there twice.

    Args:
        spark: The session.
        options: Those of the job `score`; `images` is the folder that files come into, or a glob.
        checkpoint: Folder of Spark's checkpoint, one for each query.
        rows: A streaming table in place of the files: with a column `path` (or `path_column`), each path once in a
            batch, relative ones below `images`; with `content_column` also the files' bytes. Further columns are kept.

    Returns:
        The writer of the query, to give it a trigger and start it.

    Raises:
        ClusterError: A session of Spark Connect.
        InputError: There is no such folder, or the table is no stream, or lacks a column.
        OptionError: An option that a stream does not have.
        StoreError: There is no such version, or it is damaged.
    """
    connect.refuse(spark, "scoring.stream", "it scores each batch")
    for name in (*_NOT_OF_STREAMS, *(_OF_ROWS if rows is None else ())):
        if getattr(options, name):
            raise OptionError(
                f"{name}={getattr(options, name)!r} for a stream{' of files' * (name in _OF_ROWS)}",
                "none: it is of a table of rows" if name in _OF_ROWS else "none: it is of a single run",
                "Leave it out",
            )
    options, checkpoint = config.qualified(options), files.qualify(checkpoint)
    sources.check_output(options.images, options.output)
    if rows is None:
        sources.check_output(options.images, checkpoint, "checkpoint")
        rows = _files(spark, options.images)
    if not rows.isStreaming:
        raise InputError("a table that is no stream", "one of spark.readStream", "Score it by score")
    sources.check_columns(rows, "the stream", options.path_column or schema.PATH, options.content_column)
    batches = _Batches(options, checkpoint)
    return rows.writeStream.option("checkpointLocation", checkpoint).foreachBatch(batches.score)


def _files(spark: SparkSession, images: str) -> DataFrame:
    """The paths of the files that come into a folder, or to where a glob matches, as a stream."""
    is_folder = files.is_directory(images)
    if not is_folder and (files.exists(images) or not sources.GLOB.search(images)):
        raise InputError(f"no folder {images}", "one that files come into, or a glob", "Check images")
    place = tables.literal(images) if is_folder else images
    # Else Spark (4.1) reads a batch twice in which a file's name has a character of a glob.
    found = spark.readStream.format("binaryFile").schema(_OF_FILES).option("recursiveFileLookup", True)
    # By itself it passes over files that are a week older than the newest one, as copies of older pictures are.
    return found.option("maxFileAge", _ANY_AGE).load(place).select(schema.PATH)


class _Batches:
    """The batches of a query, one after the other.

    Args:
        options: What to score them with, and how.
        checkpoint: Full URI of the query's checkpoint.
    """

    def __init__(self, options: ScoreOptions, checkpoint: str) -> None:
        self._options, self._checkpoint = options, checkpoint
        self._store = ModelStore(options.store, options.name, options.require_signature)
        self._version = self._store.verify(options.model_version, tasks.CONTENTS)
        self._said: set[str] = set()

    def score(self, rows: DataFrame, number: int) -> None:
        """Score a batch, unless that has been done before.

        Args:
            rows: Of the batch.
            number: Of the batch, in its query.

        Raises:
            OutputInUseError: Another one is writing to the output, and has been for ten minutes.
        """
        if rows.select(schema.column(self._options.path_column or schema.PATH)).isEmpty():
            return
        query = json.loads(files.read_text(files.join(self._checkpoint, "metadata")))["id"]
        options = dataclasses.replace(self._options, run_id=f"stream-{query}-{number}")
        version = self._take_up(rows)
        deadline = math.inf
        while True:
            try:
                score(rows.sparkSession, version, options, rows=rows)
                return
            except OutputInUseError as error:
                now = time.monotonic()
                if now > deadline:
                    raise
                if deadline == math.inf:
                    _log.warning("batch %d waits: %s", number, display.one_line(error))
                    deadline = now + _WAIT_SECONDS
                time.sleep(_LOOK_SECONDS)

    def _take_up(self, rows: DataFrame) -> ModelVersion:
        """The version to score with: the current one, or the last one where that cannot be used."""
        if self._options.model_version != CURRENT:
            return self._version
        try:
            name = self._store.current() or CURRENT
            if name != self._version.version:
                found = self._store.verify(name, tasks.CONTENTS)
                how = config.chosen(self._options, "batch_size", "engine", "precision")
                tasks.forward_task(rows.sparkSession, found, **how, views=self._options.tta)
                if found.kind != self._version.kind:
                    raise StoreError(
                        f"{found.name} {found.version}, which {found.kind.of_versions}",
                        f"one that {self._version.kind.of_versions}, as the runs before",
                        "Promote another one, or start a stream into another output.",
                    )
                _log.info(
                    "%s %s is promoted and takes the place of %s",
                    found.name,
                    found.version,
                    self._version.version,
                )
                self._version = found
        except SeedlingsError as error:
            text = f"{display.one_line(error)} Until then {self._version.version} goes on"
            if text not in self._said:
                _log.warning("%s", text)
            self._said.add(text)
        return self._version
