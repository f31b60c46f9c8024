"""Accuracy on parts of a split: by columns that its corpus keeps, by species, and by what pictures themselves are like.

A slice is the pictures with one value of a column, or with two values of two columns. A column with more than
`MAX_VALUES` values is cut into quarters if all of them are numbers, dates or times; otherwise the most frequent ones
are slices, and the rest is one. Pictures without a value are a slice of their own.

Each slice of at least `LEAST` pictures, single or of a pair, is compared with the rest of the split by Fisher's exact
test, one-sided: whether fewer of it are right than chance would have. The p-values are adjusted for the number of
these tests (Holm). A pair is worth naming only if it is worse than what else there is of both its values: any
pair with a camera that fails is bad.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, pairwise

import pyarrow as pa
from pyspark.sql import Column, DataFrame, Row, SparkSession, Window
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it
from pyspark.sql.types import DataType, DateType, NumericType, StringType, TimestampNTZType, TimestampType

from seedlings_spark import schema
from seedlings_spark.reports import drift
from seedlings_spark.reports.evaluation import wilson
from seedlings_spark.reports.paired import LEVEL, holm

# Fewer pictures tell an accuracy to 20 points and more.
LEAST = 20
MAX_VALUES = 20
_QUARTERS = (0.25, 0.5, 0.75)
# As many as a person looks at.
_MAX_WORST = 20
MISSING, OTHERS = "(none)", "(others)"
# Whether a row is of the split that is looked at, or of the one that it is compared with; and whether it is right.
IS_LOOKED_AT, IS_RIGHT = "seedlings_is_looked_at", "seedlings_is_right"

# What a text may be, too.
_READINGS = ("number", "moment")
_PIXELS = (schema.LENGTH, schema.HEIGHT, schema.WIDTH, schema.IMAGE)

# Places of a column and of one of its values, and of a second column and value or -1 and -1.
Key = tuple[int, int, int, int]


@dataclass(frozen=True)
class Slice:
    """Some pictures of a split.

    Attributes:
        values: Column -> value: one, or two.
        num_images: How many there are.
        right: How many of them are right.
        p_value: How probable so few right ones are where it is as good as the rest of the split, adjusted for the
            number of tests; None of fewer than `LEAST` pictures, and where there is no rest.
        train_images: How many pictures of the training images that were looked at have the value; None for pairs.
    """

    values: Mapping[str, str]
    num_images: int
    right: int
    p_value: float | None
    train_images: int | None = None

    @property
    def name(self) -> str:
        """Columns and values in words."""
        return ", ".join(f"{column} {value}" for column, value in self.values.items())

    @property
    def accuracy(self) -> float:
        """The share that is right; not a number without pictures."""
        return self.right / self.num_images if self.num_images else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy."""
        return wilson(self.right, self.num_images)

    def to_dict(self) -> dict[str, object]:
        """The same for JSON."""
        found: dict[str, object] = {
            "values": dict(self.values),
            "num_images": self.num_images,
            "right": self.right,
            "accuracy": self.accuracy if self.num_images else None,
            "accuracy_interval": list(self.interval) if self.num_images else None,
            "p_value": self.p_value,
        }
        return found if self.train_images is None else {**found, "train_images": self.train_images}


@dataclass(frozen=True)
class Slices:
    """The slices of a split.

    Attributes:
        num_images: Pictures of the split.
        singles: Those of one value each, in the order of columns and values.
        worst: Those of one or two values that are worse than the rest at `paired.LEVEL`, the least p-value first.
        num_tests: How many slices were compared with the rest.
        train_images: Pictures of the training split that were looked at; 0 where none were.
        compared: Of each column how far the split is from these; empty where there are none.
    """

    num_images: int
    singles: tuple[Slice, ...]
    worst: tuple[Slice, ...]
    num_tests: int
    train_images: int
    compared: tuple[drift.Drift, ...]

    @property
    def least(self) -> int:
        """How many pictures a slice needs that is compared with the rest."""
        return LEAST

    @property
    def shifted(self) -> list[str]:
        """Names of the columns that differ from the training split's by more than chance explains."""
        return [each.name for each in self.compared if each.verdict in (drift.DRIFTING, drift.SHIFTED)]

    def to_dict(self) -> dict[str, object]:
        """The same for JSON."""
        return {
            "least_images": LEAST,
            "num_tests": self.num_tests,
            "singles": [each.to_dict() for each in self.singles],
            "worst": [each.to_dict() for each in self.worst],
            "train_images": self.train_images,
            "beside_train": [each.to_dict() for each in self.compared],
        }


def described(images: DataFrame, names: Sequence[str]) -> DataFrame:
    """Path, content hash and values of pictures, the columns called as `names`.

    Args:
        images: As `schema.CORPUS`, with further columns.
        names: Of these columns, or `drift.STATISTICS`: what a column of the table is called is that one.
    """
    key = [schema.column(name) for name in (schema.PATH, schema.CONTENT_HASH)]
    own = [
        schema.column(name).alias(_value(place)) for place, name in enumerate(names) if name in images.columns
    ]
    measured = {name: place for place, name in enumerate(names) if name not in images.columns}
    rows = images.select(*key, *own)
    if measured:
        rows = images.select(*key, *own, *_PIXELS)
        kinds = {
            field.name: field.dataType.simpleString() for field in rows.schema if field.name not in _PIXELS
        }
        kinds |= {_value(place): "double" for place in measured.values()}
        layout = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
        rows = rows.mapInArrow(partial(_measured, measured), layout)
    values = (schema.column(_value(place)).alias(name) for place, name in enumerate(names))
    return rows.select(schema.PATH, schema.CONTENT_HASH, *values)


def _value(place: int) -> str:
    return f"value_{place}"


def _measured(names: Mapping[str, int], batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Rows with statistics in place of their pixels; the size is that of the file in bytes."""
    for batch in batches:
        if not batch.num_rows:
            continue
        lengths = batch.column(schema.LENGTH)
        filled = lengths.fill_null(0).to_numpy(zero_copy_only=False)
        found = drift.statistics(drift.pixels_of(batch), filled)
        columns = {
            _value(place): lengths.cast(pa.float64()) if name == "size" else pa.array(found[name])
            for name, place in names.items()
        }
        kept = [name for name in batch.schema.names if name not in _PIXELS]
        yield pa.RecordBatch.from_pydict({**{name: batch.column(name) for name in kept}, **columns})


def slices(rows: DataFrame, names: Sequence[str]) -> Slices:
    """Count the slices of a table.

    Args:
        rows: One row a picture, with `IS_LOOKED_AT`, `IS_RIGHT` (null where it does not matter) and columns of values.
        names: Of these columns.
    """
    kinds = [rows.schema[name].dataType for name in names]
    read = [
        F.struct(*_readings(schema.column(name), kind)).alias(_value(place))
        for place, (name, kind) in enumerate(zip(names, kinds, strict=True))
    ]
    held = rows.select(IS_LOOKED_AT, IS_RIGHT, *read).persist()
    try:
        cuts = _cuts(held, len(names))
        counts = _counted(held, cuts)
    finally:
        held.unpersist()
    return summarize(names, [each.labels for each in cuts], counts)


def _readings(value: Column, kind: DataType) -> tuple[Column, Column, Column]:
    """A value as text, as a number, and as a time in seconds; null is what it is not, and what is not finite."""
    text = F.nullif(F.trim(value.cast("string")), F.lit(""))
    number, moment = F.lit(None).cast("double"), F.lit(None).cast("double")
    if isinstance(kind, NumericType):
        number = value.cast("double")
    elif isinstance(kind, DateType | TimestampType | TimestampNTZType):
        moment = value.cast("timestamp").cast("double")
    elif isinstance(kind, StringType):
        number, moment = text.try_cast("double"), F.try_to_timestamp(text).cast("double")
    is_finite = number.isNull() | (F.abs(number) < F.lit(math.inf))
    text, number = F.when(is_finite, text), F.when(is_finite, number)
    return text.alias("text"), number.alias("number"), moment.alias("moment")


@dataclass(frozen=True)
class _Cut:
    """How the values of a column become slices.

    Args:
        labels: Of the slices, the last two of `OTHERS` and `MISSING`.
        reading: What is cut at `edges`, "number" or "moment"; "" where `labels` are texts themselves.
        edges: Each belongs to the slice below it.
    """

    labels: tuple[str, ...]
    reading: str = ""
    edges: tuple[float, ...] = ()

    def place(self, value: Column) -> Column:
        """The place of a value's label."""
        missing, others = F.lit(len(self.labels) - 1), F.lit(len(self.labels) - 2)
        if self.reading:
            reading = value.getField(self.reading)
            above = [F.when(reading > F.lit(edge), 1).otherwise(0) for edge in self.edges]
            return F.when(reading.isNull(), missing).otherwise(sum(above, F.lit(0)))
        text = value.getField("text")
        found = F.array_position(F.array(*map(F.lit, self.labels[:-2])).cast("array<string>"), text)
        return F.when(text.isNull(), missing).when(found == 0, others).otherwise(found.cast("int") - 1)


def _cuts(held: DataFrame, num: int) -> list[_Cut]:
    """Of each column its most frequent values; of one that has more of them, numbers or times, its quarters."""
    each = F.posexplode(F.array(*[F.col(_value(place)) for place in range(num)])).alias("place", "value")
    values = held.select(IS_LOOKED_AT, each).select(IS_LOOKED_AT, "place", "value.*")
    quarters = F.array(*map(F.lit, _QUARTERS))
    about = values.groupBy("place").agg(
        F.count("text").alias("texts"),
        *[F.count(part).alias(f"{part}s") for part in _READINGS],
        *[F.percentile(F.when(F.col(IS_LOOKED_AT), F.col(part)), quarters).alias(part) for part in _READINGS],
    )
    readings = {row["place"]: _reading(row) for row in about.collect()}
    of_text = values.where(F.col("text").isNotNull()).groupBy("place", "text")
    counted = of_text.agg(
        F.count_if(IS_LOOKED_AT).alias("here"), F.count("*").alias("everywhere"), *map(F.first, _READINGS)
    )
    order = Window.partitionBy("place").orderBy(F.desc("here"), F.desc("everywhere"), "text")
    ranked = counted.withColumn("rank", F.row_number().over(order)).where(F.col("rank") <= MAX_VALUES + 1)
    frequent: dict[int, list[tuple[str, tuple[float, ...]]]] = {}
    for place, name, *_, number, moment, _rank in ranked.orderBy("place", "rank").collect():
        known = (value for value in (number, moment) if value is not None)
        frequent.setdefault(place, []).append((name, tuple(known)))
    nothing = ("", ())
    return [
        _cut(held.sparkSession, *readings.get(place, nothing), frequent.get(place, []))
        for place in range(num)
    ]


def _reading(row: Row) -> tuple[str, tuple[float, ...]]:
    """What all values of a column are, and its quarters; "" if they are text."""
    for part in _READINGS:
        if row["texts"] and row[f"{part}s"] == row["texts"] and row[part] is not None:
            return part, tuple(sorted(set(row[part])))
    return "", ()


def _cut(
    spark: SparkSession,
    reading: str,
    edges: tuple[float, ...],
    frequent: Sequence[tuple[str, tuple[float, ...]]],
) -> _Cut:
    if reading and len(frequent) > MAX_VALUES:
        return _Cut((*_ranges(_edges_in_words(spark, edges, reading)), OTHERS, MISSING), reading, edges)
    shown = sorted(frequent[:MAX_VALUES], key=lambda each: (each[1] if reading else (), each[0]))
    return _Cut((*(name for name, _ in shown), OTHERS, MISSING))


def _edges_in_words(spark: SparkSession, edges: Sequence[float], reading: str) -> list[str]:
    if reading == "number":
        digits = max(4, *(len(str(int(abs(edge)))) for edge in edges))
        words = [f"{edge:,.{digits}g}" for edge in edges]
        return words if len(set(words)) == len(words) else list(map(str, edges))
    times = [F.date_format(F.timestamp_seconds(F.lit(edge)), "yyyy-MM-dd HH:mm") for edge in edges]
    (found,) = spark.range(1).select(*times).collect()
    return [str(each).removesuffix(" 00:00") for each in found]


def _ranges(edges: Sequence[str]) -> list[str]:
    between = [f"{low} to {high}" for low, high in pairwise(edges)]
    return [f"up to {edges[0]}", *between, f"above {edges[-1]}"]


def _counted(held: DataFrame, cuts: Sequence[_Cut]) -> dict[Key, tuple[int, int, int]]:
    """Pictures of each slice: those looked at, those of them that are right, and the others; pairs of few left out."""
    levels = [each.place(F.col(_value(place))).alias(_value(place)) for place, each in enumerate(cuts)]
    placed = held.select(IS_LOOKED_AT, IS_RIGHT, *levels)

    def cell(one: int, other: int = -1) -> Column:
        level = F.col(_value(other)) if other >= 0 else F.lit(-1)
        parts = {"a": F.lit(one), "value_a": F.col(_value(one)), "b": F.lit(other), "value_b": level}
        return F.struct(*[part.alias(name) for name, part in parts.items()])

    singles = [cell(place) for place in range(len(cuts))]
    pairs = [cell(*each) for each in combinations(range(len(cuts)), 2)]
    cells = F.when(F.col(IS_LOOKED_AT), F.array(*singles, *pairs)).otherwise(F.array(*singles))
    exploded = placed.select(IS_LOOKED_AT, IS_RIGHT, F.explode(cells).alias("cell"))
    counted = exploded.groupBy("cell.a", "cell.value_a", "cell.b", "cell.value_b").agg(
        F.count_if(IS_LOOKED_AT).alias("here"),
        F.count_if(F.col(IS_LOOKED_AT) & F.col(IS_RIGHT)).alias("right"),
        F.count_if(~F.col(IS_LOOKED_AT)).alias("there"),
    )
    found = counted.where((F.col("b") < 0) | (F.col("here") >= LEAST)).collect()
    return {(row[0], row[1], row[2], row[3]): (row[4], row[5], row[6]) for row in found}


def summarize(
    names: Sequence[str], labels: Sequence[Sequence[str]], counts: Mapping[Key, tuple[int, int, int]]
) -> Slices:
    """What follows from counts.

    Args:
        names: Of the columns.
        labels: Of each column's values.
        counts: Key -> pictures that are looked at, those of them that are right, and those of the training split.
            Pairs of less than `LEAST` pictures may be missing.
    """
    of_first = [each for key, each in counts.items() if key[0] == 0 and key[2] < 0]
    total, total_right, train = (
        (sum(column) for column in zip(*of_first, strict=True)) if of_first else (0, 0, 0)
    )
    tested = {
        key: fewer_right(right, here, total_right, total)
        for key, (here, right, _) in counts.items()
        if LEAST <= here < total and all(counts[part][0] > here for part in _parts(key))
    }
    adjusted = holm(tested)

    def made(key: Key) -> Slice:
        here, right, there = counts[key]
        values = {names[column]: labels[column][value] for column, value, *_ in _parts(key) or (key,)}
        return Slice(values, here, right, adjusted.get(key), None if _parts(key) else there)

    bad = [key for key in tested if adjusted[key] <= LEVEL and _is_worse_than_its_parts(key, counts)]
    bad.sort(key=lambda key: (tested[key], counts[key][1] / counts[key][0], key))
    singles = sorted(key for key in counts if not _parts(key))
    return Slices(
        total,
        tuple(map(made, singles)),
        tuple(map(made, bad[:_MAX_WORST])),
        len(tested),
        train,
        tuple(_beside(names[place], labels[place], place, counts) for place in range(len(names)))
        if train
        else (),
    )


def _parts(key: Key) -> tuple[Key, ...]:
    """The two single slices that a pair is of; none of a single one."""
    column, value, other, of_other = key
    return () if other < 0 else ((column, value, -1, -1), (other, of_other, -1, -1))


def _is_worse_than_its_parts(key: Key, counts: Mapping[Key, tuple[int, int, int]]) -> bool:
    here, right, _ = counts[key]
    return all(fewer_right(right, here, counts[part][1], counts[part][0]) <= LEVEL for part in _parts(key))


def _beside(
    name: str, labels: Sequence[str], column: int, counts: Mapping[Key, tuple[int, int, int]]
) -> drift.Drift:
    of_column = {labels[key[1]]: each for key, each in counts.items() if key[0] == column and key[2] < 0}
    there, here = ({label: each[place] for label, each in of_column.items()} for place in (2, 0))
    return drift.of_counts(name, there, here)


def fewer_right(right: int, num: int, total_right: int, total: int) -> float:
    """The p-value of Fisher's exact test, one-sided.

    Args:
        right: Right ones of a part.
        num: Pictures of the part.
        total_right: Right ones of all.
        total: All pictures.

    Returns:
        How probable so few right ones, or fewer, are in a part of that size that is drawn by chance.
    """
    wrong = total - total_right
    if right >= min(num, total_right):
        return 1.0
    if right * total > num * total_right:
        # All others are few: those with fewer wrong ones.
        return 1.0 - fewer_right(num - right - 1, num, wrong, total)
    # In logarithms, as in McNemar's test; each term follows from the one above it.
    log = _log_choose(total_right, right) + _log_choose(wrong, num - right) - _log_choose(total, num)
    term, tail = 1.0, 0.0
    for each in range(right, max(0, num - wrong) - 1, -1):
        tail += term
        if term < 1e-18 * tail:
            break
        term *= each * (wrong - num + each) / ((total_right - each + 1) * (num - each + 1))
    return min(1.0, math.exp(log + math.log(tail)))


def _log_choose(total: int, num: int) -> float:
    return math.lgamma(total + 1) - math.lgamma(num + 1) - math.lgamma(total - num + 1)
