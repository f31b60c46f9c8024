"""The files that a table of paths names: which of them it may name, and what is known of them."""

import contextlib
import errno
import os
import posixpath
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it
from pyspark.sql.types import StringType, StructField, StructType

from seedlings_spark import files, schema
from seedlings_spark.corpus.listings import Listed, as_table, in_columns, listed, milliseconds, topmost
from seedlings_spark.corpus.remote import is_of_this_machine
from seedlings_spark.corpus.systems import SCHEME_AND_AUTHORITY, answers_of, by_system, in_words
from seedlings_spark.corpus.tables import arrow_schema
from seedlings_spark.errors import InputError

# A scheme has a slash after its colon, as in `files`.
_HOST = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/]")
_GIVEN = StructType([*schema.LISTING.fields, StructField("given", StringType(), False)])


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
    is_remote = F.col(schema.DETAIL).isNull() & ~is_of_this_machine(schema.PATH)
    folder = F.regexp_extract(schema.PATH, r"(?s)^(.*)/[^/]*\z", 1)
    folders = [row[0] for row in resolved.where(is_remote).select(folder).distinct().collect()]
    if not folders:
        return resolved, (base,)
    named = _folders(folders, limits)
    roots = topmost(each.qualified for each in named if each.error is None)
    names = spark.createDataFrame(
        [(each.folder, each.qualified, each.error) for each in named],
        "folder string, qualified string, error string",
    )
    statuses = chain.from_iterable(each.listings for each in named)
    found = (
        as_table(spark, statuses)
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


# File systems that are somebody else's machines, or that lead to one: a table names these only where it is allowed to.
ASKED_SCHEMES = ("http", "https", "ftp", "sftp", "webhdfs", "swebhdfs", "har")
_NOT_ALLOWED = "not below one of --allowed-roots"


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
        root = SCHEME_AND_AUTHORITY.match(path)
        if self.roots is None:
            scheme = root.group().partition(":")[0].lower() if root else ""
            return f"{scheme}: in a table only with --allowed-roots" if scheme in ASKED_SCHEMES else None
        place = _resolved(path)
        return None if any(f"{place}/".startswith(f"{each}/") for each in self.roots) else _NOT_ALLOWED


def _resolved(path: str) -> str:
    """A full URI without `.`, `..` and, where it is local, without links."""
    if files.is_local(path):
        return f"file://{os.path.realpath(files.local_path(path))}"
    root = SCHEME_AND_AUTHORITY.match(path)
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
    if not SCHEME_AND_AUTHORITY.match(path):
        root = SCHEME_AND_AUTHORITY.match(base)
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
class _Folder:
    """A folder that a table names, as Hadoop calls it, and what is in it, or why there is none."""

    folder: str
    qualified: str
    error: str | None = None
    listings: tuple[pa.Table, ...] = ()


def _folders(folders: Iterable[str], allowed: Allowed) -> list[_Folder]:
    """The folders of a table on other file systems; those of one that does not answer have an error."""
    of_system = by_system(sorted(folders))
    questions = {system: partial(_look_into, system, its, allowed) for system, its in of_system.items()}
    answers, errors = answers_of(questions)
    lost = [_Folder(each, each, errors[system]) for system in errors for each in of_system[system]]
    return [*lost, *chain.from_iterable(answers.values())]


def _look_into(
    system: str, folders: Iterable[str], allowed: Allowed, answered: Callable[[], None]
) -> list[_Folder]:
    """What is in these folders of one file system."""
    with contextlib.suppress(PermissionError):  # it is there; a bucket need not show its root
        files.exists(f"{system}/")
    answered()
    # One by one: a wrong row must not have a whole file system listed.
    return [_looked_into(folder, allowed, answered) for folder in folders]


def _looked_into(folder: str, allowed: Allowed, answered: Callable[[], None]) -> _Folder:
    qualified = folder
    try:
        qualified = files.qualify(folder + "/").rstrip("/")
        if error := allowed.error(qualified):
            return _Folder(folder, qualified, error)
        has_files = False

        def found() -> Iterator[Listed]:
            nonlocal has_files
            for status in files.children(qualified + "/"):
                answered()
                has_files |= not status.error
                yield listed(status)

        listings = tuple(in_columns(found()))
        return _Folder(folder, qualified, None if has_files else os.strerror(errno.ENOENT), listings)
    except FileNotFoundError:
        return _Folder(folder, qualified, os.strerror(errno.ENOENT))
    except (OSError, ValueError) as cause:
        return _Folder(folder, qualified, in_words(cause))
    finally:
        answered()


def _looked_at(path: str, species: str | None) -> Listed:
    """A local file, with what is known of it; where it cannot be read its reading will tell why."""
    try:
        status = files.local_path(path).stat()
    except OSError:
        return Listed(path, -1, -1, species, None)
    if not stat.S_ISREG(status.st_mode):
        return Listed(path, -1, -1, species, None)
    return Listed(path, status.st_size, milliseconds(status), species, None)
