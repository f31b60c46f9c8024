"""Tables of others, and tables of ours, as Spark reads them: whole, or not at all."""

import codecs
import contextlib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
from py4j.protocol import Py4JJavaError
from pyspark.errors import AnalysisException, IllegalArgumentException, SparkRuntimeException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import StringType, StructField, StructType

from seedlings_spark import files, schema
from seedlings_spark.cluster import connect, session
from seedlings_spark.errors import InputError, SeedlingsError, in_brief

# Spark puts the lines of a CSV file that it cannot read into this column.
_NOT_READ = "seedlings_not_read"
_GLOB_CHARACTERS = re.compile(r"[\\*?\[\]{}]")
# What Spark raises where it cannot read what it is given.
NOT_READABLE = (AnalysisException, Py4JJavaError, IllegalArgumentException, SparkRuntimeException)


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
    except NOT_READABLE as error:
        raise InputError(
            f"{table}, which Spark cannot read as {kind} ({in_brief(error)})",
            expected,
            "Check --images",
        ) from None


# Types of columns that are Python classes, and that Spark itself brings.
_OWN_CLASSES = re.compile(r"pyspark\.ml(?:lib)?\.linalg\.(?:Vector|Matrix)UDT")


def require_columns(
    rows: DataFrame, table: str, wanted: Sequence[str], action: str, error: type[SeedlingsError] = InputError
) -> None:
    """Refuse a table that lacks columns.

    Args:
        rows: The table.
        table: Its path, for the message.
        wanted: Names of columns.
        action: What else than to add what is missing can be done about it; it follows "Add NAME".
        error: What is raised.
    """
    missing = [name for name in wanted if name not in rows.columns]
    if missing:
        raise error(
            f"{table} with the columns {', '.join(rows.columns)[:200]}",
            f"the columns {' and '.join(wanted)}",
            f"Add {' and '.join(missing)}{action}",
        )


def _check_types(rows: DataFrame, table: str) -> None:
    """Refuse a table with a column of somebody's own class, before Spark unpickles that from the table's metadata."""

    def refused(what: str) -> InputError:
        return InputError(
            f"{table}, with a column of {what}",
            "columns of Spark's own types: a table is data, and what it brings is never run",
            "Convert the column, or leave it out of the table",
        )

    def look(found: dict[str, Any]) -> dict[str, Any]:
        name = found.get("pyClass") if found.get("type") == "udt" else None
        if name is not None and not _OWN_CLASSES.fullmatch(str(name)):
            raise refused(f"the Python class {name}")
        return found

    if not connect.is_connect(rows.sparkSession):
        json.loads(rows._jdf.schema().json(), object_hook=look)
    elif connect.has_python_class(rows):
        raise refused("a Python class")


def parquet(spark: SparkSession, path: str | Sequence[str], layout: StructType) -> DataFrame:
    """A Parquet table of ours, in one folder or several, of which nothing is passed over in silence.

    Spark does not compare pages with their checksums by default, and a site's settings may let it leave out what it
    cannot read.
    """
    reader = spark.read.schema(layout).options(**session.PARQUET_CHECKSUMS)
    return reader.options(ignoreCorruptFiles="false", ignoreMissingFiles="false").parquet(
        *map(literal, [path] if isinstance(path, str) else path)
    )


def write_options(path: str) -> dict[str, str]:
    """Options for writing a table of ours, all of whose rows are counted before it is used.

    Where a rename is a copy, each task puts its files into place, once; by default the driver would copy them again.
    """
    return {} if files.renames(path) else {"mapreduce.fileoutputcommitter.algorithm.version": "2"}


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
        (first,) = ragged.limit(1).collect()
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


def arrow_schema(table: StructType) -> pa.Schema:
    """The Arrow schema of a table's layout, for batches that a task yields."""
    return to_arrow_schema(table)
