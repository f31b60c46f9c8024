"""Bytes of files that no Python process of an executor can open: Spark's `binaryFile` source reads them."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it
from pyspark.sql.types import BinaryType, LongType, StringType, StructField, StructType

from seedlings_spark import files, schema
from seedlings_spark.corpus import systems
from seedlings_spark.corpus.systems import answers_of, asked, by_system, in_words, system_of
from seedlings_spark.corpus.tables import NOT_READABLE, literal
from seedlings_spark.errors import in_brief

_log = logging.getLogger(__name__)
# Bytes of files that `binaryFile` leaves out, and that the driver reads and holds in its memory instead.
_DRIVER_BYTES = 256 * 1024 * 1024
_FILE_SCHEME = "file:"
_CONTENTS = StructType(
    [
        StructField(schema.PATH, StringType(), False),
        StructField(schema.LENGTH, LongType(), False),
        StructField(schema.CONTENT, BinaryType(), False),
    ]
)
LOST = "Spark's binaryFile source gave no content; the executors' logs say why"


def not_local(roots: str | Sequence[str]) -> list[str]:
    """Those of these folders that are on other file systems."""
    return [root for root in ([roots] if isinstance(roots, str) else roots) if not files.is_local(root)]


def is_of_this_machine(path: str) -> Column:
    """Whether a column of full URIs has one of the local file system."""
    return F.lower(F.left(F.col(path), F.lit(len(_FILE_SCHEME)))) == _FILE_SCHEME


def contents_of(spark: SparkSession, readable: DataFrame, roots: Sequence[str], max_bytes: int) -> DataFrame:
    """The files of a listing with their bytes: `_CONTENTS`, one row a path, where they can be read."""
    source, silent = _binary_files(spark, roots)
    source = source.where(F.col(schema.LENGTH) <= max_bytes)  # longer: not read
    key = F.xxhash64(schema.PATH)
    # Of a sample or a table other files lie in the same folders. Eight bytes a path are broadcast; another
    # file with the same key costs its decoding and is dropped by the caller's join.
    wanted = F.broadcast(readable.select(key.alias("key")).distinct())
    contents = source.withColumn("key", key).join(wanted, "key", "left_semi").select(*_CONTENTS.names)
    left_out = readable.select(schema.PATH, schema.LENGTH).distinct()
    left_out = left_out.join(source.select(schema.PATH), schema.PATH, "left_anti").orderBy(schema.PATH)
    by_driver = _read_by_driver(left_out, max_bytes, silent)
    if by_driver.num_rows:
        contents = contents.union(spark.createDataFrame(by_driver, _CONTENTS))
    return contents


def _binary_files(spark: SparkSession, roots: Sequence[str]) -> tuple[DataFrame, set[str]]:
    """What Spark's `binaryFile` source finds below these folders, as `_CONTENTS`, and where it cannot."""
    questions = {system: partial(_load, spark, its) for system, its in by_system(roots).items()}
    answers, errors = answers_of(questions)
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
    except NOT_READABLE as error:
        raise OSError(in_brief(error)) from error


@contextlib.contextmanager
def _heard_meanwhile(folder: str, answered: Callable[[], None]) -> Iterator[None]:
    """Ask a file system again and again while Spark lists it, of which nobody sees how far that is."""
    is_done = threading.Event()

    def ask() -> None:
        while not is_done.wait(systems.ANSWER_SECONDS / 4):
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


def _read_by_driver(left_out: DataFrame, max_bytes: int, silent: set[str]) -> pa.Table:
    """What `binaryFile` leaves out (names that begin with `_` or `.`), as `_CONTENTS`, within the budget.

    Nothing is read of file systems that are `silent`, which those become that fall silent here.
    """
    rows: list[tuple[str, bytes]] = []
    num_bytes, num_files = 0, 0
    for path, length in left_out.toLocalIterator():
        num_files += 1
        system = system_of(path)
        if num_bytes + length > _DRIVER_BYTES or system in silent:
            continue
        answers, errors = asked({system: partial(_read_blocks, path)})
        content = answers.get(system, b"")
        if isinstance(errors.get(system), TimeoutError):
            silent.add(system)
            _log.warning("%s cannot be used: %s", system, in_words(errors[system]))
        if 0 < len(content) <= max_bytes:
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
