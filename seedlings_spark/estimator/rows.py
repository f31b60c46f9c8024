"""Which columns of a table are trained on, and which worker gets which rows."""

from dataclasses import dataclass

import numpy as np
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

from seedlings_spark import fingerprint, problems, schema
from seedlings_spark.cluster import session
from seedlings_spark.estimator import columns
from seedlings_spark.estimator.columns import feature_column, label_column
from seedlings_spark.problems import Problem
from seedlings_spark.training import curriculum, tree
from seedlings_spark.training.worker import FEATURES, HELD_OUT, LABEL, LEVEL, SHARD, WEIGHT, Recipe

_KEY, _DIFFICULTY = "key", "difficulty"


@dataclass(frozen=True)
class TrainingColumns:
    """The columns of a table that are trained on, by name.

    Args:
        features: Images, vectors or arrays.
        label: Class numbers, values or vectors.
        weight: Sample weights; "" for none.
        held_out: What marks the rows that are held out; "" for none.
        difficulty: Numbers, lower where a row is easier, for a curriculum; "" for none.
    """

    features: str
    label: str
    weight: str = ""
    held_out: str = ""
    difficulty: str = ""

    def check(self, dataset: DataFrame, recipe: Recipe, problem: Problem) -> None:
        """Look at labels, weights, features and what is held out, in one pass over the rows.

        Raises:
            CorpusError: Some rows are wrong.
        """
        label = label_column(dataset, self.label)
        if problem.labels == "vector":
            faults = columns.vectors(
                label,
                problem.num_outputs,
                self.label,
                sums_to_one=problem.kind == problems.CLASSIFICATION,
                at_most_one=problem.kind in (problems.CLASSIFICATION, problems.MULTILABEL),
            )
        elif problem.num_classes:
            faults = columns.class_numbers(label, problem.num_classes, self.label)
        else:
            faults = columns.numbers(label, self.label)
        weight = None
        if self.weight:
            weight = schema.column(self.weight).cast("double")
            faults += columns.weights(weight, self.weight)
        if self.held_out:
            faults += columns.held_out(dataset, self.held_out)
        if self.difficulty:
            faults += columns.difficulties(dataset, self.difficulty)
        of_features = columns.features(
            feature_column(dataset, self.features),
            int(np.prod(recipe.row_shape, dtype=np.int64)),
            recipe.row_shape,
            self.features,
            is_image=recipe.row_dtype == "uint8",
        )
        suspect = _unlike_prepared(dataset, recipe)
        if suspect is None:
            columns.check(dataset, [*faults, *of_features], weight)
        elif columns.check(dataset, faults, weight, suspect=suspect):
            columns.check(dataset, of_features)

    def deal(
        self, dataset: DataFrame, num_shards: int, held_out_share: float, *, are_classes: bool = False
    ) -> DataFrame:
        """The rows with the numbers of their shards, and with a curriculum their levels.

        Args:
            dataset: With these columns.
            num_shards: Shards of the run.
            held_out_share: Share of the rows, chosen by their hashes, where no column marks them.
            are_classes: Whether labels are class numbers: each class then has its own quarters of rising difficulty, so
                that no epoch is without one.
        """
        weight = schema.column(self.weight).cast("double") if self.weight else F.lit(1.0)
        by_content = schema.has_content_hash(dataset)
        chosen = dataset.select(
            feature_column(dataset, self.features).alias(FEATURES),
            label_column(dataset, self.label).alias(LABEL),
            weight.alias(WEIGHT),
            *([F.col(schema.CONTENT_HASH).alias(_KEY)] if by_content else []),
            *([schema.column(self.held_out).alias(HELD_OUT)] if self.held_out else []),
            *([schema.column(self.difficulty).cast("double").alias(_DIFFICULTY)] if self.difficulty else []),
        )
        if not by_content:
            hashed = F.sha2(F.xxhash64(FEATURES, LABEL, WEIGHT).cast("string").cast("binary"), 256)
            chosen = chosen.withColumn(_KEY, hashed)
        if not self.held_out:
            digits = F.conv(F.substring(_KEY, 20, fingerprint.DIGITS), 16, 10).cast("double")
            position = digits / 16.0**fingerprint.DIGITS
            chosen = chosen.withColumn(HELD_OUT, position < F.lit(float(held_out_share)))
        shard = F.pmod(
            F.conv(F.right(F.col(_KEY), F.lit(fingerprint.DIGITS)), 16, 10).cast("long"),
            F.lit(num_shards),
        )
        dealt = chosen.withColumn(SHARD, shard.cast("int"))
        return _with_levels(dealt, are_classes=are_classes) if self.difficulty else dealt


def _with_levels(rows: DataFrame, *, are_classes: bool) -> DataFrame:
    """The rows with `LEVEL` in place of their difficulty: of rows to train on the quarter, of all or of their class.

    Rows of one difficulty are of one quarter.
    """
    shares = F.array(*[F.lit(place / curriculum.LEVELS) for place in range(1, curriculum.LEVELS)])
    # Exact, as an approximation would depend on how the rows lie in partitions.
    edges = F.percentile(F.col(_DIFFICULTY), shares)
    of_class = F.col(LABEL) if are_classes else F.lit(0.0)
    found = rows.where(~F.col(HELD_OUT)).groupBy(of_class.alias(LABEL)).agg(edges.alias("edges")).collect()
    if not found:  # which the engine refuses
        return rows.drop(_DIFFICULTY).withColumn(LEVEL, F.lit(0))
    known = [each for row in found for each in (F.lit(float(row[LABEL])), F.array(*map(F.lit, row["edges"])))]
    above = F.filter(F.create_map(*known)[of_class], lambda edge: F.col(_DIFFICULTY) > edge)
    level = F.when(F.col(HELD_OUT), F.lit(0)).otherwise(F.size(above))
    return rows.withColumn(LEVEL, level).drop(_DIFFICULTY)


def rows_of_workers(dealt: DataFrame, num_shards: int, num_workers: int) -> DataFrame:
    """The rows of all workers: partition r holds the shards of rank r, one after the other, each by its hashes.

    The order depends on the rows only, also where some with one hash have been made of one picture.

    Args:
        dealt: What `TrainingColumns.deal` gives.
        num_shards: Shards of the run.
        num_workers: Workers, at most as many.
    """
    ranks = [rank for rank in range(num_workers) for _ in tree.shards_of(rank, num_workers, num_shards)]
    rank = F.element_at(F.array(*map(F.lit, ranks)), F.col(SHARD) + 1)
    partition = session.partition_key(rank, num_workers)
    levels = [LEVEL] if LEVEL in dealt.columns else []
    return (
        dealt.repartition(num_workers, partition)
        .sortWithinPartitions(SHARD, _KEY, LABEL, WEIGHT, HELD_OUT, FEATURES, *levels)
        .select(SHARD, FEATURES, LABEL, WEIGHT, HELD_OUT, *levels)
    )


def _unlike_prepared(dataset: DataFrame, recipe: Recipe) -> Column | None:
    """Which rows are not of the network's size by what `prepare` wrote beside each image; None where it did not.

    To ask the images themselves would read them all once more, which takes a sixth of the time that it takes to hand
    them to the workers. Those look at each row that they get.
    """
    known = {schema.HEIGHT, schema.WIDTH} <= set(dataset.columns) and schema.has_content_hash(dataset)
    if recipe.row_dtype != "uint8" or not known:
        return None
    height, width = recipe.row_shape[:2]
    return (F.col(schema.HEIGHT) != height) | (F.col(schema.WIDTH) != width)
