"""What there is to score: a folder, a glob, a list or table of paths, or a table with the files' bytes.

Whatever it is becomes a listing (`schema.LISTING`), one row a path, and what else a table has to say of each path.
"""

import fnmatch
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it
from pyspark.sql.types import (
    ArrayType,
    CalendarIntervalType,
    DataType,
    MapType,
    NullType,
    StructType,
)

from seedlings_spark import choices, files, schema
from seedlings_spark.corpus import archives, contents, listings, references, tables
from seedlings_spark.errors import InputError

_log = logging.getLogger(__name__)

# Formats of tables, by the ending of their names; "text" is one path a line.
_FORMATS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".orc": "orc",
    ".txt": "text",
}
_KINDS = (
    "a folder, a glob such as '/images/2026-*/*.png', a .txt file with a path on each line,"
    f" or a table ({', '.join(sorted(set(_FORMATS.values()) - {'text'}))}, or another format of Spark's with"
    " --table-format)"
)
GLOB = re.compile(r"[*?\[{]")


@dataclass(frozen=True)
class Source:
    """What is to be scored.

    Args:
        listing: A table of `schema.LISTING`, one row a path.
        roots: What `decoding.decode_all` is given.
        extras: `path`, and the further columns of a table as the fields of `OTHERS`, one row a path; None where
            there are none.
        contents: The listing with the further column `content` where the table holds the bytes, else None.
    """

    listing: DataFrame
    roots: tuple[str, ...]
    extras: DataFrame | None = None
    contents: DataFrame | None = None


def find(
    spark: SparkSession,
    images: str,
    *,
    path_column: str = "",
    content_column: str = "",
    table_format: str = "",
    allowed_roots: Sequence[str] = (),
    max_bytes: int = choices.MAX_BYTES,
) -> Source:
    """What a path, as `--images` has it, stands for.

    Args:
        spark: The session.
        images: A path or glob.
        path_column: Name of a table's column of paths; "" for `path`.
        content_column: Name of a table's column of the files' bytes; "" for none.
        table_format: Format of a table, as Spark calls it; "" goes by the name.
        allowed_roots: Folders and file systems that a list or table may name files of; see `references.Allowed`.
        max_bytes: Length up to which members of an archive are read whole.

    Raises:
        InputError: Nothing is there, or it is not as it has to be.
    """
    try:
        if archives.is_archive(images):
            members, contents_ = archives.members_of(spark, images, max_bytes, by_folder=False)
            of_ours = (archives.HIDDEN, archives.SPLIT, archives.DEPTH)
            return Source(members.drop(*of_ours), (), None, contents_.drop(*of_ours))
        if files.exists(images):
            kind = table_format or _format_of(images, is_table=bool(path_column or content_column))
            if kind:
                path_column = path_column or schema.PATH
                return _of_table(spark, images, kind, path_column, content_column, allowed_roots)
            return Source(listings.listing_table(spark, listings.walk(images, by_folder=False)), (images,))
        if path_column or content_column or table_format or not GLOB.search(images):
            raise InputError(
                f"no folder {images}",
                _KINDS,
                "Check --images; a path without a scheme is looked up where Spark's fs.defaultFS says",
            )
        return _of_glob(spark, images)
    except OSError as error:
        raise InputError(
            f"{images}, which cannot be listed ({error.strerror or error})", _KINDS, "Check its permissions"
        ) from None


def _format_of(images: str, *, is_table: bool) -> str:
    """The format of a table, by its name; "" for a folder of images."""
    name = files.name(images).lower()
    named = next((kind for ending, kind in _FORMATS.items() if name.endswith(ending)), "")
    if not files.is_directory(images):
        if not named:
            raise InputError(
                f"{images}, which is a file", _KINDS, "Give its folder, or --table-format if it is a table"
            )
        return named
    if named and named != "text":
        return named
    if not (is_table or files.exists(files.join(images, "_SUCCESS"))):
        return ""
    found = {
        kind
        for each in files.list_names(images)
        for ending, kind in _FORMATS.items()
        if each.lower().endswith(ending)
    }
    return found.pop() if len(found) == 1 else "parquet"


def check_output(images: str, output: str, what: str = "--output") -> None:
    """Refuse an output inside of what is listed, before anything is written there.

    Args:
        images: Full URI of a folder, a list or a table, or a glob.
        output: Full URI.
        what: What it is called in the error.

    Raises:
        InputError: The next run would list this one's files.
    """
    places = _spellings(output)
    try:
        is_there = files.exists(images)
    except OSError:
        return  # `find` says why
    if is_there:
        sources = [images]
        if files.is_local(images):
            sources.append(files.qualify(os.path.realpath(files.local_path(images))))
        inside = any(
            f"{each.rstrip('/')}/".startswith(f"{of.rstrip('/')}/") for each in places for of in sources
        )
    else:
        patterns = [way for pattern in listings.without_braces(images) for way in _spellings(pattern)]
        inside = any(_reaches(pattern, each) for pattern in patterns for each in places)
    if inside:
        raise output_inside(images, output, what)


def output_inside(images: str, output: str, what: str = "--output") -> InputError:
    """What to say of an output among the files that are scored."""
    return InputError(
        f"the {what.removeprefix('--')} {output} inside of the images in {images}",
        "a folder outside of them, or the next run would list this one's files",
        f"Give another {what}",
    )


# --- globs ----------------------------------------------------------------------------------------------


def _spellings(path: str) -> list[str]:
    """A path or glob as it is, and with the links in it followed."""
    if not files.is_local(path):
        return [path]
    return [path, files.qualify(os.path.realpath(files.local_path(path)))]


def _reaches(pattern: str, folder: str) -> bool:
    """Whether a glob matches a folder that need not exist, or one that it is in."""
    wanted, parts = pattern.rstrip("/").split("/"), folder.rstrip("/").split("/")
    if "**" in wanted:
        wanted = wanted[: wanted.index("**")]
    return len(wanted) <= len(parts) and all(map(fnmatch.fnmatchcase, parts, wanted))


def _of_glob(spark: SparkSession, pattern: str) -> Source:
    matches = listings.matches(pattern)
    if not matches:
        raise InputError(
            f"nothing that matches {pattern}", _KINDS, "Check --images, and quote it for the shell"
        )

    def found() -> Iterator[listings.Listed]:
        for match in matches:
            if files.is_directory(match):
                yield from listings.walk(match, by_folder=False)
            else:
                yield listings.listed(files.status(match))

    folders = tuple(
        dict.fromkeys(each if files.is_directory(each) else files.parent(each) for each in matches)
    )
    # A file can be matched by itself and by its folder.
    listing = listings.listing_table(spark, found()).dropDuplicates([schema.PATH])
    return Source(listing, listings.topmost(folders))


# --- tables ---------------------------------------------------------------------------------------------


def check_columns(rows: DataFrame, table: str, path_column: str, content_column: str) -> list[str]:
    """The further columns of a table that has these; no row is looked at.

    Args:
        rows: The table; it may be a stream.
        table: Its path, for the message.
        path_column: Name of the column of paths.
        content_column: Name of the column of the files' bytes; "" for none.

    Raises:
        InputError: One is missing, or of another type; or a further one is none that an output can hold.
    """
    wanted = [column for column in (path_column, content_column) if column]
    tables.require_columns(rows, table, wanted, ", or name others with --path-column and --content-column")
    if isinstance(rows.schema[path_column].dataType, StructType | ArrayType | MapType):
        raise InputError(
            f"a column {path_column} of type {rows.schema[path_column].dataType.simpleString()} in {table}",
            "a text: the path of a file",
            "Correct --path-column",
        )
    if content_column:
        contents.of_column(rows, content_column, table)
    return _others(rows, wanted, table)


def _of_table(
    spark: SparkSession,
    table: str,
    kind: str,
    path_column: str,
    content_column: str,
    allowed_roots: Sequence[str],
) -> Source:
    rows = tables.read_table(spark, table, kind, _KINDS)
    if kind == "text":
        path_column = rows.columns[0]
        rows = rows.select(F.regexp_replace(path_column, r"\r\z", "").alias(path_column))
        rows = rows.where(F.col(path_column) != "").distinct()
    return of_rows(spark, rows, table, files.parent(table), path_column, content_column, allowed_roots)


def of_rows(
    spark: SparkSession,
    rows: DataFrame,
    table: str,
    base: str,
    path_column: str,
    content_column: str,
    allowed_roots: Sequence[str],
) -> Source:
    """What a table stands for that is there already.

    Args:
        spark: The session.
        rows: The table.
        table: Its path, for messages.
        base: Full URI of the folder that relative paths are below.
        path_column: Name of the column of paths.
        content_column: Name of the column of the files' bytes; "" for none.
        allowed_roots: As for `find`.

    Raises:
        InputError: It is not as it has to be.
    """
    others = check_columns(rows, table, path_column, content_column)
    # From here on every name is ours: the table's own ones are fields of a struct.
    rows = rows.select(
        schema.column(path_column).cast("string").alias(_GIVEN),
        *([contents.of_column(rows, content_column, table)] if content_column else []),
        *([F.struct(*map(schema.column, others)).alias(OTHERS)] if others else []),
    )
    _check_paths(rows, table)
    if content_column:
        content = F.col(schema.CONTENT)
        whole = rows.select(
            F.col(_GIVEN).alias(schema.PATH),
            F.coalesce(F.octet_length(content).cast("long"), F.lit(-1).cast("long")).alias(schema.LENGTH),
            # In place of a time: other bytes of the same length are another file.
            F.coalesce(F.shiftrightunsigned(F.xxhash64(content), 1), F.lit(-1)).alias(schema.MODIFIED),
            F.lit(None).cast("string").alias(schema.SPECIES),
            F.when(content.isNull(), F.lit(contents.MISSING)).alias(schema.DETAIL),
            content.alias(schema.CONTENT),
        )
        listing = whole.select(*schema.LISTING.names)
        extras = rows.select(F.col(_GIVEN).alias(schema.PATH), OTHERS) if others else None
        return Source(listing, (), extras, whole)
    named = rows.select(F.col(_GIVEN).alias(schema.PATH), F.lit(None).cast("string").alias(schema.SPECIES))
    resolved, roots = references.listing_of_given_paths(spark, named, base, allowed_roots)
    listing = resolved.select(*schema.LISTING.names).dropDuplicates([schema.PATH])
    if not others:
        return Source(listing, roots)
    _check_spellings(resolved, table)
    names = resolved.select(schema.PATH, F.col("given").alias(_GIVEN))
    extras = rows.join(names, _GIVEN).select(schema.PATH, OTHERS)
    return Source(listing, roots, extras)


# The struct with a table's further columns.
OTHERS = "others"
_GIVEN = "given"
# What an output has itself; `run` is what `latest` adds, and `_metadata` is how it asks Spark for a row's file.
_TAKEN = {
    *schema.PREDICTIONS.names,
    *schema.REJECTS.names,
    schema.TOP_SPECIES,
    schema.SPECIES_SET,
    schema.PREDICTED_VALUE,
    "run",
    "_metadata",
}


def _others(rows: DataFrame, wanted: Sequence[str], table: str) -> list[str]:
    """The further columns of a table, all of which an output can hold.

    Raises:
        InputError: One has the name of another or of one of ours, for Spark, to which case is nothing, or a type
            that has no place in a Parquet file.
    """
    lower = [column.lower() for column in rows.columns]
    twice = [column for column in rows.columns if lower.count(column.lower()) > 1]
    if twice or "" in rows.columns:
        raise InputError(
            f"{table} with the columns {', '.join(twice)}"
            if twice
            else f"{table} with a column without a name",
            "names that differ by more than their case",
            "Rename one of them in the table, for example with a view",
        )
    others = [field for field in rows.schema if field.name not in wanted]
    taken = [field.name for field in others if field.name.lower() in _TAKEN]
    if taken:
        raise InputError(
            f"{table} with a column {', '.join(taken)}",
            "other names: the output has a column of that name",
            "Rename it in the table, for example with a view",
        )
    for field in others:
        if not isinstance(field.dataType, NullType) and not _is_storable(field.dataType):
            raise InputError(
                f"a column {field.name} of type {field.dataType.simpleString()} in {table}",
                "types that a Parquet file can hold",
                "Cast it in the table, for example with a view, or leave it out",
            )
    empty = [field.name for field in others if isinstance(field.dataType, NullType)]
    if empty:
        _log.warning(
            "%s: the column %s has no type, and so no value but NULL; it is left out", table, ", ".join(empty)
        )
    return [field.name for field in others if field.name not in empty]


def _is_storable(kind: DataType) -> bool:
    if isinstance(kind, StructType):
        differ = len({name.lower() for name in kind.names}) == len(kind.names)
        return bool(kind.fields) and differ and all(_is_storable(field.dataType) for field in kind)
    if isinstance(kind, ArrayType):
        return _is_storable(kind.elementType)
    if isinstance(kind, MapType):
        return _is_storable(kind.keyType) and _is_storable(kind.valueType)
    return not isinstance(kind, NullType | CalendarIntervalType)


def _check_paths(rows: DataFrame, table: str) -> None:
    counts = rows.agg(F.count("*"), F.count(F.when(F.col(_GIVEN) != "", 1)), F.countDistinct(_GIVEN))
    ((total, given, distinct),) = counts.collect()
    if given < total:
        raise InputError(
            f"{table} with {total - given} of {total} rows without a path",
            "a path in every row",
            "Remove those rows, or name another --path-column",
        )
    if distinct < total:
        (twice,) = rows.groupBy(_GIVEN).count().where("count > 1").orderBy(_GIVEN).limit(1).collect()
        raise InputError(
            f"{table}, which has {twice[0]} {twice[1]} times",
            "each path once, since each has one row in the output",
            "Remove the repeated rows",
        )


def _check_spellings(resolved: DataFrame, table: str) -> None:
    """Refuse a table that names one file twice, as `a/b` and `a//b`: whose further columns would it have?"""
    given = F.collect_set("given").alias("given")
    twice = resolved.groupBy(schema.PATH).agg(given).where(F.size("given") > 1).orderBy(schema.PATH).first()
    if twice is not None:
        raise InputError(
            f"{table}, which has {twice[0]} {len(twice[1])} times, as {' and '.join(sorted(twice[1])[:3])}",
            "each file once, since each has one row in the output",
            "Remove the repeated rows",
        )
