"""Pictures that are nearly the same: one saved anew, made smaller, brighter, or taken a moment later.

Two of them in two splits make a model look better than it is. They are found by perceptual hashes of the pixels that a
corpus holds (`images.perceptual`).
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

from seedlings_spark import schema
from seedlings_spark.corpus import tables
from seedlings_spark.corpus.splits import SETTLED, UNIT, joined
from seedlings_spark.images import perceptual

# So many bits may differ: less than a tenth.
MOST_BITS = 24
# If so many differ, one of more parts than that is the same. Each takes bits from everywhere in the hash: neighbours
# have much in common.
_PARTS = MOST_BITS + 1
_PART_OF_BIT = np.arange(perceptual.BITS) % _PARTS
_WORDS = perceptual.BITS // 64
_FIRST, _SECOND = "first", "second"
_HASHES = f"{schema.CONTENT_HASH} string, words array<bigint>, parts array<int>"


def find(spark: SparkSession, images: DataFrame, size: tuple[int, int], target: str) -> DataFrame:
    """Pairs of pictures that are nearly the same, by a pass over all pixels.

    Args:
        spark: The session.
        images: With `content_hash` and `image`.
        size: (height, width) in pixels.
        target: A folder for the pairs.

    Returns:
        Columns `first` and `second`, two content hashes, and `distance`, the bits that differ: each two of different
        perceptual hashes that are near each other, and of those that have one in common each with the first.
    """
    hashes = (
        images.select(schema.CONTENT_HASH, schema.IMAGE)
        .mapInArrow(partial(_hash_batches, size=size), _HASHES)
        .dropDuplicates([schema.CONTENT_HASH])
        .persist()
    )
    try:
        near(hashes).write.options(**tables.write_options(target)).parquet(target)
    finally:
        hashes.unpersist()
    return spark.read.schema(f"{_FIRST} string, {_SECOND} string, distance int").parquet(target)


def _hash_batches(batches: Iterator[pa.RecordBatch], size: tuple[int, int]) -> Iterator[pa.RecordBatch]:
    perceptual.require()
    for batch in batches:
        pixels = (
            np.frombuffer(image.as_buffer(), np.uint8).reshape(*size, 3)
            for image in batch.column(schema.IMAGE)
        )
        hashes = [words_and_parts(perceptual.perceptual_hash(each)) for each in pixels]
        words = pa.array([words for words, _ in hashes], pa.list_(pa.int64()))
        parts = pa.array([parts for _, parts in hashes], pa.list_(pa.int32()))
        columns = [batch.column(schema.CONTENT_HASH), words, parts]
        yield pa.RecordBatch.from_arrays(columns, names=[schema.CONTENT_HASH, "words", "parts"])


def words_and_parts(bits: NDArray[np.bool_]) -> tuple[list[int], list[int]]:
    """The bits of a perceptual hash as numbers: all of them, to count those that differ, and parts to look up."""
    parts = (np.flatnonzero(bits[part == _PART_OF_BIT]) for part in range(_PARTS))
    return np.packbits(bits).view(">i8").tolist(), [int((1 << places).sum()) for places in parts]


def near(hashes: DataFrame) -> DataFrame:
    """Pairs, as `find` gives them, of perceptual hashes: `content_hash`, and what `words_and_parts` gives."""
    one_of = hashes.groupBy("words").agg(
        F.min(schema.CONTENT_HASH).alias(_FIRST), F.first("parts").alias("parts")
    )
    alike = hashes.join(one_of.select("words", _FIRST), "words")
    alike = alike.where(F.col(schema.CONTENT_HASH) > F.col(_FIRST))
    alike = alike.select(_FIRST, F.col(schema.CONTENT_HASH).alias(_SECOND), F.lit(0).alias("distance"))
    first, second = (_by_part(one_of, name) for name in (_FIRST, _SECOND))
    candidates = first.join(second, ["part", "bits"]).where(F.col(_FIRST) < F.col(_SECOND))
    distance = sum(
        (
            _num_different(F.col(f"words of {_FIRST}")[word], F.col(f"words of {_SECOND}")[word])
            for word in range(_WORDS)
        ),
        F.lit(0),
    )
    close = candidates.withColumn("distance", distance).where(F.col("distance") <= MOST_BITS)
    return alike.union(close.select(_FIRST, _SECOND, "distance").distinct())


def _by_part(one_of: DataFrame, name: str) -> DataFrame:
    words = F.col("words").alias(f"words of {name}")
    return one_of.select(F.col(_FIRST).alias(name), words, F.posexplode("parts").alias("part", "bits"))


def _num_different(one: Column, other: Column) -> Column:
    return F.bit_count(one.bitwiseXOR(other))


def together(rows: DataFrame, pairs: DataFrame, settled: DataFrame | None) -> DataFrame:
    """Rows whose units are joined where their pictures are nearly the same.

    Args:
        rows: With `splits.UNIT` and `content_hash`.
        pairs: As `find` gives them.
        settled: `content_hash` and `split` of pictures that have a split already, if there are any.

    Returns:
        The same with the joined units, and with `splits.SETTLED`: the split of a picture that has one already, where
        the unit has such a picture; of several the one that is measured on.
    """
    of_content = rows.where(F.col(schema.REASON).isNull()).select(schema.CONTENT_HASH, UNIT).distinct()
    known: dict[str, str] = {}
    if settled is not None:
        there = pairs.select(F.explode(F.array(_FIRST, _SECOND)).alias(schema.CONTENT_HASH)).distinct()
        known = {
            str(row[0]): str(row[1])
            for row in settled.select(schema.CONTENT_HASH, schema.SPLIT)
            .join(there, schema.CONTENT_HASH)
            .distinct()
            .collect()
        }
    linked = pairs.select(_FIRST, _SECOND)
    for side in (_FIRST, _SECOND):
        units = of_content.select(
            F.col(schema.CONTENT_HASH).alias(side), F.col(UNIT).alias(f"unit of {side}")
        )
        linked = linked.join(units, side, "left")
    # Of a picture of the parent its content hash is the unit.
    links = [
        (str(first if unit is None else unit), str(second if other is None else other))
        for first, second, unit, other in linked.select(
            _FIRST, _SECOND, f"unit of {_FIRST}", f"unit of {_SECOND}"
        ).collect()
    ]
    unit_of = joined(links)
    split_of: dict[str, str] = {}
    for content, split in known.items():
        unit = unit_of.get(content, content)
        split_of[unit] = max(split_of.get(unit, split), split, key=schema.SPLITS.index)
    if not unit_of:
        return rows.withColumn(SETTLED, F.lit(None).cast("string"))
    table = rows.sparkSession.createDataFrame(
        [(unit, name, split_of.get(name)) for unit, name in unit_of.items()],
        f"{UNIT} string, joined string, {SETTLED} string",
    )
    rows = rows.join(F.broadcast(table), UNIT, "left")
    return rows.withColumn(UNIT, F.coalesce("joined", UNIT)).drop("joined")


def described(pairs: DataFrame, images: DataFrame) -> DataFrame:
    """The pairs with what is known of each picture of a corpus, as `schema.NEAR_DUPLICATES`.

    Args:
        pairs: As `find` gives them.
        images: Those of the corpus. Of several with the same bytes the first by path stands for all.
    """
    of_content = images.groupBy(schema.CONTENT_HASH).agg(
        F.min(F.struct(schema.PATH, schema.SPECIES, schema.SPLIT)).alias("picture")
    )
    table = pairs
    for side in (_FIRST, _SECOND):
        of_side = of_content.select(
            F.col(schema.CONTENT_HASH).alias(side),
            *[
                F.col("picture")[name].alias(f"{side}_{name}")
                for name in (schema.PATH, schema.SPECIES, schema.SPLIT)
            ],
        )
        table = table.join(of_side, side)
    return table.select(*schema.NEAR_DUPLICATES.names).orderBy("distance", "first_path", "second_path")


def about(table: DataFrame, policy: str, num_examples: int) -> dict[str, Any]:
    """What a manifest says of the pairs of a corpus, a table of `schema.NEAR_DUPLICATES`."""
    in_two_splits = F.col("first_split") != F.col("second_split")
    of_two_species = F.col("first_species") != F.col("second_species")
    ones = [F.count("*"), *(F.count(F.when(condition, 1)) for condition in (in_two_splits, of_two_species))]
    (counts,) = table.agg(*ones).collect()
    first = table.orderBy(~in_two_splits, ~of_two_species, "distance", "first_path", "second_path")
    return {
        "policy": policy,
        "most_bits": MOST_BITS,
        "bits": perceptual.BITS,
        "pairs": int(counts[0]),
        "in_two_splits": int(counts[1]),
        "of_two_species": int(counts[2]),
        "examples": [row.asDict() for row in first.limit(num_examples).collect()],
    }
