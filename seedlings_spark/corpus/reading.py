"""A listing of files, and of each file its pixels or the reason why there are none.

The listing is ours: Spark's file sources silently drop zero-byte files, names that begin with `_` or `.` and
dangling links. Each listed path ends as exactly one row. Local files (and network file systems that are mounted
alike everywhere) are read by the executors' Python. On any other file system, where a Python process has no
way, Spark's `binaryFile` source reads, and the driver what that leaves out; what neither can read is
rejected.
"""

import codecs
import contextlib
import errno
import json
import logging
import os
import posixpath
import re
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from py4j.protocol import Py4JJavaError
from pyspark.errors import AnalysisException, IllegalArgumentException, SparkRuntimeException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import BinaryType, IntegerType, LongType, StringType, StructField, StructType

from seedlings_spark import files, fingerprint, images, schema
from seedlings_spark.cluster import runtime, session
from seedlings_spark.errors import ImageError, InputError, in_brief

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

# Listed paths that travel to the JVM at once.
_LISTING_CHUNK = 100_000
# Bytes of files that one task reads: some seconds of decoding.
_TASK_BYTES = 32 * 1024 * 1024
# What to open a file and to look at what is in it costs, in bytes; and the most that a file is taken to cost, since a
# longer one is not read.
_FILE_BYTES, _MOST_BYTES = 16 * 1024, 64 * 1024 * 1024
# What a file counts for whose length the listing does not know.
_USUAL_BYTES = 128 * 1024
_MAX_TASKS = 4096
# Rows, and bytes of pixels, of one Arrow batch that leaves a task.
_ROWS = 64
_BATCH_BYTES = 8 * 1024 * 1024
# Bytes of one Arrow batch of file contents that enters a task, and rows: of small files.
_CONTENT_BATCH_BYTES = 32 * 1024 * 1024
_CONTENT_BATCH_ROWS = 1024
# Bytes of files that `binaryFile` leaves out, and that the driver reads and holds in its memory instead.
_DRIVER_BYTES = 256 * 1024 * 1024
_FILE_SCHEME = "file:"
# What systems and programs put beside pictures.
_SYSTEM_FOLDER = re.compile(
    r"\..*|@eaDir|@tmp|@Recycle|@Recently-Snapshot|#recycle|#snapshot|__MACOSX|__pycache__|\$RECYCLE\.BIN|\$Extend"
    r"|Recycle[rd]|System Volume Information|found\.\d{3}|lost\+found|Network Trash Folder|Temporary Items|_temporary",
    re.IGNORECASE | re.DOTALL,
)
_SYSTEM_FILE = re.compile(r"(eh)?thumbs(_vista)?\.db|desktop\.ini|\.DS_Store|Icon\r", re.IGNORECASE)
# Of macOS' resource forks; of pictures that Android has in its bin or not written yet; of NFS, FUSE and Syncthing.
_SYSTEM_PREFIXES = ("._", ".trashed-", ".pending-", ".nfs", ".fuse_hidden", ".syncthing.", "~syncthing~")
# Spark puts the lines of a CSV file that it cannot read into this column.
_NOT_READ = "seedlings_not_read"
# A scheme has a slash after its colon, as in `files`.
_HOST = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/]")
_SCHEME_AND_AUTHORITY = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(?=/)(?://[^/]*)?")
_GLOB_CHARACTERS = re.compile(r"[\\*?\[\]{}]")
_CONTENTS = StructType(
    [
        StructField(schema.PATH, StringType(), False),
        StructField(schema.LENGTH, LongType(), False),
        StructField(schema.CONTENT, BinaryType(), False),
    ]
)


_TASK = "task"
_NUMBERED = StructType([*schema.LISTING.fields, StructField(_TASK, IntegerType(), False)])
_GIVEN = StructType([*schema.LISTING.fields, StructField("given", StringType(), False)])


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
        modified: Milliseconds since 1970-01-01 UTC; -1 where the listing does not know it.
        species: By its folder, or None.
        error: Why it cannot be read, or None.
        is_hidden: Whether it is nobody's picture but a file of a system's or a program's own, or a folder of such.
    """

    path: str
    length: int
    modified: int
    species: str | None
    error: str | None
    is_hidden: bool = False


@dataclass(frozen=True)
class Decoded:
    """What became of one file: `pixels`, or `reason`, `stage` and `detail`."""

    content_hash: str | None = None
    length: int | None = None
    pixels: "images.Pixels | None" = None
    reason: str | None = None
    stage: str | None = None
    detail: str | None = None


def walk(root: str, *, by_folder: bool) -> Iterator[Listed]:
    """Every file below a folder, at any depth, in the order of their names.

    Args:
        root: A path; the listing has the full URIs below it.
        by_folder: Whether the first folder below the root names a file's species. Hidden folders are then listed
            in place of what is in them.

    Raises:
        InputError: There is no such folder.
    """
    root = files.qualify(root)
    if not files.is_directory(root):
        raise InputError(
            f"{root}, which is a file" if files.exists(root) else f"no folder {root}",
            "a folder of images",
            "Check --images; a path without a scheme is looked up where Spark's fs.defaultFS says",
        )
    if not by_folder:
        yield from map(listed, files.walk(root))
        return
    for status in files.walk(root, closed=is_hidden_folder):
        parts = status.path[len(root) :].strip("/").split("/")
        if is_hidden_folder(parts[-1]) and files.is_directory(status.path):
            yield _hidden(status, "a hidden or system folder, with all that is in it")
        elif _is_hidden_file(parts[-1]):
            yield _hidden(status, "a file of a system's or a program's own")
        else:
            yield listed(status, parts[0] if len(parts) > 1 else None)


def is_hidden_folder(name: str) -> bool:
    """Whether a folder is a system's or a program's own: thumbnails, versions, bins."""
    return _SYSTEM_FOLDER.fullmatch(name) is not None


def _is_hidden_file(name: str) -> bool:
    return _SYSTEM_FILE.fullmatch(name) is not None or name.startswith(_SYSTEM_PREFIXES)


def _hidden(status: files.FileStatus, detail: str) -> Listed:
    return Listed(status.path, status.length, -1, None, detail, is_hidden=True)


def listed(status: files.FileStatus, species: str | None = None) -> Listed:
    """A file of a listing, from its status."""
    modified = int(status.modified * 1000) if status.modified else -1
    return Listed(status.path, status.length, modified, species, status.error)


def listing_table(spark: SparkSession, listing: Iterable[Listed]) -> DataFrame:
    """A listing as a table of `schema.LISTING`."""
    return _as_table(spark, _in_columns(listing))


def _in_columns(listing: Iterable[Listed]) -> Iterator[pa.Table]:
    """A listing in parts of `schema.LISTING`, which take less memory than its entries."""
    entries = iter(listing)
    while chunk := list(islice(entries, _LISTING_CHUNK)):
        yield pa.table(
            {
                schema.PATH: pa.array([entry.path for entry in chunk], pa.string()),
                schema.LENGTH: pa.array([entry.length for entry in chunk], pa.int64()),
                schema.MODIFIED: pa.array([entry.modified for entry in chunk], pa.int64()),
                schema.SPECIES: pa.array([entry.species for entry in chunk], pa.string()),
                schema.DETAIL: pa.array([entry.error for entry in chunk], pa.string()),
            }
        )


def _as_table(spark: SparkSession, parts: Iterable[pa.Table]) -> DataFrame:
    tables = list(parts)
    if not tables:
        return spark.createDataFrame([], schema.LISTING)
    return spark.createDataFrame(pa.concat_tables(tables), schema.LISTING)


def listing_of_paths(
    spark: SparkSession, rows: DataFrame, base: str, allowed: Sequence[str] = ()
) -> tuple[DataFrame, tuple[str, ...]]:
    """The listing of a table of paths.

    Local files are looked at one by one, by the executors. On other file systems the folders that they are in are
    listed; a file system that does not answer, or that does not know such a path, makes rejects of its rows.

    Args:
        spark: The session.
        rows: With the columns `path` and `species`. A path without a scheme is one on `base`'s file system,
            a relative path one below `base`.
        base: Full URI of the folder that the table is in.
        allowed: Folders and file systems that a table may name files of; without any all but those of
            `ASKED_SCHEMES`.

    Returns:
        A table of `schema.LISTING` with the same path more than once only under several species, and what
        `decode_all` is given as the roots.
    """
    given, roots = listing_of_given_paths(spark, rows, base, allowed)
    return given.select(*schema.LISTING.names).distinct(), roots


def listing_of_given_paths(
    spark: SparkSession, rows: DataFrame, base: str, allowed: Sequence[str] = ()
) -> tuple[DataFrame, tuple[str, ...]]:
    """As `listing_of_paths`, with the further column `given`: the path as it stands in the table."""
    limits = Allowed.of(allowed)
    resolved = rows.select(schema.PATH, schema.SPECIES).mapInArrow(partial(_resolve, base, limits), _GIVEN)
    resolved = resolved.distinct()
    is_remote = F.col(schema.DETAIL).isNull() & ~_is_local(schema.PATH)
    folder = F.regexp_extract(schema.PATH, r"(?s)^(.*)/[^/]*\z", 1)
    folders = [row[0] for row in resolved.where(is_remote).select(folder).distinct().collect()]
    if not folders:
        return resolved, (base,)
    places = _places(folders, limits)
    roots = topmost(each.qualified for each in places if each.error is None)
    names = spark.createDataFrame(
        [(each.folder, each.qualified, each.error) for each in places],
        "folder string, qualified string, error string",
    )
    statuses = chain.from_iterable(each.listings for each in places)
    found = (
        _as_table(spark, statuses)
        .select(
            schema.PATH,
            F.col(schema.LENGTH).alias("found_length"),
            F.col(schema.MODIFIED).alias("found_modified"),
            F.col(schema.DETAIL).alias("found_detail"),
        )
        .dropDuplicates([schema.PATH])
    )
    name = F.regexp_extract(schema.PATH, r"(?s)([^/]*)\z", 1)
    remote = (
        resolved.where(is_remote)
        .withColumn("folder", folder)
        .join(F.broadcast(names), "folder")
        .withColumn(schema.PATH, F.concat("qualified", F.lit("/"), name))
        .join(found, schema.PATH, "left")
        .withColumns(
            {
                schema.DETAIL: F.when(
                    F.col("found_length").isNull(),
                    F.coalesce("error", F.when(name == "", "a folder"), F.lit(os.strerror(errno.ENOENT))),
                ).otherwise(F.col("found_detail")),
                schema.LENGTH: F.coalesce("found_length", F.lit(-1).cast("long")),
                schema.MODIFIED: F.coalesce("found_modified", F.lit(-1).cast("long")),
            }
        )
        .select(*_GIVEN.names)
        .distinct()
    )
    local = resolved.where(~is_remote)
    return local.union(remote), ((*roots, base) if files.is_local(base) else roots)


# What Spark raises where it cannot read what it is given.
_NOT_READABLE = (AnalysisException, Py4JJavaError, IllegalArgumentException, SparkRuntimeException)


def read_table(spark: SparkSession, table: str, kind: str, expected: str) -> DataFrame:
    """A table in a format of Spark's; a CSV file as spreadsheets and pandas write it, or a text with a path a line.

    Args:
        spark: The session.
        table: Its path.
        kind: Its format, as Spark calls it.
        expected: What a user can give, for the message of the error.

    Raises:
        InputError: Spark cannot read it, or would read something else than what stands there: text that is not
            UTF-8, rows with more or fewer cells than the head.
    """
    path = literal(table)
    try:
        if kind in ("csv", "text"):
            _check_utf8(spark, table)
        if kind == "csv":
            return _read_csv(spark, table)
        rows = spark.read.format(kind).load(path)
        _check_types(rows, table)
        if kind == "text":  # a file may begin with a mark
            return rows.select(F.regexp_replace("value", "^\ufeff", "").alias("value"))
        return rows
    except _NOT_READABLE as error:
        raise InputError(
            f"{table}, which Spark cannot read as {kind} ({in_brief(error)})",
            expected,
            "Check --images",
        ) from None


# Types of columns that are Python classes, and that Spark itself brings.
_OWN_CLASSES = re.compile(r"pyspark\.ml(?:lib)?\.linalg\.(?:Vector|Matrix)UDT")


def _check_types(rows: DataFrame, table: str) -> None:
    """Refuse a table with a column of somebody's own class, before Spark unpickles that from the table's metadata."""

    def look(found: dict[str, Any]) -> dict[str, Any]:
        name = found.get("pyClass") if found.get("type") == "udt" else None
        if name is not None and not _OWN_CLASSES.fullmatch(str(name)):
            raise InputError(
                f"{table}, with a column of the Python class {name}",
                "columns of Spark's own types: a table is data, and what it brings is never run",
                "Convert the column, or leave it out of the table",
            )
        return found

    json.loads(rows._jdf.schema().json(), object_hook=look)


def parquet(spark: SparkSession, path: str | Sequence[str], layout: StructType) -> DataFrame:
    """A Parquet table of ours, in one folder or several, of which nothing is passed over in silence.

    Spark does not compare pages with their checksums by default, and a site's settings may let it leave out what it
    cannot read.
    """
    reader = spark.read.schema(layout).options(**session.PARQUET_CHECKSUMS)
    return reader.options(ignoreCorruptFiles="false", ignoreMissingFiles="false").parquet(
        *map(literal, [path] if isinstance(path, str) else path)
    )


def unreadable_file(error: BaseException) -> tuple[str, str] | None:
    """The file that Spark could not read, and why, of what it has raised; None if that was something else."""
    cause: Any = getattr(error, "java_exception", None) or getattr(error, "_origin", None)
    path = ""
    while cause is not None:
        if not path:
            with contextlib.suppress(Exception):  # not every Java exception has parameters
                path = str(dict(cause.getMessageParameters()).get("path", ""))
        if cause.getCause() is None or cause.getCause().equals(cause):
            break
        cause = cause.getCause()
    if not path:
        return None
    message = str(cause.getMessage() or cause.getClass().getSimpleName())
    return path, message.partition("\n")[0][:300]


def _check_utf8(spark: SparkSession, table: str) -> None:
    """Refuse a text in another encoding: Spark would put replacement characters into it, and find no such file."""
    wrong = spark.read.text(literal(table)).where(~F.is_valid_utf8("value") | (F.instr("value", "\0") > 0))
    first = wrong.select(F.col("value").cast("binary").alias("line")).first()
    if first is None:
        return
    line = bytes(first.line)
    start = _first_wrong_byte([line]) or 0
    position = "" if table.lower().endswith(".gz") else _place_of_wrong_byte(table)
    is_utf16 = b"\0" in line
    raise InputError(
        f"{table}, which is not UTF-8 ({position}{line[max(0, start - 30) : start + 30]!r})",
        "a text in UTF-8",
        f"Write it as UTF-8, for example by iconv -f {'UTF-16' if is_utf16 else 'WINDOWS-1252'} -t UTF-8",
    )


def _place_of_wrong_byte(table: str) -> str:
    with contextlib.suppress(OSError):  # a folder of several files
        position = _first_wrong_byte(files.read_blocks(table))
        return "" if position is None else f"byte {position}: "
    return ""


def _first_wrong_byte(blocks: Iterable[bytes]) -> int | None:
    """Position of the first byte that is not UTF-8, or is 0, in a text; None if there is none."""
    decoder, before = codecs.getincrementaldecoder("utf-8")(), 0
    for block in [*blocks, b""]:
        rest = len(decoder.getstate()[0])
        zero = block.find(b"\0")
        try:
            decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            wrong = before - rest + error.start
            return wrong if zero < 0 else min(wrong, before + zero)
        if zero >= 0:
            return before + zero
        before += len(block)
    return None


def _read_csv(spark: SparkSession, table: str) -> DataFrame:
    path = literal(table)
    # A quote in quotes is doubled. Spark would cut rows to the head or fill them up, and of several files take each
    # for headed as the first one. (It never finds a head without a name, which pandas gives its index.)
    given: dict[str, Any] = {"header": True, "escape": '"', "columnPruning": False}
    given["enforceSchema"] = not files.is_directory(table)
    names = spark.read.options(**given).csv(path).columns
    separator = ","
    if len(names) == 1:  # as spreadsheets write it where a comma is for decimals
        separator = next((each for each in ";\t" if each in names[0]), ",")
        names = spark.read.options(**given, sep=separator).csv(path).columns
    if not names:
        return spark.read.csv(path)
    fields = [StructField(name, StringType()) for name in [*names, _NOT_READ]]
    reader = spark.read.options(**given, sep=separator, columnNameOfCorruptRecord=_NOT_READ)
    rows = reader.schema(StructType(fields)).csv(path)
    # Spark refuses to look at this column alone.
    looked_at = F.length(F.concat_ws("", *(F.col(schema.quoted(name)) for name in names))) >= 0
    ragged = rows.where(F.col(_NOT_READ).isNotNull() & looked_at)
    count = ragged.count()
    if count:
        first = ragged.first()
        assert first is not None
        raise InputError(
            f"{table} with {count} rows of more or fewer cells than its head, such as {first[_NOT_READ][:200]!r}",
            f"{len(names)} cells in each row, separated by {separator!r}",
            "Put a cell with a separator in it into quotes, and let none have a line end in it",
        )
    rows = rows.drop(_NOT_READ)
    return rows.toDF(*(column.removeprefix("\ufeff").strip() for column in names))


def literal(path: str) -> str:
    """A path as Spark's readers take it, which expand `*`, `?`, `[...]` and `{...}` in what they load."""
    return _GLOB_CHARACTERS.sub(r"\\\g<0>", path)


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


def spread(spark: SparkSession, listing: DataFrame) -> DataFrame:
    """The listing in tasks that each have about as many bytes to read, however these are dealt to files."""
    num_bytes, num_files = _work(listing)
    slots = session.num_slots(spark)
    # As many for each slot, or most slots would wait for the last ones; one of 13 equal tasks runs alone on two.
    rounds = max(2, -(-num_bytes // (_TASK_BYTES * slots)))
    tasks = max(1, min(_MAX_TASKS, num_files, rounds * slots))
    if tasks == 1:
        return listing.coalesce(1)
    numbered = listing.coalesce(1).mapInArrow(partial(_number_tasks, tasks, num_bytes), _NUMBERED)
    return numbered.repartition(tasks, session.partition_key(spark, F.col(_TASK), tasks)).drop(_TASK)


def _work(listing: DataFrame) -> tuple[int, int]:
    """What a listing costs to read, in bytes, and its number of files."""
    length = F.col(schema.LENGTH)
    bytes_ = F.when(length < 0, _USUAL_BYTES).otherwise(F.least(length, F.lit(_MOST_BYTES))) + F.lit(
        _FILE_BYTES
    )
    total = listing.agg(F.sum(bytes_), F.count("*")).first()
    assert total is not None
    return int(total[0] or 0), int(total[1])


def _number_tasks(
    num_tasks: int, num_bytes: int, batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """Say of each file which task reads it: neighbours stay together, and each task gets an equal share of bytes."""
    before = 0
    for batch in batches:
        lengths = batch.column(schema.LENGTH).to_numpy()
        work = np.where(lengths < 0, _USUAL_BYTES, np.minimum(lengths, _MOST_BYTES)) + _FILE_BYTES
        ends = before + np.cumsum(work)
        tasks = np.minimum((ends - work) * num_tasks // max(1, num_bytes), num_tasks - 1)
        before = int(ends[-1]) if len(ends) else before
        yield batch.append_column(_TASK, pa.array(tasks.astype(np.int32)))


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
    remote_roots = _remote(roots)
    decode = partial(decode_listed, task)
    if not remote_roots:
        return spread(spark, listing).mapInArrow(decode, schema.DECODED)
    # What the listing already knows to be a reject needs no bytes.
    is_local = _is_local(schema.PATH)
    is_readable = ~is_local & _is_worth_reading(task)
    rest = spread(spark, listing.where(~is_readable)).mapInArrow(decode, schema.DECODED)
    readable = listing.where(is_readable)
    contents = _contents(spark, readable, remote_roots, task)
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
                .when(is_lost, F.lit(_LOST))
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


def hash_all(
    spark: SparkSession, listing: DataFrame, roots: str | Sequence[str], task: DecodeTask
) -> DataFrame:
    """The listing with each file's content hash (null where it cannot be read), without decoding."""
    layout = StructType([*schema.LISTING.fields, StructField(schema.CONTENT_HASH, StringType(), True)])
    remote_roots = _remote(roots)
    hash_ = partial(_hash_listed, task)
    if not remote_roots:
        return spread(spark, listing).mapInArrow(hash_, layout)
    is_readable = ~_is_local(schema.PATH) & _is_worth_reading(task)
    rest = spread(spark, listing.where(~is_readable)).mapInArrow(hash_, layout)
    readable = listing.where(is_readable)
    contents = _contents(spark, readable, remote_roots, task)
    hashes = contents.select(schema.PATH, F.sha2(schema.CONTENT, 256).alias(schema.CONTENT_HASH))
    return readable.join(hashes, schema.PATH, "left").select(*layout.names).union(rest.select(*layout.names))


def decode_listed(task: DecodeTask, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The function of a Spark task: listed files, with or without their content, to rows of `schema.DECODED`."""
    runtime.forget_archives()
    height, width = task.size
    num_rows = max(1, min(_ROWS, _BATCH_BYTES // (height * width * 3)))
    for batch in batches:
        for start in range(0, batch.num_rows, num_rows):
            rows = batch.slice(start, num_rows).to_pylist()
            decoded = [read_and_decode(task, row, row.get(schema.CONTENT)) for row in rows]
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
        row: Of `schema.LISTING`.
        content: The file's bytes, where Spark has read them.
    """
    found = _read(task, row) if content is None else _given(task, content)
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


def arrow_schema(table: StructType) -> pa.Schema:
    """The Arrow schema of a table's layout, for batches that a task yields."""
    return to_arrow_schema(table)


def _hash_listed(task: DecodeTask, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        contents = (_read(task, row) for row in batch.to_pylist())
        hashes = [
            None if isinstance(content, Decoded) else fingerprint.content_hash(content)
            for content in contents
        ]
        yield batch.append_column(schema.CONTENT_HASH, pa.array(hashes, pa.string()))


def _given(task: DecodeTask, content: bytes) -> bytes | Decoded:
    if len(content) > task.max_bytes:
        detail = f"{len(content):,} bytes, at most {task.max_bytes:,}"
        return Decoded(reason="too_large", stage="read", detail=detail)
    return content or Decoded(reason="empty", stage="read")


def _read(task: DecodeTask, row: Mapping[str, Any]) -> bytes | Decoded:
    """The bytes of a listed local file, or why there are none."""
    length = int(row[schema.LENGTH])
    if row[schema.DETAIL] is not None:
        return Decoded(reason="unreadable", stage="list", detail=row[schema.DETAIL])
    if length == 0:
        return Decoded(reason="empty", stage="list")
    if length > task.max_bytes:
        detail = f"{length:,} bytes, at most {task.max_bytes:,}"
        return Decoded(reason="too_large", stage="list", detail=detail)
    try:
        content, status = _read_local(row[schema.PATH], task.max_bytes)
    except (OSError, ValueError) as error:
        detail = getattr(error, "strerror", None) or str(error)
        return Decoded(reason="unreadable", stage="read", detail=detail)
    now = (status.st_size, _milliseconds(status))
    if length > 0 and int(row[schema.MODIFIED]) >= 0 and now != (length, int(row[schema.MODIFIED])):
        detail = f"{length:,} bytes when it was listed, {status.st_size:,} when it was read"
        return Decoded(reason="changed", stage="read", detail=detail)
    if len(content) > task.max_bytes:
        return Decoded(reason="too_large", stage="read", detail=f"more than {task.max_bytes:,} bytes")
    return content or Decoded(reason="empty", stage="read")


def _read_local(path: str, max_bytes: int) -> tuple[bytes, os.stat_result]:
    """The bytes of a file, or the first max_bytes + 1 of them; and its status after they were read."""
    # Not blocking: to open a pipe would wait for somebody who writes to it.
    descriptor = os.open(files.local_path(path), os.O_RDONLY | os.O_NONBLOCK)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise OSError("a folder" if stat.S_ISDIR(mode) else "not a regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(max_bytes + 1), os.fstat(descriptor)
    finally:
        os.close(descriptor)


# --- other file systems ---------------------------------------------------------------------------------


_LOST = "Spark's binaryFile source gave no content; the executors' logs say why"


def _remote(roots: str | Sequence[str]) -> list[str]:
    return [root for root in ([roots] if isinstance(roots, str) else roots) if not files.is_local(root)]


def _is_local(path: str) -> Column:
    return F.lower(F.left(F.col(path), F.lit(len(_FILE_SCHEME)))) == _FILE_SCHEME


def _is_worth_reading(task: DecodeTask) -> Column:
    length = F.col(schema.LENGTH)
    return F.col(schema.DETAIL).isNull() & (length != 0) & (length <= task.max_bytes)


def _contents(spark: SparkSession, readable: DataFrame, roots: Sequence[str], task: DecodeTask) -> DataFrame:
    """The files of a listing with their bytes: `_CONTENTS`, one row a path, where they can be read."""
    source, silent = _binary_files(spark, roots)
    source = source.where(F.col(schema.LENGTH) <= task.max_bytes)  # longer: not read
    key = F.xxhash64(schema.PATH)
    # Of a sample or a table other files lie in the same folders. Eight bytes a path are broadcast; another
    # file with the same key costs its decoding and is dropped by the caller's join.
    wanted = F.broadcast(readable.select(key.alias("key")).distinct())
    contents = source.withColumn("key", key).join(wanted, "key", "left_semi").select(*_CONTENTS.names)
    left_out = readable.select(schema.PATH, schema.LENGTH).distinct()
    left_out = left_out.join(source.select(schema.PATH), schema.PATH, "left_anti").orderBy(schema.PATH)
    by_driver = _read_by_driver(left_out, task, silent)
    if by_driver.num_rows:
        contents = contents.union(spark.createDataFrame(by_driver, _CONTENTS))
    return contents


def _binary_files(spark: SparkSession, roots: Sequence[str]) -> tuple[DataFrame, set[str]]:
    """What Spark's `binaryFile` source finds below these folders, as `_CONTENTS`, and where it cannot."""
    questions = {system: partial(_load, spark, its) for system, its in _by_system(roots).items()}
    answers, errors = _told(questions)
    found = spark.createDataFrame([], _CONTENTS)
    for source in answers.values():
        found = source if len(answers) == 1 else found.union(source)
    return found, set(errors)


def _load(spark: SparkSession, roots: Sequence[str], answered: Callable[[], None]) -> DataFrame:
    """What `binaryFile` finds below these folders of one file system."""
    folders = []
    for root in roots:
        if files.is_directory(root):
            folders.append(literal(root))
        answered()
    if not folders:
        return spark.createDataFrame([], _CONTENTS)
    source = (
        spark.read.format("binaryFile")
        .option("recursiveFileLookup", "true")
        # A file that has gone, or cannot be read after the retries of its file system's client, is one reject
        # and not the end of the job.
        .option("ignoreMissingFiles", "true")
        .option("ignoreCorruptFiles", "true")
    )
    try:
        with _heard_meanwhile(roots[0], answered):
            return source.load(folders).select(*_CONTENTS.names)
    except _NOT_READABLE as error:
        raise OSError(in_brief(error)) from error


@contextlib.contextmanager
def _heard_meanwhile(folder: str, answered: Callable[[], None]) -> Iterator[None]:
    """Ask a file system again and again while Spark lists it, of which nobody sees how far that is."""
    is_done = threading.Event()

    def ask() -> None:
        while not is_done.wait(_ANSWER_SECONDS / 4):
            with contextlib.suppress(OSError, ValueError):
                next(iter(files.children(folder)), None)
            answered()

    threading.Thread(target=ask, daemon=True).start()
    try:
        yield
    finally:
        is_done.set()


def _read_blocks(path: str, answered: Callable[[], None]) -> bytes:
    blocks = []
    for block in files.read_blocks(path):
        blocks.append(block)
        answered()
    return b"".join(blocks)


def _read_by_driver(left_out: DataFrame, task: DecodeTask, silent: set[str]) -> pa.Table:
    """What `binaryFile` leaves out (names that begin with `_` or `.`), as `_CONTENTS`, within the budget.

    Nothing is read of file systems that are `silent`, which those become that fall silent here.
    """
    rows: list[tuple[str, bytes]] = []
    num_bytes, num_files = 0, 0
    for path, length in left_out.toLocalIterator():
        num_files += 1
        system = _system_of(path)
        if num_bytes + length > _DRIVER_BYTES or system in silent:
            continue
        answers, errors = asked({system: partial(_read_blocks, path)})
        content = answers.get(system, b"")
        if isinstance(errors.get(system), TimeoutError):
            silent.add(system)
            _log.warning("%s cannot be used: %s", system, _words(errors[system]))
        if 0 < len(content) <= task.max_bytes:
            num_bytes += len(content)
            rows.append((path, content))
    if num_files:
        _log.info(
            "the driver has read %d of %d files that Spark's binaryFile source leaves out (%.1f MB)",
            len(rows),
            num_files,
            num_bytes / 1e6,
        )
    return pa.table(
        {
            schema.PATH: pa.array([path for path, _ in rows], pa.string()),
            schema.LENGTH: pa.array([len(content) for _, content in rows], pa.int64()),
            schema.CONTENT: pa.array([content for _, content in rows], pa.binary()),
        }
    )


# --- tables of paths ------------------------------------------------------------------------------------


# File systems that are somebody else's machines, or that lead to one: a table names these only where it is allowed to.
ASKED_SCHEMES = ("http", "https", "ftp", "sftp", "webhdfs", "swebhdfs", "har")
_NOT_ALLOWED = "not below one of --allowed-roots"
# How long a file system may take to say whether it is there. Hadoop's own clients try for up to an hour.
_ANSWER_SECONDS = 60.0
# File systems that are asked at once.
_AT_ONCE = 64


@dataclass(frozen=True)
class Allowed:
    """What a table of paths may name.

    Args:
        roots: Full URIs of folders and file systems; local ones with links resolved. None for no limit.
    """

    roots: tuple[str, ...] | None = None

    @classmethod
    def of(cls, given: Sequence[str]) -> "Allowed":
        """Those that a user gave; none for no limit.

        Raises:
            InputError: One that is no path.
        """
        try:
            roots = tuple(_resolved(files.qualify(each)).rstrip("/") for each in given)
        except (OSError, ValueError) as error:
            raise InputError(
                f"--allowed-roots {' '.join(given)} ({getattr(error, 'strerror', None) or error})",
                "folders, or file systems such as hdfs://host:8020/",
                "Correct --allowed-roots",
            ) from None
        return cls(roots or None)

    def error(self, path: str) -> str | None:
        """Why a file may not be named; None if it may.

        Args:
            path: Full URI.
        """
        root = _SCHEME_AND_AUTHORITY.match(path)
        if self.roots is None:
            scheme = root.group().partition(":")[0].lower() if root else ""
            return f"{scheme}: in a table only with --allowed-roots" if scheme in ASKED_SCHEMES else None
        place = _resolved(path)
        return None if any(f"{place}/".startswith(f"{each}/") for each in self.roots) else _NOT_ALLOWED


def _resolved(path: str) -> str:
    """A full URI without `.`, `..` and, where it is local, without links."""
    if files.is_local(path):
        return f"file://{os.path.realpath(files.local_path(path))}"
    root = _SCHEME_AND_AUTHORITY.match(path)
    start = root.end() if root else 0
    return path[:start].lower() + posixpath.normpath("/" + path[start:].lstrip("/"))


def _resolve(base: str, allowed: Allowed, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        rows = [_full(base, row[schema.PATH], row[schema.SPECIES], allowed) for row in batch.to_pylist()]
        yield pa.RecordBatch.from_pydict(
            {
                schema.PATH: [row.path for row in rows],
                schema.LENGTH: [row.length for row in rows],
                schema.MODIFIED: [row.modified for row in rows],
                schema.SPECIES: [row.species for row in rows],
                schema.DETAIL: [row.error for row in rows],
                "given": batch.column(schema.PATH),
            },
            schema=arrow_schema(_GIVEN),
        )


def _full(base: str, path: str, species: str | None, allowed: Allowed) -> Listed:
    """A row of a table of paths."""
    species = (species or "").strip() or None
    full = path
    if not _SCHEME_AND_AUTHORITY.match(path):
        root = _SCHEME_AND_AUTHORITY.match(base)
        above = (root.group() if root else "") if path.startswith("/") else base.rstrip("/") + "/"
        full = above + path
    try:
        is_local = files.is_local(full)
        full = files.qualify(full) if is_local else full
        # Without a host it is one of the default's, which the driver knows.
        if (is_local or _HOST.match(full)) and (error := allowed.error(full)):
            return Listed(full, -1, -1, species, error)
        if is_local:
            return _looked_at(full, species)
    except (ValueError, OSError) as error:
        return Listed(full, -1, -1, species, str(error))
    return Listed(full, -1, -1, species, None)


@dataclass(frozen=True)
class _Place:
    """A folder that a table names, as Hadoop calls it, and what is in it, or why there is none."""

    folder: str
    qualified: str
    error: str | None = None
    listings: tuple[pa.Table, ...] = ()


def _places(folders: Iterable[str], allowed: Allowed) -> list[_Place]:
    """The folders of a table on other file systems; those of one that does not answer have an error."""
    of_system = _by_system(sorted(folders))
    questions = {system: partial(_look_into, system, its, allowed) for system, its in of_system.items()}
    answers, errors = _told(questions)
    lost = [_Place(each, each, errors[system]) for system in errors for each in of_system[system]]
    return [*lost, *chain.from_iterable(answers.values())]


def _by_system(folders: Iterable[str]) -> dict[str, list[str]]:
    """File system -> those of these folders that are on it."""
    found: dict[str, list[str]] = {}
    for folder in folders:
        found.setdefault(_system_of(folder), []).append(folder)
    return found


def _system_of(path: str) -> str:
    root = _SCHEME_AND_AUTHORITY.match(path + "/")
    return root.group() if root else path


def _told(
    questions: Mapping[str, Callable[[Callable[[], None]], _T]],
) -> tuple[dict[str, _T], dict[str, str]]:
    """`asked`, with the causes in words, which are told."""
    answers, errors = asked(questions)
    words = {system: _words(error) for system, error in errors.items()}
    for system, error in words.items():
        _log.warning("%s cannot be used: %s", system, error)
    return answers, words


def _look_into(
    system: str, folders: Iterable[str], allowed: Allowed, answered: Callable[[], None]
) -> list[_Place]:
    """What is in these folders of one file system."""
    with contextlib.suppress(PermissionError):  # it is there; a bucket need not show its root
        files.exists(f"{system}/")
    answered()
    # One by one: a wrong row must not have a whole file system listed.
    return [_looked_into(folder, allowed, answered) for folder in folders]


def _looked_into(folder: str, allowed: Allowed, answered: Callable[[], None]) -> _Place:
    qualified = folder
    try:
        qualified = files.qualify(folder + "/").rstrip("/")
        if error := allowed.error(qualified):
            return _Place(folder, qualified, error)
        has_files = False

        def found() -> Iterator[Listed]:
            nonlocal has_files
            for status in files.children(qualified + "/"):
                answered()
                has_files |= not status.error
                yield listed(status)

        listings = tuple(_in_columns(found()))
        return _Place(folder, qualified, None if has_files else os.strerror(errno.ENOENT), listings)
    except FileNotFoundError:
        return _Place(folder, qualified, os.strerror(errno.ENOENT))
    except (OSError, ValueError) as cause:
        return _Place(folder, qualified, _words(cause))
    finally:
        answered()


def asked(
    questions: Mapping[str, Callable[[Callable[[], None]], _T]], silence_seconds: float | None = None
) -> tuple[dict[str, _T], dict[str, OSError | ValueError]]:
    """What file systems answer, each in a thread of its own; one that falls silent does not hold up the others.

    Hadoop's own clients try for up to an hour, and some for ever. The thread of a question that is not answered is
    left to them.

    Args:
        questions: File system -> what to ask it. It is given a function to call whenever an answer has come.
        silence_seconds: Without an answer after which the file system is given up; by default `_ANSWER_SECONDS`.

    Returns:
        The answers, and of the other file systems the causes: `TimeoutError` of one that was given up.
    """
    limit = _ANSWER_SECONDS if silence_seconds is None else silence_seconds
    answers: dict[str, _T] = {}
    errors: dict[str, OSError | ValueError] = {}
    heard: dict[str, float] = {}

    def ask(system: str, answer: "Future[_T]") -> None:
        def answered() -> None:
            heard[system] = time.monotonic()

        try:
            answer.set_result(questions[system](answered))
        except BaseException as cause:
            answer.set_exception(cause)

    names = list(questions)
    for start in range(0, len(names), _AT_ONCE):
        waiting = {system: Future[_T]() for system in names[start : start + _AT_ONCE]}
        for system, answer in waiting.items():
            heard[system] = time.monotonic()
            threading.Thread(target=ask, args=(system, answer), daemon=True).start()
        while waiting:
            wait(waiting.values(), min(1.0, limit), FIRST_COMPLETED)
            for system, answer in list(waiting.items()):
                if answer.done():
                    try:
                        answers[system] = answer.result()
                    except (OSError, ValueError) as cause:
                        errors[system] = cause
                elif time.monotonic() - heard[system] > limit:
                    errors[system] = TimeoutError(f"{system} does not answer within {limit:.0f} s")
                else:
                    continue
                del waiting[system]
    return answers, errors


def _words(cause: BaseException) -> str:
    """What an exception says, which is never nothing."""
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__


def _looked_at(path: str, species: str | None) -> Listed:
    """A local file, with what is known of it; where it cannot be read its reading will tell why."""
    try:
        status = files.local_path(path).stat()
    except OSError:
        return Listed(path, -1, -1, species, None)
    if not stat.S_ISREG(status.st_mode):
        return Listed(path, -1, -1, species, None)
    return Listed(path, status.st_size, _milliseconds(status), species, None)


def _milliseconds(status: os.stat_result) -> int:
    return int(status.st_mtime * 1000)


def topmost(folders: Iterable[str]) -> tuple[str, ...]:
    """These folders without those that lie in another of them."""
    kept: list[str] = []
    for folder in sorted({folder.rstrip("/") + "/" for folder in folders}):
        if not (kept and folder.startswith(kept[-1])):
            kept.append(folder)
    return tuple(folder.rstrip("/") if folder.count("/") > 3 else folder for folder in kept)
