"""Which image goes into which split, and which ones are a sample."""

from collections.abc import Mapping
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

from seedlings_spark import fingerprint, schema
from seedlings_spark.choices import SPLIT_POLICIES
from seedlings_spark.corpus import decoding
from seedlings_spark.errors import OptionError


@dataclass(frozen=True)
class SplitRule:
    """Which image goes into which split.

    Args:
        shares: Split -> share, adding up to 1.
        policy: "hash": an image's split depends on its bytes alone. "stratified": exact shares in every species, for
            which images that are added later may move others.

    Raises:
        OptionError: No such policy, or other shares.
    """

    shares: Mapping[str, float]
    policy: str = "hash"

    def __post_init__(self) -> None:
        if self.policy not in SPLIT_POLICIES:
            expected = f"one of {', '.join(SPLIT_POLICIES)}"
            raise OptionError(f"split_policy {self.policy!r}", expected, "Choose one of them")
        values = self.shares.values()
        if not values or min(values) < 0 or abs(sum(values) - 1) > 1e-9:
            raise OptionError(f"shares {dict(self.shares)}", "shares that add up to 1", "Correct them")

    def applied(self, accepted: DataFrame) -> DataFrame:
        """Accepted images with a split each; the same bytes are never in two."""
        if self.policy == "hash":
            return accepted.withColumn(schema.SPLIT, split_by_hash(self.shares))
        return accepted.join(stratified(accepted, self.shares), [schema.CONTENT_HASH, schema.SPECIES])


def sample_of(
    spark: SparkSession, listing: DataFrame, roots: tuple[str, ...], task: decoding.DecodeTask, sample: float
) -> DataFrame:
    """The share of each species' readable files with the smallest `fingerprint.sample_key`.

    To choose by content all bytes have to be read, but only what is chosen is decoded.
    """
    hashed = decoding.hash_all(spark, listing, roots, task)
    key = F.sha2(F.concat(F.lit(fingerprint.SAMPLE_PREFIX), F.col(schema.CONTENT_HASH)), 256)
    readable = hashed.where(F.col(schema.CONTENT_HASH).isNotNull()).withColumn("key", key)
    # Rounded, since 100 * 0.07 is a little more than 7.
    share = F.ceil(F.round(F.count("*").over(Window.partitionBy(schema.SPECIES)) * F.lit(sample), 6))
    place = F.row_number().over(Window.partitionBy(schema.SPECIES).orderBy("key", schema.PATH))
    ranked = readable.withColumns({"place": place, "share": share})
    return ranked.where("place <= share").select(*schema.LISTING.names)


def split_by_hash(shares: Mapping[str, float]) -> Column:
    """`fingerprint.split_of` in Spark SQL."""
    digits = F.substring(schema.CONTENT_HASH, 1, fingerprint.DIGITS)
    place = F.conv(digits, 16, 10).cast("long").cast("double") / F.lit(float(16**fingerprint.DIGITS))
    names, edge = list(shares), 0.0
    split: Column | None = None
    for name in names[:-1]:
        edge += shares[name]
        split = (F if split is None else split).when(place < F.lit(edge), F.lit(name))
    return F.lit(names[-1]) if split is None else split.otherwise(F.lit(names[-1]))


def stratified(accepted: DataFrame, shares: Mapping[str, float]) -> DataFrame:
    """Exact shares of each species' different images, in the order of their hashes."""
    contents = accepted.select(schema.CONTENT_HASH, schema.SPECIES).distinct()
    by_hash = Window.partitionBy(schema.SPECIES).orderBy(schema.CONTENT_HASH)
    place = F.row_number().over(by_hash)
    total = F.count("*").over(Window.partitionBy(schema.SPECIES))
    names, edge = list(shares), 0.0
    split: Column | None = None
    for name in names[:-1]:
        edge += shares[name]
        split = (F if split is None else split).when(
            # Rounded twice, since 50 * 0.29 is a little less than 14.5.
            F.col("place") <= F.round(F.round(F.col("total") * edge, 6)),
            F.lit(name),
        )
    chosen = F.lit(names[-1]) if split is None else split.otherwise(F.lit(names[-1]))
    return (
        contents.withColumns({"place": place, "total": total})
        .withColumn(schema.SPLIT, chosen)
        .select(schema.CONTENT_HASH, schema.SPECIES, schema.SPLIT)
    )
