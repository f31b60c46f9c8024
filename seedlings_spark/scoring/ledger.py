"""Which files have been seen by earlier runs of one output, and what became of them.

Each run leaves, in its own folder, what it has made of its files; so run and ledger appear by one rename. Now and
then a run writes down the whole ledger in place of its own part, which then makes the earlier parts superfluous: a
reader needs that one and at most `MOST_PARTS` later ones, however many runs there are. Everything here is a join
or an aggregation of Spark's, and nothing of the size of the listing is in the driver.
"""

from dataclasses import dataclass

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

from seedlings_spark import files, schema
from seedlings_spark.corpus import tables
from seedlings_spark.scoring.runs import Runs, as_spark_names, folder_of

FOLDER = "ledger"
MOST_PARTS = 24
# Rejects that another attempt might read: the file system's doing, not the file's.
RETRIED = ("unreadable", "changed")

NEW, ALREADY_SCORED, ALREADY_REJECTED = "new", "already_scored", "already_rejected"
STATUS = "status"
_PART = "part"


@dataclass(frozen=True)
class Ledger:
    """The parts of a ledger.

    Args:
        output: Folder of the runs.
        runs: Those with a part that counts, the oldest first.
    """

    output: str
    runs: tuple[str, ...] = ()

    @property
    def is_long(self) -> bool:
        """Whether the next run had better write the whole ledger."""
        return len(self.runs) >= MOST_PARTS

    def read(self, spark: SparkSession) -> DataFrame:
        """The newest entry of each path, as `schema.LEDGER`."""
        if len(self.runs) == 1:
            return part_of(spark, self.output, self.runs[0])
        # One table of all: a union of so many would be a plan of so many parts.
        runs = Runs(self.output)
        folders = [runs.tables_path(run) for run in self.runs]
        entries = tables.parquet(spark, [files.join(folder, FOLDER) for folder in folders], schema.LEDGER)
        number = F.array_position(
            F.array(*[F.lit(as_spark_names(folder)) for folder in folders]), folder_of(FOLDER)
        )
        return _newest(entries.withColumn(_PART, number))

    def compare(self, spark: SparkSession, listing: DataFrame, model: str, *, rescore: bool) -> DataFrame:
        """A listing with the further column `status`: new, already_scored or already_rejected.

        Args:
            spark: The session.
            listing: A table of `schema.LISTING`.
            model: Name and version.
            rescore: Whether what another version has scored is new.
        """
        if not self.runs:
            return listing.withColumn(STATUS, F.lit(NEW))
        entry = F.struct(*[name for name in schema.LEDGER.names if name != schema.PATH])
        known = self.read(spark).select(schema.PATH, entry.alias("entry"))
        reason, same_model = (
            F.col("entry").getField(schema.REASON),
            F.col("entry").getField(schema.MODEL) == model,
        )
        is_same = (F.col("entry").getField(schema.LENGTH) == F.col(schema.LENGTH)) & (
            F.col("entry").getField(schema.MODIFIED) == F.col(schema.MODIFIED)
        )
        status = (
            F.when(F.col("entry").isNull() | ~is_same | (F.col(schema.LENGTH) < 0), NEW)
            .when(reason.isNull() & (F.lit(not rescore) | same_model), ALREADY_SCORED)
            .when(reason.isNull() | reason.isin(*RETRIED), NEW)
            .otherwise(ALREADY_REJECTED)
        )
        return listing.join(known, schema.PATH, "left").withColumn(STATUS, status).drop("entry")


def part_of(spark: SparkSession, output: str, run: str) -> DataFrame:
    """The entries that a run has left."""
    path = files.join(Runs(output).tables_path(run), FOLDER)
    return tables.parquet(spark, path, schema.LEDGER)


def with_newer(earlier: DataFrame, newer: DataFrame) -> DataFrame:
    """The entries of two tables of `schema.LEDGER`, of each path the newer one."""
    return _newest(earlier.withColumn(_PART, F.lit(0)).union(newer.withColumn(_PART, F.lit(1))))


def _newest(entries: DataFrame) -> DataFrame:
    """Of each path the entry of the highest `_PART`."""
    rest = [name for name in schema.LEDGER.names if name != schema.PATH]
    chosen = entries.groupBy(schema.PATH).agg(F.max_by(F.struct(*rest), F.col(_PART)).alias("entry"))
    return chosen.select(schema.PATH, *[F.col("entry").getField(name).alias(name) for name in rest])
