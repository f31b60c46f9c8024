"""Of each listed file its pixels or the reason why there are none: each listed path ends as exactly one row.

Local files (and network file systems that are mounted alike everywhere) are read by the executors' Python, and so are
the objects of S3, several at once. On any other file system, where a Python process has no way, Spark's `binaryFile`
source reads, and the driver what that leaves out; what neither can read is rejected.
"""

import contextlib
import os
import stat
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it
from pyspark.sql.types import StringType, StructField, StructType

from seedlings_spark import choices, files, fingerprint, images, schema
from seedlings_spark.cluster import connect, runtime, session
from seedlings_spark.corpus.listings import milliseconds
from seedlings_spark.corpus.remote import LOST, contents_of, is_of_this_machine, not_local
from seedlings_spark.corpus.systems import by_system, system_of
from seedlings_spark.corpus.tables import arrow_schema
from seedlings_spark.errors import ImageError

# Bytes of files that one task reads: seconds of decoding, beside which the tenth of one that a task costs is little.
_TASK_BYTES = 128 * 1024 * 1024
# What to open a file and to look at what is in it costs, in bytes; and the most that a file is taken to cost, since a
# longer one is not read.
_FILE_BYTES, _MOST_BYTES = 16 * 1024, choices.MAX_BYTES
# What a file counts for whose length the listing does not know.
_USUAL_BYTES = 128 * 1024
_MAX_TASKS = 4096
# Rows, and bytes of pixels, of one Arrow batch that leaves a task.
_ROWS = 64
_BATCH_BYTES = 8 * 1024 * 1024
# Bytes of one Arrow batch of file contents that enters a task, and rows: of small files.
_CONTENT_BATCH_BYTES = 32 * 1024 * 1024
_CONTENT_BATCH_ROWS = 1024
# What is read at once beyond the length that a file had when it was opened.
_BLOCK_BYTES = 64 * 1024
# Requests of one task to a store that are under way at once, and bytes that are read ahead of what decodes them; of
# files on this machine's file systems fewer, as they come sooner.
_AT_ONCE = 8
_AHEAD_BYTES, _LOCAL_AHEAD_BYTES = 64 * 1024 * 1024, 8 * 1024 * 1024
_TASK = "task"


@dataclass(frozen=True)
class DecodeTask:
    """How files become pixels: the same in training and in scoring.

    Args:
        size: (height, width) of the result in pixels.
        aspect: One of `choices.ASPECTS`.
        formats: Accepted formats.
        max_pixels: A picture with more is rejected before it is decoded.
        max_bytes: A longer file is rejected before it is read.
    """

    size: tuple[int, int]
    aspect: str
    formats: tuple[str, ...]
    max_pixels: int
    max_bytes: int

    @classmethod
    def of_corpus(cls, manifest: Mapping[str, Any]) -> "DecodeTask":
        """As the images of a corpus were made, by its manifest."""
        height, width = manifest["image_size"]
        return cls(
            (int(height), int(width)),
            str(manifest["aspect"]),
            tuple(manifest["formats"]),
            int(manifest["max_pixels"]),
            int(manifest["max_bytes"]),
        )


@dataclass(frozen=True)
class Decoded:
    """What became of one file: `pixels`, or `reason`, `stage` and `detail`."""

    content_hash: str | None = None
    length: int | None = None
    pixels: "images.Pixels | None" = None
    reason: str | None = None
    stage: str | None = None
    detail: str | None = None


@dataclass(frozen=True)
class DirectReading:
    """What of a listing executors read themselves.

    Args:
        stores: Buckets that they can reach.
        others: Roots that they cannot read, which are neither of this machine nor in such a bucket.
    """

    stores: tuple[files.Store, ...]
    others: tuple[str, ...]

    @classmethod
    def of(cls, roots: str | Sequence[str]) -> "DirectReading":
        """Of these folders."""
        remote = not_local(roots)
        found = {system: files.store_of(folders[0]) for system, folders in by_system(remote).items()}
        stores = tuple(store for store in found.values() if store is not None)
        return cls(stores, tuple(root for root in remote if found[system_of(root)] is None))

    def has(self, path: str) -> Column:
        """Whether a column of full URIs has one that executors read."""
        is_direct = is_of_this_machine(path)
        for store in self.stores:
            is_direct |= F.startswith(F.col(path), F.lit(f"{store.root}/"))
        return is_direct


@contextlib.contextmanager
def batches(spark: SparkSession) -> Iterator[None]:
    """Let the Arrow batches of listed files, with their contents or their pixels, stay small in what is run inside."""
    name = "spark.sql.execution.arrow.maxBytesPerBatch"
    before = spark.conf.get(name, None)
    spark.conf.set(name, str(_CONTENT_BATCH_BYTES))
    try:
        with session.arrow_batches(spark, session.ARROW_BATCH_BYTES // _CONTENT_BATCH_ROWS):
            yield
    finally:
        if before is None:
            spark.conf.unset(name)
        else:
            spark.conf.set(name, before)


@dataclass(frozen=True)
class Work:
    """What a listing costs to read, in bytes, and its number of files."""

    num_bytes: int
    num_files: int


def cost() -> Column:
    """Of a row of `schema.LISTING` what reading the file costs, in bytes."""
    length = F.col(schema.LENGTH)
    known = F.when(length < 0, _USUAL_BYTES).otherwise(F.least(length, F.lit(_MOST_BYTES)))
    return known + F.lit(_FILE_BYTES)


def spread(spark: SparkSession, listing: DataFrame, work: Work | None = None) -> DataFrame:
    """The listing in tasks that each have about as many bytes to read, however these are dealt to files.

    Neighbours stay together.

    Args:
        spark: The session.
        listing: A table of `schema.LISTING`.
        work: What it costs, where that is known.
    """
    work = _work(listing) if work is None else work
    slots = session.num_slots(spark)
    # As many for each slot, or most slots would wait for the last ones; one of 13 equal tasks runs alone on two.
    rounds = max(2, -(-work.num_bytes // (_TASK_BYTES * slots)))
    tasks = max(1, min(_MAX_TASKS, work.num_files, rounds * slots))
    if tasks == 1:
        return listing.coalesce(1)
    # By Spark and not by Python, whose start would take longer.
    before = (
        F.sum(cost()).over(Window.orderBy(schema.PATH).rowsBetween(Window.unboundedPreceding, 0)) - cost()
    )
    share = F.floor(before * tasks / max(1, work.num_bytes))
    numbered = listing.withColumn(_TASK, F.least(share, F.lit(tasks - 1)).cast("int"))
    return numbered.repartition(tasks, session.partition_key(F.col(_TASK), tasks)).drop(_TASK)


def _work(listing: DataFrame) -> Work:
    (total, number) = listing.agg(F.sum(cost()), F.count("*")).collect()[0]
    return Work(int(total or 0), int(number))


def decode_all(
    spark: SparkSession, listing: DataFrame, roots: str | Sequence[str], task: DecodeTask
) -> DataFrame:
    """Read and decode every listed file.

    Outside of the local file system the files that Spark's `binaryFile` source leaves out for their names are
    read here and now by the driver, up to 256 MiB of them; further ones are rejected as `unreadable`. A file that
    Spark may not open for lack of permission there fails the job.

    Args:
        spark: The session.
        listing: A table of `schema.LISTING`.
        roots: The folder that was listed, or all of them.
        task: How to decode.

    Returns:
        A table of `schema.DECODED`, with one row for each of the listing. Run it within `batches`.
    """
    direct = DirectReading.of(roots)
    decode = partial(decode_listed, task, stores=direct.stores)
    if not direct.others:
        return spread(spark, listing).mapInArrow(decode, schema.DECODED)
    # What the listing already knows to be a reject needs no bytes.
    is_readable = ~direct.has(schema.PATH) & _is_worth_reading(task)
    rest = spread(spark, listing.where(~is_readable)).mapInArrow(decode, schema.DECODED)
    readable = listing.where(is_readable)
    contents = contents_of(spark, readable, direct.others, task.max_bytes)
    unlabelled = contents.withColumns(
        {
            schema.MODIFIED: F.lit(-1).cast("long"),
            **{name: F.lit(None).cast("string") for name in (schema.SPECIES, schema.DETAIL)},
        }
    )
    decoded = unlabelled.mapInArrow(decode, schema.DECODED).drop(schema.SPECIES)
    is_lost = F.col(schema.CONTENT_HASH).isNull() & F.col(schema.REASON).isNull()
    listed_length = F.col("listed_length")
    is_changed = (
        F.col(schema.LENGTH).isNotNull() & (listed_length > 0) & (F.col(schema.LENGTH) != listed_length)
    )
    changed = F.format_string(
        "%,d bytes when it was listed, %,d when it was read", listed_length, F.col(schema.LENGTH)
    )
    kept = [schema.CONTENT_HASH, schema.IMAGE]
    # Pixels are joined to the labels, not the files' bytes: they are smaller.
    found = (
        readable.select(schema.PATH, schema.SPECIES, F.col(schema.LENGTH).alias("listed_length"))
        .join(decoded, schema.PATH, "left")
        .withColumns(
            {
                schema.DETAIL: F.when(is_changed, changed)
                .when(is_lost, F.lit(LOST))
                .otherwise(F.col(schema.DETAIL)),
                schema.STAGE: F.when(is_lost | is_changed, F.lit("read")).otherwise(F.col(schema.STAGE)),
                schema.REASON: F.when(is_changed, F.lit("changed"))
                .when(is_lost, F.lit("unreadable"))
                .otherwise(F.col(schema.REASON)),
                **{name: F.when(is_changed, None).otherwise(F.col(name)) for name in kept},
            }
        )
    )
    return found.select(*schema.DECODED.names).union(rest.select(*schema.DECODED.names))


def decode_contents(spark: SparkSession, contents: DataFrame, task: DecodeTask) -> DataFrame:
    """Decode files whose bytes a table holds.

    Args:
        spark: The session.
        contents: A table of `schema.LISTING` with the further column `content`.
        task: How to decode.

    Returns:
        A table of `schema.DECODED`, with one row for each of the listing. Run it within `batches`.
    """
    slots = session.num_slots(spark)
    # On Spark Connect nobody says how many there are.
    if connect.is_connect(spark) or contents.rdd.getNumPartitions() < slots:
        contents = contents.repartition(2 * slots)
    return contents.mapInArrow(partial(decode_listed, task), schema.DECODED)


def hash_all(
    spark: SparkSession, listing: DataFrame, roots: str | Sequence[str], task: DecodeTask
) -> DataFrame:
    """The listing with each file's content hash (null where it cannot be read), without decoding."""
    layout = StructType([*schema.LISTING.fields, StructField(schema.CONTENT_HASH, StringType(), True)])
    direct = DirectReading.of(roots)
    hash_ = partial(_hash_listed, task, direct.stores)
    if not direct.others:
        return spread(spark, listing).mapInArrow(hash_, layout)
    is_readable = ~direct.has(schema.PATH) & _is_worth_reading(task)
    rest = spread(spark, listing.where(~is_readable)).mapInArrow(hash_, layout)
    readable = listing.where(is_readable)
    contents = contents_of(spark, readable, direct.others, task.max_bytes)
    hashes = contents.select(schema.PATH, F.sha2(schema.CONTENT, 256).alias(schema.CONTENT_HASH))
    return readable.join(hashes, schema.PATH, "left").select(*layout.names).union(rest.select(*layout.names))


def decode_listed(
    task: DecodeTask, batches: Iterator[pa.RecordBatch], stores: Sequence[files.Store] = ()
) -> Iterator[pa.RecordBatch]:
    """The function of a Spark task: listed files, with or without their content, to rows of `schema.DECODED`."""
    runtime.settle()
    height, width = task.size
    num_rows = max(1, min(_ROWS, _BATCH_BYTES // (height * width * 3)))
    for batch in batches:
        contents = _contents(task, stores, batch)
        for start in range(0, batch.num_rows, num_rows):
            rows = batch.slice(start, num_rows).to_pylist()
            decoded = [_decode(task, content) for content in islice(contents, len(rows))]
            yield pa.RecordBatch.from_pydict(
                {
                    schema.PATH: [row[schema.PATH] for row in rows],
                    schema.SPECIES: [row[schema.SPECIES] for row in rows],
                    schema.CONTENT_HASH: [one.content_hash for one in decoded],
                    schema.LENGTH: [one.length for one in decoded],
                    schema.IMAGE: [None if one.pixels is None else one.pixels.tobytes() for one in decoded],
                    schema.REASON: [one.reason for one in decoded],
                    schema.STAGE: [one.stage for one in decoded],
                    schema.DETAIL: [one.detail for one in decoded],
                },
                schema=arrow_schema(schema.DECODED),
            )


def read_and_decode(task: DecodeTask, row: Mapping[str, Any], content: bytes | None = None) -> Decoded:
    """One listed file to its pixels, or to the reason why there are none; no file raises an exception.

    Args:
        task: How to decode.
        row: A row of `schema.LISTING`.
        content: The file's bytes, where Spark has read them.
    """
    return _decode(task, _read(task, row) if content is None else _given(task, content))


def _decode(task: DecodeTask, found: bytes | Decoded) -> Decoded:
    if isinstance(found, Decoded):
        return found
    content_hash = fingerprint.content_hash(found)
    try:
        pixels = images.decode(
            found, task.size, aspect=task.aspect, formats=task.formats, max_pixels=task.max_pixels
        )
    except ImageError as error:
        return Decoded(content_hash, len(found), None, error.reason, "decode", error.detail[:500])
    return Decoded(content_hash, len(found), pixels)


def _hash_listed(
    task: DecodeTask, stores: Sequence[files.Store], batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        hashes = [
            None if isinstance(content, Decoded) else fingerprint.content_hash(content)
            for content in _contents(task, stores, batch)
        ]
        yield batch.append_column(schema.CONTENT_HASH, pa.array(hashes, pa.string()))


def _contents(
    task: DecodeTask, stores: Sequence[files.Store], batch: pa.RecordBatch
) -> Iterator[bytes | Decoded]:
    """The bytes of each file of a batch, or why there are none; they are read ahead of whoever takes them."""
    if schema.CONTENT in batch.schema.names:
        for row in batch.to_pylist():
            content = row[schema.CONTENT]
            yield _read(task, row) if content is None else _given(task, content)
        return
    rows = batch.to_pylist()
    if not stores:
        yield from _read_ahead(task, rows)
        return
    store_of = {store.root: store for store in stores}
    waiting: deque[tuple[int, Future[bytes | Decoded]]] = deque()
    num_bytes = 0
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for row in rows:
            cost = _expected_bytes(task, row)
            while waiting and (len(waiting) >= 2 * _AT_ONCE or num_bytes + cost > _AHEAD_BYTES):
                done, answer = waiting.popleft()
                num_bytes -= done
                yield answer.result()
            num_bytes += cost
            waiting.append((cost, pool.submit(_read, task, row, store_of.get(system_of(row[schema.PATH])))))
        for _, answer in waiting:
            yield answer.result()


def _read_ahead(task: DecodeTask, rows: Sequence[Mapping[str, Any]]) -> Iterator[bytes | Decoded]:
    """The bytes of files of this machine's file systems, the next some while those before are decoded and scored."""
    with ThreadPoolExecutor(1) as pool:
        ahead: Future[list[bytes | Decoded]] | None = None
        for some in _neighbours(task, rows):
            following = pool.submit(_read_each, task, some)
            if ahead is not None:
                yield from ahead.result()
            ahead = following
        if ahead is not None:
            yield from ahead.result()


def _neighbours(task: DecodeTask, rows: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Rows in lists of a few, of few bytes; a long file is alone."""
    some: list[Mapping[str, Any]] = []
    num_bytes = 0
    for row in rows:
        cost = _expected_bytes(task, row)
        if some and (len(some) == _ROWS or num_bytes + cost > _LOCAL_AHEAD_BYTES):
            yield some
            some, num_bytes = [], 0
        some.append(row)
        num_bytes += cost
    if some:
        yield some


def _expected_bytes(task: DecodeTask, row: Mapping[str, Any]) -> int:
    """Bytes that reading a file takes at most, as far as the listing knows."""
    length = int(row[schema.LENGTH])
    return min(length, task.max_bytes) if length >= 0 else task.max_bytes


def _read_each(task: DecodeTask, rows: Sequence[Mapping[str, Any]]) -> list[bytes | Decoded]:
    return [_read(task, row) for row in rows]


def _given(task: DecodeTask, content: bytes) -> bytes | Decoded:
    if len(content) > task.max_bytes:
        detail = f"{len(content):,} bytes, at most {task.max_bytes:,}"
        return Decoded(reason="too_large", stage="read", detail=detail)
    return content or Decoded(reason="empty", stage="read")


def _read(task: DecodeTask, row: Mapping[str, Any], store: "files.Store | None" = None) -> bytes | Decoded:
    """The bytes of a listed file, on this machine or in a store, or why there are none."""
    length = int(row[schema.LENGTH])
    if row[schema.DETAIL] is not None:
        return Decoded(reason="unreadable", stage="list", detail=row[schema.DETAIL])
    if length == 0:
        return Decoded(reason="empty", stage="list")
    if length > task.max_bytes:
        detail = f"{length:,} bytes, at most {task.max_bytes:,}"
        return Decoded(reason="too_large", stage="list", detail=detail)
    modified = int(row[schema.MODIFIED])
    try:
        if store is not None:
            content = store.read(row[schema.PATH], task.max_bytes + 1)
            size, is_as_listed = len(content), len(content) == length
        else:
            content, status = _read_local(row[schema.PATH], task.max_bytes)
            size = status.st_size
            is_as_listed = modified < 0 or (size, milliseconds(status)) == (length, modified)
    except (OSError, ValueError) as error:
        detail = getattr(error, "strerror", None) or str(error)[:500]
        return Decoded(reason="unreadable", stage="read", detail=detail)
    if length > 0 and not is_as_listed:
        detail = f"{length:,} bytes when it was listed, {size:,} when it was read"
        return Decoded(reason="changed", stage="read", detail=detail)
    if len(content) > task.max_bytes:
        return Decoded(reason="too_large", stage="read", detail=f"more than {task.max_bytes:,} bytes")
    return content or Decoded(reason="empty", stage="read")


def _read_local(path: str, max_bytes: int) -> tuple[bytes, os.stat_result]:
    """The bytes of a file, or the first max_bytes + 1 of them; and its status after they were read."""
    # Not blocking: to open a pipe would wait for somebody who writes to it.
    descriptor = os.open(files.local_path(path), os.O_RDONLY | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file")
        # A file object would take memory for `max_bytes` first.
        parts, left, step = [], max_bytes + 1, status.st_size + 1
        while left and (part := os.read(descriptor, min(left, step))):
            parts.append(part)
            left, step = left - len(part), _BLOCK_BYTES
        return parts[0] if len(parts) == 1 else b"".join(parts), os.fstat(descriptor)
    finally:
        os.close(descriptor)


def _is_worth_reading(task: DecodeTask) -> Column:
    length = F.col(schema.LENGTH)
    return F.col(schema.DETAIL).isNull() & (length != 0) & (length <= task.max_bytes)
