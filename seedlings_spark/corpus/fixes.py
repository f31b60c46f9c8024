"""Labels that a person has corrected: what `explore` suggests as `fixes.csv`, and `prepare` takes.

A fix is of the bytes of a picture and of the label that it had: copies of a picture are fixed together, a picture that
was moved is found, and one whose label has been corrected already is not corrected again. The labels that a person has
given on the page of `score`, where no label was to be seen, hold whatever a picture was labelled before.
"""

from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

from seedlings_spark import display, files, schema
from seedlings_spark.corpus import tables
from seedlings_spark.errors import CorpusError, InputError

KEEP, CORRECT, DROP = "keep", "correct", "drop"
ACTION, NEW_SPECIES = "action", "suggested"
DROPPED = "dropped"  # the reason of a reject
COLUMNS = (schema.PATH, schema.CONTENT_HASH, schema.SPECIES, ACTION)
_FIX = "fix"


def read(spark: SparkSession, table: str) -> DataFrame:
    """The fixes of a CSV file that change something: `content_hash`, `species`, `action` and `suggested`.

    `species` is null in those of any label. A table without `action` and `suggested` has labels, which correct others.

    Raises:
        CorpusError: It has other columns, an action that is none, a correction without a species, or two fixes of a
            picture.
    """
    try:
        rows = tables.read_table(spark, table, "csv", "a CSV file as explore writes it")
    except InputError as error:
        raise CorpusError(error.found, error.expected, "Check --fixes") from None
    wanted = [schema.CONTENT_HASH, schema.SPECIES, ACTION, NEW_SPECIES]
    has_labels_only = not {ACTION, NEW_SPECIES} & {*rows.columns}
    if has_labels_only and {schema.CONTENT_HASH, schema.SPECIES} <= {*rows.columns}:
        added = {ACTION: F.lit(CORRECT), NEW_SPECIES: F.col(schema.SPECIES)}
        rows = rows.withColumns({**added, schema.SPECIES: F.lit(None).cast("string")})
    known = ", as in the fixes.csv of explore; or content_hash and species, as in the labels.csv of score's review"
    tables.require_columns(rows, table, wanted, known, CorpusError)
    # What a spreadsheet would take for a formula was written with a quote before it.
    rows = rows.select(*(F.regexp_replace(F.trim(name), display.QUOTED, "").alias(name) for name in wanted))
    _refuse(
        rows.where(~F.coalesce(F.col(ACTION), F.lit(KEEP)).isin(KEEP, CORRECT, DROP)),
        table,
        "an action that is none of keep, correct and drop",
        "one of them in each row",
    )
    changes = rows.where(F.col(ACTION).isin(CORRECT, DROP)).distinct()
    lacks = (F.col(ACTION) == CORRECT) & (F.coalesce(F.col(NEW_SPECIES), F.lit("")) == "")
    _refuse(changes.where(lacks), table, "a correction, and no species in the column suggested", "a species")
    twice = changes.groupBy(schema.CONTENT_HASH).count().where("count > 1")
    _refuse(
        changes.join(twice, schema.CONTENT_HASH, "left_semi"),
        table,
        "another fix of the same picture",
        "one each",
    )
    return changes


def _refuse(rows: DataFrame, table: str, what: str, expected: str) -> None:
    if count := rows.count():
        (first,) = rows.orderBy(schema.CONTENT_HASH).limit(1).collect()
        raise CorpusError(
            f"{count:,} rows of {files.name(table)} with {what}, such as that of {first[schema.CONTENT_HASH]}"
            f" ({first[ACTION]})",
            expected,
            "Correct the table",
        )


def applied(rows: DataFrame, changes: DataFrame) -> DataFrame:
    """Decoded files with their labels corrected, and those to drop rejected.

    Args:
        rows: As `schema.DECODED`.
        changes: As `read` gives them.
    """
    joined = _joined(rows, changes, "left")
    action = F.col(f"{_FIX} {ACTION}")
    is_dropped, is_corrected = (F.coalesce(action == each, F.lit(False)) for each in (DROP, CORRECT))
    return joined.withColumns(
        {
            schema.SPECIES: F.when(is_corrected, F.col(f"{_FIX} {NEW_SPECIES}")).otherwise(
                F.col(schema.SPECIES)
            ),
            schema.IMAGE: F.when(~is_dropped, F.col(schema.IMAGE)),
            schema.REASON: F.when(is_dropped, F.lit(DROPPED)).otherwise(F.col(schema.REASON)),
            schema.STAGE: F.when(is_dropped, F.lit("label")).otherwise(F.col(schema.STAGE)),
            schema.DETAIL: F.when(is_dropped, F.concat(F.lit("labelled "), F.col(schema.SPECIES))).otherwise(
                F.col(schema.DETAIL)
            ),
        }
    ).select(*rows.columns)


def _joined(rows: DataFrame, changes: DataFrame, how: str) -> DataFrame:
    """Decoded files beside the fixes that are theirs, in columns of other names."""
    columns = [F.col(name).alias(f"{_FIX} {name}") for name in changes.columns]
    before = F.col(f"{_FIX} {schema.SPECIES}")
    return rows.join(
        F.broadcast(changes.select(*columns)),
        (F.col(schema.CONTENT_HASH) == F.col(f"{_FIX} {schema.CONTENT_HASH}"))
        & (before.isNull() | (F.col(schema.SPECIES) == before))
        & F.col(schema.REASON).isNull(),
        how,
    )


def about(rows: DataFrame, changes: DataFrame, table: str) -> dict[str, Any]:
    """What a manifest says of fixes.

    Args:
        rows: Decoded files before they were fixed.
        changes: As `read` gives them.
        table: Where they stand.
    """
    of_files = _joined(rows, changes, "inner")
    action = F.col(f"{_FIX} {ACTION}")
    is_as_wanted = (action == CORRECT) & (F.col(schema.SPECIES) == F.col(f"{_FIX} {NEW_SPECIES}"))
    changed = of_files.where(~is_as_wanted).groupBy(action).count()
    counts = {row[0]: int(row[1]) for row in changed.collect()}
    (found,) = of_files.agg(F.countDistinct(schema.CONTENT_HASH)).collect()
    return {
        "table": table,
        "corrected": counts.get(CORRECT, 0),
        "dropped": counts.get(DROP, 0),
        "not_found": changes.count() - int(found[0]),
    }
