"""A listing of files, and of each file its pixels or the reason why there are none.

The listing is ours: Spark's file sources silently drop zero-byte files, names that begin with `_` or `.` and
dangling links. Each listed path ends as exactly one row. Local files (and network file systems that are mounted
alike everywhere) are read by the executors' Python; on any other file system Spark's `binaryFile` source
reads, since a Python process has no way there, and what it leaves out is rejected by name.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it
from pyspark.sql.types import StringType, StructField, StructType

from seedlings_spark import files, fingerprint, images, schema, session
from seedlings_spark.errors import ImageError, InputError

# Listed paths that travel to the JVM at once.
_LISTING_CHUNK = 100_000
# Bytes of files that one task reads: some seconds of decoding.
_TASK_BYTES = 16 * 1024 * 1024
_MAX_TASKS = 4096
# Rows of one Arrow batch that leaves a task.
_ROWS = 64


@dataclass(frozen=True)
class DecodeTask:
    """How files become pixels: the same in training and in scoring.

    Args:
        size: (height, width) of the result in pixels.
        aspect: One of `images.ASPECTS`.
        formats: Accepted formats.
        max_pixels: A picture with more is rejected before it is decoded.
        max_bytes: A longer file is rejected before it is read.
    """

    size: tuple[int, int]
    aspect: str
    formats: tuple[str, ...]
    max_pixels: int
    max_bytes: int


@dataclass(frozen=True)
class Listed:
    """One file of a listing.

    Args:
        path: The full URI.
        length: In bytes; -1 where the listing does not know it.
        species: By its folder, or None.
        error: Why it cannot be read, or None.
    """

    path: str
    length: int
    species: str | None
    error: str | None


@dataclass(frozen=True)
class Decoded:
    """What became of one file: `pixels`, or `reason`, `stage` and `detail`."""

    content_hash: str | None = None
    pixels: "images.Pixels | None" = None
    reason: str | None = None
    stage: str | None = None
    detail: str | None = None


def walk(root: str, *, by_folder: bool) -> Iterator[Listed]:
    """Every file below a folder, at any depth, in the order of their names.

    Args:
        root: A full URI (`files.qualify`).
        by_folder: Whether the first folder below the root names a file's species.

    Raises:
        InputError: There is no such folder.
    """
    if not files.exists(root) or not files.is_directory(root):
        raise InputError(
            f"no folder {root}" if not files.exists(root) else f"{root}, which is a file",
            "a folder of images",
            "Check --images; a path without a scheme is looked up where Spark's fs.defaultFS says",
        )
    for status in files.walk(root):
        parts = status.path[len(root) :].strip("/").split("/")
        species = parts[0] if by_folder and len(parts) > 1 else None
        yield Listed(status.path, status.length, species, status.error)


def listing_table(spark: SparkSession, listed: Iterable[Listed]) -> DataFrame:
    """A listing as a table of `schema.LISTING`."""
    entries = iter(listed)
    tables = []
    while chunk := list(islice(entries, _LISTING_CHUNK)):
        tables.append(
            pa.table(
                {
                    schema.PATH: pa.array([entry.path for entry in chunk], pa.string()),
                    schema.LENGTH: pa.array([entry.length for entry in chunk], pa.int64()),
                    schema.SPECIES: pa.array([entry.species for entry in chunk], pa.string()),
                    schema.DETAIL: pa.array([entry.error for entry in chunk], pa.string()),
                }
            )
        )
    if not tables:
        return spark.createDataFrame([], schema.LISTING)
    return spark.createDataFrame(pa.concat_tables(tables), schema.LISTING)


def spread(spark: SparkSession, listing: DataFrame) -> DataFrame:
    """The listing in tasks that each have about as many bytes to read."""
    total = listing.agg(F.sum(F.greatest(F.col(schema.LENGTH), F.lit(0))), F.count("*")).first()
    assert total is not None
    num_bytes, num_files = int(total[0] or 0), int(total[1])
    least = 2 * session.num_slots(spark)
    tasks = max(1, min(_MAX_TASKS, num_files, max(least, num_bytes // _TASK_BYTES)))
    return listing.repartition(tasks, F.xxhash64(schema.PATH))


def decode_all(spark: SparkSession, listing: DataFrame, root: str, task: DecodeTask) -> DataFrame:
    """Read and decode every listed file.

    Args:
        spark: The session.
        listing: A table of `schema.LISTING`.
        root: The folder that was listed, or any of the paths: it tells the file system.
        task: How to decode.

    Returns:
        A table of `schema.DECODED`, with one row a listed path.
    """
    if files.is_local(root):
        return spread(spark, listing).mapInArrow(partial(decode_listed, task), schema.DECODED)
    contents = (
        spark.read.format("binaryFile").option("recursiveFileLookup", "true").load(root).select("path", "content")
    )
    readable = listing.where(F.col(schema.DETAIL).isNull() & (F.col(schema.LENGTH) <= task.max_bytes))
    found = readable.join(contents, schema.PATH).select(*readable.columns, schema.CONTENT)
    decoded = found.mapInArrow(partial(decode_listed, task), schema.DECODED)
    # What binaryFile has left out still gets its row: its task finds no content.
    rest = listing.join(contents.select(schema.PATH), schema.PATH, "left_anti").union(
        listing.where(F.col(schema.LENGTH) > task.max_bytes)
    )
    without = rest.dropDuplicates([schema.PATH]).withColumn(schema.CONTENT, F.lit(None).cast("binary"))
    return decoded.union(without.mapInArrow(partial(decode_listed, task), schema.DECODED))


def hash_all(spark: SparkSession, listing: DataFrame, root: str, task: DecodeTask) -> DataFrame:
    """The listing with each file's content hash (null where it cannot be read), without decoding."""
    if files.is_local(root):
        layout = StructType([*schema.LISTING.fields, StructField(schema.CONTENT_HASH, StringType(), True)])
        return spread(spark, listing).mapInArrow(partial(_hash_listed, task), layout)
    contents = spark.read.format("binaryFile").option("recursiveFileLookup", "true").load(root)
    hashes = contents.select(schema.PATH, F.sha2(schema.CONTENT, 256).alias(schema.CONTENT_HASH))
    return listing.join(hashes, schema.PATH, "left").select(*schema.LISTING.names, schema.CONTENT_HASH)


def _hash_listed(task: DecodeTask, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        hashes = []
        for row in batch.to_pylist():
            try:
                content = None if row[schema.DETAIL] else _read(row[schema.PATH], task.max_bytes)
            except (OSError, ValueError):
                content = None
            hashes.append(None if content is None else fingerprint.content_hash(content))
        yield batch.append_column(schema.CONTENT_HASH, pa.array(hashes, pa.string()))


def decode_listed(task: DecodeTask, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The function of a Spark task: listed files, with or without their content, to rows of `schema.DECODED`."""
    for batch in batches:
        has_content = schema.CONTENT in batch.schema.names
        for start in range(0, batch.num_rows, _ROWS):
            rows = batch.slice(start, _ROWS).to_pylist()
            decoded = [
                read_and_decode(task, row, row[schema.CONTENT] if has_content else None, has_content) for row in rows
            ]
            yield pa.RecordBatch.from_pydict(
                {
                    schema.PATH: [row[schema.PATH] for row in rows],
                    schema.SPECIES: [row[schema.SPECIES] for row in rows],
                    schema.CONTENT_HASH: [one.content_hash for one in decoded],
                    schema.IMAGE: [None if one.pixels is None else one.pixels.tobytes() for one in decoded],
                    schema.REASON: [one.reason for one in decoded],
                    schema.STAGE: [one.stage for one in decoded],
                    schema.DETAIL: [one.detail for one in decoded],
                },
                schema=arrow_schema(schema.DECODED),
            )


def read_and_decode(
    task: DecodeTask, row: dict[str, object], content: bytes | None = None, content_was_read: bool = False
) -> Decoded:
    """One listed file to its pixels, or to the reason why there are none; never an exception.

    Args:
        task: How to decode.
        row: Of `schema.LISTING`.
        content: The file's bytes, where Spark has read them.
        content_was_read: Whether Spark should have; a missing content is then a reject.
    """
    path, length = str(row[schema.PATH]), int(str(row[schema.LENGTH]))
    if row[schema.DETAIL] is not None:
        return Decoded(reason="unreadable", stage="list", detail=str(row[schema.DETAIL]))
    if length == 0:
        return Decoded(reason="empty", stage="list")
    if length > task.max_bytes:
        return Decoded(reason="too_large", stage="list", detail=f"{length:,} bytes, at most {task.max_bytes:,}")
    if content is None:
        if content_was_read:
            return Decoded(reason="unreadable", stage="read", detail="Spark's binaryFile source left it out")
        try:
            content = _read(path, task.max_bytes)
        except (OSError, ValueError) as error:
            return Decoded(reason="unreadable", stage="read", detail=getattr(error, "strerror", None) or str(error))
        if content is None:
            return Decoded(reason="too_large", stage="read", detail=f"more than {task.max_bytes:,} bytes")
        if not content:
            return Decoded(reason="empty", stage="read")
    content_hash = fingerprint.content_hash(content)
    try:
        pixels = images.decode(
            content, task.size, aspect=task.aspect, formats=task.formats, max_pixels=task.max_pixels
        )
    except ImageError as error:
        return Decoded(content_hash, None, error.reason, "decode", error.detail[:500])
    return Decoded(content_hash, pixels)


def arrow_schema(table: StructType) -> pa.Schema:
    """The Arrow schema of a table's layout, for batches that a task yields."""
    from pyspark.sql.pandas.types import to_arrow_schema

    return to_arrow_schema(table)


def _read(path: str, max_bytes: int) -> bytes | None:
    """The bytes of a local file, or None if there are more than max_bytes."""
    with files.local_path(path).open("rb") as file:
        content = file.read(max_bytes + 1)
    return content if len(content) <= max_bytes else None
